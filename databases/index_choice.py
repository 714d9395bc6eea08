"""Which index SQLite uses to read a page of rows. PostgreSQL decides this from its statistics.

The counts that triggers maintain (`models.JobCount`, `LockCount`) tell how many jobs have a status
or a type, and how many locks there are. The table shows the time of a first page of ten with its
count, in milliseconds, for 300,000 jobs and as many locks (SQLite 3.40, on a busy machine with 2
cores):

| page | here | SQLite's own choice and `COUNT(*)` | the same after `ANALYZE` |
| --- | --- | --- | --- |
| all jobs | 0.1 | 14 | 14 |
| all locks | 0.1 | 19 | 16 |
| jobs of a type | 0.1 | 37 | 35 |
| jobs that are `DONE`, of a type | 0.2 | 302 | 139 |
| jobs of two requesters, of a type | 50 | 116 | 44 |
| jobs of two statuses that few have | 0.1 | 0.1 | 368 |
| jobs that are `PENDING`, by their start | 0.1 | 47 | |

`ANALYZE` takes 1.9 s there. After it, SQLite mistakes a value that few rows have for one that most
rows have: it takes 161 ms instead of 0.1 to find the locks of a job. `PRAGMA optimize` changes
nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any


def quickest(
    quick_count: Callable[[Mapping[str, Any]], int | None],
    wanted: Mapping[str, Any],
    matching: int,
    default_order: bool,
    end: int,
) -> str | None:
    """Return the filter whose index gives a page after the fewest rows.

    The index of one value has its rows in the default order. For several values, or for another
    order, all their rows must be read and sorted. Then it may be quicker to read the table in the
    order of the page, and to skip what does not match.

    Args:
        quick_count: returns how many rows match some of the filters. It knows that for these.
        wanted: the filters, at least one, and what they ask for.
        matching: how many rows match all of them, at least one.
        default_order: whether the page is in the default order.
        end: how many rows there are up to the end of the page.

    Returns:
        The filter; `None` is the index of the page's order.
    """
    rows = {name: quick_count({name: value}) or 0 for name, value in wanted.items()}
    name = min(rows, key=lambda name: rows[name])
    if default_order and not (isinstance(wanted[name], list) and wanted[name][1:]):
        return name
    skipped = end * (quick_count({}) or 0) / matching
    return None if skipped < rows[name] else name
