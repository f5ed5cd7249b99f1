"""Tells a cancellation that somebody asked for from one that leaked out of what was awaited."""

import asyncio


def asked_for() -> bool:
    """Whether the current task itself was cancelled, by its caller or by shutdown, and not something it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def stray(error: asyncio.CancelledError) -> Exception:
    """A cancellation that nobody asked for, as the failure that it is."""
    failure = RuntimeError("a cancellation that nobody asked for")
    failure.__cause__ = error
    return failure
