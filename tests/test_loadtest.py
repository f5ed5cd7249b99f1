"""Load against real servers: one of few words, and Mantel itself."""

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from features.errors import InvalidInput, MantelError, Unavailable
from features.state import Endpoints, State
from loadtest import calls as calls_
from loadtest.arrivals import shaped
from loadtest.drive import Target, connect, drive
from loadtest.run import Measured, Plan
from loadtest.slo import load_slo
from loadtest.traffic import EVENTS, NEXT, PAGE, PREFETCH, Mix
from protos.client import Tls
from protos.home.v1 import home_pb2
from server.cli import app
from server.cli_loadtest import _search
from server.cli_under_test import listeners_of
from server.settings import load_settings
from tests.certificates import Authority
from tests.conftest import Store, serving
from tests.generated import Answers, answering, measured, page, rows, script
from tests.operation import mantel

PATIENT = "[generator]\nlag_p50_ms = 600000\nlag_p99_ms = 600000\nbusy = 1.0\nsent = 0.0\n"  # a busy machine


async def driven(home: Answers, mix: Mix, *, calls: int, rate: float, threads: int = 4) -> Any:
    """The rows of a script that is driven against a server of few words."""
    with answering(home, threads=threads) as address:
        target = Target(address=address, connections=2, timeout_s=60.0)
        channels = await connect(target)
        found = await drive(channels, target, script(1, calls=calls, rate=rate, mix=mix), time.monotonic())
        await asyncio.gather(*(channel.close() for channel in channels))
        return found


async def test_calls_queue_before_a_slow_server() -> None:
    """A server that takes 20 ms for a call and is asked every 10 makes each wait longer: an open loop shows it.

    Closed users would wait with it, and find that it takes 20 ms.
    """

    def slow(request: home_pb2.GetHomeRequest, _: grpc.ServicerContext) -> home_pb2.GetHomeResponse:
        time.sleep(0.02)
        return page(request)

    found = await driven(slow, Mix(events=0, next_pages=0), calls=100, rate=100.0, threads=1)
    took = found["done"] - found["due"]
    assert (found["code"] == calls_.OK).all()
    assert took.max() > 0.9  # 100 calls take 2 s, the last is due after 1
    assert (found["sent"] >= found["due"]).all()


async def test_every_kind_of_call_is_made_and_noted() -> None:
    """Pages, next pages by their token, events of what was shown, prefetches by their priority, some refused."""
    seen: list[home_pb2.GetHomeRequest] = []

    def home(request: home_pb2.GetHomeRequest, context: grpc.ServicerContext) -> home_pb2.GetHomeResponse:
        seen.append(request)
        if ("x-mantel-priority", "prefetch") in [tuple(pair) for pair in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
        return page(request)

    found = await driven(
        home, Mix(events=0.2, next_pages=0.3, prefetch=0.2, looking_s=(0.5, 0.6)), calls=400, rate=200.0
    )
    kinds = found["kind"]
    assert set(kinds) == {PAGE, NEXT, PREFETCH, EVENTS}
    assert set(found["code"][kinds == PREFETCH]) == {calls_.REFUSED}
    assert set(found["code"][kinds != PREFETCH]) == {calls_.OK}
    assert (found["items"][(kinds == PAGE) | (kinds == NEXT)] == 14).all()
    assert sum(bool(request.page_token) for request in seen) == (kinds == NEXT).sum()
    assert max(len(request.page_token) for request in seen) > 1  # a third page


async def test_calls_travel_by_tls_with_a_token() -> None:
    """The generator shows a client certificate and its token, and a plan keeps both on its way to a generator."""
    authority = Authority.new()
    one, other = authority.certificate("127.0.0.1"), authority.certificate("load")
    tls = Tls(root=authority.pem, key=other.key, certificate=other.chain)
    secure = grpc.ssl_server_credentials([(one.key, one.chain)], authority.pem, require_client_auth=True)
    seen: list[tuple[str, str]] = []

    def home(request: home_pb2.GetHomeRequest, context: grpc.ServicerContext) -> home_pb2.GetHomeResponse:
        seen.extend((pair[0], str(pair[1])) for pair in context.invocation_metadata())
        return page(request)

    with answering(home, tls=secure) as address:
        whole, secret = TypeAdapter(Target), "t"
        target = Target(address=address, token=secret, tls=tls, connections=1, timeout_s=60.0)
        target = whole.validate_json(whole.dump_json(target))
        assert "PRIVATE" not in repr(target)
        channels = await connect(target)
        found = await drive(channels, target, script(1, calls=20, rate=100.0), time.monotonic())
        await channels[0].close()
    assert (found["code"] == calls_.OK).all()
    assert ("authorization", "Bearer t") in seen


def loadtest(store: Store, target: str, promise: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`mantel loadtest` against a server that serves what a store holds, quickly."""
    state = ("--target", target, "--state", str(store.state.path), "--redis", store.url)
    times = ("--warm-up", "0.5", "--duration", "2", "--timeout", "30", "--slo", str(promise))
    return mantel("loadtest", *state, *times, "--connections", "2", *words)


async def test_the_exit_code_is_the_verdict(published: Store, tmp_path: Path) -> None:
    """0: the promise is kept; 2: the generator is late; 1 is that of test_drill."""
    promise = tmp_path / "slo.toml"
    promise.write_text(f"rate = 30\np50_ms = 20000\nerrors = 0.0\nthin = 0.0\n{PATIENT}")
    late = tmp_path / "late.toml"
    late.write_text("rate = 30\n[generator]\nlag_p50_ms = 0.000001\n")

    async with serving(published.state, published.url) as served:
        report = tmp_path / "report.html"
        words = ("--events", "0.3", "--next-pages", "0.3", "--json", "--html", str(report))
        kept = await asyncio.to_thread(loadtest, published, served.target, promise, *words)
        told = json.loads(kept.stdout)
        assert (kept.returncode, told["outcome"]) == (0, "pass"), kept.stderr
        assert "500 published" in told["conditions"]["listeners"]
        assert told["figures"]["codes"].keys() == {"OK"}
        assert {"page", "next page", "events"} <= told["figures"]["by_kind"].keys()
        assert "The promise is kept" in report.read_text()
        none = await asyncio.to_thread(loadtest, published, served.target, late)
        assert none.returncode == 2, none.stderr
        assert "no verdict: the generator sent half of its calls over" in none.stdout


async def test_locusts_closed_users_are_judged_too(published: Store, tmp_path: Path) -> None:
    """Locust asks the same kinds of calls, by users who wait; its rows become the same report."""
    promise = tmp_path / "slo.toml"
    promise.write_text(f"rate = 30\np50_ms = 20000\nerrors = 0.0\n{PATIENT}")
    async with serving(published.state, published.url) as served:
        done = await asyncio.to_thread(loadtest, published, served.target, promise, "--closed", "3", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["figures"]["by_kind"]["page"]["calls"] > 10
    assert "3 closed users" in told["conditions"]["load"]


def test_listeners_come_from_the_store(published: Store, records: dict[str, bytes], tmp_path: Path) -> None:
    """All that are published, in an order drawn from the seed; of a store that is away, one line."""
    settings = load_settings(state=published.state.path, redis=published.url)
    found = listeners_of(settings, "127.0.0.1:1", None, 1)
    assert sorted(found) == sorted(records)
    assert found == listeners_of(settings, "127.0.0.1:1", None, 1)
    assert found != listeners_of(settings, "127.0.0.1:1", None, 2)
    away = load_settings(state=tmp_path / "state", redis="redis://127.0.0.1:1")
    with pytest.raises(Unavailable, match="store cannot be reached"):
        listeners_of(away, "127.0.0.1:1", None, 1)
    assert listeners_of(load_settings(state=tmp_path / "state", redis=""), "127.0.0.1:1", None, 1) == []


def test_a_load_test_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    """The two commands; the demo's server, where it runs; and what is wrong with a server that is named."""

    def refusal(*words: str) -> str:
        error = CliRunner().invoke(app, ["loadtest", "--state", str(tmp_path), *words]).exception
        assert isinstance(error, MantelError)
        return str(error)

    assert "mantel demo" in refusal()
    assert f"mantel loadtest --state {tmp_path}/demo/state" in refusal()
    assert "nothing listens at 127.0.0.1:9" in refusal("--target", "127.0.0.1:9")
    State(tmp_path / "demo" / "state").announce(Endpoints(pid=1, target="127.0.0.1:9", control="", metrics=""))
    assert f"the demo's does: mantel loadtest --state {tmp_path}/demo/state" in refusal()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--events", "0.6", "--next-pages", "0.5"), "events"),
        (("--surface", "home=0"), "surface"),
        (("--surface", "home=many"), "surface"),
        (("--users", __file__), "users"),
        (("--rate", "1000000"), "rate"),
        (("--find-knee", "--closed", "3"), "find_knee"),
        (("--find-knee", "--html", "r.html"), "find_knee"),
    ],
)
def test_wrong_options_are_named(words: tuple[str, ...], field: str, tmp_path: Path) -> None:
    """Before anything is called."""
    named = ("--target", "127.0.0.1:9", "--state", str(tmp_path / "state"))
    error = CliRunner().invoke(app, ["loadtest", *words, *named]).exception
    assert isinstance(error, InvalidInput)
    assert [path for path, _ in error.violations] == [field]


def test_a_search_for_the_knee_asks_something_else_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each run has its rate, its seed and its name; bounds that say nothing of the knee do not count."""
    plans: list[Plan] = []

    def played(plan: Plan, closed: int, name: str, _: Any) -> Measured:
        assert not closed
        assert name == f"run-{len(plans)}"
        plans.append(plan)
        return measured(rows(5000, took=0.02 if plan.shape.rates[0] <= 700 else 0.1))  # 20 ms: above the bound of p50

    monkeypatch.setattr("server.cli_loadtest._play", played)
    shape = shaped("constant", rate=500.0, duration=10.0)
    target, file = Target(address="127.0.0.1:1"), tmp_path / "listeners"
    plan = Plan(target=target, shape=shape, warm_up_s=0, mix=Mix(), listeners=file, seed=5, run="r")
    knee = _search(plan, load_slo(), 2, lambda *_: None)
    assert 700 / 1.05 <= knee.rate <= 700
    assert [one.seed for one in plans] == list(range(5, 5 + len(plans)))
    assert len({one.run for one in plans}) == len(plans)
    assert {one.shape.rates for one in plans} == {(one.rate, one.rate) for one in knee.tried}
