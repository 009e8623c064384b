"""What every test shares: rewritten assertions in the shipped kit, and how hard hypothesis tries."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tailrace import _ports

pytest.register_assert_rewrite("tailrace.testing")

# no deadlines: the machine is shared, and no test asserts a timing
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("default", max_examples=100, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Each xdist process has ports of its own: a server that is down for a while keeps its number, not its port.
if (_worker := os.environ.get("PYTEST_XDIST_WORKER", "")).startswith("gw"):
    _share = len(_ports.PORTS) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _first = _ports.PORTS.start + int(_worker[2:]) * _share
    _ports.PORTS = range(_first, _first + _share)


# a broker that a test wanted to start and that this machine lacks: a skip that says so
MISSING = {"embedded-binary", "kafka-jars", "java-missing", "java-too-old"}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """A broker that is missing skips its test. Where every broker is promised to be there
    (TAILRACE_TEST_REQUIRE_BROKERS=1), a skip is a failure."""
    outcome = yield
    report = outcome.get_result()
    error = call.excinfo.value if call.excinfo else None
    if report.failed and getattr(error, "code", None) in MISSING:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {error} ({getattr(error, 'hint', '')})")
    required = os.environ.get("TAILRACE_TEST_REQUIRE_BROKERS") == "1"
    if report.skipped and not hasattr(report, "wasxfail") and required:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be missing: {report.longrepr}"
