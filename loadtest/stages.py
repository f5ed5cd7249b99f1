"""How long each stage of a page takes: from the bytes of listener records to the bytes of responses, on one core.

Every case is served the same requests, in rounds, one case after the other, so that what slows the machine slows all
alike. Figures are medians over batches.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.index import use_one_thread
from features.listeners import decode
from features.snapshot import UNKNOWN_DAY, Limit, Snapshot
from ranking.home import STAGES as OF_THE_CORE
from ranking.home import assemble
from ranking.surfaces import Surface
from ranking.types import WORLDWIDE, Home, HomeQuery

STAGES: Final = ("decode", *OF_THE_CORE, "encode")
BATCHES: Final = (1, 8, 16)
FULLEST: Final = "full"
"""The preset in which the markets are compared, in the largest batches."""
_DAY_S: Final = 86_400
_LAST_DAY: Final = "2026-10-31"  # of synthetic worlds, for a snapshot whose listens have no time
_ALL, _FEW = "XA", "XB"  # codes that ISO 3166 leaves to its users

Encode = Callable[[Home, Snapshot], bytes]
Floats = NDArray[np.float64]
Requests = Sequence[tuple[str, int]]  # user id, seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int = 7
    requests: int = 320  # of a case in a round; a multiple of every batch size
    licensed: float = 0.01  # share of the items that the market with few licences may show
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is served: a preset's surface from a snapshot, in batches of one size."""

    preset: str
    surface: Surface
    batch: int
    snapshot: Snapshot
    market: str = WORLDWIDE  # "": each listener's own
    licensed: float | None = None  # share of the items that the market may show; None: as the snapshot has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of a case, per request."""

    preset: str
    batch: int
    licensed: float | None
    batches: int
    micros: Mapping[str, float]  # by stage
    total: float  # microseconds of all stages and what lies between them
    shelves: float  # of a page, mean
    items: float


def cases(snapshot: Snapshot, surfaces: Mapping[str, Surface], plan: Plan) -> tuple[Case, ...]:
    """Each preset's surface in batches of each size; then the same catalogue in a market with all licences or few."""
    sizes = [
        Case(preset=preset, surface=surface, batch=batch, snapshot=snapshot)
        for preset, surface in surfaces.items()
        for batch in BATCHES
    ]
    licensed = two_markets(snapshot, plan)
    markets = [
        Case(
            preset=FULLEST,
            surface=surfaces[FULLEST],
            batch=BATCHES[-1],
            snapshot=licensed,
            market=market,
            licensed=share,
        )
        for market, share in ((_ALL, 1.0), (_FEW, plan.licensed))
    ]
    return (*sizes, *markets)


def measure(
    chosen: Sequence[Case],
    records: Mapping[str, bytes],
    encode: Encode,
    plan: Plan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str, int, int], None],
) -> tuple[Figures, ...]:
    """Serves every case in turn, round by round; `records` are listeners' frames by user id."""
    use_one_thread()
    rng = np.random.default_rng(plan.seed)
    users = rng.permutation(sorted(records)).tolist()
    batches: list[list[Floats]] = [[] for _ in chosen]
    with _one_core():
        for number in range(plan.rounds + 1):
            progress(*(("rounds", number - 1, plan.rounds) if number else ("warm-up", 0, 1)))
            requests = drawn(users, plan.requests, rng)
            for turn in range(len(chosen)):
                place = (number + turn) % len(chosen)  # each case is the first to meet new listeners as often
                served = _serve(chosen[place], requests, records, encode, clock)
                if number:  # the first round compiles, maps and fills caches
                    batches[place].append(served)
    return tuple(_figures(case, np.concatenate(own)) for case, own in zip(chosen, batches, strict=True))


def two_markets(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """The snapshot as if it were licensed in two markets only: all items in the one, a random share in the other."""
    items, now, columns = snapshot.manifest.items, _now(snapshot), snapshot.columns
    some = np.random.default_rng(plan.seed).choice(items, max(1, round(items * plan.licensed)), replace=False)
    few = np.zeros(items, np.bool_)
    few[some] = True
    plays, released = columns["plays"], columns["released"]
    current = columns["available_until"] > now
    popular = np.argsort(-plays, kind="stable")
    newest = np.lexsort((-plays, -released.astype(np.int64)))
    newest = newest[(released[newest] > UNKNOWN_DAY) & (released[newest] <= now // _DAY_S)]
    changed: dict[str, NDArray[Any]] = {
        "limits": columns["limits"] | np.uint8(Limit.MARKETS),
        "market_bits": np.where(few, 3, 1).astype(np.uint64)[:, None],
    }
    for name, order in (("popular", popular), ("newest", newest)):
        depth = columns[name].shape[1]
        nowhere = np.full(depth, -1, np.int32)
        changed[name] = np.stack((nowhere, _first(order, current, depth), _first(order, current & few, depth)))
    return replace(snapshot, columns={**columns, **changed}, market_index={_ALL: 0, _FEW: 1})


def _first(order: NDArray[np.int64], allowed: NDArray[np.bool_], depth: int) -> NDArray[np.int32]:
    rows = order[allowed[order]][:depth]
    return np.pad(rows, (0, depth - len(rows)), constant_values=-1).astype(np.int32)


def _now(snapshot: Snapshot) -> int:
    """The midnight after the snapshot's newest listens, so that the same snapshot gives the same pages."""
    day = date.fromisoformat(snapshot.manifest.as_of or _LAST_DAY)
    return ((day - date(1970, 1, 1)).days + 1) * _DAY_S


def drawn(users: Sequence[str], count: int, rng: np.random.Generator) -> Requests:
    """Listeners drawn by Zipf's law, each in a session of its own; uniform numbers make their places log-uniform."""
    places = np.minimum((len(users) + 1.0) ** rng.random(count) - 1, len(users) - 1).astype(np.int64)
    seeds = rng.integers(2**63, size=count)
    return [(users[place], seed) for place, seed in zip(places.tolist(), seeds.tolist(), strict=True)]


def _serve(
    case: Case, requests: Requests, records: Mapping[str, bytes], encode: Encode, clock: Callable[[], float]
) -> Floats:
    """Serves requests in batches: microseconds by stage and of all, shelves, items, each per request, `[batch, 11]`."""
    served, now = [], _now(case.snapshot)
    for start in range(0, len(requests), case.batch):
        some = requests[start : start + case.batch]
        queries = tuple(
            HomeQuery(user_id=user, surface=case.surface, now=now, market=case.market, seed=seed) for user, seed in some
        )
        seconds, homes = _timed(queries, [records[user] for user, _ in some], case.snapshot, encode, clock)
        shelves = sum(len(page.shelves) for page in homes)
        items = sum(len(shelf.rows) for page in homes for shelf in page.shelves)
        served.append(np.array([*(1e6 * one for one in seconds), shelves, items]) / len(some))
    return np.stack(served)


def _timed(
    queries: tuple[HomeQuery, ...], frames: list[bytes], snapshot: Snapshot, encode: Encode, clock: Callable[[], float]
) -> tuple[list[float], tuple[Home, ...]]:
    """Pages of a batch, and the seconds of each stage and of all."""
    manifest = snapshot.manifest
    begun = clock()
    listeners = decode(frames, space_id=snapshot.space_id, dimension=manifest.dimension, genres=len(manifest.genres))
    decoded = clock()
    homes, trace = assemble(queries, listeners, snapshot, clock=clock)
    assembled = clock()
    for page in homes:
        encode(page, snapshot)
    ended = clock()
    return [decoded - begun, *(s for _, s in trace.stages), ended - assembled, ended - begun], homes


def _figures(case: Case, served: Floats) -> Figures:
    medians = np.median(served[:, : len(STAGES) + 1], axis=0).tolist()
    shelves, items = served[:, len(STAGES) + 1 :].mean(axis=0).tolist()
    return Figures(
        preset=case.preset,
        batch=case.batch,
        licensed=case.licensed,
        batches=len(served),
        micros=dict(zip(STAGES, medians[:-1], strict=True)),
        total=medians[-1],
        shelves=shelves,
        items=items,
    )


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps the calling thread on one core, if there are more: moving costs its caches."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})  # interrupts tend to go to the first
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
