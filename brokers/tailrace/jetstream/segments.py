"""Sealed streams: a few large messages under subjects of their own, written once.

Theory. A seal is a list of segments and their digest. Segment 0 is written first, on the condition that its subject is
empty: that elects the seal. Whoever writes the same seal may fill in what a killed writer left out; a different one
changes nothing. A seal is complete when every segment that segment 0 announces is there and of the same seal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from tailrace.errors import BrokerUnavailable, ChunkTooLarge
from tailrace.jetstream import reading, refusals
from tailrace.jetstream.connection import Connection, Unanswered
from tailrace.jetstream.names import Names
from tailrace.jetstream.wire import SEQUENCE, TIME, header_block, parse_headers, status, time_ms
from tailrace.model import Incarnation

SEAL = "Tailrace-Seal"  # <number of segments>;<digest of all>
_ATTEMPTS = 3


async def write(
    connection: Connection, names: Names, stream_id: str, incarnation: Incarnation, segments: Sequence[bytes]
) -> None:
    """Store the seal, unless another one is there. Raises `BrokerError`."""
    seal = _seal(segments)
    for number, segment in enumerate(segments):
        subject = names.segment(stream_id, incarnation, number)
        if await _write_once(connection, subject, segment, seal) or number > 0:
            continue
        first = await _get(connection, names, subject)
        if first is None or first[0].get(SEAL) != seal:
            return


def _seal(segments: Sequence[bytes]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for segment in segments:
        whole.update(b"%d;" % len(segment))
        whole.update(segment)
    return f"{len(segments)};{whole.hexdigest()}"


async def _write_once(connection: Connection, subject: str, segment: bytes, seal: str) -> bool:
    """Whether this call stored it; False where something is there already (an earlier attempt of ours, perhaps)."""
    block = header_block({SEAL: seal}, expected=0)
    if len(block) + len(segment) > connection.max_payload:
        raise ChunkTooLarge(
            f"A segment of {len(segment)} bytes: {connection} takes {connection.max_payload}, headers included",
            hint="Write smaller segments, or raise max_payload in the nats-server's configuration.",
        )
    for _ in range(_ATTEMPTS):
        try:
            _, answer = await connection.request(subject.encode(), segment, block)
        except Unanswered:
            continue  # the condition makes a repeat harmless
        error = json.loads(answer).get("error")
        if error is None:
            return True
        if error.get("err_code") in refusals.WRONG_LAST:
            return False
        raise refusals.of(error, f"segment {subject} at {connection}")
    raise BrokerUnavailable(f"{connection} did not confirm the segment {subject}")


async def read(connection: Connection, names: Names, stream_id: str, incarnation: Incarnation) -> list[bytes] | None:
    """The segments, or None where the seal is not there or not complete. Raises `BrokerError`."""
    found = await _all(connection, names, stream_id, incarnation)
    if not found or len(found) != _count(found[0]):
        return None
    return [payload for _, payload in found]


async def drop(connection: Connection, names: Names, stream_id: str, incarnation: Incarnation) -> None:
    """Remove what is there of the seal, its first segment first. Raises `BrokerError`."""
    for headers, _ in await _all(connection, names, stream_id, incarnation):
        try:
            body = {"seq": int(headers[SEQUENCE]), "no_erase": True}
            await connection.api(f"STREAM.MSG.DELETE.{names.segments}", body)
        except refusals.Refusal as error:
            if error.number not in (refusals.NO_MESSAGE, refusals.NOT_DELETED):
                raise


async def _all(connection: Connection, names: Names, stream_id: str, incarnation: Incarnation) -> list[reading.Message]:
    """Segment 0 and those of the same seal, in order; nothing where there is no segment 0."""
    first = await _get(connection, names, names.segment(stream_id, incarnation, 0))
    if first is None:
        return []
    connection.clock.see(time_ms(first[0][TIME]))
    found = [first]
    subjects = [names.segment(stream_id, incarnation, number) for number in range(1, _count(first))]
    for start in range(0, len(subjects), reading.MULTI):
        found.extend(await reading.lasts(connection, names.segments, subjects[start : start + reading.MULTI]))
    # written one after the other by one writer, or filled in by another: their subjects say the order
    found.sort(key=_number)
    return [message for message in found if message[0].get(SEAL) == first[0].get(SEAL)]


async def _get(connection: Connection, names: Names, subject: str) -> reading.Message | None:
    try:
        block, payload = await connection.request(f"$JS.API.DIRECT.GET.{names.segments}.{subject}".encode())
    except Unanswered as error:
        raise BrokerUnavailable(str(error)) from None
    return None if status(block) == 404 else (parse_headers(block), payload)


def _count(message: reading.Message) -> int:
    return int(message[0].get(SEAL, "0").partition(";")[0])


def _number(message: reading.Message) -> int:
    return int(message[0]["Nats-Subject"].rpartition(".")[2])
