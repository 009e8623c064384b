"""`demo`: one streamed answer, a gateway and a broker killed while it is live, and the bytes compared.

The kills are real: SIGKILL to processes of their own. The client is an ordinary one: it knows its byte offset and the
stream's incarnation, and nothing else survives on its side of a broken connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json as json_module
import math
import random
import secrets
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from tailrace.client import AsyncAnswer, AsyncClient
from tailrace.client.outgoing import OPTIONS
from tailrace.commands import options, output
from tailrace.commands.demo_processes import LOOK, Process, Scene
from tailrace.commands.demo_view import View
from tailrace.commands.runtime import Stop, Usage, quiet_logs
from tailrace.commands.runtime import run as run_command
from tailrace.errors import TailraceError
from tailrace.model import Status
from tailrace.settings import load, shown

EARLIEST, LATEST = 0.1, 0.7  # of the bytes: between them a kill happens
APART = 0.15  # so that the second kill does not fall into the burst that follows the first
CHUNKS = 300
PATIENCE = 120.0  # seconds beyond what the answer takes
LEAST = 100  # bytes: anything shorter is over before a kill


def demo(
    input: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="The text to stream; one ships.", show_default=False)
    ] = None,
    exit: Annotated[bool, typer.Option("--exit", help="End when it is shown, instead of serving on.")] = False,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="embedded://DIR, embedded+kafka://DIR, or a broker that runs: nats://…, kafka://…, redis://…; else an "
            "embedded one in a temporary folder.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The gateway's port; 0 takes a free one.")] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Kill at the same points again.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=600, help="How long the answer takes.")] = 12.0,
    json: options.Json = False,
) -> int:
    """Show that a stream survives: kill the gateway and the broker while an answer is live, and compare the bytes."""
    text = read_text(input)
    quiet_logs(load())
    plan = Plan(text, seed if seed is not None else secrets.randbelow(10_000), seconds)

    async def command(stop: Stop) -> int:
        with View(len(plan.data), to_stderr=json) as view:
            async with Scene(store) as scene:
                act = Act(scene, plan, view, port)
                await act.prepare()
                report = await act.play()
                _show(report, view)
                if json:
                    output.as_json(asdict(report))
                if not exit:
                    await _serve(act, view, stop)
        return output.OK if report.equal else output.BAD_ENDING

    return run_command(command)


def read_text(path: Path | None) -> str:
    """The file's text, or the one that ships. Raises `Usage`."""
    try:
        data = path.read_bytes() if path else files("tailrace.commands").joinpath("demo_text.txt").read_bytes()
        text = data.decode()
    except OSError as error:
        raise Usage(f"Cannot read {path}: {error.strerror}", hint="Pass --input FILE with a text file.") from None
    except UnicodeDecodeError:
        raise Usage(f"{path} is not text in UTF-8", hint="Pass --input FILE with a text file.") from None
    if len(data) < LEAST:
        raise Usage(f"{path} has {len(data)} bytes", hint=f"It takes {LEAST} to be interrupted twice.")
    return text


class Plan:
    """What is streamed, how fast, and at which bytes something is killed."""

    def __init__(self, text: str, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.data = text.encode()
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        chunk = math.ceil(len(text) / CHUNKS)
        self.input = {"text": text, "chunk": chunk, "rate": math.ceil(len(text) / chunk) / seconds}
        chance = random.Random(seed)
        first = chance.uniform(EARLIEST, LATEST - APART - 0.05)
        second = chance.uniform(first + APART, LATEST)
        self.gateway_at, self.broker_at = int(first * len(self.data)), int(second * len(self.data))


@dataclass(slots=True)
class Kill:
    """One kill. ``at`` in bytes that the client had, ``live``: the stream had no ending yet, ``seconds`` until what
    was killed served again."""

    what: str
    at: int
    percent: float
    live: bool
    seconds: float | None = None


@dataclass(slots=True)
class Report:
    """How it went; with ``--json`` this is what is printed."""

    run: str
    seed: int
    store: str
    bytes: int
    sha256_written: str
    sha256_received: str
    equal: bool
    received: int
    reconnects: int
    seconds: float
    kills: list[Kill] = field(default_factory=list)


class Act:
    """The demo itself, in a scene."""

    def __init__(self, scene: Scene, plan: Plan, view: View, port: int) -> None:
        self.base = ""
        self.stream_id = f"demo-{secrets.token_hex(4)}"
        self._scene, self._plan, self._view, self._port = scene, plan, view, port
        self._gateway: Process | None = None
        self._kills: list[Kill] = []
        self._resumed = asyncio.Event()

    async def prepare(self) -> None:
        """Two workers and a gateway, ready."""
        scene, view = self._scene, self._view
        view.say(f"Starting a broker ({shown(scene.broker.url)}), two workers and a gateway")
        if scene.broker.directory is None:
            view.say("This broker is not the demo's own: only the gateway will be killed")
        workers = [await scene.spawn("worker", "worker") for _ in range(2)]
        self._gateway = await scene.spawn("gateway", "gateway", "--host", "127.0.0.1", "--port", str(self._port))
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        self.base = _base(await self._gateway.wait_ready())
        view.say(f"A gateway serves at {self.base}")

    async def play(self) -> Report:
        """Stream the text, kill what is to be killed, and compare. Raises `TailraceError` where it comes to no end."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._plan.seconds + PATIENCE), asyncio.TaskGroup() as self._tasks:
                answer, found = await self._follow()
        except TimeoutError:
            raise TailraceError("The stream did not come to its end in time", code="demo-failed") from None
        except ExceptionGroup as failures:  # what the stream raised, or a replacement that did not start
            raise failures.exceptions[0] from None
        return Report(
            run=self.stream_id,
            seed=self._plan.seed,
            store=shown(self._scene.broker.url),
            bytes=len(self._plan.data),
            sha256_written=self._plan.sha256,
            sha256_received=found,
            equal=found == self._plan.sha256,
            received=answer.position.offset,
            reconnects=answer.reconnects,
            seconds=round(asyncio.get_running_loop().time() - began, 1),
            kills=self._kills,
        )

    async def _follow(self) -> tuple[AsyncAnswer, str]:
        """The stream to its end, and the SHA-256 of what came."""
        plan, received = self._plan, hashlib.sha256()
        self._view.say(f"Streaming {len(plan.data):,} bytes as the run {self.stream_id} (seed {plan.seed})")
        async with AsyncClient(lambda: self.base, notice=self._noticed) as client:
            answer = await client.run("echo", plan.input, id=self.stream_id)
            self._view.follow()
            try:
                async with aclosing(answer.bytes()) as parts:
                    async for part in parts:
                        received.update(part)
                        self._view.received(answer.position.offset)
                        await self._perhaps_kill(client, answer.position.offset)
            finally:
                self._view.stop()
        self._resumed.set()  # a kill behind the last byte breaks nothing
        return answer, received.hexdigest()

    def _noticed(self, event: str) -> None:
        if event == "lost":
            self._view.say("  the connection broke; the client reconnects from its offset")
        else:
            self._resumed.set()

    async def _perhaps_kill(self, client: AsyncClient, offset: int) -> None:
        if offset >= self._plan.gateway_at and not self._kills:
            await self._kill(client, offset, "gateway")
        elif offset >= self._plan.broker_at and len(self._kills) == 1 and self._scene.broker.directory is not None:
            await self._kill(client, offset, "broker")

    async def _kill(self, client: AsyncClient, offset: int, what: str) -> None:
        live = await self._is_live(client)
        kill = Kill(what, offset, round(100 * offset / len(self._plan.data), 1), live)
        self._kills.append(kill)
        recover = self._replace_gateway if what == "gateway" else self._await_broker
        killed = self._kill_gateway() if what == "gateway" else self._scene.broker.kill()
        self._view.killed(offset, f"SIGKILL to the {what} (pid {killed}) at {kill.percent} %")
        self._tasks.create_task(recover(kill, killed))

    async def _is_live(self, client: AsyncClient) -> bool:
        with contextlib.suppress(TailraceError):
            return (await client.status(self.stream_id)).status is Status.STREAMING
        return False

    def _kill_gateway(self) -> int:
        assert self._gateway is not None
        self._gateway.kill()
        return self._gateway.pid

    async def _replace_gateway(self, kill: Kill, killed: int) -> None:
        began = asyncio.get_running_loop().time()
        self._gateway = await self._scene.spawn("gateway", "gateway", "--host", "127.0.0.1", "--port", str(self._port))
        self.base = _base(await self._gateway.wait_ready())
        self._view.say(f"  a new gateway serves at {self.base}")
        await self._resumed.wait()
        kill.seconds = round(asyncio.get_running_loop().time() - began, 1)
        self._view.say("  the client is back, at the next byte", "green")

    async def _await_broker(self, kill: Kill, killed: int) -> None:
        began = asyncio.get_running_loop().time()
        pid = await self._scene.broker.back(killed)
        await self._ready()
        kill.seconds = round(asyncio.get_running_loop().time() - began, 1)
        self._view.say(f"  the broker is back (pid {pid}); nobody had to do anything", "green")

    async def _ready(self) -> None:
        """Return when the gateway says that the broker answers it."""
        async with httpx.AsyncClient(**OPTIONS) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.base}/readyz")).is_success:
                        return
                await asyncio.sleep(LOOK)


def _base(ready: str) -> str:
    """The URL in a gateway's ready line."""
    found = [word for word in ready.split() if word.startswith("http://")]
    if not found:
        raise TailraceError(f"The gateway said: {ready}", code="demo-failed")
    return found[0]


def _show(report: Report, view: View) -> None:
    view.table(
        ["killed", "at", "", "live", "back after"],
        [
            [kill.what, f"{kill.at:,} bytes", f"{kill.percent} %", "yes" if kill.live else "no", f"{kill.seconds} s"]
            for kill in report.kills
        ],
    )
    view.say(f"written   {report.bytes:>9,} bytes  sha256 {report.sha256_written}")
    view.say(f"received  {report.received:>9,} bytes  sha256 {report.sha256_received}")
    told = f"{report.reconnects} reconnect{'s' * (report.reconnects != 1)}, {report.seconds} s"
    if report.equal:
        view.say(f"Equal, byte for byte ({told})", "bold green")
    else:
        view.say(f"They DIFFER ({told})", "bold red")


async def _serve(act: Act, view: View, stop: Stop) -> None:
    """Go on serving until a signal; that is how this part is meant to end, so it ends well."""
    over = asyncio.Event()
    stop.take_over(lambda number: over.set())
    view.say("\nTry it by hand (Ctrl-C ends the demo):\n")
    for line in curl_commands(act.base):
        view.say(f"  {line}")
    view.say("")
    await over.wait()
    stop.take_over(None)


def curl_commands(base: str) -> list[str]:
    """Start a run, resume it from an offset (in another terminal, while it is live), ask for its status."""
    body: dict[str, Any] = {"text": "The water has done its work, and it still runs on. " * 4, "rate": 5, "chunk": 4}
    request = json_module.dumps({"id": "mine", "handler": "echo", "input": body})
    return [
        f"curl -N {base}/v1/runs -H 'Content-Type: application/json' -d '{request}'",
        f"curl -N '{base}/v1/runs/mine?offset=20'",
        f"curl {base}/v1/runs/mine/status",
    ]
