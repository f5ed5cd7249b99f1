"""The stages of a long work: how long each took, and how far it is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial


class Stages:
    """Times each stage, and tells its progress under its name."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Callable[[int, int], None]]:
        """Runs a stage; gives what to tell its progress to."""
        start = time.perf_counter()
        self._progress(stage, 0, 0)
        yield partial(self._progress, stage)
        self.seconds[stage] = time.perf_counter() - start
