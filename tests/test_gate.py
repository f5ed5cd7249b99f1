"""The gate: each limit refuses by its name, figures are told, and what is refused leaves nothing behind."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from features.errors import GateRefused
from features.offline.build import BuildSettings, build
from features.offline.gate import MEANINGS, GateLimits, checks, drift, finite_share, table, unplayed_lift
from features.snapshot import Snapshot, read_manifest
from tests.conftest import quiet
from tests.tables import everyone_plays, write_tables

GOOD = {
    "recall": 0.98,
    "coverage": 1.0,
    "finite": 1.0,
    "unplayed_lift": 0.2,
    "rejected": 0.01,
    "shortest_list": 1.0,
    "item_ratio": 1.1,
    "popular_overlap": 0.8,
    "neighbour_overlap": 0.5,
}
WORSE = dict.fromkeys(GOOD, 0.0) | {"unplayed_lift": 3.0, "rejected": 0.06}
DRIFT = {"item_ratio", "popular_overlap", "neighbour_overlap"}
SMALL = BuildSettings(factors=16, iterations=5)


def test_every_limit_has_a_figure() -> None:
    """A limit is named min_ or max_ and after its figure, which has a meaning."""
    assert {limit.name[4:] for limit in fields(GateLimits)} == set(GOOD) == set(MEANINGS)


def test_good_figures_pass() -> None:
    """A figure at its limit passes too, and one without a limit is not judged."""
    assert all(check.passed for check in checks(GOOD | {"recall": 0.95, "micros": 1e9}, GateLimits()))


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("figure", ["worse", "not a number"])
def test_a_figure_beyond_its_limit_fails_by_name(name: str, figure: str) -> None:
    """Only that one; not a number is beyond any limit."""
    found = checks(GOOD | {name: WORSE[name] if figure == "worse" else np.nan}, GateLimits())
    assert [check.name for check in found if not check.passed] == [name]
    (line,) = [line for line in table(found).splitlines() if "REFUSED" in line]
    assert line.startswith(name)
    assert line.endswith(MEANINGS[name])


def test_a_refused_build_tells_the_figures_and_leaves_nothing(world: Path, tmp_path: Path) -> None:
    """Neither the snapshot nor a trace of it; the last line says how to keep it."""
    strict = replace(SMALL, limits=GateLimits(min_recall=1.01))
    with pytest.raises(GateRefused, match=r"recall +1 +at least 1.01 +REFUSED +share of [^\n]+\ncov") as refused:
        build(world, tmp_path / "out", settings=strict, progress=quiet)
    assert str(refused.value).splitlines()[-1].endswith("--force.")
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_is_not_to_refuse_keeps_the_figures(world: Path, tmp_path: Path) -> None:
    """The manifest tells what it was accepted with."""
    lenient = replace(SMALL, limits=GateLimits(min_recall=1.01), refuse=False)
    report = build(world, tmp_path / "out", settings=lenient, progress=quiet)
    assert read_manifest(tmp_path / "out")[0].gate["recall"] == 1.0
    assert report.manifest.gate.keys() == set(MEANINGS) - DRIFT


def test_drift_is_measured_against_the_snapshot_before(world: Path, built: Path, tmp_path: Path) -> None:
    """Against itself nothing has changed; a retrain with another seed keeps the popular and most neighbours."""
    other = replace(SMALL, seed=8)
    figures = build(world, tmp_path / "out", settings=other, progress=quiet, previous=built).figures
    assert (figures["item_ratio"], figures["popular_overlap"]) == (1.0, 1.0)
    assert 0.1 < figures["neighbour_overlap"] < 1


def test_nothing_has_drifted_from_itself(snapshot: Snapshot) -> None:
    """All three figures are 1."""
    assert drift(snapshot.columns, snapshot) == {"item_ratio": 1, "popular_overlap": 1, "neighbour_overlap": 1}


def test_nothing_drifts_from_nothing(snapshot: Snapshot) -> None:
    """Where no item was popular before, or had neighbours, none has lost them; where all have, the overlap is 0."""
    columns = snapshot.columns
    empty = {**columns, "popular": np.full((1, 5), -1, np.int32), "neighbour_row": np.empty(0, np.int32)}
    nothing = replace(snapshot, columns=empty)
    assert drift(columns, nothing) == {"item_ratio": 1, "popular_overlap": 1, "neighbour_overlap": 1}
    assert drift(empty, snapshot) == {"item_ratio": 1, "popular_overlap": 0, "neighbour_overlap": 0}


def test_a_snapshot_that_is_to_be_replaced_is_what_drift_is_measured_against(tmp_path: Path) -> None:
    """Another catalogue in its place is refused unless forced; the same again gives the same; a wreck is no measure."""
    few, many = (
        write_tables(
            tmp_path / str(size),
            items=[{"item_id": f"t{number}"} for number in range(size)],
            listens=everyone_plays("uvw", [f"t{number}" for number in range(size)]),
        )
        for size in (4, 40)
    )
    out, settings = tmp_path / "out", BuildSettings(factors=4)
    first = build(many, out, settings=settings, progress=quiet)
    again = build(many, out, settings=settings, progress=quiet)
    assert (DRIFT & first.figures.keys(), DRIFT & again.figures.keys()) == (set(), DRIFT)
    assert again.digest == first.digest == read_manifest(out)[1]
    with pytest.raises(GateRefused, match=r"item_ratio +0\.1 +at least 0\.5 +REFUSED"):
        build(few, out, settings=settings, progress=quiet)
    assert read_manifest(out)[1] == first.digest
    (out / "vector.npy").unlink()
    assert not DRIFT & build(few, out, settings=settings, progress=quiet).figures.keys()


def test_mostly_bad_data_is_refused(tmp_path: Path) -> None:
    """One row of eight breaks a rule; forced, the manifest says which."""
    listens = [*everyone_plays("uv", "ab"), {"user_id": "u", "item_id": "a", "plays": 0}]
    data = write_tables(tmp_path / "data", items=[{"item_id": name} for name in "abc"], listens=listens)
    settings = BuildSettings(factors=4)
    with pytest.raises(GateRefused, match=r"rejected +0\.125 +at most 0\.05 +REFUSED"):
        build(data, tmp_path / "out", settings=settings, progress=quiet)
    report = build(data, tmp_path / "out", settings=replace(settings, refuse=False), progress=quiet)
    assert report.manifest.built["rejected"] == {"listens": {"plays is not 1 to 2147483647": 1}}


def test_unplayed_items_are_counted_among_what_is_found() -> None:
    """Their share of what is found over their share of the catalogue; none where all are played."""
    assert unplayed_lift(np.array([[0, 1], [2, -1]]), np.array([0, 5, 5, 0])) == pytest.approx(1 / 3 / 0.5)
    assert unplayed_lift(np.array([[0]]), np.array([1])) == 0


def test_finite_share_counts_items() -> None:
    """An item with one infinite number is not finite."""
    assert finite_share(np.array([[0, 1], [np.inf, 1], [np.nan, np.nan], [1, 1]], np.float32)) == 0.5
