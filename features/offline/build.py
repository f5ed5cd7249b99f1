"""Building a snapshot: from listening tables to a gated, immutable folder. The story, in the order it happens."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from features.errors import SnapshotRefused
from features.index import use_one_thread
from features.offline.artefact import entry_of, write_columns
from features.offline.build_settings import BuildSettings, key_of, space_id_of
from features.offline.cards import CARD_FORMAT
from features.offline.catalogue import Catalogue, write_catalogue
from features.offline.gate import drift, finite_share, pass_gate, unplayed_lift
from features.offline.history import History, read_history, read_listeners
from features.offline.index_choice import IndexChoice, choose_index
from features.offline.listening import ListeningData, open_listening
from features.offline.lists import Lists, make_lists, popularity_of, shortest_list
from features.offline.neighbours import Neighbours, find_neighbours
from features.offline.partial import partial
from features.offline.records import Taste, Usable, write_records
from features.offline.rejections import Rejections
from features.offline.segments import Segments, make_segments
from features.offline.stages import Stages
from features.offline.train import Model, gram, train
from features.snapshot import FORMAT, MANIFEST, Manifest, Snapshot, digest_of, load

__all__ = ["BuildReport", "BuildSettings", "build"]

Progress = Callable[[str, int, int], None]
"""Told stage, done, of how many (0: not known)."""
Rejection = tuple[str, str, int, tuple[str, ...]]
"""Table, reason, count, examples."""
Figures = dict[str, float]
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What was built, how good it is, and how long each stage took, before an interruption or after."""

    manifest: Manifest
    digest: str
    figures: Mapping[str, float]
    seconds: Mapping[str, float]
    resumed: tuple[str, ...]  # stages that an interrupted build had finished
    rejections: list[Rejection]


def build(
    data: Path,
    out: Path,
    *,
    settings: BuildSettings,
    progress: Progress,
    previous: Path | None = None,
    forgotten: Path | None = None,
) -> BuildReport:
    """Builds a snapshot at `out`, and the listener records inside it; the same data and settings give the same bytes.

    One that was killed, or refused by the gate, goes on with what it had finished (`features.offline.partial`).
    Who has a tombstone in the file `forgotten`, or in the one that lies with the data, is left out with all before.
    Drift is measured against the snapshot `previous`, or else against the one that stands at `out`, if it can be read.
    Its figures are in the report and not in the manifest, which speaks of nothing but this data and these settings.

    Raises:
        ListeningError: the data cannot be used.
        SnapshotRefused: `previous` cannot be read.
        GateRefused: a figure is beyond its limit; `out` stays as it was.
        WrongState: something else than a snapshot stands at `out`, or another process builds it.
    """
    before = load(previous) if previous else _standing(out)
    listening = open_listening(data, forgotten)
    source = listening.digest()
    with _repeatable(), partial(out, key_of(source, settings)) as (unfinished, discarded):
        if discarded:
            progress("discarded: an unfinished other build", 1, 1)
        stages, folder = Stages(progress, unfinished, listening.report), unfinished.folder
        catalogue, history = _read(listening, folder, stages)
        model, taste = _learn(history, catalogue, folder, settings, stages)
        columns = _derive(catalogue, history, model, taste.segments, settings, stages)
        write_columns(folder, columns)
        index = _index(model, folder, settings, stages)
        usable = _records(history, catalogue, taste, folder, space_id_of(source, settings.training), stages)
        with stages("gate"):
            figures = {"coverage": usable / history.listeners, "rejected": listening.report.share()}
            figures |= _figures(index, catalogue, model, columns)
            drifted = drift({**catalogue.columns, **columns}, before) if before else {}
            pass_gate(figures | drifted, settings.limits, refuse=settings.refuse)
        with stages("seal"):
            manifest = _manifest(folder, catalogue, history, index, figures, settings, source, listening.report)
            (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return BuildReport(
        manifest=manifest,
        digest=digest_of(manifest.to_bytes()),
        figures=figures | drifted | {"micros": index.micros},
        seconds=stages.seconds,
        resumed=tuple(stages.resumed),
        rejections=listening.report.rows(),
    )


def _standing(out: Path) -> Snapshot | None:
    if (out / MANIFEST).is_file():
        with suppress(SnapshotRefused):
            return load(out)
    return None


def _read(listening: ListeningData, folder: Path, stages: Stages) -> tuple[Catalogue, History]:
    people = read_listeners(listening)
    markets = set(people["market"]) - {""}
    catalogue = stages.made(
        "items", Catalogue, lambda stage: write_catalogue(listening, folder, markets=markets, progress=stage)
    )
    history = stages.made("listens", History, lambda stage: read_history(listening, catalogue, people, stage))
    return catalogue, history


def _learn(
    history: History, catalogue: Catalogue, folder: Path, settings: BuildSettings, stages: Stages
) -> tuple[Model, Taste]:
    model = stages.made(
        "train", Model, lambda stage: train(history, catalogue, folder, settings=settings.training, stage=stage)
    )
    segments = stages.made("segments", Segments, lambda _: make_segments(model.listeners, seed=settings.seed))
    return model, Taste(vectors=model.listeners, segments=segments)


def _derive(
    catalogue: Catalogue, history: History, model: Model, segments: Segments, settings: BuildSettings, stages: Stages
) -> Columns:
    """Makes the columns that need listens or vectors."""
    plays = np.bincount(history.item, history.plays, minlength=catalogue.items).astype(np.int64)
    lists = stages.made("lists", Lists, lambda _: make_lists(history, catalogue, plays))
    near = stages.made(
        "neighbours", Neighbours, lambda stage: find_neighbours(model.items, plays, seed=settings.seed, stage=stage)
    )
    return {
        "plays": plays,
        "popularity": popularity_of(catalogue, plays),
        "popular": lists.popular,
        "newest": lists.newest,
        "segment_mean": segments.mean,
        "genre_centroid": model.genre_centroid,
        "neighbour_row": near.row,
        "neighbour": near.neighbour,
        "neighbour_cosine": near.cosine,
        "yty": gram(model.items),
    }


def _index(model: Model, folder: Path, settings: BuildSettings, stages: Stages) -> IndexChoice:
    return stages.made(
        "index",
        IndexChoice,
        lambda stage: choose_index(model.items, model.listeners, folder, settings=settings.indexing, stage=stage),
    )


def _records(  # records are made from all that is known
    history: History, catalogue: Catalogue, taste: Taste, folder: Path, space_id: str, stages: Stages
) -> int:
    return stages.made(
        "records",
        Usable,
        lambda stage: write_records(history, catalogue, taste, folder, space_id=space_id, progress=stage),
    ).listeners


def _figures(index: IndexChoice, catalogue: Catalogue, model: Model, columns: Columns) -> Figures:
    return {
        "recall": index.recall,
        "finite": finite_share(model.items),
        "unplayed_lift": unplayed_lift(index.found, columns["plays"]),
        "shortest_list": shortest_list(columns["popular"], catalogue),
    }


def _manifest(  # noqa: PLR0913, PLR0917  # a manifest speaks of everything
    folder: Path,
    catalogue: Catalogue,
    history: History,
    index: IndexChoice,
    figures: Figures,
    settings: BuildSettings,
    source: str,
    rejections: Rejections,
) -> Manifest:
    chosen = {"factory": index.factory, "nprobe": index.nprobe, "depth": index.depth, "recall": index.recall}
    counts = {"items": catalogue.items, "listeners": history.listeners, "listens": len(history.item)}
    return Manifest(
        format=FORMAT,
        space_id=space_id_of(source, settings.training),
        items=catalogue.items,
        dimension=settings.factors,
        metric="inner_product",
        card_format=CARD_FORMAT,
        genres=catalogue.genres,
        markets=catalogue.markets,
        as_of=history.as_of,
        index=chosen | {"faiss": faiss.__version__},
        gate=figures,
        built={
            "version": version("mantel"),
            "seed": settings.seed,
            "settings": asdict(settings),
            "data": source,
            "counts": counts,
            "rejected": rejections.counts(),
        },
        files={
            path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST
        },
    )


@contextmanager
def _repeatable() -> Iterator[None]:
    """Makes arithmetic independent of the number of cores, and of what the process did before.

    BLAS gets one thread, which is also what `implicit` asks for (its own threads solve a row each); FAISS never
    switches to BLAS, as when serving (`features.index.use_one_thread`), but searches with all cores.
    """
    with threadpool_limits(1, "blas"):
        use_one_thread()
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        yield
