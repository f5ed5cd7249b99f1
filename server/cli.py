"""The command line: `mantel --help`. It and `server/cli_offline.py` alone may import any room, and do so lazily."""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import InvalidInput, MantelError
from features.state import Endpoints, State
from server import cli_offline
from server.options import JsonOption, PrefixOption, RedisOption, StateOption, TargetOption, redis_url
from server.settings import Settings, load_settings

app = typer.Typer(
    help="Mantel serves the Home shelves of a music app. Start with: mantel demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
snapshots = typer.Typer(help="See and change which snapshot a running server serves.", no_args_is_help=True)
tokens = typer.Typer(help="Say who may call.", no_args_is_help=True)
cli_offline.register(app)
app.add_typer(snapshots, name="snapshots")
app.add_typer(tokens, name="tokens")


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address of all ports. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Data port; 0: any. [default: 50051]")] = None,
    control_port: Annotated[int | None, typer.Option(help="Control port. [default: 50052]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Prometheus port. [default: 9464]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve. [default: 1]")] = None,
    surfaces: Annotated[Path | None, typer.Option(help="Surfaces file. [default: the one that ships]")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key, PEM.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="CA of client certificates, which it requires.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Allow plain text beyond loopback.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Load everything, say what is in force, and exit.")] = False,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Serve pages over gRPC until SIGTERM or Ctrl-C.

    Every flag is also an environment variable (MANTEL_PORT …) and a key of the TOML file that MANTEL_CONFIG names;
    so are the settings without a flag, which --check prints.
    """
    from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
    from server import logs
    from server.identity import load_identities
    from server.supervisor import supervise

    settings = load_settings(
        host=host,
        port=port,
        control_port=control_port,
        metrics_port=metrics_port,
        workers=workers,
        surfaces=surfaces,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        insecure=insecure,
        state=state,
        redis=redis,
        prefix=prefix,
    )
    found = load_surfaces(settings.surfaces or DEFAULT_SURFACES)
    load_identities(State(settings.state), development=settings.on_loopback)
    if check:
        typer.echo(json.dumps(_masked(settings) | {"found_surfaces": sorted(found)}, indent=1))
        return
    logs.configure("supervisor")
    with redis_url(settings) as url:
        supervise(settings, redis_url=url, announced=_announce)


@app.command()
def get(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The listener.")],
    *,
    surface: Annotated[str, typer.Option(help="The surface.")] = "home",
    market: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2, such as GB.")] = "",
    locale: Annotated[str, typer.Option(help="Language of the headings, such as de.")] = "en",
    exclude: Annotated[list[str] | None, typer.Option(help="An item not to show; may be repeated.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 2.0,
    target: TargetOption = None,
    tls_ca: Annotated[Path | None, typer.Option(help="CA of the server's certificate, PEM: connect with TLS.")] = None,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Show a listener's Home page.

    Needs MANTEL_TOKEN, or the development token of --state. Example: mantel get u0000001 --market GB
    """
    from protos.client import Tls
    from server import calling, face

    tls = None if tls_ca is None else Tls(root=tls_ca.read_bytes())
    with calling.home(State(load_settings(state=state).state), target, tls) as client:
        home, seconds = calling.timed(
            lambda: client.get_home(
                user_id,
                surface=surface,
                market=market,
                locale=locale,
                exclude_item_ids=exclude or (),
                timeout_s=timeout,
            )
        )
    if json_:
        typer.echo(face.page_json(home, seconds))
    else:
        face.console().print(face.page(user_id, home, seconds))


@snapshots.command("list")
def list_snapshots(*, target: TargetOption = None, state: StateOption = None, json_: JsonOption = False) -> None:
    """List the published snapshots, newest first."""
    from server import calling, reports

    with calling.admin(State(load_settings(state=state).state), target) as admin:
        reports.snapshots(calling.said(admin.list_snapshots), as_json=json_)


@snapshots.command("status")
def snapshot_status(*, target: TargetOption = None, state: StateOption = None, json_: JsonOption = False) -> None:
    """Show what each worker of a running server serves."""
    from server import calling, reports

    with calling.admin(State(load_settings(state=state).state), target) as admin:
        reports.status(calling.said(admin.get_status), as_json=json_)


@snapshots.command("activate")
def activate_snapshot(
    digest: Annotated[str, typer.Argument(help="Its digest, or at least 8 characters of its beginning.")],
    *,
    target: TargetOption = None,
    state: StateOption = None,
) -> None:
    """Serve a published snapshot."""
    from server import calling, face

    with calling.admin(State(load_settings(state=state).state), target) as admin:
        face.console().print(f"serving {calling.said(lambda: admin.activate_snapshot(digest)).digest}")


@snapshots.command("rollback")
def rollback_snapshot(*, target: TargetOption = None, state: StateOption = None) -> None:
    """Go back to the snapshot that was served before."""
    from server import calling, face

    with calling.admin(State(load_settings(state=state).state), target) as admin:
        face.console().print(f"serving {calling.said(admin.rollback_snapshot).digest}")


@tokens.command("add")
def add_token(
    name: Annotated[str, typer.Argument(help="Who it is.")],
    *,
    role: Annotated[list[str], typer.Option(help="client, explain, force, experimenter, promoter or admin.")],
    certificate: Annotated[str, typer.Option(help="Identify by this name of a client certificate instead.")] = "",
    state: StateOption = None,
) -> None:
    """Let someone call: prints the new token, which is stored as a hash only.

    Example: mantel tokens add web-app --role client
    """
    from server.identity import Role, add_principal

    if unknown := set(role) - set(Role):
        raise InvalidInput(("role", f"{min(unknown)!r} is none of {', '.join(Role)}"))
    token = add_principal(
        State(load_settings(state=state).state), name, [Role(one) for one in role], certificate=certificate
    )
    typer.echo(token or f"{name} is known by its certificate")


@tokens.command("list")
def list_tokens(*, state: StateOption = None) -> None:
    """List who may call."""
    from server import face
    from server.identity import read_principals

    known = read_principals(State(load_settings(state=state).state))
    rows = [(one.name, ", ".join(one.roles), one.certificate or f"token {one.token_sha256[:8]}…") for one in known]
    face.console().print(face.table("principals", ("name", "roles", "by"), rows))


@tokens.command("remove")
def remove_token(name: str, *, state: StateOption = None) -> None:
    """Stop letting someone call; running servers follow within seconds."""
    from server.identity import remove_principal

    remove_principal(State(load_settings(state=state).state), name)


def main() -> None:
    """Runs a command; an error of the tree becomes one line and exit code 1 (2 for bad input).

    SIGTERM ends it as Ctrl-C does, so that it leaves no Redis behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: two BLAS pools on two cores only hinder
    try:
        app()
    except MantelError as error:
        typer.secho(f"mantel: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)


def _announce(endpoints: Endpoints) -> None:
    typer.echo(
        f"data {endpoints.target} · control {endpoints.control} · metrics http://{endpoints.metrics}/metrics", err=True
    )


def _masked(settings: Settings) -> dict[str, Any]:
    """The settings as JSON, with the Redis URL masked in both places that may hold a password."""
    said = settings.model_dump(mode="json")
    url = re.sub(r"//[^/]*@", "//***@", said["redis"])
    return said | {"redis": re.sub(r"password=[^&]*", "password=***", url)}


if __name__ == "__main__":
    main()
