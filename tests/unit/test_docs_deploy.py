"""docs/deploy.md, held to what there is: settings, the proxy's file, and manifests whose times fit together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tailrace.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def fenced(info: str) -> list[str]:
    return re.findall(rf"^```{info}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["deploy.md", "stores.md", "operations.md", "performance.md"])
def test_every_setting_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names = {name.lower().removeprefix("tailrace_") for name in re.findall(r"\bTAILRACE_[A-Z][A-Z_]*[A-Z]\b", text)}
    streams = {"dead", "s"}  # names of JetStream's streams
    assert names - streams <= set(Settings.model_fields)


def test_the_lines_for_nginx_are_those_of_the_file_that_the_tests_run() -> None:
    file = (ROOT / "compose" / "nginx.conf").read_text(encoding="utf-8")
    (snippet,) = fenced("nginx")
    stands = {line.partition("#")[0].strip() for line in file.splitlines()}
    lines = [line.strip() for line in snippet.splitlines()]
    assert lines
    assert set(lines) <= stands


def test_the_commands_for_compose_are_those_of_its_file() -> None:
    file = (ROOT / "compose" / "compose.yaml").read_text(encoding="utf-8")
    (snippet,) = fenced("sh")
    assert all(f"#   {line}" in file for line in snippet.splitlines())
    for profile in re.findall(r"--profile (\w+)", snippet):
        assert f"profiles: [{profile}]" in file


@pytest.mark.parametrize("role", ["gateway", "worker"])
def test_a_pod_is_given_the_time_that_its_process_takes_to_drain(role: str) -> None:
    (manifest,) = (text for text in "".join(fenced("yaml")).split("---\n") if f"metadata: {{name: {role}}}" in text)
    values = dict(re.findall(r"{name: (TAILRACE_\w+), value: \"([^\"]+)\"}", manifest))
    sleep = sum(map(int, re.findall(r'command: \[sleep, "(\d+)"\]', manifest)))
    (grace,) = map(int, re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest))
    assert grace > sleep + int(values["TAILRACE_DRAIN_TIMEOUT"])
    port = values.get("TAILRACE_WORKER_PORT", "8080")
    probes = dict(re.findall(r"(\w+)Probe: {httpGet: {path: (/\w+), port: " + port + "}", manifest))
    assert probes == {"liveness": "/healthz", "readiness": "/readyz"}
    assert "readOnlyRootFilesystem: true" in manifest
    assert f"args: [{role}]" in manifest
