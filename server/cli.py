"""The command line: `mantel --help`. It and `server/cli_*.py` alone may import any room, and do so lazily."""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from features.errors import InvalidInput, MantelError
from features.state import Endpoints, State
from server import (
    cli_bench,
    cli_calls,
    cli_demo,
    cli_events,
    cli_experiments,
    cli_loadtest,
    cli_offline,
    cli_promotions,
    cli_replay,
    cli_simulate,
    cli_workers,
)
from server.options import PrefixOption, RedisOption, StateOption, redis_url, setting
from server.settings import Settings, load_settings
from server.version import VERSION

app = typer.Typer(
    help="Mantel serves the Home shelves of a music app. Start with: mantel demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
tokens = typer.Typer(help="Say who may call.", no_args_is_help=True)
app.command()(cli_demo.demo)
cli_offline.register(app)
cli_calls.register(app)
cli_experiments.register(app)
cli_promotions.register(app)
app.command()(cli_bench.bench)
app.command()(cli_loadtest.loadtest)
app.command()(cli_replay.replay)
app.add_typer(tokens, name="tokens")
app.add_typer(cli_events.events, name="events")
app.add_typer(cli_workers.workers, name="workers")
app.add_typer(cli_simulate.simulate, name="simulate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mantel {VERSION}")
        raise typer.Exit


@app.callback()
def _mantel(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has answered


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help=setting("host"))] = None,
    port: Annotated[int | None, typer.Option(help=setting("port"))] = None,
    control_port: Annotated[int | None, typer.Option(help=setting("control_port"))] = None,
    metrics_host: Annotated[str | None, typer.Option(help=setting("metrics_host"))] = None,
    metrics_port: Annotated[int | None, typer.Option(help=setting("metrics_port"))] = None,
    workers: Annotated[int | None, typer.Option(help=setting("workers"))] = None,
    admission_limit: Annotated[int | None, typer.Option(help=setting("admission_limit"))] = None,
    batch_ms: Annotated[float | None, typer.Option(help=setting("batch_ms"))] = None,
    read_budget_ms: Annotated[float | None, typer.Option(help=setting("read_budget_ms"))] = None,
    surfaces: Annotated[Path | None, typer.Option(help=setting("surfaces"))] = None,
    preset: Annotated[str | None, typer.Option(help=setting("preset"))] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=setting("tls_cert"))] = None,
    tls_key: Annotated[Path | None, typer.Option(help=setting("tls_key"))] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help=setting("tls_client_ca"))] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help=setting("insecure"))] = None,
    drill_work_ms: Annotated[float | None, typer.Option(help=setting("drill_work_ms"))] = None,
    drill_sleep_ms: Annotated[float | None, typer.Option(help=setting("drill_sleep_ms"))] = None,
    check: Annotated[bool, typer.Option("--check", help="Load everything, say what is in force, and exit.")] = False,
    state: StateOption = None,
    redis: RedisOption = None,
    prefix: PrefixOption = None,
) -> None:
    """Serve pages over gRPC until SIGTERM or Ctrl-C.

    Every flag is also an environment variable (MANTEL_PORT …) and a key of the TOML file that MANTEL_CONFIG names;
    so are the settings without a flag, which --check prints.
    """
    from features.embedded_redis import revive
    from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
    from server import logs
    from server.identity import load_identities
    from server.signing import SigningFile
    from server.supervisor import supervise

    settings = load_settings(
        host=host,
        port=port,
        control_port=control_port,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        workers=workers,
        admission_limit=admission_limit,
        batch_ms=batch_ms,
        read_budget_ms=read_budget_ms,
        surfaces=surfaces,
        preset=preset,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        insecure=insecure,
        drill_work_ms=drill_work_ms,
        drill_sleep_ms=drill_sleep_ms,
        state=state,
        redis=redis,
        prefix=prefix,
    )
    found = load_surfaces(settings.surfaces or DEFAULT_SURFACES, settings.preset)
    _warn(settings)
    if check:
        from server.cli_check import check as well

        raise typer.Exit(0 if well(settings, found) else 1)
    load_identities(State(settings.state), development=settings.on_loopback)
    SigningFile(State(settings.state), settings.signing_keys)
    logs.configure("supervisor")
    tend = (lambda: None) if settings.redis else partial(revive, State(settings.state))
    with redis_url(settings) as url:
        supervise(settings, redis_url=url, announced=_announce, tend=tend)


@tokens.command("add")
def add_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")],
    *,
    role: Annotated[list[str], typer.Option(metavar="ROLE", help="What they may do; may be repeated.")],
    certificate: Annotated[str, typer.Option(help="Identify by this name of a client certificate instead.")] = "",
    state: StateOption = None,
) -> None:
    """Let someone call: prints the new token, which is stored as a hash only.

    Roles:
    client: ask for pages, of any listener
    explain: ask why a page is as it is
    force: choose arms of experiments for a request
    experimenter: change experiments
    promoter: change promotions
    admin: see the server's status, change its snapshot

    Example: mantel tokens add web-app --role client
    """
    from server.identity import Role, add_principal

    if unknown := set(role) - set(Role):
        raise InvalidInput(("role", f"{min(unknown)!r} is none of {', '.join(Role)}"))
    token = add_principal(
        State(load_settings(state=state).state), name, [Role(one) for one in role], certificate=certificate
    )
    typer.echo(token or f"{name} is known by its certificate")
    typer.echo("running servers know it within seconds", err=True)


@tokens.command("list")
def list_tokens(*, state: StateOption = None) -> None:
    """List who may call."""
    from server import face
    from server.identity import read_principals

    known = read_principals(State(load_settings(state=state).state))
    rows = [(one.name, ", ".join(one.roles), one.certificate or f"token {one.token_sha256[:8]}…") for one in known]
    face.console().print(face.table("principals", ("name", "roles", "by"), rows))


@tokens.command("remove")
def remove_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")], *, state: StateOption = None
) -> None:
    """Stop letting someone call; running servers follow within seconds."""
    from server.identity import remove_principal

    remove_principal(State(load_settings(state=state).state), name)


@tokens.command("rotate-signing-key")
def rotate_signing_key(
    *,
    after: Annotated[int, typer.Option(min=0, help="Seconds until it signs: other machines must have the file.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Also where the last rotation is younger than 48 h.")] = False,
    state: StateOption = None,
) -> None:
    """Draw a new key to sign page tokens and tracking tokens; tokens of the key before stay good.

    Running servers follow within seconds. The file is that of MANTEL_SIGNING_KEYS, else one in the state directory.

    Example: mantel tokens rotate-signing-key --after 300
    """
    from server.signing import rotate

    settings = load_settings(state=state)
    keys = rotate(State(settings.state), settings.signing_keys, after_s=after, force=force)
    before = keys.previous
    others = "no other is good" if before is None else f"key {before.id} stays good until the next rotation"
    typer.echo(f"key {keys.newest.id} signs in {after} seconds; {others}")


def main() -> None:
    """Runs a command; an error of the tree becomes one line and exit code 1 (2 for bad input).

    SIGTERM ends it as Ctrl-C does, so that it leaves no Redis behind.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would mix with ours; children inherit it
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: two BLAS pools on two cores only hinder
    try:
        app()
    except MantelError as error:
        typer.secho(f"mantel: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, InvalidInput) else 1)


def _warn(settings: Settings) -> None:
    if settings.insecure and settings.tls_cert is None and not settings.on_loopback:
        typer.secho(f"plain text on {settings.host}: tokens and pages can be read on their way", fg="yellow", err=True)
    for name in settings.drills:
        told = f"a drill is on: {name} = {getattr(settings, name):g}; pages are slow on purpose"
        typer.secho(told, fg="red", err=True)


def _announce(endpoints: Endpoints) -> None:
    typer.echo(
        f"data {endpoints.target} · control {endpoints.control} · metrics http://{endpoints.metrics}/metrics", err=True
    )


if __name__ == "__main__":
    main()
