"""Each difference on purpose: it is needed, it says exactly what is different, and it is no wider.

A witness is a job on which the difference, and no other, changes what is compared, and on which Tailrace fails without
it. A near miss is a job that looks like one, and on which both agree: no difference may touch it.
"""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import ours
import pytest
from compare import agree
from differences import DIFFERENCES, promise
from streams import DEEP
from upstream import Upstream

pytestmark = pytest.mark.node

NEW, OLD = "0.3.44", "0.3.15"
Job = dict[str, Any]


def program(version: str, *prog: list[Any]) -> Job:
    return {"do": "program", "version": version, "prog": list(prog)}


def tool(name: str = "n", **given: Any) -> list[Any]:
    return ["toolPart", "h", {"toolName": name, **given}]


def decode(version: str, format: str, text: str, strict: bool = True) -> Job:
    data = text.encode()
    ends = sorted({at + 1 for at, byte in enumerate(data) if byte == 10} | {len(data)})
    b64 = base64.b64encode(data).decode()
    return {"do": "decode", "version": version, "format": format, "strict": strict, "b64": b64, "ends": ends}


def events(*texts: str, done: bool = True) -> str:
    return "".join(f"data: {text}\n\n" for text in (*texts, *(["[DONE]"] if done else [])))


def accumulate(version: str, *chunks: Job) -> Job:
    return {"do": "accumulate", "version": version, "chunks": list(chunks)}


def objects(version: str, *frames: list[Job]) -> Job:
    return {"do": "object", "version": version, "frames": list(frames)}


def put(*path: str) -> Job:
    return {"type": "set", "path": list(path), "value": 1}


def update(*path: str) -> Job:
    return {"type": "update-state", "path": [], "operations": [put(*path)]}


TEXT: Job = {"type": "part-start", "path": [], "part": {"type": "text"}}
CLOSE = ["close", "h"]
BOTH = "both"
ARGS: Job = {"args": {"a": 1}}
RESPONSE: Job = {"response": {"result": 1}}
CALL = 'b:{"toolCallId":"t","toolName":"n"}\n'


def delta(*path: int) -> Job:
    return {"type": "text-delta", "path": list(path), "textDelta": "x"}


WITNESSES: list[tuple[str, Job]] = [
    ("program-order", program(OLD, tool(BOTH, **ARGS, **RESPONSE), CLOSE)),
    ("program-order", program(NEW, tool(BOTH, **ARGS, **RESPONSE))),
    ("program-order", program(NEW, tool(BOTH, argsText="", **RESPONSE))),
    ("left-open", program(OLD, ["textPart", "h"], ["append", "h", "x"])),
    ("left-open", program(NEW, tool())),
    ("left-open", program(NEW, tool(), ["args", "h", "x"], ["argsClose", "h"])),
    ("left-open", program(NEW, ["merge", [["reasoningPart", "h"]]], ["appendText", "a"])),
    ("left-open", program(OLD, ["textPart", "h"], ["throw", "boom"])),
    ("no-part", accumulate(OLD, TEXT, {"type": "part-finish", "path": [3]})),
    ("unsafe-path", accumulate(OLD, TEXT, update("a", "__proto__"))),
    ("unsafe-path", accumulate(OLD, update("constructor"))),
    ("unsafe-path", accumulate(OLD, {**update(), "operations": [put("__proto__", "a"), put("b"), put("b", "c")]})),
    ("unsafe-path in an object stream", objects(OLD, [put("a")], [put("__proto__", "x")])),
    (
        "unsafe-path when read",
        decode(OLD, "object-stream", events('[{"type":"set","path":["prototype"],"value":1}]', done=False)),
    ),
    ("path-filled", decode(OLD, "assistant-transport", events('{"type":"data","data":[1]}'))),
    *(
        ("no-chunk", decode(OLD, "assistant-transport", events('{"type":"data","path":[],"data":[]}', text)))
        for text in ("null", "[]", '"x"', "{}", '{"type":"odd","path":[]}', '{"type":"data","data":[],"path":[-1]}')
    ),
    ("cut-block", decode(OLD, "assistant-transport", 'data: {"type":"data","path":[],"data":[1]}\n')),
    ("wrong-payload", decode(NEW, "data-stream", '0:"a"\n0:1\n0:"b"\n')),
    ("wrong-payload", decode(NEW, "data-stream", '0:"a"\n0:1\n0:"b"\n', strict=False)),
    ("wrong-payload", decode(OLD, "data-stream", '2:{"0":1}\n')),
    ("wrong-payload", decode(OLD, "data-stream", 'a:{"result":1}\n')),
    ("wrong-event", decode(NEW, "ui-message-stream", events('{"type":"reasoning-delta","delta":1}'))),
    ("wrong-event", decode(NEW, "object-stream", events("[]", "[7]", done=False))),
    (
        "wrong-event",
        decode(
            OLD,
            "object-stream",
            events(
                '[{"type":"set","path":[],"value":"s"}]', '[{"type":"append-text","path":[],"value":1}]', done=False
            ),
        ),
    ),
    ("long-line", decode(NEW, "data-stream", '2:[]\n0:"' + "a" * 998)),
    ("long-line", decode(OLD, "assistant-transport", "data: " + "é\r" * 500)),
    ("too-deep", decode(NEW, "data-stream", f'0:"a"\n2:[{DEEP}]\n')),
    ("too-deep", decode(OLD, "assistant-transport", events('{"type":"data","path":[],"data":[' + DEEP + "]}"))),
]

NEAR_MISSES: list[Job] = [
    program(NEW, tool(**ARGS), CLOSE),
    program(NEW, tool(**RESPONSE)),
    program(OLD, tool(**RESPONSE), CLOSE),
    program(NEW, tool(**ARGS), ["response", "h", {"result": 1}]),
    program(OLD, ["textPart", "h"], ["append", "h", "x"], CLOSE, CLOSE),
    program(NEW, ["textPart", "h"], CLOSE, ["append", "h", "late"]),
    program(OLD, ["textPart", "h"], CLOSE, ["append", "h", "late"]),
    program(OLD, tool(), CLOSE, ["args", "h", "late"]),
    program(OLD, ["throw", "Invalid state: Controller is already closed"]),
    program(OLD, ["enqueue", {**TEXT, "part": {"type": "text", "parentId": "raw"}}]),
    program(NEW, ["appendText", "x"], ["appendReasoning", "y"]),
    program(NEW, tool(), ["response", "h", {}]),
    program(NEW, ["appendText", "x"], ["throw", "boom"]),
    accumulate(OLD, TEXT, delta(0)),
    accumulate(OLD, delta(1)),
    accumulate(OLD, TEXT, delta(1)),
    accumulate(OLD, TEXT, delta(0, 0)),
    accumulate(OLD, TEXT, delta(0, 0), delta(7)),
    accumulate(NEW, TEXT, delta(1)),
    accumulate(OLD, update("a", "__proto"), update("Constructor")),
    accumulate(NEW, update("a", "__proto__")),
    accumulate(OLD, {**update(), "operations": [{"type": "set", "path": [], "value": [1]}, put("__proto__")]}),
    accumulate(
        OLD, {**update(), "operations": [{"type": "set", "path": ["a"], "value": "s"}, put("a", "constructor")]}
    ),
    objects(NEW, [put("a")], [put("__proto__", "x")]),
    objects(OLD, [{"type": "set", "path": [], "value": {"__proto__": 1}}]),
    decode(NEW, "object-stream", events('[{"type":"set","path":["prototype"],"value":1}]', done=False)),
    decode(OLD, "object-stream", events('[{"type":"set","path":["a"],"value":"prototype"}]', done=False)),
    decode(
        OLD, "assistant-transport", events('{"type":"data","path":[],"data":[1]}', '{"type":"x"').replace("[DONE]", "")
    ),
    decode(OLD, "assistant-transport", events('{"type":"data","data":[],"path":[0,1]}')),
    decode(NEW, "assistant-transport", events("null", '{"type":"data","data":[1]}', '{"type":"odd","path":[]}')),
    decode(OLD, "assistant-transport", 'data: {"type":"data","path":[],"data":[1]}\n\n'),
    decode(OLD, "assistant-transport", 'data: {"type":"data","path":[],"data":[1]}\n\ndata: [DONE]\n'),
    decode(NEW, "assistant-transport", 'data: {"type":"data","path":[],"data":[1]}\n'),
    decode(NEW, "data-stream", '0:"a"\n0:1', strict=False),
    decode(NEW, "data-stream", '0:"a"\n0:"b"\n2:[]\n3:null\n'),
    decode(NEW, "data-stream", '0:"a"\n0:x\n0:"b"\n', strict=False),
    decode(NEW, "data-stream", 'c:{"toolCallId":"t","argsTextDelta":"x"}\n'),
    decode(OLD, "data-stream", CALL + 'a:{"toolCallId":"t"}\n'),
    decode(
        NEW, "ui-message-stream", events('{"type":"text-delta","delta":null}', '{"type":"source","source":null}', "7")
    ),
    decode(NEW, "object-stream", events('[{"type":"odd","path":[]}]', done=False)),
    decode(NEW, "object-stream", events("[]", "{", done=False)),
    decode(NEW, "object-stream", events('{"type":"set"}', done=False)),
    decode(NEW, "data-stream", '2:[]\n0:"' + "a" * 997),
    decode(NEW, "data-stream", '2:["' + "{" * 300 + '"]\n'),
    decode(NEW, "data-stream", "2:[" + DEEP[: 5 * 200] + "1" + "}" * 200 + "]\n"),
]


def names_of(upstream: Upstream, job: Job, without: str | None = None) -> tuple[str | None, list[str]]:
    """Where Tailrace fails its promise, and the differences that changed what was compared."""
    (theirs,) = upstream.run(job)
    mine = ours.run(job)
    table = [difference for difference in DIFFERENCES if difference.name != without]
    must, names = promise(job, mine, theirs, lambda other: upstream.run(other)[0], table)
    return agree(job, mine, must), names


@pytest.mark.parametrize(
    ("name", "job"), WITNESSES, ids=[f"{number}-{name}" for number, (name, _) in enumerate(WITNESSES)]
)
def test_a_difference_is_needed_and_says_what_is_different(upstream: Upstream, name: str, job: Job) -> None:
    assert names_of(upstream, job) == (None, [name])
    wrong, names = names_of(upstream, job, without=name)
    assert wrong is not None
    assert names == []


@pytest.mark.parametrize("job", NEAR_MISSES, ids=range(len(NEAR_MISSES)))
def test_a_near_miss_is_left_alone(upstream: Upstream, job: Job) -> None:
    assert names_of(upstream, job) == (None, [])


WRITTEN_OUT = [
    (name, job) for name, job in WITNESSES if name != "cut-block"
]  # an error's own piece may have more chunks


@pytest.mark.parametrize(("name", "job"), WRITTEN_OUT, ids=[f"{n}-{name}" for n, (name, _) in enumerate(WRITTEN_OUT)])
def test_a_difference_excuses_nothing_else(upstream: Upstream, name: str, job: Job) -> None:
    """Upstream's own outcome, where the difference is promised, is not good enough; nor is one with something lost."""
    (theirs,) = upstream.run(job)
    mine = ours.run(job)
    must, _ = promise(job, mine, theirs, lambda other: upstream.run(other)[0])
    key = next(key for key in ("chunks", "messages", "snapshots") if key in mine)
    assert agree(
        job, {**mine, **{name: theirs.get(name) for name in ("error", "failed", "at", key) if name in mine}}, must
    )
    if mine[key]:
        for at in range(len(mine[key])):
            worse = {**mine, key: mine[key][:at] + mine[key][at + 1 :]}
            again, _ = promise(job, worse, theirs, lambda other: upstream.run(other)[0])
            assert agree(job, worse, again), f"{key}[{at}] is missing"


def test_every_difference_has_witnesses() -> None:
    counted = Counter(name for name, _ in WITNESSES)
    assert set(counted) == {difference.name for difference in DIFFERENCES}
    assert all(difference.reason for difference in DIFFERENCES)
