"""What is acknowledged is on disk: Redis and workers killed under load, a Redis that cannot promise it or is silent."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import polars as pl
import pytest
import redis

from features.embedded_redis import _binary, revive
from features.event_store import FIELD
from features.events import Event
from features.keys import PARTITIONS, Keys
from features.offline.drain import drain
from features.offline.publish import connect
from protos.client import asyncio_channel
from protos.events.v1 import events_pb2
from server.identity import development_token
from tests.conftest import Served, Store, quiet, serving
from tests.operation import children, eventually, redis_of, server, soon
from tests.operation import published as published_at
from tests.recording import DUPLICATE, RECORD, RECORDED, event, in_streams, record, results
from tests.wire import Metadata, call

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


async def test_kill_nine_of_workers_and_redis_beside_a_disk_hog_loses_nothing(built: Path, tmp_path: Path) -> None:
    """Twice Redis and both workers of `mantel serve` die at once, while another process keeps the disk busy.

    Each comes back by itself. Every acknowledged event is in the streams once, and after the drain too.
    """
    state = published_at(tmp_path / "state", built)
    rng, stop, acknowledged = random.Random(3), asyncio.Event(), set[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_EVENT_TIMEOUT_MS", "10000")
        patch.setenv("MANTEL_DEFAULT_DEADLINE_MS", "20000")
        with redis_of(state) as store, server(state, workers="2") as endpoints, disk_hog(tmp_path):
            bearer = (("authorization", f"Bearer {development_token(state)}"),)
            async with asyncio_channel(endpoints.target) as channel:

                async def client(number: int) -> None:
                    for batch in itertools.count():
                        if stop.is_set():
                            return
                        some = range(rng.randrange(1, 30))
                        users = [f"u{rng.randrange(99)}" for _ in some]
                        events = [event(f"c{number}-{batch}-{n}", user_id=users[n]) for n in some]
                        await until_taken(channel, bearer, events, acknowledged, stop)

                clients = [asyncio.create_task(client(number)) for number in range(8)]
                for _ in range(2):
                    before = len(acknowledged)
                    await soon(lambda before=before: len(acknowledged) > before + 100)  # type: ignore[misc]  # bound
                    await asyncio.sleep(rng.random() / 4)
                    doomed = [int(store.info("server")["process_id"]), *children(endpoints.pid)]
                    for pid in doomed:
                        os.kill(pid, signal.SIGKILL)
                    await soon(lambda: pings(store))
                before = len(acknowledged)
                await soon(lambda: len(acknowledged) > before + 100)  # it serves again
                stop.set()
                await asyncio.gather(*clients)
            held = Counter(event_ids(store))
            report = drain(store, Keys(), tmp_path / "out", progress=quiet)
    assert acknowledged <= set(held)
    assert set(held.values()) == {1}
    drained = pl.read_parquet(tmp_path / "out" / "day=*" / "*.parquet")["event_id"]
    assert drained.sort().to_list() == sorted(held)
    assert report.unreadable == 0


async def until_taken(
    channel: grpc.aio.Channel,
    metadata: Metadata,
    events: list[events_pb2.Event],
    acknowledged: set[str],
    stop: asyncio.Event,
) -> None:
    """Sends a batch again and again with the same ids until it is acknowledged, or all is over."""
    request = events_pb2.RecordEventsRequest(events=events)
    while not stop.is_set():
        status = await call(channel, RECORD, request, metadata=metadata, timeout=20.0)
        if status.code is Code.OK:
            acknowledged.update(one.event_id for one in events)
            return
        assert status.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}, status
        await asyncio.sleep(0.02)


def event_ids(store: redis.Redis) -> Iterator[str]:
    """The id of every event in the streams, as often as it is there."""
    for number in range(PARTITIONS):
        entries: Any = store.xrange(Keys().stream(number))
        for _, fields in entries:
            yield Event.from_bytes(fields[FIELD.encode()]).event_id


HOG: Final = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    os.unlink(sys.argv[1])  # nothing stays, however it ends
    block = os.urandom(1 << 22)
    while os.getppid() == int(sys.argv[2]):
        file.seek(0)
        for _ in range(16):
            file.write(block)
            os.fsync(file.fileno())
"""


@contextmanager
def disk_hog(folder: Path) -> Iterator[None]:
    """A process that writes 64 MB over and over, each 4 MB to the disk itself."""
    words = [sys.executable, "-c", HOG, str(folder / "hog"), str(os.getpid())]
    with subprocess.Popen(words) as process:
        try:
            yield
        finally:
            process.kill()


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
