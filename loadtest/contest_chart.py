"""A contest as one picture, SVG: CPU per request and requests a second of each server, in light and in dark."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from loadtest.contest import Row

WIDTH: Final = 860  # of a README's column
LEFT, GAP, PAD = 176, 28, 62  # before the bars, between the two charts, behind the longest bar
BAR, ROW_GAP, TOP, FOOT = 11, 16, 92, 66
OURS: Final = "ours"
_STYLE: Final = """
.page{fill:#ffffff}text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2933}
.title{font-size:17px;font-weight:600}.head{font-weight:600}.faint{fill:#6b7785;font-size:12px}.value{font-size:11px}
.axis{stroke:#c9d1d9}.ours{fill:#0f766e}.ceiling{fill:#8896a5}.peer{fill:#d0752b}.strong{font-weight:600}
@media (prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e2e8f0}.faint{fill:#94a3b3}.axis{stroke:#39424e}
.ours{fill:#2dd4bf}.ceiling{fill:#7d8b99}.peer{fill:#f0a35e}}
"""


def chart(rows: Sequence[Row], kinds: Mapping[str, str], *, title: str, notes: Sequence[str]) -> str:
    """The picture; `kinds` tells of each contestant whether it is `ours`, a `ceiling` or a `peer`."""
    names = list(dict.fromkeys(row.name for row in rows))
    levels = sorted({row.in_flight for row in rows})
    at = {(row.name, row.in_flight): row for row in rows}
    block = len(levels) * BAR + ROW_GAP
    bottom = TOP + block * len(names)
    height, width = bottom + FOOT + 17 * len(notes), (WIDTH - LEFT - GAP) / 2
    drawn = [f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>', _text(20, 32, title, "title")]
    for number, name in enumerate(names):
        y = TOP + block * number + len(levels) * BAR / 2 + 4
        drawn.append(_text(LEFT - 12, y, name, "strong" if kinds[name] == OURS else "", end=True))
    for number, (head, what, unit) in enumerate(
        (("CPU per request", "less is better", "µs"), ("requests a second", "more is better", ""))
    ):
        x = LEFT + number * (width + GAP)
        values = {key: row.rate if number else row.cpu_us for key, row in at.items()}
        scale = (width - PAD) / max(*values.values(), 1e-9)
        drawn.append(_text(x, 64, head, "head"))
        drawn.append(_text(x, 81, f"{unit + ', ' if unit else ''}on one core; {what}", "faint"))
        drawn.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{TOP - 4}" y2="{bottom - ROW_GAP + 4}"/>')
        for place, name in enumerate(names):
            bars = [(level, values[name, level]) for level in levels if (name, level) in values]
            drawn += _bars(x, TOP + block * place, bars, scale, kinds[name], levels)
    drawn += _legend(levels, bottom + 12)
    drawn += [_text(20, bottom + 52 + 17 * number, note, "faint") for number, note in enumerate(notes)]
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style>{''.join(drawn)}</svg>\n"


def _bars(
    x: float, y: float, bars: Sequence[tuple[int, float]], scale: float, kind: str, levels: Sequence[int]
) -> Iterator[str]:
    """A server's bars, one for each number of calls in flight, with their values behind them."""
    for number, (level, value) in enumerate(bars):
        top, length = y + BAR * number, max(1.0, value * scale)
        shade = f'fill-opacity="{_shade(level, levels):.2f}"'
        yield f'<rect class="{kind}" {shade} x="{x}" y="{top}" width="{length:.1f}" height="{BAR - 2}" rx="1.5"/>'
        yield _text(x + length + 5, top + BAR - 2.5, f"{value:,.0f}", "value")


def _legend(levels: Sequence[int], y: float) -> Iterator[str]:
    x = float(LEFT)
    for level in levels:
        shade = f'fill-opacity="{_shade(level, levels):.2f}"'
        yield f'<rect class="ours" {shade} x="{x}" y="{y}" width="18" height="9" rx="1.5"/>'
        words = f"{level} call{'s' if level > 1 else ''} in flight"
        yield _text(x + 24, y + 9, words, "faint")
        x += 52 + 6.4 * len(words)


def _shade(level: int, levels: Sequence[int]) -> float:
    """The more calls in flight, the fuller the colour."""
    return 1.0 if len(levels) == 1 else 0.4 + 0.6 * levels.index(level) / (len(levels) - 1)


def _text(x: float, y: float, words: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(words)}</text>'
