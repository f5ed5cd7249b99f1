"""Sessions of simulated listeners over gRPC: pages turn to what each is after, and show nothing that was hidden.

The data are HetRec Last.fm's. A listener is after one of the 20 genres that most of its items have: one of which their
page, before they do anything, shows between .35 and .55; who has no such genre (15 % of listeners) does not take part.
The shelf is picked-for-you as on Home, twenty long, on a page of its own. Feedback is wrong in one of ten cases.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pytest
from pyarrow import parquet

from features.embedded_redis import attached
from features.keys import Keys
from features.offline.build import BuildSettings, build
from features.offline.lastfm import convert
from features.offline.publish import connect
from features.state import State
from loadtest.listeners import Plan, Simulation, simulate
from protos.events.v1 import events_pb2
from protos.listeners.v1 import listeners_pb2
from ranking.surfaces import DEFAULT_SURFACES
from tests.conftest import Served, Store, quiet, serving
from tests.recording import RECORDED, event, record, results
from tests.wire import call

LISTENERS: Final = 300
STEPS: Final = 15
UPDATE: Final = "/mantel.listeners.v1.ListenerService/UpdatePreferences"
SURFACE: Final = """
[session]
preset = "full"

[[session.shelves]]
id = "picked-for-you"
source = "taste"
titles = { en = "Picked for you" }
size = 20
minimum = 1
skip_played = true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastFm:
    """HetRec Last.fm, published."""

    store: Store
    surfaces: Path
    users: Sequence[str]
    kinds: dict[str, frozenset[str]]
    genres: Sequence[str]  # the 20 that most items have


@pytest.fixture(scope="module")
def lastfm(hetrec: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastFm]:
    """The data set, built and published."""
    folder = tmp_path_factory.mktemp("intent")
    convert(hetrec, folder / "W")
    build(folder / "W", folder / "S", settings=BuildSettings(index="ivf"), progress=quiet)
    users = parquet.read_table(sorted((folder / "S" / "listeners").glob("*.parquet")))["user_id"].to_pylist()
    items = pl.read_parquet(folder / "W" / "items.parquet")
    kinds = {item: frozenset(genres) for item, genres in items.select("item_id", "genres").iter_rows()}
    counted = Counter(genre for genres in kinds.values() for genre in sorted(genres))
    surfaces = folder / "surfaces.toml"
    surfaces.write_text(DEFAULT_SURFACES.read_text() + SURFACE)
    state = State(folder / "state")
    with attached(state) as url, connect(url) as client:
        store = Store(state=state, url=url, client=client, keys=Keys())
        store.publish(folder / "S")
        yield LastFm(
            store=store,
            surfaces=surfaces,
            users=sorted(users),
            kinds=kinds,
            genres=[genre for genre, _ in counted.most_common(20)],
        )


async def run(served: Served, lastfm: LastFm, users: Sequence[str], plan: Plan) -> Simulation:
    """A run in which nothing fails."""
    done = await simulate(served.channel, served.metadata, users, lastfm.kinds, plan, quiet)
    assert not done.errors
    assert len(done.visits) == len(users) * plan.steps * plan.sessions
    assert not any(visit.degraded for visit in done.visits)
    return done


def on_intent(done: Simulation, first: int, last: int) -> float:
    """The mean share of items shown that fit, in steps from a first to a last, both counted from 1."""
    return float(np.mean([visit.shown for visit in done.visits if first <= visit.step + 1 <= last]))


@pytest.mark.timeout(900)  # 10,500 pages: half a minute, unless others have the machine
async def test_a_session_turns_to_what_its_listener_is_after(lastfm: LastFm) -> None:
    """In steps 6-15 at least .15 more of the page fits than of the page that does not listen, which shows .35 to .55.

    10,000 pages follow what listeners hid before, by event and by preference, and none of them shows any of it.
    """
    plan = Plan(began=time.time(), seed=7, steps=STEPS, among=lastfm.genres, surface="session", concurrency=64)
    store = lastfm.store
    async with serving(store.state, store.url, surfaces=lastfm.surfaces) as served:
        some = [
            lastfm.users[at] for at in np.random.default_rng(0).permutation(len(lastfm.users))[: 3 * LISTENERS // 2]
        ]
        before = await run(served, lastfm, some, replace(plan, steps=1, send=False))
        users = [visit.user_id for visit in before.visits if 0.35 <= visit.shown <= 0.55][:LISTENERS]
        assert len(users) == LISTENERS
        hidden = await hide(served, {visit.user_id: visit.items for visit in before.visits if visit.user_id in users})
        static = await run(served, lastfm, users, replace(plan, send=False))
        live = await run(served, lastfm, users, replace(plan, steps=20))
    groups = ((static, 1, 5), (static, 6, 15), (live, 1, 5), (live, 6, 15), (live, 16, 20))
    print(*(f"{on_intent(*group):.3f}" for group in groups))
    at_rest, later = on_intent(static, 6, 15), on_intent(live, 6, 15)
    assert 0.35 <= at_rest <= 0.55
    assert later >= at_rest + 0.15
    pages = [*static.visits, *live.visits]
    assert len(pages) >= 10_000
    assert not [visit for visit in pages if hidden[visit.user_id] & set(visit.items)]
    assert {kind for kind, result in live.events if result == "recorded"} >= {"impression", "complete", "skip", "hide"}
    assert {result for _, result in live.events} == {"recorded"}


async def hide(served: Served, pages: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Each listener hides three items of their page: one by an event, two by preference, of these one as an artist."""
    room = asyncio.Semaphore(50)

    async def one(user_id: str, items: Sequence[str]) -> set[str]:
        by_event, item, artist = items[2], items[5], items[9]
        wish = listeners_pb2.UpdatePreferencesRequest(user_id=user_id, hide_item_ids=[item], hide_artist_ids=[artist])
        done = event(f"hide-{user_id}", user_id=user_id, item_id=by_event, kind=events_pb2.EVENT_KIND_HIDE)
        async with room:
            status = await call(served.channel, UPDATE, wish, metadata=served.metadata)
            assert status.code.name == "OK", status
            assert results(await record(served, [done])) == [RECORDED]
        return {by_event, item, artist}

    hidden = await asyncio.gather(*(one(user_id, items) for user_id, items in pages.items()))
    return dict(zip(pages, hidden, strict=True))
