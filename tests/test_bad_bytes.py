"""Bad bytes over the wire: whatever comes, the status is a documented one and the next caller notices nothing."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.home.v1 import home_pb2
from tests.conftest import Served
from tests.wire import GET_HOME, call, get_home, page_of

INVALID, OK = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OK
Request = home_pb2.GetHomeRequest
FULL = Request(
    user_id="u0000001",
    surface="home",
    session_id="s1",
    context=home_pb2.Context(
        market="GB", locale="en", device="phone", allow_explicit=True, local_time="2026-11-20T08:30"
    ),
    page_size=2,
    exclude_item_ids=["t0000001"],
    hidden_ids=["t0000002"],
).SerializeToString()
GOOD = Request(user_id="u0000001").SerializeToString()
VARINT, BYTES, GROUP = 0, 2, 3


def tag(number: int, kind: int) -> bytes:
    """The tag of a field whose number needs no more than two bytes."""
    word = number << 3 | kind
    return bytes([word]) if word < 128 else bytes([word & 127 | 128, word >> 7])


def blob(number: int, size: int) -> bytes:
    """A field of bytes with a length of two bytes."""
    return tag(number, BYTES) + bytes([size & 127 | 128, size >> 7]) + b"x" * size


MALFORMED = {
    "garbage": b"\xff\xfe\xfd",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "length beyond the end": tag(1, BYTES) + b"\x7fu1",
    "endless varint": tag(5, VARINT) + b"\xff" * 11,
    "field number 0": b"\x00\x01" + GOOD,
    "no UTF-8": tag(1, BYTES) + b"\x02\xc3\x28",
    "surrogate": tag(1, BYTES) + b"\x03\xed\xa0\x80",
    "group without an end": GOOD + tag(90, GROUP),
    "groups 200 deep": GOOD + tag(90, GROUP) * 200 + tag(90, GROUP + 1) * 200,
}
UNKNOWN = {
    "one field": GOOD + blob(90, 4097),
    "many fields": GOOD + blob(91, 128) * 40,
    "inside the context": GOOD + tag(4, BYTES) + bytes([5000 & 127 | 128, 5000 >> 7]) + blob(90, 4996),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
async def test_bytes_that_are_no_message_are_malformed(standing: Served, raw: bytes) -> None:
    """INVALID_ARGUMENT with a fixed text that names no parser."""
    status = await get_home(standing, raw)
    assert (status.code, status.fields) == (INVALID, ("",))
    assert status.text == "malformed: the bytes are no message of this method"


async def test_a_truncated_request_is_refused_or_whole(standing: Served) -> None:
    """Wherever a request is cut: INVALID_ARGUMENT, or a page where the cut falls between two fields."""
    codes = [(await get_home(standing, FULL[:cut])).code for cut in range(len(FULL) + 1)]
    assert set(codes) == {INVALID, OK}
    assert codes.count(OK) == 7  # after each of its seven fields


@pytest.mark.parametrize("raw", [tag(1, VARINT) + b"\x01", tag(1, 5) + b"u001", tag(1, 1) + b"u0000001"])
async def test_a_field_of_the_wrong_wire_type_is_absent(standing: Served, raw: bytes) -> None:
    """A user_id that is a number is no user_id."""
    assert (await get_home(standing, raw)).fields == ("user_id",)


@pytest.mark.parametrize("raw", UNKNOWN.values(), ids=UNKNOWN)
async def test_unknown_fields_have_a_limit(standing: Served, raw: bytes) -> None:
    """More than 4 kB that this version does not know is INVALID_ARGUMENT; they cannot make a free parse."""
    status = await get_home(standing, raw)
    assert (status.code, status.text) == (INVALID, "unknown fields of more than 4096 bytes")


async def test_a_newer_client_is_understood(standing: Served) -> None:
    """Unknown fields below the limit change nothing."""
    assert page_of(await get_home(standing, GOOD + blob(90, 4000))) == page_of(await get_home(standing, GOOD))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_an_oversized_message_is_refused(standing: Served, compression: grpc.Compression) -> None:
    """RESOURCE_EXHAUSTED by its size, and by the size that a small one unpacks to."""
    raw = Request(user_id="u0000001", exclude_item_ids=["t" * 128] * 20_000)
    status = await call(standing.channel, GET_HOME, raw, metadata=standing.metadata, compression=compression)
    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED


text = st.text(max_size=140)
messages = st.builds(
    Request,
    user_id=st.just("u0000001") | text,
    surface=st.sampled_from(["", "home", "evaluation"]) | text,
    session_id=text,
    context=st.builds(
        home_pb2.Context,
        market=st.sampled_from(["", "GB"]) | text,
        locale=st.sampled_from(["", "de"]) | text,
        device=text,
        allow_explicit=st.booleans(),
        local_time=text,
    ),
    page_size=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 50),
    page_token=st.just("") | text,
    exclude_item_ids=st.lists(text, max_size=40),
    hidden_ids=st.lists(text, max_size=40),
).map(Request.SerializeToString)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with one byte changed."""
    raw = bytearray(draw(messages))
    place = draw(st.integers(0, len(raw)))
    raw[place : place + 1] = draw(st.binary(max_size=2))
    return bytes(raw)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=400) | messages | damaged())
async def test_whatever_comes_is_answered_as_documented(standing: Served, raw: bytes) -> None:
    """Any bytes: a page or INVALID_ARGUMENT with an id, and the next good request gets the page that it always got."""
    before = page_of(await get_home(standing, GOOD))
    status = await get_home(standing, raw)
    assert status.code is OK or (status.code is INVALID and status.fields and status.request_id)
    assert page_of(await get_home(standing, GOOD)) == before
