"""Who calls: a token or a client certificate becomes a principal with roles."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from features.errors import InvalidInput, NotFound, Unauthenticated
from features.state import State, write_whole


class Role(StrEnum):
    """What a principal may do."""

    CLIENT = "client"  # the data port, for any user_id
    EXPLAIN = "explain"  # ExplainHome
    FORCE = "force"  # experiment overrides
    EXPERIMENTER = "experimenter"
    PROMOTER = "promoter"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Someone who may call, with roles. Of a token only its SHA-256 is kept."""

    name: str
    roles: tuple[Role, ...]
    token_sha256: str = ""
    certificate: str = ""  # a name of the client certificate: common name or subject alternative name


DEVELOPER: Final = Principal(name="developer", roles=tuple(Role))
_BEARER: Final = "Bearer "


class Identities:
    """The principals in force."""

    def __init__(self, principals: Iterable[Principal]) -> None:
        """Indexes principals by the hash of their token and by certificate name."""
        known = tuple(principals)
        self._by_token = {bytes.fromhex(one.token_sha256): one for one in known if one.token_sha256}
        self._by_certificate = {one.certificate: one for one in known if one.certificate}

    def identify(
        self, metadata: Sequence[tuple[str, str | bytes]], certificate: Mapping[str, Iterable[bytes]]
    ) -> Principal:
        """The principal of a call, by its token, else by its verified client certificate.

        Raises:
            Unauthenticated: there is neither, or it is of nobody.
        """
        given = [value for name, value in metadata if name == "authorization"]
        if len(given) > 1:
            raise Unauthenticated("authorization: given twice")
        if given:
            return self._of_token(given[0])
        for name in ("x509_subject_alternative_name", "x509_common_name"):
            for value in certificate.get(name, ()):
                if principal := self._by_certificate.get(value.decode("utf-8", "replace")):
                    return principal
        raise Unauthenticated("authorization: send `Bearer <token>`, or a known client certificate")

    def _of_token(self, value: str | bytes) -> Principal:
        text = value if isinstance(value, str) else value.decode("latin-1")
        digest = hashlib.sha256(text.removeprefix(_BEARER).encode()).digest()
        found = None
        for known, principal in self._by_token.items():  # every one is compared: time tells nothing
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None or not text.startswith(_BEARER):
            raise Unauthenticated("authorization: the token is not known")
        return found


def load_identities(state: State, *, development: bool) -> Identities:
    """The principals of the state directory; with `development`, also the holder of its development token.

    Raises:
        InvalidInput: the file cannot be read, so nobody but the developer would be let in.
    """
    principals = list(read_principals(state))
    if development:
        principals.append(replace(DEVELOPER, token_sha256=_hash(development_token(state))))
    return Identities(principals)


def development_token(state: State) -> str:
    """The development token, made on first use (0600)."""
    with state.lock("dev-token", wait=True, held=""):
        if not state.dev_token.exists():
            write_whole(state.dev_token, secrets.token_urlsafe(32).encode(), mode=0o600)
        return state.dev_token.read_text().strip()


def read_principals(state: State) -> tuple[Principal, ...]:
    """The principals in the state directory's file; none where there is no file.

    Raises:
        InvalidInput: it cannot be read.
    """
    if not state.tokens.exists():
        return ()
    try:
        entries = json.loads(state.tokens.read_bytes())
        return tuple(map(_principal, entries))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput((str(state.tokens), f"cannot be read: {error}")) from error


def _principal(entry: Mapping[str, Any]) -> Principal:
    one = Principal(**{**entry, "roles": tuple(map(Role, entry["roles"]))})
    if len(bytes.fromhex(one.token_sha256)) not in {0, hashlib.sha256().digest_size}:
        raise ValueError("a token_sha256 is no SHA-256")
    return one


def add_principal(state: State, name: str, roles: Iterable[Role], *, certificate: str = "") -> str:
    """Adds a principal and answers its new token, or "" where a certificate identifies it."""
    token = "" if certificate else secrets.token_urlsafe(32)
    principal = Principal(
        name=name, roles=tuple(roles), token_sha256=_hash(token) if token else "", certificate=certificate
    )
    with state.lock("tokens", wait=True, held=""):
        principals = read_principals(state)
        if any(one.name == name for one in principals):
            raise InvalidInput(("name", f"{name} is there already; remove it first"))
        if certificate and any(one.certificate == certificate for one in principals):
            raise InvalidInput(("certificate", f"{certificate} identifies another principal already"))
        _write(state, (*principals, principal))
    return token


def remove_principal(state: State, name: str) -> None:
    """Removes a principal; running servers follow within seconds."""
    with state.lock("tokens", wait=True, held=""):
        principals = read_principals(state)
        rest = tuple(one for one in principals if one.name != name)
        if len(rest) == len(principals):
            raise NotFound(f"no principal named {name}")
        _write(state, rest)


def _write(state: State, principals: tuple[Principal, ...]) -> None:
    content = json.dumps([asdict(one) for one in principals], indent=1).encode()
    write_whole(state.tokens, content, mode=0o600, durable=True)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
