"""`mantel serve --check`: what is in force, and whether everything that a server needs is well."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import redis
import typer

from features.errors import MantelError
from features.keys import Keys
from features.offline.publish import connect
from features.pointer import Pointer, read_pointer
from features.snapshot import read_manifest
from features.state import State
from server.identity import read_principals
from server.settings import Settings
from server.signing import read_signing_keys

Finding = tuple[str, bool, str]  # what was looked at, whether it is well, what was found
_NONE_YET: Final = "ok (none is published yet)"


def check(settings: Settings, surfaces: Iterable[str]) -> bool:
    """Prints the settings as JSON and each finding on standard error; answers whether all is well."""
    typer.echo(json.dumps(_masked(settings) | {"found_surfaces": sorted(surfaces)}, indent=1))
    findings = [_tls(settings), *_store(settings), _tokens(settings), _signing(settings)]
    for name, well, found in findings:
        typer.secho(f"{name}: {found}", fg=None if well else "red", err=True)
    return all(well for _, well, _ in findings)


def _masked(settings: Settings) -> dict[str, Any]:
    """The settings as JSON, with the Redis URL masked in both places that may hold a password."""
    said = settings.model_dump(mode="json")
    url = re.sub(r"//[^/]*@", "//***@", said["redis"])
    return said | {"redis": re.sub(r"password=[^&]*", "password=***", url)}


def _tls(settings: Settings) -> Finding:
    if settings.tls_cert is None:
        return "tls", True, "off"
    return "tls", True, "ok" if settings.tls_client_ca is None else "ok, with client certificates"


def _tokens(settings: Settings) -> Finding:
    try:
        return "tokens", True, f"ok ({len(read_principals(State(settings.state)))} principals)"
    except MantelError as error:
        return "tokens", False, str(error)


def _signing(settings: Settings) -> Finding:
    path = settings.signing_keys or State(settings.state).signing_keys
    if settings.signing_keys is None and not path.exists():
        return "signing keys", True, "ok (made on first need)"
    try:
        return "signing keys", True, f"ok (key {read_signing_keys(path).newest.id})"
    except MantelError as error:
        return "signing keys", False, str(error)


def _store(settings: Settings) -> Iterator[Finding]:
    """Redis, and the snapshot that its pointer names; of an embedded one, that of the pointer's file."""
    state = State(settings.state)
    if not settings.redis:
        yield "redis", True, "embedded"
        try:
            yield _snapshot(state, Pointer.from_bytes(state.pointer.read_bytes()))
        except FileNotFoundError:
            yield "snapshot", True, _NONE_YET
        except (OSError, ValueError, TypeError, KeyError) as error:
            yield "snapshot", False, f"{state.pointer} cannot be read: {error}"
        return
    try:
        with connect(settings.redis) as client:
            client.ping()
            yield "redis", True, "ok"
            yield _snapshot(state, read_pointer(client, Keys(prefix=settings.prefix)))
    except (redis.RedisError, OSError) as error:
        yield "redis", False, str(error)
    except (ValueError, TypeError, KeyError) as error:
        yield "snapshot", False, f"the pointer in Redis cannot be read: {error}"


def _snapshot(state: State, pointer: Pointer | None) -> Finding:
    """The manifest of the snapshot that a pointer names."""
    if pointer is None:
        return "snapshot", True, _NONE_YET
    try:
        manifest, digest = read_manifest(state.snapshots / pointer.digest)
    except MantelError as error:
        return "snapshot", False, str(error)
    if digest != pointer.digest:
        return "snapshot", False, f"the manifest of {pointer.digest[:12]} was altered"
    return "snapshot", True, f"ok ({digest[:12]}, {manifest.items:,} items)"
