"""Direct gets: many stored messages for one request, from whichever replica answers.

A batch is one request and a run of replies; each names the sequence of the one before it, so a lost reply shows. What a
batch leaves out (its bound in bytes or messages was reached) the next request asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tailrace.errors import BrokerFailed, BrokerUnavailable
from tailrace.jetstream.connection import Connection, Leaderless
from tailrace.jetstream.wire import PENDING, PREVIOUS, SEQUENCE, UP_TO, Reply, parse_headers, status

BATCH = 1000
BATCH_BYTES = 4 * 1024 * 1024  # of one answer, so that the server never queues more than that for us
MULTI = 1000  # the server answers for at most 1024 subjects at once
NAMED = 100  # subjects asked for by name in one request: a thousand keep a busy server for seconds
ELECTION, PAUSE = 3.0, 0.1  # seconds that a stream without a leader is waited for, and between two looks
LOOK = 0.005  # seconds until a replica that is behind is asked again
_EOB, _MISSING, _TOO_MANY = 204, 404, 413

Message = tuple[dict[str, str], bytes]


async def subject_after(connection: Connection, stream: str, subject: str, after: int) -> list[Message]:
    """Every message of ``subject`` behind sequence ``after``, in order. Raises `BrokerError`."""
    found: list[Message] = []
    while True:
        body = {"batch": BATCH, "max_bytes": BATCH_BYTES, "seq": after + 1, "next_by_subj": subject}
        messages, pending, _ = await _batch(connection, stream, body)
        found.extend(messages)
        if pending == 0:
            return found
        if messages:
            after = int(messages[-1][0][SEQUENCE])


async def last_of_each(connection: Connection, stream: str, subjects: str) -> AsyncIterator[Message]:
    """The last message of each subject that ``subjects`` (a wildcard) matches, as new as what the stream's leader has
    when this is called. Raises `BrokerError`."""
    state = (await connection.api(f"STREAM.INFO.{stream}"))["state"]
    if state["messages"] == 0:
        return
    at_least, chunks = int(state["last_seq"]), list[list[str]]()
    try:
        async for found in _multi(connection, stream, [subjects], at_least):
            yield found
        return
    except _TooMany:
        names = await _subjects(connection, stream, subjects)
        chunks = [names[start : start + NAMED] for start in range(0, len(names), NAMED)]
    for chunk in chunks:
        async for found in _multi(connection, stream, chunk, at_least):
            yield found


async def lasts(connection: Connection, stream: str, subjects: list[str]) -> list[Message]:
    """The last message of each of ``subjects`` (at most 1000) that has one, in the order of their sequences."""
    return [found async for found in _multi(connection, stream, subjects)]


class _TooMany(Exception):
    pass


async def _multi(connection: Connection, stream: str, subjects: list[str], at_least: int = 0) -> AsyncIterator[Message]:
    """Page by page, and each again while the replica that answers is behind: behind sequence ``at_least`` at the first
    page, with fewer messages than another one had left at the next."""
    body: dict[str, Any] = {"multi_last": subjects, "batch": MULTI, "max_bytes": BATCH_BYTES}
    until, left = asyncio.get_running_loop().time() + ELECTION, 0
    while True:
        messages, pending, up_to = await _batch(connection, stream, body)
        if up_to < at_least or len(messages) + pending < left:
            if asyncio.get_running_loop().time() >= until:
                raise BrokerUnavailable(f"A replica of {stream} at {connection} stays behind its leader")
            await asyncio.sleep(LOOK)
            continue
        for found in messages:
            yield found
        if pending == 0:
            return
        left = pending
        if messages:
            body |= {"seq": int(messages[-1][0][SEQUENCE]) + 1} | ({"up_to_seq": up_to} if up_to else {})


async def _replies(connection: Connection, subject: bytes, body: dict[str, Any]) -> tuple[list[Reply], Reply]:
    """A batch, asked for again while the stream has no leader: an election takes a moment, and reading is free."""
    until = asyncio.get_running_loop().time() + ELECTION
    while True:
        try:
            return await connection.batch(subject, body)
        except Leaderless:
            if asyncio.get_running_loop().time() >= until:
                raise
        await asyncio.sleep(PAUSE)


async def _batch(connection: Connection, stream: str, body: dict[str, Any]) -> tuple[list[Message], int, int]:
    """The unbroken beginning of one batch, how many messages are left behind it, and the batch's horizon."""
    replies, (block, _) = await _replies(connection, f"$JS.API.DIRECT.GET.{stream}".encode(), body)
    if status(block) == _TOO_MANY:
        raise _TooMany
    if status(block) == _MISSING:
        return [], 0, 0
    end = parse_headers(block)
    messages: list[Message] = []
    before = 0
    for head, payload in replies:
        headers = parse_headers(head)
        if int(headers.get(PREVIOUS, before)) != before:
            return messages, 1, int(end.get(UP_TO, 0))  # a reply was lost: go on from the last good one
        before = int(headers[SEQUENCE])
        messages.append((headers, payload))
    if not messages and int(end.get(PENDING, 0)):
        raise BrokerFailed(f"{connection} gives no message of {stream}, though it has some", hint="See its log.")
    return messages, int(end.get(PENDING, 0)), int(end.get(UP_TO, 0))


async def _subjects(connection: Connection, stream: str, subjects: str) -> list[str]:
    names: list[str] = []
    while True:
        body = {"subjects_filter": subjects, "offset": len(names)}
        answer = await connection.api(f"STREAM.INFO.{stream}", body)
        page = answer["state"].get("subjects") or {}
        names.extend(page)
        if not page or len(names) >= int(answer.get("total", 0)):
            return names
