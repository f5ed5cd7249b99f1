"""`mantel listeners`: what a listener hid and chose, and being forgotten."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import InvalidInput
from features.state import State
from server.options import (
    CaOption,
    CertOption,
    InsecureOption,
    JsonOption,
    KeyOption,
    PrefixOption,
    RedisOption,
    StateOption,
    TargetOption,
    redis_url,
)
from server.settings import load_settings

if TYPE_CHECKING:
    from protos.client import HomeClient
    from protos.listeners.v1 import listeners_pb2

listeners = typer.Typer(help="See and change what a listener hid and chose; forget a listener.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The listener.")]
ItemsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ITEM]...", help="Items.")]
ArtistOption = Annotated[list[str] | None, typer.Option("--artist", metavar="ID", help="An artist; may be repeated.")]


@listeners.command("show")
def show(
    user_id: UserArgument,
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a listener hid and chose.

    Example: mantel listeners show u0000001
    """
    from server import calling

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        _print(calling.said(client, lambda: client.get_preferences(user_id)), as_json=json_)


@listeners.command("hide")
def hide(
    user_id: UserArgument,
    items: ItemsArgument = None,
    *,
    artist: ArtistOption = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Hide items, or all items by artists: they stand on no page of the listener, from the next one on.

    Examples:
    mantel listeners hide u0000001 t0000042 t0000043
    mantel listeners hide u0000001 --artist a000017
    """
    from server import calling

    chosen, artists = _named(items, artist)
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        after = calling.said(
            client, lambda: client.update_preferences(user_id, hide_item_ids=chosen, hide_artist_ids=artists)
        )
    _print(after, as_json=json_)


@listeners.command("unhide")
def unhide(
    user_id: UserArgument,
    items: ItemsArgument = None,
    *,
    artist: ArtistOption = None,
    artist_of: Annotated[
        list[str] | None, typer.Option(metavar="ITEM", help="An item whose artist is meant; may be repeated.")
    ] = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Let hidden items or artists come back.

    Example: mantel listeners unhide u0000001 t0000042 --artist a000017
    """
    from server import calling

    chosen, _ = _named(items, artist or artist_of)
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        after = calling.said(
            client,
            lambda: client.update_preferences(
                user_id,
                unhide_item_ids=chosen,
                unhide_artist_ids=artist or (),
                unhide_artists_of_item_ids=artist_of or (),
            ),
        )
    _print(after, as_json=json_)


@listeners.command("set")
def choose(
    user_id: UserArgument,
    *,
    explicit: Annotated[bool | None, typer.Option("--explicit/--no-explicit", help="Explicit items or none.")] = None,
    promotions: Annotated[
        bool | None, typer.Option("--promotions/--no-promotions", help="Paid placements or none.")
    ] = None,
    discovery: Annotated[float | None, typer.Option(help="0, all familiar, to 1, all new; .5 as for all.")] = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Set what a listener allows and prefers; what is not named stays as it is.

    Example: mantel listeners set u0000001 --no-explicit --discovery 0.8
    """
    from server import calling

    if explicit is None and promotions is None and discovery is None:
        raise InvalidInput(("set", "name at least one of --explicit, --promotions and --discovery"))
    off = None if promotions is None else not promotions
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        after = calling.said(
            client,
            lambda: client.update_preferences(
                user_id, allow_explicit=explicit, promotions_off=off, discovery=discovery
            ),
        )
    _print(after, as_json=json_)


@listeners.command("forget")
def forget(
    user_id: UserArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
) -> None:
    """Erase all that is known of a listener, for good: record, recent plays, preferences, caps.

    Later drains, builds and publishes leave out what is older, and drains erase what they wrote of them before.
    A listener who comes back is a stranger; what they do then counts.

    Example: mantel listeners forget u0000001
    """
    from server import calling

    if not yes:
        typer.confirm(f"erase all that is known of {user_id}? This cannot be undone", abort=True, err=True)
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        erased = calling.said(client, lambda: client.forget(user_id))
    typer.echo(f"{user_id} is forgotten: {erased} keys erased")


@listeners.command("forgotten")
def forgotten(
    *,
    out: Annotated[Path, typer.Option(help="File for the tombstones, Parquet.")],
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Write who was forgotten, as tombstones that name nobody, for builds and imports away from this Redis.

    Example: mantel listeners forgotten --out F.parquet; mantel build --data W --forgotten F.parquet --out S
    """
    from features.keys import Keys
    from features.offline.forgotten import all_forgotten, write_forgotten
    from features.offline.publish import connect

    settings = load_settings(state=state, redis=redis, prefix=prefix)
    with redis_url(settings) as url, connect(url) as client:
        found = all_forgotten(client, Keys(prefix=settings.prefix))
    write_forgotten(out, found)
    typer.echo(f"{len(found.at):,} tombstones -> {out}")


def _client(
    state: Path | None, target: str | None, ca: Path | None, cert: Path | None, key: Path | None, *, insecure: bool
) -> "HomeClient":
    """A client of the data port that these options mean."""
    from server import calling

    where = State(load_settings(state=state).state)
    return calling.home(where, target, calling.tls_of(ca, cert, key), insecure=insecure)


def _named(items: list[str] | None, artists: list[str] | None) -> tuple[list[str], list[str]]:
    if not items and not artists:
        raise InvalidInput(("item", "name at least one item, or one artist with --artist"))
    return items or [], artists or []


def _print(found: "listeners_pb2.Preferences", *, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    from server import face

    if as_json:
        typer.echo(json.dumps(MessageToDict(found, preserving_proto_field_name=True), indent=1, ensure_ascii=False))
        return
    explicit = "never said"
    if found.HasField("allow_explicit"):
        explicit = "allowed" if found.allow_explicit else "not allowed"
    rows = [
        ("hidden items", ", ".join(found.hidden_item_ids) or "none"),
        ("hidden artists", ", ".join(found.hidden_artist_ids) or "none"),
        ("and the artists of", ", ".join(found.hidden_artists_of_item_ids) or "none"),
        ("explicit items", explicit),
        ("paid placements", "off" if found.promotions_off else "on"),
        ("discovery", f"{found.discovery:.2g}" if found.HasField("discovery") else "never said"),
    ]
    face.console().print(face.table("preferences", ("", "value"), rows))
