"""docs/limits.md lists every setting with its default, unit and error; this compares it with the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.errors import BrokerUnavailable, ClaimTimeout, LimitExceeded, ProducerLost
from tailrace.gateway.problems import STATUS
from tailrace.model import Limits
from tailrace.settings import Row, Settings, describe
from tailrace.wire.errors import LineTooLong
from tailrace.wire.lines import MAX_LINE

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
# errors that belong to a setting without being a limit's own class
OTHERS = {
    "TAILRACE_CLAIM_TIMEOUT": (ClaimTimeout.code, 504),
    "TAILRACE_REQUEST_TIMEOUT": (BrokerUnavailable.code, 503),
    "TAILRACE_LEASE_TTL": (ProducerLost.code, None),
    "TAILRACE_HEADER_TIMEOUT": ("request-timeout", 408),
    "TAILRACE_BODY_TIMEOUT": ("request-timeout", 408),
    "TAILRACE_MAX_HEAD_BYTES": ("head-too-large", 431),
}


def limits(kind: type[LimitExceeded] = LimitExceeded) -> Iterator[type[LimitExceeded]]:
    for one in kind.__subclasses__():
        yield one
        yield from limits(one)


def errors() -> dict[str, tuple[str, int | None]]:
    return OTHERS | {one.setting: (one.code, STATUS.get(one.code)) for one in limits()}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TAILRACE_{name.upper()}", raising=False)
    return Settings(_env_file=None)


def line(row: Row) -> str:
    code, status = errors().get(row.name, ("", None))
    shown = f"`{code}`" + (f" ({status})" if status else "") if code else ""
    return f"| `{row.name}` | {row.value or '(empty)'} | {row.unit} | {shown} | {row.meaning} |"


def test_every_setting_stands_in_the_page_as_it_is(settings: Settings) -> None:
    expected = [line(row) for row in describe(settings, None)]
    stands = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| `TAILRACE_")]
    assert stands == expected, "docs/limits.md should have:\n" + "\n".join(expected)


def test_every_limit_has_a_setting_and_every_error_names_one_that_exists() -> None:
    names = {f"TAILRACE_{name.upper()}" for name in Settings.model_fields}
    assert LineTooLong in set(limits())
    assert {one.setting for one in limits()} <= names
    assert set(OTHERS) <= names
    assert {f"TAILRACE_{name.upper()}" for name in Limits.__dataclass_fields__} <= names
    for one in limits():
        assert one.setting in one.hint, one


def test_the_defaults_of_the_settings_are_those_of_the_limits(settings: Settings) -> None:
    assert settings.limits() == Limits()
    assert settings.max_line_bytes == MAX_LINE
