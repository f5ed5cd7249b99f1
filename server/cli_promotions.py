"""The commands of promoters: `mantel promotions`."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import InvalidInput
from features.state import State
from server.options import CaOption, CertOption, InsecureOption, JsonOption, KeyOption, StateOption, TargetOption
from server.settings import load_settings

if TYPE_CHECKING:
    from protos.client import PromotionClient
    from protos.promotions.v1 import promotions_pb2

promotions = typer.Typer(help="See and change what is promoted.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.add_typer(promotions, name="promotions")


@promotions.command("apply")
def apply_book(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What is promoted: TOML, or .json.")
    ],
    *,
    scores: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="More items of FILE's campaigns: .parquet or .csv, with campaign, item_id, score and perhaps segment.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether it could be applied.")] = False,
    etag: Annotated[
        str | None, typer.Option(help="Version that FILE was made from. \\[default: the one in force]")
    ] = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a file's feeds and campaigns the ones in force, and confirm its feeds.

    The file holds all of them. Of a feed, scores count in full for 15 minutes after it was last confirmed, and after 60
    no more: apply or confirm it again. Needs the role promoter.

    Examples: mantel promotions apply P.toml, mantel promotions apply P.toml --scores S.parquet --check
    """
    from server import calling, promotion_reports

    spec = spec_in(file, scores)
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        known = calling.said(client, client.get_book).version if etag is None else etag
        found = calling.said(client, lambda: client.apply_book(spec, etag=known, validate_only=check))
    promotion_reports.applied(found, before=known, check=check, as_json=json_)


@promotions.command("list")
def list_promotions(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """List the feeds and campaigns in force: what runs, what has faded, which items the catalogue lacks.

    Example: mantel promotions list
    """
    from server import calling, promotion_reports

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        found = calling.said(client, client.list_promotions)
    promotion_reports.listed(found, as_json=json_)


@promotions.command("stats")
def stats(
    campaign: Annotated[
        list[str] | None, typer.Argument(metavar="CAMPAIGN…", help="Which. \\[default: all]", show_default=False)
    ] = None,
    *,
    days: Annotated[int, typer.Option(min=1, max=35, help="How many days, today's first.")] = 7,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Tell by day and campaign on how many pages it could stand and stood, and how many of its items.

    Only what promotion moved counts: what stands higher than it would without, or would not stand there at all.
    Example: mantel promotions stats spring --days 3
    """
    from server import calling, promotion_reports

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        found = calling.said(client, lambda: client.get_stats(days=days, campaigns=campaign or ()))
    promotion_reports.stats(found, as_json=json_)


@promotions.command("confirm")
def confirm_feed(
    feed: Annotated[str, typer.Argument(metavar="FEED", help="The feed.")],
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Say that a feed's scores still stand, so that it does not fade.

    Example, every 10 minutes: mantel promotions confirm discovery
    """
    from server import calling, promotion_reports

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        found = calling.said(client, lambda: client.confirm_feed(feed))
    promotion_reports.confirmed(feed, found, as_json=json_)


def _client(
    state: Path | None, target: str | None, ca: Path | None, cert: Path | None, key: Path | None, *, insecure: bool
) -> "PromotionClient":
    """A client of the control port that these options mean."""
    from server import calling

    where = State(load_settings(state=state).state)
    return calling.promotions(where, target, calling.tls_of(ca, cert, key), insecure=insecure)


def spec_in(file: Path, scores: Path | None) -> "promotions_pb2.Spec":
    """A file's spec, with the scores of a table.

    Raises:
        InvalidInput: naming the file, and what cannot be read in it; what is wrong with a value the server says.
    """
    from google.protobuf.json_format import ParseDict, ParseError

    from features.offline.scores import read_scores
    from protos.promotions.v1 import promotions_pb2

    try:
        text = file.read_text(encoding="utf-8")
        said: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        spec = ParseDict(_timed(said), promotions_pb2.Spec())
    except (OSError, ValueError, ParseError) as error:
        raise InvalidInput((str(file), f"cannot be read: {error}")) from error
    numbers = {campaign.id: number for number, campaign in enumerate(spec.campaigns)}
    for campaign, item_id, score, segment in () if scores is None else read_scores(scores):
        if campaign not in numbers:
            raise InvalidInput((str(scores), f"names the campaign {campaign}, which {file} lacks"))
        spec.campaigns[numbers[campaign]].items.add(item_id=item_id, score=score, segment=segment)
    return spec


def _timed(said: Any) -> Any:
    """A file's content, with TOML's dates and times as JSON writes them; without an offset they are of UTC."""
    if isinstance(said, dict):
        return {name: _timed(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_timed(value) for value in said]
    if isinstance(said, datetime):
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).isoformat()
    return said
