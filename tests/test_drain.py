"""Draining: every field comes back, every event once, whatever ends a run in between."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.event_store import EventStore
from features.events import Event, Seen
from features.keys import Keys, hash64
from features.offline import drain as drain_
from features.offline import event_table, listens
from features.offline.drain import DrainReport, drain
from features.offline.listening import open_listening
from features.offline.publish import connect
from features.recent_state import Did
from tests.conftest import Store, quiet
from tests.operation import eventually, mantel
from tests.recording import in_streams

NOW_MS = int(time.time() * 1000)
HOUR_MS = 3_600_000


def made(number: int, rng: random.Random) -> Event:
    """An event of the last two days, half of them seen on a page, of which some name no item."""
    item = f"i:{rng.randrange(30)}"
    where = Seen(
        page=f"{rng.getrandbits(64):016x}",
        at=NOW_MS // 1000 - rng.randrange(1000),
        shelf=rng.randrange(50),
        place=rng.randrange(200),
        item_key=hash64(item),
        arms=tuple(rng.getrandbits(32) for _ in range(rng.randrange(3))),
    )
    seen = where if rng.random() < 0.5 else None
    return Event(
        event_id=f"e{number}",
        user_id=f"u{rng.randrange(50)}",
        did=rng.choice(list(Did)),
        item_id="" if seen is not None and rng.random() < 0.2 else item,
        occurred_ms=NOW_MS - rng.randrange(47 * HOUR_MS),
        played_ms=rng.randrange(300_000),
        session_id=rng.choice(["", "s1", "s-2"]),
        whole_artist=rng.random() < 0.1,
        seen=seen,
    )


def some(count: int, seed: int = 1) -> list[Event]:
    """Events, each with its own id."""
    rng = random.Random(seed)
    return [made(number, rng) for number in range(count)]


async def take(store: Store, events: list[Event]) -> list[bool]:
    """Records events as a worker does; answers which are new."""
    taker = EventStore(store.url, store.keys, timeout_s=10.0, stream_max=100_000, recent_s=1000)
    (told,) = await taker.record([events])
    await taker.close()
    assert isinstance(told, list), told
    return told


def drained(store: Store, out: Path) -> DrainReport:
    """Drains, to the end."""
    return drain(store.client, store.keys, out, progress=quiet)


def rows(out: Path) -> pl.DataFrame:
    """All that lies in a drain's directory, with the day as a column."""
    return pl.read_parquet(out / "day=*" / "part-*.parquet", hive_partitioning=True)


def found(out: Path) -> list[Event]:
    """The events that lie in a drain's directory, by id."""
    said = (
        rows(out).with_columns(pl.col("occurred_at").dt.timestamp("ms")).sort(pl.col("event_id").str.slice(1).cast(int))
    )
    return [
        Event(
            event_id=row["event_id"],
            user_id=row["user_id"],
            did=Did[row["kind"].upper()],
            item_id=row["item_id"],
            occurred_ms=row["occurred_at"],
            played_ms=row["played_ms"],
            session_id=row["session_id"],
            whole_artist=row["whole_artist"],
            seen=_seen(row),
        )
        for row in said.to_dicts()
    ]


def _seen(row: dict[str, Any]) -> Seen | None:
    if row["page_id"] is None:
        return None
    return Seen(
        page=row["page_id"],
        at=int(row["served_at"].timestamp()),
        shelf=row["shelf"],
        place=row["place"],
        item_key=row["item_key"],
        arms=tuple(row["arms"]),
    )


async def test_every_field_comes_back(store: Store, tmp_path: Path) -> None:
    """2,000 events of all kinds, in the folder of the day on which they occurred; the streams are empty afterwards."""
    events = some(2000)
    assert all(await take(store, events))
    out = tmp_path / "out"
    report = drained(store, out)
    assert (report.read, report.written, report.repeated, report.unreadable) == (2000, 2000, 0, 0)
    assert found(out) == events
    said = rows(out)
    named = said.filter(pl.col("item_id") != "")
    assert named["item_key"].to_list() == [hash64(item_id) for item_id in named["item_id"]]
    assert (said["day"].cast(pl.String()) == said["occurred_at"].dt.strftime("%F")).all()
    assert said["recorded_at"].is_between(datetime.fromtimestamp(NOW_MS / 1000, UTC), datetime.now(UTC)).all()
    assert sorted(f"day={day}" for day in report.days) == sorted(path.name for path in out.glob("day=*"))
    assert in_streams(store.client, store.keys) == 0


async def test_an_event_counts_once_after_redis_has_forgotten_it(store: Store, tmp_path: Path) -> None:
    """What is recorded anew within 48 hours, alone or twice in one backlog, is known from the data."""
    events, out = some(300), tmp_path / "out"
    await take(store, events)
    drained(store, out)
    for _ in range(2):
        for name in store.client.scan_iter("*:seen:*"):
            store.client.delete(name)
        assert all(await take(store, events))
    report = drained(store, out)
    assert (report.read, report.written, report.repeated) == (600, 0, 600)
    assert found(out) == events


def before(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """A function whose call of that number never begins."""
    return _failing(function, number, late=False)


def after(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """A function whose call of that number is its last deed."""
    return _failing(function, number, late=True)


def _failing(function: Callable[..., Any], number: int, *, late: bool) -> Callable[..., Any]:
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not late:
            raise KilledError
        answer = function(*args, **kwargs)
        if calls == number:
            raise KilledError
        return answer

    return called


class KilledError(Exception):
    """Stands for the end of the process."""


STEPS: list[tuple[Any, str, int]] = [
    (drain_, "_trim", 1),
    (drain_, "_next", 1),
    *((event_table, "write_part", number) for number in range(1, 4)),
    *((event_table, "sync_entry", number) for number in range(1, 8)),
    (drain_, "_write_progress", 1),
    (drain_, "_trim", 2),
    (drain_, "_next", 2),
    (event_table, "write_part", 5),
    (drain_, "_write_progress", 2),
    (drain_, "_trim", 3),
    (listens, "_write_day", 1),
    (listens, "sync_entry", 1),
]


@pytest.mark.parametrize("when", [before, after])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step[1]}-{step[2]}")
async def test_a_drain_that_ends_anywhere_loses_and_repeats_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str, int], when: Any
) -> None:
    """Ended before or after any step, with events that come meanwhile: the next run has every event once."""
    events, out = some(400), tmp_path / "out"
    await take(store, events[:300])
    with monkeypatch.context() as patch:
        patch.setattr(drain_, "ROUND", 5)
        module, name, number = step
        patch.setattr(module, name, when(getattr(module, name), number))
        with pytest.raises(KilledError):
            drained(store, out)
    await take(store, events[200:])
    drained(store, out)
    assert found(out) == events
    assert in_streams(store.client, store.keys) == 0
    assert_listens(out)
    assert not list(out.rglob(".*"))


def _drain_slowly(url: str, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, connect(url) as client:
        patch.setattr(drain_, "ROUND", 3)
        drain(client, Keys(), out, progress=quiet)


async def test_a_drain_that_is_killed_at_any_time(store: Store, tmp_path: Path) -> None:
    """Kill -9 of 12 runs on their way: the data hold every event once."""
    events, out, rng = some(4000), tmp_path / "out", random.Random(3)
    await take(store, events)
    for _ in range(12):
        process = get_context("spawn").Process(target=_drain_slowly, args=(store.url, out))
        process.start()
        begun = len(list(out.glob("day=*/part-*")))
        eventually(lambda: len(list(out.glob("day=*/part-*"))) > begun or not process.is_alive())  # noqa: B023
        await asyncio.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
    drained(store, out)
    assert found(out) == events


async def test_progress_in_another_redis_is_not_gone_by(store: Store, tmp_path: Path) -> None:
    """A Redis that was emptied begins its ids anew: what it holds is read, be its ids lower than those drained."""
    events, out = some(100), tmp_path / "out"
    await take(store, events[:50])
    drained(store, out)
    store.client.flushall()
    for event in events[50:]:
        store.client.xadd(store.keys.stream(1), {"e": event.to_bytes()}, id="1-*")
    drained(store, out)
    assert found(out) == events


async def test_what_cannot_be_read_is_kept(store: Store, tmp_path: Path) -> None:
    """An entry of a later version, or garbage, lies aside with its id and stops nothing."""
    strange: list[bytes] = [b"", b"[", b"[9]", json.dumps([3, *json.loads(some(1)[0].to_bytes())[1:]]).encode()]
    for raw in strange:
        store.client.xadd(store.keys.stream(7), {"e": raw})
    events, out = some(10), tmp_path / "out"
    await take(store, events)
    assert drained(store, out).unreadable == 4
    assert found(out) == events
    kept = pl.read_parquet(out / "unreadable" / "*.parquet")
    assert (kept["entry"].to_list(), set(kept["stream"])) == (strange, {7})


def assert_listens(out: Path) -> None:
    """The listens are the plays of what has a name: per day, listener and item the plays, or completes where more."""
    said: dict[tuple[str, str], tuple[int, datetime]] = {}
    for (user, item, _), group in rows(out).group_by("user_id", "item_id", "day"):
        heard = group.filter(pl.col("kind").is_in(["play", "complete"]) & (pl.col("item_id") != ""))
        if not heard.is_empty():
            kinds = heard["kind"].to_list()
            count, last = said.get((str(user), str(item)), (0, datetime.fromtimestamp(0, UTC)))
            plays = max(kinds.count("play"), kinds.count("complete"))
            latest: Any = heard["occurred_at"].max()
            said[str(user), str(item)] = (count + plays, max(last, latest))
    table = (
        pl.read_parquet(out / "listens" / "*.parquet")
        .group_by("user_id", "item_id")
        .agg(pl.col("plays").sum(), pl.col("last_played_at").max())
    )
    assert {(user, item): (plays, last) for user, item, plays, last in table.rows()} == said


def copy_items(world: Path, out: Path) -> None:
    """Puts the items of a world beside drained events."""
    items = next(world.glob("items*"))
    (shutil.copytree if items.is_dir() else shutil.copyfile)(items, out / items.name)


async def test_its_listens_are_what_build_reads(store: Store, tmp_path: Path, world: Path) -> None:
    """With items beside them they are a table `listens` without a rejected row."""
    out = tmp_path / "out"
    await take(store, some(1500))
    drained(store, out)
    copy_items(world, out)
    data = open_listening(out)
    table = pl.concat(data.listens())
    assert data.report.rows() == []
    assert (
        table["last_played_at"]
        .is_between(datetime.fromtimestamp(NOW_MS / 1000 - 172_800, UTC), datetime.now(UTC))
        .all()
    )
    plays = rows(out).filter(pl.col("kind") == "play")
    assert table["plays"].sum() >= len(plays)
    assert set(plays["user_id"]) <= set(table["user_id"])
    assert_listens(out)


async def test_the_command_tells_what_it_did(store: Store, tmp_path: Path) -> None:
    """A table for people, JSON for programs; a second drain at the same time is refused."""
    events, out = some(40), tmp_path / "out"
    words = ("events", "drain", "--out", str(out), "--state", str(store.state.path))
    await take(store, events[:30])
    done = mantel(*words)
    assert done.returncode == 0, done.stderr
    assert "30" in done.stdout
    await take(store, events)
    report = json.loads(mantel(*words, "--json").stdout)
    assert (report["written"], report["repeated"]) == (10, 0)
    with store.state.lock("drain", wait=False, held=""):
        refused = mantel(*words)
    assert (refused.returncode, refused.stderr) == (
        1,
        "mantel: another drain is under way on this state directory\n",
    )
    assert found(out) == events


def following(store: Store, out: Path) -> subprocess.Popen[bytes]:
    """A drain that goes on, ten times a second."""
    words = ("events", "drain", "--out", str(out), "--state", str(store.state.path), "--follow", "--every", "0.1")
    return subprocess.Popen([sys.executable, "-m", "server.cli", *words], stdout=subprocess.DEVNULL)


async def test_it_follows_until_it_is_ended(store: Store, tmp_path: Path) -> None:
    """Events of several moments arrive; SIGTERM ends it, and nothing is lost."""
    events, out = some(60), tmp_path / "out"
    with following(store, out) as process:
        for first in range(0, 60, 20):
            await take(store, events[first : first + 20])
            eventually(lambda: in_streams(store.client, store.keys) == 0)
        process.send_signal(signal.SIGTERM)
    drained(store, out)
    assert found(out) == events
