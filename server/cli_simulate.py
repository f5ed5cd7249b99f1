"""The commands that stand in for people: `mantel simulate listeners`."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from features.errors import InvalidInput, Unavailable
from features.state import State
from server.options import (
    CaOption,
    CertOption,
    InsecureOption,
    JsonOption,
    KeyOption,
    QuietOption,
    StateOption,
    TargetOption,
)
from server.settings import load_settings

if TYPE_CHECKING:
    from features.offline.listening import ListeningData
    from loadtest.listeners import Plan, Progress, Simulation
    from protos.client import HomeClient

GENRES: Final = 20  # the most common: what listeners may be after
simulate = typer.Typer(help="Let simulated listeners use a running server.", no_args_is_help=True)


@simulate.callback()
def _simulate() -> None:  # with one command alone, typer would take its name away
    pass


@simulate.command("listeners")
def listeners(
    *,
    data: Annotated[Path, typer.Option(help="Directory with the tables that the server's snapshot was built from.")],
    number: Annotated[int, typer.Option("--listeners", min=1, help="How many come.")] = 100,
    users: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Their ids, one a line. \\[default: drawn from the tables]"),
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, max=20, help="Sessions of each, up to 8 hours apart.")] = 2,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Pages of a session.")] = 10,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of their judgements that are wrong.")] = 0.1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of all that is drawn. \\[default: another each time]")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Listeners at a time.")] = 32,
    pause: Annotated[float, typer.Option(min=0, help="Seconds of real time after each page.")] = 0.0,
    surface: Annotated[str, typer.Option(help="The surface.")] = "home",
    market: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2, such as GB.")] = "",
    send: Annotated[bool, typer.Option("--send/--no-send", help="Tell the server what they do, or only look.")] = True,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let listeners with a hidden intent open Home, play what fits it and skip what does not, session by session.

    A session is after a genre that its first page shows in part. They look at items by attention, act on some, wrongly
    now and then, and the server is told: what they do changes its listeners for good. Told at the end: how much of
    the pages fitted, step by step. The same seed sends the same events, which a server counts once.

    Examples:
    mantel simulate listeners --data .mantel/demo/world --state .mantel/demo/state
    mantel simulate listeners --data W --listeners 300 --sessions 1 --steps 30 --noise 0.2 --seed 7 --json
    mantel simulate listeners --data W --no-send
    """
    from features.offline.listening import open_listening
    from loadtest.behaviour import Habits
    from loadtest.listeners import Plan
    from loadtest.summary import summary
    from server import calling, face

    tables, seed = open_listening(data), secrets.randbelow(10**6) if seed is None else seed
    kinds = _genres(tables)
    common = [genre for genre, _ in Counter(genre for genres in kinds.values() for genre in genres).most_common(GENRES)]
    if not common:
        raise InvalidInput(("data", f"no item of {data} has a genre: there is nothing to be after"))
    come = _users(tables, users, number, seed)
    plan = Plan(
        began=time.time(),
        seed=seed,
        sessions=sessions,
        steps=steps,
        habits=Habits(noise=noise),
        among=common,
        surface=surface,
        market=market,
        send=send,
        concurrency=concurrency,
        pause_s=pause,
    )
    where = State(load_settings(state=state).state)
    with (
        calling.home(where, target, calling.tls_of(tls_ca, tls_cert, tls_key), insecure=insecure) as client,
        face.progress(quiet=quiet or json_) as tell,
    ):
        calling.said(
            client, partial(client.get_home, come[0], surface=surface, market=market, timeout_s=plan.timeout_s)
        )
        done = asyncio.run(_drive(client, come, kinds, plan, tell))
    found = {"seed": seed, **summary(done)}
    if json_:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print(found)
    if not done.visits:
        raise Unavailable(f"no page was answered: {found['errors']}")


async def _drive(
    client: "HomeClient", users: Sequence[str], kinds: dict[str, frozenset[str]], plan: "Plan", tell: "Progress"
) -> "Simulation":
    from loadtest.listeners import simulate as run
    from protos.client import asyncio_channel

    async with asyncio_channel(client.target, client.tls) as channel:
        return await run(channel, client.metadata, users, kinds, plan, tell)


def _genres(tables: "ListeningData") -> dict[str, frozenset[str]]:
    """The genres of each item that has any."""
    found = (frame.select("item_id", "genres").iter_rows() for frame in tables.items())
    return {item_id: frozenset(genres) for rows in found for item_id, genres in rows if genres}


def _users(tables: "ListeningData", file: Path | None, number: int, seed: int) -> list[str]:
    """Who comes: of a file the first ones, else drawn from all who ever listened.

    Raises:
        InvalidInput: there are not as many.
    """
    import numpy as np

    if file is not None:
        known = list(dict.fromkeys(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines()))))
    else:
        known = sorted({user for frame in tables.listens() for user in frame["user_id"].unique().to_list()})
        known = [known[at] for at in np.random.default_rng(seed).permutation(len(known))]
    if len(known) < number:
        raise InvalidInput(("listeners", f"there are only {len(known)}"))
    return known[:number]


def _print(found: Mapping[str, Any]) -> None:
    """The summary as tables."""
    from server import face

    out = face.console()
    title = f"share of pages that fits what listeners are after (seed {found['seed']})"
    for name, column in (("steps", "steps"), ("arms", "arm")):
        rows = [
            (row[f"{column}"], f"{row['pages']:,}", _percent(row["shown"]), _percent(row["seen"]))
            for row in found[name]
        ]
        if rows:
            out.print(face.table(title if name == "steps" else "by arm", (column, "pages", "shown", "looked at"), rows))
    results = sorted({result for counts in found["events"].values() for result in counts})
    events = [(kind, *(f"{counts.get(one, 0):,}" for one in results)) for kind, counts in found["events"].items()]
    if events:
        out.print(face.table("events", ("kind", *results), events))
    if any("duplicate" in counts for counts in found["events"].values()):
        out.print("duplicates: the server had a run of this seed before; give another --seed")
    told = f"{found['pages']:,} pages of {found['listeners']:,} listeners"
    for name in ("degraded", "empty"):
        told += f" · {found[name]:,} {name}" if found[name] else ""
    told += f" · {found['promoted_seen']:,} promoted items looked at" if found["promoted_seen"] else ""
    out.print(told, highlight=False)
    if found["errors"]:
        out.print(face.table("errors", ("call and status", "calls"), list(found["errors"].items())))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
