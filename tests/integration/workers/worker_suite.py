"""What workers do on every broker, to subclass: runs end to end, and end truly when a worker, or the broker, dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from worker_deployment import Deployment, Gate, body, ended, first_bytes, forgotten, rest, submit, until, working

from tailrace.errors import BrokerUnavailable
from tailrace.gateway.launch import gateway_server
from tailrace.gateway.server import started
from tailrace.model import Status
from tailrace.settings import load
from tailrace.store import LogStore
from tailrace.worker.builtin import echo


class Late:
    """A delivery whose ack waits until it ``may`` go out."""

    def __init__(self, delivery: Any, may: asyncio.Event) -> None:
        self._delivery, self._may = delivery, may

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    async def ack(self) -> None:
        await self._may.wait()
        await self._delivery.ack()


@asynccontextmanager
async def gateway_at(store: LogStore) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway on the store."""
    async with started(gateway_server(store, load(None, port=0), install_signals=False)) as server:
        address = f"http://127.0.0.1:{server.bound_port}"
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            yield client


class WorkerSuite:
    """A subclass's module has two fixtures: ``deployment``, on a server that is shared or not, and ``own``, to kill."""

    many = 300  # runs at once, on two workers
    outage_lease = 10.0  # seconds; of those who live through a restart of the broker

    async def assert_queued(self, deployment: Deployment, store: LogStore, *, taken: int, waiting: int) -> None:
        """``taken`` commands for ``gate`` are with this store's worker, and ``waiting`` more in the queue."""
        raise NotImplementedError

    async def test_a_run_end_to_end(self, deployment: Deployment) -> None:
        text = "Käse\r\n𝄞 \x00" * 1000
        async with deployment.opened() as store, deployment.opened() as gateway, working(store, echo):
            await submit(gateway, "a..b", "echo", input={"text": text, "chunk": 7})
            assert (await body(gateway, "a..b")).decode() == text
            info = await ended(gateway, "a..b")
            assert (info.status, info.owner, info.content_type) == (
                Status.DONE,
                store.members.id,
                "text/plain; charset=utf-8",
            )
            await submit(gateway, "b", "echo", input={"text": 1})
            assert (await ended(gateway, "b")).code == "invalid-input"
            await until(lambda: {"echo"} in [set(member.handlers) for member in gateway.members.alive()])

    async def test_a_run_that_is_accepted_while_no_worker_lives_runs_when_one_comes(
        self, deployment: Deployment
    ) -> None:
        async with deployment.opened() as gateway:
            accepted = await submit(gateway, "a", "echo", input={"text": "late"})
            info = await gateway.status("a")
            assert info.status is Status.QUEUED
            assert info.run is not None
            assert info.run.command == accepted.id
        async with deployment.opened() as store, working(store, echo):
            assert await body(store, "a") == b"late"
            assert (await ended(store, "a")).status is Status.DONE

    async def test_the_next_run_of_an_id_waits_for_the_ack_of_the_last_and_is_run(self, deployment: Deployment) -> None:
        """The command of a run that was refused or deleted is still queued: no run is joined to it, none conflicts."""
        may = asyncio.Event()
        async with (
            deployment.opened(10) as store,
            deployment.opened(10) as gateway,
            working(store, echo) as worker,
            gateway_at(gateway) as client,
        ):
            handle = worker.runner.handle
            worker.runner.handle = lambda delivery: handle(Late(delivery, may))  # type: ignore[method-assign]
            await until(lambda: any(member.handlers for member in gateway.members.alive()))

            async def post(name: str, text: object) -> httpx.Response:
                return await client.post("/v1/runs", json={"id": name, "handler": "echo", "input": {"text": text}})

            for name, first, then in (("refused", 1, "b"), ("other", "a", "b"), ("same", "a", "a")):
                may.clear()
                answer = await post(name, first)
                if name == "refused":
                    assert answer.status_code == 422, answer.text
                else:
                    assert answer.text == first
                    assert (await client.delete(f"/v1/runs/{name}")).status_code == 204
                early = await post(name, then)
                assert (early.status_code, early.json()["code"]) == (503, "broker-unavailable")
                may.set()
                while (answer := await post(name, then)).status_code == 503:
                    pass
                assert (answer.status_code, answer.text) == (200, then)
                await forgotten(gateway, name)

    async def test_cancel_reaches_the_owner_and_nobody_else(self, deployment: Deployment) -> None:
        gate = Gate()
        async with (
            deployment.opened() as store,
            deployment.opened() as other,
            deployment.opened() as gateway,
            working(store, gate.handler),
            working(other, gate.handler),
        ):
            for name in ("a", "b"):
                await submit(gateway, name, "gate")
                await first_bytes(gateway, name)
            owner = (await gateway.status("a")).owner
            assert owner in (store.members.id, other.members.id)
            await gateway.runs.cancel(owner, "never heard of")
            await gateway.runs.cancel(next(i for i in (store.members.id, other.members.id) if i != owner), "a")
            await gateway.runs.cancel(owner, "a")
            info = await ended(gateway, "a")
            assert (info.status, info.bytes) == (Status.CANCELLED, 2)
            assert (await gateway.status("b")).status is Status.STREAMING

    @pytest.mark.chaos
    async def test_the_run_of_a_killed_worker_ends_through_another(self, deployment: Deployment) -> None:
        async with deployment.opened(linger=0) as gateway:  # it follows nothing: only a worker can end the stream
            async with deployment.worker() as process:
                await submit(gateway, "a", "slow")
                await first_bytes(gateway, "a")
                process.send_signal(signal.SIGKILL)
                await process.wait()
            assert (await gateway.status("a")).status is Status.STREAMING
            async with deployment.worker():
                await forgotten(gateway, "a")
                info = await gateway.status("a")
            assert (info.status, info.code, info.bytes) == (Status.PRODUCER_LOST, "producer-lost", 5)

    @pytest.mark.chaos
    async def test_a_worker_that_slept_past_its_lease_forgets_the_run_that_it_lost(
        self, deployment: Deployment
    ) -> None:
        """There is no other worker: a gateway ends the stream, and the only one who can say that the command is done
        is the one who lost it."""
        async with deployment.opened() as gateway, deployment.worker() as process:
            await submit(gateway, "a", "ticks")
            await first_bytes(gateway, "a")
            reading = asyncio.create_task(body(gateway, "a"))
            process.send_signal(signal.SIGSTOP)
            kept = await reading
            assert (await gateway.status("a")).status is Status.PRODUCER_LOST
            process.send_signal(signal.SIGCONT)
            await forgotten(gateway, "a")
            assert await body(gateway, "a") == kept
            async with deployment.opened(10) as patient:  # to whom a worker that stalls is not dead
                await submit(patient, "b", "brief")
                assert (await ended(patient, "b")).status is Status.DONE

    @pytest.mark.chaos
    async def test_sigterm_drains(self, deployment: Deployment) -> None:
        deployment = replace(deployment, lease_ttl=10.0)  # a worker that stalls is not dead
        async with deployment.opened() as gateway:
            async with deployment.worker() as process:
                await submit(gateway, "a", "brief")
                await first_bytes(gateway, "a")
                process.terminate()
                assert (await ended(gateway, "a")).status is Status.DONE
                assert await process.wait() == 0
            async with deployment.worker(drain=0.1) as process:
                await submit(gateway, "b", "slow")
                await first_bytes(gateway, "b")
                process.terminate()
                info = await ended(gateway, "b")
                assert (info.status, info.code) == (Status.ERROR, "worker-stopped")
                assert await process.wait() == 0

    @pytest.mark.chaos
    async def test_a_killed_broker_delays_and_loses_nothing(self, own: Deployment) -> None:
        gate, lease = Gate(), self.outage_lease
        async with own.opened(lease) as store, own.opened(lease) as gateway, working(store, gate.handler):
            for name in ("a", "b"):
                await submit(gateway, name, "gate")
                await first_bytes(gateway, name)
            reader = await gateway.open("a", wait=60)
            await asyncio.to_thread(own.server.kill)
            gate.open.set()
            await asyncio.sleep(0.5)
            assert reader.ending is None
            await asyncio.to_thread(own.server.start)
            assert await rest(reader) == b"a after"
            assert await body(gateway, "a") == b"a after"
            gate.open.clear()
            async with asyncio.timeout(60):
                while True:
                    with contextlib.suppress(BrokerUnavailable):
                        await submit(gateway, "cancelled", "gate")
                        break
            await first_bytes(gateway, "cancelled")
            while (await gateway.status("cancelled")).status is Status.STREAMING:  # who follows comes back in its time
                await gateway.runs.cancel(store.members.id, "cancelled")
                await asyncio.sleep(0.2)
            assert (await ended(gateway, "cancelled")).status is Status.CANCELLED
            gate.open.set()
            await submit(gateway, "c", "gate")
            assert await body(gateway, "c") == b"c after"
            for name in ("a", "b", "c"):
                assert (await ended(gateway, name)).status is Status.DONE
            assert gate.begun == 4

    @pytest.mark.chaos
    async def test_a_worker_stops_while_the_broker_is_away_and_its_command_runs_later(self, own: Deployment) -> None:
        gate = Gate()
        async with own.opened() as store:
            async with working(store, gate.handler):
                await submit(store, "a", "gate")
                await first_bytes(store, "a")
                before = {task for task in asyncio.all_tasks() if "worker" in task.get_name()}
                await asyncio.to_thread(own.server.kill)
            assert all(task.done() for task in before)
        await asyncio.to_thread(own.server.start)
        async with own.opened() as store, working(store, gate.handler):
            info = await ended(store, "a")
            assert info.status in (Status.ERROR, Status.PRODUCER_LOST)

    async def test_a_command_for_a_handler_that_nobody_has_waits_for_one_who_has(self, deployment: Deployment) -> None:
        gate = Gate()
        gate.open.set()
        async with deployment.opened() as store, deployment.opened() as other, working(store, echo):
            await submit(store, "a", "gate")
            await submit(store, "b", "echo", input={"text": "b"})
            assert (await ended(store, "b")).status is Status.DONE
            assert (await store.status("a")).status is Status.QUEUED
            async with working(other, gate.handler):
                assert (await ended(store, "a")).owner == other.members.id

    async def test_a_full_worker_takes_no_more_and_another_does(self, deployment: Deployment) -> None:
        gate = Gate()
        async with deployment.opened() as store, deployment.opened() as other, working(store, gate.handler, slots=2):
            for number in range(5):
                await submit(other, f"run-{number}", "gate")
            await until(lambda: gate.begun == 2)
            await self.assert_queued(deployment, store, taken=2, waiting=3)
            async with working(other, gate.handler, slots=10):
                await until(lambda: gate.begun == 5)
                gate.open.set()
                for number in range(5):
                    assert (await ended(other, f"run-{number}")).status is Status.DONE

    async def test_many_runs_at_once_on_two_workers_run_once_each(self, deployment: Deployment) -> None:
        gate, slots = Gate(), self.many // 2
        names = [f"run-{number}" for number in range(self.many)]
        async with (
            deployment.opened(10) as store,
            deployment.opened(10) as other,
            working(store, gate.handler, slots=slots),
            working(other, gate.handler, slots=slots),
        ):
            for first in range(0, self.many, 50):
                await asyncio.gather(*(submit(store, name, "gate") for name in names[first : first + 50]))
            await until(lambda: gate.begun == self.many)
            gate.open.set()
            for name in names:
                assert await body(store, name) == f"{name} after".encode()
            for name in names:
                await forgotten(store, name)
            assert gate.begun == self.many
