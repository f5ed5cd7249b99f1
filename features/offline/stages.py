"""The stages of a long work: how long each took, how far it is, and what it keeps against an interruption."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from features.offline.partial import Partial
from features.offline.rejections import Rejections

KEPT_FROM_S: Final = 5.0
"""A stage that took less is not kept: it is made again as soon as read."""
KEPT_EVERY_S: Final = 60.0
"""How much of a stage an interruption may cost."""

Made = TypeVar("Made")


class Stage:
    """One stage under way: to be told how far it is, and to be given what it has made so far."""

    def __init__(self, name: str, progress: Callable[[str, int, int], None], partial: Partial | None = None) -> None:
        self._name, self._progress, self._partial = name, progress, partial
        self._kept_at = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Tells how much is done, of how much (0: not known)."""
        self._progress(self._name, done, total)

    def left(self, kind: type[Made]) -> Made | None:
        """What an interrupted build made of this stage; its arrays are mapped and read-only."""
        found = self._partial.find(f"{self._name}-part", kind) if self._partial else None
        return found[0] if found else None

    def keep(self, made: Any) -> None:
        """Keeps what is made so far, if the last time was KEPT_EVERY_S ago."""
        if self._partial and time.perf_counter() - self._kept_at >= KEPT_EVERY_S:
            self._partial.keep(f"{self._name}-part", made, {})
            self._kept_at = time.perf_counter()


class Stages:
    """Runs stages; what one made, and the rows that were rejected until then, stay for a build that is interrupted."""

    def __init__(self, progress: Callable[[str, int, int], None], partial: Partial, rejections: Rejections) -> None:
        self.seconds: dict[str, float] = {}
        self.resumed: list[str] = []
        self._progress, self._partial, self._rejections = progress, partial, rejections

    @contextmanager
    def __call__(self, name: str) -> Iterator[Stage]:
        """Runs a stage of which nothing is kept; gives what to tell its progress to."""
        start = time.perf_counter()
        self._progress(name, 0, 0)
        yield Stage(name, self._progress, self._partial)
        self.seconds[name] = time.perf_counter() - start

    def made(self, name: str, kind: type[Made], make: Callable[[Stage], Made]) -> Made:
        """What `make` makes in this stage, or made before the build was interrupted."""
        if found := self._partial.find(name, kind):
            made, said = found
            self.seconds[name] = said["seconds"]
            self._rejections.restore(said["rejections"])
            self.resumed.append(name)
            self._progress(f"{name}, resumed", 1, 1)
            return made
        with self(name) as stage:
            made = make(stage)
        if self.seconds[name] >= KEPT_FROM_S:
            said = {"seconds": self.seconds[name], "rejections": self._rejections.said()}
            self._partial.keep(name, made, said)
            self._partial.drop(f"{name}-part")
            kept = self._partial.find(name, kind)
            made = kept[0] if kept else made  # mapped, it is memory that the kernel may take back
        return made
