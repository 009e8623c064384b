"""A thread and its tools in the words of an OpenAI-compatible chat endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from tailrace.message import (
    AssistantMessageAccumulator,
    Message,
    Tool,
    by_name,
    chunk_from_json,
    to_openai_messages,
    to_openai_tools,
    tool,
)

PNG = "data:image/png;base64,AAAA"


@tool(provider_options={"x": {"cache": True}})
def weather(city: str) -> str:
    """The weather."""
    return city


def called(**response: Any) -> Message:
    accumulator = AssistantMessageAccumulator(clock=lambda: 0.0, new_id=lambda: "i")
    for chunk in (
        {"type": "part-start", "path": [], "part": {"type": "reasoning"}},
        {"type": "text-delta", "path": [0], "textDelta": "hm"},
        {"type": "part-start", "path": [], "part": {"type": "text"}},
        {"type": "text-delta", "path": [1], "textDelta": "Let me see."},
        {"type": "part-start", "path": [], "part": {"type": "tool-call", "toolName": "weather", "toolCallId": "c"}},
        {"type": "text-delta", "path": [2], "textDelta": '{"city": "Zürich"}'},
        *([{"type": "result", "path": [2], **response}] if response else []),
    ):
        accumulator.feed(chunk_from_json(chunk))
    return accumulator.message


def told(message: Message) -> Any:
    *_, last = to_openai_messages([message])
    assert (last["role"], last["tool_call_id"]) == ("tool", "c")
    return last["content"]


def test_tools() -> None:
    bare = Tool(name="bare", parameters={"type": "object"})
    hidden = Tool(name="hidden", parameters={"type": "object"}, disabled=True)
    without = Tool(name="without")
    assert to_openai_tools(by_name(weather, bare, hidden, without)) == [
        {"type": "function", "function": {"name": "bare", "parameters": {"type": "object"}}},
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather.",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        },
    ]


def test_a_step_with_a_call() -> None:
    function = {"name": "weather", "arguments": '{"city":"Zürich"}'}
    assert to_openai_messages([called(result={"celsius": 21.0}, isError=False)]) == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c", "content": '{"celsius":21}'},
    ]


@pytest.mark.parametrize(
    ("response", "content"),
    [
        ({"result": "sunny"}, "sunny"),
        ({"result": ""}, ""),
        ({"result": None}, "null"),
        ({"result": "KeyError: 'x'", "isError": True}, "KeyError: 'x'"),
        ({}, '{"error":"Tool call was not completed"}'),
        ({"result": [1], "modelContent": [{"type": "text", "text": "one"}]}, [{"type": "text", "text": "one"}]),
        ({"result": [1], "modelContent": [{"type": "file", "data": PNG, "mediaType": "image/png"}]}, "[1]"),
    ],
)
def test_what_the_model_sees_of_a_result(response: Any, content: Any) -> None:
    assert told(called(**response)) == content


def test_a_stored_thread() -> None:
    thread: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is it?"}, {"type": "image", "image": PNG}],
            "attachments": [
                {"content": [{"type": "file", "data": "AAAA", "mimeType": "application/pdf", "filename": "a.pdf"}]},
                {"content": [{"type": "image", "image": "https://h/a.webp"}]},
            ],
        },
        {"role": "note", "content": "for the interface"},
        {
            "role": "assistant",
            "content": [
                {
                    "type": "tool-call",
                    "toolCallId": "c",
                    "toolName": "f",
                    "args": {},
                    "result": 1,
                    "modelContent": [{"type": "text", "text": "one"}],
                },
                {"type": "text", "text": "A cat."},
            ],
        },
    ]
    assert to_openai_messages(iter(thread)) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": PNG}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
                {"type": "image_url", "image_url": {"url": "https://h/a.webp"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "one"}]},
        {"role": "assistant", "content": "A cat."},
    ]
