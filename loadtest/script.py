"""A run's calls as messages: each step's request, which may need what an earlier step was answered."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from loadtest.traffic import EVENTS, NEXT, PAGE, PREFETCH, Mix, Steps
from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2

GET_HOME: Final = "/mantel.home.v1.HomeService/GetHome"
RECORD_EVENTS: Final = "/mantel.events.v1.EventService/RecordEvents"
SEEN: Final = 12  # items of a page, from the top, that its listener sees
_DEEDS: Final = (events_pb2.EVENT_KIND_PLAY,) * 6 + (
    events_pb2.EVENT_KIND_COMPLETE,
    events_pb2.EVENT_KIND_SKIP,
    events_pb2.EVENT_KIND_SKIP,
    events_pb2.EVENT_KIND_LIKE,
)


class Asked(NamedTuple):
    """A call as it is sent."""

    kind: int  # as traffic names it: a step whose earlier one brought nothing has become a first page
    method: str
    request: bytes


class _Shown(NamedTuple):
    """What of an answer a later step asks for."""

    next_page_token: str
    items: tuple[tuple[str, str], ...]  # item id, tracking token


class Script:
    """Makes each step's request, and keeps of the answers what later steps go on from."""

    def __init__(self, steps: Steps, mix: Mix, listeners: Sequence[str], *, run: str) -> None:
        """`run` names the run in the ids of its events, which count once: another run of the same seed counts anew."""
        self.steps = steps
        self._mix, self._listeners, self._run = mix, listeners, run
        followed = steps.follows[steps.follows >= 0]
        self._waiting = np.bincount(followed, minlength=steps.due.size)  # steps that go on from each
        self._shown: dict[int, _Shown] = {}

    def ask(self, step: int) -> Asked:
        """The call of a step."""
        shown, kind = self._take(int(self.steps.follows[step])), int(self.steps.kind[step])
        if kind == EVENTS and shown is not None and shown.items:
            return Asked(EVENTS, RECORD_EVENTS, self._events(step, shown).SerializeToString())
        if kind == NEXT and shown is not None and shown.next_page_token:
            return Asked(NEXT, GET_HOME, self._page(step, shown.next_page_token).SerializeToString())
        return Asked(PREFETCH if kind == PREFETCH else PAGE, GET_HOME, self._page(step).SerializeToString())

    def answered(self, step: int, page: home_pb2.GetHomeResponse) -> None:
        """Keeps of a page what a later step will ask for."""
        if self._waiting[step]:
            items = [item for shelf in page.shelves for item in shelf.items][:SEEN]
            seen = tuple((item.item_id, item.tracking_token) for item in items)
            self._shown[step] = _Shown(page.next_page_token, seen)

    def _take(self, step: int) -> _Shown | None:
        """What a step showed; forgotten where this was the last to ask."""
        if step < 0:
            return None
        self._waiting[step] -= 1
        return self._shown.get(step) if self._waiting[step] else self._shown.pop(step, None)

    def _user_id(self, step: int) -> str:
        rank = int(self.steps.listener[step])
        return self._listeners[rank] if rank < len(self._listeners) else f"stranger-{rank - len(self._listeners)}"

    def _page(self, step: int, page_token: str = "") -> home_pb2.GetHomeRequest:
        return home_pb2.GetHomeRequest(
            user_id=self._user_id(step),
            surface=self._mix.surfaces[self.steps.surface[step]][0],
            session_id=self.steps.session(step),
            context=home_pb2.Context(market=self._mix.markets[self.steps.market[step]]),
            page_size=self._mix.page_size,
            page_token=page_token,
        )

    def _events(self, step: int, shown: _Shown) -> events_pb2.RecordEventsRequest:
        """That the items were seen, and what was done with one of them."""
        chance, now = int(self.steps.chance[step]), Timestamp()
        now.FromNanoseconds(time.time_ns())
        one, deed = shown.items[chance % len(shown.items)], _DEEDS[chance // 97 % len(_DEEDS)]
        told = [(events_pb2.EVENT_KIND_IMPRESSION, item) for item in shown.items] + [(deed, one)]
        return events_pb2.RecordEventsRequest(
            events=[
                events_pb2.Event(
                    event_id=f"{self._run}-{step}-{number}",
                    user_id=self._user_id(step),
                    kind=kind,
                    item_id=item_id,
                    tracking_token=token,
                    occurred_at=now,
                    session_id=self.steps.session(step),
                )
                for number, (kind, (item_id, token)) in enumerate(told)
            ]
        )
