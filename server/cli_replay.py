"""The command that makes served pages again: `mantel replay`."""

from collections import deque
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import InvalidInput
from features.state import State
from server.options import JsonOption, PrefixOption, RedisOption, StateOption, redis_url
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from features.snapshot import Snapshot
    from ranking.experiments.assignment import Assigner
    from ranking.promotions.book import Book as PromotionBook
    from server.replay import Records, Replayer

DRAWN_WITH = 1
"""The seed of buckets that no book has drawn yet: the same file always gives the same arms."""


def replay(
    *,
    check: Annotated[bool, typer.Option("--check", help="Are the pages made again equal to what was served?")] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="PARAM=VALUE, or SHELF.PARAM=VALUE.")] = None,
    experiments: Annotated[
        str,
        typer.Option(
            metavar="FILE|DIGEST", help="Another experiment book: what a file would make of it, or a kept one."
        ),
    ] = "",
    promotions: Annotated[
        str,
        typer.Option(metavar="FILE|DIGEST", help="Another promotion book, its feeds freshly confirmed, or a kept one."),
    ] = "",
    snapshot: Annotated[str, typer.Option(metavar="DIGEST", help="Another published snapshot.")] = "",
    pages: Annotated[int, typer.Option(min=1, help="Of the sampled pages at most the latest so many.")] = 1000,
    surface: Annotated[str, typer.Option(help="Only pages of this surface.")] = "",
    k: Annotated[
        int, typer.Option("--at", min=1, help="Compare the first so many items of a page, from its top.")
    ] = 20,
    most: Annotated[int, typer.Option("--show", min=0, help="Most changed pages to show side by side.")] = 3,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
    json_: JsonOption = False,
) -> None:
    """Make served pages again, from what was kept of a sample of them: as they were, or as a change would make them.

    Workers keep all that a page was made from for a share of pages (MANTEL_REPLAY_SAMPLE).
    With --check the exit code is 1 if a page differs in anything, or none could be made again.
    What cannot be made again, as where its snapshot was collected, is told apart.

    Examples: mantel replay --check, mantel replay --set diversity=mmr --set mmr_lambda=0.5,
    mantel replay --experiments E.toml, mantel replay --promotions P.toml, mantel replay --snapshot 69911adbebbd
    """
    from features.samples import samples_in
    from server import replay as again
    from server import replay_report

    settings = load_settings(state=state, redis=redis, prefix=prefix)
    if check == any((set_, experiments, promotions, snapshot)):
        raise InvalidInput(("check", "give --check, or a change: --set, --experiments, --promotions, --snapshot"))
    where = State(settings.state)
    found = samples_in(where.served_samples)
    latest = deque((one for one in found if one is None or surface in {"", one.surface}), maxlen=pages)
    if not latest:
        typer.echo("no served page is kept for replay yet", err=True)
        raise typer.Exit(1)
    replayer = again.Replayer(where)
    if check:
        result = again.check(replayer, latest)
        replay_report.checked(result, as_json=json_)
        raise typer.Exit(0 if result.equal and not result.different else 1)
    with ExitStack() as stack:
        change = again.Change(
            settings=_settings(set_ or []),
            assigner=_assigner(where, replayer, experiments) if experiments else None,
            promotions=_promotions(replayer, promotions) if promotions else None,
            snapshot=_published(where, replayer, snapshot) if snapshot else None,
            records=_records(settings, stack) if snapshot else again.no_records,
        )
        diff = again.compare(replayer, latest, change, k=k)
    replay_report.compared(
        diff, lambda pair, key: replayer.title(pair.sample, change, key), k=k, most=most, as_json=json_
    )
    raise typer.Exit(0 if diff.pairs else 1)


def _settings(said: list[str]) -> dict[str, str]:
    if odd := [one for one in said if "=" not in one]:
        raise InvalidInput(("set", f"{odd[0]!r} is not PARAM=VALUE"))
    return dict(one.split("=", 1) for one in said)


def _assigner(state: State, replayer: "Replayer", said: str) -> "Assigner":
    """Assigns by the book that a file would make of the one last in force here, or by a kept one."""
    from features.archive import named
    from ranking.experiments.applying import EMPTY, apply
    from ranking.experiments.assignment import Assigner
    from server.cli_experiments import spec_in
    from server.experiments import BOOKS, KIND

    if Path(said).exists():
        return Assigner(apply(BOOKS.kept(state) or EMPTY, spec_in(Path(said)), seed=DRAWN_WITH))
    return Assigner(replayer.book(named(replayer.archive, KIND, said)))


def _promotions(replayer: "Replayer", said: str) -> "PromotionBook":
    """The book that a file makes, or a kept one."""
    from features.archive import named
    from ranking.promotions.book import bind
    from server.cli_promotions import spec_in
    from server.promotion_specs import read_spec
    from server.promotions import KIND

    if Path(said).exists():
        return bind(read_spec(spec_in(Path(said), None)))
    return replayer.promotion_book(named(replayer.archive, KIND, said))


def _published(state: State, replayer: "Replayer", prefix: str) -> "Snapshot":
    found = [path.name for path in state.snapshots.glob(f"{prefix}*") if prefix.isalnum()]
    if len(found) != 1:
        raise InvalidInput(("snapshot", f"{len(found)} published snapshots begin with {prefix!r}"))
    return replayer.snapshot(found[0])


def _records(settings: Settings, stack: ExitStack) -> "Records":
    """Reads records of another embedding space from Redis, which is attached when the first is asked for."""
    from features.keys import Keys
    from features.offline.publish import connect

    keys = Keys(prefix=settings.prefix)

    @cache
    def client() -> Any:
        return stack.enter_context(connect(stack.enter_context(redis_url(settings))))

    def read(user_id: str, space_id: str) -> bytes | None:
        found: bytes | None = client().get(keys.record(user_id, space_id))
        return found

    return read
