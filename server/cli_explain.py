"""The command that explains a page: `mantel explain`."""

from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson

from features.errors import InvalidInput
from features.state import State
from server.options import CaOption, CertOption, InsecureOption, JsonOption, KeyOption, StateOption, TargetOption
from server.settings import load_settings


def explain(
    user_id: Annotated[str, typer.Argument(metavar="USER", help="The listener.")],
    item_id: Annotated[str, typer.Argument(metavar="[ITEM]", help="Why it is there, or is not.")] = "",
    *,
    surface: Annotated[str, typer.Option(help="The surface.")] = "home",
    market: Annotated[str, typer.Option(help="ISO 3166-1 alpha-2, such as GB.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", help="PARAM=VALUE: the page that it would make.")] = None,
    target: TargetOption = None,
    tls_ca: CaOption = None,
    tls_cert: CertOption = None,
    tls_key: KeyOption = None,
    insecure: InsecureOption = False,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Tell how a page came to be: stages, params, scores; or what became of one item, and why.

    Needs the role explain. Examples: mantel explain u0000001 t0000042,
    mantel explain u0000001 --set diversity=mmr --set mmr_lambda=0.5
    """
    from server import calling, explained

    if odd := [one for one in set_ or () if "=" not in one]:
        raise InvalidInput(("set", f"{odd[0]!r} is not PARAM=VALUE"))
    wanted = dict(one.split("=", 1) for one in set_ or ())
    where = State(load_settings(state=state).state)
    with calling.home(where, target, calling.tls_of(tls_ca, tls_cert, tls_key), insecure=insecure) as client:
        found, _ = calling.timed(
            client,
            lambda: client.explain_home(user_id, item_id=item_id, surface=surface, market=market, set_params=wanted),
        )
    if json_:
        typer.echo(MessageToJson(found, preserving_proto_field_name=True, ensure_ascii=False))
    else:
        explained.show(found, item_id)
    if found.fates and found.fates[0].fate == "unknown":
        raise typer.Exit(1)
