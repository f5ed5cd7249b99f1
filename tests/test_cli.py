"""The commands as a person types them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from features.state import Endpoints, State
from server.cli import app
from server.identity import Role
from server.version import VERSION
from tests.operation import eventually, mantel, server


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, second: Path) -> Path:
    """What `world`, `build` and `publish` leave in a folder: `W`, `S` and `state`; another was published before."""
    folder = tmp_path_factory.mktemp("typed")
    ok("world", "--out", f"{folder}/W", "--items", "600", "--listeners", "120", "--quiet")
    ok("build", "--data", f"{folder}/W", "--out", f"{folder}/S", "--factors", "8", "--quiet")
    for snapshot, counts in ((second, "2,000 items, 500 listeners"), (folder / "S", "600 items, 120 listeners")):
        assert counts in ok("publish", str(snapshot), "--state", f"{folder}/state", "--keep-records", "--quiet")
    return folder


@pytest.fixture(scope="module")
def endpoints(typed: Path) -> Iterator[Endpoints]:
    """`mantel serve` on that state directory, after the publishing commands have ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_POLL_S", "0.1")
        patch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
        with server(State(typed / "state")) as found:
            yield found


def ok(*words: str) -> str:
    """What a command prints that ends well."""
    done = mantel(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(code: int, *words: str) -> str:
    """The one line that a command prints on standard error before it ends with a code."""
    done = mantel(*words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("mantel: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_get_shows_a_page_and_prints_json(typed: Path, endpoints: Endpoints) -> None:
    """`mantel get` finds server and token by --state, shows titles and headings, and prints the same page as JSON."""
    page = ok("get", "u0000001", "--state", f"{typed}/state", "--timeout", "20")
    told = json.loads(ok("get", "u0000001", "--state", f"{typed}/state", "--timeout", "20", "--json"))
    shelves = [shelf["id"] for shelf in told["shelves"]]
    assert shelves[0] == "jump-back-in"
    assert "popular-near-you" in shelves
    assert 4 <= len(told["shelves"][0]["items"]) <= 12
    for shelf in told["shelves"]:
        assert shelf["title"] in page
        assert shelf["items"][0]["title"][:15] in page
    assert told["snapshot_version"][:12] in page
    assert "degraded" not in page
    stranger = ok("get", "nobody", "--target", endpoints.target, "--state", f"{typed}/state", "--timeout", "20")
    assert "cold start" in stranger


def test_explain_tells_the_page_the_item_and_the_what_if(typed: Path, endpoints: Endpoints) -> None:
    """Stages, params and scores; one item's fate on every shelf; what other params would lose and gain."""
    words = ("explain", "u0000001", "--state", f"{typed}/state")
    assert endpoints.target
    page = ok(*words)
    assert all(word in page for word in ("retrieve", "off_genre", "discovery_noise", "affinity", "picked-for-you"))
    shelf = json.loads(ok(*words, "--json"))["response"]["shelves"][-1]
    assert f"{shelf['id']}: it is shown" in ok(*words, shelf["items"][0]["item_id"])
    other = ok(*words, "--set", "popularity_weight=-2")
    assert "what if" in other
    assert "  + " in other
    assert "no_such is no param" in refusal(1, *words, "--set", "no_such=1")
    assert "is not PARAM=VALUE" in refusal(2, *words, "--set", "no_such")


def test_snapshots_are_listed_and_taken_back(typed: Path, endpoints: Endpoints) -> None:
    """List marks what is served, status tells what each worker believes, rollback and activate move it."""
    state = f"{typed}/state"

    def listed() -> dict[str, bool]:
        told = json.loads(ok("snapshots", "list", "--state", state, "--json"))
        return {one["digest"]: one.get("current", False) for one in told["snapshots"]}

    before = listed()
    (current,) = (digest for digest, is_current in before.items() if is_current)
    (other,) = before.keys() - {current}
    assert f"{current[:12]} *" in ok("snapshots", "list", "--state", state)
    assert ok("snapshots", "rollback", "--state", state) == f"switching to {other}; workers follow within seconds\n"
    assert listed() == {current: False, other: True}
    eventually(lambda: other[:12] in ok("snapshots", "status", "--target", endpoints.control, "--state", state))
    assert current[:12] in ok("snapshots", "activate", current[:10], "--state", state)
    assert listed() == before
    told = json.loads(ok("snapshots", "status", "--state", state, "--json"))
    assert told["store_up"]
    assert told["current_digest"] == current


def test_tokens_let_in_and_shut_out(typed: Path, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is printed once and kept as a hash; a running server follows, on both of its ports."""
    state = f"{typed}/state"
    tokens = {
        role: ok("tokens", "add", f"my-{role}", "--role", role, "--state", state).strip()
        for role in ("client", "admin")
    }
    assert not any(token in (typed / "state/tokens.json").read_text() for token in tokens.values())
    listed = ok("tokens", "list", "--state", state)
    assert "my-client" in listed
    assert "my-admin" in listed

    def get() -> bool:
        return mantel("get", "u0000001", "--target", endpoints.target, "--timeout", "20").returncode == 0

    def status() -> bool:
        return mantel("snapshots", "status", "--target", endpoints.control).returncode == 0

    monkeypatch.setenv("MANTEL_TOKEN", tokens["client"])
    eventually(get)
    assert "PERMISSION_DENIED" in refusal(1, "snapshots", "status", "--target", endpoints.control)
    monkeypatch.setenv("MANTEL_TOKEN", tokens["admin"])
    assert status()
    assert "PERMISSION_DENIED" in refusal(1, "get", "u0000001", "--target", endpoints.target, "--timeout", "20")
    for role in tokens:
        ok("tokens", "remove", f"my-{role}", "--state", state)
    assert not status()
    monkeypatch.setenv("MANTEL_TOKEN", tokens["client"])
    eventually(lambda: not get())
    assert "no principal named my-client" in refusal(1, "tokens", "remove", "my-client", "--state", state)


def test_a_published_folder_needs_its_records_no_more(typed: Path, tmp_path: Path) -> None:
    """Without --keep-records they are deleted; published again the command says that every listener was there."""
    shutil.copytree(typed / "S", tmp_path / "S")
    state = ("--state", f"{tmp_path}/state")
    assert "deleted" not in ok("publish", f"{tmp_path}/S", *state, "--keep-records", "--quiet")
    assert (tmp_path / "S/listeners").exists()
    told = ok("publish", f"{tmp_path}/S", *state, "--quiet")
    assert f"the listener records were deleted from {tmp_path}/S" in told
    assert "the embedded Redis" in told
    assert "peak memory (RSS)" in told
    assert not (tmp_path / "S/listeners").exists()
    again = ok("publish", f"{tmp_path}/S", "--state", f"{tmp_path}/state", "--quiet")
    assert "every listener of this space was there already" in again


def test_a_data_folder_that_cannot_be_used_is_refused(typed: Path, tmp_path: Path) -> None:
    """Missing altogether, or without a column: the folder, the table and the column are named."""
    nowhere = f"{tmp_path}/nowhere"
    assert nowhere in refusal(1, "build", "--data", nowhere, "--out", f"{tmp_path}/S", "--quiet")
    broken = shutil.copytree(typed / "W", tmp_path / "W")
    pl.read_parquet(broken / "items.parquet").drop("item_id").write_parquet(broken / "items.parquet")
    said = refusal(1, "build", "--data", str(broken), "--out", f"{tmp_path}/S", "--quiet")
    assert "items" in said
    assert "item_id" in said
    assert not (tmp_path / "S").exists()


def test_what_cannot_be_published_is_refused(typed: Path, tmp_path: Path) -> None:
    """A folder that is no snapshot, a Redis that is not there, a URL that is none."""
    state = ("--state", f"{tmp_path}/state", "--quiet")
    assert "manifest.json" in refusal(1, "publish", f"{typed}/W", *state)
    assert "127.0.0.1:1" in refusal(1, "publish", f"{typed}/S", "--redis", "redis://127.0.0.1:1", *state)
    assert "redis://" in refusal(2, "publish", f"{typed}/S", "--redis", "nonsense", *state)
    assert "redis://" in refusal(2, "serve", "--redis", "nonsense", "--state", f"{tmp_path}/state")


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    """Nobody listens there: one line says so, and how to start a server."""
    for words in (("get", "u1"), ("snapshots", "status"), ("snapshots", "list"), ("snapshots", "rollback")):
        said = refusal(1, *words, "--target", "127.0.0.1:1", "--state", str(tmp_path))
        assert "refused: nothing listens at 127.0.0.1:1; start a server with: mantel serve" in said


def test_a_call_without_a_token_says_what_to_give(endpoints: Endpoints, tmp_path: Path) -> None:
    """Not only that it is refused."""
    said = refusal(1, "get", "u1", "--target", endpoints.target, "--state", str(tmp_path), "--timeout", "20")
    assert said == "mantel: no token: set MANTEL_TOKEN, or give --state of the server\n"


def test_wrong_settings_name_the_field(tmp_path: Path) -> None:
    """What cannot be is refused with exit code 2, before anything starts."""
    state = ("--state", str(tmp_path))
    assert "port" in refusal(2, "serve", "--port", "70000", *state)
    assert "host" in refusal(2, "serve", "--host", "0.0.0.0", *state)  # noqa: S104
    assert "role" in refusal(2, "tokens", "add", "somebody", "--role", "nobody", *state)


def test_a_new_token_is_alone_on_standard_output(tmp_path: Path) -> None:
    """For a script to take; what a person should know stands on standard error."""
    done = mantel("tokens", "add", "web-app", "--role", "client", "--state", str(tmp_path))
    assert len(done.stdout.split()) == 1
    assert done.stderr == "running servers know it within seconds\n"
    said = ok("tokens", "add", "--help")
    assert not [role for role in Role if f"{role}: " not in said]


def test_rejected_rows_are_told_to_programs(typed: Path, tmp_path: Path) -> None:
    """`build --json` holds them: table, reason, how many, examples."""
    broken = shutil.copytree(typed / "W", tmp_path / "W")
    items = pl.read_parquet(broken / "items.parquet")
    pl.concat([items, items.head(1)]).write_parquet(broken / "items.parquet")
    told = json.loads(ok("build", "--data", str(broken), "--out", f"{tmp_path}/S", "--factors", "8", "--json"))
    (row,) = told["rejected"]
    assert (row["table"], row["rows"], row["examples"]) == ("items", 1, items["item_id"].head(1).to_list())


def test_help_tells_defaults_and_version() -> None:
    """Those of the settings too, whose brackets rich would take for markup."""
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    for default in ("127.0.0.1", "50051", "50052", "9464", ".mantel", "mantel"):
        assert f"[default: {default}]" in shown
    assert ok("--version") == f"mantel {VERSION}\n"


@pytest.mark.usefixtures("endpoints")
def test_preferences_are_changed_and_a_listener_is_forgotten(typed: Path) -> None:
    """`mantel listeners`: hide, undo, set; a wrong or empty change is refused; all is erased after a question."""
    where = ("--state", f"{typed}/state")
    assert json.loads(ok("listeners", "hide", "u0000002", "t0000001", "--artist", "a1", *where, "--json")) == {
        "hidden_item_ids": ["t0000001"],
        "hidden_artist_ids": ["a1"],
    }
    shown = ok("listeners", "set", "u0000002", "--no-explicit", "--no-promotions", "--discovery", "0.8", *where)
    assert all(word in shown for word in ("t0000001", "a1", "not allowed", "off", "0.8"))
    assert "t0000001" not in ok("listeners", "unhide", "u0000002", "t0000001", *where)
    assert json.loads(ok("listeners", "show", "u0000002", *where, "--json"))["hidden_artist_ids"] == ["a1"]
    assert "name at least one item" in refusal(2, "listeners", "hide", "u0000002", *where)
    assert "discovery: must be 0" in refusal(1, "listeners", "set", "u0000002", "--discovery", "2", *where)
    assert mantel("listeners", "forget", "u0000002", *where).returncode == 1  # nobody answered the question
    assert "forgotten: " in ok("listeners", "forget", "u0000002", "--yes", *where)
    assert json.loads(ok("listeners", "show", "u0000002", *where, "--json")) == {}
    assert "0 keys" in ok("listeners", "forget", "u0000002", "--yes", *where)


def commands(group: TyperGroup, *path: str) -> Iterator[tuple[list[str], str]]:
    """Every command: the words that call it, and what it says of itself."""
    yield list(path), group.help or ""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *path, name)
        else:
            yield [*path, name], command.help or ""


def test_every_command_explains_itself() -> None:
    """--help shows what a command is for; the list of commands is the one that the documents promise."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    found = list(commands(root))
    assert {"demo", "world", "build", "evaluate", "publish", "serve", "get"} < {words[0] for words, _ in found[1:]}
    for words, purpose in found:
        shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert shown.exit_code == 0
        assert purpose
        assert purpose.splitlines()[0] in shown.output
