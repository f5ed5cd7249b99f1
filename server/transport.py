"""The transport: grpc.aio with health, reflection, limits and TLS. It owns the waiting; methods own everything else."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from server.errors import pushback_ms
from server.guard import Caller, Guard, Handler, Table
from server.settings import Settings

MAX_REQUEST_BYTES: Final = 1 << 19  # 500 events with tokens, or two lists of 1,000 ids
MAX_CALLS: Final = 4096  # at once in one process, health and refusals included: admission acts far below it
MAX_RESPONSE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """A server with its port."""

    server: grpc.aio.Server
    health: health.aio.HealthServicer
    services: tuple[str, ...]
    port: int
    listen: Callable[[], int]  # answers the port

    async def start(self, *, serving: bool) -> None:
        """Accepts calls; health says whether they can be answered yet."""
        self.listen()
        await self.set_serving(serving=serving)
        await self.server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Sets the health of the server as a whole and of each service."""
        response = health_pb2.HealthCheckResponse
        for name in ("", *self.services):
            await self.health.set(name, response.SERVING if serving else response.NOT_SERVING)

    async def retire(self) -> None:
        """Answers NOT_SERVING from now on, whatever is set later; calls are still answered."""
        await self.set_serving(serving=False)  # names every service, should it retire before it has started
        await self.health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Closes the port; calls in flight have some seconds to end."""
        await self.server.stop(grace_s)


def bind(  # what a server is made of
    settings: Settings, guard: Guard, table: Table, *, port: int, shared_port: bool, most_bytes: int = MAX_REQUEST_BYTES
) -> Transport:
    """A server for the table's methods, bound to a port.

    `most_bytes` bounds a request. `shared_port` where other processes listen on it too: then it is bound at the start
    only, since the kernel would hand it connections at once.

    Raises:
        RuntimeError: the port cannot be bound.
        KeyError: a method of a service is not in the table.
    """
    options = _options(shared_port=shared_port, most_bytes=most_bytes)
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers((_Methods(guard.handlers(table), guard.refusal),))
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    services = tuple(service.full_name for service in table)
    if settings.reflects:
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    listen: Callable[[], int] = partial(_listen, server, settings, port)
    if not shared_port:
        port = listen()
        listen = partial(int, port)
    return Transport(server=server, health=checks, services=services, port=port, listen=listen)


class _Methods(grpc.GenericRpcHandler):
    """Guarded methods, as grpcio looks them up.

    A call is refused here already: to a handler of streams grpcio reads no message, which saves 40 % of a refusal.
    """

    def __init__(self, handlers: Mapping[str, Handler], refusal: Callable[..., status_pb2.Status | None]) -> None:
        self._refusal = refusal
        self._handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            path: grpc.unary_unary_rpc_method_handler(_run(one)) for path, one in handlers.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """The method of a call; None: there is none, and the call ends as UNIMPLEMENTED."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is not None:
            refusal = self._refusal(path, handler_call_details.invocation_metadata or ())
            if refusal is not None:
                return grpc.stream_stream_rpc_method_handler(_refuse(refusal))
        return handler


def _refuse(status: status_pb2.Status) -> Callable[[Any, Any], Awaitable[None]]:
    async def run(_: Any, context: Any) -> None:
        await _end(status, context)

    return run


def _run(handler: Handler) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def run(raw: bytes, context: Any) -> bytes:
        caller = Caller(context.invocation_metadata() or (), context.auth_context(), context.time_remaining())
        answer = await handler(raw, caller)
        if isinstance(answer, bytes):
            return answer
        await _end(answer, context)
        raise AssertionError

    return run


async def _end(answer: status_pb2.Status, context: Any) -> None:
    """Ends a call with a status, by an exception."""
    status: Any = rpc_status.to_status(answer)  # a named tuple, though its type does not say so
    if (wait_ms := pushback_ms(answer)) is not None:
        pushback = ("grpc-retry-pushback-ms", str(wait_ms))
        status = status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
    await context.abort_with_status(status)


def _options(*, shared_port: bool, most_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(shared_port)),  # on by default: two servers would share a port silently
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", max(most_bytes, MAX_RESPONSE_BYTES)),
        ("grpc.max_metadata_size", 8192),
        ("grpc.max_concurrent_streams", 100),
        ("grpc.server_handshake_timeout_ms", 3000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", 600_000),  # a channel sticks to one worker; age spreads them anew
        ("grpc.max_connection_age_grace_ms", 10_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _listen(server: grpc.aio.Server, settings: Settings, port: int) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    if settings.tls_cert is None or settings.tls_key is None:
        return server.add_insecure_port(f"{host}:{port}")
    ca = settings.tls_client_ca
    credentials = grpc.ssl_server_credentials(
        [(settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())],
        root_certificates=None if ca is None else ca.read_bytes(),
        require_client_auth=ca is not None,
    )
    return server.add_secure_port(f"{host}:{port}", credentials)
