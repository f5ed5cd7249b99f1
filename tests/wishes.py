"""Preferences as listeners of the small world may have them."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from features.preferences import Preferences, encode_preferences


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What can be hidden: items, and the artist of each, "" for none."""

    items: tuple[str, ...]
    artists: tuple[str, ...]  # [item]

    @staticmethod
    @cache
    def of(world: Path) -> "Names":
        """The names of a world's catalogue."""
        table = pl.read_parquet(world / "items.parquet", columns=["item_id", "artist_id"])
        return Names(items=tuple(table["item_id"]), artists=tuple(table["artist_id"].fill_null("")))


def draw_preferences(rng: np.random.Generator, names: Names) -> Preferences:
    """A random listener's: few or many hidden, anything else said or not."""
    artists = sorted(set(names.artists) - {""})
    return Preferences(
        hidden_items=tuple(rng.choice(names.items, int(rng.choice([0, 1, 20, 300])), replace=False)),
        hidden_artists=tuple(rng.choice(artists, int(rng.choice([0, 1, 20])), replace=False)),
        allow_explicit=[None, True, False][rng.integers(3)],
        promotions_off=bool(rng.integers(2)),
        discovery=None if rng.integers(2) else float(np.float32(rng.random())),
    )


def draw_wish(rng: np.random.Generator, names: Names) -> bytes | None:
    """A frame, none, or a broken one."""
    frame = encode_preferences(draw_preferences(rng, names))
    return [frame, frame, None, frame[:-1]][rng.integers(4)]
