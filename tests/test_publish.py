"""Publishing: what it writes and in which order, killed on its way, two at once, and what it clears away."""

import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from pyarrow import parquet

from features.errors import SnapshotRefused, WrongState
from features.keys import Keys, partition
from features.offline.publish import connect, publish
from features.pointer import read_pointer
from features.state import Heartbeat, State
from tests.conftest import Store, quiet
from tests.damage import flip_a_bit
from tests.operation import PATIENCE_S, digest_of, space_of


def served_by(store: Store) -> str:
    """The digest that the pointer names."""
    return getattr(read_pointer(store.client, store.keys), "digest", "")


def assert_complete(store: Store, folder: Path) -> None:
    """Redis holds exactly the records that stand in a snapshot's folder."""
    table = parquet.read_table(sorted((folder / "listeners").glob("*.parquet")))
    users, frames = table["user_id"].to_pylist(), table["record"].to_pylist()
    assert store.client.mget([store.keys.record(user, space_of(folder)) for user in users]) == frames
    assert len(keys_of(store, folder)) == len(users)


def keys_of(store: Store, folder: Path) -> set[str]:
    """The keys of a snapshot's space."""
    return {key.decode() for key in store.client.scan_iter(store.keys.records_pattern(space_of(folder)))}


@contextmanager
def publishing(
    folder: Path, store: Store, *, state: State | None = None, until: tuple[str, int] | None = None, keep: bool = True
) -> Iterator[tuple[SpawnProcess, Connection]]:
    """A process that publishes; until a stage has come so far, then it waits to be sent something."""
    mine, its = multiprocessing.Pipe()
    task = (folder, state or store.state, store.url, until, keep, its)
    process = multiprocessing.get_context("spawn").Process(target=_publish, args=task)
    process.start()
    try:
        if until:
            assert mine.poll(PATIENCE_S)
        yield process, mine
    finally:
        process.kill()
        process.join()
        mine.close()
        its.close()


def _publish(folder: Path, state: State, url: str, until: tuple[str, int] | None, keep: bool, told: Connection) -> None:
    def progress(stage: str, done: int, _: int) -> None:
        if (stage, done) == until:
            told.send("so far")
            told.recv()

    with connect(url) as client:
        publish(folder, state, client, Keys(), progress=progress, keep_records=keep)


def ends_well(process: SpawnProcess) -> bool:
    """Whether a process ends, and with 0."""
    process.join(PATIENCE_S)
    return process.exitcode == 0


def test_the_pointer_moves_when_every_record_is_there(store: Store, second: Path) -> None:
    """While listeners load nothing is served; then every record stands under its key, and the pointer names all."""
    seen = []

    def progress(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        assert not served_by(store)

    report = publish(second, store.state, store.client, store.keys, progress=progress, keep_records=True)
    assert [done for stage, done, _ in seen if stage == "listeners"] == [100, 200, 300, 400, 500]
    assert (report.loaded, report.listeners, report.pointer.digest) == (500, 500, digest_of(second))
    assert served_by(store) == digest_of(second)
    assert_complete(store, second)


def test_every_key_of_a_listener_carries_the_partition(published: Store, built: Path) -> None:
    """Records are named `mantel:{p}:r:<space>:<user>`; beside them stand the pointer and the spaces, nothing else."""
    keys = {key.decode() for key in published.client.scan_iter()}
    assert keys - keys_of(published, built) == {"mantel:pointer", "mantel:spaces"}
    for key in keys_of(published, built):
        found = re.fullmatch(rf"mantel:\{{(\d+)\}}:r:{space_of(built)}:(u\d{{7}})", key)
        assert found
        assert int(found[1]) == partition(found[2]) < 64


@pytest.mark.parametrize(
    ("stage", "done", "rest"), [("copy", 0, 500), ("listeners", 200, 400), ("listeners", 500, 100)]
)
def test_a_killed_publish_changes_nothing_and_goes_on(
    published: Store, built: Path, second: Path, stage: str, done: int, rest: int
) -> None:
    """Kill -9 on the way: the old snapshot is served; run again it loads what is missing, part by part, and ends."""
    with publishing(second, published, until=(stage, done)) as (process, _):
        process.kill()
    assert served_by(published) == digest_of(built)
    assert published.publish(second).loaded == rest
    assert served_by(published) == digest_of(second)
    assert_complete(published, second)
    assert_complete(published, built)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["one state directory", "two state directories"])
def test_two_snapshots_published_at_once(
    store: Store, tmp_path: Path, variants: list[Path], *, elsewhere: bool
) -> None:
    """Both succeed, one after the other: the pointer names one and remembers the other, and both are complete."""
    one, two, *_ = variants
    another = State(tmp_path / "another") if elsewhere else store.state
    with (
        publishing(one, store, until=("verify", 0)) as (first, go),
        publishing(two, store, state=another) as (last, _),
    ):
        go.send("go")
        assert ends_well(first)
        assert ends_well(last)
    pointer = read_pointer(store.client, store.keys)
    assert pointer is not None
    assert {pointer.digest, pointer.before[0].digest} == {digest_of(one), digest_of(two)}
    assert pointer.sequence == 2
    for folder in (one, two):
        assert_complete(store, folder)


def test_one_snapshot_published_twice_at_once(store: Store, second: Path, tmp_path: Path) -> None:
    """The one that waits finds everything there, although the other has deleted the records meanwhile."""
    folder = shutil.copytree(second, tmp_path / "snapshot")
    with (
        publishing(folder, store, until=("listeners", 300), keep=False) as (first, go),
        publishing(folder, store, keep=False) as (last, _),
    ):
        go.send("go")
        assert ends_well(first)
        assert ends_well(last)
    assert not (folder / "listeners").exists()
    assert_complete(store, second)
    pointer = read_pointer(store.client, store.keys)
    assert pointer is not None
    assert (pointer.digest, pointer.sequence, pointer.before) == (digest_of(second), 2, ())


def test_a_space_that_loads_is_not_cleared_away(
    store: Store, tmp_path: Path, variants: list[Path], built: Path
) -> None:
    """Four publishes elsewhere while one loads: its records stay, and it ends with all of them."""
    one, *others = variants
    with publishing(one, store, state=State(tmp_path / "another"), until=("listeners", 500)) as (process, go):
        for folder in (built, *others):
            store.publish(folder)
        go.send("go")
        assert ends_well(process)
    assert served_by(store) == digest_of(one)
    assert_complete(store, one)


def test_a_published_snapshot_never_changes(published: Store, built: Path, tmp_path: Path) -> None:
    """Its files are copies that nobody may write; a source that was altered since its build is refused."""
    copy = published.state.snapshots / digest_of(built)
    for path in copy.iterdir():
        assert path.stat().st_mode & 0o777 == 0o444
        assert not path.samefile(built / path.name)
    altered = shutil.copytree(built, tmp_path / "altered")
    flip_a_bit(altered)
    with pytest.raises(SnapshotRefused, match=r"index\.faiss"):
        published.publish(altered)
    assert served_by(published) == digest_of(built)


def test_three_snapshots_are_kept_and_those_in_use(store: Store, built: Path, variants: list[Path]) -> None:
    """Beyond three only what a heartbeat names stays, with its space; the keys of others are never touched."""
    space = space_of(variants[0])
    foreign = {
        f"other:{{1}}:r:{space}:u1",
        "mantel:{1}:s:u1",
        "mantel:{1}:p:u1",
        f"mantel:{{1}}:r:{space}x:u1",
        "session",
    }
    store.client.mset(dict.fromkeys(foreign, b"mine"))
    store.publish(built)
    now = time.time()
    store.state.beat(Heartbeat(pid=os.getpid(), digest=digest_of(built), started_at=now, seen_at=now))
    for folder in variants:
        store.publish(folder)
    kept = {path.name for path in store.state.snapshots.iterdir()}
    assert kept == {digest_of(built), *map(digest_of, variants[1:])}
    assert not keys_of(store, variants[0])
    for folder in (built, *variants[1:]):
        assert_complete(store, folder)
    store.state.stop_beating(os.getpid())
    assert store.publish(variants[-1]).collected == (digest_of(built),)
    assert not keys_of(store, built)
    assert store.client.hlen(store.keys.spaces) == 3
    assert store.client.mget(sorted(foreign)) == [b"mine"] * len(foreign)


def test_what_a_killed_publish_left_is_cleared_away(published: Store, second: Path) -> None:
    """Ten minutes after it died, the records that it loaded and its half copy go with the next publish."""
    with publishing(second, published, until=("listeners", 200)) as (process, _):
        process.kill()
    half = published.state.snapshots / f".{digest_of(second)}.1"
    (published.state.snapshots / digest_of(second)).rename(half)
    assert keys_of(published, second)
    again = next(iter(published.state.snapshots.glob("[0-9a-f]*")))
    published.publish(again)
    assert half.exists()
    os.utime(half, (1, 1))
    spaces = published.client.hget(published.keys.spaces, space_of(second))
    told = json.loads(spaces) | {"touched_at": 1.0}  # type: ignore[arg-type]  # not awaited
    published.client.hset(published.keys.spaces, space_of(second), json.dumps(told))
    published.publish(again)
    assert not keys_of(published, second)
    assert not half.exists()


def test_records_are_deleted_once_published(store: Store, second: Path, tmp_path: Path) -> None:
    """Published again the folder needs them no more; on an empty Redis the refusal says to build it again."""
    folder = shutil.copytree(second, tmp_path / "snapshot")

    def go() -> int:
        return publish(folder, store.state, store.client, store.keys, progress=quiet).loaded

    assert go() == 500
    assert not (folder / "listeners").exists()
    assert go() == 0
    assert_complete(store, second)
    store.client.flushall()
    with pytest.raises(WrongState, match="build the snapshot again"):
        go()
    assert not served_by(store)
