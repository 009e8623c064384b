"""What can be wrong with the writing of an answer, or with the message that chunks build.

::

    TailraceError
    └── MessageError             message-error
        ├── AnswerClosed         answer-closed    something new after the answer's close
        ├── PartClosed           part-closed      text for a part that is closed
        ├── UnknownPart          unknown-part     a merged chunk of a part that its stream never opened
        ├── InvalidUpdate        invalid-update   an operation that does not fit the state, or a chunk its message
        └── InvalidPartialJson   invalid-partial-json

``reported_as`` is the name under which an error chunk reports one, where the reference's own word is another.
"""

from __future__ import annotations

from typing import ClassVar

from tailrace.errors import TailraceError


class MessageError(TailraceError):
    code = "message-error"
    reported_as: ClassVar[str] = "Error"


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
