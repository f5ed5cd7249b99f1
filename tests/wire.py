"""Calls as bytes on the wire, and all that a status says of what went wrong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from features.state import State
from protos.admin.v1 import admin_pb2
from protos.events.v1 import events_pb2
from protos.experiments.v1 import experiments_pb2
from protos.home.v1 import home_pb2
from protos.listeners.v1 import listeners_pb2
from protos.promotions.v1 import promotions_pb2
from server.metrics import Metrics
from server.wiring import control_plane
from tests.conftest import Served, settings_for

Metadata: TypeAlias = tuple[tuple[str, str], ...]

GET_HOME = "/mantel.home.v1.HomeService/GetHome"
DATA_FILES = (home_pb2.DESCRIPTOR, events_pb2.DESCRIPTOR, listeners_pb2.DESCRIPTOR)
CONTROL_FILES = (admin_pb2.DESCRIPTOR, experiments_pb2.DESCRIPTOR, promotions_pb2.DESCRIPTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    text: str = ""
    reason: str = ""  # of google.rpc.ErrorInfo; "" where gRPC itself answered
    request_id: str = ""  # of google.rpc.ErrorInfo
    fields: tuple[str, ...] = ()  # of google.rpc.BadRequest
    wire: bytes = b""  # all details, as they were sent
    answer: bytes = b""


def bearer(token: str) -> Metadata:
    """A token, as a call carries it."""
    return (("authorization", f"Bearer {token}"),)


async def call(
    channel: grpc.aio.Channel,
    method: str,
    request: bytes | Message = b"",
    *,
    metadata: Metadata = (),
    timeout: float | None = None,  # noqa: ASYNC109  # the deadline that the call carries
    compression: grpc.Compression | None = None,
) -> Status:
    """Calls a method and tells how that ended."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        answer = await stub(raw, metadata=metadata, timeout=timeout, compression=compression)
    except grpc.aio.AioRpcError as error:
        return _status(error)
    return Status(code=grpc.StatusCode.OK, answer=answer)


async def get_home(served: Served, request: bytes | home_pb2.GetHomeRequest, metadata: Metadata = ()) -> Status:
    """Asks for a page, by default as the developer."""
    return await call(served.channel, GET_HOME, request, metadata=metadata or served.metadata)


def page_of(status: Status) -> home_pb2.GetHomeResponse:
    """The page of a call that ended well, without what differs from call to call."""
    assert status.code is grpc.StatusCode.OK, status
    return untracked(home_pb2.GetHomeResponse.FromString(status.answer))


def untracked(page: home_pb2.GetHomeResponse) -> home_pb2.GetHomeResponse:
    """A page without what names this answer alone: its id, and the tokens that carry it."""
    page.ClearField("request_id")
    page.ClearField("next_page_token")
    for shelf in page.shelves:
        for item in shelf.items:
            item.ClearField("tracking_token")
    return page


def methods(*files: FileDescriptor) -> Iterator[tuple[str, MethodDescriptor]]:
    """Every method that the contract's files hold, with its path on the wire."""
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method


async def eventually(holds: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    """Waits until something holds; the test's own timeout ends what never does."""
    while not (found if isinstance(found := holds(), bool) else await found):  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.005)


@asynccontextmanager
async def controlling(state: State, url: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a control plane on a free port."""
    transport = control_plane(settings_for(state), redis_url=url, port=0, shared_port=False, metrics=Metrics())
    await transport.start(serving=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{transport.port}") as channel:
        yield channel
    await transport.stop(0)


def _status(error: grpc.aio.AioRpcError) -> Status:
    rich = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is asked for
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in () if rich is None else rich.details:
        assert detail.Unpack(info) or detail.Unpack(bad)
    return Status(
        code=error.code(),
        text=error.details() or "",
        reason=info.reason,
        request_id=info.metadata.get("id", ""),
        fields=tuple(one.field for one in bad.field_violations),
        wire=b"" if rich is None else rich.SerializeToString(),
    )
