"""An embedded Kafka node: shared and supervised as `tailrace.embedded` says, closed to who has not its password."""

from __future__ import annotations

import asyncio

from tailrace._ports import choose_port
from tailrace._server_directory import HOST, ServerDirectory, ServerRecord
from tailrace.kafka_local import metadata
from tailrace.kafka_local.jars import classpath
from tailrace.kafka_local.java import find_java
from tailrace.kafka_local.node import Node

_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


class KafkaKind:
    """See `tailrace._server_kinds.ServerKind`."""

    steady_after = 15.0  # a Java that cannot start its server may take its time to say so

    def check(self) -> None:
        find_java()
        classpath()

    def prepare(self, home: ServerDirectory, record: ServerRecord) -> list[str]:
        # Nobody but the node itself speaks to its controller, so that port may be another one each time.
        controllers = {1: choose_port(None, None)}
        return Node(home.path, record.port, controllers, properties=_properties(record)).prepare()

    async def answers(self, record: ServerRecord) -> bool:
        login = (record.user, record.password)
        found = await asyncio.to_thread(metadata.ask, HOST, record.port, login=login)
        return found is not None and found.brokers == {1: record.port}


def _properties(record: ServerRecord) -> dict[str, str]:
    """Passwords on both listeners, and what the server's options ask for. All values are tokens of our own making."""
    user, password = record.user, record.password
    login = f'{_LOGIN} required username="{user}" password="{password}" user_{user}="{password}";'
    chosen = {
        "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.plaintext.plain.sasl.jaas.config": login,
        "listener.name.controller.plain.sasl.jaas.config": login,
    }
    if record.options.sync_always:
        chosen["log.flush.interval.messages"] = "1"
    if record.options.max_payload is not None:
        chosen["message.max.bytes"] = str(record.options.max_payload)
    return chosen
