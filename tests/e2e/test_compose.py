"""The whole system from compose/: the gateway that serves is killed, and its readers go on through nginx."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = 20
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.xdist_group("compose"), pytest.mark.timeout(600)]


class System:
    """One profile of the compose file, as a project of its own name and port."""

    def __init__(self, profile: str) -> None:
        self.profile, self.name, self.url = profile, f"tailrace-test-{profile}", ""

    def up(self) -> System:
        self("up", "--build", "--wait")
        self.url = "http://" + self("port", f"{self.profile}-nginx", "8080").strip()
        return self

    def __call__(self, *arguments: str) -> str:
        command = ["docker", "compose", "-p", self.name, "-f", str(ROOT / "compose/compose.yaml")]
        done = subprocess.run(
            [*command, "--profile", self.profile, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "TAILRACE_PORT": "0"},  # Docker chooses
        )
        if done.returncode:
            logs = subprocess.run([*command, "--profile", self.profile, "logs", "--tail", "30"], capture_output=True)
            pytest.fail(f"docker compose {' '.join(arguments)}:\n{done.stderr[-3000:]}\n{logs.stdout.decode()[-6000:]}")
        return done.stdout

    def containers(self, service: str) -> dict[str, str]:
        """The service's running containers: address -> id."""
        found = {}
        for container in self("ps", "-q", f"{self.profile}-{service}").split():
            told = json.loads(subprocess.run(["docker", "inspect", container], capture_output=True, check=True).stdout)
            networks = told[0]["NetworkSettings"]["Networks"].values()
            found |= {network["IPAddress"]: container for network in networks if network["IPAddress"]}
        return found


@pytest.fixture(params=["nats", "kafka"])
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("Docker with its compose plugin is missing")
    one = System(request.param)
    one("down", "--volumes", "--timeout", "1")  # what a run that was killed left
    try:
        yield one.up()
    finally:
        one("down", "--volumes", "--timeout", "1")


async def test_a_killed_gateway_costs_no_reader_a_byte(system: System) -> None:
    texts = {f"run-{number}": _text(number) for number in range(RUNS)}
    gateways = system.containers("gateway")
    async with httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=30) as client:
        readers = {name: Reader(client, name, text) for name, text in texts.items()}
        tasks = [asyncio.create_task(reader.read()) for reader in readers.values()]
        await asyncio.gather(*(reader.on_its_way.wait() for reader in readers.values()))
        serving = [reader.served_by[-1].partition(":")[0] for reader in readers.values()]
        victim = max(set(serving), key=serving.count)
        subprocess.run(["docker", "kill", gateways[victim]], check=True, capture_output=True)
        await asyncio.gather(*tasks)
    hit = [reader for reader, address in zip(readers.values(), serving, strict=True) if address == victim]
    assert hit, "no reader was at the gateway that was killed"
    for reader in hit:
        assert len(reader.served_by) > 1
        assert not reader.served_by[-1].startswith(victim + ":")
    for name, reader in readers.items():
        assert reader.digest.hexdigest() == hashlib.sha256(texts[name].encode()).hexdigest(), name


def _text(seed: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghij äöü€𝄞", k=12_000))


class Reader:
    """Reads a run to its end through whatever breaks, by byte offset and incarnation, as any client could."""

    def __init__(self, client: httpx.AsyncClient, name: str, text: str) -> None:
        self.digest, self.on_its_way = hashlib.sha256(), asyncio.Event()
        self.served_by: list[str] = []
        self._client, self._name, self._text = client, name, text
        self._offset, self._incarnation = 0, ""

    async def read(self) -> None:
        async with asyncio.timeout(120):
            while not await self._read(*self._request()):
                await asyncio.sleep(0.05)

    def _request(self) -> tuple[str, str, dict[str, Any]]:
        """The start, which its id makes safe to repeat, until an answer has begun; then the rest of that."""
        if self._incarnation:
            position = {"offset": self._offset, "incarnation": self._incarnation}
            return "GET", f"/v1/runs/{self._name}", {"params": position}
        echo = {"text": self._text, "chunk": 10, "rate": 50}
        return "POST", "/v1/runs", {"json": {"handler": "echo", "id": self._name, "input": echo}}

    async def _read(self, method: str, url: str, more: dict[str, Any]) -> bool:
        try:
            async with self._client.stream(method, url, **more) as response:
                if response.status_code in (502, 503, 504):
                    return False
                assert response.status_code == 200, await response.aread()
                self.served_by.append(response.headers["x-served-by"])
                self._incarnation = response.headers["tailrace-incarnation"]
                async for data in response.aiter_raw():
                    self.digest.update(data)
                    self._offset += len(data)
                    if self._offset > len(self._text) // 6:
                        self.on_its_way.set()
        except httpx.TransportError:
            return False
        return True
