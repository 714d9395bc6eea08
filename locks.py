"""The locks of one database: exclusive, all or nothing, gone the moment they expire.

Values and rows are as the contract and the table have them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from peewee import SQL, fn

from orchmgmt.databases import Backend, Row
from orchmgmt.databases.index_choice import no_quick_count
from orchmgmt.databases.queries import BulkInsert, Page, Pause, Selection, delete_in_batches
from orchmgmt.entries import ALREADY_LOCKED
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import Job, Lock, LockCount, NewLock

COLUMNS = [getattr(Lock, name) for name in NewLock._fields]

#: All writers lock rows in this order, so that no two wait for each other.
LOCKING_ORDER = Lock.service_instance_id


class Conflicts(InvalidParameter):
    """Other locks are in the way.

    Attributes:
        reasons: what is in the way, by the id or the service instance of the lock that it stops.
    """

    def __init__(self, message: str, reasons: Mapping[int | str, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class AlreadyLocked(Conflicts):
    """Somebody holds some of the service instances.

    Attributes:
        service_instance_ids: all of these, in the order of the request.
    """

    def __init__(self, service_instance_ids: Sequence[str]) -> None:
        reasons: dict[int | str, str] = {it: _held(it) for it in service_instance_ids}
        super().__init__(_held(", ".join(service_instance_ids)), reasons)
        self.service_instance_ids = list(service_instance_ids)


def _held(instances: str) -> str:
    return f"{ALREADY_LOCKED}{instances}"


class InThePast(InvalidParameter):
    """A lock would have expired by the time that it is made."""

    def __init__(self, expires_at: str) -> None:
        super().__init__(f"Expires at is in the past: {expires_at}")


class DuplicatedInstance(InvalidParameter):
    """One request names a service instance twice."""

    def __init__(self, service_instance_id: str) -> None:
        super().__init__(f"Duplicated service instance id: {service_instance_id}")


class NoUnfinishedJob(InvalidParameter, NotFound):
    """The job of a reservation does not exist or has ended. It is answered with 400."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no unfinished orchestration job {job_id}")


class LockTable:
    """The locks of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Backend) -> None:
        self._database = database
        place, among = database.place, database.any_of(Lock.service_instance_id, "instances")
        self._active = self._select_active()
        self._insert = self._insert_or_replace_expired()
        expired = Lock.expires_at <= place("now")
        count = LockCount.locks - Lock.select(fn.COUNT(SQL("*"))).where(expired)
        self._count = database.sql(LockCount.select(count))
        self._delete_expired = database.deletion(
            Lock.id, Lock.select(Lock.id).where(expired).limit(place("limit")), "UPDATE SKIP LOCKED"
        )
        # An owner may hold any number of locks, so the instances find the rows.
        is_owner = database.unindexed(Lock.owner) == place("owner")
        self._delete_owned = self._deletion(is_owner, among, ~Lock.temporary)
        of_job = Lock.orchestration_job_id == place("job_id")
        self._delete_of_job = self._deletion(of_job, Lock.temporary)
        of_locks = (database.any_of(Job.id, "ids"), Job.finished_at == SQL("''"))
        unfinished = Job.select(Job.id).where(*of_locks).order_by(Job.id)
        # Such a job cannot end before its locks are made.
        self._select_unfinished = database.sql(database.locking(unfinished, "SHARE"))

    def _select_active(self) -> Selection:
        database, place = self._database, self._database.place
        return Selection(
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
            always=[database.unindexed(Lock.expires_at) > place("now")],
            quick_count=self._quick_count if database.one_writer else no_quick_count,
        )

    def _insert_or_replace_expired(self) -> BulkInsert:
        # This one statement is what keeps locks exclusive: an active lock on the instance stays.
        return BulkInsert(
            self._database,
            [Lock.id, *COLUMNS],
            lambda insert: insert.on_conflict(
                conflict_target=[Lock.service_instance_id],
                preserve=[Lock.id, *COLUMNS],
                where=Lock.expires_at <= self._database.next_place,
            ).returning(Lock.service_instance_id, Lock.id),
        )

    def _deletion(self, *conditions: Any) -> str:
        chosen = Lock.select(Lock.id).where(*conditions).order_by(LOCKING_ORDER)
        return self._database.deletion(Lock.id, chosen)

    def create(self, locks: Sequence[NewLock]) -> list[Row]:
        """Make all of `locks` or none; return their rows in the same order.

        Contract: "Lock", "create".

        Args:
            locks: what to make, in canonical form, as `LockCreate` reads it.

        Raises:
            InThePast: one of them has expired by the time that it is made.
            DuplicatedInstance: one service instance is named twice.
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        return self._database.write(self._create, locks)

    def reserve(self, locks: Sequence[NewLock]) -> list[Row]:
        """Make all of `locks` for their jobs or none; return their rows in the same order.

        Contract: "Extensions of ours", `reserve`.

        Args:
            locks: what to make, in canonical form, as `LockReserve` reads it.

        Raises:
            NoUnfinishedJob: one of their jobs does not exist or has ended.
            InThePast: as `create`.
            DuplicatedInstance: likewise.
            AlreadyLocked: likewise.
            Unavailable: the database does not answer.
        """

        def reserve_all() -> list[Row]:
            self._demand_future(locks)
            job_ids = list(dict.fromkeys(lock.orchestration_job_id for lock in locks))
            unfinished = set(self._database.rows(self._select_unfinished, {"ids": job_ids}))
            for job_id in job_ids:
                if (job_id,) not in unfinished:
                    raise NoUnfinishedJob(job_id)
            return self._create(locks)

        return self._database.write(reserve_all)

    def _create(self, locks: Sequence[NewLock]) -> list[Row]:
        self._demand_future(locks)
        rows = self.put(locks)
        self._demand_future(locks)  # it may have waited for other writers
        return rows

    def put(self, locks: Sequence[NewLock]) -> list[Row]:
        """Insert locks as they are, even expired ones, within a `Backend.write`.

        Returns:
            Their rows, in the same order.

        Raises:
            DuplicatedInstance: one service instance is named twice.
            AlreadyLocked: somebody holds one of them; the write must roll back.
        """
        seen: set[str] = set()
        for lock in locks:
            if lock.service_instance_id in seen:
                raise DuplicatedInstance(lock.service_instance_id)
            seen.add(lock.service_instance_id)
        ids = self.insert(locks)
        return [(ids[lock.service_instance_id], *lock) for lock in locks]

    def insert(self, locks: Sequence[NewLock]) -> dict[str, int]:
        """Insert locks on different instances, within a `Backend.write`.

        Returns:
            The new locks' ids by service instance, rising in the order of `locks`.

        Raises:
            AlreadyLocked: somebody holds one of the service instances; the write must roll back.
        """
        in_turn = locks
        if not self._database.one_writer:
            in_turn = sorted(locks, key=attrgetter(LOCKING_ORDER.name))
        rows = [(self._database.provisional_id(), *lock) for lock in in_turn]
        ids: dict[str, int] = dict(self.insert_rows(rows))
        held = [it.service_instance_id for it in locks if it.service_instance_id not in ids]
        if held:
            raise AlreadyLocked(held)
        return self._database.settle_ids(
            Lock.id, Lock.service_instance_id, ids, [it.service_instance_id for it in locks]
        )

    def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Insert the rows whose instances are free, within a `Backend.write`.

        Returns:
            The service instance and the id of each row that was inserted.
        """
        return self._insert.rows(rows, self._database.now())

    def last_id(self) -> int:
        """Return the largest id that a lock ever had, or 0. For use inside a transaction."""
        return self._database.last_id(Lock.id)

    def go_on_from(self, last_id: int) -> None:
        """Make all later ids larger than this one, within a `Backend.write`."""
        self._database.keep_others_off(Lock.id, last_id)

    def find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        """Return a page of the active locks that match, and how many match in all.

        Contract: "Lock", "query".

        Args:
            wanted: the list of values of each filter; `expires_before` and `expires_after` are
                single DateTimes, exclusive.
            page: which page, in which order.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._active.find(wanted, page)

    def stream(self) -> Iterator[Row]:
        """Yield all active locks, the oldest first. For use inside `Backend.read`."""
        return self._active.stream()

    def release(self, job_id: str) -> int:
        """Remove the temporary locks of a job, whose id is in canonical form.

        Returns:
            How many there were.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._database.write(self._database.change, self._delete_of_job, {"job_id": job_id})

    def remove(self, owner: str, service_instance_ids: Sequence[str]) -> int:
        """Remove an owner's locks on these instances, except temporary ones.

        Contract: "Lock", "remove".

        Args:
            owner: the owner, in canonical form.
            service_instance_ids: the instances, likewise.

        Returns:
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        values = {"owner": owner, "instances": service_instance_ids}
        return self._database.write(self._database.change, self._delete_owned, values)

    def delete_expired(self, moment: str, pause: Pause) -> int:
        """Delete the locks that had expired by then, in batches; return how many.

        Args:
            moment: a DateTime that is past.
            pause: as for `delete_in_batches`.
        """
        return delete_in_batches(self._database, self._delete_expired, {"now": moment}, pause)

    def _demand_future(self, locks: Iterable[NewLock]) -> None:
        present = self._database.now()
        for lock in locks:
            if lock.expires_at <= present:
                raise InThePast(lock.expires_at)

    def _quick_count(self, wanted: Mapping[str, Any]) -> int | None:
        """Return how many active locks there are: all locks minus the few that have expired."""
        if wanted:
            return None
        ((count,),) = self._database.rows(self._count, {"now": self._database.now()})
        return int(count)
