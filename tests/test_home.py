"""The core: what `assemble` promises for any batch."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from features.index import ExactRetriever, Rows, Scores, use_one_thread
from features.keys import item_keys
from features.listeners import Known, Listeners, decode
from features.recent_state import Did, encode_entry
from features.snapshot import Limit, Snapshot
from ranking.experiments.applying import EMPTY, apply
from ranking.experiments.assignment import Assigner
from ranking.filters import drop
from ranking.history import recall
from ranking.home import assemble, feed
from ranking.lines import draw_lines
from ranking.params import INDEX, PARAMS, Param, Value, resolve
from ranking.retrieve import retrieve
from ranking.surfaces import DEFAULT_SURFACES, MOST_SUBJECTS, ShelfSpec, Source, Surface, load_surfaces
from ranking.types import Degraded, Fate, Home, HomeQuery
from server.codec import encode_home
from server.rehearsal import rehearse
from server.signing import SigningKey
from server.tracking import stamp
from tests.books import BY_FILE, experiment, spec_of
from tests.wishes import Names, draw_wish

NOW = 1_793_491_200  # 2026-11-01


FREE = resolve({"artist_cap": 0, "album_cap": 0, "artist_gap": 0, "page_artist_cap": 0, "page_order": "file"})


PLAIN = experiment("plain", "variety", {"diversity": "plain", "mmr_lambda": 0.1})
TWO_EXPERIMENTS = apply(EMPTY, spec_of(BY_FILE, PLAIN), seed=1)


def spec(shelf_id: str, source: str, **fields: object) -> ShelfSpec:
    """A shelf."""
    return ShelfSpec(id=shelf_id, source=source, titles={"en": shelf_id}, **{"item_keys": {}, "params": FREE, **fields})  # type: ignore[arg-type]


def read(
    snapshot: Snapshot,
    frames: Sequence[bytes | None],
    missing: Known = Known.STRANGER,
    states: Sequence[bytes | None] = (),
    wishes: Sequence[bytes | None] = (),
) -> Listeners:
    """Frames as the store reads them, beside those of recent states and of preferences."""
    manifest = snapshot.manifest
    return decode(
        frames,
        space_id=snapshot.space_id,
        dimension=manifest.dimension,
        genres=len(manifest.genres),
        missing=missing,
        states=states,
        preferences=wishes,
    )


def draw_value(rng: np.random.Generator, param: Param) -> Value:
    """A random value of a param."""
    if param.choices:
        return str(rng.choice(param.choices))
    value = float(rng.uniform(param.low, param.high))
    return float(round(value)) if param.whole else value


def draw_shelf(rng: np.random.Generator, source: str, keys: NDArray[np.uint64]) -> ShelfSpec:
    """A random shelf of a source, with random params."""
    preset = {param.name: draw_value(rng, param) for param in PARAMS if rng.integers(3) == 0}
    return spec(
        source,
        source,
        size=int(rng.integers(4, 30)),
        depth=int(rng.integers(30, 400)),
        skip_played=bool(rng.integers(2)),
        nth=int(rng.integers(1, MOST_SUBJECTS + 1)),
        params=resolve(preset),
        item_keys={"": rng.choice(keys, 20, replace=False)} if source == "editorial" else {},
    )


def draw_query(rng: np.random.Generator, snapshot: Snapshot, user_id: str) -> HomeQuery:
    """A random request: surface, market, filters, exclusions; every second one with the arms of two experiments."""
    keys = snapshot.columns["item_key"]
    drawn = rng.permutation(get_args(Source))[: int(rng.integers(1, 9))]
    shelves = tuple(draw_shelf(rng, str(source), keys) for source in drawn)
    surface = Surface(name="drawn", shelves=shelves, dedupe=bool(rng.integers(2)))
    assigner = None if len(drawn) % 2 else Assigner(TWO_EXPERIMENTS)
    return HomeQuery(
        user_id=user_id,
        assigner=assigner,
        surface=surface,
        now=NOW,
        market=str(rng.choice(["", "GB", "DE", "ZW", *snapshot.manifest.markets])),
        allow_explicit=[None, True, False][rng.integers(3)],
        excluded=rng.choice(keys, int(rng.integers(200))),
        hidden=None if rng.integers(2) else rng.choice(keys, int(rng.integers(200))),
        shelves=int(rng.integers(9)),
        session=int(rng.choice([0, 7])),
        seed=int(rng.integers(2**63)),
        narrow=not rng.integers(4),
    )


def draw_state(rng: np.random.Generator, snapshot: Snapshot) -> bytes | None:
    """What a listener did of late: nothing, or up to twenty events of this session and before."""
    if rng.integers(2):
        return None
    ago = np.sort(rng.integers(0, 7200, int(rng.integers(21))))[::-1].tolist()
    keys = rng.choice(snapshot.columns["item_key"], len(ago)).tolist()
    return b"".join(
        encode_entry(Did(int(rng.integers(1, 6))), key, at=NOW - one, seconds=int(rng.integers(90)), session=7)
        for key, one in zip(keys, ago, strict=True)
    )


def draw_batch(
    seed: int, snapshot: Snapshot, records: dict[str, bytes]
) -> tuple[tuple[HomeQuery, ...], list[bytes | None]]:
    """A random batch with listeners known, unknown and broken."""
    rng = np.random.default_rng(seed)
    users = list(rng.choice(sorted(records), int(rng.integers(1, 17))))
    frames = [[records[user], records[user], None, records[user][:-1]][rng.integers(4)] for user in users]
    return tuple(draw_query(rng, snapshot, user) for user in users), frames


def serve(
    snapshot: Snapshot,
    queries: tuple[HomeQuery, ...],
    frames: Sequence[bytes | None],
    states: Sequence[bytes | None] = (),
    wishes: Sequence[bytes | None] = (),
) -> tuple[Home, ...]:
    """Pages."""
    use_one_thread()
    listeners = read(snapshot, frames, states=states, wishes=wishes)
    return assemble(queries, listeners, snapshot, clock=time.perf_counter)[0]


def shown(home: Home) -> list[tuple[str, list[int], list[float]]]:
    """A page as plain values."""
    return [(shelf.spec.id, shelf.rows.tolist(), shelf.scores.tolist()) for shelf in home.shelves]


@pytest.mark.parametrize("seed", range(60))
def test_a_batch_equals_its_rows_served_alone(
    world: Path, snapshot: Snapshot, records: dict[str, bytes], seed: int
) -> None:
    """Same shelves, items, order, scores to the last bit, fates, reasons."""
    queries, frames = draw_batch(seed, snapshot, records)
    states = [draw_state(np.random.default_rng([seed, row]), snapshot) for row in range(len(queries))]
    rng, names = np.random.default_rng(seed), Names.of(world)
    wishes = [draw_wish(rng, names) for _ in queries]
    together = serve(snapshot, queries, frames, states, wishes)
    for query, frame, state, wish, home in zip(queries, frames, states, wishes, together, strict=True):
        (alone,) = serve(snapshot, (query,), [frame], [state], [wish])
        assert shown(home) == shown(alone)
        assert (home.fates, home.degraded, home.coverage) == (alone.fates, alone.degraded, alone.coverage)


def test_nothing_is_compiled_once_a_worker_has_rehearsed(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Of every loop there is the machine code for all that requests can bring: none waits a second for the compiler."""
    rehearse(snapshot, load_surfaces(DEFAULT_SURFACES).values())
    loops = {
        one
        for name, module in list(sys.modules.items())
        if name.startswith(("ranking.", "server."))
        for one in vars(module).values()
        if hasattr(one, "signatures")
    }
    before = {loop: len(loop.signatures) for loop in loops}
    assert len(loops) > 20
    key = stamp(SigningKey(id=1, secret=bytes(32), signs_from=0), page="0" * 16, at=NOW, user_id="u", arms=())
    for seed in range(40):
        queries, frames = draw_batch(3000 + seed, snapshot, records)
        rng = np.random.default_rng(seed)
        for home in serve(snapshot, queries, frames, [draw_state(rng, snapshot) for _ in queries]):
            encode_home(home, snapshot, locale="de-AT", request_id="", stamp=key if seed % 2 else None)
        one = replace(queries[0], traced=True, about=int(snapshot.columns["item_key"][seed]))
        serve(snapshot, (one,), frames[:1], [encode_entry(Did.LIKE, int(snapshot.columns["item_key"][seed]), at=NOW)])
    assert {loop: len(loop.signatures) for loop in loops} == before


@pytest.mark.parametrize("seed", range(20))
def test_every_page_keeps_the_rules(snapshot: Snapshot, records: dict[str, bytes], seed: int) -> None:
    """No row twice on a page that promises so; sizes and minimums hold; nothing shown is refused by any filter."""
    queries, frames = draw_batch(1000 + seed, snapshot, records)
    listeners, columns = read(snapshot, frames), snapshot.columns
    for number, (query, home) in enumerate(zip(queries, serve(snapshot, queries, frames), strict=True)):
        rows = np.concatenate([np.empty(0, np.int64), *(shelf.rows for shelf in home.shelves)])
        assert not query.surface.dedupe or len(set(rows.tolist())) == len(rows)
        for shelf in home.shelves:
            assert shelf.spec.minimum <= len(shelf.rows) <= shelf.spec.size
            assert len(set(shelf.rows.tolist())) == len(shelf.rows)
            plain = shelf.spec.params[INDEX["diversity"]] == 0 and not shelf.spec.params[INDEX["artist_gap"]]
            assert not plain or (np.diff(shelf.scores) <= 0).all()
            for key, cap in (("artist_key", "artist_cap"), ("album_key", "album_cap")):
                most, found = int(shelf.spec.params[INDEX[cap]]), columns[key][shelf.rows]
                counts = np.unique(found[found > 0], return_counts=True)[1]
                assert not most or counts.max(initial=0) <= most
        keys = columns["item_key"][rows]
        assert not np.isin(keys, query.excluded).any()
        assert query.hidden is None or not np.isin(keys, query.hidden).any()
        allow = listeners.allow_explicit[number] if query.allow_explicit is None else query.allow_explicit
        assert allow or not (columns["limits"][rows] & Limit.EXPLICIT).any()
        assert ((columns["available_from"][rows] <= NOW) & (columns["available_until"][rows] > NOW)).all()
        licensed = allowed_in(snapshot, rows, home.market)
        assert licensed.all()


def allowed_in(snapshot: Snapshot, rows: NDArray[np.int64], market: str) -> NDArray[np.bool_]:
    """Whether rows are licensed in a market, written as plainly as can be."""
    bits, number = snapshot.columns["market_bits"], snapshot.market_index.get(market)

    def one(row: int) -> bool:
        words = [int(word) for word in bits[row]]
        inside = number is not None and bool(words[number // 64] >> (number % 64) & 1)
        return inside or not any(words)

    return np.array([one(int(row)) for row in rows], np.bool_)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost(snapshot: Snapshot, records: dict[str, bytes], seed: int) -> None:
    """The fates of a page add up to what was retrieved for it."""
    queries, frames = draw_batch(2000 + seed, snapshot, records)
    for query, frame, home in zip(queries, frames, serve(snapshot, queries, frames), strict=True):
        listeners = read(snapshot, [frame])
        history = recall(listeners, snapshot)
        lines = draw_lines((query,), listeners, history, snapshot)
        found, _ = retrieve((query,), lines, listeners, history, snapshot)
        found = drop((query,), lines, history, snapshot, found)
        found = feed((query,), lines, listeners, history, snapshot, found)
        assert sum(home.fates.values()) == int((found.rows >= 0).sum())
        assert home.fates.get(Fate.SHOWN, 0) == sum(len(shelf.rows) for shelf in home.shelves)


def test_taste_equals_brute_force(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With nothing to filter, the taste shelf is the exact inner product's best."""
    exact = replace(snapshot, retriever=ExactRetriever(np.asarray(snapshot.columns["vector"])))
    surface = Surface(name="plain", params=FREE, shelves=(spec("taste", "taste", size=20, depth=200),))
    for user, frame in list(records.items())[:20]:
        vector = read(snapshot, [frame]).vectors[0]
        query = HomeQuery(user_id=user, surface=surface, now=NOW, market="GB", allow_explicit=True)
        (home,) = serve(exact, (query,), [frame])
        free = allowed_in(snapshot, np.arange(snapshot.manifest.items), "GB")
        columns = snapshot.columns
        free &= (columns["available_from"] <= NOW) & (columns["available_until"] > NOW)
        scores = np.where(free, np.asarray(columns["vector"]) @ vector, -np.inf)
        ranked = np.argsort(-scores, kind="stable")
        first = np.sort(np.unique(columns["recording_key"][ranked], return_index=True)[1])
        assert home.shelves[0].rows.tolist() == ranked[first][:20].tolist()


def test_a_market_with_few_licences_gets_full_shelves(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Three items in a hundred may be shown: the taste shelf is full all the same, and the best of what there is."""
    rng, items = np.random.default_rng(3), snapshot.manifest.items
    allowed = np.sort(rng.choice(items, items * 3 // 100, replace=False))
    bits = np.array(snapshot.columns["market_bits"])
    bits[:], bits[allowed] = 1, 1 << 63  # licensed in one market that few have, or in the other
    popular = np.full((65, 1000), -1, np.int32)
    popular[64, : len(allowed)] = rng.permutation(allowed)
    limits = np.asarray(snapshot.columns["limits"]) | Limit.MARKETS
    columns = {**snapshot.columns, "market_bits": bits, "popular": popular, "limits": limits.astype(np.uint8)}
    scarce = replace(snapshot, columns=columns, market_index={"ZW": 63})
    surface = Surface(name="plain", params=FREE, shelves=(spec("taste", "taste", skip_played=True),))
    vectors = np.asarray(snapshot.columns["vector"])
    for user, frame in list(records.items())[:40]:
        query = HomeQuery(user_id=user, surface=surface, now=NOW, market="ZW", allow_explicit=True)
        (home,) = serve(scarce, (query,), [frame])
        listener = read(snapshot, [frame])
        fresh = np.setdiff1d(allowed, snapshot.rows_of(listener.recent_keys))
        columns_now = snapshot.columns["available_from"][fresh], snapshot.columns["available_until"][fresh]
        fresh = fresh[(columns_now[0] <= NOW) & (columns_now[1] > NOW)]
        ranked = fresh[np.argsort(-(vectors[fresh] @ listener.vectors[0]), kind="stable")]
        first = np.sort(np.unique(snapshot.columns["recording_key"][ranked], return_index=True)[1])
        best = ranked[first][:12]
        assert home.shelves[0].rows.tolist() == best.tolist()


def test_played_items_leave_shelves_that_skip_them(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """What stands in the listener's record does not stand on the shelf; without the flag it may."""
    fresh = Surface(name="fresh", shelves=(spec("fresh", "taste", depth=500, skip_played=True),))
    known = Surface(name="known", shelves=(spec("known", "taste", depth=500),))
    repeated = 0
    for user, frame in list(records.items())[:50]:
        recent = snapshot.rows_of(read(snapshot, [frame]).recent_keys)
        queries = tuple(HomeQuery(user_id=user, surface=surface, now=NOW) for surface in (fresh, known))
        without, with_played = serve(snapshot, queries, [frame, frame])
        assert not np.isin(without.shelves[0].rows, recent).any()
        repeated += int(np.isin(with_played.shelves[0].rows, recent).sum())
    assert repeated > 0


def test_a_listener_without_direction_is_folded_in_or_gets_lists(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """A record whose vector is zero is no fault and no cold start: its plays give a vector; without plays, lists."""
    user, frame = next(iter(records.items()))
    listeners = read(snapshot, [frame])
    surface = Surface(name="two", params=FREE, shelves=(spec("taste", "taste"), spec("popular", "popular")))
    query = HomeQuery(user_id=user, surface=surface, now=NOW)
    nowhere = replace(listeners, vectors=np.zeros_like(listeners.vectors))
    nothing = replace(nowhere, recent_start=np.zeros(2, np.int64), recent_keys=listeners.recent_keys[:0])
    nothing = replace(nothing, recent_days=listeners.recent_days[:0], recent_plays=listeners.recent_plays[:0])
    for who, shelves, folded_in in ((nowhere, ["taste", "popular"], True), (nothing, ["popular"], False)):
        ((home,), _) = assemble((query,), who, snapshot, clock=time.perf_counter)
        assert [shelf.spec.id for shelf in home.shelves] == shelves
        assert (home.cold_start, home.degraded, home.coverage, home.folded_in) == (False, (), 100, folded_in)


def test_a_failing_search_costs_its_shelves_only(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """FAISS raises: lists are served, RETRIEVAL_PARTIAL, coverage says how much is missing."""

    class Broken:
        def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
            raise RuntimeError(f"{vectors.shape} {k}")

    user, frame = next(iter(records.items()))
    surface = Surface(name="two", shelves=(spec("taste", "taste"), spec("popular", "popular")))
    query = HomeQuery(user_id=user, surface=surface, now=NOW)
    (home,) = serve(replace(snapshot, retriever=Broken()), (query,), [frame])
    assert [shelf.spec.id for shelf in home.shelves] == ["popular"]
    assert home.degraded == (Degraded.RETRIEVAL_PARTIAL,)
    assert home.coverage == 50
    alone = replace(query, surface=Surface(name="one", shelves=surface.shelves[:1]))
    (nothing,) = serve(replace(snapshot, retriever=Broken()), (alone,), [frame])
    assert nothing.degraded == (Degraded.RETRIEVAL_DOWN,)


def test_a_batch_equals_its_rows_where_many_items_are_alike(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Items with equal vectors tie at every cut; a deeper line beside a shallow one must not change which are found."""
    vectors = np.array(snapshot.columns["vector"])
    vectors[:] = vectors[np.arange(len(vectors)) % 40]
    index = faiss.index_factory(vectors.shape[1], "IVF16,SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 8  # type: ignore[attr-defined]  # made by SWIG
    alike = replace(snapshot, retriever=index)
    surface = Surface(name="flat", shelves=(spec("a", "taste", size=60, depth=60), spec("b", "taste", depth=300)))
    shallow = replace(surface, shelves=surface.shelves[:1])
    for user, frame in list(records.items())[:20]:
        both = HomeQuery(user_id=user, surface=surface, now=NOW)
        query = HomeQuery(user_id=user, surface=shallow, now=NOW)
        assert shown(serve(alike, (query, both), [frame, frame])[0]) == shown(serve(alike, (query,), [frame])[0])


def test_scores_that_are_no_numbers_sink(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """NaN and infinities come after every finite score, and cost no page."""
    exact = ExactRetriever(np.asarray(snapshot.columns["vector"]))

    class Noisy:
        def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
            scores, rows = exact.search(vectors, k)
            scores[:, ::2] = np.nan
            scores[:, 1] = np.inf
            return scores, rows

    user, frame = next(iter(records.items()))
    surface = Surface(name="one", shelves=(spec("taste", "taste", depth=100),))
    (home,) = serve(replace(snapshot, retriever=Noisy()), (HomeQuery(user_id=user, surface=surface, now=NOW),), [frame])
    assert np.isfinite(home.shelves[0].scores).all()


def test_ties_go_to_the_lower_item_key(snapshot: Snapshot) -> None:
    """Equal scores order by row, which is the order of item keys."""
    assert (np.diff(snapshot.columns["item_key"].astype(np.float64)) > 0).all()

    class Equal:
        def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
            rows = np.arange(k)[::-1]
            return np.ones((len(vectors), k), np.float32), np.tile(rows, (len(vectors), 1)).astype(np.int64)

    surface = Surface(name="one", shelves=(spec("taste", "taste", depth=100, size=100, minimum=1),))
    manifest = snapshot.manifest
    listeners = replace(
        read(snapshot, [None]),
        known=np.array([Known.RECORD], np.uint8),
        vectors=np.ones((1, manifest.dimension), np.float32),
    )
    query = HomeQuery(user_id="u", surface=surface, now=NOW)
    ((home,), _) = assemble((query,), listeners, replace(snapshot, retriever=Equal()), clock=time.perf_counter)
    assert (np.diff(home.shelves[0].rows) > 0).all()


def test_a_shelf_below_refills_from_its_reserve(snapshot: Snapshot) -> None:
    """Two shelves over the same list: the second shows what the first left, in the same order."""
    surface = Surface(name="two", shelves=(spec("a", "popular", size=10), spec("b", "popular", size=10)))
    (home,) = serve(snapshot, (HomeQuery(user_id="nobody", surface=surface, now=NOW),), [None])
    single = Surface(name="one", shelves=(spec("a", "popular", size=20),))
    (long,) = serve(snapshot, (HomeQuery(user_id="nobody", surface=single, now=NOW),), [None])
    both = [*home.shelves[0].rows.tolist(), *home.shelves[1].rows.tolist()]
    assert both == long.shelves[0].rows.tolist()


def test_a_thin_shelf_gives_its_items_back(snapshot: Snapshot) -> None:
    """A shelf below its minimum is dropped, its candidates are THIN, and the next shelf may show them."""
    best = snapshot.columns["item_key"][snapshot.columns["popular"][0][:3]]
    surface = Surface(
        name="two",
        shelves=(
            spec("thin", "editorial", minimum=4, item_keys={"": best}),
            spec("popular", "popular", size=5, minimum=1),
        ),
    )
    (home,) = serve(snapshot, (HomeQuery(user_id="nobody", surface=surface, now=NOW, market=""),), [None])
    assert [shelf.spec.id for shelf in home.shelves] == ["popular"]
    assert home.fates.get(Fate.DUPLICATE, 0) == 0


def test_item_keys_are_what_the_snapshot_knows(snapshot: Snapshot) -> None:
    """Unknown ids find no row; known keys find their own."""
    keys = snapshot.columns["item_key"]
    assert snapshot.rows_of(np.asarray(keys)).tolist() == list(range(len(keys)))
    assert snapshot.rows_of(item_keys(["no such item"])).tolist() == [-1]
