"""Servers that answer every call the same bytes: what gRPC in Python costs before it does anything.

`python -m loadtest.ceiling aio|sync FILE` answers the file's bytes to any method, and prints its port.
"""

import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

THREADS: Final = 8  # of the sync server; measured best of 4, 8 and 16
_HOST: Final = "127.0.0.1:0"


class _Everything(grpc.GenericRpcHandler):
    """One method for all paths."""

    def __init__(self, run: Callable[[bytes, Any], Any]) -> None:
        self._method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(run)

    def service(self, _details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The method."""
        return self._method


async def _aio(answer: bytes) -> None:
    async def run(_request: bytes, _context: object) -> bytes:
        return answer

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Everything(run),))
    port = server.add_insecure_port(_HOST)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _sync(answer: bytes) -> None:
    def run(_request: bytes, _context: object) -> bytes:
        return answer

    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((_Everything(run),))
    port = server.add_insecure_port(_HOST)
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


def main(kind: str, file: str) -> None:
    """Serves until it is ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    answer = Path(file).read_bytes()
    if kind == "aio":
        uvloop.run(_aio(answer))
    else:
        _sync(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
