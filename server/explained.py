"""An explained page in a terminal: stages, params, an item's fate, and the page that other params would make."""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from protos.home.v1 import home_pb2
from server.face import console, table

Page = home_pb2.GetHomeResponse


def show(found: home_pb2.ExplainHomeResponse, item_id: str) -> None:
    """Prints what `ExplainHome` answers: of one item where one is named, else of the whole page."""
    screen = console()
    for part in _parts(found, item_id):
        screen.print(part, soft_wrap=isinstance(part, Text))  # a sentence stays on one line, for grep


def _parts(found: home_pb2.ExplainHomeResponse, item_id: str) -> list[RenderableType]:
    parts: list[RenderableType] = [*_state(found.response), _stages(found)]
    if item_id:
        parts += [Text(), *map(_fate, found.fates)]
    else:
        parts += [Text(), _params(found), Text(), _scores(found)]
    if found.HasField("what_if"):
        parts += [Text(), Text("what if", "bold"), *_changed(found), *map(_fate, found.what_if_fates)]
        parts += [Text(), *_difference(found.response, found.what_if)]
    return parts


def _state(page: Page) -> Iterator[Text]:
    """What the page is made of: its shelves in order, what failed, what is known of the listener."""
    yield Text("shelves: " + ", ".join(f"{shelf.id} {len(shelf.items)}" for shelf in page.shelves))
    if page.cold_start:
        yield Text("cold start: nothing is known of this listener")
    if home_pb2.NOTE_LISTENER_FOLDED_IN in page.notes:
        yield Text("known by recent plays only")
    if page.degraded:
        names = [home_pb2.DegradedReason.Name(one).removeprefix("DEGRADED_REASON_") for one in page.degraded_reasons]
        yield Text(f"degraded: {', '.join(names)} · coverage {page.coverage} %", "yellow")


def _fate(one: home_pb2.ItemFate) -> Text:
    return Text(f"{one.stage:<9}{one.fate:<15}{one.text}")


def _changed(found: home_pb2.ExplainHomeResponse) -> Iterator[Text]:
    """Which params would have another value."""
    before, after = ({value.name: value for value in page} for page in (found.params, found.what_if_params))
    for name in dict.fromkeys((*before, *after)):
        general = name.rpartition(".")[2]
        old, new = before.get(name) or before[general], after.get(name) or after[general]
        if old.value != new.value:
            yield Text(f"{name}: {old.value} ({old.origin}) -> {new.value} ({new.origin})")


def _stages(found: home_pb2.ExplainHomeResponse) -> Table:
    rows = [
        (
            stage.stage,
            f"{stage.micros:,.0f}",
            ", ".join(f"{name} {count}" for name, count in sorted(stage.fates.items())),
        )
        for stage in found.stages
    ]
    return table("stages", ("stage", "us for the batch", "candidates by fate"), rows)


def _params(found: home_pb2.ExplainHomeResponse) -> Table:
    rows = [(value.name, value.value, value.origin) for value in found.params]
    return table("params", ("param", "value", "from"), rows)


def _scores(found: home_pb2.ExplainHomeResponse) -> Table:
    titles = {item.item_id: item.title for shelf in found.response.shelves for item in shelf.items}
    rows = [
        (one.shelf_id, one.item_id, titles[one.item_id], *(f"{one.terms[name]:+.3f}" for name in _names(found)))
        for one in found.scores
    ]
    return table("scores", ("shelf", "item", "title", *_names(found)), rows)


def _names(found: home_pb2.ExplainHomeResponse) -> list[str]:
    return sorted({name for one in found.scores for name in one.terms})


def _difference(before: Page, after: Page) -> list[RenderableType]:
    """Which items each shelf would lose and gain."""
    old, new = _shelves(before), _shelves(after)
    out: list[RenderableType] = []
    if list(old) != list(new):
        out += [Text(f"shelves before: {', '.join(old)}"), Text(f"shelves after:  {', '.join(new)}")]
    for name in dict.fromkeys((*old, *new)):
        lost = [title for item, title in old.get(name, {}).items() if item not in new.get(name, {})]
        gained = [title for item, title in new.get(name, {}).items() if item not in old.get(name, {})]
        moved = list(old.get(name, {})) != list(new.get(name, {})) and not lost and not gained
        said = "the same items in another order" if moved else "unchanged"
        out.append(Text(f"{name}: {said}" if not lost and not gained else f"{name}:"))
        out += [Text(f"  - {title}", "red") for title in lost]
        out += [Text(f"  + {title}", "green") for title in gained]
    return out


def _shelves(page: Page) -> Mapping[str, Mapping[str, str]]:
    return {shelf.id: {item.item_id: item.title for item in shelf.items} for shelf in page.shelves}
