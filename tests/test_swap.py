"""Another snapshot while calls run: taken, refused, taken back; and what is served while Redis is away."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

from features.embedded_redis import attached
from features.state import State
from protos.client import AdminClient, HomeClient
from protos.home.v1 import home_pb2
from server.identity import development_token
from server.metrics import Metrics
from server.wiring import control_plane, data_plane
from tests.conftest import Served, Store, serving, settings_for
from tests.damage import change_the_dimension, flip_a_bit, forget_a_setting, lose_a_file, place, truncate
from tests.operation import digest_of, eventually, soon
from tests.wire import untracked

STALE: Final = home_pb2.DEGRADED_REASON_SNAPSHOT_STALE
DOWN: Final = home_pb2.DEGRADED_REASON_STORE_DOWN


async def test_a_new_snapshot_is_taken_while_calls_run(served: Served, published: Store, second: Path) -> None:
    """While a snapshot is published no call fails or is degraded, and versions go from the old to the new, once."""
    versions: list[list[str]] = [[] for _ in range(8)]

    async def call(mine: list[str], user: str) -> None:
        while not (mine and mine[-1] == digest_of(second)):
            page = await served.get_home(user)
            assert not page.degraded
            assert len(page.shelves) > 4
            mine.append(page.snapshot_version)

    calling = [asyncio.create_task(call(mine, f"u{n:07}")) for n, mine in enumerate(versions, 1)]
    await soon(lambda: all(versions))
    old = versions[0][0]
    await asyncio.to_thread(published.publish, second)
    await asyncio.wait_for(asyncio.gather(*calling), 60)
    for mine in versions:
        assert mine == [old] * (len(mine) - 1) + [digest_of(second)]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "vector.npy: "),
        (flip_a_bit, "index.faiss: SHA-256"),
        (lose_a_file, "cards.bin is missing"),
        (forget_a_setting, "nprobe"),
        (change_the_dimension, "segment_mean.npy: float32 (32, 8), the manifest says <f4 (32, 16)"),
    ],
)
async def test_a_damaged_snapshot_is_refused_and_the_old_one_serves(
    served: Served, published: Store, second: Path, damage: Callable[[Path], None], told: str
) -> None:
    """The refusal stands in the heartbeat and is counted once; publishing the snapshot again repairs it."""
    old = (await served.get_home("u0000001")).snapshot_version
    place(published, second, damage)
    await soon(lambda: any(told in beat.refusal for beat in published.state.heartbeats()))
    for _ in range(3):
        page = await served.get_home("u0000001")
        assert (page.snapshot_version, page.degraded) == (old, False)
        await asyncio.sleep(0.1)  # two looks at the pointer
    assert served.plane.metrics._refused._value.get() == 1
    published.publish(second)
    await soon(lambda: served.plane.snapshots.current and served.plane.snapshots.current.digest == digest_of(second))
    await soon(lambda: not any(beat.refusal for beat in published.state.heartbeats()))


async def test_a_start_with_a_damaged_snapshot_serves_the_last_good_one(published: Store, second: Path) -> None:
    """A worker that starts while the pointer names a damaged snapshot takes the last that was served, and says why."""
    async with serving(published.state, published.url) as one:
        old = (await one.get_home("u0000001")).snapshot_version
    place(published, second, truncate)
    async with serving(published.state, published.url) as one:
        assert (await one.get_home("u0000001")).snapshot_version == old
        await soon(lambda: any("vector.npy" in beat.refusal for beat in published.state.heartbeats()))
        await asyncio.sleep(0.2)  # some more looks at the pointer
        assert one.plane.metrics._refused._value.get() == 1


async def test_without_any_snapshot_the_server_waits_for_one(store: Store, built: Path) -> None:
    """Not ready and UNAVAILABLE until the first publish; then ready, without a restart."""
    async with serving(store.state, store.url, ready=False) as one:
        with HomeClient(one.target) as client:
            assert not await asyncio.to_thread(client.serving, timeout_s=20)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await one.get_home("u0000001")
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert refused.value.details() == "no snapshot is published yet"
            await asyncio.to_thread(store.publish, built)
            await soon(lambda: one.plane.snapshots.current)
            assert (await one.get_home("u0000001")).shelves
            assert await asyncio.to_thread(eventually, client.serving)


async def test_a_worker_listens_on_a_shared_port_when_it_can_answer(published: Store) -> None:
    """The kernel hands connections to whoever listens: before its snapshot is loaded a worker gets none."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        address = holder.getsockname()
        settings = settings_for(published.state)
        plane = data_plane(settings, redis_url=published.url, port=address[1], shared_port=True, metrics=Metrics())
        stop = asyncio.Event()
        running = asyncio.create_task(plane.run(stop))

        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(address) == 0

        await soon(listens)
        assert plane.snapshots.current
        stop.set()
        await running


async def test_a_start_without_redis_serves_the_last_good_state(published: Store) -> None:
    """Redis away at the start: pages come from the snapshot that was served last, told STORE_DOWN."""
    async with serving(published.state, published.url) as one:
        whole = await one.get_home("u0000001")
    published.client.shutdown(nosave=True)
    async with serving(published.state, published.url) as one:
        page = await one.get_home("u0000001", hidden_ids=["none"])
        assert page.snapshot_version == whole.snapshot_version
        assert page.degraded_reasons == [DOWN]
        assert page.shelves


async def test_pages_are_whole_again_when_redis_is_back(served: Served, published: Store) -> None:
    """Redis stops and starts while pages are served: degraded meanwhile, and the same page as before afterwards."""
    before = await served.get_home("u0000001")
    published.client.shutdown(nosave=True)
    assert DOWN in (await served.get_home("u0000001")).degraded_reasons
    with attached(published.state):
        after = await served.get_home("u0000001")
        while after.degraded:
            after = await served.get_home("u0000001")
    assert untracked(after) == untracked(before)


async def test_an_old_snapshot_is_told(published: Store) -> None:
    """Beyond its maximum age a snapshot is served on, degraded with SNAPSHOT_STALE; publishing it again is enough."""
    async with serving(published.state, published.url, snapshot_max_age_h=0.5 / 3600) as one:
        pages = [await one.get_home("u0000001")]
        while not pages[-1].degraded:
            pages.append(await one.get_home("u0000001"))
        assert pages[-1].degraded_reasons == [STALE]
        assert untracked(pages[-1]).shelves == untracked(pages[0]).shelves


async def test_publishing_what_is_served_loads_nothing_anew(served: Served, published: Store, built: Path) -> None:
    """The same snapshot published again: its age starts anew, but it is not swapped."""
    current, published_at = served.plane.snapshots.current, served.plane.snapshots._published_at
    published.publish(built)
    await soon(lambda: served.plane.snapshots._published_at > published_at)
    assert served.plane.snapshots.current is current


class _Admin:
    """The control plane of a state directory, called by the shipped client from another thread."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    async def __call__(self, name: str, *args: str) -> Any:
        return await asyncio.to_thread(getattr(self._client, name), *args)

    async def refusal(self, name: str, *args: str) -> grpc.StatusCode:
        """The status of a call that is refused."""
        with pytest.raises(grpc.RpcError) as refused:
            await self(name, *args)
        code: grpc.StatusCode = refused.value.code()
        return code


@pytest_asyncio.fixture(loop_scope="session")
async def admin(published: Store) -> AsyncIterator[_Admin]:
    """The control plane beside the small world."""
    settings = settings_for(published.state)
    transport = control_plane(settings, redis_url=published.url, port=0, shared_port=False, metrics=Metrics())
    await transport.start(serving=True)
    token = development_token(State(settings.state))
    with AdminClient(f"127.0.0.1:{transport.port}", token=token) as client:
        yield _Admin(client)
    await transport.stop(1)


async def test_going_back_and_forth(admin: _Admin, served: Served, published: Store, built: Path, second: Path) -> None:
    """Rollback serves what was served before; activate serves what is named, by its beginning too."""
    one, two = digest_of(built), digest_of(second)

    async def follows(digest: str) -> None:
        await soon(lambda: served.plane.snapshots.current and served.plane.snapshots.current.digest == digest)
        page = await served.get_home("u0000001")
        assert (page.snapshot_version, page.degraded, len(page.shelves) > 4) == (digest, False, True)

    published.publish(second)
    await follows(two)
    assert (await admin("rollback_snapshot")).digest == one
    await follows(one)
    assert (await admin("activate_snapshot", two[:8])).digest == two
    await follows(two)
    listed = await admin("list_snapshots")
    assert {(found.digest, found.current) for found in listed.snapshots} == {(one, False), (two, True)}
    status = await admin("get_status")
    assert status.current_digest == two
    assert status.store_up


async def test_what_cannot_be_activated(admin: _Admin, published: Store) -> None:
    """Too short, unknown, ambiguous, damaged, nothing to go back to: each its own status, and nothing changes."""
    code = grpc.StatusCode
    before = published.client.get(published.keys.pointer)
    assert await admin.refusal("activate_snapshot", "abc") is code.INVALID_ARGUMENT
    assert await admin.refusal("activate_snapshot", "../../../etc") is code.INVALID_ARGUMENT
    assert await admin.refusal("activate_snapshot", "0" * 64) is code.NOT_FOUND
    for name in ("abcdabcd0", "abcdabcd1"):
        (published.state.snapshots / name).mkdir()
    assert await admin.refusal("activate_snapshot", "abcdabcd") is code.INVALID_ARGUMENT
    assert await admin.refusal("activate_snapshot", "abcdabcd0") is code.FAILED_PRECONDITION
    assert await admin.refusal("rollback_snapshot") is code.FAILED_PRECONDITION
    assert published.client.get(published.keys.pointer) == before
    published.client.shutdown(nosave=True)
    assert await admin.refusal("rollback_snapshot") is code.UNAVAILABLE
    assert not (await admin("get_status")).store_up
