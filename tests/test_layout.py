"""The walls of the house: who imports whom, which file opens which door, what data looks like."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("protos", "features", "ranking", "server", "loadtest")
LIBRARY = {"features": {"features", "protos"}, "ranking": {"ranking", "features"}, "protos": {"protos"}}
MAY_IMPORT = {**LIBRARY, "server": {"server", "ranking", "features", "protos"}, "loadtest": {"loadtest", "protos"}}
MAY_IMPORT_TOO = {  # they measure the core by itself, and behind another server
    "loadtest/stages.py": {"ranking", "features"},
    "loadtest/twin_pages.py": {"ranking", "features"},
}
COMMAND_LINE = {f"server/{path.name}" for path in (ROOT / "server").glob("cli*.py")}
DOORS = {
    "numba": {"features/compiled.py"},
    "faiss": {"features/index.py", "features/offline/"},
    "prometheus_client": {"server/metrics.py"},
    "redis": {
        "features/",
        "server/wiring.py",
        "server/admin_service.py",
        "server/snapshots.py",
        "server/cli_check.py",
        "loadtest/twin.py",
        "loadtest/peer_",
    },
    "grpc": {"server/", "protos/", "loadtest/"},
    "locust": {"loadtest/"},
    "implicit": {"features/offline/"},
    "polars": {"features/offline/", "server/cli_demo.py"},
    "pandera": {"features/offline/"},
    "typer": {*COMMAND_LINE, "server/options.py"},
    "structlog": {"server/logs.py"},
}


def sources() -> list[Path]:
    """Every Python file of the rooms that people write."""
    found = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return sorted(path for path in found if "_pb2" not in path.name)


def name_of(path: Path) -> str:
    """A file as the README names it."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield str(node.module)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    """Server -> ranking -> features; the offline pipeline is never imported by the serving path."""
    name, room = name_of(path), name_of(path).partition("/")[0]
    for module in imports(path):
        top = module.partition(".")[0]
        if top not in ROOMS or name in COMMAND_LINE:
            continue
        assert top in MAY_IMPORT[room] | MAY_IMPORT_TOO.get(name, set()), f"{name} imports {module}"
        if module.startswith("features.offline"):
            assert name.startswith("features/offline/"), f"{name} imports {module}"


def test_contract_code_stays_at_the_edge() -> None:
    """Of what is known, only the encoder of cards, and the reader of kinds beside it, see protobuf."""
    seen = {name_of(path) for path in sources() for module in imports(path) if module.startswith("protos")}
    inside = {name for name in seen if name.startswith(("features/", "ranking/"))}
    assert inside <= {"features/offline/cards.py", "features/offline/catalogue.py"}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_each_library_has_its_door(library: str) -> None:
    """A library is imported only where its door is."""
    users = {name_of(path) for path in sources() if library in {module.partition(".")[0] for module in imports(path)}}
    strays = {user for user in users if not any(user.startswith(door) for door in DOORS[library])}
    assert not strays


def test_imports_have_no_cycle() -> None:
    """The modules can be put in an order in which each imports only earlier ones."""
    names = {name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources()}
    edges = {name: {module for module in imports(path) if module in names} for name, path in names.items()}
    while edges:
        free = {name for name, needs in edges.items() if not needs & edges.keys() - {name}}
        assert free, f"a cycle among {sorted(edges)}"
        edges = {name: needs for name, needs in edges.items() if name not in free}


def test_data_is_frozen_slotted_and_named() -> None:
    """Every dataclass is frozen, slotted and keyword-only; what a file keeps to itself may change while it is made."""
    allowed = {("features/state.py", "State")}  # one path: `State(path)` reads well
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for mark in node.decorator_list:
                public = not node.name.startswith("_") and (name_of(path), node.name) not in allowed
                if "dataclass" in ast.unparse(mark) and public:
                    for flag in ("frozen=True", "slots=True", "kw_only=True"):
                        assert flag in ast.unparse(mark), f"{name_of(path)}: {node.name} lacks {flag}"


def test_no_room_is_without_a_name() -> None:
    """A file called utils is a word that the house lacks."""
    nameless = {"utils", "common", "helpers", "base", "manager", "misc"}
    assert not {name_of(path) for path in sources() if path.stem in nameless}


def test_waiting_uses_timeouts_that_cannot_swallow_a_cancel() -> None:
    """On Python 3.11 `asyncio.wait_for` may; `asyncio.timeout` does not."""
    assert not [name_of(path) for path in sources() if "wait_for(" in path.read_text()]


def test_files_that_the_readme_names_exist() -> None:
    """Every path in the README's code marks is there."""
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:protos|features|ranking|server|loadtest|tests|deploy)/[\w./-]*)`", text))
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_nothing_tracked_names_this_machine() -> None:
    """No absolute path of a developer's machine is in the repository."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git checkout")
    tracked = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    strays = [name for name in tracked if name.endswith((".py", ".md", ".toml", "Makefile")) and (ROOT / name).exists()]
    assert not [name for name in strays if pattern.search((ROOT / name).read_text())]
