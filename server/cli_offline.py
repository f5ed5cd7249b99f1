"""The offline half of the command line: worlds, imports, builds, evaluation and publishing."""

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from features.state import State
from server.cli_evaluate import evaluate
from server.options import JsonOption, PrefixOption, QuietOption, RedisOption, StateOption, redis_url
from server.settings import load_settings

ForgottenOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Tombstones, as `mantel listeners forgotten` writes them: rows of before are left out and counted.",
    ),
]
imports = typer.Typer(help="Bring real listening data into Mantel's tables.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (world, build, evaluate, publish):
        app.command()(command)
    app.add_typer(imports, name="import")


def world(
    *,
    out: Annotated[Path, typer.Option(help="Directory for the tables.")],
    items: Annotated[int, typer.Option(min=300, max=10_000_000)] = 20_000,
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
    forgotten: ForgottenOption = None,
) -> None:
    """Import the HetRec 2011 Last.fm data set: artists become items, tags become genres.

    Example: mantel import lastfm hetrec2011-lastfm-2k --out W
    """
    from features.offline.lastfm import convert
    from server import reports

    started = time.perf_counter()
    summary = convert(source, out, forgotten=forgotten)
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
    forgotten: ForgottenOption = None,
    force: Annotated[bool, typer.Option("--force", help="Keep a snapshot that misses the gate's limits.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the tables, train, index, measure and write a snapshot.

    A build that is interrupted or killed is resumed by the same command: what it had finished lies in OUT.partial until
    the snapshot stands at OUT, and is discarded where data, settings, seed or version are others. So --force after the
    gate refused takes only what was left to do.

    Without --forgotten the file forgotten.parquet counts that lies with the tables, where a drain has put it.

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
        report = build_snapshot(data, out, settings=settings, previous=previous, forgotten=forgotten, progress=tell)
    reports.build(report, as_json=json_)


def publish(
    snapshot: Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="Directory that `mantel build` wrote.")],
    *,
    keep_records: Annotated[
        bool,
        typer.Option("--keep-records", help="Keep the listener records in SNAPSHOT, to publish them elsewhere too."),
    ] = False,
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
    from server.memory import pss_bytes

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
        sizes = {"this process": pss_bytes(os.getpid())}
        if not settings.redis:
            sizes["the embedded Redis"] = pss_bytes(int(client.info("server")["process_id"]))
    reports.publish(report, None if keep_records else snapshot, sizes, as_json=json_)
