"""The locks of one database: exclusive, all or nothing, gone the moment they expire.

`Locks` has two layers. Python programs give and get `orchmgmt.entries.Lock`s. Under that are rows,
in the form in which they are on the wire and in the table, for operations over HTTP and imports.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter
from typing import Any

from peewee import SQL, fn

from orchmgmt import entries
from orchmgmt.databases import Database, Row
from orchmgmt.databases.queries import BulkInsert, Page, Pause, Selection, delete_in_batches
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import Job, Lock, LockCount, NewLock
from orchmgmt.schemas import (
    IN_THE_PAST,
    LockCreate,
    LockEntry,
    LockQuery,
    LockRemove,
    Reservation,
    payload_of,
)
from orchmgmt.settings import Settings
from orchmgmt.values import strip

COLUMNS = [getattr(Lock, name) for name in NewLock._fields]

#: The order in which writers come to locks.
IN_TURN = Lock.service_instance_id


class Conflicts(InvalidParameter):
    """Locks that cannot be put where others are.

    Attributes:
        reasons: for each of them what is in its way, by its id or its service instance.
    """

    def __init__(self, message: str, reasons: Mapping[int | str, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class AlreadyLocked(Conflicts):
    """Service instances that somebody holds.

    Attributes:
        service_instance_ids: every one of those asked for, in the order of the request.
    """

    def __init__(self, service_instance_ids: Sequence[str]) -> None:
        reasons: dict[int | str, str] = {it: _held(it) for it in service_instance_ids}
        super().__init__(_held(", ".join(service_instance_ids)), reasons)
        self.service_instance_ids = list(service_instance_ids)


def _held(instances: str) -> str:
    return f"Already locked: {instances}"


class InThePast(InvalidParameter):
    """A lock would have expired before it is made."""

    def __init__(self, expires_at: str) -> None:
        super().__init__(IN_THE_PAST.format(expires_at))


class DuplicatedInstance(InvalidParameter):
    """One request names a service instance twice."""

    def __init__(self, service_instance_id: str) -> None:
        super().__init__(f"Duplicated service instance id: {service_instance_id}")


class NoUnfinishedJob(InvalidParameter, NotFound):
    """A reservation's job is not there, or has ended; on the wire that is 400."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no unfinished orchestration job {job_id}")


class Locks:
    """The locks of one database.

    Args:
        database: where they are kept.
        settings: how what is given to `reserve` is normalised.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        # A program that misspells a filter shall hear of it.
        self._query = LockQuery(replace(settings, unknown_keys="refuse"))
        self._new = LockCreate(replace(settings, unknown_keys="ignore"))
        self._removal = LockRemove(settings)
        self._entry = LockEntry(settings)
        self._reservation = Reservation(settings)
        place = database.place
        self._active = Selection(
            database,
            Lock,
            filters={
                "ids": Lock.id,
                "service_instance_ids": Lock.service_instance_id,
                "orchestration_job_ids": Lock.orchestration_job_id,
                "owners": Lock.owner,
            },
            default_sort="id",
            conditions={
                "expires_before": Lock.expires_at < place("expires_before"),
                "expires_after": Lock.expires_at > place("expires_after"),
            },
            always=[database.off_path(Lock.expires_at) > place("now")],
            known=self._known if database.one_writer else None,
        )
        expired = Lock.expires_at <= place("now")
        self._count = database.sql(
            LockCount.select(LockCount.locks - Lock.select(fn.COUNT(SQL("*"))).where(expired))
        )
        with_ids = database.any_of(Lock.id, "ids")
        among = database.any_of(Lock.service_instance_id, "service_instance_ids")
        # A lock that has expired is as good as none.
        self._insert = BulkInsert(
            database,
            [Lock.id, *COLUMNS],
            lambda insert: insert.on_conflict(
                conflict_target=[Lock.service_instance_id],
                preserve=[Lock.id, *COLUMNS],
                where=Lock.expires_at <= database.next_place,
            ).returning(Lock.service_instance_id, Lock.id),
        )
        self._select_like = database.sql(Lock.select().where(with_ids | among))
        self._delete_ids = database.sql(Lock.delete().where(with_ids))
        self._delete_expired = database.deletion(
            Lock.id, Lock.select(Lock.id).where(expired).limit(place("limit")), "UPDATE SKIP LOCKED"
        )
        is_owner = database.off_path(Lock.owner) == place("owner")
        owned = (is_owner, among, ~Lock.temporary)  # an owner may hold any number of locks
        self._delete_owned = database.deletion(
            Lock.id, Lock.select(Lock.id).where(*owned).order_by(IN_TURN)
        )
        of_job = (Lock.orchestration_job_id == place("job_id"), Lock.temporary)
        self._delete_of_job = database.deletion(
            Lock.id, Lock.select(Lock.id).where(*of_job).order_by(IN_TURN)
        )
        of_locks = (database.any_of(Job.id, "ids"), Job.finished_at == SQL("''"))
        unfinished = Job.select(Job.id).where(*of_locks).order_by(Job.id)
        # They cannot end before the locks are there.
        self._select_unfinished = database.sql(database.locking(unfinished, "SHARE"))

    def create(self, locks: Iterable[entries.Lock]) -> list[entries.Lock]:
        """Make all of `locks` or none; return them as they are stored, in the same order.

        Contract: "Lock", "create".

        Args:
            locks: what to make. Their ids do not count: each gets a new one.

        Raises:
            InvalidParameter: a value is malformed, a lock is one of a job (`reserve` makes those),
                there is no lock, an instance is named twice (`DuplicatedInstance`), or a lock has
                expired by the time that it is made (`InThePast`).
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        wanted = []
        for lock in locks:
            if lock.temporary or lock.orchestration_job_id:
                raise InvalidParameter("A lock of a job is made with `reserve`")
            wanted.append(payload_of(vars(lock)))
        return self._read(self.create_rows(self._new.load({"locks": wanted})))

    def add(self, locks: Iterable[entries.Lock]) -> list[entries.Lock]:
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
        return self._database.write(self.add_within, list(locks))

    def add_within(self, locks: Iterable[entries.Lock]) -> list[entries.Lock]:
        """As `add`, within a `Database.write`."""
        loaded = [self._entry.load(payload_of(vars(lock))) for lock in locks]
        wanted = [NewLock(**{it: lock[it] for it in NewLock._fields}) for lock in loaded]
        return self._read(self._put(wanted))

    def reserve(
        self, job_id: str, service_instance_id: str, owner: str, expires_at: datetime | str
    ) -> entries.Lock:
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
        lock = NewLock(**self._reservation.load(payload_of(values)), temporary=True)
        return self._read(self.reserve_rows([lock]))[0]

    def release(self, job_id: str) -> int:
        """Remove the temporary locks of a job.

        Returns:
            How many there were.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._database.write(
            self._database.change, self._delete_of_job, {"job_id": strip(job_id).lower()}
        )

    def remove(self, owner: str, service_instance_ids: Sequence[str]) -> int:
        """Remove an owner's locks on these instances, but no temporary ones.

        Contract: "Lock", "remove".

        Args:
            owner: the owner.
            service_instance_ids: the instances.

        Returns:
            How many locks were removed.

        Raises:
            InvalidParameter: a value is malformed, or there is no instance.
            Unavailable: the database does not answer.
        """
        values = {"owner": owner, "instanceIds": service_instance_ids}
        return self.remove_rows(**self._removal.load(payload_of(values)))

    def find(
        self,
        *,
        page: int = 0,
        size: int = 0,
        sort_field: str = "",
        descending: bool = True,
        **filters: Any,
    ) -> entries.Found[entries.Lock]:
        """Return a page of the active locks that match: by default the newest of all.

        Contract: "Lock", "query", and "Pagination".

        Args:
            page: which page, from 0.
            size: how many locks are on a page; less than 1 is as many as the largest page holds.
            sort_field: `id`, `owner`, `service_instance_id` or `expires_at`; `id` by default.
            descending: the order.
            filters: `ids`, `orchestration_job_ids`, `service_instance_ids` and `owners` are lists;
                `expires_before` and `expires_after` are times with a zone, or DateTimes of the
                contract.

        Raises:
            InvalidParameter: a value is malformed, or there is no such filter.
            Unavailable: the database does not answer.
        """
        wanted = self._query.load_arguments(filters, page, size, sort_field, descending)
        rows, count = self.find_rows(*wanted)
        return entries.Found(self._read(rows), count)

    def _read(self, rows: Iterable[Row]) -> list[entries.Lock]:
        return [entries.Lock.from_wire(entry) for entry in self._entry.dump(rows)]

    def create_rows(self, locks: Sequence[NewLock]) -> list[Row]:
        """Make all of `locks` or none; return their rows in the same order.

        Contract: "Lock", "create".

        Args:
            locks: what to make, in canonical form, as `LockCreate` loads it.

        Raises:
            InThePast: one of them has expired by the time that it is made.
            DuplicatedInstance: one service instance is named twice.
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        return self._database.write(self._create, locks)

    def reserve_rows(self, locks: Sequence[NewLock]) -> list[Row]:
        """Make all of `locks` for their jobs or none; return their rows in the same order.

        Contract: "Extensions of ours", `reserve`.

        Args:
            locks: what to make, in canonical form, as `LockReserve` loads it.

        Raises:
            NoUnfinishedJob: one of their jobs is not there, or has ended.
            InThePast: as `create_rows`.
            DuplicatedInstance: likewise.
            AlreadyLocked: likewise.
            Unavailable: the database does not answer.
        """

        def reserve() -> list[Row]:
            self._demand_future(locks)
            job_ids = list(dict.fromkeys(lock.orchestration_job_id for lock in locks))
            unfinished = set(self._database.rows(self._select_unfinished, {"ids": job_ids}))
            for job_id in job_ids:
                if (job_id,) not in unfinished:
                    raise NoUnfinishedJob(job_id)
            return self._create(locks)

        return self._database.write(reserve)

    def _create(self, locks: Sequence[NewLock]) -> list[Row]:
        self._demand_future(locks)
        rows = self._put(locks)
        self._demand_future(locks)  # it may have waited long for others
        return rows

    def _put(self, locks: Sequence[NewLock]) -> list[Row]:
        seen: set[str] = set()
        for lock in locks:
            if lock.service_instance_id in seen:
                raise DuplicatedInstance(lock.service_instance_id)
            seen.add(lock.service_instance_id)
        ids = self.insert(locks)
        return [(ids[lock.service_instance_id], *lock) for lock in locks]

    def insert(self, locks: Sequence[NewLock]) -> dict[str, int]:
        """Insert locks on different instances, within a `Database.write`.

        Returns:
            The new locks' ids by service instance, rising in the order of `locks`.

        Raises:
            AlreadyLocked: somebody holds one of the service instances; the write must roll back.
        """
        # All who insert or remove come to the instances in one order, so that one may wait for
        # another, but never two for each other.
        in_turn = locks
        if not self._database.one_writer:
            in_turn = sorted(locks, key=attrgetter(IN_TURN.name))
        rows = [(self._database.passing_id(), *lock) for lock in in_turn]
        ids: dict[str, int] = dict(self._insert.rows(rows, self._database.now()))
        held = [it.service_instance_id for it in locks if it.service_instance_id not in ids]
        if held:
            raise AlreadyLocked(held)
        return self._database.settle_ids(
            Lock.id, Lock.service_instance_id, ids, [it.service_instance_id for it in locks]
        )

    def restore(self, locks: Mapping[int, NewLock]) -> None:
        """Insert locks on different instances under known ids, within a `Database.write`.

        A lock that is there already, same id, instance and owner, is replaced.

        Raises:
            Conflicts: somebody else holds one of the service instances, or an id belongs to another
                instance's lock; nothing is changed.
        """
        if not locks:
            return
        self._database.keep_others_off(Lock.id, max(locks))
        instances = {lock.service_instance_id for lock in locks.values()}
        like = {"ids": list(locks), "service_instance_ids": list(instances)}
        replaced: list[int] = []
        held: dict[int | str, str] = {}
        taken: dict[int | str, str] = {}
        for lock_id, *columns in self._database.rows(self._select_like, like):
            there, mine = NewLock(*columns), locks.get(lock_id)
            instance = there.service_instance_id
            if mine and mine.service_instance_id != instance:
                taken[lock_id] = f"lock {lock_id} is of another service instance: {instance}"
                mine = None
            if (mine and mine.owner == there.owner) or there.expires_at <= self._database.now():
                replaced.append(lock_id)
            elif instance in instances:
                held[instance] = _held(instance)
        if held or taken:
            raise Conflicts("Locks of others are in the way", {**held, **taken})
        self.discard(replaced)
        rows = [(lock_id, *lock) for lock_id, lock in locks.items()]
        self._insert.rows(rows, self._database.now())

    def last_id(self) -> int:
        """Return the largest id that a lock ever had, 0 if there was none, within a transaction."""
        return self._database.last_id(Lock.id)

    def go_on_from(self, last_id: int) -> None:
        """See that ids to come are larger than this, within a `Database.write`."""
        self._database.keep_others_off(Lock.id, last_id)

    def discard(self, ids: Sequence[int]) -> None:
        """Remove locks by their ids, whoever holds them, within a `Database.write`."""
        self._database.change(self._delete_ids, {"ids": ids})

    def find_rows(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        """Return a page of the active locks that match, and how many match in all.

        Contract: "Lock", "query".

        Args:
            wanted: for each filter asked for, its list of values; `expires_before` and
                `expires_after` are single DateTimes, exclusive.
            page: which page, in which order.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._active.find(wanted, page)

    def stream(self) -> Iterator[Row]:
        """Return all active locks, the oldest first, as they are read, within `Database.read`."""
        return self._active.stream()

    def remove_rows(self, owner: str, service_instance_ids: Sequence[str]) -> int:
        """Remove an owner's locks on these instances, but no temporary ones.

        Contract: "Lock", "remove".

        Args:
            owner: the owner, in canonical form.
            service_instance_ids: the instances, likewise.

        Returns:
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        values = {"owner": owner, "service_instance_ids": service_instance_ids}
        return self._database.write(self._database.change, self._delete_owned, values)

    def delete_expired(self, moment: str, pause: Pause) -> int:
        """Delete the locks that had expired by then, in batches; return how many.

        Args:
            moment: a DateTime that is past.
            pause: as `delete_in_batches` has it.
        """
        return delete_in_batches(self._database, self._delete_expired, {"now": moment}, pause)

    def _demand_future(self, locks: Iterable[NewLock]) -> None:
        present = self._database.now()
        for lock in locks:
            if lock.expires_at <= present:
                raise InThePast(lock.expires_at)

    def _known(self, wanted: Mapping[str, Any]) -> int | None:
        """How many active locks there are: all but those that have expired, which are few."""
        if wanted:
            return None
        ((count,),) = self._database.rows(self._count, {"now": self._database.now()})
        return int(count)
