"""`mantel bench --full`: what differs, against what, and what it comes to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from features.snapshot import Snapshot
from features.state import State
from loadtest import machine
from loadtest.contest import Plan, rules
from server.cli_bench_world import Ground
from server.cli_contest import default
from server.cli_contest_sweep_report import show, told
from server.cli_contest_sweeps import Sweep, sweeps, swept
from tests.conftest import quiet


@pytest.fixture
def on(built: Path, snapshot: Snapshot, records: dict[str, bytes], tmp_path: Path) -> Ground:
    """The small world, with a room for states."""
    return Ground(folder=built, snapshot=snapshot, records=records, room=tmp_path / "room")


def test_each_sweep_begins_with_nothing_changed(on: Ground, tmp_path: Path) -> None:
    """Settings and sizes are those of the rules; a catalogue that is not kept is left out, with how to make it."""
    limits = rules()["full"]
    found = {sweep.name: sweep for sweep in sweeps(on, State(tmp_path))}
    assert list(found) == ["items", "experiments and campaigns", *limits["settings"], "workers"]
    for sweep in found.values():
        first, *others = sweep.ours
        assert (first.settings, first.workers, first.books.live.experiments) == ({}, 1, rules()["live"]["experiments"])
        assert first not in others
    assert [items for items in limits["items"] for line in found["items"].left_out if f"--items {items} " in line]
    none, *_, both = found["experiments and campaigns"].ours[1:]
    assert (len(none.books.experiments.experiments), len(none.books.promotions.campaigns)) == (0, 0)
    assert len(both.books.experiments.experiments) == limits["experiments"]
    assert len(both.books.promotions.campaigns) == limits["campaigns"]
    for name, values in limits["settings"].items():
        assert [one.settings for one in found[name].ours[1:]] == [{name: str(value)} for value in values]


def test_a_sweep_tells_what_servers_answer_and_need(on: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates beside the first server's, memory, and how soon each was ready; the figures are judged by their floors."""
    if machine.cores() is None:
        pytest.skip("this machine has one core")
    usual = default(on, sorted(on.records)[:20])
    sweep = Sweep(
        name="settings",
        ours=(usual, replace(usual, name="other", workers=2, settings={"batch_cap": "4"})),
        ratios={"live": ("other", usual.name)},
        sizes={usual.name: 1_000_000},
    )
    plan = Plan(rounds=1, seconds=0.5, warm_up_s=0.2, in_flight=[4])
    found = swept(sweep, on, plan, {"verdicts": 1, "most": 1}, quiet)
    (one,) = json.loads(json.dumps(told([found])))
    assert [row["name"] for row in one["rows"]] == [usual.name, "other"]
    assert all(row["rate"] > 0 and not row["failed"] for row in one["rows"])
    assert one["rows"][0]["busiest"] == 1
    assert 0.4 < one["rows"][1]["busiest"] <= 1
    for seen in one["standing"].values():
        assert seen["ready_s"] > 0
        assert 1e-3 * seen["private_mb"] < seen["memory_gb"]
    assert {figure["name"] for figure in one["verdict"]["figures"]} == {"live", "private_mb", "ready_s_1000000"}
    show([found])
    assert "against" in capsys.readouterr().out
