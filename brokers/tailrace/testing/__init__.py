"""The contract kit: what every store must do, as pytest classes to subclass (extra ``testing``).

::

    class TestMyStore(StoreContract):
        capabilities = Capabilities(shared=True, durable=True)

        @pytest_asyncio.fixture
        async def make_store(self): ...

See `tailrace.testing.kit` for what a store supplies.
"""

from tailrace.testing.append import AppendContract
from tailrace.testing.cancelling import CancellingContract
from tailrace.testing.cursors import CursorContract
from tailrace.testing.election import ElectionContract
from tailrace.testing.endings import EndingContract
from tailrace.testing.expiry import ExpiryContract
from tailrace.testing.fencing import FencingContract
from tailrace.testing.kit import Clock, MakeStore, WallClock
from tailrace.testing.limits import LimitContract
from tailrace.testing.readers import ReaderContract


class StoreContract(
    ElectionContract,
    AppendContract,
    EndingContract,
    ExpiryContract,
    FencingContract,
    CursorContract,
    LimitContract,
    ReaderContract,
    CancellingContract,
):
    """All of it."""


__all__ = [
    "AppendContract",
    "CancellingContract",
    "Clock",
    "CursorContract",
    "ElectionContract",
    "EndingContract",
    "ExpiryContract",
    "FencingContract",
    "LimitContract",
    "MakeStore",
    "ReaderContract",
    "StoreContract",
    "WallClock",
]
