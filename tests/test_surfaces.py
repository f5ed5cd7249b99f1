"""The surfaces file: every way to be wrong is told with file and line, and editorial rows are served as written."""

import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from features.errors import InvalidInput
from features.keys import item_keys
from features.offline.cards import item_id_of
from features.snapshot import FOREVER, Snapshot
from protos.home.v1 import home_pb2
from ranking.surfaces import DEFAULT_SURFACES, Source, load_surfaces, spoken
from tests.conftest import Store, serving
from tests.wire import get_home, page_of

SHELF = """\
[[home.shelves]]
id = "picked"
source = "taste"
titles = { en = "Picked" }
"""
EDITORIAL = """\
[[home.shelves]]
id = "chosen"
source = "editorial"
titles = { en = "Chosen" }
items = { GB = ["t1", "t2"], "" = ["t3"] }
"""
# what is written -> (line, what is said)
WRONG = {
    "": (1, "surfaces: at least one surface must be there"),
    "[home]\n": (1, "home.shelves: Field required"),
    'home = "picked"\n': (1, "home: Input should be a valid dictionary"),
    "[home]\nshelves = 3\n": (2, "home.shelves: Input should be a valid list"),
    "[home]\nshelves = [3]\n": (1, "home.shelves[0]: Input should be a valid dictionary"),
    SHELF.replace("home", "Home"): (1, "Home: String should match pattern"),
    SHELF.replace("home", "ho_me"): (1, "ho_me: String should match pattern"),
    f"[home]\nrows = 2\n{SHELF}": (2, "home.rows: Extra inputs are not permitted"),
    f"[home]\ndedupe = 1\n{SHELF}": (2, "home.dedupe: Input should be a valid boolean"),
    f"[home]\ndeadline_ms = 0\n{SHELF}": (2, "home.deadline_ms: Input should be greater than 0"),
    SHELF.replace('id = "picked"\n', ""): (1, "home.shelves[0].id: Field required"),
    SHELF.replace('"picked"', "7"): (2, "home.shelves[0].id: Input should be a valid string"),
    SHELF.replace("picked", "Picked!"): (2, "home.shelves[0].id: String should match pattern"),
    SHELF + SHELF: (1, "home: the shelf id 'picked' stands twice"),
    f"{SHELF}colour = 1\n": (5, "home.shelves[0].colour: Extra inputs are not permitted"),
    SHELF.replace("taste", "luck"): (3, "home.shelves[0].source: Input should be 'taste', "),
    SHELF.replace('source = "taste"\n', ""): (1, "home.shelves[0].source: Field required"),
    SHELF.replace("en =", "de ="): (1, 'home.shelves[0]: titles must hold at least "en"'),
    SHELF.replace('"Picked"', '""'): (4, "home.shelves[0].titles.en: String should have at least 1 character"),
    SHELF.replace('"Picked"', "5"): (4, "home.shelves[0].titles.en: Input should be a valid string"),
    SHELF.replace('{ en = "Picked" }', '"Picked"'): (4, "home.shelves[0].titles: Input should be a valid dictionary"),
    SHELF + 'items = { "" = ["t1"] }\n': (1, "home.shelves[0]: items belong to editorial shelves only"),
    SHELF.replace("taste", "editorial"): (1, "home.shelves[0]: an editorial shelf needs items"),
    f"{SHELF}nth = 2\n": (1, "home.shelves[0]: nth counts genres and the items played most"),
    SHELF.replace("Picked", "Picked {0}"): (1, "home.shelves[0]: titles hold {0}: only {0} is filled"),
    SHELF.replace("Picked", "A {genre}").replace("taste", "genre"): (
        1,
        "home.shelves[0]: titles hold {genre}: only {0}",
    ),
    EDITORIAL.replace("t2", "t1"): (5, "home.shelves[0].items.GB: an item stands twice"),
    EDITORIAL.replace("GB", "UK"): (5, "home.shelves[0].items.UK.[key]: must be an ISO 3166-1 alpha-2 code"),
    EDITORIAL.replace('["t1", "t2"]', '"t1"'): (5, "home.shelves[0].items.GB: Input should be a valid list"),
    EDITORIAL.replace('"t2"', '["t2"]'): (5, "home.shelves[0].items.GB[1]: Input should be a valid string"),
    EDITORIAL.replace('"t2"', "2"): (5, "home.shelves[0].items.GB[1]: Input should be a valid string"),
    EDITORIAL.replace('["t1", "t2"]', "[]"): (5, "home.shelves[0].items.GB: List should have at least 1 item"),
    f'{SHELF}size = "12"\n': (5, "home.shelves[0].size: Input should be a valid integer"),
    f"{SHELF}size = true\n": (5, "home.shelves[0].size: Input should be a valid integer"),
    f"{SHELF}size = 0\n": (5, "home.shelves[0].size: Input should be greater than or equal to 1"),
    f"{SHELF}size = 201\n": (5, "home.shelves[0].size: Input should be less than or equal to 200"),
    f"{SHELF}{EDITORIAL}size = 0\n": (10, "home.shelves[1].size: Input should be greater than or equal to 1"),
    f"{SHELF}minimum = 0\n": (5, "home.shelves[0].minimum: Input should be greater than or equal to 1"),
    f"{SHELF}depth = 2001\n": (5, "home.shelves[0].depth: Input should be less than or equal to 2000"),
    f'{SHELF}skip_played = "no"\n': (5, "home.shelves[0].skip_played: Input should be a valid boolean"),
    f"{SHELF}size = 3\n": (1, "home.shelves[0]: minimum <= size <= depth must hold"),
    f"{SHELF}depth = 11\n": (1, "home.shelves[0]: minimum <= size <= depth must hold"),
    f"{EDITORIAL}promotable = true\n": (1, "home.shelves[0]: only what is filled by discover, genre, newest, popular"),
    f"{SHELF}explore = 8\n": (5, "home.shelves[0].explore: Input should be a valid dictionary"),
    f"{SHELF}explore = {{ place = 0, pool = 2 }}\n": (5, "home.shelves[0].explore.place: Input should be greater than"),
    f"{SHELF}explore = {{ place = 8, pool = 1 }}\n": (5, "home.shelves[0].explore.pool: Input should be greater than"),
    f"{SHELF}explore = {{ place = 8 }}\n": (5, "home.shelves[0].explore.pool: Field required"),
    f"{SHELF}explore = {{ place = 13, pool = 2 }}\n": (1, "home.shelves[0]: explore names place 13 of 12"),
    f"{SHELF}explore = {{ place = 8, pool = 26 }}\n": (1, "home.shelves[0]: explore draws from at most 25"),
    f"{EDITORIAL}explore = {{ place = 1, pool = 2 }}\n": (1, "home.shelves[0]: only what is filled by discover, genre"),
    f"{SHELF}params = {{ row_decay = 0.5 }}\n": (5, "home.shelves[0].params: row_decay is of the whole page"),
    f'[home]\npreset = "rich"\n{SHELF}': (2, "home.preset: unknown; there are none"),
    f"{SHELF}[presets.rich]\nparams = {{ luck = 1 }}\n": (6, "presets.rich.params: luck is no param"),
    f"{SHELF}[presets.rich.sources.luck]\n": (1, "presets.rich.sources.luck.[key]: Input should be 'taste', "),
    f"{SHELF}[reasons]\nluck = {{ en = 'Luck' }}\n": (6, "reasons.luck.[key]: Input should be 'taste', "),
}


@pytest.mark.parametrize(("text", "line", "said"), [(text, *wrong) for text, wrong in WRONG.items()])
def test_a_mistake_is_told_with_file_and_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    """The line of the surface, the shelf or the field, and what is wrong there."""
    path = tmp_path / "surfaces.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as error:
        load_surfaces(path)
    ((where, what),) = error.value.violations
    assert where == f"{path}:{line}"
    assert what.startswith(said)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """Nobody mends a file one error at a time."""
    path = tmp_path / "surfaces.toml"
    path.write_text(f"{SHELF}size = 0\ndepth = 0\n")
    with pytest.raises(InvalidInput) as error:
        load_surfaces(path)
    assert [where.rpartition(":")[2] for where, _ in error.value.violations] == ["5", "6"]


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    """Bytes that are no UTF-8."""
    path = tmp_path / "surfaces.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match=r"surfaces\.toml: is not TOML"):
        load_surfaces(path)


def test_a_title_falls_back_to_the_next_wider_locale(tmp_path: Path) -> None:
    """zh-Hant-TW, zh-Hant, zh, then English; whatever the case."""
    path = tmp_path / "surfaces.toml"
    path.write_text(SHELF.replace('en = "Picked"', 'en = "Picked", zh-Hant = "精選", de = "Ausgewählt"'))
    (shelf,) = load_surfaces(path)["home"].shelves
    wanted = {"zh-Hant-TW": "精選", "zh-hant": "精選", "zh": "Picked", "de-CH": "Ausgewählt", "": "Picked"}
    assert {locale: spoken(shelf.titles, locale) for locale in wanted} == wanted


def test_what_is_no_toml_is_told_with_its_place(tmp_path: Path) -> None:
    """The file, and where reading ended."""
    path = tmp_path / "surfaces.toml"
    path.write_text(f"{SHELF}size = \n")
    with pytest.raises(InvalidInput, match=r"surfaces\.toml: is not TOML: .* line 5"):
        load_surfaces(path)


def test_a_file_that_is_not_there_is_told() -> None:
    """By its name."""
    with pytest.raises(InvalidInput, match=r"absent\.toml: cannot be read: No such file"):
        load_surfaces(Path("absent.toml"))


def test_the_shipped_file_has_its_surfaces() -> None:
    """`home` of every source but editors; `evaluation` with one of twenty unplayed items, and nothing taken off it."""
    surfaces = load_surfaces(DEFAULT_SURFACES)
    assert set(surfaces) == {"home", "search-landing", "evaluation"}
    assert {shelf.source for shelf in surfaces["home"].shelves} == set(get_args(Source)) - {"editorial"}
    (shelf,) = surfaces["evaluation"].shelves
    assert (shelf.source, shelf.size, shelf.skip_played) == ("taste", 20, True)
    assert not surfaces["evaluation"].dedupe
    assert not shelf.promotable
    promotable = {shelf.source for shelf in surfaces["home"].shelves if shelf.promotable}
    assert promotable == {"taste", "discover", "genre", "newest", "popular"}


def test_what_is_not_said_has_the_documented_default(tmp_path: Path) -> None:
    """Twelve items of 256 candidates, at least four; items once on the page; played ones too."""
    path = tmp_path / "surfaces.toml"
    path.write_text(SHELF)
    surface = load_surfaces(path)["home"]
    (shelf,) = surface.shelves
    assert (shelf.size, shelf.depth, shelf.minimum, shelf.skip_played, surface.dedupe) == (12, 256, 4, False, True)


def test_what_editors_chose_is_shown_were_it_one_item(tmp_path: Path) -> None:
    """An editorial shelf's minimum is 1 unless it says otherwise, and it may be shorter than its row."""
    path = tmp_path / "surfaces.toml"
    for added, wanted in {"": (12, 1), "size = 1\n": (1, 1), "minimum = 3\n": (12, 3)}.items():
        path.write_text(EDITORIAL + added)
        (shelf,) = load_surfaces(path)["home"].shelves
        assert (shelf.size, shelf.minimum) == wanted


def test_the_shipped_file_tells_the_defaults() -> None:
    """Its comment says what a shelf has that says nothing."""
    comment = DEFAULT_SURFACES.read_text()
    told = {"size": "(12)", "minimum": "(4; editorial 1)", "depth": "(256)"}
    for name, value in told.items():
        assert [line for line in comment.splitlines() if line.startswith(f"# {name} ") and line.endswith(value)]


def test_the_example_in_the_shipped_file_loads(tmp_path: Path) -> None:
    """The editorial row that its comment shows can be taken as it stands."""
    comment = DEFAULT_SURFACES.read_text().partition("# An editorial row:\n")[2].partition("\n\n")[0]
    path = tmp_path / "surfaces.toml"
    path.write_text("\n".join(line.removeprefix("#   ") for line in comment.splitlines()))
    (shelf,) = load_surfaces(path)["home"].shelves
    assert {market: keys.tolist() for market, keys in shelf.item_keys.items()} == {
        "GB": item_keys(["t0000001", "t0000002"]).tolist(),
        "": item_keys(["t0000003"]).tolist(),
    }


async def test_an_editorial_row_is_served_as_written(published: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    """In its order for its market, and "" for all others; an item that the snapshot lacks is passed over."""
    ids = free_items(snapshot, 9)
    british, others = [ids[4], ids[0], ids[3], ids[1]], [ids[8], ids[2], ids[7], ids[5], ids[6]]
    row = EDITORIAL.replace('"t1", "t2"', listed([british[0], "no-such-item", *british[1:]]))
    path = tmp_path / "surfaces.toml"
    path.write_text(row.replace('"t3"', listed(others)))
    async with serving(published.state, published.url, surfaces=path) as served:
        for market, wanted in {"GB": british, "FR": others, "AQ": others}.items():
            context = home_pb2.Context(market=market, allow_explicit=True)
            request = home_pb2.GetHomeRequest(user_id="stranger", context=context)
            (shelf,) = page_of(await get_home(served, request)).shelves
            assert (shelf.id, shelf.kind, shelf.title) == ("chosen", "editorial", "Chosen")
            assert [item.item_id for item in shelf.items] == wanted
            assert shelf.reason == home_pb2.Reason(code=home_pb2.REASON_CODE_EDITORS_CHOICE)


async def test_an_editorial_row_below_its_minimum_is_dropped(
    published: Store, snapshot: Snapshot, tmp_path: Path
) -> None:
    """Three items where four are the least: the row is not shown, and the page is whole all the same."""
    path = tmp_path / "surfaces.toml"
    row = EDITORIAL.replace('"t3"', listed(free_items(snapshot, 3))) + "minimum = 4\n"
    path.write_text(row + SHELF.replace("taste", "popular"))
    async with serving(published.state, published.url, surfaces=path) as served:
        page = page_of(await get_home(served, home_pb2.GetHomeRequest(user_id="stranger")))
        assert [shelf.id for shelf in page.shelves] == ["picked"]
        assert (page.degraded, page.coverage) == (False, 100)


def free_items(snapshot: Snapshot, count: int) -> list[str]:
    """Items that may be shown everywhere, today and for long."""
    columns = snapshot.columns
    free = (columns["market_bits"] == 0).all(axis=1) & (columns["available_until"] == FOREVER)
    rows = np.flatnonzero(free & (columns["available_from"] <= time.time()))[:count]
    offsets = columns["card_offset"]
    found = [item_id_of(bytes(snapshot.cards[int(offsets[row]) : int(offsets[row + 1])])) for row in rows]
    assert len(found) == count
    return found


def listed(ids: list[str]) -> str:
    """Ids as they stand in TOML."""
    return ", ".join(f'"{one}"' for one in ids)
