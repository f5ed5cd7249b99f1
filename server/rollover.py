"""A rollover: every worker is replaced, one after the other, the new one ready before the old one retires."""

import logging
from collections import deque
from typing import Final

from features.state import Rolled, State
from server.children import Child

ENOUGH: Final = 3  # deaths of a new worker before it was ever ready
_log = logging.getLogger("mantel.supervisor")


class Rollover:
    """One at a time, a step at each look of the supervisor; what happens is noted in the state directory."""

    def __init__(self, state: State) -> None:
        """None is under way; one that another supervisor left so never ends."""
        self._state = state
        self._number = state.rolled().number
        self._old: deque[Child] = deque()
        self._new: Child | None = None
        self._tell("done")

    def begin(self, children: list[Child]) -> None:
        """Begins, where none is under way."""
        if not self._old:
            self._number += 1
            self._old.extend(child for child in children if child.kind == "worker")
            self._tell("running")

    def step(self, children: list[Child], now: float) -> None:
        """Starts the next new worker, or retires the old one whose place a new one has taken."""
        if not self._old:
            return
        old = self._old[0]
        if self._new is None:
            self._new = Child(old.kind, old.task)
            children.append(self._new)
        elif not old.retires_by and self._new.ready:
            old.retire(now)
        elif old.retires_by and old not in children:
            self._old.popleft()
            self._new = None
            if not self._old:
                self._tell("done")
        elif not old.retires_by and self._new.failures >= ENOUGH:
            self._new.retire(now)
            self._old.clear()
            self._new = None
            self._tell("failed")

    def _tell(self, outcome: str) -> None:
        self._state.note_rolled(Rolled(number=self._number, outcome=outcome))
        if self._number:
            _log.info("rollover %d: %s", self._number, outcome)
