"""What a running gateway serves, read by the reference readers in Node: useChat's transport and both releases of
assistant-stream. Broken half-way and resumed, they build the message of an uninterrupted read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

NODE = Path(__file__).parents[1] / "node"
sys.path.insert(0, str(NODE))

from install import NoNode, installed, node  # noqa: E402

from tailrace.testing.servers import NatsServer  # noqa: E402

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("node-readers")]

TEXT = "Zwölf Boxkämpfer 🥊 jagen Viktor quer über den großen Sylter Deich. " * 4
SCRIPT: list[dict[str, Any]] = [
    {"type": "reasoning", "text": "First, think about it: äöü."},
    {"type": "text", "text": TEXT},
    {
        "type": "tool-call",
        "toolName": "weather",
        "toolCallId": "call-1",
        "args": {"city": "Zürich", "days": [1, 2, 3], "nested": {"deep": "🥊"}},
        "result": {"sky": "clear", "degrees": 21.5},
    },
    {"type": "source", "id": "s1", "url": "https://example.org/a", "title": "A source"},
    {"type": "text", "text": "And that is all."},
]
PLAIN = [{"type": "text", "text": TEXT}]

# (reader, the run's format, what is recited); 0.3.15 knows neither newer codes nor a text stream's start
CASES = [
    ("ai", "ui-message-stream", SCRIPT),
    ("assistant-stream-new", "data-stream", SCRIPT),
    ("assistant-stream-old", "data-stream;v=0.3.15", SCRIPT),
    ("assistant-stream-new", "assistant-transport", SCRIPT),
    ("assistant-stream-old", "assistant-transport;v=0.3.15", SCRIPT),
    ("assistant-stream-new", "ui-message-stream", SCRIPT),
    ("assistant-stream-new", "text", PLAIN),
    ("assistant-stream-old", "text", PLAIN),
]


class Readers:
    """One Node process that reads what it is told."""

    def __init__(self, modules: Path) -> None:
        self._process = subprocess.Popen(
            [node(), str(NODE / "readers.mjs"), str(modules)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, **job: Any) -> dict[str, Any]:
        """The message that was built; no error may have been met."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["errors"] == [], answer["errors"]
        assert answer["message"] is not None
        message: dict[str, Any] = untimed(answer["message"])
        return message

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    try:
        modules = installed()
    except NoNode as missing:
        pytest.skip(str(missing))
    running = Readers(modules)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def gateways(cli: Any, server: NatsServer) -> tuple[str, str]:
    """The URLs of two gateways; a worker is there."""
    cli.serve("worker", "--store", server.url)
    first, second = (cli.serve("gateway", "--store", server.url, "--port", "0") for _ in range(2))
    return first.url, second.url


def untimed(value: Any) -> Any:
    """Without when things were read: that is the reading's, not the message's."""
    if isinstance(value, list):
        return [untimed(one) for one in value]
    if isinstance(value, dict):
        return {name: untimed(one) for name, one in value.items() if name != "timing"}
    return value


def texts(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


def test_a_message_that_was_resumed_is_the_message(readers: Readers, gateways: tuple[str, str]) -> None:
    with httpx.Client(trust_env=False, timeout=30) as client:
        for number, (reader, format, script) in enumerate(CASES):
            run = {"script": script, "rate": 60, "chunk": 8}
            body = {"handler": "recite", "id": f"run-{number}", "input": run, "format": format}
            accepted = client.post(f"{gateways[0]}/v1/runs", json=body, headers={"prefer": "respond-async"})
            assert accepted.status_code == 202, accepted.text
            path = f"/v1/runs/run-{number}"
            job = {"reader": reader, "format": format.partition(";")[0]}
            live = readers.read(**job, url=gateways[0] + path, cut=150)  # it has just begun
            whole = readers.read(**job, url=gateways[1] + path, cut=None)
            assert live == whole, (reader, format)
            assert texts(whole) == "".join(line["text"] for line in script if line["type"] == "text")
            size = client.get(f"{gateways[0]}{path}/status").json()["bytes"]
            for cut in (1, size // 3, size // 2, size - 2):
                assert readers.read(**job, url=gateways[0] + path, cut=cut) == whole, (reader, format, cut)
            if reader == "ai":
                again = readers.read(**job, url=gateways[1] + path, cut=size // 2, resume="replay")
                assert again == whole
                assert whole["role"] == "assistant"
            if script is SCRIPT and reader.startswith("assistant-stream"):
                [call] = [part for part in whole["parts"] if part["type"] == "tool-call"]
                assert call["args"] == SCRIPT[2]["args"]
                assert call["result"] == SCRIPT[2]["result"]
                assert whole["status"]["type"] == "complete"


def test_the_transport_of_use_chat_shows_an_error(readers: Readers, gateways: tuple[str, str]) -> None:
    script = [{"type": "text", "text": "so far"}, {"type": "raise", "message": "the model is tired"}]
    body = {"handler": "recite", "id": "fails", "input": {"script": script}, "format": "ui-message-stream"}
    with httpx.Client(trust_env=False, timeout=30) as client:
        assert client.post(f"{gateways[0]}/v1/runs", json=body, headers={"prefer": "respond-async"}).is_success
        status = {}
        while status.get("status") != "error":  # its body breaks off, as every bad ending's does; the chunk is before
            status = client.get(f"{gateways[0]}/v1/runs/fails/status").json()
    with pytest.raises(AssertionError, match="tired"):
        readers.read(reader="ai", format="ui-message-stream", url=f"{gateways[0]}/v1/runs/fails", cut=None)
