"""Options that several commands share, and the Redis that they mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from features.state import State
from server.settings import Settings

StateOption = Annotated[Path | None, typer.Option("--state", help="Directory of all state. [default: .mantel]")]
RedisOption = Annotated[str | None, typer.Option("--redis", help="URL of a Redis. [default: an embedded one]")]
PrefixOption = Annotated[str | None, typer.Option("--prefix", help="Prefix of every Redis key. [default: mantel]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Draw no progress bars.")]
TargetOption = Annotated[str | None, typer.Option("--target", help="Address. [default: that of the server of --state]")]


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """The Redis of the settings: a named one, else the state directory's own, at least as long as this context."""
    if settings.redis:
        yield settings.redis
        return
    from features.embedded_redis import attached  # noqa: PLC0415  # only where it is needed

    with attached(State(settings.state)) as url:
        yield url
