"""Snapshots that must not be served, each spoiled in another way."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from features.offline.artefact import entry_of
from features.pointer import Served, flip_pointer
from features.snapshot import MANIFEST, read_manifest
from tests.conftest import Store


def truncate(folder: Path) -> None:
    """The last byte of the vectors is lost."""
    path = folder / "vector.npy"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def flip_a_bit(folder: Path) -> None:
    """One bit of the index is another."""
    path = folder / "index.faiss"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    """The cards are missing."""
    (folder / "cards.bin").unlink()


def change_the_dimension(folder: Path) -> None:
    """Whoever built this made a mistake: the manifest agrees with its files, they do not agree among themselves."""
    path = folder / "segment_mean.npy"
    path.unlink()
    np.save(path, np.ones((32, 8), "<f4"))
    said = json.loads((folder / MANIFEST).read_bytes())
    said["files"][path.name] = entry_of(path)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(said))


def forget_a_setting(folder: Path) -> None:
    """The manifest does not say how the index is to be searched."""
    said = json.loads((folder / MANIFEST).read_bytes())
    del said["index"]["nprobe"]
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(said))


def place(store: Store, folder: Path, damage: Callable[[Path], None]) -> str:
    """Makes a damaged copy of a snapshot the one that is to be served, as no publish would; answers its digest."""
    store.state.snapshots.mkdir(parents=True, exist_ok=True)
    copy = store.state.snapshots / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("listeners"))
    damage(copy)
    manifest, digest = read_manifest(copy)
    copy.rename(store.state.snapshots / digest)
    flip_pointer(store.client, store.keys, Served(digest=digest, space_id=manifest.space_id), now=time.time())
    return digest
