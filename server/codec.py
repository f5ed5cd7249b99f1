"""A page becomes the bytes of a response.

A page is joined, not built: an item is its card, encoded when the snapshot was built, followed by its dynamic fields;
a shelf is its head followed by its items (joining.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.promotions.spec import Mark
from ranking.surfaces import ShelfSpec, Why, spoken
from ranking.types import WORLDWIDE, Home, Insertion, Shelf
from server.joining import Bytes, Cards, join, pieces, wrap
from server.tracking import TOP, Slot, Stamp, token_length, write_tokens

SHELVES_TAG: Final = home_pb2.GetHomeResponse.SHELVES_FIELD_NUMBER << 3 | 2
SHELF_TAG: Final = home_pb2.GetShelfResponse.SHELF_FIELD_NUMBER << 3 | 2
_ITEMS_TAG: Final = home_pb2.Shelf.ITEMS_FIELD_NUMBER << 3 | 2
_RANKED_TAG: Final = home_pb2.RankItemsResponse.ITEMS_FIELD_NUMBER << 3 | 2
_SCORE: Final = 6  # bytes of a score with its tag
_SCORE_TAG: Final = np.frombuffer(home_pb2.Item(score=1).SerializeToString()[:2], np.uint8)  # two for fields from 16 on
_NO_ROWS: Final = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty(0)
PROMOTED: Final = {
    "en": "It fits here, and {0} pays for its place",
    "de": "Es passt hierher, und {0} bezahlt für den Platz",
    "fr": "Il a sa place ici, et {0} paie pour cela",
    "es": "Encaja aquí, y {0} paga por su lugar",
}
"""Why something stands by promotion, where its campaign does not say."""

_REASONS: Final[Mapping[Why, home_pb2.ReasonCode.ValueType]] = {
    "taste": home_pb2.REASON_CODE_YOUR_TASTE,
    "popular": home_pb2.REASON_CODE_POPULAR_IN_MARKET,
    "editorial": home_pb2.REASON_CODE_EDITORS_CHOICE,
    "discover": home_pb2.REASON_CODE_DISCOVER,
    "genre": home_pb2.REASON_CODE_GENRE,
    "neighbours": home_pb2.REASON_CODE_BECAUSE_YOU_PLAY,
    "history": home_pb2.REASON_CODE_PLAYED_RECENTLY,
    "newest": home_pb2.REASON_CODE_NEW_RELEASE,
    "similar": home_pb2.REASON_CODE_SIMILAR,
    "everywhere": home_pb2.REASON_CODE_POPULAR_IN_MARKET,
}


class Because(NamedTuple):
    """Why a shelf is shown: the fields of a Reason."""

    code: home_pb2.ReasonCode.ValueType
    args: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Shelves as they will be said; what remains is to join the cards of their items."""

    heads: Sequence[bytes]  # [shelf], a Shelf without its items
    lengths: NDArray[np.int64]  # [shelf], how many items
    rows: NDArray[np.int64]  # [item]
    scores: NDArray[np.floating]  # [item]
    extras: Mapping[int, bytes]  # by item: what it tells beside card, score and token
    first: Slot = TOP  # where the first item stands on its page


def encode_home(  # what a response tells
    home: Home,
    snapshot: Snapshot,
    *,
    locale: str,
    request_id: str,
    stamp: Stamp | None = None,
    next_page_token: str = "",
) -> bytes:
    """A page as the bytes of a GetHomeResponse; without a stamp its items carry no tracking tokens."""
    envelope = home_pb2.GetHomeResponse(
        request_id=request_id, snapshot_version=snapshot.digest, next_page_token=next_page_token
    )
    shelves = join_shelves(say(home, home.shelves, snapshot, locale), snapshot, stamp, SHELVES_TAG)
    return b"".join((shelves, home_envelope(home), envelope.SerializeToString()))


def encode_shelf(  # as above
    home: Home,
    snapshot: Snapshot,
    *,
    locale: str,
    request_id: str,
    stamp: Stamp | None = None,
    next_page_token: str = "",
) -> bytes:
    """A page of at most one shelf as the bytes of a GetShelfResponse."""
    envelope = home_pb2.GetShelfResponse(
        request_id=request_id, snapshot_version=snapshot.digest, next_page_token=next_page_token
    )
    shelves = join_shelves(say(home, home.shelves, snapshot, locale), snapshot, stamp, SHELF_TAG)
    return b"".join((shelves, shelf_envelope(home), envelope.SerializeToString()))


def encode_ranked(
    home: Home, snapshot: Snapshot, dropped: Iterable[home_pb2.ItemFate], *, locale: str, request_id: str
) -> bytes:
    """A page of the caller's own candidates as the bytes of a RankItemsResponse."""
    envelope = home_pb2.RankItemsResponse(
        dropped=dropped,
        request_id=request_id,
        cold_start=home.cold_start,
        degraded=bool(home.degraded),
        degraded_reasons=_reasons(home),
        snapshot_version=snapshot.digest,
        notes=_notes(home),
        assignments=_assignments(home),
        experiment_book_version=home.experiment_book,
    )
    words, parts = say(home, home.shelves, snapshot, locale), list[bytes]()
    for shelf in home.shelves:
        because = _reason(shelf.spec, shelf.why, _reason_args(shelf, snapshot, home.market), locale)
        reason = home_pb2.Reason(**because._asdict())
        why = home_pb2.Item(reason=reason).SerializeToString()
        extras = dict.fromkeys(range(len(shelf.rows)), why)
        items, _ = _items(replace(words, extras=extras), snapshot, None, _RANKED_TAG)
        parts.append(items.tobytes())
    return b"".join((*parts, envelope.SerializeToString()))


def home_envelope(home: Home) -> bytes:
    """What every part of a page tells beside its shelves, as the bytes of a GetHomeResponse."""
    return home_pb2.GetHomeResponse(
        cold_start=home.cold_start,
        degraded=bool(home.degraded),
        degraded_reasons=_reasons(home),
        coverage=home.coverage,
        notes=_notes(home),
        assignments=_assignments(home),
        experiment_book_version=home.experiment_book,
        promotion_book_version=home.promotion_book,
    ).SerializeToString()


def shelf_envelope(home: Home) -> bytes:
    """What every part of a shelf tells beside its items, as the bytes of a GetShelfResponse."""
    return home_pb2.GetShelfResponse(
        cold_start=home.cold_start,
        degraded=bool(home.degraded),
        degraded_reasons=_reasons(home),
        notes=_notes(home),
        assignments=_assignments(home),
        experiment_book_version=home.experiment_book,
        promotion_book_version=home.promotion_book,
    ).SerializeToString()


def item_id_of(snapshot: Snapshot, row: int) -> str:
    """The id of a row's item, from its card."""
    start, stop = snapshot.columns["card_offset"][row : row + 2].tolist()
    return home_pb2.Item.FromString(snapshot.cards[start:stop]).item_id


def _reasons(home: Home) -> "list[home_pb2.DegradedReason.ValueType]":
    return [home_pb2.DegradedReason.Value(f"DEGRADED_REASON_{reason}") for reason in home.degraded]


def _notes(home: Home) -> "list[home_pb2.Note.ValueType]":
    return [home_pb2.NOTE_LISTENER_FOLDED_IN] if home.folded_in else []


def _assignments(home: Home) -> list[home_pb2.Assignment]:
    return [
        home_pb2.Assignment(experiment=one.experiment, arm=one.arm, layer=one.layer, reason=one.reason.value)
        for one in home.assignments
    ]


def say(home: Home, shelves: Sequence[Shelf], snapshot: Snapshot, locale: str) -> Words:
    """Some shelves of a page, in words."""
    heads, extras, first = [], dict[int, bytes](), 0
    for shelf in shelves:
        heads.append(_head(shelf.spec, shelf.why, _reason_args(shelf, snapshot, home.market), locale))
        if shelf.why != "newest" and True in shelf.new.tolist():  # .2 us; shelf.new.any() takes 1
            new = _newly_released(shelf, locale)
            extras.update((first + place, new) for place in np.flatnonzero(shelf.new).tolist())
        if shelf.inserted is not None:
            for place, mark in _marks(shelf.inserted, home.campaigns, locale):
                extras[first + place] = extras.get(first + place, b"") + mark
        first += len(shelf.rows)
    return Words(
        heads=heads,
        lengths=np.array([len(shelf.rows) for shelf in shelves], np.int64),
        rows=np.concatenate([shelf.rows for shelf in shelves] or [_NO_ROWS]),
        scores=np.concatenate([shelf.scores for shelf in shelves] or [_NO_SCORES]),
        extras=extras,
    )


def _marks(inserted: Insertion, campaigns: Sequence[Mark], locale: str) -> Iterator[tuple[int, bytes]]:
    """By place, who paid for it and why it stands there, as the bytes of an Item."""
    for place, number in enumerate(inserted.campaign.tolist()):
        if number >= 0:
            one = campaigns[number]
            why = spoken(one.why, locale) or _filled(spoken(PROMOTED, locale), [one.payer])
            mark = home_pb2.PromotionMark(id=one.id, payer=one.payer, why=why)
            yield place, home_pb2.Item(promotion=mark).SerializeToString()


def join_shelves(words: Words, snapshot: Snapshot, stamp: Stamp | None, tag: int) -> bytes:
    """Shelves as a repeated field of a message; those that lost all items are left out."""
    items, ends = _items(words, snapshot, stamp, _ITEMS_TAG)
    return wrap(pieces(words.heads, len(words.heads)), words.lengths, items, ends, tag).tobytes()


def _items(words: Words, snapshot: Snapshot, stamp: Stamp | None, tag: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Items as fields, and where each ends; of row -1 nothing."""
    cards = Cards(np.frombuffer(snapshot.cards, np.uint8), snapshot.columns["card_offset"].view(np.int64))
    extras = [words.extras.get(item, b"") for item in range(len(words.rows))] if words.extras else []
    return join(cards, words.rows, _tails(words, snapshot, stamp), pieces(extras, len(words.rows)), tag)


def _tails(words: Words, snapshot: Snapshot, stamp: Stamp | None) -> Bytes:
    """The scores of items, and their tokens where there is a stamp, as fields, `[item, byte]`."""
    count, length = len(words.rows), 0 if stamp is None else token_length(stamp)
    head = _token_head(length)
    tails = np.empty((count, _SCORE + len(head) + length), np.uint8)
    tails[:, :2] = _SCORE_TAG
    tails[:, 2:_SCORE] = words.scores.astype("<f4").view(np.uint8).reshape(count, 4)
    if stamp is not None:
        tails[:, _SCORE : _SCORE + len(head)] = np.frombuffer(head, np.uint8)
        write_tokens(stamp, snapshot.columns["item_key"][words.rows], words.lengths, words.first, tails)
    return tails


@cache
def _token_head(length: int) -> bytes:
    """What stands before a token of so many characters, in an Item; before none nothing."""
    return home_pb2.Item(tracking_token=" " * length).SerializeToString()[:-length] if length else b""


def _reason(spec: ShelfSpec, why: Why, args: tuple[str, ...], locale: str) -> Because:
    """Why a shelf is shown, rendered."""
    said: Why = "everywhere" if args == (WORLDWIDE,) else why
    return Because(_REASONS[said], args, _filled(spoken(spec.reasons.get(said, {}), locale), args))


@lru_cache(maxsize=4096)
def _head(spec: ShelfSpec, why: Why, args: tuple[str, ...], locale: str) -> bytes:
    """A Shelf without its items. Most are those of many listeners: five are built in 17 us, and found in .3."""
    because = _reason(spec, why, args, locale)
    title = _filled(spoken(spec.titles, locale), args)
    reason = home_pb2.Reason(**because._asdict())
    return home_pb2.Shelf(id=spec.id, kind=spec.source, title=title, reason=reason).SerializeToString()


def _newly_released(shelf: Shelf, locale: str) -> bytes:
    """The reason of a newly released item on a shelf of other things, as the bytes of an Item."""
    text = spoken(shelf.spec.reasons.get("newest", {}), locale)
    reason = home_pb2.Reason(code=home_pb2.REASON_CODE_NEW_RELEASE, text=text)
    return home_pb2.Item(reason=reason).SerializeToString()


def _reason_args(shelf: Shelf, snapshot: Snapshot, market: str) -> tuple[str, ...]:
    """What the reason is of: a market, the title of an item, or a genre."""
    if shelf.why == "popular":
        return (market if market in snapshot.market_index else WORLDWIDE,)
    if shelf.why in {"neighbours", "similar"}:
        start, stop = snapshot.columns["card_offset"][shelf.subject : shelf.subject + 2].tolist()
        return (home_pb2.Item.FromString(snapshot.cards[start:stop]).title,)
    if shelf.why == "genre":
        return (snapshot.manifest.genres[shelf.subject],)
    return ()


def _filled(text: str, args: Sequence[str]) -> str:
    """A heading or phrase with its reason's argument in place of "{0}"."""
    return text.replace("{0}", args[0] if args else "")
