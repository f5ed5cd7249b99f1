"""From rows to a verdict: pure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.knee import find_knee
from loadtest.report import report
from loadtest.slo import DEFAULT_SLO, SloRefused, load_slo, parse_slo
from loadtest.traffic import EVENTS, NEXT, PREFETCH
from loadtest.verdict import Figures, Outcome, Verdict, figures, judge
from tests.generated import measured, rows

REFUSED, FAILED = 8, 14
SHIPPED = load_slo()


def verdict_of(calls: Any, slo: Any = SHIPPED, **changes: Any) -> Verdict:
    """The verdict on a run that left these rows."""
    return judge(figures(measured(calls, **changes), slo), slo)


def test_the_shipped_promise_is_the_one_that_is_written() -> None:
    """The file that ships says what its defaults say, and holds the agreed bounds."""
    assert DEFAULT_SLO.name == "slo.toml"
    assert (SHIPPED.rate, SHIPPED.p50_ms, SHIPPED.p99_ms, SHIPPED.p999_ms) == (500, 6, 25, 60)
    assert (SHIPPED.errors, SHIPPED.degraded, SHIPPED.thin) == (0.001, 0.005, 0.001)
    assert parse_slo({"rate": 1.0}).generator == SHIPPED.generator


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "rate"),
        ({"rate": 0}, "rate"),
        ({"rate": 1, "p99_ms": "soon"}, "p99_ms"),
        ({"rate": 1, "errors": 2.0}, "errors"),
        ({"rate": 1, "p98_ms": 3.0}, "p98_ms"),
        ({"rate": 1, "generator": {"busy": -1}}, "generator.busy"),
    ],
)
def test_a_wrong_promise_names_the_field(content: dict[str, Any], field: str) -> None:
    """A field that is missing, wrong or unknown is named by its path."""
    with pytest.raises(SloRefused) as caught:
        parse_slo(content)
    assert [path for path, _ in caught.value.violations] == [field]


def test_a_file_that_is_no_promise_is_refused(tmp_path: Path) -> None:
    """A file that is away, or no TOML, is refused by its name."""
    (tmp_path / "slo.toml").write_text("rate = = 1")
    for name in ("none.toml", "slo.toml"):
        with pytest.raises(SloRefused, match=name):
            load_slo(tmp_path / name)


CASES: dict[str, tuple[dict[str, Any], Outcome, str]] = {
    "good": ({}, Outcome.PASS, ""),
    "slow in the middle": ({"took": 0.007}, Outcome.FAIL, "p50_ms"),
    "slow at the edge": ({"took": np.where(np.arange(5000) % 50, 0.002, 0.03)}, Outcome.FAIL, "p99_ms"),
    "seldom very slow": ({"took": np.where(np.arange(5000) % 500, 0.002, 0.07)}, Outcome.FAIL, "p999_ms"),
    "failing": ({"code": np.where(np.arange(5000) % 500, 0, FAILED)}, Outcome.FAIL, "errors"),
    "refusing": ({"code": np.where(np.arange(5000) % 500, 0, REFUSED)}, Outcome.FAIL, "refused"),
    "degraded": ({"degraded": np.arange(5000) % 100 == 0}, Outcome.FAIL, "degraded"),
    "empty": ({"items": np.where(np.arange(5000) % 500, 72, 0)}, Outcome.FAIL, "thin"),
    "one shelf": ({"shelves": np.where(np.arange(5000) % 500, 6, 1)}, Outcome.FAIL, "thin"),
    "seldom failing": ({"code": np.where(np.arange(5000) % 2500, 0, FAILED)}, Outcome.PASS, ""),
    "a short last page": ({"kind": NEXT, "shelves": 1, "items": 4}, Outcome.PASS, ""),
    "an empty next page": ({"kind": NEXT, "items": 0}, Outcome.FAIL, "thin"),
    "prefetches refused": ({"kind": np.arange(5000) % 3, "code": np.where(np.arange(5000) % 3 == 2, REFUSED, 0)},
                           Outcome.PASS, ""),
    "slow events": ({"kind": np.where(np.arange(5000) % 2, 0, EVENTS), "took": np.where(np.arange(5000) % 2, 0.002, 1)},
                    Outcome.PASS, ""),
    "late sends": ({"lag": 0.015}, Outcome.NONE, "late"),
    "late sends and slow": ({"lag": 0.015, "took": 1.0}, Outcome.NONE, "late"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_says_what_was_broken(name: str) -> None:
    """Each bound alone decides, the reason names it, and a generator that was late decides nothing."""
    columns, outcome, reason = CASES[name]
    verdict = verdict_of(rows(5000, **columns))
    assert verdict.outcome is outcome
    assert verdict.exit_code == {"pass": 0, "fail": 1, "none": 2}[outcome]
    assert reason in "; ".join(verdict.reasons)
    assert bool(verdict.reasons) is (outcome is not Outcome.PASS)


def test_latency_counts_from_when_a_call_was_due() -> None:
    """What was sent 5 ms late and answered in 2 took 7: the wait is the listener's too."""
    found = figures(measured(rows(5000, lag=0.005)), SHIPPED)
    assert found.latency["p50_ms"] == pytest.approx(7.0)
    assert found.lag_p99_ms == pytest.approx(5.0)


def test_a_busy_generator_gives_no_verdict() -> None:
    """Whether the run looks good or bad."""
    for took in (0.002, 1.0):
        verdict = verdict_of(rows(5000, took=took), busy=0.97)
        assert verdict.outcome is Outcome.NONE
        assert "97%" in verdict.reasons[0]


def test_too_few_pages_give_no_verdict_but_may_break_the_promise() -> None:
    """Of 500 pages nobody knows what 99.9 % of them take; that half of them are slow is known."""
    few = verdict_of(rows(500))
    assert few.outcome is Outcome.NONE
    assert few.reasons == ("too few pages for p999_ms: 500",)
    assert verdict_of(rows(500, took=0.1)).outcome is Outcome.FAIL
    assert verdict_of(rows(0)).outcome is Outcome.NONE


def test_refusals_and_goodput_are_figures_of_their_own() -> None:
    """Refused calls are in no latency but theirs; goodput counts good pages in time, and both may be promised."""
    odd = np.arange(5000) % 2 == 1
    calls = rows(5000, code=np.where(odd, REFUSED, 0), took=np.where(odd, 0.001, 0.004))
    found = figures(measured(calls), SHIPPED)
    assert found.latency["max_ms"] == pytest.approx(4.0)
    assert found.refused_p99_ms == pytest.approx(1.0)
    assert found.goodput == pytest.approx(250.0)
    assert (found.errors, found.refused) == (0.0, 0.5)
    bounds = {"rate": 500.0, "goodput": 240.0, "refused_p99_ms": 5.0}
    assert verdict_of(calls, parse_slo(bounds)).outcome is Outcome.PASS
    assert "goodput" in verdict_of(calls, parse_slo(bounds | {"goodput": 260.0})).reasons[0]
    assert "refused_p99_ms" in verdict_of(calls, parse_slo(bounds | {"refused_p99_ms": 0.5})).reasons[0]
    assert found.by_kind.keys() == {"page"}
    assert figures(measured(rows(10, kind=PREFETCH)), SHIPPED).pages == 0


def test_the_report_shows_the_run() -> None:
    """One page of HTML with the verdict, each bound, each kind of call and three charts; text is escaped."""
    calls = rows(5000, kind=np.where(np.arange(5000) % 5, 0, EVENTS), took=0.03)
    found = figures(measured(calls), SHIPPED)
    verdict = judge(found, SHIPPED)
    text = report(measured(calls), found, verdict, {"server": "<here>"})
    assert "The promise is broken" in text
    assert "p99_ms is 30.00 ms, above 25.00 ms" in text
    assert "&lt;here&gt;" in text
    assert "<here>" not in text
    assert text.count("<svg ") == 3
    assert text.count("<polyline ") == 3
    assert all(f"<td>{kind}</td>" in text for kind in ("page", "events"))
    assert all(check.what in text for check in verdict.checks)
    assert "src=" not in text  # it needs nothing else
    assert "No page was answered" in report(measured(rows(0)), figures(measured(rows(0)), SHIPPED), verdict, {})


def attempts(capacity: float, *, blind: float = np.inf, flaky: int = 0) -> Any:
    """Runs against a server that keeps its promise up to a rate; above `blind` the generator is the bottleneck."""
    made: list[float] = []

    def attempt(rate: float) -> tuple[Figures, Verdict]:
        made.append(rate)
        lag = 0.02 if rate > blind or len(made) <= flaky else 0.0
        found = figures(measured(rows(5000, took=0.002 if rate <= capacity else 1.0, lag=lag)), SHIPPED)
        return found, judge(found, SHIPPED)

    return attempt


@pytest.mark.parametrize("capacity", [3.0, 499.0, 500.0, 730.0, 12_345.0])
def test_the_knee_is_found_from_either_side(capacity: float) -> None:
    """Within the precision below the capacity, each rate that holds by three runs, each that does not by one."""
    knee = find_knee(attempts(capacity), start=500.0)
    assert capacity / 1.05 <= knee.rate <= capacity
    assert {(one.outcome, len(one.runs)) for one in knee.tried} == {(Outcome.PASS, 3), (Outcome.FAIL, 1)}
    assert not knee.reason


def test_the_knee_is_not_told_where_the_generator_was_the_bottleneck() -> None:
    """What held so far is told, with the reason; a run without a verdict is made anew before that."""
    knee = find_knee(attempts(5000.0, blind=1500.0), start=500.0)
    assert knee.rate == 1000.0
    assert "no verdict at 2,000 calls/s" in knee.reason
    assert find_knee(attempts(730.0, flaky=2), start=500.0).rate == pytest.approx(730, rel=0.05)
    assert find_knee(attempts(0.5), start=500.0).rate == 0.0


def test_figures_can_be_told_as_json() -> None:
    """Without NaN, which JSON does not know."""
    from server.cli_verdict import _plain  # noqa: PLC0415

    assert json.dumps(_plain({"a": [np.nan, 1.0], "b": ({"c": np.inf},)}), allow_nan=False)
