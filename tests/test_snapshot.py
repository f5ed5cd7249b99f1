"""What `features.snapshot.load` refuses, whichever file is spoilt, and also where the manifest agrees with the file."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from features.errors import SnapshotRefused
from features.snapshot import CARDS, COLUMNS, INDEX, MANIFEST, load

COLUMN_FILES = [f"{name}.npy" for name in COLUMNS]


def reseal(folder: Path, **changed: Any) -> None:
    """Writes a manifest that agrees with the files as they are."""
    fields = json.loads((folder / MANIFEST).read_bytes()) | changed
    for name, entry in fields["files"].items():
        raw = (folder / name).read_bytes()
        entry |= {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(fields))


def test_a_good_copy_loads(copy: Path) -> None:
    """What the other tests spoil is good before, sealed anew or not."""
    reseal(copy)
    assert load(copy).manifest.items == 2000


@pytest.mark.parametrize("name", [*COLUMN_FILES, CARDS, INDEX])
def test_a_truncated_flipped_or_missing_file_is_refused(name: str, copy: Path) -> None:
    """Each kind of file, by its name."""
    path = copy / name
    raw = path.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    for spoilt in (raw[:-1], bytes(flipped)):
        path.write_bytes(spoilt)
        with pytest.raises(SnapshotRefused, match=name):
            load(copy)
    path.unlink()
    with pytest.raises(SnapshotRefused, match=name):
        load(copy)


@pytest.mark.parametrize("name", COLUMN_FILES)
def test_a_column_of_another_shape_or_type_is_refused(name: str, copy: Path) -> None:
    """Also where the manifest agrees with the file."""
    column = np.load(copy / name)
    for wrong in (np.concatenate([column[..., None], column[..., None]], axis=-1), column.astype(np.complex64)):
        np.save(copy / name, wrong)
        reseal(copy)
        with pytest.raises(SnapshotRefused, match=f"{name}: .* the manifest says"):
            load(copy)


def shorter_cards(folder: Path) -> None:
    """Takes a byte from the cards."""
    (folder / CARDS).write_bytes((folder / CARDS).read_bytes()[:-1])


def other_index(folder: Path) -> None:
    """Puts an index of another dimension in place."""
    faiss.write_index(faiss.IndexFlatIP(17), str(folder / INDEX))


def no_index(folder: Path) -> None:
    """Puts bytes in place of the index that FAISS cannot read."""
    (folder / INDEX).write_bytes(b"nothing of the kind")


@pytest.mark.parametrize("spoil", [shorter_cards, other_index, no_index])
def test_cards_and_index_that_do_not_fit_are_refused(spoil: Callable[[Path], None], copy: Path) -> None:
    """Also where the manifest agrees with the file."""
    spoil(copy)
    reseal(copy)
    with pytest.raises(SnapshotRefused):
        load(copy)


@pytest.mark.parametrize("changed", [{"dimension": 17}, {"items": 1999}, {"genres": ["rock"]}, {"format": 1}])
def test_a_manifest_that_says_otherwise_is_refused(changed: dict[str, Any], copy: Path) -> None:
    """Dimension, count, genres and format are compared with the files."""
    reseal(copy, **changed)
    with pytest.raises(SnapshotRefused):
        load(copy)
