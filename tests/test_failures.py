"""What fails while a call is under way: deadlines, cancellations and programmers' errors, each the caller's own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from numpy.typing import NDArray

from features import errors
from features.index import Retriever, Rows, Scores
from protos.home.v1 import home_pb2, home_pb2_grpc
from server.guard import Call, Guard, Method
from server.identity import Role, add_principal, load_identities
from server.metrics import Metrics
from server.transport import bind
from tests.conftest import Served, Store, serving, settings_for
from tests.wire import GET_HOME, Status, bearer, call, eventually, get_home, page_of

Code = grpc.StatusCode
SECRET = "redis://:hunter2@10.0.0.7/secret-path"  # noqa: S105  # planted, to be looked for
LISTENER = home_pb2.GetHomeRequest(user_id="u0000001")
OTHER = home_pb2.GetHomeRequest(user_id="u0000002")


class Failing:
    """A retriever that raises for one vector, and answers all others."""

    def __init__(self, inner: Retriever, vector: NDArray[np.float32], error: BaseException) -> None:
        self._inner, self._vector, self._error = inner, vector, error

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[Scores, Rows]:
        """Scores and rows, each `[query, k]`."""
        if (vectors == self._vector).all(axis=1).any():
            raise self._error
        return self._inner.search(vectors, k)


async def plant(served: Served, error: BaseException) -> None:
    """From now on, retrieving for u0000001 raises."""
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    vector = (await served.plane.store.read(["u0000001"], snapshot)).decoded(snapshot).vectors[0]
    served.plane.snapshots.current = replace(snapshot, retriever=Failing(snapshot.retriever, vector, error))


def handled(served: Served, code: grpc.StatusCode) -> float:
    """How many calls the server says it ended so."""
    served.plane.metrics.flush()
    (metric,) = served.plane.metrics._handled.collect()
    return sum(
        one.value for one in metric.samples if one.labels.get("grpc_code") == code.name and one.name.endswith("_total")
    )


@contextmanager
def silent(store: Store) -> Iterator[None]:
    """Stops the store's process meanwhile: a pause for some time can be over before anyone looks."""
    pid = int(store.client.info("server")["process_id"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pages(served: Served) -> float:
    """How many pages were assembled."""
    served.plane.metrics.flush()
    (metric,) = served.plane.metrics._pages.collect()
    return sum(one.value for one in metric.samples if one.name.endswith("_total"))


async def under_way(served: Served, done: Callable[[], bool]) -> None:
    """Waits until a batch is being served and nothing is queued behind it, or what was asked is done."""
    batcher = served.plane.batcher
    await eventually(lambda: done() or (not batcher._idle.is_set() and not batcher._waiting))


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), AssertionError(SECRET), TimeoutError(SECRET)])
async def test_a_programmers_error_is_internal(served: Served, error: Exception) -> None:
    """A fixed text and the call's id, nothing of the exception; in one batch with it, others get their page."""
    await plant(served, error)
    before = page_of(await get_home(served, OTHER))
    failed, *others = await asyncio.gather(*(get_home(served, one) for one in (LISTENER, OTHER, OTHER, OTHER)))
    assert (failed.code, failed.reason) == (Code.INTERNAL, "INTERNAL")
    assert failed.text == f"internal error {failed.request_id}"
    assert len(failed.request_id) == 16
    assert SECRET.encode() not in failed.wire
    assert [page_of(other) for other in others] == [before] * 3


async def test_a_failing_search_costs_its_shelves_only(served: Served) -> None:
    """What FAISS raises is no programmer's error: the page comes without its shelves of taste, and says so."""
    await plant(served, RuntimeError(SECRET))
    page = page_of(await get_home(served, LISTENER))
    assert page.degraded_reasons == [home_pb2.DEGRADED_REASON_RETRIEVAL_PARTIAL]
    searched = {"picked-for-you", "genre-mix", "genre-mix-too", "discover"}
    assert not searched & {shelf.id for shelf in page.shelves}
    assert page.coverage == 55


async def test_a_stray_cancellation_is_internal(served: Served) -> None:
    """A CancelledError that leaks out of the core ends its own call at once, not at the deadline, and no other."""
    await plant(served, asyncio.CancelledError())
    failed, other = await asyncio.gather(get_home(served, LISTENER), get_home(served, OTHER))
    assert (failed.code, other.code) == (Code.INTERNAL, Code.OK)
    assert (await get_home(served, OTHER)).code is Code.OK


async def test_a_client_that_cancels_is_cancelled(published: Store) -> None:
    """The call ends as CANCELLED on both sides, and the next one is answered."""
    async with serving(published.state, published.url, read_budget_ms=60_000.0) as served:
        home: home_pb2_grpc.HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(served.channel)
        with silent(published):
            asked = home.GetHome(LISTENER, metadata=served.metadata)
            await under_way(served, asked.done)
            assert asked.cancel()
            assert await asked.code() is Code.CANCELLED
            await eventually(lambda: handled(served, Code.CANCELLED) == 1)
        assert (await get_home(served, OTHER)).code is Code.OK


async def test_no_work_begins_after_the_clients_deadline(served: Served, published: Store) -> None:
    """Two calls whose deadline passes, one while its listener is read and one queued: no page is assembled for them."""
    with silent(published):
        first = asyncio.create_task(call(served.channel, GET_HOME, LISTENER, metadata=served.metadata, timeout=1.5))
        await under_way(served, first.done)
        second = await call(served.channel, GET_HOME, LISTENER, metadata=served.metadata, timeout=0.4)
        assert [second.code, (await first).code] == [Code.DEADLINE_EXCEEDED] * 2
    await served.plane.batcher.drain()
    await asyncio.sleep(0.01)  # pages are counted after the response
    assert pages(served) == 0
    assert (await get_home(served, OTHER)).code is Code.OK


async def test_a_call_without_a_deadline_gets_the_servers(published: Store) -> None:
    """`default_deadline_ms` ends it as DEADLINE_EXCEEDED, in words of ours."""
    async with serving(published.state, published.url, default_deadline_ms=150.0) as served:
        with silent(published):
            status = await get_home(served, LISTENER)
        assert (status.code, status.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
        assert status.text == "the deadline passed before an answer was there"


@dataclass(frozen=True, slots=True)
class Raising:
    """A method that raises."""

    error: BaseException

    async def __call__(self, _request: Message, _call: Call, /) -> bytes:
        """Raises."""
        raise self.error


@asynccontextmanager
async def guarded(store: Store, method: Method) -> AsyncIterator[grpc.aio.Channel]:
    """A server whose GetHome is another method, behind the guard."""
    settings = settings_for(store.state)
    identities = load_identities(store.state, development=False)
    guard = Guard(identities=lambda: identities, metrics=Metrics(), default_deadline_s=30.0)
    service = home_pb2.DESCRIPTOR.services_by_name["HomeService"]
    table = {service: {one.name: (Role.CLIENT, method if one.name == "GetHome" else None) for one in service.methods}}
    transport = bind(settings, guard, table, port=0, shared_port=False)
    await transport.start(serving=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        yield channel
    await transport.stop(0)


DOCUMENTED = {
    errors.InvalidInput(("field", "is wrong")): Code.INVALID_ARGUMENT,
    errors.PermissionRefused("is refused"): Code.PERMISSION_DENIED,
    errors.Unauthenticated("is not known"): Code.UNAUTHENTICATED,
    errors.NotFound("is not there"): Code.NOT_FOUND,
    errors.WrongState("is not possible now"): Code.FAILED_PRECONDITION,
    errors.DeadlineExceeded("is late"): Code.DEADLINE_EXCEEDED,
    errors.Unavailable("is away"): Code.UNAVAILABLE,
}
FAULTS = [ValueError(SECRET), TimeoutError(SECRET), asyncio.CancelledError(SECRET), errors.SnapshotRefused(SECRET)]


async def ended(store: Store, error: BaseException) -> Status:
    """How a call ends whose method raises."""
    token = add_principal(store.state, "app", [Role.CLIENT])
    async with guarded(store, Raising(error)) as channel:
        return await call(channel, GET_HOME, LISTENER, metadata=bearer(token))


@pytest.mark.parametrize(("error", "code"), DOCUMENTED.items(), ids=lambda one: type(one).__name__)
async def test_an_error_of_the_tree_has_its_code(
    store: Store, error: errors.MantelError, code: grpc.StatusCode
) -> None:
    """Its own code, its own text, and a reason that programs may rely on."""
    status = await ended(store, error)
    assert (status.code, status.text) == (code, str(error))
    assert status.reason.replace("_", "") == type(error).__name__.upper()
    assert status.request_id


@pytest.mark.parametrize("error", FAULTS, ids=lambda one: type(one).__name__)
async def test_whatever_else_a_method_raises_is_internal(store: Store, error: BaseException) -> None:
    """The guard itself lets nothing pass: no text of an exception, no stray cancellation, no data's error."""
    status = await ended(store, error)
    assert (status.code, status.text) == (Code.INTERNAL, f"internal error {status.request_id}")
    assert SECRET.encode() not in status.wire
