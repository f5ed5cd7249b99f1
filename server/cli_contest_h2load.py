"""`mantel bench --h2load`: how many pages a core answers, by a load generator that is not ours."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Final

import uvloop

from features.errors import WrongState
from loadtest.contest import Plan, Progress, rules
from loadtest.h2load import Capacity, Loaded, capacity, found
from server.cli_bench_world import Conditions, Ground
from server.cli_contest import GET_HOME, PRESETS, asking, contestant, default, two_cores
from server.cli_contest_servers import keeping_to, serving
from server.face import AS_TYPED, console, table

_EXPECTED: Final = {"OK", "CANCELLED"}  # the latter when h2load's time is over


def measured(on: Ground, plan: Plan, tell: Progress) -> tuple[Capacity, ...]:
    """Both presets by h2load, and by our own generator beside it.

    Raises:
        WrongState: h2load is not on PATH, or there is one core only.
    """
    if not found():
        raise WrongState("h2load is not on PATH: install it (Debian and Ubuntu: apt-get install nghttp2-client)")
    cores, usual = two_cores(), default(on, asking(on.records))
    with ExitStack() as stack:
        servers = []
        for name, preset in PRESETS.items():
            ours = replace(usual, name=name, preset=preset)
            one = stack.enter_context(serving(ours, cores, room=on.room / preset))
            servers.append(
                Loaded(
                    name=name,
                    target=contestant(name, one, ours.requests).target,
                    headers=[("authorization", f"Bearer {one.token}")],
                    pids=one.workers,
                    metrics=one.metrics,
                )
            )
        stack.enter_context(keeping_to(cores[1]))
        return uvloop.run(capacity(servers, GET_HOME, plan, core=cores[0], progress=tell))


def show(conditions: Conditions, rows: Sequence[Capacity], *, as_json: bool) -> int:
    """What both generators found; answers the exit code: 0, or 2 where that is no figure."""
    limits: Any = rules()["verdict"]
    doubts = [f"others took {row.others:.0%} of the core" for row in rows if row.others > limits["others"]]
    doubts += [
        f"{row.name}: {sum(row.statuses.get(one, 0) for one in wrong):,} calls ended as {', '.join(wrong)}"
        for row in rows
        if (wrong := sorted(row.statuses.keys() - _EXPECTED))
    ]
    code = 2 if doubts else 0
    if as_json:
        told = {"rows": [asdict(row) for row in rows], "doubts": doubts, "exit_code": code}
        print(json.dumps({"conditions": asdict(conditions), **told}))
        return code
    columns = ("", "in flight", "requests/s, h2load", "CPU us", "requests/s, ours", "CPU us", "others")
    lines = [
        (
            row.name,
            f"{row.in_flight}",
            f"{row.rate:,.0f}",
            f"{row.cpu_us:,.0f}",
            f"{row.own_rate:,.0f}",
            f"{row.own_cpu_us:,.0f}",
            f"{row.others:.0%}",
        )
        for row in rows
    ]
    out = console()
    out.print(table("pages that ended as OK, by the server's own count; medians over rounds", columns, lines))
    note = "h2load sends one request again and again: 8 listeners; ours sends those of the bench, by Zipf"
    load = f"load average {conditions.load_before:.2f} before, {conditions.load_after:.2f} after"
    out.print("\n".join([note, load, *(f"no verdict: {doubt}" for doubt in doubts)]), **AS_TYPED)
    return code
