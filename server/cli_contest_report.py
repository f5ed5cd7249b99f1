"""How `mantel bench` looks: who answered how much, and what that says."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loadtest.contest_chart import chart
from loadtest.contest_tries import Tries
from loadtest.contest_verdict import Verdict
from server.face import AS_TYPED, console, table

SENTENCES = {
    "plain_to_ceiling": "GetHome, plain, against what grpc.aio answers from a constant",
    "full_to_plain_cpu": "CPU per request, full against plain",
    "plain_to_twin": "GetHome against its twin behind FastAPI",
    "items_1000000": "1,000,000 items against 100,000, requests/s",
    "items_10000000": "10,000,000 items against 100,000, requests/s",
    "live": "all experiments and campaigns against none, requests/s",
    "ready_s_1000000": "from a worker's start until it answers, 1,000,000 items, s",
    "ready_s_10000000": "from a worker's start until it answers, 10,000,000 items, s",
    "private_mb": "memory of a worker that it shares with nobody, MB",
    "memory_gb_10000000": "memory of all processes and Redis, 10,000,000 items, GB",
}

UNSTEADY = "no verdict: no rate kept its p99 in three runs one after the other; measure when the machine is quiet"


def told(conditions: Any, tries: Tries) -> dict[str, Any]:
    """What a program reads: the median run, whole, and what every try said."""
    one = tries.median
    return {
        "conditions": asdict(conditions),
        "live": dict(one.live),
        "rows": [asdict(row) for row in one.rows],
        "twin_stages": dict(one.twin_stages),
        "verdict": asdict(one.verdict),
        "tries": {"wanted": tries.wanted, "had": tries.verdicts, "runs": [asdict(run.verdict) for run in tries.runs]},
        "exit_code": tries.exit_code,
    }


def show(conditions: Any, tries: Tries) -> None:
    """Rows, figures of the design with floor and aim, conditions, and doubts if there are any."""
    contest = tries.median
    out = console()
    columns = ("", "in flight", "requests/s", "±", "CPU us", "p50 ms", "p99 ms", "bytes", "load busy", "others")
    rows = [
        (
            row.name,
            f"{row.in_flight}",
            f"{row.rate:,.0f}",
            f"{row.spread / 2:.0%}",
            f"{row.cpu_us:,.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.payload:,.0f}",
            f"{row.generator_busy:.0%}",
            f"{row.others:.0%}",
        )
        for row in contest.rows
    ]
    out.print(table("one core of server, the load on another; medians over rounds", columns, rows))
    out.print(figures(contest.verdict))
    if contest.twin_stages:
        stages = " · ".join(f"{name} {micros:,.0f}" for name, micros in contest.twin_stages.items())
        out.print(f"the twin's stages, us per request (read: with waiting while others compute): {stages}", **AS_TYPED)
    versions = " · ".join(f"{name} {version}" for name, version in conditions.versions.items())
    lines = [
        f"{conditions.items:,} items · {conditions.listeners:,} listeners · {conditions.snapshot}",
        _live(contest.live),
        f"{conditions.processor}, {conditions.cores} cores · {versions}",
        f"load average {conditions.load_before:.2f} before, {conditions.load_after:.2f} after",
        *_peers({row.name for row in contest.rows}),
        *tried(tries),
        *(f"no verdict: {doubt}" for doubt in contest.verdict.doubts),
    ]
    out.print("\n".join(lines), **AS_TYPED)


def figures(verdict: Verdict) -> Any:
    """A verdict's figures, with floor and aim, as a table."""
    rows = [
        (
            SENTENCES[one.name],
            f"{one.value:.2f}",
            f"{'at most ' if one.at_most else ''}{one.floor:g}" + ("" if one.stands else ", missed"),
            f"{one.aim:g}",
        )
        for one in verdict.figures
    ]
    return table("figures", ("with the most calls in flight", "measured", "floor", "aim"), rows)


def drawn(conditions: Any, tries: Tries, kinds: Mapping[str, str]) -> str:
    """The median run as a picture, SVG; `kinds` as its chart takes them."""
    one = tries.median
    notes = [
        f"{conditions.processor}, {conditions.cores} cores: the server on one, load and Redis on another",
        f"{conditions.items:,} items · {conditions.listeners:,} listeners by Zipf · {_live(one.live)}",
        *_doubted(tries),
    ]
    return chart(one.rows, kinds, title=f"GetHome: six shelves of twelve, {conditions.items:,} items", notes=notes)


def _doubted(tries: Tries) -> list[str]:
    """That the figures do not count, where they do not."""
    return ["no verdict: the machine was too busy"] if tries.exit_code == 2 else []


def tried(tries: Tries) -> list[str]:
    """How many runs it took, where it was more than one that was wanted."""
    if tries.wanted == 1 or not tries.median.verdict.figures:
        return []
    values = " · ".join(
        f"{run.verdict.figures[0].value:.2f}" + (" (no verdict)" if run.verdict.doubts else "") for run in tries.runs
    )
    had = f"{tries.verdicts} of {len(tries.runs)} tries had a verdict, {tries.wanted} are needed"
    return [f"{had}; this is the median run. {SENTENCES[tries.median.verdict.figures[0].name]}: {values}"]


def _peers(names: set[str]) -> list[str]:
    """How to have rows of other servers of models, where they are missing."""
    if any(name.startswith(("LitServe", "BentoML")) for name in names):
        return []
    return ["rows of LitServe and BentoML: .venv/bin/uv pip install --python .venv/bin/python --group peers"]


def _live(what: Mapping[str, float]) -> str:
    promoted = f"{what['campaigns']:,.0f} campaigns of {what['items']:,.0f} items"
    return f"{what['experiments']:,.0f} experiments · {promoted} open to {what['eligible']:.1%} of the requests"


def knee(conditions: Any, found: Any, rules: Mapping[str, Any], *, as_json: bool) -> int:
    """The knee and p99 below it; answers the exit code: 0: the floor stands, 1: it does not, 2: no verdict."""
    limits = rules["knee"]
    if found is None:
        print(json.dumps({"conditions": asdict(conditions), "knee": None, "exit_code": 2}) if as_json else UNSTEADY)
        return 2
    late = found.late_ms > limits["late_ms"]
    code = 2 if late else int(found.p99_ms > limits["floor_p99_ms"])
    if as_json:
        print(json.dumps({"conditions": asdict(conditions), "knee": asdict(found), "exit_code": code}))
        return code
    below = f"at {found.share:.0%} of it: p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms"
    marks = f"floor {limits['floor_p99_ms']:g}, aim {limits['aim_p99_ms']:g}"
    lines = [
        f"knee of GetHome, full: {found.rate:,.0f} requests/s with p99 <= {limits['p99_ms']:g} ms, open loop, one core",
        f"{below} ({marks}); a constant: p99 {found.constant_p99_ms:.2f} ms",
        f"load average {conditions.load_before:.2f} before, {conditions.load_after:.2f} after",
    ]
    if late:
        lines.append(f"no verdict: the generator sent {found.late_ms:.1f} ms late; the limit is {limits['late_ms']:g}")
    console().print("\n".join(lines), **AS_TYPED)
    return code
