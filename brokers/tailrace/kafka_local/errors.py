"""Why there is no local Kafka."""

from tailrace.errors import BrokerError


class LocalKafkaError(BrokerError):
    """A local Kafka cannot be had. ``code``: ``kafka-jars`` (not fetched, or cannot be), ``kafka-jar-differs`` (one is
    not the pinned one), ``java-missing``, ``java-too-old``, ``kafka-start``; ``hint`` says what to do."""

    code = "kafka-start"
