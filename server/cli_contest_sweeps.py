"""`mantel bench --full`: servers that differ in one thing from GetHome with nothing changed, beside it in one run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

import uvloop

from features.state import State
from loadtest import contest
from loadtest.contest import Plan, Progress, Row
from loadtest.contest_tries import Tries, repeated
from loadtest.contest_verdict import Contest, verdict
from server.cli_bench_world import Ground, at_hand, ground
from server.cli_contest import asking, contestant, default, told, two_cores
from server.cli_contest_books import Live
from server.cli_contest_servers import Ours, Serving, keeping_to, serving
from server.memory import private_bytes, pss_bytes

MAKES: Final = "mantel bench --items {0} --stages --rounds 1"  # a world, and measures little


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Servers of which the first has nothing changed."""

    name: str
    ours: tuple[Ours, ...]
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # figure -> whose rate, against whose
    sizes: Mapping[str, int] = field(default_factory=dict)  # of servers that differ in their catalogue, its items
    left_out: tuple[str, ...] = ()  # what is, and what it would take


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a server was seen to need."""

    ready_s: float
    private_mb: float  # of its largest worker
    memory_gb: float  # of all its processes and its Redis, what they share counted once


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep came to."""

    sweep: Sweep
    tries: Tries
    standing: Mapping[str, Standing]  # after the last try, by server


def sweeps(on: Ground, place: State) -> Iterator[Sweep]:
    """What `[full]` of the rules says; catalogues are those that `place` keeps."""
    limits, names = contest.rules()["full"], asking(on.records)
    usual = default(on, names)
    yield _of_items(on, usual, place, limits["items"])
    none = Live(experiments=0, campaigns=0, items=0, eligible=0.0)
    many = replace(none, experiments=limits["experiments"])
    sold = replace(
        none, campaigns=limits["campaigns"], items=limits["campaign_items"], eligible=usual.books.live.eligible
    )
    cases = {
        "no experiment, no campaign": none,
        f"{many.experiments:,} experiments": many,
        f"{sold.campaigns:,} campaigns": sold,
        "both": replace(sold, experiments=many.experiments),
    }
    changed = [replace(default(on, names, live), name=name) for name, live in cases.items()]
    quiet, *_, both = cases
    yield Sweep(name="experiments and campaigns", ours=(usual, *changed), ratios={"live": (both, quiet)})
    for setting, values in limits["settings"].items():
        tried = [replace(usual, name=f"{setting} {value}", settings={setting: str(value)}) for value in values]
        yield Sweep(name=setting, ours=(usual, *tried))
    more = replace(usual, name=f"{limits['workers']} workers on the core", workers=limits["workers"])
    yield Sweep(name="workers", ours=(usual, more))


def swept(sweep: Sweep, on: Ground, plan: Plan, limits: Mapping[str, int], tell: Progress) -> Swept:
    """Runs a sweep, with the most calls in flight of a plan."""
    cores, most = two_cores(), replace(plan, in_flight=[max(plan.in_flight)])
    standing: Mapping[str, Standing] = {}
    with ExitStack() as stack:
        servers = {
            one.name: stack.enter_context(serving(one, cores, room=on.room / f"sweep-{number}"))
            for number, one in enumerate(sweep.ours)
        }
        stack.enter_context(keeping_to(cores[1]))
        helpers = frozenset().union(*(one.helpers for one in servers.values()))
        contestants = [contestant(one.name, servers[one.name], one.requests) for one in sweep.ours]

        def run() -> Contest:
            nonlocal standing
            rows = uvloop.run(contest.run(contestants, most, cores=cores, helpers=helpers, progress=tell))
            standing = {name: _stands(one) for name, one in servers.items()}
            found = verdict(rows, dict(_figures(sweep, rows, standing)), contest.rules())
            return Contest(rows=rows, verdict=found, twin_stages={}, live=told(sweep.ours[0].books))

        tries = repeated(run, limits)
    return Swept(sweep=sweep, tries=tries, standing=standing)


def _of_items(on: Ground, usual: Ours, place: State, sizes: Sequence[int]) -> Sweep:
    """The catalogues that are kept, beside that which is measured; each is asked by its own listeners."""
    ours, missing, own = [usual], list[str](), on.snapshot.manifest.items
    known = {usual.name: own}
    for items in (size for size in sizes if size != own):
        if (folder := at_hand(place, items)) is None:
            missing.append(
                f"{items:,} items are left out, no world of so many is kept; to make one: {MAKES.format(items)}"
            )
            continue
        larger = ground(place, folder)
        ours.append(replace(default(larger, asking(larger.records)), name=f"{items:,} items"))
        known[ours[-1].name] = items
    least = own == sizes[0]
    ratios = {f"items_{items}": (name, usual.name) for name, items in known.items() if least and items != own}
    return Sweep(name="items", ours=tuple(ours), ratios=ratios, sizes=known, left_out=tuple(missing))


def _figures(sweep: Sweep, rows: Sequence[Row], standing: Mapping[str, Standing]) -> Iterator[tuple[str, float]]:
    """The design's figures of a sweep."""
    rate = {row.name: row.rate for row in rows}
    for figure, (one, other) in sweep.ratios.items():
        yield figure, rate[one] / rate[other]
    known = contest.rules()["floors"]
    if sweep.sizes:
        yield "private_mb", max(standing[name].private_mb for name in sweep.sizes)
    for name, items in sweep.sizes.items():
        for figure in ("ready_s", "memory_gb"):
            if f"{figure}_{items}" in known:
                yield f"{figure}_{items}", getattr(standing[name], figure)


def _stands(one: Serving) -> Standing:
    return Standing(
        ready_s=one.ready_s,
        private_mb=max(map(private_bytes, one.workers)) / 1e6,
        memory_gb=sum(map(pss_bytes, one.workers | one.helpers)) / 1e9,
    )
