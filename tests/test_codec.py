"""Joined bytes are the message that ordinary building gives; words are said in the listener's language."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.offline.cards import KINDS, encode_cards
from features.snapshot import Snapshot
from protos.home.v1 import home_pb2
from ranking.promotions.spec import Mark
from ranking.surfaces import Reasons, ShelfSpec, Source, spoken
from ranking.types import Degraded, Home, Insertion, Shelf
from server.codec import encode_home
from server.signing import SigningKey
from server.tracking import Slot, Stamp, stamp, token_length, write_tokens
from tests.conftest import Served, Store, serving
from tests.wire import get_home, page_of

NEW = {"en": "Just out"}
TITLES = {"en": "Picked {0}", "de": "Ausgewählt", "de-at": "Ausg'sucht"}
REASONS = {
    "taste": home_pb2.REASON_CODE_YOUR_TASTE,
    "popular": home_pb2.REASON_CODE_POPULAR_IN_MARKET,
    "editorial": home_pb2.REASON_CODE_EDITORS_CHOICE,
    "discover": home_pb2.REASON_CODE_DISCOVER,
    "genre": home_pb2.REASON_CODE_GENRE,
    "neighbours": home_pb2.REASON_CODE_BECAUSE_YOU_PLAY,
    "history": home_pb2.REASON_CODE_PLAYED_RECENTLY,
    "newest": home_pb2.REASON_CODE_NEW_RELEASE,
}
STATIC = {"item_id", "kind", "title", "subtitle", "image_uri", "explicit"}


def spec(source: Source) -> ShelfSpec:
    """A shelf of one source."""
    reasons: Reasons = {source: {"en": f"Because of {source} {{0}}"}, "newest": NEW, "everywhere": {"en": "Everywhere"}}
    return ShelfSpec(id=f"of-{source}", source=source, titles=TITLES, reasons=reasons, item_keys={})


CAMPAIGNS = (Mark(id="c0", payer="Me", why={}), Mark(id="c1", payer="Müller", why={"en": "Because"}))


def shelf_of(
    source: Source,
    rows: NDArray[np.int64],
    scores: NDArray[np.float64],
    subject: int = -1,
    campaign: NDArray[np.int64] | None = None,
) -> Shelf:
    """A shelf; every third item is new."""
    inserted = None if campaign is None else Insertion(campaign=campaign, organic_rank=rows, organic=rows)
    return Shelf(
        spec=spec(source),
        why=source,
        subject=subject,
        rows=rows,
        scores=scores,
        new=rows % 3 == 0,
        propensity=np.ones(len(rows)),
        inserted=inserted,
    )


def token_of(shared: Stamp, snapshot: Snapshot, row: int, slot: Slot) -> str:
    """The tracking token of one item, written alone."""
    out = np.zeros((1, token_length(shared)), np.uint8)
    write_tokens(shared, snapshot.columns["item_key"][row : row + 1], np.ones(1, np.int64), slot, out)
    return out.tobytes().decode()


def built(home: Home, snapshot: Snapshot, shared: Stamp | None = None) -> home_pb2.GetHomeResponse:
    """The page, built as protobuf's users build messages."""
    page = home_pb2.GetHomeResponse(
        request_id="id",
        cold_start=home.cold_start,
        degraded=bool(home.degraded),
        degraded_reasons=[f"DEGRADED_REASON_{one}" for one in home.degraded],  # type: ignore[misc]  # names are taken
        coverage=home.coverage,
        snapshot_version=snapshot.digest,
        promotion_book_version=home.promotion_book,
    )
    offsets = snapshot.columns["card_offset"]
    for number, shelf in enumerate(home.shelves):
        out = page.shelves.add(id=shelf.spec.id, kind=shelf.spec.source, title="Picked")
        out.reason.code = REASONS[shelf.spec.source]
        if shelf.spec.source == "popular":
            out.reason.args.append(home.market if home.market in snapshot.manifest.markets else "")
        elif shelf.spec.source == "genre":
            out.reason.args.append(snapshot.manifest.genres[shelf.subject])
        elif shelf.spec.source == "neighbours":
            first, last = int(offsets[shelf.subject]), int(offsets[shelf.subject + 1])
            out.reason.args.append(home_pb2.Item.FromString(snapshot.cards[first:last]).title)
        arg = out.reason.args[0] if out.reason.args else ""
        out.title = f"Picked {arg}"
        texts = {"newest": "Just out", "popular": f"Because of popular {arg}" if arg else "Everywhere"}
        out.reason.text = texts.get(shelf.why, f"Because of {shelf.why} {arg}")
        for place, (row, score) in enumerate(zip(shelf.rows.tolist(), shelf.scores.tolist(), strict=True)):
            out.items.add().MergeFromString(bytes(snapshot.cards[int(offsets[row]) : int(offsets[row + 1])]))
            out.items[-1].score = score
            if shared is not None:
                out.items[-1].tracking_token = token_of(shared, snapshot, row, Slot(number, place))
            if row % 3 == 0 and shelf.why != "newest":
                out.items[-1].reason.code = home_pb2.REASON_CODE_NEW_RELEASE
                out.items[-1].reason.text = "Just out"
            if shelf.inserted is not None and (paid := shelf.inserted.campaign[place]) >= 0:
                campaign = home.campaigns[paid]
                why = campaign.why.get("en", f"It fits here, and {campaign.payer} pays for its place")
                out.items[-1].promotion.MergeFrom(home_pb2.PromotionMark(id=campaign.id, payer=campaign.payer, why=why))
    return page


@st.composite
def shelves(draw: st.DrawFn) -> Shelf:
    """A shelf of any length: its body takes a varint of one, two or three bytes."""
    size = draw(st.integers(0, 3) | st.integers(0, 60) | st.just(400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = rng.standard_normal(size).astype(np.float32).astype(np.float64)
    odd = draw(st.lists(st.floats(width=32), max_size=size))
    scores[: len(odd)] = odd
    source = draw(st.sampled_from(get_args(Source)))
    subject = draw(st.integers(0, 7)) if source in {"neighbours", "genre"} else -1
    campaign = rng.integers(-1, len(CAMPAIGNS), size) if draw(st.booleans()) else None
    return shelf_of(source, rng.integers(0, 2000, size), scores, subject, campaign)


@settings(max_examples=60, deadline=None)
@given(
    found=st.lists(shelves(), max_size=4),
    market=st.sampled_from(["", "GB", "ZW"]),
    degraded=st.lists(st.sampled_from(Degraded), unique=True),
    coverage=st.integers(0, 100),
    cold=st.booleans(),
    arms=st.none() | st.lists(st.integers(0, 2**32 - 1), max_size=20),
)
def test_joined_bytes_parse_to_the_built_message(  # noqa: PLR0917  # all that is drawn
    snapshot: Snapshot,
    found: list[Shelf],
    market: str,
    degraded: list[Degraded],
    coverage: int,
    cold: bool,
    arms: list[int] | None,
) -> None:
    """To the last field, for any shelves and scores, also those that are no numbers, tracked by any arms or not."""
    home = Home(
        shelves=tuple(found),
        market=market,
        cold_start=cold,
        degraded=tuple(degraded),
        coverage=coverage,
        fates={},
        promotion_book="b" * 64 if cold else "",
        campaigns=CAMPAIGNS,
    )
    key = SigningKey(id=1, secret=b"s" * 32, signs_from=0)
    shared = None if arms is None else stamp(key, page="00" * 8, at=1, user_id="u", arms=arms)
    raw = encode_home(home, snapshot, locale="", request_id="id", stamp=shared)
    joined = home_pb2.GetHomeResponse.FromString(raw)
    wanted = built(home, snapshot, shared)
    assert joined.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def test_a_large_shelf_needs_a_length_of_three_bytes(snapshot: Snapshot) -> None:
    """The property above did meet every length: 400 items take more than 16 kB."""
    shelf = shelf_of("taste", np.arange(400), np.zeros(400))
    home = Home(shelves=(shelf,), market="", cold_start=False, degraded=(), coverage=100, fates={})
    assert built(home, snapshot).shelves[0].ByteSize() > 1 << 14


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384])
def test_cards_of_any_length_are_joined(snapshot: Snapshot, length: int) -> None:
    """A card of one item, whose title is as long as a varint's edge."""
    (card,) = encode_cards([("t1", KINDS["album"], "x" * length, "by", "https://a/1.jpg", True)])
    replaced = Snapshot(
        manifest=snapshot.manifest,
        digest=snapshot.digest,
        columns={"card_offset": np.array([0, len(card)], np.uint64)},
        cards=card,
        retriever=snapshot.retriever,
    )
    shelf = shelf_of("popular", np.array([0]), np.array([0.5]))
    home = Home(shelves=(shelf,), market="", cold_start=False, degraded=(), coverage=100, fates={})
    raw = encode_home(home, replaced, locale="", request_id="id")
    (item,) = home_pb2.GetHomeResponse.FromString(raw).shelves[0].items
    assert item == home_pb2.Item(
        item_id="t1",
        kind=home_pb2.ITEM_KIND_ALBUM,
        title="x" * length,
        subtitle="by",
        image_uri="https://a/1.jpg",
        explicit=True,
        score=0.5,
        reason=home_pb2.Reason(code=home_pb2.REASON_CODE_NEW_RELEASE, text="Just out"),
    )


def test_static_fields_have_lower_numbers_than_dynamic_ones() -> None:
    """A card is fields 1 to 15; what is made per request begins at 16 and so may follow it."""
    numbers = {field.name: field.number for field in home_pb2.Item.DESCRIPTOR.fields}
    assert {name for name, number in numbers.items() if number < 16} == STATIC


@pytest.mark.parametrize(
    ("locale", "title"),
    [
        ("", "Picked {0}"),
        ("en-GB", "Picked {0}"),
        ("de", "Ausgewählt"),
        ("de-CH", "Ausgewählt"),
        ("de-AT", "Ausg'sucht"),
        ("ja", "Picked {0}"),
    ],
)
def test_a_heading_falls_back_to_its_language_then_to_english(locale: str, title: str) -> None:
    """The locale's own, else its language's, else English."""
    assert spoken(spec("taste").titles, locale) == title


async def test_headings_come_in_the_requests_locale(standing: Served) -> None:
    """The shipped surfaces speak German to a German client, and English to one whose language they lack."""
    titles, reasons = {}, {}
    for locale in ("de-CH", "ja-JP"):
        request = home_pb2.GetHomeRequest(user_id="u0000001", context=home_pb2.Context(locale=locale))
        found = page_of(await get_home(standing, request)).shelves
        titles[locale] = {shelf.id: shelf.title for shelf in found}
        reasons[locale] = {shelf.kind: shelf.reason.text for shelf in found}
    ids = ("jump-back-in", "picked-for-you")
    assert [titles["de-CH"][one] for one in ids] == ["Weiterhören", "Für dich ausgewählt"]
    assert [titles["ja-JP"][one] for one in ids] == ["Jump back in", "Picked for you"]
    assert (reasons["de-CH"]["taste"], reasons["ja-JP"]["taste"]) == ("Nach deinem Geschmack", "To your taste")
    assert reasons["de-CH"]["neighbours"].startswith("Weil du ")


async def test_a_market_without_a_list_is_told_the_truth(standing: Served) -> None:
    """Where no list of the market exists, the worldwide one is served, and the reason names no market."""
    snapshot = standing.plane.snapshots.current
    assert snapshot is not None
    for market, args in {"AQ": [""], snapshot.manifest.markets[0]: [snapshot.manifest.markets[0]]}.items():
        request = home_pb2.GetHomeRequest(user_id="u0000001", context=home_pb2.Context(market=market))
        page = page_of(await get_home(standing, request))
        assert [list(shelf.reason.args) for shelf in page.shelves if shelf.kind == "popular"] == [args]


async def test_two_servers_give_the_same_page(published: Store) -> None:
    """The same listener and snapshot: the same bytes but for the id, whoever answers."""
    users = [f"u{number:07}" for number in range(1, 9)]
    async with serving(published.state, published.url) as one, serving(published.state, published.url) as other:
        for user in users:
            request = home_pb2.GetHomeRequest(user_id=user)
            assert page_of(await get_home(one, request)) == page_of(await get_home(other, request))
