"""Options that several commands share, and the Redis that they mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from features.state import State
from server.settings import Settings


def setting(name: str) -> str:
    """What a setting is, and its default, as help; the bracket is escaped from rich's markup."""
    field = Settings.model_fields[name]
    text = f"{str(field.description)[:1].upper()}{str(field.description)[1:]}."
    return text if field.default in {None, "", False} else f"{text} \\[default: {field.default}]"


def _file(flag: str, purpose: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(flag, exists=True, dir_okay=False, help=purpose)
    return found


StateOption = Annotated[Path | None, typer.Option("--state", help=setting("state"))]
RedisOption = Annotated[str | None, typer.Option("--redis", help=setting("redis"))]
PrefixOption = Annotated[str | None, typer.Option("--prefix", help=setting("prefix"))]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Draw no progress bars.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", metavar="HOST:PORT", help="Address. \\[default: that of the server of --state]"),
]
CaOption = Annotated[Path | None, _file("--tls-ca", "CA of the server's certificate, PEM: connect with TLS.")]
CertOption = Annotated[Path | None, _file("--tls-cert", "Certificate that says who you are, PEM.")]
KeyOption = Annotated[Path | None, _file("--tls-key", "Its private key, PEM.")]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Send a token in plain text beyond loopback.")]


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """The Redis of the settings: a named one, else the state directory's own, at least as long as this context."""
    if settings.redis:
        yield settings.redis
        return
    from features.embedded_redis import attached  # noqa: PLC0415  # only where it is needed

    with attached(State(settings.state)) as url:
        yield url
