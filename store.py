"""The locks and the history of a database, for programs that embed the service.

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
    """A number about what this process does, for people who monitor it.

    Attributes:
        name: its name in the metrics.
        help: what it is, on one line.
        value: returns the present number.
        counts: whether it is a counter, which only rises.
    """

    name: str
    help: str
    value: Callable[[], float]
    counts: bool = True


class _Entries(Generic[E]):
    """Locks or jobs, as Python programs pass and receive them. Any thread may call every method.

    Args:
        store: the store that keeps them.
        table: the table of their rows.
        query: the schema of a query.
        entry: the schema of an entry.
        kind: the class of an entry.
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
        """Return one page of the entries that match: by default the newest active locks, or jobs.

        Contract: "Lock", "query"; "History"; "Pagination".

        Args:
            page: the number of the page, from 0.
            size: how many entries a page has; less than 1 means as many as the largest page has.
            sort_field: of locks `id` (the default), `owner`, `service_instance_id` or `expires_at`;
                of jobs `created_at` (the default), `id`, `started_at` or `finished_at`.
            descending: whether the largest value comes first.
            filters: of locks, lists of `ids`, `orchestration_job_ids`, `service_instance_ids` and
                `owners`, and the times `expires_before` and `expires_after`, which are datetimes
                with a zone or DateTimes of the contract; of jobs, lists of `ids`, `statuses`,
                `requester_systems`, `target_systems`, `service_definitions` and
                `subscription_ids`, and one `type`.

        Raises:
            InvalidParameter: a value is malformed, or a filter does not exist.
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
        """Create all of `locks` or none; return them as they are stored, in the same order.

        Contract: "Lock", "create"; "Holding a lock".

        Args:
            locks: the locks to create. Their ids are ignored: each lock gets a new one.
            expires_in: the seconds after which all of them end, instead of their `expires_at`.
            key: an idempotency key, 1 to 64 visible ASCII characters. If an earlier call with this
                key created the same locks, and all of them still exist, they are returned as they
                are now.

        Raises:
            InvalidParameter: a value is malformed, a lock belongs to a job (`reserve` creates
                those), `locks` is empty, an instance is named twice (`DuplicatedInstance`), a lock
                would have expired before it is created (`InThePast`), or the key was used for
                other locks (`KeyUsed`).
            AlreadyLocked: one of the service instances is locked.
            Unavailable: the database does not answer.
        """
        wanted = []
        for lock in demand(Lock, locks):
            if lock.temporary or lock.orchestration_job_id:
                raise InvalidParameter("A lock of a job is made with `reserve`")
            wanted.append(_with_end(lock, expires_in))
        # No system has an empty name, so these keys are a program's own.
        of_it = Key(read_key(key), requester="") if key else None
        return self._read(self._store.lock_table.create(self._new.read({"locks": wanted}), of_it))

    def renew(self, locks: Iterable[Lock], *, expires_in: int | None = None) -> list[Lock]:
        """Give locks new ends, all or none; return them as they are stored, in the same order.

        Contract: "Holding a lock", `renew`.

        Args:
            locks: the locks with their new ends. If a lock has an id, only the lock with that id is
                renewed.
            expires_in: the seconds after which all of them end, instead of their `expires_at`.

        Raises:
            InvalidParameter: a value is malformed, `locks` is empty, an instance is named twice
                (`DuplicatedInstance`), or an end has passed (`InThePast`).
            NotLocked: some of the locks do not exist, have expired or are temporary.
            Unavailable: the database does not answer.
        """
        wanted = [_with_end(lock, expires_in) for lock in demand(Lock, locks)]
        return self._read(self._store.lock_table.renew(self._renewal.read({"locks": wanted})))

    def add(self, locks: Iterable[Lock]) -> list[Lock]:
        """Insert all locks or none, as they are: expired ones too, and those of any job.

        For tests and demonstrations. An expired lock does not count: the next lock on its instance
        replaces it.

        Args:
            locks: the locks. Their ids are ignored: each lock gets a new one.

        Returns:
            The locks as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, or an instance is named twice.
            AlreadyLocked: one of the service instances is locked.
            Unavailable: the database does not answer.
        """
        return self._store.add(locks=locks)[0]

    def put(self, locks: Iterable[Lock]) -> list[Lock]:
        """Like `add`, but inside a `Backend.write`."""
        found = [self._entry.read(payload_of(vars(lock))) for lock in demand(Lock, locks)]
        wanted = [NewLock(**{it: lock[it] for it in NewLock._fields}) for lock in found]
        return self._read(self._store.lock_table.put(wanted))

    def reserve(
        self, job_id: str, service_instance_id: str, owner: str, expires_at: datetime | str
    ) -> Lock:
        """Lock an instance temporarily for an unfinished job, until `release` or the lock's end.

        Args:
            job_id: the job's id, as `History.create` returned it.
            service_instance_id: the instance, `SystemName|ServiceName|Version`.
            owner: the system that the instance is reserved for.
            expires_at: a time in the future, with a zone, or a DateTime of the contract.

        Raises:
            InvalidParameter: a value is malformed, or `expires_at` has passed (`InThePast`).
            NoUnfinishedJob: the job does not exist or has ended; this is also a `NotFound`.
            AlreadyLocked: the instance is locked.
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
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._store.lock_table.release(strip(job_id).lower())

    def remove(
        self, owner: str, service_instance_ids: Sequence[str], ids: Sequence[int] = ()
    ) -> int:
        """Remove an owner's locks on these instances, except temporary ones.

        Contract: "Lock", "remove"; "Holding a lock".

        Args:
            owner: the owner.
            service_instance_ids: the instances.
            ids: if not empty, only locks with these ids are removed.

        Returns:
            How many locks were removed.

        Raises:
            InvalidParameter: a value is malformed, or `service_instance_ids` is empty.
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
            type: `PULL` (the requester asked for it) or `PUSH` (a subscription triggered it).
            requester_system: the system that asked.
            target_system: the system that gets the result.
            service_definition: the service that is searched for.
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
        """Insert all jobs or none, as they are, of any age and status.

        For jobs that were recorded elsewhere, and for tests and demonstrations.

        Args:
            jobs: the jobs. A job without an id gets one. A job whose id exists replaces that job. A
                job without `created_at` is created now.

        Returns:
            The jobs as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, or does not fit the status.
            Unavailable: the database does not answer.
        """
        return self._store.add(jobs=jobs)[1]

    def put(self, jobs: Iterable[Job]) -> list[Job]:
        """Like `add`, but inside a `Backend.write`."""
        created = {"createdAt": self._store.database.now()}
        wanted = [{**created, **payload_of(vars(job))} for job in demand(Job, jobs)]
        return self._read(self._store.job_table.put([self._entry.read(job) for job in wanted]))

    def start(self, job_id: str, message: str = "") -> None:
        """Set a job to `IN_PROGRESS`, now; a finished job starts again.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: the job does not exist.
            InvalidParameter: the message is not a string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, IN_PROGRESS, message)

    def finish(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `DONE`, now.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: the job does not exist.
            InvalidParameter: the job is not in progress, or the message is not a string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, DONE, message)

    def fail(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `ERROR`, now.

        Args:
            job_id: the job.
            message: what went wrong; replaces the job's message, unless blank.

        Raises:
            NotFound: the job does not exist.
            InvalidParameter: the job is not in progress, or the message is not a string.
            Unavailable: the database does not answer.
        """
        self._step(job_id, ERROR, message)

    def get(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFound: the job does not exist.
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
        settings: settings by name, which override those of the environment; or `Settings`.
        clock: returns the present time, in seconds since the epoch. The store and its cleaner use
            this clock for everything, even if it jumps. The default is the machine's clock for
            SQLite, and the server's clock for PostgreSQL.
        permitted: what may be done to the database so that it can be used. By default it is created
            if it does not exist, and upgraded if it is of an earlier version.

    Attributes:
        locks: the locks.
        history: the orchestration jobs.
        lock_table: the rows of the locks.
        job_table: the rows of the jobs.
        figures: numbers about the parts of this process that work on the store.

    Raises:
        SettingError: a setting is wrong.
        UnusableDatabase: the database cannot be opened, or belongs to another program.
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
        """Insert locks and jobs as they are, like `Locks.add` and `History.add`: all or none.

        Returns:
            The locks and the jobs as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, an instance is named twice or locked, or a time
                does not fit a job's status.
            Unavailable: the database does not answer.
        """
        new_locks, new_jobs = list(locks), list(jobs)
        return self.database.write(lambda: (self.locks.put(new_locks), self.history.put(new_jobs)))

    def clean(
        self, moment: str | None = None, pause: Callable[[float], bool | None] = sleep
    ) -> tuple[int, int]:
        """Delete expired locks and old finished jobs, in batches: others can write between them.

        Args:
            moment: the DateTime by which a lock has expired or a job is too old; by default the
                present.
            pause: is called between two batches with a number of seconds. It waits for that time,
                and returns whether to stop.

        Returns:
            How many locks, and how many jobs, were deleted.

        Raises:
            Unavailable: the database does not answer.
        """
        moment = moment or self.now()
        return self.lock_table.delete_expired(moment, pause), self.job_table.delete_old(
            moment, pause
        )

    def clear(self) -> None:
        """Delete all locks and jobs, or none if it fails. For tests. New ids continue to rise.

        Raises:
            Unavailable: the database does not answer.
        """

        def delete() -> None:
            for model in (models.Lock, models.Job):
                self.database.change(self.database.sql(model.delete()))

        self.database.write(delete)

    def now(self) -> str:
        """Return the present second as a DateTime, by the clock of the database.

        Raises:
            Unavailable: the database does not answer.
        """
        return self.database.read(self.database.now)

    def close(self) -> None:
        """Close the connections for good, those in use at the end of their transaction.

        Calls that need the database then raise `Unavailable`.
        """
        self.database.closed = True
        self.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
