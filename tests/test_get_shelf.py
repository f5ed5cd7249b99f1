"""GetShelf: one shelf, as long as asked."""

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from protos.home.v1 import home_pb2, home_pb2_grpc
from tests.conftest import Served

if TYPE_CHECKING:
    from protos.home.v1.home_pb2_grpc import HomeServiceAsyncStub


async def get_shelf(served: Served, **fields: Any) -> home_pb2.GetShelfResponse:
    """A shelf, asked for by the development token's holder."""
    home: HomeServiceAsyncStub = home_pb2_grpc.HomeServiceStub(served.channel)
    return await home.GetShelf(home_pb2.GetShelfRequest(**fields), metadata=served.metadata)


async def test_a_shelf_goes_on_where_the_page_ends(standing: Served) -> None:
    """The first twelve are what the shelf shows when nothing stands above it; then it goes on, nothing twice."""
    own = await get_shelf(standing, user_id="u0000001", shelf_id="picked-for-you")
    more = await get_shelf(standing, user_id="u0000001", shelf_id="picked-for-you", page_size=60)
    ids = [item.item_id for item in more.shelf.items]
    assert len(own.shelf.items) == 12
    assert 12 < len(ids) <= 60
    assert len(set(ids)) == len(ids)
    assert ids[:12] == [item.item_id for item in own.shelf.items]
    assert more.shelf.title == "Picked for you"
    assert more.snapshot_version
    assert more.request_id


async def test_a_shelf_that_cannot_be_filled_is_empty(standing: Served) -> None:
    """A stranger has no taste: cold_start, OK, and no items."""
    found = await get_shelf(standing, user_id="nobody", shelf_id="picked-for-you")
    assert found.cold_start
    assert not found.shelf.items


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"user_id": "u1"}, ["shelf_id"]),
        ({"user_id": "u1", "shelf_id": "no-such-shelf"}, ["shelf_id"]),
        ({"user_id": "u1", "shelf_id": "unplayed", "surface": "nowhere"}, ["surface"]),
        ({"user_id": "u:1", "shelf_id": "discover", "page_size": 201}, ["user_id", "page_size"]),
        ({"user_id": "u1", "shelf_id": "discover", "page_size": -1}, ["page_size"]),
        ({"user_id": "u1", "shelf_id": "discover", "page_token": "x"}, ["page_token"]),
    ],
)
async def test_what_is_wrong_is_named(standing: Served, fields: dict[str, Any], wrong: list[str]) -> None:
    """INVALID_ARGUMENT with every wrong field's path."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await get_shelf(standing, **fields)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error.value)  # type: ignore[arg-type]  # an AioRpcError has what it reads
    assert status is not None
    request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(request) for detail in status.details)
    assert [violation.field for violation in request.field_violations] == wrong
