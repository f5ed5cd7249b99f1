"""The command that measures how fast pages are made: `mantel bench`."""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from features.errors import SnapshotRefused, WrongState
from features.state import State
from server.options import JsonOption, QuietOption, StateOption
from server.settings import load_settings

if TYPE_CHECKING:
    from features.snapshot import Snapshot
    from loadtest import contest
    from loadtest.stages import Figures, Plan

LISTENERS: Final = 20_000
SURFACE: Final = "home"
PRESETS: Final = ("plain", "full")
LIBRARIES: Final = ("numpy", "faiss-cpu", "grpcio", "uvloop", "protobuf")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What figures depend on besides the code."""

    processor: str
    cores: int
    versions: Mapping[str, str]
    snapshot: str  # where it lies
    digest: str
    items: int
    listeners: int
    index: str
    nprobe: int  # 0: the index has no cells
    depth: int  # at which recall was measured
    recall: float
    load_before: float  # the machine's processes that run or wait, mean of a minute
    load_after: float
    core_share: float  # the part of its core's time that the measuring had


def bench(
    *,
    stages: Annotated[
        bool, typer.Option("--stages", help="Instead: how long each stage of a page takes, without gRPC and Redis.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds, under three minutes.")] = False,
    items: Annotated[int, typer.Option(min=300, max=10_000_000, help="Items of the synthetic world.")] = 100_000,
    data: Annotated[
        Path | None, typer.Option(help="Measure this snapshot folder, with its listener records, instead of a world's.")
    ] = None,
    knee: Annotated[
        bool,
        typer.Option("--knee", help="Instead: the highest rate with p99 in time, and p99 below it; 10 minutes."),
    ] = False,
    overload: Annotated[
        bool, typer.Option("--overload", help="Instead: what a slowed server does at twice its knee; 5 minutes.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds over all cases; under 5 is no figure to quote.")
    ] = None,
    in_flight: Annotated[
        list[int] | None, typer.Option(min=1, max=2048, help="Calls in flight; may be given again.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Of each load.")] = None,
    state: StateOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure GetHome against what gRPC costs by itself and against its twin behind FastAPI, server on one core.

    Exit code 0: the floors of loadtest/bench.toml stand; 1: one does not; 2: no verdict, the machine was too busy. The
    first run makes a synthetic world, trains on it and keeps it in `bench/` of --state (at 100,000 items a minute).

    Examples: mantel bench, mantel bench --quick, mantel bench --knee, mantel bench --overload --json
    """
    from features.snapshot import load
    from loadtest.contest import rules
    from loadtest.stages import Plan
    from server import contest_report, face, reports
    from server.cli_contest import field, raced, sought
    from server.cli_overload import driven, rules_of
    from server.cli_overload import show as show_overload

    silent = quiet or json_
    folder = data or _kept(State(load_settings(state=state).state), items, silent=silent)
    snapshot = load(folder)
    records = _records(folder, snapshot.manifest.space_id)
    with face.progress(quiet=silent, still=True) as tell:
        before, began, worked = os.getloadavg()[0], time.perf_counter(), time.thread_time()
        if stages:
            plan = Plan() if rounds is None else Plan(rounds=rounds)
            figures = _measure(snapshot, records, plan, tell)
        else:
            room = State(load_settings(state=state).state).path / "bench" / snapshot.digest[:12]
            if overload:
                beyond = rules_of(quick=quick, rounds=rounds, seconds=seconds)
                held = driven(folder, sorted(records), room=room, rules=beyond, tell=tell)
            else:
                with field(folder, sorted(records), room=room) as everybody:
                    if knee:
                        found = sought(everybody, tell)
                    else:
                        contest = raced(everybody, _changed(quick, rounds, seconds, in_flight), tell)
        share = (time.thread_time() - worked) / (time.perf_counter() - began)
    conditions = _conditions(folder, snapshot, len(records), before, share)
    if stages:
        reports.bench(conditions, figures, as_json=json_)
        return
    if overload:
        raise typer.Exit(show_overload(conditions, held, beyond, as_json=json_))
    if knee:
        raise typer.Exit(contest_report.knee(conditions, found, rules(), as_json=json_))
    contest_report.show(conditions, contest, as_json=json_)
    raise typer.Exit(contest.verdict.exit_code)


def _conditions(folder: Path, snapshot: "Snapshot", listeners: int, before: float, share: float) -> Conditions:
    """What figures depend on, gathered when they have been taken."""
    return Conditions(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        versions={"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        snapshot=str(folder),
        digest=snapshot.digest,
        items=snapshot.manifest.items,
        listeners=listeners,
        index=snapshot.manifest.index["factory"],
        nprobe=snapshot.manifest.index["nprobe"],
        depth=snapshot.manifest.index["depth"],
        recall=snapshot.manifest.index["recall"],
        load_before=before,
        load_after=os.getloadavg()[0],
        core_share=share,
    )


def _kept(state: State, items: int, *, silent: bool) -> Path:
    """The snapshot of a synthetic world in the state directory, made where there is none that this version reads.

    Raises:
        WrongState: another process makes one.
    """
    from features.offline.build import BuildSettings, build
    from features.offline.records import RECORDS, RECORDS_MANIFEST
    from features.offline.world import WorldSettings, generate
    from features.snapshot import read_manifest
    from server import face

    folder = state.path / "bench" / str(items)
    snapshot = folder / "snapshot"
    with state.lock("bench", wait=False, held=f"another bench makes its world in {state.path}; wait until it measures"):
        with suppress(SnapshotRefused):
            read_manifest(snapshot)
            if (snapshot / RECORDS / RECORDS_MANIFEST).is_file():
                return snapshot
        shutil.rmtree(folder, ignore_errors=True)  # of another version: no drift to measure
        if not silent:
            typer.echo(f"making a world of {items:,} items and {LISTENERS:,} listeners, kept in {folder}", err=True)
        with face.progress(quiet=silent) as tell:
            generate(folder / "world", settings=WorldSettings(items=items, listeners=LISTENERS), progress=tell)
            build(folder / "world", snapshot, settings=BuildSettings(), progress=tell)
    return snapshot


def _records(folder: Path, space_id: str) -> dict[str, bytes]:
    """The listener records of a snapshot folder: user id -> frame.

    Raises:
        WrongState: they are gone, as after publishing, or of another embedding space.
    """
    from pyarrow import parquet

    from features.offline.records import RECORDS, RECORDS_MANIFEST

    told = folder / RECORDS / RECORDS_MANIFEST
    again = f"build it again with: mantel build --data W --out {folder}"
    if not told.is_file():
        raise WrongState(f"{folder} has no listener records, which publishing deletes without --keep-records; {again}")
    if json.loads(told.read_bytes())["space_id"] != space_id:
        raise WrongState(f"the listener records in {folder} are not of its embedding space; {again}")
    table = parquet.read_table(sorted((folder / RECORDS).glob("*.parquet")))
    return dict(zip(table["user_id"].to_pylist(), table["record"].to_pylist(), strict=True))


def _changed(quick: bool, rounds: int | None, seconds: float | None, in_flight: list[int] | None) -> "contest.Plan":
    from dataclasses import replace

    from loadtest import contest

    given: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "in_flight": in_flight}
    plan = contest.plan_of("quick" if quick else "rounds")
    return replace(plan, **{name: value for name, value in given.items() if value})


def _measure(snapshot: "Snapshot", records: Mapping[str, bytes], plan: "Plan", tell: Progress) -> "Sequence[Figures]":
    from loadtest.contest import SHELVES
    from loadtest.stages import cases, measure
    from ranking.surfaces import load_surfaces
    from server.codec import encode_home

    surfaces = {preset: load_surfaces(SHELVES, preset)[SURFACE] for preset in PRESETS}
    encode = partial(encode_home, locale="en", request_id="0" * 16)
    return measure(cases(snapshot, surfaces, plan), records, encode, plan, progress=tell)


def _processor() -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.machine()
