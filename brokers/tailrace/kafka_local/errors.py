"""Why there is no local Kafka."""

import re

from tailrace.errors import BrokerError


class LocalKafkaError(BrokerError):
    """A local Kafka cannot be had. ``code``: ``kafka-jars`` (not fetched, or cannot be), ``kafka-jar-differs`` (one is
    not the pinned one), ``java-missing``, ``java-too-old``, ``kafka-start``; ``hint`` says what to do."""

    code = "kafka-start"


def reason(said: str) -> str:
    """What ended a Java program, of all that it said: the first exception without its stack, else the last words."""
    thrown = re.search(r"^(?:Caused by: |Exception in thread \S+ )?(\S+(?:Exception|Error): .*)", said, re.MULTILINE)
    return " ".join((thrown[1][:400] if thrown else said[-300:]).split()) or "it says nothing"
