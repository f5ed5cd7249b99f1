"""Every Prometheus instrument, and the page that shows them: the one door to prometheus_client.

The names of the gRPC instruments are those that existing dashboards and alerts use. With several workers each writes
its own files into the directory that PROMETHEUS_MULTIPROC_DIR names before this module is imported.

An instrument takes 2 us for each change, and a page alone would change 40. So what calls and batches tell is noted, and
handed to the instruments ten times a second.
"""

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, multiprocess, start_wsgi_server
from prometheus_client.registry import Collector

from ranking.types import Degraded, Fate, Home, Trace

SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.006, 0.010, 0.015, 0.025, 0.040, 0.060, 0.1, 0.25, 1.0)
NOTED_S: Final = 0.1  # that what is noted waits at most
STAGE_SECONDS: Final = (0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.003, 0.006, 0.012, 0.025, 0.1)


class _Histogram(Histogram):
    """A histogram that takes many amounts at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """As to observe each."""
        self._sum.inc(sum(amounts))
        for place, number in Tally(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[place].inc(number)


class Metrics:
    """The instruments of one process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Registers every instrument with a registry of its own, unless one is given."""
        registry = CollectorRegistry() if registry is None else registry
        registry.register(_Before(self.flush))  # first: who looks into this registry sees all
        self._calls: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._batches: list[tuple[Sequence[tuple[str, Home]], float, Trace]] = []
        self._due = False
        method = ("grpc_service", "grpc_method")
        self._handled = Counter(
            "grpc_server_handled_total", "Calls ended, by status.", (*method, "grpc_code"), registry=registry
        )
        self._handling = _Histogram(
            "grpc_server_handling_seconds", "Seconds per call.", method, buckets=SECONDS, registry=registry
        )
        self._stage = _Histogram(
            "mantel_stage_seconds", "Seconds per batch and stage.", ("stage",), buckets=STAGE_SECONDS, registry=registry
        )
        self._batch = _Histogram(
            "mantel_batch_size", "Requests per batch.", buckets=(1, 2, 4, 8, 12, 16, 32, 64), registry=registry
        )
        self._pages = Counter("mantel_pages_total", "Pages served, by surface.", ("surface",), registry=registry)
        self._degraded = Counter("mantel_degraded_total", "Pages degraded, by reason.", ("reason",), registry=registry)
        self._cold = Counter("mantel_cold_start_total", "Pages for strangers.", registry=registry)
        self._empty = Counter("mantel_empty_pages_total", "Pages without a shelf.", registry=registry)
        self._fates = Counter("mantel_candidates_total", "Candidates, by fate.", ("fate",), registry=registry)
        self._refused = Counter("mantel_snapshot_refused_total", "Snapshots refused at load.", registry=registry)
        self._swaps = Counter("mantel_snapshot_swaps_total", "Snapshots taken into service.", registry=registry)
        self._books = Counter("mantel_book_swaps_total", "Books taken into force.", ("kind",), registry=registry)
        self._refused_books = Counter("mantel_book_refused_total", "Books refused.", ("kind",), registry=registry)
        self._promoted = Counter(
            "mantel_placements_total", "Items that stood by promotion, by surface.", ("surface",), registry=registry
        )
        self._late_counts = Counter(
            "mantel_placement_counts_late_total", "Times that the store did not take counts.", registry=registry
        )
        self._lost_counts = Counter(
            "mantel_placement_counts_lost_total", "What was counted of promotion and is lost.", registry=registry
        )
        self._items = Gauge(
            "mantel_snapshot_items", "Items of the served snapshot.", registry=registry, multiprocess_mode="livemax"
        )
        self._lag = Gauge(
            "mantel_loop_lag_seconds", "How late the event loop runs.", registry=registry, multiprocess_mode="livemax"
        )
        self._events = Counter(
            "mantel_events_total", "Events, by kind and what became of them.", ("kind", "result"), registry=registry
        )
        self._stream = Gauge(
            "mantel_event_stream_share",
            "Share of its bound that the fullest event stream has reached; at 1 events are refused.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._plans = Counter(
            "mantel_page_plans_total", "Plans of later pages, by what became of them.", ("result",), registry=registry
        )
        self._tokens = Counter(
            "mantel_tokens_refused_total", "Page and tracking tokens refused.", ("kind",), registry=registry
        )
        self._logged = Counter(
            "mantel_served_log_written_total", "Served pages and samples logged.", ("kind",), registry=registry
        )
        self._unlogged = Counter(
            "mantel_served_log_lost_total",
            "Served pages and samples that their log lost: the queue was full, the disk failed, the bound was reached.",
            ("kind", "cause"),
            registry=registry,
        )
        self._limit = Gauge(
            "mantel_admission_limit",
            "Calls for pages that may be under way at once.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._in_flight = Gauge(
            "mantel_admission_in_flight",
            "Calls for pages under way.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._shed = Counter(
            "mantel_shed_total", "Calls refused for want of room, by priority.", ("priority",), registry=registry
        )
        self._registry = registry

    @cached_property
    def _drill(self) -> Gauge:
        """Declared with the first drill: a server without one has no such sample to alarm by."""
        return Gauge(
            "mantel_drill_seconds",
            "What this server is told to suffer, by kind: work of each page, sleep of each batch.",
            ("kind",),
            registry=self._registry,
            multiprocess_mode="livemax",
        )

    @cached_property
    def _published(self) -> Gauge:
        """Declared with the first snapshot: the zero of a process without one would be the least of all."""
        return Gauge(
            "mantel_snapshot_published_timestamp_seconds",
            "When the served snapshot was published.",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    def handled(self, service: str, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        self._calls[service, method, code].append(seconds)
        self._flush_soon()

    def served(self, homes: Sequence[tuple[str, Home]], read_s: float, trace: Trace) -> None:
        """A batch of pages, each with its surface's name, has been assembled."""
        self._batches.append((homes, read_s, trace))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(NOTED_S, self.flush)

    def flush(self) -> None:
        """Hands to the instruments what was noted."""
        self._due = False
        calls, self._calls = self._calls, defaultdict(list)
        batches, self._batches = self._batches, []
        for (service, method, code), seconds in calls.items():
            self._handled.labels(service, method, code).inc(len(seconds))
            self._handling.labels(service, method).observe_all(seconds)
        if batches:
            self._count(batches)

    def _count(self, batches: Sequence[tuple[Sequence[tuple[str, Home]], float, Trace]]) -> None:
        """Pages and what they are made of, and how long it took."""
        pages, placed, fates, degraded = Tally[str](), Tally[str](), Tally[Fate](), Tally[str]()
        stages = defaultdict[str, list[float]](list)
        cold, empty = 0, 0
        for homes, read_s, trace in batches:
            for surface, home in homes:
                pages[surface] += 1
                placed[surface] += len(home.placed)
                cold += home.cold_start
                empty += not home.shelves
                degraded.update(reason.value for reason in home.degraded)
                fates.update(home.fates)
            for stage, seconds in (("read", read_s), *trace.stages):
                stages[stage].append(seconds)
        self._cold.inc(cold)
        self._empty.inc(empty)
        for surface, number in pages.items():
            self._pages.labels(surface).inc(number)
        for surface, number in (+placed).items():
            self._promoted.labels(surface).inc(number)
        for reason, number in degraded.items():
            self._degraded.labels(reason).inc(number)
        for fate, number in fates.items():
            self._fates.labels(fate.name.lower()).inc(number)
        self._batch.observe_all([len(homes) for homes, _, _ in batches])
        for stage, took in stages.items():
            self._stage.labels(stage).observe_all(took)

    def recorded(self, events: Iterable[tuple[str, str]]) -> None:
        """Events, each with its kind and result, have been answered."""
        for labels, number in Tally(events).items():
            self._events.labels(*labels).inc(number)

    def planned(self, result: str) -> None:
        """A plan was written, refused at the bound, failed; or was found, missing, expired, unreachable."""
        self._plans.labels(result).inc()
        if result in {"refused", "failed"}:
            self._degraded.labels(Degraded.PAGING_OFF.value).inc()

    def token_refused(self, kind: str) -> None:
        """A token of a kind was refused: page or tracking."""
        self._tokens.labels(kind).inc()

    def streams_filled(self, share: float) -> None:
        """The fullest event stream has reached this share of its bound."""
        self._stream.set(share)

    def page_logged(self, kind: str, count: int) -> None:
        """Served pages, or samples of them, were logged."""
        self._logged.labels(kind).inc(count)

    def page_log_lost(self, kind: str, cause: str, count: int) -> None:
        """Served pages, or samples of them, will be missing in their log."""
        self._unlogged.labels(kind, cause).inc(count)

    def swapped(self, items: int) -> None:
        """A snapshot was taken into service."""
        self._swaps.inc()
        self._items.set(items)

    def published(self, at: float) -> None:
        """The snapshot in service was published, perhaps again; unix seconds."""
        self._published.set(at)

    def refused(self) -> None:
        """A snapshot was refused."""
        self._refused.inc()

    def book_taken(self, kind: str) -> None:
        """A book was taken into force."""
        self._books.labels(kind).inc()

    def book_refused(self, kind: str) -> None:
        """A book was refused."""
        self._refused_books.labels(kind).inc()

    def counts_waited(self) -> None:
        """The store did not take counts of placements; they are sent again."""
        self._late_counts.inc()

    def counts_lost(self, number: int) -> None:
        """So much was counted of promotion, and is lost."""
        self._lost_counts.inc(number)

    def admitted(self, limit: int, in_flight: int) -> None:
        """So many calls for pages may be under way, and so many are."""
        self._limit.set(limit)
        self._in_flight.set(in_flight)

    def shed(self, priority: str) -> None:
        """A call was refused for want of room."""
        self._shed.labels(priority).inc()

    def drilled(self, kind: str, seconds: float) -> None:
        """A drill of this kind is on."""
        self._drill.labels(kind).set(seconds)

    def lagged(self, seconds: float) -> None:
        """The event loop ran this late."""
        self._lag.set(seconds)


def expose(folder: Path, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serves the sum over all processes that write into a folder; dead processes' gauges are left out."""
    registry = _LivingOnly(folder)
    server, thread = start_wsgi_server(port, addr=host, registry=registry)
    return server, thread


class _Before(Collector):
    """Does something before a registry is collected."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def describe(self) -> Iterable[Metric]:
        """Nothing; asked for in place of a collection."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Nothing of its own."""
        self._do()
        return ()


class _LivingOnly(CollectorRegistry):
    """Collects afresh at each scrape, after dropping the live gauges of processes that are gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        multiprocess.MultiProcessCollector(self, path=str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for file in self._folder.glob("gauge_live*_*.db"):
            pid = int(file.stem.rpartition("_")[2])
            if not Path(f"/proc/{pid}").exists():
                multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]
        return super().collect()
