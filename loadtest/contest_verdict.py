"""Whether a contest's figures count, and how far they are from floors and aims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtest.contest import Row

COSTS: Final = ("ready_s", "private_mb", "memory_gb")  # how names of figures begin of which less is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of the design, with what it shall at least (or at most) be."""

    name: str
    value: float
    floor: float
    aim: float
    at_most: bool

    @property
    def stands(self) -> bool:
        """Whether the floor stands."""
        return self.value <= self.floor if self.at_most else self.value >= self.floor


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What may be said."""

    doubts: tuple[str, ...]  # why the figures do not count; none: they do
    figures: tuple[Figure, ...]

    def value(self, name: str) -> float:
        """What was measured of a figure.

        Raises:
            StopIteration: there is no such figure.
        """
        return next(figure.value for figure in self.figures if figure.name == name)

    @property
    def exit_code(self) -> int:
        """0: every floor stands; 1: one does not; 2: no verdict."""
        if self.doubts:
            return 2
        return 0 if all(figure.stands for figure in self.figures) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All that one run of the bench found."""

    rows: tuple[Row, ...]
    verdict: Verdict
    twin_stages: Mapping[str, float]  # microseconds; empty where there was no twin
    live: Mapping[str, float]  # what ran on our servers: experiments, campaigns, items of each, share of eligible


def judge(rows: Sequence[Row], names: Mapping[str, str], rules: Mapping[str, Any]) -> Verdict:
    """Figures at the most calls in flight; `names` tells which rows are `ceiling`, `plain`, `full` and `twin`."""
    most = max(row.in_flight for row in rows)
    at = {row.name: row for row in rows if row.in_flight == most}
    row = {role: at[name] for role, name in names.items() if name in at}
    found = {
        "plain_to_ceiling": row["plain"].rate / row["ceiling"].rate,
        "full_to_plain_cpu": row["full"].cpu_us / row["plain"].cpu_us,
    }
    if "twin" in row:
        found["plain_to_twin"] = row["plain"].rate / row["twin"].rate
    return verdict(rows, found, rules)


def verdict(rows: Sequence[Row], found: Mapping[str, float], rules: Mapping[str, Any]) -> Verdict:
    """What may be said of figures, by the names that they have in the rules, and of the rows that they are of."""
    figures = tuple(
        Figure(
            name=name,
            value=value,
            floor=rules["floors"][name],
            aim=rules["aims"][name],
            at_most=name.endswith("_cpu") or name.startswith(COSTS),
        )
        for name, value in found.items()
    )
    return Verdict(doubts=tuple(_doubts(rows, rules["verdict"])), figures=figures)


def _doubts(rows: Sequence[Row], limits: Mapping[str, float]) -> list[str]:
    others, busy = max(row.others for row in rows), max(row.generator_busy for row in rows)
    doubts = []
    if others > limits["others"]:
        doubts.append(f"others took {others:.0%} of a core; the limit is {limits['others']:.0%}")
    if busy > limits["generator"]:
        doubts.append(f"the generator used {busy:.0%} of its core; the limit is {limits['generator']:.0%}")
    for row in rows:
        asked = row.failed + row.rate
        if row.failed > limits["failed"] * asked:
            doubts.append(f"{row.failed} calls failed: {row.name}, {row.in_flight} in flight")
    return doubts
