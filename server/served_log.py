"""The log of served pages: one entry per page, written after its response, by a thread of its own.

Pages are noted by reference; sixteen, or those of a tenth of a second, become a block of columns on the event loop,
which the thread frames and writes: 15 us per page in all, at sixteen to a block, and 49 for a page that is alone in it.
A full or slow disk delays no page: what the queue cannot hold is lost, and counted. A worker that is killed loses what
it has not written, a tenth of a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import groupby
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final

from google.protobuf.message import Message

from features.archive import Archive
from features.keys import hash64
from features.samples import Sample, encode_sample, row_of
from features.served_files import ServedFiles
from features.served_frames import PAGES, SAMPLE, Frame
from features.served_pages import encode_block
from features.state import State
from ranking.types import HomeQuery
from server.guard import Call
from server.metrics import Metrics
from server.page_record import page_record
from server.paging import Turned
from server.served import Served
from server.served_block import Noted, Request, Source, block_of, block_of_turn, versions_of
from server.settings import Settings
from server.version import VERSION

EVERY_S: Final = 0.1  # that pages wait at most to become a block; so many make one at once
EVERY_PAGES: Final = 16
QUEUE_BYTES: Final = 8_000_000  # some seconds of pages
CLOSE_S: Final = 2.0  # for a disk to take what is left
LOOK_S: Final = 0.5  # between looks whether a file is old enough to be closed
_KINDS: Final = {PAGES: "page", SAMPLE: "sample"}
_log = logging.getLogger("mantel.served")


class ServedLog:
    """Takes note of served pages on the event loop; `start` and `close` stand around."""

    def __init__(self, settings: Settings, source: Source, archive: Archive, metrics: Metrics) -> None:
        """Writes nothing before `start`."""
        self._source = source
        self._share = settings.replay_sample
        self._on = settings.served_log_bytes_max > 0
        self._metrics = metrics
        self._noted: list[Noted] = []
        self._queue: SimpleQueue[Frame | None] = SimpleQueue()
        self._put, self._taken = 0, 0  # bytes; one side of the queue writes each
        self._thread: Thread | None = None
        self._failing = False
        self._files = self._folders(settings, archive)

    def _folders(self, settings: Settings, archive: Archive) -> dict[int, ServedFiles]:
        state, lost = State(settings.state), self._metrics.page_log_lost
        return {
            PAGES: ServedFiles(
                state.served_pages,
                bytes_max=settings.served_log_bytes_max,
                age_s=settings.served_log_age_s,
                dropped=lambda pages: lost(_KINDS[PAGES], "bound", pages),
            ),
            SAMPLE: ServedFiles(
                state.served_samples,
                bytes_max=settings.replay_bytes_max,
                age_s=settings.served_log_age_s,
                dropped=lambda pages: lost(_KINDS[SAMPLE], "bound", pages),
                begun=archive.tidy,
            ),
        }

    def start(self) -> None:
        """Starts the thread."""
        if self._on:
            self._thread = Thread(target=self._write_on, name="served-log", daemon=True)
            self._thread.start()

    def note(self, request: Message, call: Call, query: HomeQuery, served: Served) -> None:
        """A page goes out. To be called once its response is made: nothing is done before the loop's next turn."""
        if not self._on:
            return
        sampled = hash64(call.request_id) < self._share * 2**64
        self._noted.append(Noted(call, request, query, served, time.time_ns() // 1_000_000, sampled))
        if len(self._noted) == 1:
            asyncio.get_running_loop().call_later(EVERY_S, self.flush)
        elif len(self._noted) == EVERY_PAGES:
            asyncio.get_running_loop().call_soon(self.flush)

    def note_turn(self, request: Request, call: Call, turned: Turned) -> None:
        """A later part of a page goes out; as above."""
        if not self._on:
            return
        at_ms = time.time_ns() // 1_000_000

        def written() -> bytes:
            return encode_block(block_of_turn(call.request_id, at_ms, request, turned, self._source))

        asyncio.get_running_loop().call_soon(self._hand_in, PAGES, 1, written)

    def flush(self) -> None:
        """Hands to the thread what was noted."""
        noted, self._noted = self._noted, []
        for _, group in groupby(noted, key=lambda one: one.served.snapshot.digest):
            some = list(group)
            self._hand_in(PAGES, len(some), partial(self._block, some))
        for one in noted:
            if one.sampled:
                self._hand_in(SAMPLE, 1, partial(self._sample, one))

    def close(self) -> None:
        """Writes what was handed in, and closes the files; blocks until that is done, or a disk has had its time."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(CLOSE_S)
            self._thread = None

    def _block(self, noted: list[Noted]) -> bytes:
        return encode_block(block_of(noted, noted[0].served.snapshot, self._source))

    def _sample(self, one: Noted) -> bytes:
        return encode_sample(_sample(one, self._source))

    def _hand_in(self, kind: int, pages: int, written: Callable[[], bytes]) -> None:
        try:
            body = written()
        except Exception:  # noqa: BLE001  # whatever it is: pages go on
            _log.exception("served pages cannot be told")
            self._metrics.page_log_lost(_KINDS[kind], "fault", pages)
            return
        if self._put - self._taken + len(body) > QUEUE_BYTES:
            self._metrics.page_log_lost(_KINDS[kind], "queue", pages)
            return
        self._put += len(body)
        self._queue.put(Frame(kind, pages, body))

    def _write_on(self) -> None:
        """The thread's work: short turns of Python, and calls that let the event loop run meanwhile."""
        while True:
            with suppress(Empty):
                frame = self._queue.get(timeout=LOOK_S)
                if frame is None:
                    break
                self._write(frame)
                self._taken += len(frame.body)
            for files in self._files.values():
                self._trying(files.rotate)
        for files in self._files.values():
            self._trying(files.close)

    def _write(self, frame: Frame) -> None:
        if self._trying(lambda: self._files[frame.kind].write(frame)):
            if self._failing:
                _log.info("served pages are logged again")
            self._failing = False
            self._metrics.page_logged(_KINDS[frame.kind], frame.pages)
        else:
            self._metrics.page_log_lost(_KINDS[frame.kind], "disk", frame.pages)

    def _trying(self, work: Callable[[], None]) -> bool:
        """Whether it succeeds; a change is told once."""
        try:
            work()
        except Exception:  # noqa: BLE001  # whatever it is: pages go on
            if not self._failing:
                _log.exception("served pages cannot be logged")
            self._failing = True
            return False
        return True


def _sample(one: Noted, source: Source) -> Sample:
    batch = one.served.batch
    return Sample(
        page_id=one.call.request_id,
        served_ms=one.served_ms,
        user_id=one.query.user_id,
        surface=one.query.surface.name,
        program=VERSION,
        versions=versions_of(one.served, source),
        method=one.request.DESCRIPTOR.name.removesuffix("Request"),
        roles=tuple(role.value for role in one.call.principal.roles),
        now=one.query.now,
        confirmed={} if batch.promoted_by is None else dict(batch.promoted_by.at),
        missing=int(batch.frames.missing),
        request=one.request.SerializeToString(),
        page=page_record(one.served.home, batch.snapshot),
        frames=row_of(batch.frames, one.served.place),
    )
