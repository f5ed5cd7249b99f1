"""Training: vectors that find a listener's taste, and what items without plays, neighbours and segments are made of."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from features.index import ExactRetriever, FaissRetriever
from features.keys import item_keys
from features.offline.build import BuildSettings, build
from features.offline.catalogue import Catalogue
from features.offline.index_choice import IndexSettings, choose_index, recall_of
from features.offline.lists import shortest_list
from features.offline.neighbours import find_neighbours
from features.offline.segments import make_segments
from features.offline.stages import Stage
from features.offline.train import STRANGE_ITEM
from features.snapshot import INDEX, SEGMENTS, Snapshot, load
from tests.conftest import quiet
from tests.tables import Row, everyone_plays, write_tables

ROCKERS, RAPPERS = [f"rocker{number}" for number in range(12)], [f"rapper{number}" for number in range(12)]


def alone() -> Stage:
    """A stage of no build."""
    return Stage("alone", quiet)


def skewed_vectors(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors as training gives them: around fifty directions, most short, few long."""
    centres = np.random.default_rng(0).standard_normal((50, 16))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 50, count)] + 0.5 * rng.standard_normal((count, 16))
    return (vectors * rng.pareto(2, (count, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def two_tastes(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Rockers play rock by artist R, rappers play rap by artist H; some items nobody plays."""
    folder = tmp_path_factory.mktemp("two-tastes")
    items: list[Row] = [{"item_id": f"rock{n}", "genres": ["rock"], "artist_id": "R"} for n in range(6)]
    items += [{"item_id": f"rap{n}", "genres": ["rap"], "artist_id": "H"} for n in range(6)]
    items += [
        {"item_id": "new-by-R", "artist_id": "R"},
        {"item_id": "new-rap", "genres": ["rap", "yodel"]},
        {"item_id": "new-both", "artist_id": "R", "genres": ["rap"]},
        {"item_id": "strange"},
        {"item_id": "strange-show", "kind": "podcast"},
    ]
    listens = everyone_plays(ROCKERS, [f"rock{n}" for n in range(6)])
    listens += everyone_plays(RAPPERS, [f"rap{n}" for n in range(6)])
    write_tables(folder / "data", items=items, listens=listens)
    settings = BuildSettings(factors=4, regularization=1.0, refuse=False)
    build(folder / "data", folder / "out", settings=settings, progress=quiet)
    return load(folder / "out")


def vectors_of(snapshot: Snapshot, *item_ids: str) -> NDArray[np.float32]:
    """The vectors of items, `[item, D]`."""
    vectors: NDArray[np.float32] = snapshot.columns["vector"][snapshot.rows_of(item_keys(item_ids))]
    return vectors


def test_an_item_that_nobody_played_is_the_mean_of_what_it_resembles(two_tastes: Snapshot) -> None:
    """Its artist's played items, its genres' centroids, half of each; else a part of its kind's mean, or of all."""
    rock, rap = (vectors_of(two_tastes, *(f"{name}{n}" for n in range(6))) for name in ("rock", "rap"))
    expected = {
        "new-by-R": rock.mean(axis=0),
        "new-rap": rap.mean(axis=0),
        "new-both": (rock.mean(axis=0) + rap.mean(axis=0)) / 2,
        "strange": STRANGE_ITEM * np.concatenate([rock, rap]).mean(axis=0),
        "strange-show": STRANGE_ITEM * np.concatenate([rock, rap]).mean(axis=0),
    }
    for item_id, vector in expected.items():
        found = vectors_of(two_tastes, item_id)[0]
        np.testing.assert_allclose(found, vector, rtol=1e-5, atol=1e-7, err_msg=item_id)


def test_a_genre_centroid_is_the_mean_of_its_played_items(two_tastes: Snapshot) -> None:
    """A genre without played items has none: zero."""
    assert two_tastes.manifest.genres == ("rap", "rock", "yodel")
    rap, rock, yodel = two_tastes.columns["genre_centroid"]
    np.testing.assert_allclose(rap, vectors_of(two_tastes, *(f"rap{n}" for n in range(6))).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(rock, vectors_of(two_tastes, *(f"rock{n}" for n in range(6))).mean(axis=0), rtol=1e-5)
    assert not yodel.any()


def test_the_gram_matrix_is_over_all_items(snapshot: Snapshot) -> None:
    """V'V, what folding in a listener needs."""
    vectors = snapshot.columns["vector"].astype(np.float64)
    np.testing.assert_allclose(snapshot.columns["yty"], vectors.T @ vectors, rtol=1e-5, atol=1e-6)


def test_neighbours_are_those_of_brute_force_by_cosine(snapshot: Snapshot) -> None:
    """The nearest of the played items, best first, never the item itself; every played item has them."""
    vectors = snapshot.columns["vector"].astype(np.float64)
    rows = snapshot.columns["neighbour_row"]
    assert rows.tolist() == np.flatnonzero(snapshot.columns["plays"]).tolist()
    unit = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    best = -np.sort(-cosine, axis=1)[:, :64]
    np.testing.assert_allclose(snapshot.columns["neighbour_cosine"], best, atol=2e-3)
    places = np.searchsorted(rows, snapshot.columns["neighbour"])
    np.testing.assert_allclose(np.take_along_axis(cosine, places, axis=1), best, atol=1e-5)
    assert (snapshot.columns["neighbour"] != rows[:, None]).all()


def test_neighbours_among_many_items_miss_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where brute force would take too long, more than 95 % of them are found."""
    vectors = skewed_vectors(5_000, 1)
    plays = np.ones(len(vectors), np.int64)
    exact = find_neighbours(vectors, plays, seed=1, stage=alone())
    monkeypatch.setattr("features.offline.neighbours.EXACT_UP_TO", 1_000)
    quick = find_neighbours(vectors, plays, seed=1, stage=alone())
    shared = [len(np.intersect1d(one, other)) / 64 for one, other in zip(exact.neighbour, quick.neighbour, strict=True)]
    assert np.mean(shared) > 0.95


def test_only_the_most_played_have_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most, the least played have none and are nobody's; where there are few, places stay empty."""
    monkeypatch.setattr("features.offline.neighbours.MOST", 3)
    near = find_neighbours(skewed_vectors(6, 1), np.array([5, 0, 9, 1, 7, 1]), seed=1, stage=alone())
    assert near.row.tolist() == [0, 2, 4]
    assert [sorted(row[:2].tolist()) for row in near.neighbour] == [[2, 4], [0, 4], [0, 2]]
    assert (near.neighbour[:, 2:] == -1).all()


@pytest.mark.parametrize("listeners", [1, 5, 32, 500])
def test_segments_are_the_means_of_their_listeners(listeners: int) -> None:
    """Any number of listeners has them; a segment without anybody is zero."""
    vectors = skewed_vectors(listeners, 2)
    segments = make_segments(vectors, seed=1)
    assert segments.mean.shape == (SEGMENTS, 16)
    for number in range(SEGMENTS):
        mine = vectors[segments.of == number]
        np.testing.assert_allclose(segments.mean[number], mine.mean(axis=0) if len(mine) else 0, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("exact_up_to", [4_096, 64])
def test_an_index_of_cells_finds_what_brute_force_finds(
    exact_up_to: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It searches as few cells as reach the recall, with the vectors' own lengths, and the file opens for serving.

    So it does where the cells are so many that a vector's is found among a part of them.
    """
    monkeypatch.setattr("features.offline.cells.EXACT_UP_TO", exact_up_to)
    items, listeners = skewed_vectors(6_000, 3), skewed_vectors(300, 4)
    settings = IndexSettings(kind="ivf", depth=100, target_recall=0.97)
    chosen = choose_index(items, listeners, tmp_path, settings=settings, stage=alone())
    assert (chosen.factory, chosen.depth) == ("IVF128,SQfp16", 100)
    assert 0 < chosen.nprobe < 128
    assert chosen.recall >= 0.97
    retriever = FaissRetriever(tmp_path / INDEX, dimension=16, items=6_000, nprobe=chosen.nprobe)
    scores, rows = ExactRetriever(items).search(listeners, 100)
    assert recall_of(items, listeners, retriever.search(listeners, 100)[1], scores[:, -1]) > 0.95
    assert recall_of(items, listeners, rows, scores[:, -1]) == 1


def test_a_small_catalogue_is_searched_whole(snapshot: Snapshot) -> None:
    """The index is flat, its recall 1, and the manifest says how it was chosen."""
    index = dict(snapshot.manifest.index)
    assert index.pop("faiss")
    assert index == {"factory": "Flat", "nprobe": 0, "depth": 256, "recall": 1.0}


def test_equal_items_stand_for_one_another_in_recall() -> None:
    """Finding one of two equal vectors is no miss; finding a lesser one is."""
    items = np.array([[1, 0], [1, 0], [0.5, 0]], np.float32)
    query, least = np.array([[1, 0]], np.float32), np.array([1], np.float32)
    assert [recall_of(items, query, np.array([[row]]), least) for row in (0, 1, 2, -1)] == [1, 1, 0, 0]


def test_popular_and_newest_respect_markets(tmp_path: Path) -> None:
    """By plays of the market's listeners, then of the world's; nothing the market may not show; nothing to come.

    Row 0, for no known market, has only what all markets may show.
    """
    day = datetime(2026, 5, 4, tzinfo=UTC)
    items: list[Row] = [
        {"item_id": "world-hit", "released": date(2026, 5, 1)},
        {"item_id": "gb-hit", "markets": ["GB"], "released": date(2026, 5, 2)},
        {"item_id": "is-hit", "released": date(2026, 5, 1)},
        {"item_id": "loners-pick", "released": date(2026, 5, 5)},
        {"item_id": "over", "released": date(2026, 5, 3), "available_until": datetime(2026, 5, 3, tzinfo=UTC)},
    ]
    played = [("g", "world-hit", 900), ("g", "gb-hit", 5000), ("g", "over", 9000)]
    played += [("i", "is-hit", 60), ("i", "loners-pick", 3)]
    listens = [{"user_id": u, "item_id": i, "plays": n, "last_played_at": day} for u, i, n in played]
    listeners = [{"user_id": "g", "market": "GB"}, {"user_id": "i", "market": "IS"}]
    data = write_tables(tmp_path / "data", items=items, listens=listens, listeners=listeners)
    build(data, tmp_path / "out", settings=BuildSettings(factors=4, refuse=False), progress=quiet)
    snapshot = load(tmp_path / "out")
    names = {int(snapshot.rows_of(item_keys([item["item_id"]]))[0]): item["item_id"] for item in items} | {-1: ""}

    def listed(column: str) -> list[list[str]]:
        return [[names[row] for row in rows if row >= 0] for rows in snapshot.columns[column].tolist()]

    assert snapshot.manifest.markets == ("GB", "IS")
    assert snapshot.manifest.as_of == "2026-05-04"
    assert listed("popular") == [
        ["world-hit", "is-hit", "loners-pick"],
        ["gb-hit", "world-hit", "is-hit", "loners-pick"],
        ["is-hit", "world-hit", "loners-pick"],
    ]
    assert listed("newest") == [["world-hit", "is-hit"], ["gb-hit", "world-hit", "is-hit"], ["world-hit", "is-hit"]]


def test_one_wrong_clock_empties_no_list(tmp_path: Path) -> None:
    """A listen in 2099 moves neither the day of the data nor the end of what was available until 2030."""
    items: list[Row] = [{"item_id": name, "available_until": datetime(2030, 1, 1, tzinfo=UTC)} for name in "abc"]
    listens = [{**row, "last_played_at": datetime(2026, 5, 4, tzinfo=UTC)} for row in everyone_plays("uvw", "abc")]
    listens += [{"user_id": "x", "item_id": "a", "last_played_at": datetime(2099, 1, 1, tzinfo=UTC)}]
    data = write_tables(tmp_path / "data", items=items, listens=listens)
    report = build(data, tmp_path / "out", settings=BuildSettings(factors=4), progress=quiet)
    assert report.manifest.as_of == "2026-05-04"
    assert (load(tmp_path / "out").columns["popular"] >= 0).all()


@pytest.mark.parametrize(
    ("popular", "share"),
    [([[0, 1], [0, 1]], 1), ([[0, 1], [0, -1]], 1 / 3), ([[-1, -1], [0, 1]], 0)],
)
def test_the_shortest_list_is_a_share_of_what_the_market_may_show(popular: list[list[int]], share: float) -> None:
    """Of items everywhere for row 0, and of those and its own for a market."""
    bits = np.array([[0], [0], [1], [2]], np.uint64)
    catalogue = Catalogue(columns={"item_key": np.arange(4), "market_bits": bits}, genres=(), markets=("GB",))
    assert shortest_list(np.array(popular, np.int32), catalogue) == pytest.approx(min(share, 2 / 3))
    nothing = Catalogue(columns={"item_key": np.arange(1), "market_bits": bits[3:]}, genres=(), markets=("GB",))
    assert shortest_list(np.full((2, 1), -1, np.int32), nothing) == 1


def test_two_tastes_do_not_mix(two_tastes: Snapshot) -> None:
    """The best six for a genre have nothing of the other, for all that its own unplayed items may be among them."""
    assert two_tastes.manifest.built["counts"] == {"items": 17, "listeners": 24, "listens": 144}
    for genre, other in ((1, "rap"), (0, "rock")):
        query = two_tastes.columns["genre_centroid"][genre]
        best = np.argsort(-(two_tastes.columns["vector"] @ query))[:6]
        assert not np.isin(best, two_tastes.rows_of(item_keys([f"{other}{n}" for n in range(6)]))).any()
