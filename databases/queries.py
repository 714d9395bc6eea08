"""Filtering, sorting, counting and paging, done by the database; and writing many rows.

A query's SQL depends only on its shape: which filters it has, whether each has one value or
several, and its order. peewee builds the SQL of each shape once; after that only values change.
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peewee import SQL, ColumnBase, Expression, Field, Insert, Model, Select, fn

from orchmgmt.databases import Backend, Row
from orchmgmt.databases.index_choice import quickest

MAX_OFFSET = 2**63 - 1

#: Rows in one INSERT: with the eleven columns of a job 990 values; any SQLite takes 999.
BATCH = 90

#: The most rows in one DELETE of the cleaner, and how long it may take, in seconds.
DELETE_BATCH = 500
DELETE_SECONDS = 0.02

#: Waits so many seconds, and returns whether to stop.
Pause = Callable[[float], bool | None]

#: A query's filters, and whether each has several values.
Shape = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Page:
    """One page of a result (contract, "Pagination").

    Attributes:
        number: the page, from 0.
        size: entries on a page, at least 1.
        sort_field: the model's field to sort by; `None` is the default order.
        descending: the direction.
    """

    number: int
    size: int
    sort_field: str | None = None
    descending: bool = True


def delete_in_batches(
    database: Backend, delete: str, values: Mapping[str, Any], pause: Pause
) -> int:
    """Run a DELETE with a limit until nothing is left, in a short transaction each time.

    Args:
        database: the database.
        delete: its SQL, with a place for `limit`.
        values: the values of its other places.
        pause: is called between two transactions. Meanwhile other writers get their turn. While
            they wait for the only writer they sleep between two tries, so the pause is longer than
            the DELETE.

    Returns:
        How many rows were deleted.

    Raises:
        Unavailable: the database does not answer.
    """

    def batch() -> tuple[int, float]:
        begun = time.monotonic()
        changed = database.change(delete, {**values, "limit": limit})
        return changed, time.monotonic() - begun

    limit, deleted = DELETE_BATCH, 0
    while True:
        count, seconds = database.write(batch)
        deleted += count
        if count < limit or pause(2 * seconds if database.one_writer else 0):
            return deleted
        limit = max(1, min(DELETE_BATCH, int(limit * DELETE_SECONDS / max(seconds, 1e-6))))


class BulkInsert:
    """INSERT statements for one to `BATCH` rows, each built once.

    Args:
        database: the database.
        columns: the columns of a row.
        complete: makes the whole query of a plain one (what to do with a conflict, what to return).
            If it has a value of its own, `Backend.next_place` is the place.
    """

    def __init__(
        self, database: Backend, columns: Sequence[Field], complete: Callable[[Insert], Insert]
    ) -> None:
        self._database = database
        self._columns = columns
        self._complete = complete
        self._sql = lru_cache(maxsize=BATCH)(self._build)

    def rows(self, rows: Sequence[Row], *more: Any) -> list[Row]:
        """Insert `rows`, a statement per batch; return what the statements return.

        Args:
            rows: their values, in the order of the columns.
            more: further values, for the places that `complete` has added.
        """
        returned: list[Row] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            values = [value for row in batch for value in row]
            returned += self._database.rows(self._sql(len(batch)), [*values, *more])
        return returned

    def _build(self, rows: int) -> str:
        places = [self._database.next_place] * len(self._columns)
        insert = self._columns[0].model.insert_many([places] * rows, fields=list(self._columns))
        return self._database.sql(self._complete(insert))


def condition(database: Backend, field: ColumnBase, name: str, several: bool) -> Expression:
    """Return the condition that a field has the value of a filter, or one of its values.

    Args:
        database: the database.
        field: the field.
        name: the filter, whose place has the value or the list of values.
        several: whether it is a list.
    """
    return database.any_of(field, name) if several else field == database.place(name)


class Table:
    """The rows of one table, as queries find them. A subclass changes them.

    Any thread may call every method.

    Args:
        database: where they are.
        columns: the columns of the rows that are found.
        filters: for each filter, the field whose value must be the filter's value, or one of them;
            those that usually leave the fewest rows first. Each has an index that goes on in the
            default order.
        default_sort: the field to sort by if the request names none.
        conditions: for each further filter, its condition, with a place of its name.
        always: conditions that every row returned must meet, and nearly every row does. The place
            `now` is the present.
    """

    def __init__(
        self,
        database: Backend,
        columns: Sequence[Field],
        filters: Mapping[str, Field],
        default_sort: str,
        conditions: Mapping[str, Expression] | None = None,
        always: Sequence[Expression] = (),
    ) -> None:
        self._database = database
        self._columns = columns
        self._model: type[Model] = columns[0].model
        self._filters = filters
        self._default_sort = default_sort
        self._conditions = conditions or {}
        self._always = always
        self._select = lru_cache(maxsize=1024)(self._build_select)
        self._count = lru_cache(maxsize=1024)(self._build_count)
        self._quick = lru_cache(maxsize=1024)(self._quick_count)

    def find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        """Return the rows of a page, and how many rows match in all.

        Contract: "Lock", "query"; "History"; "Pagination".

        Args:
            wanted: for each filter asked for, its value or its list of values, as a `QuerySchema`
                reads them.
            page: which page, in which order.

        Raises:
            Unavailable: the database does not answer.
        """
        if page.number:
            return self._database.read(self._find_later, wanted, page)
        rows = self._database.read_single(self._find_first, wanted, page)
        return [row[:-1] for row in rows], int(rows[0][-1]) if rows else 0

    def stream(self) -> Iterator[Row]:
        """Yield all rows, the oldest first, as they are read. For use inside `Backend.read`."""
        values = {"now": self._database.now(), "limit": MAX_OFFSET, "offset": 0}
        select = self._select((), None, self._default_sort, False, False)
        yield from self._database.stream(select, values)

    def _find_first(self, wanted: Mapping[str, Any], page: Page) -> list[Row]:
        return self._rows(wanted, page, *self._shape(wanted), counted=True)

    def _find_later(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        shape, values = self._shape(wanted)
        # Counting comes first, because skipping many rows for nothing would take long.
        matching = self._counted(shape, values)
        found = matching > page.number * page.size
        return self._rows(wanted, page, shape, values, counted=False) if found else [], matching

    def _rows(
        self,
        wanted: Mapping[str, Any],
        page: Page,
        shape: Shape,
        values: dict[str, Any],
        counted: bool,
    ) -> list[Row]:
        """Return the rows of a page.

        Args:
            wanted: as for `find`.
            page: which page.
            shape: the shape of the query.
            values: its values.
            counted: whether to add to each row how many rows match in all.
        """
        values["limit"], values["offset"] = page.size, page.number * page.size
        sort_field = page.sort_field or self._default_sort
        index = self._narrowest(wanted)
        # Other databases choose by their statistics.
        choosing = wanted and self._database.one_writer and self._quick(shape) is not None
        if choosing and (matching := self._counted(shape, values)):
            in_order, end = sort_field == self._default_sort, values["offset"] + page.size
            index = quickest(self._known, wanted, matching, in_order, end)
        select = self._select(shape, index, sort_field, page.descending, counted)
        return self._database.rows(select, values)

    def _known(self, wanted: Mapping[str, Any]) -> int | None:
        """Return how many rows match, if that is known without counting them."""
        shape, values = self._shape(wanted)
        return None if self._quick(shape) is None else self._counted(shape, values)

    def _counted(self, shape: Shape, values: Mapping[str, Any]) -> int:
        ((count,),) = self._database.rows(self._count(shape), values)
        return int(count)

    def _shape(self, wanted: Mapping[str, Any]) -> tuple[Shape, dict[str, Any]]:
        """Return the shape of a query, and its values."""
        values = {"now": self._database.now()}
        for name, value in wanted.items():
            values[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return tuple((name, isinstance(values[name], list)) for name in wanted), values

    def _quick_count(self, shape: Shape) -> Select | None:
        """Return a query of how many rows match without counting them, or `None` if none can."""
        raise NotImplementedError

    def _narrowest(self, wanted: Container[str]) -> str | None:
        """Return the filter among these that usually leaves the fewest rows."""
        return next((name for name in self._filters if name in wanted), None)

    def _build_select(
        self, shape: Shape, index: str | None, sort_field: str, descending: bool, counted: bool
    ) -> str:
        key, order = self._model._meta.primary_key, [getattr(self._model, sort_field)]
        if order[0] is not key:
            order.append(key)
        columns: list[ColumnBase] = list(self._columns)
        if counted:
            columns.append(SQL(f"({self._count(shape)})"))
        query = (
            self._model.select(*columns)
            .order_by(*[field.desc() if descending else field.asc() for field in order])
            .limit(self._database.place("limit"))
            .offset(self._database.place("offset"))
        )
        return self._filtered(query, shape, index)

    def _build_count(self, shape: Shape) -> str:
        if (quick := self._quick(shape)) is not None:
            return self._database.sql(quick)
        query = self._model.select(fn.COUNT(SQL("*")))
        return self._filtered(query, shape, self._narrowest(dict(shape)))

    def _filtered(self, query: Select, shape: Shape, index: str | None) -> str:
        """Return the SQL of a query with its filters; of their indexes only one may be used."""
        where = list(self._always)
        for name, several in shape:
            if name in self._conditions:
                where.append(self._conditions[name])
                continue
            field = self._filters[name]
            column = field if name == index else self._database.unindexed(field)
            where.append(condition(self._database, column, name, several))
        return self._database.sql(query.where(*where) if where else query)
