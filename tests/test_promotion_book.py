"""The promotion book: what may be applied, what comes back of it, and its items as rows of a snapshot."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.errors import BookRefused, InvalidInput
from features.snapshot import Snapshot
from ranking.offers import NO_MARKET, market_bit
from ranking.promotions.binding import bound
from ranking.promotions.book import EMPTY, MAX_BLOB, MAX_JSON, Book, bind, open_book
from ranking.promotions.spec import ALL, Campaign, Feed, Spec, scores_of
from tests.promotion_books import EVERYTHING, spec_of

Row = tuple[int, str, float, int]


def spec(*rows: Row, campaigns: int = 2, **fields: Any) -> Spec:
    """Campaigns of one feed with scores; the first has other fields."""
    made = [Campaign(id=f"c{number}", feed="f") for number in range(campaigns)]
    said = {"id": "c0", "feed": "f", **fields}
    made[0] = Campaign(**{name: value for name, value in said.items() if value is not None})
    return Spec(feeds=(Feed(id="f", payer="Label"),), campaigns=tuple(made), scores=scores_of(rows))


GOOD: tuple[Row, ...] = ((0, "a", 0.5, ALL), (0, "b", 1.0, 0), (0, "b", 0.0, 31), (1, "a", 0.25, ALL))


def read(book: Book) -> Book:
    """A book as a worker reads it."""
    _, whole = open_book(book.raw, book.digest)
    return whole(book.blobs)


def test_a_book_comes_back_as_it_was_written() -> None:
    """Feeds, campaigns and every score; the same spec has the same name."""
    said = spec(*GOOD, why={"en": "Because", "de": "Weil"}, since=5, until=9, markets=("GB", "DE"), segments=(0, 31))
    book = read(bind(said))
    assert (book.feeds, book.campaigns) == (said.feeds, said.campaigns)
    columns = (
        book.scores.campaign.tolist(),
        book.scores.item_ids,
        book.scores.score.tolist(),
        book.scores.segment.tolist(),
    )
    assert tuple(zip(*columns, strict=True)) == GOOD
    assert [mark.payer for mark in book.marks] == ["Label"] * 2
    assert bind(said).digest == book.digest != bind(spec(*GOOD)).digest
    assert read(EMPTY).campaigns == ()


@pytest.mark.parametrize(
    ("said", "path"),
    [
        (spec((0, "a", float("nan"), ALL), (1, "a", 1, ALL)), "campaigns[0].items[0].score"),
        (spec((0, "a", 1, ALL), (0, "b", 1e30, ALL), (1, "a", 1, ALL)), "campaigns[0].items[1].score"),
        (spec((0, "a", 1, ALL), (1, "a", -0.001, ALL)), "campaigns[1].items[0].score"),
        (spec((0, "a", 1, 32), (1, "a", 1, ALL)), "campaigns[0].items[0].segment"),
        (spec((0, "a", 1, 3), (0, "a", 1, 3), (1, "a", 1, ALL)), "campaigns[0].items[1].item_id"),
        (spec((0, "a", 1, ALL), (0, "a", 1, 3), (1, "a", 1, ALL)), "campaigns[0].items[1].item_id"),
        (spec((0, "", 1, ALL), (1, "a", 1, ALL)), "campaigns[0].items[0].item_id"),
        (spec((0, "x" * 256, 1, ALL), (1, "a", 1, ALL)), "campaigns[0].items[0].item_id"),
        (spec((0, "a", 1, ALL)), "campaigns[1].items"),
        (spec((1, "a", 1, ALL), (0, "a", 1, ALL)), "items"),
        (spec(*GOOD, feed="g"), "campaigns[0].feed"),
        (spec(*GOOD, feed=None), "campaigns[0].payer"),
        (spec(*GOOD, payer="Me"), "campaigns[0].payer"),
        (spec(*GOOD, id="c1"), "campaigns[1].id"),
        (spec(*GOOD, since=9, until=9), "campaigns[0].until"),
    ],
    ids=str,
)
def test_a_mistake_is_named_by_its_path(said: Spec, path: str) -> None:
    """When it is written, and when it is read."""
    with pytest.raises(InvalidInput) as caught:
        bind(said)
    assert [where for where, _ in caught.value.violations] == [path]


def test_a_book_that_is_not_what_it_says_is_refused() -> None:
    """Another name, too long, unknown fields, a blob that is missing or altered."""
    book = bind(spec(*GOOD))
    named, whole = open_book(book.raw, book.digest)
    assert set(named) == set(book.blobs)
    for raw, digest in ((book.raw, "0" * 64), (b" " * (MAX_JSON + 1), book.digest)):
        with pytest.raises(BookRefused):
            open_book(raw, digest)
    for name in named:
        for blob in (b"", book.blobs[name] + b"x", book.blobs[name][:-1], b"x" * (MAX_BLOB + 1)):
            with pytest.raises(BookRefused):
                whole({**book.blobs, name: blob})


def test_ten_thousand_campaigns_of_fifty_items_fit() -> None:
    """JSON within 1 MB, blobs within their bound; what is read is what was written."""
    rows = [(number, f"t{(number * 50 + item) % 9973}", 0.5, ALL) for number in range(10_000) for item in range(50)]
    said = spec(*rows, campaigns=10_000)
    book = bind(said)
    assert len(book.raw) < MAX_JSON
    assert max(map(len, book.blobs.values())) < MAX_BLOB
    again = read(book)
    assert np.array_equal(again.scores.item_key, said.scores.item_key)
    assert again.campaigns == said.campaigns


def test_a_book_is_bound_to_the_rows_of_a_snapshot(snapshot: Snapshot) -> None:
    """Each score of an item that it has, by row and then by the campaigns' order; nothing of unknown items or of 0."""
    said = spec_of(
        ({}, {**dict.fromkeys(EVERYTHING[:40], 0.5), "none": 1.0}),
        ({"payer": "Me"}, {EVERYTHING[7]: 1.0, EVERYTHING[8]: 0.0}),
    )
    found = bound(bind(said), snapshot)
    scores = found.promotions.scores
    assert (len(scores), found.unknown, found.snapshot) == (41, 1, snapshot.digest)
    order = list(zip(scores["row"].tolist(), scores["campaign"].tolist(), strict=True))
    assert order == sorted(order)
    (row,) = snapshot.rows_of(said.scores.item_key[[7]])
    first, last = found.promotions.block[row >> found.promotions.shift :][:2]
    assert scores["score"][first:last].tolist() == [0.5, 1.0]
    assert found.promotions.campaigns["fades"].tolist() == [True, False]
    assert found.promotions.campaigns["confirmed"].tolist() == [0, 0]
    assert found.confirmed({"discovery": 5}).promotions.campaigns["confirmed"].tolist() == [5, 0]


def test_rules_become_bits(snapshot: Snapshot) -> None:
    """What is empty admits everybody; a market admits its own, and nobody without one."""
    rules = {
        "markets": ("GB", "DE"),
        "segments": (0, 31),
        "shelves": ("taste",),
        "minimum_plays": 7,
        "since": 5,
        "until": 9,
    }
    said = spec_of(({}, EVERYTHING[:1]), (rules, EVERYTHING[:1]))
    every, some = bound(bind(said), snapshot).promotions.campaigns
    for market in ("GB", "DE", "FR", "ZZ", "AA", ""):
        bit = market_bit(market)
        assert int(every["markets"][bit // 64]) >> bit % 64 & 1
        assert (int(some["markets"][bit // 64]) >> bit % 64 & 1) == (market in {"GB", "DE"})
    assert [segment for segment in range(33) if int(some["segments"]) >> segment & 1] == [0, 31]
    assert int(some["sources"]).bit_count() == 1
    assert (some["plays"], some["since"], some["until"]) == (7, 5, 9)
    assert {market_bit(one) for one in ("", "gb", "GBR", "G1", "ÄÖ", "\x00\x00")} == {NO_MARKET}


@pytest.mark.parametrize("items", [1, 2, 2000, 1 << 17, (1 << 17) + 1, 10_000_000])
def test_scores_of_a_row_are_found_in_catalogues_of_any_size(snapshot: Snapshot, items: int) -> None:
    """By block and halving, as by looking through all."""
    from ranking.offers import SCORE, _of_row, indexed, open_campaigns  # noqa: PLC0415

    rng = np.random.default_rng(items)
    scores = np.zeros(5000, SCORE)
    scores["row"] = rng.integers(0, min(items, 4000), 5000) * (items // min(items, 4000))
    scores["campaign"] = rng.integers(0, 9, 5000)
    found = indexed(scores, open_campaigns(9), items)
    assert len(found.block) <= (1 << 17) + 2
    for row in (0, items - 1, *rng.integers(0, items, 200).tolist(), *scores["row"][:200].tolist()):
        own = _of_row(found.block, found.shift, found.scores, row)
        assert own.tolist() == found.scores[found.scores["row"] == row].tolist()
    del snapshot


def test_canonical_json_names_nothing_that_was_not_said() -> None:
    """A campaign of defaults is an id and a feed."""
    book = bind(spec(*GOOD))
    assert json.loads(book.raw).keys() == {"format", "feeds", "campaigns", "scores"}
    assert replace(book).digest == book.digest
