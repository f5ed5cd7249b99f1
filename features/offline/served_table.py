"""Served pages as tables: one row per page, and one per item that it showed."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.served_pages import LIST, Arm, Block, Page, Timing, Versions

_ARM: Final = pl.Struct(dict.fromkeys(Arm._fields, pl.String()))
_TIMES: Final = {"served_at": pl.Datetime("ms", "UTC")}
PAGES: Final = pl.Schema(
    {
        "page_id": pl.String(),
        "request_id": pl.String(),
        **_TIMES,
        "user_id": pl.String(),
        "surface": pl.String(),
        "session": pl.UInt32(),  # low bits of the session id's hash; 0: none was said
        "market": pl.String(),
        "device": pl.String(),
        "locale": pl.String(),
        "cold_start": pl.Boolean(),
        "sampled": pl.Boolean(),  # it can be replayed
        "degraded": pl.List(pl.String()),
        "arms": pl.List(_ARM),
        "shelves": pl.List(pl.String()),  # ids, from the top
        "snapshot": pl.String(),  # digests, as the next three
        "experiment_book": pl.String(),
        "promotion_book": pl.String(),
        "surfaces": pl.String(),
        "preset": pl.String(),
        "batch_size": pl.UInt8(),
        "read_us": pl.UInt32(),
        "stages_us": pl.List(pl.Struct({"stage": pl.String(), "us": pl.UInt32()})),
        "organic": pl.List(pl.Struct({"shelf": pl.String(), "item_keys": pl.List(pl.UInt64())})),  # where changed
    }
)
ITEMS: Final = pl.Schema(
    {
        "page_id": pl.String(),
        **_TIMES,
        "user_id": pl.String(),
        "surface": pl.String(),
        "arms": pl.List(pl.String()),  # EXPERIMENT/ARM, those by bucket
        "shelf": pl.String(),
        "shelf_place": pl.UInt8(),  # from 0, from the top of the page
        "place": pl.UInt16(),  # from 0, on the shelf; what may not be shown any more on a later part left out
        "item_key": pl.UInt64(),
        "score": pl.Float32(),
        "propensity": pl.Float32(),
        "campaign": pl.String(),  # null: it stands for itself
        "organic_rank": pl.Int32(),  # null as above
    }
)


def tables(blocks: Iterable[Block]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pages of blocks, `[page] PAGES`, and what they showed, `[item] ITEMS`."""
    both = [(_pages(block), _items(block)) for block in blocks]
    return (
        pl.concat([pl.DataFrame(schema=PAGES), *(pages for pages, _ in both)]),
        pl.concat([pl.DataFrame(schema=ITEMS), *(items for _, items in both)]),
    )


def _pages(block: Block) -> pl.DataFrame:
    organic = _organic(block)
    first = np.cumsum([0, *(page.shelves for page in block.pages)]).tolist()
    rows = [
        _row(block, page, block.shelves[start:stop], [slate for shelf, slate in organic if start <= shelf < stop])
        for page, start, stop in zip(block.pages, first, first[1:], strict=False)
    ]
    return pl.DataFrame(rows, PAGES, orient="row")


def _row(block: Block, page: Page, shelves: Sequence[str], organic: list[dict[str, Any]]) -> tuple[Any, ...]:
    versions, timing = Versions(*block.versions[page.versions]), Timing(*block.batches[page.batch])
    return (
        *page[:9],  # page_id to locale
        bool(page.cold_start),
        bool(page.sampled),
        page.degraded.split(LIST) if page.degraded else [],
        [one._asdict() for one in _arms(block, page)],
        shelves,
        *versions,
        timing.size,
        timing.read,
        [{"stage": stage, "us": us} for stage, us in zip(block.stages, timing.stages, strict=True)],
        organic,
    )


def _arms(block: Block, page: Page) -> list[Arm]:
    return [block.arms[int(number)] for number in page.arms.split(LIST)] if page.arms else []


def _organic(block: Block) -> list[tuple[int, dict[str, Any]]]:
    """The shelves that promotion changed, with what they would hold without."""
    found, start = [], 0
    for shelf, items in block.organic:
        keys = block.organic_keys[start : start + items].tolist()
        found.append((shelf, {"shelf": block.shelves[shelf], "item_keys": keys}))
        start += items
    return found


def _items(block: Block) -> pl.DataFrame:
    of_page = np.repeat(np.arange(len(block.pages)), [page.shelves for page in block.pages])  # [shelf]
    counts = block.counts.astype(np.int64)
    shelf = np.repeat(np.arange(len(counts)), counts)  # [item]
    top = np.searchsorted(of_page, of_page)  # [shelf], the first of its page
    page = of_page[shelf] if len(shelf) else shelf
    first_shelf = np.array([one.first_shelf for one in block.pages], np.int64)
    first_place = np.array([one.first_place for one in block.pages], np.int64)
    propensity = np.ones(len(shelf), np.float32)
    for item, value in block.propensities:
        propensity[item] = value
    campaign: list[str | None] = [None] * len(shelf)
    rank: list[int | None] = [None] * len(shelf)
    for item, name, organic_rank in block.placements:
        campaign[item], rank[item] = name, organic_rank
    arms = [[f"{a.experiment}/{a.arm}" for a in _arms(block, one) if a.reason == "bucket"] for one in block.pages]
    return pl.DataFrame(
        {
            "page_id": _taken([one.page_id for one in block.pages], page),
            "served_at": _taken([one.served_ms for one in block.pages], page),
            "user_id": _taken([one.user_id for one in block.pages], page),
            "surface": _taken([one.surface for one in block.pages], page),
            "arms": _taken(arms, page, ITEMS["arms"]),
            "shelf": _taken(block.shelves, shelf),
            "shelf_place": (np.arange(len(counts)) - top)[shelf] + first_shelf[page] if len(shelf) else shelf,
            "place": np.arange(len(shelf)) - np.repeat(np.cumsum(counts) - counts, counts) + first_place[page],
            "item_key": block.item_keys,
            "score": block.scores,
            "propensity": propensity,
            "campaign": campaign,
            "organic_rank": rank,
        },
        schema_overrides=ITEMS,
    )


def _taken(values: Sequence[Any], places: NDArray[np.int64], kind: Any = None) -> pl.Series:
    """Values by their places, each kept once in memory."""
    return pl.Series(values, dtype=kind).gather(places)
