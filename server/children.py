"""The child processes of the supervisor: starting, listening to, burying and replacing them."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from features.state import State
from server.pulse import Ear
from server.settings import Settings

BACKOFF_S: Final = (0.05, 5.0)
STEADY_S: Final = 30.0  # a child that lived this long starts its backoff anew
KILL_AFTER_S: Final = 5.0  # beyond drain and grace
_log = logging.getLogger("mantel.supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a child is told, as JSON on its standard input: never in its arguments, which others can read."""

    settings: Settings
    redis_url: str
    port: int
    shared_port: bool = False
    supervisor: int = field(default_factory=os.getpid)
    pulse: int = -1  # the file descriptor that it beats into; -1: none

    def to_bytes(self) -> bytes:
        """The task as JSON."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(told | {"settings": self.settings.model_dump(mode="json")}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Task":
        """Reads what `to_bytes` wrote."""
        told = json.loads(raw)
        return cls(**{**told, "settings": Settings(**told["settings"])})

    @property
    def patience_s(self) -> float:
        """How long a child that is asked to end may take."""
        return self.settings.drain_s + self.settings.grace_s + KILL_AFTER_S


class Child:
    """One child: a process, and its next one when it dies."""

    def __init__(self, kind: str, task: Task) -> None:
        """Not started; `kind` is worker or control."""
        self.kind, self.task = kind, task
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0  # deaths in a row, each young
        self.retires_by = 0.0  # asked to end, and to be killed then; 0: not asked
        self._ear: Ear | None = None  # one a process
        self._started_at = 0.0
        self._restart_at = 0.0

    @property
    def ready(self) -> bool:
        """Whether it runs and has said that it can answer."""
        return self._ear is not None and self._ear.ready

    def start(self, now: float) -> None:
        """Starts a process where none runs and it is time for one."""
        if self.process is not None or now < self._restart_at or self.retires_by:
            return
        folder = State(self.task.settings.state).metrics
        self._ear = ear = Ear()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.process", self.kind],
            stdin=subprocess.PIPE,
            pass_fds=(ear.far_end,),
            env={
                **os.environ,
                "PROMETHEUS_MULTIPROC_DIR": str(folder.resolve()),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as told:  # it died already: seen at the next look
            told.write(replace(self.task, pulse=ear.far_end).to_bytes())
        ear.started()
        self._started_at = now

    def look_after(self, now: float) -> None:
        """Kills a process that is frozen, or takes too long to end."""
        if self.process is None or self._ear is None:
            return
        why = self._ear.frozen(self.process.pid, now) if self.kind == "worker" else ""
        if self.retires_by:
            why = "did not stop in time" if now > self.retires_by else ""
        if why:
            _log.error("%s %d is killed: %s", self.kind, self.process.pid, why)  # no traceback to show
            self.process.kill()  # also where it is stopped

    def retire(self, now: float) -> None:
        """Asks the process to end in order; no other follows it."""
        self.retires_by = now + self.task.patience_s
        if self.process is not None:
            self.process.terminate()

    def bury(self, now: float) -> str:
        """Notes a death: the next start comes at once the first time, ever later while it keeps dying young.

        Answers why it died; "" where the process lives, or there is none.
        """
        if self.process is None or self._ear is None or self.process.poll() is None:
            return ""
        state, pid = State(self.task.settings.state), self.process.pid
        why = state.take_end(pid) or f"exit code {self.process.returncode}"
        state.stop_beating(pid)
        self._ear.close()
        self.process = self._ear = None
        if self.retires_by:
            _log.info("%s %d has retired", self.kind, pid)
            return why
        self.failures = 1 if now - self._started_at > STEADY_S else self.failures + 1
        wait = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** (self.failures - 1)) * random.uniform(0.8, 1.2)  # noqa: S311
        _log.warning("%s %d ended: %s; next start in %.2f s", self.kind, pid, why, wait)
        self._restart_at = now + wait
        return why


def stop_all(children: Sequence[Child]) -> None:
    """Ends all in order, at once; kills who does not end in time."""
    running = [child for child in children if child.process is not None]
    for child in running:
        assert child.process is not None
        child.process.terminate()
    deadline = time.monotonic() + max((child.task.patience_s for child in running), default=0.0)
    for child in running:
        assert child.process is not None
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("%d did not stop in time and is killed", child.process.pid)  # no traceback to show
            child.process.send_signal(signal.SIGKILL)
            child.process.wait()
