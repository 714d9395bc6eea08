"""Which index SQLite reads a page of rows by. PostgreSQL decides that for itself, from statistics.

The counts that triggers keep (`models.JobCount`, `LockCount`) say how many jobs have a status or a
type, and how many locks there are. With 300,000 jobs and as many locks, in milliseconds:

| a first page of ten, with its count | here | SQLite alone, and `COUNT(*)` | after `ANALYZE` |
| --- | --- | --- | --- |
| of all jobs | 0.1 | 14 | 14 |
| of all locks | 0.1 | 19 | 16 |
| of one type | 0.1 | 37 | 35 |
FIGURES
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

#: Returns how many rows match filters, or `None` if that takes counting.
QuickCount = Callable[[Mapping[str, Any]], int | None]


def no_quick_count(wanted: Mapping[str, Any]) -> None:
    """Count nothing without reading it."""


class IndexChoice:
    """Chooses the filter whose index may be used; `None` is the index of the page's order.

    Args:
        filters: those that usually leave the fewest rows first. Each has an index that goes on in
            the default order.
        quick_count: returns how many rows match some filters, if that is known.
    """

    def __init__(self, filters: Sequence[str], quick_count: QuickCount) -> None:
        self._filters = filters
        self._quick_count = quick_count

    def narrowest(self, wanted: Container[str]) -> str | None:
        """Return the one of these filters that usually leaves the fewest rows."""
        return next((name for name in self._filters if name in wanted), None)

    def quickest(self, wanted: Mapping[str, Any], default_order: bool, end: int) -> str | None:
        """Return the filter whose index gives a page after the fewest rows.

        Of one value an index has the rows in the default order. Of several, or for another order,
        all of them must be read and sorted; then it may be quicker to read the table in the order
        of the page, and to pass over what does not match.

        Args:
            wanted: the filters, and what they ask for.
            default_order: whether that is the order of the page.
            end: how many rows there are to the end of the page.
        """
        matching = self._quick_count(wanted)
        if not wanted or matching is None:
            return self.narrowest(wanted)
        rows = {name: self._rows({name: value}) for name, value in wanted.items()}
        name = min(rows, key=lambda name: rows[name])
        sorts = not default_order or (isinstance(wanted[name], list) and len(wanted[name]) > 1)
        passed = end * self._rows({}) / max(matching, 1)
        return None if sorts and passed < rows[name] else name

    def _rows(self, wanted: Mapping[str, Any]) -> int:
        return self._quick_count(wanted) or 0
