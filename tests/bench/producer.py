"""The program that the suite starts as its load: hands the order to the agent and passes its answers on.

It obeys the contract of `lg append`: PLAN names the streams; "READY k" once connected; "S" or the end of stdin stops;
one JSON line at the end. It only forwards, because the leases live in the agent, and because it must be up well
within the 300 ms between being started and the first chunk's due time. Standard library only.

    producer.py AGENT_PORT BATCH WINDOW -p PORT -f PLAN ...

BATCH and WINDOW are for streams at unlimited rate for a time. A stream that is to be filled with N chunks gets them one
by one, each acknowledged before the next, so that its log has a record a chunk, as the peers' have.
"""

from __future__ import annotations

import getopt
import json
import os
import socket
import sys
import threading
from typing import Any


def call(port: int, op: str, sids: list[str], timeout: float = 60) -> None:
    """One question to the agent. Raises RuntimeError with its words if it says no."""
    with socket.create_connection(("127.0.0.1", port), timeout) as link:
        link.sendall(json.dumps({"op": op, "sids": sids}).encode() + b"\n")
        with link.makefile("r") as lines:
            answer = json.loads(lines.readline() or '{"ok": false, "error": "the agent hung up"}')
    if not answer["ok"]:
        raise RuntimeError(f"{op}: {answer['error']}")


def produce(port: int, **order: Any) -> dict[str, Any]:
    """A whole produce, waited for."""
    with socket.create_connection(("127.0.0.1", port)) as link, link.makefile("r") as lines:
        link.sendall(json.dumps({"op": "produce", **order}).encode() + b"\n")
        lines.readline()
        result: dict[str, Any] = json.loads(lines.readline())
    if result["errors"]:
        raise RuntimeError(f"produce: {result['first_error']}")
    return result


def main() -> None:
    port, batch, window = map(int, sys.argv[1:4])
    options = dict(getopt.getopt(sys.argv[4:], "p:f:z:r:n:T:g:t:")[0])
    with open(options["-f"]) as plan:
        order = json.load(plan)
    order |= {"op": "produce", "rate": float(options["-r"])}
    for flag, name in (("-z", "size"), ("-n", "n"), ("-T", "maxms"), ("-g", "t0"), ("-t", "timeout")):
        order[name] = int(options[flag])
    order |= {"batch": 1, "window": 1} if order["n"] else {"batch": batch, "window": window}
    link = socket.create_connection(("127.0.0.1", port))
    link.sendall(json.dumps(order).encode() + b"\n")

    def watch() -> None:  # not sys.stdin: a thread that holds its lock aborts the interpreter's exit
        os.read(0, 64)
        try:
            link.sendall(b"S\n")
        except OSError:
            pass  # it has finished meanwhile

    threading.Thread(target=watch, daemon=True).start()
    for line in link.makefile("r"):
        print(line, end="", flush=True)


if __name__ == "__main__":
    main()
