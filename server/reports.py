"""What commands report: as tables for people, as JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from protos.admin.v1 import admin_pb2
from server.face import AS_TYPED, console, table
from server.memory import peak_bytes, readable

QUIET_SHARE: Final = 0.95  # of its core's time; with less, figures tell of the machine's other work too


def tables(folder: Path, summary: Any, seconds: float) -> None:
    """What `mantel world` or an import wrote, and the rows that it left out."""
    out = console()
    counts = f"{summary.items:,} items, {summary.listeners:,} listeners, {summary.listens:,} listens"
    out.print(f"{counts} in {seconds:.1f} s, peak memory (RSS) {readable(peak_bytes())} -> {folder}")
    if hasattr(summary, "report"):
        _rejected(summary.report.rows())


def build(report: Any, *, as_json: bool) -> None:
    """A BuildReport: what was built, how good it is, how long it took, what was rejected."""
    manifest = report.manifest
    if as_json:
        said = {"digest": report.digest, "items": manifest.items, "space_id": manifest.space_id}
        seconds = {stage: round(value, 3) for stage, value in report.seconds.items()}
        said |= {"index": dict(manifest.index), "figures": dict(report.figures), "seconds": seconds}
        said |= {"resumed": list(report.resumed)}
        names = ("table", "reason", "rows", "examples")
        print(json.dumps(said | {"rejected": [dict(zip(names, row, strict=True)) for row in report.rejections]}))
        return
    out = console()
    counts, index = manifest.built["counts"], manifest.index
    rows = [
        ("snapshot", report.digest[:12]),
        ("items", f"{manifest.items:,}"),
        ("listeners", f"{counts['listeners']:,}"),
        ("listens", f"{counts['listens']:,}"),
        ("index", f"{index['factory']}, nprobe {index['nprobe']}" if index["nprobe"] else index["factory"]),
        *((name, f"{value:.4g}") for name, value in report.figures.items()),
        *((f"seconds: {stage}", f"{seconds:.1f}") for stage, seconds in report.seconds.items()),
    ]
    if report.resumed:
        rows.append(("resumed", ", ".join(report.resumed)))
    rows.append(("peak memory (RSS)", readable(peak_bytes())))
    out.print(table("built", ("", "value"), rows))
    _rejected(report.rejections)


def drain(report: Any, served: Any, out: Path, *, as_json: bool) -> None:
    """A DrainReport and a ServedReport: what was moved, which events were known, and where it lies."""
    if as_json:
        print(json.dumps(asdict(report) | {"served": asdict(served)}))
        return
    rows = [
        ("events", f"{report.written:,}"),
        ("known already", f"{report.repeated:,}"),
        ("unreadable", f"{report.unreadable:,}"),
        ("of the forgotten, left out", f"{report.forgotten:,}"),
        ("of the forgotten, erased", f"{report.erased:,}"),
        ("days", ", ".join(report.days) or "none"),
        ("listens written anew", f"{report.listens:,}"),
        ("served pages", f"{served.pages:,}"),
        ("items shown", f"{served.items:,}"),
        ("pages of the forgotten, left out", f"{served.forgotten:,}"),
    ]
    console().print(table(f"drained -> {out}", ("", "value"), rows))


def evaluation(found: Any, *, as_json: bool) -> None:
    """An Evaluation: relevance per model, and paired differences with their intervals."""
    if as_json:
        said = {"relevance": [asdict(one) for one in found.relevance], "index": dict(found.index)}
        print(json.dumps(said | {"differences": {name: asdict(one) for name, one in found.differences.items()}}))
        return
    out, index = console(), found.index
    out.print(
        f"{found.listeners:,} listeners · {found.items:,} items · {found.train:,} train, {found.test:,} test listens"
    )
    out.print(f"served from {index['factory']}, nprobe {index['nprobe']}, recall {index['recall']:.3f}")
    rows = [
        (one.model, *(f"{x:.4f}" for x in (one.ndcg_10, one.recall_10, one.ndcg_20, one.recall_20)))
        for one in found.relevance
    ]
    out.print(table("relevance", ("model", "NDCG@10", "R@10", "NDCG@20", "R@20"), rows))
    rows = [
        (name, f"{one.mean:+.4f}", f"{one.relative:+.2%}", f"{one.relative_low:+.2%} … {one.relative_high:+.2%}")
        for name, one in found.differences.items()
    ]
    out.print(table("served against, NDCG@20, paired", ("model", "difference", "relative", "95 % interval"), rows))


def trade_offs(found: Sequence[Any], *, as_json: bool) -> None:
    """TradeOffs: relevance, diversity and calibration of each way to choose a page, against the plain one."""
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    rows = [
        (
            one.variant.name,
            *(text for figure in (one.ndcg_20, one.diversity, one.divergence) for text in _against(figure)),
        )
        for one in found
    ]
    columns = ("variant", "NDCG@20", "against plain", "diversity", "against plain", "KL", "against plain")
    console().print(table("chosen pages; differences paired by listener, with 95 % intervals", columns, rows))


def promotion_costs(found: Sequence[Any], *, as_json: bool) -> None:
    """Costs: relevance with promotion against without, and how much of it reaches listeners."""
    if as_json:
        print(json.dumps([asdict(one) for one in found]))
        return
    rows = [
        (
            one.name,
            f"{one.ndcg_20.reference + one.ndcg_20.mean:.4f}",
            f"{one.ndcg_20.relative:+.2%} [{one.ndcg_20.relative_low:+.2%}, {one.ndcg_20.relative_high:+.2%}]",
            f"{one.promoted:.2f}",
            f"{one.reached:.0%}",
            f"{one.loss_mean:.2%} / {one.loss_most:.2%}",
        )
        for one in found
    ]
    columns = ("promotion", "NDCG@20", "against organic", "by promotion", "shelves with any", "loss, mean / most")
    console().print(table("one item in twenty promoted; differences paired by listener", columns, rows))


def _against(figure: Any) -> tuple[str, str]:
    change = figure.difference
    span = f"{change.relative:+.1%} [{change.relative_low:+.1%}, {change.relative_high:+.1%}]"
    return f"{figure.mean:.4f}", span if change.mean else ""


def bench(conditions: Any, figures: Sequence[Any], *, as_json: bool) -> None:
    """Figures by stage, preset and batch; those of markets with all licences and with few; under which conditions."""
    sizes = [one for one in figures if one.licensed is None]
    markets = [one for one in figures if one.licensed is not None]
    if as_json:
        told = {"stages": [asdict(one) for one in sizes], "markets": [asdict(one) for one in markets]}
        print(json.dumps({"conditions": asdict(conditions)} | told))
        return
    out, now = console(), conditions
    rows = [(stage, *(f"{one.micros[stage]:,.1f}" for one in sizes)) for stage in sizes[0].micros]
    rows.append(("total", *(f"{one.total:,.1f}" for one in sizes)))
    columns = ("stage", *(f"{one.preset}, {one.batch}" for one in sizes))
    out.print(table("microseconds per request, by preset and requests in a batch", columns, rows))
    rows = [
        (f"{100 * one.licensed:.3g} % of the items", f"{one.total:,.1f}", f"{one.shelves:.1f}", f"{one.items:.1f}")
        for one in markets
    ]
    columns = ("the market may show", "us per request", "shelves a page", "items a page")
    out.print(table(f"licences: {markets[0].preset}, {markets[0].batch} requests in a batch", columns, rows))
    batches = dict.fromkeys(f"{one.batches:,} batches of {one.batch}" for one in sizes)
    index = f"{now.index}, {now.nprobe} cells searched" if now.nprobe else now.index
    versions = " · ".join(f"{name} {version}" for name, version in now.versions.items())
    lines = (
        f"medians of {', '.join(batches)} · records in, responses out: no gRPC, no Redis",
        f"{now.items:,} items · {index}, recall {now.recall:.3f} of the best {now.depth} · {now.snapshot}",
        f"{now.processor}, {now.cores} cores, one used · {versions}",
        f"load average {now.load_before:.2f} before, {now.load_after:.2f} after · had {now.core_share:.0%} of its core"
        + (": others were busy on it, so measure again" if now.core_share < QUIET_SHARE else ""),
    )
    out.print("\n".join(lines), **AS_TYPED)


def publish(report: Any, emptied: Path | None, sizes: Mapping[str, int], *, as_json: bool) -> None:
    """A PublishReport, the folder whose records were deleted, and the proportional set sizes at the end."""
    rate = report.loaded / report.load_s if report.loaded else 0.0
    each = report.memory_bytes / report.loaded if report.loaded else 0.0
    if as_json:
        said = {"digest": report.pointer.digest, "space_id": report.pointer.space_id, "listeners": report.listeners}
        said |= {
            "loaded": report.loaded,
            "forgotten": report.forgotten,
            "listeners_per_s": rate,
            "redis_bytes_per_listener": each,
        }
        print(json.dumps(said | {"on_disk": report.on_disk}))
        return
    out = console()
    out.print(f"published {report.pointer.digest[:12]}: {report.items:,} items, {report.listeners:,} listeners")
    if report.loaded:
        record = report.record_bytes / report.loaded
        out.print(f"loaded {report.loaded:,} in {report.load_s:.1f} s: {rate:,.0f} listeners/s")
        out.print(f"{record:,.0f} bytes a record, {each:,.0f} bytes of Redis a listener")
    else:
        out.print("every listener of this space was there already")
    if report.forgotten:
        out.print(f"left out {report.forgotten:,} who asked to be forgotten")
    out.print("Redis has them on disk" if report.on_disk else "Redis keeps them in memory only, as far as it says")
    if emptied is not None:
        out.print(f"the listener records were deleted from {emptied} (--keep-records keeps them)")
    shares = ", ".join(f"{name} {readable(size)}" for name, size in sizes.items())
    out.print(f"peak memory (RSS) {readable(peak_bytes())}; at the end, proportionally: {shares}")
    for digest in report.collected:
        out.print(f"removed {digest[:12]}, which nobody serves")


def snapshots(response: admin_pb2.ListSnapshotsResponse, *, as_json: bool) -> None:
    """The published snapshots."""
    if as_json:
        print(json.dumps(MessageToDict(response, preserving_proto_field_name=True)))
        return
    rows = [
        (
            f"{one.digest[:12]}{' *' if one.current else ''}",
            _when(one.published_at),
            f"{one.items:,}",
            f"{one.size_bytes / 1e6:,.1f} MB",
            one.workers,
        )
        for one in response.snapshots
    ]
    console().print(table("snapshots (* is served)", ("digest", "published", "items", "size", "workers"), rows))


def status(response: admin_pb2.GetStatusResponse, *, kept: str, as_json: bool) -> None:
    """What each worker believes; `kept` is the digest in the pointer file, which counts while the store is down."""
    if as_json:
        print(json.dumps(MessageToDict(response, preserving_proto_field_name=True)))
        return
    store = "up" if response.store_up else "down"
    pointer = response.current_digest[:12] or "none"
    if kept and not response.store_up:
        pointer = f"{kept[:12]} (of the pointer file)"
    console().print(f"mantel {response.version} · store {store} · pointer {pointer}", highlight=False)
    rows = [
        (
            one.pid,
            one.snapshot_digest[:12] or "none",
            one.started_at.ToDatetime().isoformat(" ", "seconds"),
            one.refusal,
        )
        for one in response.workers
    ]
    console().print(table("workers", ("worker", "snapshot", "up since", "refused"), rows))
    sizes = [(one.kind, one.pid, readable(one.pss_bytes)) for one in response.processes]
    total = ("all", "", readable(sum(one.pss_bytes for one in response.processes)))
    console().print(table("memory (proportional set size)", ("process", "pid", "memory"), [*sizes, total]))


def _when(time: Timestamp) -> str:
    return time.ToDatetime().isoformat(" ", "seconds")


def _rejected(rows: Sequence[tuple[str, str, int, tuple[str, ...]]]) -> None:
    if rows:
        shown = [(name, why, f"{count:,}", ", ".join(some)) for name, why, count, some in rows]
        console().print(table("rejected rows", ("table", "reason", "rows", "for example"), shown))
