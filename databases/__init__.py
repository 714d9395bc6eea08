"""The database: how a request gets its transaction, and what its failures mean.

Here is what is common; what differs between the kinds of database is in `sqlite.py` and
`postgresql.py`, a subclass each. `queries.py` builds the SQL that locks and history run,
`opening.py` finds the kind that a URL names, and `backup.py` copies a SQLite file. Nothing here
knows the wire, what a lock or a job means, the policies, or the server and its threads.
"""

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import peewee

from orchmgmt.errors import Unavailable
from orchmgmt.models import SchemaVersion
from orchmgmt.values import write_second

log = logging.getLogger("orchmgmt")

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]

#: What a statement is run with: a value for each name that has a place, or for each next place.
Values = Mapping[str, Any] | Sequence[Any]

#: Returns the present in seconds since the epoch.
Clock = Callable[[], float]

#: Rows that a server sends at once of very many. Each may hold a message of 64 KiB.
STREAM_BATCH = 100

#: How often work is tried that other writers keep undoing, and the longest first pause, in seconds.
ATTEMPTS = 6
PAUSE = 0.02

BUSY = "The database is busy; try again later"
SILENT = "The database does not answer; try again later"
NO_ROOM = "The database has no room"


class Busy(Unavailable):
    """Others use the database for longer than the timeout."""

    def __init__(self) -> None:
        super().__init__(BUSY)


class Overtaken(Busy):
    """Another writer was in the way and nothing was written: a second try may succeed."""


class Backend(ABC):
    """Runs work in transactions, and says `Unavailable` when the database cannot.

    Attributes:
        engine: the database as peewee knows it: the SQL that it understands.
        one_writer: whether there is never more than one transaction that writes. If so, the tables
            of counts are there: where several write, all would wait for a row that each changes.
        read_only: whether it was opened to be read, as it is; then `check` does not ask for more.
    """

    engine: peewee.Database
    one_writer: bool
    read_only: bool

    _place: str  # how a statement marks the place of a value that has a name

    def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, all that it reads being of one moment.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._transaction(writing=False):
            return work(*args, **kwargs)

    def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns once all that it wrote is on disk; if it raises, nothing is.

        Args:
            work: may run several times, until no other writer is in its way: it must change
                nothing but the database.
            args: what `work` is given.
            kwargs: likewise.

        Raises:
            Unavailable: the database does not answer, is full or stays busy.
        """
        for attempt in range(1, ATTEMPTS):
            try:
                return self.write_once(work, *args, **kwargs)
            except Overtaken:
                # Those who were in each other's way shall not meet again.
                time.sleep(random.uniform(0, PAUSE * 2**attempt))
        return self.write_once(work, *args, **kwargs)

    def write_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write`, for work that cannot run twice.

        Raises:
            Overtaken: another writer was in the way.
            Unavailable: the database does not answer, is full or stays busy.
        """
        with self._transaction(writing=True):
            return work(*args, **kwargs)

    def check(self) -> None:
        """Do nothing if the database answers, and can be written to unless it is only read.

        Raises:
            Unavailable: it does not, or cannot.
        """
        self.read(self.rows, f"SELECT version FROM {SchemaVersion._meta.table_name}")

    def inspect(self, thorough: bool) -> str:
        """Look closer than `check`, as is good only where a person asks for it.

        Args:
            thorough: whether to compare all indexes with their tables too, which takes long.

        Returns:
            What there is to know of it: whose it is, for example.

        Raises:
            Unavailable: it does not answer, or cannot be written to.
            UnusableDatabase: it is damaged.
        """
        self.check()
        return ""

    def now(self) -> str:
        """Return the present second by the one clock that all who share the database go by.

        For use inside `read` or `write`.
        """
        return write_second(int(self.time()))

    @abstractmethod
    def time(self) -> float:
        """Return the present by that clock, in seconds since the epoch, likewise."""

    @abstractmethod
    def _transaction(self, writing: bool) -> AbstractContextManager[None]:
        """Return one transaction of this thread, which ends as its block does."""

    def place(self, name: str) -> peewee.SQL:
        """Return the place in a query of the value of this name, which is given as it runs."""
        return peewee.SQL(self._place.format(name))

    @property
    def next_place(self) -> peewee.SQL:
        """The place of the next value, in a query whose values have no names."""
        return peewee.SQL(self.engine.param)

    def sql(self, query: peewee.Query) -> str:
        """Return the SQL of a query, which is built once and run with new values each time."""
        sql, literals = query.bind(self.engine).sql()
        assert not literals, f"a value without a place: {sql}"
        return str(sql)

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        """Return the rows of one statement, as plain tuples. For use inside `read` or `write`."""
        cursor = self._execute(sql, values)
        return cursor.fetchall() if cursor.description else []

    def change(self, sql: str, values: Values = ()) -> int:
        """Return how many rows one statement changed. For use inside `write`."""
        count: int = self._execute(sql, values).rowcount
        return count

    @abstractmethod
    def stream(self, sql: str, values: Values = ()) -> Iterator[Row]:
        """Return the rows of one statement as they are read. For use inside `read`."""

    @abstractmethod
    def _execute(self, sql: str, values: Values) -> Any:
        """Run one statement of this thread's transaction, and return its cursor."""

    @abstractmethod
    def any_of(self, column: peewee.ColumnBase, name: str) -> peewee.Expression:
        """Return the condition that `column` is among the list of this name, however long."""

    @abstractmethod
    def unindexed(self, column: peewee.ColumnBase) -> peewee.ColumnBase:
        """Return `column` so that no index is used for conditions on it, if that is ours to say."""

    # What follows is for several writers; one alone has nobody to agree with.

    def locking(self, query: peewee.Select, how: str) -> peewee.Select:
        """Return `query` so that others leave the rows that it reads alone until the end.

        Args:
            query: a query of a write.
            how: `SHARE`, `UPDATE` in the order of the query, or `UPDATE SKIP LOCKED` to pass over
                those that others work on.
        """
        return query

    def deletion(self, key: peewee.Field, chosen: peewee.Select, how: str = "UPDATE") -> str:
        """Return the SQL that deletes the few rows whose keys a query finds.

        Args:
            key: the column that the rows are deleted by.
            chosen: the query.
            how: as `locking` has it.
        """
        return self.sql(key.model.delete().where(key.in_(chosen)))

    def provisional_id(self) -> int | None:
        """Return what to insert as the id of a row that `settle_ids` will give its id for good."""
        return None

    def settle_ids(
        self, ids: peewee.AutoField, key: peewee.Field, inserted: dict[str, int], order: list[str]
    ) -> dict[str, int]:
        """See that the ids of rows rise in this order, and are above those of all rows before them.

        For use inside `write`, once nobody else can insert a row with one of these keys.

        Args:
            ids: the column, which counts up.
            key: the column that the rows are named by.
            inserted: the id that each has as it was inserted.
            order: the keys in their order, in which a single writer has inserted the rows.

        Returns:
            The id that each has from now on.
        """
        return inserted

    @abstractmethod
    def keep_others_off(self, ids: peewee.AutoField, highest: int = 0) -> None:
        """Let nobody else write to a table until the end of a `write`, for its ids are put in.

        Args:
            ids: the table's column that counts up. Ids given later are above `highest`, if the
                `write` succeeds.
            highest: the largest id that will be inserted.
        """

    @abstractmethod
    def last_id(self, ids: peewee.AutoField) -> int:
        """Return the largest id that was ever given out or put in, 0 if none was.

        For use inside `read` or `write`.

        Args:
            ids: the table's column that counts up.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections; a later call opens a new one."""
