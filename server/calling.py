"""How the command line reaches a running server: address, token, TLS, and errors as a person can read them."""

import ipaddress
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import grpc

from features.errors import InvalidInput, MantelError, Unauthenticated, Unavailable
from features.state import State
from protos.client import AdminClient, ExperimentClient, HomeClient, PromotionClient, Tls

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_CONTROL: Final = "127.0.0.1:50052"
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "localhost"}  # noqa: S104  # where a server listens, not dialled
# What gRPC's text for a connection that fails holds -> what a person can do; the first that fits.
_TROUBLE: Final = (
    ("Connection refused", "refused: nothing listens at {0}; start a server with: mantel serve"),
    ("WRONG_VERSION_NUMBER", "the server at {0} speaks no TLS: leave out --tls-ca"),
    ("Hostname Verification", "the certificate of {0} is for another name: give --target a name that it holds"),
    ("security handshaker", "the TLS files cannot be used: --tls-ca, --tls-cert and --tls-key must be PEM"),
    ("Tls handshake failed", "the certificate of {0} is not of the CA of --tls-ca"),
    ("errors resolving", "{0} cannot be resolved: --target is HOST:PORT"),
)
Answer = TypeVar("Answer")
Client = HomeClient | AdminClient | ExperimentClient | PromotionClient


def home(state: State, target: str | None = None, tls: Tls | None = None, *, insecure: bool = False) -> HomeClient:
    """A client of a data port: the one named, else that of the server of the state directory.

    Raises:
        InvalidInput: the token would travel in plain text beyond loopback, and that was not asked for.
    """
    endpoints = state.endpoints()
    address = target or (DEFAULT_TARGET if endpoints is None else dialled(endpoints.target))
    token = _sendable(state, address, plain=tls is None and not insecure)
    return HomeClient(address, token=token, tls=tls, patient=False)  # a person waits for no server


def admin(state: State, target: str | None = None, tls: Tls | None = None, *, insecure: bool = False) -> AdminClient:
    """A client of a control port: the one named, else that of the server of the state directory.

    Raises:
        InvalidInput: the token would travel in plain text beyond loopback, and that was not asked for.
    """
    address = _control(state, target)
    return AdminClient(address, token=_sendable(state, address, plain=tls is None and not insecure), tls=tls)


def experiments(
    state: State, target: str | None = None, tls: Tls | None = None, *, insecure: bool = False
) -> ExperimentClient:
    """A client of a control port, as `admin`, for experiments.

    Raises:
        InvalidInput: the token would travel in plain text beyond loopback, and that was not asked for.
    """
    address = _control(state, target)
    return ExperimentClient(address, token=_sendable(state, address, plain=tls is None and not insecure), tls=tls)


def promotions(
    state: State, target: str | None = None, tls: Tls | None = None, *, insecure: bool = False
) -> PromotionClient:
    """A client of a control port, as `admin`, for promotions.

    Raises:
        InvalidInput: the token would travel in plain text beyond loopback, and that was not asked for.
    """
    address = _control(state, target)
    return PromotionClient(address, token=_sendable(state, address, plain=tls is None and not insecure), tls=tls)


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """What the TLS options say; None where none was given.

    Raises:
        InvalidInput: a certificate without its key, or the other way round.
    """
    if (cert is None) != (key is None):
        raise InvalidInput(("tls_key", "a certificate and its key go together: give --tls-cert and --tls-key"))
    root, certificate, secret = (None if path is None else path.read_bytes() for path in (ca, cert, key))
    return Tls(root=root, key=secret, certificate=certificate) if root or certificate else None


def dialled(target: str) -> str:
    """Where to call a server that listens on an address: one that stands for all is called by loopback."""
    host, _, port = target.rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"


def token(state: State) -> str:
    """MANTEL_TOKEN, else the development token of the state directory, else none."""
    given = os.environ.get("MANTEL_TOKEN", "")
    if given or not state.dev_token.exists():
        return given
    return state.dev_token.read_text().strip()


def on_loopback(address: str) -> bool:
    """Whether what is sent to an address stays on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def said(client: Client, call: Callable[[], Answer]) -> Answer:
    """What a call by a client answers.

    Raises:
        MantelError: its status, as a person can read it.
    """
    try:
        return call()
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():  # a server's own word carries some
            raise Unavailable(_trouble(client, str(details))) from error
        if code is grpc.StatusCode.UNAUTHENTICATED and not client.metadata:
            raise Unauthenticated("no token: set MANTEL_TOKEN, or give --state of the server") from error
        raise MantelError(f"{code.name}: {details}") from error


def timed(client: Client, call: Callable[[], Answer]) -> tuple[Answer, float]:
    """What a call by a client answers, and the seconds it took."""
    started = time.perf_counter()
    return said(client, call), time.perf_counter() - started


def _control(state: State, target: str | None) -> str:
    endpoints = state.endpoints()
    return target or (DEFAULT_CONTROL if endpoints is None else dialled(endpoints.control))


def _sendable(state: State, address: str, *, plain: bool) -> str:
    """The token, unless anyone could read it on its way to an address."""
    found = token(state)
    if found and plain and not on_loopback(address):
        raise InvalidInput(("target", f"{address} without TLS would show the token: give --tls-ca, or --insecure"))
    return found


def _trouble(client: Client, details: str) -> str:
    """Why no connection comes about, and what to do."""
    for sign, text in _TROUBLE:
        if sign in details:
            return text.format(client.target)
    if "Socket closed" not in details:
        return f"no server answers at {client.target} ({details}); start one with: mantel serve"
    if client.tls is None:
        return f"{client.target} closes the connection: if the server speaks TLS: give --tls-ca"
    wanted = "give --tls-cert and --tls-key" if client.tls.certificate is None else "it knows not that of --tls-cert"
    return f"{client.target} closes the connection: if the server wants a client certificate: {wanted}"
