"""What is acknowledged is on disk: Redis killed under load, a Redis that cannot promise it, and one that is silent."""

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import polars as pl
import pytest
import redis

from features.embedded_redis import _binary, revive
from features.offline.drain import drain
from features.offline.publish import connect
from protos.events.v1 import events_pb2
from tests.conftest import Served, Store, quiet, serving
from tests.operation import eventually
from tests.recording import DUPLICATE, RECORDED, event, in_streams, record, results

Code = grpc.StatusCode


async def deliver(served: Served, events: list[events_pb2.Event], acknowledged: set[str], stop: asyncio.Event) -> None:
    """Sends a batch as a client does: again with the same ids until it is acknowledged, or all is over."""
    while not stop.is_set():
        status = await record(served, events)
        if status.code is Code.OK:
            acknowledged.update(one.event_id for one in events)
            return
        assert status.code is Code.UNAVAILABLE, status
        await asyncio.sleep(0.02)


async def test_what_is_acknowledged_survives_kill_nine_of_redis(published: Store, tmp_path: Path) -> None:
    """Eight clients, Redis killed six times and revived: after the drain every acknowledged event is there once."""
    rng, stop, acknowledged, sent = random.Random(2), asyncio.Event(), set[str](), 0

    async def client(number: int) -> None:
        nonlocal sent
        while not stop.is_set():
            batch = [
                event(f"c{number}-{sent}-{n}", user_id=f"u{rng.randrange(99)}") for n in range(rng.randrange(1, 30))
            ]
            sent += 1
            await deliver(served, batch, acknowledged, stop)

    async with serving(published.state, published.url, event_timeout_ms=2000.0) as served:
        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for _ in range(6):
            await asyncio.sleep(0.2 + 0.3 * rng.random())
            kill(published)
            await asyncio.to_thread(come_back, published)
        stop.set()
        await asyncio.gather(*clients)
    assert len(acknowledged) > 200
    report = drain(published.client, published.keys, tmp_path / "out", progress=quiet)
    ids = pl.read_parquet(tmp_path / "out" / "day=*" / "*.parquet")["event_id"]
    assert ids.is_unique().all()
    assert acknowledged <= set(ids)
    assert report.unreadable == 0


def kill(store: Store) -> None:
    """Kill -9 of a store's Redis."""
    os.kill(int(store.client.info("server")["process_id"]), signal.SIGKILL)


def come_back(store: Store) -> None:
    """Revives a store's Redis, and waits until it answers."""

    def answers() -> bool:
        revive(store.state)
        with suppress(redis.RedisError):
            return bool(store.client.ping())
        return False

    eventually(answers)


async def test_a_silent_redis_is_unavailable_and_a_retry_finds_what_it_took(published: Store) -> None:
    """Stopped before the write or after: UNAVAILABLE within the timeout, and with the same ids it counts once."""
    pid = int(published.client.info("server")["process_id"])
    async with serving(published.state, published.url, event_timeout_ms=200.0) as served:
        assert results(await record(served, [event("warm")])) == [RECORDED]
        os.kill(pid, signal.SIGSTOP)
        try:
            calls = await asyncio.gather(*(record(served, [event(f"e{n}")], timeout=20.0) for n in range(5)))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert {status.code for status in calls} == {Code.UNAVAILABLE}
        assert {status.text for status in calls} == {"the store did not take the events; retry with the same event ids"}
        again = [results(await record(served, [event(f"e{n}")], timeout=20.0)) for n in range(5)]
        assert {result for call in again for result in call} <= {RECORDED, DUPLICATE}
        assert in_streams(published.client, published.keys) == 6


@contextmanager
def another(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a Redis with these options."""
    socket = folder / "s"
    fixed = ("--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--loglevel", "warning")
    with subprocess.Popen([_binary(), *fixed, *options], stdout=subprocess.DEVNULL) as process:
        try:
            with connect(f"unix://{socket}") as client:
                eventually(lambda: pings(client))
                yield f"unix://{socket}"
        finally:
            process.kill()


def pings(client: redis.Redis) -> bool:
    """Whether a Redis answers."""
    with suppress(redis.RedisError):
        return bool(client.ping())
    return False


OLD = ("--rename-command", "WAITAOF", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--appendonly", "no"), "the store keeps no append-only file"),
        (("--appendonly", "yes", "--appendfsync", "everysec", *OLD), "the store knows no WAITAOF"),
        (("--appendonly", "no", "--appendfsync", "always", *OLD), "the store knows no WAITAOF"),
        (("--appendonly", "yes", "--appendfsync", "always", *OLD), ""),
        (("--appendonly", "yes", "--appendfsync", "everysec"), ""),
    ],
)
async def test_a_redis_that_cannot_promise_it_is_told_what_to_set(
    store: Store, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    """Without an append-only file, or too old to wait for it unless it writes at once: UNAVAILABLE, with a remedy."""
    with another(tmp_path, *options) as url:
        async with serving(store.state, url, ready=False) as served:
            status = await record(served, [event("one")])
            if not says:
                assert results(status) == [RECORDED]
            else:
                assert (status.code, status.text.partition(":")[0]) == (Code.UNAVAILABLE, says)
                assert "must set appendonly yes" in status.text
