"""Kafka: streams, heartbeats and runs on Apache Kafka 2.4 or newer.

::

    from tailrace.kafka.broker import open_kafka

    broker = await open_kafka("kafka://127.0.0.1:9092", options=KafkaOptions())
    broker.log      tailrace.log.Log
    broker.beats    tailrace.log.Beats
    broker.runs     tailrace.contracts.RunQueue

What is here needs no client library: settings name the options whether or not it is installed.
"""

from __future__ import annotations

from tailrace.contracts import Capabilities
from tailrace.kafka.options import KafkaOptions

__all__ = ["CAPABILITIES", "KafkaOptions"]

CAPABILITIES = Capabilities(shared=True, durable=True)
