"""A small typed client, with the published service config, `protos/service_config.json`.

with HomeClient("127.0.0.1:50051", token=token) as client:
    page = client.get_home("u0000001", market="GB")
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.admin.v1 import admin_pb2, admin_pb2_grpc
from protos.experiments.v1 import experiments_pb2, experiments_pb2_grpc
from protos.home.v1 import home_pb2, home_pb2_grpc
from protos.listeners.v1 import listeners_pb2, listeners_pb2_grpc
from protos.promotions.v1 import promotions_pb2, promotions_pb2_grpc

SERVICE_CONFIG: Final = Path(__file__).with_name("service_config.json")
CANCELLED_TRIES: Final = 3
ROLLOVER_S: Final = 600.0
ADMIN_S: Final = 60.0  # a snapshot is verified before it is activated
MAX_ANSWER_BYTES: Final = 1 << 26  # a promotion book with all its items
CHANGE_S: Final = 10.0  # a change is answered when it is on disk, which takes up to a second


Answer = TypeVar("Answer")


def service_config(*, patient: bool) -> str:
    """The published service config: round robin, and retries where the server did not take a call (UNAVAILABLE).

    Events may be sent again, since they count once by their ids. Not `patient`: a call fails where nobody listens,
    instead of waiting for a connection until its deadline.
    """
    config: dict[str, Any] = json.loads(SERVICE_CONFIG.read_bytes())
    for method in config["methodConfig"]:
        method["waitForReady"] = patient and method["waitForReady"]
    return json.dumps(config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What a TLS connection needs, PEM; with key and certificate the client shows who it is."""

    root: bytes | None = None
    key: bytes | None = None
    certificate: bytes | None = None


def asyncio_channel(
    target: str, tls: Tls | None = None, *, patient: bool = False, alone: bool = False
) -> grpc.aio.Channel:
    """A channel for asyncio with the published service config; tokens go with each call.

    `alone` gives it a connection of its own, where gRPC would share one among channels to the same address.
    """
    options = [*_options(patient=patient), ("grpc.use_local_subchannel_pool", int(alone))]
    if tls is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, _credentials(tls), options)


def _options(*, patient: bool) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", service_config(patient=patient)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.initial_reconnect_backoff_ms", 100),  # a worker is back within a second or two
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ]


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(tls.root, tls.key, tls.certificate)


class _Client:
    """A connection with a token."""

    def __init__(self, target: str, *, token: str = "", tls: Tls | None = None, patient: bool = True) -> None:
        """Connects on first use; a token is sent with every call."""
        self.target, self.tls = target, tls
        options = _options(patient=patient)
        if tls is None:
            self.channel = grpc.insecure_channel(target, options)
        else:
            self.channel = grpc.secure_channel(target, _credentials(tls), options)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()


class HomeClient(_Client):
    """A connection to the data port, all of whose methods may be sent again."""

    def __init__(self, target: str, *, token: str = "", tls: Tls | None = None, patient: bool = True) -> None:
        """Connects on first use; a token is sent with every call."""
        super().__init__(target, token=token, tls=tls, patient=patient)
        self._home = home_pb2_grpc.HomeServiceStub(self.channel)
        self._listeners = listeners_pb2_grpc.ListenerServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def ask(self, method: Callable[..., Answer], request: Any, timeout_s: float | None) -> Answer:
        """The answer of a stub's method; a call that is cancelled, though nobody here did so, is sent again.

        A server that stops may cancel a call that reaches it at that moment (grpc/grpc#41785).
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for left in reversed(range(CANCELLED_TRIES)):
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return method(request, timeout=remaining, metadata=self.metadata)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED or not left:
                    raise
        raise AssertionError  # the last try answers or raises

    def get_home(  # noqa: PLR0913  # the fields of the request
        self,
        user_id: str,
        *,
        surface: str = "",
        market: str = "",
        locale: str = "",
        session_id: str = "",
        page_size: int = 0,
        page_token: str = "",
        exclude_item_ids: Sequence[str] = (),
        hidden_ids: Sequence[str] = (),
        timeout_s: float | None = 1.0,
    ) -> home_pb2.GetHomeResponse:
        """One page; raises grpc.RpcError with the documented status codes."""
        request = home_pb2.GetHomeRequest(
            user_id=user_id,
            surface=surface,
            context=home_pb2.Context(market=market, locale=locale),
            session_id=session_id,
            page_size=page_size,
            page_token=page_token,
            exclude_item_ids=exclude_item_ids,
            hidden_ids=hidden_ids,
        )
        return self.ask(self._home.GetHome, request, timeout_s)

    def explain_home(  # the fields of the request
        self,
        user_id: str,
        *,
        item_id: str = "",
        surface: str = "",
        market: str = "",
        set_params: Mapping[str, str] | None = None,
        timeout_s: float | None = 5.0,
    ) -> home_pb2.ExplainHomeResponse:
        """How a page came to be; raises grpc.RpcError with the documented status codes."""
        page = home_pb2.GetHomeRequest(user_id=user_id, surface=surface, context=home_pb2.Context(market=market))
        request = home_pb2.ExplainHomeRequest(request=page, item_id=item_id, set_params=set_params)
        return self.ask(self._home.ExplainHome, request, timeout_s)

    def get_preferences(self, user_id: str, *, timeout_s: float | None = 5.0) -> listeners_pb2.Preferences:
        """What a listener wishes; raises grpc.RpcError with the documented status codes."""
        request = listeners_pb2.GetPreferencesRequest(user_id=user_id)
        return self.ask(self._listeners.GetPreferences, request, timeout_s).preferences

    def update_preferences(  # noqa: PLR0913  # the fields of the request
        self,
        user_id: str,
        *,
        hide_item_ids: Sequence[str] = (),
        hide_artist_ids: Sequence[str] = (),
        unhide_item_ids: Sequence[str] = (),
        unhide_artist_ids: Sequence[str] = (),
        unhide_artists_of_item_ids: Sequence[str] = (),
        allow_explicit: bool | None = None,
        promotions_off: bool | None = None,
        discovery: float | None = None,
        timeout_s: float | None = CHANGE_S,
    ) -> listeners_pb2.Preferences:
        """Changes what a listener wishes, and answers it; raises grpc.RpcError with the documented status codes."""
        request = listeners_pb2.UpdatePreferencesRequest(
            user_id=user_id,
            hide_item_ids=hide_item_ids,
            hide_artist_ids=hide_artist_ids,
            unhide_item_ids=unhide_item_ids,
            unhide_artist_ids=unhide_artist_ids,
            unhide_artists_of_item_ids=unhide_artists_of_item_ids,
            allow_explicit=allow_explicit,
            promotions_off=promotions_off,
            discovery=discovery,
        )
        return self.ask(self._listeners.UpdatePreferences, request, timeout_s).preferences

    def forget(self, user_id: str, *, timeout_s: float | None = CHANGE_S) -> int:
        """Erases all that is known of a listener, and answers how many keys that were."""
        request = listeners_pb2.ForgetRequest(user_id=user_id)
        return self.ask(self._listeners.Forget, request, timeout_s).erased_keys

    def serving(self, *, timeout_s: float = 1.0) -> bool:
        """Whether the server can answer pages now."""
        try:
            reply: health_pb2.HealthCheckResponse = self._health.Check(  # type: ignore[attr-defined]  # not in the stubs
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


class AdminClient(_Client):
    """A connection to the control port."""

    def __init__(self, target: str, *, token: str = "", tls: Tls | None = None) -> None:
        """Connects on first use; a token is sent with every call."""
        super().__init__(target, token=token, tls=tls)
        self._admin = admin_pb2_grpc.AdminServiceStub(self.channel)

    def get_status(self) -> admin_pb2.GetStatusResponse:
        """What each worker believes."""
        return self._admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=ADMIN_S, metadata=self.metadata)

    def list_snapshots(self) -> admin_pb2.ListSnapshotsResponse:
        """The published snapshots, newest first."""
        return self._admin.ListSnapshots(admin_pb2.ListSnapshotsRequest(), timeout=ADMIN_S, metadata=self.metadata)

    def activate_snapshot(self, digest: str) -> admin_pb2.Snapshot:
        """Makes a published snapshot the one that is served."""
        request = admin_pb2.ActivateSnapshotRequest(digest=digest)
        return self._admin.ActivateSnapshot(request, timeout=ADMIN_S, metadata=self.metadata).snapshot

    def rollover_workers(self) -> admin_pb2.RolloverWorkersResponse:
        """Replaces all workers, one after the other, and answers the new ones."""
        request = admin_pb2.RolloverWorkersRequest()
        return self._admin.RolloverWorkers(request, timeout=ROLLOVER_S, metadata=self.metadata)

    def rollback_snapshot(self) -> admin_pb2.Snapshot:
        """Goes back to the snapshot that was served before."""
        request = admin_pb2.RollbackSnapshotRequest()
        return self._admin.RollbackSnapshot(request, timeout=ADMIN_S, metadata=self.metadata).snapshot


class ExperimentClient(_Client):
    """A connection to the control port, for experiments."""

    def __init__(self, target: str, *, token: str = "", tls: Tls | None = None) -> None:
        """Connects on first use; a token is sent with every call."""
        super().__init__(target, token=token, tls=tls)
        self._experiments = experiments_pb2_grpc.ExperimentServiceStub(self.channel)

    def apply_book(
        self, spec: experiments_pb2.Spec, *, etag: str, validate_only: bool = False
    ) -> experiments_pb2.ApplyBookResponse:
        """Makes a spec the book in force; `etag` is the version of the book that it was made from."""
        request = experiments_pb2.ApplyBookRequest(spec=spec, etag=etag, validate_only=validate_only)
        return self._experiments.ApplyBook(request, timeout=ADMIN_S, metadata=self.metadata)

    def get_book(self) -> experiments_pb2.Book:
        """The book in force."""
        request = experiments_pb2.GetBookRequest()
        return self._experiments.GetBook(request, timeout=ADMIN_S, metadata=self.metadata).book

    def list_experiments(self) -> experiments_pb2.ListExperimentsResponse:
        """What each experiment holds and serves."""
        request = experiments_pb2.ListExperimentsRequest()
        return self._experiments.ListExperiments(request, timeout=ADMIN_S, metadata=self.metadata)

    def explain_assignment(
        self, user_id: str, *, market: str = "", segment: int | None = None, device: str = "", locale: str = ""
    ) -> experiments_pb2.ExplainAssignmentResponse:
        """What every layer comes to for a listener."""
        request = experiments_pb2.ExplainAssignmentRequest(
            user_id=user_id, market=market, segment=segment, device=device, locale=locale
        )
        return self._experiments.ExplainAssignment(request, timeout=ADMIN_S, metadata=self.metadata)


class PromotionClient(_Client):
    """A connection to the control port, for promotions."""

    def __init__(self, target: str, *, token: str = "", tls: Tls | None = None) -> None:
        """Connects on first use; a token is sent with every call."""
        super().__init__(target, token=token, tls=tls)
        self._promotions = promotions_pb2_grpc.PromotionServiceStub(self.channel)

    def apply_book(
        self, spec: promotions_pb2.Spec, *, etag: str, validate_only: bool = False
    ) -> promotions_pb2.ApplyBookResponse:
        """Makes a spec the book in force; `etag` is the version of the book that it was made from."""
        request = promotions_pb2.ApplyBookRequest(spec=spec, etag=etag, validate_only=validate_only)
        return self._promotions.ApplyBook(request, timeout=ADMIN_S, metadata=self.metadata)

    def get_book(self, *, with_items: bool = False) -> promotions_pb2.Book:
        """The book in force."""
        request = promotions_pb2.GetBookRequest(with_items=with_items)
        return self._promotions.GetBook(request, timeout=ADMIN_S, metadata=self.metadata).book

    def list_promotions(self) -> promotions_pb2.ListPromotionsResponse:
        """What has become of each feed and campaign."""
        request = promotions_pb2.ListPromotionsRequest()
        return self._promotions.ListPromotions(request, timeout=ADMIN_S, metadata=self.metadata)

    def get_stats(self, *, days: int = 0, campaigns: Sequence[str] = ()) -> promotions_pb2.GetStatsResponse:
        """What came of campaigns, by day; of none named, of all."""
        request = promotions_pb2.GetStatsRequest(days=days, campaigns=campaigns)
        return self._promotions.GetStats(request, timeout=ADMIN_S, metadata=self.metadata)

    def confirm_feed(self, feed: str) -> promotions_pb2.ConfirmFeedResponse:
        """Says that a feed's scores still stand."""
        request = promotions_pb2.ConfirmFeedRequest(feed=feed)
        return self._promotions.ConfirmFeed(request, timeout=ADMIN_S, metadata=self.metadata)
