"""What the commands of experimenters report: as tables for people, as JSON for programs."""

import json
from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from protos.experiments.v1 import experiments_pb2
from ranking.params import PARAMS, named
from server.face import console, table

_BUCKETS: Final = 1_000_000


def applied(response: experiments_pb2.ApplyBookResponse, *, before: str, check: bool, as_json: bool) -> None:
    """The book that was applied, or would be."""
    if as_json:
        _print(response)
        return
    version = response.book.version
    if check:
        said = "it may be applied; nothing was changed"
    elif version == before:
        said = f"book {version[:12]} is in force already"
    else:
        said = f"book {version[:12]} is in force; workers follow within 2 s"
    console().print(_experiments(response.experiments))
    console().print(said)


def listed(response: experiments_pb2.ListExperimentsResponse, *, as_json: bool) -> None:
    """The experiments in force, and what each layer has left."""
    if as_json:
        _print(response)
        return
    out = console()
    out.print(f"book {response.version[:12] or 'none'}", highlight=False)
    out.print(_experiments(response.experiments))
    rows = [(one.id, ", ".join(one.params), f"{one.free_buckets / _BUCKETS:.1%}") for one in response.layers]
    out.print(table("layers", ("layer", "params", "free"), rows))


def explained(response: experiments_pb2.ExplainAssignmentResponse, *, as_json: bool) -> None:
    """What each layer comes to for a listener."""
    if as_json:
        _print(response)
        return
    rows = [
        (
            one.layer,
            f"{one.bucket:,}",
            one.experiment,
            one.arm or "(defaults)",
            one.reason,
            ", ".join(f"{name}={value}" for name, value in sorted(one.params.items())),
        )
        for one in response.outcomes
    ]
    columns = ("layer", "bucket", "experiment", "arm", "why", "params")
    console().print(table(f"book {response.version[:12] or 'none'}", columns, rows))


def params(layers: Mapping[str, str], *, as_json: bool) -> None:
    """What may be overridden; `layers` says to which each param belongs."""
    rows = [
        (
            one.name,
            layers.get(one.name, ""),
            ", ".join(one.choices) or f"{one.low:g} … {one.high:g}",
            named(one, one.default),
            one.unit,
            one.meaning,
        )
        for one in PARAMS
    ]
    columns = ("param", "layer", "range", "default", "unit", "meaning")
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False))
        return
    console().print(table("params", columns, rows))


def _experiments(found: Iterable[experiments_pb2.ExperimentStatus]) -> object:
    rows = [
        (
            f"{one.key} {one.iteration}" if one.iteration > 1 else one.key,
            one.layer,
            one.state,
            f"{one.live_buckets / _BUCKETS:.1%} of {one.reserved_buckets / _BUCKETS:.1%}",
            ", ".join(map(_arm, one.arms)),
        )
        for one in found
    ]
    return table("experiments", ("experiment", "layer", "state", "served", "arms"), rows)


def _arm(arm: experiments_pb2.Arm) -> str:
    values = MessageToDict(arm).get("params", {})
    said = ", ".join(f"{name}={value}" for name, value in sorted(values.items()))
    return f"{arm.weight} {arm.key}{f' ({said})' if said else ''}"


def _print(message: Message) -> None:
    print(json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False))
