"""Locust's closed users as a run: `locust` in a process of its own, its calls judged as those of the open loop."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from loadtest.run import Measured, Plan, RunFailed, Tell, collect
from loadtest.traffic import Mix
from protos.client import Tls

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
START_S: Final = 3.0  # Locust counts its run time from before its users start
LAST_WORDS: Final = 2000  # characters of what Locust said


def play_closed(plan: Plan, users: int, folder: Path, tell: Tell) -> Measured:
    """Runs Locust's users for as long as the plan says; its rate says nothing here.

    Raises:
        RunFailed: Locust did not run.
    """
    total = plan.warm_up_s + plan.shape.duration
    words = {
        "--host": plan.target.address,
        "--users": str(users),
        "--spawn-rate": str(users),
        "--run-time": f"{total + START_S:.0f}s",
        "--stop-timeout": f"{plan.target.timeout_s + 1:.0f}",
        "--exit-code-on-error": "0",
        "--listeners": str(plan.listeners),
        "--mix": TypeAdapter(Mix).dump_json(plan.mix).decode(),
        "--seed": str(plan.seed),
        "--name": plan.run,
        "--timeout": str(plan.target.timeout_s),
        "--rows": str(folder),
    } | ({"--processes": str(plan.processes)} if plan.processes > 1 else {})
    with tempfile.TemporaryFile() as said:
        locust = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "locust",
                "-f",
                str(LOCUSTFILE),
                "--headless",
                "--only-summary",
                *_words(plan, words, folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, "MANTEL_TOKEN": plan.target.token},
        )
        try:
            start = time.monotonic()
            while locust.poll() is None:
                tell("users", int(min(time.monotonic() - start, total)), int(total))
                time.sleep(0.2)
        finally:
            locust.kill()
            locust.wait()
        if locust.returncode or not list(folder.glob("*.npy")):
            said.seek(0)
            raise RunFailed(f"locust failed: {said.read().decode(errors='replace')[-LAST_WORDS:]}")
    return collect(folder, since=plan.warm_up_s, seconds=plan.shape.duration, closed=True)


def _words(plan: Plan, words: dict[str, str], folder: Path) -> list[str]:
    """The options as Locust takes them; what TLS needs goes by files of a folder that is ours alone."""
    tls = plan.target.tls or Tls()
    for flag, content in (("--grpc-ca", tls.root), ("--grpc-cert", tls.certificate), ("--grpc-key", tls.key)):
        if content is not None:
            file = folder / f"{flag.removeprefix('--')}.pem"
            file.write_bytes(content)
            words = words | {flag: str(file)}
    return [word for pair in words.items() for word in pair]
