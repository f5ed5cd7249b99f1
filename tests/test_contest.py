"""The bench's own instruments: what they count is what servers did, and the twin answers our page."""

import asyncio
import json
import os
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from features.listeners import decode
from features.snapshot import Snapshot
from loadtest import machine
from loadtest.connections import Connection, GrpcConnection, HttpConnection
from loadtest.contest import SHELVES, Row, plan_of, rules
from loadtest.contest_knee import STEP, find
from loadtest.contest_tries import repeated
from loadtest.contest_verdict import Contest, judge
from loadtest.generator import Load, Target, closed, opened
from loadtest.h2load import found
from protos.home.v1 import home_pb2
from ranking.offers import MIN_PLAYS
from server.cli import app
from server.cli_contest import ROLES
from server.cli_contest_books import Live, books
from server.cli_contest_servers import started
from tests.conftest import Served, Store, quiet, serving
from tests.test_failures import handled, silent
from tests.wire import GET_HOME, call, eventually

USERS = [f"u{number:07}" for number in range(1, 41)]
ASKED = tuple(home_pb2.GetHomeRequest(user_id=user).SerializeToString() for user in USERS)


def target(served: Served, path: str = GET_HOME, *, token: str | None = None) -> Target:
    """A served port, called by frames."""
    port = served.plane.transport.port
    headers = [("authorization", f"Bearer {served.token if token is None else token}")]
    connect = partial(GrpcConnection, f"127.0.0.1:{port}", path, headers)
    return Target(host="127.0.0.1", port=port, connect=connect, requests=ASKED, shares_connections=True)


@pytest.mark.parametrize("in_flight", [1, 20])
async def test_a_closed_loop_counts_what_the_server_answered(served: Served, in_flight: int) -> None:
    """One latency for each call that the server ended as OK; the payload is a page's."""
    load = await closed(target(served), in_flight=in_flight, seconds=0.5)
    assert load.failed == 0
    assert len(load.latencies) >= in_flight
    assert handled(served, grpc.StatusCode.OK) == len(load.latencies)
    page = await call(served.channel, GET_HOME, ASKED[0], metadata=served.metadata)
    assert 0.5 * len(page.answer) < load.payload < 2 * len(page.answer)
    assert load.latencies.min() > 0
    assert load.rate == pytest.approx(len(load.latencies) / load.seconds)


async def test_an_open_loop_sends_all_that_is_due(served: Served) -> None:
    """As many calls as the rate asks for, each answered; latency counts from when it was due, so never less than 0."""
    load = await opened(target(served), rate=40, seconds=1.0, seed=3, patience_s=60)
    assert (load.failed, len(load.latencies)) == (0, 40)
    assert handled(served, grpc.StatusCode.OK) == 40
    assert load.latencies.min() > 0
    assert load.late_s >= 0


@pytest.mark.parametrize(("path", "token"), [(GET_HOME, "x"), (f"{GET_HOME}s", None)])
async def test_a_call_that_fails_is_no_answer(standing: Served, path: str, token: str | None) -> None:
    """UNAUTHENTICATED and UNIMPLEMENTED come as HTTP 200, and count as failed even so."""
    load = await closed(target(standing, path, token=token), in_flight=3, seconds=0.1)
    assert (load.failed, len(load.latencies)) == (3, 0)


async def test_what_is_under_way_when_a_server_goes_has_failed(served: Served, published: Store) -> None:
    """A closed connection ends the load at once, and is counted."""
    with silent(published):
        loading = asyncio.create_task(closed(target(served), in_flight=4, seconds=60))
        await eventually(lambda: not served.plane.batcher._idle.is_set())
        await served.plane.transport.stop(0)
        load = await loading
    assert load.failed == 4


@asynccontextmanager
async def http(answer: Callable[[int], bytes]) -> AsyncIterator[Target]:
    """A server of HTTP/1.1 that answers the nth request of all with these bytes, split where it hurts."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while not reader.at_eof():
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break  # the client is done
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert await reader.readexactly(size) in ASKED
            told, count = answer(count), count + 1
            for part in (told[:9], told[9:30], told[30:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connect: Callable[[], Connection] = partial(HttpConnection, f"127.0.0.1:{port}", "/home", [])
    yield Target(host="127.0.0.1", port=port, connect=connect, requests=ASKED, shares_connections=False)
    server.close()


async def test_http_answers_are_counted_whole() -> None:
    """An answer in pieces is one; a status other than 200 has failed."""
    told = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    async with http(lambda number: told if number != 50 else told.replace(b"200 OK", b"500 NO")) as one:
        load = await closed(one, in_flight=2, seconds=0.5)
    assert load.failed == 1
    assert load.payload * len(load.latencies) == pytest.approx(5 * (len(load.latencies) + 1))


def row(name: str, rate: float, *, in_flight: int = 64, busy: bool = False) -> Row:
    """A row of a quiet machine, unless it is busy, on which all else is equal."""
    return Row(
        name=name,
        in_flight=in_flight,
        rate=rate,
        spread=0.0,
        cpu_us=1e6 / rate,
        server_busy=1.0,
        p50_ms=1.0,
        p99_ms=2.0,
        payload=10_000,
        failed=0,
        generator_busy=0.3,
        others=0.5 if busy else 0.0,
        busiest=1.0,
    )


QUIET = [row(ROLES["ceiling"], 1000), row(ROLES["plain"], 900), row(ROLES["full"], 600), row(ROLES["twin"], 300)]


def test_a_verdict_compares_at_the_most_calls_in_flight() -> None:
    """Floors stand: 0; one missed: 1; rows with fewer calls in flight count for nothing; no twin, no figure of it."""
    few = [row(name, 1, in_flight=1) for name in ROLES.values()]
    verdict = judge([*few, *QUIET], ROLES, rules())
    assert {one.name: round(one.value, 3) for one in verdict.figures} == {
        "plain_to_ceiling": 0.9,
        "full_to_plain_cpu": 1.5,
        "plain_to_twin": 3.0,
    }
    assert verdict.exit_code == 0
    slow = [row(ROLES["plain"], 100) if one.name == ROLES["plain"] else one for one in QUIET]
    assert judge(slow, ROLES, rules()).exit_code == 1
    assert len(judge(QUIET[:3], ROLES, rules()).figures) == 2


@pytest.mark.parametrize("change", [{"others": 0.5}, {"generator_busy": 0.95}, {"failed": 1}])
def test_there_is_no_verdict_of_a_busy_machine(change: dict[str, float]) -> None:
    """Others on a core, a generator at its limit, a call that failed: exit code 2, and the reason is told."""
    verdict = judge([replace(QUIET[0], **change), *QUIET[1:]], ROLES, rules())  # type: ignore[arg-type]  # of fields
    assert (verdict.exit_code, len(verdict.doubts)) == (2, 1)


@pytest.mark.parametrize(
    ("seen", "told", "code"),
    [
        ([0.9, 0.8, 0.3], 0.8, 0),  # three of three
        ([0.9, None, 0.3, None, 0.2], 0.3, 1),  # the median misses a floor
        ([None, 0.9, None, None, 0.8, None], 0.8, 2),  # two of six are too few
        ([None] * 6, 0.5, 2),
    ],
)
def test_figures_to_quote_are_of_the_median_of_three_verdicts(seen: list[float | None], told: float, code: int) -> None:
    """Runs of a busy machine (none) are repeated, six in all at most."""
    left = iter(seen)

    def run() -> Contest:
        value = next(left)
        rows = [row(ROLES["ceiling"], 1000, busy=value is None), row(ROLES["plain"], 1000 * (value or 0.5)), *QUIET[2:]]
        return Contest(rows=tuple(rows), verdict=judge(rows, ROLES, rules()), twin_stages={}, live={})

    tries = repeated(run, rules()["quotable"])
    assert len(tries.runs) == len(seen)
    assert tries.median.verdict.value("plain_to_ceiling") == pytest.approx(told)
    assert tries.exit_code == code


@pytest.mark.parametrize("knee", [90.0, 400.0, 955.0])
async def test_the_knee_is_found_where_latency_breaks(knee: float) -> None:
    """Within two steps below the rate at which p99 breaks; never above it; then the share of it is measured."""
    asked: list[tuple[float, float]] = []

    async def probe(rate: float, seconds: float) -> Load:
        asked.append((rate, seconds))
        latencies = np.full(100, 0.004 if rate <= knee else 0.1)
        return Load(seconds=seconds, failed=0, latencies=latencies, payload=1.0, busy=0.1, late_s=0.0001)

    limits = rules()["knee"]
    found = await find(probe, probe, most=1000.0, rules=limits, progress=quiet)
    assert found is not None
    assert (1 - 2 * STEP) * knee <= found.rate <= knee
    assert asked.count((found.rate, limits["confirm_s"])) == 3
    assert asked.count((limits["share"] * found.rate, limits["search_s"])) == 2 * limits["runs"]
    assert found.p99_ms == found.constant_p99_ms == pytest.approx(4.0)


@pytest.mark.parametrize("holds", [0.0, 0.7])
async def test_an_unsteady_machine_has_no_knee(holds: float) -> None:
    """Where p99 breaks at every rate, or now and then, the search ends, without one."""
    rng, runs = np.random.default_rng(5), list[float]()

    async def probe(rate: float, seconds: float) -> Load:
        runs.append(rate)
        good = seconds == rules()["knee"]["search_s"] or (len(runs) % 3 > 0 and rng.random() < holds)
        latencies = np.full(10, 0.004 if good and holds else 0.1)
        return Load(seconds=seconds, failed=0, latencies=latencies, payload=1.0, busy=0.1, late_s=0.0)

    assert await find(probe, probe, most=1000.0, rules=rules()["knee"], progress=quiet) is None
    assert len(runs) < 40


def test_the_rules_have_both_plans() -> None:
    """Each plan says all that a plan says; every floor has its aim."""
    assert plan_of("rounds").seconds > plan_of("quick").seconds
    assert rules()["floors"].keys() == rules()["aims"].keys()


def test_a_process_is_told_from_others_on_its_core() -> None:
    """What this process uses is not of others; what it does not use is not its own."""
    core = max(os.sched_getaffinity(0))
    mine, nobody = frozenset({os.getpid()}), frozenset[int]()
    before = machine.read(mine, core), machine.read(nobody, core)
    sum(number * number for number in range(1_000_000))
    after = machine.read(mine, core), machine.read(nobody, core)
    assert after[0].processes >= before[0].processes
    assert after[1].processes == 0
    assert 0 <= machine.others_share(before[0], after[0]) <= 1.01


@pytest.mark.parametrize(
    ("module", "needs", "group"),
    [
        ("twin", ("fastapi", "uvicorn", "orjson"), "bench"),
        ("peer_litserve", ("litserve", "orjson"), "peers"),
        ("peer_bentoml", ("bentoml", "orjson"), "peers"),
    ],
)
async def test_the_twin_and_its_peers_answer_our_page(
    published: Store, built: Path, module: str, needs: tuple[str, ...], group: str
) -> None:
    """The same items on the same shelves under the same titles, for listeners known and unknown; a stranger: 401."""
    if not all(find_spec(name) for name in needs):
        pytest.skip(f"the group {group} is not installed")
    words, core = (str(built), published.url, "token", str(SHELVES), "plain"), max(os.sched_getaffinity(0))
    with started((core, core), f"loadtest.{module}", *words) as (port, _):
        async with serving(published.state, published.url, surfaces=SHELVES, preset="plain") as served:
            for user in (*USERS[:10], "nobody"):
                theirs = json.loads(await asyncio.to_thread(posted, port, user))
                same_page(theirs, await served.get_home(user))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            await asyncio.to_thread(posted, port, USERS[0], "another")


def same_page(theirs: dict[str, Any], ours: home_pb2.GetHomeResponse) -> None:
    """What the twin answers is our page."""
    heads = [(one["id"], one["title"]) for one in theirs["shelves"]]
    assert heads == [(one.id, one.title) for one in ours.shelves]
    assert theirs["cold_start"] == ours.cold_start
    for one, shelf in zip(theirs["shelves"], ours.shelves, strict=True):
        assert [item["item_id"] for item in one["items"]] == [item.item_id for item in shelf.items]
        assert np.allclose([item["score"] for item in one["items"]], [item.score for item in shelf.items], 1e-4)


def posted(port: int, user: str, token: str = "token") -> bytes:  # noqa: S107  # of a twin under test
    """What a twin answers for a listener."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/home",
        data=json.dumps({"user_id": user}).encode(),
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # by HTTP
        return bytes(answer.read())


def test_campaigns_are_open_to_the_share_that_is_asked_for(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """Whole segments come close to it from below; each campaign has its items, and every experiment listeners."""
    frames = [records[name] for name in sorted(records)]
    live = books(Live(experiments=6, campaigns=3, items=4, eligible=0.4), snapshot, frames)
    manifest = snapshot.manifest
    listeners = decode(frames, space_id=snapshot.space_id, dimension=manifest.dimension, genres=len(manifest.genres))
    (segments,) = {tuple(one.segments) for one in live.promotions.campaigns}
    told = np.isin(listeners.segment, segments) & (listeners.total_plays >= MIN_PLAYS)
    assert live.eligible == pytest.approx(told.mean())
    assert 0.2 < live.eligible <= 0.4
    assert [len({item.item_id for item in one.items}) for one in live.promotions.campaigns] == [4, 4, 4]
    assert Counter(one.layer for one in live.experiments.experiments) == {
        "layer-0": 2,
        "layer-1": 2,
        "layer-2": 1,
        "layer-3": 1,
    }
    assert [round(one.reserved, 2) for one in live.experiments.experiments] == [0.5, 0.5, 1, 1, 0.5, 0.5]


def test_the_bench_loads_everybody_and_judges(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is measured with each number of calls in flight; the exit code is the verdict; the snapshot stays whole."""
    if machine.cores() is None:
        pytest.skip("this machine has one core")
    for name, patience_ms in (("REDIS_TIMEOUT_MS", "10000"), ("DEFAULT_DEADLINE_MS", "20000")):
        monkeypatch.setenv(f"MANTEL_{name}", patience_ms)  # the machine may be busy
    before = sorted(path.name for path in built.rglob("*"))
    words = ["bench", "--data", str(built), "--state", str(tmp_path / "state"), "--rounds", "1", "--seconds", "0.5"]
    allowed = os.sched_getaffinity(0)
    words += ["--in-flight", "1", "--in-flight", "4", "--svg", str(tmp_path / "bench.svg")]
    done = CliRunner().invoke(app, [*words, "--quick", "--json"])
    told = json.loads(done.stdout)
    assert json.loads((tmp_path / "bench.json").read_bytes()) == told
    picture = ET.parse(tmp_path / "bench.svg")  # noqa: S314  # our own
    words_drawn = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert words_drawn >= {f"{one['cpu_us']:,.0f}" for one in told["rows"]} | {one["name"] for one in told["rows"]}
    assert told["live"]["campaigns"] == rules()["live"]["campaigns"]
    assert 0 < told["live"]["eligible"] < 1
    found = {(one["name"], one["in_flight"]) for one in told["rows"]}
    names = set(ROLES.values()) - (set() if told["twin_stages"] else {ROLES["twin"]})
    assert found >= {(name, number) for name in names for number in (1, 4)}
    assert not [one for one in told["rows"] if one["rate"] == 0 or one["failed"]]
    assert done.exit_code == (2 if told["verdict"]["doubts"] else done.exit_code)
    assert os.sched_getaffinity(0) == allowed
    assert sorted(path.name for path in built.rglob("*")) == before


def test_h2load_is_counted_by_the_server(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed pages are counted as OK, by both generators; where it is not, how to install it is said."""
    if machine.cores() is None:
        pytest.skip("this machine has one core")
    words = ["bench", "--h2load", "--data", str(built), "--state", str(tmp_path), "--rounds", "1", "--seconds", "0.5"]
    if not found():
        assert "apt-get install nghttp2-client" in str(CliRunner().invoke(app, words).exception)
        pytest.skip("h2load is not installed")
    done = CliRunner().invoke(app, [*words, "--quick", "--in-flight", "8", "--json"])
    assert done.exit_code in {0, 2}, done.exception
    for one in json.loads(done.stdout)["rows"]:
        assert one["statuses"]["OK"] > 8
        assert min(one["rate"], one["own_rate"], one["cpu_us"]) > 0
    monkeypatch.setenv("PATH", "")
    assert "apt-get install nghttp2-client" in str(CliRunner().invoke(app, words).exception)
