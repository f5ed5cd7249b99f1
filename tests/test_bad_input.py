"""Bad input over the wire: the documented status, the path of each wrong field, and never the value."""

from typing import Any

import grpc
import pytest

from protos.home.v1 import home_pb2
from server.identity import Role, add_principal
from tests.conftest import Served, Store, serving
from tests.wire import bearer, get_home

INVALID, OK = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK
Request = home_pb2.GetHomeRequest


def asked(**fields: Any) -> Request:
    """A good request but for these fields."""
    return Request(**{"user_id": "u0000001", **fields})


def where(**fields: Any) -> Request:
    """A good request but for these fields of its context."""
    return asked(context=home_pb2.Context(**fields))


def forced(count: int) -> Request:
    """A request that forces so many arms."""
    return asked(experiment_overrides=[home_pb2.ExperimentOverride(experiment="none", arm="b")] * count)


NO_IDS = ["", "u" * 129, "u:1", "u 1", "u\0", "u1\n", "ü1", "u\u0301", "{u}", "*", "../u", "\U0001f3b5"]  # fmt: skip
TIMES = ["08:30", "2026-11-20", "2026-11-20 08:30", "2026-13-20T08:30", "2026-02-30T08:30", "2026-11-20T24:01",
         "2026-11-20T08:30Z", "2026-11-20T08:30:00.5", "\uff12026-11-20T08:30"]  # fmt: skip
WRONG: dict[str, list[Request]] = {
    "user_id": [asked(user_id=bad) for bad in NO_IDS],
    "session_id": [asked(session_id=bad) for bad in NO_IDS if bad],
    "surface": [asked(surface=bad) for bad in ("nowhere", "Home", "home ", "__proto__")],
    "context.market": [where(market=bad) for bad in ("XX", "gb", "GBR", "G", "GB ", "\uff27\uff22")],
    "context.locale": [where(locale=bad) for bad in ("e", "en_GB", "en-", "-en", "en-GB\n", "en-toolongtag", "日本")],
    "context.device": [where(device=bad) for bad in ("d" * 65, "ü" * 33)],
    "context.local_time": [where(local_time=bad) for bad in TIMES],
    "page_size": [asked(page_size=bad) for bad in (-1, 51, -(2**31), 2**31 - 1)],
    "page_token": [asked(page_token="bm90IG91cnM=")],  # noqa: S106  # not ours
    "exclude_item_ids": [asked(exclude_item_ids=[f"t{n}" for n in range(1001)])],
    "exclude_item_ids[1]": [asked(exclude_item_ids=["t1", bad]) for bad in ("", "t" * 129, "ü" * 65)],
    "hidden_ids": [asked(hidden_ids=[f"t{n}" for n in range(1001)])],
    "hidden_ids[0]": [asked(hidden_ids=[bad, "t1"]) for bad in ("", "t" * 129, "ü" * 65)],
    "experiment_overrides[0].experiment": [forced(1)],
}
CASES = [
    pytest.param(field, bad, id=f"{field}-{n}") for field, all_bad in WRONG.items() for n, bad in enumerate(all_bad)
]
AT_THE_LIMIT = {
    "user_id": asked(user_id="aZ09_.-".ljust(128, "x")),
    "surface": asked(surface="evaluation"),
    "context": where(market="ZW", locale="zh-Hant-TW-x-a", device="ü" * 32, local_time="2024-02-29T23:59:59"),
    "page_size": asked(page_size=50),
    "lists": asked(
        exclude_item_ids=[f"{n:0>128}" for n in range(1000)], hidden_ids=[f"{n:0>126}ü" for n in range(1000)]
    ),
}


@pytest.mark.parametrize(("field", "request_"), CASES)
async def test_a_wrong_field_is_named(standing: Served, field: str, request_: Request) -> None:
    """INVALID_ARGUMENT with the path of the wrong field, and of no other."""
    status = await get_home(standing, request_)
    assert (status.code, status.reason, status.fields) == (INVALID, "INVALID_INPUT", (field,))
    assert status.text.startswith(f"{field}: ")


@pytest.mark.parametrize("request_", AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
async def test_what_stands_at_a_limit_is_served(standing: Served, request_: Request) -> None:
    """The longest, the largest and the most that the contract allows get a page."""
    assert (await get_home(standing, request_)).code is OK


async def test_all_wrong_fields_are_named_at_once(standing: Served) -> None:
    """A client learns of every mistake from one answer."""
    request = Request()
    for bad in (forced(2), *(requests[0] for requests in WRONG.values())):
        request.MergeFrom(bad)
    request.user_id = "u:1"
    singular = {field for field in WRONG if "[" not in field}
    assert set((await get_home(standing, request)).fields) >= singular


@pytest.mark.parametrize("count", [16, 17, 2000])
async def test_thousands_of_wrong_fields_are_still_one_answer(standing: Served, count: int) -> None:
    """The first 16 are named and the rest counted: a client refuses longer trailers and sees RESOURCE_EXHAUSTED."""
    lists = [""] * min(count, 1000), [""] * max(0, count - 1000)
    status = await get_home(standing, asked(exclude_item_ids=lists[0], hidden_ids=lists[1]))
    assert status.code is INVALID
    assert status.fields == tuple(f"exclude_item_ids[{n}]" for n in range(16))
    assert status.text.endswith(f"; and {count - 16} more") == (count > 16)


async def test_values_are_never_echoed(standing: Served) -> None:
    """Neither the text nor the details of a status repeat what the client sent."""
    marker = "Zq7:Xv9"
    request = Request(
        user_id=marker,
        surface=marker,
        session_id=marker,
        context=home_pb2.Context(market=marker, locale=marker, device=marker * 10, local_time=marker),
        page_token=marker,
        exclude_item_ids=[marker * 20],
        hidden_ids=[marker * 20],
        experiment_overrides=[home_pb2.ExperimentOverride(experiment=marker, arm=marker)],
    )
    status = await get_home(standing, request)
    assert len(status.fields) == 11
    assert marker.encode() not in status.wire + status.text.encode()


async def test_at_most_16_arms_can_be_forced(standing: Served) -> None:
    """The role `force` does not lift the limit."""
    status = await get_home(standing, forced(17))
    assert (status.code, status.fields[0]) == (INVALID, "experiment_overrides")


@pytest.mark.parametrize("count", [1, 17])
async def test_forcing_an_arm_needs_the_role(published: Store, count: int) -> None:
    """Overrides from a caller without the role `force` are PERMISSION_DENIED, not passed over."""
    token = add_principal(published.state, "app", [role for role in Role if role is not Role.FORCE])
    async with serving(published.state, published.url) as served:
        status = await get_home(served, forced(count), bearer(token))
        assert (status.code, status.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_REFUSED")
        assert (await get_home(served, asked(), bearer(token))).code is OK
