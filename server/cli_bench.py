"""The command that measures how fast pages are made: `mantel bench`."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from features.state import State
from server.cli_bench_world import Ground, begin, conditions, ground, kept
from server.options import JsonOption, QuietOption, StateOption
from server.settings import load_settings

if TYPE_CHECKING:
    from loadtest import contest
    from loadtest.stages import Figures, Plan

SURFACE: Final = "home"
PRESETS: Final = ("plain", "full")
Progress = Callable[[str, int, int], None]


def bench(
    *,
    stages: Annotated[
        bool, typer.Option("--stages", help="Instead: how long each stage of a page takes, without gRPC and Redis.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds, under three minutes.")] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Too: other catalogues, books, settings and workers, each beside the default."),
    ] = False,
    quotable: Annotated[
        bool, typer.Option("--quotable", help="Repeat, until 3 runs of at most 6 had a verdict; tell the median run.")
    ] = False,
    items: Annotated[int, typer.Option(min=300, max=10_000_000, help="Items of the synthetic world.")] = 100_000,
    data: Annotated[
        Path | None, typer.Option(help="Measure this snapshot folder, with its listener records, instead of a world's.")
    ] = None,
    knee: Annotated[
        bool,
        typer.Option("--knee", help="Instead: the highest rate with p99 in time, and p99 below it; 10 minutes."),
    ] = False,
    h2load: Annotated[
        bool,
        typer.Option("--h2load", help="Instead: requests/s by h2load, where it is installed, beside our own load."),
    ] = False,
    overload: Annotated[
        bool, typer.Option("--overload", help="Instead: what a slowed server does at twice its knee; 5 minutes.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds over all cases; under 5 is no figure to quote.")
    ] = None,
    in_flight: Annotated[
        list[int] | None, typer.Option(min=1, max=2048, help="Calls in flight; may be given again.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Of each load.")] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw CPU and rates into this file; the JSON goes beside it.")
    ] = None,
    state: StateOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure GetHome against what gRPC costs by itself and against its twin behind FastAPI, server on one core.

    Exit code 0: the floors of loadtest/bench.toml stand; 1: one does not; 2: no verdict, the machine was too busy
    (with --quotable: in too many runs). The first run makes a synthetic world, trains on it and keeps it in `bench/` of
    --state (at 100,000 items a minute).

    Examples: mantel bench, mantel bench --quick, mantel bench --quotable --svg bench.svg, mantel bench --overload
    """
    from loadtest.contest import rules
    from loadtest.contest_tries import repeated
    from loadtest.stages import Plan
    from server import cli_contest_h2load, cli_contest_report, cli_contest_sweep_report, cli_overload, face, reports
    from server.cli_contest import KINDS, field, raced, sought
    from server.cli_contest_sweeps import sweeps, swept

    silent, place = quiet or json_, State(load_settings(state=state).state)
    on = ground(place, data or kept(place, items, silent=silent))
    begun = begin()
    if stages:
        with face.progress(quiet=silent, still=True) as tell:
            figures = _measure(on, Plan() if rounds is None else Plan(rounds=rounds), tell)
        reports.bench(conditions(on, begun), figures, as_json=json_)
        return
    plan, limits = _changed(quick, rounds, seconds, in_flight), rules()["quotable" if quotable else "once"]
    alone = place.lock("bench", wait=False, held=f"another bench measures on {place.path}; wait until it has ended")
    if h2load:
        with alone, face.progress(quiet=silent, still=True) as tell:
            capacity = cli_contest_h2load.measured(on, plan, tell)
        raise typer.Exit(cli_contest_h2load.show(conditions(on, begun), capacity, as_json=json_))
    if overload:
        beyond = cli_overload.rules_of(quick=quick, rounds=rounds, seconds=seconds)
        with alone, face.progress(quiet=silent, still=True) as tell:
            held = cli_overload.driven(on, beyond, tell)
        raise typer.Exit(cli_overload.show(conditions(on, begun), held, beyond, as_json=json_))
    with alone, face.progress(quiet=silent, still=True) as tell:
        with field(on) as everybody:
            if knee:
                found = sought(everybody, tell)
            else:
                tries = repeated(lambda: raced(everybody, plan, tell), limits)
        changed = [swept(one, on, plan, limits, tell) for one in sweeps(on, place)] if full and not knee else []
    found_on = conditions(on, begun)
    if knee:
        raise typer.Exit(cli_contest_report.knee(found_on, found, rules(), as_json=json_))
    code = max(tries.exit_code, *(one.tries.exit_code for one in changed), 0)
    said = cli_contest_report.told(found_on, tries) | {"exit_code": code}
    told = json.dumps(said | ({"sweeps": cli_contest_sweep_report.told(changed)} if full else {}))
    if svg is not None:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(cli_contest_report.drawn(found_on, tries, KINDS))
        svg.with_suffix(".json").write_text(f"{told}\n")
    if json_:
        print(told)
    else:
        cli_contest_report.show(found_on, tries)
        cli_contest_sweep_report.show(changed)
    raise typer.Exit(code)


def _changed(quick: bool, rounds: int | None, seconds: float | None, in_flight: list[int] | None) -> "contest.Plan":
    from dataclasses import replace

    from loadtest import contest

    given: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "in_flight": in_flight}
    plan = contest.plan_of("quick" if quick else "rounds")
    return replace(plan, **{name: value for name, value in given.items() if value})


def _measure(on: Ground, plan: "Plan", tell: Progress) -> "Sequence[Figures]":
    from loadtest.contest import SHELVES
    from loadtest.stages import cases, measure
    from ranking.surfaces import load_surfaces
    from server.codec import encode_home

    surfaces = {preset: load_surfaces(SHELVES, preset)[SURFACE] for preset in PRESETS}
    encode = partial(encode_home, locale="en", request_id="0" * 16)
    return measure(cases(on.snapshot, surfaces, plan), on.records, encode, plan, progress=tell)
