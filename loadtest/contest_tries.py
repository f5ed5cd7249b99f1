"""Figures to quote: the run is repeated until the machine was calm often enough, and the median run is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.contest_verdict import Contest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """What came of several runs."""

    runs: tuple[Contest, ...]  # in order
    median: Contest  # of those with a verdict, where there are any
    wanted: int  # verdicts

    @property
    def verdicts(self) -> int:
        """How many runs had one."""
        return len(_calm(self.runs))

    @property
    def exit_code(self) -> int:
        """That of the median run; 2 where too few had a verdict."""
        return self.median.verdict.exit_code if self.verdicts >= self.wanted else 2


def repeated(run: Callable[[], Contest], limits: Mapping[str, int]) -> Tries:
    """Runs until `limits["verdicts"]` runs had a verdict, or `limits["most"]` were made.

    The median is by the first figure, where there is none by the first rate; of an even number, the lower.
    """
    runs = list[Contest]()
    while len(_calm(runs)) < limits["verdicts"] and len(runs) < limits["most"]:
        runs.append(run())
    ordered = sorted(_calm(runs) or runs, key=_rank)
    return Tries(runs=tuple(runs), median=ordered[(len(ordered) - 1) // 2], wanted=limits["verdicts"])


def _rank(run: Contest) -> float:
    return run.verdict.figures[0].value if run.verdict.figures else run.rows[0].rate


def _calm(runs: "tuple[Contest, ...] | list[Contest]") -> list[Contest]:
    return [one for one in runs if not one.verdict.doubts]
