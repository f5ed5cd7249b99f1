"""The commands of experimenters as a person types them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.state import Endpoints, State
from ranking.params import PARAMS
from tests.operation import eventually, mantel, published, server

SPEC = """
[[layers]]
id = "page"
params = ["page_order", "row_decay"]

[[experiments]]
key = "by-file"
layer = "page"
reserved = 0.4
ramp = 0.5
allow_list = { u0000001 = "file" }
arms = [{ key = "control" }, { key = "file", params = { page_order = "file" } }]
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, built: Path) -> State:
    """A state directory with the small world."""
    return published(tmp_path_factory.mktemp("experiments") / "state", built)


@pytest.fixture(scope="module", autouse=True)
def endpoints(state: State) -> Iterator[Endpoints]:
    """`mantel serve` on it, two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
        with server(state, workers="2") as found:
            eventually(lambda: sum(beat.ready for beat in state.heartbeats()) == 2)
            yield found


def typed(state: State, *words: str) -> str:
    """What a command prints that ends well."""
    done = mantel(*words, "--state", str(state.path))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(state: State, *words: str) -> str:
    """What a command says that is refused."""
    done = mantel(*words, "--state", str(state.path))
    assert done.returncode in {1, 2}
    return done.stderr


def test_a_file_is_checked_applied_listed_and_explained(state: State, tmp_path: Path) -> None:
    """TOML and JSON; both workers serve it within seconds; a page tells its arm."""
    file = tmp_path / "E.toml"
    file.write_text(SPEC)
    assert "nothing was changed" in typed(state, "experiments", "apply", str(file), "--check")
    assert "book none" in typed(state, "experiments", "list")
    said = typed(state, "experiments", "apply", str(file))
    assert "is in force; workers follow within 2 s" in said
    assert "20.0% of 40.0%" in said
    book = json.loads(typed(state, "experiments", "list", "--json"))["version"]
    eventually(lambda: [beat.experiment_book for beat in state.heartbeats()] == [book] * 2)
    listed = typed(state, "experiments", "list")
    assert book[:12] in listed
    assert "60.0%" in listed
    explained = typed(state, "experiments", "explain", "u0000001")
    assert "allow_list" in explained
    assert "page_order=file" in explained
    page = json.loads(typed(state, "get", "u0000001", "--json"))
    assert page["assignments"] == [{"experiment": "by-file", "arm": "file", "layer": "page", "reason": "allow_list"}]
    again = tmp_path / "E.json"
    told = json.loads(typed(state, "experiments", "apply", str(file), "--json"))["book"]["spec"]
    again.write_text(json.dumps(told))
    assert "is in force already" in typed(state, "experiments", "apply", str(again))
    assert "ABORTED" in refused(state, "experiments", "apply", str(again), "--etag", "0" * 64)


def test_mistakes_in_a_file_are_named(state: State, tmp_path: Path) -> None:
    """The path of each field, or that the file cannot be read."""
    file = tmp_path / "E.toml"
    for text, named in (
        (SPEC.replace("ramp = 0.5", 'ramp = "half"'), "experiments[0].ramp: Input should be a valid number"),
        (SPEC.replace('page_order = "file" }', 'page_order = "best" }'), "experiments[0].arms[1].params.page_order"),
        (SPEC.replace("ramp", "rump"), "experiments[0].rump"),
        ("[[layers", "E.toml: cannot be read"),
    ):
        file.write_text(text)
        assert named in refused(state, "experiments", "apply", str(file))


def test_params_are_listed_with_their_layers(state: State, tmp_path: Path) -> None:
    """All of the table; a server's book says which layer each belongs to."""
    file = tmp_path / "E.toml"
    file.write_text(SPEC)
    typed(state, "experiments", "apply", str(file))
    found = {one["param"]: one for one in json.loads(typed(state, "params", "--json"))}
    assert list(found) == [param.name for param in PARAMS]
    assert (found["page_order"]["layer"], found["mmr_lambda"]["layer"]) == ("page", "")
    assert found["page_order"]["range"] == "attention, file"
    alone = mantel("params", "--state", str(tmp_path / "none"))
    assert "mmr_lambda" in alone.stdout
