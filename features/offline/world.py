"""A synthetic listening world with known answers: the same settings give the same bytes, at any size, in chunks.

Creators (artists, podcast shows) are popular by Zipf's law within their genres, their pieces (tracks, episodes) within
the creator. A listener has two to four tastes: genres with weights, and in each a few favourite creators out of one of
its scenes. A session is of one taste. The tastes are kept in `hidden/tastes.parquet`, where only tests look.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from features.errors import ListeningError
from features.offline.world_catalogue import WorldSettings, draw_catalogue
from features.offline.world_items import write_items
from features.offline.world_listening import write_listening
from features.offline.world_tables import Progress

__all__ = ["WorldSettings", "WorldSummary", "generate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSummary:
    """How much was written."""

    items: int
    listeners: int
    listens: int
    plays: int


def generate(out: Path, *, settings: WorldSettings, progress: Progress) -> WorldSummary:
    """Write a world, aside until it is whole; it replaces an older one in `out`, anything else is a ListeningError."""
    if out.exists() and not (out / "world.json").is_file() and (out.is_file() or any(out.iterdir())):
        raise ListeningError(f"{out} holds something else than a world: name an empty or a new directory")
    aside = out.resolve().with_name(f".{out.resolve().name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for folder in ("listens", "hidden"):
        (aside / folder).mkdir(parents=True)
    catalogue = draw_catalogue(settings)
    write_items(aside, catalogue, settings, progress)
    listens, plays = write_listening(aside, catalogue, settings, progress)
    summary = WorldSummary(items=settings.items, listeners=settings.listeners, listens=listens, plays=plays)
    told = {"settings": {**asdict(settings), "until": settings.until.isoformat()}, "counts": asdict(summary)}
    (aside / "world.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    return summary
