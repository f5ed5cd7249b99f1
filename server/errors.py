"""The one place where an error becomes a gRPC status. Details never hold values, paths, hosts or tracebacks of ours."""

from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from features.errors import (
    DeadlineExceeded,
    Exhausted,
    InvalidInput,
    MantelError,
    NotFound,
    PermissionRefused,
    StaleEtag,
    Unauthenticated,
    Unavailable,
    WrongState,
)
from server.admission import Shed

DOMAIN: Final = "mantel"
INTERNAL_TEXT: Final = "internal error"
MAX_VIOLATIONS: Final = 16  # a client refuses trailers of more than 8 kB, and would see another status than ours

_CODES: Final[tuple[tuple[type[MantelError], int], ...]] = (
    (Unauthenticated, code_pb2.UNAUTHENTICATED),
    (PermissionRefused, code_pb2.PERMISSION_DENIED),
    (NotFound, code_pb2.NOT_FOUND),
    (WrongState, code_pb2.FAILED_PRECONDITION),
    (Exhausted, code_pb2.RESOURCE_EXHAUSTED),
    (StaleEtag, code_pb2.ABORTED),
    (DeadlineExceeded, code_pb2.DEADLINE_EXCEEDED),
    (Unavailable, code_pb2.UNAVAILABLE),
)


class Unimplemented(Exception):  # named as the status is
    """The method belongs to the contract, but not to this version."""


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """The status of an error: its own code where it is of our tree, else INTERNAL with a fixed text and the id."""
    if isinstance(error, Unimplemented):
        return _status(code_pb2.UNIMPLEMENTED, "not served by this version", "UNIMPLEMENTED", request_id)
    if isinstance(error, InvalidInput):
        return _bad_request(error, request_id)
    if isinstance(error, Shed):
        status = _status(code_pb2.RESOURCE_EXHAUSTED, str(error), Shed.__name__, request_id)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=_delay(error.pushback_ms)))
        return status
    for kind, code in _CODES:
        if isinstance(error, kind):
            return _status(code, str(error), kind.__name__, request_id)
    return _status(code_pb2.INTERNAL, f"{INTERNAL_TEXT} {request_id}", "INTERNAL", request_id)


def _delay(milliseconds: int) -> Duration:
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    return delay


def pushback_ms(status: status_pb2.Status) -> int | None:
    """How long a status tells its caller to stay away; None: it does not."""
    retry = error_details_pb2.RetryInfo()
    told = any(detail.Unpack(retry) for detail in status.details)
    return retry.retry_delay.ToMilliseconds() if told else None


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    """A status' code as grpc names it."""
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


def _status(code: int, message: str, reason: str, request_id: str) -> status_pb2.Status:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=_upper_snake(reason), domain=DOMAIN, metadata={"id": request_id}))
    return status_pb2.Status(code=code, message=message, details=[detail])


def _bad_request(error: InvalidInput, request_id: str) -> status_pb2.Status:
    told, more = error.violations[:MAX_VIOLATIONS], len(error.violations) - MAX_VIOLATIONS
    sentences = [f"{field}: {what}" if field else what for field, what in told]
    if more > 0:
        sentences.append(f"and {more} more")
    status = _status(code_pb2.INVALID_ARGUMENT, "; ".join(sentences), InvalidInput.__name__, request_id)
    violation = error_details_pb2.BadRequest.FieldViolation
    status.details.add().Pack(
        error_details_pb2.BadRequest(
            field_violations=[violation(field=field, description=what) for field, what in told]
        )
    )
    return status


def _upper_snake(name: str) -> str:
    if name.isupper():
        return name
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in name).lstrip("_")
