"""`mantel workers`: the processes of a running server that answer calls."""

import json
from typing import Annotated

import typer

from features.state import State
from server.options import CaOption, CertOption, InsecureOption, JsonOption, KeyOption, StateOption
from server.settings import load_settings

workers = typer.Typer(help="Replace the workers of a running server.", no_args_is_help=True)


@workers.callback()
def _workers() -> None:
    """Makes the one verb a verb."""


@workers.command("rollover")
def rollover(
    *,
    target: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Control port. \\[default: that of the server of --state]"),
    ] = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Replace all workers, one after the other, while they serve: each new one is ready before an old one retires.

    SIGUSR1 to the server's first process does the same. Example: mantel workers rollover
    """
    from server import calling

    where = State(load_settings(state=state).state)
    with calling.admin(where, target, calling.tls_of(tls_ca, tls_cert, tls_key), insecure=insecure) as admin:
        found = calling.said(admin, admin.rollover_workers)
    pids = sorted(worker.pid for worker in found.workers)
    typer.echo(json.dumps({"workers": pids}) if json_ else f"new workers: {', '.join(map(str, pids))}")
