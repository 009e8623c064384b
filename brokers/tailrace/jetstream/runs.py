"""`RunQueue` on JetStream: a work queue with one subject a handler and stream id.

Theory. A command is accepted when its subject was empty and now holds it: the condition makes a second submit find the
first. A worker's acknowledgement removes it, which frees the subject. Workers take commands through a durable pull
consumer a handler, made here; what they do with them is theirs.

Rules. A submit whose answer is lost is sent again under the same command id, which the server knows again for two
minutes; only the server's answer accepts.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tailrace.command_wire import REASON, decode_command, encode_command
from tailrace.contracts import Command
from tailrace.errors import BrokerUnavailable, BrokerUnsuitable, RunTooLarge
from tailrace.jetstream import refusals, setup
from tailrace.jetstream.connection import Connection, Unanswered
from tailrace.jetstream.names import Names
from tailrace.jetstream.wire import header_block, message

MAX_ACK_PENDING = 100_000  # the server's default of 1000 would stop all workers at 1000 runs
_MESSAGE_ID = "Nats-Msg-Id"
_ATTEMPTS = 4
_ROOM = 16 * 1024  # of a message's size, so that a dead letter, which also tells why, always fits


class JetStreamRunQueue:
    """Made by `open_jetstream`; see `tailrace.contracts.RunQueue` for what each call promises."""

    kind = "jetstream"

    def __init__(self, connection: Connection, names: Names) -> None:
        self._connection = connection
        self._names = names

    async def submit(self, command: Command) -> Command:
        command = replace(command, id=command.id or secrets.token_hex(12))
        subject = self._names.command(command.handler, command.stream_id)
        headers, payload = encode_command(command)
        block = header_block(headers | {_MESSAGE_ID: command.id}, expected=0)
        if (size := len(block) + len(payload)) > (most := self._connection.max_payload - _ROOM):
            raise RunTooLarge(f"The run of {command.stream_id} takes {size} bytes; the broker's messages take {most}")
        for _ in range(_ATTEMPTS):
            stored = await self._store(subject, block, payload)
            if stored is True:
                return command
            if stored is False and (queued := await self._get(subject, command.stream_id)) is not None:
                return queued  # or ours, where an earlier answer was lost and the server has forgotten its id
        raise BrokerUnavailable(f"{self._connection} did not confirm the run of {command.stream_id}")

    async def _store(self, subject: str, block: bytes, payload: bytes) -> bool | None:
        """Whether it is stored; False where something is queued there, None where nobody knows."""
        try:
            _, answer = await self._connection.request(subject.encode(), payload, block)
        except Unanswered:
            return None
        error = json.loads(answer).get("error")
        if error is None:
            return True
        if error.get("err_code") in refusals.WRONG_LAST:
            return False
        raise refusals.of(error, f"submit at {self._connection}")

    async def find(self, stream_id: str) -> Command | None:
        return await self._get(self._names.command_of_any(stream_id), stream_id)

    async def _get(self, subject: str, stream_id: str) -> Command | None:
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{self._names.commands}", {"last_by_subj": subject})
        except refusals.Refusal as error:
            if error.number == refusals.NO_MESSAGE:
                return None
            raise
        command = decode_command(*message(answer))
        return command if command.stream_id == stream_id else None

    async def cancel(self, member_id: str, stream_id: str) -> None:
        self._connection.publish(self._names.cancels(member_id), stream_id.encode())

    # --- for workers

    @property
    def stream(self) -> str:
        """The stream that holds the commands."""
        return self._names.commands

    def subject(self, handler: str) -> str:
        """The subjects of a handler's commands."""
        return self._names.commands_of(handler)

    def cancel_subject(self, member_id: str) -> str:
        """Where the member hears stream ids to cancel, as plain payloads."""
        return self._names.cancels(member_id)

    def consumer_config(self, handler: str) -> ConsumerConfig:
        """The durable pull consumer that all workers of ``handler`` share."""
        return ConsumerConfig(
            durable_name=self._names.consumer(handler),
            filter_subject=self.subject(handler),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._connection.options.ack_wait,
            max_ack_pending=MAX_ACK_PENDING,
            max_deliver=-1,
        )

    async def ensure_consumer(self, handler: str) -> ConsumerConfig:
        """Make the handler's consumer, or bring it to these settings. Raises `BrokerError`."""
        config = self.consumer_config(handler)
        settings = {name: value for name, value in config.as_dict().items() if value is not None}
        call = f"CONSUMER.CREATE.{self.stream}.{config.durable_name}.{config.filter_subject}"
        try:
            await setup.asked(self._connection, call, {"stream_name": self.stream, "config": settings})
            # the client library asks once: whoever uses it next must find a consumer that has a leader
            await setup.asked(self._connection, f"CONSUMER.INFO.{self.stream}.{config.durable_name}")
        except refusals.Refusal as error:
            raise BrokerUnsuitable(
                f"The consumer {config.durable_name} of {self.stream} cannot be made: {error}",
                hint=f"Delete it with `nats consumer rm {self.stream} {config.durable_name}`.",
            ) from error
        return config

    async def bury(self, command: Command, reason: str) -> None:
        """Store ``command`` as a dead letter, with ``reason`` as JSON text in the header `Tailrace-Reason`."""
        headers, payload = encode_command(command)
        block = header_block(headers | {REASON: json.dumps(reason[:1000])})
        subject = self._names.dead_letter(command.handler, command.stream_id)
        if await self._store(subject, block, payload) is None:
            raise BrokerUnavailable(f"{self._connection} did not confirm the dead letter of {command.stream_id}")
