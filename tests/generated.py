"""What tests of load share: a server of few words, rows as a run leaves them, and a script without a run."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from loadtest.calls import CALL, Calls
from loadtest.run import Measured
from loadtest.script import GET_HOME, RECORD_EVENTS, Script
from loadtest.traffic import Mix, draw
from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2

LISTENERS = [f"u{number}" for number in range(50)]
Answers = Callable[[home_pb2.GetHomeRequest, grpc.ServicerContext], home_pb2.GetHomeResponse]


def script(seed: int, *, calls: int = 400, rate: float = 100.0, run: str = "r", mix: Mix | None = None) -> Script:
    """A script of calls at even times."""
    due = np.arange(calls) / rate
    mix = mix or Mix()
    return Script(draw(mix, len(LISTENERS), due, np.random.default_rng(seed)), mix, LISTENERS, run=run)


def page(request: home_pb2.GetHomeRequest, _: Any = None) -> home_pb2.GetHomeResponse:
    """A page of two shelves of seven items that depend on who asks, with a next page."""
    found = home_pb2.GetHomeResponse(next_page_token=f"{request.page_token}+")
    for shelf in range(2):
        items = [home_pb2.Item(item_id=f"{request.user_id}-{shelf}-{number}") for number in range(7)]
        found.shelves.append(home_pb2.Shelf(id=f"s{shelf}", items=items))
    return found


@contextmanager
def answering(home: Answers, *, threads: int = 4, tls: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """A server on a free port that answers pages by a function, and takes all events; its address."""

    def record(request: events_pb2.RecordEventsRequest, _: grpc.ServicerContext) -> events_pb2.RecordEventsResponse:
        outcome = events_pb2.EVENT_RESULT_RECORDED
        outcomes = [events_pb2.EventOutcome(event_id=one.event_id, result=outcome) for one in request.events]
        return events_pb2.RecordEventsResponse(outcomes=outcomes)

    methods: dict[str, tuple[Any, Any]] = {
        GET_HOME: (home, home_pb2.GetHomeRequest),
        RECORD_EVENTS: (record, events_pb2.RecordEventsRequest),
    }

    class Handlers(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            method, kind = methods[str(details.method)]
            return grpc.unary_unary_rpc_method_handler(
                method, kind.FromString, lambda answer: answer.SerializeToString()
            )

    with ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool, handlers=[Handlers()])
        where = "127.0.0.1:0"
        port = server.add_insecure_port(where) if tls is None else server.add_secure_port(where, tls)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def rows(count: int, *, seconds: float = 10.0, **columns: Any) -> Calls:
    """Good pages, due at even times and answered after 2 ms; `columns` say otherwise."""
    found = np.zeros(count, CALL)
    found["due"] = np.arange(count) * seconds / count
    found["sent"] = found["due"]
    found["shelves"], found["items"], found["bytes"] = 6, 72, 10_000
    for name in ("kind", "code", "degraded", "shelves", "items"):
        found[name] = columns.get(name, found[name])
    found["sent"] += columns.get("lag", 0.0)
    found["done"] = found["sent"] + columns.get("took", 0.002)
    return found


def measured(calls: Calls, *, seconds: float = 10.0, busy: float = 0.3) -> Measured:
    """A run that left these rows."""
    return Measured(calls=calls, seconds=seconds, busy=(busy,))
