"""The verbs that move the pointer: what they refuse, and what an answer DEADLINE_EXCEEDED promises."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from features.errors import WrongState
from features.pointer import Served, flip_pointer, read_pointer
from protos.admin.v1 import admin_pb2
from server import admin_service
from server.identity import development_token
from tests.conftest import Store
from tests.operation import digest_of, space_of
from tests.wire import Status, bearer, call, controlling

Code = grpc.StatusCode
ADMIN = "/mantel.admin.v1.AdminService/"


@pytest_asyncio.fixture(loop_scope="session")
async def control(published: Store, second: Path) -> AsyncIterator[grpc.aio.Channel]:
    """The control plane of a state directory with two published snapshots."""
    published.publish(second)
    async with controlling(published.state, published.url) as channel:
        yield channel


async def verb(control: grpc.aio.Channel, store: Store, name: str, digest: str = "", **how: float) -> Status:
    """Calls a verb as the developer."""
    request = admin_pb2.ActivateSnapshotRequest(digest=digest) if digest else b""
    return await call(control, ADMIN + name, request, metadata=bearer(development_token(store.state)), **how)  # type: ignore[arg-type]  # a timeout


def test_a_pointer_that_moved_is_not_taken_back(published: Store, built: Path, second: Path) -> None:
    """A rollback of what another has rolled back or published meanwhile would go one too far."""
    seen = published.publish(second).pointer
    back = Served(digest=digest_of(built), space_id=space_of(built))
    published.publish(second)
    with pytest.raises(WrongState, match="the pointer moved meanwhile; look again"):
        flip_pointer(published.client, published.keys, back, now=time.time(), back_from=seen.sequence)
    now = read_pointer(published.client, published.keys)
    assert now is not None
    assert now.digest == digest_of(second)
    flip_pointer(published.client, published.keys, back, now=time.time(), back_from=now.sequence)


@pytest.mark.parametrize("name", ["RollbackSnapshot", "ActivateSnapshot"])
async def test_a_verb_past_its_deadline_has_done_nothing(
    control: grpc.aio.Channel, published: Store, built: Path, name: str
) -> None:
    """The store answers late: DEADLINE_EXCEEDED, and the pointer stays where it was."""
    before = published.client.get(published.keys.pointer)
    published.client.client_pause(600)
    digest = digest_of(built) if name == "ActivateSnapshot" else ""
    assert (await verb(control, published, name, digest, timeout=0.2)).code is Code.DEADLINE_EXCEEDED
    await asyncio.sleep(1.5)
    assert published.client.get(published.keys.pointer) == before
    assert (await verb(control, published, name, digest)).code is Code.OK


async def test_a_verb_waits_for_a_publish_but_not_for_ever(
    control: grpc.aio.Channel, published: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a publish may clear away is not gone back to."""
    monkeypatch.setattr(admin_service, "_LOCK_PATIENCE_S", 0.1)
    with published.state.lock("publish", wait=False, held=""):
        refused = await verb(control, published, "RollbackSnapshot")
        assert (refused.code, refused.text.partition(";")[0]) == (
            Code.FAILED_PRECONDITION,
            "a publish is under way on this state directory",
        )
    assert (await verb(control, published, "RollbackSnapshot")).code is Code.OK


async def test_a_snapshot_without_its_listeners_is_not_gone_back_to(
    control: grpc.aio.Channel, published: Store, built: Path
) -> None:
    """Redis must hold its space whole."""
    published.client.hdel(published.keys.spaces, space_of(built))
    for name, digest in (("RollbackSnapshot", ""), ("ActivateSnapshot", digest_of(built))):
        refused = await verb(control, published, name, digest)
        assert refused.code is Code.FAILED_PRECONDITION
        assert (
            refused.text
            == f"the store does not hold the listeners of snapshot {digest_of(built)[:12]}; publish it again"
        )
    published.publish(built)
    assert (await verb(control, published, "RollbackSnapshot")).code is Code.OK


async def test_an_unreadable_pointer_is_told(control: grpc.aio.Channel, published: Store, second: Path) -> None:
    """Status answers all the same; what needs the pointer says how to repair it; publishing does."""
    published.client.set(published.keys.pointer, b"{")
    assert (await verb(control, published, "GetStatus")).code is Code.OK
    refused = await verb(control, published, "RollbackSnapshot")
    assert (refused.code, refused.text.partition(";")[0]) == (
        Code.FAILED_PRECONDITION,
        "the pointer in Redis cannot be read",
    )
    assert published.publish(second).pointer.sequence == 1


async def test_what_a_newer_version_wrote_is_read(control: grpc.aio.Channel, published: Store, built: Path) -> None:
    """Fields that this version does not know are passed over, in the pointer and in the spaces."""
    client, keys = published.client, published.keys
    said = json.loads(client.get(keys.pointer) or b"")
    said["before"] = [one | {"new": 1} for one in said["before"]]
    client.set(keys.pointer, json.dumps(said | {"new": {}}))
    for name, space in client.hgetall(keys.spaces).items():
        client.hset(keys.spaces, name, json.dumps(json.loads(space) | {"new": []}))
    assert (await verb(control, published, "RollbackSnapshot")).code is Code.OK
    assert published.publish(built).loaded == 0
