"""The commands for events: `mantel events drain`."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from features.errors import Unavailable
from features.state import State
from server.options import JsonOption, PrefixOption, QuietOption, RedisOption, StateOption, redis_url
from server.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from features.offline.drain import DrainReport, Progress
    from features.offline.served import ServedReport

events = typer.Typer(help="What listeners did: drain it into files.", no_args_is_help=True)


@events.command("drain")
def drain(
    *,
    out: Annotated[Path, typer.Option(help="Directory for the events; what is there is added to.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C or SIGTERM.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.1, help="With --follow: seconds between drains.")] = 60.0,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Move events and served pages to Parquet files, each once; may be killed and run again at any time.

    OUT/day=YYYY-MM-DD/ holds the events by the day on which they occurred.
    OUT/pages/day=YYYY-MM-DD/ holds the pages that were served on a day,
    OUT/served/day=YYYY-MM-DD/ each item that they showed: join by page_id.
    Leave the last five days there: in them it looks for what it has drained.
    OUT/listens/ holds the plays of each day as the table `listens`: with
    OUT/items.parquet beside it, `mantel build --data OUT` trains on them.
    Who was forgotten (`mantel listeners forget`) is left out, and erased from
    what earlier drains wrote; OUT/forgotten.parquet has the tombstones.
    Drain one Redis into one OUT, one drain at a time.

    Example: mantel events drain --out E
    """
    from features.keys import Keys
    from features.offline.drain import drain as drain_events
    from features.offline.publish import connect
    from features.offline.served import drain_served
    from server import face, reports

    settings = load_settings(state=state, redis=redis, prefix=prefix)
    held = "another drain is under way on this state directory"
    where, keys = State(settings.state), Keys(prefix=settings.prefix)
    with where.lock("drain", wait=False, held=held), redis_url(settings) as url, connect(url) as client:

        def drain_once(progress: "Progress") -> tuple["DrainReport", "ServedReport"]:
            events = drain_events(client, keys, out, progress=progress)
            return events, drain_served(client, keys, where, out, progress=progress)

        if follow:
            _follow(drain_once, every_s, as_json=json_)
        with face.progress(quiet=quiet or json_) as tell:
            report, served = drain_once(tell)
    reports.drain(report, served, out, as_json=json_)


def _follow(
    drain_once: "Callable[[Progress], tuple[DrainReport, ServedReport]]", every_s: float, *, as_json: bool
) -> NoReturn:
    """Drains until it is ended; a Redis that is away is waited for."""
    while True:
        try:
            report, served = drain_once(lambda *_: None)
        except Unavailable as error:
            typer.secho(f"mantel: {error}; trying again", fg="yellow", err=True)
        else:
            if as_json:
                typer.echo(json.dumps(asdict(report) | {"served": asdict(served)}))
            elif report.read or served.pages:
                found = f"{report.written:,} events, {report.repeated:,} known already, {served.pages:,} pages"
                typer.echo(f"{time.strftime('%H:%M:%S')} {found}")
        time.sleep(every_s)
