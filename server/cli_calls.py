"""The commands that call a running server: `mantel get`, `mantel snapshots`, and those of files beside this one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.state import State
from server.cli_explain import explain
from server.cli_listeners import listeners
from server.options import CaOption, CertOption, InsecureOption, JsonOption, KeyOption, StateOption, TargetOption
from server.settings import load_settings

if TYPE_CHECKING:
    from protos.client import AdminClient

snapshots = typer.Typer(help="See and change which snapshot a running server serves.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command()(get)
    app.command()(explain)
    app.add_typer(snapshots, name="snapshots")
    app.add_typer(listeners, name="listeners")


def get(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The listener.")],
    *,
    surface: Annotated[str, typer.Option(help="The surface.")] = "home",
    market: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2, such as GB.")] = "",
    locale: Annotated[str, typer.Option(help="Language of the headings, such as de.")] = "en",
    session: Annotated[str, typer.Option(help="The client's session; empty: half an hour by the clock.")] = "",
    page_size: Annotated[int, typer.Option(help="How many shelves; 0: all.")] = 0,
    page_token: Annotated[str, typer.Option(help="Go on below the shelves of an earlier answer.")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="An item not to show; may be repeated.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 2.0,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Show a listener's Home page.

    Needs MANTEL_TOKEN, or the development token of --state. Example: mantel get u0000001 --market GB
    """
    from server import calling, face

    where = State(load_settings(state=state).state)
    with calling.home(where, target, calling.tls_of(tls_ca, tls_cert, tls_key), insecure=insecure) as client:
        home, seconds = calling.timed(
            client,
            lambda: client.get_home(
                user_id,
                surface=surface,
                market=market,
                locale=locale,
                session_id=session,
                page_size=page_size,
                page_token=page_token,
                exclude_item_ids=exclude or (),
                timeout_s=timeout,
            ),
        )
    if json_:
        typer.echo(face.page_json(home, seconds))
        return
    face.console().print(face.page(user_id, home, seconds))
    if home.next_page_token:
        size = f" --page-size {page_size}" if page_size else ""
        again = f"mantel get {user_id} --surface {surface}{size} --page-token {home.next_page_token}"
        face.console().print(f"more below: {again}", **face.AS_TYPED)


@snapshots.command("list")
def list_snapshots(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """List the published snapshots, newest first."""
    from server import calling, reports

    with _admin(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as admin:
        reports.snapshots(calling.said(admin, admin.list_snapshots), as_json=json_)


@snapshots.command("status")
def snapshot_status(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what each worker of a running server serves."""
    from server import calling, reports

    with _admin(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as admin:
        found = calling.said(admin, admin.get_status)
    reports.status(found, kept="" if target else _kept(State(load_settings(state=state).state)), as_json=json_)


@snapshots.command("activate")
def activate_snapshot(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="Its digest, or at least 8 characters of its beginning.")
    ],
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
) -> None:
    """Serve a published snapshot.

    Example: mantel snapshots activate 69911adbebbd
    """
    from server import calling

    with _admin(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as admin:
        _switching(calling.said(admin, lambda: admin.activate_snapshot(digest)).digest)


@snapshots.command("rollback")
def rollback_snapshot(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
) -> None:
    """Go back to the snapshot that was served before."""
    from server import calling

    with _admin(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as admin:
        _switching(calling.said(admin, admin.rollback_snapshot).digest)


def _admin(
    state: Path | None, target: str | None, ca: Path | None, cert: Path | None, key: Path | None, *, insecure: bool
) -> "AdminClient":
    """A client of the control port that these options mean."""
    from server import calling

    where = State(load_settings(state=state).state)
    return calling.admin(where, target, calling.tls_of(ca, cert, key), insecure=insecure)


def _switching(digest: str) -> None:
    typer.echo(f"switching to {digest}; workers follow within seconds")


def _kept(state: State) -> str:
    """The digest in the state directory's pointer file, with which workers start while the store is down."""
    from features.pointer import Pointer

    try:
        return Pointer.from_bytes(state.pointer.read_bytes()).digest
    except (OSError, ValueError, TypeError, KeyError):
        return ""
