"""The promotion book: an immutable version of what is promoted.

Its JSON is canonical, its name the SHA-256 of that. Campaigns, as lines of JSON, and scores, as columns, lie beside it
as compressed blobs, named in it by their SHA-256: 10,000 campaigns of 50 items are 0.1 and 2 MB so.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from features.errors import BookRefused, InvalidInput
from ranking.promotions.rules import mistakes
from ranking.promotions.spec import (
    MOST_FEEDS,
    MOST_SCORES,
    Campaign,
    Feed,
    Mark,
    Scores,
    Spec,
    read_lines,
    scores_from,
    scores_of,
)
from ranking.written import Digest, Violation, Written, refused, violations

MAX_JSON: Final = 1 << 20  # bytes
MAX_BLOB: Final = 1 << 24  # bytes, compressed
MAX_UNPACKED: Final = 1 << 26
_LEVEL: Final = 1  # 500,000 scores: 0.1 s and 2 MB; 6 takes 1 s for a tenth less
_MAGIC: Final = b"MS1\0"
_HEAD: Final = struct.Struct("<4sI")  # magic, how many scores
_COLUMNS: Final = ("<i4", "i1", "<f4", "u1")  # campaign, segment, score, bytes of the item id; then the ids


class _Said(Written):
    """A book as its JSON says it."""

    format: Literal[1] = 1
    feeds: tuple[Feed, ...] = Field(max_length=MOST_FEEDS)
    campaigns: Digest  # lines of JSON
    scores: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """A book."""

    feeds: tuple[Feed, ...]
    campaigns: tuple[Campaign, ...]
    scores: Scores
    marks: tuple[Mark, ...]  # [campaign], what listeners are told
    raw: bytes  # the canonical JSON
    blobs: Mapping[str, bytes]  # by digest
    digest: str


def bind(spec: Spec) -> Book:
    """A book of what is to be promoted.

    Raises:
        InvalidInput: naming every field that breaks a rule, or the book is too large.
    """
    if wrong := list(mistakes(spec)):
        raise InvalidInput(*wrong)
    lines = b"\n".join(_canonical(one.model_dump(mode="json", exclude_defaults=True)) for one in spec.campaigns)
    packed = {
        name: zlib.compress(raw, _LEVEL) for name, raw in (("campaigns", lines), ("scores", _packed(spec.scores)))
    }
    digests = {name: digest_of(blob) for name, blob in packed.items()}
    said = {"format": 1, "feeds": [feed.model_dump(mode="json") for feed in spec.feeds], **digests}
    raw = _canonical(said)
    if len(raw) > MAX_JSON or max(map(len, packed.values())) > MAX_BLOB or len(lines) > MAX_UNPACKED:
        raise InvalidInput(("spec", "makes too large a book"))
    return _book(spec, raw, {digests[name]: blob for name, blob in packed.items()})


def open_book(raw: bytes, digest: str) -> tuple[Collection[str], Callable[[Mapping[str, bytes]], Book]]:
    """The blobs that a book's JSON names, and what makes the book of them; sizes are looked at before contents.

    Raises:
        BookRefused: it is too large, altered, or breaks a rule; so does what it answers.
    """
    if len(raw) > MAX_JSON:
        raise BookRefused(f"the JSON is larger than {MAX_JSON:,} bytes")
    if digest_of(raw) != digest:
        raise BookRefused("the JSON is not what its name says")
    try:
        said = _Said.model_validate_json(raw)
    except ValidationError as error:
        raise refused(violations(error)) from error
    return frozenset((said.campaigns, said.scores)), partial(_whole, raw, said)


def _whole(raw: bytes, said: _Said, blobs: Mapping[str, bytes]) -> Book:
    for name, digest in (("campaigns", said.campaigns), ("scores", said.scores)):
        if len(blobs[digest]) > MAX_BLOB or digest_of(blobs[digest]) != digest:
            raise BookRefused(f"{name}: the blob is missing, altered, or larger than {MAX_BLOB:,} bytes")
    wrong: list[Violation] = []
    lines = _inflated("campaigns", blobs[said.campaigns]).splitlines()
    spec = Spec(
        feeds=said.feeds,
        campaigns=read_lines(Campaign, lines, "campaigns", wrong),
        scores=_unpacked(blobs[said.scores]),
    )
    if wrong := wrong or list(mistakes(spec)):
        raise refused(wrong)
    return _book(spec, raw, {digest: blobs[digest] for digest in (said.campaigns, said.scores)})


def _book(spec: Spec, raw: bytes, blobs: Mapping[str, bytes]) -> Book:
    of_feed = {feed.id: feed.payer for feed in spec.feeds}
    return Book(
        feeds=spec.feeds,
        campaigns=spec.campaigns,
        scores=spec.scores,
        marks=tuple(_mark(one, of_feed) for one in spec.campaigns),
        raw=raw,
        blobs=blobs,
        digest=digest_of(raw),
    )


def _mark(campaign: Campaign, of_feed: Mapping[str, str]) -> Mark:
    why = {locale.lower(): sentence for locale, sentence in campaign.why.items()}
    return Mark(id=campaign.id, payer=campaign.payer or of_feed[campaign.feed], why=why)


def digest_of(content: bytes) -> str:
    """The SHA-256 of a book's JSON or of a blob, which is its name."""
    return hashlib.sha256(content).hexdigest()


def _canonical(said: Any) -> bytes:
    """The one JSON of a value: keys sorted, no spaces."""
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _packed(scores: Scores) -> bytes:
    columns: tuple[NDArray[Any], ...] = (scores.campaign, scores.segment, scores.score, scores.size)
    body = (column.astype(kind).tobytes() for column, kind in zip(columns, _COLUMNS, strict=True))
    return b"".join((_HEAD.pack(_MAGIC, len(scores)), *body, scores.ids))


def _unpacked(blob: bytes) -> Scores:
    """Reads what `_packed` wrote and was compressed.

    Raises:
        BookRefused: it is not that.
    """
    raw = _inflated("scores", blob)
    magic, count = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (b"", 0)
    start, columns = _HEAD.size, list[NDArray[Any]]()
    width = sum(np.dtype(kind).itemsize for kind in _COLUMNS)
    if magic != _MAGIC or count > MOST_SCORES or len(raw) < start + width * count:
        raise BookRefused(f"scores: are not in the format, or more than {MOST_SCORES:,}")
    for kind in _COLUMNS:
        columns.append(np.frombuffer(raw, kind, count, start))
        start += columns[-1].nbytes
    campaign, segment, score, size = columns
    if len(raw) - start != size.sum(dtype=np.int64):
        raise BookRefused("scores: the item ids are not as long as they say")
    return scores_from(campaign, segment, score, size.astype(np.int64), raw[start:])


def _inflated(name: str, blob: bytes) -> bytes:
    """What was compressed; never more than is allowed."""
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(blob, MAX_UNPACKED)
    except zlib.error as error:
        raise BookRefused(f"{name}: the blob cannot be inflated") from error
    if not reader.eof or reader.unused_data:
        raise BookRefused(f"{name}: the blob is cut short, or larger than {MAX_UNPACKED:,} bytes inflated")
    return raw


EMPTY: Final = bind(Spec(feeds=(), campaigns=(), scores=scores_of(())))
"""The book before the first."""
