"""Turning pages: the same page to its end, whatever is published or applied, counts or fails meanwhile."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from features.keys import PLAN_S, hash64
from features.plans import decode_plan
from protos.home.v1 import home_pb2, home_pb2_grpc
from server.page_tokens import PageToken, Reader, write_page_token
from server.signing import rotate
from tests.books import BY_FILE, UNCAPPED, applied
from tests.conftest import Served, Store, serving
from tests.test_forgetting import forget
from tests.wire import Status, eventually, get_home

if TYPE_CHECKING:
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub

Code = grpc.StatusCode
PAGING_OFF = home_pb2.DEGRADED_REASON_PAGING_OFF


async def get_shelf(served: Served, user_id: str, **fields: Any) -> home_pb2.GetShelfResponse:
    """Part of a shelf."""
    home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(served.channel)
    request = home_pb2.GetShelfRequest(user_id=user_id, **{"shelf_id": "picked-for-you", **fields})
    return await home.GetShelf(request, metadata=served.metadata)


async def to_the_end(served: Served, user_id: str, size: int, **fields: Any) -> list[home_pb2.GetHomeResponse]:
    """All parts of a page."""
    parts = [await served.get_home(user_id, page_size=size, **fields)]
    while token := parts[-1].next_page_token:
        parts.append(await served.get_home(user_id, page_size=size, page_token=token, **fields))
    return parts


def said(*parts: home_pb2.GetHomeResponse) -> list[tuple[str, str, str, list[tuple[str, float, str]]]]:
    """What a listener sees of a page: headings, reasons and items in their order."""
    return [
        (shelf.id, shelf.title, shelf.reason.text, [(one.item_id, one.score, one.reason.text) for one in shelf.items])
        for part in parts
        for shelf in part.shelves
    ]


async def status_of(served: Served, token: str, **fields: Any) -> Status:
    """How asking for the next part ends."""
    request = home_pb2.GetHomeRequest(**{"user_id": "u0000001", "page_token": token, **fields})
    return await get_home(served, request)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_the_parts_are_the_whole_page(standing: Served, size: int) -> None:
    """To the last word and score: a page in parts is the page in one, for listeners known and unknown."""
    for user in ("u0000001", "u0000002", "nobody"):
        asked: dict[str, Any] = {"session_id": "s", "context": home_pb2.Context(locale="de", market="GB")}
        whole = await standing.get_home(user, **asked)
        parts = await to_the_end(standing, user, size, **asked)
        assert said(*parts) == said(whole)
        assert all(len(part.shelves) == size for part in parts[:-1])
        assert not whole.next_page_token
        told = [(one.cold_start, one.coverage, list(one.notes), list(one.degraded_reasons)) for one in (whole, *parts)]
        assert told.count(told[0]) == len(told)


async def test_a_shelf_goes_on_to_its_end(standing: Served) -> None:
    """In parts of any size it is the shelf in one; each item once, and no more than 200."""
    whole = await get_shelf(standing, "u0000001", page_size=200, session_id="s")
    part = await get_shelf(standing, "u0000001", page_size=7, session_id="s")
    items, sizes = list(part.shelf.items), iter([0, 50, 1, 200])
    while part.next_page_token:
        size = next(sizes)
        part = await get_shelf(standing, "u0000001", page_size=size, page_token=part.next_page_token)
        assert part.shelf.title == whole.shelf.title
        assert len(part.shelf.items) == (size or 12) or not part.next_page_token
        items += part.shelf.items
    assert [(one.item_id, one.score) for one in items] == [(one.item_id, one.score) for one in whole.shelf.items]
    assert not whole.next_page_token
    assert 50 < len({one.item_id for one in items}) == len(items) <= 200


async def test_pages_stand_still_while_all_else_moves(published: Store, variants: list[Path], built: Path) -> None:
    """200 listeners turn pages while snapshots and books are republished: what each sees is what its plan says.

    No repeat and no gap: the parts hold exactly the shelves and items that the first call laid out, in their order.
    """
    async with serving(published.state, published.url) as served:
        stop, versions = asyncio.Event(), set[str]()

        async def republish() -> None:
            folders = [built, *variants]
            for number in range(1000):
                await asyncio.to_thread(published.publish, folders[number % len(folders)])
                await asyncio.to_thread(applied, published, *((BY_FILE, UNCAPPED)[number % 2 :]), seed=number)
                if stop.is_set():
                    return

        async def turn(number: int) -> None:
            user = f"u{number:07d}"
            part = await served.get_home(user, page_size=1 + number % 3, session_id=f"s{number}")
            plan = plan_of(published, user)
            parts = [part]
            while parts[-1].next_page_token:
                await asyncio.sleep(0.05 * (number % 4))
                parts.append(await served.get_home(user, page_size=2, page_token=parts[-1].next_page_token))
            versions.update(one.snapshot_version for one in parts)
            later = [item.item_id for one in parts[1:] for shelf in one.shelves for item in shelf.items]
            assert [hash64(one) for one in later] == ([] if plan is None else plan.keys.tolist())
            shelves = [shelf.id for one in parts for shelf in one.shelves]
            assert len(set(shelves)) == len(shelves) == len(part.shelves) + (0 if plan is None else len(plan.heads))
            assert not any(one.degraded for one in parts)

        moving = asyncio.create_task(republish())
        for first in range(1, 201, 50):
            await asyncio.gather(*map(turn, range(first, first + 50)))
        stop.set()
        await moving
        assert len(versions) > 1


def plan_of(store: Store, user_id: str) -> Any:
    """The one plan that Redis holds for a listener; None where there is none."""
    frames: list[Any] = []
    for name in store.keys.all_of_listener(user_id, ()):
        if b":g" in name.encode():
            found: Any = store.client.hvals(name)
            frames += found
    assert len(frames) <= 1
    return decode_plan(frames[0]) if frames else None


async def test_what_may_not_be_shown_any_more_is_left_out(published: Store) -> None:
    """Nothing else changes: the page in another market, or without explicit items, is the page without those."""
    async with serving(published.state, published.url) as served:
        asked: dict[str, Any] = {"context": home_pb2.Context(market="GB", allow_explicit=True), "session_id": "s"}
        first = await served.get_home("u0000001", page_size=1, **asked)
        rest = await served.get_home("u0000001", page_token=first.next_page_token, **asked)
        clean = home_pb2.Context(allow_explicit=False)
        less = await served.get_home("u0000001", page_token=first.next_page_token, context=clean)
        marked = {item.item_id for shelf in rest.shelves for item in shelf.items if item.explicit}
        assert marked
        kept = [[item.item_id for item in shelf.items if item.item_id not in marked] for shelf in rest.shelves]
        assert [[item.item_id for item in shelf.items] for shelf in less.shelves] == [one for one in kept if one]


@pytest.mark.parametrize("change", ["bit", "user", "surface", "shelf", "length", "alphabet", "bytes"])
async def test_a_token_of_somebody_else_is_refused(standing: Served, change: str) -> None:
    """Every bit of it counts, and for whom it was made: INVALID_ARGUMENT, naming page_token."""
    token = (await standing.get_home("u0000001", page_size=1)).next_page_token
    shelf = (await get_shelf(standing, "u0000001", page_size=1)).next_page_token
    wrong: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "bit": [
            (token[:place] + chr(ord(token[place]) ^ 1 << bit) + token[place + 1 :], {})
            for place in range(len(token))
            for bit in range(7)
        ],
        "user": [(token, {"user_id": "u0000002"}), (token, {"user_id": "u0000001."})],
        "surface": [(token, {"surface": "evaluation"})],
        "shelf": [(shelf, {})],
        "length": [(token[:-1], {}), (token + "A", {}), (token + "AAAA", {}), (token + "=", {})],
        "alphabet": [(token.replace("-", "+").replace("_", "/") + "\n", {}), (" " + token, {})],
        "bytes": [("ü" * 36, {}), ("A" * 36, {}), ("A" * 10_000, {})],
    }
    for text, fields in wrong[change]:
        status = await status_of(standing, text, **fields)
        assert (status.code, status.fields) == (Code.INVALID_ARGUMENT, ("page_token",)), (text, fields)


async def test_a_shelfs_token_is_good_for_that_shelf(standing: Served) -> None:
    """Not for another, nor for the page."""
    token = (await get_shelf(standing, "u0000001", page_size=1)).next_page_token
    assert (await get_shelf(standing, "u0000001", page_token=token)).shelf.items
    home = (await standing.get_home("u0000001", page_size=1)).next_page_token
    for shelf_id, text in (("discover", token), ("picked-for-you", home)):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await get_shelf(standing, "u0000001", shelf_id=shelf_id, page_token=text)
        assert error.value.code() is Code.INVALID_ARGUMENT


async def test_a_page_that_is_gone_is_to_be_started_again(published: Store) -> None:
    """Expired by its token, lost by Redis, altered, or its listener forgotten: FAILED_PRECONDITION that says so."""
    async with serving(published.state, published.url) as served:

        async def fails(token: str) -> None:
            status = await status_of(served, token)
            assert status.code is Code.FAILED_PRECONDITION
            assert "without page_token" in status.text

        key = served.plane.signing().newest
        first = await served.get_home("u0000001", page_size=1)
        now = int(time.time())
        old = PageToken(page=first.request_id, at=now - PLAN_S - 1, offset=1)
        await fails(write_page_token(old, Reader(user_id="u0000001", surface="home"), key))
        (name,) = published.client.scan_iter("mantel:*:g*:u0000001")
        frame: Any = published.client.hget(name, first.request_id)
        published.client.hset(name, first.request_id, frame[:-1] + bytes([frame[-1] ^ 1]))
        await fails(first.next_page_token)
        published.client.hset(name, first.request_id, frame)
        assert (await status_of(served, first.next_page_token)).code is Code.OK
        await asyncio.to_thread(forget, published, "u0000001")
        assert not published.client.exists(name)
        published.client.hset(name, first.request_id, frame)  # as one that was under way
        await fails(first.next_page_token)


async def test_plans_live_for_half_an_hour(published: Store) -> None:
    """And no longer than ten minutes more; Redis itself lets them go."""
    async with serving(published.state, published.url) as served:
        await served.get_home("u0000001", page_size=1)
        (name,) = published.client.scan_iter("mantel:*:g*:u0000001")
        left: Any = published.client.ttl(name)
        assert PLAN_S - 5 < left <= PLAN_S + 600


async def test_a_whole_page_keeps_no_plan(published: Store) -> None:
    """Only what has a next part costs Redis anything."""
    async with serving(published.state, published.url) as served:
        for size in (0, 50):
            page = await served.get_home("u0000001", page_size=size)
            assert not page.next_page_token
        assert not list(published.client.scan_iter("mantel:*:g*"))


async def test_at_the_bound_no_next_part_is_offered(published: Store) -> None:
    """PAGING_OFF, the page itself stands; pages in one are not touched."""
    async with serving(published.state, published.url, plan_bytes_max=4000) as served:
        pages = [await served.get_home("u0000001", page_size=1) for _ in range(6)]
        offered = [bool(page.next_page_token) for page in pages]
        assert offered == sorted(offered, reverse=True)
        assert 0 < sum(offered) < 6
        assert [PAGING_OFF in page.degraded_reasons for page in pages] == [not one for one in offered]
        assert all(len(page.shelves) == 1 and page.degraded != bool(page.next_page_token) for page in pages)
        assert not (await served.get_home("u0000001")).degraded


async def test_without_redis_no_next_part_is_offered(published: Store) -> None:
    """PAGING_OFF beside what else is missing; turning a page is UNAVAILABLE until Redis is back."""
    async with serving(published.state, published.url) as served:
        token = (await served.get_home("u0000001", page_size=1)).next_page_token
        published.client.shutdown(nosave=True)
        page = await served.get_home("u0000001", page_size=1, hidden_ids=["t0000001"])
        assert page.shelves
        assert (PAGING_OFF in page.degraded_reasons, page.next_page_token) == (True, "")
        assert (await status_of(served, token)).code is Code.UNAVAILABLE


async def test_tokens_survive_a_rotation(published: Store) -> None:
    """The key before verifies, the new one signs after a while; after the next rotation the first is refused."""
    async with serving(published.state, published.url) as served:

        async def rotated(after_s: int) -> str:
            before = served.plane.signing().newest.id
            rotate(published.state, None, after_s=after_s, force=True)
            await eventually(lambda: served.plane.signing().newest.id != before)
            return (await served.get_home("u0000001", page_size=1)).next_page_token

        first = (await served.get_home("u0000001", page_size=1)).next_page_token
        second = await rotated(0)
        codes = [(await status_of(served, token)).code for token in (first, second)]
        assert codes == [Code.OK, Code.OK]
        third = await rotated(3600)
        codes = [(await status_of(served, token)).code for token in (first, second, third)]
        assert codes == [Code.INVALID_ARGUMENT, Code.OK, Code.OK]


async def test_another_machine_with_the_same_keys_turns_the_page(published: Store, tmp_path: Path) -> None:
    """Whoever shares the file and the Redis; with keys of its own it refuses the token."""
    async with serving(published.state, published.url) as served:
        token = (await served.get_home("u0000001", page_size=1)).next_page_token
    shared = tmp_path / "shared-keys"
    shutil.copy(published.state.signing_keys, shared)
    published.state.signing_keys.unlink()
    async with serving(published.state, published.url, signing_keys=shared) as served:
        assert (await status_of(served, token)).code is Code.OK
    async with serving(published.state, published.url) as served:
        assert (await status_of(served, token)).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("overridden", [True, False])
async def test_an_experiment_that_ended_does_not_end_its_pages(published: Store, overridden: bool) -> None:
    """A client that repeats its request with the token gets the rest, though the override names nothing any more."""
    applied(published, BY_FILE)
    async with serving(published.state, published.url) as served:
        await eventually(lambda: bool(served.plane.experiments.version))
        forced = [home_pb2.ExperimentOverride(experiment="by-file", arm="treatment")] if overridden else []
        first = await served.get_home("u0000001", page_size=1, experiment_overrides=forced)
        version = served.plane.experiments.version
        applied(published, UNCAPPED)
        await eventually(lambda: served.plane.experiments.version != version)
        rest = await served.get_home("u0000001", page_token=first.next_page_token, experiment_overrides=forced)
        assert [one.experiment for one in rest.assignments] == ["by-file"]
        assert rest.experiment_book_version == first.experiment_book_version
