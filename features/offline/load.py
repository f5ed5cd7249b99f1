"""Loads listener records into Redis, part by part, without those who asked to be forgotten."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import redis
from pyarrow import RecordBatch, parquet

from features.errors import SnapshotRefused, WrongState
from features.forgetting import forgotten
from features.keys import Keys, partition
from features.listeners import created_day
from features.offline.records import RECORDS, RECORDS_MANIFEST
from features.snapshot import Manifest, sha256_of
from features.spaces import read_space, write_space

ROWS_PER_WRITE: Final = 1000
_DAY_S: Final = 86_400

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What was loaded."""

    listeners: int = 0
    forgotten: int = 0  # left out
    record_bytes: int = 0

    def plus(self, other: "Load") -> "Load":
        """Both together."""
        return Load(
            listeners=self.listeners + other.listeners,
            forgotten=self.forgotten + other.forgotten,
            record_bytes=self.record_bytes + other.record_bytes,
        )


def load_records(folder: Path, manifest: Manifest, client: redis.Redis, keys: Keys, progress: Progress) -> Load:
    """Loads every part that Redis lacks.

    Raises:
        SnapshotRefused: a part was altered.
        WrongState: the records were deleted by an earlier publish.
    """
    space = replace(read_space(client, keys, manifest.space_id), touched_at=time.time())
    write_space(client, keys, manifest.space_id, space)
    loaded = Load()
    if space.complete:
        return loaded
    said = _records_manifest(folder, manifest)
    total = int(said["count"])
    for name, entry in sorted(said["parts"].items()):
        path = folder / RECORDS / name
        if name not in space.parts:
            if sha256_of(path) != entry["sha256"]:
                raise SnapshotRefused(f"{RECORDS}/{name}: its SHA-256 is not what {RECORDS_MANIFEST} says")
            for batch in parquet.ParquetFile(path).iter_batches(ROWS_PER_WRITE * 8):
                loaded = loaded.plus(_write(batch, manifest.space_id, client, keys))
                progress("listeners", loaded.listeners + loaded.forgotten, total)
        space = replace(space, parts=(*space.parts, name), listeners=total, touched_at=time.time())
        write_space(client, keys, manifest.space_id, space)
    write_space(client, keys, manifest.space_id, replace(space, complete=True, listeners=total))
    return loaded


def _records_manifest(folder: Path, manifest: Manifest) -> dict[str, Any]:
    path = folder / RECORDS / RECORDS_MANIFEST
    if not path.exists():
        raise WrongState(
            f"Redis holds no listeners of space {manifest.space_id}, and {folder / RECORDS} is gone: records are "
            "deleted once published; build the snapshot again"
        )
    said: dict[str, Any] = json.loads(path.read_bytes())
    if said["space_id"] != manifest.space_id:
        raise SnapshotRefused(f"{RECORDS}: space {said['space_id']}, the manifest says {manifest.space_id}")
    return said


def _write(batch: RecordBatch, space_id: str, client: redis.Redis, keys: Keys) -> Load:
    """Writes some rows of a part; rows stand by partition, so each MSET stays on one slot, and one trip carries many.

    Who is forgotten while they are written is looked for once more afterwards: either that look finds their tombstone,
    or what erases their keys comes after what was written here.
    """
    frames = dict(zip(batch.column("user_id").to_pylist(), batch.column("record").to_pylist(), strict=True))
    known = dict(zip(frames, batch.column("forgotten_ms").to_pylist(), strict=True))
    kept = frames.keys() - _gone(frames, known, client, keys)
    users = [user for user in frames if user in kept]
    pipe = client.pipeline(transaction=False)
    for _, rows in groupby(((partition(user), user) for user in users), key=itemgetter(0)):
        pipe.mset({keys.record(user, space_id): frames[user] for _, user in rows})
    pipe.execute()
    left = _gone({user: frames[user] for user in users}, known, client, keys)
    for user in left:
        client.unlink(keys.record(user, space_id))
    written = kept - left
    size = sum(len(frames[user]) for user in written)
    return Load(listeners=len(written), forgotten=len(frames) - len(written), record_bytes=size)


def _gone(frames: Mapping[str, bytes], known: Mapping[str, int], client: redis.Redis, keys: Keys) -> set[str]:
    """Who was forgotten since what their record tells of; an account that began on a later day is another one.

    `known` are the tombstones, in unix milliseconds, that the build has kept to.
    """
    return {
        user
        for user, at in forgotten(client, keys, frames).items()
        if round(at * 1000) > known[user] and created_day(frames[user]) <= at // _DAY_S
    }
