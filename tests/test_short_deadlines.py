"""Little time: pages are narrowed and say so, replay knows it, and a late store is waited for as long as planned."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.listener_store import ABANDONED, ListenerStore
from features.listeners import Known, ListenerRecord, encode
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.lines import SEARCHED
from ranking.params import INDEX, Params
from ranking.surfaces import DEFAULT_SURFACES, Surface, load_surfaces
from ranking.types import Degraded, HomeQuery
from server.budget import Budget
from server.fates import NARROWED
from server.page_record import read_page
from server.replay import Replayer, check
from tests.conftest import Served, Store, serving
from tests.test_explain import explain
from tests.test_failures import silent
from tests.test_home import NOW, serve, shown, spec
from tests.test_replay import samples_of
from tests.wire import eventually

SURFACES = load_surfaces(DEFAULT_SURFACES)
HOME = SURFACES["home"]
SHORT = home_pb2.DEGRADED_REASON_DEADLINE_SHORT


def pages_take(served: Served, seconds: float) -> None:
    """From now on a page of `home` is predicted to take so long."""
    budget = served.plane.batcher._budget
    assert isinstance(budget, Budget)
    for _ in range(300):
        budget.learn(len(HOME.shelves), used_s=seconds, passed_s=seconds)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_a_narrowed_page_is_a_page(snapshot: Snapshot, records: dict[str, bytes], surface: Surface) -> None:
    """It holds what the whole one does on shelves that need no search; where there are no others it is searched."""
    free = replace(
        surface,
        shelves=tuple(replace(one, params=_plain(one.params)) for one in surface.shelves),
        params=_plain(surface.params),
    )
    kept = tuple(one for one in free.shelves if one.source not in SEARCHED) or free.shelves
    whole = HomeQuery(user_id="u0000001", surface=replace(free, shelves=kept), now=NOW)
    narrowed = HomeQuery(user_id="u0000001", surface=surface, now=NOW, narrow=True)
    plain, narrow = serve(snapshot, (whole, narrowed), [records["u0000001"]] * 2)
    assert narrow.shelves
    assert [row[:2] for row in shown(narrow)] == [row[:2] for row in shown(plain)]
    assert narrow.degraded == (Degraded.DEADLINE_SHORT,)
    assert narrow.coverage == 100 * len(kept) // len(surface.shelves)
    assert all((shelf.propensity == 1).all() for shelf in narrow.shelves)


def test_a_page_is_not_narrowed_to_nothing(snapshot: Snapshot) -> None:
    """Who plays nothing has no shelf of history: on a surface of two, that of taste stays."""
    record = encode(
        ListenerRecord(
            vector=snapshot.columns["segment_mean"][0].astype(np.float16),
            total_plays=1,
            segment=0,
            market="",
            allow_explicit=True,
            created_day=0,
            recent_keys=np.empty(0, np.uint64),
            recent_days=np.empty(0, np.uint16),
            recent_plays=np.empty(0, np.uint16),
            genre_index=np.empty(0, np.uint16),
            genre_weight=np.empty(0, np.float16),
        ),
        snapshot.space_id,
    )
    two = Surface(name="two", shelves=(spec("back", "history"), spec("picked", "taste")))
    (home,) = serve(snapshot, (HomeQuery(user_id="u", surface=two, now=NOW, narrow=True),), [record])
    assert [shelf.spec.id for shelf in home.shelves] == ["picked"]


async def test_a_page_without_time_is_narrowed(served: Served) -> None:
    """Predicted to take longer than its deadline it comes all the same, says so, and is counted; then all is well."""
    whole = await served.get_home("u0000001")
    pages_take(served, 30.0)
    page = await served.get_home("u0000001")
    shelves = {shelf.id for shelf in page.shelves}
    assert shelves == {"jump-back-in", "because-you-play", "because-you-play-too", "new-releases", "popular-near-you"}
    assert page.degraded_reasons == [SHORT]
    assert page.coverage == 55
    await eventually(lambda: degraded(served) == 1)
    pages_take(served, 0.001)
    again = await served.get_home("u0000001")
    assert not again.degraded
    assert [shelf.id for shelf in again.shelves] == [shelf.id for shelf in whole.shelves]


async def test_an_engineer_is_told_why_a_shelf_is_missing(served: Served) -> None:
    """Of a shelf that needs a search, that there was no time for one."""
    pages_take(served, 30.0)
    said = {one.text.partition(":")[0]: one.text for one in (await explain(served, "t0000001")).fates}
    assert said["discover"] == f"discover: {NARROWED}"
    assert NARROWED not in said["jump-back-in"]


async def test_a_surface_has_its_own_deadline(published: Store, tmp_path: Path) -> None:
    """Where that is sooner than the call's; pages of other surfaces are whole."""
    text = DEFAULT_SURFACES.read_text().replace("[home]\n", "[home]\ndeadline_ms = 20_000\n")
    (tmp_path / "surfaces.toml").write_text(text)
    file, most = tmp_path / "surfaces.toml", 60_000.0
    async with serving(published.state, published.url, surfaces=file, default_deadline_ms=most) as one:
        pages_take(one, 30.0)
        assert (await one.get_home("u0000001")).degraded_reasons == [SHORT]
        pages_take(one, 30.0)
        assert not (await one.get_home("u0000001", surface="search-landing")).degraded
    async with serving(published.state, published.url, default_deadline_ms=most) as one:
        pages_take(one, 30.0)
        assert not (await one.get_home("u0000001")).degraded


async def test_a_narrowed_page_is_replayed_as_one(published: Store) -> None:
    """The sample says that it was narrowed: of whole and narrowed pages each comes out as it was."""
    async with serving(published.state, published.url, replay_sample=1.0) as one:
        await one.get_home("u0000001")
        pages_take(one, 30.0)
        await one.get_home("u0000001")
    samples = samples_of(published)
    assert [read_page(sample.page)["degraded"] for sample in samples] == [[], ["DEADLINE_SHORT"]]
    assert check(Replayer(published.state), samples).equal == 2


async def test_a_late_read_is_abandoned_and_not_cancelled(published: Store, snapshot: Snapshot) -> None:
    """It ends when the store answers, for nobody; then its connection serves the next one."""
    store = ListenerStore(published.url, published.keys, timeout_s=20.0)
    await store.look(snapshot)
    await store.read(["u0000001"], snapshot)
    before = clients(published)
    with silent(published):
        late = await store.read(["u0000001"], snapshot, budget_s=0.003)
        assert (late.records, late.missing) == ([None], Known.LATE)
        assert len(store._reads) == 1
    await eventually(lambda: not store._reads)
    found = await store.read(["u0000001"], snapshot, budget_s=20.0)
    assert found.records[0] is not None
    assert clients(published) == before
    await store.close()


async def test_a_silent_store_is_not_asked_again_and_again(published: Store, snapshot: Snapshot) -> None:
    """With as many reads abandoned as may be, and with no budget, the answer is LATE without a wait."""
    store = ListenerStore(published.url, published.keys, timeout_s=20.0)
    with silent(published):
        for _ in range(ABANDONED):
            await store.read(["u0000001"], snapshot, budget_s=0.001)
        assert len(store._reads) == ABANDONED
        assert (await store.read(["u0000001"], snapshot, budget_s=3600.0)).missing is Known.LATE
        assert (await store.read(["u0000001"], snapshot, budget_s=0.0004)).missing is Known.LATE
        assert len(store._reads) == ABANDONED
    await store.close()


async def test_what_the_loop_computes_is_no_wait_for_the_store(published: Store, snapshot: Snapshot) -> None:
    """The loop stands for longer than the budget, several times: the reply that lies in the socket is taken."""
    store = ListenerStore(published.url, published.keys, timeout_s=20.0)
    await store.read(["u0000001"], snapshot)

    async def compute() -> None:
        for _ in range(8):
            time.sleep(0.02)  # noqa: ASYNC251  # as a batch does
            await asyncio.sleep(0)

    reading = asyncio.create_task(store.read(["u0000001"], snapshot, budget_s=0.01))
    await asyncio.gather(reading, compute())
    assert reading.result().records[0] is not None
    await store.close()


def _plain(params: Params) -> Params:
    """Params without diversity and chance."""
    plain = params.copy()
    plain[[INDEX["diversity"], INDEX["exploration_share"]]] = 0
    return plain


def degraded(served: Served) -> float:
    """How many pages the server says had too short a deadline."""
    (metric,) = served.plane.metrics._degraded.collect()
    labelled = (one for one in metric.samples if one.labels.get("reason") == "DEADLINE_SHORT")
    return sum(one.value for one in labelled if one.name.endswith("_total"))


def clients(store: Store) -> int:
    """How many connections the store has been asked for so far."""
    return int(store.client.info("stats")["total_connections_received"])
