"""Filtering, sorting, counting and paging, done by the database; and writing many rows.

A query's SQL depends only on its shape: which filters it has, whether each has one value or
several, and its order. peewee builds the SQL of each shape once; after that only values change.
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peewee import SQL, ColumnBase, Expression, Field, Insert, Model, Query, Value, fn

from orchmgmt.databases import Database, Row

MAX_OFFSET = 2**63 - 1

#: Rows in one INSERT; eleven columns of a job make 990 values, below the 999 that any SQLite takes.
BATCH = 90

#: Rows in one DELETE of the cleaner at most, and how long it shall take, in seconds.
DELETE_BATCH = 500
DELETE_SECONDS = 0.02

#: Waits so many seconds, and returns whether to leave off.
Pause = Callable[[float], bool | None]

#: Returns how many rows match filters, if that is known without counting them.
Known = Callable[[Mapping[str, Any]], int | None]

Condition = Callable[[ColumnBase], Expression]

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


class Parameter:
    """The place of a value that is bound when a statement runs.

    Args:
        name: the value's name.
        several: the value is a list.
    """

    def __init__(self, name: str, several: bool = False) -> None:
        self.name = name
        self.several = several

    @property
    def node(self) -> Value:
        """This place in a peewee expression."""
        return Value(self, converter=False)


def any_of(database: Database, column: ColumnBase, name: str) -> Expression:
    """The condition that `column` is among the list bound to the parameter `name`."""
    return database.any_of(column, Parameter(name, several=True).node)


class Statement:
    """A peewee query as SQL, built once and run with new values each time.

    Args:
        database: where it runs.
        query: the query, in which `Parameter(name).node` stands for a value.
    """

    def __init__(self, database: Database, query: Query) -> None:
        self._database = database
        self.sql, self._parameters = query.bind(database.engine).sql()

    def rows(self, values: Mapping[str, Any]) -> list[Row]:
        """Return the rows that the statement gives with these values."""
        return self._database.rows(self.sql, self._bind(values))

    def number(self, values: Mapping[str, Any]) -> int:
        """Return the one number that the statement gives with these values."""
        number: int = self.rows(values)[0][0]
        return number

    def stream(self, values: Mapping[str, Any]) -> Iterator[list[Row]]:
        """Return the same rows in batches, as they are read."""
        return self._database.stream(self.sql, self._bind(values))

    def change(self, values: Mapping[str, Any]) -> int:
        """Return how many rows the statement changed with these values."""
        return self._database.change(self.sql, self._bind(values))

    def _bind(self, values: Mapping[str, Any]) -> list[Any]:
        return [
            parameter
            if not isinstance(parameter, Parameter)
            else self._database.list_value(values[parameter.name])
            if parameter.several
            else values[parameter.name]
            for parameter in self._parameters
        ]


def delete_in_batches(
    database: Database, delete: Statement, values: Mapping[str, Any], pause: Pause
) -> int:
    """Run a DELETE with a limit until nothing is left, each time in a short transaction of its own.

    Args:
        database: where it runs.
        delete: the statement, with a parameter `limit`.
        values: the values of its other parameters.
        pause: what to call between two transactions. Those who wait for the only writer get their
            turn meanwhile: they sleep between two tries, so it must be longer than what it follows.

    Returns:
        How many rows were deleted.

    Raises:
        Unavailable: the database does not answer.
    """

    def batch() -> tuple[int, float]:
        begun = time.monotonic()
        return delete.change({**values, "limit": limit}), time.monotonic() - begun

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
        database: where they run.
        columns: the columns of a row.
        complete: makes the whole query of a plain one (what to do with a conflict, what to return).
    """

    def __init__(
        self, database: Database, columns: Sequence[Field], complete: Callable[[Insert], Insert]
    ) -> None:
        self._database = database
        self._columns = columns
        self._complete = complete
        self._prepare = lru_cache(maxsize=BATCH)(self._build)

    def rows(self, rows: Sequence[Row], *more: Any) -> list[Row]:
        """Insert `rows`, a statement per batch; return what the statements return.

        Args:
            rows: their values, in the order of the columns.
            more: the values of what the completed query has after those.
        """
        returned: list[Row] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            values = [value for row in batch for value in row]
            returned += self._database.rows(self._prepare(len(batch)), [*values, *more])
        return returned

    def _build(self, rows: int) -> str:
        place = Parameter("value").node
        query = self._columns[0].model.insert_many(
            [[place] * len(self._columns)] * rows, fields=list(self._columns)
        )
        sql: str = self._complete(query).bind(self._database.engine).sql()[0]
        return sql


class Selection:
    """The queries of one table.

    Args:
        database: where they run.
        model: the table; rows come back with its columns in their order.
        filters: for each filter, the field whose value must be the filter's value, or among them;
            those that usually leave the fewest rows first. Each has an index that goes on in the
            default order.
        conditions: for each further filter, its field and what makes its condition.
        always: a field and what makes its condition: one that every row returned must meet, and
            nearly every row does. Its parameter `now` is the present.
        default_sort: the field to sort by when the request names none.
        known: tells how many rows match some of the filters, or none.
    """

    def __init__(
        self,
        database: Database,
        model: type[Model],
        filters: Mapping[str, Field],
        default_sort: str,
        conditions: Mapping[str, tuple[Field, Callable[[ColumnBase, Value], Expression]]]
        | None = None,
        always: tuple[Field, Condition] | None = None,
        known: Known | None = None,
    ) -> None:
        self._database = database
        self._model = model
        self._filters = filters
        self._conditions = conditions or {}
        self._always = always
        self._default_sort = default_sort
        self._known = known or (lambda wanted: None)
        self._select = lru_cache(maxsize=1024)(self._build_select)
        self._count = lru_cache(maxsize=1024)(self._build_count)

    def find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        """Return the rows of a page, and how many rows match in all.

        Args:
            wanted: for each filter asked for, its value or its list of values.
            page: which page, in which order.
        """
        return self._database.read(self._find, wanted, page)

    def stream(self) -> Iterator[list[Row]]:
        """Return every row, in ascending default order, in batches.

        For use inside `Database.read`.
        """
        select = self._select((), None, self._default_sort, False)
        yield from select.stream({"now": self._database.now(), "limit": MAX_OFFSET, "offset": 0})

    def _find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        offset = min(page.number * page.size, MAX_OFFSET)
        values = {"now": self._database.now(), "limit": page.size, "offset": offset}
        several: dict[str, bool] = {}
        for name, value in wanted.items():
            is_list = isinstance(value, list)
            several[name] = is_list and len(value) > 1
            values[name] = value[0] if is_list and not several[name] else value
        shape = tuple(several.items())
        sort_field = page.sort_field or self._default_sort

        matching = self._known(wanted)
        if matching is None:
            path = self._narrowest(several)
        elif matching <= offset:
            return [], matching
        else:
            in_order = [] if page.sort_field else [it for it in several if not several[it]]
            path = self._cheapest(wanted, in_order, (offset + page.size) / matching)
        rows = self._select(shape, path, sort_field, page.descending).rows(values)
        if matching is not None:
            return rows, matching
        if len(rows) < page.size and (rows or not offset):
            return rows, offset + len(rows)  # the last page: nothing is left to count
        return rows, self._count(shape).number(values)

    def _cheapest(
        self, wanted: Mapping[str, Any], in_order: Container[str], part: float
    ) -> str | None:
        """Return the filter whose index reads the fewest rows; `None` reads all in their order.

        What is in the page's order is left when the page is full; else all its rows are sorted.

        Args:
            wanted: the filters, of which it is known how many rows match.
            in_order: those whose index has the rows in the order of the page.
            part: which part of the matching rows the page's end has before it.
        """
        reads: dict[str | None, float] = {None: part * (self._known({}) or 0)}
        for name, value in wanted.items():
            rows = self._known({name: value}) or 0
            reads[name] = part * rows if name in in_order else rows
        return min(reads, key=lambda name: reads[name])

    def _narrowest(self, names: Container[str]) -> str | None:
        """Return the one of these filters that usually leaves the fewest rows."""
        return next(filter(names.__contains__, self._filters), None)

    def _build_select(
        self, shape: Shape, path: str | None, sort_field: str, descending: bool
    ) -> Statement:
        model = self._model
        key, order = model._meta.primary_key, [getattr(model, sort_field)]
        if order[0] is not key:
            order.append(key)
        where = self._where(shape, path)
        if self._always is not None:
            field, condition = self._always
            where.append(condition(self._database.off_path(field)))
        query = (
            model.select()
            .order_by(*[field.desc() if descending else field.asc() for field in order])
            .limit(Parameter("limit").node)
            .offset(Parameter("offset").node)
        )
        return Statement(self._database, query.where(*where) if where else query)

    def _build_count(self, shape: Shape) -> Statement:
        query = self._model.select(fn.COUNT(SQL("*")))
        where = self._where(shape, self._narrowest(dict(shape)))
        if self._always is not None:
            field, condition = self._always
            where.append(condition(self._database.off_path(field) if shape else field))
        return Statement(self._database, query.where(*where) if where else query)

    def _where(self, shape: Shape, path: str | None) -> list[Expression]:
        """The conditions of the filters; only the path's may be looked up in an index."""
        where = []
        for name, several in shape:
            if name in self._conditions:
                field, condition = self._conditions[name]
                where.append(condition(field, Parameter(name).node))
            else:
                field = self._filters[name]
                column = field if name == path else self._database.off_path(field)
                where.append(
                    any_of(self._database, column, name)
                    if several
                    else column == Parameter(name).node
                )
        return where
