"""The same core behind BentoML, one request at a time.

Its own batching answers a list for each call, so that a page would be JSON within JSON: other bytes than the twin's.

`python -m loadtest.peer_bentoml SNAPSHOT REDIS TOKEN SURFACES PRESET` serves POST /home as the twin does, and prints
its port.
"""

import json
import os
import sys
from typing import Any, Final

import bentoml
import redis.asyncio

from loadtest.ports import free_port
from loadtest.twin_pages import ready

WORDS: Final = "MANTEL_PEER"  # the environment variable that brings the command line's words to its worker


@bentoml.service(
    name="home", workers=1, traffic={"timeout": 60}, metrics={"enabled": False}, logging={"access": {"enabled": False}}
)
class Home:
    """Answers pages."""

    def __init__(self) -> None:
        """Loads."""
        folder, url, token, surfaces, preset = json.loads(os.environ[WORDS])
        self._pages = ready(folder, token, surfaces, preset)
        self._client = redis.asyncio.Redis.from_url(url, protocol=2, socket_timeout=5.0)

    @bentoml.api(route="/home")  # type: ignore[untyped-decorator]  # it publishes no types that are found
    async def home(self, user_id: str, ctx: bentoml.Context) -> str:
        """One page."""
        pages = self._pages
        if not pages.admits(ctx.request.headers.get("authorization", "")):
            ctx.response.status_code = 401
            return ""
        try:
            query = pages.query({"user_id": user_id})
        except ValueError:
            ctx.response.status_code = 400
            return ""
        read: Any = await self._client.mget(pages.names(query))
        (home,) = pages.assembled((query,), pages.decoded(read))
        ctx.response.headers["content-type"] = "application/json"
        return pages.joined(home).decode()


def main(*words: str) -> None:
    """Serves until it is ended."""
    port = free_port()
    print(port, flush=True)
    os.environ[WORDS] = json.dumps(words)
    command = ["serve", "loadtest.peer_bentoml:Home", "--host", "127.0.0.1", "--port", str(port)]
    os.dup2(2, 1)  # what BentoML says
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *command])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
