"""A database in a SQLite file, or in memory.

peewee makes the tables and the SQL, and Python's sqlite3 runs it. A transaction borrows a
connection, so there are never more than there were transactions at once, and a thread that waits
for its turn needs none. A database in memory has a single connection.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar
from urllib.parse import quote, unquote

import peewee

from orchmgmt.databases import NO_ROOM, SILENT, Backend, Busy, Clock, Row, Values, log
from orchmgmt.databases.files import INDEX, LOG, Files, demand_whole, in_the_way, owned
from orchmgmt.databases.schema import Permitted, check_schema, prepare_schema
from orchmgmt.errors import Unavailable
from orchmgmt.models import BusyDatabase, MissingDatabase, UnusableDatabase, WrongUrl

P = ParamSpec("P")
T = TypeVar("T")

WAL_PAUSE = 0.01  # seconds
SQLITE_MINIMUM = (3, 35, 0)  # the first with RETURNING
MEMORY = ":memory:"

#: A read relies on a look at the files that is no older, in seconds. During a look other threads
#: may take the interpreter: one for each read would cost a sixth of the queries in a second.
LOOK_INTERVAL = 0.05

#: For a file that nobody writes to: SQLite makes no other file beside it.
IMMUTABLE = "&immutable=1"
PRAGMAS = {"synchronous": "FULL", "temp_store": "MEMORY"}

# What SQLite says if it cannot serve now; anything else that it says is a fault of ours.
_OUTAGES = (sqlite3.OperationalError, sqlite3.InterfaceError, sqlite3.InternalError)


#: What the log says for each of SQLite's codes; for any other, that there is no answer.
_REASONS = {
    sqlite3.SQLITE_FULL: "the database has no room: %s",
    sqlite3.SQLITE_CORRUPT: "the database is damaged: %s: restore a backup",
    sqlite3.SQLITE_NOTADB: "the database is damaged: %s: restore a backup",
}
#: How much is written to find out whether there is room, in bytes.
TRIAL = 65536

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _TakenBack(Exception):
    """Ends a transaction that was only a trial."""


class SqliteBackend(Backend):
    """A database in SQLite.

    Args:
        url: `sqlite:///FILE`, `sqlite:////FILE` from the root, or `sqlite:///:memory:`.
        timeout: how long a statement waits for a busy database, in seconds.
        permitted: what may be done to the file so that it can be used.
        clock: what tells the time.

    Raises:
        UnusableDatabase: the database cannot be opened, or its schema is not ours.
    """

    one_writer = True
    _place = ":{}"

    def __init__(self, url: str, timeout: float, permitted: Permitted, clock: Clock) -> None:
        self._clock = clock
        self._timeout = timeout
        self.read_only = not permitted.write
        self._path = _find(url, permitted)
        self._in_memory = self._path == MEMORY
        self._uri = ""  # what a reader opens, whose files are never changed
        self._seen: list[tuple[int, ...]] = []  # their state then
        if self.read_only and not self._in_memory:
            self._uri, self._seen = uri_to_read(self._path), state_of(self._path)
        self._files: Files | None = None
        self._looked = 0.0  # when it last looked at them
        self._told = ""  # what harm to them the log tells of already
        self._trouble = 0  # why the last write failed, in SQLite's code, until one succeeds
        self._connections: list[sqlite3.Connection] = []
        self._idle: list[sqlite3.Connection] = []
        self._connecting = threading.Lock()
        self._current = threading.local()
        # SQLite lets in one writer at a time; threads that wait for each other here are served in
        # turn, where SQLite would have them sleep and try again. A database in memory has a single
        # connection, so there readers wait too.
        self._writing = threading.RLock()
        self._reading = self._writing if self._in_memory else None
        self.engine = peewee.SqliteDatabase(
            self._uri or self._path,
            uri=bool(self._uri),
            pragmas=PRAGMAS,
            timeout=timeout,
            thread_safe=not self._in_memory,
            check_same_thread=False,
            returning_clause=True,
        )
        try:
            self._prepare(permitted)
        except UnusableDatabase:
            self.close()
            raise
        except (peewee.DatabaseError, sqlite3.Error, OSError, ValueError) as error:
            self.close()
            raise _unusable(self._path, error, permitted.write) from error

    def _prepare(self, permitted: Permitted) -> None:
        """Make or upgrade the tables, and keep what the transactions need of that."""
        engine = self.engine
        if not self._in_memory and os.path.exists(self._path):
            demand_whole(self._path, self._timeout)
        with engine.atomic("DEFERRED"):  # before the file is changed in any way
            check_schema(engine, permitted)
        if permitted.upgrade and not self._in_memory:
            _use_write_ahead_log(engine, self._timeout)
        if permitted.write:
            with engine.atomic("IMMEDIATE") as transaction:
                prepare_schema(engine, permitted)
                if not permitted.upgrade:
                    transaction.rollback()  # this was only to see that it can be written to
        if self._in_memory:
            self._connections.append(engine.connection())
            self._idle.append(engine.connection())
        else:
            if not self.read_only:
                self._files = Files(self._path)
            engine.close()  # the thread that starts a server may fork it

    def time(self) -> float:
        return self._clock()

    def _connect(self) -> sqlite3.Connection:
        with self._connecting:
            if self._files is not None:
                self._demand_files()  # it must not open another file, and keep it
                demand_whole(self._path, self._timeout)
            connection = sqlite3.connect(
                self._uri or self._path,
                self._timeout,
                uri=bool(self._uri),
                isolation_level=None,
                check_same_thread=False,
            )
            for name, value in PRAGMAS.items():
                connection.execute(f"PRAGMA {name} = {value}")
            if self._files is not None and not self._connections:
                connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
                self._files.opened()
            self._connections.append(connection)
        return connection

    def _look_again(self) -> None:
        """Forget the connections of a reader if others have changed what it has opened."""
        state = state_of(self._path)
        if state == self._seen:
            return
        with self._connecting:
            self._uri, self._seen = uri_to_read(self._path), state
            self._forget_connections()

    def _forget_connections(self) -> None:
        """Close the connections: those in use at the end of their transaction.

        SQLite would crash the process if another thread were using one.
        """
        self._connections.clear()
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _demand_unchanged(self, connection: sqlite3.Connection) -> None:
        """Raise if a reader may have seen parts of what others were writing meanwhile."""
        changed = self._uri.endswith(IMMUTABLE) and state_of(self._path) != self._seen
        if changed or connection not in self._connections:
            raise Busy

    def _demand_files(self, committed: bool = False, age: float = 0.0) -> None:
        """Raise if nobody else would see what is written, which SQLite does not notice.

        Args:
            committed: whether this process has just written.
            age: how old a look at the files may be, in seconds.
        """
        if self._files is None:
            return
        now = time.monotonic()
        if not self._told and now - self._looked < age:
            return
        self._looked = now
        harm = (
            self._files.harm_of_commit() if committed else self._files.harm(bool(self._connections))
        )
        if harm and harm != self._told:
            log.error(
                "%s while the database is in use: stop all processes that use it, put the file "
                "back or restore a backup, and start again",
                harm,
            )
            self._save()
        self._told = harm
        if harm:
            raise Unavailable(SILENT)

    def _save(self) -> None:
        """Bring what is only in a log that was removed into the database, where it lasts."""
        if os.path.exists(self._path) and not os.path.exists(self._path + LOG):
            for connection in list(self._connections):
                with suppress(sqlite3.Error):  # another thread has a transaction on it
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def read_single(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # SQLite itself makes a transaction of a statement. BEGIN and COMMIT would each let other
        # threads take the interpreter, so a query by id would take an eighth more CPU.
        self._demand_open()
        with self._transaction(writing=False, single=True):
            return work(*args, **kwargs)

    @contextmanager
    def _transaction(self, writing: bool, single: bool = False) -> Iterator[None]:
        if getattr(self._current, "connection", None) is not None:
            yield  # it is part of the transaction around it
            return
        if self.read_only and not self._in_memory:
            self._look_again()
        self._demand_files(age=0 if writing else LOOK_INTERVAL)
        turn = self._writing if writing else self._reading
        if turn is not None and not turn.acquire(timeout=self._timeout):
            raise Busy
        try:
            with self._borrowed() as connection:
                before = connection.total_changes
                if not single:
                    connection.execute("BEGIN IMMEDIATE" if writing else "BEGIN")
                yield
                if not single:
                    connection.execute("COMMIT")
                changed = connection.total_changes > before
                if self.read_only:
                    self._demand_unchanged(connection)
                if writing:
                    self._demand_files(committed=True)  # before the last connection removes the log
                    # A write that changes nothing needs no room, but proves that nobody is in the
                    # way.
                    if changed or self._trouble == sqlite3.SQLITE_BUSY:
                        self._trouble = 0
        except UnusableDatabase as error:
            log.error("%s", error)
            raise Unavailable(SILENT) from None
        except sqlite3.DatabaseError as error:
            # A damaged file is reported as the bare base class.
            if isinstance(error, _OUTAGES) or type(error) is sqlite3.DatabaseError:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                log.error(_REASONS.get(code, "the database does not answer: %s"), error)
                if writing or code in _DAMAGED:
                    self._trouble = code
                raise _unavailable(code) from error
            raise
        finally:
            if turn is not None:
                turn.release()

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        self._demand_open()  # it may have waited for its turn
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        self._current.connection = connection
        try:
            yield connection
        finally:
            self._current.connection = None
            with suppress(sqlite3.Error):  # this thread has closed the store meanwhile
                connection.rollback()
            if connection in self._connections and not self.closed:
                self._idle.append(connection)
            else:
                connection.close()

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread's transaction."""
        connection: sqlite3.Connection = self._current.connection
        return connection

    def check(self) -> None:
        self._demand_files()
        super().check()
        if self.read_only:
            return
        path = self._path
        # Trying to write would mean to wait for others who write.
        if not self._in_memory and not may_write(path):
            log.error("%s or its folder cannot be written to", path)
            raise Unavailable(SILENT)
        if self._trouble:
            raise _unavailable(self._trouble)

    def inspect(self, thorough: bool) -> str:
        super().inspect(thorough)
        look = "PRAGMA integrity_check(1)" if thorough else "PRAGMA quick_check(1)"
        ((found,),) = self.read(self.rows, look)
        if found != "ok":
            raise UnusableDatabase(
                f"the database is damaged: {found.splitlines()[-1]}: restore a backup"
            )
        ((mode,),) = self.read(self.rows, "PRAGMA journal_mode")
        if mode == "wal":  # in any other mode the trial would go into the file itself
            with suppress(_TakenBack):
                self.write_once(self._try_for_room)
        return "" if self._in_memory else f"{self._path} {owned(self._path)}"

    def _try_for_room(self) -> None:
        self._execute("PRAGMA cache_size = 1", ())  # what does not fit is written at once
        self._execute(f"CREATE TABLE orchestration_trial AS SELECT zeroblob({TRIAL})", ())
        raise _TakenBack

    def stream(self, sql: str, values: Values = ()) -> Iterator[Row]:
        # `yield from` would close the cursor with this generator, perhaps after its connection.
        yield from iter(self._execute(sql, values).fetchone, None)

    def _execute(self, sql: str, values: Values) -> sqlite3.Cursor:
        if isinstance(values, Mapping):
            values = {
                name: json.dumps(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        return self.connection.execute(sql, values)

    def any_of(self, column: peewee.ColumnBase, name: str) -> peewee.Expression:
        return column.in_(peewee.SQL(f"(SELECT value FROM json_each({self._place.format(name)}))"))

    def unindexed(self, column: peewee.ColumnBase) -> peewee.ColumnBase:
        return peewee.NodeList((peewee.SQL("+"), column), glue="")

    def take_turns(self, name: str) -> None:
        pass  # there are no others

    def keep_others_off(self, ids: peewee.AutoField, highest: int = 0) -> None:
        # There are no others. AUTOINCREMENT counts on from the largest id, or from this row.
        if self.last_id(ids) < highest:
            values = (highest, ids.model._meta.table_name)
            if not self.change("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", values):
                self.change("INSERT INTO sqlite_sequence (seq, name) VALUES (?, ?)", values)

    def last_id(self, ids: peewee.AutoField) -> int:
        find = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
        ((last,),) = self.rows(find, (ids.model._meta.table_name,))
        return int(last)

    def close(self) -> None:
        self._forget_connections()
        if not self._writing.acquire(blocking=False):
            return  # a transaction of another thread needs the rest until it ends
        try:
            if self._files is not None:
                self._files.close()
            self.engine.close()
        finally:
            self._writing.release()


def _unavailable(code: int) -> Unavailable:
    if code == sqlite3.SQLITE_BUSY:
        return Busy()
    return Unavailable(NO_ROOM if code == sqlite3.SQLITE_FULL else SILENT)


def _find(url: str, permitted: Permitted) -> str:
    """Return the file that a URL names, from the root, which is there if it must; or `:memory:`."""
    path = sqlite_path(url)
    if path == MEMORY:
        return path
    try:
        # The same file if the process changes its folder, and where its log lies.
        path = os.path.realpath(path)
    except FileNotFoundError:
        raise UnusableDatabase("the current folder is no longer there") from None
    # SQLite would delete a log without its database, and with it changes that were acknowledged.
    # This order is right if another process makes the database meanwhile, and then its log.
    if _has_log(path) and not os.path.exists(path):
        raise UnusableDatabase(
            f"it was removed ({path}{LOG} is there): put the file back or restore a backup"
        )
    if not permitted.create and not os.path.exists(path):
        if obstacle := in_the_way(path, to_write=False):
            raise UnusableDatabase(obstacle)
        raise MissingDatabase("there is no such file")
    return path


def may_write(path: str) -> bool:
    """Return whether a database's file and its folder can be written to."""
    return all(os.access(it, os.W_OK) for it in (path, os.path.dirname(path)))


def uri_of(path: str) -> str:
    """Return how SQLite opens a database's file, which is not made: only to read, if it must."""
    path = os.path.realpath(path)
    return f"file:{quote(path)}?mode=rw" if may_write(path) else uri_to_read(path)


def uri_to_read(path: str) -> str:
    """Return how SQLite opens a database's file so that neither it nor its log is changed or made.

    If no log is in use, nobody is writing to it; check that this stays so (`state_of`).
    """
    return f"file:{quote(path)}?mode=ro" + ("" if _has_log(path) else IMMUTABLE)


def _has_log(path: str) -> bool:
    """Whether a log is in use. An empty one without an index is left over, and says nothing."""
    try:
        return os.path.getsize(path + LOG) > 0 or os.path.exists(path + INDEX)
    except OSError:
        return False


def state_of(path: str) -> list[tuple[int, ...]]:
    """Return what changes once somebody else writes to a database without a log.

    With a log it is what changes once one of the files is another.
    """
    log_file = _state(path + LOG)[:2] if _has_log(path) else ()
    database = _state(path)
    return [log_file, database[:2] if log_file else database]


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def sqlite_path(url: str) -> str:
    """Return the file that a SQLite URL names, or `:memory:`.

    Raises:
        WrongUrl: it is none.
    """
    rest = url.partition("://")[2]
    if not rest.startswith("/") or rest == "/":
        raise WrongUrl("a SQLite URL is sqlite:///FILE, or sqlite:////FILE from the root")
    if "?" in rest:
        raise WrongUrl(
            "a SQLite URL has no parameters: set ORCHMGMT_DATABASE_TIMEOUT_SECONDS for a timeout, "
            "and write %3F for a ? that is part of the file's name"
        )
    if sqlite3.sqlite_version_info < SQLITE_MINIMUM:
        raise UnusableDatabase(
            f"Python has SQLite {sqlite3.sqlite_version}, "
            f"{'.'.join(map(str, SQLITE_MINIMUM))} or newer is needed"
        )
    path = unquote(rest[1:])
    if "\0" in path:
        raise UnusableDatabase("no path has a null character")
    return f"/{path.lstrip('/')}" if path.startswith("/") else path


def _use_write_ahead_log(engine: peewee.Database, timeout: float) -> None:
    """Switch the file to WAL, where readers and the writer do not wait for each other."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            mode = engine.execute_sql("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except peewee.OperationalError as error:
            # Processes that start at once on a new file get in each other's way, and here SQLite
            # does not wait.
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(WAL_PAUSE)
    if mode != "wal":
        raise peewee.OperationalError(f"its journal mode stays {mode} (WAL is needed)")


def _unusable(path: str, error: Exception, to_write: bool) -> UnusableDatabase:
    """Return what keeps a database from being opened."""
    if path == MEMORY:
        return UnusableDatabase(str(error))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return UnusableDatabase(f"there is no folder {folder}")
    if os.path.isdir(path):
        return UnusableDatabase("it is a folder")
    if obstacle := in_the_way(path, to_write):
        return UnusableDatabase(f"{error}: {obstacle}")
    if _has_log(path) and not may_write(path):
        return UnusableDatabase(
            f"{error}: its log {path}{LOG} can only be read where the folder can be written to"
        )
    if str(error) == "database is locked":  # peewee's errors have no code
        return BusyDatabase("it is busy: another process has been writing to it")
    if str(error) == "database disk image is malformed":
        return UnusableDatabase(f"{error}: restore a backup")
    return UnusableDatabase(str(error))
