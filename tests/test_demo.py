"""The demo: apart from the user's own state, made once, and used where it runs."""

import json
import subprocess
from pathlib import Path

from features.state import State
from tests.operation import mantel, server

SIZE = ("--items", "600", "--listeners", "120")


def ok(*words: str) -> str:
    """What a command prints that ends well."""
    done = mantel(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_keeps_to_itself(built: Path, tmp_path: Path) -> None:
    """It makes a world once, shows it whatever else is published, and makes it anew where its own is not served."""
    words = ("demo", "--once", *SIZE, "--state", f"{tmp_path}/state")
    made = tmp_path / "state/demo/made.json"

    def shown() -> float:
        page = ok(*words)
        assert "plays most" in page
        assert "Picked for you" in page
        assert "experiment more-variety: arm " in page
        assert "promoted by Fugue Records" in page or "promoted by Nachtklang" in page
        assert "degraded" not in page
        assert json.loads(made.read_bytes())["digest"][:12] in page
        return made.stat().st_mtime

    first = shown()
    ok("publish", str(built), "--state", f"{tmp_path}/state", "--keep-records", "--quiet")
    assert shown() == first
    ok("publish", str(built), "--state", f"{tmp_path}/state/demo/state", "--keep-records")
    assert shown() > first
    assert State(tmp_path / "state/demo/state").endpoints() is None


def test_a_demo_that_runs_is_used(tmp_path: Path) -> None:
    """Its page is shown with commands that work as typed, and it stays; what runs and does not answer is told."""
    words = ("demo", *SIZE, "--state", f"{tmp_path}/state")
    ok(*words, "--once")
    state = State(tmp_path / "state/demo/state")
    with server(state) as found:
        said = ok(*words)
        assert "mantel get u" in said
        assert f"--state {state.path}" in said
        typed = next(line for line in said.splitlines() if "get a-stranger" in line)
        done = subprocess.run(typed.split(), capture_output=True, text=True, check=False)
        assert "cold start" in done.stdout, done.stderr
        assert state.endpoints() == found
    with state.lock("serve", wait=False, held=""):
        done = mantel(*words, "--once")
        assert done.returncode == 1
        assert done.stderr == f"mantel: a server is running on {state.path} already\n"
