"""The clock of an open loop: each call has its turn when it is due, whatever became of those before it."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from loadtest.arrivals import Floats

BREATH: Final = 32  # turns in a row, when late, before answers are heard


class Turn(NamedTuple):
    """A call that is due."""

    number: int
    due: float  # by `time.monotonic`
    late_s: float


async def turns(due: Floats, start: float) -> AsyncIterator[Turn]:
    """Each call's turn, once it is due; `due` rises, in seconds from `start`, a moment of `time.monotonic`.

    A thread sleeps until then: timers of the loop tick in milliseconds, and looking at the clock again and again would
    take the core from those who answer.
    """
    loop, in_a_row = asyncio.get_running_loop(), 0
    with ThreadPoolExecutor(1) as sleeper:
        for number, at in enumerate((start + due).tolist()):
            while (early := at - time.monotonic()) > 0:
                in_a_row = 0
                await loop.run_in_executor(sleeper, time.sleep, early)
            in_a_row += 1
            if in_a_row % BREATH == 0:
                await asyncio.sleep(0)
            yield Turn(number, at, -early)
