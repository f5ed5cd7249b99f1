"""Signs of life: a worker beats into a pipe ten times a second, and its supervisor tells a frozen one from a slow one.

The beat comes from the event loop, and is withheld while a batch has been computed for too long: with either stuck, no
page is answered. Silence alone proves nothing on a busy machine, so the kernel is asked: who is stopped, who waits for
nothing that runs, or who has had a core for half a second and still has not beaten, is frozen.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

BEAT_S: Final = 0.1
BATCH_S: Final = 1.0  # a batch takes milliseconds
SILENT_S: Final = 1.0
CORE_S: Final = 0.5  # of processor time, enough for any batch
HOPELESS_S: Final = 10.0  # of silence, whatever the machine is busy with
_LOADING: Final = b"l"
_READY: Final = b"r"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Pulse:
    """The worker's end."""

    def __init__(self, end: int = -1) -> None:
        """Beats into a file descriptor; -1: nobody listens."""
        self._end = end
        self._computing_since = 0.0  # 0: nothing is computed
        if end >= 0:
            os.set_blocking(end, False)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """While this lasts a batch is computed."""
        self._computing_since = time.monotonic()
        try:
            yield
        finally:
            self._computing_since = 0.0

    def beat(self, *, ready: bool) -> None:
        """Says that all is well; until it is `ready` to answer its silence is no fault, unless it is stopped."""
        since = self._computing_since
        if self._end < 0 or (since and time.monotonic() - since > BATCH_S):
            return
        with suppress(BlockingIOError, BrokenPipeError):  # the supervisor is slow to listen, or gone
            os.write(self._end, _READY if ready else _LOADING)


class Ear:
    """The supervisor's end for one process."""

    def __init__(self) -> None:
        """Opens the pipe; `far_end` is for the child, and closed here once it has started."""
        self._end, self.far_end = os.pipe()
        os.set_blocking(self._end, False)
        self.ready = False
        self._heard_at = 0.0
        self._core_s = 0.0

    def started(self) -> None:
        """The child has its end."""
        os.close(self.far_end)
        self._heard_at = time.monotonic()

    def close(self) -> None:
        """The child is gone."""
        os.close(self._end)

    def frozen(self, pid: int, now: float) -> str:
        """Why the child counts as frozen, else ""; to be asked some times a second, for it listens here."""
        with suppress(BlockingIOError):
            if beats := os.read(self._end, 4096):
                self.ready = self.ready or _READY in beats
                self._heard_at, self._core_s = now, _core_s(pid)
        silent_s = now - self._heard_at
        if silent_s < SILENT_S:
            return ""
        states = _thread_states(pid)
        if states & set("Tt"):
            return f"stopped, silent for {silent_s:.1f} s"
        if not self.ready:
            return ""  # it loads, or compiles
        if states & set("RD") and _core_s(pid) - self._core_s < CORE_S and silent_s < HOPELESS_S:
            return ""  # it wants a core, or the disk, and has not got it
        return f"silent for {silent_s:.1f} s" if states else ""  # none: it has just ended


def _thread_states(pid: int) -> set[str]:
    """The states of a process' threads, as /proc names them."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            found.add(task.read_text().rpartition(")")[2].split()[0])
    return found


def _core_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
