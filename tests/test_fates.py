"""Every fate, from a listener's page to the sentence that a person reads: what the core marks is what ExplainHome says.

One small world and one surfaces file hold a situation for each fate. An editorial row scores its items 1, 1/2, 1/3 …,
scaled to 0-1 over what it may show, so nearly every number is known; "…" stands for one that training gives.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import pytest_asyncio

from features.embedded_redis import attached
from features.keys import Keys, item_keys
from features.offline.build import BuildSettings, build
from features.offline.publish import connect
from features.state import State
from protos.home.v1.home_pb2 import Context, ExplainHomeResponse
from ranking.params import PARAMS
from ranking.surfaces import load_surfaces
from ranking.types import Fate, HomeQuery
from server.explain import params as told_params
from server.explain import what_if
from server.fates import UNDRAWN, UNFOUND, UNKNOWN
from tests.conftest import Served, Store, quiet, serving
from tests.operation import mantel
from tests.tables import Row, everyone_plays, write_tables
from tests.test_explain import explain

BRITISH: Final = [f"british{number}" for number in range(6)]
ITEMS: Final[list[Row]] = [
    *({"item_id": name, "genres": ["rock"]} for name in "abcdefg"),
    *({"item_id": name, "genres": ["indie"], "markets": ["GB"]} for name in BRITISH),
    {"item_id": "over", "available_until": datetime(2020, 1, 31, tzinfo=UTC)},
    {"item_id": "coming", "available_from": datetime(2999, 12, 31, tzinfo=UTC)},
    {"item_id": "rude", "explicit": True},
    *({"item_id": name, "recording_id": "one song"} for name in ("single", "again")),
    *({"item_id": name, "artist_id": "one artist"} for name in ("x1", "x2", "x3")),
    *({"item_id": name, "album_id": "one album"} for name in ("y1", "y2")),
]
LISTENS: Final = [
    *({"user_id": "ann", "item_id": name, "plays": 20 - number} for number, name in enumerate(BRITISH)),
    *everyone_plays(["eve"], BRITISH[:3], 5),
    *everyone_plays(["fay"], [*BRITISH[2:], "a"], 5),
    *everyone_plays(["bob", "cid", "dan"], "abcdefg", 5),
]
ANN: Final[Row] = {"user_id": "ann", "market": "GB", "allow_explicit": False}


@dataclass(frozen=True, eq=False, slots=True)
class Walk:
    """A surface on which an item meets a fate on the shelf `top`, and who asks for it."""

    stage: str
    fate: str
    item: str
    surface: str
    asked: Mapping[str, Any]


def row(shelf: str, items: str = "", **fields: object) -> str:
    """A shelf as it stands in a surfaces file: editorial, or as its fields say."""
    listed = ", ".join(f'"{one}"' for one in items.split())
    filled = {"source": '"editorial"', "items": f'{{ "" = [{listed}] }}'} if items else {}
    told = {"id": f'"{shelf}"', "titles": '{ en = "A heading" }', **filled, **fields}
    return "\n".join(("[[SURFACE.shelves]]", *(f"{name} = {value}" for name, value in told.items()), ""))


def walk(stage: str, fate: str, item: str, *rows: str, params: str = "", **asked: object) -> Walk:
    """A walk on shelves that stand as they are listed."""
    head = f'[SURFACE.params]\npage_order = "file"\n{params}\n'
    return Walk(stage, fate, item, head + "".join(rows), {"user_id": "ann", **asked})


def alone(score: str, place: int) -> str:
    """That it lost to no better score."""
    return f"; by its score {score} alone it would stand in place {place}"


def below(score: str, short: str) -> str:
    """That it lost by its score too."""
    return f"; its score {score} is {short} below the lowest shown"


FOUR: Final = row("top", "a b c d", size=2)
TASTE: Final = row("top", source='"taste"', size=2, minimum=1, depth=4)
NEAR: Final = row("top", source='"neighbours"', size=1, minimum=1, depth=1)
GENRE: Final = row("top", source='"genre"')
BRITON: Final = row("top", "a british0 b")
UNPLAYED: Final = row("top", "british0 a", skip_played="true")
XXX: Final = row("top", "x1 x2 x3 a")
THREE_X: Final = (row("first", "x1"), row("second", "x2"), row("top", "x3 a"))
TWO_X: Final = "page_artist_cap = 2"
ALIKE: Final = "affinity_weight = 0"
ABOVE: Final = row("first", "a")
EXPIRED: Final = row("top", "a over")
SONG: Final = row("top", "single a again")
LAST_SONG: Final = row("top", "a single again", size=1)
SONGS: Final = (row("first", "single"), row("top", "again b"))
ABROAD: Final = Context(market="DE")
UNLISTED: Final = "it is not among the candidates of this shelf"
NOTHING_KNOWN: Final = "what fills this shelf (taste, plays, genres) is not known of the listener"
CLOSED: Final = "it is outside its window of availability; it is available"
UNLICENSED: Final = "it is not licensed in the listener's market; the market is"
EXPLICIT: Final = "it is marked explicit, and that is not allowed here"
PLAYED: Final = "the listener has played it, and the shelf shows only what they have not"
RELEASE: Final = "another release of its recording scores better on this shelf; that is single, whose fate is"
CAPPED: Final = "its artist or its album may have no more of the shelf"
ALBUM: Final = "shelf and reserve hold 1 of its album"
GAP: Final = "artist_gap 1 keeps it from the others by its artist"
PAGE_CAPPED: Final = "its artist has its share of the page already; the page holds 2 by its artist"
ELSEWHERE: Final = "it, or another release of it, stands on another shelf"
THIN: Final = "its shelf had too few items left to be shown; it shows nothing with fewer than 2"
RESERVE: Final = "it is in reserve: the shelf was full before its turn came"
BEHIND: Final = "it stands behind the reserve: its shelf is filled from its first 6 only"
# what is walked -> what must be said, in the order of the stages
WALKS: Final = {
    walk("draw", "no_line", "a", TASTE, user_id="stranger"): NOTHING_KNOWN,
    walk("retrieve", "unknown", "z", FOUR): "the catalogue has no such item",
    walk("retrieve", "not_retrieved", "e", FOUR): UNLISTED,
    walk("retrieve", "not_retrieved", "a", TASTE): f"{UNLISTED}; … more affinity would have brought it in",
    walk("filter", "market", "british2", TASTE, context=ABROAD): f"{UNLICENSED} DE" + alone("…", 1),
    walk("retrieve", "not_retrieved", "a", NEAR): f"{UNLISTED}; … more affinity would have brought it in",
    walk("retrieve", "not_retrieved", "british0", NEAR): f"{UNLISTED}; the shelf is about it",
    walk("filter", "unavailable", "over", NEAR): f"{CLOSED} until 2020-01-31; nor is it among the candidates",
    walk("filter", "market", "british0", BRITON, context=ABROAD): f"{UNLICENSED} DE" + alone("0.250", 2),
    walk("filter", "market", "british0", BRITON, user_id="stranger"): f"{UNLICENSED} unknown" + alone("0.250", 2),
    walk("filter", "unavailable", "over", EXPIRED): f"{CLOSED} until 2020-01-31" + below("-0.500", "0.500"),
    walk("filter", "unavailable", "coming", row("top", "coming")): f"{CLOSED} from 2999-12-31",
    walk("filter", "explicit", "rude", row("top", "rude")): EXPLICIT,
    walk("filter", "hidden", "a", FOUR, hidden_ids=["a"]): "the listener hid it or its artist" + alone("3.000", 1),
    walk("filter", "excluded", "a", FOUR, exclude_item_ids=["a"]): "the request excludes it" + alone("3.000", 1),
    walk("filter", "played", "british0", UNPLAYED): PLAYED + alone("0.500", 1),
    walk("filter", "off_genre", "a", GENRE): "it is not of the shelf's genre; the genre is indie" + below("-…", "…"),
    walk("arrange", "same_recording", "again", SONG): f"{RELEASE} shown" + below("0.000", "0.250"),
    walk("arrange", "same_recording", "again", LAST_SONG): f"{RELEASE} kept" + below("0.000", "1.000"),
    walk("arrange", "capped", "x3", XXX): f"{CAPPED}; shelf and reserve hold 2 by its artist" + alone("0.111", 3),
    walk("arrange", "capped", "x3", XXX, params="artist_cap = 0"): f"{CAPPED}; {GAP}" + alone("0.111", 3),
    walk("arrange", "capped", "y2", row("top", "y1 y2 a")): f"{CAPPED}; {ALBUM}" + alone("0.250", 2),
    walk("layout", "page_capped", "x3", *THREE_X, params=TWO_X): PAGE_CAPPED + alone("1.000", 1),
    walk("layout", "page_capped", "x3", *THREE_X, params=TWO_X, page_size=1): PAGE_CAPPED,
    walk("layout", "duplicate", "a", ABOVE, row("top", "a b")): f"{ELSEWHERE}; it is on first" + alone("1.000", 1),
    walk("layout", "duplicate", "again", *SONGS): f"{ELSEWHERE}; single is on first" + alone("1.000", 1),
    walk("layout", "thin", "b", ABOVE, row("top", "a b", minimum=2)): THIN,
    walk("layout", "later", "b", ABOVE, row("top", "b"), page_size=1): "its shelf comes on a later page",
    walk("layout", "kept", "c", FOUR): RESERVE + below("0.111", "0.222"),
    walk("layout", "kept", "x2", row("top", "x1 x2 a b", size=2)): RESERVE + alone("0.333", 2),
    walk("layout", "kept", "a", row("top", "a b", size=1), params=ALIKE): RESERVE + below("0.000", "0.000"),
    walk("layout", "kept", "g", row("first", "a b c d e f g"), row("top", "a b c d e f g", size=2, minimum=2)): BEHIND,
    walk("layout", "shown", "b", FOUR): "it is shown, in place 2",
}
NAMES: Final = {one: f"{one.fate.replace('_', '-')}-{number}" for number, one in enumerate(WALKS)}
IDS: Final = list(NAMES.values())
CHANCE: Final = """
[chance]
params = { exploration_share = 1.0, exploration_floor = 0.0, artist_cap = 0, album_cap = 0 }
[[chance.shelves]]
id = "top"
source = "popular"
titles = { en = "A heading" }
size = 2
minimum = 1
explore = { place = 1, pool = 2 }
"""
LAYERS: Final = """
[presets.full]
params = { diversity = "mmr", mmr_lambda = 0.9 }
sources = { taste = { diversity = "dpp" } }
[layers]
preset = "full"
params = { popularity_weight = 0.25, row_decay = 0.5 }
[[layers.shelves]]
id = "picked"
source = "taste"
titles = { en = "Picked" }
params = { popularity_weight = 0.5, artist_cap = 3 }
"""


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A surface for each walk, and one with params from everywhere."""
    path = tmp_path_factory.mktemp("fates") / "surfaces.toml"
    path.write_text("".join(one.surface.replace("SURFACE", name) for one, name in NAMES.items()) + LAYERS + CHANCE)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def walked(surfaces: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """The small world, served."""
    folder = tmp_path_factory.mktemp("walked")
    write_tables(folder / "tables", items=ITEMS, listens=LISTENS, listeners=[ANN])
    settings = BuildSettings(factors=8, regularization=1.0, refuse=False)
    build(folder / "tables", folder / "snapshot", settings=settings, progress=quiet)
    state = State(folder / "state")
    with attached(state) as url, connect(url) as client:
        Store(state=state, url=url, client=client, keys=Keys()).publish(folder / "snapshot")
        async with serving(state, url, surfaces=surfaces) as one:
            yield one


async def ask(walked: Served, one: Walk, item: str) -> ExplainHomeResponse:
    """The walk's page, explained for an item."""
    return await explain(walked, item, surface=NAMES[one], **one.asked)


@pytest.mark.parametrize(("one", "says"), WALKS.items(), ids=IDS)
async def test_a_fate_is_told_from_page_to_sentence(walked: Served, one: Walk, says: str) -> None:
    """Its name, stage, and sentence with detail and margin; the item is on the page if that says so, and only then."""
    found = await ask(walked, one, one.item)
    (told,) = (told for told in found.fates if told.text.startswith("top: ") or told.fate == "unknown")
    assert (told.item_id, told.fate, told.stage) == (one.item, one.fate, one.stage)
    says = says if one.fate == "unknown" else f"top: {says}"
    assert re.fullmatch(re.escape(says).replace("…", r"\d+\.\d{3}"), told.text), told.text
    shown = [item.item_id for shelf in found.response.shelves for item in shelf.items if shelf.id == "top"]
    assert (one.item in shown) == (one.fate == "shown")


def test_every_fate_is_walked() -> None:
    """All that can be left when an organic page is done, and what is said of items that are no candidates."""
    left = {fate.name.lower() for fate in Fate if fate not in {Fate.PADDING, Fate.PICKED, Fate.GAVE_WAY, Fate.OUTDRAWN}}
    assert {one.fate for one in WALKS} == left | {told[0] for told in (UNKNOWN, UNDRAWN, UNFOUND)}


@pytest.mark.parametrize("one", WALKS, ids=IDS)
async def test_the_counts_of_the_stages_are_the_fates_of_all_items(walked: Served, one: Walk) -> None:
    """Asked one by one, the items of the catalogue tell on all shelves together what the stages counted, no more."""
    found = [await ask(walked, one, item["item_id"]) for item in ITEMS]
    everywhere = [told for each in found for told in each.fates if told.fate not in {"no_line", "not_retrieved"}]
    candidates = [told for told in everywhere if "nor is it among the candidates" not in told.text]
    counted = {(stage.stage, fate): count for stage in found[0].stages for fate, count in stage.fates.items()}
    assert Counter((told.stage, told.fate) for told in candidates) == counted


async def test_what_chance_does_is_told(walked: Served) -> None:
    """Of two items that may stand in a place: which one does, with which probability, and which was outdrawn."""
    met: Counter[str] = Counter()
    for number in range(20):
        asked: dict[str, Any] = {"user_id": "ann", "surface": "chance", "session_id": f"s{number}", "context": ABROAD}
        page = (await explain(walked, **asked)).response
        first = page.shelves[0].items[0].item_id
        (shown,) = (await explain(walked, first, **asked)).fates
        assert shown.text == "top: it is shown, in place 1; chance puts it there with probability 0.5000"
        met[first] += 1
    assert len(met) == 2
    (organic,) = (item for item in met if item != first)
    (told,) = (await explain(walked, organic, **asked)).fates
    assert (told.fate, told.stage) in {("outdrawn", "explore"), ("kept", "layout")}


async def test_a_missing_affinity_is_what_the_last_candidate_has_more(walked: Served) -> None:
    """Inner product with the listener's vector: of four candidates the fourth's, less the item's own."""
    snapshot = walked.plane.snapshots.current
    assert snapshot is not None
    (vector,) = (await walked.plane.store.read(["ann"], snapshot)).decoded(snapshot).vectors
    affinity = snapshot.columns["vector"] @ vector
    short = np.sort(affinity)[-4] - affinity[snapshot.rows_of(item_keys(["a"]))[0]]
    (one,) = (one for one in WALKS if one.surface.endswith(TASTE) and (one.item, one.fate) == ("a", "not_retrieved"))
    (told,) = (await ask(walked, one, "a")).fates
    (number,) = re.findall(r"\d+\.\d{3}", told.text)
    assert float(number) == pytest.approx(short, abs=2e-3)


async def test_params_tell_where_they_come_from(walked: Served, surfaces: Path) -> None:
    """The default, the preset, its part for what fills a shelf, the surface, the shelf; in a what-if the request."""
    found = await explain(walked, user_id="ann", surface="layers", set_params={"artist_cap": "5"})
    wanted = {
        "diversity": ("mmr", "preset full"),
        "mmr_lambda": ("0.9", "preset full"),
        "popularity_weight": ("0.25", "surface"),
        "row_decay": ("0.5", "surface"),
        "picked.diversity": ("dpp", "preset full"),
        "picked.popularity_weight": ("0.5", "shelf"),
        "picked.artist_cap": ("3", "shelf"),
    }
    told = {one.name: (one.value, one.origin) for one in found.params}
    assert {name: one for name, one in told.items() if one[1] != "default"} == wanted
    assert len(found.params) == len(PARAMS) + 3
    query = HomeQuery(user_id="ann", surface=load_surfaces(surfaces)["layers"], now=0)
    changed = {one.name: (one.value, one.origin) for one in told_params(what_if(query, {"artist_cap": "5"}).surface)}
    told.pop("picked.artist_cap")  # no longer another than the surface's
    assert changed == told | {"artist_cap": ("5", "request")}


async def test_the_command_prints_the_sentence(walked: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mantel explain USER ITEM`: the stage, the fate and the sentence, however long the fate's name is."""
    monkeypatch.setenv("MANTEL_TOKEN", walked.token)
    one, says = max(WALKS.items(), key=lambda pair: len(pair[0].fate))
    words = ("explain", "ann", one.item, "--surface", NAMES[one], "--target", walked.target)
    done = await asyncio.to_thread(mantel, *words)
    assert f"{one.stage} {one.fate} top: {says}" in " ".join(done.stdout.split()), done.stderr
