"""Locust's closed users: each asks again when it was answered.

    locust -f loadtest/locustfile.py --host 127.0.0.1:50051

They ask what the open loop asks (loadtest/traffic.py). A slow server slows them down, so their latencies leave out what
an open loop would count. Locust rounds latencies to a millisecond and more; `--rows DIR` keeps each call as it was, and
`mantel loadtest --closed USERS` judges those. The token is that of MANTEL_TOKEN.
"""

import itertools
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import grpc
import grpc.experimental.gevent as grpc_gevent
import numpy as np
from locust import User, events, task
from pydantic import TypeAdapter

from loadtest import calls as calls_
from loadtest.calls import CALL
from loadtest.drive import Target
from loadtest.run import cpu_seconds, leave
from loadtest.script import GET_HOME, RECORD_EVENTS, Script
from loadtest.traffic import EVENTS, KINDS, Mix, draw
from protos.client import HomeClient, Tls
from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

grpc_gevent.init_gevent()  # locust has patched the standard library; now gRPC, before it makes anything

AHEAD: Final = 20_000  # steps drawn at once
PACE: Final = 0.01  # seconds between steps as they are drawn, which decides whom events and next pages follow


def _options(parser: Any) -> None:
    parser.add_argument("--listeners", metavar="FILE", help="user ids, one a line, who asks most first; else strangers")
    parser.add_argument(
        "--mix", metavar="JSON", default="{}", help="the shares of the traffic, as loadtest.traffic.Mix"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed asks the same")
    parser.add_argument("--name", default="locust", help="names the run in the ids of its events")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for each call")
    parser.add_argument("--think", type=float, default=0.0, help="seconds of each user between calls")
    parser.add_argument("--grpc-ca", metavar="FILE", help="CA of the server's certificate: connect with TLS")
    parser.add_argument("--grpc-cert", metavar="FILE", help="certificate that says who calls")
    parser.add_argument("--grpc-key", metavar="FILE", help="its private key")
    parser.add_argument("--rows", metavar="DIR", help="leave every call here, as numpy rows")


class Conversation:
    """What all users of this process ask, one step after the other, and what came of it."""

    def __init__(self, options: Namespace) -> None:
        listeners = Path(options.listeners).read_text().split() if options.listeners else []
        self._mix, self._listeners = TypeAdapter(Mix).validate_json(options.mix), listeners
        self._options, self._rounds = options, itertools.count()
        self.rows: list[Any] = []
        self.started, self.cpu = time.monotonic(), cpu_seconds()
        self._steps = iter(range(0))
        self.script: Script

    def step(self) -> tuple[Script, int]:
        """The next step, and whose script it is of."""
        step = next(self._steps, None)
        if step is None:
            number = next(self._rounds)
            rng = np.random.default_rng([self._options.seed, os.getpid() if number else 0, number])
            steps = draw(self._mix, len(self._listeners), np.arange(AHEAD, dtype=np.float64) * PACE, rng)
            run = f"{self._options.name}-{os.getpid()}-{number}"
            self.script = Script(steps, self._mix, self._listeners, run=run)
            self._steps = iter(range(AHEAD))
            step = next(self._steps)
        return self.script, step


_conversation: list[Conversation] = []  # of this process, from the start of the test


def _begin(environment: Any, **_: Any) -> None:
    _conversation[:] = [Conversation(environment.parsed_options)]


def _end(environment: Any, **_: Any) -> None:
    folder = environment.parsed_options.rows
    if folder and _conversation:
        found = _conversation[0]
        rows = np.concatenate(found.rows) if found.rows else np.zeros(0, CALL)
        busy = (cpu_seconds() - found.cpu) / (time.monotonic() - found.started)
        leave(Path(folder), f"{os.getpid()}", rows, busy)


_when: Any = events  # which publishes no types
_when.init_command_line_parser.add_listener(_options)
_when.test_start.add_listener(_begin)
_when.quitting.add_listener(_end)


class Listener(User):
    """One user on a connection shared with the others of its process."""

    _shared: ClassVar[list[HomeClient]] = []

    def on_start(self) -> None:
        """Connects, where no user of this process has."""
        options = self.environment.parsed_options
        self._talk = _conversation[0]
        self._target = Target(
            address=self.host or "127.0.0.1:50051", token=os.environ.get("MANTEL_TOKEN", ""), timeout_s=options.timeout
        )
        if not self._shared:
            files = (options.grpc_ca, options.grpc_key, options.grpc_cert)
            root, key, certificate = (Path(file).read_bytes() if file else None for file in files)
            tls = Tls(root=root, key=key, certificate=certificate) if root or certificate else None
            self._shared.append(HomeClient(self._target.address, tls=tls))
        channel = self._shared[0].channel
        self._methods: dict[str, Callable[..., bytes]] = {
            method: channel.unary_unary(method) for method in (GET_HOME, RECORD_EVENTS)
        }

    def wait_time(self) -> float:
        """Seconds until the next call."""
        return float(self.environment.parsed_options.think)

    @task
    def ask(self) -> None:
        """Makes the next call of the conversation."""
        script, step = self._talk.step()
        asked = script.ask(step)
        rows, error, answer = np.zeros(1, CALL), None, b""
        row, sent = rows[0], time.monotonic()
        try:
            answer = self._methods[asked.method](
                asked.request, timeout=self._target.timeout_s, metadata=self._target.metadata(asked.kind)
            )
        except grpc.RpcError as failure:
            error = failure
            row["code"] = calls_.number_of(failure.code())
        done = time.monotonic()
        row["kind"], row["bytes"] = asked.kind, len(answer)
        row["due"] = row["sent"] = sent - self._talk.started
        row["done"] = done - self._talk.started
        if error is None and asked.kind == EVENTS:
            calls_.note_outcomes(row, events_pb2.RecordEventsResponse.FromString(answer))
        elif error is None:
            page = home_pb2.GetHomeResponse.FromString(answer)
            calls_.note_page(row, page)
            script.answered(step, page)
        self._talk.rows.append(rows)
        self.environment.events.request.fire(
            request_type="grpc",
            name=KINDS[asked.kind],
            response_time=(done - sent) * 1000,
            response_length=len(answer),
            exception=error,
            context={},
        )
