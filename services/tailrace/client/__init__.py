"""The Python client of a gateway: start runs, read and resume streams, whatever becomes of the connection.

One core without I/O decides (`exchange`, `following`, `decoding`); two drivers, `aio` and `sync`, do what it says.
"""

from tailrace.client.aio import AsyncAnswer, AsyncClient
from tailrace.client.errors import (
    AnswerTaken,
    ClientClosed,
    ClientError,
    GatewayError,
    InvalidGateway,
    NotAtBeginning,
    Unreachable,
)
from tailrace.client.exchange import Patience
from tailrace.client.following import Position
from tailrace.client.sync import Answer, Client

__all__ = [
    "Answer",
    "AnswerTaken",
    "AsyncAnswer",
    "AsyncClient",
    "Client",
    "ClientClosed",
    "ClientError",
    "GatewayError",
    "InvalidGateway",
    "NotAtBeginning",
    "Patience",
    "Position",
    "Unreachable",
]
