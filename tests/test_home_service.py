"""The main road over real gRPC and a real Redis: who gets which page."""

import pytest

from protos.home.v1 import home_pb2
from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
from tests.conftest import Served, Store


async def test_a_listener_gets_every_shelf(served: Served) -> None:
    """A listener with a record gets the shelves of `home` that a small world can fill, the pinned one first."""
    page = await served.get_home("u0000001")
    shelves = [shelf.id for shelf in page.shelves]
    assert shelves[0] == "jump-back-in"
    assert set(shelves) <= {shelf.id for shelf in load_surfaces(DEFAULT_SURFACES)["home"].shelves}
    assert len(shelves) >= 8
    assert all(4 <= len(shelf.items) <= 12 for shelf in page.shelves)
    assert not page.degraded
    assert not page.cold_start
    assert page.coverage == 100


async def test_a_stranger_gets_popular_rows(served: Served) -> None:
    """Nobody knows a stranger: cold_start, not degraded, and a page all the same."""
    page = await served.get_home("nobody")
    assert page.cold_start
    assert not page.degraded
    assert [shelf.id for shelf in page.shelves] == ["popular-near-you", "new-releases"]


async def test_a_broken_record_degrades_its_listener_alone(served: Served, published: Store) -> None:
    """A flipped bit in one record: that listener is told LISTENER_INVALID, the next one notices nothing."""
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    key = published.keys.record("u0000001", snapshot.manifest.space_id)
    published.client.setbit(key, 1000, 1 - published.client.getbit(key, 1000))
    broken = await served.get_home("u0000001")
    whole = await served.get_home("u0000002")
    assert broken.degraded_reasons == [home_pb2.DEGRADED_REASON_LISTENER_INVALID]
    assert broken.shelves
    assert not whole.degraded


@pytest.mark.parametrize("hidden", [[], ["t0000001"]])
async def test_a_page_comes_while_redis_is_away(served: Served, published: Store, hidden: list[str]) -> None:
    """Redis stopped: OK with STORE_DOWN; the hidden list is unknown unless the client brought its own."""
    published.client.shutdown(nosave=True)
    page = await served.get_home("u0000001", hidden_ids=hidden)
    shelves = [shelf.id for shelf in page.shelves]
    if hidden:
        assert page.degraded_reasons == [home_pb2.DEGRADED_REASON_STORE_DOWN]
        assert (shelves, page.coverage) == (["popular-near-you", "new-releases"], 22)
    else:
        down, blind = home_pb2.DEGRADED_REASON_STORE_DOWN, home_pb2.DEGRADED_REASON_BLOCKLIST_UNKNOWN
        assert page.degraded_reasons == [down, blind]
        assert (shelves, page.coverage) == (["popular-near-you"], 11)
