"""Locks and jobs as JSON Lines: each line is an entry as the contract's responses have it."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from orchmgmt.databases import Row
from orchmgmt.errors import InvalidParameter
from orchmgmt.json_text import parse_json, write_json
from orchmgmt.locks import AlreadyLocked, TakenIds
from orchmgmt.models import NewLock
from orchmgmt.schemas import EntrySchema, JobEntry, LockEntry
from orchmgmt.store import Store

BATCH = 900

Write = Callable[[str], object]


class BadLine(Exception):
    """A line that cannot be imported; the text names the line and says why."""

    def __init__(self, number: int, reason: object) -> None:
        super().__init__(f"line {number}: {reason}")


class Line(NamedTuple):
    """One entry of an import.

    Attributes:
        number: the line, from 1.
        entry: what the schema loaded from it.
    """

    number: int
    entry: dict[str, Any]


def import_jobs(store: Store, lines: Iterable[bytes]) -> int:
    """Insert jobs, or update those whose id is there; all of them or none.

    Args:
        store: where to.
        lines: JSON Lines, each an entry of history query; `id` may be absent.

    Returns:
        How many jobs there were.

    Raises:
        BadLine: the first line that is no job; nothing is changed.
        Unavailable: the database does not answer.
    """

    def put() -> int:
        count = 0
        for batch in _batches(JobEntry(store.settings), lines):
            store.history.put([line.entry for line in batch])
            count += len(batch)
        return count

    return store.database.write_once(put)


def import_locks(store: Store, lines: Iterable[bytes]) -> tuple[int, int]:
    """Create locks, all of them or none; those that have expired by now are passed over.

    Args:
        store: where to.
        lines: JSON Lines, each an entry of lock query; `id` may be absent. A lock whose id is
            there already, for the same instance and owner, is replaced.

    Returns:
        How many locks were imported, and how many had expired.

    Raises:
        BadLine: the first line that is no lock, or whose instance is held; nothing is changed.
        Unavailable: the database does not answer.
    """

    def put() -> tuple[int, int]:
        imported = expired = 0
        # Lines come in any order: two that wait for each other's instances would never end.
        store.locks.keep_others_off()
        with closing(_Places()) as places:
            for batch in _batches(LockEntry(store.settings), lines):
                present = store.database.now()
                live = [line for line in batch if line.entry["expires_at"] > present]
                _put_locks(store, live, places)
                imported += len(live)
                expired += len(batch) - len(live)
        return imported, expired

    return store.database.write_once(put)


class _Places:
    """The line of each instance and each id, in a file that goes away: there may be any number."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE place (key PRIMARY KEY, line) WITHOUT ROWID")

    def put(self, key: str | int, line: int) -> int:
        """Return the line of a key; it is this one if the key is new."""
        row = (key, line)
        if self._database.execute("INSERT OR IGNORE INTO place VALUES (?, ?)", row).rowcount:
            return line
        found = self._database.execute("SELECT line FROM place WHERE key = ?", (key,))
        first: int = found.fetchone()[0]
        return first

    def close(self) -> None:
        self._database.close()


def _put_locks(store: Store, lines: list[Line], places: _Places) -> None:
    faults: dict[int, str] = {}
    known: dict[int, NewLock] = {}
    new: list[NewLock] = []
    for line in lines:
        lock_id = line.entry.pop("id")
        lock = NewLock(**line.entry)
        for key in filter(None, (lock.service_instance_id, lock_id)):
            first = places.put(key, line.number)
            if first != line.number:
                faults.setdefault(line.number, f"{key} is in line {first} already")
        if line.number in faults:
            continue
        if lock_id is None:
            new.append(lock)
        else:
            known[lock_id] = lock

    def restore() -> None:
        try:
            store.locks.restore(known)
        except TakenIds as error:
            for lock_id, instance in error.instances.items():
                reason = f"lock {lock_id} is of another service instance: {instance}"
                faults[places.put(lock_id, 0)] = reason
                del known[lock_id]
            restore()  # what else is wrong may be in an earlier line

    for put in (restore, lambda: store.locks.insert(new)):
        try:
            put()
        except AlreadyLocked as error:
            for instance in error.service_instance_ids:
                faults[places.put(instance, 0)] = f"Already locked: {instance}"
    if faults:
        first = min(faults)
        raise BadLine(first, faults[first])


def export_jobs(store: Store, write: Write) -> int:
    """Write every job as a line of JSON, the oldest first; return how many there were."""
    return store.database.read(_export, JobEntry(store.settings), store.history.stream(), write)


def export_locks(store: Store, write: Write) -> int:
    """Write every active lock as a line of JSON, the oldest first; return how many there were."""
    return store.database.read(_export, LockEntry(store.settings), store.locks.stream(), write)


def _export(schema: EntrySchema, batches: Iterable[list[Row]], write: Write) -> int:
    count = 0
    for rows in batches:
        count += len(rows)
        write("".join(f"{write_json(entry)}\n" for entry in schema.dump(rows)))
    return count


def _batches(schema: EntrySchema, lines: Iterable[bytes]) -> Iterator[list[Line]]:
    """Read entries, a batch at a time; what is before a bad line still comes before its error."""
    batch: list[Line] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            batch.append(Line(number, schema.load(parse_json(text))))
        except InvalidParameter as error:
            yield batch
            raise BadLine(number, error) from None
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch
