"""`mantel simulate listeners` as a person types it, against a server with two workers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.state import Endpoints, State
from tests.operation import mantel, published, server


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, built: Path) -> State:
    """A state directory with the small world."""
    return published(tmp_path_factory.mktemp("simulated") / "state", built)


@pytest.fixture(scope="module", autouse=True)
def endpoints(state: State) -> Iterator[Endpoints]:
    """`mantel serve` on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTEL_REDIS_TIMEOUT_MS", "10000")
        patch.setenv("MANTEL_EVENT_TIMEOUT_MS", "10000")
        with server(state) as found:
            yield found


def test_listeners_come_and_what_they_do_is_told(state: State, world: Path) -> None:
    """Every page is answered, every event recorded; a second run of the seed only finds its events known."""
    words = ("simulate", "listeners", "--data", str(world), "--state", str(state.path))
    few = ("--listeners", "12", "--steps", "6", "--seed", "3")
    done = mantel(*words, *few, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["pages"], told["listeners"], told["errors"]) == (12 * 2 * 6, 12, {})
    assert [row["steps"] for row in told["steps"]] == ["1-5", "6-6"]
    assert {result for counts in told["events"].values() for result in counts} == {"recorded"}
    assert told["events"]["impression"]["recorded"] > told["events"]["complete"]["recorded"] > 0
    again = mantel(*words, *few)
    assert again.returncode == 0, again.stderr
    assert "duplicate" in again.stdout
    looked = mantel(*words, "--listeners", "3", "--steps", "2", "--no-send")
    assert "12 pages of 3 listeners" in looked.stdout, looked.stderr
    assert "events" not in looked.stdout


def test_mistakes_are_told_before_anyone_comes(state: State, world: Path, tmp_path: Path) -> None:
    """Too few listeners, no tables, a surface that is not there, a server that is not there."""
    users = tmp_path / "users.txt"
    users.write_text("u0000001\nu0000002\n\nu0000001\n")
    base = ("simulate", "listeners", "--state", str(state.path))
    for words, says in (
        (("--data", str(world), "--users", str(users)), "there are only 2"),
        (("--data", str(tmp_path)), "has no table"),
        (("--data", str(world), "--surface", "nowhere"), "surface"),
        (("--data", str(world), "--target", "127.0.0.1:1"), "start a server with: mantel serve"),
    ):
        done = mantel(*base, *words)
        assert done.returncode in {1, 2}
        assert says in done.stderr
