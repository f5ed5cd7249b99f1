"""What `mantel bench --overload` starts, measures and shows: one slowed server on a core, driven beyond its knee."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from features.errors import WrongState
from loadtest import contest, machine, overload
from loadtest.contest import Progress
from loadtest.contest_verdict import Figure
from loadtest.overload import Calls, Overload
from server import contest_report
from server.admission import PRIORITY, Priority
from server.cli_contest import asked_of, gets_home, keeping_to, serving
from server.face import AS_TYPED, console, table

_SENTENCES: Final = {
    "goodput": "pages in time beyond the knee, against those at it",
    "refused_p99_ms": "p99 of a refusal, ms",
    "visible_p99_ms": "p99 of a page that somebody waits for, ms",
    "visible_refused": "share of them refused, against that of prefetches",
}


def driven(
    folder: Path, users: Sequence[str], *, room: Path, rules: Mapping[str, Any], tell: Progress
) -> Overload | None:
    """Full pages of a snapshot folder from a server that is slowed by the rules' drill, at its knee and beyond.

    Raises:
        WrongState: there is one core only.
    """
    cores = machine.cores()
    if cores is None:
        raise WrongState("there is one core only: load and server need one each")
    asked = asked_of(users)
    with (
        serving(folder, "full", cores, room=room, flags={"drill-work-ms": f"{rules['work_ms']:g}"}) as ours,
        keeping_to(cores[1]),
    ):
        visible = gets_home(ours.port, asked, ours.token)
        prefetch = gets_home(ours.port, asked, ours.token, ((PRIORITY, Priority.PREFETCH.value),))
        watched = partial(_watched, ours.workers, ours.helpers, cores)
        return uvloop.run(overload.measure(visible, prefetch, rules, watched=watched, progress=tell))


def rules_of(*, quick: bool, rounds: int | None, seconds: float | None) -> dict[str, Any]:
    """The rules of overload, with what was asked for in place of their own."""
    found = dict(contest.rules()["overload"])
    changes = found.pop("quick") if quick else {}
    changes |= {name: value for name, value in (("rounds", rounds), ("seconds", seconds)) if value}
    knee = found["knee"] | {name: value for name, value in changes.items() if name in found["knee"]}
    return found | {name: value for name, value in changes.items() if name in found} | {"knee": knee}


def show(conditions: Any, found: Overload | None, rules: Mapping[str, Any], *, as_json: bool) -> int:
    """What became of calls, figures with floor and aim, and doubts; answers the exit code."""
    if found is None:
        told = {"conditions": asdict(conditions), "overload": None, "exit_code": 2}
        print(json.dumps(told) if as_json else contest_report.UNSTEADY)
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
