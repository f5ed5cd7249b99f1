"""`mantel bench`: its figures are those of the run, and its world is made once."""

import itertools
import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from features.errors import MantelError
from features.snapshot import MANIFEST, Limit, Snapshot
from loadtest import stages
from loadtest.contest import SHELVES
from loadtest.stages import BATCHES, STAGES, Case, Figures, Plan, cases, measure, two_markets
from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
from ranking.types import Home
from server import cli_bench_world
from server.cli import app
from tests.conftest import quiet

PLAN = Plan(rounds=1, requests=16)
SURFACES = {preset: load_surfaces(SHELVES, preset)["home"] for preset in ("plain", "full")}


def pages_of(chosen: Sequence[Case], records: dict[str, bytes], plan: Plan) -> tuple[tuple[Figures, ...], list[Home]]:
    """What is measured by a clock that ticks a second each time it is read, and the pages that were encoded."""
    homes: list[Home] = []

    def encode(home: Home, _snapshot: Snapshot) -> bytes:
        homes.append(home)
        return b""

    ticks = itertools.count()
    figures = measure(chosen, records, encode, plan, clock=lambda: float(next(ticks)), progress=quiet)
    return figures, homes


def test_its_shelves_are_those_of_home() -> None:
    """Six of those that ship, with the same params in both presets, sizes, depths and places for exploration."""
    for preset, surface in SURFACES.items():
        shipped = load_surfaces(DEFAULT_SURFACES, preset)["home"]
        by_id = {shelf.id: shelf for shelf in shipped.shelves}
        assert len(surface.shelves) == 6
        assert np.array_equal(surface.params, shipped.params)
        for shelf in surface.shelves:
            for name in ("source", "size", "minimum", "depth", "skip_played", "pinned", "promotable", "explore", "nth"):
                assert getattr(shelf, name) == getattr(by_id[shelf.id], name), (shelf.id, name)
            assert np.array_equal(shelf.params, by_id[shelf.id].params), shelf.id


def test_every_stage_is_timed_for_every_preset_and_batch_size(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """A stage lies between two readings of the clock; the total spans all of them; both are shared by the batch."""
    figures, _ = pages_of(cases(snapshot, SURFACES, PLAN), records, PLAN)
    sizes = [(one.preset, one.batch) for one in figures if one.licensed is None]
    assert sizes == [(preset, batch) for preset in ("plain", "full") for batch in BATCHES]
    assert [(one.preset, one.batch, one.licensed) for one in figures[6:]] == [("full", 16, 1.0), ("full", 16, 0.01)]
    for one in figures:
        assert one.batches == PLAN.rounds * PLAN.requests / one.batch
        assert one.micros == dict.fromkeys(STAGES, 1e6 / one.batch)
        assert one.total == (len(STAGES) + 2) * 1e6 / one.batch  # the core reads the clock once more on each side


def test_pages_are_counted_as_they_are_served(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Shelves and items are the means of the measured rounds; every case is asked for the same pages, warm-up apart."""
    plan = Plan(rounds=2, requests=16)
    chosen = cases(snapshot, SURFACES, plan)[3:6]
    figures, homes = pages_of(chosen, records, plan)
    measured = homes[len(chosen) * plan.requests :]
    shelves = np.mean([len(home.shelves) for home in measured])
    items = np.mean([sum(len(shelf.rows) for shelf in home.shelves) for home in measured])
    assert not any(home.degraded for home in homes)
    assert len(measured) == len(chosen) * plan.rounds * plan.requests
    for one in figures:
        assert one.shelves == pytest.approx(shelves)
        assert one.items == pytest.approx(items)
    again, _ = pages_of(chosen, records, plan)
    assert again == figures


def test_the_market_with_few_licences_shows_what_it_may(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With twenty items its pages show nearly all of them; with more its lists are full."""
    chosen = cases(snapshot, SURFACES, PLAN)[-2:]
    (_, few), homes = pages_of(chosen, records, PLAN)
    bits = chosen[1].snapshot.columns["market_bits"][:, 0]
    assert (chosen[1].snapshot.columns["limits"] & Limit.MARKETS).all()
    assert np.count_nonzero(bits & 2) == 20
    assert 0.9 * 20 <= few.items <= 20
    for home in homes:
        shown = np.concatenate([shelf.rows for shelf in home.shelves])
        assert home.market != chosen[1].market or (bits[shown] & 2).all()
    plan = Plan(rounds=1, requests=16, licensed=0.2)
    (every, few), homes = pages_of(cases(snapshot, SURFACES, plan)[-2:], records, plan)
    for home in homes:
        sizes = {shelf.spec.id: len(shelf.rows) for shelf in home.shelves}
        assert sizes["popular-near-you"] >= 10
    assert 0.5 * every.items < few.items < every.items  # what a listener played elsewhere is missing


def test_lists_of_the_two_markets_hold_the_best_they_may_show(snapshot: Snapshot) -> None:
    """Popular by plays, newest by day; where no market is known there is nothing."""
    licensed = two_markets(snapshot, PLAN)
    columns, bits = licensed.columns, licensed.columns["market_bits"][:, 0]
    assert (columns["popular"][0] == -1).all()
    for number, allowed in ((1, bits & 1), (2, bits & 2)):
        popular, newest = (columns[name][number][columns[name][number] >= 0] for name in ("popular", "newest"))
        assert allowed[popular].all()
        assert allowed[newest].all()
        assert (np.diff(columns["plays"][popular]) <= 0).all()
        assert (np.diff(columns["released"][newest]) <= 0).all()
        assert columns["plays"][popular].max() == columns["plays"][allowed > 0].max()


def test_measuring_gives_the_cores_back(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """It keeps to one core while it lasts."""
    before, seen = os.sched_getaffinity(0), set()

    def encode(_home: Home, _snapshot: Snapshot) -> bytes:
        seen.add(len(os.sched_getaffinity(0)))
        return b""

    measure(cases(snapshot, SURFACES, PLAN)[:1], records, encode, PLAN, progress=quiet)
    assert seen == {1}
    assert os.sched_getaffinity(0) == before


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests in a round, where a command is typed."""
    monkeypatch.setattr(stages, "Plan", partial(Plan, requests=16))


@pytest.mark.usefixtures("briefly")
def test_bench_prints_tables_and_json(built: Path, records: dict[str, bytes]) -> None:
    """`--data` names a snapshot with its records; the JSON holds what the tables show, and the conditions."""
    words = ["bench", "--stages", "--data", str(built), "--rounds", "1", "--quiet"]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert not [word for word in (*STAGES, "total", "1 % of the items", "recall", "load average") if word not in shown]
    done = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert [(one["preset"], one["batch"]) for one in told["stages"]] == list(itertools.product(SURFACES, BATCHES))
    assert [one["licensed"] for one in told["markets"]] == [1.0, 0.01]
    for one in (*told["stages"], *told["markets"]):
        assert list(one["micros"]) == list(STAGES)
        assert min(one["micros"].values()) > 0
    manifest = json.loads((built / MANIFEST).read_bytes())
    assert told["conditions"]["recall"] == manifest["index"]["recall"]
    assert (told["conditions"]["items"], told["conditions"]["listeners"]) == (manifest["items"], len(records))


@pytest.mark.usefixtures("briefly")
def test_the_world_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the state directory, is said so, and is made anew where this version cannot read it."""
    monkeypatch.setattr(cli_bench_world, "LISTENERS", 120)
    words = ["bench", "--stages", "--items", "600", "--rounds", "1", "--state", str(tmp_path)]
    manifest = tmp_path / "bench/600/snapshot" / MANIFEST

    def made() -> bool:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert str(manifest.parent) in done.stdout
        return f"kept in {tmp_path}/bench/600" in done.stderr

    assert made()
    before = manifest.stat().st_mtime_ns
    assert not made()
    assert manifest.stat().st_mtime_ns == before
    manifest.chmod(0o644)
    manifest.write_text("{}")
    assert made()
    assert not made()


def test_what_cannot_be_measured_is_refused(built: Path, tmp_path: Path) -> None:
    """Records that were published and so deleted, or are of another space; a folder that is no snapshot."""
    folder = shutil.copytree(built, tmp_path / "S")
    told = folder / "listeners/listeners.json"
    told.chmod(0o644)
    told.write_text('{"space_id": "another"}')

    def refusal(data: Path) -> str:
        error = CliRunner().invoke(app, ["bench", "--stages", "--data", str(data)]).exception
        assert isinstance(error, MantelError)
        return str(error)

    assert "not of its embedding space" in refusal(folder)
    shutil.rmtree(folder / "listeners")
    assert f"build it again with: mantel build --data W --out {folder}" in refusal(folder)
    assert "is this the folder that `mantel build` wrote" in refusal(tmp_path)
