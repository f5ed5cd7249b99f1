"""How `mantel bench --full` looks: each server beside that with nothing changed."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from server.cli_contest_report import figures, tried
from server.cli_contest_sweeps import Swept
from server.face import AS_TYPED, console, table


def told(found: Sequence[Swept]) -> list[dict[str, Any]]:
    """What a program reads of sweeps: of each the median run."""
    return [
        {
            "sweep": one.sweep.name,
            "left_out": one.sweep.left_out,
            "rows": [asdict(row) for row in one.tries.median.rows],
            "standing": {name: asdict(seen) for name, seen in one.standing.items()},
            "verdict": asdict(one.tries.median.verdict),
            "exit_code": one.tries.exit_code,
        }
        for one in found
    ]


def show(found: Sequence[Swept]) -> None:
    """Rates and CPU against the first server's, and what each server needs."""
    out = console()
    columns = (
        "",
        "requests/s",
        "±",
        "against",
        "CPU us",
        "against",
        "ready s",
        "private MB",
        "all GB",
        "busiest",
        "others",
    )
    for one in found:
        rows, first = one.tries.median.rows, one.tries.median.rows[0]
        lines = [
            (
                row.name,
                f"{row.rate:,.0f}",
                f"{row.spread / 2:.0%}",
                f"{row.rate / max(1e-9, first.rate):.2f}",
                f"{row.cpu_us:,.0f}",
                f"{row.cpu_us / max(1e-9, first.cpu_us):.2f}",
                f"{one.standing[row.name].ready_s:.1f}",
                f"{one.standing[row.name].private_mb:,.0f}",
                f"{one.standing[row.name].memory_gb:.2f}",
                f"{row.busiest:.0%}",
                f"{row.others:.0%}",
            )
            for row in rows
        ]
        out.print(
            table(f"{one.sweep.name}: {first.in_flight} in flight, beside GetHome with nothing changed", columns, lines)
        )
        if one.tries.median.verdict.figures:
            out.print(figures(one.tries.median.verdict))
        doubts = [f"no verdict: {doubt}" for doubt in one.tries.median.verdict.doubts]
        if words := [*one.sweep.left_out, *tried(one.tries), *doubts]:
            out.print("\n".join(words), **AS_TYPED)
