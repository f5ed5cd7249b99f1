"""The log of served pages: what is served is logged, whatever happens to the disk; what is lost is counted."""

import asyncio
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import served_files
from features.keys import item_keys
from features.recent_state import session_of
from features.samples import samples_in
from features.served_files import CLOSED, OPEN, ServedFiles, all_files, closed_files
from features.served_frames import PAGES, Frame, framed, frames_of
from features.served_pages import Arm, Block, Organic, Page, Placement, Timing, Versions, decode_block, encode_block
from protos.home.v1 import home_pb2, home_pb2_grpc
from server import served_log
from server.metrics import Metrics
from tests.books import BY_FILE, UNCAPPED, applied
from tests.conftest import Store, serving
from tests.operation import client_of, eventually, server, soon
from tests.operation import published as publish_into

FRAMES = [Frame(PAGES, number, os.urandom(100 * number)) for number in range(1, 20)]


def blocks_in(folder: Path) -> list[Block]:
    """The blocks of a folder, oldest first."""
    return [decode_block(frame.body) for path in all_files(folder) for frame in frames_of(path.read_bytes())]


def pages_in(folder: Path) -> list[Page]:
    """The pages of a folder, oldest first."""
    return [page for block in blocks_in(folder) for page in block.pages]


def shown(block: Block) -> list[tuple[str, list[tuple[str, list[int], list[float]]]]]:
    """Of each page of a block its id and its shelves, each with item keys and scores."""
    cuts = np.cumsum(block.counts)[:-1]
    keys, scores = np.split(block.item_keys, cuts), np.split(block.scores, cuts)
    shelves = iter(zip(block.shelves, (one.tolist() for one in keys), (one.tolist() for one in scores), strict=True))
    return [(page.page_id, [next(shelves) for _ in range(page.shelves)]) for page in block.pages]


def said(response: home_pb2.GetHomeResponse) -> tuple[str, list[tuple[str, list[int], list[float]]]]:
    """The same of a response."""
    return response.request_id, [
        (shelf.id, item_keys(item.item_id for item in shelf.items).tolist(), [item.score for item in shelf.items])
        for shelf in response.shelves
    ]


async def logged(store: Store, count: int) -> list[Page]:
    """Waits until so many pages are in the log."""
    return await soon(lambda: (found := pages_in(store.state.served_pages)) and len(found) >= count and found)


async def test_every_page_is_logged_as_it_was_shown(published: Store) -> None:
    """40 pages of two surfaces and a shelf, listeners known and not: shelves, items, scores and context come back."""
    book = applied(published, BY_FILE, UNCAPPED)
    users = [*(f"u00000{number:02}" for number in range(35)), *(f"stranger-{number}" for number in range(4))]
    async with serving(published.state, published.url) as one:
        asked = [one.get_home(user, session_id="s1", context={"device": "phone", "market": "GB"}) for user in users]
        answers = await asyncio.gather(*asked)
        request = home_pb2.GetShelfRequest(user_id="u0000001", shelf_id="picked-for-you", page_size=30)
        shelf = await home_pb2_grpc.HomeServiceStub(one.channel).GetShelf(request, metadata=one.metadata)
        explained = home_pb2.ExplainHomeRequest(request=home_pb2.GetHomeRequest(user_id="u0000001"))
        await home_pb2_grpc.HomeServiceStub(one.channel).ExplainHome(explained, metadata=one.metadata)
        digest = one.plane.snapshots.current.digest  # type: ignore[union-attr]
    blocks = blocks_in(published.state.served_pages)
    found = dict(page for block in blocks for page in shown(block))
    wanted = dict(map(said, answers))
    wanted[shelf.request_id] = [
        (
            "picked-for-you",
            item_keys(i.item_id for i in shelf.shelf.items).tolist(),
            [i.score for i in shelf.shelf.items],
        )
    ]
    assert found == wanted
    by_id = {answer.request_id: answer for answer in answers}
    for block in blocks:
        for page in block.pages:
            if page.page_id not in by_id:
                continue
            assert (page.session, page.market, page.device) == (session_of("s1"), "GB", "phone")
            arms = [block.arms[int(number)] for number in page.arms.split(",")]
            assert arms == [Arm(a.layer, a.experiment, a.arm, a.reason) for a in by_id[page.page_id].assignments]
            versions = block.versions[page.versions]
            assert (versions.snapshot, versions.experiments) == (digest, book.digest)
            assert len(block.batches[page.batch].stages) == len(block.stages) > 0
            assert page.cold_start == page.user_id.startswith("stranger")
            assert abs(page.served_ms / 1000 - time.time()) < 600
    assert sorted(page.user_id for page in pages_in(published.state.served_pages)) == sorted([*users, "u0000001"])


async def test_later_parts_are_logged_under_their_page(published: Store) -> None:
    """Pages turned to their end, and a shelf: each part under the id of the page, from where the part before ended."""
    parts: list[tuple[str, int, int, Any]] = []  # page, first shelf, first place, response
    async with serving(published.state, published.url) as one:
        home = home_pb2_grpc.HomeServiceStub(one.channel)
        for user in ("u0000001", "u0000002", "nobody"):
            token, page, first = "", "", 0
            while token or not page:
                answer = await one.get_home(user, page_size=2, page_token=token)
                page, token = page or answer.request_id, answer.next_page_token
                parts.append((page, first, 0, answer.shelves))
                first += len(answer.shelves)
        token, page, first = "", "", 0
        while first < 60:
            asked = home_pb2.GetShelfRequest(
                user_id="u0000001", shelf_id="picked-for-you", page_size=20, page_token=token
            )
            more = await home.GetShelf(asked, metadata=one.metadata)
            page, token = page or more.request_id, more.next_page_token
            parts.append((page, 0, first, [more.shelf]))
            first += len(more.shelf.items)
    found = []
    for block in blocks_in(published.state.served_pages):
        shelves = (each for _, own in shown(block) for each in own)
        for page_ in block.pages:
            own = [next(shelves)[:2] for _ in range(page_.shelves)]
            found.append((page_.page_id, page_.first_shelf, page_.first_place, own))
    wanted = [
        (page, shelf, place, [(s.id, item_keys(item.item_id for item in s.items).tolist()) for s in shelves])
        for page, shelf, place, shelves in parts
    ]
    assert len({page for page, *_ in wanted}) == 4
    assert sorted(found) == sorted(wanted)


def test_a_block_comes_back_in_every_field() -> None:
    """Placements, organic slates, propensities, pages without shelves: what was written is read."""
    page = Page("p1", "r1", 5, "u1", "home", 7, "GB", "a, b", "en", 0, 0, 0, 1, 2, 3, 4, "0,1", "STORE_DOWN")
    block = Block(
        pages=[page, page._replace(page_id="p2", shelves=0, arms="", degraded="", device="", locale="")],
        versions=[Versions("s", "e", "", "f", "full")],
        stages=["a", "b"],
        batches=[Timing(2, 3, [4, 5])],
        arms=[Arm("l", "e", "a", "bucket"), Arm("m", "f", "b", "override")],
        shelves=["one", "two"],
        counts=np.array([2, 1], np.uint8),
        item_keys=np.array([1, 2**64 - 1, 3], np.uint64),
        scores=np.array([0.5, -1.0, np.inf], np.float32),
        propensities=[(1, 0.25)],
        placements=[Placement(2, "c1", 9)],
        organic=[Organic(1, 1)],
        organic_keys=np.array([4], np.uint64),
    )
    again = decode_block(encode_block(block))
    for name in Block.__dataclass_fields__:
        one, other = getattr(again, name), getattr(block, name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, name
    for spoiled in (b"", encode_block(block)[:40], os.urandom(200)):
        with pytest.raises(ValueError, match=r".*"):
            decode_block(spoiled)


def test_a_torn_tail_is_told_from_whole_frames() -> None:
    """Cut or spoiled at any of 300 places: what stands whole before it is read, and nothing else."""
    raw, ends = b"".join(map(framed, FRAMES)), np.cumsum([len(framed(frame)) for frame in FRAMES])
    assert list(frames_of(raw)) == FRAMES
    rng = np.random.default_rng(3)
    for place in rng.integers(0, len(raw), 300).tolist():
        whole = FRAMES[: int(np.searchsorted(ends, place, side="right"))]
        assert list(frames_of(raw[:place])) == whole
        spoiled = bytearray(raw)
        spoiled[place] ^= 0xFF
        assert list(frames_of(bytes(spoiled))) == whole
    assert list(frames_of(raw + bytes(4096))) == FRAMES  # what a file system leaves of a file after a power cut


def test_files_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    """2 MB into a bound of 1.3 MB: never more on disk; what went is counted, page by page; the rest is the latest."""
    lost: list[int] = []
    files = ServedFiles(tmp_path, bytes_max=1_300_000, age_s=1e9, dropped=lost.append)
    for number in range(2000):
        files.write(Frame(PAGES, 1, number.to_bytes(4, "big") + bytes(996)))
        assert sum(path.stat().st_size for path in all_files(tmp_path)) <= 1_300_000
    files.close()
    kept = [int.from_bytes(f.body[:4], "big") for path in all_files(tmp_path) for f in frames_of(path.read_bytes())]
    assert sum(lost) > 500
    assert kept == list(range(sum(lost), 2000))
    assert {path.stat().st_mode & 0o777 for path in all_files(tmp_path)} == {0o600}


def test_a_file_is_closed_when_it_is_old_and_an_empty_one_vanishes(tmp_path: Path) -> None:
    """Closed files are for whoever drains; one that is being written is not, nor is what its living writer holds."""
    files = ServedFiles(tmp_path, bytes_max=10**9, age_s=0.05, dropped=lambda _: None)
    files.write(FRAMES[0])
    assert [path.suffix for path in all_files(tmp_path)] == [OPEN]
    assert closed_files(tmp_path) == []
    time.sleep(0.06)
    files.rotate()
    assert [path.suffix for path in all_files(tmp_path)] == [CLOSED]
    files.rotate()
    files.close()
    assert len(closed_files(tmp_path)) == 1


def test_a_write_that_fails_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full half-way through a frame: the half is cut off, and later frames follow the earlier ones."""
    files = ServedFiles(tmp_path, bytes_max=10**9, age_s=1e9, dropped=lambda _: None)
    files.write(FRAMES[0])

    def half(handle: int, content: bytes) -> None:
        os.write(handle, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(served_files, "_write_whole", half)
    for frame in FRAMES[1:5]:
        with pytest.raises(OSError, match="No space"):
            files.write(frame)
    monkeypatch.undo()
    files.write(FRAMES[5])
    files.close()
    (path,) = closed_files(tmp_path)
    assert list(frames_of(path.read_bytes())) == [FRAMES[0], FRAMES[5]]


def counted(plane_metrics: Metrics, name: str, **labels: str) -> float:
    """A counter's value."""
    return plane_metrics._registry.get_sample_value(name, labels) or 0.0


async def test_a_full_disk_loses_and_counts_and_pages_go_on(published: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC for every write: all pages come, each is counted as lost; with room again, later ones are logged."""

    def full(_handle: int, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(served_files, "_write_whole", full)
    async with serving(published.state, published.url) as one:
        for _ in range(20):
            assert (await one.get_home("u0000001")).shelves
        await soon(lambda: counted(one.plane.metrics, "mantel_served_log_lost_total", kind="page", cause="disk") == 20)
        monkeypatch.undo()
        later = await one.get_home("u0000001")
        await logged(published, 1)
    assert [page.page_id for page in pages_in(published.state.served_pages)] == [later.request_id]


async def test_a_disk_that_hangs_delays_no_page(published: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that never returns: pages come, the queue takes what it holds, the rest is counted."""
    monkeypatch.setattr(served_log, "QUEUE_BYTES", 20_000)
    hanging = [True]

    def hang(handle: int, content: bytes) -> None:
        while hanging:
            time.sleep(0.005)
        os.write(handle, content)

    monkeypatch.setattr(served_files, "_write_whole", hang)
    async with serving(published.state, published.url) as one:
        pages = [await one.get_home("u0000001") for _ in range(60)]
        await soon(lambda: counted(one.plane.metrics, "mantel_served_log_lost_total", kind="page", cause="queue") > 0)
        hanging.clear()
    lost = counted(one.plane.metrics, "mantel_served_log_lost_total", kind="page", cause="queue")
    assert len(pages_in(published.state.served_pages)) == len(pages) - lost


async def test_nothing_is_logged_where_that_is_off(published: Store) -> None:
    """A bound of 0 switches the log off."""
    async with serving(published.state, published.url, served_log_bytes_max=0, replay_sample=1.0) as one:
        await one.get_home("u0000001")
    assert not all_files(published.state.served_pages)
    assert not all_files(published.state.served_samples)


async def test_a_sample_is_decided_by_the_request_id(published: Store) -> None:
    """Of 200 pages about a quarter at .25, those that the log marks as such and no others."""
    async with serving(published.state, published.url, replay_sample=0.25) as one:
        for ten in range(20):
            await asyncio.gather(*(one.get_home(f"u0000{ten:02}{number}") for number in range(10)))
    marked = {page.page_id for page in pages_in(published.state.served_pages) if page.sampled}
    assert {one.page_id for one in samples_in(published.state.served_samples) if one is not None} == marked
    assert 20 < len(marked) < 90
    assert {path.parent.stat().st_mode & 0o777 for path in all_files(published.state.served_samples)} == {0o700}


def test_a_killed_worker_loses_what_it_had_not_written(tmp_path: Path, built: Path) -> None:
    """`kill -9` under load: what was in the log stays there, whole, and the next look closes the file."""
    state = publish_into(tmp_path / "state", built)
    with server(state) as endpoints, client_of(state, endpoints) as client:
        answered = [client.get_home(f"u0000{number:03}", timeout_s=20.0).request_id for number in range(200)]
        before = eventually(lambda: len(found := pages_in(state.served_pages)) >= 100 and found)
        (beat,) = [one for one in state.heartbeats() if one.ready]
        os.kill(beat.pid, signal.SIGKILL)
        eventually(lambda: closed_files(state.served_pages))
        after = pages_in(state.served_pages)
    assert {page.page_id for page in before} <= {page.page_id for page in after} <= set(answered)
    assert len({page.page_id for page in after}) == len(after)
