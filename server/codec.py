"""A page becomes the bytes of a response.

A page is joined, not built: an item is its card, encoded when the snapshot was built, followed by its dynamic fields;
a shelf is its head followed by its items. Measured for six shelves of twelve: joining takes 55 us, 15 of them for the
heads; building the messages takes 70, with every field already at hand or merged from the card.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.promotions.spec import Mark
from ranking.surfaces import Why, spoken
from ranking.types import WORLDWIDE, Home, Insertion, Shelf
from server.tracking import TOP, Slot, Stamp, token_length, write_tokens

SHELVES_TAG: Final = bytes([home_pb2.GetHomeResponse.SHELVES_FIELD_NUMBER << 3 | 2])
SHELF_TAG: Final = bytes([home_pb2.GetShelfResponse.SHELF_FIELD_NUMBER << 3 | 2])
_ITEMS_TAG: Final = bytes([home_pb2.Shelf.ITEMS_FIELD_NUMBER << 3 | 2])
_RANKED_TAG: Final = bytes([home_pb2.RankItemsResponse.ITEMS_FIELD_NUMBER << 3 | 2])
_SCORE: Final = 6  # bytes of a score with its tag
_SCORE_TAG: Final = np.frombuffer(home_pb2.Item(score=1).SerializeToString()[:2], np.uint8)  # two for fields from 16 on
_TOKEN_TAG: Final = home_pb2.Item(tracking_token=" ").SerializeToString()[:2]  # noqa: S106  # a blank
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
    parts = join_shelves(say(home, home.shelves, snapshot, locale), snapshot, stamp, SHELVES_TAG)
    return b"".join((*parts, home_envelope(home), envelope.SerializeToString()))


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
    parts = join_shelves(say(home, home.shelves, snapshot, locale), snapshot, stamp, SHELF_TAG)
    return b"".join((*parts, shelf_envelope(home), envelope.SerializeToString()))


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
        why = home_pb2.Item(reason=_reason(shelf, snapshot, home.market, locale)).SerializeToString()
        parts += _items(replace(words, extras=dict.fromkeys(range(len(shelf.rows)), why)), snapshot, None, _RANKED_TAG)
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
        reason = _reason(shelf, snapshot, home.market, locale)
        title = _filled(spoken(shelf.spec.titles, locale), reason.args)
        head = home_pb2.Shelf(id=shelf.spec.id, kind=shelf.spec.source, title=title, reason=reason)
        heads.append(head.SerializeToString())
        if shelf.why != "newest" and shelf.new.any():
            new = _newly_released(shelf, locale)
            extras.update((first + place, new) for place in np.flatnonzero(shelf.new).tolist())
        if shelf.inserted is not None:
            for place, mark in _marks(shelf.inserted, home.campaigns, locale):
                extras[first + place] = extras.get(first + place, b"") + mark
        first += len(shelf.rows)
    return Words(
        heads=heads,
        lengths=np.array([len(shelf.rows) for shelf in shelves], np.int64),
        rows=np.concatenate([_NO_ROWS, *(shelf.rows for shelf in shelves)]),
        scores=np.concatenate([_NO_SCORES, *(shelf.scores for shelf in shelves)]),
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


def join_shelves(words: Words, snapshot: Snapshot, stamp: Stamp | None, tag: bytes) -> list[bytes]:
    """Shelves as the parts of a repeated field: tag, length, head, items; those that lost all items are left out."""
    items, parts, first = _items(words, snapshot, stamp, _ITEMS_TAG), list[bytes](), 0
    for head, length in zip(words.heads, words.lengths.tolist(), strict=True):
        body = b"".join((head, *items[first : first + length]))
        if len(body) > len(head) or not length:
            parts += (tag, _varint(len(body)), body)
        first += length
    return parts


def _items(words: Words, snapshot: Snapshot, stamp: Stamp | None, tag: bytes) -> list[bytes]:
    """Items as fields, `[item]`: tag, length, card, and what is made per request; of row -1 nothing."""
    offsets, cards, extras = snapshot.columns["card_offset"], snapshot.cards, words.extras
    tails, width = _tails(words, snapshot, stamp)
    starts, stops = offsets[words.rows].tolist(), offsets[words.rows + 1].tolist()
    items: list[bytes] = []
    for item, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if stop < start:  # row -1: from the end of the cards to their beginning
            items.append(b"")
            continue
        tail = tails[item * width : (item + 1) * width]
        if item in extras:
            tail += extras[item]
        items.append(b"".join((tag, _varint(stop - start + len(tail)), cards[start:stop], tail)))
    return items


def _tails(words: Words, snapshot: Snapshot, stamp: Stamp | None) -> tuple[bytes, int]:
    """The scores of items, and their tokens where there is a stamp, as fields of equal width, one after another."""
    count, length = len(words.rows), 0 if stamp is None else token_length(stamp)
    head = b"" if stamp is None else _TOKEN_TAG + _varint(length)
    tails = np.empty((count, _SCORE + len(head) + length), np.uint8)
    tails[:, :2] = _SCORE_TAG
    tails[:, 2:_SCORE] = words.scores.astype("<f4").view(np.uint8).reshape(count, 4)
    if stamp is not None:
        tails[:, _SCORE : _SCORE + len(head)] = np.frombuffer(head, np.uint8)
        write_tokens(stamp, snapshot.columns["item_key"][words.rows], words.lengths, words.first, tails)
    return tails.tobytes(), tails.shape[1]


def _reason(shelf: Shelf, snapshot: Snapshot, market: str, locale: str) -> home_pb2.Reason:
    """Why a shelf is shown, rendered."""
    args = _reason_args(shelf, snapshot, market)
    why: Why = "everywhere" if args == [WORLDWIDE] else shelf.why
    text = _filled(spoken(shelf.spec.reasons.get(why, {}), locale), args)
    return home_pb2.Reason(code=_REASONS[why], args=args, text=text)


def _newly_released(shelf: Shelf, locale: str) -> bytes:
    """The reason of a newly released item on a shelf of other things, as the bytes of an Item."""
    text = spoken(shelf.spec.reasons.get("newest", {}), locale)
    reason = home_pb2.Reason(code=home_pb2.REASON_CODE_NEW_RELEASE, text=text)
    return home_pb2.Item(reason=reason).SerializeToString()


def _reason_args(shelf: Shelf, snapshot: Snapshot, market: str) -> list[str]:
    """What the reason is of: a market, the title of an item, or a genre."""
    if shelf.why == "popular":
        return [market if market in snapshot.market_index else WORLDWIDE]
    if shelf.why in {"neighbours", "similar"}:
        start, stop = snapshot.columns["card_offset"][shelf.subject : shelf.subject + 2].tolist()
        return [home_pb2.Item.FromString(snapshot.cards[start:stop]).title]
    if shelf.why == "genre":
        return [snapshot.manifest.genres[shelf.subject]]
    return []


def _filled(text: str, args: Sequence[str]) -> str:
    """A heading or phrase with its reason's argument in place of "{0}"."""
    return text.replace("{0}", args[0] if args else "")


def _varint(number: int) -> bytes:
    return _VARINTS[number] if number < len(_VARINTS) else _encoded(number)


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS: Final = tuple(map(_encoded, range(4096)))  # encoding them anew took 18 us a page
