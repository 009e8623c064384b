"""A Kafka of this machine's own: its jars, a Java for them, and one node's process.

Nothing here speaks to a store: `tailrace kafka`, ``embedded+kafka://`` and the tests start real Apache Kafka with it.
The jars are named by Maven coordinates and pinned by SHA-256 (`pins`), fetched by whichever Maven client this machine
has (`jars`), and run by Java 17 or newer (`java`). `node` is one node's files, command and readiness.
"""

from tailrace.kafka_local.errors import LocalKafkaError

__all__ = ["LocalKafkaError"]
