"""Samples: all that a served page was made from, so that it can be made again, bit for bit.

A sample is JSON, with the lengths of the blobs that stand behind it. It holds what a listener did and likes: whoever
asked to be forgotten has none.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from features.listeners import Frames, Known
from features.served_files import all_files
from features.served_frames import SAMPLE, frames_of
from features.served_pages import Versions

VERSION: Final = 1
_HEAD: Final = struct.Struct("<I")  # bytes of JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One served page, with what it was made from."""

    page_id: str
    served_ms: int
    user_id: str
    surface: str
    program: str  # the version of this program
    versions: Versions
    method: str
    roles: tuple[str, ...]  # of the caller
    now: int  # of the query
    confirmed: dict[str, int]  # when the feeds of its promotion book were confirmed, unix seconds
    missing: int  # of Known
    request: bytes
    page: bytes  # what was served, as the edge writes it
    frames: dict[str, bytes | None]  # what was stored of the listener, by the names of Frames

    @property
    def listener(self) -> Frames:
        """The listener as they were read.

        Raises:
            ValueError: another version of this program read them.
        """
        rows: dict[str, Any] = {name: [frame] for name, frame in self.frames.items()}
        try:
            return Frames(**rows, missing=Known(self.missing))
        except TypeError as error:
            raise ValueError("read of a listener by another version") from error


def row_of(frames: Frames, place: int) -> dict[str, bytes | None]:
    """What was read of one listener of a batch, by the names of Frames."""
    names = (one.name for one in fields(Frames) if one.name != "missing")
    return {name: getattr(frames, name)[place] for name in names}


def encode_sample(sample: Sample) -> bytes:
    """Writes a sample."""
    said = {**_told(sample), "version": VERSION}
    blobs = {"request": sample.request, "page": sample.page, **sample.frames}
    said["blobs"] = {name: None if blob is None else len(blob) for name, blob in blobs.items()}
    text = json.dumps(said).encode()
    return b"".join((_HEAD.pack(len(text)), text, *(blob for blob in blobs.values() if blob is not None)))


def decode_sample(raw: bytes) -> Sample:
    """Reads what `encode_sample` wrote.

    Raises:
        ValueError: it was not, or by another version.
    """
    try:
        (size,) = _HEAD.unpack_from(raw)
        place = _HEAD.size + size
        said: Any = json.loads(raw[_HEAD.size : place])
        if said.pop("version") != VERSION:
            raise ValueError("a sample of another version")
        blobs: dict[str, bytes | None] = {}
        for name, length in said.pop("blobs").items():
            blobs[name] = None if length is None else raw[place : place + length]
            place += length or 0
        request, page = blobs.pop("request") or b"", blobs.pop("page") or b""
        said |= {"versions": Versions(*said["versions"]), "roles": tuple(said["roles"])}
        return Sample(**said, request=request, page=page, frames=blobs)
    except (struct.error, TypeError, KeyError, AttributeError) as error:
        raise ValueError("not a sample") from error


def samples_in(folder: Path) -> Iterator[Sample | None]:
    """The samples of a folder, oldest first; None for one that this version cannot read."""
    for path in all_files(folder):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue  # removed by a worker that needs room
        for frame in frames_of(raw):
            try:
                yield decode_sample(frame.body) if frame.kind == SAMPLE else None
            except ValueError:
                yield None


def _told(sample: Sample) -> dict[str, Any]:
    """What of a sample is no blob."""
    return {name: value for name, value in asdict(sample).items() if name not in {"request", "page", "frames"}}
