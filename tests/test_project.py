"""The project itself: what is generated is fresh, what is locked is complete, what can be typed is told."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LOCKED = re.compile(
    r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?: ; [^\\/]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+$",
    re.MULTILINE,
)
GENERATED = "protos/**/*_pb2*.py*"


def run(*command: str | Path) -> str:
    """What a command prints, run as a person would in the project's folder."""
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(*arguments: str | Path) -> str:
    """What make prints with the virtual environment of this run."""
    return run("make", "--silent", "--no-print-directory", "--old-file=.venv/.ready", f"BIN={BIN}", *arguments)


@pytest.fixture(scope="module")
def lock() -> str:
    """The text of the lock."""
    return (ROOT / "requirements.lock").read_text()


def test_generated_code_is_what_the_contract_generates_today(tmp_path: Path) -> None:
    """`make protos` into an empty folder gives the committed files, byte for byte, and no others."""
    make("protos", f"OUT={tmp_path}")
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob(GENERATED)}
    committed = {path.relative_to(ROOT): path.read_bytes() for path in ROOT.glob(GENERATED) if path.suffix != ".pyc"}
    assert fresh.keys() == committed.keys()
    assert [str(path) for path in fresh if fresh[path] != committed[path]] == []


def test_contract_keeps_to_the_style_guide() -> None:
    """`buf lint` has nothing to say."""
    assert run(BIN / "buf", "lint") == ""


def test_every_dependency_is_locked_at_a_version_it_admits(lock: str) -> None:
    """What pyproject.toml asks for, to run or to develop, is in the lock and within its bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = map(Requirement, project["project"]["dependencies"] + project["dependency-groups"]["dev"])
    locked = {match["name"]: match["version"] for match in LOCKED.finditer(lock)}
    assert [str(need) for need in asked if locked[canonicalize_name(need.name)] not in need.specifier] == []


def test_lock_holds_names_versions_and_hashes_only(lock: str) -> None:
    """Every line belongs to a package with at least one hash, or a comment; no index, address or path is in it."""
    rest = LOCKED.sub("", lock)
    assert [line for line in rest.splitlines() if line and not line.lstrip().startswith("#")] == []
    assert "/" not in lock


def test_help_lists_every_verb() -> None:
    """`make` alone tells of each target that a person can type."""
    makefile = (ROOT / "Makefile").read_text()
    verbs = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[0].split()
    assert re.findall(r"^make (\w+) ", make(), re.MULTILINE) == verbs
