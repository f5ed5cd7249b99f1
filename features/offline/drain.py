"""Draining: events move from Redis to Parquet, each counted once.

<out>/
├── day=YYYY-MM-DD/part-*.parquet   events, by the day on which they occurred (UTC)
├── listens/YYYY-MM-DD.parquet      what each of these days adds to the table `listens`
├── unreadable/part-*.parquet       entries that this version cannot read; none are lost
├── forgotten.parquet               tombstones of who was forgotten, for whoever reads the rest
└── progress.json                   how far each stream has been drained, and until when the forgotten are erased

First the data are on disk, then the progress, then the streams are trimmed. A run that is killed in between leaves
entries that the next one finds in the data by listener and event id, as it finds what a client sent again. Events of
before their listener was forgotten are left out, and what was drained of them earlier is erased.
"""

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import redis

from features.errors import Unavailable
from features.event_store import FIELD
from features.forgetting import forgotten
from features.keys import PARTITIONS, Keys
from features.offline.artefact import PRIVATE
from features.offline.erase import erase, without
from features.offline.event_table import IDENTITY, Entry, decode, seen, unseen, write_events, write_part
from features.offline.forgotten import FILE, all_forgotten, write_forgotten
from features.offline.listens import write_listens
from features.state import write_whole

ROUND: Final = 2000  # entries of each stream: 128,000 at most, 60 MB
DISK_MS: Final = 10_000
PROGRESS: Final = "progress.json"
MARGIN_S: Final = 60.0  # by which the clock of Redis may be set back without a tombstone being passed over
Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain did."""

    read: int  # entries of the streams
    written: int  # events
    repeated: int  # events that are in the data already
    unreadable: int
    forgotten: int  # events of before their listener was forgotten, left out
    erased: int  # rows of such listeners, events and served pages, that an earlier drain had written
    days: tuple[str, ...]  # whose folders got events
    listens: int  # rows that were written anew


def drain(client: redis.Redis, keys: Keys, out: Path, *, progress: Progress) -> DrainReport:
    """Drains what stands in the streams when it begins. One at a time: two would write events twice.

    Raises:
        Unavailable: Redis cannot be reached, or does not get the streams to its disk.
    """
    out.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    for left in out.glob("*/.*.parquet"):  # by a run that was killed
        left.unlink()
    try:
        return _drain(client, keys, out, progress)
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from error


def _drain(client: redis.Redis, keys: Keys, out: Path, progress: Progress) -> DrainReport:
    done = _read_progress(out, _name_of_streams(client, keys))
    _trim(client, keys, done.drained)  # what a killed run has not
    total = _waiting(client, keys)
    read, written, unreadable, left_out = 0, 0, 0, 0
    known, days = None, set[str]()
    progress("events", 0, total)
    while read < total and (entries := _next(client, keys, done.drained)):
        decoded, strange = decode(entries)
        found = without(decoded, forgotten(client, keys, decoded["user_id"].unique()))
        known = seen(out, decoded) if known is None else known
        new = unseen(found, known)
        days |= set(write_events(out, new))
        write_part(out / "unreadable", strange)
        done.drained |= {number: last for number, last, _ in entries}
        _write_progress(out, done)
        progress("events", read, total)
        _trim(client, keys, done.drained)
        known = pl.concat([known, new.select(IDENTITY)])
        read, written, unreadable = read + len(entries), written + len(new), unreadable + len(strange)
        left_out += len(decoded) - len(found)
        progress("events", read, max(read, total))
    return DrainReport(
        read=read,
        written=written,
        repeated=read - written - unreadable - left_out,
        unreadable=unreadable,
        forgotten=left_out,
        erased=_erase(client, keys, out, done, progress),
        days=tuple(sorted(days)),
        listens=write_listens(out, progress),
    )


def _erase(client: redis.Redis, keys: Keys, out: Path, done: "_Progress", progress: Progress) -> int:
    """Erases what the data say of who was forgotten since this was last done, or while this run wrote."""
    answer: Any = client.time()
    all_of_them = all_forgotten(client, keys)
    if all_of_them.at:
        write_forgotten(out / FILE, all_of_them)
    erased = erase(out, all_of_them.since(done.erased_s - MARGIN_S), progress)
    done.erased_s = float(answer[0])
    _write_progress(out, done)
    return erased


def _name_of_streams(client: redis.Redis, keys: Keys) -> str:
    """The name of this Redis' streams: progress in those of another would pass over events that were never read."""
    client.set(keys.streams, uuid.uuid4().hex, nx=True)
    found: Any = client.get(keys.streams)
    return bytes(found).decode()


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far a directory is with the streams of one Redis."""

    streams: str  # their name
    drained: dict[int, str]  # the last drained id by stream
    erased_s: float  # who was forgotten before is not in the data any more; unix seconds by the clock of Redis


def _read_progress(out: Path, name: str) -> _Progress:
    with suppress(FileNotFoundError):
        said = json.loads((out / PROGRESS).read_bytes())
        if said["streams"] == name:
            drained = {int(number): last for number, last in said["drained"].items()}
            return _Progress(streams=name, drained=drained, erased_s=said.get("erased_s", 0.0))
    return _Progress(streams=name, drained={}, erased_s=0.0)


def _write_progress(out: Path, done: _Progress) -> None:
    said = {"streams": done.streams, "drained": done.drained, "erased_s": done.erased_s}
    write_whole(out / PROGRESS, json.dumps(said).encode(), mode=0o600, durable=True)


def _trim(client: redis.Redis, keys: Keys, drained: dict[int, str]) -> None:
    """Removes what has been drained."""
    pipe = client.pipeline(transaction=False)
    for number, last in drained.items():
        pipe.xtrim(keys.stream(number), minid=_after(last), approximate=False)
    pipe.execute()


def _after(last: str) -> str:
    """The least id after one."""
    milliseconds, _, sequence = last.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _waiting(client: redis.Redis, keys: Keys) -> int:
    pipe = client.pipeline(transaction=False)
    for number in range(PARTITIONS):
        pipe.xlen(keys.stream(number))
    return sum(pipe.execute())


def _next(client: redis.Redis, keys: Keys, drained: dict[int, str]) -> list[Entry]:
    """The next entries of every stream, each stream's in order.

    They are on the disk of Redis: had it lost them after they were drained, it might give their ids to others.
    """
    pipe = client.pipeline(transaction=False)
    for number in range(PARTITIONS):
        after = _after(drained[number]) if number in drained else "-"
        pipe.xrange(keys.stream(number), min=after, count=ROUND)
    pipe.waitaof(1, 0, DISK_MS)
    *streams, on_disk = pipe.execute(raise_on_error=False)
    for answer in streams:
        if isinstance(answer, Exception):
            raise answer
    if not isinstance(on_disk, Exception) and on_disk[0] < 1:  # one that knows no WAITAOF writes at once, or took none
        raise Unavailable("Redis does not get the streams to its disk")
    return [
        (number, last.decode(), fields.get(FIELD.encode(), b""))
        for number, entries in enumerate(streams)
        for last, fields in entries
    ]
