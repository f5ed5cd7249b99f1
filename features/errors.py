"""The one tree of Mantel's errors; `server/errors.py` translates it to gRPC, the command line to an exit code.

MantelError
├── InvalidInput        the caller's: wrong whatever the state; names the field
├── PermissionRefused   the caller's: lacks a role
├── Unauthenticated     the caller's: no identity
├── NotFound            the caller's: names something that is not there
├── WrongState          the caller's: right in another state
├── StaleEtag           the caller's: what it looked at has changed since
├── ListeningError      the data's: a table or a column cannot be used
├── SnapshotRefused     the artefact's: incomplete, altered, or of another format
├── BookRefused         the artefact's: altered, or breaking a rule
├── GateRefused         the artefact's: built well, but not good enough to serve
├── Exhausted           ours, for now: a bound is reached, and passing it would endanger the rest
├── DeadlineExceeded    time's: the caller's deadline has passed
└── Unavailable         ours, for now: a dependency or a snapshot is not there
"""


class MantelError(Exception):
    """Anything that Mantel refuses, with a message that a person can act on."""


class InvalidInput(MantelError):
    """A value that is wrong whatever the state.

    `violations` holds pairs of a field path and what is wrong with it; values are never repeated.
    """

    def __init__(self, *violations: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {what}" for field, what in violations))
        self.violations = violations


class PermissionRefused(MantelError):
    """The caller is known, but lacks a role."""


class Unauthenticated(MantelError):
    """The caller is not known."""


class NotFound(MantelError):
    """What the caller names is not there."""


class WrongState(MantelError):
    """What the caller asks is not possible in the present state."""


class StaleEtag(MantelError):
    """What the caller looked at has changed since: look again."""


class ListeningError(MantelError):
    """A listening table cannot be used."""


class SnapshotRefused(MantelError):
    """A snapshot is incomplete, altered, or of another format."""


class BookRefused(MantelError):
    """A book of live configuration is altered, or breaks a rule."""


class GateRefused(MantelError):
    """A snapshot misses the limits of offline acceptance."""


class Exhausted(MantelError):
    """A bound is reached; nothing was done."""


class DeadlineExceeded(MantelError):
    """The caller's deadline has passed before work began."""


class Unavailable(MantelError):
    """A dependency or the first snapshot is not there yet."""
