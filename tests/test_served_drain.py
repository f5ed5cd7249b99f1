"""Draining served pages: every field as a table, each page once whatever ends a run, nothing of the forgotten."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from features.forgetting import tombstone
from features.keys import item_keys, partition
from features.offline import served as served_
from features.offline.served import ServedReport, drain_served
from features.samples import samples_in
from features.served_files import ServedFiles, closed_files
from features.served_frames import PAGES, Frame
from features.served_pages import Arm, Block, Organic, Page, Placement, Timing, Versions, encode_block
from features.state import State
from tests.books import BY_FILE, UNCAPPED, applied
from tests.conftest import Store, quiet, serving
from tests.operation import mantel

if TYPE_CHECKING:
    from collections.abc import Callable

DAY_MS = 86_400_000
START_MS = 1_793_491_200_000  # 2026-11-01


def made(rng: np.random.Generator, first: int, count: int) -> Block:
    """A block of pages with 0 to 4 shelves of 1 to 12 items; every third shelf was changed by promotion."""
    shelves = rng.integers(0, 5, count)
    counts = rng.integers(1, 13, int(shelves.sum())).astype(np.uint8)
    starts, items = np.cumsum(counts) - counts, int(counts.sum())
    changed = range(0, len(counts), 3)
    return Block(
        pages=[_page(rng, first + number, int(shelves[number])) for number in range(count)],
        versions=[Versions("s", "e", "p", "f", "full")],
        stages=["draw", "score"],
        batches=[Timing(3, 100, [4, 5])],
        arms=[Arm("l", "e1", "a", "bucket"), Arm("m", "e2", "b", "override")],
        shelves=[f"shelf-{number}" for number in rng.integers(0, 9, len(counts))],
        counts=counts,
        item_keys=rng.integers(0, 2**64, items, np.uint64),
        scores=rng.random(items, np.float32),
        propensities=[(int(starts[shelf]), 0.25) for shelf in changed],
        placements=[Placement(int(starts[shelf]), f"c{shelf}", 7) for shelf in changed],
        organic=[Organic(shelf, int(counts[shelf])) for shelf in changed],
        organic_keys=rng.integers(0, 2**64, int(counts[list(changed)].sum()), np.uint64),
    )


def _page(rng: np.random.Generator, number: int, shelves: int) -> Page:
    at = START_MS + int(rng.integers(2 * DAY_MS))
    user = f"u{rng.integers(30)}"
    return Page(
        f"p{number}",
        f"p{number}",
        at,
        user,
        "home",
        7,
        "GB",
        "phone",
        "en",
        0,
        0,
        0,
        1,
        shelves,
        2,
        3,
        "0,1",
        "STORE_DOWN",
    )


def write(state: State, blocks: list[Block], *, each: int = 3) -> None:
    """Writes blocks into closed files of the log, so many in each."""
    for start in range(0, len(blocks), each):
        files = ServedFiles(state.served_pages, bytes_max=10**9, age_s=1e9, dropped=lambda _: None)
        for block in blocks[start : start + each]:
            files.write(Frame(PAGES, len(block.pages), encode_block(block)))
        files.close()


def some(count: int, seed: int = 1) -> list[Block]:
    """Blocks with a thousand pages or so, each with its own id."""
    rng = np.random.default_rng(seed)
    return [made(rng, 100 * number, int(rng.integers(1, 40))) for number in range(count)]


def drained(store: Store, out: Path) -> ServedReport:
    """Drains, to the end."""
    return drain_served(store.client, store.keys, store.state, out, progress=quiet)


def rows(out: Path, table: str) -> pl.DataFrame:
    """One of the two tables, with the day as a column."""
    return pl.read_parquet(out / table / "day=*" / "part-*.parquet", hive_partitioning=True)


def ids(out: Path) -> list[str]:
    """The ids of the pages that were drained, sorted."""
    return sorted(rows(out, "pages")["page_id"].to_list())


def ids_of(blocks: list[Block]) -> list[str]:
    """The ids of the pages of blocks, sorted."""
    return sorted(page.page_id for block in blocks for page in block.pages)


def forget(store: Store, user: str, at: float) -> None:
    """Leaves a tombstone."""
    store.client.hset(store.keys.forgotten(partition(user)), tombstone(user), at)


def test_every_field_becomes_a_column(store: Store, tmp_path: Path) -> None:
    """40 drawn blocks: pages, shelves, items, placements, propensities and slates, each on its day."""
    blocks, out = some(40), tmp_path / "out"
    write(store.state, blocks)
    report = drained(store, out)
    assert report == ServedReport(pages=len(ids_of(blocks)), items=sum(len(block.item_keys) for block in blocks))
    assert not closed_files(store.state.served_pages)
    pages = {row["page_id"]: row for row in rows(out, "pages").to_dicts()}
    items = rows(out, "served").sort("page_id", "shelf_place", "place")
    by_page = {key[0]: group.to_dicts() for key, group in items.partition_by("page_id", as_dict=True).items()}
    for block in blocks:
        shelf, item, slates = 0, 0, iter(np.split(block.organic_keys, np.cumsum([one.items for one in block.organic])))
        placed, drawn = {one.item: one for one in block.placements}, dict(block.propensities)
        changed = {one.shelf for one in block.organic}
        for page in block.pages:
            row = pages[page.page_id]
            assert row["served_at"] == datetime.fromtimestamp(page.served_ms / 1000, UTC)
            assert str(row["day"]) == str(row["served_at"].date())
            assert (row["user_id"], row["market"], row["snapshot"], row["preset"]) == (page.user_id, "GB", "s", "full")
            assert (row["degraded"], row["batch_size"], row["read_us"]) == (["STORE_DOWN"], 3, 100)
            assert row["stages_us"] == [{"stage": "draw", "us": 4}, {"stage": "score", "us": 5}]
            assert row["arms"] == [one._asdict() for one in block.arms]
            assert row["shelves"] == block.shelves[shelf : shelf + page.shelves]
            found, slate = iter(by_page.get(page.page_id, [])), []
            for place_of_shelf in range(page.shelves):
                for place in range(int(block.counts[shelf])):
                    one = next(found)
                    assert (one["shelf_place"], one["place"]) == (2 + place_of_shelf, 3 + place)
                    assert (one["shelf"], one["item_key"]) == (block.shelves[shelf], int(block.item_keys[item]))
                    assert (one["score"], one["propensity"]) == (float(block.scores[item]), drawn.get(item, 1.0))
                    assert one["campaign"] == (placed[item].campaign if item in placed else None)
                    assert one["organic_rank"] == (placed[item].organic_rank if item in placed else None)
                    assert (one["user_id"], one["arms"]) == (page.user_id, ["e1/a"])
                    item += 1
                if shelf in changed:
                    slate.append({"shelf": block.shelves[shelf], "item_keys": next(slates).tolist()})
                shelf += 1
            assert next(found, None) is None
            assert row["organic"] == slate


@pytest.mark.parametrize("step", ["write_part", "_note", "write_whole", "unlink"])
def test_a_page_counts_once_wherever_a_run_ends(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A run that dies at any call of a step, again and again: when one comes through, each page is there once."""
    blocks, out = some(12), tmp_path / "out"
    write(store.state, blocks)
    monkeypatch.setattr(served_, "ROUND_BYTES", 100_000)
    target: Any = Path if step == "unlink" else served_
    real: Callable[..., Any] = getattr(target, step)
    for survived in range(40):
        calls = iter(range(survived + 1))

        def dying(*args: Any, calls: Any = calls, **options: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(*args, **options)

        monkeypatch.setattr(target, step, dying)
        try:
            drained(store, out)
        except KeyboardInterrupt:
            continue
        finally:
            monkeypatch.setattr(target, step, real)
        break
    drained(store, out)
    assert ids(out) == ids_of(blocks)
    assert rows(out, "served").height == sum(len(block.item_keys) for block in blocks)


DRAIN = """
import sys
from pathlib import Path
import redis
from features.keys import Keys
from features.offline import served
from features.state import State
served.ROUND_BYTES = 60_000
client = redis.Redis.from_url(sys.argv[3])
print("begun", flush=True)
served.drain_served(client, Keys(), State(Path(sys.argv[1])), Path(sys.argv[2]), progress=lambda *_: None)
print("ended", flush=True)
"""


def test_a_page_counts_once_when_runs_are_killed(store: Store, tmp_path: Path) -> None:
    """`kill -9` of run after run, each a little later, then one that comes through: each page once."""
    blocks, out = some(60), tmp_path / "out"
    write(store.state, blocks, each=2)
    for patience in range(6):
        words = [sys.executable, "-c", DRAIN, str(store.state.path), str(out), store.url]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == "begun\n"
            time.sleep(0.01 + 0.03 * patience)
            run.send_signal(signal.SIGKILL)
    drained(store, out)
    assert ids(out) == ids_of(blocks)
    assert rows(out, "served").height == sum(len(block.item_keys) for block in blocks)


def test_pages_of_the_forgotten_stay_out(store: Store, tmp_path: Path) -> None:
    """What was served before a listener was forgotten, to the millisecond, is not drained; what came after is."""
    blocks, out = some(40), tmp_path / "out"
    write(store.state, blocks)
    noon = START_MS // 1000 + 43_200
    for user in ("u1", "u2", "u3"):
        forget(store, user, noon)
    report = drained(store, out)
    of_them = [page for block in blocks for page in block.pages if page.user_id in {"u1", "u2", "u3"}]
    before = {page.page_id for page in of_them if page.served_ms <= noon * 1000}
    assert 0 < len(before) < len(of_them)
    assert report.forgotten == len(before)
    assert ids(out) == sorted(set(ids_of(blocks)) - before)
    assert not before & set(rows(out, "served")["page_id"].to_list())


def test_a_round_that_was_left_forgets_who_was_forgotten_since(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run dies after its parts; a listener is forgotten; the next run leaves no part in which they are."""
    blocks, out = [made(np.random.default_rng(1), 0, 1)], tmp_path / "out"
    write(store.state, blocks)
    notes = iter([served_._note])

    def dying(*args: Any) -> None:
        next(notes)(*args)  # StopIteration at the second

    monkeypatch.setattr(served_, "_note", dying)
    with pytest.raises(StopIteration):
        drained(store, out)
    monkeypatch.undo()
    assert ids(out) == ids_of(blocks)
    forget(store, blocks[0].pages[0].user_id, int(time.time()) + 10**8)
    assert drained(store, out).forgotten == 1
    assert not list(out.glob("*/day=*/part-*.parquet"))


def test_what_cannot_be_read_is_counted(store: Store, tmp_path: Path) -> None:
    """An entry of another version beside good ones; a torn tail behind them."""
    (block,) = some(1)
    files = ServedFiles(store.state.served_pages, bytes_max=10**9, age_s=1e9, dropped=lambda _: None)
    for body in (encode_block(block), b"another version"):
        files.write(Frame(PAGES, 1, body))
    files.close()
    (path,) = closed_files(store.state.served_pages)
    with path.open("ab") as file:
        file.write(b"MSL1torn")
    report = drained(store, tmp_path / "out")
    assert (report.pages, report.unreadable) == (len(block.pages), 1)


async def test_served_pages_join_with_what_was_answered(published: Store, tmp_path: Path) -> None:
    """The command, against a server that ran: page ids, items and arms of the tables are those of the responses."""
    applied(published, BY_FILE, UNCAPPED)
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        answers = await asyncio.gather(*(one.get_home(f"u00000{number:02}") for number in range(20)))
    out = tmp_path / "out"
    done = await asyncio.to_thread(
        mantel, "events", "drain", "--out", str(out), "--state", str(published.state.path), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["served"]["pages"] == 20
    items = rows(out, "served")
    for answer in answers:
        own = items.filter(pl.col("page_id") == answer.request_id).sort("shelf_place", "place")
        wanted = item_keys(item.item_id for shelf in answer.shelves for item in shelf.items)
        assert own["item_key"].to_list() == wanted.tolist()
        assert own["arms"][0].to_list() == [f"{arm.experiment}/{arm.arm}" for arm in answer.assignments]
    assert {path.stat().st_mode & 0o077 for path in (out / "served", out / "pages")} == {0}


async def test_samples_of_the_forgotten_are_dropped(published: Store, tmp_path: Path) -> None:
    """After the drain no file under the state directory's log names a listener who was forgotten; others' stay."""
    marker = "marker-7c2d"
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        for user in (marker, "u0000001", marker, "u0000002"):
            await one.get_home(user)
    forget(published, marker, time.time())
    report = drained(published, tmp_path / "out")
    assert report.forgotten == 4  # two pages, two samples
    assert [one.user_id for one in samples_in(published.state.served_samples) if one] == ["u0000001", "u0000002"]
    for folder in (published.state.path / "served", tmp_path / "out"):
        for path in folder.rglob("*"):
            assert not path.is_file() or marker.encode() not in path.read_bytes()
    again = drained(published, tmp_path / "out")
    assert again.forgotten == 0
