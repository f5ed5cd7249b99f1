"""What `mantel bench` compares, each server on one core: ceilings, pages by preset, and the twin."""

import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Final

import grpc
import numpy as np
import uvloop

from features.errors import WrongState
from loadtest import contest, machine
from loadtest.connections import GrpcConnection, HttpConnection
from loadtest.contest import SHELVES, Contestant, Plan, Progress
from loadtest.contest_knee import Knee, find
from loadtest.contest_verdict import Contest, judge
from loadtest.generator import Load, Target, closed, opened
from loadtest.stages import drawn
from protos.home.v1 import home_pb2
from server.cli_bench_world import Ground
from server.cli_contest_books import Books, Live, books
from server.cli_contest_servers import HOST, Ours, Serving, keeping_to, serving, started

GET_HOME: Final = "/mantel.home.v1.HomeService/GetHome"
CEILING, CEILING_SYNC, TWIN = "ceiling: grpc.aio", "ceiling: grpcio sync", "twin: FastAPI, plain"
PLAIN, FULL = "GetHome, plain", "GetHome, full"
ROLES: Final = {"ceiling": CEILING, "plain": PLAIN, "full": FULL, "twin": TWIN}
PEERS: Final = {"litserve": "LitServe, plain", "bentoml": "BentoML, plain"}  # package -> row
KINDS: Final = {CEILING: "ceiling", CEILING_SYNC: "ceiling", PLAIN: "ours", FULL: "ours", TWIN: "peer"} | dict.fromkeys(
    PEERS.values(), "peer"
)
PRESETS: Final = {PLAIN: "plain", FULL: "full"}
NEEDS: Final = ("fastapi", "uvicorn", "orjson", "httptools")
REQUESTS: Final = 4096  # listeners drawn by Zipf's law, sent in turn
SEED: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Everybody who runs, and the processes on the load's core that work for them."""

    contestants: tuple[Contestant, ...]
    cores: tuple[int, int]  # of the servers, and of the load
    helpers: frozenset[int]
    twin_port: int | None  # None: its packages are missing
    books: Books  # in force on ours


@contextmanager
def field(on: Ground) -> Iterator[Field]:
    """Everybody, from started to stopped.

    Meanwhile this process keeps to the load's core.

    Raises:
        WrongState: there is one core only, so that load and server would share it.
    """
    cores, room, names = two_cores(), on.room, asking(on.records)
    usual = default(on, names)
    asked, live = usual.requests, usual.books
    with ExitStack() as stack:
        ours = {
            name: stack.enter_context(serving(replace(usual, name=name, preset=preset), cores, room=room / preset))
            for name, preset in PRESETS.items()
        }
        answer = room / "answer.bin"
        answer.write_bytes(_answered(ours[PLAIN], asked[0]))
        found = [
            _grpc(name, *stack.enter_context(started(cores, "loadtest.ceiling", kind, str(answer))), asked, "")
            for name, kind in ((CEILING, "aio"), (CEILING_SYNC, "sync"))
        ]
        found += [contestant(name, one, asked) for name, one in ours.items()]
        twin_port = None
        if all(find_spec(name) for name in NEEDS):
            plain = ours[PLAIN]
            words = (str(on.folder), plain.redis_url, plain.token, str(SHELVES), "plain")
            twin_port, pids = stack.enter_context(started(cores, "loadtest.twin", *words))
            found.append(_http(TWIN, twin_port, pids, names, plain.token))
            for package, row in PEERS.items():
                if find_spec(package):
                    port, pids = stack.enter_context(started(cores, f"loadtest.peer_{package}", *words))
                    found.append(replace(_http(row, port, pids, names, plain.token), rests=True))
        helpers = frozenset().union(*(one.helpers for one in ours.values()))
        stack.enter_context(keeping_to(cores[1]))
        yield Field(contestants=tuple(found), cores=cores, helpers=helpers, twin_port=twin_port, books=live)


def two_cores() -> tuple[int, int]:
    """The servers' core and the load's.

    Raises:
        WrongState: there is one core only.
    """
    if (cores := machine.cores()) is None:
        raise WrongState("there is one core only: load and server need one each")
    return cores


def asking(records: Mapping[str, bytes]) -> list[str]:
    """Who asks, in turn: listeners drawn by Zipf's law, the same in every run."""
    return [user for user, _ in drawn(sorted(records), REQUESTS, np.random.default_rng(SEED))]


def default(on: Ground, names: Sequence[str], live: Live | None = None) -> Ours:
    """A server with nothing changed, who asks it, and what runs on it; `live`: in place of the rules'."""
    wanted = Live(**contest.rules()["live"]) if live is None else live
    return Ours(
        name=FULL,
        folder=on.folder,
        books=books(wanted, on.snapshot, [on.records[name] for name in names]),
        requests=tuple(home_pb2.GetHomeRequest(user_id=user).SerializeToString() for user in names),
    )


def contestant(name: str, one: Serving, asked: tuple[bytes, ...]) -> Contestant:
    """A server of ours, with its token, to be loaded."""
    return _grpc(name, one.port, one.workers, asked, one.token)


def gets_home(port: int, asked: tuple[bytes, ...], token: str, headers: Sequence[tuple[str, str]] = ()) -> Target:
    """A port whose pages are asked for, with a token unless it is empty."""
    bearer = [("authorization", f"Bearer {token}")] if token else []
    connect_ = partial(GrpcConnection, f"{HOST}:{port}", GET_HOME, [*bearer, *headers])
    return Target(host=HOST, port=port, connect=connect_, requests=asked, shares_connections=True)


def told(live: Books) -> Mapping[str, float]:
    """What runs, as conditions tell it."""
    return asdict(live.live) | {"eligible": live.eligible}


def raced(everybody: Field, plan: Plan, tell: Progress) -> Contest:
    """Measures everybody in turns, and judges."""
    run = contest.run(everybody.contestants, plan, cores=everybody.cores, helpers=everybody.helpers, progress=tell)
    rows = uvloop.run(run)
    spent = {} if everybody.twin_port is None else _twin_stages(everybody.twin_port)
    return Contest(
        rows=rows, verdict=judge(rows, ROLES, contest.rules()), twin_stages=spent, live=told(everybody.books)
    )


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


def _twin_stages(port: int) -> Mapping[str, float]:
    """Microseconds of the twin by stage, mean over all that it served."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/stages", timeout=10) as answer:  # our own
        return dict(json.load(answer))


def _grpc(name: str, port: int, pids: frozenset[int], asked: tuple[bytes, ...], token: str) -> Contestant:
    return Contestant(name=name, target=gets_home(port, asked, token), pids=pids)


def _http(name: str, port: int, pids: frozenset[int], names: Sequence[str], token: str) -> Contestant:
    headers = [("authorization", f"Bearer {token}")]
    connect_ = partial(HttpConnection, f"{HOST}:{port}", "/home", headers)
    asked = tuple(f'{{"user_id": "{user}"}}'.encode() for user in names)
    target = Target(host=HOST, port=port, connect=connect_, requests=asked, shares_connections=False)
    return Contestant(name=name, target=target, pids=pids)


def _answered(one: Serving, request: bytes) -> bytes:
    """The bytes of a page, as a stock client gets them."""
    with grpc.insecure_channel(f"{HOST}:{one.port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(GET_HOME)
        return call(request, metadata=(("authorization", f"Bearer {one.token}"),), timeout=30)
