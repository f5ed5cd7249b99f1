"""Events that come again, late or in another order: the pages that follow are the same in every byte."""

import random
import time

from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2
from tests.conftest import Served, Store, serving
from tests.recording import DUPLICATE, RECORDED, event, record, results
from tests.wire import get_home, page_of

LISTENERS = [f"u{number:07d}" for number in range(1, 25)]
KINDS = [
    events_pb2.EVENT_KIND_PLAY,
    events_pb2.EVENT_KIND_COMPLETE,
    events_pb2.EVENT_KIND_SKIP,
    events_pb2.EVENT_KIND_LIKE,
    events_pb2.EVENT_KIND_HIDE,
]


async def page(served: Served, user_id: str) -> home_pb2.GetHomeResponse:
    """A listener's page in the session, without what names the call."""
    return page_of(await get_home(served, home_pb2.GetHomeRequest(user_id=user_id, session_id="s")))


async def test_replayed_and_reordered_events_change_nothing(published: Store) -> None:
    """In order, in any order, one by one, all at once, twice: the same pages, and other ones than without events."""
    rng = random.Random(1)
    began = time.time() - 3600
    async with serving(published.state, published.url, event_timeout_ms=10_000.0) as served:
        before = {user: await page(served, user) for user in LISTENERS}
        told: dict[str, list[events_pb2.Event]] = {}
        for user, home in before.items():
            items = [item.item_id for shelf in home.shelves for item in shelf.items]
            told[user] = []
            for number in range(20):  # some in the same second, some of the same item
                kind = KINDS[number] if number < len(KINDS) else rng.choice(KINDS[:4])
                one = event(f"{user}-{number}", user_id=user, item_id=rng.choice(items), kind=kind, session_id="s")
                one.played_ms = rng.randrange(90_000)
                one.occurred_at.FromMilliseconds(int(1000 * (began + 7 * (number // 2))))
                told[user].append(one)

        async def send(events: list[events_pb2.Event], size: int) -> set[int]:
            found = set[int]()
            for first in range(0, len(events), size):
                found |= set(results(await record(served, events[first : first + size])))
            return found

        assert await send([one for events in told.values() for one in events], 500) == {RECORDED}
        after = {user: await page(served, user) for user in LISTENERS}
        assert all(after[user] != before[user] for user in LISTENERS)
        assert await send([one for events in told.values() for one in reversed(events)], 100) == {DUPLICATE}
        assert {user: await page(served, user) for user in LISTENERS} == after
        forget(published)
        assert {user: await page(served, user) for user in LISTENERS} == before
        shuffled = [one for events in told.values() for one in events]
        rng.shuffle(shuffled)
        assert await send([*shuffled[:240], *shuffled[200:], *shuffled], 60) == {RECORDED, DUPLICATE}
        again = {user: await page(served, user) for user in LISTENERS}
    wire = {user: home.SerializeToString(deterministic=True) for user, home in after.items()}
    assert {user: home.SerializeToString(deterministic=True) for user, home in again.items()} == wire


def forget(store: Store) -> None:
    """Takes away the listeners' recent state, what they hid, and that their events are known."""
    names = [key(user) for user in LISTENERS for key in (store.keys.state, store.keys.preferences)]
    seen = [name for name in store.client.scan_iter(count=1000) if b":seen:" in name]
    assert seen
    store.client.delete(*names, *seen)
