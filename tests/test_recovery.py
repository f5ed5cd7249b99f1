"""What passes by itself: a snapshot that comes late, a file not to be read for a moment, a store without its data."""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from features.errors import InvalidInput
from features.snapshot import Snapshot
from features.state import Heartbeat, State
from protos.home.v1 import home_pb2
from server import snapshots, wiring
from server.identity import Identities, Role, add_principal
from server.metrics import Metrics
from server.wiring import IdentityFile, data_plane
from tests.conftest import Served, Store, serving, settings_for
from tests.damage import place, truncate
from tests.operation import digest_of, soon
from tests.wire import GET_HOME, bearer, call

Code = grpc.StatusCode
DOWN = home_pb2.DEGRADED_REASON_STORE_DOWN
UNKNOWN = home_pb2.DEGRADED_REASON_BLOCKLIST_UNKNOWN
LISTENER = home_pb2.GetHomeRequest(user_id="u0000001")


def refusals(store: Store) -> set[str]:
    """What the living workers refuse, and why."""
    return {beat.refusal for beat in store.state.heartbeats() if beat.refusal}


def serves(served: Served, folder: Path) -> bool:
    """Whether a snapshot is in service."""
    current = served.plane.snapshots.current
    return current is not None and current.digest == digest_of(folder)


@asynccontextmanager
async def sharing(store: Store) -> AsyncIterator[tuple[str, int]]:
    """A worker on a port that others may share."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        settings, port = settings_for(store.state), holder.getsockname()[1]
        plane = data_plane(settings, redis_url=store.url, port=port, shared_port=True, metrics=Metrics())
        stop = asyncio.Event()
        running = asyncio.create_task(plane.run(stop))
        yield holder.getsockname()
        stop.set()
        await running


def listens(address: tuple[str, int]) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex(address) == 0


async def test_a_snapshot_that_comes_after_its_pointer_is_taken(served: Served, published: Store, second: Path) -> None:
    """Half a folder, then none at all: the heartbeat says so, and the whole one is served when it is there."""
    aside = published.state.path / "aside"

    def take_away(copy: Path) -> None:
        copy.rename(aside)
        copy.mkdir()
        (copy / "manifest.json").write_bytes((aside / "manifest.json").read_bytes())

    folder = published.state.snapshots / place(published, second, take_away)
    await soon(lambda: any("is missing" in text for text in refusals(published)))
    (folder / "manifest.json").unlink()
    folder.rmdir()
    await soon(lambda: any(text.endswith("it is tried again") for text in refusals(published)))
    aside.rename(folder)
    await soon(lambda: serves(served, second) and not refusals(published))


async def test_what_may_pass_is_tried_again(
    served: Served, published: Store, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file handle, no memory: told in the heartbeat, counted once each, tried until it goes well."""
    errors = [OSError(errno.EMFILE, "no handle"), OSError(errno.EMFILE, "no handle"), MemoryError()]
    load = snapshots.load_warm

    def load_warm(folder: Path, digest: str, note: Path) -> Snapshot:
        if errors:
            raise errors.pop(0)
        return load(folder, digest, note)

    monkeypatch.setattr(snapshots, "load_warm", load_warm)
    monkeypatch.setattr(snapshots, "RETRY_S", (0.2, 0.4))
    published.publish(second)
    await soon(lambda: any("no handle; it is tried again" in text for text in refusals(published)))
    await soon(lambda: serves(served, second) and not refusals(published))
    assert served.plane.metrics._refused._value.get() == 2


async def test_a_worker_that_refuses_leaves_a_shared_port_to_others(store: Store, second: Path) -> None:
    """Without any good snapshot it tells its refusal and does not listen; when one is published it does."""
    place(store, second, truncate)
    async with sharing(store) as address:
        await soon(lambda: any("vector.npy" in text for text in refusals(store)))
        assert not listens(address)
        assert not any(beat.ready for beat in store.state.heartbeats())
        await asyncio.to_thread(store.publish, second)
        await soon(lambda: listens(address))
        await soon(lambda: any(beat.ready and not beat.refusal for beat in store.state.heartbeats()))


async def test_without_any_snapshot_a_shared_port_answers(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing published is nothing refused: it listens, and says once how to publish."""
    async with sharing(store) as address:
        await soon(lambda: listens(address))
        await asyncio.sleep(0.2)  # some more looks at the pointer
    assert caplog.text.count("no snapshot is published yet; publish one with: mantel publish") == 1


async def test_housekeeping_survives_a_file_that_cannot_be_looked_at(served: Served, published: Store) -> None:
    """A tokens.json that the system cannot open changes nothing; the one that comes next is followed."""
    published.state.tokens.symlink_to(published.state.tokens)
    await asyncio.sleep(0.2)  # some looks at it
    assert (await served.get_home("u0000001")).shelves
    published.state.tokens.unlink()
    metadata = bearer(add_principal(published.state, "app", [Role.CLIENT]))
    while (await call(served.channel, GET_HOME, LISTENER, metadata=metadata)).code is not Code.OK:
        assert (await served.get_home("u0000001")).shelves


def test_a_file_of_principals_is_read_again_after_a_passing_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system refuses for a moment is loaded at the next look; broken content is told once."""
    state = State(tmp_path / "state")
    file = IdentityFile(settings_for(state))
    token = add_principal(state, "app", [Role.CLIENT])

    def refuse(*_: object, **__: object) -> Identities:
        raise InvalidInput(("tokens.json", "cannot be read")) from OSError(errno.EMFILE, "no handle")

    with monkeypatch.context() as patch:
        patch.setattr(wiring, "load_identities", refuse)
        for _ in range(2):
            with pytest.raises(InvalidInput):
                file.reload()
    file.reload()
    assert file().identify(bearer(token), {}).name == "app"
    state.tokens.write_text("[{")
    with pytest.raises(InvalidInput):
        file.reload()
    file.reload()
    assert file().identify(bearer(token), {}).name == "app"


async def test_a_worker_ends_with_its_background_work(published: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where heartbeats, batches or housekeeping end, the port is closed and the process ends with the error."""
    beat = State.beat

    def fail(state: State, heartbeat: Heartbeat) -> None:
        if state == published.state:  # and no other server of this process
            raise ValueError("planted")
        beat(state, heartbeat)

    with pytest.raises(RuntimeError, match="a background task of the worker ended") as ended:  # noqa: PT012
        async with serving(published.state, published.url) as served:
            host, port = served.target.split(":")
            monkeypatch.setattr(State, "beat", fail)
            await soon(lambda: not listens((host, int(port))))
    assert str(ended.value.__cause__) == "planted"


async def test_an_emptied_store_is_told(
    served: Served, published: Store, built: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that lost its data answers, but knows nobody: degraded, not cold, until the listeners are back."""
    caplog.set_level(logging.INFO, "mantel.store")
    assert (await served.get_home("nobody")).cold_start
    published.client.flushall()
    page = await served.get_home("u0000001")
    while not page.degraded:
        page = await served.get_home("u0000001")
    assert list(page.degraded_reasons) == [DOWN, UNKNOWN]
    assert not page.cold_start
    await asyncio.sleep(0.2)  # some more looks at the pointer
    published.publish(built)
    while (page := await served.get_home("nobody")).degraded:
        pass
    assert page.cold_start
    assert not (await served.get_home("u0000001")).degraded
    assert [line.rpartition(": ")[2] for line in caplog.messages if "holds every listener" in line] == [
        "no longer",
        "yes",
    ]


async def test_a_store_that_goes_is_told_once(
    served: Served, published: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is looked for."""
    published.client.shutdown(nosave=True)
    assert DOWN in (await served.get_home("u0000001")).degraded_reasons
    await asyncio.sleep(0.3)  # some looks at the pointer
    assert [line for line in caplog.messages if "the store" in line] == ["the store answers: no longer"]


@pytest.mark.parametrize("shared_port", [False, True])
async def test_a_worker_told_to_stop_before_it_listens_ends(published: Store, *, shared_port: bool) -> None:
    """SIGTERM while the first snapshot loads: it ends in order, and no heartbeat stays."""
    plane = data_plane(
        settings_for(published.state), redis_url=published.url, port=0, shared_port=shared_port, metrics=Metrics()
    )
    stop = asyncio.Event()
    running = asyncio.create_task(plane.run(stop))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert not published.state.heartbeats()
