"""The locks of one database: exclusive, all or nothing, gone the moment they expire."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from orchmgmt.database import Database, Row
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import Job, Lock, NewLock
from orchmgmt.query import (
    BulkInsert,
    Page,
    Parameter,
    Selection,
    Statement,
    any_of,
    delete_in_batches,
)
from orchmgmt.schemas import Reservation
from orchmgmt.settings import Settings
from orchmgmt.values import now, strip

COLUMNS = [getattr(Lock, name) for name in NewLock._fields]


class AlreadyLocked(InvalidParameter):
    """Service instances that somebody holds.

    Attributes:
        service_instance_ids: every one of those asked for, in the order of the request.
    """

    def __init__(self, service_instance_ids: Sequence[str]) -> None:
        super().__init__(f"Already locked: {', '.join(service_instance_ids)}")
        self.service_instance_ids = list(service_instance_ids)


class TakenIds(InvalidParameter):
    """Lock ids that belong to other service instances than those given.

    Attributes:
        instances: the instance that each of them belongs to.
    """

    def __init__(self, instances: Mapping[int, str]) -> None:
        super().__init__(f"Locks of other service instances: {', '.join(map(str, instances))}")
        self.instances = dict(instances)


class DuplicatedInstance(InvalidParameter):
    """One request names a service instance twice."""

    def __init__(self, service_instance_id: str) -> None:
        super().__init__(f"Duplicated service instance id: {service_instance_id}")


class Locks:
    """The locks of one database.

    Args:
        database: where they are kept.
        settings: how what is given to `reserve` is normalised.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._reservation = Reservation(settings)
        moment = Parameter("now").node
        self._active = Selection(
            database,
            Lock,
            filters={
                "ids": Lock.id,
                "service_instance_ids": Lock.service_instance_id,
                "orchestration_job_ids": Lock.orchestration_job_id,
                "owners": Lock.owner,
            },
            conditions={
                "expires_before": (Lock.expires_at, lambda field, value: field < value),
                "expires_after": (Lock.expires_at, lambda field, value: field > value),
            },
            always=(Lock.expires_at, lambda field: field > moment),
            default_sort="id",
        )
        with_ids = any_of(database, Lock.id, "ids")
        among = any_of(database, Lock.service_instance_id, "service_instance_ids")
        self._insert = BulkInsert(
            database,
            COLUMNS,
            lambda insert: insert.on_conflict_ignore().returning(Lock.service_instance_id, Lock.id),
        )
        self._insert_with_id = BulkInsert(
            database,
            [Lock.id, *COLUMNS],
            lambda insert: insert.on_conflict_ignore().returning(Lock.service_instance_id),
        )
        self._select_ids = Statement(
            database, Lock.select(Lock.id, Lock.service_instance_id).where(with_ids)
        )
        self._delete_ids = Statement(database, Lock.delete().where(with_ids))
        self._delete_expired_among = Statement(
            database, Lock.delete().where(among, Lock.expires_at <= moment)
        )
        self._delete_expired = Statement(
            database,
            Lock.delete().where(
                Lock.id.in_(
                    database.locking(
                        Lock.select(Lock.id)
                        .where(Lock.expires_at <= moment)
                        .limit(Parameter("limit").node),
                        "UPDATE SKIP LOCKED",
                    )
                )
            ),
        )
        self._delete_owned = Statement(
            database,
            Lock.delete().where(Lock.owner == Parameter("owner").node, among, ~Lock.temporary),
        )
        self._delete_of_job = Statement(
            database,
            Lock.delete().where(
                Lock.orchestration_job_id == Parameter("job_id").node, Lock.temporary
            ),
        )
        self._select_unfinished = Statement(
            database,
            database.locking(
                Job.select(Job.id).where(Job.id == Parameter("id").node, Job.finished_at == ""),
                "SHARE",
            ),
        )

    def create(self, locks: Sequence[NewLock]) -> list[Row]:
        """Make all of `locks` or none; return their rows in the same order.

        Contract: "Lock", "create".

        Args:
            locks: what to make, as `LockCreate` loads it: in canonical form and in the future.

        Raises:
            AlreadyLocked: somebody holds one of the service instances.
            DuplicatedInstance: one of them is named twice.
            Unavailable: the database does not answer.
        """
        seen: set[str] = set()
        for lock in locks:
            if lock.service_instance_id in seen:
                raise DuplicatedInstance(lock.service_instance_id)
            seen.add(lock.service_instance_id)
        ids = self._database.write(self.insert, locks)
        return [(ids[lock.service_instance_id], *lock) for lock in locks]

    def insert(self, locks: Sequence[NewLock]) -> dict[str, int]:
        """Insert locks on different instances, within a `Database.write`.

        Returns:
            The new locks' ids by service instance.

        Raises:
            AlreadyLocked: somebody holds one of the service instances; the write must roll back.
        """
        # Whoever inserts in the same order as all others may wait for them, never they for him.
        in_order = sorted(locks, key=attrgetter("service_instance_id"))
        ids: dict[str, int] = dict(self._insert.rows(in_order))
        rest = [lock for lock in in_order if lock.service_instance_id not in ids]
        if rest:
            # These are held, or were until they expired: clear what has expired and try again.
            self._clear_expired(rest)
            ids.update(self._insert.rows(rest))
            _demand_all(locks, ids)
        return ids

    def restore(self, locks: Mapping[int, NewLock]) -> None:
        """Insert locks on different instances under known ids, within a `Database.write`.

        A lock that is there already, same id and same instance, is replaced.

        Raises:
            AlreadyLocked: somebody holds one of the service instances; the write must roll back.
            TakenIds: an id belongs to another instance's lock; likewise.
        """
        if locks:
            self._database.count_on_from(Lock.id, max(locks))
        existing: dict[int, str] = dict(self._select_ids.rows({"ids": list(locks)}))
        taken = {
            lock_id: instance
            for lock_id, instance in existing.items()
            if instance != locks[lock_id].service_instance_id
        }
        if taken:
            raise TakenIds(taken)
        self._delete_ids.change({"ids": list(existing)})
        self._clear_expired(locks.values())
        rows = [(lock_id, *lock) for lock_id, lock in locks.items()]
        _demand_all(locks.values(), {row[0] for row in self._insert_with_id.rows(rows)})

    def reserve(self, job_id: str, service_instance_id: str, owner: str, expires_at: str) -> Row:
        """Lock an instance for an unfinished job, temporarily: only `release` or time frees it.

        Args:
            job_id: the job's id, as `History.create` returned it.
            service_instance_id: the instance, `SystemName|ServiceName|Version`.
            owner: the system that the instance is reserved for.
            expires_at: a DateTime of the contract, in the future.

        Returns:
            The lock's row, as `query` would.

        Raises:
            InvalidParameter: a value is malformed, or `expires_at` is past.
            NotFound: there is no such unfinished job.
            AlreadyLocked: somebody holds the instance.
            Unavailable: the database does not answer.
        """
        lock = NewLock(
            **self._reservation.read(
                {
                    "orchestrationJobId": job_id,
                    "serviceInstanceId": service_instance_id,
                    "owner": owner,
                    "expiresAt": expires_at,
                }
            ),
            temporary=True,
        )

        def insert() -> dict[str, int]:
            if not self._select_unfinished.rows({"id": lock.orchestration_job_id}):
                raise NotFound(f"There is no unfinished orchestration job {job_id}")
            return self.insert([lock])

        return (self._database.write(insert)[lock.service_instance_id], *lock)

    def release(self, job_id: str) -> int:
        """Remove the temporary locks of a job.

        Returns:
            How many there were.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._database.write(self._delete_of_job.change, {"job_id": strip(job_id).lower()})

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
        return self._active.find(wanted, page, {"now": now()})

    def stream(self) -> Iterator[list[Row]]:
        """Return all active locks, the oldest first, in batches. For use inside `Database.read`."""
        return self._active.stream({"now": now()})

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
        return self._database.write(self._delete_owned.change, values)

    def delete_expired(self) -> int:
        """Delete the locks that have expired, a small batch per transaction; return how many."""
        return delete_in_batches(self._database, self._delete_expired, lambda: {"now": now()})

    def _clear_expired(self, locks: Iterable[NewLock]) -> None:
        instances = [lock.service_instance_id for lock in locks]
        self._delete_expired_among.change({"service_instance_ids": instances, "now": now()})


def _demand_all(locks: Iterable[NewLock], inserted: Container[str]) -> None:
    held = [lock.service_instance_id for lock in locks if lock.service_instance_id not in inserted]
    if held:
        raise AlreadyLocked(held)
