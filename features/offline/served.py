"""Draining the log of served pages: files become Parquet, each page once, whatever ends a run in between.

<out>/pages/day=YYYY-MM-DD/part-*.parquet    one row per page, by the day on which it was served (UTC)
<out>/served/day=YYYY-MM-DD/part-*.parquet   one row per item that a page showed
<out>/served/round.json                      the files under way, and the name of the parts that they become

First a round is noted, then its parts are written, then that is noted, then its files are deleted. A run that is killed
in between leaves a round that the next one ends: before the second note it writes the same parts anew.
"""

import json
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import polars as pl
import redis

from features.errors import Unavailable
from features.forgetting import forgotten
from features.keys import Keys
from features.offline.artefact import PRIVATE
from features.offline.event_table import write_part
from features.offline.served_table import tables
from features.samples import decode_sample
from features.served_files import closed_files
from features.served_frames import Frame, framed, frames_of
from features.served_pages import Block, decode_block
from features.state import State, known_fields, write_whole

ROUND_BYTES: Final = 1 << 26  # of files that become parts together: 40,000 pages, 1 GB of memory
ROUND: Final = "round.json"
ITEMS_FOLDER, PAGES_FOLDER = "served", "pages"
Progress = Callable[[str, int, int], None]  # stage, done, total
Forgotten = Callable[[Iterable[str]], dict[str, int]]  # unix milliseconds by user id


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedReport:
    """What draining served pages did."""

    pages: int = 0
    items: int = 0
    unreadable: int = 0  # entries that this version cannot read
    forgotten: int = 0  # pages and samples of listeners who were forgotten since


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Files that become parts together."""

    files: list[str]  # names
    part: str
    written: bool = False


def drain_served(client: redis.Redis, keys: Keys, state: State, out: Path, *, progress: Progress) -> ServedReport:
    """Drains the files that are closed when it begins, and drops the samples of the forgotten. One at a time.

    Raises:
        Unavailable: Redis, which knows the forgotten, cannot be reached.
    """
    folder = out / ITEMS_FOLDER
    for needed in (out, folder, out / PAGES_FOLDER):
        needed.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
    for left in [*folder.glob("*/.*.parquet"), *out.glob(f"{PAGES_FOLDER}/*/.*.parquet")]:  # by a run that was killed
        left.unlink()

    def gone(users: Iterable[str]) -> dict[str, int]:
        try:
            return {user: round(at * 1000) for user, at in forgotten(client, keys, users).items()}
        except redis.RedisError as error:
            raise Unavailable(f"Redis: {error}") from error

    report = ServedReport()
    if (left_over := _under_way(folder)) is not None:
        report = _added(report, _end(left_over, state.served_pages, out, gone))
    files = closed_files(state.served_pages)
    done = 0
    while done < len(files):
        some = _of_a_round(files[done:])
        progress("served pages", done, len(files))
        report = _added(report, _end(_begin(folder, some), state.served_pages, out, gone))
        done += len(some)
    progress("served pages", done, done)
    return replace(report, forgotten=report.forgotten + _drop_samples(state.served_samples, gone))


def _of_a_round(files: list[Path]) -> list[Path]:
    """The first files that go together; at least one."""
    some: list[Path] = []
    size = 0
    for path in files:
        with suppress(FileNotFoundError):
            size += path.stat().st_size
        if some and size > ROUND_BYTES:
            break
        some.append(path)
    return some


def _under_way(folder: Path) -> _Round | None:
    with suppress(FileNotFoundError):
        return _Round(**known_fields(_Round, json.loads((folder / ROUND).read_bytes())))
    return None


def _begin(folder: Path, files: list[Path]) -> _Round:
    one = _Round(files=[path.name for path in files], part=uuid.uuid4().hex)
    _note(folder, one)
    return one


def _end(one: _Round, log: Path, out: Path, gone: Forgotten) -> ServedReport:
    """Writes what a round's files hold, if that is not done, and deletes them."""
    folder, report = out / ITEMS_FOLDER, ServedReport()
    if not one.written:
        report = _write(one, log, out, gone)
        _note(folder, replace(one, written=True))
    for name in one.files:
        (log / name).unlink(missing_ok=True)
    (folder / ROUND).unlink()
    return report


def _note(folder: Path, one: _Round) -> None:
    said = {name: getattr(one, name) for name in one.__dataclass_fields__}
    write_whole(folder / ROUND, json.dumps(said).encode(), mode=0o600, durable=True)


def _write(one: _Round, log: Path, out: Path, gone: Forgotten) -> ServedReport:
    blocks, unreadable = _read([log / name for name in one.files])
    pages, items = tables(blocks)
    before = len(pages)
    when = gone(pages["user_id"].unique().to_list())
    pages, items = _kept(pages, when), _kept(items, when)
    for half in out.glob(f"*/day=*/part-{one.part}.parquet"):  # by a run that was killed, which knew fewer forgotten
        half.unlink()
    for name, rows in ((PAGES_FOLDER, pages), (ITEMS_FOLDER, items)):
        for (day,), of_day in _by_day(rows).items():
            write_part(out / name / f"day={day}", of_day, one.part)
    return ServedReport(pages=len(pages), items=len(items), unreadable=unreadable, forgotten=before - len(pages))


def _by_day(rows: pl.DataFrame) -> dict[tuple[object, ...], pl.DataFrame]:
    dated = rows.with_columns(day=pl.col("served_at").dt.strftime("%F"))
    return dated.partition_by("day", as_dict=True, include_key=False)


def _read(files: list[Path]) -> tuple[list[Block], int]:
    """The blocks of files, and how many entries are none."""
    blocks, strange = [], 0
    for path in files:
        with suppress(FileNotFoundError):  # a worker needed room: it has counted what it removed
            for frame in frames_of(path.read_bytes()):
                try:
                    blocks.append(decode_block(frame.body))
                except ValueError:
                    strange += 1
    return blocks, strange


def _kept(rows: pl.DataFrame, when: dict[str, int]) -> pl.DataFrame:
    """The rows but those of listeners who were forgotten afterwards, or in the same millisecond."""
    if not when:
        return rows
    until = pl.col("user_id").replace_strict(when, default=-1, return_dtype=pl.Int64)
    return rows.filter(pl.col("served_at").dt.epoch("ms") > until)


def _drop_samples(folder: Path, gone: Forgotten) -> int:
    """Takes the samples of the forgotten out of the files that are closed; how many."""
    dropped = 0
    for path in closed_files(folder):
        try:
            served = _listeners_of(path, path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
        when = gone({user for user, _ in served})
        if any(ms <= when.get(user, -1) for user, ms in served):
            dropped += _rewrite(path, when)
    return dropped


@lru_cache(maxsize=4096)
def _listeners_of(path: Path, _changed_ns: int) -> frozenset[tuple[str, int]]:
    """Whose samples a file holds, and when their pages were served."""
    found = set()
    for frame in frames_of(path.read_bytes()):
        with suppress(ValueError):
            sample = decode_sample(frame.body)
            found.add((sample.user_id, sample.served_ms))
    return frozenset(found)


def _rewrite(path: Path, when: dict[str, int]) -> int:
    frames = list(frames_of(path.read_bytes()))
    kept = [frame for frame in frames if _may_stay(frame, when)]
    write_whole(path, b"".join(map(framed, kept)), mode=0o600, durable=True)
    return len(frames) - len(kept)


def _may_stay(frame: Frame, when: dict[str, int]) -> bool:
    try:
        sample = decode_sample(frame.body)
    except ValueError:
        return False  # nobody can say whose it is
    return sample.served_ms > when.get(sample.user_id, -1)


def _added(one: ServedReport, other: ServedReport) -> ServedReport:
    return ServedReport(**{name: getattr(one, name) + getattr(other, name) for name in one.__dataclass_fields__})
