"""`tailrace kafka`: Apache Kafka on this machine, for trying it and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tailrace.commands import output
from tailrace.commands.runtime import Stop
from tailrace.commands.runtime import run as run_command

app = typer.Typer(
    name="kafka",
    help="Fetch and run Apache Kafka on this machine: `kafka fetch`, `kafka run`.",
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def fetch() -> int:
    """Fetch Kafka's jars, pinned by SHA-256, into the user's cache, with jgo or mvn. What is there stays."""
    from tailrace.kafka_local import jars
    from tailrace.kafka_local.pins import PINS, VERSION

    fetched = jars.fetch()
    output.data(f"Kafka {VERSION}: {len(fetched)} of {len(PINS)} jars fetched, all verified ({jars.default_cache()})")
    return output.OK


@app.command()
def run(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The folder of its data; made if missing.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0 is a free one.")] = 9092,
) -> int:
    """Run one Kafka node until a signal comes or the process that started this ends. Prints a line when it is ready."""
    from tailrace.kafka_local.foreground import serve

    async def command(stop: Stop) -> int:
        await serve(data, port, lambda url: output.data(f"kafka ready on {url}"))
        return output.OK

    return run_command(command)
