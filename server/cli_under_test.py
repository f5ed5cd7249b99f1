"""The server that a load test is of, and the listeners that it knows."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Final

from features.errors import InvalidInput, WrongState
from features.state import State
from server.options import redis_url
from server.settings import Settings

if TYPE_CHECKING:
    from protos.client import HomeClient, Tls

SAMPLED: Final = 100_000  # listeners read from the store at most


def client_of(settings: Settings, target: str | None, tls: "Tls | None", *, insecure: bool) -> "HomeClient":
    """A client of the server to be tested.

    Raises:
        WrongState: none is named, and none runs on the state directory.
    """
    from server import calling

    state = State(settings.state)
    if target is None and state.endpoints() is None:
        demo = settings.state / "demo" / "state"
        if State(demo).endpoints() is not None:
            raise WrongState(f"no server runs on {settings.state}, but the demo's does: mantel loadtest --state {demo}")
        raise WrongState(
            f"no server runs on {settings.state}. Start one in another terminal: mantel demo; then test it: "
            f"mantel loadtest --state {demo}. Or name one with --target"
        )
    return calling.home(state, target, tls, insecure=insecure)


def listeners_of(settings: Settings, address: str, file: Path | None, seed: int) -> list[str]:
    """Who asks, keenest first: of a file, else of the store, in an order drawn from the seed; [] where none is known.

    The store is that of the settings, which is the server's where --redis names it or the server runs on --state.
    """
    from features.keys import Keys
    from features.offline.publish import connect
    from features.published_listeners import published_listeners
    from server import calling
    from server.queries import wrong_user_id

    if file is not None:
        found = file.read_text().split()
        if not found or any(True for user_id in found for _ in wrong_user_id(user_id)):
            raise InvalidInput(("users", "must hold user ids, one a line, each 1-128 of [A-Za-z0-9_.-]"))
        return found
    own = State(settings.state).endpoints()
    if not settings.redis and (own is None or calling.dialled(own.target) != address):
        return []
    with redis_url(settings) as url, connect(url) as client:
        found = published_listeners(client, Keys(prefix=settings.prefix), most=SAMPLED)
    random.Random(seed).shuffle(found)  # noqa: S311  # the same seed, the same favourites
    return found
