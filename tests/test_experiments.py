"""Experiments at work: arms on pages, forced arms, books that come, go, or are poisoned."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from protos.home.v1 import home_pb2, home_pb2_grpc
from ranking.experiments.applying import EMPTY, apply
from server.experiments import KIND
from server.identity import Role, add_principal
from tests.books import BY_FILE, UNCAPPED, applied, experiment, poison, spec_of
from tests.conftest import Served, Store, serving
from tests.operation import soon
from tests.wire import bearer, get_home, page_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
USERS = [f"u{number:07}" for number in range(1, 33)]


@pytest_asyncio.fixture(loop_scope="session")
async def served(published: Store) -> AsyncIterator[Served]:
    """The small world, served with two experiments, one of each layer."""
    applied(published, BY_FILE, UNCAPPED)
    async with serving(published.state, published.url) as one:
        yield one


def force(*arms: str) -> list[home_pb2.ExperimentOverride]:
    """Overrides, each EXPERIMENT/ARM."""
    return [home_pb2.ExperimentOverride(experiment=one.split("/")[0], arm=one.split("/")[1]) for one in arms]


def asked(user: str, *arms: str, **fields: Any) -> home_pb2.GetHomeRequest:
    """A request that forces arms, in a session of its own."""
    overrides = force(*arms)
    return home_pb2.GetHomeRequest(user_id=user, session_id="s", experiment_overrides=overrides, **fields)


async def page(served: Served, user: str, *arms: str, **fields: Any) -> home_pb2.GetHomeResponse:
    """A page."""
    return page_of(await get_home(served, asked(user, *arms, **fields)))


def shown(page: home_pb2.GetHomeResponse) -> list[tuple[str, list[str]]]:
    """A page's shelves and items."""
    return [(shelf.id, [item.item_id for item in shelf.items]) for shelf in page.shelves]


def told(page: home_pb2.GetHomeResponse | home_pb2.GetShelfResponse | home_pb2.RankItemsResponse) -> set[str]:
    """The assignments of a page."""
    return {f"{one.layer}: {one.experiment}/{one.arm} by {one.reason}" for one in page.assignments}


async def test_a_page_tells_its_arms(served: Served) -> None:
    """Every listener, a stranger too, is in one experiment of each layer here; the book's version stands beside."""
    arms = set()
    for user in [*USERS[:8], "a-stranger"]:
        found = await page(served, user)
        assert {one.layer for one in found.assignments} == {"order", "variety"}
        assert {one.reason for one in found.assignments} == {"bucket"}
        assert found.experiment_book_version == served.plane.experiments.version
        arms |= told(found)
    assert len(arms) == 4


async def test_arms_make_the_page_that_their_params_make(served: Served) -> None:
    """A treatment is what the same params set for explaining make, also of the page and in either layer."""
    for user in USERS[:6]:
        plain = await page(served, user, "by-file/control", "uncapped/control")
        both = await page(served, user, "by-file/treatment", "uncapped/treatment")
        home: Any = home_pb2_grpc.HomeServiceStub(served.channel)
        request = home_pb2.ExplainHomeRequest(
            request=asked(user, "by-file/control", "uncapped/control"),
            set_params={"page_order": "file", "diversity": "plain", "artist_cap": "0"},
        )
        explained = await home.ExplainHome(request, metadata=served.metadata)
        assert shown(explained.response) == shown(plain)
        assert shown(explained.what_if) == shown(both) != shown(plain)


async def test_a_batch_mixes_arms_and_equals_its_rows(served: Served) -> None:
    """32 pages at once, each with its own arms, are those asked for one by one."""
    alone = [await page(served, user) for user in USERS]
    together = await asyncio.gather(*(page(served, user) for user in USERS))
    assert together == alone
    assert len({frozenset(told(one)) for one in alone}) == 4


async def test_explaining_tells_where_a_value_comes_from(served: Served) -> None:
    """Origin EXPERIMENT/ARM for what an arm sets; a param of the request stands above the arm's."""
    home: Any = home_pb2_grpc.HomeServiceStub(served.channel)
    request = home_pb2.ExplainHomeRequest(
        request=asked("u0000001", "uncapped/treatment", "by-file/treatment"), set_params={"artist_cap": "1"}
    )
    found = await home.ExplainHome(request, metadata=served.metadata)
    origins = {one.name: (one.value, one.origin) for one in found.params}
    assert origins["artist_cap"] == ("0", "uncapped/treatment")
    assert origins["diversity"] == ("plain", "uncapped/treatment")
    assert origins["page_order"] == ("file", "by-file/treatment")
    assert origins["row_decay"][1] == "default"
    assert not [name for name in origins if name.endswith((".diversity", ".artist_cap"))]
    what_if = {one.name: (one.value, one.origin) for one in found.what_if_params}
    assert what_if["artist_cap"] == ("1", "request")
    assert what_if["diversity"] == ("plain", "uncapped/treatment")
    assert shown(found.what_if) != shown(found.response)


async def test_a_shelf_and_given_candidates_have_arms_too(served: Served) -> None:
    """GetShelf and RankItems; a list of all that pass is not capped by any arm."""
    home: Any = home_pb2_grpc.HomeServiceStub(served.channel)
    shelf = home_pb2.GetShelfRequest(
        user_id="u0000001", shelf_id="picked-for-you", experiment_overrides=force("uncapped/treatment")
    )
    found = await home.GetShelf(shelf, metadata=served.metadata)
    assert "variety: uncapped/treatment by override" in told(found)
    assert found.experiment_book_version == served.plane.experiments.version
    items = [f"t{number:07}" for number in range(1, 60)]
    ranked = [
        await home.RankItems(
            home_pb2.RankItemsRequest(
                user_id="u0000001", item_ids=items, experiment_overrides=force(f"uncapped/{arm}")
            ),
            metadata=served.metadata,
        )
        for arm in ("control", "treatment")
    ]
    assert len(ranked[0].items) == len(ranked[1].items)
    assert "variety: uncapped/treatment by override" in told(ranked[1])
    near = home_pb2.RankItemsRequest(item_ids=items, query_item_id=items[0])
    assert not told(await home.RankItems(near, metadata=served.metadata))


@pytest.mark.parametrize(
    ("arms", "field"),
    [
        (["none/control"], "experiment_overrides[0].experiment"),
        (["by-file/treatment", "uncapped/none"], "experiment_overrides[1].arm"),
        (["by-file/treatment", "by-file/control"], "experiment_overrides[1].experiment"),
    ],
)
async def test_an_override_of_nothing_is_named(served: Served, arms: list[str], field: str) -> None:
    """INVALID_ARGUMENT with its path."""
    status = await get_home(served, asked("u0000001", *arms))
    assert (status.code, status.fields) == (INVALID, (field,))


async def test_forcing_needs_the_role_and_tells_it_was_forced(served: Served, published: Store) -> None:
    """PERMISSION_DENIED without; with it the reason is override."""
    token = add_principal(published.state, "app", [role for role in Role if role is not Role.FORCE])
    served.plane.reload_identities()
    status = await get_home(served, asked("u0000001", "by-file/control"), bearer(token))
    assert status.code is grpc.StatusCode.PERMISSION_DENIED
    assert "order: by-file/control by override" in told(await page(served, "u0000001", "by-file/control"))


async def test_targeting_looks_at_request_and_record(published: Store, records: dict[str, bytes]) -> None:
    """The market is the request's, else the record's; the segment the record's, which a stranger has not."""
    assert "u0000001" in records
    segments = experiment("segments", "order", {"page_order": "file"}, targeting={"segments": list(range(32))})
    phones = experiment("phones", "variety", {}, targeting={"devices": ["phone"], "locales": ["de"], "markets": ["GB"]})
    applied(published, segments, phones)
    async with serving(published.state, published.url) as served:
        context = home_pb2.Context(market="GB", device="phone", locale="de-AT")
        known, stranger = await page(served, "u0000001"), await page(served, "nobody", context=context)
        assert [one.experiment for one in known.assignments] == ["segments"]
        assert [one.experiment for one in stranger.assignments] == ["phones"]


async def test_a_new_book_is_in_force_within_2_seconds(published: Store) -> None:
    """From none to one to the next, at the default of one look a second, without a page that failed."""
    async with serving(published.state, published.url, poll_s=1.0) as served:
        assert not (await page(served, "u0000001")).experiment_book_version
        first = applied(published, BY_FILE)
        async with asyncio.timeout(2):
            await soon(lambda: served.plane.experiments.version == first.digest)
        second = applied(published, BY_FILE, UNCAPPED, previous=first)
        async with asyncio.timeout(2):
            await soon(lambda: served.plane.experiments.version == second.digest)
        assert len((await page(served, "u0000001")).assignments) == 2
        await soon(lambda: [beat.experiment_book for beat in published.state.heartbeats()] == [second.digest])


def twin(book: dict[str, Any]) -> None:
    """A second experiment that claims the buckets of the first."""
    first = book["spec"]["experiments"][0]
    book["spec"]["experiments"].append({**first, "key": "twin"})
    book["numbers"]["twin"] = book["numbers"]["by-file"]
    book["iterations"]["twin"] = 1


def poisons() -> dict[str, bytes]:
    """Books that no worker may take."""
    good = apply(EMPTY, spec_of(BY_FILE, UNCAPPED), seed=1).raw
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "types": lambda book: book["spec"]["experiments"][0].update(ramp="1"),
        "NaN": lambda book: book["spec"]["experiments"][1]["arms"][1]["params"].update(artist_cap=float("nan")),
        "unknown params": lambda book: book["spec"]["experiments"][0]["arms"][1]["params"].update(boost=1),
        "overlapping owners": twin,
        "other owners": lambda book: book["spec"]["experiments"][0].update(ramp=0.5),
    }
    made = {"10 MB": b"[" * 10_000_000, "no JSON": b"\xff\xfe", "nothing": b"x"}
    for name, change in changes.items():
        book = json.loads(good)
        change(book)
        made[name] = json.dumps(book).encode()
    return made


async def test_a_poisoned_book_changes_no_page_and_is_told_once(
    served: Served, published: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Written straight into Redis under its right name: refused, counted, logged once; the heartbeat says why."""
    before = [await page(served, user) for user in USERS[:8]]
    count = served.plane.metrics._refused_books.labels(KIND)._value
    for number, (name, raw) in enumerate(poisons().items(), 1):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "mantel.experiments"):
            digest = poison(published, raw)
            await soon(lambda: count.get() == number)  # noqa: B023  # awaited here
            await asyncio.sleep(0.2)  # some more looks at the pointer
        assert count.get() == number, name
        assert [digest[:12] in one.getMessage() for one in caplog.records] == [True]
        assert [await page(served, user) for user in USERS[:8]] == before
        await soon(lambda: any(beat.book_refusal for beat in published.state.heartbeats()))
    published.client.set(published.keys.book_pointer(KIND), b"{")
    await soon(lambda: "pointer" in served.plane.experiments.refusal)
    assert [await page(served, user) for user in USERS[:8]] == before


async def test_a_book_that_moves_listeners_is_refused(served: Served, published: Store) -> None:
    """Drawn anew in a store that was emptied: another reservation under the same name is not taken."""
    old = served.plane.experiments.version
    half = experiment("by-file", "order", {"page_order": "file"}, reserved=0.5)
    applied(published, half, seed=2)
    await soon(lambda: "experiments.by-file" in served.plane.experiments.refusal)
    assert served.plane.experiments.version == old


async def test_a_start_without_redis_or_with_a_poisoned_book_serves_the_last_good(published: Store) -> None:
    """From the state directory, before it listens."""
    book = applied(published, BY_FILE, UNCAPPED)
    async with serving(published.state, published.url) as served:
        whole = told(await page(served, "u0000001"))
    poison(published, b"x")
    async with serving(published.state, published.url) as served:
        assert told(await page(served, "u0000001")) == whole
        assert served.plane.experiments.refusal
    published.client.shutdown(nosave=True)
    async with serving(published.state, published.url) as served:
        found = await page(served, "u0000001")
        assert (told(found), found.experiment_book_version) == (whole, book.digest)
        assert home_pb2.DEGRADED_REASON_EXPERIMENTS_STALE not in found.degraded_reasons


async def test_a_spoiled_file_of_the_last_good_book_is_passed_over(published: Store) -> None:
    """The worker starts without experiments, or with those of Redis."""
    published.state.book(KIND).parent.mkdir(parents=True)
    for content in (b"{", b"[]", b'{"digest": "x", "json": "{}", "blobs": {}}'):
        published.state.book(KIND).write_bytes(content)
        async with serving(published.state, published.url) as served:
            assert not (await page(served, "u0000001")).assignments
            assert served.plane.metrics._refused_books.labels(KIND)._value.get() == 1
    book = applied(published, BY_FILE)
    async with serving(published.state, published.url) as served:
        assert (await page(served, "u0000001")).experiment_book_version == book.digest


async def test_pages_say_when_the_pointer_could_not_be_read_for_long(published: Store) -> None:
    """EXPERIMENTS_STALE beyond the bound, and the same arms as before."""
    applied(published, BY_FILE)
    async with serving(published.state, published.url, experiments_max_age_s=0.5) as served:
        before = await page(served, "u0000001")
        assert not before.degraded
        published.client.delete(published.keys.book_pointer(KIND))  # a store that lost its data cannot say
        await asyncio.sleep(0.6)
        after = await page(served, "u0000001")
        assert after.degraded_reasons == [home_pb2.DEGRADED_REASON_EXPERIMENTS_STALE]
        assert (shown(after), told(after)) == (shown(before), told(before))


async def test_what_is_read_is_bounded(published: Store) -> None:
    """Of a value of 10 MB a worker fetches no more than one byte beyond the bound."""
    digest = poison(published, b"[" * 10_000_000)
    async with serving(published.state, published.url) as served:
        reader = served.plane.experiments._reader
        assert len(await reader.read(digest, 1000)) == 1001
        assert "larger than" in served.plane.experiments.refusal
