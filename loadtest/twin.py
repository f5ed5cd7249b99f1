"""The twin: the same core behind FastAPI, as a good engineer would write it without gRPC.

uvloop, httptools, orjson and hiredis; the same functions of the core, one request at a time, as it has no batching;
cards rendered as JSON when it starts. It has identity and validation, and neither metrics, nor a log, nor experiments:
what it leaves out is to its advantage.

`python -m loadtest.twin SNAPSHOT REDIS TOKEN SURFACES PRESET` serves POST /home, and prints its port; GET /stages tells
the microseconds of each stage.
"""

import hashlib
import hmac
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson
import redis.asyncio
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from features.index import use_one_thread
from features.keys import Keys, hash64
from features.listeners import Known, decode
from features.snapshot import Snapshot, load
from protos.home.v1 import home_pb2
from ranking.home import assemble
from ranking.surfaces import Surface, load_surfaces, spoken
from ranking.types import Home, HomeQuery, Shelf

SURFACE: Final = "home"
STAGES: Final = ("parse", "read", "decode", "assemble", "join")
_USER_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SESSION_S: Final = 1800


@dataclass(slots=True)
class _Spent:
    """Seconds by stage, and over how many pages."""

    pages: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """Answers pages."""

    snapshot: Snapshot
    cards: tuple[bytes, ...]  # of every item, as JSON without the closing brace
    surface: Surface
    client: "redis.asyncio.Redis"
    keys: Keys
    token_sha256: bytes
    spent: _Spent

    async def home(self, request: Request) -> Response:
        """One page."""
        times = [time.perf_counter()]
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self.token_sha256):
            raise HTTPException(401)
        asked = orjson.loads(await request.body())
        user_id = asked.get("user_id", "")
        if not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id):
            raise HTTPException(400)
        now = int(time.time())
        seed = hash64(f"{user_id}|{now // _SESSION_S}|{SURFACE}")
        query = HomeQuery(user_id=user_id, surface=self.surface, now=now, market=asked.get("market", ""), seed=seed)
        times.append(time.perf_counter())
        space = self.snapshot.manifest.space_id
        read: Any = await self.client.mget(
            (self.keys.record(user_id, space), self.keys.state(user_id), self.keys.preferences(user_id))
        )
        times.append(time.perf_counter())
        manifest = self.snapshot.manifest
        listeners = decode(
            read[:1],
            states=read[1:2],
            preferences=read[2:],
            space_id=self.snapshot.space_id,
            dimension=manifest.dimension,
            genres=len(manifest.genres),
            missing=Known.STRANGER,
        )
        times.append(time.perf_counter())
        (home,), _ = assemble((query,), listeners, self.snapshot, clock=time.perf_counter)
        times.append(time.perf_counter())
        body = self._join(home)
        times.append(time.perf_counter())
        self.spent.pages += 1
        for stage, begun, ended in zip(STAGES, times, times[1:], strict=False):
            self.spent.seconds[stage] += ended - begun
        return Response(body, media_type="application/json")

    def _join(self, home: Home) -> bytes:
        shelves = b",".join(self._shelf(shelf) for shelf in home.shelves)
        envelope = {
            "cold_start": home.cold_start,
            "degraded": [str(reason) for reason in home.degraded],
            "coverage": home.coverage,
            "snapshot_version": self.snapshot.digest,
        }
        return b"".join((orjson.dumps(envelope)[:-1], b',"shelves":[', shelves, b"]}"))

    def _shelf(self, shelf: Shelf) -> bytes:
        cards, title = self.cards, spoken(shelf.spec.titles, "en")
        if shelf.why == "genre":
            title = title.replace("{0}", self.snapshot.manifest.genres[shelf.subject])
        elif shelf.why == "neighbours":
            title = title.replace("{0}", orjson.loads(cards[shelf.subject] + b"}")["title"])
        head = {"id": shelf.spec.id, "kind": shelf.spec.source, "title": title}
        items = b",".join(
            b'%b,"score":%.6g}' % (cards[row], score)
            for row, score in zip(shelf.rows.tolist(), shelf.scores.tolist(), strict=True)
        )
        return b"".join((orjson.dumps(head)[:-1], b',"items":[', items, b"]}"))


def rendered(snapshot: Snapshot) -> tuple[bytes, ...]:
    """Every card as JSON, open at its end."""
    starts = snapshot.columns["card_offset"].tolist()
    cards = (home_pb2.Item.FromString(snapshot.cards[a:b]) for a, b in pairwise(starts))
    return tuple(
        orjson.dumps({part.name: value for part, value in card.ListFields()}, option=orjson.OPT_NON_STR_KEYS)[:-1]
        for card in cards
    )


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
    use_one_thread()
    snapshot = load(Path(folder))
    twin = Twin(
        snapshot=snapshot,
        cards=rendered(snapshot),
        surface=load_surfaces(Path(surfaces), preset)[SURFACE],
        client=redis.asyncio.Redis.from_url(url, protocol=2, socket_timeout=0.5),
        keys=Keys(prefix="mantel"),
        token_sha256=hashlib.sha256(token.encode()).digest(),
        spent=_Spent(),
    )
    config: Any = {"loop": "uvloop", "http": "httptools", "log_level": "error", "access_log": False}
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(application(twin), **config)).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
