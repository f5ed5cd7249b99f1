"""What became of each call, as one row of a numpy array.

Every call is kept (35 bytes), so that percentiles are exact and any later question can be asked of the same run.
"""

from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from protos.events.v1 import events_pb2
from protos.home.v1 import home_pb2

CALL: Final = np.dtype(
    [
        ("due", "f8"),  # seconds since the start
        ("sent", "f8"),
        ("done", "f8"),
        ("kind", "u1"),  # as loadtest.traffic.KINDS
        ("code", "u1"),  # gRPC's number of the status
        ("degraded", "?"),
        ("cold", "?"),
        ("shelves", "u1"),
        ("items", "u2"),
        ("bytes", "u4"),
    ]
)
Calls = NDArray[np.void]  # [call] CALL

OK: Final[int] = grpc.StatusCode.OK.value[0]
INVALID: Final[int] = grpc.StatusCode.INVALID_ARGUMENT.value[0]
REFUSED: Final[int] = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def number_of(code: grpc.StatusCode) -> int:
    """A status as its number."""
    return int(code.value[0])


def note_page(row: Any, page: home_pb2.GetHomeResponse) -> None:
    """Notes in a call's row what matters of the page that it brought."""
    row["degraded"], row["cold"] = page.degraded, page.cold_start
    row["shelves"], row["items"] = len(page.shelves), sum(len(shelf.items) for shelf in page.shelves)


def note_outcomes(row: Any, answer: events_pb2.RecordEventsResponse) -> None:
    """Notes in a call's row whether every event was taken: one that is refused is an error of the call."""
    if any(one.result == events_pb2.EVENT_RESULT_INVALID for one in answer.outcomes):
        row["code"] = INVALID
