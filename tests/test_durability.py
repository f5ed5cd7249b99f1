"""What a publish has on disk before it goes on, and what it must not leave there."""

import shutil
from pathlib import Path

import pytest

from features.errors import WrongState
from features.offline.publish import publish
from features.pointer import read_pointer
from tests.conftest import Store, quiet
from tests.operation import digest_of


def test_the_listeners_are_on_disk_before_the_pointer_moves(store: Store, built: Path) -> None:
    """Redis says so where it keeps an append-only file; where it keeps none the report says that."""
    assert store.publish(built).on_disk
    written = sum(path.stat().st_size for path in (store.state.redis / "appendonlydir").iterdir())
    assert written > sum(path.stat().st_size for path in (built / "listeners").glob("*.parquet")) / 10
    store.client.config_set("appendonly", "no")
    assert not store.publish(built).on_disk


def test_records_that_cannot_be_deleted_are_told(store: Store, built: Path, tmp_path: Path) -> None:
    """Erasure never fails silently: the snapshot is published, and the refusal names what is left to delete."""
    folder = shutil.copytree(built, tmp_path / "snapshot")
    (folder / "listeners").rename(tmp_path / "elsewhere")
    (folder / "listeners").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WrongState, match=r"published, but .* cannot be deleted: .*; delete .*listeners"):
        publish(folder, store.state, store.client, store.keys, progress=quiet)
    pointer = read_pointer(store.client, store.keys)
    assert pointer is not None
    assert pointer.digest == digest_of(built)
