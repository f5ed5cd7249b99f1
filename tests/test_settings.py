"""Settings: flags over environment over file, and every mistake told by name before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.errors import InvalidInput
from features.pointer import Pointer
from features.state import State
from server.settings import Settings, load_settings
from tests.certificates import Authority
from tests.conftest import Store

WRONG: dict[str, list[Any]] = {
    "prefix": ["", "Mantel", "a:b", "a" * 33, "a\n"],
    "port": [-1, 65_536, "http"],
    "control_port": [-1, 65_536],
    "metrics_port": [-1, 65_536],
    "workers": [0, 257, 1.5],
    "batch_cap": [0, 65],
    "batch_ms": [0, "nan", "inf"],
    "read_budget_ms": [0, "inf"],
    "redis_timeout_ms": [0, -1, "nan", "inf", "soon"],
    "event_timeout_ms": [0, "nan"],
    "event_stream_max": [499, "many"],
    "recent_days": [0, "inf"],
    "default_deadline_ms": [0, "inf"],
    "snapshot_max_age_h": [0],
    "drill_work_ms": [-1, 1001, "nan"],
    "drill_sleep_ms": [-1, 1001, "long"],
    "poll_s": [0, "nan"],
    "drain_s": [-1, "inf"],
    "grace_s": [-1],
    "reflection": ["yes", ""],
    "insecure": ["perhaps"],
    "log_sample": [-0.1, 1.1, "nan"],
}
CASES = [(field, value) for field, values in WRONG.items() for value in values]
FIELDS = sorted(Settings.model_fields)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the environment in which the tests run."""
    for name in [name for name in os.environ if name.startswith("MANTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file, still to be written."""
    path = tmp_path / "mantel.toml"
    monkeypatch.setenv("MANTEL_CONFIG", str(path))
    return path


def refused(**flags: Any) -> dict[str, str]:
    """Which fields are refused, and why."""
    with pytest.raises(InvalidInput) as error:
        load_settings(**flags)
    return dict(error.value.violations)


def test_flags_go_over_the_environment_and_that_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source may say something; the nearest to the person who starts the program is heard."""
    file.write_text("port = 1\ncontrol_port = 1\nmetrics_port = 1\n")
    monkeypatch.setenv("MANTEL_PORT", "2")
    monkeypatch.setenv("MANTEL_CONTROL_PORT", "2")
    settings = load_settings(port=3, workers=None)
    assert (settings.port, settings.control_port, settings.metrics_port) == (3, 2, 1)
    assert settings.workers == 1


def test_every_field_can_come_from_the_file(file: Path) -> None:
    """A file with all settings at their defaults is the same as none."""
    file.touch()
    given = {name: value for name, value in Settings().model_dump(mode="json").items() if value is not None}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items()))
    assert load_settings() == Settings(**given)


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_wrong_flag_is_named(field: str, value: Any) -> None:
    """The field, and no other, with a reason."""
    assert refused(**{field: value}).keys() == {field}


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_wrong_variable_is_named(field: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says is checked as flags are."""
    monkeypatch.setenv(f"MANTEL_{field.upper()}", str(value))
    assert refused().keys() == {field}


def test_all_wrong_fields_are_named_at_once() -> None:
    """A person corrects them in one go."""
    wrong = {field: values[0] for field, values in WRONG.items()}
    assert refused(**wrong).keys() == wrong.keys()


def test_unknown_keys_are_refused_by_name(file: Path) -> None:
    """A misspelt key in the file, a table, or a flag that does not exist, does not pass unseen."""
    file.write_text("prot = 50051\n[server]\nport = 1\n")
    assert refused().keys() == {"prot", "server"}
    file.write_text("")
    assert refused(prot=1).keys() == {"prot"}


def test_a_file_that_is_named_must_be_there(file: Path) -> None:
    """MANTEL_CONFIG that names nothing is refused: else a server would start with defaults."""
    assert refused() == {"MANTEL_CONFIG": f"no file {file}"}


@pytest.mark.parametrize("content", [b"port = ", b"port: 1", b"\xff"])
def test_a_file_that_is_no_toml_is_refused(file: Path, content: bytes) -> None:
    """It is named, with the place where reading ended."""
    file.write_bytes(content)
    assert refused().keys() == {str(file)}


def test_an_empty_name_of_a_file_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """MANTEL_CONFIG= is as good as unset."""
    monkeypatch.setenv("MANTEL_CONFIG", "")
    assert load_settings() == Settings()


def test_plain_text_beyond_loopback_must_be_wanted(tmp_path: Path) -> None:
    """Other addresses need TLS, or --insecure; tokens would travel readable."""
    files = Authority.new().certificate("127.0.0.1").write(tmp_path)
    for host in ("0.0.0.0", "::", "192.0.2.1", "mantel.example"):  # noqa: S104
        assert refused(host=host).keys() == {"host"}
        assert not load_settings(host=host, insecure=True).on_loopback
        assert not load_settings(host=host, tls_cert=files.chain, tls_key=files.key).on_loopback
    assert all(load_settings(host=host).on_loopback for host in ("127.0.0.1", "::1", "localhost"))


def test_a_drill_is_refused_beyond_loopback() -> None:
    """Whatever else is allowed there: nobody's pages shall be slow on purpose."""
    for drill in ("drill_work_ms", "drill_sleep_ms"):
        assert load_settings(**{drill: 2}).drills == (drill,)
        assert refused(**{drill: 2}, host="192.0.2.1", insecure=True).keys() == {drill}
    assert load_settings().drills == ()


def test_a_certificate_and_its_key_go_together(tmp_path: Path) -> None:
    """Half of TLS is none; and each file must be there when the server starts."""
    pem = tmp_path / "any.pem"
    pem.touch()
    assert refused(tls_cert=pem).keys() == {"tls_key"}
    assert refused(tls_key=pem).keys() == {"tls_key"}
    assert refused(tls_client_ca=pem).keys() == {"tls_client_ca"}
    absent = dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"), tmp_path / "absent.pem")
    assert refused(**absent).keys() == absent.keys()


def test_tls_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """A key of another certificate, what is no PEM, a CA that is none: before a child could die of it."""
    authority, garbage = Authority.new(), tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    files = authority.certificate("127.0.0.1").write(tmp_path)
    (tmp_path / "other").mkdir()
    other = authority.certificate("127.0.0.1").write(tmp_path / "other")
    assert load_settings(tls_cert=files.chain, tls_key=files.key).tls_cert == files.chain
    for cert, key in ((files.chain, other.key), (garbage, files.key), (files.chain, garbage)):
        assert refused(tls_cert=cert, tls_key=key).keys() == {"tls_key"}
    assert refused(tls_cert=files.chain, tls_key=files.key, tls_client_ca=garbage).keys() == {"tls_client_ca"}


@pytest.mark.parametrize(
    ("reflection", "host", "reflects"),
    [
        ("auto", "127.0.0.1", True),
        ("auto", "192.0.2.1", False),
        ("on", "192.0.2.1", True),
        ("off", "127.0.0.1", False),
    ],
)
def test_reflection_is_on_for_loopback_unless_said_otherwise(reflection: str, host: str, *, reflects: bool) -> None:
    """`auto` follows the address; `on` and `off` are kept to."""
    assert load_settings(reflection=reflection, host=host, insecure=True).reflects is reflects


def check(state: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`mantel serve --check`, as a person types it."""
    command = [sys.executable, "-m", "server.cli", "serve", "--check", "--state", str(state), *flags]
    return subprocess.run(command, env={**os.environ, **env}, check=False, capture_output=True, text=True)


def test_check_says_what_is_in_force(tmp_path: Path) -> None:
    """It prints every setting and a line for all that a server needs, starts nothing and exits 0."""
    state = tmp_path / "state"
    done = check(state, "--port", "7", MANTEL_WORKERS="2")
    lines = ["tls: off", "redis: embedded", "snapshot: ok (none is published yet)", "tokens: ok (0 principals)"]
    lines.append("signing keys: ok (made on first need)")
    assert (done.returncode, done.stderr.splitlines()) == (0, lines)
    said = json.loads(done.stdout)
    assert sorted(said.keys() - {"found_surfaces"}) == FIELDS
    assert (said["port"], said["workers"], said["state"]) == (7, 2, str(state))
    assert said["found_surfaces"] == ["evaluation", "home", "search-landing"]
    assert not state.exists()


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    """A Redis that is not there, an unreadable tokens file, a snapshot that is gone: told, with exit code 1."""
    state = State(tmp_path / "state")
    state.path.mkdir()
    state.tokens.write_text("[{")
    done = check(state.path, MANTEL_REDIS="redis://user:hunter2@127.0.0.1:1/3")
    assert done.returncode == 1
    assert json.loads(done.stdout)["redis"] == "redis://***@127.0.0.1:1/3"
    assert "hunter2" not in done.stdout + done.stderr
    _, store, tokens, _ = done.stderr.splitlines()
    assert store.startswith("redis: ")
    assert "127.0.0.1:1" in store
    assert tokens.startswith("tokens: ")
    assert "cannot be read" in tokens
    state.tokens.unlink()
    state.pointer.write_bytes(Pointer(digest="0" * 64, space_id="1", sequence=1, published_at=0.0).to_bytes())
    done = check(state.path)
    assert done.returncode == 1
    assert "snapshot: " in done.stderr


def test_check_reads_the_named_redis_and_the_snapshot(published: Store, tmp_path: Path) -> None:
    """What is well is said so, with TLS and the snapshot that the pointer names."""
    files = Authority.new().certificate("127.0.0.1").write(tmp_path)
    done = check(
        published.state.path, "--redis", published.url, "--tls-cert", str(files.chain), "--tls-key", str(files.key)
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stderr.splitlines())
    assert (said["tls"], said["redis"]) == ("ok", "ok")
    assert said["snapshot"].endswith("2,000 items)")


def test_insecure_is_warned_of(tmp_path: Path) -> None:
    """On standard error, where it has an effect."""
    assert "plain text on 0.0.0.0" in check(tmp_path, "--host", "0.0.0.0", "--insecure").stderr  # noqa: S104
    assert "plain text" not in check(tmp_path, "--insecure").stderr


def test_check_refuses_what_serve_would_refuse(tmp_path: Path) -> None:
    """Exit code 2 and one line that names the field, for settings and for the surfaces file."""
    surfaces = tmp_path / "surfaces.toml"
    surfaces.write_text("[home]\n")
    for flags, said in {
        ("--workers", "0"): "workers: ",
        ("--host", "192.0.2.1"): "host: ",
        ("--surfaces", str(surfaces)): f"{surfaces}:1: home.shelves: Field required",
    }.items():
        done = check(tmp_path / "state", *flags)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"mantel: {said}")
        assert done.stderr.count("\n") == 1
