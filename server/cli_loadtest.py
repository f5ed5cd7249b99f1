"""The command that puts a server under load and judges it: `mantel loadtest`."""

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from features.errors import InvalidInput, MantelError
from features.state import State
from server.options import (
    CaOption,
    CertOption,
    InsecureOption,
    JsonOption,
    KeyOption,
    PrefixOption,
    QuietOption,
    RedisOption,
    StateOption,
    TargetOption,
)
from server.settings import load_settings

if TYPE_CHECKING:
    from loadtest.knee import Knee
    from loadtest.run import Measured, Plan, Tell
    from loadtest.slo import Slo
    from loadtest.traffic import Mix
    from loadtest.verdict import Figures, Verdict

SAMPLED: Final = 100_000  # listeners read from the store at most
WARM_UP_S: Final = 5.0
FIRST_S: Final = 10.0  # for the one call that shows whether the server can be tested
RUN_S: Final = 60.0
KNEE_S: Final = 30.0
MOST_CALLS: Final = 20_000_000  # each is kept, in 35 bytes
EVENTS: Final = 0.1  # share of calls, where they harm nobody
BESIDE_THE_KNEE: Final = ("p50_ms", "p999_ms", "goodput", "refused_p99_ms")  # bounds of the SLO that say nothing of it


def loadtest(
    *,
    rate: Annotated[float | None, typer.Option(min=1, help="Calls a second. \\[default: the SLO's]")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds. \\[default: 60; of a knee's run 30]")] = None,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before that, not counted.")] = WARM_UP_S,
    shape: Annotated[
        Literal["constant", "ramp", "step", "spike"], typer.Option(help="How the rate goes over time.")
    ] = "constant",
    peak: Annotated[float, typer.Option(min=1, help="Where ramp, step and spike lead: times the rate.")] = 2.0,
    closed: Annotated[int, typer.Option(min=0, metavar="USERS", help="Locust's closed users instead.")] = 0,
    find_knee: Annotated[bool, typer.Option("--find-knee", help="Search the highest rate within the SLO.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Runs that must hold at the knee.")] = 3,
    slo: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The promise. \\[default: loadtest/slo.toml]")
    ] = None,
    listeners: Annotated[
        Path | None,
        typer.Option("--users", exists=True, dir_okay=False, help="Listeners, one id a line, keenest first."),
    ] = None,
    surface: Annotated[list[str] | None, typer.Option(metavar="NAME[=WEIGHT]", help="May be repeated.")] = None,
    market: Annotated[list[str] | None, typer.Option(help="Asked for by equal shares; may be repeated.")] = None,
    page_size: Annotated[int, typer.Option(min=0, max=50, help="Shelves of a page; 0: all.")] = 6,
    next_pages: Annotated[float, typer.Option(min=0, max=1, help="Share of calls for a next page.")] = 0.1,
    events: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of calls that record events. \\[default: .1 on loopback, else 0]"),
    ] = None,
    prefetch: Annotated[float, typer.Option(min=0, max=1, help="Share of calls that prefetch a page.")] = 0.0,
    zipf: Annotated[float, typer.Option(min=0, max=5, help="How much more the keen ask.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed asks the same.")] = 1,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Generators.")] = 1,
    connections: Annotated[int, typer.Option(min=1, max=1024, help="Connections of each.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for each call.")] = 1.0,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a report here.")] = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a server under load and say whether it keeps its promise.

    Calls arrive at random at a rate, whatever became of those before them, and each counts from when it was due. Exit
    code 0: the promise is kept; 1: it is not; 2: no verdict, since the generator was the bottleneck.

    Listeners are those of --users, else those published in the store of --state or --redis, else strangers. Events
    change what listeners are served, so beyond loopback none are recorded unless --events says so.

    Examples: mantel loadtest --state .mantel/demo/state, mantel loadtest --rate 200 --shape spike --html report.html,
    mantel loadtest --find-knee --duration 10
    """
    from loadtest.arrivals import shaped
    from loadtest.drive import Target
    from loadtest.report import report
    from loadtest.run import Plan
    from loadtest.verdict import figures, judge
    from server import calling, cli_under_test, cli_verdict, face

    if find_knee and (closed or html is not None):
        raise InvalidInput(("find_knee", "goes with neither --closed nor --html"))
    settings = load_settings(state=state, redis=redis, prefix=prefix)
    promise = _promise(slo, rate)
    course = shaped(shape, rate=promise.rate, duration=duration or (KNEE_S if find_knee else RUN_S), peak=peak)
    if course.calls > MOST_CALLS:
        raise InvalidInput(("rate", f"for so long means more than {MOST_CALLS:,} calls"))
    tls = calling.tls_of(tls_ca, tls_cert, tls_key)
    with cli_under_test.client_of(settings, target, tls, insecure=insecure) as client:
        mix = _mix(
            events=(EVENTS if calling.on_loopback(client.target) else 0.0) if events is None else events,
            next_pages=next_pages,
            prefetch=prefetch,
            zipf=zipf,
            page_size=page_size,
            surfaces=_weighted(surface),
            markets=tuple(market or [""]),
        )
        ids = cli_under_test.listeners_of(settings, client.target, listeners, seed)
        first = mix.surfaces[0][0]
        calling.said(client, lambda: client.get_home("nobody", surface=first, timeout_s=FIRST_S))
    with tempfile.TemporaryDirectory(prefix="mantel-loadtest-") as place:
        (Path(place) / "listeners").write_text("\n".join(ids))
        plan = Plan(
            target=Target(
                address=client.target,
                token=calling.token(State(settings.state)),
                tls=client.tls,
                connections=connections,
                timeout_s=timeout,
            ),
            shape=course,
            warm_up_s=warm_up,
            mix=mix,
            listeners=Path(place) / "listeners",
            seed=seed,
            run=f"load-{secrets.token_hex(4)}",
            processes=processes,
        )
        conditions = cli_verdict.conditions(plan, listeners=len(ids), closed=closed)
        with face.progress(quiet=quiet or json_, still=True) as tell:
            if find_knee:
                knee = _search(plan, promise, runs, tell)
            else:
                measured = _play(plan, closed, "run", tell)
    if find_knee:
        raise typer.Exit(cli_verdict.show_knee(knee, conditions, as_json=json_))
    found = figures(measured, promise)
    verdict = judge(found, promise, closed=closed > 0)
    if html is not None:
        html.write_text(report(measured, found, verdict, conditions))
    raise typer.Exit(cli_verdict.show(found, verdict, conditions, as_json=json_))


def _play(plan: "Plan", closed: int, name: str, tell: "Tell") -> "Measured":
    """Plays a plan, or has Locust's users play it, in a folder of its own beside the listeners.

    Raises:
        MantelError: a generator failed.
    """
    from loadtest.closed import play_closed
    from loadtest.run import RunFailed, play

    folder = plan.listeners.with_name(name)
    folder.mkdir()
    try:
        return play_closed(plan, closed, folder, tell) if closed else play(plan, folder, tell)
    except RunFailed as error:
        raise MantelError(str(error)) from error


def _search(plan: "Plan", promise: "Slo", runs: int, tell: "Tell") -> "Knee":
    """The knee, from the promise's rate on; each run asks something else."""
    from loadtest.knee import find_knee
    from loadtest.verdict import figures, judge

    numbers = count()
    bounds = promise.model_copy(update=dict.fromkeys(BESIDE_THE_KNEE))

    def attempt(rate: float) -> "tuple[Figures, Verdict]":
        number = next(numbers)
        rates = tuple(rate for _ in plan.shape.rates)
        at = replace(plan, shape=replace(plan.shape, rates=rates), seed=plan.seed + number, run=f"{plan.run}-{number}")
        measured = _play(at, 0, f"run-{number}", lambda _, done, total: tell(f"{rate:,.0f}/s", done, total))
        found = figures(measured, bounds)
        return found, judge(found, bounds)

    return find_knee(attempt, start=promise.rate, runs=runs)


def _promise(file: Path | None, rate: float | None) -> "Slo":
    """The SLO file's promise; a rate that was asked for stands in place of its own.

    Raises:
        InvalidInput: naming each wrong field.
    """
    from loadtest.slo import DEFAULT_SLO, SloRefused, load_slo

    try:
        found = load_slo(file or DEFAULT_SLO)
    except SloRefused as error:
        raise InvalidInput(*((f"slo.{field}", what) for field, what in error.violations)) from error
    return found if rate is None else found.model_copy(update={"rate": rate})


def _mix(**shares: Any) -> "Mix":
    """The traffic.

    Raises:
        InvalidInput: its shares leave no first pages.
    """
    from loadtest.traffic import Mix

    if shares["events"] + shares["next_pages"] + shares["prefetch"] > 0.99:
        raise InvalidInput(("events", "with --next-pages and --prefetch at most .99: the rest are first pages"))
    return Mix(**shares)


def _weighted(words: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    """Surfaces with their weights, from `NAME` and `NAME=WEIGHT`."""
    found = []
    for word in words or ("home",):
        name, _, weight = word.partition("=")
        try:
            found.append((name, float(weight or 1)))
        except ValueError as error:
            raise InvalidInput(("surface", f"{word!r} is not NAME or NAME=WEIGHT")) from error
    if any(not 0 < weight < 1e9 for _, weight in found):
        raise InvalidInput(("surface", "a weight must be above 0"))
    return tuple(found)
