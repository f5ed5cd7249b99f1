"""What `mantel loadtest` prints: a verdict as tables or as JSON, and what a search for the knee tried."""

import json
import math
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from server import face
from server.version import VERSION

if TYPE_CHECKING:
    from loadtest.knee import Knee
    from loadtest.run import Plan
    from loadtest.verdict import Check, Figures, Verdict

Conditions = dict[str, str]  # what the figures depend on besides the server, as a person reads it


def conditions(plan: "Plan", *, listeners: int, closed: int) -> Conditions:
    """What a run's figures depend on, told before it begins."""
    mix, shape = plan.mix, plan.shape
    rates = (
        f"{min(shape.rates):,.0f} to {max(shape.rates):,.0f}" if len(set(shape.rates)) > 1 else f"{shape.rates[0]:,.0f}"
    )
    shares = {"events": mix.events, "next pages": mix.next_pages, "prefetch": mix.prefetch, "strangers": mix.strangers}
    return {
        "server": plan.target.address,
        "load": f"{closed} closed users of Locust" if closed else f"open loop, {rates} calls/s",
        "from": "sent" if closed else "due",
        "time": f"{shape.duration:g} s after {plan.warm_up_s:g} s of warm-up",
        "traffic": ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
        + f", {mix.page_size or 'all'} shelves a page",
        "listeners": f"{listeners:,} published, by Zipf {mix.zipf:g}" if listeners else "strangers only: none is known",
        "seed": f"{plan.seed}",
        "generators": f"{plan.processes}, each with {plan.target.connections} connections",
        "machine": f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "mantel": VERSION,
    }


def show(found: "Figures", verdict: "Verdict", told: Conditions, *, as_json: bool) -> int:
    """Prints a verdict; answers its exit code."""
    if as_json:
        _print_json({**asdict(verdict), "figures": asdict(found), "conditions": told})
        return verdict.exit_code
    console = face.console()
    console.print(face.table("load test", ("promise", "bound", "measured", ""), [_row(one) for one in verdict.checks]))
    kinds = [
        (
            name,
            f"{row['calls']:,.0f}",
            f"{row['rate']:,.1f}/s",
            f"{row['errors']:.2%}",
            f"{row['refused']:.2%}",
            *(f"{row[quantile]:.2f}" for quantile in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
        )
        for name, row in found.by_kind.items()
    ]
    columns = ("calls", "count", "rate", "errors", "refused", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
    console.print(face.table(f"latency from when calls were {told['from']}", columns, kinds))
    for line in (_of_server(found), _of_generator(found, told), _of_run(told)):
        console.print(line, style="dim", highlight=False)
    _say(verdict)
    return verdict.exit_code


def show_knee(knee: "Knee", told: Conditions, *, as_json: bool) -> int:
    """Prints what a search came to; answers 0, 1 where no rate holds, 2 where the generator ended the search."""
    code = 2 if knee.reason else 0 if knee.rate else 1
    if as_json:
        _print_json(
            {"knee": knee.rate, "reason": knee.reason, "tried": [_tried(one) for one in knee.tried], "conditions": told}
        )
        return code
    rows = [
        (
            f"{one.rate:,.0f}/s",
            " ".join(f"{run.latency['p50_ms']:.1f}" for run, _ in one.runs),
            " ".join(f"{run.latency['p99_ms']:.1f}" for run, _ in one.runs),
            " ".join(f"{run.busy:.0%}" for run, _ in one.runs),
            {"pass": "holds", "fail": "does not hold", "none": "no verdict"}[one.outcome],
        )
        for one in knee.tried
    ]
    console = face.console()
    console.print(face.table("rates tried", ("rate", "p50 ms", "p99 ms", "generator", ""), rows))
    console.print(_of_run(told), style="dim", highlight=False)
    if knee.reason:
        known = f"the knee is at {knee.rate:,.0f} calls/s or higher" if knee.rate else "no rate holds so far"
        typer.secho(f"{known}; {knee.reason}", fg="yellow")
    elif knee.rate:
        typer.secho(f"the knee is at {knee.rate:,.0f} calls/s", fg="green")
    else:
        typer.secho("no rate holds", fg="red")
    return code


def _row(check: "Check") -> tuple[str, str, str, str]:
    from loadtest.verdict import shown

    mark = {True: "kept", False: "BROKEN", None: "too few pages"}[check.kept]
    return check.what, shown(check.bound, check.unit), shown(check.measured, check.unit), mark


def _of_server(found: "Figures") -> str:
    return (
        f"{found.goodput:,.1f} good pages/s of {found.rate:,.1f} calls/s · {found.page_bytes:,.0f} bytes a page · "
        f"{found.cold:.1%} cold start · " + ", ".join(f"{name} {count:,}" for name, count in found.codes.items())
    )


def _of_generator(found: "Figures", told: Conditions) -> str:
    if told["from"] == "sent":
        return f"users who wait send nothing late; Locust used {found.busy:.0%} of a core"
    return (
        f"the generator sent half of its calls within {found.lag_p50_ms:.2f} ms of when they were due, 99 % within "
        f"{found.lag_p99_ms:.2f}, and used {found.busy:.0%} of a core"
    )


def _of_run(told: Conditions) -> str:
    return " · ".join(f"{name} {what}" for name, what in told.items() if name != "from")


def _say(verdict: "Verdict") -> None:
    text, colour = {
        "pass": ("the promise is kept", "green"),
        "fail": ("the promise is broken", "red"),
        "none": ("no verdict", "yellow"),
    }[verdict.outcome]
    typer.secho(": ".join((text, *(["; ".join(verdict.reasons)] if verdict.reasons else []))), fg=colour)


def _tried(one: Any) -> dict[str, Any]:
    runs = [{"figures": asdict(found), **asdict(verdict)} for found, verdict in one.runs]
    return {"rate": one.rate, "outcome": one.outcome, "runs": runs}


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(_plain(content), indent=1))


def _plain(value: Any) -> Any:
    """The same without NaN, which JSON does not know: null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
