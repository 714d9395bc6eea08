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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import peewee

from orchmgmt.errors import Unavailable
from orchmgmt.models import Schema
from orchmgmt.values import write_second

log = logging.getLogger("orchmgmt")

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]

#: Returns the present in seconds since the epoch.
Clock = Callable[[], float]

STREAM_BATCH = 1000

#: How often work is tried that other writers keep undoing, and the longest first pause, in seconds.
ATTEMPTS = 6
PAUSE = 0.02

BUSY = "The database is busy; try again later"
SILENT = "The database does not answer; try again later"


class Conflict(Unavailable):
    """Another writer was in the way and nothing was written: a second try may succeed."""


class Database(ABC):
    """Runs work in transactions, and says `Unavailable` when the database cannot.

    Attributes:
        engine: the database as peewee knows it: the SQL that it understands.
        one_writer: whether there is never more than one transaction that writes. If so, the tables
            of counts are there: where several write, all would wait for a row that each changes.
    """

    engine: peewee.Database
    one_writer: bool

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
            except Conflict:
                # Those who were in each other's way shall not meet again.
                time.sleep(random.uniform(0, PAUSE * 2**attempt))
        return self.write_once(work, *args, **kwargs)

    def write_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `write`, for work that cannot run twice.

        Raises:
            Conflict: another writer was in the way.
            Unavailable: the database does not answer, is full or stays busy.
        """
        with self._transaction(writing=True):
            return work(*args, **kwargs)

    def check(self) -> None:
        """Do nothing if the database answers and can be written to.

        Raises:
            Unavailable: it does not, or cannot.
        """
        self.read(self.rows, f"SELECT version FROM {Schema._meta.table_name}")

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

    @abstractmethod
    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of one statement, as plain tuples. For use inside `read` or `write`."""

    @abstractmethod
    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[list[Row]]:
        """Return the rows of one statement in batches, as they are read. For use inside `read`."""

    @abstractmethod
    def change(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Return how many rows one statement changed. For use inside `write`."""

    @abstractmethod
    def any_of(self, column: peewee.ColumnBase, values: peewee.Value) -> peewee.Expression:
        """Return the condition that `column` is among `values`, the place of a `list_value`."""

    @abstractmethod
    def list_value(self, values: list[Any]) -> Any:
        """Return a list as one value to bind, however long it is."""

    @abstractmethod
    def off_path(self, column: peewee.ColumnBase) -> peewee.ColumnBase:
        """Return `column` so that conditions on it do not decide which index is used."""

    @abstractmethod
    def locking(self, query: peewee.Select, how: str) -> peewee.Select:
        """Return `query` so that others leave the rows that it reads alone until the end.

        Args:
            query: a query of a write.
            how: `SHARE`, `UPDATE` in the order of the query, or `UPDATE SKIP LOCKED` to pass over
                those that others work on.
        """

    @abstractmethod
    def among(self, column: peewee.Field, query: peewee.Select) -> peewee.Expression:
        """Return the condition that `column` is among the few values that `query` finds first."""

    @abstractmethod
    def passing_id(self) -> int | None:
        """Return what to insert as the id of a row that `settle_ids` will give its id for good."""

    @abstractmethod
    def settle_ids(
        self, ids: peewee.AutoField, key: peewee.Field, inserted: dict[str, int], order: list[str]
    ) -> dict[str, int]:
        """See that the ids of rows rise in this order, and are above those of all rows before them.

        For use inside `write`, once nobody else can insert a row with one of these keys.

        Args:
            ids: the column, which counts up.
            key: the column that the rows are named by.
            inserted: the id that each has as it was inserted.
            order: the keys in their order.

        Returns:
            The id that each has from now on.
        """

    @abstractmethod
    def keep_others_off(self, model: type[peewee.Model]) -> None:
        """Let nobody else write to a table until the end. For the beginning of a `write`."""

    @abstractmethod
    def count_on_from(self, ids: peewee.AutoField, highest: int) -> None:
        """See that ids given later are above `highest`, before a row with that id is inserted.

        For use inside a `write` that keeps others off; undone with it.

        Args:
            ids: the column, which counts up.
            highest: the largest id that will be inserted.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections; a later call opens a new one."""
