"""What `mantel replay` reports: whether pages come out as they were, and what a change would make of them."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from server.face import console, table
from server.page_record import Page
from server.replay import Check, Diff, Pair, most_changed

Title = Callable[[Pair, int], str]
SHOWN: Final = 20  # different pages in a table


def checked(found: Check, *, as_json: bool) -> None:
    """A Check."""
    total = found.equal + len(found.different)
    rows = [(one.page_id, one.user_id, one.method, where) for one, where in found.different]
    if as_json:
        names = ("page_id", "user_id", "method", "where")
        different = [dict(zip(names, row, strict=True)) for row in rows]
        said = {"replayed": total, "equal": found.equal, "different": different}
        print(json.dumps(said | {"impossible": dict(found.impossible)}))
        return
    out = console()
    out.print(f"replay of {total:,} logged pages: {found.equal:,} equal", highlight=False)
    if rows:
        out.print(table("different", ("page", "listener", "method", "first in"), rows[:SHOWN]))
    _impossible(found.impossible)


def compared(found: Diff, title: Title, *, k: int, most: int, as_json: bool) -> None:
    """A Diff; `title` names the items of the pages that are shown."""
    changed, said = most_changed(found.pairs, most), summary(found, k)
    if as_json:
        print(json.dumps(said | {"most_changed": [_told(pair) for pair in changed]}))
        return
    out = console()
    rows = [(name.replace("_", " "), _figure(value)) for name, value in said.items() if not isinstance(value, dict)]
    out.print(table("changed, against served", ("", "value"), rows))
    shelves = [(name, *counts.values()) for name, counts in said["shelves"].items()]
    out.print(table("shelves, on how many pages", ("shelf", "served", "would be", "changed"), shelves))
    _impossible(found.impossible)
    for pair in changed:
        out.print(side_by_side(pair, title))


def summary(found: Diff, k: int) -> dict[str, Any]:
    """The figures of a Diff."""
    pairs = found.pairs
    overlaps, rbos = (np.array([getattr(pair, name) for pair in pairs]) for name in ("overlap", "rbo"))
    shelves: dict[str, dict[str, int]] = {}
    for pair in pairs:
        before, after = _ids(pair.control), _ids(pair.treatment)
        for name in dict.fromkeys([*before, *after]):
            counts = shelves.setdefault(name, {"served": 0, "would_be": 0, "changed": 0})
            counts["served"] += name in before
            counts["would_be"] += name in after
            counts["changed"] += name in pair.changed
    return {
        "pages": len(pairs),
        "pages_without_change": sum(not pair.changed and _ids(pair.control) == _ids(pair.treatment) for pair in pairs),
        "shelves_changed": _share(shelves),
        f"overlap_at_{k}_mean": float(overlaps.mean()) if pairs else None,
        f"overlap_at_{k}_worst": float(overlaps.min()) if pairs else None,
        "rbo_mean": float(rbos.mean()) if pairs else None,
        "rbo_worst": float(rbos.min()) if pairs else None,
        "shelves": shelves,
        "impossible": dict(found.impossible),
    }


def side_by_side(pair: Pair, title: Title) -> RenderableType:
    """A page as it was served beside what it would be; what is gone is struck out, what is new is green."""
    before, after = (
        {shelf["id"]: shelf["items"] for shelf in page["shelves"]} for page in (pair.control, pair.treatment)
    )
    shown, would = ({key for items in page.values() for key in items} for page in (before, after))
    heading = f"{pair.sample.user_id} · page {pair.sample.page_id} · RBO {pair.rbo:.3f}"
    drawn = Table(title=heading, title_justify="left", header_style="bold")
    for name in ("shelf", "served", "would be"):
        drawn.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if name == "shelf" else 2)
    for name in dict.fromkeys([*after, *before]):
        if name not in pair.changed:
            drawn.add_row(name, Text(f"{len(before[name])} items, the same", "dim"), "", end_section=True)
            continue
        left, right = before.get(name, []), after.get(name, [])
        for place in range(max(len(left), len(right))):
            old = (
                Text(title(pair, left[place]), "" if left[place] in would else "red strike")
                if place < len(left)
                else ""
            )
            new = (
                Text(title(pair, right[place]), "" if right[place] in shown else "green") if place < len(right) else ""
            )
            drawn.add_row(name if not place else "", old, new, end_section=place == max(len(left), len(right)) - 1)
    return drawn


def _ids(page: Page) -> list[str]:
    return [shelf["id"] for shelf in page["shelves"]]


def _share(shelves: Mapping[str, Mapping[str, int]]) -> float | None:
    """The share of shelves, before and after, that changed."""
    either = sum(max(counts["served"], counts["would_be"]) for counts in shelves.values())
    return sum(counts["changed"] for counts in shelves.values()) / either if either else None


def _told(pair: Pair) -> dict[str, Any]:
    keys = {"served": pair.control, "would_be": pair.treatment}
    pages = {name: {shelf["id"]: shelf["items"] for shelf in page["shelves"]} for name, page in keys.items()}
    figures = {"overlap": pair.overlap, "rbo": pair.rbo, "changed": list(pair.changed)}
    return {"page_id": pair.sample.page_id, "user_id": pair.sample.user_id, **figures, **pages}


def _figure(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _impossible(causes: Mapping[str, int]) -> None:
    if causes:
        rows = [(cause, f"{count:,}") for cause, count in sorted(causes.items(), key=lambda one: -one[1])]
        console().print(table("not replayed", ("why", "pages"), rows))
