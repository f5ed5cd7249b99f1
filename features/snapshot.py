"""A snapshot: an immutable folder with the catalogue as mapped columns, pre-encoded cards and an index.

`manifest.json` lists every file with its size and SHA-256; the snapshot's digest, which is its name and version, is the
SHA-256 of the manifest's bytes. Rows stand in the order of their item keys, so a key finds its row by binary search and
ties between scores break by item key.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntFlag
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from features.errors import SnapshotRefused
from features.index import FaissRetriever, Retriever

FORMAT: Final = 2
MANIFEST: Final = "manifest.json"
CARDS: Final = "cards.bin"
INDEX: Final = "index.faiss"
GENRES_PER_ITEM: Final = 8
NEIGHBOURS: Final = 64
SEGMENTS: Final = 32
_HASHING: Final = 2  # threads: half the time, and what serves beside it keeps its cores
UNKNOWN_DAY: Final = -(2**31)
FOREVER: Final = 2**63 - 1

# column -> (dtype, shape); N items, D dimension, W words of market bits, M items with neighbours, G genres,
# K one more than the markets (row 0: items allowed everywhere), P the depth of a list
COLUMNS: Final[Mapping[str, tuple[str, tuple[str | int, ...]]]] = {
    "item_key": ("<u8", ("N",)),  # ascending
    "vector": ("<f4", ("N", "D")),  # with its own norm
    "kind": ("|u1", ("N",)),  # mantel.home.v1.ItemKind
    "plays": ("<i8", ("N",)),
    "popularity": ("<f4", ("N",)),  # 0-1
    "released": ("<i4", ("N",)),  # days since 1970, UNKNOWN_DAY
    "limits": ("|u1", ("N",)),  # of Limit; 0: shown to everyone, always
    "market_bits": ("<u8", ("N", "W")),  # bit m: allowed in markets[m]; none set: everywhere
    "artist_key": ("<u8", ("N",)),  # 0: none
    "album_key": ("<u8", ("N",)),
    "recording_key": ("<u8", ("N",)),  # its own item key where no recording is named
    "genre": ("<i2", ("N", GENRES_PER_ITEM)),  # index into genres, first the weightiest; -1: none
    "available_from": ("<i8", ("N",)),  # unix seconds
    "available_until": ("<i8", ("N",)),  # unix seconds, FOREVER
    "neighbour_row": ("<i4", ("M",)),  # which rows have neighbours of their own, ascending
    "neighbour": ("<i4", ("M", NEIGHBOURS)),  # by cosine, best first; -1: none
    "neighbour_cosine": ("<f2", ("M", NEIGHBOURS)),
    "segment_mean": ("<f4", (SEGMENTS, "D")),  # of listeners' vectors
    "genre_centroid": ("<f4", ("G", "D")),
    "popular": ("<i4", ("K", "P")),  # rows by market, best first; -1: none
    "newest": ("<i4", ("K", "P")),
    "yty": ("<f4", ("D", "D")),  # item vectors' Gram matrix, for folding listeners in
    "card_offset": ("<u8", ("N+1",)),  # into cards.bin
}


class Limit(IntFlag):
    """What to look at before an item is shown: most have no limit, and one byte says so."""

    MARKETS = 1  # licensed in some markets only, by market_bits
    EXPLICIT = 2
    WINDOW = 4  # has a time, by available_from and available_until
    SHARED = 8  # other items are of the same recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a snapshot says of itself. The same data, settings and seed give the same bytes: no clock, no host."""

    format: int
    space_id: str  # 16 hex digits: the identity of the embedding space
    items: int
    dimension: int
    metric: str  # "inner_product"
    card_format: int  # the version of Item's static field numbers
    genres: tuple[str, ...]
    markets: tuple[str, ...]  # ISO 3166-1 alpha-2, ascending
    as_of: str  # the day of the newest listens, without the latest 0.1 %, ISO 8601; "" unknown
    index: Mapping[str, Any]  # factory, nprobe, depth, recall, faiss
    gate: Mapping[str, Any]  # the figures it was accepted with
    built: Mapping[str, Any]  # version, seed, settings, data digest, counts
    files: Mapping[str, Mapping[str, Any]]  # name -> sha256, bytes

    def to_bytes(self) -> bytes:
        """The manifest as canonical JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False).encode()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def digest_of(manifest: bytes) -> str:
    """The digest of a snapshot with these manifest bytes."""
    return hashlib.sha256(manifest).hexdigest()


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Reads a snapshot's manifest and its digest.

    Raises:
        SnapshotRefused: it is absent, is not JSON, lacks a field, or has another format.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        fields = json.loads(raw)
        if fields.get("format") != FORMAT:
            raise SnapshotRefused(f"{folder.name}: format {fields.get('format')}, this program reads {FORMAT}")
        for name in ("genres", "markets"):
            fields[name] = tuple(fields[name])
        manifest = Manifest(**fields)
    except FileNotFoundError as error:
        raise SnapshotRefused(f"{folder}: no {MANIFEST}; is this the folder that `mantel build` wrote?") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotRefused(f"{folder.name}: {MANIFEST} cannot be read: {error}") from error
    return manifest, digest_of(raw)


def verify(folder: Path) -> tuple[Manifest, str]:
    """Checks that every file is there with its size and SHA-256, and nothing is linked from elsewhere.

    Raises:
        SnapshotRefused: naming the file, what was found and what the manifest says.
    """
    manifest, digest = read_manifest(folder)
    expected = {f"{name}.npy" for name in COLUMNS} | {CARDS, INDEX}
    if set(manifest.files) != expected:
        odd = sorted(set(manifest.files) ^ expected)
        raise SnapshotRefused(f"{folder.name}: the manifest's files differ from the format's in {', '.join(odd)}")
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise SnapshotRefused(f"{folder.name}: {name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise SnapshotRefused(f"{name}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
    with ThreadPoolExecutor(_HASHING) as threads:
        found = threads.map(sha256_of, (folder / name for name in manifest.files))
    for (name, entry), sha256 in zip(manifest.files.items(), found, strict=True):
        if sha256 != entry["sha256"]:
            raise SnapshotRefused(f"{name}: SHA-256 {sha256[:12]}…, the manifest says {entry['sha256'][:12]}…")
    return manifest, digest


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A loaded snapshot: read-only columns over mapped files."""

    manifest: Manifest
    digest: str
    columns: Mapping[str, NDArray[Any]]
    cards: mmap.mmap | bytes
    retriever: Retriever
    market_index: Mapping[str, int] = field(default_factory=dict)

    @property
    def space_id(self) -> int:
        """The embedding space as an integer, as listener records carry it."""
        return int(self.manifest.space_id, 16)

    def rows_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The rows of item keys, `[key]`; -1 where this snapshot has no such item."""
        column = self.columns["item_key"]
        if not len(keys) or not len(column):
            return np.full(len(keys), -1, np.int64)
        rows = np.searchsorted(column, keys)
        rows[rows == len(column)] = 0
        return np.where(column[rows] == keys, rows, -1).astype(np.int64)


def items_of(folder: Path) -> NDArray[np.uint64]:
    """The item keys of a snapshot, ascending, mapped and not verified: to tell what it has, not to serve.

    Raises:
        SnapshotRefused: there is no such snapshot.
    """
    return _column(folder, "item_key", read_manifest(folder)[0])


def load(folder: Path, verifying: Callable[[Path], tuple[Manifest, str]] = verify) -> Snapshot:
    """Verifies a snapshot and maps it.

    Raises:
        SnapshotRefused: a file is missing or altered, a column has another shape, or a probe finds nothing.
    """
    manifest, digest = verifying(folder)
    columns = {name: _column(folder, name, manifest) for name in COLUMNS}
    with (folder / CARDS).open("rb") as file:
        cards: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if int(columns["card_offset"][-1]) != len(cards):
        raise SnapshotRefused(f"{CARDS}: {len(cards)} bytes, card_offset ends at {int(columns['card_offset'][-1])}")
    retriever = FaissRetriever(
        folder / INDEX, dimension=manifest.dimension, items=manifest.items, nprobe=int(manifest.index["nprobe"])
    )
    _probe(retriever, columns["genre_centroid"], columns["segment_mean"])
    return Snapshot(
        manifest=manifest,
        digest=digest,
        columns=columns,
        cards=cards,
        retriever=retriever,
        market_index={market: number for number, market in enumerate(manifest.markets)},
    )


def _column(folder: Path, name: str, manifest: Manifest) -> NDArray[Any]:
    dtype, shape = COLUMNS[name]
    try:
        # A plain array over the mapping: indexing np.memmap itself costs 2-3 us more each time.
        column: NDArray[Any] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError) as error:
        raise SnapshotRefused(f"{name}.npy: cannot be mapped: {error}") from error
    sizes = {
        "N": manifest.items,
        "N+1": manifest.items + 1,
        "D": manifest.dimension,
        "W": market_words(len(manifest.markets)),
        "G": len(manifest.genres),
        "K": len(manifest.markets) + 1,
    }
    sizes |= dict(zip(("M", "P"), (column.shape[0], column.shape[-1]), strict=True))  # free: the file says
    wanted = tuple(size if isinstance(size, int) else sizes[size] for size in shape)
    if column.dtype != np.dtype(dtype) or column.shape != wanted:
        raise SnapshotRefused(f"{name}.npy: {column.dtype} {column.shape}, the manifest says {dtype} {wanted}")
    return column


def market_words(markets: int) -> int:
    """How many 64-bit words hold one bit per market; at least one."""
    return max(1, -(-markets // 64))


def _probe(retriever: Retriever, *queries: NDArray[np.float32]) -> None:
    probe = np.ascontiguousarray(np.concatenate(queries)[:8], np.float32)
    scores, rows = retriever.search(probe, 1)
    if (rows < 0).any() or not np.isfinite(scores).all():
        raise SnapshotRefused(f"{INDEX}: a probe query found nothing")
