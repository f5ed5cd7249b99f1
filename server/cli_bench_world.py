"""What `mantel bench` measures on: the snapshot of a world made once, its listeners' records, and the machine."""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from features.errors import SnapshotRefused, WrongState
from features.state import State

if TYPE_CHECKING:
    from features.snapshot import Snapshot

LISTENERS: Final = 20_000
LIBRARIES: Final = ("numpy", "faiss-cpu", "grpcio", "uvloop", "protobuf")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How the machine stood when measuring began."""

    load: float
    at: float
    worked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is measured on."""

    folder: Path
    snapshot: "Snapshot"
    records: Mapping[str, bytes]  # listeners' frames by user id
    room: Path  # for the states of servers


def ground(state: State, folder: Path) -> Ground:
    """A snapshot folder, verified and loaded, with its listeners' records.

    Raises:
        SnapshotRefused, WrongState: it is none, or its records are gone.
    """
    from features.snapshot import load

    snapshot = load(folder)
    records = records_of(folder, snapshot.manifest.space_id)
    room = state.path / "bench" / snapshot.digest[:12]
    return Ground(folder=folder, snapshot=snapshot, records=records, room=room)


def begin() -> Begun:
    """Now."""
    return Begun(load=os.getloadavg()[0], at=time.perf_counter(), worked=time.thread_time())


def conditions(on: Ground, begun: Begun) -> Conditions:
    """What figures depend on, gathered when they have been taken."""
    manifest = on.snapshot.manifest
    return Conditions(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        versions={"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        snapshot=str(on.folder),
        digest=on.snapshot.digest,
        items=manifest.items,
        listeners=len(on.records),
        index=manifest.index["factory"],
        nprobe=manifest.index["nprobe"],
        depth=manifest.index["depth"],
        recall=manifest.index["recall"],
        load_before=begun.load,
        load_after=os.getloadavg()[0],
        core_share=(time.thread_time() - begun.worked) / (time.perf_counter() - begun.at),
    )


def kept(state: State, items: int, *, silent: bool) -> Path:
    """The snapshot of a synthetic world in the state directory, made where there is none that this version reads.

    Raises:
        WrongState: another process makes one.
    """
    from features.offline.build import BuildSettings, build
    from features.offline.world import WorldSettings, generate
    from server import face

    folder = state.path / "bench" / str(items)
    with state.lock("bench", wait=False, held=f"another bench makes its world in {state.path}; wait until it measures"):
        if (found := at_hand(state, items)) is not None:
            return found
        shutil.rmtree(folder, ignore_errors=True)  # of another version: no drift to measure
        if not silent:
            typer.echo(f"making a world of {items:,} items and {LISTENERS:,} listeners, kept in {folder}", err=True)
        with face.progress(quiet=silent) as tell:
            generate(folder / "world", settings=WorldSettings(items=items, listeners=LISTENERS), progress=tell)
            build(folder / "world", folder / "snapshot", settings=BuildSettings(), progress=tell)
    return folder / "snapshot"


def at_hand(state: State, items: int) -> Path | None:
    """The snapshot of a synthetic world of so many items; None where there is none that this version reads."""
    from features.offline.records import RECORDS, RECORDS_MANIFEST
    from features.snapshot import read_manifest

    snapshot = state.path / "bench" / str(items) / "snapshot"
    with suppress(SnapshotRefused):
        read_manifest(snapshot)
        if (snapshot / RECORDS / RECORDS_MANIFEST).is_file():
            return snapshot
    return None


def records_of(folder: Path, space_id: str) -> dict[str, bytes]:
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


def _processor() -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    with suppress(OSError):
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.machine()
