"""The gate: whether a snapshot that was built well is good enough to serve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.errors import GateRefused
from features.snapshot import Snapshot

Columns = Mapping[str, NDArray[Any]]
"""Columns of the snapshot format."""
POPULAR = 1_000
NEIGHBOURS = 20
_BLOCK = 1 << 18


MEANINGS: Final = {
    "recall": "share of the true best items that the index finds",
    "coverage": "share of listeners with a usable vector: finite in float16, not zero",
    "finite": "share of items with a finite vector",
    "unplayed_lift": "how much more often unplayed items are found than by chance",
    "rejected": "share of the rows read that break a rule",
    "shortest_list": "popular items of the worst market, for each of 12, or of all it may show",
    "item_ratio": "items for each item of the snapshot before",
    "popular_overlap": "share of the popular items before that still are",
    "neighbour_overlap": "share of popular items' neighbours before that still are",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """The limit of each figure of MEANINGS, named after it. The last three compare with the snapshot before."""

    min_recall: float = 0.95
    min_coverage: float = 0.99
    min_finite: float = 1.0
    max_unplayed_lift: float = 1.0
    max_rejected: float = 0.05
    min_shortest_list: float = 0.5
    min_item_ratio: float = 0.5
    min_popular_overlap: float = 0.3
    min_neighbour_overlap: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A figure beside its limit."""

    name: str
    figure: float
    limit: str
    passed: bool


def checks(figures: Mapping[str, float], limits: GateLimits) -> list[Check]:
    """Each figure that has a limit beside it, in the order of the limits; one that is not a number fails."""
    found = []
    for limit in fields(limits):
        side, name = limit.name.split("_", 1)
        if name in figures:
            figure, bound = figures[name], getattr(limits, limit.name)
            passed, word = (figure >= bound, "at least") if side == "min" else (figure <= bound, "at most")
            found.append(Check(name=name, figure=figure, limit=f"{word} {bound:g}", passed=passed))
    return found


def table(found: Sequence[Check]) -> str:
    """The checks as lines of text: figure, value, limit, whether it is beyond, and what the figure means."""
    return "\n".join(
        f"{check.name:18} {check.figure:<8.4g} {check.limit:14} {'' if check.passed else 'REFUSED':8} "
        f"{MEANINGS[check.name]}"
        for check in found
    )


def pass_gate(figures: Mapping[str, float], limits: GateLimits, *, refuse: bool = True) -> None:
    """Lets figures pass that keep the limits; any, where it is not to refuse.

    Raises:
        GateRefused: one does not; the message tells all of them.
    """
    found = checks(figures, limits)
    if refuse and not all(check.passed for check in found):
        raise GateRefused(
            f"the snapshot is not good enough to serve:\n{table(found)}\n"
            "Mend the data or the settings; or keep it all the same with --force."
        )


def unplayed_lift(found: NDArray[np.int64], plays: NDArray[np.int64]) -> float:
    """The share of unplayed items among the rows found, over their share of the catalogue; 0 where all are played.

    `found` is `[query, depth]` rows, -1 none; `plays` is `[item]`.
    """
    share = float((plays == 0).mean())
    return float((plays[found[found >= 0]] == 0).mean()) / share if share else 0.0


def finite_share(vectors: NDArray[np.float32]) -> float:
    """The share of vectors `[item, D]` without a number that is infinite or none."""
    finite = sum(
        int(np.isfinite(vectors[start : start + _BLOCK]).all(axis=1).sum()) for start in range(0, len(vectors), _BLOCK)
    )
    return finite / len(vectors)


def drift(now: Columns, before: Snapshot) -> dict[str, float]:
    """How much is as it was: items, the most popular worldwide, their neighbours; 1 where there was nothing."""
    keys, old_keys = now["item_key"], before.columns["item_key"]
    popular = _keys(keys, now["popular"][0, :POPULAR])
    old_popular = _keys(old_keys, before.columns["popular"][0, :POPULAR])
    shared = np.intersect1d(popular, old_popular)
    return {
        "item_ratio": len(keys) / len(old_keys),
        "popular_overlap": len(shared) / len(old_popular) if len(old_popular) else 1.0,
        "neighbour_overlap": _neighbour_overlap(now, before.columns, shared),
    }


def _neighbour_overlap(now: Columns, before: Columns, items: NDArray[np.uint64]) -> float:
    shares = []
    for item in items:
        ours, theirs = _neighbours(now, item), _neighbours(before, item)
        if len(theirs):
            shares.append(len(np.intersect1d(ours, theirs)) / len(theirs))
    return float(np.mean(shares)) if shares else float(not len(before["neighbour_row"]))


def _neighbours(columns: Columns, item: np.uint64) -> NDArray[np.uint64]:
    row = np.searchsorted(columns["item_key"], item)
    place = np.searchsorted(columns["neighbour_row"], row)
    if place == len(columns["neighbour_row"]) or columns["neighbour_row"][place] != row:
        return np.empty(0, np.uint64)
    return _keys(columns["item_key"], columns["neighbour"][place, :NEIGHBOURS])


def _keys(keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    return keys[rows[rows >= 0]]
