"""Resuming: a build that was killed goes on with what it had finished, and gives the same bytes."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.errors import GateRefused, WrongState
from features.offline import stages as stages_
from features.offline.build import BuildReport, BuildSettings, build
from features.offline.gate import GateLimits
from features.offline.history import History
from features.offline.partial import FOLDER, Partial, partial
from features.snapshot import read_manifest
from features.state import write_whole
from tests.conftest import quiet
from tests.tables import everyone_plays, write_tables

SMALL = BuildSettings(factors=16, iterations=5)  # those of the fixture `built`
STAGES = ("items", "listens", "train", "segments", "lists", "neighbours", "index", "records")
Told = list[tuple[str, int, int]]


class Stopped(BaseException):
    """What stops a build in these tests, as Ctrl-C does."""


@pytest.fixture(autouse=True)
def everything_is_kept() -> Iterator[None]:
    """Also what took no time."""
    with pytest.MonkeyPatch.context() as patch:
        keep_everything(patch)
        yield


def keep_everything(patch: pytest.MonkeyPatch) -> None:
    """Every stage, and every step of one."""
    patch.setattr(stages_, "KEPT_FROM_S", 0.0)
    patch.setattr(stages_, "KEPT_EVERY_S", 0.0)


def stopping(stage: str, done: int, act: Callable[[], None], told: Told) -> Callable[[str, int, int], None]:
    """A progress callback that acts when a stage has done so much, and notes all it is told."""

    def tell(name: str, now: int, total: int) -> None:
        told.append((name, now, total))
        if (name, now) == (stage, done):
            act()

    return tell


def stop() -> None:
    """Ends a build by an exception that nobody expects."""
    raise Stopped


def stopped(world: Path, out: Path, stage: str, done: int = 0, settings: BuildSettings = SMALL) -> Told:
    """A build that is stopped there; what it told."""
    told: Told = []
    with pytest.raises(Stopped):
        build(world, out, settings=settings, progress=stopping(stage, done, stop, told))
    return told


def finished(world: Path, out: Path, **how: Any) -> tuple[BuildReport, Told]:
    """A build that ends, and what it told."""
    told: Told = []
    report = build(world, out, settings=SMALL, progress=stopping("", 0, stop, told), **how)
    return report, told


def assert_same(out: Path, built: Path) -> None:
    """The same snapshot and the same records as in one go, with the same modes, and nothing beside them."""
    assert read_manifest(out)[1] == read_manifest(built)[1]
    assert (out / "listeners/listeners.json").read_bytes() == (built / "listeners/listeners.json").read_bytes()
    one, other = (
        {path.relative_to(folder).as_posix(): path.stat().st_mode for path in folder.rglob("*")}
        for folder in (out, built)
    )
    assert one == other
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_build_that_is_stopped_at_every_stage_gives_the_same_bytes(world: Path, built: Path, tmp_path: Path) -> None:
    """Each time it goes on where it was; in the end every stage was resumed, and took as long as when it ran."""
    out = tmp_path / "S"
    for number, stage in enumerate((*STAGES, "seal")):
        told = stopped(world, out, stage)
        assert [name for name, _, _ in told if name.endswith(", resumed")] == [
            f"{one}, resumed" for one in STAGES[: max(0, number - 1)]
        ]
    report, told = finished(world, out)
    assert report.resumed == STAGES
    assert set(report.seconds) == {*STAGES, "gate", "seal"}
    assert [name for name, _, _ in told] == [*(f"{one}, resumed" for one in STAGES), "gate", "seal"]
    assert_same(out, built)


@pytest.mark.parametrize(("stage", "done"), [("train", 3), ("train", 5), ("neighbours", 256), ("index", 1024)])
def test_a_long_stage_goes_on_in_the_middle(
    stage: str, done: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training after its iterations, neighbours after their blocks, an index with its cells."""
    monkeypatch.setattr("features.offline.neighbours._BLOCK", 256)
    monkeypatch.setattr("features.offline.neighbours.EXACT_UP_TO", 500)
    monkeypatch.setattr("features.offline.cells._BLOCK", 1024)
    settings = replace(SMALL, index="ivf")
    straight = build(world, tmp_path / "straight", settings=settings, progress=quiet)
    out, told = tmp_path / "S", Told()
    stopped(world, out, stage, done, settings)
    (tmp_path / "S.partial" / f"{stage}-part.json").stat()
    report = build(world, out, settings=settings, progress=stopping("", 0, stop, told))
    assert report.digest == straight.digest
    steps = [now for name, now, _ in told if name == stage and now]
    assert stage == "index" or min(steps, default=done + 1) > done
    assert not (tmp_path / "S.partial").exists()


def _killed(world: Path, out: Path, stage: str, done: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        keep_everything(patch)
        kill = stopping(stage, done, lambda: os.kill(os.getpid(), signal.SIGKILL), [])
        build(world, out, settings=SMALL, progress=kill)


def test_a_build_may_be_killed(world: Path, built: Path, tmp_path: Path) -> None:
    """Kill -9 in training, and then when all but the seal is done: it leaves no lock and goes on."""
    out = tmp_path / "S"
    for stage, done in (("train", 3), ("seal", 0)):
        process = get_context("spawn").Process(target=_killed, args=(world, out, stage, done))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert [path.name for path in tmp_path.iterdir()] == ["S.partial"]
        assert (tmp_path / "S.partial").stat().st_mode & 0o777 == 0o700
    assert finished(world, out)[0].resumed == STAGES
    assert_same(out, built)


@pytest.mark.parametrize("nth", [1, 4])
def test_what_is_kept_by_halves_is_not_taken(
    nth: int, world: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with arrays written that nothing names yet, the stage is made again."""
    calls = iter(range(1, 100))

    def unlucky(*args: Any, **named: Any) -> None:
        if next(calls) == nth + 1:  # the first writes the key
            raise Stopped
        write_whole(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr("features.offline.partial.write_whole", unlucky)
        with pytest.raises(Stopped):
            build(world, tmp_path / "S", settings=SMALL, progress=quiet)
    finished(world, tmp_path / "S")
    assert_same(tmp_path / "S", built)


def test_sealing_may_be_interrupted_too(
    world: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only files of before are no hindrance."""
    with monkeypatch.context() as patch:
        patch.setattr("features.offline.artefact.sync_entry", lambda path: stop() if path.name == FOLDER else None)
        with pytest.raises(Stopped):
            build(world, tmp_path / "S", settings=SMALL, progress=quiet)
    assert (tmp_path / "S.partial" / FOLDER / "vector.npy").stat().st_mode & 0o777 == 0o444
    assert finished(world, tmp_path / "S")[0].resumed == STAGES
    assert_same(tmp_path / "S", built)


def test_what_is_left_of_another_build_is_discarded(world: Path, built: Path, tmp_path: Path) -> None:
    """Of other settings, or of data that have changed since; it says so, and starts anew."""
    out = tmp_path / "S"
    stopped(world, out, "segments", settings=replace(SMALL, seed=8))
    report, told = finished(world, out)
    assert told[0] == ("discarded: an unfinished other build", 1, 1)
    assert report.resumed == ()
    assert_same(out, built)


def test_who_was_forgotten_since_is_in_nothing_that_is_kept(tmp_path: Path) -> None:
    """A tombstone makes other data of the same tables."""
    items = [{"item_id": name} for name in "abc"]
    data = write_tables(tmp_path / "data", items=items, listens=everyone_plays(["gone", "here"], "abc"))
    few = BuildSettings(factors=4, refuse=False)
    stopped(data, tmp_path / "S", "seal", settings=few)
    assert b"gone" in b"".join(path.read_bytes() for path in (tmp_path / "S.partial").glob("*.arrow"))
    (data / "listens.parquet").unlink()
    pl.DataFrame(everyone_plays(["here"], "abc")).write_parquet(data / "listens.parquet")
    assert build(data, tmp_path / "S", settings=few, progress=quiet).manifest.built["counts"]["listeners"] == 1
    assert not (tmp_path / "S.partial").exists()


def test_a_refused_build_goes_on_when_it_is_forced(world: Path, built: Path, tmp_path: Path) -> None:
    """The gate's limits shape nothing that was made before."""
    strict = replace(SMALL, limits=GateLimits(min_recall=1.01))
    with pytest.raises(GateRefused):
        build(world, tmp_path / "S", settings=strict, progress=quiet)
    forced = build(world, tmp_path / "S", settings=replace(strict, refuse=False), progress=quiet)
    assert (forced.resumed, forced.manifest.files) == (STAGES, read_manifest(built)[0].files)


def test_two_builds_do_not_write_to_one_place(tmp_path: Path) -> None:
    """The second is refused, and does not touch what the first makes."""
    with partial(tmp_path / "S", {}) as (unfinished, _):
        (unfinished.folder / "manifest.json").touch()
        with pytest.raises(WrongState, match="another process builds"), partial(tmp_path / "S", {"other": 1}):
            pass
    assert [path.name for path in (tmp_path / "S").iterdir()] == ["manifest.json"]


def test_rejected_rows_are_told_after_a_resumption_too(tmp_path: Path) -> None:
    """With their counts and examples, though their tables are not read again."""
    items = [{"item_id": name} for name in "abca"]
    listens = [*everyone_plays("uv", "abc"), {"user_id": "u", "item_id": "a", "plays": 0}]
    data = write_tables(tmp_path / "data", items=items, listens=listens)
    few = BuildSettings(factors=4, refuse=False)
    straight = build(data, tmp_path / "straight", settings=few, progress=quiet)
    stopped(data, tmp_path / "S", "seal", settings=few)
    report = build(data, tmp_path / "S", settings=few, progress=quiet)
    assert (report.rejections, report.digest) == (straight.rejections, straight.digest)
    assert report.figures["rejected"] == straight.figures["rejected"] > 0


def test_what_a_stage_made_is_found_as_it_was(tmp_path: Path) -> None:
    """Arrays of any size and type, names, and what was said of it: the last that was kept, until it is dropped."""
    path = tmp_path / "S.partial"
    (path / "snapshot").mkdir(parents=True)
    made = History(
        user_id=pl.Series("user_id", ["ü", "", "b\n"]),
        start=np.arange(4),
        item=np.empty(0, np.int32),
        plays=np.array([1]),
        seconds=np.array([1]),
        market=np.array([1], np.int16),
        created_day=np.array([1]),
        allow_explicit=np.array([True]),
        forgotten_ms=np.array([1]),
    )
    kept = Partial(path)
    kept.keep("one", replace(made, start=np.arange(9)), {})
    kept.keep("one", made, {"seconds": 0.1})
    assert (found := kept.find("one", History))
    assert found[1] == {"seconds": 0.1}
    assert found[0].user_id.to_list() == made.user_id.to_list()
    assert (found[0].start.tolist(), found[0].item.tolist()) == ([0, 1, 2, 3], [])
    assert [found[0].item.dtype.str, found[0].market.dtype.str] == ["<i4", "<i2"]
    assert len([name for name in path.iterdir() if name.suffix == ".npy"]) == 8
    kept.drop("one")
    assert (kept.find("one", History), [name.name for name in path.iterdir()]) == (None, ["snapshot"])
