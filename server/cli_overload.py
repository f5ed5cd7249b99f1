"""What `mantel bench --overload` starts, measures and shows: one slowed server on a core, driven beyond its knee."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import uvloop

from loadtest import contest, machine, overload
from loadtest.contest import Progress
from loadtest.contest_verdict import Figure
from loadtest.overload import Calls, Overload
from server.admission import PRIORITY, Priority
from server.cli_bench_world import Conditions, Ground
from server.cli_contest import asking, default, gets_home, two_cores
from server.cli_contest_report import UNSTEADY
from server.cli_contest_servers import keeping_to, serving
from server.face import AS_TYPED, console, table

_SENTENCES: Final = {
    "goodput": "pages in time beyond the knee, against those at it",
    "refused_p99_ms": "p99 of a refusal, ms",
    "visible_p99_ms": "p99 of a page that somebody waits for, ms",
    "visible_refused": "share of them refused, against that of prefetches",
}


def driven(on: Ground, rules: Mapping[str, Any], tell: Progress) -> Overload | None:
    """Full pages from a server that is slowed by the rules' drill, at its knee and beyond; it finds its own limit.

    Raises:
        WrongState: there is one core only.
    """
    cores, settings = two_cores(), {"drill_work_ms": f"{rules['work_ms']:g}", "admission_limit": "0"}
    slowed = replace(default(on, asking(on.records)), settings=settings)
    with serving(slowed, cores, room=on.room / "overload") as one, keeping_to(cores[1]):
        visible = gets_home(one.port, slowed.requests, one.token)
        prefetch = gets_home(one.port, slowed.requests, one.token, ((PRIORITY, Priority.PREFETCH.value),))
        watched = partial(_watched, one.workers, one.helpers, cores)
        return uvloop.run(overload.measure(visible, prefetch, rules, watched=watched, progress=tell))


def rules_of(*, quick: bool, rounds: int | None, seconds: float | None) -> dict[str, Any]:
    """The rules of overload, with what was asked for in place of their own."""
    found = dict(contest.rules()["overload"])
    changes = found.pop("quick") if quick else {}
    changes |= {name: value for name, value in (("rounds", rounds), ("seconds", seconds)) if value}
    knee = found["knee"] | {name: value for name, value in changes.items() if name in found["knee"]}
    return found | {name: value for name, value in changes.items() if name in found} | {"knee": knee}


def show(conditions: Conditions, found: Overload | None, rules: Mapping[str, Any], *, as_json: bool) -> int:
    """What became of calls, figures with floor and aim, and doubts; answers the exit code."""
    if found is None:
        told = {"conditions": asdict(conditions), "overload": None, "exit_code": 2}
        print(json.dumps(told) if as_json else UNSTEADY)
        return 2
    verdict = overload.judge(found, rules, contest.rules()["verdict"])
    if as_json:
        both = {"doubts": verdict.doubts, "figures": [asdict(one) for one in verdict.figures]}
        told = {"conditions": asdict(conditions), "overload": asdict(found), "verdict": both}
        print(json.dumps(told | {"exit_code": verdict.exit_code}))
        return verdict.exit_code
    out = console()
    title = f"full pages, {rules['work_ms']:g} ms of work added to each; medians over rounds"
    columns = ("", "calls/s", "pages in time/s", "refused", "p50 ms", "p99 ms", "refusal p50 ms", "p99 ms")
    rows = [
        _row(f"at the knee, {found.knee:,.0f}/s", found.at_knee),
        _row(f"at {rules['times']:g} times the knee", found.beyond),
        _row("  that somebody waits for", found.visible),
        _row("  prefetches", found.prefetch),
    ]
    out.print(table(title, columns, rows))
    out.print(table("figures", ("", "measured", "floor", "aim"), [_figure(one) for one in verdict.figures]))
    lines = [
        f"the generator used {found.busy:.0%} of its core, sent {found.late_ms:.2f} ms late; others {found.others:.0%}",
        f"load average {conditions.load_before:.2f} before, {conditions.load_after:.2f} after",
        *(f"no verdict: {doubt}" for doubt in verdict.doubts),
    ]
    out.print("\n".join(lines), **AS_TYPED)
    return verdict.exit_code


def _row(name: str, calls: Calls) -> tuple[str, ...]:
    latencies = (calls.p50_ms, calls.p99_ms, calls.refused_p50_ms, calls.refused_p99_ms)
    told = (f"{calls.offered:,.0f}", f"{calls.in_time:,.0f}", f"{calls.refused:.1%}")
    return name, *told, *("" if one != one else f"{one:.2f}" for one in latencies)  # noqa: PLR0124  # NaN


def _figure(one: Figure) -> tuple[str, ...]:
    floor = f"{'at most ' if one.at_most else ''}{one.floor:g}" + ("" if one.stands else ", missed")
    return _SENTENCES[one.name], f"{one.value:.2f}", floor, f"{one.aim:g}"


@contextmanager
def _watched(
    server: frozenset[int], helpers: frozenset[int], cores: tuple[int, int], others: list[float]
) -> Iterator[None]:
    """Adds the larger share that others took of either core meanwhile."""
    near = frozenset({os.getpid(), *helpers})
    before = machine.read(server, cores[0]), machine.read(near, cores[1])
    yield
    after = machine.read(server, cores[0]), machine.read(near, cores[1])
    others.append(max(machine.others_share(one, two) for one, two in zip(before, after, strict=True)))
