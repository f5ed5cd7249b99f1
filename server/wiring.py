"""The one place that builds things: the data plane of a worker, and the control plane."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import redis
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.archive import SURFACES, Archive
from features.books import BookReader, BookShelf
from features.errors import InvalidInput, SnapshotRefused, WrongState
from features.event_store import EventStore, Recorded
from features.index import use_one_thread
from features.keys import Keys
from features.listener_store import ListenerStore
from features.page_store import Allowance, Found, PageStore
from features.pointer import read_pointer
from features.preference_store import PreferenceStore
from features.promotion_store import PromotionLedger, PromotionStore
from features.snapshot import Snapshot, items_of
from features.state import State
from protos.admin.v1 import admin_pb2
from protos.events.v1 import events_pb2
from protos.experiments.v1 import experiments_pb2
from protos.home.v1 import home_pb2
from protos.listeners.v1 import listeners_pb2
from protos.promotions.v1 import promotions_pb2
from ranking.surfaces import DEFAULT_SURFACES, load_surfaces
from server.admin_service import AdminService
from server.admission import Admission, Bounds
from server.batching import Batcher, by_query
from server.budget import Budget
from server.data_plane import DataPlane
from server.drill import drill_of
from server.event_service import EventService
from server.experiment_service import ExperimentService
from server.experiments import KIND, Experiments
from server.guard import Guard, Table
from server.hides import Hides
from server.home_batches import HomeBatches
from server.home_service import HomeService
from server.identity import Identities, Role, load_identities
from server.listener_service import ListenerService
from server.logs import RequestLog
from server.metrics import Metrics
from server.paging import Paging
from server.placements import Placements
from server.promotion_service import Catalogue, PromotionService
from server.promotions import KIND as PROMOTIONS
from server.promotions import PromotionBooks
from server.pulse import Pulse
from server.rehearsal import rehearse
from server.served_block import Source
from server.served_log import ServedLog
from server.settings import Settings
from server.signing import SigningFile
from server.snapshots import Snapshots
from server.transport import Transport, bind

if TYPE_CHECKING:
    from server.served import Served

EVENT_CALLS: Final = 64  # that share one round trip and one write to disk
GIVEN_UP: Final = 20  # times its budget that a read keeps its connection, should the store still answer
PAGE_CALLS: Final = 64  # plans kept and found in one round trip
ADMIN_TIMEOUT_S: Final = 2.0
ADMIN_DEADLINE_S: Final = 30.0  # at least, for calls that bring none: verifying a snapshot takes its time
MAX_CONTROL_BYTES: Final = 1 << 26  # a promotion book with a million scores
BOOK_TIMEOUT_S: Final = 1.0  # for a blob of 2 MB from a busy Redis; listeners have connections of their own
WRITES: Final = 512  # calls under way at once that record events, and as many that change preferences
HOME: Final = "mantel.home.v1.HomeService"
EVENTS: Final = "mantel.events.v1.EventService"
LISTENERS: Final = "mantel.listeners.v1.ListenerService"
_log = logging.getLogger("mantel.wiring")


def data_plane(  # the edges of a process
    settings: Settings, *, redis_url: str, port: int, shared_port: bool, metrics: Metrics, pulse: Pulse | None = None
) -> DataPlane:
    """A worker's data plane, not started; `shared_port` where other processes listen on the same port."""
    pulse = pulse or Pulse()
    state, keys = State(settings.state), Keys(prefix=settings.prefix)
    store = ListenerStore(redis_url, keys, timeout_s=GIVEN_UP * settings.read_budget_ms / 1000)
    file = settings.surfaces or DEFAULT_SURFACES
    surfaces = load_surfaces(file, settings.preset)
    archive = Archive(state.served_versions, state.served_samples)
    source = Source(archive.keep_file(SURFACES, file), settings.preset)
    served_log = ServedLog(settings, source, archive, metrics)

    def made_ready(snapshot: Snapshot) -> None:
        rehearse(snapshot, surfaces.values())
        promotions.prepare(snapshot)

    snapshots = Snapshots(
        state,
        store,
        metrics,
        max_age_s=settings.snapshot_max_age_h * 3600,
        rehearse=made_ready,
    )
    experiments = Experiments(
        state,
        BookReader(redis_url, keys, KIND, timeout_s=BOOK_TIMEOUT_S),
        metrics,
        max_age_s=settings.experiments_max_age_s,
        archive=archive,
    )
    promotion_store = PromotionStore(redis_url, keys, timeout_s=BOOK_TIMEOUT_S)
    promotions = PromotionBooks(
        state,
        BookReader(redis_url, keys, PROMOTIONS, timeout_s=BOOK_TIMEOUT_S),
        promotion_store,
        metrics,
        serving=lambda: snapshots.current,
        max_age_s=settings.promotions_max_age_s,
        archive=archive,
    )
    admissions = _admissions(settings)
    placements = Placements(promotion_store, metrics, every_s=settings.placements_flush_s)
    budget = Budget(batch_s=settings.batch_ms / 1000, read_s=settings.read_budget_ms / 1000)
    batches = HomeBatches(
        store=store,
        snapshots=snapshots,
        experiments=experiments,
        promotions=promotions,
        placements=placements,
        metrics=metrics,
        pulse=pulse,
        budget=budget,
        drill=drill_of(settings, metrics),
        pressed=lambda: admissions[HOME].pressed,
        aside=ThreadPoolExecutor(1, "mantel-core", initializer=use_one_thread),
    )
    batcher: Batcher[Any, Served] = Batcher(batches.serve, cap=settings.batch_cap, budget=budget)
    signing = SigningFile(state, settings.signing_keys)
    page_store = PageStore(redis_url, keys, timeout_s=settings.redis_timeout_ms / 1000)
    page_batcher: Batcher[Any, Found] = Batcher(by_query(page_store.serve), cap=PAGE_CALLS)
    paging = Paging(
        batcher=page_batcher,
        keys=signing,
        allowance=Allowance(settings.plan_bytes_max),
        metrics=metrics,
        tracking=settings.tracking,
        now=time.time,
    )
    home = HomeService(
        surfaces=surfaces,
        experiments=experiments,
        batcher=batcher,
        paging=paging,
        snapshots=snapshots,
        log=RequestLog(settings.log_sample),
        served_log=served_log,
        now=time.time,
    )
    event_store = EventStore(
        redis_url,
        keys,
        timeout_s=settings.event_timeout_ms / 1000,
        stream_max=settings.event_stream_max,
        recent_s=int(settings.recent_days * 86_400),
    )
    event_batcher: Batcher[Any, Recorded] = Batcher(by_query(event_store.record), cap=EVENT_CALLS)
    preferences = PreferenceStore(redis_url, keys)
    hides = Hides(store=preferences, snapshot=lambda: snapshots.current, now=time.time)
    events = EventService(
        batcher=event_batcher,
        hides=hides,
        snapshot=lambda: snapshots.current,
        keys=signing,
        metrics=metrics,
        now=time.time,
    )
    identities = IdentityFile(settings)
    guard = Guard(
        identities=identities,
        metrics=metrics,
        default_deadline_s=settings.default_deadline_ms / 1000,
        admissions=admissions,
    )
    methods = data_methods(home, events, ListenerService(store=preferences, hides=hides, now=time.time))
    return DataPlane(
        settings=settings,
        state=state,
        transport=bind(settings, guard, methods, port=port, shared_port=shared_port),
        store=store,
        preferences=preferences,
        snapshots=snapshots,
        experiments=experiments,
        promotions=promotions,
        placements=placements,
        batcher=batcher,
        served_log=served_log,
        event_store=event_store,
        event_batcher=event_batcher,
        page_store=page_store,
        page_batcher=page_batcher,
        reload_identities=identities.reload,
        signing=signing,
        metrics=metrics,
        admission=admissions[HOME],
        pulse=pulse,
        shared_port=shared_port,
    )


def _admissions(settings: Settings) -> dict[str, Admission]:
    """A limit for each service of the data port: that of pages is found, what waits for a disk has a fixed one."""
    fixed, limit = Bounds(least=WRITES, most=WRITES), settings.admission_limit
    pages = Bounds(
        least=limit or settings.admission_least,
        most=limit or settings.admission_most,
        target_s=settings.admission_target_ms / 1000,
    )
    return {HOME: Admission(pages), EVENTS: Admission(fixed), LISTENERS: Admission(fixed)}


def control_plane(settings: Settings, *, redis_url: str, port: int, shared_port: bool, metrics: Metrics) -> Transport:
    """The control plane's server, not started."""
    client = redis.Redis.from_url(
        redis_url,
        socket_timeout=ADMIN_TIMEOUT_S,
        socket_connect_timeout=ADMIN_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    keys = Keys(prefix=settings.prefix)
    admin = AdminService(state=State(settings.state), keys=keys, client=client)
    experiments = ExperimentService(state=State(settings.state), shelf=BookShelf(client, keys, KIND))
    promotions = PromotionService(
        state=State(settings.state),
        shelf=BookShelf(client, keys, PROMOTIONS),
        ledger=PromotionLedger(client, keys),
        catalogue=partial(_catalogue, State(settings.state), client, keys),
    )
    deadline_s = max(ADMIN_DEADLINE_S, settings.default_deadline_ms / 1000)
    guard = Guard(identities=IdentityFile(settings).looked_up, metrics=metrics, default_deadline_s=deadline_s)
    methods = control_methods(admin, experiments, promotions)
    return bind(settings, guard, methods, port=port, shared_port=shared_port, most_bytes=MAX_CONTROL_BYTES)


def data_methods(home: HomeService, events: EventService, listeners: ListenerService) -> Table:
    """Every method of the data port with the role it needs; None where a later version serves it."""
    return {
        _service(home_pb2.DESCRIPTOR, "HomeService"): {
            "GetHome": (Role.CLIENT, home.get_home),
            "GetShelf": (Role.CLIENT, home.get_shelf),
            "RankItems": (Role.CLIENT, home.rank_items),
            "ExplainHome": (Role.EXPLAIN, home.explain_home),
        },
        _service(events_pb2.DESCRIPTOR, "EventService"): {"RecordEvents": (Role.CLIENT, events.record_events)},
        _service(listeners_pb2.DESCRIPTOR, "ListenerService"): {
            "GetPreferences": (Role.CLIENT, listeners.get_preferences),
            "UpdatePreferences": (Role.CLIENT, listeners.update_preferences),
            "Forget": (Role.CLIENT, listeners.forget),
        },
    }


def control_methods(admin: AdminService, experiments: ExperimentService, promotions: PromotionService) -> Table:
    """Every method of the control port with the role it needs; what is not listed, nobody may call."""
    return {
        _service(admin_pb2.DESCRIPTOR, "AdminService"): {
            "GetStatus": (Role.ADMIN, admin.get_status),
            "ListSnapshots": (Role.ADMIN, admin.list_snapshots),
            "ActivateSnapshot": (Role.ADMIN, admin.activate_snapshot),
            "RollbackSnapshot": (Role.ADMIN, admin.rollback_snapshot),
            "RolloverWorkers": (Role.ADMIN, admin.rollover_workers),
            "DrainEvents": (Role.ADMIN, None),
        },
        _service(experiments_pb2.DESCRIPTOR, "ExperimentService"): {
            "ApplyBook": (Role.EXPERIMENTER, experiments.apply_book),
            "GetBook": (Role.EXPERIMENTER, experiments.get_book),
            "ListExperiments": (Role.EXPERIMENTER, experiments.list_experiments),
            "ExplainAssignment": (Role.EXPERIMENTER, experiments.explain_assignment),
        },
        _service(promotions_pb2.DESCRIPTOR, "PromotionService"): {
            "ApplyBook": (Role.PROMOTER, promotions.apply_book),
            "GetBook": (Role.PROMOTER, promotions.get_book),
            "ListPromotions": (Role.PROMOTER, promotions.list_promotions),
            "GetStats": (Role.PROMOTER, promotions.get_stats),
            "ConfirmFeed": (Role.PROMOTER, promotions.confirm_feed),
            "SetBudget": (Role.PROMOTER, None),
            "GetPacing": (Role.PROMOTER, None),
            "GetLift": (Role.PROMOTER, None),
        },
    }


def _catalogue(state: State, client: redis.Redis, keys: Keys) -> Catalogue:
    """The items of the snapshot that the pointer names, as far as this machine has it."""
    with suppress(redis.RedisError, WrongState, SnapshotRefused):
        pointer = read_pointer(client, keys)
        if pointer is not None:
            return Catalogue(snapshot=pointer.digest, item_key=items_of(state.snapshots / pointer.digest))
    return Catalogue(snapshot="", item_key=np.empty(0, np.uint64))


class IdentityFile:
    """The principals in force; `reload` follows changes of their file."""

    def __init__(self, settings: Settings) -> None:
        """Loads the principals."""
        self._state = State(settings.state)
        self._development = settings.on_loopback
        self._read = self._version()
        self._identities = load_identities(self._state, development=self._development)

    def __call__(self) -> Identities:
        """The principals in force."""
        return self._identities

    def looked_up(self) -> Identities:
        """The principals in force after a look at their file, for a port with few calls; a broken file changes none."""
        try:
            self.reload()
        except (InvalidInput, OSError):
            _log.exception("the principals stay as they were")
        return self._identities

    def reload(self) -> None:
        """Loads the principals anew if their file has changed.

        Raises:
            InvalidInput: it cannot be read; told once where its content is at fault, else until it can.
            OSError: as above.
        """
        found = self._version()
        if found == self._read:
            return
        try:
            self._identities = load_identities(self._state, development=self._development)
        except InvalidInput as error:
            if not isinstance(error.__cause__, OSError):
                self._read = found
            raise
        self._read = found

    def _version(self) -> tuple[int, int]:
        """Tells versions of the file apart: it is replaced whole, so also two within one tick of the clock."""
        try:
            found = self._state.tokens.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns


def _service(file: FileDescriptor, name: str) -> ServiceDescriptor:
    return file.services_by_name[name]
