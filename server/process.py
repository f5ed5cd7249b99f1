"""The child processes of `mantel serve`: `python -m server.process worker|control`, with their task on standard input.

Children are fresh interpreters, never forks: FAISS and gRPC do not survive one.
"""

import asyncio
import ctypes
import os
import signal
import sys

import uvloop

from features.state import State
from server import logs, metrics, wiring
from server.children import Task
from server.pulse import Pulse

SWITCH_S = 0.0005  # for which a thread that computes keeps another waiting; Python's 5 ms a call would wait four times
WHY = 500  # characters of an error that the supervisor is told
_PR_SET_PDEATHSIG = 1


async def _run_worker(task: Task) -> None:
    stop = _on_signals()
    sys.setswitchinterval(SWITCH_S)
    plane = wiring.data_plane(
        task.settings,
        redis_url=task.redis_url,
        port=task.port,
        shared_port=task.shared_port,
        metrics=metrics.Metrics(),
        pulse=Pulse(task.pulse),
    )
    await plane.run(stop)


async def _run_control(task: Task) -> None:
    stop = _on_signals()
    settings, instruments = task.settings, metrics.Metrics()
    transport = wiring.control_plane(
        settings,
        redis_url=task.redis_url,
        port=task.port,
        shared_port=task.shared_port,
        metrics=instruments,
    )
    page, _ = metrics.expose(State(settings.state).metrics, settings.metrics_host, settings.metrics_port)
    await transport.start(serving=True)
    await stop.wait()
    await transport.retire()
    await transport.stop(settings.grace_s)
    instruments.flush()
    page.shutdown()


def _on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the whole group; the supervisor decides
    return stop


def _die_with(supervisor: int) -> None:
    """Has the kernel end this process when its supervisor dies, even if killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        sys.exit(0)  # it died before


def main(kind: str) -> None:
    """Runs one child to its end."""
    task = Task.from_bytes(sys.stdin.buffer.read())
    _die_with(task.supervisor)
    logs.configure(kind)
    try:
        uvloop.run({"worker": _run_worker, "control": _run_control}[kind](task))
    except Exception as error:
        said = "; from ".join(f"{type(one).__name__}: {one}" for one in (error, error.__cause__) if one is not None)
        State(task.settings.state).note_end(os.getpid(), " ".join(said.split())[:WHY])
        raise


if __name__ == "__main__":
    main(sys.argv[1])
