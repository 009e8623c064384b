"""What the differential tests run: programs, chunks, byte streams, object streams and texts, as hypothesis makes them.

A step of a program names a handle by a number; it is resolved when the program is put together, so that any step can be
left out and the rest still means something. That keeps failures small.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st

from tailrace.wire.jsjson import join_surrogates

VERSIONS = ("0.3.15", "0.3.44")
REASONS = ("stop", "length", "content-filter", "tool-calls", "error", "other", "unknown")
PARENTS = (None, None, None, "p", "q", "", "é\ud800")

BOTH = "both"
"""The name of tools that are called with arguments and a response at once: there we differ, see `differences`."""
RAW = "raw"
"""What marks the part chunks that a program enqueues as they are: no writer knows of them, and none closes them."""

TEXTS = (
    "",
    "a",
    "Hello ",
    "é",
    "🌍",
    "\ud83c",
    "\udf0d",
    "\ud83c\udf0d",
    "\u2028\n",
    '"\\',
    "</b>",
    "\0",
    "\r\n",
    "\ufeff",
    "words and words ",
)
VALUES: tuple[Any, ...] = (
    None,
    0,
    -1.5,
    1e21,
    1e-7,
    1e16,
    123456789012345680000,
    5e-324,
    2**53,
    True,
    False,
    "x",
    "",
    "\ud800",
    [],
    {},
    [1, [2]],
    [None],
    {"b": 1, "2": "two", "1": "one", "a": {"é": None}},
    {"__proto__": 1},
    {"a": {"constructor": {"prototype": 1}}},
    {"": {"10": 1, "9": 2, "01": 3}},
)
ARGS = (
    '{"q":',
    '"x"',
    ",",
    '"n":1',
    "2",
    "}",
    "tru",
    '"é\\u00',
    'e9"',
    "[",
    "]",
    " ",
    "x",
    '{"a":{"b":[1,',
    "\ud83c",
    '{"__proto__":1}',
    "1e",
)

texts = st.sampled_from(TEXTS) | st.text(st.characters(codec=None), max_size=6)
values = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(VALUES),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70),
    texts,
    st.lists(st.sampled_from(VALUES), max_size=3),
    # two keys that are one in UTF-16 would be two in Python: they are joined here
    st.dictionaries(
        st.sampled_from(("a", "b", "0", "7", "é", "length")) | texts.map(join_surrogates),
        st.sampled_from(VALUES),
        max_size=3,
    ),
)
numbers = st.integers(0, 5)
parents = st.sampled_from(PARENTS)
usages = st.sampled_from(
    (
        {"inputTokens": 1, "outputTokens": 2},
        {"inputTokens": 0, "outputTokens": 0},
        {"inputTokens": 9, "outputTokens": 31.5},
    )
)


def _some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def _with(fixed: dict[str, Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({**{key: st.just(value) for key, value in fixed.items()}, **fields})


# ── chunks ──

keys = st.sampled_from(("a", "b", "t", "l", "n", "0", "1", "2", "9", "-1", "01", "x", "é", "__proto__", "constructor"))
operations = st.one_of(
    st.just({"type": "set", "path": ["t"], "value": "t"}),
    st.just({"type": "set", "path": ["l"], "value": [1, "t", {"d": "e"}]}),
    _with({"type": "append-text", "path": ["t"]}, value=texts),
    _with({"type": "set"}, path=st.lists(keys, max_size=3), value=values),
    _with({"type": "append-text"}, path=st.lists(keys, max_size=3), value=texts),
)

message_chunks = st.one_of(
    _with({"type": "step-start", "path": []}, messageId=texts),
    _with(
        {"type": "step-finish", "path": []},
        finishReason=st.sampled_from(REASONS),
        usage=usages,
        isContinued=st.booleans(),
    ),
    _with({"type": "message-finish", "path": []}, finishReason=st.sampled_from(REASONS), usage=usages),
    _with({"type": "annotations", "path": []}, annotations=st.lists(values, max_size=3)),
    _with({"type": "data", "path": []}, data=st.lists(values, max_size=3)),
    st.builds(
        lambda fixed, more: {**fixed, **more},
        _with({"type": "error", "path": []}, error=texts),
        _some(code=texts, severity=st.sampled_from(("critical", "warning", "info"))),
    ),
    _with({"type": "update-state", "path": []}, operations=st.lists(operations, max_size=4)),
)

responses = st.one_of(
    _some(result=values),
    st.builds(
        lambda a, b: {**a, **b},
        st.fixed_dictionaries({"result": values}),
        _some(
            artifact=values,
            isError=st.booleans(),
            modelContent=st.just([{"type": "text", "text": "m"}]),
            messages=st.just([{"role": "user"}]),
        ),
    ),
)

sources = st.builds(
    lambda a, b: {**a, **b}, _with({"type": "source", "sourceType": "url"}, id=texts, url=texts), _some(title=texts)
)
files = _with({"type": "file"}, data=texts, mimeType=st.sampled_from(("text/plain", "image/png", "")))
datas = _with({"type": "data"}, name=st.sampled_from(("chart", "é", "")), data=values)

_part_fields = st.one_of(
    _with({"type": "text"}),
    st.builds(lambda a, b: {**a, **b}, _with({"type": "reasoning"}), _some(unstable_summary=texts)),
    _with({"type": "tool-call", "toolName": "n"}, toolCallId=st.sampled_from(("t1", "t2", "t3"))),
    sources,
    files,
    datas,
    _with({"type": "step", "x": 1}),
)
parts = st.builds(lambda part, parent: part if parent is None else {**part, "parentId": parent}, _part_fields, parents)
paths = st.one_of(numbers.map(lambda n: [n % 4]), numbers.map(lambda n: [n]), st.lists(numbers, max_size=3))
part_chunks = st.one_of(
    _with({"type": "part-start", "path": []}, part=parts),
    _with({"type": "part-start", "path": []}, part=parts),
    _with({"type": "text-delta"}, path=paths, textDelta=texts | st.sampled_from(ARGS)),
    _with({"type": "text-delta"}, path=paths, textDelta=texts | st.sampled_from(ARGS)),
    _with({"type": "part-finish"}, path=paths),
    _with({"type": "tool-call-args-text-finish"}, path=paths),
    st.builds(lambda path, response: {"type": "result", "path": path, "isError": False, **response}, paths, responses),
    _with({"type": "part-start"}, path=paths, part=parts),
)
stray_chunks = st.lists(st.one_of(part_chunks, part_chunks, message_chunks), min_size=1, max_size=16)


# ── programs ──

_ids = st.sampled_from(("t1", "t2", "é"))
_tool_options = st.one_of(
    _some(args=st.sampled_from(VALUES[-4:]), toolCallId=_ids),
    _some(argsText=st.sampled_from(("{}", "", '{"a":1}')), toolCallId=_ids),  # with both, the call is an error
)
_leaf_steps = st.one_of(
    st.tuples(st.just("appendText"), texts, parents),
    st.tuples(st.just("appendReasoning"), texts, parents),
    st.tuples(st.just("appendSummary"), texts, texts, parents),
    st.tuples(st.sampled_from(("textPart", "reasoningPart")), parents),
    st.tuples(st.just("toolPart"), _tool_options, responses | st.none() | st.none(), parents),
    st.tuples(st.just("toolPart"), st.just({}), st.none(), parents),
    st.tuples(st.just("parallel"), st.lists(st.sampled_from(ARGS), min_size=2, max_size=6), parents),
    st.tuples(st.just("append"), numbers, texts),
    st.tuples(st.just("append"), numbers, texts),
    st.tuples(st.just("args"), numbers, st.sampled_from(ARGS) | texts),
    st.tuples(st.just("args"), numbers, st.sampled_from(ARGS) | texts),
    st.tuples(st.just("argsClose"), numbers),
    st.tuples(st.just("response"), numbers, responses),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("source"), sources, parents),
    st.tuples(st.just("file"), files, parents),
    st.tuples(st.just("data"), datas, parents),
    st.tuples(st.just("enqueue"), message_chunks),
    st.tuples(st.just("enqueue"), message_chunks | part_chunks),
)
_rare_steps = st.one_of(
    st.tuples(st.just("end")), st.tuples(st.just("throw"), st.sampled_from(("boom", "", "é\ud800")))
)
_ends = st.sampled_from(("close", "close", "close", "leave"))


def _put_together(steps: list[tuple[Any, ...]], end: str) -> list[Any]:
    """The program of some steps: handles named, parents only where there is one, and open parts closed at the end."""
    prog: list[Any] = []
    open_parts: dict[str, list[str]] = {"text": [], "tool": []}
    made = 0
    for op, *args in steps:
        if op in ("textPart", "reasoningPart", "toolPart"):
            made += 1
            name = f"h{made}"
            kind = "tool" if op == "toolPart" else "text"
            open_parts[kind].append(name)
            if op == "toolPart":
                options, response, parent = args
                given = {} if response is None else {"response": response}
                both = bool(given) and ("args" in options or "argsText" in options)
                args = [{"toolName": BOTH if both else "n", **options, **given}, parent]
            prog.append([op, name, *args])
        elif op == "parallel":
            names = [f"h{made + 1}", f"h{made + 2}"]
            made += 2
            prog += [
                ["toolPart", name, {"toolName": "n", "toolCallId": name}, *([] if args[1] is None else [args[1]])]
                for name in names
            ]
            prog += [["args", names[number % 2], piece] for number, piece in enumerate(args[0])]
            open_parts["tool"] += names
        elif op in ("append", "args", "argsClose", "response", "close"):
            names = open_parts["text"] if op == "append" else open_parts["tool"]
            if op == "close":
                names = open_parts["text"] + open_parts["tool"]
            if names:
                prog.append([op, names[args[0] % len(names)], *args[1:]])
        elif op == "enqueue" and args[0]["type"] == "part-start":
            prog.append([op, {**args[0], "part": {**args[0]["part"], "parentId": RAW}}])
        elif op == "enqueue" and args[0]["path"]:
            prog.append([op, {**args[0], "from": RAW}])
        else:
            prog.append([op, *args])
        if op != "parallel" and prog and prog[-1][-1] is None:
            prog[-1].pop()
    if end == "close" and not any(op in ("throw",) for op, *_ in prog):
        prog += [["close", name] for names in open_parts.values() for name in names]
    return prog


def _programs(steps: st.SearchStrategy[Any], size: int) -> st.SearchStrategy[list[Any]]:
    some = st.lists(steps, max_size=size)  # two of them: longer than hypothesis makes one, and still free to shrink
    return st.builds(lambda one, two, end: _put_together([*one, *two], end), some, some, _ends)


def _one_in(many: int, rare: st.SearchStrategy[Any], common: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(range(many)).flatmap(lambda n: rare if n == many - 1 else common)  # not `integers`: no bias


_inner = _programs(_one_in(15, _rare_steps, _leaf_steps), 3)
_middle = _programs(_one_in(8, st.tuples(st.just("merge"), _inner), _one_in(15, _rare_steps, _leaf_steps)), 4)
programs = _programs(_one_in(16, st.tuples(st.just("merge"), _middle), _one_in(40, _rare_steps, _leaf_steps)), 12)


# ── what a run has seen ──


def count_program(prog: list[Any], seen: Counter[str], depth: int = 0) -> None:
    """Adds the operations of a program, and what is special about it."""
    working: set[str] = set()
    for op, *args in prog:
        seen[f"op {op}"] += 1
        if op == "merge":
            seen[f"merge depth {depth + 1}"] += 1
            count_program(args[0], seen, depth + 1)
        elif op == "enqueue":
            count_chunk(args[0], seen, "op")
        elif op == "args":
            if working and args[0] not in working:
                seen["parallel tools"] += 1
            working.add(args[0])
        elif op in ("close", "argsClose", "response"):
            working.discard(args[0])
        elif op == "toolPart":
            given = args[1]
            seen["tool with args"] += "args" in given or "argsText" in given
            seen["tool with response"] += "response" in given
        if op not in ("merge", "enqueue", "append", "args", "argsClose", "response", "close", "end", "throw"):
            seen["parent"] += isinstance(args[-1], str) and args[-1] in PARENTS and len(args) > 1
    text = repr(prog)
    seen["lone surrogate"] += "\\ud8" in text or "\\udf0d" in text


def count_chunk(chunk: dict[str, Any], seen: Counter[str], where: str) -> None:
    seen[f"{where} chunk {chunk['type']}"] += 1
    if chunk["type"] == "part-start":
        seen[f"{where} part {chunk['part']['type']}"] += 1
    if len(chunk["path"]) > 1:
        seen[f"{where} nested path"] += 1
