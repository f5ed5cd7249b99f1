"""The core as the twin and its peers use it: a request becomes a query, a page becomes JSON.

Cards are rendered when it starts; it has identity and validation, and neither metrics, nor a log, nor experiments.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson

from features.index import use_one_thread
from features.keys import Keys, hash64
from features.listeners import Known, Listeners, decode
from features.snapshot import Snapshot, load
from protos.home.v1 import home_pb2
from ranking.home import assemble
from ranking.surfaces import Surface, load_surfaces, spoken
from ranking.types import Home, HomeQuery, Shelf

SURFACE: Final = "home"
_USER_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SESSION_S: Final = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Makes pages."""

    snapshot: Snapshot
    cards: tuple[bytes, ...]  # of every item, as JSON without the closing brace
    surface: Surface
    keys: Keys
    token_sha256: bytes

    def admits(self, authorization: str) -> bool:
        """Whether a header brings the token."""
        given = authorization.removeprefix("Bearer ")
        return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), self.token_sha256)

    def query(self, asked: Mapping[str, Any]) -> HomeQuery:
        """A request's query.

        Raises:
            ValueError: it names no listener.
        """
        user_id = asked.get("user_id", "")
        if not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id):
            raise ValueError(user_id)
        now = int(time.time())
        seed = hash64(f"{user_id}|{now // _SESSION_S}|{SURFACE}")
        return HomeQuery(user_id=user_id, surface=self.surface, now=now, market=asked.get("market", ""), seed=seed)

    def names(self, query: HomeQuery) -> tuple[str, str, str]:
        """The keys to be read of its listener."""
        user_id, space = query.user_id, self.snapshot.manifest.space_id
        return self.keys.record(user_id, space), self.keys.state(user_id), self.keys.preferences(user_id)

    def decoded(self, read: Sequence[bytes | None]) -> Listeners:
        """Listeners of a batch from what lay under their keys, three each."""
        manifest = self.snapshot.manifest
        return decode(
            read[::3],
            states=read[1::3],
            preferences=read[2::3],
            space_id=self.snapshot.space_id,
            dimension=manifest.dimension,
            genres=len(manifest.genres),
            missing=Known.STRANGER,
        )

    def assembled(self, queries: Sequence[HomeQuery], listeners: Listeners) -> tuple[Home, ...]:
        """Pages of a batch."""
        return assemble(tuple(queries), listeners, self.snapshot, clock=time.perf_counter)[0]

    def joined(self, home: Home) -> bytes:
        """A page as JSON."""
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


def ready(folder: str, token: str, surfaces: str, preset: str) -> Pages:
    """All that is loaded before the first request."""
    use_one_thread()
    snapshot = load(Path(folder))
    return Pages(
        snapshot=snapshot,
        cards=rendered(snapshot),
        surface=load_surfaces(Path(surfaces), preset)[SURFACE],
        keys=Keys(prefix="mantel"),
        token_sha256=hashlib.sha256(token.encode()).digest(),
    )
