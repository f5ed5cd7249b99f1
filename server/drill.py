"""A drill: what a server is told to suffer on purpose, so that alarms, load tests and admission can be seen to work."""

import logging
import time
from dataclasses import dataclass

from server.metrics import Metrics
from server.settings import Settings

_log = logging.getLogger("mantel.drill")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """What is suffered where pages are assembled; by default nothing."""

    work_s: float = 0.0  # of processor time that each page of a batch costs more
    sleep_s: float = 0.0  # that each batch takes longer, the core idle

    def suffer(self, pages: int) -> None:
        """Holds the thread as long as a batch of so many pages is to suffer."""
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if self.work_s:
            until = time.thread_time() + pages * self.work_s
            while time.thread_time() < until:
                pass


def drill_of(settings: Settings, metrics: Metrics) -> Drill:
    """The drill of the settings; one that does anything is told of in the log and in the metrics."""
    for kind, milliseconds in (("work", settings.drill_work_ms), ("sleep", settings.drill_sleep_ms)):
        if milliseconds:
            _log.warning("a drill is on: %s of %g ms; no listener should be served by this process", kind, milliseconds)
            metrics.drilled(kind, milliseconds / 1000)
    return Drill(work_s=settings.drill_work_ms / 1000, sleep_s=settings.drill_sleep_ms / 1000)
