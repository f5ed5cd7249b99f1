"""What served pages were made from, by digest, as long as a sample of a page may name it.

What is in force is marked as such whenever a file of samples is begun; what was last marked an hour before the oldest
of these files was begun is named by none of them.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from features.books import Bound, from_file, to_file
from features.errors import InvalidInput
from features.served_files import all_files, opened_at
from features.state import write_whole

SURFACES: Final = "surfaces"
GRACE_S: Final = 3600.0  # between the end of a version's time and the last page that was made from it, by far


class Archive:
    """Keeps versions for replay. Failing to is told to nobody: a page that cannot be replayed is told as such."""

    def __init__(self, folder: Path, samples: Path) -> None:
        """Keeps files in `folder`, as long as the files in `samples` may name them."""
        self._folder = folder
        self._samples = samples
        self._in_force: dict[str, Path] = {}  # by kind

    def keep(self, kind: str, digest: str, content: bytes) -> None:
        """Keeps a version, which is in force from now on in place of the one of its kind before."""
        path = self.path(kind, digest)
        self._in_force[kind] = path
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.exists():
                os.utime(path)
            else:
                write_whole(path, content, mode=0o600)

    def keep_file(self, kind: str, file: Path) -> str:
        """Keeps what stands in a file; answers its digest."""
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.keep(kind, digest, content)
        return digest

    def read(self, kind: str, digest: str) -> bytes | None:
        """A version; None where it is not kept."""
        try:
            return self.path(kind, digest).read_bytes()
        except OSError:
            return None

    def path(self, kind: str, digest: str) -> Path:
        """Where a version lies."""
        return self._folder / f"{kind}-{digest}"

    def digests(self, kind: str, prefix: str) -> list[str]:
        """The digests of kept versions that begin so."""
        return [path.name.removeprefix(f"{kind}-") for path in self._folder.glob(f"{kind}-{prefix}*")]

    def tidy(self) -> None:
        """Marks what is in force, and removes what no sample can name any more."""
        with suppress(OSError):
            for path in list(self._in_force.values()):
                os.utime(path)
            files = all_files(self._samples)
            oldest = opened_at(files[0]) if files else time.time()
            for path in self._folder.glob("*-*"):
                if path.stat().st_mtime < oldest - GRACE_S:
                    path.unlink(missing_ok=True)


def keep_book(archive: Archive, kind: str, book: Bound) -> None:
    """Keeps a book."""
    archive.keep(kind, book.digest, to_file(book))


def kept_book(archive: Archive, kind: str, digest: str) -> Bound | None:
    """A book; None where it is not kept, or cannot be read."""
    content = archive.read(kind, digest)
    with suppress(ValueError):
        return None if content is None else from_file(content)
    return None


def named(archive: Archive, kind: str, prefix: str) -> str:
    """The digest of the one kept version that begins so.

    Raises:
        InvalidInput: there is none, or more than one.
    """
    found = archive.digests(kind, prefix) if prefix.isalnum() else []
    if len(found) != 1:
        raise InvalidInput((kind, f"{prefix!r} is no file, and begins {len(found)} kept versions"))
    return found[0]
