"""What the metrics port tells of a server with several workers."""

import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from features.keys import Keys
from features.pointer import Pointer
from features.snapshot import read_manifest
from features.state import Endpoints, State
from protos.client import AdminClient
from protos.events.v1 import events_pb2, events_pb2_grpc
from server.identity import development_token
from server.metrics import Metrics
from tests.books import BY_FILE, applied, poison
from tests.conftest import Store
from tests.damage import place, truncate
from tests.operation import client_of, eventually, published, redis_of, server
from tests.promotion_books import EVERYTHING
from tests.promotion_books import applied as promoted
from tests.recording import event
from tests.wire import bearer

if TYPE_CHECKING:
    from protos.events.v1.events_pb2_grpc import EventServiceStub

CALLS = 40
MOVED_BY_FAULTS = {
    "mantel_admission_in_flight",
    "mantel_placement_counts_late",
    "mantel_placement_counts_lost",
    "mantel_served_log_lost",
    "mantel_shed",
}
"""Instruments of what does not happen here: test_admission, test_promotions and test_served_log move them."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, built: Path) -> State:
    """A state directory in which the small world is published."""
    return published(tmp_path_factory.mktemp("metrics") / "state", built)


@pytest.fixture(scope="module")
def endpoints(state: State) -> Iterator[Endpoints]:
    """Two workers that serve it; every test adds to their counters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_POLL_S", "0.1")
        patch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
        with server(state, workers="2") as found:
            eventually(lambda: len(workers(state)) == 2)
            yield found


def workers(state: State) -> set[int]:
    """The workers that serve a snapshot."""
    return {beat.pid for beat in state.heartbeats() if beat.digest}


def scraped(endpoints: Endpoints, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(value for found, said, value in samples(endpoints) if found == name and labels.items() <= said.items())


def samples(endpoints: Endpoints) -> list[tuple[str, dict[str, str], float]]:
    """All samples on the page: name, labels, value."""
    with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics", timeout=30) as page:
        text = page.read().decode()
    return [
        (one.name, one.labels, one.value) for family in text_string_to_metric_families(text) for one in family.samples
    ]


def call(state: State, endpoints: Endpoints, times: int, user: str = "u0000001", surface: str = "") -> None:
    """Asks for a page, each time over a connection of its own."""
    for _ in range(times):
        with client_of(state, endpoints) as client:
            client.get_home(user, surface=surface, timeout_s=20)


def record_one(state: State, endpoints: Endpoints) -> None:
    """Records an event."""
    request = events_pb2.RecordEventsRequest(events=[event("one")])
    with grpc.insecure_channel(endpoints.target) as channel:
        stub: EventServiceStub = events_pb2_grpc.EventServiceStub(channel)
        stub.RecordEvents(request, metadata=bearer(development_token(state)), timeout=20)


def test_the_page_adds_up_all_workers(state: State, endpoints: Endpoints) -> None:
    """Calls, pages and durations are counted once, whichever worker served them; gauges are of living workers."""
    names = ("grpc_server_handled_total", "grpc_server_handling_seconds_count", "mantel_pages_total")
    before = [scraped(endpoints, name) for name in names]
    call(state, endpoints, CALLS)
    eventually(lambda: [scraped(endpoints, name) for name in names] == [count + CALLS for count in before])
    assert scraped(endpoints, "mantel_snapshot_swaps_total") == 2
    assert scraped(endpoints, "mantel_snapshot_items") == 2000
    pointer = Pointer.from_bytes(state.pointer.read_bytes())
    assert scraped(endpoints, "mantel_snapshot_published_timestamp_seconds") == pytest.approx(
        pointer.published_at, abs=0.01, rel=0
    )


def test_calls_that_fail_are_counted_by_status(state: State, endpoints: Endpoints) -> None:
    """A call refused by any of the two workers, on the data plane or the control plane, stands under its status."""
    labels = {"grpc_method": "GetHome", "grpc_code": "INVALID_ARGUMENT"}
    before = scraped(endpoints, "grpc_server_handled_total", **labels)
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            call(state, endpoints, 1, user="no:listener")
    eventually(lambda: scraped(endpoints, "grpc_server_handled_total", **labels) == before + 5)
    with AdminClient(endpoints.control) as nobody, pytest.raises(grpc.RpcError):
        nobody.get_status()
    labels = {"grpc_service": "mantel.admin.v1.AdminService", "grpc_code": "UNAUTHENTICATED"}
    eventually(lambda: scraped(endpoints, "grpc_server_handled_total", **labels) == 1)


def test_a_killed_worker_takes_no_count_with_it(state: State, endpoints: Endpoints) -> None:
    """Counters never go down; the gauges of the dead are gone, and the new worker's count goes on from there."""
    before = scraped(endpoints, "mantel_pages_total") + CALLS
    call(state, endpoints, CALLS)
    eventually(lambda: scraped(endpoints, "mantel_pages_total") == before)
    dead = min(workers(state))
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: len(workers(state)) == 2 and dead not in workers(state))
    assert scraped(endpoints, "mantel_pages_total") == before
    assert not list(state.metrics.glob(f"gauge_live*_{dead}.db"))
    call(state, endpoints, CALLS)
    eventually(lambda: scraped(endpoints, "mantel_pages_total") == before + CALLS)


def test_every_instrument_moves(state: State, endpoints: Endpoints, second: Path) -> None:
    """Listeners, strangers, a broken record, an empty page, parts, promotion, refusals: none declared stays at zero."""
    call(state, endpoints, 1)
    call(state, endpoints, 1, user="nobody")
    call(state, endpoints, 1, user="nobody", surface="evaluation")
    with redis_of(state) as client:
        store = Store(state=state, url="", client=client, keys=Keys())
        digest = state.heartbeats()[0].digest
        space = read_manifest(state.snapshots / digest)[0].space_id
        client.set(store.keys.record("u0000002", space), b"broken")
        call(state, endpoints, 1, user="u0000002")
        place(store, second, truncate)
        book = applied(store, BY_FILE)
        eventually(lambda: all(beat.experiment_book == book.digest for beat in state.heartbeats()))
        poison(store, b"no book")
        promotions = promoted(store, ({"id": "all"}, EVERYTHING)).digest
        eventually(lambda: all(beat.promotion_book == promotions for beat in state.heartbeats()))
    call(state, endpoints, 1)
    with client_of(state, endpoints) as caller:
        caller.get_home("u0000001", page_size=1, timeout_s=20)
        with pytest.raises(grpc.RpcError):
            caller.get_home("u0000001", page_token="no-token", timeout_s=20)  # noqa: S106
    record_one(state, endpoints)
    registry = CollectorRegistry()
    Metrics(registry).published(0.0)  # declared when there is something to tell
    declared = {family.name for family in registry.collect()} - MOVED_BY_FAULTS
    assert "mantel_snapshot_published_timestamp_seconds" in declared

    def still() -> set[str]:
        moved = {name for name, _, value in samples(endpoints) if value > 0}
        return {name for name in declared if not {name, f"{name}_total", f"{name}_count"} & moved}

    eventually(lambda: not still())
    assert development_token(state) not in str(samples(endpoints))
