"""PromotionService over the control port: applying, stale etags, states, confirming, and what is not served yet."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from features.books import LEFT_BEHIND_S
from features.promotion_store import PromotionLedger
from protos.promotions.v1 import promotions_pb2
from ranking.promotions.spec import Spec
from server.identity import Role, add_principal, development_token
from server.promotions import KIND
from tests.conftest import Store
from tests.promotion_books import EVERYTHING, FEED, confirm, poison, said, spec_of
from tests.wire import Status, bearer, call, controlling

Code = grpc.StatusCode
SERVICE = "/mantel.promotions.v1.PromotionService/"
SPRING: tuple[dict[str, Any], list[str]] = (
    {"id": "spring", "why": {"en": "Because"}, "markets": ("GB",)},
    EVERYTHING[:5],
)
AUTUMN: tuple[dict[str, Any], list[str]] = ({"id": "autumn", "payer": "Nachtklang"}, [*EVERYTHING[:3], "none"])


@pytest_asyncio.fixture(loop_scope="session")
async def control(store: Store) -> AsyncIterator[grpc.aio.Channel]:
    """The control plane of an empty state directory."""
    async with controlling(store.state, store.url) as channel:
        yield channel


async def verb(control: grpc.aio.Channel, store: Store, request: Any) -> Status:
    """Calls the method of a request, as the developer."""
    name = type(request).__name__.removesuffix("Request")
    return await call(control, SERVICE + name, request, metadata=bearer(development_token(store.state)))


async def apply(control: grpc.aio.Channel, store: Store, spec: Spec, **fields: Any) -> promotions_pb2.ApplyBookResponse:
    """Applies a spec."""
    status = await verb(control, store, promotions_pb2.ApplyBookRequest(spec=said(spec), **fields))
    assert status.code is Code.OK, status.text
    return promotions_pb2.ApplyBookResponse.FromString(status.answer)


async def listed(control: grpc.aio.Channel, store: Store) -> promotions_pb2.ListPromotionsResponse:
    """The promotions."""
    status = await verb(control, store, promotions_pb2.ListPromotionsRequest())
    return promotions_pb2.ListPromotionsResponse.FromString(status.answer)


async def book_of(control: grpc.aio.Channel, store: Store, *, with_items: bool = True) -> promotions_pb2.Book:
    """The book in force."""
    status = await verb(control, store, promotions_pb2.GetBookRequest(with_items=with_items))
    return promotions_pb2.GetBookResponse.FromString(status.answer).book


async def test_a_book_is_applied_and_answered_as_it_was_said(control: grpc.aio.Channel, store: Store) -> None:
    """Version, sequence, who and when; the spec field by field, items where asked for; what is left ends in a day."""
    assert await book_of(control, store) == promotions_pb2.Book()
    first = (await apply(control, store, spec_of(SPRING))).book
    assert (first.sequence, first.applied_by, len(first.version)) == (1, "developer", 64)
    assert (await book_of(control, store)).spec == said(spec_of(SPRING))
    assert first == await book_of(control, store, with_items=False)
    assert not first.spec.campaigns[0].items
    second = (await apply(control, store, spec_of(SPRING, AUTUMN), etag=first.version)).book
    assert second.sequence == 2
    assert 0 < int(store.client.ttl(store.keys.book(KIND, first.version))) <= LEFT_BEHIND_S
    again = (await apply(control, store, spec_of(SPRING, AUTUMN), etag=second.version)).book
    assert again == second


async def test_a_stale_etag_is_aborted(control: grpc.aio.Channel, store: Store) -> None:
    """Of two who started from one book the second is told, and nothing is lost."""
    first = (await apply(control, store, spec_of(SPRING))).book
    for etag in ("", "0" * 64):
        request = promotions_pb2.ApplyBookRequest(spec=said(spec_of(AUTUMN)), etag=etag)
        assert (await verb(control, store, request)).code is Code.ABORTED
    assert await book_of(control, store, with_items=False) == first


async def test_checking_changes_nothing(control: grpc.aio.Channel, store: Store) -> None:
    """The campaigns are told as they would be; no pointer, no confirmation."""
    found = await apply(control, store, spec_of(SPRING), validate_only=True)
    assert not found.book.version
    assert [one.id for one in found.campaigns] == ["spring"]
    assert not list(store.client.scan_iter("mantel:*promotion*"))


async def test_mistakes_are_named(control: grpc.aio.Channel, store: Store) -> None:
    """Each with its path, before anything is written."""
    spec = said(spec_of(SPRING, AUTUMN))
    spec.campaigns[0].markets.append("XX")
    spec.campaigns[1].id = "Autumn"
    status = await verb(control, store, promotions_pb2.ApplyBookRequest(spec=spec))
    assert (status.code, set(status.fields)) == (
        Code.INVALID_ARGUMENT,
        {"campaigns[0].markets[1]", "campaigns[1].id"},
    )
    spec = said(spec_of(SPRING, AUTUMN))
    spec.campaigns[1].items[2].score = float("nan")
    spec.campaigns[0].items[1].segment = -1
    status = await verb(control, store, promotions_pb2.ApplyBookRequest(spec=spec))
    assert set(status.fields) == {"campaigns[1].items[2].score", "campaigns[0].items[1].segment"}
    assert not list(store.client.scan_iter("mantel:*promotion*"))


async def test_states_follow_window_and_feed(control: grpc.aio.Channel, store: Store) -> None:
    """Scheduled, running, ended, faded; a campaign without a feed does not fade."""
    now = int(time.time())
    spec = spec_of(
        SPRING,
        AUTUMN,
        ({"id": "later", "since": now + 900}, EVERYTHING[:1]),
        ({"id": "over", "until": now - 9, "payer": "Me"}, EVERYTHING[:1]),
    )
    await apply(control, store, spec)
    states = [(one.id, one.state) for one in (await listed(control, store)).campaigns]
    assert states == [("spring", "running"), ("autumn", "running"), ("later", "scheduled"), ("over", "ended")]
    confirm(store, FEED.id, ago_s=3700)
    found = await listed(control, store)
    assert [one.state for one in found.campaigns] == ["faded", "running", "scheduled", "ended"]
    assert [one.freshness for one in found.feeds] == [0.0]
    status = await verb(control, store, promotions_pb2.ConfirmFeedRequest(feed=FEED.id))
    assert status.code is Code.OK
    found = await listed(control, store)
    assert found.campaigns[0].state == "running"
    assert found.feeds[0].freshness == 1
    assert abs(found.feeds[0].confirmed_at.seconds - time.time()) < 300
    missing = promotions_pb2.ConfirmFeedRequest(feed="none")
    assert (await verb(control, store, missing)).code is Code.NOT_FOUND


async def test_items_are_looked_up_in_the_served_catalogue(published: Store) -> None:
    """How many of each campaign it has, and how many it has not."""
    async with controlling(published.state, published.url) as control:
        found = await apply(control, published, spec_of(SPRING, AUTUMN))
        assert [(one.items_bound, one.items_unknown) for one in found.campaigns] == [(5, 0), (3, 1)]
        assert len((await listed(control, published)).snapshot_version) == 64


async def test_stats_are_by_day_and_campaign(control: grpc.aio.Channel, store: Store) -> None:
    """Latest first; only those asked for; days beyond what is kept are refused."""
    days = [time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86_400 * ago)) for ago in range(3)]
    for number, day in enumerate(days, 1):
        fields: Any = {
            "spring:eligible": 9 * number,
            "spring:pages": number,
            "spring:placed": 2 * number,
            "autumn:eligible": 1,
        }
        store.client.hset(store.keys.placements(day), mapping=fields)
    status = await verb(control, store, promotions_pb2.GetStatsRequest(days=2, campaigns=["spring"]))
    found = promotions_pb2.GetStatsResponse.FromString(status.answer).stats
    told = [(one.day, one.campaign, one.eligible_pages, one.placed_pages, one.placements) for one in found]
    assert told in (
        [(days[0], "spring", 9, 1, 2), (days[1], "spring", 18, 2, 4)],
        [(days[0], "spring", 9, 1, 2)],  # midnight has passed
    )
    whole = await verb(control, store, promotions_pb2.GetStatsRequest())
    assert len(promotions_pb2.GetStatsResponse.FromString(whole.answer).stats) == 6
    for wrong in (-1, 36):
        assert (await verb(control, store, promotions_pb2.GetStatsRequest(days=wrong))).fields == ("days",)


async def test_a_book_spoiled_in_the_store_can_be_mended(control: grpc.aio.Channel, store: Store) -> None:
    """FAILED_PRECONDITION while no good one is known."""
    poison(store, b"x", {})
    status = await verb(control, store, promotions_pb2.GetBookRequest())
    assert status.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize("method", ["SetBudget", "GetPacing", "GetLift"])
async def test_budgets_come_later(control: grpc.aio.Channel, store: Store, method: str) -> None:
    """UNIMPLEMENTED, to who may; who may not learns that first."""
    request = getattr(promotions_pb2, f"{method}Request")()
    assert (await verb(control, store, request)).code is Code.UNIMPLEMENTED
    other = bearer(add_principal(store.state, "other", [role for role in Role if role is not Role.PROMOTER]))
    assert (await call(control, SERVICE + method, request, metadata=other)).code is Code.PERMISSION_DENIED


async def test_a_store_that_is_away_is_unavailable(control: grpc.aio.Channel, store: Store) -> None:
    """Each verb says so."""
    ledger = PromotionLedger(store.client, store.keys)
    ledger.confirm([], at=0)
    store.client.shutdown(nosave=True)
    for request in (
        promotions_pb2.ApplyBookRequest(),
        promotions_pb2.ListPromotionsRequest(),
        promotions_pb2.GetStatsRequest(),
    ):
        assert (await verb(control, store, request)).code is Code.UNAVAILABLE
