"""The secrets that sign page tokens and tracking tokens: a file that all machines share, and its rotation.

A new key verifies at once, and signs only when every worker has had time to read it; the one before verifies until the
next rotation.
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from features.errors import InvalidInput, WrongState
from features.state import State, write_whole

SECRET_BYTES: Final = 32
KEY_IDS: Final = 256
EVENTS_S: Final = 48 * 3600  # events may be so old, and bring tokens of then
_OTHERS: Final = 0o007


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """One secret; it is never shown."""

    id: int  # 0-255
    secret: bytes
    signs_from: int  # unix seconds

    def __repr__(self) -> str:
        """The key without its secret."""
        return f"SigningKey(id={self.id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeys:
    """The newest key, and the one before it."""

    newest: SigningKey
    previous: SigningKey | None = None

    def signer(self, now: float) -> SigningKey:
        """The key that signs."""
        if self.previous is not None and now < self.newest.signs_from:
            return self.previous
        return self.newest

    def of(self, key_id: int) -> SigningKey | None:
        """The key of an id; None where it is unknown, or too old."""
        known = (self.newest, self.previous)
        return next((one for one in known if one is not None and one.id == key_id), None)


class SigningFile:
    """The signing keys in force; `reload` follows changes of their file."""

    def __init__(self, state: State, path: Path | None) -> None:
        """Loads the keys; in the state directory they are made on first need, a path of the settings must be there.

        Raises:
            InvalidInput: they cannot be read.
        """
        self._path = path or state.signing_keys
        if path is None:
            with state.lock("signing-keys", wait=True, held=""):
                if not self._path.exists():
                    _write(self._path, SigningKeys(newest=_drawn(0, 0)))
        self._read = self._version()
        self._keys = read_signing_keys(self._path)

    def __call__(self) -> SigningKeys:
        """The keys in force."""
        return self._keys

    def reload(self) -> None:
        """Loads the keys anew if their file has changed.

        Raises:
            InvalidInput, OSError: they cannot be read, and stay as they were.
        """
        found = self._version()
        if found != self._read:
            self._keys = read_signing_keys(self._path)
            self._read = found

    def _version(self) -> tuple[int, int]:
        """Tells versions of the file apart: it is replaced whole."""
        try:
            found = self._path.stat()
        except FileNotFoundError as error:
            raise _no_keys(self._path) from error
        return found.st_ino, found.st_mtime_ns


def read_signing_keys(path: Path) -> SigningKeys:
    """The keys in a file.

    Raises:
        InvalidInput: there is none, others than its owner and group may read it, or it holds no keys.
    """
    try:
        if path.stat().st_mode & _OTHERS:
            raise InvalidInput(("signing_keys", f"{path} is open to everybody: chmod o= {path}"))
        newest, *older = map(_key, json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise _no_keys(path) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput(("signing_keys", f"{path} cannot be read: {type(error).__name__}")) from error
    return SigningKeys(newest=newest, previous=older[0] if older else None)


def _key(entry: dict[str, Any]) -> SigningKey:
    key = SigningKey(**{**entry, "secret": bytes.fromhex(entry["secret"])})
    if len(key.secret) < SECRET_BYTES or not 0 <= key.id < KEY_IDS:
        raise ValueError("too short, or an id that is no byte")
    return key


def rotate(
    state: State, path: Path | None, *, after_s: int, force: bool, now: Callable[[], float] = time.time
) -> SigningKeys:
    """Draws a new key, which signs after a while, and keeps the newest so far to verify; makes a file where none is.

    Raises:
        WrongState: the newest key is so young that events may come with tokens of the one before, unless forced.
    """
    where = path or state.signing_keys
    with state.lock("signing-keys", wait=True, held=""):
        if not where.exists():
            keys = SigningKeys(newest=_drawn(0, 0))
        else:
            before = read_signing_keys(where).newest
            if before.signs_from and now() < before.signs_from + EVENTS_S and not force:
                raise WrongState(
                    f"key {before.id} is younger than 48 hours: events may still bring tokens of the one before it; "
                    "--force refuses those from now on"
                )
            keys = SigningKeys(newest=_drawn((before.id + 1) % KEY_IDS, int(now()) + after_s), previous=before)
        _write(where, keys)
    return keys


def _drawn(key_id: int, signs_from: int) -> SigningKey:
    return SigningKey(id=key_id, secret=secrets.token_bytes(SECRET_BYTES), signs_from=signs_from)


def _write(path: Path, keys: SigningKeys) -> None:
    known = [one for one in (keys.newest, keys.previous) if one is not None]
    content = json.dumps([asdict(one) | {"secret": one.secret.hex()} for one in known], indent=1).encode()
    write_whole(path, content, mode=0o600, durable=True)


def _no_keys(path: Path) -> InvalidInput:
    return InvalidInput(("signing_keys", f"no file {path}; `mantel tokens rotate-signing-key` makes one"))
