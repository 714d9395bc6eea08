"""Locks and jobs as JSON Lines: each line is an entry as the contract's responses have it."""

import errno
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import click

from orchmgmt.cli import Failure, printable
from orchmgmt.commands.unfinished import unfinished
from orchmgmt.databases import Row
from orchmgmt.errors import InvalidParameter
from orchmgmt.history import StepBack
from orchmgmt.locks import ENTRY, AlreadyLocked
from orchmgmt.models import Lock, NewLock
from orchmgmt.schemas import EntrySchema, JobEntry, LockEntry, parse_json, write_json
from orchmgmt.store import Store

#: How many lines are stored at once, and how many bytes they may have together.
BATCH = 900
BATCH_BYTES = 4 * 1024 * 1024

#: Bytes of a line. The longest message takes a fifth of that, however it is escaped.
LONGEST_LINE = 1024 * 1024

LONG_AGO = "1970-01-01T00:00:00Z"

#: What an export says of the newest lock that ever was, if it is gone. Only its id matters.
REMOVED = NewLock("", "Removed|lock|1.0.0", "Nobody", LONG_AGO)

Write = Callable[[str], object]


class BadLine(Failure):
    """A line that cannot be imported. The message names the line and says why."""

    def __init__(self, number: int, reason: object) -> None:
        super().__init__(printable(f"line {number}: {reason}"))


class Conflicts(InvalidParameter):
    """Locks of others are in the way.

    Attributes:
        reasons: what is in the way, by the id or the service instance of the lock that it stops.
    """

    def __init__(self, reasons: Mapping[int | str, str]) -> None:
        super().__init__("Locks of others are in the way")
        self.reasons = reasons


#: The number of a line, from 1, and the entry that it holds.
Line = tuple[int, dict[str, Any]]


def import_jobs(store: Store, lines: Iterable[bytes], replace: bool = False) -> int:
    """Insert jobs, or update those whose id is known: all of them or none.

    Args:
        store: where to.
        lines: JSON Lines, each an entry of history query; `id` may be absent.
        replace: whether a line may take a known job back in its life. By default a job only goes
            forward, as with the operation `record`.

    Returns:
        How many jobs there were.

    Raises:
        BadLine: the first line that is no job, or a step back; nothing is changed.
        Unavailable: the database does not answer.
    """

    def put() -> int:
        count = 0
        for batch in _batches(JobEntry(store.settings), lines):
            jobs = [entry for _, entry in batch]
            try:
                (store.job_table.put if replace else store.job_table.put_forward)(jobs)
            except StepBack as error:
                reason = f"{error}; use --replace to allow it"
                raise BadLine(batch[error.place][0], reason) from None
            count += len(batch)
        return count

    return store.database.write_once(put)


def import_locks(store: Store, lines: Iterable[bytes]) -> tuple[int, int]:
    """Create locks, all of them or none. Locks that have expired are skipped.

    Args:
        store: where to.
        lines: JSON Lines, each an entry of lock query; `id` may be absent. A lock with a known id
            is replaced if instance and owner are the same. Later ids are larger than all ids in
            the lines, including those of expired locks.

    Returns:
        How many locks were imported, and how many had expired.

    Raises:
        BadLine: the first line that is no lock, or whose instance is held; nothing is changed.
        Unavailable: the database does not answer.
    """

    def put() -> tuple[int, int]:
        imported = expired = last_id = 0
        # Lines come in any order, so two imports could wait for each other's instances for ever.
        store.database.keep_others_off(Lock.id)
        with closing(_open_places()) as places:
            for batch in _batches(LockEntry(store.settings), lines):
                present = store.database.now()
                live = [line for line in batch if line[1]["expires_at"] > present]
                # Before locks without an id get one.
                last_id = max([last_id, *(entry["id"] or 0 for _, entry in batch)])
                store.database.keep_others_off(Lock.id, last_id)
                _put_locks(store, live, places)
                imported += len(live)
                expired += sum(LONG_AGO < it["expires_at"] <= present for _, it in batch)
        return imported, expired

    return store.database.write_once(put)


def _open_places() -> sqlite3.Connection:
    """Open a temporary file for the line of each instance and each id: there may be millions."""
    places = sqlite3.connect("", isolation_level=None)
    places.execute("PRAGMA journal_mode = OFF")
    places.execute("CREATE TABLE place (key PRIMARY KEY, line) WITHOUT ROWID")
    return places


def _first_line(places: sqlite3.Connection, key: str | int, line: int) -> int:
    """Return the line that had a key first, which is `line` if the key is new."""
    sql = "INSERT INTO place VALUES (?, ?) ON CONFLICT DO UPDATE SET line = line RETURNING line"
    try:
        first: int = places.execute(sql, (key, line)).fetchone()[0]
    except sqlite3.OperationalError as error:  # an error of the temporary file, not of the database
        raise OSError(errno.ENOSPC, str(error), "temporary files") from None
    return first


def _put_locks(store: Store, lines: list[Line], places: sqlite3.Connection) -> None:
    faults: dict[int, str] = {}
    known: dict[int, NewLock] = {}
    new: list[NewLock] = []
    for number, entry in lines:
        lock_id = entry.pop("id")
        lock = NewLock(**entry)
        for key in filter(None, (lock.service_instance_id, lock_id)):
            first = _first_line(places, key, number)
            if first != number:
                faults.setdefault(number, f"{key} is in line {first} already")
        if faults:
            break  # an earlier line may still have another fault
        if lock_id is None:
            new.append(lock)
        else:
            known[lock_id] = lock
    reasons: dict[int | str, str] = {}
    try:
        restore(store, known)
    except Conflicts as error:
        reasons.update(error.reasons)
    try:
        store.lock_table.put(new)
    except AlreadyLocked as error:
        reasons |= _held(error.service_instance_ids)
    for key, reason in reasons.items():
        faults[_first_line(places, key, 0)] = reason
    if faults:
        first = min(faults)
        raise BadLine(first, faults[first])


def restore(store: Store, locks: Mapping[int, NewLock]) -> None:
    """Insert locks on different instances under known ids, within a `Backend.write`.

    A lock that is there already, same id, instance and owner, is replaced.

    Raises:
        Conflicts: somebody else holds one of the service instances, or an id belongs to another
            instance's lock; nothing is changed.
    """
    if not locks:
        return
    table, database = store.lock_table, store.database
    database.keep_others_off(Lock.id, max(locks))
    wanted = {lock.service_instance_id for lock in locks.values()}
    with_ids = database.any_of(Lock.id, "ids")
    among = database.any_of(Lock.service_instance_id, "service_instance_ids")
    present = database.now()
    replaced: list[int] = []
    reasons: dict[int | str, str] = {}
    for lock_id, *columns in database.rows(
        database.sql(Lock.select(*ENTRY).where(with_ids | among)),
        {"ids": list(locks), "service_instance_ids": list(wanted)},
    ):
        there, new = NewLock(*columns), locks.get(lock_id)
        instance = there.service_instance_id
        same = new is not None and new.service_instance_id == instance
        if new and not same:
            reasons[lock_id] = f"lock {lock_id} is of another service instance: {instance}"
        if there.expires_at <= present or (new and same and new.owner == there.owner):
            replaced.append(lock_id)
        elif instance in wanted:
            reasons |= _held([instance])
    if reasons:
        raise Conflicts(reasons)
    discard(store, replaced)
    table.insert_rows([(lock_id, *lock) for lock_id, lock in locks.items()])


def _held(instances: Iterable[str]) -> dict[int | str, str]:
    return {it: str(AlreadyLocked([it])) for it in instances}


def discard(store: Store, ids: Sequence[int]) -> None:
    """Remove locks by their ids, whoever holds them, within a `Backend.write`."""
    delete = Lock.delete().where(store.database.any_of(Lock.id, "ids"))
    store.database.change(store.database.sql(delete), {"ids": ids})


def export_jobs(store: Store, write: Write) -> int:
    """Write every job as a line of JSON, the oldest first; return how many there were."""
    return store.database.read(_export, JobEntry(store.settings), store.job_table.stream(), write)


def export_locks(store: Store, write: Write) -> int:
    """Write every active lock as a line of JSON, the oldest first; return how many there were.

    If the newest lock that ever was is gone, a last line carries its id, as a lock that ended in
    1970. Imports skip that lock, and this version's import continues with larger ids.
    """
    schema = LockEntry(store.settings)
    largest = 0

    def rows() -> Iterator[Row]:
        nonlocal largest
        for row in store.lock_table.stream():
            largest = row[0]
            yield row

    def export() -> int:
        count = _export(schema, rows(), write)
        last_id = store.database.last_id(Lock.id)
        if last_id > largest:
            _export(schema, [(last_id, *REMOVED)], write)
        return count

    return store.database.read(export)


def _export(schema: EntrySchema, rows: Iterable[Row], write: Write) -> int:
    count = 0
    for row in rows:
        (entry,) = schema.entries_of([row])
        write(f"{write_json(entry)}\n")
        count += 1
    return count


def _batches(schema: EntrySchema, lines: Iterable[bytes]) -> Iterator[list[Line]]:
    """Read entries in batches. The entries before a bad line come before its error."""
    batch: list[Line] = []
    size = 0
    for number, text in enumerate(lines, 1):
        if len(text) <= LONGEST_LINE and not text.strip():
            continue
        try:
            if len(text) > LONGEST_LINE:
                raise InvalidParameter(f"it is longer than {LONGEST_LINE:,} bytes")
            batch.append((number, schema.read(parse_json(text))))
        except InvalidParameter as error:
            yield batch
            raise BadLine(number, error) from None
        size += len(text)
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


@contextmanager
def output(name: str) -> Iterator[TextIO]:
    """Open what an export writes to. A file appears under its name only when it is complete."""
    path = Path(name).resolve()
    try:
        # Standard output, a device or a pipe is written to directly.
        if name == "-" or (path.exists() and not path.is_file()):
            target = sys.stdout.fileno() if name == "-" else path
            with open(target, "w", encoding="utf-8", closefd=name != "-") as stream:
                yield stream
        else:
            # click's own atomic files replace the earlier file even if the export fails.
            with unfinished(path.parent) as folder:
                whole = folder / "export"
                with whole.open("w", encoding="utf-8") as file:
                    yield file
                if path.exists():
                    shutil.copymode(path, whole)
                whole.replace(path)
    except BrokenPipeError:
        raise  # the reader has left: click ends the command silently
    except OSError as error:
        raise Failure(f"cannot write to {name}: {error.strerror or error}") from None


@contextmanager
def progress(file: BinaryIO) -> Iterator[Iterator[bytes]]:
    """Read the lines of a file, with a progress bar on a terminal."""
    watched = sys.stderr if sys.stderr.isatty() else StringIO()
    with tempfile.TemporaryFile() as spool:
        if not file.seekable():
            # An import locks out other writers, so it must not wait for a slow pipe.
            try:
                shutil.copyfileobj(file, spool)
                spool.seek(0)
            except OSError as error:
                place = tempfile.gettempdir()
                raise Failure(f"cannot keep the input in {place}: {error.strerror}") from None
            file = spool
        size = os.fstat(file.fileno()).st_size
        with click.progressbar(length=size, label="Importing", file=watched) as bar:

            def lines() -> Iterator[bytes]:
                while line := file.readline(LONGEST_LINE + 1):
                    yield line
                    bar.update(len(line))

            yield lines()
