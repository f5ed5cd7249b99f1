"""How a line's choice changes the page: caps hold, diversity diversifies, calibration calibrates."""

import numpy as np
from numpy.typing import NDArray

from features.snapshot import Snapshot
from ranking.params import Value, resolve
from ranking.types import Fate
from tests.test_home import read, spec
from tests.test_shelves import page

FREE: dict[str, Value] = {"artist_cap": 0, "album_cap": 0, "artist_gap": 0}


def rows(snapshot: Snapshot, frame: bytes, **preset: Value) -> NDArray[np.int64]:
    """The taste shelf under a preset."""
    shelf = spec("taste", "taste", size=12, depth=256, params=resolve(FREE, preset))
    return page(snapshot, frame, shelf).shelves[0].rows


def likeness(snapshot: Snapshot, shown: NDArray[np.int64]) -> float:
    """The mean cosine between the items of a shelf."""
    vectors = np.asarray(snapshot.columns["vector"][shown], np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return float(cosines[np.triu_indices(len(shown), 1)].mean())


def divergence(snapshot: Snapshot, frame: bytes, shown: NDArray[np.int64]) -> float:
    """KL of a shelf's genres from the listener's own mix, smoothed as in Steck 2018."""
    target = read(snapshot, [frame]).genre_weights[0].astype(np.float64)
    index = snapshot.columns["genre"][shown]
    weight = np.where(index >= 0, 1 / np.arange(1, 9), 0.0)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    mix = np.zeros(len(target))
    np.add.at(mix, index[index >= 0], weight[index >= 0] / len(shown))
    mix = 0.99 * mix + 0.01 * target
    known = target > 0
    return float((target[known] * np.log(target[known] / mix[known])).sum())


def test_caps_hold_and_what_falls_is_told(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """One of an artist on the shelf, no two albums alike; candidates beyond are CAPPED where the line ran out."""
    shelf = spec("taste", "taste", size=100, depth=256, params=resolve({"artist_cap": 1, "album_cap": 1}))
    capped = 0
    for frame in list(records.values())[:20]:
        home = page(snapshot, frame, shelf)
        artists = snapshot.columns["artist_key"][home.shelves[0].rows]
        assert len(set(artists[artists > 0].tolist())) == (artists > 0).sum()
        capped += home.fates.get(Fate.CAPPED, 0)
    assert capped > 0


def test_artists_stand_apart(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """With a gap of two, two items stand at least between two of one artist."""
    for frame in list(records.values())[:20]:
        artists = snapshot.columns["artist_key"][rows(snapshot, frame, artist_gap=2)]
        for near in (1, 2):
            assert not ((artists[near:] == artists[:-near]) & (artists[near:] > 0)).any()


def test_mmr_and_dpp_show_what_is_less_alike(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The mean cosine on the shelf falls for nearly every listener, and more the stronger the method."""
    frames = list(records.values())[:40]
    plain = np.array([likeness(snapshot, rows(snapshot, frame)) for frame in frames])
    for mild, strong in (
        ({"diversity": "mmr", "mmr_lambda": 0.8}, {"diversity": "mmr", "mmr_lambda": 0.4}),
        ({"diversity": "dpp", "dpp_theta": 16.0}, {"diversity": "dpp", "dpp_theta": 2.0}),
    ):
        less = np.array([likeness(snapshot, rows(snapshot, frame, **mild)) for frame in frames])  # type: ignore[arg-type]
        least = np.array([likeness(snapshot, rows(snapshot, frame, **strong)) for frame in frames])  # type: ignore[arg-type]
        assert (least < plain).mean() > 0.9
        assert least.mean() < less.mean() < plain.mean()


def test_calibration_brings_the_shelf_near_the_listeners_mix(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """The divergence from the listener's genres falls, and more the stronger."""
    frames = list(records.values())[:40]
    mean = {
        strength: np.mean(
            [
                divergence(
                    snapshot,
                    frame,
                    rows(snapshot, frame, diversity="calibration", calibration_lambda=strength),
                )
                for frame in frames
            ]
        )
        for strength in (0.0, 0.3, 0.8)
    }
    plain = np.mean([divergence(snapshot, frame, rows(snapshot, frame)) for frame in frames])
    assert mean[0.8] < mean[0.3] < mean[0.0] == plain


def test_the_neutral_strength_is_by_score(snapshot: Snapshot, records: dict[str, bytes]) -> None:
    """MMR at 1 and calibration at 0 show what no method shows."""
    for frame in list(records.values())[:20]:
        plain = rows(snapshot, frame).tolist()
        assert rows(snapshot, frame, diversity="mmr", mmr_lambda=1.0).tolist() == plain
        assert rows(snapshot, frame, diversity="calibration", calibration_lambda=0.0).tolist() == plain
