"""The twin: the same core behind FastAPI, as a good engineer would write it without gRPC.

uvloop, httptools, orjson and hiredis; the same functions of the core, one request at a time, as it has no batching;
what it leaves out (`loadtest/twin_pages.py`) is to its advantage.

`python -m loadtest.twin SNAPSHOT REDIS TOKEN SURFACES PRESET` serves POST /home, and prints its port; GET /stages tells
the microseconds of each stage.
"""

import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import redis.asyncio
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from loadtest.twin_pages import Pages, ready

STAGES: Final = ("parse", "read", "decode", "assemble", "join")


@dataclass(slots=True)
class _Spent:
    """Seconds by stage, and over how many pages."""

    pages: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Answers pages."""

    pages: Pages
    client: "redis.asyncio.Redis"
    spent: _Spent

    async def home(self, request: Request) -> Response:
        """One page."""
        pages, times = self.pages, [time.perf_counter()]
        if not pages.admits(request.headers.get("authorization", "")):
            raise HTTPException(401)
        try:
            query = pages.query(orjson.loads(await request.body()))
        except ValueError as error:
            raise HTTPException(400) from error
        times.append(time.perf_counter())
        read: Any = await self.client.mget(pages.names(query))
        times.append(time.perf_counter())
        listeners = pages.decoded(read)
        times.append(time.perf_counter())
        (home,) = pages.assembled((query,), listeners)
        times.append(time.perf_counter())
        body = pages.joined(home)
        times.append(time.perf_counter())
        self.spent.pages += 1
        for stage, begun, ended in zip(STAGES, times, times[1:], strict=False):
            self.spent.seconds[stage] += ended - begun
        return Response(body, media_type="application/json")


def application(twin: Twin) -> FastAPI:
    """The twin as an ASGI application."""

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        await twin.client.aclose()

    app = FastAPI(lifespan=closing)
    app.add_api_route("/home", twin.home, methods=["POST"], response_class=Response)

    async def stages() -> dict[str, float]:
        return {name: 1e6 * spent / max(1, twin.spent.pages) for name, spent in twin.spent.seconds.items()}

    app.add_api_route("/stages", stages)
    return app


def main(folder: str, url: str, token: str, surfaces: str, preset: str) -> None:
    """Serves until it is ended."""
    twin = Twin(
        pages=ready(folder, token, surfaces, preset),
        client=redis.asyncio.Redis.from_url(url, protocol=2, socket_timeout=0.5),
        spent=_Spent(),
    )
    config: Any = {"loop": "uvloop", "http": "httptools", "log_level": "error", "access_log": False}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(application(twin), **config)).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
