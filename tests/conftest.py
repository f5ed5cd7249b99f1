"""What tests share: a small world built once, a real Redis, and a server in this process."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
import redis
from pyarrow import parquet

from features.embedded_redis import attached
from features.keys import Keys
from features.offline import records as records_
from features.offline.build import BuildSettings, build
from features.offline.publish import PublishReport, connect, publish
from features.offline.world import WorldSettings, generate
from features.snapshot import Snapshot, load
from features.state import State
from protos.home.v1 import home_pb2, home_pb2_grpc
from server.data_plane import DataPlane
from server.identity import development_token
from server.metrics import Metrics
from server.settings import Settings
from server.wiring import data_plane

if TYPE_CHECKING:
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub

ROOT = Path(__file__).parent.parent


def quiet(_stage: str, _done: int, _total: int) -> None:
    """A progress callback that tells nobody."""


@pytest.fixture(scope="session")
def hetrec() -> Path:
    """The HetRec 2011 Last.fm files; where they are not at hand the test skips, in CI it fails."""
    folder = Path(os.environ.get("MANTEL_DATA", ROOT / "../shared/data")) / "hetrec2011-lastfm-2k"
    if not folder.is_dir():
        text = f"no HetRec Last.fm data at {folder}; name its parent directory with MANTEL_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a synthetic world of 2,000 items and 500 listeners."""
    folder = tmp_path_factory.mktemp("world") / "tables"
    generate(folder, settings=WorldSettings(items=2000, listeners=500), progress=quiet)
    return folder


@pytest.fixture(scope="session")
def built(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of that world, with its listener records. Read-only: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("built") / "snapshot"
    build(world, folder, settings=BuildSettings(factors=16, iterations=5), progress=quiet)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of the small snapshot that may be spoilt."""
    folder = tmp_path / "copy"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("listeners"))
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture(scope="session")
def snapshot(built: Path) -> Snapshot:
    """That snapshot, loaded."""
    return load(built)


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A state directory with its own Redis."""

    state: State
    url: str
    client: redis.Redis
    keys: Keys

    def publish(self, folder: Path) -> PublishReport:
        """Publishes a snapshot, keeping its records for the next test."""
        return publish(folder, self.state, self.client, self.keys, progress=quiet, keep_records=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty state directory with its own Redis."""
    state = State(tmp_path / "state")
    with attached(state) as url, connect(url) as client:
        yield Store(state=state, url=url, client=client, keys=Keys())


@pytest.fixture
def published(store: Store, built: Path) -> Store:
    """A state directory in which the small world is published."""
    store.publish(built)
    return store


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A data plane that serves in this process."""

    plane: DataPlane
    target: str
    token: str
    channel: grpc.aio.Channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The development token, as a call carries it."""
        return (("authorization", f"Bearer {self.token}"),)

    async def get_home(self, user_id: str, **fields: Any) -> home_pb2.GetHomeResponse:
        """A page, asked for by the development token's holder; `fields` are those of the request."""
        request = home_pb2.GetHomeRequest(user_id=user_id, **fields)
        home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(self.channel)
        return await home.GetHome(request, metadata=self.metadata)


def settings_for(state: State, **changes: Any) -> Settings:
    """Settings for a server under test: patient with a busy machine, quick to stop."""
    defaults: dict[str, Any] = {
        "state": state.path,
        "redis_timeout_ms": 2000.0,
        "read_budget_ms": 2000.0,
        "default_deadline_ms": 20_000.0,
        "admission_limit": 2048,
        "poll_s": 0.05,
        "drain_s": 0.0,
        "grace_s": 1.0,
    }
    return Settings(**{**defaults, **changes})


@asynccontextmanager
async def serving(state: State, url: str, *, ready: bool = True, **changes: Any) -> AsyncIterator[Served]:
    """A data plane on a free port, from ready to stopped; `changes` are settings."""
    settings = settings_for(state, **changes)
    plane = data_plane(settings, redis_url=url, port=0, shared_port=False, metrics=Metrics())
    stop = asyncio.Event()
    running = asyncio.create_task(plane.run(stop))
    try:
        while ready and plane.snapshots.current is None:
            await asyncio.sleep(0.01)
            assert not running.done()
        target = f"127.0.0.1:{plane.transport.port}"
        async with grpc.aio.insecure_channel(target) as channel:
            yield Served(plane=plane, target=target, token=development_token(state), channel=channel)
    finally:
        stop.set()
        await running


@pytest_asyncio.fixture(loop_scope="session")
async def served(published: Store) -> AsyncIterator[Served]:
    """The small world, served."""
    async with serving(published.state, published.url) as one:
        yield one


@pytest.fixture(scope="session")
def records(built: Path) -> dict[str, bytes]:
    """The small world's listener records: user id -> frame."""
    table = parquet.read_table(sorted((built / "listeners").glob("*.parquet")))
    return dict(zip(table["user_id"].to_pylist(), table["record"].to_pylist(), strict=True))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def standing(built: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """The small world, served for the whole run: for tests that leave everything as it is."""
    state = State(tmp_path_factory.mktemp("standing") / "state")
    with attached(state) as url, connect(url) as client:
        Store(state=state, url=url, client=client, keys=Keys()).publish(built)
        async with serving(state, url) as one:
            yield one


@pytest.fixture(scope="session")
def variants(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four more snapshots of that world, each with another seed and so another embedding space; the first in parts."""
    folder = tmp_path_factory.mktemp("variants")
    paths = []
    for seed in range(101, 105):
        paths.append(folder / f"seed-{seed}")
        settings = BuildSettings(factors=16, iterations=2, seed=seed, refuse=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records_, "PART_ROWS", 100 if seed == 101 else records_.PART_ROWS)
            build(world, paths[-1], settings=settings, progress=quiet)
    return paths


@pytest.fixture(scope="session")
def second(variants: list[Path]) -> Path:
    """A second snapshot; its listener records stand in five parts."""
    return variants[0]
