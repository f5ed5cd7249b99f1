"""The one guard around every method: identity, role, bytes, deadline, and the status of whatever goes wrong.

It knows no transport: bytes and what was told of the caller come in, bytes or a status go out. A transport by itself
answers UNKNOWN with the exception's text, leaves a client waiting when a stray CancelledError leaks, and names the
parser in the status of malformed bytes. Nothing of that passes here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from features.errors import DeadlineExceeded, InvalidInput, MantelError, PermissionRefused
from server import cancelling
from server.admission import Admission, Shed, priority_of
from server.errors import Unimplemented, code_of, to_status
from server.identity import Identities, Principal, Role
from server.metrics import Metrics

_log = logging.getLogger("mantel.guard")
MAX_UNKNOWN_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a method knows of its call beside the request."""

    principal: Principal
    request_id: str
    deadline: float  # time.monotonic() after which the answer is worthless


class Method(Protocol):
    """A method: from a parsed request to a response, as a message or as its bytes."""

    def __call__(self, request: Any, call: Call, /) -> Awaitable[Message | bytes]:
        """Answers, or raises an error of the tree."""
        ...


Table = Mapping[ServiceDescriptor, Mapping[str, tuple[Role, Method | None]]]  # None: a later version serves it


class Caller(NamedTuple):
    """What a transport tells of a call beside its bytes. Built once per call: a tuple costs a third of a dataclass."""

    metadata: Sequence[tuple[str, str | bytes]]
    certificate: Mapping[str, Iterable[bytes]]  # names of the verified client certificate, as gRPC calls them
    remaining_s: float | None  # until the caller's deadline; None where there is none


Answer: TypeAlias = bytes | status_pb2.Status
Handler: TypeAlias = Callable[[bytes, Caller], Awaitable[Answer]]
"""A guarded method: from a request's bytes to a response's, or to the status that it failed with.

It raises nothing but asyncio.CancelledError, and that only where the call itself was cancelled.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Guards methods."""

    identities: Callable[[], Identities]
    metrics: Metrics
    default_deadline_s: float
    admissions: Mapping[str, Admission] = field(default_factory=dict)  # by service; one that is not here sheds nothing

    def handlers(self, table: Table) -> Mapping[str, Handler]:
        """Guarded methods by service and name, as `/mantel.home.v1.HomeService/GetHome`.

        Raises:
            KeyError: a method of a service is not in the table, so nobody may call it.
        """
        return {
            f"/{service.full_name}/{method.name}": self._handler(service, method, *methods[method.name])
            for service, methods in table.items()
            for method in service.methods
        }

    def refusal(self, path: str, metadata: Sequence[tuple[str, str | bytes]]) -> status_pb2.Status | None:
        """The status of a call for which there is no room, asked before its message is read; None: it may go on."""
        service, _, method = path[1:].partition("/")
        admission = self.admissions.get(service)
        if admission is None:
            return None
        priority = priority_of(metadata)
        try:
            admission.check(priority)
        except Shed as shed:
            self.metrics.shed(priority.value)
            self.metrics.handled(service, method, "RESOURCE_EXHAUSTED", 0.0)
            return to_status(shed, secrets.token_hex(8))
        return None

    def _handler(self, service: ServiceDescriptor, method: MethodDescriptor, role: Role, run: Method | None) -> Handler:
        kind = GetMessageClass(method.input_type)
        handled = partial(self.metrics.handled, service.full_name, method.name)
        admission = self.admissions.get(service.full_name)

        async def handle(raw: bytes, caller: Caller) -> Answer:
            started = time.perf_counter()
            request_id = secrets.token_hex(8)
            try:
                with self._admitted(admission, caller):
                    response = await self._answer(raw, caller, kind, role, run, request_id)
            except asyncio.CancelledError as error:
                if cancelling.asked_for():
                    handled("CANCELLED", time.perf_counter() - started)
                    raise
                failure = cancelling.stray(error)
            except Exception as error:  # noqa: BLE001  # this is where every error ends
                failure = error
            else:
                handled("OK", time.perf_counter() - started)
                return response
            status = to_status(failure, request_id)
            if not isinstance(failure, MantelError | Unimplemented):
                _log.error("%s.%s failed, id %s", service.full_name, method.name, request_id, exc_info=failure)
            handled(code_of(status).name, time.perf_counter() - started)
            return status

        return handle

    @contextmanager
    def _admitted(self, admission: Admission | None, caller: Caller) -> Iterator[None]:
        """Lets a call in before anything is read of it, and out again however it ends."""
        if admission is None:
            yield
            return
        priority = priority_of(caller.metadata)
        try:
            admission.enter(priority)
        except Shed:
            self.metrics.shed(priority.value)
            raise
        entered_at, answered = time.monotonic(), False
        try:
            yield
            answered = True
        except DeadlineExceeded:
            answered = True  # it would have taken longer still
            raise
        finally:
            admission.leave(entered_at=entered_at, now=time.monotonic(), answered=answered)

    async def _answer(
        self, raw: bytes, caller: Caller, kind: type[Message], role: Role, run: Method | None, request_id: str
    ) -> bytes:
        principal = self.identities().identify(caller.metadata, caller.certificate)
        if role not in principal.roles:
            raise PermissionRefused(f"needs the role {role.value}")
        if run is None:
            raise Unimplemented
        request = _parse(kind, raw)
        given = self.default_deadline_s if caller.remaining_s is None else caller.remaining_s
        call = Call(principal=principal, request_id=request_id, deadline=time.monotonic() + given)
        try:
            async with asyncio.timeout(given) as limit:
                response = await run(request, call)
        except TimeoutError as error:
            if not limit.expired():
                raise  # the method's own: a fault, not the caller's deadline
            raise DeadlineExceeded("the deadline passed before an answer was there") from error
        return response if isinstance(response, bytes) else response.SerializeToString()


def _parse(kind: type[Message], raw: bytes) -> Message:
    try:
        message = kind.FromString(raw)
    except DecodeError as error:
        raise InvalidInput(("", "malformed: the bytes are no message of this method")) from error
    if len(raw) > MAX_UNKNOWN_BYTES and len(raw) - _known_bytes(message) > MAX_UNKNOWN_BYTES:
        raise InvalidInput(("", f"unknown fields of more than {MAX_UNKNOWN_BYTES} bytes"))
    return message


def _known_bytes(message: Message) -> int:
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize()
