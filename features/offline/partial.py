"""A folder whose making may be interrupted: `<out>.partial` keeps what is finished until all of it takes its place.

<out>.partial/
├── key.json                what all of it is made from; made from anything else, it is discarded
├── snapshot/               the folder that becomes `<out>`, with the files written so far
├── <stage>.json            what a stage made; names its arrays
└── <stage>.<n>.<name>.npy  an array, mapped when it is read; .arrow: a series of text

Arrays are on disk before the file that names them takes its place, so nothing half-written is ever taken, whenever the
process is killed. No other process writes here meanwhile: the folder is locked. It is private: it tells of people.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import polars as pl

from features.errors import WrongState
from features.offline.artefact import PRIVATE, take_place, vacant
from features.state import sync_entry, write_whole

KEY: Final = "key.json"
FOLDER: Final = "snapshot"
SUFFIX: Final = ".partial"

Made = TypeVar("Made")
"""A dataclass of arrays, series, numbers and text, and of mappings and tuples of these."""


class Partial:
    """What is finished of the folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def folder(self) -> Path:
        """The folder that is made here."""
        return self._path / FOLDER

    @property
    def empty(self) -> bool:
        """Whether no stage was kept."""
        return not self._told()

    def keep(self, stage: str, made: Any, said: Mapping[str, Any]) -> None:
        """Keeps what a stage made, in place of what it kept before, and what is to be said of it, as JSON.

        Arrays that are mapped from a file of `folder` must be the whole of it: they are kept by its name.
        """
        number = 1 + max((int(path.name.split(".")[1]) for path in self._path.glob(f"{stage}.*.*")), default=0)
        told = {
            field.name: self._stored(getattr(made, field.name), f"{stage}.{number}.{field.name}")
            for field in fields(made)
        }
        for path in (*self.folder.rglob("*"), *self._path.glob(f"{stage}.{number}.*")):
            sync_entry(path)
        write_whole(self._file(stage), json.dumps({"made": told, "said": said}).encode(), durable=True)
        self._sweep(stage, number)

    def find(self, stage: str, kind: type[Made]) -> tuple[Made, Any] | None:
        """What a stage made, its arrays mapped, and what was said of it; None where nothing whole is kept."""
        with suppress(FileNotFoundError, ValueError):
            kept = json.loads(self._file(stage).read_bytes())
            return kind(**self._restored(kept["made"])), kept["said"]
        return None

    def drop(self, stage: str) -> None:
        """Removes what a stage kept."""
        self._file(stage).unlink(missing_ok=True)
        self._sweep(stage, 0)

    def _file(self, stage: str) -> Path:
        return self._path / f"{stage}.json"

    def _told(self) -> list[Path]:
        return [path for path in self._path.glob("*.json") if path.name != KEY]

    def _sweep(self, stage: str, number: int) -> None:
        """Removes a stage's arrays but those of one number."""
        for path in self._path.glob(f"{stage}.*.*"):
            if path.name.split(".")[1] != str(number):
                path.unlink()

    def _stored(self, value: Any, name: str) -> Any:
        """A value as JSON; arrays go to files."""
        match value:
            case np.memmap() if value.filename and Path(value.filename).parent == self.folder:
                return {"file": f"{FOLDER}/{Path(value.filename).name}"}
            case np.ndarray():
                np.save(self._path / f"{name}.npy", value, allow_pickle=False)
                return {"file": f"{name}.npy"}
            case pl.Series():
                value.to_frame().write_ipc(self._path / f"{name}.arrow")
                return {"series": f"{name}.arrow"}
            case Mapping():
                return {key: self._stored(one, f"{name}.{key}") for key, one in value.items()}
            case tuple():
                return [self._stored(one, f"{name}.{place}") for place, one in enumerate(value)]
            case _:
                return value

    def _restored(self, told: Any) -> Any:
        match told:
            case {"file": str(name)}:
                return np.load(self._path / name, mmap_mode="r", allow_pickle=False)
            case {"series": str(name)}:
                return pl.read_ipc(self._path / name).to_series()
            case dict():
                return {key: self._restored(one) for key, one in told.items()}
            case list():
                return tuple(map(self._restored, told))
            case _:
                return told


@contextmanager
def partial(out: Path, key: Mapping[str, Any]) -> Iterator[tuple[Partial, bool]]:
    """Gives what is finished of `out`, and whether anything was of another `key` and so discarded.

    When the block ends well, the folder takes the place of `out`. When it does not, or the process is killed, what
    stages have kept stays for who comes with the same key. What stands at `out` is replaced if it is a snapshot.

    Raises:
        WrongState: something else than a snapshot stands at `out`, or another process makes it.
    """
    out = vacant(out)
    path = out.with_name(out.name + SUFFIX)
    with _locked(path, f"another process builds {out}; wait for it or name another place"):
        found, made_from = Partial(path), json.dumps(key, sort_keys=True, indent=1).encode()
        other = any(path.iterdir()) and not (
            found.folder.is_dir() and (path / KEY).is_file() and (path / KEY).read_bytes() == made_from
        )
        if other:
            _empty(path)
        found.folder.mkdir(exist_ok=True)
        for entry in found.folder.rglob("*"):
            entry.chmod(PRIVATE if entry.is_dir() else 0o600)  # taking place may have made it read-only
        write_whole(path / KEY, made_from, durable=True)
        try:
            yield found, other
            take_place(found.folder, out)
        finally:
            if found.empty or not found.folder.exists():
                shutil.rmtree(path, ignore_errors=True)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def _locked(path: Path, held: str) -> Iterator[None]:
    path.mkdir(PRIVATE, parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WrongState(held) from None
    else:
        yield
    finally:
        os.close(handle)
