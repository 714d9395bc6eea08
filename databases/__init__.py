"""The database: how a request gets its transaction, and what its failures mean.

`Backend` is what all kinds of database have in common; `sqlite.py` and `postgresql.py` have a
subclass each. `queries.py` builds the SQL that locks and history run, `opening.py` finds the
backend for a URL, and `schema.py` creates and upgrades the tables. Nothing here knows payloads,
what a lock or a job means, the policies, or the server.
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

#: The values of a statement: by the names of their places, or in the order of the places.
Values = Mapping[str, Any] | Sequence[Any]

#: Returns the present in seconds since the epoch.
Clock = Callable[[], float]

#: How many rows a server sends at once if there are many. Each may hold a message of 64 KiB.
STREAM_BATCH = 100

#: How many times to try if other writers are in the way, and the longest first pause, in seconds.
ATTEMPTS = 6
PAUSE = 0.02

BUSY = "The database is busy; try again later"
SILENT = "The database does not answer; try again later"
CLOSED = "The store is closed"
NO_ROOM = "The database has no room"


class Busy(Unavailable):
    """Others have kept the database busy for longer than the timeout."""

    def __init__(self) -> None:
        super().__init__(BUSY)


class Overtaken(Busy):
    """Another writer was in the way. Nothing was written, and a second try may succeed."""


class Backend(ABC):
    """Runs work in transactions, and raises `Unavailable` if the database cannot.

    Attributes:
        engine: peewee's database, which knows the SQL of this kind of database.
        one_writer: whether only one transaction writes at a time.
        read_only: whether it was opened only to be read; then `check` does not try to write.
        closed: whether its owner has closed it for good; then it does not connect again.
    """

    engine: peewee.Database
    one_writer: bool
    read_only: bool
    closed = False

    _place: str  # how a statement marks the place of a named value

    def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns. All that it reads is of one moment.

        Raises:
            Unavailable: the database does not answer.
        """
        self._demand_open()
        with self._transaction(writing=False):
            return work(*args, **kwargs)

    def read_single(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `read`, for work whose result comes from a single statement, its last."""
        return self.read(work, *args, **kwargs)

    def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `work` returns, once all that it wrote is on disk; if it raises, nothing is.

        Args:
            work: runs again if another writer was in the way, so it must change nothing but the
                database.
            args: the arguments of `work`.
            kwargs: its keyword arguments.

        Raises:
            Unavailable: the database does not answer, is full or stays busy.
        """
        for attempt in range(1, ATTEMPTS):
            try:
                return self.write_once(work, *args, **kwargs)
            except Overtaken:
                # Writers that were in each other's way must not meet again.
                time.sleep(random.uniform(0, PAUSE * 2**attempt))
        return self.write_once(work, *args, **kwargs)

    def write_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `write`, for work that cannot run twice.

        Raises:
            Overtaken: another writer was in the way.
            Unavailable: the database does not answer, is full or stays busy.
        """
        self._demand_open()
        with self._transaction(writing=True):
            return work(*args, **kwargs)

    def _demand_open(self) -> None:
        if self.closed:
            raise Unavailable(CLOSED)

    def check(self) -> None:
        """Check that the database answers and, unless it is only read, can be written to.

        Raises:
            Unavailable: it does not, or cannot.
        """
        self.read(self.rows, f"SELECT version FROM {SchemaVersion._meta.table_name}")

    def inspect(self, thorough: bool) -> str:
        """Examine the database more closely than `check`, for a person who asks.

        Args:
            thorough: whether to compare all indexes with their tables too, which takes long.

        Returns:
            What a person may want to know, such as who owns the file.

        Raises:
            Unavailable: it does not answer, or cannot be written to.
            UnusableDatabase: it is damaged.
        """
        self.check()
        return ""

    def now(self) -> str:
        """Return the present second by the clock that all users of the database share.

        For use inside `read` or `write`.
        """
        return write_second(int(self.time()))

    @abstractmethod
    def time(self) -> float:
        """Return the present by that clock, in seconds since the epoch.

        For use inside `read` or `write`.
        """

    @abstractmethod
    def _transaction(self, writing: bool) -> AbstractContextManager[None]:
        """Return a transaction of this thread: committed after its block, or rolled back."""

    def place(self, name: str) -> peewee.SQL:
        """Return the place of a named value in a query; the value is given when the query runs."""
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
        """Return `column` in a form that keeps a condition on it from using an index.

        Where the database itself chooses the indexes best, it is the column as it is.
        """

    # What follows is for databases with several writers at a time.

    def locking(self, query: peewee.Select, how: str) -> peewee.Select:
        """Return `query` in a form that locks the rows it reads until the write ends.

        Args:
            query: a query of a write.
            how: `SHARE`; `UPDATE`, in the order of the query; or `UPDATE SKIP LOCKED`, to skip the
                rows that others have locked.
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
        """Return the id to insert a row with, before `settle_ids` gives it its final id."""
        return None

    def settle_ids(
        self, ids: peewee.AutoField, key: peewee.Field, inserted: dict[str, int], order: list[str]
    ) -> dict[str, int]:
        """Give rows their final ids, which rise in this order and are above all earlier ids.

        For use inside `write`, once nobody else can insert a row with one of these keys.

        Args:
            ids: the column that counts up.
            key: the column that names the rows.
            inserted: the id that each row was inserted with.
            order: the keys in their order. A single writer has inserted the rows in it already.

        Returns:
            The final id of each row.
        """
        return inserted

    @abstractmethod
    def take_turns(self, name: str) -> None:
        """Wait until no other `write` holds this name, and hold it until the present `write` ends.

        To avoid deadlocks, a `write` calls it before it locks anything else, and at most once.
        """

    @abstractmethod
    def keep_others_off(self, ids: peewee.AutoField, highest: int = 0) -> None:
        """Block other writers of a table until a `write` ends, so that it may insert ids itself.

        Args:
            ids: the table's column that counts up. If the `write` succeeds, later ids are above
                `highest`.
            highest: the largest id that the `write` inserts.
        """

    @abstractmethod
    def last_id(self, ids: peewee.AutoField) -> int:
        """Return the largest id that was ever given out or inserted; 0 if there was none.

        For use inside `read` or `write`.

        Args:
            ids: the table's column that counts up.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections; a later call opens a new one."""
