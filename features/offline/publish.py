"""Publishing: listener records into Redis, the snapshot into the state directory, and the pointer last.

An interrupted publish goes on where it stopped. Of two at once on one state directory the second waits; on one Redis
both load their own embedding space beside the others, and the pointer names the one that came last. What nobody needs
any more is collected afterwards.
"""

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.errors import InvalidInput, SnapshotRefused, Unavailable, WrongState
from features.keys import Keys
from features.offline.load import ROWS_PER_WRITE, Progress, load_records
from features.offline.records import RECORDS
from features.pointer import Pointer, Served, flip_pointer, read_pointer
from features.snapshot import MANIFEST, Manifest, load, read_manifest, verify
from features.spaces import Space, read_space, write_space, write_space_to_disk
from features.state import State, sync_entry

KEPT: Final = 3  # snapshots, with their embedding spaces
ABANDONED_S: Final = 600.0  # a space that a publish has not touched for so long is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What a publish did."""

    pointer: Pointer
    items: int
    listeners: int  # in the space
    loaded: int  # by this publish; the rest was there
    forgotten: int  # left out by this publish
    load_s: float
    record_bytes: int  # payload of what was loaded
    memory_bytes: int  # by which Redis grew while loading
    redis_bytes: int  # what Redis holds of the system's memory
    collected: tuple[str, ...]  # digests of snapshots that were removed
    on_disk: (
        bool  # Redis said that it has the listeners on its disk; false: it keeps no append-only file, or cannot say
    )


def connect(url: str) -> redis.Redis:
    """A client for batch work: it fails at once where Redis cannot be reached, and waits long for an answer.

    Raises:
        InvalidInput: the URL is none of a Redis.
    """
    try:
        return redis.Redis.from_url(url, socket_timeout=60, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        raise InvalidInput(("redis", str(error))) from error


def publish(
    folder: Path, state: State, client: redis.Redis, keys: Keys, *, progress: Progress, keep_records: bool = False
) -> PublishReport:
    """Publishes the snapshot that `mantel build` wrote to `folder`; its records are deleted there afterwards.

    Raises:
        SnapshotRefused: a file is missing or altered, or no worker could load it.
        WrongState: Redis lacks the space's listeners, and the records were deleted by an earlier publish; or it is
            published, but its records cannot be deleted.
        Unavailable: Redis cannot be reached, or refuses; a publish later goes on where this one stopped.
    """
    try:
        return _publish(folder, state, client, keys, progress, keep_records=keep_records)
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from error


def _publish(
    folder: Path, state: State, client: redis.Redis, keys: Keys, progress: Progress, *, keep_records: bool
) -> PublishReport:
    with state.lock("publish", wait=True, held=""):
        progress("verify", 0, 1)
        snapshot = load(folder)
        manifest, digest = snapshot.manifest, snapshot.digest
        progress("copy", 0, 1)
        _copy(folder, manifest, state.snapshots / digest)
        before, started = _memory(client), time.perf_counter()
        records = load_records(folder, manifest, client, keys, progress)
        load_s, memory = time.perf_counter() - started, _memory(client) - before
        space = read_space(client, keys, manifest.space_id)
        on_disk = write_space_to_disk(client, keys, manifest.space_id, space)
        served = Served(digest=digest, space_id=manifest.space_id)
        pointer = flip_pointer(client, keys, served, now=time.time())
        write_space(client, keys, manifest.space_id, replace(space, touched_at=0.0))
        collected = _collect(state, client, keys)
        if not keep_records:
            _erase(folder / RECORDS)
    return PublishReport(
        pointer=pointer,
        items=manifest.items,
        listeners=space.listeners,
        loaded=records.listeners,
        forgotten=records.forgotten,
        load_s=load_s,
        record_bytes=records.record_bytes,
        memory_bytes=memory,
        redis_bytes=int(client.info("memory")["used_memory_rss"]),
        collected=collected,
        on_disk=on_disk,
    )


def _erase(records: Path) -> None:
    try:
        if records.is_symlink() or records.exists():
            shutil.rmtree(records)
    except OSError as error:
        raise WrongState(
            f"published, but the listeners' records cannot be deleted: {error}; delete {records}"
        ) from error


def _copy(folder: Path, manifest: Manifest, target: Path) -> None:
    """Copies a verified snapshot under its digest: a mapped file must never change, so nothing is linked."""
    with suppress(SnapshotRefused):
        verify(target)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in (*manifest.files, MANIFEST):
        shutil.copyfile(folder / name, aside / name)
        with (aside / name).open("rb") as file:
            os.fsync(file.fileno())
        (aside / name).chmod(0o444)
    sync_entry(aside)
    damaged = target.with_name(f"{aside.name}.damaged")
    if target.exists():
        target.rename(damaged)  # who has mapped its files keeps them
    aside.rename(target)
    sync_entry(target.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _collect(state: State, client: redis.Redis, keys: Keys) -> tuple[str, ...]:
    """Removes snapshots beyond the latest three that no worker serves, then the spaces that no snapshot needs."""
    pointer = read_pointer(client, keys)
    if pointer is None:
        return ()
    latest = (Served(digest=pointer.digest, space_id=pointer.space_id), *pointer.before)[:KEPT]
    kept = {served.digest for served in latest} | {beat.digest for beat in state.heartbeats()}
    removed = []
    needed = {served.space_id for served in latest}
    for folder in state.snapshots.iterdir():
        if folder.name.startswith("."):
            if time.time() - folder.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(folder)  # left by a publish that was killed
        elif folder.name in kept:
            with suppress(SnapshotRefused):  # damaged: nobody can serve it, so it needs nothing
                needed.add(read_manifest(folder)[0].space_id)
        else:
            shutil.rmtree(folder)
            state.verified(folder.name).unlink(missing_ok=True)
            removed.append(folder.name)
    for space_id in map(_text, client.hkeys(keys.spaces)):
        space = read_space(client, keys, space_id)
        if space_id not in needed and time.time() - space.touched_at > ABANDONED_S:
            _drop_space(client, keys, space_id)
    return tuple(removed)


def _drop_space(client: redis.Redis, keys: Keys, space_id: str) -> None:
    """Forgets first that a space is complete: killed in between, the next publish collects or loads the rest."""
    write_space(client, keys, space_id, Space())
    found = []
    for key in client.scan_iter(keys.records_pattern(space_id), count=ROWS_PER_WRITE):
        found.append(key)
        if len(found) == ROWS_PER_WRITE:
            client.unlink(*found)
            found = []
    if found:
        client.unlink(*found)
    client.hdel(keys.spaces, space_id)


def _memory(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()
