"""`mantel evaluate`: how relevant the served pages are, beside the exact model and three baselines on the same split.

The listens are split per listener; a snapshot is built from the train part, served, and asked for twenty items that
each listener has not played. What comes is held against the test part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from pyarrow import parquet

from features.keys import item_keys
from features.listeners import Listeners, decode
from features.offline.build import BuildSettings, build
from features.offline.listening import open_listening
from features.offline.records import RECORDS
from features.offline.relevance import (
    PADDING,
    Difference,
    Ints,
    Relevance,
    Split,
    ease,
    exact,
    item_knn,
    measure,
    ndcg,
    paired,
    popularity,
    split,
)
from features.snapshot import Snapshot, load

DEPTH: Final = 20
EASE_LAMBDA: Final = 80.0  # chosen on a validation part of the train split of HetRec Last.fm
SERVED: Final = "served"
EXACT: Final = "exact model"

Serve = Callable[[Path, Sequence[str]], Sequence[Sequence[str]]]  # snapshot folder, user ids -> item ids, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A split and what was built from its train part; `users` and `items` are its rows and columns by id."""

    users: list[str]
    items: list[str]
    halves: Split
    folder: Path
    snapshot: Snapshot
    listeners: Listeners  # one row per user

    @property
    def rows(self) -> Ints:
        """The snapshot's rows of the split's items, `[item]`."""
        return self.snapshot.rows_of(item_keys(self.items))

    def ranked(self, pages: Sequence[Sequence[str]]) -> Ints:
        """Served item ids as the split's item numbers, `[user, 20]`."""
        number = {item_id: place for place, item_id in enumerate(self.items)}
        ranked = np.full((len(pages), DEPTH), PADDING, np.int64)
        for row, page in enumerate(pages):
            ranked[row, : len(page)] = [number[item_id] for item_id in page[:DEPTH]]
        return ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured."""

    relevance: tuple[Relevance, ...]  # one per model
    differences: Mapping[str, Difference]  # NDCG@20 of the served pages against each other model, paired by listener
    index: Mapping[str, Any]  # the served index, as the manifest says
    listeners: int  # with test items
    items: int
    train: int  # listens
    test: int


def evaluate(
    data: Path,
    work: Path,
    *,
    settings: BuildSettings,
    seed: int,
    serve: Serve,
    progress: Callable[[str, int, int], None],
) -> Evaluation:
    """Splits, builds, serves and measures; `work` is an empty folder for the split and its snapshot."""
    trial = prepare(data, work, settings=settings, seed=seed, progress=progress)
    halves = trial.halves
    vectors = trial.snapshot.columns["vector"][trial.rows]
    ranked = {EXACT: exact(trial.listeners.vectors, vectors, halves.train, DEPTH)}
    progress("baselines", 0, 1)
    ranked |= {
        f"EASE, lambda {EASE_LAMBDA:.0f}": ease(halves.train, DEPTH, regularization=EASE_LAMBDA),
        "ItemKNN": item_knn(halves.train, DEPTH),
        "popularity": popularity(halves.train, DEPTH),
    }
    ranked = {SERVED: trial.ranked(serve(trial.folder, trial.users))} | ranked
    own = ndcg(ranked[SERVED], halves.test)
    return Evaluation(
        relevance=tuple(measure(model, rows, halves.test) for model, rows in ranked.items()),
        differences={model: paired(own, ndcg(rows, halves.test)) for model, rows in ranked.items() if model != SERVED},
        index=trial.snapshot.manifest.index,
        listeners=int((np.diff(halves.test.indptr) > 0).sum()),
        items=len(trial.items),
        train=halves.train.nnz,
        test=halves.test.nnz,
    )


def prepare(
    data: Path, work: Path, *, settings: BuildSettings, seed: int, progress: Callable[[str, int, int], None]
) -> Trial:
    """Splits the listens and builds from the train part; reads the records, which publishing deletes."""
    progress("split", 0, 1)
    users, items, halves = _halve(data, work / "train", seed)
    folder = work / "snapshot"
    build(work / "train", folder, settings=settings, progress=progress)
    snapshot = load(folder)
    listeners = _listeners(snapshot, folder / RECORDS, users)
    return Trial(users=users, items=items, halves=halves, folder=folder, snapshot=snapshot, listeners=listeners)


def _halve(data: Path, train: Path, seed: int) -> tuple[list[str], list[str], Split]:
    """Splits the listens and writes the train part as listening tables; answers the kept users, items and the split."""
    listening = open_listening(data)
    listens = pl.concat(listening.listens())
    user_names, item_names = listens["user_id"].unique().sort(), listens["item_id"].unique().sort()
    user = user_names.search_sorted(listens["user_id"]).to_numpy()
    item = item_names.search_sorted(listens["item_id"]).to_numpy()
    halves = split(user.astype(np.int64), item.astype(np.int64), seed=seed)
    users = [user_names[int(number)] for number in halves.users]
    items = [item_names[int(number)] for number in halves.items]
    row, column = halves.train.tocoo().coords
    kept = pl.DataFrame({"user_id": [users[u] for u in row], "item_id": [items[i] for i in column]})
    train.mkdir(parents=True)
    kept.join(listens, on=["user_id", "item_id"], how="left").write_parquet(train / "listens.parquet")
    catalogue = pl.concat(listening.items()).filter(pl.col("item_id").is_in(items))
    catalogue.write_parquet(train / "items.parquet")
    return users, items, halves


def _listeners(snapshot: Snapshot, records: Path, users: list[str]) -> Listeners:
    """The records that were built for users, as columns."""
    table = parquet.read_table(sorted(records.glob("*.parquet")))
    frames = dict(zip(table["user_id"].to_pylist(), table["record"].to_pylist(), strict=True))
    return decode(
        [frames.get(user) for user in users],
        space_id=snapshot.space_id,
        dimension=snapshot.manifest.dimension,
        genres=len(snapshot.manifest.genres),
    )
