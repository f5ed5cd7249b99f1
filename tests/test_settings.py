"""Settings: flags over environment over file, and every mistake told by name before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from features.errors import InvalidInput
from server.settings import Settings, load_settings

WRONG: dict[str, list[Any]] = {
    "prefix": ["", "Mantel", "a:b", "a" * 33, "a\n"],
    "port": [-1, 65_536, "http"],
    "control_port": [-1, 65_536],
    "metrics_port": [-1, 65_536],
    "workers": [0, 257, 1.5],
    "batch_cap": [0, 65],
    "redis_timeout_ms": [0, -1, "nan", "inf", "soon"],
    "default_deadline_ms": [0, "inf"],
    "snapshot_max_age_h": [0],
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
    pem = tmp_path / "any.pem"
    pem.touch()
    for host in ("0.0.0.0", "::", "192.0.2.1", "mantel.example"):  # noqa: S104
        assert refused(host=host).keys() == {"host"}
        assert not load_settings(host=host, insecure=True).on_loopback
        assert not load_settings(host=host, tls_cert=pem, tls_key=pem).on_loopback
    assert all(load_settings(host=host).on_loopback for host in ("127.0.0.1", "::1", "localhost"))


def test_a_certificate_and_its_key_go_together(tmp_path: Path) -> None:
    """Half of TLS is none; and each file must be there when the server starts."""
    pem = tmp_path / "any.pem"
    pem.touch()
    assert refused(tls_cert=pem).keys() == {"tls_key"}
    assert refused(tls_key=pem).keys() == {"tls_key"}
    assert refused(tls_client_ca=pem).keys() == {"tls_client_ca"}
    absent = dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca"), tmp_path / "absent.pem")
    assert refused(**absent).keys() == absent.keys()


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
    """It prints every setting with the Redis password masked, starts nothing and exits 0."""
    state = tmp_path / "state"
    done = check(state, "--port", "7", MANTEL_REDIS="redis://user:hunter2@redis.example:6379/3", MANTEL_WORKERS="2")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert sorted(said.keys() - {"found_surfaces"}) == FIELDS
    assert (said["port"], said["workers"], said["state"]) == (7, 2, str(state))
    assert said["redis"] == "redis://***@redis.example:6379/3"
    assert said["found_surfaces"] == ["evaluation", "home", "search-landing"]
    assert not (state / "redis").exists()


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
