"""Which index SQLite reads a page of rows by. PostgreSQL decides that itself, by its statistics.

The counts that triggers keep (`models.JobCount`, `LockCount`) tell how many jobs have a status or a
type, and how many locks there are. A first page of ten with its count, in milliseconds, of 300,000
jobs and as many locks (SQLite 3.40, on a busy machine with 2 cores):

| page | here | SQLite's own choice and `COUNT(*)` | the same after `ANALYZE` |
| --- | --- | --- | --- |
| all jobs | 0.1 | 14 | 14 |
| all locks | 0.1 | 19 | 16 |
| jobs of a type | 0.1 | 37 | 35 |
| jobs that are `DONE`, of a type | 0.2 | 302 | 139 |
| jobs of two requesters, of a type | 50 | 116 | 44 |
| jobs of two statuses that few have | 0.1 | 0.1 | 368 |
| jobs that are `PENDING`, by their start | 0.1 | 47 | |

`ANALYZE` takes 1.9 s there, and makes SQLite take a value that few rows have for one that most
have: to find the locks of a job takes 161 instead of 0.1. `PRAGMA optimize` changes nothing.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

#: Returns how many rows match filters, or `None` if that takes counting.
QuickCount = Callable[[Mapping[str, Any]], int | None]


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
        if not matching:
            return self.narrowest(wanted)
        rows = {name: self._quick_count({name: value}) or 0 for name, value in wanted.items()}
        name = min(rows, key=lambda name: rows[name])
        in_order = default_order and not (isinstance(wanted[name], list) and wanted[name][1:])
        if in_order:
            return name
        passed = end * (self._quick_count({}) or 0) / matching
        return None if passed < rows[name] else name
