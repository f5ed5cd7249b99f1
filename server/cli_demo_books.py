"""What runs in the demo: an experiment, a score feed and a campaign; where a book is in force, it is the user's own."""

import tomllib
from pathlib import Path
from typing import Final

from features.state import Endpoints, State

EXPERIMENT: Final = """
[[layers]]
id = "variety"
params = ["diversity", "mmr_lambda"]

[[experiments]]
key = "more-variety"
layer = "variety"
reserved = 1.0
ramp = 1.0
arms = [{ key = "control" }, { key = "mmr-70", params = { diversity = "mmr", mmr_lambda = 0.7 } }]
"""
PROMOTIONS: Final = """
[[feeds]]
id = "fugue"
payer = "Fugue Records"

[[campaigns]]
id = "fugue-catalogue"
feed = "fugue"

[[campaigns]]
id = "spring"
payer = "Nachtklang"
why = { en = "Nachtklang pays for its place this spring" }
"""
ONE_IN: Final = 10  # of the items, each campaign promotes in full


def apply(state: State, endpoints: Endpoints, tables: Path) -> tuple[str, str]:
    """The versions of the books of experiments and of promotions, applied where none is in force.

    The feed fades within an hour of its last confirmation; each demo confirms it.
    """
    return _experiments(state, endpoints), _promotions(state, endpoints, tables)


def _experiments(state: State, endpoints: Endpoints) -> str:
    from google.protobuf.json_format import ParseDict

    from protos.experiments.v1 import experiments_pb2
    from server import calling

    with calling.experiments(state, endpoints.control) as client:
        if known := calling.said(client, client.get_book).version:
            return known
        spec = ParseDict(tomllib.loads(EXPERIMENT), experiments_pb2.Spec())
        return calling.said(client, lambda: client.apply_book(spec, etag="")).book.version


def _promotions(state: State, endpoints: Endpoints, tables: Path) -> str:
    from google.protobuf.json_format import ParseDict
    from pyarrow import parquet

    from protos.promotions.v1 import promotions_pb2
    from server import calling

    with calling.promotions(state, endpoints.control) as client:
        known = calling.said(client, client.get_book)
        if known.version:
            if any(feed.id == "fugue" for feed in known.spec.feeds):
                calling.said(client, lambda: client.confirm_feed("fugue"))
            return known.version
        spec = ParseDict(tomllib.loads(PROMOTIONS), promotions_pb2.Spec())
        items = sorted(parquet.read_table(tables / "items.parquet", columns=["item_id"])["item_id"].to_pylist())
        for number, campaign in enumerate(spec.campaigns):
            promoted = items[number * ONE_IN // 2 :: ONE_IN]
            campaign.items.extend(promotions_pb2.PromotedItem(item_id=item, score=1.0) for item in promoted)
        return calling.said(client, lambda: client.apply_book(spec, etag="")).book.version
