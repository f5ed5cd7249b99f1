"""What was read of each table, and what was dropped of it for which reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

EXAMPLES: Final = 5
REPEATED: Final = "is repeated; the first row stands"
"""Ends the reason of a row that says again what another has said: it is dropped, but it is not bad."""
FORGOTTEN: Final = "tells of before its listener was forgotten"
"""The reason of a row that is left out though nothing is wrong with it; it has no examples."""


class Rejections:
    """Rows that were dropped: how many for which reason, with at most five examples each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}
        self._read: Counter[str] = Counter()

    def begin(self, table: str) -> None:
        """Forget what an earlier pass over the table found."""
        self._found = {key: found for key, found in self._found.items() if key[0] != table}
        del self._read[table]

    def read(self, table: str, count: int) -> None:
        """Count rows that were looked at, good or bad."""
        self._read[table] += count

    def add(self, table: str, reason: str, count: int, examples: Sequence[str]) -> None:
        """Count more rows of a table under a reason."""
        before, kept = self._found.get((table, reason), (0, ()))
        self._found[table, reason] = (before + count, (*kept, *examples)[:EXAMPLES])

    def rows(self) -> list[tuple[str, str, int, tuple[str, ...]]]:
        """List (table, reason, count, examples), by table and reason."""
        return [(*key, *found) for key, found in sorted(self._found.items())]

    def counts(self) -> dict[str, dict[str, int]]:
        """Give the number of dropped rows by table and reason."""
        tables: dict[str, dict[str, int]] = {}
        for table, reason, count, _ in self.rows():
            tables.setdefault(table, {})[reason] = count
        return tables

    def share(self) -> float:
        """Give the bad rows of all tables over those read; repeated ones, and those of the forgotten, are not bad."""
        bad = sum(count for _, reason, count, _ in self.rows() if not reason.endswith((REPEATED, FORGOTTEN)))
        return bad / max(1, self._read.total())

    def said(self) -> dict[str, Any]:
        """All of it as JSON, for `restore`."""
        return {"read": dict(self._read), "rows": self.rows()}

    def restore(self, said: Mapping[str, Any]) -> None:
        """Becomes what `said` told."""
        self._read = Counter(said["read"])
        self._found = {(table, reason): (count, tuple(few)) for table, reason, count, few in said["rows"]}
