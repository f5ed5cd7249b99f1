"""The clock of an open loop."""

import asyncio
import time

import numpy as np

from loadtest.pacing import BREATH, turns


async def test_every_call_has_its_turn_and_none_before_it_is_due() -> None:
    """In order, at the moments that were said, and how late each is told."""
    due, start = np.array([0.0, 0.01, 0.01, 0.03]), time.monotonic() + 0.01
    seen = [(turn, time.monotonic()) async for turn in turns(due, start)]
    assert [turn.number for turn, _ in seen] == [0, 1, 2, 3]
    for turn, now in seen:
        assert turn.due == start + due[turn.number]
        assert 0 <= turn.late_s <= now - turn.due


async def test_who_is_late_still_hears_answers() -> None:
    """The loop goes on after so many turns in a row."""
    heard: list[int] = []

    async def answer() -> None:
        heard.append(0)

    task = asyncio.create_task(answer())
    before = [len(heard) async for _ in turns(np.zeros(2 * BREATH), time.monotonic() - 1)]
    await task
    assert before.index(1) == BREATH - 1
