"""The state directory: everything that outlives a process, and who may touch it when.

<state>/
├── snapshots/<digest>/   published snapshots, immutable
├── verified/<digest>     what tells that its files have not changed since a worker verified them
├── pointer.json          the last snapshot that was served well, for a start without Redis
├── books/<kind>.json     the last good book of each kind, with its blobs
├── served/pages/         the log of served pages, until it is drained (private, as what stands below it)
├── served/samples/       all that a share of these pages was made from, for replay
├── served/versions/      the books and surfaces files that samples name
├── workers/<pid>.json    heartbeats: which worker serves which snapshot; <pid>.end: why one ended
├── serve.json            where the running server listens
├── rollover.json         the latest replacement of all its workers
├── tokens.json           principals: hashed tokens and certificate names, with roles
├── dev-token             the development token of a loopback server (0600)
├── metrics/              Prometheus' per-process files
└── redis/                the embedded Redis: append-only file, socket, log
"""

import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from features.errors import WrongState

HEARTBEAT_STALE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What one worker last said of itself; times are unix seconds."""

    pid: int
    digest: str
    started_at: float
    seen_at: float
    refusal: str = ""
    ready: bool = False  # it listens
    experiment_book: str = ""  # its digest
    book_refusal: str = ""
    promotion_book: str = ""  # its digest
    promotion_refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a running server listens."""

    pid: int
    target: str  # the data port, as gRPC writes it
    control: str
    metrics: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """The latest rollover of the workers."""

    number: int = 0  # 0: there was none
    outcome: str = "done"  # or running, or failed


@dataclass(frozen=True, slots=True)
class State:
    """A state directory."""

    path: Path

    @property
    def snapshots(self) -> Path:
        """The folder of published snapshots."""
        return self.path / "snapshots"

    def verified(self, digest: str) -> Path:
        """The note that a snapshot was verified."""
        return self.path / "verified" / digest

    @property
    def pointer(self) -> Path:
        """The pointer to the last good snapshot."""
        return self.path / "pointer.json"

    def book(self, kind: str) -> Path:
        """The last good book of a kind."""
        return self.path / "books" / f"{kind}.json"

    @property
    def served_pages(self) -> Path:
        """The folder of the log of served pages."""
        return self.path / "served" / "pages"

    @property
    def served_samples(self) -> Path:
        """The folder of the samples that replay reads."""
        return self.path / "served" / "samples"

    @property
    def served_versions(self) -> Path:
        """The folder of the books and surfaces files that samples name."""
        return self.path / "served" / "versions"

    @property
    def tokens(self) -> Path:
        """The principals' file."""
        return self.path / "tokens.json"

    @property
    def dev_token(self) -> Path:
        """The development token."""
        return self.path / "dev-token"

    @property
    def signing_keys(self) -> Path:
        """The secrets that sign page tokens and tracking tokens."""
        return self.path / "signing-keys"

    @property
    def metrics(self) -> Path:
        """The folder of Prometheus' per-process files."""
        return self.path / "metrics"

    @property
    def redis(self) -> Path:
        """The embedded Redis' folder."""
        return self.path / "redis"

    @contextmanager
    def lock(self, name: str, *, wait: bool, held: str, patience_s: float = math.inf) -> Iterator[None]:
        """Holds an exclusive lock of this state directory; the system frees it if the process dies.

        Raises:
            WrongState: with the text `held`, where another process holds the lock, not waited for or for too long.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_s
        with (self.path / f"{name}.lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait and patience_s == math.inf else fcntl.LOCK_NB))
                    break
                except BlockingIOError as error:
                    if not wait or time.monotonic() > deadline:
                        raise WrongState(held) from error
                time.sleep(0.02)
            yield

    def beat(self, heartbeat: Heartbeat) -> None:
        """Writes a worker's heartbeat."""
        write_whole(self._heartbeat(heartbeat.pid), json.dumps(asdict(heartbeat)).encode())

    def stop_beating(self, pid: int) -> None:
        """Removes a worker's heartbeat."""
        self._heartbeat(pid).unlink(missing_ok=True)

    def note_end(self, pid: int, why: str) -> None:
        """Writes why a process ends."""
        write_whole(self._heartbeat(pid).with_suffix(".end"), why.encode())

    def take_end(self, pid: int) -> str:
        """Why a process ended, once; "" where it said nothing."""
        path = self._heartbeat(pid).with_suffix(".end")
        try:
            why = path.read_text(errors="replace")
            path.unlink()
        except OSError:
            return ""
        return why

    def heartbeats(self) -> list[Heartbeat]:
        """The workers heard of in the last ten seconds."""
        found = []
        for path in sorted((self.path / "workers").glob("*.json")):
            try:
                heartbeat = Heartbeat(**known_fields(Heartbeat, json.loads(path.read_bytes())))
            except (OSError, ValueError, TypeError, AttributeError):
                continue  # just removed, or of another version
            if time.time() - heartbeat.seen_at < HEARTBEAT_STALE_S:
                found.append(heartbeat)
        return found

    def announce(self, endpoints: Endpoints) -> None:
        """Writes where the server listens."""
        write_whole(self.path / "serve.json", json.dumps(asdict(endpoints)).encode())

    def withdraw(self) -> None:
        """Removes what `announce` wrote."""
        (self.path / "serve.json").unlink(missing_ok=True)

    def endpoints(self) -> Endpoints | None:
        """Where the server listens; None where none runs."""
        try:
            return Endpoints(**known_fields(Endpoints, json.loads((self.path / "serve.json").read_bytes())))
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def note_rolled(self, rolled: Rolled) -> None:
        """Writes how the latest rollover stands."""
        write_whole(self.path / "rollover.json", json.dumps(asdict(rolled)).encode())

    def rolled(self) -> Rolled:
        """How the latest rollover stands."""
        try:
            return Rolled(**known_fields(Rolled, json.loads((self.path / "rollover.json").read_bytes())))
        except (OSError, ValueError, TypeError, AttributeError):
            return Rolled()

    def _heartbeat(self, pid: int) -> Path:
        return self.path / "workers" / f"{pid}.json"


def known_fields(kind: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was read those fields that a dataclass has: a newer version may have written more."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in said.items() if name in names}


def write_whole(path: Path, content: bytes, *, mode: int = 0o644, durable: bool = False) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part.

    `durable` also forces it to disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    aside.rename(path)
    if durable:
        sync_entry(path.parent)


def sync_entry(path: Path) -> None:
    """Forces a file's content, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
