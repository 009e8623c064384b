"""Where a test's broker comes from: a URL that is given, else a container, else a process of this machine, else a skip
that names what is missing.

::

    @pytest.fixture(scope="module")
    def url(tmp_path_factory):
        with resolve("kafka", tmp_path_factory.mktemp("kafka"), os.environ) as url:
            yield url

A container binds a port of 127.0.0.1 that was chosen before its start: Kafka must name its address in its settings, and
a client finds the broker again after a restart. Valkey is an extra: its image is taken where it is here, never pulled.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from tailrace._ports import choose_port
from tailrace.errors import TailraceError
from tailrace.testing.server_process import HOST

START_TIMEOUT = 90


class Missing(Exception):
    """A broker cannot be had this way; says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """A broker's image: the port inside, the log line that says that it is ready, and how it is told its settings.
    ``{port}`` in ``environment`` is the port outside. ``pulled``: it is fetched where it is not here."""

    name: str
    scheme: str
    port: int
    ready: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    pulled: bool = True


# With any one KAFKA_* variable the image drops all of its defaults: a full set.
_KAFKA = {
    "CLUSTER_ID": "dGFpbHJhY2UtdGVzdGluZw",
    "KAFKA_NODE_ID": "1",
    "KAFKA_PROCESS_ROLES": "broker,controller",
    "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
    "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
    "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
    "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{HOST}:{{port}}",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
    "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "1",
    "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
    "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
    "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
    "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
    "KAFKA_BROKER_SESSION_TIMEOUT_MS": "2000",
    "KAFKA_LOG_DIRS": "/tmp/kafka-logs",
    "KAFKA_HEAP_OPTS": "-Xms256m -Xmx512m",
}
IMAGES = {
    "nats": Image("nats:2.12-alpine", "nats", 4222, "Server is ready", ("-js", "-sd", "/tmp/nats")),
    "kafka": Image("apache/kafka:4.1.1", "kafka", 9092, "Kafka Server started", environment=_KAFKA),
    "redis": Image(
        "redis:7-alpine", "redis", 6379, "Ready to accept connections", ("redis-server", "--appendonly", "yes")
    ),
    "valkey": Image(
        "valkey/valkey:8-alpine",
        "redis",
        6379,
        "Ready to accept connections",
        ("valkey-server", "--appendonly", "yes"),
        pulled=False,
    ),
}


@contextmanager
def resolve(broker: str, folder: Path, environment: Mapping[str, str], *, containers: bool = True) -> Iterator[str]:
    """The URL of a ``nats``, ``kafka``, ``redis`` or ``valkey`` broker; it ends with the block if it was started here.

    In this order: the variable ``TAILRACE_TEST_<BROKER>_URL`` of ``environment``, a container (unless ``containers`` is
    False: a test that is not marked ``docker``), a process with its data in ``folder``. Skips where there is none.
    """
    variable = f"TAILRACE_TEST_{broker.upper()}_URL"
    if given := environment.get(variable):
        yield given
        return
    said = [f"{variable} is not set"]
    with ExitStack() as stack:
        for way in (_in_container, _in_process) if containers else (_in_process,):
            try:
                url = stack.enter_context(way(broker, folder))
            except Missing as error:
                said.append(str(error))
                continue
            yield url
            return
    pytest.skip(f"no {broker} broker: {'; '.join(said)}")


@contextmanager
def _in_container(broker: str, _: Path) -> Iterator[str]:
    try:
        import docker  # type: ignore[import-untyped]
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    except ImportError:
        raise Missing("testcontainers is not installed (pip install testcontainers)") from None
    image, port = IMAGES[broker], choose_port(None, None)
    ready = LogMessageWaitStrategy(image.ready).with_startup_timeout(START_TIMEOUT).with_poll_interval(0.1)
    with ExitStack() as stack:
        try:
            if not _docker_answers():
                raise Missing("no Docker engine answers: install Docker, or start it")
            if not image.pulled:
                _require_here(image.name)
            one = DockerContainer(image.name).with_bind_ports(image.port, port).waiting_for(ready)
            one.with_envs(**{name: value.format(port=port) for name, value in image.environment.items()})
            if image.command:
                one.with_command(list(image.command))
            stack.enter_context(one)
        except docker.errors.ImageNotFound:
            said = "cannot be pulled" if image.pulled else f"is not pulled unasked (docker pull {image.name})"
            raise Missing(f"the image {image.name} is not here and {said}") from None
        except docker.errors.DockerException as error:
            raise Missing(f"the container does not start: {error}") from error
        yield f"{image.scheme}://{HOST}:{port}"


def _docker_answers() -> bool:
    import docker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves the socket open that found nobody
        try:
            client = docker.from_env()
            client.ping()
            client.close()
        except docker.errors.DockerException:
            pass
        else:
            return True
        gc.collect()
        return False


def _require_here(image: str) -> None:
    """Raise the library's ``ImageNotFound`` where the engine does not have it."""
    import docker

    with closing(docker.from_env()) as client:
        client.images.get(image)


@contextmanager
def _in_process(broker: str, folder: Path) -> Iterator[str]:
    module, name = _SERVERS[broker]
    with ExitStack() as stack:
        try:
            server = stack.enter_context(getattr(import_module(module), name)(folder))
        except (TailraceError, ImportError) as error:
            raise Missing(f"{error} ({getattr(error, 'hint', 'not installed')})") from error
        yield server.url


_SERVERS = {  # made with a folder for its data; raises what says what is missing
    "nats": ("tailrace.testing.servers", "NatsServer"),
    "kafka": ("tailrace.testing.kafka_server", "KafkaServer"),
    "redis": ("tailrace.testing.redis_server", "RedisServer"),
    "valkey": ("tailrace.testing.redis_server", "ValkeyServer"),
}
