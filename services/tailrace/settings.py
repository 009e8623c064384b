"""Every setting, and the only reader of the environment.

A setting is an environment variable ``TAILRACE_…`` or a line of a ``.env`` file; command-line options and arguments win
over both. Sizes are bytes (``262144`` or ``256KiB``), durations seconds; ``none`` lifts a limit that may be lifted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from tailrace.errors import TailraceError
from tailrace.model import Limits

if TYPE_CHECKING:
    from tailrace.connect import StoreOptions

PREFIX = "TAILRACE_"
_SIZE = TypeAdapter(ByteSize)


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return int(_SIZE.validate_python(value))
    except ValidationError:
        raise ValueError("a number of bytes, such as 262144 or 256KiB") from None


def _or_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


_LONGEST = 10 * 366 * 24 * 3600  # seconds, ten years: beyond it lie overflows, not uses
_MOST = 2**31 - 1  # what the kernel's own settings take
Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=2**50)]
BufferSize = Annotated[int, BeforeValidator(_size), Field(gt=0, le=_MOST)]
OptionalSize = Annotated[Size | None, BeforeValidator(_or_none)]
OptionalCount = Annotated[Annotated[int, Field(gt=0, le=2**50)] | None, BeforeValidator(_or_none)]
Seconds = Annotated[float, Field(gt=0, le=_LONGEST, allow_inf_nan=False)]
Pause = Annotated[float, Field(ge=0, le=_LONGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=_MOST)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(_or_none)]


def _setting(default: Any, meaning: str, unit: str = "") -> Any:
    return Field(default, description=meaning, json_schema_extra={"unit": unit} if unit else None)


class Settings(BaseSettings):
    """All settings. Build one with `load`, which says what is wrong in one line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    store: str = _setting(
        "embedded://", "Where streams live: memory://, embedded://[DIR], nats://, kafka:// or redis://HOST:PORT"
    )
    host: Annotated[str, Field(min_length=1)] = _setting("127.0.0.1", "The address that the gateway listens on")
    port: Port = _setting(8080, "The port that the gateway listens on; 0 takes a free one")

    max_chunk_bytes: OptionalSize = _setting(256 * 1024, "The largest chunk that an append takes", "bytes")
    max_entries: OptionalCount = _setting(1_000_000, "The most chunks that a stream takes", "chunks")
    max_stream_bytes: OptionalSize = _setting(64 * 1024 * 1024, "The most bytes that a stream takes", "bytes")
    max_streams: OptionalCount = _setting(None, "The most streams at once", "streams")
    max_total_bytes: OptionalSize = _setting(None, "The most bytes of all streams together", "bytes")
    max_readers: OptionalCount = _setting(20_000, "The most readers at once in one process", "readers")
    max_reader_lag_bytes: Size = _setting(8 * 1024 * 1024, "How far a reader may fall behind before it is cut", "bytes")
    max_line_bytes: Size = _setting(16 * 1024 * 1024, "The longest line or event that a decoder takes", "bytes")
    max_stream_age: Seconds = _setting(24 * 3600.0, "A stream's longest life; behind it, it is ended", "seconds")
    default_ttl: Seconds = _setting(24 * 3600.0, "How long a stream is kept after its last append or ending", "seconds")
    max_ttl: Seconds = _setting(24 * 3600.0, "The longest time to live that may be asked for", "seconds")

    lease_ttl: Seconds = _setting(10.0, "The silence after which a process counts as lost", "seconds")
    claim_timeout: Seconds = _setting(30.0, "How long a request waits for a worker to claim its run", "seconds")
    request_timeout: Seconds = _setting(5.0, "How long a new request waits for the broker before its 503", "seconds")
    max_request_bytes: Size = _setting(1024 * 1024, "The largest request body", "bytes")
    tail_linger: Pause = _setting(5.0, "How long a stream stays in memory after its last reader left", "seconds")
    flush_interval: Pause = _setting(0.0, "The least time between two sends to one reader; 0 sends at once", "seconds")
    keepalive_interval: Seconds = _setting(15.0, "The silence after which SSE frames get a comment", "seconds")
    cors_origins: str = _setting("", "Origins that browsers may call from, split by commas; * is any, empty none")
    drain_timeout: Pause = _setting(30.0, "How long a stop waits for work in hand", "seconds")

    header_timeout: Seconds = _setting(10.0, "How long a request's headers may take to arrive", "seconds")
    body_timeout: Seconds = _setting(30.0, "How long a request's body may take to arrive", "seconds")
    idle_timeout: Seconds = _setting(75.0, "How long an idle kept-alive connection stays open", "seconds")
    user_timeout: Annotated[float, Field(gt=0, le=_MOST // 1000, allow_inf_nan=False)] = _setting(
        30.0, "How long a client may leave sent bytes unacknowledged", "seconds"
    )
    linger: Seconds = _setting(30.0, "How long a closing connection may take to flush", "seconds")
    max_head_bytes: Size = _setting(32 * 1024, "The largest URL and headers of a request", "bytes")
    send_buffer: BufferSize = _setting(256 * 1024, "The kernel's send buffer of a connection (SO_SNDBUF)", "bytes")
    write_buffer: Size = _setting(256 * 1024, "What is buffered for a connection before a send waits", "bytes")
    backlog: Count = _setting(2048, "Connections that may wait to be accepted", "connections")

    max_pending_bytes: Size = _setting(
        16 * 1024 * 1024, "How many bytes a controller may be ahead of the broker before its run fails", "bytes"
    )
    slots: Count = _setting(1000, "Runs that a worker executes at once", "runs")
    worker_port: OptionalPort = _setting(None, "The port of a worker's own /healthz and /readyz; none: it has none")

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "The least level that is logged")
    log_format: Literal["console", "json"] = _setting("console", "How a log line is written")

    nats_prefix: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")] = _setting(
        "tailrace", "The first token of every subject; one deployment has one"
    )
    nats_shards: Annotated[int, Field(ge=1, le=256)] = _setting(32, "JetStream streams that records are spread over")
    nats_replicas: Annotated[int, Field(ge=1, le=5)] = _setting(1, "Copies that JetStream keeps")
    nats_placement_cluster: str | None = _setting(
        None, "The NATS cluster that keeps the copies, where there are several"
    )
    nats_placement_tags: str = _setting("", "Tags that every server with a copy must have, split by commas")
    nats_sync_always: bool = _setting(False, "Whether the embedded broker writes to the disk before every ack")
    nats_connect_timeout: Seconds = _setting(4.0, "How long the first connection to NATS may take", "seconds")
    nats_user: str | None = _setting(None, "The NATS user")
    nats_password: SecretStr | None = _setting(None, "The NATS user's password")
    nats_token: SecretStr | None = _setting(None, "The NATS token")
    nats_creds_file: Path | None = _setting(None, "The file of NATS user credentials (JWT and seed)")
    nats_nkey_seed: SecretStr | None = _setting(None, "The NATS user's nkey seed; it begins with SU")
    nats_tls_ca: Path | None = _setting(None, "The certificate authority of the NATS server, a PEM file")
    nats_tls_cert: Path | None = _setting(None, "This client's certificate, a PEM file")
    nats_tls_key: Path | None = _setting(None, "The key of this client's certificate, a PEM file")
    nats_tls_hostname: str | None = _setting(None, "The name in the NATS server's certificate, where it is another")
    nats_tls_first: bool = _setting(False, "Whether TLS begins before the NATS server says anything")

    kafka_prefix: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,31}$")] = _setting(
        "tailrace", "The first part of every topic's name; one deployment has one"
    )
    kafka_partitions: Annotated[int, Field(ge=1, le=1024)] = _setting(16, "Partitions that records are spread over")
    kafka_claims_partitions: Annotated[int, Field(ge=1, le=256)] = _setting(4, "Partitions of the topic of claims")
    kafka_replicas: Annotated[int, Field(ge=1, le=16)] = _setting(1, "Copies that Kafka keeps")
    kafka_min_insync_replicas: Annotated[int, Field(ge=1, le=16)] = _setting(
        1, "Copies that have a record when it is acknowledged"
    )
    kafka_max_message_bytes: Annotated[Size, Field(ge=128 * 1024)] = _setting(
        1024 * 1024, "The largest message of the topics (max.message.bytes)", "bytes"
    )
    kafka_connect_timeout: Seconds = _setting(4.0, "How long the first connection to Kafka may take", "seconds")
    kafka_user: str | None = _setting(None, "The Kafka user (SASL)")
    kafka_password: SecretStr | None = _setting(None, "The Kafka user's password")
    kafka_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = _setting("PLAIN", "How the user logs in")
    kafka_tls_ca: Path | None = _setting(None, "The certificate authority of the Kafka brokers, a PEM file")
    kafka_tls_cert: Path | None = _setting(None, "This client's certificate, a PEM file")
    kafka_tls_key: Path | None = _setting(None, "The key of this client's certificate, a PEM file")
    kafka_tls_check_hostname: bool = _setting(True, "Whether a broker's certificate must name its host")

    redis_prefix: Annotated[str, Field(pattern="^[A-Za-z0-9_.:-]{1,64}$")] = _setting(
        "aui:resumable", "What every Redis key begins with; the default is that of npm assistant-stream"
    )
    redis_layout: Literal["0.3.44", "0.3.15"] = _setting(
        "0.3.44", "The release of npm assistant-stream whose keys new streams get; both are read"
    )
    redis_connect_timeout: Seconds = _setting(4.0, "How long a connection to Redis may take", "seconds")
    redis_user: str | None = _setting(None, "The Redis user")
    redis_password: SecretStr | None = _setting(None, "The Redis user's password")
    redis_sentinel_user: str | None = _setting(None, "The user of the sentinels")
    redis_sentinel_password: SecretStr | None = _setting(None, "The password of the sentinels")
    redis_tls_ca: Path | None = _setting(None, "The certificate authority of the Redis server, a PEM file")
    redis_tls_cert: Path | None = _setting(None, "This client's certificate for Redis, a PEM file")
    redis_tls_key: Path | None = _setting(None, "The key of that certificate, a PEM file")

    openai_base_url: str | None = _setting(None, "The OpenAI-compatible endpoint of the shipped openai handler")
    openai_api_key: SecretStr | None = _setting(None, "Its key")
    openai_model: str | None = _setting(None, "The model it asks for where a run names none")

    _arguments: frozenset[str] = PrivateAttr(frozenset())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_ttl > self.max_ttl:
            raise ValueError(
                f"{PREFIX}DEFAULT_TTL={self.default_ttl:g} must not exceed {PREFIX}MAX_TTL={self.max_ttl:g}"
            )
        if self.flush_interval >= self.keepalive_interval:
            raise ValueError(
                f"{PREFIX}FLUSH_INTERVAL={self.flush_interval:g} must be less than "
                f"{PREFIX}KEEPALIVE_INTERVAL={self.keepalive_interval:g}"
            )
        if self.kafka_min_insync_replicas > self.kafka_replicas:
            raise ValueError(
                f"{PREFIX}KAFKA_MIN_INSYNC_REPLICAS={self.kafka_min_insync_replicas} must not exceed "
                f"{PREFIX}KAFKA_REPLICAS={self.kafka_replicas}"
            )
        return self

    def limits(self) -> Limits:
        """What a store refuses."""
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})

    def store_options(self) -> StoreOptions:
        """What `tailrace.connect.connect` is told, beside ``store``."""
        from tailrace.connect import StoreOptions
        from tailrace.jetstream.options import JetStreamOptions
        from tailrace.kafka.options import KafkaOptions
        from tailrace.redis.options import RedisOptions

        kafka = {name: _plain(getattr(self, f"kafka_{name}")) for name in _KAFKA}
        redis = {name: _plain(getattr(self, f"redis_{name}")) for name in _REDIS}
        nats = {name: _plain(getattr(self, f"nats_{name}")) for name in _NATS}
        tags = tuple(tag.strip() for tag in self.nats_placement_tags.split(",") if tag.strip())
        return StoreOptions(
            limits=self.limits(),
            fit_chunks="max_chunk_bytes" not in self.model_fields_set,
            lease_ttl=self.lease_ttl,
            linger=self.tail_linger,
            request_timeout=self.request_timeout,
            jetstream=JetStreamOptions(**nats, placement_tags=tags, request_timeout=self.request_timeout),
            kafka=KafkaOptions(**kafka, request_timeout=self.request_timeout),
            redis=RedisOptions(**redis, request_timeout=self.request_timeout),
            sync_always=self.nats_sync_always,
        )

    def origins(self) -> frozenset[str]:
        """The origins that browsers may call from."""
        return frozenset(origin.strip().rstrip("/") for origin in self.cors_origins.split(",") if origin.strip())


_NATS = tuple(
    """prefix shards replicas placement_cluster connect_timeout user password token creds_file nkey_seed
    tls_ca tls_cert tls_key tls_hostname tls_first""".split()  # noqa: SIM905 - a list of words reads best as words
)

_KAFKA = tuple(
    """prefix partitions claims_partitions replicas min_insync_replicas max_message_bytes connect_timeout
    user password mechanism tls_ca tls_cert tls_key tls_check_hostname""".split()  # noqa: SIM905
)


_REDIS = tuple(
    "prefix layout connect_timeout user password sentinel_user sentinel_password tls_ca tls_cert tls_key".split()  # noqa: SIM905
)


def _plain(value: Any) -> Any:
    """A setting's value as the adapters take it: secrets shown, paths as text."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path) else value


class InvalidSetting(TailraceError):
    """A setting's value is not what it must be."""

    code = "invalid-setting"
    hint = "Mend the variable; `tailrace settings` lists all with their meaning."


class Row(NamedTuple):
    """A setting for people: ``source`` is default, environment, a file's name or argument."""

    name: str
    value: str
    source: str
    meaning: str
    unit: str


def load(env_file: str | None = ".env", **arguments: Any) -> Settings:
    """The settings of this process; ``arguments`` that are not None win. Raises `InvalidSetting`."""
    try:
        given = {name: value for name, value in arguments.items() if value is not None}
        settings = Settings(_env_file=env_file, **given)
        settings._arguments = frozenset(given)
        return settings
    except ValidationError as error:
        raise InvalidSetting("; ".join(_complaint(item) for item in error.errors())) from None
    except (UnicodeDecodeError, OSError) as error:  # nothing else is read here
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidSetting(
            f"The settings' file {env_file} cannot be read: {said}", hint="Mend or remove it."
        ) from None


def _complaint(item: Mapping[str, Any]) -> str:
    message = re.sub("^(Value error, |Input should be |String should )", "", item["msg"])
    if not item["loc"]:
        return message
    name = str(item["loc"][0]).removeprefix(PREFIX.lower())
    shown = "***" if _is_secret(name) else repr(item["input"])
    unit = (_extra(name)).get("unit", "")
    verb = "must" if item["type"].startswith("string_") and item["type"] != "string_type" else "must be"
    return f"{PREFIX}{name.upper()}={shown}: {verb} {message}{f' ({unit})' if unit else ''}"


def _extra(name: str) -> dict[str, Any]:
    field = Settings.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    return extra if isinstance(extra, dict) else {}


def _is_secret(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and "SecretStr" in str(field.annotation)


class _Sources:
    """Where a setting's value came from."""

    FILE: ClassVar[str] = ".env"

    def __init__(self, env_file: str | None) -> None:
        self.environment = {name.upper() for name in os.environ}
        self.file = set()
        if env_file:
            read = DotEnvSettingsSource(Settings, env_file=env_file, env_prefix=PREFIX)
            self.file = {str(name).upper() for name in read.env_vars}

    def of(self, settings: Settings, name: str) -> str:
        variable = PREFIX + name.upper()
        if name in settings._arguments:
            return "argument"
        if variable in self.environment:
            return "environment"
        if variable in self.file:
            return self.FILE
        return "default"


def describe(settings: Settings, env_file: str | None = ".env") -> list[Row]:
    """Every setting with its value (secrets masked), source and meaning, in the order of the class."""
    sources = _Sources(env_file)
    return [
        Row(
            PREFIX + name.upper(),
            shown(getattr(settings, name)),
            sources.of(settings, name),
            field.description or "",
            str(_extra(name).get("unit", "")),
        )
        for name, field in Settings.model_fields.items()
    ]


def shown(value: object) -> str:
    """A value for people: secrets masked, those in a URL too."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    masked = re.sub(r"(://)[^?\s]*@", r"\1***@", str(value))
    return re.sub(r"([?&]nkey=)[^&\s]*", r"\1***", masked)
