"""The documents, held to what they say.

Every fenced block of the README has an info string that says how it is run, in the order in which they stand, in one
empty folder with a home of its own:

=====================  ================================================================================
``python run``         a script, run by itself
``python file=NAME``   saved under that name
``sh run``             a shell script; each of its commands must succeed (curl: with a status below 400)
``sh serve``           a service; it must say that it is ready, and stays up for the blocks behind it
``sh make``            ``make`` targets: dry here, and the demo for real in the slow suite
``text output``        what the block before it prints
``text``               a picture; it holds no commands
=====================  ================================================================================

Port 8080 stands for a free one.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from tailrace._ports import choose_port
from tailrace.cli import app
from tailrace.gateway import create_app
from tailrace.gateway.problems import STATUS
from tailrace.memory import MemoryStore
from tailrace.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
PATIENCE = 100.0  # seconds after which a snippet hangs
SERVED = "ready on http://"

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\s*(\$ |curl |tailrace |make |pip |python3? )", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    info: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"README.md:{self.line} ({self.info or 'no info string'})"


def blocks(text: str) -> list[Block]:
    return [Block(m["info"].strip(), m["text"], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def commands() -> set[str]:
    """The commands that ``tailrace --help`` lists."""
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


class Bench:
    """The folder in which the snippets run, with a home of its own, and what they start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = choose_port(None, None)
        self.services: list[subprocess.Popen[str]] = []
        home = folder.parent / "home"
        home.mkdir()
        (home / ".curlrc").write_text("fail-with-body\nmax-time = 60\n")
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "SSL_CERT_FILE")}
        coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        self.environment = (
            kept
            | coverage
            | {
                "HOME": str(home),
                "XDG_DATA_HOME": str(home / "data"),
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "TAILRACE_PORT": str(self.port),
            }
        )

    def run(self, *command: str) -> str:
        """Run it to its end; what it printed. Fails the test where it fails."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Start a service and wait for its ready line."""
        log = self.folder.parent / "service.log"
        with log.open("a") as errors:
            service = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.services.append(service)
        timer = threading.Timer(PATIENCE, service.kill)
        timer.start()
        assert service.stdout is not None
        ready = service.stdout.readline()
        timer.cancel()
        assert SERVED in ready, f"{command}: {ready!r}\n{log.read_text()}"

    def close(self) -> None:
        for service in self.services:
            service.send_signal(signal.SIGTERM)
        for service in self.services:
            assert service.wait(PATIENCE) == 0, "a service that is asked to stop exits with 0"
            assert service.stdout is not None
            service.stdout.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "here").mkdir()
    bench = Bench(tmp_path / "here")
    try:
        yield bench
    finally:
        bench.close()


def play(block: Block, bench: Bench, printed: str) -> str:
    """Do what the block's info string says; what it printed. ``printed``: what the block before it did."""
    text = block.text.replace(":8080", f":{bench.port}")
    match block.info.split():
        case ["python", "run"]:
            return bench.run(sys.executable, "-c", text)
        case ["python", named] if re.fullmatch(r"file=[a-z_]+\.py", named):
            (bench.folder / named.removeprefix("file=")).write_text(text)
        case ["sh", "run"]:
            return bench.run("bash", "-e", "-c", text)
        case ["sh", "serve"]:
            bench.serve(text.strip())
        case ["sh", "make"]:
            for line in text.splitlines():
                assert line.startswith("make "), line
                dry = ["make", "--dry-run", "--directory", str(ROOT), *shlex.split(line)[1:]]
                assert ".venv/bin/" in bench.run(*dry)
        case ["text", "output"]:
            assert printed.rstrip("\n") == block.text.rstrip("\n")
        case ["text"]:
            assert COMMAND.search(text) is None, "a command in a block that is not run"
        case _:
            pytest.fail(f"nothing says how this block is run; see {Path(__file__).name}")
    return ""


@pytest.mark.timeout(600)
def test_every_snippet_of_the_readme_runs(bench: Bench) -> None:
    printed = ""
    found = blocks(README.read_text(encoding="utf-8"))
    assert {"python run", "sh run", "sh serve", "sh make"} <= {block.info for block in found}
    for block in found:
        try:
            printed = play(block, bench, printed)
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            pytest.fail(f"{block}: {failure}\n{block.text}")


@pytest.mark.parametrize(
    "planted",
    ["```\nx\n```\n", "```sh\nls\n```\n", "```python\nx\n```\n", "```text\n$ ls\n```\n", "```python run\n1 / 0\n```\n",
     "```sh run\nfalse\nls\n```\n", "```text output\nnever printed\n```\n"],
)  # fmt: skip
def test_a_snippet_that_is_not_run_or_does_not_run_is_found(planted: str, bench: Bench) -> None:
    (block,) = blocks(planted)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        play(block, bench, "")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_the_demo_of_the_readme(bench: Bench) -> None:
    assert "make demo DEMO_ARGS=--exit" in README.read_text(encoding="utf-8")
    # set-up is `make test`'s: the environment that runs this test is what the demo is run from
    made = ("--assume-old=.venv/.ready", f"BIN={BIN}")
    shown = bench.run("make", "--directory", str(ROOT), *made, "demo", "DEMO_ARGS=--exit")
    assert "Equal, byte for byte" in shown


def test_every_fence_is_closed_and_every_table_is_even() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(blocks(text)), page.name
        for table in re.findall(r"(?:^\|.*\|\n)+", FENCE.sub("", text), re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(widths) == 1, f"{page.name}: a table with rows of {sorted(widths)} bars\n{table}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_python_that_imports_what_there_is(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.info.split()[:1] != ["python"]:
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tailrace"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def links(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall("^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        assert path.is_relative_to(ROOT), f"{page.name}: {link} leaves the project"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {link} (no such heading)"


def files() -> Iterator[Path]:
    """The project's own files. What is made beside them, and may vanish meanwhile, is not looked into."""
    made = {".venv", ".git", ".hypothesis", "build", "node_modules"}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in made]
        yield from (Path(folder, name) for name in names)


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml))\b", text))
    assert len(named) > 20
    there = [str(path.relative_to(ROOT)) for path in files()]
    for name in sorted(named):
        ends = [path for path in there if path == name or path.endswith(f"/{name}")]
        assert ends, f"docs/architecture.md names {name}"


def test_the_readme_names_every_command_and_no_other() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./-])tailrace ([a-z]+)\b", "\n".join(re.findall(r"`[^`]+`", text))))
    used = {name for block in blocks(text) for name in re.findall(r"(?<![\w./-])tailrace ([a-z]+)\b", block.text)}
    listed = set(re.findall(r"^\| `tailrace ([a-z]+)` \|", text, re.MULTILINE))
    assert listed == commands()
    assert named | used <= commands()


async def test_the_page_on_http_has_every_route() -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`((?:GET|HEAD|POST|DELETE) /[^`?]*)`", text.partition("## Start")[0]))
    async with MemoryStore() as store:
        paths = create_app(store, Settings(_env_file=None)).api.openapi()["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert listed == described | {"HEAD /v1/runs/{id}", "GET /docs", "GET /openapi.json"}


def test_the_page_on_http_has_every_code_with_its_status() -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    listed = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", text, re.MULTILINE)}
    edge = {"invalid-http": 400, "request-timeout": 408, "head-too-large": 431, "internal": 500}
    assert listed == {**STATUS, **edge}


def events() -> Iterator[tuple[str, str]]:
    """(file, the constant words of an event) of everything that the code logs at info or above."""
    for path in sorted(path for layer in ("pipeline", "brokers", "services") for path in (ROOT / layer).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            by = node.func.value
            logger = by.id if isinstance(by, ast.Name) else ""
            if logger in ("log", "_log", "logger") and node.func.attr in ("info", "warning", "error", "exception"):
                for word in ast.walk(node.args[0]) if node.args else ():
                    if isinstance(word, ast.Constant) and isinstance(word.value, str):
                        yield path.name, word.value.partition("%")[0].rstrip(": ")


def test_the_page_on_operations_explains_every_event_that_is_logged() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    logged = {event for _, event in events() if event}
    assert {"run-started", "gateway-drains"} <= logged
    missing = sorted(f"{event} ({name})" for name, event in events() if event and event not in explained)
    assert not missing, "docs/operations.md should explain: " + ", ".join(missing)


def test_the_tools_of_the_snippets_are_here() -> None:
    assert all(shutil.which(tool) for tool in ("bash", "curl", "make"))
