"""The command that measures relevance through a server of its own: `mantel evaluate`."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from features.errors import Unavailable
from features.state import State
from server.options import JsonOption, QuietOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from features.offline.diversity import Variant
    from features.offline.evaluate import Trial
    from features.offline.promoted import Slates
    from protos.client import HomeClient
    from ranking.types import Home

TRIES: Final = 10
PREFIX: Final = "evaluation"
Progress = Callable[[str, int, int], None]
Ask = Callable[[str], list[list[str]]]  # a surface's name -> each listener's item ids, best first


def evaluate(
    *,
    data: Annotated[Path, typer.Option(help="Directory with the tables, for example of `mantel import lastfm`.")],
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    factors: Annotated[int, typer.Option(min=8, max=512, help="Dimension of the vectors.")] = 64,
    diversity: Annotated[bool, typer.Option("--diversity", help="Compare MMR, DPP and calibration instead.")] = False,
    promoted: Annotated[bool, typer.Option("--promoted", help="Measure what promotion costs instead.")] = False,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure relevance through a server of its own, beside the exact model and three baselines.

    Splits the listens, builds from the train part, serves it on a free port, and asks for the `evaluation` surface.
    Example: mantel evaluate --data W
    """
    from features.offline.build import BuildSettings
    from features.offline.diversity import VARIANTS, surfaces_text, trade_off
    from features.offline.evaluate import evaluate as run
    from features.offline.evaluate import prepare
    from features.offline.promoted import costs
    from server import face, reports

    settings = BuildSettings(factors=factors, index="ivf")
    with tempfile.TemporaryDirectory(prefix="mantel-") as name, face.progress(quiet=quiet or json_) as tell:
        work = Path(name)
        if diversity:
            trial = prepare(data, work, settings=settings, seed=seed, progress=tell)
            variants = (*VARIANTS, _shipped_preset())
            (work / "surfaces.toml").write_text(surfaces_text(variants), encoding="utf-8")
            flags = {"surfaces": str(work / "surfaces.toml")}
            with _served(work, trial.folder, trial.users, tell, flags) as ask:
                found = trade_off(trial, ask, variants)
        elif promoted:
            trial = prepare(data, work, settings=settings, seed=seed, progress=tell)
            paid = costs(trial, partial(_assembled, work, trial), seed=seed)
        else:
            serve = partial(_serve_unplayed, work, tell)
            measured = run(data, work, settings=settings, seed=seed, serve=serve, progress=tell)
    if diversity:
        reports.trade_offs(found, as_json=json_)
    elif promoted:
        reports.promotion_costs(paid, as_json=json_)
    else:
        reports.evaluation(measured, as_json=json_)


def _assembled(
    work: Path, trial: "Trial", params: Mapping[str, float], draws: "Sequence[NDArray[np.int64]]"
) -> "list[Slates]":
    """Every listener's shelf with promotion and without, by the core itself: no server is told of promotions yet."""
    import numpy as np

    from features.index import use_one_thread
    from features.offline.promoted import SURFACE, surface_text
    from ranking.home import assemble
    from ranking.offers import SCORE, indexed, offered_to, open_campaigns
    from ranking.surfaces import load_surfaces
    from ranking.types import HomeQuery

    path = work / "surfaces.toml"
    path.write_text(surface_text(params), encoding="utf-8")
    surface = load_surfaces(path)[SURFACE]
    use_one_thread()
    rows = np.concatenate(draws)
    queries = tuple(HomeQuery(user_id=user, surface=surface, now=0, traced=True) for user in trial.users)
    scores = np.zeros(len(rows), SCORE)
    scores["row"], scores["campaign"], scores["score"] = rows, np.arange(len(rows)), 1
    scores["segment"] = np.repeat(np.arange(len(draws)), [len(draw) for draw in draws])
    promotions = indexed(scores, open_campaigns(len(rows)), trial.snapshot.manifest.items)
    promotions = offered_to(promotions, trial.listeners)._replace(segment=np.arange(len(queries)) % len(draws))
    homes, _ = assemble(queries, trial.listeners, trial.snapshot, promotions=promotions, clock=time.perf_counter)
    return [_slates(home) for home in homes]


def _slates(home: "Home") -> "Slates":
    """A page of one shelf, or of none."""
    import numpy as np

    from features.offline.promoted import Slates
    from ranking.types import Fate

    if not home.shelves:
        nothing = np.empty(0, np.int64)
        return Slates(rows=nothing, organic=nothing, promoted=0, loss=0.0)
    (shelf,) = home.shelves
    if shelf.inserted is None:
        return Slates(rows=shelf.rows, organic=shelf.rows, promoted=0, loss=0.0)
    (line,) = home.lines
    candidates = dict(zip(line.rows.tolist(), line.scores.tolist(), strict=True))
    low = min(
        score
        for score, fate in zip(line.scores.tolist(), line.fate.tolist(), strict=True)
        if not Fate.MARKET <= fate <= Fate.OFF_GENRE
    )
    discount = 1 / np.log2(np.arange(len(shelf.rows)) + 2)
    with_, without = (
        float(sum(d * (candidates[row] - low) for d, row in zip(discount, rows.tolist(), strict=True)))
        for rows in (shelf.rows, shelf.inserted.organic)
    )
    promoted = int((shelf.inserted.campaign >= 0).sum())
    return Slates(rows=shelf.rows, organic=shelf.inserted.organic, promoted=promoted, loss=1 - with_ / without)


def _shipped_preset() -> "Variant":
    """How a shelf of taste is chosen with the preset `full`, as the shipped surfaces have it."""
    from features.offline.diversity import Variant
    from ranking.params import PARAMS, named
    from ranking.surfaces import DEFAULT_SURFACES, load_surfaces

    (shelf,) = load_surfaces(DEFAULT_SURFACES, "full")["evaluation"].shelves
    changed = [(param, value) for param, value in zip(PARAMS, shelf.params, strict=True) if value != param.default]
    params = {param.name: named(param, value) if param.choices else float(value) for param, value in changed}
    return Variant(name="preset-full", params=params)


def _serve_unplayed(work: Path, tell: Progress, snapshot: Path, users: Sequence[str]) -> list[list[str]]:
    with _served(work, snapshot, users, tell, {}) as ask:
        return ask("evaluation")


@contextmanager
def _served(
    work: Path, snapshot: Path, users: Sequence[str], tell: Progress, flags: Mapping[str, str]
) -> Iterator[Ask]:
    """Publishes a snapshot to a state directory of its own and serves it, for asking every user's page of a surface."""
    from features.embedded_redis import attached
    from features.keys import Keys
    from features.offline.publish import connect
    from features.offline.publish import publish as publish_snapshot
    from server import calling, launch

    state = State(work / "state")
    words = {"port": "0", "control-port": "0", "metrics-port": "0", "prefix": PREFIX, **flags}
    with attached(state) as url:
        with connect(url) as store:
            publish_snapshot(snapshot, state, store, Keys(prefix=PREFIX), progress=tell)
        with (
            launch.running(state, words, log=work / "serve.log") as endpoints,
            calling.home(state, endpoints.target) as client,
        ):

            def ask(surface: str) -> list[list[str]]:
                pages = []
                for number, user in enumerate(users, 1):
                    pages.append(_unplayed(client, user, surface))
                    tell(surface, number, len(users))
                return pages

            yield ask


def _unplayed(client: "HomeClient", user: str, surface: str) -> list[str]:
    """What a user gets on a surface; a page that is degraded, as on a busy machine, is asked for anew.

    Raises:
        Unavailable: it stays degraded.
    """
    from server import calling

    for _ in range(TRIES):
        home = calling.said(client, partial(client.get_home, user, surface=surface, timeout_s=10))
        if not home.degraded:
            return [item.item_id for shelf in home.shelves for item in shelf.items]
    raise Unavailable(f"the page of {user} is degraded, {TRIES} times: {list(home.degraded_reasons)}")
