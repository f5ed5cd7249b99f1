"""How Mantel looks in a terminal: pages as shelves of cards, tables, and progress."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from protos.home.v1 import home_pb2

CARD_WIDTH = 29  # four in 120
AS_TYPED: Mapping[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}  # for text to copy


def page(
    user_id: str, home: home_pb2.GetHomeResponse, seconds: float, captions: Mapping[str, str] | None = None
) -> RenderableType:
    """A page as a listener would see it; below it, how it was made. `captions` are third lines by item id."""
    parts: list[RenderableType] = []
    for shelf in home.shelves:
        why = shelf.reason.text
        said = "" if why.lower() in shelf.title.lower() else f"  {why}"
        heading = Text.assemble((shelf.title, "bold"), (said, "dim italic"))
        parts += [Text(), heading, Columns([_card(item, captions) for item in shelf.items], padding=(0, 1))]
    if not home.shelves:
        parts.append(Text("an empty page", "yellow"))
    made = [f"{user_id}", f"{seconds * 1000:.1f} ms", f"snapshot {home.snapshot_version[:12]}", f"id {home.request_id}"]
    if home.cold_start:
        made.append("cold start: nothing is known of this listener")
    if home_pb2.NOTE_LISTENER_FOLDED_IN in home.notes:
        made.append("known by recent plays only")
    parts += [Text(), Text(" · ".join(made), "dim")]
    parts += [Text(_arm(one), "dim") for one in home.assignments]
    paid = [item for shelf in home.shelves for item in shelf.items if item.HasField("promotion")]
    parts += [Text(f"promoted: {item.title}. {item.promotion.why}", "yellow") for item in paid]
    if home.degraded:
        names = [home_pb2.DegradedReason.Name(one).removeprefix("DEGRADED_REASON_") for one in home.degraded_reasons]
        parts.append(Text(f"degraded: {', '.join(names)} · coverage {home.coverage} %", "yellow"))
    return Group(*parts)


def _arm(served: home_pb2.Assignment) -> str:
    by = {"bucket": "drawn", "allow_list": "by the allow list", "override": "as the caller forced"}
    return f"experiment {served.experiment}: arm {served.arm}, {by.get(served.reason, served.reason)}"


def page_json(home: home_pb2.GetHomeResponse, seconds: float) -> str:
    """A page as JSON, with the time it took."""
    told = MessageToDict(home, preserving_proto_field_name=True) | {"seconds": round(seconds, 6)}
    return json.dumps(told, indent=1, ensure_ascii=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table; every column but the first is right-aligned."""
    drawn = Table(title=title, title_justify="left", header_style="bold")
    for number, name in enumerate(columns):
        drawn.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        drawn.add_row(*map(str, row))
    return drawn


def console() -> Console:
    """The terminal; where output is no terminal, lines are 120 wide."""
    found = Console()
    return found if found.is_terminal else Console(width=120)


def favourites(user_id: str, rows: Sequence[tuple[str, str, str, int]]) -> Table:
    """What a listener plays most, each on one line."""
    drawn = table(f"{user_id} plays most", ("title", "", "genres", "plays"), rows)
    for column in drawn.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    return drawn


@contextmanager
def progress(*, quiet: bool = False, still: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (stage, done, total) that draws one bar per stage; a total of 0 is not known.

    Of what is interrupted or fails no half-drawn bar stays. Still bars are drawn in the callback only, by no thread of
    their own, which would disturb what is measured.
    """
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
        auto_refresh=not still,
    )
    tasks: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            _finish(bars, tasks)
            tasks[stage] = bars.add_task(stage, total=total or None)
        bars.update(tasks[stage], completed=done, total=total or None, refresh=still)

    try:
        with bars:
            try:
                yield tell
            except BaseException:
                bars.live.transient = True
                raise
            _finish(bars, tasks)
    except KeyboardInterrupt:
        bars.console.print("interrupted")
        raise SystemExit(128 + signal.SIGINT) from None


def _finish(bars: Progress, tasks: dict[str, Any]) -> None:
    """Fills the bar of the stage that has ended."""
    if tasks:
        last = bars.tasks[-1]
        total = last.total or max(1, int(last.completed))
        bars.update(last.id, completed=total, total=total)


def _card(item: home_pb2.Item, captions: Mapping[str, str] | None) -> Panel:
    lines = [Text(item.title, "bold"), Text(item.subtitle, "dim")]
    if captions is not None:
        lines.append(Text(captions.get(item.item_id, ""), "italic"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    if item.HasField("promotion"):
        lines.append(Text(f"promoted by {item.promotion.payer}", "yellow"))  # wraps: who pays is never cut
    return Panel(Group(*lines), width=CARD_WIDTH, padding=(0, 1))
