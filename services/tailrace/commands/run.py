"""`run`: start a run at a gateway and stream its body, whatever becomes of the connection or the gateway."""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer

from tailrace.client import AsyncClient, Position
from tailrace.commands import options, output
from tailrace.commands.pipes import Output
from tailrace.commands.runtime import Stop, Usage, quiet_logs
from tailrace.commands.runtime import run as run_command
from tailrace.model import validate_stream_id


def run(
    handler: Annotated[str, typer.Argument(help="The handler that executes it.", show_default=False)],
    input: Annotated[str, typer.Option("--input", metavar="JSON|@FILE", help="Its input; @- is standard input.")],
    id: Annotated[str | None, typer.Option("--id", help="The stream's id; the same request again joins it.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="The stream's format.")] = None,
    ttl: options.Ttl = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
) -> int:
    """Run HANDLER at a gateway and stream what it writes to standard output; 0 if it is done, 1 if it ended badly."""
    options.check_ttl(ttl)
    stream_id = validate_stream_id(id if id is not None else secrets.token_hex(9))
    value = parse_input(input)
    where = options.at_gateway(gateway, host, port)
    quiet_logs(where.settings)
    url = where.url
    assert url is not None
    output.note(f"run {stream_id}")

    async def command(stop: Stop) -> int:
        sink = Output()
        async with AsyncClient(url, notice=_tell) as client:
            answer = await client.run(handler, value, id=stream_id, format=format, ttl=ttl)
            try:
                async with aclosing(answer.bytes()) as parts:
                    async for part in parts:
                        await sink.write(part)
            finally:
                if stop.signal is not None:
                    output.note(f"{stream_id} goes on; {_resumption(url, answer.position)}")
        return output.OK

    return run_command(command)


def parse_input(text: str) -> Any:
    """The value of ``--input``: JSON, or the JSON of a file. Raises `Usage`."""
    name = text[1:] if text.startswith("@") else None
    try:
        if name is not None:
            text = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode()
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # NaN and lone surrogates are not JSON
        return value
    except OSError as error:
        raise Usage(f"Cannot read {name}: {error.strerror}", hint="Pass --input @FILE with a file of JSON.") from None
    except (ValueError, RecursionError) as error:
        said = f"--input{f' @{name}' if name else ''} is not JSON: {error}"
        raise Usage(said, hint="""Write it as --input '{"text": "…"}' or --input @FILE.""") from None


def _tell(event: str) -> None:
    if event == "lost":
        output.note("the connection broke; reconnecting")


def _resumption(url: str, position: Position) -> str:
    where = f"--offset {position.offset} --incarnation {position.incarnation}"
    return f"continue with: tailrace read {position.id} --gateway {url} {where}"
