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
from typing import TYPE_CHECKING, Annotated, Final

import typer

from features.errors import SnapshotRefused, WrongState
from features.state import State
from server.options import JsonOption, QuietOption, StateOption
from server.settings import load_settings

if TYPE_CHECKING:
    from features.snapshot import Snapshot
    from loadtest.stages import Figures, Plan

LISTENERS: Final = 20_000
SURFACE: Final = "home"
PRESETS: Final = ("plain", "full")
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
        bool, typer.Option("--stages", help="Only the stages of a page: so far that is all there is.")
    ] = False,
    items: Annotated[int, typer.Option(min=300, max=10_000_000, help="Items of the synthetic world.")] = 100_000,
    data: Annotated[
        Path | None, typer.Option(help="Measure this snapshot folder, with its listener records, instead of a world's.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all cases; under 5 is no figure to quote.")] = 7,
    state: StateOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how long a page takes, stage by stage, on one core, for the presets plain and full.

    Beside it a market that may show few items. The first run makes a synthetic world, trains on it and keeps it in
    `bench/` of --state (at 100,000 items a minute in all); later ones take half of that.

    Examples: mantel bench --stages, mantel bench --items 1000000, mantel bench --data S --json
    """
    from features.snapshot import load
    from loadtest.stages import Plan
    from server import face, reports

    del stages  # will leave out what else there is
    silent = quiet or json_
    folder = data or _kept(State(load_settings(state=state).state), items, silent=silent)
    snapshot = load(folder)
    records = _records(folder, snapshot.manifest.space_id)
    with face.progress(quiet=silent, still=True) as tell:
        before, began, worked = os.getloadavg()[0], time.perf_counter(), time.thread_time()
        figures = _measure(snapshot, records, Plan(rounds=rounds), tell)
        share = (time.thread_time() - worked) / (time.perf_counter() - began)
    conditions = Conditions(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        versions={"Python": platform.python_version()} | {name: version(name) for name in ("numpy", "faiss-cpu")},
        snapshot=str(folder),
        digest=snapshot.digest,
        items=snapshot.manifest.items,
        listeners=len(records),
        index=snapshot.manifest.index["factory"],
        nprobe=snapshot.manifest.index["nprobe"],
        depth=snapshot.manifest.index["depth"],
        recall=snapshot.manifest.index["recall"],
        load_before=before,
        load_after=os.getloadavg()[0],
        core_share=share,
    )
    reports.bench(conditions, figures, as_json=json_)


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


def _measure(snapshot: "Snapshot", records: Mapping[str, bytes], plan: "Plan", tell: Progress) -> "Sequence[Figures]":
    from loadtest.stages import cases, measure
    from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
    from server.codec import encode_home

    surfaces = {preset: load_surfaces(DEFAULT_SURFACES, preset)[SURFACE] for preset in PRESETS}
    encode = partial(encode_home, locale="en", request_id="0" * 16)
    return measure(cases(snapshot, surfaces, plan), records, encode, plan, progress=tell)


def _processor() -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.machine()
