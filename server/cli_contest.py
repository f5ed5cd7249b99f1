"""What `mantel bench` compares, each server on one core: ceilings, pages by preset, and the twin."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import uvloop

from features.embedded_redis import attached
from features.errors import Unavailable, WrongState
from features.keys import Keys
from features.offline.publish import connect, publish
from features.state import State
from loadtest import contest, machine
from loadtest.connections import GrpcConnection, HttpConnection
from loadtest.contest import SHELVES, Contestant, Plan, Progress
from loadtest.contest_knee import Knee, find
from loadtest.contest_verdict import Contest, judge
from loadtest.generator import Load, Target, closed, opened
from loadtest.stages import drawn
from protos.home.v1 import home_pb2
from server.identity import development_token
from server.launch import running

GET_HOME: Final = "/mantel.home.v1.HomeService/GetHome"
CEILING, CEILING_SYNC, TWIN = "ceiling: grpc.aio", "ceiling: grpcio sync", "twin: FastAPI, plain"
PLAIN, FULL = "GetHome, plain", "GetHome, full"
ROLES: Final = {"ceiling": CEILING, "plain": PLAIN, "full": FULL, "twin": TWIN}
PRESETS: Final = {PLAIN: "plain", FULL: "full"}
NEEDS: Final = ("fastapi", "uvicorn", "orjson", "httptools")
REQUESTS: Final = 4096  # listeners drawn by Zipf's law, sent in turn
SEED: Final = 7
UNLIMITED: Final = {"admission-limit": "2048"}  # more calls than the bench sends: what is compared is not refused
START_S: Final = 120.0
_HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Everybody who runs, and the processes on the load's core that work for them."""

    contestants: tuple[Contestant, ...]
    cores: tuple[int, int]  # of the servers, and of the load
    helpers: frozenset[int]
    twin_port: int | None  # None: its packages are missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server of ours that runs."""

    port: int
    token: str
    workers: frozenset[int]
    helpers: frozenset[int]
    redis_url: str


@contextmanager
def field(folder: Path, users: Sequence[str], *, room: Path) -> Iterator[Field]:
    """Everybody, from started to stopped: a snapshot folder with its records, served from within `room`.

    Meanwhile this process keeps to the load's core.

    Raises:
        WrongState: there is one core only, so that load and server would share it.
    """
    cores = machine.cores()
    if cores is None:
        raise WrongState("there is one core only: load and server need one each")
    names = _names(users)
    asked = asked_of(users)
    with ExitStack() as stack:
        ours = {
            name: stack.enter_context(serving(folder, preset, cores, room=room, flags=UNLIMITED))
            for name, preset in PRESETS.items()
        }
        answer = room / "answer.bin"
        answer.write_bytes(_answered(ours[PLAIN], asked[0]))
        found = [
            _grpc(name, *stack.enter_context(_started(cores, "loadtest.ceiling", kind, str(answer))), asked, "")
            for name, kind in ((CEILING, "aio"), (CEILING_SYNC, "sync"))
        ]
        found += [_grpc(name, one.port, one.workers, asked, one.token) for name, one in ours.items()]
        twin_port = None
        if all(find_spec(name) for name in NEEDS):
            plain = ours[PLAIN]
            words = (str(folder), plain.redis_url, plain.token, str(SHELVES), "plain")
            twin_port, pids = stack.enter_context(_started(cores, "loadtest.twin", *words))
            found.append(_twin(twin_port, pids, names, plain.token))
        helpers = frozenset().union(*(one.helpers for one in ours.values()))
        stack.enter_context(keeping_to(cores[1]))
        yield Field(contestants=tuple(found), cores=cores, helpers=helpers, twin_port=twin_port)


def raced(everybody: Field, plan: Plan, tell: Progress) -> Contest:
    """Measures everybody in turns, and judges."""
    run = contest.run(everybody.contestants, plan, cores=everybody.cores, helpers=everybody.helpers, progress=tell)
    rows = uvloop.run(run)
    spent = {} if everybody.twin_port is None else _twin_stages(everybody.twin_port)
    return Contest(rows=rows, verdict=judge(rows, ROLES, contest.rules()), twin_stages=spent)


def sought(everybody: Field, tell: Progress) -> Knee | None:
    """The knee of full pages, searched for below what a closed loop reaches; None where the machine is not steady."""
    targets = {one.name: one.target for one in everybody.contestants}
    seeds = count(SEED)

    async def probe(name: str, rate: float, seconds: float) -> Load:
        return await opened(targets[name], rate=rate, seconds=seconds, seed=next(seeds))

    async def search() -> Knee | None:
        rules = contest.rules()["knee"]
        await closed(targets[FULL], in_flight=16, seconds=rules["search_s"])  # warms up
        most = (await closed(targets[FULL], in_flight=64, seconds=rules["search_s"])).rate
        ours, constant = partial(probe, FULL), partial(probe, CEILING)
        return await find(ours, constant, most=most, rules=rules, progress=tell)

    return uvloop.run(search())


def asked_of(users: Sequence[str]) -> tuple[bytes, ...]:
    """Requests for pages, by Zipf's law."""
    return tuple(home_pb2.GetHomeRequest(user_id=user).SerializeToString() for user in _names(users))


def _names(users: Sequence[str]) -> list[str]:
    return [user for user, _ in drawn(users, REQUESTS, np.random.default_rng(SEED))]


@contextmanager
def keeping_to(core: int) -> Iterator[None]:
    """Keeps this process on a core meanwhile."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _twin_stages(port: int) -> Mapping[str, float]:
    """Microseconds of the twin by stage, mean over all that it served."""
    with urllib.request.urlopen(f"http://{_HOST}:{port}/stages", timeout=10) as answer:  # our own
        return dict(json.load(answer))


@contextmanager
def serving(
    folder: Path, preset: str, cores: tuple[int, int], *, room: Path, flags: Mapping[str, str]
) -> Iterator[Serving]:
    """`mantel serve` with one worker on the server's core; Redis and the control plane are on the load's."""
    state = State(room / preset)
    with attached(state) as url, connect(url) as client:
        publish(folder, state, client, Keys(), progress=lambda *_: None, keep_records=True)
        store = int(_told(client.info("server"))["process_id"])
        machine.keep_to(store, cores[1])
        ports = dict.fromkeys(("port", "control-port", "metrics-port"), "0")
        own = {"surfaces": str(SHELVES), "preset": preset, "workers": "1", **ports}
        with running(state, {**own, **flags}, log=room / "serve.log") as endpoints:
            workers = frozenset(beat.pid for beat in state.heartbeats())
            family = {endpoints.pid, *_children(endpoints.pid)}
            for pid in family:
                machine.keep_to(pid, cores[0] if pid in workers else cores[1])
            yield Serving(
                port=int(endpoints.target.rpartition(":")[2]),
                token=development_token(state),
                workers=workers,
                helpers=frozenset({store, *(family - workers)}),
                redis_url=url,
            )


@contextmanager
def _started(cores: tuple[int, int], module: str, *words: str) -> Iterator[tuple[int, frozenset[int]]]:
    """A module that prints its port, as a process on the server's core: port and process id."""
    own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, env={**os.environ, **own}
    ) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            if not told:
                raise Unavailable(f"{module} does not start; what it said stands above")
            _until_it_listens(int(told))
            machine.keep_to(process.pid, cores[0])
            yield int(told), frozenset({process.pid})
        finally:
            process.terminate()


def _until_it_listens(port: int) -> None:
    """Waits until a connection is taken: a socket that is bound but not listening refuses."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((_HOST, port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _grpc(name: str, port: int, pids: frozenset[int], asked: tuple[bytes, ...], token: str) -> Contestant:
    return Contestant(name=name, target=gets_home(port, asked, token), pids=pids)


def gets_home(port: int, asked: tuple[bytes, ...], token: str, headers: Sequence[tuple[str, str]] = ()) -> Target:
    """A port whose pages are asked for, with a token unless it is empty."""
    bearer = [("authorization", f"Bearer {token}")] if token else []
    connect_ = partial(GrpcConnection, f"{_HOST}:{port}", GET_HOME, [*bearer, *headers])
    return Target(host=_HOST, port=port, connect=connect_, requests=asked, shares_connections=True)


def _twin(port: int, pids: frozenset[int], names: Sequence[str], token: str) -> Contestant:
    headers = [("authorization", f"Bearer {token}")]
    connect_ = partial(HttpConnection, f"{_HOST}:{port}", "/home", headers)
    asked = tuple(f'{{"user_id": "{user}"}}'.encode() for user in names)
    target = Target(host=_HOST, port=port, connect=connect_, requests=asked, shares_connections=False)
    return Contestant(name=TWIN, target=target, pids=pids)


def _answered(one: Serving, request: bytes) -> bytes:
    """The bytes of a page, as a stock client gets them."""
    with grpc.insecure_channel(f"{_HOST}:{one.port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET_HOME)
        return call(request, metadata=(("authorization", f"Bearer {one.token}"),), timeout=30)


def _told(info: Any) -> Mapping[str, Any]:
    """What Redis tells of itself; its client's types say that it may be a promise of it."""
    return dict(info)


def _children(pid: int) -> set[int]:
    """The child processes of a process."""
    return {int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()}
