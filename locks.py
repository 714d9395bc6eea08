"""The locks of one database: exclusive, all or nothing, gone the moment they expire.

Values and rows are in the form in which they are on the wire and in the table.
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
    """A reservation's job is not there, or has ended; on the wire that is 400."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no unfinished orchestration job {job_id}")


class LockTable:
    """The locks of one database.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: Backend) -> None:
        self._database = database
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
            always=[database.unindexed(Lock.expires_at) > place("now")],
            quick_count=self._quick_count if database.one_writer else no_quick_count,
        )
        expired = Lock.expires_at <= place("now")
        self._count = database.sql(
            LockCount.select(LockCount.locks - Lock.select(fn.COUNT(SQL("*"))).where(expired))
        )
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
        self._delete_expired = database.deletion(
            Lock.id, Lock.select(Lock.id).where(expired).limit(place("limit")), "UPDATE SKIP LOCKED"
        )
        is_owner = database.unindexed(Lock.owner) == place("owner")
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
            NoUnfinishedJob: one of their jobs is not there, or has ended.
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
        self._demand_future(locks)  # it may have waited long for others
        return rows

    def put(self, locks: Sequence[NewLock]) -> list[Row]:
        """Insert locks as they are, also expired ones, within a `Backend.write`.

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
        # All who insert or remove come to the instances in one order, so that one may wait for
        # another, but never two for each other.
        in_turn = locks
        if not self._database.one_writer:
            in_turn = sorted(locks, key=attrgetter(IN_TURN.name))
        rows = [(self._database.provisional_id(), *lock) for lock in in_turn]
        ids: dict[str, int] = dict(self.insert_rows(rows))
        held = [it.service_instance_id for it in locks if it.service_instance_id not in ids]
        if held:
            raise AlreadyLocked(held)
        return self._database.settle_ids(
            Lock.id, Lock.service_instance_id, ids, [it.service_instance_id for it in locks]
        )

    def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Insert rows on free instances, within a `Backend.write`.

        Returns:
            The service instance and the id of each that is there now.
        """
        return self._insert.rows(rows, self._database.now())

    def last_id(self) -> int:
        """Return the largest id that a lock ever had, 0 if there was none, within a transaction."""
        return self._database.last_id(Lock.id)

    def go_on_from(self, last_id: int) -> None:
        """See that ids to come are larger than this, within a `Backend.write`."""
        self._database.keep_others_off(Lock.id, last_id)

    def find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
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
        """Return all active locks, the oldest first, as they are read, within `Backend.read`."""
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

    def _quick_count(self, wanted: Mapping[str, Any]) -> int | None:
        """How many active locks there are: all but those that have expired, which are few."""
        if wanted:
            return None
        ((count,),) = self._database.rows(self._count, {"now": self._database.now()})
        return int(count)
