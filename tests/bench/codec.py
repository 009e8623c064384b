"""What a text chunk costs to write, to read and to add to a message: Tailrace, npm and PyPI in one run.

``python tests/bench/codec.py`` prints a Markdown table. Each peer is one process that takes jobs as JSON lines; a
repetition asks all peers for a cell before it goes on to the next, so that a slow moment of the machine meets all of
them. A figure is CPU time of the process, user and system, a chunk: the median of the repetitions after one to warm up.

npm's packages come from tests/node, PyPI's into an environment of its own under build/; what cannot be had is left out
of the table, and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/bench"
sys.path.insert(0, str(ROOT / "tests/node"))

import install  # noqa: E402

from tailrace.message import PartFinishChunk, PartStartChunk, TextDeltaChunk, TextInit  # noqa: E402
from tailrace.message.accumulator import AssistantMessageAccumulator  # noqa: E402
from tailrace.wire import find_format  # noqa: E402

PYPI = "assistant-stream==0.0.36"
TEXT = "hello wörld "
FORMATS = ("data-stream", "assistant-transport", "plain-text")
GOALS = {"encode": 3.0, "decode": 4.0}

Job = dict[str, Any]


# ── Tailrace ──


def chunks(n: int) -> list[Any]:
    return [PartStartChunk(TextInit()), *(TextDeltaChunk(TEXT, (0,)) for _ in range(n)), PartFinishChunk((0,))]


def ours(job: Job) -> float:
    """Microseconds of CPU time a chunk."""
    n = job["n"]
    if job["action"] == "accumulate":
        return accumulate(n)
    format = find_format(job["format"])
    encoder = format.encoder()
    source = chunks(n)
    if job["action"] == "encode":
        began = time.process_time()
        for chunk in source:
            encoder.encode(chunk)
        return (time.process_time() - began) * 1e6 / n
    data = b"".join([*map(encoder.encode, source), encoder.finish()])
    pieces = [data[at : at + job["piece"]] for at in range(0, len(data), job["piece"])]
    decoder = format.decoder()
    began = time.process_time()
    count = sum(len(decoder.feed(piece)) for piece in pieces) + len(decoder.close())
    spent = time.process_time() - began
    assert count > 2
    return spent * 1e6 / n


def accumulate(n: int) -> float:
    source = chunks(n)
    accumulator = AssistantMessageAccumulator(clock=lambda: time.time() * 1000, new_id=lambda: "0000000")
    began = time.process_time()
    for chunk in source:
        accumulator.feed(chunk)
    accumulator.close()
    text = accumulator.message.text
    spent = time.process_time() - began
    assert len(text) == len(TEXT) * n
    return spent * 1e6 / n


def serve() -> None:
    for line in sys.stdin:
        print(json.dumps(ours(json.loads(line))), flush=True)


# ── peers ──


class Peer:
    """A process that measures. A job that it cannot do gives None."""

    def __init__(
        self, name: str, argv: list[str], fixed: Job, actions: tuple[str, ...], formats: tuple[str, ...]
    ) -> None:
        self.name, self._fixed, self._actions, self._formats = name, fixed, actions, formats
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, job: Job) -> float | None:
        if job["action"] not in self._actions or job["format"] not in self._formats:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, **self._fixed}) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


ALL = ("encode", "decode", "accumulate")


def peers() -> list[Peer]:
    found = [Peer("Tailrace", [sys.executable, __file__, "--serve"], {}, ALL, FORMATS)]
    try:
        node = [install.node(), str(HERE / "codec.mjs"), str(install.installed())]
        found += [Peer(f"npm {version}", node, {"version": version}, ALL, FORMATS) for version in ("0.3.44", "0.3.15")]
    except install.NoNode as missing:
        print(f"npm is left out: {missing}", file=sys.stderr)
    try:
        argv = [str(pypi_python()), str(HERE / "codec_pypi.py")]
        found.append(Peer(f"PyPI {PYPI.partition('==')[2]}", argv, {}, ("encode",), FORMATS[:2]))
    except subprocess.CalledProcessError as missing:
        print(f"PyPI's package is left out: {missing}", file=sys.stderr)
    return found


def pypi_python() -> Path:
    folder = ROOT / "build" / "bench-pypi"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PYPI]
    subprocess.run(pip, check=True)
    return python


# ── the run ──


def cells(n: int) -> list[tuple[str, Job]]:
    found: list[tuple[str, Job]] = []
    for format in FORMATS:
        found.append((f"encode, {format}", {"action": "encode", "format": format, "n": n}))
    for piece, said in ((4096, "4 KiB pieces"), (64, "64 B pieces")):
        for format in FORMATS:
            job = {"action": "decode", "format": format, "n": n, "piece": piece}
            found.append((f"decode, {format}, {said}", job))
    for many in (1_000, 10_000, 100_000):
        found.append((f"accumulate {many:,} chunks", {"action": "accumulate", "format": FORMATS[0], "n": many}))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20_000, help="chunks to encode and decode")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    running = peers()
    measured: dict[tuple[str, str], list[float]] = {}
    for repetition in range(options.repetitions + 1):
        for cell, job in cells(options.n):
            for peer in running:
                value = peer.measure(job)
                if value is not None and repetition:
                    measured.setdefault((cell, peer.name), []).append(value)
    print_table([peer.name for peer in running], [cell for cell, _ in cells(options.n)], measured)
    for peer in running:
        peer.close()
    return 0


def print_table(names: list[str], rows: list[str], measured: dict[tuple[str, str], list[float]]) -> None:
    print(f"| µs of CPU a chunk | {' | '.join(names)} | goal | |")
    print("|---|" + "---|" * (len(names) + 2))
    for row in rows:
        medians = [statistics.median(measured[row, name]) if (row, name) in measured else None for name in names]
        shown = ["–" if median is None else f"{median:.2f}" for median in medians]
        goal = GOALS.get(row.partition(",")[0])
        said = "" if goal is None else "met" if medians[0] is not None and medians[0] <= goal else "missed"
        print(f"| {row} | {' | '.join(shown)} | {'' if goal is None else f'≤ {goal:g}'} | {said} |")


if __name__ == "__main__":
    raise SystemExit(main())
