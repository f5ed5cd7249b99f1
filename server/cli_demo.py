"""The demo: a listening world trained, published, served and shown, apart from what the user publishes."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from features.errors import WrongState
from features.state import Endpoints, State
from server.options import StateOption, redis_url
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from protos.client import HomeClient
    from protos.home.v1 import home_pb2

SWAP_S: Final = 30.0  # for a server that runs already to follow the pointer, and any the book


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one page and exit.")] = False,
    listener: Annotated[str, typer.Option(metavar="USER", help="Whose page to show. \\[default: who plays most]")] = "",
    items: Annotated[int, typer.Option(min=300, help="Items of the world.")] = 20_000,
    listeners: Annotated[int, typer.Option(min=10, help="Listeners of the world.")] = 5_000,
    state: StateOption = None,
) -> None:
    """Make a listening world, train on it, publish it, serve it, and show a Home page.

    An experiment runs, and a score feed and a campaign promote items: the page tells its arm, and who pays for what.
    The first run takes about a minute; later ones find everything there. All of it lies in `demo/` of --state, apart
    from what you publish yourself.
    """
    from server import calling, cli_demo_books, face, launch

    folder = load_settings(state=state).state / "demo"
    settings = load_settings(state=folder / "state", redis="", host="127.0.0.1")
    digest = _prepare(settings, folder, items=items, listeners=listeners)
    listener = listener or _keenest(folder / "world")
    with _server(State(settings.state), folder / "serve.log", any_port=once) as (endpoints, ours):
        books = cli_demo_books.apply(State(settings.state), endpoints, folder / "world")
        with calling.home(State(settings.state), endpoints.target) as client:
            home, seconds = _page(client, listener, (digest, *books))
        shown = [item.item_id for shelf in home.shelves for item in shelf.items]
        face.console().print(face.favourites(listener, _favourites(folder / "world", listener)))
        face.console().print(face.page(listener, home, seconds, _genres(folder / "world", shown)))
        if not once:
            face.console().print(_how_to_call(endpoints, settings.state, listener, ours=ours), **face.AS_TYPED)
        if ours and not once:
            launch.until_interrupted()


def _prepare(settings: Settings, folder: Path, *, items: int, listeners: int) -> str:
    """Makes, builds and publishes the demo's world, unless what is published is such a world; answers its digest."""
    from features.keys import Keys
    from features.offline.build import BuildSettings
    from features.offline.build import build as build_snapshot
    from features.offline.publish import connect
    from features.offline.publish import publish as publish_snapshot
    from features.offline.world import WorldSettings, generate
    from features.pointer import read_pointer
    from server import face

    keys, made = Keys(prefix=settings.prefix), folder / "made.json"
    wanted = {"items": items, "listeners": listeners}
    with redis_url(settings) as url, connect(url) as client:
        pointer = read_pointer(client, keys)
        if pointer is not None and _read(made) == wanted | {"digest": pointer.digest}:
            return pointer.digest
        made.unlink(missing_ok=True)
        shutil.rmtree(folder / "snapshot", ignore_errors=True)  # of another world: no drift to measure
        with face.progress() as tell:
            generate(folder / "world", settings=WorldSettings(items=items, listeners=listeners), progress=tell)
            build_snapshot(folder / "world", folder / "snapshot", settings=BuildSettings(), progress=tell)
            report = publish_snapshot(folder / "snapshot", State(settings.state), client, keys, progress=tell)
    made.write_text(json.dumps(wanted | {"digest": report.pointer.digest}))
    return report.pointer.digest


def _read(made: Path) -> object:
    try:
        return json.loads(made.read_bytes())
    except (OSError, ValueError):
        return None


@contextmanager
def _server(state: State, log: Path, *, any_port: bool) -> Iterator[tuple[Endpoints, bool]]:
    """The server that runs on the demo's state, else a new one; and whether it is new.

    Raises:
        WrongState: one runs, and does not answer.
    """
    from server import launch

    try:
        with state.lock("serve", wait=False, held=f"a server is running on {state.path} already"):
            pass
    except WrongState:
        running = state.endpoints()
        if running is None or not launch.answers(running):
            raise
        yield running, False
        return
    flags = {"redis": "", "host": "127.0.0.1"}
    with launch.running(state, flags | launch.free_ports(any_port=any_port), log=log) as endpoints:
        yield endpoints, True


def _page(
    client: "HomeClient", listener: str, wanted: tuple[str, str, str]
) -> "tuple[home_pb2.GetHomeResponse, float]":
    """The page of a listener from the wanted snapshot and books, and how long it took; calls before it warm up."""
    from server import calling

    deadline = time.monotonic() + SWAP_S
    home, _ = calling.timed(client, lambda: client.get_home(listener))
    while _versions(home) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
        home, _ = calling.timed(client, lambda: client.get_home(listener))
    return calling.timed(client, lambda: client.get_home(listener))


def _versions(home: "home_pb2.GetHomeResponse") -> tuple[str, str, str]:
    return home.snapshot_version, home.experiment_book_version, home.promotion_book_version


def _how_to_call(endpoints: Endpoints, state: Path, listener: str, *, ours: bool) -> str:
    """How to go on from a demo that serves, as commands that work as typed."""
    bin_, place = _from_here(Path(sys.executable).parent), shlex.quote(str(state))
    request, bearer = json.dumps({"user_id": listener}), f"authorization: Bearer $(cat {place}/dev-token)"
    lines = [
        "serving until Ctrl-C; in another terminal:" if ours else "a demo that runs already served this; go on with:",
        "",
        f"{bin_}/mantel get {listener} --state {place}",
        f"{bin_}/mantel get a-stranger --market GB --state {place}",
        f"{bin_}/mantel experiments list --state {place}",
        f"{bin_}/mantel promotions stats --state {place}",
        f"{bin_}/mantel simulate listeners --data {_from_here(state.parent / 'world')} --state {place}",
        f'{bin_}/buf curl --protocol grpc --http2-prior-knowledge -H "{bearer}" \\',
        f"    -d '{request}' http://{endpoints.target}/mantel.home.v1.HomeService/GetHome",
        f"curl http://{endpoints.metrics}/metrics",
    ]
    return "\n".join(lines)


def _from_here(path: Path) -> str:
    """A path from the working directory where it lies below it, else whole; ready for a shell."""
    found = path.absolute()
    return shlex.quote(str(found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found))


def _keenest(tables: Path) -> str:
    """The listener with the most listens."""
    import polars as pl

    listens = pl.scan_parquet(tables / "listens").group_by("user_id").len()
    return str(listens.sort("len", "user_id", descending=[True, False]).limit(1).collect()["user_id"][0])


def _favourites(tables: Path, listener: str, most: int = 12) -> list[tuple[str, str, str, int]]:
    """What a listener plays most: title, subtitle, genres, plays."""
    import polars as pl

    listens = pl.scan_parquet(tables / "listens").filter(pl.col("user_id") == listener)
    items = pl.scan_parquet(tables / "items.parquet").select("item_id", "title", "subtitle", "genres")
    top = listens.sort("plays", "item_id", descending=[True, False]).limit(most)
    found = top.join(items, on="item_id", how="inner", maintain_order="left").collect()
    return [(row["title"], row["subtitle"], ", ".join(row["genres"]), row["plays"]) for row in found.to_dicts()]


def _genres(tables: Path, item_ids: Sequence[str]) -> dict[str, str]:
    """Items' genres, for the demo's cards: so anyone can see that the picks are right."""
    import polars as pl

    items = pl.scan_parquet(tables / "items.parquet").filter(pl.col("item_id").is_in(item_ids))
    found = items.select("item_id", pl.col("genres").list.join(", ")).collect()
    return dict(found.iter_rows())
