"""Who calls: tokens hashed at rest, certificates over real TLS, and what is refused."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from features.errors import InvalidInput, NotFound, Unauthenticated
from features.state import State
from protos.home.v1 import home_pb2
from server.identity import (
    Identities,
    Role,
    add_principal,
    development_token,
    load_identities,
    read_principals,
    remove_principal,
)
from tests.certificates import Authority, Certificate
from tests.conftest import Store, serving
from tests.wire import GET_HOME, Metadata, Status, bearer, call

GOOD = home_pb2.GetHomeRequest(user_id="u0000001")
NO_CERTIFICATE: Mapping[str, list[bytes]] = {}
BROKEN = {
    "no JSON": "[{",
    "no list": '"app"',
    "a number": "3",
    "a list of words": '["app"]',
    "no roles": '[{"name": "app"}]',
    "an unknown role": '[{"name": "app", "roles": ["boss"]}]',
    "an unknown field": '[{"name": "app", "roles": [], "password": "x"}]',
    "no name": '[{"roles": ["client"]}]',
    "a hash that is no hex": '[{"name": "app", "roles": ["client"], "token_sha256": "secret"}]',
    "a short hash": '[{"name": "app", "roles": ["client"], "token_sha256": "00ff"}]',
    "no text": b"\xff\xfe",
}


@pytest.fixture
def state(tmp_path: Path) -> State:
    """An empty state directory."""
    return State(tmp_path / "state")


def known(state: State, token: str, *, development: bool = False) -> str:
    """The name of a token's holder."""
    return load_identities(state, development=development).identify(bearer(token), NO_CERTIFICATE).name


def test_a_token_is_hashed_at_rest(state: State) -> None:
    """The file holds the SHA-256 of a token, the token itself nowhere, and only its owner may read it."""
    token = add_principal(state, "app", [Role.CLIENT, Role.FORCE])
    (entry,) = json.loads(state.tokens.read_bytes())
    assert entry["token_sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert entry["roles"] == ["client", "force"]
    assert state.tokens.stat().st_mode & 0o777 == 0o600
    assert [path for path in state.path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []


def test_tokens_cannot_be_guessed(state: State) -> None:
    """Each is fresh and holds 256 bits."""
    tokens = {add_principal(state, f"app{number}", [Role.CLIENT]) for number in range(5)}
    assert len(tokens) == 5
    assert {bool(re.fullmatch(r"[\w-]{43}", token)) for token in tokens} == {True}


def test_principals_are_added_listed_and_removed(state: State) -> None:
    """In order; each token is its own holder's, until that one is removed."""
    tokens = {name: add_principal(state, name, [Role.CLIENT]) for name in ("one", "two", "three")}
    assert [one.name for one in read_principals(state)] == ["one", "two", "three"]
    assert {name: known(state, token) for name, token in tokens.items()} == {name: name for name in tokens}
    remove_principal(state, "two")
    assert [one.name for one in read_principals(state)] == ["one", "three"]
    with pytest.raises(Unauthenticated):
        known(state, tokens["two"])
    assert state.tokens.stat().st_mode & 0o777 == 0o600


def test_names_and_certificates_are_nobody_elses(state: State) -> None:
    """A second principal of one name or one certificate is refused: nobody takes another's place unseen."""
    add_principal(state, "app", [Role.CLIENT], certificate="app.example")
    for name, certificate in (("app", ""), ("other", "app.example")):
        with pytest.raises(InvalidInput):
            add_principal(state, name, list(Role), certificate=certificate)
    with pytest.raises(NotFound):
        remove_principal(state, "nobody")
    assert [one.roles for one in read_principals(state)] == [(Role.CLIENT,)]


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_unreadable_file_lets_nobody_in(state: State, content: str | bytes) -> None:
    """It is InvalidInput naming the file, not an empty list of principals."""
    state.path.mkdir()
    state.tokens.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput, match=r"tokens\.json: cannot be read"):
        load_identities(state, development=True)


def test_a_folder_in_its_place_lets_nobody_in(state: State) -> None:
    """What the system refuses to read is refused in the same words."""
    state.tokens.mkdir(parents=True)
    with pytest.raises(InvalidInput, match=r"tokens\.json: cannot be read"):
        read_principals(state)


def test_the_development_token_is_made_once(state: State) -> None:
    """It is the same for all who ask, only its owner may read it, and it opens everything."""
    token = development_token(state)
    assert development_token(state) == token
    assert state.dev_token.stat().st_mode & 0o777 == 0o600
    found = load_identities(state, development=True).identify(bearer(token), NO_CERTIFICATE)
    assert (found.name, set(found.roles)) == ("developer", set(Role))


def test_the_development_token_is_for_loopback_only(state: State) -> None:
    """Without `development` its holder is a stranger."""
    with pytest.raises(Unauthenticated):
        known(state, development_token(state))


async def test_a_server_beyond_loopback_knows_no_development_token(published: Store) -> None:
    """On all addresses the token that the state directory holds is UNAUTHENTICATED, and a principal's is good."""
    token = add_principal(published.state, "app", [Role.CLIENT])
    async with serving(published.state, published.url, host="0.0.0.0", insecure=True) as served:  # noqa: S104
        assert (await call(served.channel, GET_HOME, GOOD, metadata=served.metadata)).code.name == "UNAUTHENTICATED"
        assert (await call(served.channel, GET_HOME, GOOD, metadata=bearer(token))).code.name == "OK"


def test_a_token_goes_before_a_certificate(state: State) -> None:
    """A call with a wrong token is refused, whatever certificate its connection shows."""
    add_principal(state, "app", [Role.CLIENT], certificate="app.example")
    identities: Identities = load_identities(state, development=False)
    certificate = {"x509_common_name": [b"app.example"]}
    assert identities.identify((), certificate).name == "app"
    with pytest.raises(Unauthenticated):
        identities.identify(bearer("wrong"), certificate)


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signs the server and its clients."""
    return Authority.new()


async def over_tls(
    port: int,
    root: Authority,
    shown: Certificate | None = None,
    metadata: Metadata = (),
    request: home_pb2.GetHomeRequest = GOOD,
) -> Status:
    """A call over TLS, with a client certificate or without."""
    credentials = grpc.ssl_channel_credentials(
        root.pem, None if shown is None else shown.key, None if shown is None else shown.chain
    )
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        return await call(channel, GET_HOME, request, metadata=metadata, timeout=5.0)


async def test_a_token_is_good_over_tls(published: Store, authority: Authority, tmp_path: Path) -> None:
    """With a server certificate calls are encrypted; the token tells who calls, and plain text is not answered."""
    files = authority.certificate("127.0.0.1").write(tmp_path)
    async with serving(published.state, published.url, tls_cert=files.chain, tls_key=files.key) as served:
        port = served.plane.transport.port
        assert (await over_tls(port, authority, metadata=served.metadata)).code.name == "OK"
        assert (await over_tls(port, authority)).code.name == "UNAUTHENTICATED"
        assert (await over_tls(port, Authority.new(), metadata=served.metadata)).code.name == "UNAVAILABLE"
        assert (await call(served.channel, GET_HOME, GOOD, metadata=served.metadata)).code.name == "UNAVAILABLE"


@pytest.mark.parametrize("name", ["web app", "web.example", "spiffe://example/web"])
async def test_a_client_certificate_becomes_a_principal(
    published: Store, authority: Authority, tmp_path: Path, name: str
) -> None:
    """By its common name, DNS name or URI; of nobody: UNAUTHENTICATED; none, or of another CA: no connection."""
    add_principal(published.state, "web", [Role.CLIENT], certificate=name)
    files = authority.certificate("127.0.0.1").write(tmp_path)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    tls: dict[str, Any] = {"tls_cert": files.chain, "tls_key": files.key, "tls_client_ca": ca}
    async with serving(published.state, published.url, **tls) as served:
        port = served.plane.transport.port
        assert (await over_tls(port, authority, authority.certificate(name))).code.name == "OK"
        stranger = await over_tls(port, authority, authority.certificate("stranger"))
        assert (stranger.code.name, stranger.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        forced = home_pb2.GetHomeRequest(user_id="u1", experiment_overrides=[home_pb2.ExperimentOverride()])
        limited = await over_tls(port, authority, authority.certificate(name), request=forced)
        assert limited.code.name == "PERMISSION_DENIED"
        foreign = Authority.new().certificate(name)
        assert (await over_tls(port, authority, foreign)).code.name == "UNAVAILABLE"
        assert (await over_tls(port, authority, None, served.metadata)).code.name == "UNAVAILABLE"
