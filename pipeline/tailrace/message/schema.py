"""The chunk model at the edge: pydantic checks a chunk that comes from outside and says what is wrong, and where."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from tailrace.message.chunks import Chunk, Json, PartInit, chunk_from_json

CHUNK: Final[TypeAdapter[Chunk]] = TypeAdapter(Annotated[Chunk, Field(discriminator="type")])
PART: Final[TypeAdapter[PartInit]] = TypeAdapter(Annotated[PartInit, Field(discriminator="type")])


def validate_chunk(value: Json) -> Chunk:
    """The chunk of a parsed JSON value, its key order and unknown keys kept.

    Raises pydantic.ValidationError, each of its errors with the path to the value that is wrong.
    """
    CHUNK.validate_python(value, by_alias=True, by_name=False)
    if value["type"] == "part-start":
        # Above, a part without a type passes as text: the attribute has a default.
        PART.validate_python(value["part"], by_alias=True, by_name=False)
    return chunk_from_json(value)
