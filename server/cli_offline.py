"""The offline half of the command line: worlds, imports, builds, evaluation, publishing, and the demo of all of it."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from features.state import State
from server.options import JsonOption, PrefixOption, QuietOption, RedisOption, StateOption, redis_url
from server.settings import Settings, load_settings

imports = typer.Typer(help="Bring real listening data into Mantel's tables.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (demo, world, build, evaluate, publish):
        app.command()(command)
    app.add_typer(imports, name="import")


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one page and exit.")] = False,
    listener: Annotated[str, typer.Option(help="Whose page to show. [default: who plays most]")] = "",
    items: Annotated[int, typer.Option(help="Items of the world.")] = 20_000,
    listeners: Annotated[int, typer.Option(help="Listeners of the world.")] = 5_000,
    state: StateOption = None,
) -> None:
    """Make a listening world, train on it, publish it, serve it, and show a Home page.

    The first run takes about a minute; later ones find everything there.
    """
    from server import calling, face, launch

    settings = load_settings(state=state)
    tables = settings.state / "demo" / "world"
    _prepare_demo(settings, tables, items=items, listeners=listeners)
    listener = listener or _keenest(tables)
    ports = {"port": "0", "control-port": "0", "metrics-port": "0"} if once else {}
    state_ = State(settings.state)
    with launch.running(state_, ports, log=settings.state / "demo" / "serve.log") as endpoints:
        with calling.home(state_, endpoints.target, None) as client:
            calling.timed(lambda: client.get_home(listener))  # the first call opens the connection
            home, seconds = calling.timed(lambda: client.get_home(listener))
        shown = [item.item_id for shelf in home.shelves for item in shelf.items]
        face.console().print(face.favourites(listener, _favourites(tables, listener)))
        face.console().print(face.page(listener, home, seconds, _genres(tables, shown)))
        if not once:
            face.console().print(face.how_to_call(endpoints, settings.state, listener))
            launch.until_interrupted()


def world(
    *,
    out: Annotated[Path, typer.Option(help="Directory for the tables.")],
    items: Annotated[int, typer.Option(min=100, max=10_000_000)] = 20_000,
    listeners: Annotated[int, typer.Option(min=10, max=1_000_000)] = 5_000,
    listens: Annotated[int, typer.Option(min=5, max=500, help="Items played by a listener, about.")] = 60,
    seed: int = 7,
    quiet: QuietOption = False,
) -> None:
    """Make a synthetic listening world: the same seed and size give the same tables, bit for bit.

    Example: mantel world --out W --items 100000 --listeners 20000
    """
    from features.offline.world import WorldSettings, generate
    from server import face, reports

    settings = WorldSettings(seed=seed, items=items, listeners=listeners, listens_per_listener=listens)
    started = time.perf_counter()
    with face.progress(quiet=quiet) as tell:
        summary = generate(out, settings=settings, progress=tell)
    reports.tables(out, summary, time.perf_counter() - started)


@imports.command("lastfm")
def import_lastfm(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Directory with the HetRec 2011 Last.fm files.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory for the tables.")],
) -> None:
    """Import the HetRec 2011 Last.fm data set: artists become items, tags become genres.

    Example: mantel import lastfm hetrec2011-lastfm-2k --out W
    """
    from features.offline.lastfm import convert
    from server import reports

    started = time.perf_counter()
    summary = convert(source, out)
    reports.tables(out, summary, time.perf_counter() - started)


def build(
    *,
    data: Annotated[Path, typer.Option(help="Directory with the tables listens, items and perhaps listeners.")],
    out: Annotated[Path, typer.Option(help="Directory for the snapshot.")],
    factors: Annotated[int, typer.Option(min=8, max=512, help="Dimension of the vectors.")] = 64,
    regularization: Annotated[float, typer.Option(min=0.0)] = 100.0,
    alpha: Annotated[float, typer.Option(min=0.0, help="Weight of a listen against none.")] = 32.0,
    iterations: Annotated[int, typer.Option(min=1, max=100)] = 15,
    seed: int = 7,
    index: Annotated[Literal["auto", "flat", "ivf"], typer.Option(help="What kind of index.")] = "auto",
    previous: Annotated[Path | None, typer.Option(help="A snapshot to measure drift against.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep a snapshot that misses the gate's limits.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the tables, train, index, measure and write a snapshot.

    Example: mantel build --data W --out S
    """
    from features.offline.build import BuildSettings
    from features.offline.build import build as build_snapshot
    from server import face, reports

    settings = BuildSettings(
        factors=factors,
        regularization=regularization,
        alpha=alpha,
        iterations=iterations,
        seed=seed,
        index=index,
        refuse=not force,
    )
    with face.progress(quiet=quiet or json_) as tell:
        report = build_snapshot(data, out, settings=settings, previous=previous, progress=tell)
    reports.build(report, as_json=json_)


def evaluate(
    *,
    data: Annotated[Path, typer.Option(help="Directory with the tables, for example of `mantel import lastfm`.")],
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    factors: Annotated[int, typer.Option(min=8, max=512, help="Dimension of the vectors.")] = 64,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure relevance through a server of its own, beside the exact model and three baselines.

    Splits the listens, builds from the train part, serves it on a free port, and asks for the `evaluation` surface.
    Example: mantel evaluate --data W
    """
    from features.offline.build import BuildSettings
    from features.offline.evaluate import evaluate as run
    from server import face, reports

    with tempfile.TemporaryDirectory(prefix="mantel-") as folder, face.progress(quiet=quiet or json_) as tell:
        found = run(
            data,
            Path(folder),
            settings=BuildSettings(factors=factors, index="ivf"),
            seed=seed,
            serve=partial(_serve_unplayed, Path(folder), tell),
            progress=tell,
        )
    reports.evaluation(found, as_json=json_)


def publish(
    snapshot: Annotated[Path, typer.Argument(help="Directory that `mantel build` wrote.")],
    *,
    keep_records: Annotated[bool, typer.Option("--keep-records", help="Keep the listener records there.")] = False,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Load the listeners into Redis and make the snapshot the one that is served.

    May be interrupted and run again. Example: mantel publish S
    """
    from features.keys import Keys
    from features.offline.publish import connect
    from features.offline.publish import publish as publish_snapshot
    from server import face, reports

    settings = load_settings(state=state, redis=redis, prefix=prefix)
    with redis_url(settings) as url, connect(url) as client, face.progress(quiet=quiet or json_) as tell:
        report = publish_snapshot(
            snapshot,
            State(settings.state),
            client,
            Keys(prefix=settings.prefix),
            progress=tell,
            keep_records=keep_records,
        )
    reports.publish(report, as_json=json_)


def _prepare_demo(settings: Settings, tables: Path, *, items: int, listeners: int) -> None:
    """Makes, builds and publishes the demo's world, unless a snapshot of such a world is published already."""
    from features.keys import Keys
    from features.offline.build import BuildSettings
    from features.offline.build import build as build_snapshot
    from features.offline.publish import connect
    from features.offline.publish import publish as publish_snapshot
    from features.offline.world import WorldSettings, generate
    from server import face

    made = settings.state / "demo" / "made.json"
    wanted = json.dumps({"items": items, "listeners": listeners})
    if made.exists() and made.read_text() == wanted:
        return
    snapshot = settings.state / "demo" / "snapshot"
    with face.progress() as tell:
        generate(tables, settings=WorldSettings(items=items, listeners=listeners), progress=tell)
        build_snapshot(tables, snapshot, settings=BuildSettings(), progress=tell)
    state = State(settings.state)
    with redis_url(settings) as url, connect(url) as client, face.progress() as tell:
        publish_snapshot(snapshot, state, client, Keys(prefix=settings.prefix), progress=tell)
    made.write_text(wanted)


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


def _serve_unplayed(
    work: Path, tell: Callable[[str, int, int], None], snapshot: Path, users: Sequence[str]
) -> list[list[str]]:
    """Publishes a snapshot to a state directory of its own, serves it, and asks for what users have not played."""
    from features.embedded_redis import attached
    from features.keys import Keys
    from features.offline.publish import connect
    from features.offline.publish import publish as publish_snapshot
    from server import calling, launch

    state = State(work / "state")
    ports = {"port": "0", "control-port": "0", "metrics-port": "0", "prefix": "evaluation"}
    with attached(state) as url:
        with connect(url) as store:
            publish_snapshot(snapshot, state, store, Keys(prefix="evaluation"), progress=tell)
        with (
            launch.running(state, ports, log=work / "serve.log") as endpoints,
            calling.home(state, endpoints.target, None) as client,
        ):
            pages = []
            for number, user in enumerate(users, 1):
                home, _ = calling.timed(partial(client.get_home, user, surface="evaluation", timeout_s=10))
                assert not home.degraded, f"{user}: {home.degraded_reasons}"
                pages.append([item.item_id for shelf in home.shelves for item in shelf.items])
                tell("pages", number, len(users))
    return pages
