"""The catalogue of a snapshot: cards and columns that say what the table `items` says."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import snapshot as snapshot_format
from features.errors import ListeningError
from features.keys import item_keys
from features.offline import catalogue
from features.offline.build import BuildSettings, build
from features.offline.cards import KINDS, encode_cards, item_id_of
from features.snapshot import Limit, Snapshot
from protos.home.v1.home_pb2 import Item, ItemKind
from tests.conftest import quiet
from tests.tables import write_tables


def items_in_order(world: Path) -> pl.DataFrame:
    """The table `items` in the order of item keys."""
    items = pl.read_parquet(world / "items.parquet")
    return items.with_columns(key=pl.Series(item_keys(items["item_id"]))).sort("key")


def test_every_card_parses_to_the_fields_of_its_item(world: Path, snapshot: Snapshot) -> None:
    """Protobuf writes the same bytes for an item's static fields."""
    offsets = snapshot.columns["card_offset"].tolist()
    for row, item in enumerate(items_in_order(world).iter_rows(named=True)):
        fields: Any = {name: item[name] or "" for name in ("item_id", "title", "subtitle", "image_uri")}
        expected = Item(
            kind=ItemKind.Value(f"ITEM_KIND_{item['kind'].upper()}"), explicit=bool(item["explicit"]), **fields
        )
        assert snapshot.cards[offsets[row] : offsets[row + 1]] == expected.SerializeToString(deterministic=True)


def test_kinds_are_numbered_as_in_the_contract() -> None:
    """Each kind of the tables is one of ItemKind, and all but the unspecified are there."""
    assert {f"ITEM_KIND_{name.upper()}": number for name, number in KINDS.items()} == dict(ItemKind.items()[1:])


@pytest.mark.parametrize("size", [1, 127, 128, 16_384])
def test_a_card_of_any_length_parses(size: int) -> None:
    """Lengths of one, two and three bytes are written as protobuf reads them."""
    item_id = "i" * min(size, 128)
    (card,) = encode_cards([(item_id, KINDS["audiobook"], "ü" * size, "", "", True)])
    assert Item.FromString(card) == Item(
        item_id=item_id, kind=ItemKind.ITEM_KIND_AUDIOBOOK, title="ü" * size, explicit=True
    )
    assert item_id_of(card) == item_id


def test_columns_are_what_the_table_says(world: Path, snapshot: Snapshot) -> None:
    """Keys, genres, markets, times and flags of every item, with the meanings of absent values."""
    items, columns, manifest = items_in_order(world), snapshot.columns, snapshot.manifest
    assert columns["item_key"].tolist() == items["key"].to_list()
    assert (np.diff(columns["item_key"].astype(object)) > 0).all()
    genres = [[manifest.genres[index] for index in row if index >= 0] for row in columns["genre"]]
    assert genres == [list(names) for names in items["genres"].fill_null([])]
    bits = [
        [market for place, market in enumerate(manifest.markets) if int(row[0]) >> place & 1]
        for row in columns["market_bits"]
    ]
    assert bits == [sorted(names) for names in items["markets"].fill_null([])]
    assert ((columns["limits"] & Limit.EXPLICIT) > 0).tolist() == items["explicit"].fill_null(value=False).to_list()
    artists = [
        int(item_keys([artist])[0]) if artist else key if kind == "artist" else 0
        for artist, kind, key in items.select("artist_id", "kind", "key").iter_rows()
    ]
    assert columns["artist_key"].tolist() == artists
    days = items["released"].cast(pl.Int32).fill_null(snapshot_format.UNKNOWN_DAY)
    assert columns["released"].tolist() == days.to_list()
    until = items["available_until"].dt.epoch("s").fill_null(snapshot_format.FOREVER)
    assert columns["available_until"].tolist() == until.to_list()


def test_plays_add_up_and_nothing_is_lost(world: Path, snapshot: Snapshot) -> None:
    """An item's plays are the sum over its listens."""
    listens = pl.read_parquet(world / "listens").group_by("item_id").agg(pl.col("plays").sum())
    rows = snapshot.rows_of(item_keys(listens["item_id"]))
    assert snapshot.columns["plays"][rows].tolist() == listens["plays"].to_list()
    assert snapshot.columns["plays"].sum() == listens["plays"].sum()


def test_a_collision_of_item_keys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items of one key are named; one of them must be renamed."""
    monkeypatch.setattr(catalogue, "item_keys", lambda names: np.full(len(names), 5, np.uint64))
    data = write_tables(tmp_path / "data", items=[{"item_id": "a"}, {"item_id": "b"}], listens=[])
    with pytest.raises(ListeningError, match="items a and b have the same key 5"):
        build(data, tmp_path / "out", settings=BuildSettings(), progress=quiet)
