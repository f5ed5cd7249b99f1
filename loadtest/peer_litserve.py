"""The same core behind LitServe, with its own batching.

`python -m loadtest.peer_litserve SNAPSHOT REDIS TOKEN SURFACES PRESET` serves POST /home as the twin does, and prints
its port.
"""

import sys
from typing import Annotated, Any, Final, cast

import litserve
import redis
from fastapi import Header, HTTPException, Request, Response

from loadtest.ports import free_port
from loadtest.twin_pages import ready

BATCH: Final = 16  # as ours
WAIT_S: Final = 0.002  # for a batch to fill; 0 would look again and again


class Home(litserve.LitAPI):  # type: ignore[misc]  # it publishes no types
    """Answers pages; `setup` and what follows it run in a process of their own."""

    def __init__(self, words: tuple[str, str, str, str, str]) -> None:
        """With the words of the command line."""
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_S, api_path="/home")
        self._folder, self._url, self._token, self._surfaces, self._preset = words

    def setup(self, device: Any) -> None:
        """Loads."""
        del device
        self._pages = ready(self._folder, self._token, self._surfaces, self._preset)
        self._client = redis.Redis.from_url(self._url, protocol=2, socket_timeout=5.0)

    def authorize(self, authorization: Annotated[str, Header()] = "") -> None:
        """Who calls; runs where HTTP is served."""
        if authorization != f"Bearer {self._token}":
            raise HTTPException(401)

    def decode_request(self, request: Request) -> Any:
        """A query; by its annotation LitServe knows that it is JSON, which it hands on as a dictionary."""
        try:
            return self._pages.query(cast("dict[str, Any]", request))
        except ValueError as error:
            raise HTTPException(400) from error

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are."""
        return list(inputs)

    def predict(self, queries: list[Any]) -> list[bytes]:
        """Pages of a batch."""
        pages = self._pages
        read: Any = self._client.mget([name for query in queries for name in pages.names(query)])
        return [pages.joined(home) for home in pages.assembled(queries, pages.decoded(read))]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """As they are."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The page's bytes."""
        return Response(output, media_type="application/json")


def main(*words: str) -> None:
    """Serves until it is ended."""
    folder, url, token, surfaces, preset = words
    port = free_port()
    print(port, flush=True)
    sys.stdout = sys.stderr  # what LitServe says
    server = litserve.LitServer(Home((folder, url, token, surfaces, preset)), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
