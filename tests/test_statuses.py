"""Who may call which method of the contract, and the documented status of everything else."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from protos.admin.v1 import admin_pb2
from protos.home.v1 import home_pb2
from server.identity import Role, add_principal, remove_principal
from tests.conftest import Served, Store, serving
from tests.wire import (
    CONTROL_FILES,
    DATA_FILES,
    GET_HOME,
    Metadata,
    Status,
    bearer,
    call,
    controlling,
    eventually,
    methods,
)

Code = grpc.StatusCode
GOOD = home_pb2.GetHomeRequest(user_id="u0000001")
ADMIN = "/mantel.admin.v1.AdminService/"
EXPERIMENTS = "/mantel.experiments.v1.ExperimentService/"
PROMOTIONS = "/mantel.promotions.v1.PromotionService/"
DATA = [path for path, _ in methods(*DATA_FILES)]
CONTROL = [path for path, _ in methods(*CONTROL_FILES)]
SERVED = {
    *(GET_HOME.replace("GetHome", name) for name in ("GetHome", "GetShelf", "RankItems", "ExplainHome")),
    "/mantel.events.v1.EventService/RecordEvents",
    *(f"/mantel.listeners.v1.ListenerService/{name}" for name in ("GetPreferences", "UpdatePreferences", "Forget")),
    *(ADMIN + name for name in ("GetStatus", "ListSnapshots", "ActivateSnapshot", "RollbackSnapshot")),
    ADMIN + "RolloverWorkers",
    *(PROMOTIONS + name for name in ("ApplyBook", "GetBook", "ListPromotions", "GetStats", "ConfirmFeed")),
    *(EXPERIMENTS + name for name in ("ApplyBook", "GetBook", "ListExperiments", "ExplainAssignment")),
}
UNAUTHENTICATED: dict[str, Metadata] = {
    "no token": (),
    "an unknown token": bearer("x" * 43),
    "an empty token": bearer(""),
    "no scheme": (("authorization", "TOKEN"),),
    "a scheme in lower case": (("authorization", "bearer TOKEN"),),
    "another scheme": (("authorization", "Basic TOKEN"),),
    "two spaces": (("authorization", "Bearer  TOKEN"),),
    "two values": bearer("TOKEN") * 2,
    "a good and a bad value": bearer("TOKEN") + bearer("x" * 43),
    "another header": (("x-authorization", "Bearer TOKEN"), ("x-principal", "developer")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Both planes over one state directory; each role has a principal that holds all roles but this one."""

    data: grpc.aio.Channel
    control: grpc.aio.Channel
    developer: Metadata
    lacking: dict[Role, Metadata]

    async def call(self, path: str, metadata: Metadata) -> Status:
        """Calls a method with an empty request, on the port that it belongs to."""
        return await call(self.control if path in CONTROL else self.data, path, metadata=metadata)


@pytest_asyncio.fixture(loop_scope="session")
async def planes(published: Store) -> AsyncIterator[Planes]:
    """Both planes of the small world."""
    state, url = published.state, published.url
    tokens = {role: add_principal(state, f"no-{role}", [one for one in Role if one is not role]) for role in Role}
    async with serving(state, url) as served, controlling(state, url) as control:
        lacking = {role: bearer(token) for role, token in tokens.items()}
        yield Planes(data=served.channel, control=control, developer=served.metadata, lacking=lacking)


def role_of(path: str) -> Role:
    """The role that a method needs."""
    if path.startswith(EXPERIMENTS):
        return Role.EXPERIMENTER
    if path.startswith(PROMOTIONS):
        return Role.PROMOTER
    if path in CONTROL:
        return Role.ADMIN
    return Role.EXPLAIN if path.endswith("/ExplainHome") else Role.CLIENT


async def test_every_method_is_served_or_unimplemented(planes: Planes) -> None:
    """None is missing: what a later version serves says so, in words of ours."""
    answers = {path: await planes.call(path, planes.developer) for path in DATA + CONTROL}
    later = {path for path, status in answers.items() if status.code is Code.UNIMPLEMENTED}
    assert later == answers.keys() - SERVED
    assert {answers[path].reason for path in later} == {"UNIMPLEMENTED"}
    assert {answers[path].code for path in SERVED} <= {Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION}


async def test_no_method_is_answered_without_its_role(planes: Planes) -> None:
    """Every role but the one a method needs: PERMISSION_DENIED, naming the role; so on either port."""
    for path in DATA + CONTROL:
        status = await planes.call(path, planes.lacking[role_of(path)])
        assert (path, status.code) == (path, Code.PERMISSION_DENIED)
        assert status.text == f"needs the role {role_of(path)}"


async def test_no_method_is_answered_to_a_stranger(planes: Planes) -> None:
    """Without a token: UNAUTHENTICATED, whether the method is served or not."""
    codes = {path: (await planes.call(path, ())).code for path in DATA + CONTROL}
    assert set(codes.values()) == {Code.UNAUTHENTICATED}


async def test_a_role_of_the_other_port_opens_nothing(planes: Planes) -> None:
    """A principal without `client`, though admin, gets no page; one without `admin` gets it."""
    assert (
        await call(planes.data, GET_HOME, GOOD, metadata=planes.lacking[Role.CLIENT])
    ).code is Code.PERMISSION_DENIED
    assert (await call(planes.data, GET_HOME, GOOD, metadata=planes.lacking[Role.ADMIN])).code is Code.OK


async def test_each_port_knows_its_own_methods_only(planes: Planes) -> None:
    """A method of the other port, or of nobody, is UNIMPLEMENTED: gRPC itself does not find it."""
    for channel, paths in ((planes.data, CONTROL), (planes.control, DATA)):
        for path in (*paths, "/mantel.home.v1.HomeService/Nothing", "/nobody/Nothing"):
            status = await call(channel, path, metadata=planes.developer)
            assert (path, status.code, status.reason) == (path, Code.UNIMPLEMENTED, "")


async def test_admin_verbs_have_their_statuses(planes: Planes, published: Store) -> None:
    """No digest: INVALID_ARGUMENT. One of nothing: NOT_FOUND. Nothing to go back to: FAILED_PRECONDITION."""

    async def activate(digest: str) -> Status:
        request = admin_pb2.ActivateSnapshotRequest(digest=digest)
        return await call(planes.control, f"{ADMIN}ActivateSnapshot", request, metadata=planes.developer)

    assert [(await activate(bad)).fields for bad in ("", "1234567", "../../..", "*" * 64)] == [("digest",)] * 4
    assert (await activate("0" * 64)).code is Code.NOT_FOUND
    assert (await planes.call(f"{ADMIN}RollbackSnapshot", planes.developer)).code is Code.FAILED_PRECONDITION
    published.client.shutdown(nosave=True)
    lost = await planes.call(f"{ADMIN}RollbackSnapshot", planes.developer)
    assert (lost.code, lost.text) == (Code.UNAVAILABLE, "the store cannot be reached")
    assert (await planes.call(f"{ADMIN}GetStatus", planes.developer)).code is Code.OK


@pytest.mark.parametrize("metadata", UNAUTHENTICATED.values(), ids=UNAUTHENTICATED)
async def test_who_cannot_be_known_is_unauthenticated(standing: Served, metadata: Metadata) -> None:
    """Exactly one `authorization: Bearer <token>` with a known token names a caller; nothing else does."""
    sent = tuple((name, value.replace("TOKEN", standing.token)) for name, value in metadata)
    status = await call(standing.channel, GET_HOME, GOOD, metadata=sent)
    assert (status.code, status.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert standing.token not in status.text


async def test_principals_come_and_go_while_serving(published: Store) -> None:
    """Added, a token works; removed, it is UNAUTHENTICATED: the server follows the file, and others notice nothing."""
    async with serving(published.state, published.url) as served:
        metadata = bearer(add_principal(published.state, "app", [Role.CLIENT]))

        async def answered(code: grpc.StatusCode) -> bool:
            return (await call(served.channel, GET_HOME, GOOD, metadata=metadata)).code is code

        await eventually(lambda: answered(Code.OK))
        await asyncio.sleep(0.02)  # the system's file times are coarse
        remove_principal(published.state, "app")
        await eventually(lambda: answered(Code.UNAUTHENTICATED))
        assert (await call(served.channel, GET_HOME, GOOD, metadata=served.metadata)).code is Code.OK


async def test_a_broken_file_of_principals_changes_nothing(published: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A tokens.json that cannot be read while serving keeps the principals as they were."""
    metadata = bearer(add_principal(published.state, "app", [Role.CLIENT]))
    async with serving(published.state, published.url) as served:
        published.state.tokens.write_text("[{")
        await eventually(lambda: "the principals stay as they were" in caplog.text)
        assert (await call(served.channel, GET_HOME, GOOD, metadata=metadata)).code is Code.OK


async def test_no_page_before_the_first_snapshot(store: Store) -> None:
    """UNAVAILABLE, which clients retry; what is wrong whatever the state is INVALID_ARGUMENT even so."""
    async with serving(store.state, store.url, ready=False) as served:
        status = await call(served.channel, GET_HOME, GOOD, metadata=served.metadata)
        assert (status.code, status.text) == (Code.UNAVAILABLE, "no snapshot is published yet")
        assert (await call(served.channel, GET_HOME, metadata=served.metadata)).code is Code.INVALID_ARGUMENT


async def test_removed_operators_lose_the_control_port(published: Store) -> None:
    """The control plane follows the file too: who was removed is UNAUTHENTICATED there as well."""
    metadata = bearer(add_principal(published.state, "operator", [Role.ADMIN]))
    async with controlling(published.state, published.url) as channel:
        assert (await call(channel, f"{ADMIN}GetStatus", metadata=metadata)).code is Code.OK
        await asyncio.sleep(0.02)  # the system's file times are coarse
        remove_principal(published.state, "operator")
        assert (await call(channel, f"{ADMIN}GetStatus", metadata=metadata)).code is Code.UNAUTHENTICATED
