"""A folder that appears whole or not at all: written aside, made durable, renamed into its place."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.errors import WrongState
from features.snapshot import COLUMNS, MANIFEST, sha256_of
from features.state import sync_entry

PRIVATE: Final = 0o700
"""The mode of a folder that holds personal data."""


@contextmanager
def aside(out: Path, *, mark: str = MANIFEST, kind: str = "snapshot", mode: int = 0o755) -> Iterator[Path]:
    """Gives an empty folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    What stands at `out` is replaced if it holds the file `mark`, and so is of the same kind: between two renames there
    is an instant without either, never a mixture. The folder gets `mode`, and may be read by no one else meanwhile;
    files are read-only, for those who may read the folder they are in.

    Raises:
        WrongState: something of another kind stands at `out`.
    """
    out = vacant(out, mark=mark, kind=kind)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        take_place(folder, out, mode=mode)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def vacant(out: Path, *, mark: str = MANIFEST, kind: str = "snapshot") -> Path:
    """The absolute path of `out`, once nothing stands there but what may be replaced; its parent exists.

    Raises:
        WrongState: something of another kind stands there.
    """
    out = out.resolve()
    if out.exists() and not (out / mark).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise WrongState(f"{out} exists and is no {kind}; name another place or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def take_place(folder: Path, out: Path, *, mode: int = 0o755) -> None:
    """Makes a folder durable, with its files read-only, and renames it to `out`; what stood there is removed."""
    _make_durable(folder, mode)
    if not out.exists():
        folder.rename(out)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
        out.rename(old)  # a folder may take the place of an empty one
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old)
    sync_entry(out.parent)


def write_columns(folder: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes columns of the snapshot format as `<name>.npy`, in the format's types."""
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(column, COLUMNS[name][0]), allow_pickle=False)


def entry_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its SHA-256 and its size in bytes."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def _make_durable(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.parent.stat().st_mode & 0o444)
        sync_entry(path)
    sync_entry(folder)
