"""The house: who may import whom, what the pure layer may touch, and where a stream's rules may be decided.

Each check takes a project's root and gives its violations, one line each, so that it can be shown to fail on a planted
one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("pipeline", "brokers", "services")  # each may import itself and those before it

PURE = {
    *("__future__", "abc", "base64", "binascii", "bisect", "codecs", "collections", "contextlib", "copy"),
    *("dataclasses", "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "itertools", "json"),
    *("keyword", "logging", "math", "numbers", "operator", "re", "string", "struct", "textwrap", "types", "typing"),
    *("unicodedata", "urllib.parse", "warnings", "weakref", "zlib", "pydantic", "pydantic_core", "tailrace"),
}
TASKS = {"CancelledError", "Event", "FIRST_COMPLETED", "Task", "create_task", "shield", "wait"}  # of asyncio: no I/O
WAITING = {"context.py", "tool_execution.py", "tool_reader.py", "tool_results.py", "tools.py"}  # who may take those
BUILTIN_IO = {"open", "print", "input", "breakpoint", "exec", "eval", "compile", "__import__"}

FOLD_NAMES = {"fold", "State", "Verdict", "TRIMMED", "EXPIRED", "DELETED"}
JUDGED = {"phase", "epoch", "generation"}


def modules(root: Path, *layers: str) -> Iterator[tuple[Path, ast.Module]]:
    for layer in layers or LAYERS:
        for path in sorted((root / layer).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported, by name of a module or of what is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def layer_of(root: Path, dotted: str) -> str | None:
    """The layer that holds the module (or the module of the name) ``dotted``."""
    parts = dotted.split(".")
    if parts[0] != "tailrace" or len(parts) < 2:
        return None
    for layer in LAYERS:
        base = root / layer / "tailrace" / parts[1]
        if base.is_dir() or base.with_suffix(".py").is_file():
            return layer
    return "nowhere"


def upward_imports(root: Path) -> list[str]:
    found = []
    for path, tree in modules(root):
        own = LAYERS.index(path.relative_to(root).parts[0])
        for line, name in imports(tree):
            if name.startswith("."):
                found.append(f"{path}:{line} a relative import: say from tailrace.…")
            if name.split(".")[0] in LAYERS:
                found.append(f"{path}:{line} imports {name} by its source root")
            layer = layer_of(root, name)
            if layer == "nowhere":
                found.append(f"{path}:{line} imports {name}, which no layer holds")
            elif layer is not None and LAYERS.index(layer) > own:
                found.append(f"{path}:{line} {LAYERS[own]} imports {name} of {layer}")
    return found


def io_in_pipeline(root: Path) -> list[str]:
    found = []
    for path, tree in modules(root, "pipeline"):
        for line, name in imports(tree):
            if name == "asyncio" and path.name in WAITING:
                continue
            if name.split(".")[0] not in PURE and ".".join(name.split(".")[:2]) not in PURE:
                found.append(f"{path}:{line} imports {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTIN_IO:
                found.append(f"{path}:{node.lineno} calls {node.func.id}")
            if _attribute_of(node, "asyncio") not in (None, *TASKS):
                found.append(f"{path}:{getattr(node, 'lineno', 0)} uses asyncio.{_attribute_of(node, 'asyncio')}")
    return found


def _attribute_of(node: ast.AST, name: str) -> str | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name:
        return node.attr
    return None


def paths_in_two_roots(root: Path) -> list[str]:
    """A name below ``tailrace`` belongs to one root: a module or package in two breaks the wheel obscurely."""
    seen: dict[str, str] = {}
    found = []
    for layer in LAYERS:
        names = {
            path.stem.lower()
            for path in (root / layer / "tailrace").glob("*")
            if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
        }
        for name in sorted(names):
            if name in seen:
                found.append(f"tailrace/{name} is in {seen[name]} and in {layer}")
            seen[name] = layer
    return found


def environment_reads(root: Path) -> list[str]:
    readers = {"environ", "environb", "getenv", "getenvb"}
    found = []
    for path, tree in modules(root):
        if path == root / "services" / "tailrace" / "settings.py":
            continue
        taken = [(line, name) for line, name in imports(tree) if name in {f"os.{reader}" for reader in readers}]
        found += [f"{path}:{line} imports {name}" for line, name in taken]
        for node in ast.walk(tree):
            if _attribute_of(node, "os") in readers:
                found.append(f"{path}:{getattr(node, 'lineno', 0)} reads the environment")
    return found


def namespace_inits(root: Path) -> list[str]:
    return [str(path) for layer in LAYERS if (path := root / layer / "tailrace" / "__init__.py").exists()]


def packages_without_init(root: Path) -> list[str]:
    folders = {path.parent for path, _ in modules(root)} - {root / layer / "tailrace" for layer in LAYERS}
    return [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()]


def rules_decided_elsewhere(root: Path) -> list[str]:
    """Above the pipeline nobody decides what a record or a state means: adapters translate, `tailrace.decide` and
    `tailrace.fold` decide. So outside the pipeline

    - the fold gives its function, its state as a type and an empty value, its verdicts and its endings, no more: a
      phase or a transition is not seen;
    - no phase, epoch or generation is compared or matched, and nobody knows the kinds of records;
    - no record is made (`decide` makes them), and no state with facts in it.
    """
    found = []
    for path, tree in modules(root, "brokers", "services"):
        if "testing" in path.relative_to(root).parts:  # the kit asserts what it may not decide
            continue
        for line, name in imports(tree):
            if name in ("tailrace.fold", "tailrace.records", "tailrace.records.Kind") or (
                name.startswith("tailrace.fold.") and name.rpartition(".")[2] not in FOLD_NAMES
            ):
                found.append(f"{path}:{line} imports {name}")
        found += [f"{path}:{line} {what}" for node in ast.walk(tree) for line, what in _decisions(node)]
    return found


def _decisions(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Compare):
        for side in (node.left, *node.comparators):
            if judged := sorted(JUDGED & _attributes(side)):
                yield node.lineno, f"compares .{judged[0]}"
    elif isinstance(node, ast.Match) and (judged := sorted(JUDGED & _attributes(node.subject))):
        yield node.lineno, f"matches .{judged[0]}"
    elif isinstance(node, ast.Attribute) and node.attr == "phase":
        yield node.lineno, "looks at a phase"
    elif isinstance(node, ast.ImportFrom) and node.module == "tailrace" and any(a.name == "fold" for a in node.names):
        yield node.lineno, "imports the whole fold"
    elif isinstance(node, ast.Call):
        if _called(node) == "Record":
            yield node.lineno, "makes a record"
        if _called(node) == "State" and (node.args or node.keywords):
            yield node.lineno, "makes a state"


def _attributes(node: ast.AST) -> set[str]:
    """The attributes that are values in an expression, those of a call's arguments left out."""
    if isinstance(node, ast.Attribute):
        return {node.attr}
    if isinstance(node, ast.Tuple | ast.List):
        return set().union(*map(_attributes, node.elts))
    if isinstance(node, ast.BinOp):
        return _attributes(node.left) | _attributes(node.right)
    return set()


CHECKS: list[Callable[[Path], list[str]]] = [
    upward_imports,
    io_in_pipeline,
    paths_in_two_roots,
    environment_reads,
    namespace_inits,
    packages_without_init,
    rules_decided_elsewhere,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: Callable[[Path], list[str]]) -> None:
    found = [line.removeprefix(f"{ROOT}/") for line in check(ROOT)]
    assert not found, "\n".join(found)


HOUSE = {
    "pipeline/tailrace/model.py": "import json\nfrom enum import Enum\n",
    "pipeline/tailrace/fold.py": "from tailrace.model import Enum\n",
    "pipeline/tailrace/context.py": "import asyncio\nasync def f(task):\n    await asyncio.wait([task])\n",
    "brokers/tailrace/memory.py": "import os, tailrace.model\nfrom tailrace.fold import State\nx = State()\n",
    "brokers/tailrace/jet/__init__.py": "",
    "brokers/tailrace/jet/log.py": "from tailrace.memory import x\nmark = lambda lease: (lease.epoch, 1)\n",
    "services/tailrace/settings.py": "import os\nHOME = os.environ.get('HOME')\n",
    "services/tailrace/cli.py": "from tailrace.settings import HOME\nfrom tailrace.jet.log import mark\n",
}


def build(root: Path, more: dict[str, str]) -> Path:
    for name, text in (HOUSE | more).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_house_passes(check: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert check(build(tmp_path, {})) == []


PIPELINE, BROKER, SERVICE = "pipeline/tailrace/new.py", "brokers/tailrace/new.py", "services/tailrace/new.py"
PLANTED: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (upward_imports, PIPELINE, "from tailrace.memory import x"),
    (upward_imports, PIPELINE, "from tailrace import cli"),
    (upward_imports, PIPELINE, "def f():\n    import tailrace.jet.log"),
    (upward_imports, BROKER, "import tailrace.cli"),
    (
        upward_imports,
        BROKER,
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tailrace.settings import HOME",
    ),
    (upward_imports, BROKER, "from importlib import import_module\nimport_module('tailrace.cli')"),
    (upward_imports, BROKER, "from . import memory"),
    (upward_imports, SERVICE, "from tailrace.gone import x"),
    (upward_imports, SERVICE, "from brokers.tailrace import memory"),
    *(
        (io_in_pipeline, PIPELINE, text)
        for text in (
            "import os",
            "from socket import socket",
            "from pathlib import Path",
            "import httpx",
            "import nats.aio.client",
            "import asyncio",
            "import time",
            "from urllib import request",
            "import urllib.request",
            "import random",
            "import threading",
            "text = open('x').read()",
            "print('x')",
            "__import__('os')",
        )
    ),
    (io_in_pipeline, "pipeline/tailrace/context.py", "import asyncio\nasyncio.open_connection('x', 1)"),
    (io_in_pipeline, "pipeline/tailrace/context.py", "from asyncio import to_thread"),
    (paths_in_two_roots, "services/tailrace/memory.py", ""),
    (paths_in_two_roots, "pipeline/tailrace/jet.py", ""),
    (paths_in_two_roots, "services/tailrace/jet/more.py", ""),
    (paths_in_two_roots, "services/tailrace/Memory.py", ""),
    (environment_reads, BROKER, "import os\nx = os.environ['X']"),
    (environment_reads, BROKER, "import os\nx = os.getenv('X')"),
    (environment_reads, SERVICE, "from os import environ"),
    (environment_reads, SERVICE, "def f():\n    from os import getenv as g"),
    (environment_reads, "services/tailrace/gateway/settings.py", "import os\nx = os.environ"),
    (namespace_inits, "brokers/tailrace/__init__.py", ""),
    (packages_without_init, "services/tailrace/gateway/routes.py", ""),
    *(
        (rules_decided_elsewhere, path, text)
        for path in (BROKER, SERVICE)
        for text in (
            "from tailrace.fold import Phase",
            "from tailrace.fold import TRANSITIONS",
            "from tailrace.fold import _claim",
            "import tailrace.fold",
            "from tailrace import fold",
            "def f(state):\n    return state.phase",
            "from tailrace.records import Kind\ndef f(record):\n    return record.kind in (Kind.EXPIRY,)",
            "def f(state, lease):\n    return state.epoch > lease.epoch",
            "def f(state, lease):\n    return (state.incarnation, state.epoch) == (lease.incarnation, lease.epoch)",
            "def f(new, old):\n    return new.incarnation.generation == old.incarnation.generation + 1",
            "def f(state):\n    match state.epoch:\n        case 1:\n            return True",
            "from tailrace.records import Record\ndef f(*facts):\n    return Record(*facts)",
            "from tailrace.fold import State\nx = State(epoch=2)",
        )
    ),
]


@pytest.mark.parametrize(("check", "path", "text"), PLANTED)
def test_a_planted_violation_is_found(check: Callable[[Path], list[str]], path: str, text: str, tmp_path: Path) -> None:
    found = check(build(tmp_path, {path: text}))
    assert found, f"{check.__name__} does not see: {text}"
    assert any(Path(path).stem.lower() in line.lower() or Path(path).parent.name in line for line in found)
