"""How commands reach a server: which address, whether a token may travel, TLS, and what each trouble is called."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from features.errors import InvalidInput, MantelError
from features.state import State
from protos.client import Tls
from server import calling
from server.identity import Role, add_principal
from server.metrics import Metrics
from server.wiring import control_plane
from tests.certificates import Authority, Files
from tests.conftest import Store, serving, settings_for
from tests.operation import mantel

BEYOND = ("192.0.2.1:1", "mantel.example:1", "[2001:db8::1]:1", "ipv4:127.0.0.1:1,192.0.2.1:1", ":1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Who signs the server and its clients."""
    return Authority.new()


@pytest.fixture
def files(authority: Authority, tmp_path: Path) -> Files:
    """The server's certificate."""
    return authority.certificate("127.0.0.1").write(tmp_path)


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> Path:
    """The file of the authority's own certificate."""
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return path


@contextmanager
def listening(credentials: grpc.ServerCredentials | None) -> Iterator[int]:
    """The port of a gRPC server that has no methods."""
    with ThreadPoolExecutor(1) as pool:
        bare = grpc.server(pool)
        where = "127.0.0.1:0"
        port = bare.add_insecure_port(where) if credentials is None else bare.add_secure_port(where, credentials)
        bare.start()
        try:
            yield port
        finally:
            bare.stop(None).wait()


def shown(authority: Authority, name: str, *, client_ca: bytes | None = None) -> grpc.ServerCredentials:
    """What a server shows, with a certificate for a name."""
    one = authority.certificate(name)
    return grpc.ssl_server_credentials([(one.key, one.chain)], client_ca, client_ca is not None)


def trouble(state: State, port: int, tls: Tls | None) -> str:
    """What a command says of a call that does not come about."""
    with calling.home(state, f"127.0.0.1:{port}", tls) as client, pytest.raises(MantelError) as error:
        calling.said(client, lambda: client.get_home("u1", timeout_s=20))
    return str(error.value)


def test_each_trouble_is_called_by_its_name(authority: Authority, tmp_path: Path) -> None:
    """Nobody there, TLS on one side only, another CA, another name, no client certificate."""
    state, tls, stranger = State(tmp_path), Tls(root=authority.pem), Authority.new()
    for way in (None, tls):
        assert "refused: nothing listens at 127.0.0.1:1; start a server with: mantel serve" in trouble(state, 1, way)
    with listening(None) as port:
        assert trouble(state, port, tls) == f"the server at 127.0.0.1:{port} speaks no TLS: leave out --tls-ca"
    with listening(shown(authority, "127.0.0.1")) as port:
        assert trouble(state, port, None).endswith("if the server speaks TLS: give --tls-ca")
        assert trouble(state, port, Tls(root=stranger.pem)).endswith("is not of the CA of --tls-ca")
        assert "must be PEM" in trouble(state, port, Tls(root=b"garbage"))
    with listening(shown(authority, "mantel.example")) as port:
        assert "is for another name" in trouble(state, port, tls)
    with listening(shown(authority, "127.0.0.1", client_ca=authority.pem)) as port:
        assert trouble(state, port, tls).endswith("give --tls-cert and --tls-key")
        other = stranger.certificate("me")
        wrong = Tls(root=authority.pem, key=other.key, certificate=other.chain)
        assert trouble(state, port, wrong).endswith("it knows not that of --tls-cert")


def test_a_token_travels_beyond_loopback_in_plain_text_only_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However gRPC would take the address; without a token nothing is to hide."""
    state = State(tmp_path)
    calling.home(state, BEYOND[0]).channel.close()
    monkeypatch.setenv("MANTEL_TOKEN", "secret")
    for target in BEYOND:
        for client in (calling.home, calling.admin):
            with pytest.raises(InvalidInput, match="--tls-ca"):
                client(state, target)
            client(state, target, insecure=True).channel.close()
            client(state, target, Tls()).channel.close()
    for target in ("127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/tmp/socket"):
        calling.home(state, target).channel.close()
    done = mantel("snapshots", "list", "--target", BEYOND[0], "--state", str(tmp_path))
    assert (done.returncode, done.stderr[:15]) == (2, "mantel: target:")


def test_a_server_on_all_addresses_is_called_by_loopback() -> None:
    """0.0.0.0 and :: are no addresses to call."""
    wanted = {"0.0.0.0:7": "127.0.0.1:7", "[::]:7": "localhost:7", "192.0.2.1:7": "192.0.2.1:7", "[::1]:7": "[::1]:7"}
    assert {target: calling.dialled(target) for target in wanted} == wanted


def test_half_of_a_client_certificate_is_refused(files: Files) -> None:
    """A certificate and its key go together; none of the options means no TLS."""
    assert calling.tls_of(None, None, None) is None
    for cert, key in ((files.chain, None), (None, files.key)):
        with pytest.raises(InvalidInput, match="--tls-cert and --tls-key"):
            calling.tls_of(None, cert, key)


async def test_commands_speak_tls(authority: Authority, files: Files, ca: Path, published: Store) -> None:
    """`get` and `snapshots` with a CA and a client certificate, which says who calls."""
    add_principal(published.state, "me", [Role.CLIENT, Role.ADMIN], certificate="me")
    (ca.parent / "me").mkdir()
    mine = authority.certificate("me").write(ca.parent / "me")
    tls = ("--tls-ca", str(ca), "--tls-cert", str(mine.chain), "--tls-key", str(mine.key))
    certificates: dict[str, Any] = {"tls_cert": files.chain, "tls_key": files.key, "tls_client_ca": ca}
    settings = settings_for(published.state, **certificates)
    nowhere = ("--state", str(ca.parent / "nowhere"))
    async with serving(published.state, published.url, **certificates) as served:
        words = ("get", "u0000001", "--target", served.target, "--timeout", "20")
        done = await asyncio.to_thread(mantel, *words, *tls, *nowhere)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Picked for you" in done.stdout
    control = control_plane(settings, redis_url=published.url, port=0, shared_port=False, metrics=Metrics())
    await control.start(serving=True)
    target = f"127.0.0.1:{control.port}"
    try:
        for verb in ("list", "status"):
            done = await asyncio.to_thread(mantel, "snapshots", verb, "--target", target, *tls, *nowhere)
            assert (done.returncode, done.stderr) == (0, "")
        done = await asyncio.to_thread(mantel, "snapshots", "list", "--target", target, *nowhere)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "give --tls-ca" in done.stderr
    finally:
        await control.stop(0)


def test_a_missing_file_is_a_wrong_option(tmp_path: Path) -> None:
    """Checked before anything is called."""
    done = mantel("get", "u1", "--tls-ca", f"{tmp_path}/absent.pem", "--state", str(tmp_path))
    assert done.returncode == 2
    assert "--tls-ca" in done.stderr
