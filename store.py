"""What a database holds for this service, for those who embed it.

with Store({"DATABASE_URL": "sqlite:///orchmgmt.db"}) as store:
    job_id = store.history.create("PULL", "Consumer", "Consumer", "kelvinInfo")
    store.locks.reserve(job_id, "Provider|kelvinInfo|1.0.0", "Consumer", "2099-01-01T00:00:00Z")
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from time import sleep
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import uuid4

from orchmgmt import models
from orchmgmt.databases import Clock, Row
from orchmgmt.databases.opening import open_database
from orchmgmt.databases.queries import Page, Table
from orchmgmt.databases.schema import READY, Permitted
from orchmgmt.entries import Entry, Found, Job, Lock, camel_case, demand
from orchmgmt.errors import InvalidParameter
from orchmgmt.history import JobTable, NoSuchJob
from orchmgmt.locks import Key, LockTable
from orchmgmt.models import DONE, ERROR, IN_PROGRESS, NewLock
from orchmgmt.schemas import (
    EntrySchema,
    HistoryQuery,
    JobEntry,
    LockCreate,
    LockEntry,
    LockQuery,
    LockRemove,
    LockRenew,
    QuerySchema,
    Reservation,
    payload_of,
    read_key,
)
from orchmgmt.settings import Settings
from orchmgmt.values import strip

E = TypeVar("E", bound=Entry)


class Figure(NamedTuple):
    """A number about what this process does, for those who watch it.

    Attributes:
        name: its name, as metrics have it.
        help: what it is, on one line.
        value: returns it.
        counts: whether it only rises.
    """

    name: str
    help: str
    value: Callable[[], float]
    counts: bool = True


class _Entries(Generic[E]):
    """Locks or jobs as Python programs give and get them. Any thread may call every method.

    Args:
        store: where they are kept.
        table: their rows.
        query: what a query of them takes.
        entry: what one of them looks like.
        kind: their class.
    """

    def __init__(
        self,
        store: "Store",
        table: Table,
        query: type[QuerySchema],
        entry: type[EntrySchema],
        kind: type[E],
    ) -> None:
        self._store = store
        self._find = table.find
        # A program that misspells a filter gets an error.
        self._query = query(replace(store.settings, unknown_keys="refuse"))
        self._entry = entry(store.settings)
        self._kind = kind

    def find(
        self,
        *,
        page: int = 0,
        size: int = 0,
        sort_field: str = "",
        descending: bool = True,
        **filters: Any,
    ) -> Found[E]:
        """Return a page of those that match: by default the newest of all active locks, or jobs.

        Contract: "Lock", "query"; "History"; "Pagination".

        Args:
            page: which page, from 0.
            size: how many entries are on a page; less than 1 is as many as the largest page holds.
            sort_field: of locks `id` (the default), `owner`, `service_instance_id` or `expires_at`;
                of jobs `created_at` (the default), `id`, `started_at` or `finished_at`.
            descending: the order.
            filters: of locks, lists of `ids`, `orchestration_job_ids`, `service_instance_ids` and
                `owners`, and the times `expires_before` and `expires_after`, with a zone or as
                DateTimes of the contract; of jobs, lists of `ids`, `statuses`,
                `requester_systems`, `target_systems`, `service_definitions` and
                `subscription_ids`, and one `type`.

        Raises:
            InvalidParameter: a value is malformed, or there is no such filter.
            Unavailable: the database does not answer.
        """
        if "direction" in filters:
            raise InvalidParameter("There is no direction: say descending=False or descending=True")
        pagination = {
            "page": page,
            "size": size,
            "sortField": camel_case(sort_field),
            "direction": "DESC" if descending else "ASC",
        }
        wanted = {**payload_of(filters), "pagination": pagination}
        rows, count = self._find(*self._query.read(wanted))
        return Found(self._read(rows), count)

    def _read(self, rows: Iterable[Row]) -> list[E]:
        return [self._kind.from_wire(entry) for entry in self._entry.entries_of(rows)]


class Locks(_Entries[Lock]):
    """The locks of a `Store`."""

    def __init__(self, store: "Store") -> None:
        super().__init__(store, store.lock_table, LockQuery, LockEntry, Lock)
        settings = replace(store.settings, unknown_keys="ignore")
        self._new = LockCreate(settings)
        self._renewal = LockRenew(settings)
        self._removal = LockRemove(settings)
        self._reservation = Reservation(settings)

    def create(
        self, locks: Iterable[Lock], *, expires_in: int | None = None, key: str = ""
    ) -> list[Lock]:
        """Make all of `locks` or none; return them as they are stored, in the same order.

        Contract: "Lock", "create"; "Holding a lock".

        Args:
            locks: what to make. Their ids do not count: each gets a new one.
            expires_in: the seconds after which all of them end, instead of their `expires_at`.
            key: an idempotency key, 1 to 64 visible ASCII characters. If the same locks were made
                with it before and all are still there, they are returned as they are now.

        Raises:
            InvalidParameter: a value is malformed, a lock is one of a job (`reserve` makes those),
                there is no lock, an instance is named twice (`DuplicatedInstance`), a lock has
                expired by the time that it is made (`InThePast`), or the key was used for others
                (`KeyUsed`).
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        wanted = []
        for lock in demand(Lock, locks):
            if lock.temporary or lock.orchestration_job_id:
                raise InvalidParameter("A lock of a job is made with `reserve`")
            wanted.append(_with_end(lock, expires_in))
        # A program's requests are nobody's else: a system always has a name.
        of_it = Key(read_key(key), requester="") if key else None
        return self._read(self._store.lock_table.create(self._new.read({"locks": wanted}), of_it))

    def renew(self, locks: Iterable[Lock], *, expires_in: int | None = None) -> list[Lock]:
        """Give locks new ends, all or none; return them as they are stored, in the same order.

        Contract: "Holding a lock", `renew`.

        Args:
            locks: the locks with their new ends. If a lock has an id, only that very lock is meant.
            expires_in: the seconds after which all of them end, instead of their `expires_at`.

        Raises:
            InvalidParameter: a value is malformed, there is no lock, an instance is named twice
                (`DuplicatedInstance`), or an end is past (`InThePast`).
            NotLocked: some of the locks are not there, have expired or are temporary.
            Unavailable: the database does not answer.
        """
        wanted = [_with_end(lock, expires_in) for lock in demand(Lock, locks)]
        return self._read(self._store.lock_table.renew(self._renewal.read({"locks": wanted})))

    def add(self, locks: Iterable[Lock]) -> list[Lock]:
        """Put locks there as they are, also expired ones and those of any job, all or none.

        For tests and demonstrations. An expired lock is one for nobody, so it gives way to the next
        on its instance.

        Args:
            locks: the locks. Their ids do not count: each gets a new one.

        Returns:
            The locks as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, or an instance is named twice.
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        return self._store.add(locks=locks)[0]

    def put(self, locks: Iterable[Lock]) -> list[Lock]:
        """As `add`, within a `Backend.write`."""
        found = [self._entry.read(payload_of(vars(lock))) for lock in demand(Lock, locks)]
        wanted = [NewLock(**{it: lock[it] for it in NewLock._fields}) for lock in found]
        return self._read(self._store.lock_table.put(wanted))

    def reserve(
        self, job_id: str, service_instance_id: str, owner: str, expires_at: datetime | str
    ) -> Lock:
        """Lock an instance for an unfinished job, temporarily: only `release` or time frees it.

        Args:
            job_id: the job's id, as `History.create` returned it.
            service_instance_id: the instance, `SystemName|ServiceName|Version`.
            owner: the system that the instance is reserved for.
            expires_at: a time in the future, with a zone, or a DateTime of the contract.

        Raises:
            InvalidParameter: a value is malformed, or `expires_at` is past (`InThePast`).
            NoUnfinishedJob: the job is not there or has ended; it is a `NotFound` too.
            AlreadyLocked: somebody holds the instance.
            Unavailable: the database does not answer.
        """
        values = {
            "orchestration_job_id": job_id,
            "service_instance_id": service_instance_id,
            "owner": owner,
            "expires_at": expires_at,
        }
        lock = self._reservation.read(payload_of(values))
        return self._read(self._store.lock_table.create([lock]))[0]

    def release(self, job_id: str) -> int:
        """Remove the temporary locks of a job.

        Returns:
            How many there were.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._store.lock_table.release(strip(job_id).lower())

    def remove(
        self, owner: str, service_instance_ids: Sequence[str], ids: Sequence[int] = ()
    ) -> int:
        """Remove an owner's locks on these instances, but no temporary ones.

        Contract: "Lock", "remove"; "Holding a lock".

        Args:
            owner: the owner.
            service_instance_ids: the instances.
            ids: if there are some, only locks with these ids are removed.

        Returns:
            How many locks were removed.

        Raises:
            InvalidParameter: a value is malformed, or there is no instance.
            Unavailable: the database does not answer.
        """
        values = {"owner": owner, "instanceIds": service_instance_ids, "ids": ids}
        return self._store.lock_table.remove(**self._removal.read(payload_of(values)))


def _with_end(lock: Lock, expires_in: int | None) -> dict[str, Any]:
    values = vars(lock)
    if expires_in is not None:
        values = {**values, "expires_at": None, "expires_in": expires_in}
    return payload_of(values)


class History(_Entries[Job]):
    """The orchestration jobs of a `Store`.

    history = Store().history
    job_id = history.create("PULL", "TemperatureConsumer", "TemperatureConsumer", "kelvinInfo")
    history.start(job_id)
    history.finish(job_id)
    """

    def __init__(self, store: "Store") -> None:
        super().__init__(store, store.job_table, HistoryQuery, JobEntry, Job)
        self._message = self._entry.fields["message"]

    def create(
        self,
        type: str,
        requester_system: str,
        target_system: str,
        service_definition: str,
        subscription_id: str = "",
        message: str = "",
    ) -> str:
        """Record a new job, `PENDING`.

        Args:
            type: `PULL` (asked for by the requester) or `PUSH` (by a subscription).
            requester_system: the system that asked.
            target_system: the system that the result is for.
            service_definition: the service that is looked for.
            subscription_id: the UUID of the subscription that triggered the job, if one did.
            message: free text, at most 16,384 characters.

        Returns:
            The job's id, a UUID.

        Raises:
            InvalidParameter: a value is malformed.
            Unavailable: the database does not answer.
        """
        job = Job(
            id=str(uuid4()),
            type=type,
            requester_system=requester_system,
            target_system=target_system,
            service_definition=service_definition,
            subscription_id=subscription_id,
            message=message,
        )
        self.add([job])
        return job.id

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Put jobs there as they are, of any age and status, all or none.

        For what was recorded elsewhere, and for tests and demonstrations.

        Args:
            jobs: the jobs. One without an id gets one; one whose id is there replaces it. One
                without `created_at` is made now.

        Returns:
            The jobs as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, or does not go with the status.
            Unavailable: the database does not answer.
        """
        return self._store.add(jobs=jobs)[1]

    def put(self, jobs: Iterable[Job]) -> list[Job]:
        """As `add`, within a `Backend.write`."""
        created = {"createdAt": self._store.database.now()}
        wanted = [{**created, **payload_of(vars(job))} for job in demand(Job, jobs)]
        return self._read(self._store.job_table.put([self._entry.read(job) for job in wanted]))

    def start(self, job_id: str, message: str = "") -> None:
        """Put a job `IN_PROGRESS`, from now; a finished one starts anew.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the message is no string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, IN_PROGRESS, message)

    def finish(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `DONE`, now.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the job is not in progress, or the message is no string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, DONE, message)

    def fail(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `ERROR`, now.

        Args:
            job_id: the job.
            message: what went wrong; replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the job is not in progress, or the message is no string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, ERROR, message)

    def get(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFound: there is no such job.
            Unavailable: the database does not answer.
        """
        rows, _ = self._store.job_table.find({"ids": [strip(job_id).lower()]}, Page(0, 1))
        if not rows:
            raise NoSuchJob(job_id)
        return self._read(rows)[0]

    def _step(self, job_id: str, status: str, message: str) -> None:
        self._store.job_table.step(
            strip(job_id).lower(), status, self._message.deserialize(message)
        )


class Store:
    """The locks and the history of one database.

    Args:
        settings: settings by name, over those of the environment; or ready settings.
        clock: what returns the present when it is called, in seconds since the epoch: all that this
            store does goes by it, and so does its cleaner, however it jumps. By default the
            machine's clock for SQLite, and the server's for PostgreSQL.
        permitted: what may be done to the database so that it can be used; by default it is created
            if it is not there, and upgraded if it is of an earlier version.

    Attributes:
        locks: the locks.
        history: the orchestration jobs.
        lock_table: the rows of the locks.
        job_table: the rows of the jobs.
        figures: what the parts of this process that work on it tell of themselves.

    Raises:
        SettingError: a setting is wrong.
        UnusableDatabase: the database cannot be opened, or is another program's.
    """

    def __init__(
        self,
        settings: Mapping[str, object] | Settings | None = None,
        clock: Clock | None = None,
        permitted: Permitted = READY,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = Settings.read(settings or {})
        self.settings = settings
        self.clock = clock
        self.database = open_database(
            settings.database_url,
            settings.database_timeout_seconds,
            settings.database_connections,
            permitted,
            clock,
        )
        self.lock_table = LockTable(self.database)
        self.job_table = JobTable(self.database, settings)
        self.locks = Locks(self)
        self.history = History(self)
        self.figures: list[Figure] = []

    def add(
        self, locks: Iterable[Lock] = (), jobs: Iterable[Job] = ()
    ) -> tuple[list[Lock], list[Job]]:
        """Put locks and jobs there as they are, all or none: as `Locks.add` and `History.add`.

        Returns:
            The locks and the jobs as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, an instance is named twice or held, or a time
                does not go with a job's status.
            Unavailable: the database does not answer.
        """
        new_locks, new_jobs = list(locks), list(jobs)
        return self.database.write(lambda: (self.locks.put(new_locks), self.history.put(new_jobs)))

    def clean(
        self, moment: str | None = None, pause: Callable[[float], bool | None] = sleep
    ) -> tuple[int, int]:
        """Delete what has served its time, a batch at a time, so that others can write meanwhile.

        Args:
            moment: the DateTime by which it must have; by default the present.
            pause: what to call between two batches: it waits so many seconds, and returns whether
                to leave off.

        Returns:
            How many expired locks, and how many old finished jobs.

        Raises:
            Unavailable: the database does not answer.
        """
        moment = moment or self.now()
        return self.lock_table.delete_expired(moment, pause), self.job_table.delete_old(
            moment, pause
        )

    def clear(self) -> None:
        """Delete all locks and jobs, all or nothing: for tests. Ids go on from where they were.

        Raises:
            Unavailable: the database does not answer.
        """

        def delete() -> None:
            for model in (models.Lock, models.Job):
                self.database.change(self.database.sql(model.delete()))

        self.database.write(delete)

    def now(self) -> str:
        """Return the present second, as a DateTime, by the clock that the database goes by.

        Raises:
            Unavailable: the database does not answer.
        """
        return self.database.read(self.database.now)

    def close(self) -> None:
        """Close the database's connections, for good: what uses the store then says so."""
        self.database.closed = True
        self.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
