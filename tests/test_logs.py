"""Logs: one JSON object per line, no listener's id in them, and every fault with the id that its caller got."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from features.index import Rows, Scores
from protos.client import HomeClient
from protos.home.v1 import home_pb2
from server.identity import development_token
from server.launch import running
from server.logs import RequestLog
from tests.conftest import Served, Store
from tests.wire import get_home

MARKER = "marker-5e1f"
ANY_PORT = {"port": "0", "control-port": "0", "metrics-port": "0"}
FAULT = """
import logging, structlog
from server import logs
logs.configure("worker")
structlog.get_logger("mantel.page").info("page", shelves=2)
try:
    raise ValueError("the cause")
except ValueError:
    logging.getLogger("a.library").exception("it %s", "failed")
logging.getLogger("a.library").debug("unheard")
"""


def lines(text: str) -> list[dict[str, Any]]:
    """The log's lines, as objects; the one line of a server that tells where it listens is left out."""
    return [json.loads(line) for line in text.splitlines() if not line.startswith("data ")]


def test_every_line_is_json() -> None:
    """Ours and those of libraries: level, logger, time, process and event; a traceback stays on its line."""
    done = subprocess.run([sys.executable, "-c", FAULT], check=True, capture_output=True, text=True)
    page, fault = lines(done.stderr)
    assert done.stdout == ""
    assert (page["event"], page["level"], page["logger"], page["process"]) == ("page", "info", "mantel.page", "worker")
    assert (fault["event"], fault["level"], fault["logger"]) == ("it failed", "error", "a.library")
    assert fault["process"] == "worker"
    assert fault["exception"].endswith("ValueError: the cause")
    assert page["timestamp"] <= fault["timestamp"]


def test_pages_are_logged_without_their_listener(
    published: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A served page is one line with a hash that tells listeners apart; no id, hidden item or device is in any line."""
    monkeypatch.setenv("MANTEL_LOG_SAMPLE", "1")
    monkeypatch.delenv("MANTEL_TOKEN", raising=False)
    log = tmp_path / "log"
    with (
        running(published.state, ANY_PORT, log=log) as endpoints,
        HomeClient(endpoints.target, token=development_token(published.state)) as client,
    ):
        users = (f"{MARKER}-1", f"{MARKER}-2", f"{MARKER}-1")
        pages = [client.get_home(user, hidden_ids=[f"{MARKER}-item"], timeout_s=10.0) for user in users]
        with pytest.raises(grpc.RpcError):
            client.get_home(f"{MARKER}:bad", timeout_s=10.0)
    text = log.read_text()
    found = [line for line in lines(text) if line.get("logger") == "mantel.page"]
    assert MARKER not in text
    assert [line["request_id"] for line in found] == [page.request_id for page in pages]
    first, second, again = (line["listener"] for line in found)
    assert first == again != second
    assert {(line["surface"], line["principal"], line["cold_start"]) for line in found} == {("home", "developer", True)}


def test_another_process_hashes_listeners_otherwise() -> None:
    """The salt is drawn anew, so hashes of two processes, or of yesterday, cannot be joined."""
    one, other = RequestLog(1.0), RequestLog(1.0)
    assert one.hashed("u1") == one.hashed("u1") != one.hashed("u2")
    assert one.hashed("u1") != other.hashed("u1")


class Broken:
    """A retriever with a programmer's error."""

    def search(self, _vectors: object, _k: int) -> tuple[Scores, Rows]:
        """Raises."""
        raise ValueError("the cause")


async def test_a_fault_is_logged_with_the_id_that_its_caller_got(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller learns an id only, the log its cause; what is the caller's own fault is not logged as ours."""
    snapshot = served.plane.snapshots.current
    assert snapshot is not None
    served.plane.snapshots.current = replace(snapshot, retriever=Broken())
    assert (await get_home(served, b"\xff")).code is grpc.StatusCode.INVALID_ARGUMENT
    status = await get_home(served, home_pb2.GetHomeRequest(user_id="u0000001"))
    (fault,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert fault.getMessage() == f"mantel.home.v1.HomeService.GetHome failed, id {status.request_id}"
    assert fault.exc_info is not None
    assert repr(fault.exc_info[1]) == "ValueError('the cause')"
    assert "u0000001" not in caplog.text
