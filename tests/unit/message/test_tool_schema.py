"""JSON schemas of tools: the reference's own, pydantic's, and those of plain functions."""

from __future__ import annotations

import gzip
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from tailrace.message import (
    InvalidTool,
    Tool,
    by_name,
    to_json_schema,
    to_partial_json_schema,
    to_tools_json_schema,
    tool,
)
from tailrace.message.tools import ToolContext
from tailrace.wire.jsjson import parse, stringify

GOLDEN = Path(__file__).parents[2] / "golden" / "tools.json.gz"
VECTORS: Any = parse(gzip.decompress(GOLDEN.read_bytes()).decode())


def test_every_recorded_partial_schema() -> None:
    assert len(VECTORS["schemas"]) >= 80
    for given, expected in VECTORS["schemas"]:
        before = stringify(given)
        assert stringify(to_partial_json_schema(given)) == stringify(expected)
        assert stringify(given) == before


def test_every_recorded_registry() -> None:
    for entries, uploaded, enabled in VECTORS["registries"]:
        tools = {
            name: Tool(
                type=one.get("type"),
                description=one.get("description", ""),
                parameters=one.get("parameters"),
                execute=(lambda args, context: 1) if one.get("runs") else None,
                disabled=one.get("disabled", False),
                provider_options=one.get("providerOptions", {}),
                backend_has_parameters=one.get("unstable_backendDefault", {}).get("parameters", False),
            )
            for name, one in entries
        }
        assert stringify(to_tools_json_schema(tools)) == uploaded
        assert stringify(to_tools_json_schema(tools, filter=lambda name, tool: not tool.disabled)) == enabled


def test_no_tools() -> None:
    assert to_tools_json_schema(None) == {}


class Unit(Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


class Place(BaseModel):
    city: str
    country: str = "FR"


def forecast(
    place: Place,
    days: Annotated[int, Field(ge=1, le=7)] = 3,
    *,
    unit: Unit = Unit.CELSIUS,
    copy: Literal["no", "yes"] = "no",
    context: ToolContext,
) -> str:
    """The weather to come,
    day by day.

    More about it that the model is not told.

    Args:
        place: Where to look,
            as exactly as possible.
        days (int): How many days: one to seven.

    Returns:
        text: a line a day
    """
    return f"{context.tool_call_id} {place.city} {days} {unit.name} {copy}"


FORECAST = {
    "$defs": {
        "Place": {
            "properties": {
                "city": {"title": "City", "type": "string"},
                "country": {"default": "FR", "title": "Country", "type": "string"},
            },
            "required": ["city"],
            "title": "Place",
            "type": "object",
        },
        "Unit": {"enum": ["c", "f"], "title": "Unit", "type": "string"},
    },
    "properties": {
        "place": {"$ref": "#/$defs/Place", "description": "Where to look, as exactly as possible."},
        "days": {
            "default": 3,
            "description": "How many days: one to seven.",
            "maximum": 7,
            "minimum": 1,
            "type": "integer",
        },
        "unit": {"$ref": "#/$defs/Unit", "default": "c"},
        "copy": {"default": "no", "enum": ["no", "yes"], "type": "string"},
    },
    "required": ["place"],
    "type": "object",
}


def test_a_function_is_a_schema() -> None:
    assert to_json_schema(forecast) == FORECAST


def test_a_function_is_a_tool() -> None:
    made = tool(forecast)
    assert (made.name, made.type, made.description) == ("forecast", "backend", "The weather to come, day by day.")
    assert to_tools_json_schema(by_name(made)) == {}
    everything = to_tools_json_schema(by_name(made), filter=lambda name, tool: True)
    assert everything == {"forecast": {"description": made.description, "parameters": FORECAST}}
    assert made.execute is not None
    args = made.parameters.model_validate({"place": {"city": "Nice"}, "unit": "f"})
    assert made.execute(args, ToolContext("c1")) == "c1 Nice 3 FAHRENHEIT no"


def test_the_decorator_takes_the_fields_of_a_tool() -> None:
    @tool(name="add up", type="frontend", description="Adds.", disabled=True)
    def add(a: int, b: int = 1) -> int:
        """Not told.

        :param a: The first.
        :param int b: The second,
            which may be left out.
        """
        return a + b

    assert (add.name, add.type, add.description, add.disabled) == ("add up", "frontend", "Adds.", True)
    properties = to_json_schema(add.parameters)["properties"]
    assert [one["description"] for one in properties.values()] == ["The first.", "The second, which may be left out."]


def test_models_and_adapters() -> None:
    assert to_json_schema(Place) == Place.model_json_schema()
    assert to_json_schema(TypeAdapter(list[int])) == {"type": "array", "items": {"type": "integer"}}
    schema = {"type": "object"}
    assert to_json_schema(schema) is schema


def bare(x) -> None: ...  # type: ignore[no-untyped-def]


def starred(*args: int) -> None: ...


def positional(x: int, /) -> None: ...


@pytest.mark.parametrize("function", [bare, starred, positional])
def test_parameters_that_no_model_can_give(function: Any) -> None:
    with pytest.raises(InvalidTool):
        tool(function)


@pytest.mark.parametrize("nothing", [None, 7, "object", int])
def test_no_schema_at_all(nothing: Any) -> None:
    with pytest.raises(InvalidTool):
        to_json_schema(nothing)
