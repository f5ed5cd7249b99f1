"""Tombstones: what publishing leaves out, and who counts as new."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from pyarrow import parquet

from features.forgetting import forgotten, tombstone
from features.keys import partition
from features.listeners import created_day
from features.preference_store import PreferenceStore
from tests.conftest import Store
from tests.operation import space_of

DAY_S = 86_400


def forget(store: Store, *user_ids: str) -> None:
    """Forgets listeners as the service does."""

    async def all_of_them() -> None:
        preferences = PreferenceStore(store.url, store.keys)
        for user in user_ids:
            await preferences.forget(user)
        await preferences.close()

    asyncio.run(all_of_them())


def loaded(store: Store, folder: Path) -> set[str]:
    """Whose record of a snapshot's space Redis holds."""
    pattern = store.keys.records_pattern(space_of(folder))
    return {key.decode().rpartition(":")[2] for key in store.client.scan_iter(pattern, count=1000)}


def users_of(folder: Path) -> set[str]:
    """Whose record stands in a snapshot's folder."""
    return set(parquet.read_table(sorted((folder / "listeners").glob("*.parquet")))["user_id"].to_pylist())


def test_a_publish_leaves_out_who_was_forgotten(published: Store, built: Path, second: Path) -> None:
    """Erased in the space that is served, not loaded with the next one, in whatever part; all others are."""
    gone = sorted(users_of(built))[::7]
    forget(published, *gone)
    assert loaded(published, built) == users_of(built) - set(gone)
    report = published.publish(second)
    assert loaded(published, second) == users_of(second) - set(gone)
    assert (report.forgotten, report.loaded) == (len(gone), len(users_of(second)) - len(gone))


def test_publishing_the_same_again_brings_nobody_back(published: Store, built: Path) -> None:
    """Also where Redis believes that the space is not loaded yet."""
    forget(published, "u0000001")
    assert published.publish(built).loaded == 0
    published.client.delete(published.keys.spaces)
    assert published.publish(built).forgotten == 1
    assert "u0000001" not in loaded(published, built)


def test_an_account_that_began_later_is_another_one(store: Store, built: Path, records: dict[str, bytes]) -> None:
    """Whose account began on a day after the tombstone's is loaded; on the same day, or unknown, is not."""
    day = created_day(records["u0000001"])
    assert day > 0
    for user, at in (("u0000001", (day - 1) * DAY_S), ("u0000002", created_day(records["u0000002"]) * DAY_S)):
        store.client.hset(store.keys.forgotten(partition(user)), tombstone(user), at)
    store.publish(built)
    assert users_of(built) - loaded(store, built) == {"u0000002"}


@contextmanager
def forgetting_while_written(store: Store, user_id: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has a listener forgotten after a publish has asked who is, and before it writes."""
    asked = Event()
    told: dict[str, float] = {}

    def look(*args: object) -> dict[str, float]:
        found = forgotten(*args)  # type: ignore[arg-type]
        if not asked.is_set():
            asked.set()
            thread = Thread(target=forget, args=(store, user_id))
            thread.start()
            thread.join()
            told.update(found)
        return found

    patch.setattr("features.offline.load.forgotten", look)
    yield
    assert asked.is_set()
    assert user_id not in told


def test_who_is_forgotten_during_a_publish_stays_so(store: Store, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the tombstones and the write: the record does not outlive the publish."""
    with forgetting_while_written(store, "u0000001", monkeypatch):
        assert store.publish(built).forgotten == 1
    assert users_of(built) - loaded(store, built) == {"u0000001"}


def test_the_forgotten_can_be_asked_for(store: Store) -> None:
    """By any number of ids, of every partition; with the time, the latest where it was asked twice."""
    users = [f"listener-{number}" for number in range(3000)]
    forget(store, *users[:3])
    store.client.hset(store.keys.forgotten(partition(users[5])), tombstone(users[5]), 1234)
    found = forgotten(store.client, store.keys, users)
    assert set(found) == {*users[:3], users[5]}
    assert found[users[5]] == 1234
    assert forgotten(store.client, store.keys, []) == {}
