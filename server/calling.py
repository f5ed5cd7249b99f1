"""How the command line reaches a running server: address, token, and errors as a person can read them."""

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

import grpc

from features.errors import MantelError, Unavailable
from features.state import State
from protos.client import AdminClient, HomeClient, Tls

DEFAULT_TARGET: Final = "127.0.0.1:50051"
DEFAULT_CONTROL: Final = "127.0.0.1:50052"
Answer = TypeVar("Answer")


def home(state: State, target: str | None, tls: Tls | None) -> HomeClient:
    """A client of a data port: the one named, else that of the server of the state directory."""
    endpoints = state.endpoints()
    address = target or (DEFAULT_TARGET if endpoints is None else endpoints.target)
    return HomeClient(address, token=token(state), tls=tls)


def admin(state: State, target: str | None) -> AdminClient:
    """A client of a control port: the one named, else that of the server of the state directory."""
    endpoints = state.endpoints()
    address = target or (DEFAULT_CONTROL if endpoints is None else endpoints.control)
    return AdminClient(address, token=token(state))


def token(state: State) -> str:
    """MANTEL_TOKEN, else the development token of the state directory, else none."""
    given = os.environ.get("MANTEL_TOKEN", "")
    if given or not state.dev_token.exists():
        return given
    return state.dev_token.read_text().strip()


def said(call: Callable[[], Answer]) -> Answer:
    """What a call answers.

    Raises:
        MantelError: its status, as a person can read it.
    """
    try:
        return call()
    except grpc.RpcError as error:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():  # a server's own word carries some
            raise Unavailable(f"no server answers ({details}); start one with: mantel serve") from error
        raise MantelError(f"{code.name}: {details}") from error


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    """What a call answers, and the seconds it took."""
    started = time.perf_counter()
    return said(call), time.perf_counter() - started
