"""The one guard around every method: identity, role, bytes, deadline, and the status of whatever goes wrong.

grpcio by itself answers UNKNOWN with the exception's text, leaves a client waiting when a stray CancelledError leaks,
and names the parser in the status of malformed bytes. Nothing of that passes here.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from features.errors import DeadlineExceeded, InvalidInput, MantelError, PermissionRefused
from server import cancelling
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Turns methods into gRPC handlers."""

    identities: Callable[[], Identities]
    metrics: Metrics
    default_deadline_s: float

    def handlers(
        self, service: ServiceDescriptor, methods: Mapping[str, tuple[Role, Method | None]]
    ) -> grpc.GenericRpcHandler:
        """Handlers for a service: every method with the role it needs, and None where a later version serves it.

        Raises:
            KeyError: a method of the service is not in the table, so nobody may call it.
        """
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._handler(
                        service.full_name, method.name, GetMessageClass(method.input_type), *methods[method.name]
                    )
                )
                for method in service.methods
            },
        )

    def _handler(
        self, service: str, name: str, kind: type[Message], role: Role, method: Method | None
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(raw: bytes, context: Any) -> bytes:
            started = time.perf_counter()
            request_id = secrets.token_hex(8)
            try:
                response = await self._answer(raw, context, kind, role, method, request_id)
            except asyncio.CancelledError as error:
                if cancelling.asked_for():
                    self.metrics.handled(service, name, "CANCELLED", time.perf_counter() - started)
                    raise
                failure = cancelling.stray(error)
            except Exception as error:  # noqa: BLE001  # this is where every error ends
                failure = error
            else:
                self.metrics.handled(service, name, "OK", time.perf_counter() - started)
                return response
            status = to_status(failure, request_id)
            if not isinstance(failure, MantelError | Unimplemented):
                _log.error("%s.%s failed, id %s", service, name, request_id, exc_info=failure)
            self.metrics.handled(service, name, code_of(status).name, time.perf_counter() - started)
            await context.abort_with_status(rpc_status.to_status(status))
            raise AssertionError  # abort raises

        return handle

    async def _answer(
        self, raw: bytes, context: Any, kind: type[Message], role: Role, method: Method | None, request_id: str
    ) -> bytes:
        principal = self.identities().identify(context.invocation_metadata() or (), context.auth_context())
        if role not in principal.roles:
            raise PermissionRefused(f"needs the role {role.value}")
        if method is None:
            raise Unimplemented
        request = _parse(kind, raw)
        remaining = context.time_remaining()
        given = self.default_deadline_s if remaining is None else remaining
        call = Call(principal=principal, request_id=request_id, deadline=time.monotonic() + given)
        try:
            async with asyncio.timeout(given) as limit:
                response = await method(request, call)
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
