"""ExperimentService over the control port: applying, stale etags, listing, explaining, and mending what is spoiled."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict

from features.books import LEFT_BEHIND_S
from protos.experiments.v1 import experiments_pb2
from ranking.experiments.spec import Spec
from server.experiments import KIND
from server.identity import Role, add_principal, development_token
from tests.books import BY_FILE, UNCAPPED, poison, spec_of
from tests.conftest import Store, serving
from tests.operation import soon
from tests.wire import Status, bearer, call, controlling

Code = grpc.StatusCode
SERVICE = "/mantel.experiments.v1.ExperimentService/"


@pytest_asyncio.fixture(loop_scope="session")
async def control(store: Store) -> AsyncIterator[grpc.aio.Channel]:
    """The control plane of an empty state directory."""
    async with controlling(store.state, store.url) as channel:
        yield channel


def said(spec: Spec) -> experiments_pb2.Spec:
    """A spec as the contract says it."""
    return ParseDict(spec.model_dump(mode="json", exclude_none=True), experiments_pb2.Spec())


async def verb(control: grpc.aio.Channel, store: Store, request: Any) -> Status:
    """Calls the method of a request, as the developer."""
    name = type(request).__name__.removesuffix("Request")
    return await call(control, SERVICE + name, request, metadata=bearer(development_token(store.state)))


async def apply(
    control: grpc.aio.Channel, store: Store, spec: experiments_pb2.Spec, **fields: Any
) -> experiments_pb2.ApplyBookResponse:
    """Applies a spec."""
    request = experiments_pb2.ApplyBookRequest(spec=spec, **fields)
    status = await verb(control, store, request)
    assert status.code is Code.OK, status.text
    return experiments_pb2.ApplyBookResponse.FromString(status.answer)


async def book_of(control: grpc.aio.Channel, store: Store) -> experiments_pb2.Book:
    """The book in force."""
    status = await verb(control, store, experiments_pb2.GetBookRequest())
    return experiments_pb2.GetBookResponse.FromString(status.answer).book


async def test_a_book_is_applied_and_answered_as_it_was_said(control: grpc.aio.Channel, store: Store) -> None:
    """Version, sequence, who and when; the spec comes back field by field; what is left behind ends in a day."""
    assert await book_of(control, store) == experiments_pb2.Book()
    first = (await apply(control, store, said(spec_of(BY_FILE)))).book
    assert first == await book_of(control, store)
    assert (first.sequence, first.applied_by, len(first.version)) == (1, "developer", 64)
    assert first.spec == said(spec_of(BY_FILE))
    second = (await apply(control, store, said(spec_of(BY_FILE, UNCAPPED)), etag=first.version)).book
    assert second.sequence == 2
    assert 0 < int(store.client.ttl(store.keys.book(KIND, first.version))) <= LEFT_BEHIND_S
    lasting = [key for key in store.client.scan_iter("mantel:book:*") if store.client.ttl(key) == -1]
    assert len(lasting) == 4  # pointer, JSON, two arrays: that of the first book is in the second too
    again = (await apply(control, store, said(spec_of(BY_FILE, UNCAPPED)), etag=second.version)).book
    assert again == second


async def test_a_stale_etag_is_aborted(control: grpc.aio.Channel, store: Store) -> None:
    """Of two who started from one book the second is told, and nothing is lost."""
    first = (await apply(control, store, said(spec_of(BY_FILE)))).book
    for etag in ("", "0" * 64):
        request = experiments_pb2.ApplyBookRequest(spec=said(spec_of(UNCAPPED)), etag=etag)
        assert (await verb(control, store, request)).code is Code.ABORTED
    assert await book_of(control, store) == first


async def test_checking_changes_nothing(control: grpc.aio.Channel, store: Store) -> None:
    """`validate_only` answers what would be held and served, or what is wrong."""
    found = await apply(control, store, said(spec_of(BY_FILE)), validate_only=True)
    assert [(one.state, one.live_buckets) for one in found.experiments] == [("running", 1_000_000)]
    assert not found.book.version
    assert await book_of(control, store) == experiments_pb2.Book()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"arms": [{"key": "a"}, {"key": "b", "params": {"mmr_lambda": 0.5}}]}, "arms[1].params.mmr_lambda"),
        ({"arms": [{"key": "a"}, {"key": "b", "params": {"page_order": 7}}]}, "arms[1].params.page_order"),
        ({"arms": [{"key": "a"}, {"key": "b", "params": {"page_order": None}}]}, "arms[1].params.page_order"),
        ({"arms": [{"key": "a"}, {"key": "b", "params": {"page_order": [1]}}]}, "arms[1].params.page_order"),
        ({"ramp": 2}, "ramp"),
        ({"reserved": 0}, "reserved"),
    ],
)
async def test_what_is_wrong_is_named_by_its_path(
    control: grpc.aio.Channel, store: Store, change: dict[str, Any], field: str
) -> None:
    """INVALID_ARGUMENT with google.rpc.BadRequest."""
    spec = said(spec_of(BY_FILE))
    one = spec.experiments[0]
    for name, value in change.items():
        one.ClearField(name)  # type: ignore[arg-type]  # a field's name
        ParseDict({name: value}, one)
    status = await verb(control, store, experiments_pb2.ApplyBookRequest(spec=spec))
    assert (status.code, status.fields) == (Code.INVALID_ARGUMENT, (f"experiments[0].{field}",))


async def test_a_number_that_is_none_is_refused(control: grpc.aio.Channel, store: Store) -> None:
    """NaN and infinity pass protobuf, but no JSON."""
    spec = said(spec_of(BY_FILE))
    spec.experiments[0].arms[1].params["shelf_likeness"].number_value = float("nan")
    status = await verb(control, store, experiments_pb2.ApplyBookRequest(spec=spec))
    assert (status.code, status.fields) == (Code.INVALID_ARGUMENT, ("spec",))


async def test_what_runs_is_listed(control: grpc.aio.Channel, store: Store) -> None:
    """State, what is held and served, arms; and of each layer what is left."""
    half = {**BY_FILE, "reserved": 0.5, "ramp": 0.0}
    book = (await apply(control, store, said(spec_of(half, {**UNCAPPED, "concluded": True})))).book
    status = await verb(control, store, experiments_pb2.ListExperimentsRequest())
    found = experiments_pb2.ListExperimentsResponse.FromString(status.answer)
    assert found.version == book.version
    told = [(one.key, one.state, one.reserved_buckets, one.live_buckets) for one in found.experiments]
    assert told == [("by-file", "reserved", 500_000, 0), ("uncapped", "concluded", 0, 0)]
    assert [(one.id, one.free_buckets) for one in found.layers] == [("order", 500_000), ("variety", 1_000_000)]
    assert found.experiments[0].arms[1].params["page_order"].string_value == "file"


async def test_an_assignment_is_explained(control: grpc.aio.Channel, store: Store) -> None:
    """The bucket, its holder, the arm with its params, or why there is none."""
    phones = {**UNCAPPED, "targeting": {"devices": ["phone"]}}
    await apply(control, store, said(spec_of({**BY_FILE, "allow_list": {"me": "treatment"}}, phones)))

    async def outcomes(**fields: Any) -> list[tuple[str, str, str, str]]:
        status = await verb(control, store, experiments_pb2.ExplainAssignmentRequest(**fields))
        found = experiments_pb2.ExplainAssignmentResponse.FromString(status.answer)
        assert all(0 <= one.bucket < 1_000_000 for one in found.outcomes)
        return [
            (one.layer, one.reason, one.experiment, dict(one.params).get("page_order", "")) for one in found.outcomes
        ]

    assert await outcomes(user_id="me") == [
        ("order", "allow_list", "by-file", "file"),
        ("variety", "not_targeted", "uncapped", ""),
    ]
    assert (await outcomes(user_id="me", device="phone"))[1][1] == "bucket"
    status = await verb(control, store, experiments_pb2.ExplainAssignmentRequest(user_id="m e"))
    assert (status.code, status.fields) == (Code.INVALID_ARGUMENT, ("user_id",))


async def test_every_verb_needs_the_role(control: grpc.aio.Channel, store: Store) -> None:
    """Also of an admin."""
    token = add_principal(store.state, "boss", [role for role in Role if role is not Role.EXPERIMENTER])
    for name in ("ApplyBook", "GetBook", "ListExperiments", "ExplainAssignment"):
        assert (await call(control, SERVICE + name, metadata=bearer(token))).code is Code.PERMISSION_DENIED


async def test_a_store_that_is_away_is_told(control: grpc.aio.Channel, store: Store) -> None:
    """UNAVAILABLE, not INTERNAL."""
    development_token(store.state)
    store.client.shutdown(nosave=True)
    for request in (experiments_pb2.GetBookRequest(), experiments_pb2.ApplyBookRequest()):
        assert (await verb(control, store, request)).code is Code.UNAVAILABLE


async def test_a_poisoned_book_is_mended_by_applying_anew(published: Store) -> None:
    """The control plane goes on from the last good book, which workers serve; without one it says so."""
    async with controlling(published.state, published.url) as control:
        poison(published, b"x")
        assert (await verb(control, published, experiments_pb2.GetBookRequest())).code is Code.FAILED_PRECONDITION
        published.client.delete(published.keys.book_pointer(KIND))
        good = (await apply(control, published, said(spec_of(BY_FILE)))).book
        async with serving(published.state, published.url) as served:
            await soon(published.state.book(KIND).exists)
            for raw in (b"x", json.dumps({"format": 1}).encode()):
                poison(published, raw)
                await soon(lambda: served.plane.experiments.refusal)
                assert (await book_of(control, published)).version == good.version
                mended = (await apply(control, published, said(spec_of(BY_FILE)), etag=good.version)).book
                assert mended.version == good.version
                await soon(lambda: not served.plane.experiments.refusal)
                assert served.plane.experiments.version == good.version
