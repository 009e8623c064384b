"""The handlers that ship: ``echo``, ``openai`` and, from a module of its own, ``recite``."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from tailrace.errors import MissingExtra
from tailrace.worker.answer import Controller
from tailrace.worker.completion import Completion
from tailrace.worker.handlers import Handler, handler
from tailrace.worker.recite import Meter
from tailrace.worker.recite import recite as recite


class EchoInput(BaseModel):
    """``text`` in pieces of ``chunk`` characters, ``rate`` pieces a second (0 or null: as fast as they are stored)."""

    model_config = ConfigDict(extra="forbid")

    text: str
    rate: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    chunk: int = Field(default=16, ge=1)


@handler("echo")
async def echo(input: EchoInput) -> AsyncIterator[str]:
    """The text itself: the concatenation of the chunks equals ``text`` in UTF-8."""
    meter = Meter(input.rate)
    for start in range(0, len(input.text), input.chunk):
        yield input.text[start : start + input.chunk]
        await meter.beat()


class OpenAIInput(BaseModel):
    """A chat completion: ``messages``, ``model`` (default: the worker's), and whatever else the endpoint takes."""

    model_config = ConfigDict(extra="allow")

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    temperature: float | None = None


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # 20 ms: once a process, not once a run


def openai(base_url: str | None = None, api_key: str | None = None, model: str | None = None) -> Handler:
    """The ``openai`` handler: a streamed chat completion from any OpenAI-compatible endpoint, with text, reasoning,
    tool calls, usage and finish reason. As the format ``text`` it is the text alone.

    ``base_url`` None is the client's default, ``model`` what runs use that name none. Usage is asked for with
    ``stream_options``, unless the run has its own; null leaves it out. Raises `MissingExtra` where the client is not
    installed.
    """
    if find_spec("openai") is None:
        raise MissingExtra("The handler openai needs the package openai", hint="Run: pip install 'tailrace[openai]'")

    @handler("openai", input=OpenAIInput)
    async def complete(input: OpenAIInput, controller: Controller) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient  # slow to import: only where it is used

        if (chosen := input.model or model) is None:
            raise ValueError('No model: name one as "model" in the input, or set one for the worker')
        body = {"stream_options": {"include_usage": True}} | input.model_dump(exclude={"messages", "model"})
        body = {name: value for name, value in body.items() if value is not None} | {"stream": True}
        transport = DefaultAsyncHttpxClient(verify=_tls())
        completion = Completion()
        # an endpoint without keys wants none, the client wants something
        async with AsyncOpenAI(base_url=base_url, api_key=api_key or "none", http_client=transport) as client:
            messages: Any = input.messages
            stream = await client.chat.completions.create(model=chosen, messages=messages, stream=True, extra_body=body)
            await controller.merge(completion.chunks(stream))
        completion.finish(controller)

    return complete
