"""From what was measured to a verdict: pass, fail, or none where the generator was the bottleneck."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest import calls as calls_
from loadtest.calls import Calls
from loadtest.run import Measured
from loadtest.slo import Slo
from loadtest.traffic import EVENTS, KINDS, NEXT, PREFETCH

QUANTILES: Final = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
_MILLIS: Final = 1000.0


class Outcome(StrEnum):
    """How a run ended."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run comes to. Latencies are milliseconds from when calls were due; NaN: there was no such call."""

    seconds: float
    rate: float  # calls a second that were due
    pages: int  # first and next pages that were not refused: those that latencies and shares are of
    latency: Mapping[str, float]  # by quantile, as QUANTILES names it
    errors: float  # shares, as slo.toml says
    refused: float
    degraded: float
    thin: float
    cold: float
    goodput: float
    refused_p99_ms: float
    by_kind: Mapping[str, Mapping[str, float]]  # kind -> calls, rate, errors, refused and quantiles
    codes: Mapping[str, int]  # status -> calls
    page_bytes: float  # mean
    lag_p50_ms: float  # how late calls were sent
    lag_p99_ms: float
    busy: float  # of the busiest generator
    sent: float  # share of the calls due that were sent before the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One bound, and what was measured against it."""

    name: str
    what: str
    unit: str  # "ms", "share" or "rate"
    bound: float
    measured: float
    kept: bool | None  # None: too few calls to say


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the promise was kept."""

    outcome: Outcome
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]  # why it failed, or why there is no verdict

    @property
    def exit_code(self) -> int:
        """0, 1 or 2."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.NONE: 2}[self.outcome]


def figures(measured: Measured, slo: Slo) -> Figures:
    """What a run comes to; the promise says which pages are thin, and how soon a good one is there."""
    rows = measured.calls
    kind, code = rows["kind"], rows["code"]
    ok, refused = code == calls_.OK, code == calls_.REFUSED
    of_pages, prefetch = (kind != EVENTS) & (kind != PREFETCH), kind == PREFETCH
    pages = of_pages & ~refused
    millis = (rows["done"] - rows["due"]) * _MILLIS
    thin = ok & np.where(
        kind == NEXT, rows["items"] == 0, (rows["shelves"] < slo.thin_shelves) | (rows["items"] < slo.thin_items)
    )
    good = pages & ok & ~thin & (millis <= (slo.p99_ms or np.inf))
    lag = (rows["sent"] - rows["due"]) * _MILLIS
    return Figures(
        seconds=measured.seconds,
        rate=rows.size / measured.seconds,
        pages=int(pages.sum()),
        latency=_quantiles(millis[pages]),
        errors=_share(~ok & ~refused),
        refused=_share(refused[~prefetch]),
        degraded=_share(rows["degraded"][pages]),
        thin=_share(thin[pages]),
        cold=_share(rows["cold"][pages]),
        goodput=int(good.sum()) / measured.seconds,
        refused_p99_ms=_quantiles(((rows["done"] - rows["sent"]) * _MILLIS)[refused])["p99_ms"],
        by_kind=_by_kind(rows, millis, measured.seconds),
        codes={
            calls_.NAMES[int(one)]: int(count) for one, count in zip(*np.unique(code, return_counts=True), strict=True)
        },
        page_bytes=float(rows["bytes"][pages & ok].mean()) if (pages & ok).any() else np.nan,
        lag_p50_ms=_quantiles(lag)["p50_ms"],
        lag_p99_ms=_quantiles(lag)["p99_ms"],
        busy=max(measured.busy, default=np.nan),
        sent=_share(rows["sent"] <= measured.seconds),
    )


def judge(found: Figures, slo: Slo, *, closed: bool = False) -> Verdict:
    """Whether a promise was kept; of closed users, whose rate is what they get, no rate is asked."""
    checks = tuple(_checks(found, slo))
    if excuses := tuple(_bottlenecks(found, slo, closed=closed)):
        return Verdict(outcome=Outcome.NONE, checks=checks, reasons=excuses)
    if broken := tuple(_told(check) for check in checks if check.kept is False):
        return Verdict(outcome=Outcome.FAIL, checks=checks, reasons=broken)
    if unknown := tuple(f"too few pages for {check.name}: {found.pages}" for check in checks if check.kept is None):
        return Verdict(outcome=Outcome.NONE, checks=checks, reasons=unknown)
    return Verdict(outcome=Outcome.PASS, checks=checks, reasons=())


def shown(value: float, unit: str) -> str:
    """A figure as a person reads it."""
    if np.isnan(value):
        return "none"
    return {"ms": f"{value:.2f} ms", "share": f"{value:.3%}", "rate": f"{value:,.0f}/s"}[unit]


def _checks(found: Figures, slo: Slo) -> list[Check]:
    """Each bound that the promise has, in the order of its file."""
    rows = []
    for name, what in (("p50_ms", "pages, p50"), ("p99_ms", "pages, p99"), ("p999_ms", "pages, p99.9")):
        enough = found.pages * (1 - QUANTILES[name]) >= 1  # else the quantile is the slowest page
        rows.append((name, what, "ms", found.latency[name], enough))
    rows += [
        ("errors", "errors", "share", found.errors, found.rate > 0),
        ("refused", "refused", "share", found.refused, found.rate > 0),
        ("degraded", "degraded pages", "share", found.degraded, found.pages > 0),
        ("thin", "empty or thin pages", "share", found.thin, found.pages > 0),
        ("goodput", "goodput, at least", "rate", found.goodput, True),
        ("refused_p99_ms", "refusals, p99", "ms", found.refused_p99_ms, True),
    ]
    return [
        Check(
            name=name, what=what, unit=unit, bound=bound, measured=value, kept=_kept(name, value, bound, enough=enough)
        )
        for name, what, unit, value, enough in rows
        if (bound := getattr(slo, name)) is not None
    ]


def _kept(name: str, value: float, bound: float, *, enough: bool) -> bool | None:
    if name == "goodput":
        return value >= bound
    if name == "refused_p99_ms" and np.isnan(value):
        return True  # nothing was refused
    return value <= bound if enough else None


def _bottlenecks(found: Figures, slo: Slo, *, closed: bool) -> list[str]:
    """In what the generator fell short."""
    limits, told = slo.generator, []
    if not closed:
        if found.lag_p50_ms > limits.lag_p50_ms:
            told.append(f"the generator sent half of its calls over {found.lag_p50_ms:.1f} ms late")
        if found.lag_p99_ms > limits.lag_p99_ms:
            told.append(f"the generator sent one call in a hundred over {found.lag_p99_ms:.1f} ms late")
        if found.sent < limits.sent:
            told.append(f"the generator sent {found.sent:.1%} of what was due in time")
    if found.busy > limits.busy:
        told.append(f"a generator used {found.busy:.0%} of its core: give it more --processes, or cores of its own")
    return told


def _told(check: Check) -> str:
    side = "below" if check.name == "goodput" else "above"
    return f"{check.name} is {shown(check.measured, check.unit)}, {side} {shown(check.bound, check.unit)}"


def _by_kind(rows: Calls, millis: NDArray[np.float64], seconds: float) -> dict[str, dict[str, float]]:
    told = {}
    for number, name in enumerate(KINDS):
        mine = rows["kind"] == number
        if mine.any():
            code = rows["code"][mine]
            refused = code == calls_.REFUSED
            told[name] = {
                "calls": float(mine.sum()),
                "rate": float(mine.sum()) / seconds,
                "errors": _share((code != calls_.OK) & ~refused),
                "refused": _share(refused),
                **_quantiles(millis[mine][~refused]),
            }
    return told


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    """The value that a share of the values do not exceed, by name; it is one of them."""
    if not values.size:
        return dict.fromkeys(QUANTILES, np.nan)
    found = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return dict(zip(QUANTILES, found.tolist(), strict=True))


def _share(of: NDArray[np.bool_]) -> float:
    return float(of.mean()) if of.size else 0.0
