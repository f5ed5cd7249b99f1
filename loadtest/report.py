"""A run as one page of HTML that needs nothing else: charts are inline SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from loadtest import calls as calls_
from loadtest.run import Measured
from loadtest.traffic import EVENTS, PREFETCH
from loadtest.verdict import Figures, Verdict, shown

WIDTH, HEIGHT, LEFT, BOTTOM = 860, 260, 64, 28
BUCKETS_A_DECADE: Final = 20  # of the histogram: each 12 % wide; the percentiles are of the calls themselves
_COLOURS: Final = {"p50": "#2b7a78", "p99": "#d9822b", "slowest": "#c0392b", "calls": "#8aa6c1"}
_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;max-width:900px;margin:2em auto;padding:0 1em}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;width:100%}
th,td{padding:.3em .6em;border-bottom:1px solid #e3e8ee;text-align:right}th:first-child,td:first-child{text-align:left}
.pass{color:#1e7e4b}.fail{color:#b3261e}.none{color:#9a6700}svg{width:100%;height:auto}
svg text{font-size:11px;fill:#5b6875}dl{display:grid;grid-template-columns:9em 1fr;gap:.1em 1em}
dt{color:#5b6875}dd{margin:0}
"""
_DASHED: Final = ("p50_ms", "p99_ms")
_SAID: Final = {"pass": "The promise is kept", "fail": "The promise is broken", "none": "No verdict"}
_MARKS: Final = {True: ("kept", "pass"), False: ("broken", "fail"), None: ("too few pages", "none")}
Floats = NDArray[np.float64]


def report(measured: Measured, found: Figures, verdict: Verdict, conditions: Mapping[str, str]) -> str:
    """The report of a run, whole."""
    rows = measured.calls[(measured.calls["kind"] != EVENTS) & (measured.calls["kind"] != PREFETCH)]
    rows = rows[rows["code"] != calls_.REFUSED]
    millis = (rows["done"] - rows["due"]) * 1000
    said, mark = _SAID[verdict.outcome], verdict.outcome.value
    facts = {
        **conditions,
        "generator": f"{found.lag_p50_ms:.2f} ms late at the median, {found.lag_p99_ms:.2f} at p99; "
        f"{found.busy:.0%} of a core",
        "answers": ", ".join(f"{name} {count:,}" for name, count in found.codes.items()),
        "goodput": f"{found.goodput:,.1f} good pages/s",
    }
    parts = [
        f'<h1>Load test: <span class="{mark}">{said}</span></h1>',
        "".join(f"<p>{escape(reason)}</p>" for reason in verdict.reasons),
        _promise(verdict),
        "<h2>Latency of pages over time</h2>",
        f"<p>Each second's calls, from when they were {escape(conditions.get('from', 'due'))}, in milliseconds.</p>",
        _over_time(rows["due"], millis, measured.seconds, verdict),
        "<h2>Calls due, each second</h2>",
        _rate(measured.calls["due"], measured.seconds),
        "<h2>How many pages took how long</h2>",
        _histogram(millis),
        "<h2>By kind of call</h2>",
        _by_kind(found),
        "<h2>How it was measured</h2>",
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(what))}</dd>" for name, what in facts.items())
        + "</dl>",
    ]
    head = f'<meta charset="utf-8"><title>Load test: {said}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _promise(verdict: Verdict) -> str:
    rows = []
    for check in verdict.checks:
        word, mark = _MARKS[check.kept]
        bound, measured = shown(check.bound, check.unit), shown(check.measured, check.unit)
        rows.append((check.what, bound, measured, f'<span class="{mark}">{word}</span>'))
    return _table(("promise", "bound", "measured", ""), rows)


def _by_kind(found: Figures) -> str:
    quantiles = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")
    rows = [
        (
            name,
            f"{row['calls']:,.0f}",
            f"{row['rate']:,.1f}/s",
            f"{row['errors']:.2%}",
            f"{row['refused']:.2%}",
            *(f"{row[quantile]:.2f}" for quantile in quantiles),
        )
        for name, row in found.by_kind.items()
    ]
    return _table(("calls", "count", "rate", "errors", "refused", "p50 ms", "p90", "p99", "p99.9", "max"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _over_time(due: Floats, millis: Floats, seconds: float, verdict: Verdict) -> str:
    """Median, p99 and slowest of each second, on a logarithmic axis; the promised bounds are dashed."""
    second = due.astype(np.int64)
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": [], "slowest": []}
    for one in np.unique(second):
        values = np.quantile(millis[second == one], (0.5, 0.99, 1.0), method="inverted_cdf")
        for name, value in zip(lines, values, strict=True):
            lines[name].append((float(one) + 0.5, float(value)))
    bounds = {check.name.removesuffix("_ms"): check.bound for check in verdict.checks if check.name in _DASHED}
    shown_ = [*bounds.values(), *(value for line in lines.values() for _, value in line)] or [1.0]
    low, high = _decades(min(shown_), max(shown_))
    ticks = [10.0**power for power in range(low, high + 1)]

    def place(at: float, value: float) -> str:
        x = LEFT + at / seconds * (WIDTH - LEFT)
        return f"{x:.1f},{_height(np.log10(max(value, 10.0**low)), low, high):.1f}"

    drawn = [_axis(f"{tick:g}", _height(np.log10(tick), low, high)) for tick in ticks]
    for number, (name, line) in enumerate(lines.items()):
        points = " ".join(place(at, value) for at, value in line)
        drawn.append(f'<polyline fill="none" stroke="{_COLOURS[name]}" stroke-width="1.6" points="{points}"/>')
        drawn.append(f'<text x="{LEFT + 10 + 70 * number}" y="22" style="fill:{_COLOURS[name]}">{name}</text>')
    for name, bound in bounds.items():
        y = _height(np.log10(bound), low, high)
        ends = f'x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"'
        drawn.append(f'<line {ends} stroke="{_COLOURS[name]}" stroke-dasharray="5 4"/>')
    return _svg(drawn + _seconds(seconds))


def _rate(due: Floats, seconds: float) -> str:
    """How many calls were due in each second."""
    counts = np.bincount(due.astype(np.int64), minlength=max(1, int(seconds)))
    top = float(max(1, counts.max()))
    width = (WIDTH - LEFT) / max(counts.size, 1)
    drawn = [_axis(f"{top * share:,.0f}", _height(share, 0, 1)) for share in (0.0, 0.5, 1.0)]
    return _svg(
        drawn + [_bar(LEFT + width * at, width, count / top) for at, count in enumerate(counts)] + _seconds(seconds)
    )


def _histogram(millis: Floats) -> str:
    """How many calls took how long, in buckets of equal ratio, with the quantiles marked."""
    if not millis.size:
        return "<p>No page was answered.</p>"
    floor = np.maximum(millis, 0.01)
    low, high = _decades(float(floor.min()), float(floor.max()))
    edges = np.logspace(low, high, (high - low) * BUCKETS_A_DECADE + 1)
    counts, _ = np.histogram(floor, edges)
    width = (WIDTH - LEFT) / counts.size
    top = float(counts.max())
    drawn = [_axis(f"{top * share:,.0f}", _height(share, 0, 1)) for share in (0.0, 0.5, 1.0)]
    drawn += [_bar(LEFT + width * at, width, count / top) for at, count in enumerate(counts)]
    for power in range(low, high + 1):
        x = LEFT + (power - low) / (high - low) * (WIDTH - LEFT)
        drawn.append(f'<text x="{min(x, WIDTH - 56):.1f}" y="{HEIGHT - 8}">{10.0**power:g} ms</text>')
    for name, share, label in (("p50", 0.5, 20), ("p99", 0.99, 34)):
        at = np.log10(np.quantile(floor, share, method="inverted_cdf"))
        x = LEFT + (at - low) / (high - low) * (WIDTH - LEFT)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{HEIGHT - BOTTOM}" stroke="{_COLOURS[name]}"/>')
        drawn.append(f'<text x="{x + 4:.1f}" y="{label}" style="fill:{_COLOURS[name]}">{name}</text>')
    return _svg(drawn)


def _decades(least: float, most: float) -> tuple[int, int]:
    """The powers of ten around some values, at least one apart."""
    low = int(np.floor(np.log10(max(least, 0.01))))
    return low, max(low + 1, int(np.ceil(np.log10(max(most, 0.01)))))


def _height(value: float, low: float, high: float) -> float:
    return float(8 + (high - value) / (high - low) * (HEIGHT - BOTTOM - 8))


def _axis(label: str, y: float) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e8ee"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def _bar(x: float, width: float, share: float) -> str:
    y = _height(share, 0, 1)
    size = f'width="{max(width - 0.5, 0.5):.2f}" height="{HEIGHT - BOTTOM - y:.1f}"'
    return f'<rect x="{x:.2f}" y="{y:.1f}" {size} fill="{_COLOURS["calls"]}"/>'


def _seconds(seconds: float) -> list[str]:
    marks = [LEFT + share * (WIDTH - LEFT - 40) for share in (0.0, 0.5, 1.0)]
    return [
        f'<text x="{x:.1f}" y="{HEIGHT - 8}">{seconds * share:.0f} s</text>'
        for x, share in zip(marks, (0.0, 0.5, 1.0), strict=True)
    ]


def _svg(drawn: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
