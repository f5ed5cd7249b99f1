"""Stock clients: health, reflection and buf get along with a served port without code of ours."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conftest import Served, Store, serving
from tests.wire import controlling, eventually

SERVICES = ("mantel.home.v1.HomeService", "mantel.events.v1.EventService", "mantel.listeners.v1.ListenerService")
ADMIN = "mantel.admin.v1.AdminService"
BUF = Path(sys.executable).with_name("buf")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    """What the stock health client hears, without a token."""
    stub = health_pb2_grpc.HealthStub(channel)
    reply: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=service))  # type: ignore[attr-defined]  # not in the stubs
    return reply.status


async def reflect(channel: grpc.aio.Channel, **question: Any) -> reflection_pb2.ServerReflectionResponse:
    """What the stock reflection client hears, without a token."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # takes either kind
    asked = iter([reflection_pb2.ServerReflectionRequest(**question)])
    async for reply in stub.ServerReflectionInfo(asked):
        assert isinstance(reply, reflection_pb2.ServerReflectionResponse)
        return reply
    raise AssertionError


async def buf(served: Served, request: dict[str, object], *headers: str) -> tuple[int, dict[str, object]]:
    """What `buf curl` prints with the schema from reflection: exit code and JSON."""
    process = await asyncio.create_subprocess_exec(
        *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
        *(word for header in headers for word in ("-H", header)),
        *("-d", json.dumps(request), f"http://{served.target}/mantel.home.v1.HomeService/GetHome"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out or err)


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_follows_the_first_snapshot(store: Store, built: Path, service: str) -> None:
    """NOT_SERVING before a snapshot is published and SERVING after, as a whole and by service; no token is needed."""
    async with serving(store.state, store.url, ready=False) as served:
        assert await health(served.channel, service) == NOT_SERVING

        async def up() -> bool:
            return await health(served.channel, service) == SERVING

        await asyncio.to_thread(store.publish, built)
        await eventually(up)


async def test_health_of_the_control_port_needs_no_snapshot(store: Store) -> None:
    """An operator reaches the control plane before anything is published."""
    async with controlling(store.state, store.url) as channel:
        assert [await health(channel, service) for service in ("", ADMIN)] == [SERVING, SERVING]


async def test_health_of_an_unknown_service_is_not_found(standing: Served) -> None:
    """The data port does not answer for the control plane."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await health(standing.channel, ADMIN)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_retired_server_says_so_and_still_answers(served: Served) -> None:
    """While it drains: NOT_SERVING for load balancers, pages for those who come even so."""
    await served.plane.transport.retire()
    assert [await health(served.channel, service) for service in ("", *SERVICES)] == [NOT_SERVING] * 4
    assert (await served.get_home("u0000001")).shelves


async def test_reflection_lists_every_service(standing: Served) -> None:
    """Those of the data port, health and reflection itself."""
    reply = await reflect(standing.channel, list_services="*")
    assert {one.name for one in reply.list_services_response.service} == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_describes_get_home(standing: Served) -> None:
    """A client without our files learns the methods, and what they take and answer."""
    reply = await reflect(standing.channel, file_containing_symbol=SERVICES[0])
    files = [FileDescriptorProto.FromString(raw) for raw in reply.file_descriptor_response.file_descriptor_proto]
    (file,) = (one for one in files if one.name == "protos/home/v1/home.proto")
    method = next(one for one in file.service[0].method if one.name == "GetHome")
    assert (method.input_type, method.output_type) == (
        ".mantel.home.v1.GetHomeRequest",
        ".mantel.home.v1.GetHomeResponse",
    )


async def test_reflection_can_be_switched_off(published: Store) -> None:
    """With `reflection` off nobody reads the schema from the port; pages are served all the same."""
    async with serving(published.state, published.url, reflection="off") as served:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await reflect(served.channel, list_services="*")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await served.get_home("u0000001")).shelves


async def test_buf_curl_gets_a_page_as_the_demo_shows(standing: Served) -> None:
    """`buf curl` with the schema from reflection and a token prints the page that any client gets."""
    code, page = await buf(standing, {"user_id": "u0000001"}, f"authorization: Bearer {standing.token}")
    ours = await standing.get_home("u0000001")
    assert code == 0
    assert isinstance(page["shelves"], list)
    assert [shelf["title"] for shelf in page["shelves"]] == [shelf.title for shelf in ours.shelves]
    assert page["shelves"][0]["items"][0]["itemId"] == ours.shelves[0].items[0].item_id


async def test_buf_curl_understands_what_is_wrong(standing: Served) -> None:
    """The status and its details arrive readable."""
    code, error = await buf(standing, {"user_id": "u:1"}, f"authorization: Bearer {standing.token}")
    assert code != 0
    assert error["code"] == "invalid_argument"
    assert error["message"] == "user_id: must be 1-128 of [A-Za-z0-9_.-]"
    assert "google.rpc.BadRequest" in str(error["details"])
    code, error = await buf(standing, {"user_id": "u0000001"})
    assert (code != 0, error["code"]) == (True, "unauthenticated")
