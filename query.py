"""Filtering, sorting, counting and paging, done by the database.

A query's SQL depends only on its shape: which filters it has, whether each has one value or
several, and its order. peewee builds the SQL of each shape once; after that only values change.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peewee import SQL, Expression, Field, Insert, Model, NodeList, Query, Value, fn

from orchmgmt.database import Database, Row

MAX_OFFSET = 2**63 - 1

#: Rows in one INSERT; eleven columns of a job make 990 values, below the 999 that any SQLite takes.
BATCH = 90

Condition = Callable[[Value], Expression]


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

    def bind(self, values: Mapping[str, Any]) -> Any:
        """Return the value to bind here; a list as one value, however long it is."""
        value = values[self.name]
        return json.dumps(value) if self.several else value


def any_of(field: Field, name: str) -> Expression:
    """The condition that `field` is among the list bound to the parameter `name`."""
    parameter = Parameter(name, several=True)
    return field.in_(NodeList((SQL("(SELECT value FROM json_each("), parameter.node, SQL("))"))))


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

    def stream(self, values: Mapping[str, Any]) -> Iterator[list[Row]]:
        """Return the same rows in batches, as they are read."""
        return self._database.stream(self.sql, self._bind(values))

    def change(self, values: Mapping[str, Any]) -> int:
        """Return how many rows the statement changed with these values."""
        return self._database.change(self.sql, self._bind(values))

    def _bind(self, values: Mapping[str, Any]) -> list[Any]:
        return [
            parameter.bind(values) if isinstance(parameter, Parameter) else parameter
            for parameter in self._parameters
        ]


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

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Insert `rows`, a statement per batch; return what the statements return."""
        returned: list[Row] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            values = [value for row in batch for value in row]
            returned += self._database.rows(self._prepare(len(batch)), values)
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
        filters: for each filter, the field whose value must be the filter's value, or among them.
        conditions: for each further filter, a function that makes its condition.
        always: a condition that every row must meet.
        default_sort: the field to sort by when the request names none.
    """

    def __init__(
        self,
        database: Database,
        model: type[Model],
        filters: Mapping[str, Field],
        default_sort: str,
        conditions: Mapping[str, Condition] | None = None,
        always: Expression | None = None,
    ) -> None:
        self._database = database
        self._model = model
        self._filters = filters
        self._conditions = conditions or {}
        self._always = always
        self._default_sort = default_sort
        self._prepare = lru_cache(maxsize=1024)(self._build)

    def find(
        self, wanted: Mapping[str, Any], page: Page, fixed: Mapping[str, Any] | None = None
    ) -> tuple[list[Row], int]:
        """Return the rows of a page, and how many rows match in all.

        Args:
            wanted: for each filter asked for, its value or its list of values.
            page: which page, in which order.
            fixed: values for the parameters of the condition that always holds.
        """
        return self._database.read(self._find, wanted, page, fixed or {})

    def stream(self, fixed: Mapping[str, Any] | None = None) -> Iterator[list[Row]]:
        """Return every row, in ascending default order, in batches.

        For use inside `Database.read`.

        Args:
            fixed: values for the parameters of the condition that always holds.
        """
        select, _ = self._prepare((), self._default_sort, False)
        return select.stream({**(fixed or {}), "limit": MAX_OFFSET, "offset": 0})

    def _find(
        self, wanted: Mapping[str, Any], page: Page, fixed: Mapping[str, Any]
    ) -> tuple[list[Row], int]:
        shape = []
        values = dict(fixed)
        for name, value in wanted.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                several = len(value) > 1
                shape.append((name, several))
                values[name] = value if several else value[0]
            else:
                shape.append((name, False))
                values[name] = value
        sort_field = page.sort_field or self._default_sort
        select, count = self._prepare(tuple(shape), sort_field, page.descending)
        values["limit"] = page.size
        values["offset"] = offset = min(page.number * page.size, MAX_OFFSET)
        rows = select.rows(values)
        if len(rows) < page.size and (rows or not offset):
            return rows, offset + len(rows)  # the last page: nothing is left to count
        return rows, count.rows(values)[0][0]

    def _build(
        self, shape: tuple[tuple[str, bool], ...], sort_field: str, descending: bool
    ) -> tuple[Statement, Statement]:
        model = self._model
        where = [] if self._always is None else [self._always]
        for name, several in shape:
            if name in self._conditions:
                where.append(self._conditions[name](Parameter(name).node))
            elif several:
                where.append(any_of(self._filters[name], name))
            else:
                where.append(self._filters[name] == Parameter(name).node)
        key, order = model._meta.primary_key, [getattr(model, sort_field)]
        if order[0] is not key:
            order.append(key)
        select = (
            model.select()
            .order_by(*[field.desc() if descending else field.asc() for field in order])
            .limit(Parameter("limit").node)
            .offset(Parameter("offset").node)
        )
        count = model.select(fn.COUNT(SQL("*")))
        if where:
            select, count = select.where(*where), count.where(*where)
        return Statement(self._database, select), Statement(self._database, count)
