"""What can be wrong with a talk to a gateway. Whatever the gateway says of a stream, a run or a broker is an error of
`tailrace.errors`, by its code; here is what only a client can meet.

::

    TailraceError
    └── ClientError              client-error
        ├── InvalidGateway       invalid-gateway       not the URL of a gateway
        ├── Unreachable          gateway-unreachable   no gateway answered for as long as patience allows
        ├── GatewayError         gateway-failed | its own code   an answer that no class of the tree stands for
        ├── NotAtBeginning       not-at-beginning      chunks or messages are wanted from the middle of a stream
        ├── AnswerTaken          answer-taken          a newer iteration of the same answer goes on instead
        └── ClientClosed         client-closed         the client was closed before
"""

from __future__ import annotations

from tailrace.errors import TailraceError


class ClientError(TailraceError):
    code = "client-error"


class InvalidGateway(ClientError):
    code = "invalid-gateway"
    hint = "Pass a URL such as http://127.0.0.1:8080."


class Unreachable(ClientError):
    code = "gateway-unreachable"
    hint = "Start a gateway with `tailrace up`, or name the one that runs."


class GatewayError(ClientError):
    """``status`` is the HTTP status of the answer."""

    code = "gateway-failed"

    def __init__(self, message: str, *, status: int, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status


class NotAtBeginning(ClientError):
    code = "not-at-beginning"
    hint = (
        "Read chunks and messages from the stream's beginning, or go on with the answer that decoded what came before."
    )


class AnswerTaken(ClientError):
    code = "answer-taken"
    hint = "Read an answer in one place at a time; `resume` gives another one."


class ClientClosed(ClientError):
    code = "client-closed"
    hint = "Use the client inside its `with` block."
