"""The commands of promoters as a person types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from features.state import Endpoints, State
from tests.operation import eventually, mantel, published, server

SPEC = """
[[feeds]]
id = "discovery"
payer = "Fugue Records"

[[campaigns]]
id = "spring"
feed = "discovery"
why = { en = "Fugue Records pays for its place" }
since = 2020-01-01T00:00:00Z
items = [{ item_id = "t0000001", score = 0.5 }, { item_id = "gone", score = 1.0 }]

[[campaigns]]
id = "autumn"
payer = "Nachtklang"
until = 2021-01-01T00:00:00
markets = ["GB"]
items = [{ item_id = "t0000002", score = 0.5, segment = 3 }]
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, built: Path) -> State:
    """A state directory with the small world."""
    return published(tmp_path_factory.mktemp("promotions") / "state", built)


@pytest.fixture(scope="module", autouse=True)
def endpoints(state: State) -> Iterator[Endpoints]:
    """`mantel serve` on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
        patch.setenv("MANTEL_PLACEMENTS_FLUSH_S", "0.2")
        with server(state) as found:
            eventually(lambda: any(beat.ready for beat in state.heartbeats()))
            yield found


def typed(state: State, *words: str) -> str:
    """What a command prints that ends well."""
    done = mantel(*words, "--state", str(state.path))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(state: State, *words: str) -> str:
    """What a command says that is refused."""
    done = mantel(*words, "--state", str(state.path))
    assert done.returncode in {1, 2}
    return done.stderr


def test_a_file_is_checked_applied_listed_confirmed_and_counted(state: State, tmp_path: Path) -> None:
    """With a table of scores; a page discloses it; days with an offset or without; stats tell what stood."""
    file, scores = tmp_path / "P.toml", tmp_path / "S.parquet"
    file.write_text(SPEC)
    items = [f"t{number:07}" for number in range(3, 1500)]
    pl.DataFrame({"campaign": ["spring"] * len(items), "item_id": items, "score": [1.0] * len(items)}).write_parquet(
        scores
    )
    assert "nothing was changed" in typed(state, "promotions", "apply", str(file), "--check")
    said = typed(state, "promotions", "apply", str(file), "--scores", str(scores))
    assert "is in force; workers follow within 2 s" in said
    assert "1,498" in said
    listed = json.loads(typed(state, "promotions", "list", "--json"))
    assert [(one["id"], one["state"]) for one in listed["campaigns"]] == [("spring", "running"), ("autumn", "ended")]
    assert listed["campaigns"][0]["items_unknown"] == 1
    assert listed["campaigns"][1]["until"] == "2021-01-01T00:00:00Z"
    eventually(lambda: [beat.promotion_book for beat in state.heartbeats()] == [listed["version"]])
    shown = typed(state, "promotions", "list")
    assert "Fugue Records" in shown
    assert "100%" in shown
    assert "discovery is confirmed" in typed(state, "promotions", "confirm", "discovery")
    page = json.loads(typed(state, "get", "u0000001", "--json"))
    marks = [item["promotion"] for shelf in page["shelves"] for item in shelf["items"] if "promotion" in item]
    assert {(one["id"], one["why"]) for one in marks} == {("spring", "Fugue Records pays for its place")}
    (stats,) = eventually(lambda: json.loads(typed(state, "promotions", "stats", "spring", "--json")).get("stats"))
    assert (stats["eligible_pages"], stats["placed_pages"], stats["placements"]) == ("1", "1", str(len(marks)))
    assert "spring" in typed(state, "promotions", "stats")
    assert "is in force already" in typed(state, "promotions", "apply", str(file), "--scores", str(scores))
    assert "ABORTED" in refused(state, "promotions", "apply", str(file), "--etag", "0" * 64)


def test_mistakes_in_files_are_named(state: State, tmp_path: Path) -> None:
    """The path of each field, or what of the file cannot be read."""
    file, table = tmp_path / "P.toml", tmp_path / "S.csv"
    for text, named in (
        (SPEC.replace("score = 0.5 }", "score = 1.5 }"), "campaigns[0].items[0].score: must be a number from 0 to 1"),
        (SPEC.replace('["GB"]', '["XX"]'), "campaigns[1].markets[0]"),
        (SPEC.replace("payer", "player"), 'no field named "player"'),
        (SPEC.replace("why =", "wy ="), 'no field named "wy"'),
        ("[[feeds", "P.toml: cannot be read"),
    ):
        file.write_text(text)
        assert named in refused(state, "promotions", "apply", str(file)).replace("\n", " ")
    file.write_text(SPEC)
    for text, named in (
        ("campaign,item_id\nspring,t1\n", "S.csv: cannot be read"),
        ("campaign,item_id,score\nspring,t1,high\n", "S.csv: cannot be read"),
        ("campaign,item_id,score\nspring,t0000009,1\nspring,,1\n", "row 2 lacks"),
        ("campaign,item_id,score\nwinter,t0000009,1\n", "names the campaign winter"),
    ):
        table.write_text(text)
        said = refused(state, "promotions", "apply", str(file), "--scores", str(table)).replace("\n", " ")
        assert named in said
    assert "NOT_FOUND" in refused(state, "promotions", "confirm", "none")
