"""A folder of append-only files of frames: one writer per file, closed by size and age, bounded in bytes altogether.

<folder>/<opened, unix ms>-<pid>.open   being written; its writer holds a lock that dies with it
<folder>/<opened, unix ms>-<pid>.log    closed: never changes, to be drained

Closing a file forces it to disk, a single write does not: a worker that is killed loses nothing that it has written, a
machine that loses power the file that was open. What a killed worker left open, the next look closes.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from features.served_frames import Frame, framed, pages_in

FILES: Final = 16  # at least, that share the bound
SIZES: Final = (1 << 16, 1 << 24)  # least and most bytes of a file
OPEN, CLOSED = ".open", ".log"
_PRIVATE: Final = 0o700, 0o600  # folders, files: they name listeners


class ServedFiles:
    """Writes frames into a folder. Not safe for threads: one of them owns it."""

    def __init__(
        self,
        folder: Path,
        *,
        bytes_max: int,
        age_s: float,
        dropped: Callable[[int], None],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Opens nothing yet; `dropped` is told how many pages an old file held that had to go, `begun` of a new one."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._size_max = min(max(bytes_max // FILES, SIZES[0]), SIZES[1])
        self._age_s = age_s
        self._dropped = dropped
        self._begun = begun
        self._path = folder
        self._handle = -1
        self._size = 0
        self._opened_at = 0.0

    def write(self, frame: Frame) -> None:
        """Appends a frame, whole or not at all.

        Raises:
            OSError: the disk does not take it.
        """
        content = framed(frame)
        self.rotate(room=len(content))
        if self._handle < 0:
            self._open()
        try:
            _write_whole(self._handle, content)
        except OSError:
            self._cut_back()
            raise
        self._size += len(content)

    def rotate(self, room: int = 0) -> None:
        """Closes the file if it is old, or has no room for so many bytes more."""
        full = self._size + room > self._size_max
        if self._handle >= 0 and (full or time.monotonic() - self._opened_at >= self._age_s):
            self.close()

    def close(self) -> None:
        """Closes the file, on disk, for whoever drains."""
        if self._handle < 0:
            return
        handle, self._handle = self._handle, -1
        try:
            if self._size:
                os.fsync(handle)
                self._path.rename(self._path.with_suffix(CLOSED))
            else:
                self._path.unlink(missing_ok=True)
        finally:
            os.close(handle)  # and with it the lock: only now, lest someone else closes it too

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE[0])
        close_left(self._folder)
        self._make_room()
        while self._handle < 0:
            path = self._folder / f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}{OPEN}"
            if path.with_suffix(CLOSED).exists():  # one that was opened and closed in this millisecond
                time.sleep(0.001)
                continue
            try:
                handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, _PRIVATE[1])
            except FileExistsError:
                time.sleep(0.001)
                continue
            if _locked(handle, path):
                self._path, self._handle, self._size, self._opened_at = path, handle, 0, time.monotonic()
            else:  # taken for one that was left
                os.close(handle)
        self._begun()

    def _cut_back(self) -> None:
        """Takes a half-written frame away; where even that fails, a new file is begun."""
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            os.close(self._handle)
            self._handle = -1

    def _make_room(self) -> None:
        """Removes the oldest closed files until the next one fits; an open one counts as full."""
        closed = {path: size for path in self._folder.glob(f"*{CLOSED}") if (size := _size_of(path))}
        still_open = len(list(self._folder.glob(f"*{OPEN}")))
        excess = sum(closed.values()) + (still_open + 1) * self._size_max - self._bytes_max
        for path in sorted(closed):
            if excess <= 0:
                break
            try:
                pages = pages_in(path.read_bytes())
                path.unlink()
            except FileNotFoundError:
                continue  # drained, or removed by another worker
            excess -= closed[path]
            self._dropped(pages)


def close_left(folder: Path) -> None:
    """Closes the files whose writers are dead."""
    for path in folder.glob(f"*{OPEN}"):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if _locked(handle, path):
                path.rename(path.with_suffix(CLOSED))
        finally:
            os.close(handle)


def closed_files(folder: Path) -> list[Path]:
    """The files that are closed, those of killed writers among them, oldest first."""
    close_left(folder)
    return sorted(folder.glob(f"*{CLOSED}"))


def all_files(folder: Path) -> list[Path]:
    """The files of a folder, also those that are being written, oldest first."""
    return sorted(path for path in folder.glob("*") if path.suffix in {OPEN, CLOSED})


def opened_at(path: Path) -> float:
    """When a file was opened, in unix seconds."""
    return int(path.name.partition("-")[0]) / 1000


def _write_whole(handle: int, content: bytes) -> None:
    written = os.write(handle, content)
    if written < len(content):
        raise OSError(f"the disk took {written} of {len(content)} bytes")


def _locked(handle: int, path: Path) -> bool:
    """Takes the lock of an open file; whether it has it, and the file still has its name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(handle).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
