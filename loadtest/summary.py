"""What a simulation comes to, as plain values: how much of the pages fitted, what listeners did, what went wrong."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from loadtest.listeners import Simulation, Visited

STEPS: Final = ((1, 5), (6, 15), (16, 30), (31, 200))
"""Steps that are told together, from and to, counted from 1."""


def summary(done: Simulation) -> dict[str, Any]:
    """The on-intent share by steps and by arms, pages, events by kind and result, and errors; for JSON."""
    visits = done.visits
    kinds: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, result), count in sorted(done.events.items()):
        kinds[kind][result] = count
    arms = sorted({arm for visit in visits for arm in visit.arms})
    return {
        "pages": len(visits),
        "listeners": len({visit.user_id for visit in visits}),
        "intents": dict(Counter(visit.intent for visit in visits if visit.step == 0).most_common()),
        "degraded": sum(visit.degraded for visit in visits),
        "empty": sum(not visit.items for visit in visits),
        "promoted_seen": sum(visit.promoted for visit in visits),
        "milliseconds": _milliseconds(visits),
        "steps": [
            {"steps": f"{first}-{min(last, _last(visits))}"}
            | _shares(one for one in visits if first <= one.step + 1 <= last)
            for first, last in STEPS
            if first <= _last(visits)
        ],
        "arms": [{"arm": arm} | _shares(visit for visit in visits if arm in visit.arms) for arm in arms],
        "events": dict(kinds),
        "errors": dict(sorted(done.errors.items())),
    }


def _last(visits: Sequence[Visited]) -> int:
    """The last step, counted from 1."""
    return max((visit.step + 1 for visit in visits), default=0)


def _shares(visits: Iterable[Visited]) -> dict[str, Any]:
    """How many pages, and the mean share that fitted of what was shown and of what was looked at; None: of nothing."""
    some = list(visits)
    means: dict[str, Any] = {}
    for name in ("shown", "seen"):
        shares = np.array([getattr(visit, name) for visit in some])
        shares = shares[~np.isnan(shares)]
        means[name] = round(float(shares.mean()), 4) if len(shares) else None
    return {"pages": len(some), **means}


def _milliseconds(visits: Sequence[Visited]) -> Mapping[str, float]:
    """How long pages took, of listeners who wait for one another: no figure of the server's speed."""
    if not visits:
        return {}
    took = np.quantile([visit.seconds * 1000 for visit in visits], (0.5, 0.99))
    return dict(zip(("p50", "p99"), took.round(2).tolist(), strict=True))
