"""Served pages as a block: a line of text per page, columns for shelves and items, tables for what pages share.

A block holds the pages of a few milliseconds. Making one costs microseconds per page because nothing in it is made
per item: item keys and scores are one array each, and what few items have (a paid place, a propensity) is listed apart.
"""

import json
import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

VERSION: Final = 3
FIELD, LINE, LIST = "\x1f", "\x1e", ","  # between fields, between pages, between the entries of a field
_JSON: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)  # made once: it costs as much as its work
_HEAD: Final = struct.Struct("<IIIIII")  # bytes of tables, of lines and of shelf ids; shelves, items, organic items


class Page(NamedTuple):
    """One served page; its shelves and items are the next of the block's."""

    page_id: str
    request_id: str  # another than the page id where a page token was followed
    served_ms: int  # unix milliseconds
    user_id: str
    surface: str
    session: int  # as recent state names it; 0: none was said
    market: str  # resolved
    device: str
    locale: str
    versions: int  # which of the block's
    batch: int  # which of the block's
    cold_start: int  # 0, 1
    sampled: int  # 0, 1: it can be replayed
    shelves: int  # how many
    first_shelf: int  # the place of the first on the page; beyond 0 where a page token was followed
    first_place: int  # the place of the first item on that shelf; beyond 0 where more of a shelf was asked for
    arms: str  # which of the block's, as a list
    degraded: str  # reasons, as a list


_LINE: Final = FIELD.join(["%s"] * len(Page._fields))
_WHOLE: Final = tuple(number for number, kind in enumerate(Page.__annotations__.values()) if kind is int)


class Arm(NamedTuple):
    """An arm that a page was served with."""

    layer: str
    experiment: str
    arm: str
    reason: str


class Versions(NamedTuple):
    """What a page was made from, by digest; "": none."""

    snapshot: str
    experiments: str
    promotions: str
    surfaces: str  # of the surfaces file
    preset: str


class Timing(NamedTuple):
    """What a batch took, in microseconds."""

    size: int
    read: int
    stages: list[int]  # as the block names them


class Placement(NamedTuple):
    """An item that stands by promotion."""

    item: int  # which of the block's
    campaign: str
    organic_rank: int  # its place without promotion; not below the length of the shelf: behind it


class Organic(NamedTuple):
    """A shelf that promotion changed, as it would be without; its item keys are the next of the block's."""

    shelf: int  # which of the block's
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Pages that were served one after the other."""

    pages: list[Page]
    versions: list[Versions]
    stages: list[str]
    batches: list[Timing]
    arms: list[Arm]
    shelves: list[str]  # ids, of all pages from the first, each page's from the top
    counts: NDArray[np.uint8]  # [shelf], how many items it shows
    item_keys: NDArray[np.uint64]  # [item]
    scores: NDArray[np.float32]  # [item], as the listener's client got them
    propensities: list[tuple[int, float]]  # which of the items, how likely it was shown there; others: 1
    placements: list[Placement]
    organic: list[Organic]
    organic_keys: NDArray[np.uint64]  # [organic item]


def encode_block(block: Block) -> bytes:
    """Writes a block. No text in it may hold FIELD or LINE."""
    of_items = block.propensities, block.placements, block.organic
    shared = (VERSION, block.versions, block.stages, block.batches, block.arms, *of_items)
    tables = _JSON.encode(shared).encode()
    lines = LINE.join([_LINE % page for page in block.pages]).encode()
    shelves = FIELD.join(block.shelves).encode()
    counts = len(block.counts), len(block.item_keys), len(block.organic_keys)
    return b"".join(
        (
            _HEAD.pack(len(tables), len(lines), len(shelves), *counts),
            tables,
            lines,
            shelves,
            block.counts.tobytes(),
            block.item_keys.astype("<u8", copy=False).tobytes(),
            block.scores.astype("<f4", copy=False).tobytes(),
            block.organic_keys.astype("<u8", copy=False).tobytes(),
        )
    )


def decode_block(raw: bytes) -> Block:
    """Reads what `encode_block` wrote.

    Raises:
        ValueError: it was not, or by another version.
    """
    try:
        return _decoded(raw)
    except (struct.error, TypeError, IndexError, KeyError) as error:
        raise ValueError("not a block of pages") from error


def _decoded(raw: bytes) -> Block:
    *sizes, shelves, items, organic_items = _HEAD.unpack_from(raw)
    place, texts = _HEAD.size, []
    for size in sizes:
        texts.append(raw[place : place + size].decode())
        place += size
    version, *shared = json.loads(texts[0])
    if version != VERSION:
        raise ValueError(f"pages of version {version}")
    versions, stages, batches, arms, propensities, placements, organic = shared
    columns = []
    for kind, count in (("|u1", shelves), ("<u8", items), ("<f4", items), ("<u8", organic_items)):
        columns.append(np.frombuffer(raw, kind, count, place))
        place += columns[-1].nbytes
    return Block(
        pages=[_page(line) for line in texts[1].split(LINE)] if texts[1] else [],
        versions=[Versions(*one) for one in versions],
        stages=stages,
        batches=[Timing(*one) for one in batches],
        arms=[Arm(*one) for one in arms],
        shelves=texts[2].split(FIELD) if shelves else [],
        counts=columns[0],
        item_keys=columns[1],
        scores=columns[2],
        propensities=[(item, value) for item, value in propensities],
        placements=[Placement(*one) for one in placements],
        organic=[Organic(*one) for one in organic],
        organic_keys=columns[3],
    )


def _page(line: str) -> Page:
    fields: list[Any] = line.split(FIELD)
    for number in _WHOLE:
        fields[number] = int(fields[number])
    return Page(*fields)
