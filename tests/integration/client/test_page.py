"""docs/client.md does what it says, at a gateway."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tailrace.client import AsyncAnswer, AsyncClient, Patience
from tailrace.client import errors as client_errors
from tailrace.client.errors import ClientError
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import started
from tailrace.memory import MemoryStore
from tailrace.settings import load
from tailrace.worker.app import Worker
from tailrace.worker.builtin import echo

PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")


async def test_every_snippet_runs() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    settings = load(None, port=0)
    async with MemoryStore(settings.limits()) as store:
        await store.start()
        gateway = gateway_server(store, settings, install_signals=False)
        async with started(gateway) as server, Worker(store, [echo]):
            for snippet in snippets:
                assert "http://127.0.0.1:8080" in snippet
                here = snippet.replace(":8080", f":{server.bound_port}")
                await asyncio.to_thread(exec, here, {"__name__": "page"})


def test_every_error_argument_and_default_is_named() -> None:
    for kind in vars(client_errors).values():
        if isinstance(kind, type) and issubclass(kind, ClientError) and kind is not ClientError:
            assert re.search(rf"^\| `{kind.__name__}` \| `{kind.code}`", PAGE, re.MULTILINE), kind
    for name in (*AsyncClient.__init__.__kwdefaults__, "gateway"):
        assert re.search(rf"^\| .*`{name}`.* \|", PAGE, re.MULTILINE), name
    for name, default in ((one, getattr(Patience(), one)) for one in Patience.__slots__):
        assert f"| `{name}` | {default:g} |" in PAGE, name
    for name in vars(AsyncAnswer):
        if not name.startswith("_") and name != "aclose":
            assert re.search(rf"`{name}(\(|`)", PAGE), name
