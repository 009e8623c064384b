"""What the user may do with the topics, asked for once: what is forbidden is told at the start, and not by the first
stream.

Metadata version 8 (KIP-430, Kafka 2.3): a bit for each operation, numbered as in Kafka's ``AclOperation``. A broker
without an authorizer permits all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

NEEDED = {"Read": 3, "Write": 4, "Describe": 8, "DescribeConfigs": 10}
NOT_TOLD = -(1 << 31)  # what a broker says that does not keep count of them
_text = String("utf-8")


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", _text), ("port", Int32), ("rack", _text))),
        ("cluster_id", _text),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", _text),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", Array(_text)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class PermissionsRequest(Request[_Question]):  # type: ignore[misc]
    """Which operations the user is authorized to do on each of ``topics``."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class(self._topics, False, False, True)


def missing(answer: Any) -> dict[str, list[str]]:
    """The operations that are needed and forbidden, by topic; a topic that answers with an error is left out."""
    found = {
        topic: [name for name, number in NEEDED.items() if not operations >> number & 1]
        for code, topic, _, _, operations in answer.topics
        if code == 0 and operations != NOT_TOLD
    }
    return {topic: names for topic, names in found.items() if names}
