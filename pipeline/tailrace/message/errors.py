"""What can be wrong with the writing of an answer, or with the message that chunks build.

::

    TailraceError
    └── MessageError             message-error
        ├── AnswerClosed         answer-closed    something new after the answer's close
        ├── PartClosed           part-closed      text for a part that is closed
        ├── UnknownPart          unknown-part     a merged chunk of a part that its stream never opened
        ├── InvalidUpdate        invalid-update   an operation that does not fit the state, or a chunk its message
        ├── InvalidPartialJson   invalid-partial-json
        └── ToolError            tool-error
            ├── ToolCallEnded        tool-call-ended         the answer ended before a tool call that is read
            ├── InvalidToolArgs      invalid-tool-args       arguments that are no JSON, or that the tool refuses
            ├── ToolInputUnsupported tool-input-unsupported  a tool asks a person where nobody can be asked
            └── InvalidTool          invalid-tool            no schema can be made of it

``reported_as`` is the name under which an error chunk reports one, where the reference's own word is another.
"""

from __future__ import annotations

from tailrace.errors import TailraceError


class MessageError(TailraceError):
    code = "message-error"
    reported_as: str = "Error"


class AnswerClosed(MessageError):
    code = "answer-closed"
    hint = "Add parts and chunks before the answer is closed."


class PartClosed(MessageError):
    code = "part-closed"
    hint = "Write to a part before it is closed; appended text goes to a new part by itself."
    reported_as = "TypeError"


class UnknownPart(MessageError):
    code = "unknown-part"
    hint = "A merged answer opens its parts before it writes to them."


class InvalidUpdate(MessageError):
    code = "invalid-update"
    hint = "Check that the chunks come in the order in which they were written, and none is missing."


class InvalidPartialJson(MessageError):
    code = "invalid-partial-json"
    hint = "An object's keys are JSON strings."


class ToolError(MessageError):
    code = "tool-error"


class ToolCallEnded(ToolError):
    code = "tool-call-ended"
    hint = "Catch this where a tool call is read while it streams; what was read before it is what the model wrote."


class InvalidToolArgs(ToolError):
    code = "invalid-tool-args"
    hint = "The model wrote arguments that the tool does not take; it sees this message and may try again."


class ToolInputUnsupported(ToolError):
    code = "tool-input-unsupported"
    hint = "Pass `human` to whatever runs the tools, or use no tool that asks a person here."


class InvalidTool(ToolError):
    code = "invalid-tool"
    hint = "Annotate each parameter of the function, or pass a JSON schema, a pydantic model or a TypeAdapter."
