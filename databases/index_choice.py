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

    def for_default_order(self, wanted: Mapping[str, Any]) -> str | None:
        """Return the filter whose index leaves the fewest rows; it has them in their order."""
        if self._quick_count(wanted) is None:
            return self.narrowest(wanted)
        return min(wanted, key=lambda name: self._rows({name: wanted[name]}), default=None)

    def for_another_order(self, wanted: Mapping[str, Any], end: int) -> str | None:
        """Return that filter, unless it is quicker to read all rows in the order of the page.

        The filter's rows must all be read and sorted. In the order of the page, for each row of it
        and those before, as many are read as there are rows for each that matches.

        Args:
            wanted: the filters, and what they ask for.
            end: how many rows there are to the end of the page.
        """
        name = self.for_default_order(wanted)
        matching = self._quick_count(wanted)
        if name is None or matching is None:
            return name
        in_order = end * self._rows({}) / max(matching, 1)
        return None if in_order < self._rows({name: wanted[name]}) else name

    def _rows(self, wanted: Mapping[str, Any]) -> int:
        return self._quick_count(wanted) or 0
