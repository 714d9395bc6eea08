"""The command that copies another orchestration's locks and history, and goes on copying."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from io import StringIO
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import click
from peewee import BigIntegerField, Model

from orchmgmt.cli import OF_THE_STORE, Failure, opened, printable, takes_settings
from orchmgmt.client import Client, Refused
from orchmgmt.commands.asking import AWAY, OF_A_LOGIN, NotDone, asks
from orchmgmt.commands.changes import Changes
from orchmgmt.commands.transfer import Conflicts, discard, restore
from orchmgmt.databases.queries import BulkInsert, Page
from orchmgmt.databases.schema import READY
from orchmgmt.entries import Entry
from orchmgmt.errors import InvalidParameter
from orchmgmt.fields import MESSAGE_MAX_LENGTH
from orchmgmt.history import COLUMNS
from orchmgmt.logs.audit import command
from orchmgmt.models import Lock, NewLock
from orchmgmt.schemas import LOCK_ID_MAX, EntrySchema, JobEntry, LockEntry
from orchmgmt.store import Store

log = logging.getLogger("orchmgmt")

#: Jobs that are compared and written at once.
BATCH = 900

#: New ids here begin this far above the largest that is seen there. Locks with larger ids may have
#: come and gone there, and each new id must be larger than all before it. The distance is restored
#: when half of it is used up.
UNSEEN = 1_000_000_000

Loaded = dict[str, Any]


class Mirrored(Model):
    """The locks that are copies. All other locks here are not the source's.

    The table is not part of the schema: only this command knows it, and creates it if necessary.
    """

    id = BigIntegerField(primary_key=True)

    class Meta:
        table_name = "orchestration_mirrored_lock"


class NotExact(Failure):
    """Something could be copied only in part, or not beside something else."""

    exit_code = 6


class Copied(NamedTuple):
    """What one round has changed here."""

    locks: int
    removed: int
    jobs: int


@click.command()
@click.argument("url")
@click.option("--follow", is_flag=True, help="Continue to copy changes, until SIGTERM or ^C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86400),
    default=5.0,
    show_default=True,
    help="Seconds between two rounds of --follow.",
)
@click.option(
    "--strict", is_flag=True, help="Exit with 6 if something could not be copied exactly."
)
@click.option(
    "--system-name", metavar="NAME", help="Log in at the identity service as this operator."
)
@takes_settings(*OF_THE_STORE, *OF_A_LOGIN)
@asks(url=False)
def mirror(
    client: Client,
    follow: bool,
    interval: float,
    strict: bool,
    system_name: str | None,
    **options: Any,
) -> None:
    """Copy the locks and the history of the orchestration at URL into the database.

    URL is a running orchmgmt, or the Java implementation of Eclipse Arrowhead. Locks keep their
    ids, and locks that end there are removed here; jobs stay. You can repeat the command, and stop
    it at any time. With --system-name it logs in at the identity service, as often as needed. The
    password is ORCHMGMT_SYSTEM_PASSWORD or in --system-password-file.
    """
    with opened(options, READY) as store:
        copy = Mirror(store, client)
        if not follow:
            _tell(copy.round())
        else:
            _follow(copy, interval, logs_in=system_name is not None)
    if copy.shortened:
        click.echo(f"Messages cut to {MESSAGE_MAX_LENGTH} characters: {len(copy.shortened)}.")
    if copy.second:
        click.echo(f"Locks left out because a later one is on their instance: {len(copy.second)}.")
    if copy.refused:
        raise NotDone(f"{len(copy.refused)} entries cannot be stored here; the log says which")
    if strict and (copy.shortened or copy.second):
        raise NotExact("not everything was copied exactly")


def _follow(copy: "Mirror", interval: float, logs_in: bool) -> None:
    asked = _asked_to_end()
    first, away = True, False
    try:
        while True:
            try:
                copied = copy.round(everything=first)
            except (*AWAY, Refused) as failure:
                logged_out = getattr(failure, "status", None) == HTTPStatus.UNAUTHORIZED
                if isinstance(failure, Refused) and not (logs_in and logged_out):
                    raise
                if not (away or logged_out):  # the login has already logged the latter
                    log.warning("%s; retrying", failure)
                away = True
            else:
                if any(copied) or away or first:
                    _tell(copied)
                first = away = False
            try:
                asked.get(timeout=interval)
                break
            except Empty:
                pass
        with suppress(OSError):  # the terminal may have been closed, and that is why it ends
            click.echo("Comparing everything once more.")
        copied = copy.round()
    except BaseException:
        log.warning(
            "everything was not compared once more, so something may be missing: run it again"
        )
        raise
    _tell(copied)
    click.echo("Stopped.")


def _asked_to_end() -> SimpleQueue[int]:
    """Return a queue into which the first signal to end is put. The second one ends the command."""
    asked: SimpleQueue[int] = SimpleQueue()  # a signal handler may always put into it

    def ask(number: int, frame: object) -> None:
        asked.put(number)
        if _watched():  # not through the stream, which may be in the middle of a line
            os.write(
                2,
                b"\nIt ends after comparing everything once more; repeat to end it at once.\n",
            )
        for number in numbers:  # the next one interrupts it: what is not committed is rolled back
            signal.signal(number, signal.default_int_handler)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup: it outlives its terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, ask)
    return asked


def _tell(copied: Copied) -> None:
    locks, removed, jobs = copied
    click.echo(f"Locks: {locks} copied, {removed} removed. Jobs: {jobs} copied.")
    sys.stdout.flush()


class Mirror:
    """Makes a database equal to an orchestration elsewhere.

    Args:
        store: the database.
        client: asks the other orchestration.

    Attributes:
        refused: why entries cannot be stored here, as logged.
        shortened: the jobs whose messages are too long and were cut.
        second: the locks that are left out because a later one is on their instance.
    """

    def __init__(self, store: Store, client: Client) -> None:
        self._store = store
        self._client = client
        self._changes = Changes(client)
        self._lock_entry = LockEntry(store.settings)
        self._job_entry = JobEntry(store.settings)
        self.refused: set[str] = set()
        self.shortened: set[str] = set()
        self.second: set[int] = set()
        database = store.database
        key = Mirrored.id
        self._ids = database.sql(Mirrored.select())
        self._forget = database.sql(Mirrored.delete().where(database.any_of(key, "ids")))
        self._remember = BulkInsert(database, [key], lambda insert: insert)
        create = f"CREATE TABLE IF NOT EXISTS {Mirrored._meta.table_name} (id BIGINT PRIMARY KEY)"
        database.write(database.rows, create)

    def round(self, everything: bool = True) -> Copied:
        """Copy what differs.

        Args:
            everything: compare all jobs, not only those that seem to have changed.

        Raises:
            NotDone: locks that are not copies are in the way.
            Refused: the other orchestration refuses a request.
            orchmgmt.client.Unavailable: it does not answer.
            orchmgmt.errors.Unavailable: the database does not answer.
        """
        locks, jobs = self._client.counts() if _watched() and everything else (0, 0)
        there: dict[int, NewLock] = {}
        with _progress("Locks", locks) as advance:
            for entry in self._client.locks():
                advance(1)
                loaded = self._load(self._lock_entry, entry)
                if loaded:
                    there.setdefault(loaded.pop("id"), NewLock(**loaded))
        self._tell_second(there)
        with command("mirror", always=False) as tell, _progress("Jobs", jobs) as advance:
            copied = Copied(*self._store.database.write(self._put_locks, there), 0)
            changed = self._changes.look(everything)
            new = 0
            while True:
                if any(copied):  # now, so that the line is written even if the next batch fails
                    tell(source=self._client.url, **copied._asdict())
                batch = list(islice(changed, BATCH))
                if not batch:
                    break
                put_here, new_here = self._put_jobs(batch)
                copied = copied._replace(jobs=copied.jobs + put_here)
                new += new_here
                advance(len(batch))
            if everything:
                tell(source=self._client.url, **copied._asdict())
        self._changes.settle(new)
        return copied

    def _load(self, schema: EntrySchema, entry: Entry) -> Loaded | None:
        """Return the values of an entry to store, or `None` if it cannot be stored."""
        wire = entry.to_wire()
        if len(wire.get("message", "")) > MESSAGE_MAX_LENGTH:
            wire["message"] = wire["message"][:MESSAGE_MAX_LENGTH]
            self.shortened.add(str(wire.get("id")))
        try:
            loaded: Loaded = schema.read(wire)
            if loaded["id"] is None:
                raise InvalidParameter("it has no id")
        except InvalidParameter as error:
            reason = f"{wire.get('id')} is skipped: {error}"
            if reason not in self.refused:
                log.warning("%s", reason)
            self.refused.add(reason)
            return None
        return loaded

    def _tell_second(self, there: Mapping[int, NewLock]) -> None:
        """Log once for each lock that is left out which lock is kept instead."""
        present = self._store.now()
        kept: dict[str, int] = {}
        for number, lock in sorted(there.items(), reverse=True):
            instance = lock.service_instance_id
            if lock.expires_at <= present or kept.setdefault(instance, number) == number:
                continue
            if number not in self.second:
                log.warning(
                    "%s is locked twice there, by %s with lock %d and by %s with lock %d; "
                    "only lock %d is copied, because it is the later one",
                    *(instance, lock.owner, number, there[kept[instance]].owner),
                    *(kept[instance], kept[instance]),
                )
            self.second.add(number)

    def _put_locks(self, there: dict[int, NewLock]) -> tuple[int, int]:
        """Make the copies equal to the locks there, in one transaction.

        Returns:
            How many were copied, and how many removed.
        """
        database, locks = self._store.database, self._store.lock_table
        # An answer has only the ids of active locks, not the largest that was ever given out.
        seen = max(there, default=0)
        far = max(seen, min(seen + UNSEEN, LOCK_ID_MAX))
        # Not in each round: on PostgreSQL raising the ids waits for all readers of the table.
        behind = database.last_id(Lock.id) < (seen + far) // 2
        database.keep_others_off(Lock.id, far if behind else 0)
        present = database.now()
        # The Java implementation may hold two locks on one instance: the later has the larger id.
        active = sorted(item for item in there.items() if item[1].expires_at > present)
        newest = {lock.service_instance_id: number for number, lock in active}
        there = {number: there[number] for number in newest.values()}
        here = {row[0]: _lock(row) for row in locks.stream()}
        copies = {number for (number,) in database.rows(self._ids)}
        changed = {number: it for number, it in there.items() if here.get(number) != it}
        outdated = [number for number in copies & here.keys() if here[number] != there.get(number)]
        discard(self._store, outdated)
        try:
            restore(self._store, changed)
        except Conflicts as error:
            first = next(iter(error.reasons.values()))
            raise NotDone(
                printable(f"{first}: it is not a copy; remove it, or mirror into another database")
            ) from None
        database.change(self._forget, {"ids": list(copies - there.keys())})
        # A lock that was here already and is the same is not a copy: the source never removes it.
        self._remember.rows([(number,) for number in changed.keys() - copies])
        return len(changed), len(copies & here.keys() - there.keys())

    def _put_jobs(self, batch: Iterable[Entry]) -> tuple[int, int]:
        """Write the jobs of a batch that differ from those here.

        Returns:
            How many differ, and how many were not here at all.
        """
        loaded = {it["id"]: it for it in (self._load(self._job_entry, job) for job in batch) if it}
        if not loaded:
            return 0, 0
        rows, _ = self._store.job_table.find({"ids": list(loaded)}, Page(0, len(loaded)))
        here = {row[0]: row for row in rows}
        changed = [
            job
            for number, job in loaded.items()
            if here.get(number) != tuple(job[column.name] for column in COLUMNS)
        ]
        if changed:
            self._store.database.write(self._store.job_table.put, changed)
        return len(changed), len(loaded) - len(here)


def _lock(row: tuple[Any, ...]) -> NewLock:
    lock = NewLock(*row[1:])
    return lock._replace(temporary=bool(lock.temporary))


def _watched() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _progress(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, unless the length is 0, which means unknown."""
    file = sys.stderr if length else StringIO()
    with click.progressbar(length=length, label=label, file=file) as bar:
        yield bar.update
