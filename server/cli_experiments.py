"""The commands of experimenters: `mantel experiments` and `mantel params`."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import InvalidInput
from features.state import State
from server.options import CaOption, CertOption, InsecureOption, JsonOption, KeyOption, StateOption, TargetOption
from server.settings import load_settings

if TYPE_CHECKING:
    from protos.client import ExperimentClient
    from protos.experiments.v1 import experiments_pb2
    from ranking.experiments.spec import Spec

experiments = typer.Typer(help="See and change which experiments are running.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.add_typer(experiments, name="experiments")
    app.command()(params)


@experiments.command("apply")
def apply_book(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="What is to run: TOML, or .json.")
    ],
    *,
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
    """Make a file's layers, holdouts and experiments the ones in force.

    The file holds all of them. Buckets are drawn for new experiments; raise ramp to serve more of what is reserved,
    set concluded to end one; then take it out. Needs the role experimenter. Example: mantel experiments apply E.toml
    """
    from server import calling, experiment_reports

    spec = _read(file)
    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        known = calling.said(client, client.get_book).version if etag is None else etag
        found = calling.said(client, lambda: client.apply_book(spec, etag=known, validate_only=check))
    experiment_reports.applied(found, before=known, check=check, as_json=json_)


@experiments.command("list")
def list_experiments(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """List the experiments in force, and what each layer has left."""
    from server import calling, experiment_reports

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        found = calling.said(client, client.list_experiments)
    experiment_reports.listed(found, as_json=json_)


@experiments.command("explain")
def explain_assignment(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The listener.")],
    *,
    market: Annotated[str, typer.Option(help="Of the request, else of their record.")] = "",
    segment: Annotated[int | None, typer.Option(help="Of their record.")] = None,
    device: Annotated[str, typer.Option(help="Of the request.")] = "",
    locale: Annotated[str, typer.Option(help="Of the request.")] = "",
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Tell for each layer which arm a listener is served, and why.

    What targeting looks at is given here: records are not looked up. Example: mantel experiments explain u0000001
    """
    from server import calling, experiment_reports

    with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
        found = calling.said(
            client,
            lambda: client.explain_assignment(user_id, market=market, segment=segment, device=device, locale=locale),
        )
    experiment_reports.explained(found, as_json=json_)


def params(
    *,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """List what experiments may override; with a running server also the layer that each belongs to."""
    from server import calling, experiment_reports

    layers: dict[str, str] = {}
    if target or State(load_settings(state=state).state).endpoints():
        with _client(state, target, tls_ca, tls_cert, tls_key, insecure=insecure) as client:
            found = calling.said(client, client.list_experiments)
        layers = {name: layer.id for layer in found.layers for name in layer.params}
    experiment_reports.params(layers, as_json=json_)


def _client(
    state: Path | None, target: str | None, ca: Path | None, cert: Path | None, key: Path | None, *, insecure: bool
) -> "ExperimentClient":
    """A client of the control port that these options mean."""
    from server import calling

    where = State(load_settings(state=state).state)
    return calling.experiments(where, target, calling.tls_of(ca, cert, key), insecure=insecure)


def _read(file: Path) -> "experiments_pb2.Spec":
    """A file's spec, each field checked by itself.

    Raises:
        InvalidInput: naming the file, or every field that is wrong.
    """
    from google.protobuf.json_format import ParseDict

    from protos.experiments.v1 import experiments_pb2

    return ParseDict(spec_in(file).model_dump(mode="json", exclude_none=True), experiments_pb2.Spec())


def spec_in(file: Path) -> "Spec":
    """A file's spec, each field checked by itself.

    Raises:
        InvalidInput: naming the file, or every field that is wrong.
    """
    from ranking.experiments.spec import read_spec

    try:
        text = file.read_text(encoding="utf-8")
        said: Any = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InvalidInput((str(file), f"cannot be read: {error}")) from error
    return read_spec(json.dumps(said))
