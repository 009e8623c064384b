"""`status`, `cancel`, `delete` and `ls`: at a gateway over HTTP, or on a store through a gateway inside this process.

Both ways are the same requests to the same routes, so that there is one meaning of, say, a cancel.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from tailrace.client import Unreachable
from tailrace.client.exchange import run_path
from tailrace.client.outgoing import OPTIONS
from tailrace.client.problems import problem
from tailrace.commands import options, output
from tailrace.commands.options import Where
from tailrace.commands.runtime import Stop, opened, quiet_logs, run
from tailrace.errors import StreamNotFound
from tailrace.model import validate_stream_id

if TYPE_CHECKING:
    from tailrace.model import StreamInfo

Request = Callable[[httpx.AsyncClient], Awaitable[int]]


def status(
    stream_id: options.StreamId,
    store: options.Store = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
    json: options.Json = False,
) -> int:
    """Tell what the stream ID is now."""

    async def ask(client: httpx.AsyncClient) -> int:
        _show((await _answer(client, "GET", _path(stream_id, "/status"), stream_id)).json(), json)
        return output.OK

    return _run(options.where(store, gateway, host, port), ask)


def cancel(
    stream_id: options.StreamId,
    store: options.Store = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
    json: options.Json = False,
) -> int:
    """Cancel the run ID: its worker is told to stop it."""

    async def ask(client: httpx.AsyncClient) -> int:
        response = await _answer(client, "POST", _path(stream_id, "/cancel"), stream_id)
        told = response.json()
        if json:
            output.as_json(told)
        elif response.status_code == 202:
            output.note(f"{stream_id} is being cancelled")
        else:
            output.note(f"{stream_id} has ended: {told['status']}")
        return output.OK

    return _run(options.where(store, gateway, host, port), ask)


def delete(
    stream_id: options.StreamId,
    store: options.Store = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
    json: options.Json = False,
) -> int:
    """Delete the stream ID and free its id; its readers end."""

    async def ask(client: httpx.AsyncClient) -> int:
        await _answer(client, "DELETE", _path(stream_id), stream_id)
        if json:
            output.as_json({"id": stream_id, "deleted": True})
        else:
            output.note(f"{stream_id} is deleted")
        return output.OK

    return _run(options.where(store, gateway, host, port), ask)


def ls(
    limit: Annotated[int, typer.Option("--limit", min=0, max=99999, help="The most to list.")] = 1000,
    store: options.Store = None,
    gateway: options.GatewayUrl = None,
    host: options.Host = None,
    port: options.Port = None,
    json: options.Json = False,
) -> int:
    """List the streams that are there: id, status, bytes, chunks, incarnation."""

    async def ask(client: httpx.AsyncClient) -> int:
        found = (await _answer(client, "GET", f"/v1/runs?limit={limit}")).json()["runs"]
        found.sort(key=lambda one: one["id"])
        if json:
            output.as_json(found)
            return output.OK
        columns = ("id", "status", "bytes", "entries", "incarnation")
        output.table(columns, ([str(one[name] or 0) for name in columns] for one in found))
        return output.OK

    return _run(options.where(store, gateway, host, port), ask)


def show_status(info: StreamInfo, *, as_json: bool) -> None:
    """A stream's status as the gateway tells it."""
    from tailrace.gateway.runs import status_of

    _show(status_of(info), as_json)


def _show(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.as_json(told)
    else:
        output.fields(told)


def _path(stream_id: str, what: str = "") -> str:
    return run_path(validate_stream_id(stream_id), what)


async def _answer(client: httpx.AsyncClient, method: str, path: str, stream_id: str | None = None) -> httpx.Response:
    """A successful answer. Raises what the gateway says, `Unreachable`, and `StreamNotFound` with the id."""
    try:
        response = await client.request(method, path)
    except httpx.TransportError as error:
        raise Unreachable(f"No answer from {client.base_url}: {error or type(error).__name__}") from error
    if response.is_success:
        return response
    said = problem(response.status_code, response.reason_phrase, response.content)
    raise StreamNotFound(f"Stream not found: {stream_id}") if isinstance(said, StreamNotFound) else said


def _run(where: Where, ask: Request) -> int:
    quiet_logs(where.settings)

    async def command(stop: Stop) -> int:
        async with _client(where) as client:
            return await ask(client)

    return run(command)


@asynccontextmanager
async def _client(where: Where) -> AsyncIterator[httpx.AsyncClient]:
    if where.url is not None:
        async with httpx.AsyncClient(base_url=where.url, **OPTIONS) as client:
            yield client
        return
    from tailrace.gateway import create_app

    async with opened(where.settings) as store:
        app: Any = create_app(store, where.settings)  # httpx and Starlette type the same protocol differently
        async with httpx.AsyncClient(base_url="http://store", transport=httpx.ASGITransport(app), **OPTIONS) as client:
            yield client
