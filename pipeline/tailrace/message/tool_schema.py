"""JSON schemas of tools: from pydantic models, from plain functions, and what a client sends of its tools.

Rules:

- A schema that is one already passes as it is. pydantic's are draft 2020-12, which reads as draft 7 for nearly
  everything that arguments are (a tuple's ``prefixItems`` is the exception).
- A function's parameters become the schema's properties: the annotation gives the type, the default makes it optional,
  the docstring describes it. The parameter annotated `ToolContext` is none of the model's business.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_type_hints, overload

from tailrace.message.chunks import Json
from tailrace.message.errors import InvalidTool
from tailrace.message.tools import Tool, ToolContext, ToolType

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter

Function: TypeAlias = Callable[..., Any]

_PREFIX: Final = "arg_"  # a parameter may be called like a method of a model; under its alias it may
_SECTION: Final = re.compile(r"(?:Args|Arguments|Parameters):\s*\Z")
_GOOGLE: Final = re.compile(r"(\w+)(?:\s*\([^)]*\))?:\s+(.*)")
_SPHINX: Final = re.compile(r":param\s+(?:[^:]*\s)?(\w+):\s*(.*)")


# ── schemas ───────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json_schema(schema: Any) -> dict[str, Json]:
    """The JSON schema of a JSON schema (itself), a pydantic model, a TypeAdapter, or a function's parameters.

    Raises InvalidTool for anything else.
    """
    if isinstance(schema, dict):
        return schema
    adapter = adapter_of(schema)
    if adapter is not None:
        return adapter.json_schema()
    if inspect.isfunction(schema) or inspect.ismethod(schema):
        return function_schema(schema)
    raise InvalidTool(f"No JSON schema can be made of {schema!r}")


def adapter_of(schema: Any) -> TypeAdapter[Any] | None:
    """What checks arguments, if the schema is a pydantic model or adapter."""
    if schema is None or isinstance(schema, Mapping):
        return None
    from pydantic import BaseModel, TypeAdapter  # only who has such tools pays for the import

    if isinstance(schema, TypeAdapter):
        return schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return TypeAdapter(schema)
    return None


def to_partial_json_schema(schema: Mapping[str, Json]) -> dict[str, Json]:
    """The schema of arguments of which some are missing: no property is required, however deep in objects."""
    partial = {name: value for name, value in schema.items() if name != "required"}
    properties = partial.get("properties")
    if properties:
        partial["properties"] = {
            name: to_partial_json_schema(one) if isinstance(one, Mapping) else one for name, one in properties.items()
        }
    return partial


def uploads(name: str, tool: Tool) -> bool:
    """Whether a client tells its server of the tool: not of a disabled one, of the server's own, or of one that it
    cannot run."""
    return not tool.disabled and tool.type != "backend" and (tool.type != "frontend" or tool.execute is not None)


def to_tools_json_schema(
    tools: Mapping[str, Tool] | None, *, filter: Callable[[str, Tool], bool] = uploads
) -> dict[str, dict[str, Json]]:
    """``{name: {"description"?, "parameters", "providerOptions"?}}`` of the tools that have parameters, by name.

    The default is what a client sends to its server. What a server tells a model is
    ``filter=lambda name, tool: not tool.disabled``. Names are in JavaScript's order, which caches of prompts rely on.
    """
    out = {}
    for name, tool in sorted((tools or {}).items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass")):
        if tool.parameters is None or tool.backend_has_parameters or not filter(name, tool):
            continue
        one: dict[str, Json] = {"description": tool.description} if tool.description else {}
        one["parameters"] = to_json_schema(tool.parameters)
        if tool.provider_options:
            one["providerOptions"] = tool.provider_options
        out[name] = one
    return out


# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


@overload
def tool(function: Function, /) -> Tool: ...
@overload
def tool(
    *, name: str = ..., type: ToolType = ..., description: str = ..., **options: Any
) -> Callable[[Function], Tool]: ...
def tool(
    function: Function | None = None,
    /,
    *,
    name: str = "",
    type: ToolType = "backend",
    description: str = "",
    **options: Any,
) -> Tool | Callable[[Function], Tool]:
    """Makes a `Tool` of a function, sync or async: ``@tool``, or ``@tool(name=…, type=…)``.

    Its parameters are checked and converted as pydantic does; one that is annotated `ToolContext` gets the context.
    The docstring's first paragraph describes the tool, its ``Args:`` (or ``:param x:``) the parameters. ``options`` are
    further fields of `Tool`. Raises InvalidTool for parameters that have no annotation or cannot be given by name.
    """

    def make(function: Function) -> Tool:
        model, context = parameters_model(function)

        def execute(args: Any, given: ToolContext) -> Any:
            values = {name.removeprefix(_PREFIX): getattr(args, name) for name in args.model_fields_set}
            return function(**values, **({context: given} if context else {}))

        return Tool(
            name=name or function.__name__,
            type=type,
            description=description or summary(function),
            parameters=model,
            execute=execute,
            **options,
        )

    return make if function is None else make(function)


def function_schema(function: Function) -> dict[str, Json]:
    """The JSON schema of a function's parameters. Raises InvalidTool as `tool` does."""
    return parameters_model(function)[0].model_json_schema()


def parameters_model(function: Function) -> tuple[type[BaseModel], str | None]:
    """A pydantic model of the parameters, and the name of the one that takes the context."""
    from pydantic import ConfigDict, Field, create_model

    hints = get_type_hints(function, include_extras=True)
    said = described(function)
    fields: dict[str, Any] = {}
    context = None
    for name, parameter in inspect.signature(function).parameters.items():
        if hints.get(name) is ToolContext:
            context = name
            continue
        if name not in hints or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidTool(f"Parameter {name} of {function.__name__} needs an annotation and a name of its own")
        details: dict[str, Any] = {"description": said[name]} if name in said else {}
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[_PREFIX + name] = (hints[name], Field(default, alias=name, **details))
    return create_model(function.__name__, __config__=ConfigDict(json_schema_extra=_untitled), **fields), context


def _untitled(schema: dict[str, Any]) -> None:
    """Without the titles, which only repeat the names."""
    for one in (schema, *schema.get("properties", {}).values()):
        one.pop("title", None)


def summary(function: Function) -> str:
    """The first paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def described(function: Function) -> dict[str, str]:
    """What the docstring says of each parameter, under ``Args:`` or as ``:param name:``."""
    said: dict[str, str] = {}
    indent: int | None = None  # of the section's entries; a deeper line goes on with the entry above
    in_section, last = False, ""
    for line in (inspect.getdoc(function) or "").splitlines():
        depth, text = len(line) - len(line.lstrip()), line.strip()
        if found := _SPHINX.match(text):
            last, indent = found[1], depth
            said[last] = found[2]
        elif _SECTION.match(line):
            in_section, indent = True, None
        elif text and depth == 0:
            in_section, last = False, ""
        elif in_section and text and (indent is None or depth <= indent):
            indent = depth
            found = _GOOGLE.match(text)
            last = found[1] if found else ""
            if found:
                said[last] = found[2]
        elif text and last:
            said[last] = f"{said[last]} {text}"
    return said
