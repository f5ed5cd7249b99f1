"""A synthetic listening world with known answers: the same settings give the same bytes, at any size, in chunks.

Creators (artists, podcast shows) are popular by Zipf's law within their genres, their pieces (tracks, episodes) within
the creator. A listener has two to four tastes: genres with weights, and in each a few favourite creators out of one of
its scenes. A session is of one taste. The tastes are kept in `hidden/tastes.parquet`, where only tests look.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from features.offline.artefact import PRIVATE, aside
from features.offline.world_catalogue import WorldSettings, draw_catalogue
from features.offline.world_items import write_items
from features.offline.world_listening import write_listening
from features.offline.world_tables import Progress

__all__ = ["WorldSettings", "WorldSummary", "generate"]

MARK: Final = "world.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSummary:
    """How much was written."""

    items: int
    listeners: int
    listens: int
    plays: int


def generate(out: Path, *, settings: WorldSettings, progress: Progress) -> WorldSummary:
    """Write a world to `out`, whole or not at all.

    Raises:
        WrongState: something else than a world stands at `out`.
    """
    with aside(out, mark=MARK, kind="world", mode=PRIVATE) as folder:
        for part in ("listens", "hidden"):
            (folder / part).mkdir()
        catalogue = draw_catalogue(settings)
        write_items(folder, catalogue, settings, progress)
        listens, plays = write_listening(folder, catalogue, settings, progress)
        summary = WorldSummary(items=settings.items, listeners=settings.listeners, listens=listens, plays=plays)
        told = {"settings": {**asdict(settings), "until": settings.until.isoformat()}, "counts": asdict(summary)}
        (folder / MARK).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return summary
