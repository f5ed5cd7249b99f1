"""Verifying once: nothing is read again that has not changed, and whatever has changed is."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from features import snapshot as snapshot_
from features import verified as verified_
from features.errors import SnapshotRefused
from features.snapshot import COLUMNS, INDEX, MANIFEST, read_manifest
from features.verified import verify_once

FILES = len(COLUMNS) + 2


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to the end."""
    found: list[Path] = []
    sha256_of = snapshot_.sha256_of

    def noting(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setattr(snapshot_, "sha256_of", noting)
    return found


def test_what_was_verified_is_not_read_again(copy: Path, tmp_path: Path, read: list[Path]) -> None:
    """The manifest and the digest are the same; another place for the note knows nothing."""
    for number in range(3):
        assert verify_once(copy, tmp_path / "verified" / "one") == read_manifest(copy), number
    assert len(read) == FILES
    verify_once(copy, tmp_path / "verified" / "other")
    assert len(read) == 2 * FILES


def test_workers_that_start_together_read_once(copy: Path, tmp_path: Path, read: list[Path]) -> None:
    """Who comes while another verifies waits for it."""
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda _: verify_once(copy, tmp_path / "note"), range(4)))
    assert (found, len(read)) == ([read_manifest(copy)] * 4, FILES)


def test_a_file_that_changed_since_is_refused(copy: Path, tmp_path: Path) -> None:
    """Though its size and the times that a person can set are as before; mended, it is taken again."""
    path = copy / INDEX
    verify_once(copy, tmp_path / "note")
    raw, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(SnapshotRefused, match=INDEX):
            verify_once(copy, tmp_path / "note")
    path.write_bytes(raw)
    assert verify_once(copy, tmp_path / "note") == read_manifest(copy)


@pytest.mark.parametrize("name", [MANIFEST, INDEX])
def test_what_is_missing_or_linked_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    """A note replaces no file."""
    verify_once(copy, tmp_path / "note")
    (copy / name).rename(tmp_path / name)
    with pytest.raises(SnapshotRefused, match=name):
        verify_once(copy, tmp_path / "note")
    if name == INDEX:
        (copy / name).symlink_to(tmp_path / name)
        with pytest.raises(SnapshotRefused, match=name):
            verify_once(copy, tmp_path / "note")


def test_after_a_boot_all_is_read_again(
    copy: Path, tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each time where the boot is not known."""
    verify_once(copy, tmp_path / "note")
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(verified_, "_BOOT", tmp_path / "boot")
    for _ in range(2):
        verify_once(copy, tmp_path / "note")
    assert len(read) == 2 * FILES
    (tmp_path / "boot").unlink()
    for _ in range(2):
        verify_once(copy, tmp_path / "note")
    assert len(read) == 4 * FILES


def test_where_nothing_can_be_noted_all_is_read_each_time(copy: Path, tmp_path: Path, read: list[Path]) -> None:
    """The place of the note may be a folder, or full, or read-only."""
    (tmp_path / "note").mkdir()
    for _ in range(2):
        assert verify_once(copy, tmp_path / "note") == read_manifest(copy)
    assert len(read) == 2 * FILES
