"""The experiment book: an immutable version of what runs, and of which buckets were drawn for it.

Its JSON is canonical, its name the SHA-256 of that. Owner arrays lie beside it as blobs, named in it by their SHA-256.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from features.errors import BookRefused
from ranking.experiments.owners import MOST_HOLDERS, Owners, holder, pack, unpack
from ranking.experiments.rules import mistakes
from ranking.experiments.spec import BUCKETS, MAX_JSON, Spec
from ranking.written import Digest, Name, Violation, Written, refused, violations


class Ledger(Written):
    """A book as its JSON says it."""

    format: Literal[1] = 1
    spec: Spec
    owners: dict[Name, Digest]  # layer -> the blob of its owner array
    numbers: dict[Name, Annotated[int, Field(ge=1, le=MOST_HOLDERS)]]  # running experiment -> its number as a holder
    iterations: dict[Name, Annotated[int, Field(ge=1)]]  # the last of every experiment that ever was
    seed: int = Field(ge=0)  # its draws were made with


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """A book with its owner arrays."""

    ledger: Ledger
    owners: Mapping[str, Owners]  # layer -> [bucket]; a layer without running experiments has none
    raw: bytes  # the canonical JSON
    blobs: Mapping[str, bytes]  # by digest
    digest: str

    @property
    def spec(self) -> Spec:
        """What is to run."""
        return self.ledger.spec


def bind(
    spec: Spec, owners: Mapping[str, Owners], numbers: dict[str, int], iterations: dict[str, int], seed: int
) -> Book:
    """A book of its parts."""
    packed = {layer: pack(array) for layer, array in owners.items()}
    digests = {layer: digest_of(blob) for layer, blob in packed.items()}
    ledger = Ledger(spec=spec, owners=digests, numbers=numbers, iterations=iterations, seed=seed)
    raw = canonical(ledger)
    blobs = {digests[layer]: blob for layer, blob in packed.items()}
    return Book(ledger=ledger, owners=owners, raw=raw, blobs=blobs, digest=digest_of(raw))


def digest_of(content: bytes) -> str:
    """The SHA-256 of a book's JSON or of a blob, which is its name."""
    return hashlib.sha256(content).hexdigest()


def canonical(ledger: Ledger) -> bytes:
    """The one JSON of a book: keys sorted, no spaces."""
    said = ledger.model_dump(mode="json")
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_ledger(raw: bytes, digest: str) -> Ledger:
    """A book's JSON, which names its blobs; its size is looked at before anything is parsed.

    Raises:
        BookRefused: it is too large, altered, or breaks a rule.
    """
    if len(raw) > MAX_JSON:
        raise BookRefused(f"the JSON is larger than {MAX_JSON:,} bytes")
    if digest_of(raw) != digest:
        raise BookRefused("the JSON is not what its name says")
    try:
        ledger = Ledger.model_validate_json(raw)
    except ValidationError as error:
        raise refused(violations(error)) from error
    of_spec = ((f"spec.{path}", what) for path, what in mistakes(ledger.spec))
    if wrong := [*of_spec, *_of_numbers(ledger)]:
        raise refused(wrong)
    return ledger


def read_book(raw: bytes, ledger: Ledger, blobs: Mapping[str, bytes]) -> Book:
    """A book from its JSON, as `read_ledger` read it, and its blobs.

    Raises:
        BookRefused: a blob is missing or altered, or the arrays are not what the JSON says.
    """
    owners: dict[str, Owners] = {}
    for layer, digest in ledger.owners.items():
        blob = blobs.get(digest, b"")
        if digest_of(blob) != digest:
            raise BookRefused(f"owners.{layer}: the blob is missing or altered")
        try:
            owners[layer] = unpack(blob)
        except ValueError as error:
            raise BookRefused(f"owners.{layer}: {error}") from error
    if wrong := list(_of_owners(ledger, owners)):
        raise refused(wrong)
    return Book(ledger=ledger, owners=owners, raw=raw, blobs=dict(blobs), digest=digest_of(raw))


def moved(before: Book, after: Book) -> list[Violation]:
    """Which running experiments lost buckets between two books, next to each other or not: listeners would move."""
    running = after.spec.running
    going_on = [old for key, old in before.spec.running.items() if key in running and running[key].salt == old.salt]
    lost = {one.key for one in going_on if one.layer != running[one.key].layer or one.arms != running[one.key].arms}
    for layer in {one.layer for one in going_on if one.key not in lost}:
        own = [one.key for one in going_on if one.layer == layer and one.key not in lost]
        lost |= _lost(before, after, layer, own)
    return [(f"experiments.{key}", "its buckets or arms are not those that listeners were drawn for") for key in lost]


def _lost(before: Book, after: Book, layer: str, keys: list[str]) -> set[str]:
    """Those of a layer's experiments that hold or serve less than all that they did."""
    becomes = np.zeros(2 * MOST_HOLDERS + 2, np.uint16)  # of an entry
    was = {before.ledger.numbers[key]: key for key in keys}
    for number, key in was.items():
        becomes[2 * number : 2 * number + 2] = 2 * after.ledger.numbers[key] + np.arange(2)
    old, new = before.owners[layer], after.owners[layer]
    expected = becomes[old]
    fell = (expected != 0) & ((holder(expected) != holder(new)) | ((expected & 1) > (new & 1)))
    return {was[number] for number in np.unique(holder(old[fell])).tolist()}


def _of_numbers(ledger: Ledger) -> Iterator[Violation]:
    running = ledger.spec.running
    seen: dict[tuple[str, int], str] = {}
    for key, number in ledger.numbers.items():
        if key not in running:
            yield f"numbers.{key}", "is of no running experiment"
        elif other := seen.get((running[key].layer, number)):
            yield f"numbers.{key}", f"overlaps with {other}: the number is that of both"
        else:
            seen[running[key].layer, number] = key
    for key, one in running.items():
        if key not in ledger.numbers:
            yield f"numbers.{key}", "is missing"
        if one.layer not in ledger.owners:
            yield f"owners.{one.layer}", "is missing"
    for one in ledger.spec.experiments:
        if ledger.iterations.get(one.key, 0) < one.iteration:
            yield f"iterations.{one.key}", "is less than the experiment's"


def _of_owners(ledger: Ledger, owners: Mapping[str, Owners]) -> Iterator[Violation]:
    """Each holder has as many buckets, and as many live ones, as its experiment says, and nobody else has any."""
    for layer, array in owners.items():
        held = np.bincount(array, minlength=2 * MOST_HOLDERS + 2)
        for key, one in ledger.spec.running.items():
            if one.layer == layer:
                entry = 2 * ledger.numbers[key]
                waiting, served = int(held[entry]), int(held[entry + 1])
                if (waiting + served, served) != (one.reserved_buckets, one.live_buckets):
                    yield f"owners.{layer}", f"{key} holds {waiting + served:,} buckets and serves {served:,}"
                held[entry : entry + 2] = 0
        if stray := int(held[1:].sum()):
            yield f"owners.{layer}", f"{stray:,} of {BUCKETS:,} buckets are of no running experiment"
