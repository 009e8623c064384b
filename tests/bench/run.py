"""What `make bench` runs: Tailrace beside its peers in one run, then the cells that need no peer.

The peer suite is a folder outside this repository (`--bench`). It is copied to .bench/, its load generator and its
Rust peer are built there once, our adapter is linked in, and `bench.py suite` is run; options unknown here are passed
on to it (`--rounds 3 --only M1,M2 --noise 40 …`). Without the folder only our own cells run. One alone:

    make bench BENCH_ARGS="--no-cells --targets tailrace-kafka,dsrs-file --only M1.100 --rounds 3"
    make bench BENCH_ARGS="--no-suite --cells '--only growth --brokers kafka --sizes 1000,10000'"

Results go to bench-results/, a Markdown report to stdout and beside them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests/bench"
COPY = ROOT / ".bench"
RESULTS = ROOT / "bench-results"
sys.path.insert(0, str(HERE))
import goals  # noqa: E402

RUST_PEER, RUST_VERSION = "durable-streams-server", "0.3.0"
TARGETS = (
    "tailrace-nats",
    "tailrace-nats-r3",
    "tailrace-kafka",
    "tailrace-redis",
    "dsrs-file",
    "as-redis-100",
    "floor-asyncio",
)
PLAIN = ("dsrs-file", "floor-asyncio")  # these need nothing of the suite's own set-up; nor do ours


def set_up(source: Path, targets: list[str]) -> None:
    skip = shutil.ignore_patterns("results", "node_modules", ".venv", "__pycache__")
    shutil.copytree(source, COPY, dirs_exist_ok=True, ignore=skip, copy_function=shutil.copyfile)
    for folder in {COPY, *(path.parent for path in COPY.glob("*/*"))}:  # the original may be read-only
        folder.chmod(0o755)
    ours = COPY / "adapters/tailrace.py"
    ours.unlink(missing_ok=True)
    if "dsrs-file" in targets:
        build_rust_peer(targets)
    node = [name for name in targets if name not in PLAIN and not name.startswith("tailrace-")]
    if node:
        set_up_peers(node, targets)
    ours.symlink_to(HERE / "adapter.py")  # last: the suite's own set-up reads all adapters, without our packages


def set_up_peers(names: list[str], targets: list[str]) -> None:
    """The peers of the suite's own set-up: Node and its packages, and Redis."""
    if (COPY / "servers/node/node_modules").exists():
        return
    missing = [tool for tool in ("node", "npm", "redis-server") if shutil.which(tool) is None]
    if missing or subprocess.run(["sh", "setup.sh"], cwd=COPY, stdout=subprocess.DEVNULL).returncode:
        why = f"needs {', '.join(missing)}" if missing else "its set-up failed"
        print(f"{', '.join(names)}: left out, {why}", file=sys.stderr)
        targets[:] = [name for name in targets if name not in names]


def build_rust_peer(targets: list[str]) -> None:
    """A peer that cannot be built is left out, and said so."""
    if (COPY / ".rust/bin" / RUST_PEER).exists():
        return
    cargo = shutil.which("cargo")
    argv = [str(cargo), "install", RUST_PEER, "--version", RUST_VERSION, "--root", str(COPY / ".rust")]
    if cargo is None or subprocess.run([*argv, "--quiet"]).returncode:
        print("dsrs-file is left out: its server could not be built (needs cargo)", file=sys.stderr)
        targets.remove("dsrs-file")


def run_suite(targets: list[str], options: list[str], out: Path) -> int:
    # On our interpreter, which has the uvloop that the floor needs: no second environment to make.
    env = {**os.environ, "TB_PYTHON": sys.executable}
    suite = [sys.executable, "bench.py", "suite", "--targets", ",".join(targets), "--out", str(out), *options]
    return subprocess.run(suite, cwd=COPY, env=env).returncode


def report(suite: Path, cells: Path, name: str) -> None:
    parts = []
    if suite.exists():
        argv = [sys.executable, "bench.py", "report", str(suite)]
        parts.append(subprocess.run(argv, cwd=COPY, capture_output=True, text=True, check=True).stdout)
        parts.append("### Goals of the suite\n\n" + goals.table(goals.load(suite)) + "\n")
    if cells.exists():
        parts.append("### Own cells\n\n" + cells.read_text())
    text = "\n".join(parts)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bench", type=Path, default=ROOT.parent / "shared/bench", help="the peer suite's folder")
    options.add_argument("--targets", default=",".join(TARGETS))
    options.add_argument(
        "--name", default=time.strftime("%Y%m%d-%H%M%S"), help="of the results; an old one is continued"
    )
    options.add_argument("--no-suite", action="store_true", help="only our own cells")
    options.add_argument("--no-cells", action="store_true", help="only the peer suite")
    options.add_argument("--cells", default="", help="options of cells.py, in one string")
    options.add_argument("--quick", action="store_true", help="shorter, the suite and our own cells")
    args, passed_on = options.parse_known_args()
    passed_on += ["--quick"] if args.quick else []
    RESULTS.mkdir(exist_ok=True)
    suite, table = RESULTS / f"{args.name}.suite.jsonl", RESULTS / f"{args.name}.cells.md"
    status = 0
    if args.no_suite:
        pass
    elif not (args.bench / "bench.py").exists():
        print(
            f"no peer suite in {args.bench}: only our own cells are run (--bench names another folder)", file=sys.stderr
        )
    else:
        targets = args.targets.split(",")
        set_up(args.bench, targets)
        status |= run_suite(targets, passed_on, suite)
    if not args.no_cells:
        argv = [sys.executable, str(HERE / "cells.py"), "--out", str(RESULTS / f"{args.name}.cells.jsonl")]
        argv += ["--quick"] if args.quick else []
        status |= subprocess.run([*argv, "--table", str(table), *args.cells.split()]).returncode
    report(suite, table, args.name)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
