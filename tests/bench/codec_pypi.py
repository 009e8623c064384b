"""PyPI's assistant-stream in the codec benchmark, run by an interpreter that has it: see codec.py for the protocol.

It has encoders only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

from assistant_stream.assistant_stream_chunk import TextDeltaChunk
from assistant_stream.serialization import AssistantTransportEncoder, DataStreamEncoder

ENCODERS = {"data-stream": DataStreamEncoder, "assistant-transport": AssistantTransportEncoder}


async def encode(job: dict[str, Any]) -> float:
    """Microseconds of CPU time a chunk; its response encodes the texts, so that is counted too."""
    chunks = [TextDeltaChunk("hello wörld ") for _ in range(job["n"])]

    async def stream() -> AsyncGenerator[Any, None]:
        for chunk in chunks:
            yield chunk

    began = time.process_time()
    async for text in ENCODERS[job["format"]]().encode_stream(stream()):
        text.encode()
    return (time.process_time() - began) * 1e6 / job["n"]


for line in sys.stdin:
    print(json.dumps(asyncio.run(encode(json.loads(line)))), flush=True)
