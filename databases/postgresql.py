"""A database on a PostgreSQL server, for many machines.

A transaction borrows a connection of psycopg's pool (`pool.py`). peewee makes the tables and the
SQL, and psycopg runs it. So no thread waits for another thread's connection to a server that does
not answer.

Rows with an id that counts up are inserted with a provisional id. They get their final id once
nobody else can insert a row with their key. The reason is that a sequence counts before an insert
waits for earlier writers: a lock could get a smaller id than the lock before it. One advisory lock
for all creates would avoid this, but its holder keeps it until the commit is on disk: 24 writers
made 0.15 times as many single creates with it, and 0.4 times as many where nothing waits for the
disk; three servers made 0.6 times as many.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, ParamSpec, TypeVar
from zlib import crc32

import peewee
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from orchmgmt.databases import (
    NO_ROOM,
    SILENT,
    STREAM_BATCH,
    Backend,
    Busy,
    Clock,
    Overtaken,
    Row,
    Values,
    log,
)
from orchmgmt.databases.pool import COLLISIONS, OUTAGES, WAITS, Pool, promises, set_sql, timeouts
from orchmgmt.databases.schema import Permitted, check_schema, prepare_schema
from orchmgmt.errors import Unavailable
from orchmgmt.models import COUNTED_IDS, SchemaVersion, UnusableDatabase, WrongUrl

P = ParamSpec("P")
T = TypeVar("T")

#: A number that only orchmgmt uses: whoever holds this lock of the database may change the schema.
SCHEMA_LOCK = 0x6F7263686D676D74

#: Likewise for the locks of names; such a lock has two numbers.
TURNS = 0x6F726368

_BEGIN = {
    # What two statements read is of one moment.
    False: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;",
    # A statement sees what others committed while it waited for them.
    True: "BEGIN ISOLATION LEVEL READ COMMITTED;",
}
# In the same exchange a transaction learns what time it is for the server.
_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"


class PostgresqlBackend(Backend):
    """A database on a PostgreSQL server.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/NAME`, in any form that libpq takes; its
            parameters override those that are set here.
        timeout: how long to wait for a connection, or for a lock, in seconds.
        connections: how many connections there may be at once.
        permitted: what may be done to the database so that it can be used.
        clock: returns the time, if the server's clock is not used.

    Raises:
        UnusableDatabase: the database cannot be opened, or belongs to another program.
    """

    one_writer = False
    _place = "%({})s"

    def __init__(
        self, url: str, timeout: float, connections: int, permitted: Permitted, clock: Clock | None
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self.read_only = not permitted.write
        parameters = _parameters(url, timeout, self.read_only)
        self._pool = Pool(parameters, timeout, connections)
        self._current = threading.local()
        self.engine = _engine(**parameters)
        try:
            self._prepare(permitted)
        except (peewee.PeeweeException, psycopg.Error) as error:
            raise UnusableDatabase(_line(error)) from error

    def _prepare(self, permitted: Permitted) -> None:
        """Make the tables. If others are making them, wait for them as long as it takes."""
        engine = self.engine
        with engine.connection_context():
            encoding = engine.connection().info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise UnusableDatabase(f"its encoding is {encoding}: UTF8 is needed")
            # Once it has a lock, it sees what others committed before.
            with engine.atomic("READ COMMITTED"):
                if self.read_only:  # it may be a standby, or the user may have no other right
                    engine.execute_sql(set_sql(timeouts(self._timeout), local=True))
                    check_schema(engine, permitted)
                    return
                engine.execute_sql(set_sql(promises(self._timeout), local=True))
                engine.execute_sql(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
                prepare_schema(engine, permitted)
                self._current.connection = engine.connection()
                for ids in COUNTED_IDS.values():
                    self._mend_ids(ids)

    def write_once(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return super().write_once(work, *args, **kwargs)
        except Overtaken as overtaken:
            # If others have inserted an id by hand, the sequence would give it out again.
            taken = overtaken.__cause__
            table = taken.diag.table_name if isinstance(taken, errors.UniqueViolation) else None
            if ids := COUNTED_IDS.get(table or ""):
                super().write_once(self._mend_ids, ids)
            raise

    @contextmanager
    def _transaction(self, writing: bool) -> Iterator[None]:
        try:
            with self._pool.borrowed() as connection:
                begun = connection.execute(f"{_BEGIN[writing]}{connection.settings}{_CLOCK}")
                ((self._current.time,),) = begun.set_result(-1).fetchall()
                self._current.since = time.monotonic()
                self._current.writing = writing
                self._current.connection = connection
                yield
                connection.commit()
        except (errors.UniqueViolation, *COLLISIONS) as error:
            raise Overtaken from error
        except WAITS as error:
            log.warning("the database is busy: %s", _line(error))
            raise Busy from error
        except errors.DiskFull as error:
            log.error("the database has no room: %s", _line(error))
            raise Unavailable(NO_ROOM) from error
        except OUTAGES as error:
            log.error("the database does not answer: %s", _line(error))
            raise Unavailable(SILENT) from error

    def time(self) -> float:
        if self._clock is not None:
            return self._clock()
        current = self._current
        return float(current.time + time.monotonic() - current.since)

    def stream(self, sql: str, values: Values = ()) -> Iterator[Row]:
        if not self._current.writing:  # slow readers are allowed: nobody waits for them
            self._execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # Only a cursor on the server does not send all rows at once.
        with self._current.connection.cursor("stream") as cursor:
            cursor.itersize = STREAM_BATCH
            yield from cursor.execute(sql, values)

    def check(self) -> None:
        if self.read_only:
            super().check()
            return
        # Changes nothing, and is refused where nothing can be changed.
        table = SchemaVersion._meta.table_name
        self.write_once(self.change, f"UPDATE {table} SET version = version WHERE FALSE")

    def _execute(self, sql: str, values: Values = ()) -> psycopg.Cursor[Row]:
        cursor: psycopg.Cursor[Row] = self._current.connection.execute(sql, values)
        return cursor

    def any_of(self, column: peewee.ColumnBase, name: str) -> peewee.Expression:
        return column == peewee.fn.ANY(self.place(name))

    def unindexed(self, column: peewee.ColumnBase) -> peewee.ColumnBase:
        return column  # PostgreSQL knows best: it keeps statistics of the values

    def locking(self, query: peewee.Select, how: str) -> peewee.Select:
        return query.for_update(f"FOR {how}")  # type: ignore[arg-type]  # the stub is too narrow

    def deletion(self, key: peewee.Field, chosen: peewee.Select, how: str = "UPDATE") -> str:
        # As an array the keys are looked up one by one, whatever the planner thinks of LIMIT.
        keys = peewee.fn.ARRAY(self.locking(chosen, how))
        return self.sql(key.model.delete().where(key == peewee.fn.ANY(keys)))

    def provisional_id(self) -> int:
        return -1 - random.getrandbits(62)

    def settle_ids(
        self, ids: peewee.AutoField, key: peewee.Field, inserted: dict[str, int], order: list[str]
    ) -> dict[str, int]:
        table, name, key_name = ids.model._meta.table_name, ids.column_name, key.column_name
        return dict(
            self.rows(
                f"UPDATE {table} SET {name} = given.id FROM ("
                " SELECT key, nextval(pg_get_serial_sequence(%s, %s)) AS id"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (key, place) ORDER BY place"
                f") AS given WHERE {key_name} = given.key RETURNING {key_name}, {table}.{name}",
                (table, name, order),
            )
        )

    def take_turns(self, name: str) -> None:
        # Names with one number, which are few, take turns too.
        number = crc32(name.encode()) - 2**31
        self.rows("SELECT pg_advisory_xact_lock(%s, %s)", (TURNS, number))

    def keep_others_off(self, ids: peewee.AutoField, highest: int = 0) -> None:
        table = ids.model._meta.table_name
        self._execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
        if self.last_id(ids) < highest:
            # Unlike setval, this is undone with the transaction.
            restart = f"ALTER TABLE {table} ALTER {ids.column_name} RESTART WITH {highest + 1}"
            self._execute(restart)

    def last_id(self, ids: peewee.AutoField) -> int:
        find = "SELECT pg_get_serial_sequence(%s, %s)"
        ((sequence,),) = self.rows(find, (ids.model._meta.table_name, ids.column_name))
        ((last,),) = self.rows(f"SELECT last_value - (NOT is_called)::int FROM {sequence}")
        return int(last)

    def _mend_ids(self, ids: peewee.AutoField) -> None:
        """Raise the ids to come above those that are there, in case others have put some in."""
        largest = f"SELECT max({ids.column_name}) FROM {ids.model._meta.table_name}"
        ((highest,),) = self.rows(largest)
        if highest is not None and highest > self.last_id(ids):
            self.keep_others_off(ids, highest)

    def close(self) -> None:
        self._pool.close()


def _parameters(url: str, timeout: float, read_only: bool) -> dict[str, Any]:
    """Return libpq's parameters: those of the URL, and ours where it has none."""
    given = _parse(url)
    if not given.get("dbname"):
        raise WrongUrl("it names no database")
    parameters: dict[str, Any] = {
        "application_name": "orchmgmt",
        "connect_timeout": max(2, ceil(timeout)),  # the least that libpq takes
        "tcp_user_timeout": max(1, ceil(timeout * 1000)),
        "keepalives_idle": 30,
        **given,
        "client_encoding": "UTF8",
    }
    if "," in given.get("host", "") + given.get("hostaddr", ""):
        parameters.setdefault("target_session_attrs", "any" if read_only else "read-write")
    return parameters


def _parse(url: str) -> dict[str, Any]:
    """Return libpq's parameters. What it says of a URL may hold a piece of the password."""
    authority, _, rest = url.partition("://")[2].partition("/")
    try:
        # Such a password, unescaped, would go on into the host, and so into messages.
        if authority.count("@") > 1 or "@" in rest.partition("?")[0]:
            raise psycopg.ProgrammingError
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise WrongUrl(
            "a PostgreSQL URL is postgresql://USER:PASSWORD@HOST:PORT/NAME, "
            "with % and two digits for a character that is part of that form"
        ) from error


def _engine(dbname: str, **parameters: Any) -> peewee.PostgresqlDatabase:
    return peewee.PostgresqlDatabase(
        dbname,
        prefer_psycopg3=True,
        prepare_threshold=None,
        field_types={
            "AUTO": "BIGINT GENERATED BY DEFAULT AS IDENTITY",
            # Text sorts by code point, in whatever language the server sorts.
            "TEXT": 'TEXT COLLATE "C"',
        },
        **parameters,
    )


def _line(error: Exception) -> str:
    """Return what PostgreSQL or libpq says, on one line."""
    return " ".join(str(error).split())
