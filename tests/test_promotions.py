"""Promotion at work: disclosed on pages, who is reached, faded feeds, and books that come, go, or are poisoned."""

import asyncio
import json
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from features.preferences import Preferences, encode_preferences
from features.promotion_store import PromotionLedger
from protos.home.v1 import home_pb2, home_pb2_grpc
from ranking.promotions.book import bind, digest_of
from server.promotions import KIND
from tests.conftest import Served, Store, serving
from tests.operation import soon
from tests.promotion_books import EVERYTHING, FEED, applied, confirm, poison, spec_of
from tests.test_explain import explain
from tests.wire import get_home, page_of

USERS = [f"u{number:07}" for number in range(1, 25)]
WHY = {"en": "Because Fugue Records pays", "de-AT": "Weil Fugue Records zahlt"}
SPRING: tuple[dict[str, Any], list[str]] = ({"id": "spring", "why": WHY}, EVERYTHING)
OFF = home_pb2.DEGRADED_REASON_PROMOTIONS_OFF


@pytest_asyncio.fixture(loop_scope="session")
async def served(published: Store) -> AsyncIterator[Served]:
    """The small world, served with one campaign that promotes everything."""
    applied(published, SPRING)
    async with serving(published.state, published.url, placements_flush_s=0.05) as one:
        yield one


async def page(served: Served, user: str, **context: Any) -> home_pb2.GetHomeResponse:
    """A page in one session."""
    request = home_pb2.GetHomeRequest(user_id=user, session_id="s", context=home_pb2.Context(**context))
    return page_of(await get_home(served, request))


def marks(*pages: home_pb2.GetHomeResponse) -> list[home_pb2.PromotionMark]:
    """What is disclosed on pages."""
    items = [item for one in pages for shelf in one.shelves for item in shelf.items]
    return [item.promotion for item in items if item.HasField("promotion")]


def plain(page: home_pb2.GetHomeResponse) -> home_pb2.GetHomeResponse:
    """A page without the version of the promotion book."""
    page.ClearField("promotion_book_version")
    return page


async def pages(served: Served) -> list[home_pb2.GetHomeResponse]:
    """Pages of some listeners, without the version of the book."""
    return [plain(await page(served, user)) for user in USERS]


async def test_what_stands_by_promotion_is_disclosed(served: Served) -> None:
    """Campaign, payer and why on each, in the listener's language; the book's version on the page; no other item."""
    found = [await page(served, user) for user in USERS]
    assert {one.promotion_book_version for one in found} == {served.plane.promotions.version}
    assert len(marks(*found)) > len(USERS)
    assert all(one == home_pb2.PromotionMark(id="spring", payer=FEED.payer, why=WHY["en"]) for one in marks(*found))
    austrian, german = await page(served, USERS[0], locale="de-AT"), await page(served, USERS[0], locale="de")
    assert {one.why for one in marks(austrian)} == {WHY["de-AT"]}
    assert {one.why for one in marks(german)} == {WHY["en"]}
    assert sum(len(shelf.items) for one in found for shelf in one.shelves) > 8 * len(marks(*found))


async def test_what_gave_way_is_told(published: Store) -> None:
    """An item that the page had before there was promotion, and has no more: ExplainHome says what became of it."""
    async with serving(published.state, published.url) as one:
        before = [await page(one, user) for user in USERS]
        book = applied(published, ({"id": "some"}, EVERYTHING[::7]))
        await soon(lambda: one.plane.promotions.version == book.digest)
        told = 0
        for user, organic in zip(USERS, before, strict=True):
            shown = {item.item_id for shelf in (await page(one, user)).shelves for item in shelf.items}
            for shelf in organic.shelves:
                for item in shelf.items:
                    if item.item_id in shown:
                        continue
                    fates = (await explain(one, item.item_id, user_id=user, session_id="s")).fates
                    (its,) = (fate for fate in fates if fate.text.startswith(f"{shelf.id}: "))
                    assert (its.fate, its.stage) == ("gave_way", "promote")
                    assert "gave its place to a promoted item" in its.text
                    told += 1
        assert told > 0


async def test_a_campaign_that_does_not_say_why_gets_a_phrase(published: Store) -> None:
    """It names the payer, in the listener's language."""
    applied(published, ({"id": "own", "payer": "Nachtklang"}, EVERYTHING))
    async with serving(published.state, published.url) as served:
        found = [await page(served, user, locale=locale) for user in USERS[:8] for locale in ("en", "de", "ja")]
        whys = {one.why for one in marks(*found)}
        assert whys == {
            "It fits here, and Nachtklang pays for its place",
            "Es passt hierher, und Nachtklang bezahlt für den Platz",
        }


async def test_more_of_a_shelf_and_given_candidates_are_organic(served: Served) -> None:
    """GetShelf and RankItems promote nothing, and count nothing as eligible; the book in force is named."""
    home: Any = home_pb2_grpc.HomeServiceStub(served.channel)
    for user in USERS[:8]:
        request = home_pb2.GetShelfRequest(user_id=user, shelf_id="picked-for-you", page_size=60)
        found = await home.GetShelf(request, metadata=served.metadata)
        assert found.promotion_book_version == served.plane.promotions.version
        assert not any(item.HasField("promotion") for item in found.shelf.items)
    given = home_pb2.RankItemsRequest(user_id=USERS[0], item_ids=EVERYTHING[:200])
    ranked = await home.RankItems(given, metadata=served.metadata)
    assert not any(item.HasField("promotion") for item in ranked.items)
    assert not served.plane.placements._counts
    assert not served.plane.placements._sending


async def test_the_same_page_in_a_batch_as_alone(served: Served) -> None:
    """24 pages at once are those asked for one by one."""
    alone = [await page(served, user) for user in USERS]
    assert await asyncio.gather(*(page(served, user) for user in USERS)) == alone


async def test_who_may_not_be_promoted_to_gets_the_organic_page(published: Store) -> None:
    """Strangers, who wishes it, whose wishes cannot be read, who plays too little, and whom rules leave out."""
    frame = encode_preferences(Preferences(promotions_off=True))
    published.client.set(published.keys.preferences(USERS[0]), frame)
    published.client.set(published.keys.preferences(USERS[1]), frame[:-1])
    async with serving(published.state, published.url) as bare:
        organic = {user: plain(await page(bare, user)) for user in [*USERS, "stranger"]}
    shut: dict[str, dict[str, Any]] = {
        "plays": {"minimum_plays": 10**9},
        "market": {"markets": ("AQ",)},
        "until": {"until": int(time.time()) - 1},
        "since": {"since": int(time.time()) + 3600},
        "shelves": {"shelves": ("newest",)},
    }
    for rule, fields in shut.items():
        applied(published, ({"id": "shut", **fields}, EVERYTHING))
        async with serving(published.state, published.url) as served:
            for user in USERS:
                found = await page(served, user)
                if rule == "shelves":
                    assert {
                        shelf.kind for shelf in found.shelves if marks(home_pb2.GetHomeResponse(shelves=[shelf]))
                    } <= {"newest"}
                else:
                    assert plain(found) == organic[user], rule
    applied(published, SPRING)
    async with serving(published.state, published.url) as served:
        for user in (*USERS[:2], "stranger"):
            assert plain(await page(served, user)) == organic[user]
        assert marks(*[await page(served, user) for user in USERS[2:]])


async def test_a_silent_feed_fades_to_the_organic_page_within_the_hour(published: Store) -> None:
    """By the clock of the query: in full at first, organic in every field after 60 minutes; one confirmed is back."""
    applied(published, SPRING)
    clock = time.time()
    async with serving(published.state, published.url) as served:
        full = len(marks(*await pages(served)))
    published.client.delete(published.keys.book_pointer(KIND))
    published.state.book(KIND).unlink()
    async with serving(published.state, published.url) as bare:
        organic = await pages(bare)
    applied(published, SPRING)
    counts = []
    for minutes in (0, 14, 40, 58, 60, 600):
        confirm(published, FEED.id, ago_s=60 * minutes + (1 if minutes >= 60 else 0))
        async with serving(published.state, published.url) as served:
            found = await pages(served)
            counts.append(len(marks(*found)))
            if minutes >= 60:
                assert found == organic
    assert time.time() - clock < 600
    assert counts[0] == counts[1] == full > 0
    assert counts[0] >= counts[2] >= counts[3] >= counts[4] == counts[5] == 0


@pytest.mark.parametrize("value", [b"", b"nan", b"1e30", b"-1", b"9" * 30, b"99999999999", None, "list"])
async def test_a_confirmation_that_is_none_promotes_nothing(published: Store, value: Any) -> None:
    """No number, in the future, missing, or the key is of another kind: organic, and told where it is unreadable."""
    applied(published, SPRING)
    published.client.delete(published.keys.confirmations)
    if value == "list":
        published.client.rpush(published.keys.confirmations, "x")
    elif value is not None:
        published.client.hset(published.keys.confirmations, FEED.id, value)
    async with serving(published.state, published.url) as served:
        assert not marks(*await pages(served))
        quiet = value in {None, b"99999999999"}
        assert bool(served.plane.promotions.refusal) is not quiet


async def test_a_confirmation_reaches_workers_by_the_next_look(served: Served, published: Store) -> None:
    """Without a new book."""
    confirm(published, FEED.id, ago_s=7200)
    await soon(lambda: served.plane.promotions._confirmed[FEED.id] < time.time() - 7000)
    assert not marks(*await pages(served))
    confirm(published, FEED.id)
    await soon(lambda: served.plane.promotions._confirmed[FEED.id] > time.time() - 7000)
    assert marks(*await pages(served))


def reblobbed(change: Callable[[dict[str, Any]], object]) -> tuple[bytes, dict[str, bytes]]:
    """A book whose campaigns were changed, every name right."""
    book = bind(spec_of(SPRING, ({"id": "autumn"}, EVERYTHING[:3])))
    ledger = json.loads(book.raw)
    lines = [json.loads(line) for line in zlib.decompress(book.blobs[ledger["campaigns"]]).splitlines()]
    change(lines[0])
    blob = zlib.compress(b"\n".join(json.dumps(line).encode() for line in lines))
    ledger["campaigns"] = digest_of(blob)
    return json.dumps(ledger).encode(), {**book.blobs, digest_of(blob): blob}


def rescored(change: Callable[[bytearray], object]) -> tuple[bytes, dict[str, bytes]]:
    """A book whose scores were changed, every name right: 8 bytes, then 4 + 1 + 4 + 1 for each score, then ids."""
    book = bind(spec_of(SPRING))
    ledger = json.loads(book.raw)
    raw = bytearray(zlib.decompress(book.blobs[ledger["scores"]]))
    change(raw)
    blob = zlib.compress(bytes(raw))
    ledger["scores"] = digest_of(blob)
    return json.dumps(ledger).encode(), {**book.blobs, digest_of(blob): blob}


def score_is(value: float) -> Callable[[bytearray], object]:
    """Sets the eighth score."""
    at = 8 + 5 * len(EVERYTHING) + 4 * 7
    return lambda raw: raw.__setitem__(slice(at, at + 4), np.float32(value).tobytes())


def poisons() -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """Books that no worker may take, and what the refusal names."""
    good = bind(spec_of(SPRING))
    ledger = json.loads(good.raw)
    bomb = zlib.compress(b"\0" * (1 << 27))
    return {
        "larger than": (b"[" * 10_000_000, {}),
        "Invalid JSON": (b"\xff\xfe", {}),
        "not in the store": (json.dumps({**ledger, "scores": "0" * 64}).encode(), {}),
        "larger than 67,108,864 bytes inflated": (
            json.dumps({**ledger, "scores": digest_of(bomb)}).encode(),
            {digest_of(bomb): bomb} | dict(good.blobs),
        ),
        "boost": (json.dumps({**ledger, "boost": 1}).encode(), dict(good.blobs)),
        "campaigns[0].share": reblobbed(lambda one: one.update(share=1)),
        "campaigns[0].minimum_plays": reblobbed(lambda one: one.update(minimum_plays="many")),
        "campaigns[0].markets[0]": reblobbed(lambda one: one.update(markets=["XX"])),
        "campaigns[0].feed": reblobbed(lambda one: one.update(feed="none")),
        "campaigns[1].id": reblobbed(lambda one: one.update(id="autumn")),
        "campaigns[0].items[7].score": rescored(score_is(float("nan"))),
        "campaigns[0].items[7].score: must": rescored(score_is(1e30)),
        "campaigns[0].items[7].score: must be a number": rescored(score_is(-0.5)),
        "items: are not those": rescored(lambda raw: raw.__setitem__(slice(8, 12), b"\xff\xff\xff\x7f")),
        "not as long": rescored(lambda raw: raw.append(0)),
        "format": rescored(lambda raw: raw.__setitem__(0, 0)),
    }


async def test_a_poisoned_book_changes_no_page_and_is_told_once(
    served: Served, published: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Straight into Redis under its right name: refused with the path, counted, logged once; the heartbeat says why."""
    before = [await page(served, user) for user in USERS[:6]]
    count = served.plane.metrics._refused_books.labels(KIND)._value
    for number, (named, (raw, blobs)) in enumerate(poisons().items(), 1):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "mantel.promotions"):
            poison(published, raw, blobs)
            await soon(lambda: count.get() == number)  # noqa: B023  # awaited here
            await asyncio.sleep(0.15)  # some more looks at the pointer
        assert named in served.plane.promotions.refusal
        assert count.get() == number, named
        assert len(caplog.records) == 1
        assert [await page(served, user) for user in USERS[:6]] == before
        await soon(lambda: any(beat.promotion_refusal for beat in published.state.heartbeats()))


async def test_a_new_book_is_in_force_within_2_seconds(published: Store) -> None:
    """From none to one, and to one of nothing, at the default of one look a second."""
    async with serving(published.state, published.url, poll_s=1.0) as served:
        assert not (await page(served, USERS[0])).promotion_book_version
        first = applied(published, SPRING)
        async with asyncio.timeout(2):
            await soon(lambda: served.plane.promotions.version == first.digest)
        assert marks(*await pages(served))
        second = applied(published)
        async with asyncio.timeout(2):
            await soon(lambda: served.plane.promotions.version == second.digest)
        assert not marks(*await pages(served))
        await soon(lambda: [beat.promotion_book for beat in published.state.heartbeats()] == [second.digest])


async def test_a_new_snapshot_is_served_with_the_book_from_its_first_page(published: Store, second: Any) -> None:
    """The book is bound to it before it serves."""
    applied(published, SPRING)
    async with serving(published.state, published.url) as served:
        report = published.publish(second)
        snapshots = served.plane.snapshots
        while snapshots.current is None or snapshots.current.digest != report.pointer.digest:  # noqa: ASYNC110
            await asyncio.sleep(0)  # the very first moment
        found = served.plane.promotions.bound_to(snapshots.current)
        assert found is not None
        assert found.snapshot == report.pointer.digest
        assert marks(*await pages(served))


async def test_a_start_without_redis_keeps_campaigns_and_fades_feeds(published: Store) -> None:
    """The last good book comes from the state directory; nobody can say whether its feed was confirmed."""
    applied(published, SPRING, ({"id": "own", "payer": "Nachtklang"}, EVERYTHING))
    async with serving(published.state, published.url) as served:
        version = served.plane.promotions.version
    published.client.shutdown(nosave=True)
    async with serving(published.state, published.url) as served:
        assert served.plane.promotions.version == version
        found = await page(served, USERS[0])
        assert (found.promotion_book_version, marks(found)) == (version, [])  # the listener is not known either


async def test_promotion_is_off_when_nobody_could_look_for_too_long(published: Store) -> None:
    """Then pages are organic and say PROMOTIONS_OFF; not so where there was nothing to promote."""
    applied(published, SPRING)
    async with serving(published.state, published.url, promotions_max_age_s=0.5) as served:
        assert marks(*await pages(served))
        published.client.delete(published.keys.book_pointer(KIND))  # a store that lost its data cannot say
        await asyncio.sleep(0.6)
        after = await pages(served)
        assert not marks(*after)
        assert {tuple(one.degraded_reasons) for one in after} == {(OFF,)}
    applied(published)
    async with serving(published.state, published.url, promotions_max_age_s=0.5) as served:
        published.client.delete(published.keys.book_pointer(KIND))
        await asyncio.sleep(0.6)
        assert not (await page(served, USERS[0])).degraded


async def test_placements_are_counted_by_campaign_and_day(served: Served, published: Store) -> None:
    """Pages that it could stand on and stands on, and items that do; what an engineer asks for does not count."""
    found = [await page(served, user) for user in USERS]
    home: Any = home_pb2_grpc.HomeServiceStub(served.channel)
    explained = home_pb2.ExplainHomeRequest(request=home_pb2.GetHomeRequest(user_id=USERS[0], session_id="s"))
    await home.ExplainHome(explained, metadata=served.metadata)
    wanted = {
        "eligible": len(USERS),
        "pages": sum(bool(marks(one)) for one in found),
        "placed": len(marks(*found)),
    }
    ledger, day = PromotionLedger(published.client, published.keys), time.strftime("%Y-%m-%d", time.gmtime())
    await soon(lambda: ledger.counts(day).get("spring", {}).get("eligible") == wanted["eligible"])
    await asyncio.sleep(0.2)
    assert ledger.counts(day) == {"spring": wanted}
    assert int(published.client.ttl(published.keys.placements(day))) > 30 * 86_400


async def test_counts_wait_for_a_store_that_is_away_and_are_added_once(served: Served, published: Store) -> None:
    """A count that was taken but not answered is sent again, and not counted again."""
    placements, store = served.plane.placements, served.plane.placements._store
    taken, add = [], store.add

    async def cut(count: Any) -> None:
        taken.append(count.id)
        await add(count)
        if taken.count(count.id) < 3:
            placements._metrics.counts_waited()
            raise placements_unavailable

    from features.errors import Unavailable  # noqa: PLC0415

    placements_unavailable = Unavailable("the answer is lost")
    store.add = cut  # type: ignore[method-assign]
    await pages(served)
    await soon(lambda: len(taken) >= 3 and not placements._sending)
    ledger, day = PromotionLedger(published.client, published.keys), time.strftime("%Y-%m-%d", time.gmtime())
    assert ledger.counts(day)["spring"]["eligible"] <= len(USERS)
    await soon(lambda: ledger.counts(day)["spring"]["eligible"] == len(USERS))


async def test_counts_that_are_lost_with_the_process_are_told(
    published: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and in the metrics."""
    applied(published, SPRING)
    async with serving(published.state, published.url, placements_flush_s=1000.0) as served:
        await pages(served)
        published.client.shutdown(nosave=True)
        metrics = served.plane.metrics
    assert metrics._lost_counts._value.get() > 0
    assert any("are lost" in one.getMessage() for one in caplog.records)
