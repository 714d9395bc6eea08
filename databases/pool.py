"""The connections of a process to a PostgreSQL server: psycopg's pool, with limits on all waits.

A frozen server or a silent network must not delay a request for longer than the timeout. If this
process itself is frozen, it must not block others for longer either.
"""

import atexit
import logging
import select
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import ceil
from typing import Any

import psycopg
from psycopg import capabilities, errors
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from orchmgmt.databases import Busy, Row

_pool_log = logging.getLogger("psycopg.pool")
_pool_log.setLevel(logging.WARNING)  # at lower levels it logs every connection
# Such connections were closed here, after a failure that is already logged.
_pool_log.addFilter(lambda record: "discarding closed connection" not in record.getMessage())

#: The shortest timeout of a statement in seconds, however short a request may wait for others.
LEAST_STATEMENT_TIME = 1.0

#: In seconds: how much later than a statement's timeout its answer may come, and how long to try to
#: cancel a statement that was not answered.
ANSWER_TIME = 0.5
CANCEL_TIME = 0.2

#: The age in seconds at which a connection is replaced: since it was made, another server may have
#: become the one that can write.
MAX_AGE = 600.0

#: How often a thread that waits for a connection checks whether none can be made, in seconds.
WAIT = 0.1

# PostgreSQL's errors when it cannot serve now. All its other errors are faults of this program.
OUTAGES = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.InternalError,
    errors.UndefinedTable,
    errors.InsufficientPrivilege,
)
#: Another writer was in the way.
COLLISIONS = (errors.DeadlockDetected, errors.SerializationFailure)
#: Another writer was in the way for longer than the timeout.
WAITS = (errors.LockNotAvailable, errors.QueryCanceled)


class Connection(psycopg.Connection[Row]):
    """A connection that waits for a silent server only for a limited time.

    Attributes:
        patience: how long, in seconds.
        warnings: the server's warnings since the last commit began.
        settings: SQL at the beginning of each transaction, if other processes use the session too.
    """

    patience: float | None = None
    warnings: list[str]
    settings: str = ""

    def wait(self, gen: PQGen[RV], interval: float = WAIT, timeout: float | None = None) -> RV:
        """Wait for the server's answer."""
        return super().wait(gen, interval, self.patience if timeout is None else timeout)

    def warn(self, notice: errors.Diagnostic) -> None:
        """Keep a warning of the server."""
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.message_primary or "")

    def commit(self) -> None:
        """Commit, and raise if the server warns that the commit may be lost."""
        self.warnings.clear()
        super().commit()
        if self.warnings:  # perhaps the server did not wait for a standby
            raise psycopg.OperationalError(self.warnings[0])


class Pool:
    """The connections of a process. They are made when they are needed, after any fork.

    Args:
        parameters: those of libpq.
        timeout: how long to wait for a connection, or for a lock, in seconds.
        connections: how many connections there may be at once.
    """

    def __init__(self, parameters: Mapping[str, Any], timeout: float, connections: int) -> None:
        self._parameters = {**parameters, "autocommit": True}
        self._timeout = timeout
        self._connections = connections
        self._pool = self._new_pool()
        self._in_vain = False  # whether the last wait for a connection, or an answer, failed

    def _new_pool(self) -> ConnectionPool[Connection]:
        return ConnectionPool(
            connection_class=Connection,
            kwargs=self._parameters,
            configure=self._configure,
            check=self._check_quiet,
            min_size=0,
            max_size=self._connections,
            max_lifetime=MAX_AGE,
            reconnect_timeout=0,  # the next request tries again: the server may be back by then
            reconnect_failed=self._cannot_connect,
            open=False,
        )

    @contextmanager
    def borrowed(self) -> Iterator[Connection]:
        """Lend a connection for a block.

        Raises:
            Busy: all connections have been in use for longer than the timeout.
            PoolTimeout: no connection can be made.
        """
        pool = self._pool
        if pool.closed:  # its threads start with the first request, in the process that serves
            pool.open()
            atexit.register(self.close)  # or they would delay the end of the process
        connection = self._connection(pool)
        try:
            yield connection
        except (*COLLISIONS, *WAITS):
            raise
        except OUTAGES:
            # Other connections may be broken too.
            self._give_up(connection)
            pool.drain()
            raise
        finally:
            with suppress(psycopg.Error):
                connection.rollback()
            pool.putconn(connection)

    def close(self) -> None:
        """Close the connections; `borrowed` opens new ones."""
        self._pool.close(timeout=1)
        self._pool = self._new_pool()
        atexit.unregister(self.close)

    def _connection(self, pool: ConnectionPool[Connection]) -> Connection:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection = pool.getconn(WAIT)
            except PoolTimeout:
                # The pool does not tell the waiting threads that it cannot connect.
                if self._in_vain:
                    raise
                if time.monotonic() >= deadline:
                    self._in_vain = True
                    raise Busy from None
            else:
                self._in_vain = False
                return connection

    def _cannot_connect(self, pool: ConnectionPool[Any]) -> None:
        self._in_vain = True

    def _configure(self, connection: Connection) -> None:
        connection.patience = max(self._timeout + ANSWER_TIME, LEAST_STATEMENT_TIME)
        connection.warnings = []
        connection.add_notice_handler(connection.warn)
        ((server,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
        settings = promises(self._timeout) | timeouts(self._timeout)
        if server == connection.info.backend_pid:
            connection.execute(set_sql(settings))
        else:
            # A pooler such as PgBouncer gives the server's session to others after a transaction.
            connection.settings = set_sql(settings, local=True)
            connection.prepare_threshold = None

    def _check_quiet(self, connection: Connection) -> None:
        """Raise if something has arrived on an idle connection: the server has ended it."""
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        if waiting.poll(0):
            connection.close()
            self._pool.drain()
            raise psycopg.OperationalError("the server has ended a connection")

    def _give_up(self, connection: Connection) -> None:
        """Close a connection, and cancel its statement: nobody waits for the answer any longer.

        Otherwise a commit may wait for a standby for ever, and others for the rows that it has
        locked.
        """
        if connection.info.transaction_status == TransactionStatus.ACTIVE:
            try:
                capabilities.has_cancel_safe(check=True)  # else it would wait for ever
                connection.cancel_safe(timeout=CANCEL_TIME)
            except psycopg.Error:
                self._in_vain = True  # the server does not answer that either
        connection.close()


def promises(timeout: float) -> dict[str, int]:
    """Return the server's settings that keep this process, if it is frozen, from blocking others.

    Args:
        timeout: how long others may wait for this process, in seconds.
    """
    milliseconds = _statement_time(timeout)
    return {
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_user_timeout": milliseconds,
        "tcp_keepalives_idle": 30,
        "tcp_keepalives_interval": 10,
        "tcp_keepalives_count": 3,
    }


def timeouts(timeout: float) -> dict[str, int]:
    """Return the server's settings that limit the time of a statement.

    Args:
        timeout: how long it may wait for others, in seconds.
    """
    return {
        "lock_timeout": max(1, ceil(timeout * 1000)),
        "statement_timeout": _statement_time(timeout),
    }


def _statement_time(timeout: float) -> int:
    return ceil(max(timeout, LEAST_STATEMENT_TIME) * 1000)


def set_sql(settings: Mapping[str, int], local: bool = False) -> str:
    """Return the SQL that applies these settings, and makes commits durable.

    Args:
        settings: settings of the server, by name.
        local: whether only for the current transaction.
    """
    each = [f"SET {'LOCAL ' if local else ''}{it} = {n};" for it, n in settings.items()]
    return (
        f"{''.join(each)} SELECT set_config('synchronous_commit', 'on', {local})"
        " WHERE current_setting('synchronous_commit') = 'off';"
    )
