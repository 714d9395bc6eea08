"""A database on a PostgreSQL server, for many machines.

A transaction borrows a connection of psycopg's pool. peewee makes the tables and the SQL, and
psycopg runs it: so no thread waits for another one's connection to a server that does not answer.
"""

import atexit
import logging
import random
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

import peewee
import psycopg
from psycopg import capabilities, errors
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from orchmgmt.databases import (
    BUSY,
    NO_ROOM,
    SILENT,
    STREAM_BATCH,
    Clock,
    Conflict,
    Database,
    Row,
    Values,
    log,
)
from orchmgmt.errors import Unavailable
from orchmgmt.models import (
    Lock,
    Opening,
    Schema,
    UnusableDatabase,
    WrongUrl,
    check_schema,
    prepare_schema,
)

# It tells of every connection that it gives or takes.
logging.getLogger("psycopg.pool").setLevel(logging.WARNING)

#: Any number that only orchmgmt uses: whoever has this lock of the database may change the schema.
SCHEMA_LOCK = 0x6F7263686D676D74

#: The least time for a statement, in seconds, however little it may wait for others.
LEAST_STATEMENT_TIME = 1.0

#: How much longer than a statement its answer may take, and the attempt to tell a server that gave
#: none that it is not waited for, in seconds.
GRACE = 0.5
CANCEL = 0.2

#: The age at which a connection is replaced, in seconds: what it was told when it was made, such as
#: where to find the server that can write, does not hold for ever.
MAX_AGE = 600.0

#: How often a thread that waits for a connection sees whether it waits in vain, in seconds.
WAIT = 0.1

_BEGIN = {
    # What two statements read is of one moment.
    False: "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;",
    # A statement sees what others committed while it waited for them.
    True: "BEGIN ISOLATION LEVEL READ COMMITTED;",
}
# In the same exchange a transaction learns what time it is for the server.
_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"

# What PostgreSQL says when it cannot serve now; anything else that it says is a fault of ours.
_OUTAGES = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.InternalError,
    errors.UndefinedTable,
    errors.InsufficientPrivilege,
)
_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure)
_WAITS = (errors.LockNotAvailable, errors.QueryCanceled)


class _Connection(psycopg.Connection[Row]):
    """A connection that waits for a silent server only so long.

    Attributes:
        patience: how long, in seconds.
        warnings: what the server has warned of.
        promises: what each transaction begins with, where a session is not this process's alone.
    """

    patience: float | None = None
    warnings: list[str]
    promises: str = ""

    def wait(self, gen: PQGen[RV], interval: float = WAIT, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, self.patience if timeout is None else timeout)

    def warn(self, notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "")

    def commit(self) -> None:
        self.warnings.clear()
        super().commit()
        if self.warnings:  # a standby, perhaps, was not waited for: the commit may not last
            raise psycopg.OperationalError(self.warnings[0])


class PostgresqlDatabase(Database):
    """A database on a PostgreSQL server.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/NAME`, in any form that libpq takes; its
            parameters go before what is set here.
        timeout: how long to wait for a connection, or for a lock, in seconds.
        connections: how many connections there may be at once.
        opening: what may be done to the database so that it can be used.
        clock: what tells the time, if not the server.

    Raises:
        UnusableDatabase: the database cannot be opened, or its schema is not ours.
    """

    one_writer = False
    _place = "%({})s"

    def __init__(
        self, url: str, timeout: float, connections: int, opening: Opening, clock: Clock | None
    ) -> None:
        self._clock = clock
        self.read_only = not opening.write
        given = _parse(url)
        if not given.get("dbname"):
            raise WrongUrl("it names no database")
        milliseconds = max(1, ceil(timeout * 1000))
        self._parameters: dict[str, Any] = {
            "application_name": "orchmgmt",
            "connect_timeout": max(2, ceil(timeout)),  # as libpq itself has it
            "tcp_user_timeout": milliseconds,
            "keepalives_idle": 30,
            **given,
            "client_encoding": "UTF8",
        }
        if "," in given.get("host", "") + given.get("hostaddr", ""):
            which = "read-write" if opening.write else "any"
            self._parameters.setdefault("target_session_attrs", which)
        self._timeout = timeout
        at_least = max(milliseconds, ceil(LEAST_STATEMENT_TIME * 1000))
        # Nobody shall wait for this process when it is frozen or cut off, and what it was told is
        # done shall be on disk, whatever the server's own settings.
        self._promises = {
            "idle_in_transaction_session_timeout": at_least,
            "tcp_user_timeout": at_least,
            "tcp_keepalives_idle": 30,
            "tcp_keepalives_interval": 10,
            "tcp_keepalives_count": 3,
        }
        self._timeouts = {"lock_timeout": milliseconds, "statement_timeout": at_least}
        self._connections = connections
        self._pool = self._new_pool()
        self._in_vain = False  # whether who waited last for a connection, or on one, did so in vain
        self._current = threading.local()
        options = {**self._parameters}
        self.engine = peewee.PostgresqlDatabase(
            options.pop("dbname"),
            prefer_psycopg3=True,
            prepare_threshold=None,
            field_types={
                "AUTO": "BIGINT GENERATED BY DEFAULT AS IDENTITY",
                # Text sorts by code point, in whatever language the server sorts.
                "TEXT": 'TEXT COLLATE "C"',
            },
            **options,
        )
        try:
            self._prepare(opening)
        except (peewee.PeeweeException, psycopg.Error) as error:
            raise UnusableDatabase(_line(error)) from error

    def _prepare(self, opening: Opening) -> None:
        """Make the tables, on a connection that waits for others who do as long as it takes."""
        with self.engine.connection_context():
            encoding = self.engine.connection().info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise UnusableDatabase(f"its encoding is {encoding}: UTF8 is needed")
            with self.engine.atomic():
                if self.read_only:  # a standby, perhaps, or a user with no other right
                    self.engine.execute_sql(_set(self._timeouts, local=True))
                    check_schema(self.engine, opening, shared=True)
                    return
                self.engine.execute_sql(_set(self._promises, local=True))
                self.engine.execute_sql(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
                prepare_schema(self.engine, opening, shared=True)
                _mend_ids(self.engine.connection(), Lock.id)

    @contextmanager
    def _transaction(self, writing: bool) -> Iterator[None]:
        try:
            with self._borrowed() as connection:
                begun = connection.execute(f"{_BEGIN[writing]}{connection.promises}{_CLOCK}")
                ((self._current.time,),) = begun.set_result(-1).fetchall()
                self._current.since = time.monotonic()
                self._current.writing = writing
                self._current.connection = connection
                yield
                connection.commit()
        except errors.UniqueViolation as error:
            self.write_once(lambda: _mend_ids(self._current.connection, Lock.id))
            raise Conflict(BUSY) from error
        except _CONFLICTS as error:
            raise Conflict(BUSY) from error
        except _WAITS as error:
            log.warning("the database is busy: %s", _line(error))
            raise Unavailable(BUSY) from error
        except errors.DiskFull as error:
            log.error("the database has no room: %s", _line(error))
            raise Unavailable(NO_ROOM) from error
        except _OUTAGES as error:
            log.error("the database does not answer: %s", _line(error))
            raise Unavailable(SILENT) from error

    @contextmanager
    def _borrowed(self) -> Iterator[_Connection]:
        pool = self._pool
        if pool.closed:  # its threads start with the first request, in the process that serves
            pool.open()
            atexit.register(self.close)  # or they would delay the end of the process
        connection = self._connection(pool)
        try:
            yield connection
        except (*_CONFLICTS, *_WAITS):
            raise
        except _OUTAGES:
            # What befell one connection may befall all.
            self._give_up(connection)
            pool.drain()
            raise
        finally:
            with suppress(psycopg.Error):
                connection.rollback()
            pool.putconn(connection)

    def _new_pool(self) -> ConnectionPool[_Connection]:
        return ConnectionPool(
            connection_class=_Connection,
            kwargs={**self._parameters, "autocommit": True},
            configure=self._configure,
            check=self._check_quiet,
            min_size=0,
            max_size=self._connections,
            max_lifetime=MAX_AGE,
            reconnect_timeout=0,  # the next request tries again: it may be back by then
            reconnect_failed=self._cannot_connect,
            open=False,
        )

    def _connection(self, pool: ConnectionPool[_Connection]) -> _Connection:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection = pool.getconn(WAIT)
            except PoolTimeout:
                # The pool does not tell those who wait that it cannot connect.
                if self._in_vain:
                    raise
                if time.monotonic() >= deadline:
                    self._in_vain = True
                    raise Unavailable(BUSY) from None
            else:
                self._in_vain = False
                return connection

    def _cannot_connect(self, pool: ConnectionPool[Any]) -> None:
        self._in_vain = True

    def _configure(self, connection: _Connection) -> None:
        connection.patience = max(self._timeout + GRACE, LEAST_STATEMENT_TIME)
        connection.warnings = []
        connection.add_notice_handler(connection.warn)
        ((server,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
        promises = self._promises | self._timeouts
        if server == connection.info.backend_pid:
            connection.execute(_set(promises))
        else:
            # A pooler such as PgBouncer gives the server's session to others after a transaction.
            connection.promises = _set(promises, local=True)
            connection.prepare_threshold = None

    def _check_quiet(self, connection: _Connection) -> None:
        """See that an idle connection is fit for use: a server that ends one says so in it."""
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        if waiting.poll(0):
            connection.close()
            self._pool.drain()
            raise psycopg.OperationalError("the server has ended a connection")

    def _give_up(self, connection: _Connection) -> None:
        """Close a connection; the server must not go on with what nobody waits for any longer.

        A commit may wait for a standby for ever, and others for what it has locked.
        """
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            try:
                capabilities.has_cancel_safe(check=True)  # else it would wait for ever
                connection.cancel_safe(timeout=CANCEL)
            except psycopg.Error:
                self._in_vain = True  # it does not hear that either
        connection.close()

    def time(self) -> float:
        if self._clock is not None:
            return self._clock()
        current = self._current
        return float(current.time + time.monotonic() - current.since)

    def stream(self, sql: str, values: Values = ()) -> Iterator[Row]:
        if not self._current.writing:  # who only reads may take its time, and keeps nobody waiting
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
        table = Schema._meta.table_name
        self.write_once(self.change, f"UPDATE {table} SET version = version WHERE FALSE")

    def _execute(self, sql: str, values: Values = ()) -> psycopg.Cursor[Row]:
        cursor: psycopg.Cursor[Row] = self._current.connection.execute(sql, values)
        return cursor

    def any_of(self, column: peewee.ColumnBase, name: str) -> peewee.Expression:
        return column == peewee.fn.ANY(self.place(name))

    def off_path(self, column: peewee.ColumnBase) -> peewee.ColumnBase:
        return column  # PostgreSQL knows best: it keeps statistics of the values

    def locking(self, query: peewee.Select, how: str) -> peewee.Select:
        return query.for_update(f"FOR {how}")  # type: ignore[arg-type]  # the stub is too narrow

    def deletion(self, key: peewee.Field, chosen: peewee.Select, how: str = "UPDATE") -> str:
        # As an array the keys are looked up one by one, whatever the planner thinks of LIMIT.
        keys = peewee.fn.ARRAY(self.locking(chosen, how))
        return self.sql(key.model.delete().where(key == peewee.fn.ANY(keys)))

    def passing_id(self) -> int:
        # The sequence counts on before a row waits for those who are there before it: too early.
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

    def keep_others_off(self, ids: peewee.AutoField, highest: int = 0) -> None:
        _keep_others_off(self._current.connection, ids, highest)

    def last_id(self, ids: peewee.AutoField) -> int:
        return _last_given(self._current.connection, ids)

    def close(self) -> None:
        self._pool.close(timeout=1)
        self._pool = self._new_pool()
        atexit.unregister(self.close)


def _set(promises: dict[str, int], local: bool = False) -> str:
    """Return the SQL that makes the server keep these settings, and commits durable.

    Args:
        promises: settings of the server, by name.
        local: whether for the present transaction alone.
    """
    settings = [f"SET {'LOCAL ' if local else ''}{it} = {n};" for it, n in promises.items()]
    return (
        f"{''.join(settings)} SELECT set_config('synchronous_commit', 'on', {local})"
        " WHERE current_setting('synchronous_commit') = 'off';"
    )


def _mend_ids(connection: psycopg.Connection[Row], ids: peewee.AutoField) -> None:
    """See that the ids to come are above those that are there: others may have put them in."""
    largest = f"SELECT max({ids.column_name}) FROM {ids.model._meta.table_name}"
    ((highest,),) = connection.execute(largest).fetchall()
    if highest is not None and highest > _last_given(connection, ids):
        _keep_others_off(connection, ids, highest)


def _keep_others_off(
    connection: psycopg.Connection[Row], ids: peewee.AutoField, highest: int
) -> None:
    table = ids.model._meta.table_name
    connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
    if _last_given(connection, ids) < highest:
        # Unlike setval, this is undone with the transaction.
        restart = f"ALTER TABLE {table} ALTER {ids.column_name} RESTART WITH {highest + 1}"
        connection.execute(restart)


def _last_given(connection: psycopg.Connection[Row], ids: peewee.AutoField) -> int:
    column = (ids.model._meta.table_name, ids.column_name)
    find = "SELECT pg_get_serial_sequence(%s, %s)"
    ((sequence,),) = connection.execute(find, column).fetchall()
    last_given = f"SELECT last_value - (NOT is_called)::int FROM {sequence}"
    ((last,),) = connection.execute(last_given).fetchall()
    return int(last)


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


def _line(error: Exception) -> str:
    """Return what PostgreSQL or libpq says, on one line."""
    return " ".join(str(error).split())
