"""The locks of one database: exclusive, created all or none, and gone the moment they expire.

Values have the form of the contract, and rows the form of the table.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

from peewee import SQL, Select, fn

from orchmgmt import values
from orchmgmt.databases import Backend, Row
from orchmgmt.databases.queries import BulkInsert, Pause, Shape, Table, delete_in_batches
from orchmgmt.entries import ALREADY_LOCKED, NOT_LOCKED
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import Job, Lock, LockCount, NewLock, Renewal

COLUMNS = [getattr(Lock, name) for name in NewLock._fields]

#: The columns of an entry, in the order of its rows.
ENTRY = [Lock.id, *COLUMNS]

#: A lock to create or to renew.
Wanted = TypeVar("Wanted", NewLock, Renewal)

#: All writers lock rows in this order, so that no two wait for each other.
LOCKING_ORDER = Lock.service_instance_id


class AlreadyLocked(InvalidParameter):
    """Some of the service instances are locked.

    Attributes:
        service_instance_ids: the locked ones, in the order of the request.
    """

    def __init__(self, service_instance_ids: Sequence[str]) -> None:
        super().__init__(ALREADY_LOCKED + ", ".join(service_instance_ids))
        self.service_instance_ids = list(service_instance_ids)


def _demand_different(locks: Iterable[NewLock | Renewal]) -> None:
    if instance := values.repeated(it.service_instance_id for it in locks):
        raise DuplicatedInstance(instance)


class InThePast(InvalidParameter):
    """A lock would have expired before it is created."""

    def __init__(self, expires_at: str) -> None:
        super().__init__(f"Expires at is in the past: {expires_at}")


class DuplicatedInstance(InvalidParameter):
    """One request names a service instance twice."""

    def __init__(self, service_instance_id: str) -> None:
        super().__init__(f"Duplicated service instance id: {service_instance_id}")


class NotLocked(InvalidParameter):
    """Locks to renew do not exist, or other owners hold the service instances.

    Args:
        service_instance_ids: the service instances of these locks, by the owner in the request.
    """

    def __init__(self, service_instance_ids: Mapping[str, Sequence[str]]) -> None:
        parts = [f"{NOT_LOCKED}{it}: {', '.join(of)}" for it, of in service_instance_ids.items()]
        super().__init__("; ".join(parts))


class KeyUsed(InvalidParameter):
    """Another request used the same idempotency key, and its locks still exist."""

    def __init__(self) -> None:
        super().__init__("The idempotency key was used for another request")


class Key(NamedTuple):
    """Makes a create safe to repeat: the same request of the same requester is done only once.

    Attributes:
        text: the idempotency key.
        requester: who sent the request.
    """

    text: str
    requester: str

    def of(self, locks: Sequence[NewLock]) -> str:
        """Return a text that identifies the request and says how many locks it creates."""
        asked = json.dumps([self.requester, *locks])
        return f"{len(locks)} {sha256(asked.encode()).hexdigest()}"


class NoUnfinishedJob(InvalidParameter, NotFound):
    """The job of a reservation does not exist or has ended. The answer is 400."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no unfinished orchestration job {job_id}")


class LockTable(Table):
    """The locks of one database. Queries find the active ones.

    Args:
        database: the database.
    """

    def __init__(self, database: Backend) -> None:
        place, among = database.place, database.any_of(Lock.service_instance_id, "instances")
        super().__init__(
            database,
            ENTRY,
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
        )
        self._insert = self._insert_or_replace_expired()
        expired = Lock.expires_at <= place("now")
        self._delete_expired = database.deletion(
            Lock.id, Lock.select(Lock.id).where(expired).limit(place("limit")), "UPDATE SKIP LOCKED"
        )
        # An owner may hold any number of locks, so the instances find the rows.
        is_owner = database.unindexed(Lock.owner) == place("owner")
        these = database.any_of(database.unindexed(Lock.id), "ids")
        self._delete_owned = self._deletion(is_owner, among, ~Lock.temporary)
        self._delete_these = self._deletion(is_owner, among, ~Lock.temporary, these)
        of_job = Lock.orchestration_job_id == place("job_id")
        self._delete_of_job = self._deletion(of_job, Lock.temporary)
        of_locks = (database.any_of(Job.id, "ids"), Job.finished_at == SQL("''"))
        unfinished = Job.select(Job.id).where(*of_locks).order_by(Job.id)
        # The job cannot end before its locks are created.
        self._select_unfinished = database.sql(database.locking(unfinished, "SHARE"))
        held = Lock.select(*ENTRY).where(among, ~Lock.temporary).order_by(LOCKING_ORDER)
        self._select_held = database.sql(database.locking(held, "UPDATE"))
        by_id = database.any_of(Lock.id, "ids")
        ending = Lock.update({Lock.expires_at: place("expires_at")})
        self._end = database.sql(ending.where(by_id))
        of_key = (Lock.idempotency_key == place("key"), Lock.expires_at > place("now"))
        self._select_of_key = database.sql(Lock.select(Lock.request, *ENTRY).where(*of_key))
        keyed = {Lock.idempotency_key: place("key"), Lock.request: place("request")}
        self._remember = database.sql(Lock.update(keyed).where(by_id))

    def _quick_count(self, shape: Shape) -> Select | None:
        """Return the query of how many active locks there are: all minus the few expired ones."""
        if shape:
            return None
        expired = Lock.expires_at <= self._database.place("now")
        those_expired = Lock.select(fn.COUNT(SQL("*"))).where(expired)
        return LockCount.select(fn.COALESCE(fn.SUM(LockCount.locks), SQL("0")) - those_expired)

    def _insert_or_replace_expired(self) -> BulkInsert:
        # This statement alone keeps locks exclusive: an active lock on the instance stays.
        return BulkInsert(
            self._database,
            ENTRY,
            lambda insert: insert.on_conflict(
                conflict_target=[Lock.service_instance_id],
                preserve=[*ENTRY, Lock.idempotency_key, Lock.request],
                where=Lock.expires_at <= self._database.next_place,
            ).returning(Lock.service_instance_id, Lock.id),
        )

    def _deletion(self, *conditions: Any) -> str:
        chosen = Lock.select(Lock.id).where(*conditions).order_by(LOCKING_ORDER)
        return self._database.deletion(Lock.id, chosen)

    def create(self, locks: Sequence[NewLock], key: Key | None = None) -> list[Row]:
        """Create all of `locks` or none; return their rows in the same order.

        Contract: "Lock", "create"; "Holding a lock"; "Extensions of ours", `reserve`.

        Args:
            locks: the locks in canonical form, as `LockCreate` or `LockReserve` reads them.
            key: if the same request was done before with this key, and all the locks that it
                created still exist, their rows are returned as they are now, and nothing is
                created.

        Raises:
            KeyUsed: another request used this key, and its locks still exist.
            InThePast: a lock would have expired before it is created.
            DuplicatedInstance: a service instance is named twice.
            NoUnfinishedJob: the job of a lock does not exist or has ended.
            AlreadyLocked: one of the service instances is locked.
            Unavailable: the database does not answer.
        """
        return self._database.write(lambda: self._made_by(locks, key) or self._create(locks, key))

    def _made_by(self, locks: Sequence[NewLock], key: Key | None) -> list[Row]:
        """Return the rows of the locks that this request has created, if all of them still exist.

        Raises:
            KeyUsed: another request used this key, and all its locks still exist.
        """
        if key is None:
            return []
        database = self._database
        database.take_turns(key.text)
        found = database.rows(self._select_of_key, {"key": key.text, "now": database.now()})
        # Some locks of earlier requests may still exist, but only the last request has all of them.
        for request, locks_of_it in groupby(sorted(found), key=itemgetter(0)):
            made = {NewLock(*row[2:]).service_instance_id: row[1:] for row in locks_of_it}
            if len(made) == int(request.partition(" ")[0]):
                if request != key.of(locks):
                    raise KeyUsed
                return [made[lock.service_instance_id] for lock in locks]
        return []

    def _create(self, locks: Sequence[NewLock], key: Key | None) -> list[Row]:
        granted = self._granted(locks)
        self._demand_unfinished([it.orchestration_job_id for it in locks if it.temporary])
        rows = self.put(granted)
        later = self._granted(locks)  # the insert may have waited for other writers
        if later != granted:
            rows = self._set_ends(rows, later)
        if key is not None:
            values = {"key": key.text, "request": key.of(locks), "ids": [row[0] for row in rows]}
            self._database.change(self._remember, values)
        return rows

    def renew(self, renewals: Sequence[Renewal]) -> list[Row]:
        """Give all locks their new ends or none; return their rows in the same order.

        Contract: "Holding a lock", `renew`.

        Args:
            renewals: the new ends in canonical form, as `LockRenew` reads them.

        Raises:
            InThePast: a lock would have expired before it is renewed.
            DuplicatedInstance: a service instance is named twice.
            NotLocked: some of the locks do not exist.
            Unavailable: the database does not answer.
        """
        return self._database.write(self._renew, renewals)

    def _renew(self, renewals: Sequence[Renewal]) -> list[Row]:
        instances = [it.service_instance_id for it in renewals]
        rows = self._database.rows(self._select_held, {"instances": instances})
        # From here on nobody else can change these locks, so this moment decides.
        granted, present = self._granted(renewals), self._database.now()
        _demand_different(granted)
        locks = {row[0]: NewLock(*row[1:]) for row in rows}
        held = {
            (it.service_instance_id, it.owner): key
            for key, it in locks.items()
            if it.expires_at > present
        }
        ids = [held.get((it.service_instance_id, it.owner)) for it in granted]
        missing: dict[str, list[str]] = {}
        for found, wanted in zip(ids, granted, strict=True):
            if found is None or wanted.id not in (None, found):
                missing.setdefault(wanted.owner, []).append(wanted.service_instance_id)
        if missing:
            raise NotLocked(missing)
        return self._set_ends([(it, *locks[it]) for it in ids], granted)

    def _set_ends(self, rows: Sequence[Row], wanted: Sequence[NewLock | Renewal]) -> list[Row]:
        """Give locks their new ends; return their new rows. No other writer can change them now."""
        ids: dict[str, list[int]] = {}
        for row, lock in zip(rows, wanted, strict=True):
            ids.setdefault(lock.expires_at, []).append(row[0])
        for end, of_it in ids.items():
            self._database.change(self._end, {"expires_at": end, "ids": of_it})
        return [
            (row[0], *NewLock(*row[1:])._replace(expires_at=lock.expires_at))
            for row, lock in zip(rows, wanted, strict=True)
        ]

    def _granted(self, wanted: Sequence[Wanted]) -> Sequence[Wanted]:
        """Return the locks with a time instead of each end that is a duration from now.

        Raises:
            InThePast: an end has passed.
        """
        durations = {it.expires_at for it in wanted if values.is_duration(it.expires_at)}
        if durations:
            time = self._database.time()
            ends = {it: values.end_of(it, time) for it in durations}
            wanted = [
                it._replace(expires_at=ends.get(it.expires_at, it.expires_at)) for it in wanted
            ]
        present = self._database.now()
        for lock in wanted:
            if lock.expires_at <= present:
                raise InThePast(lock.expires_at)
        return wanted

    def put(self, locks: Sequence[NewLock]) -> list[Row]:
        """Insert locks as they are, even expired ones, inside a `Backend.write`.

        Returns:
            Their rows, in the same order and with rising ids.

        Raises:
            DuplicatedInstance: a service instance is named twice.
            AlreadyLocked: one of the service instances is locked; the write must be rolled back.
        """
        _demand_different(locks)
        in_turn = locks
        if not self._database.one_writer:
            in_turn = sorted(locks, key=attrgetter(LOCKING_ORDER.name))
        rows = [(self._database.provisional_id(), *lock) for lock in in_turn]
        ids: dict[str, int] = dict(self.insert_rows(rows))
        instances = [it.service_instance_id for it in locks]
        held = [it for it in instances if it not in ids]
        if held:
            raise AlreadyLocked(held)
        ids = self._database.settle_ids(Lock.id, Lock.service_instance_id, ids, instances)
        return [(ids[lock.service_instance_id], *lock) for lock in locks]

    def insert_rows(self, rows: Sequence[Row]) -> list[Row]:
        """Insert the rows whose instances are free, inside a `Backend.write`.

        Returns:
            The service instance and the id of each row that was inserted.
        """
        return self._insert.rows(rows, self._database.now())

    def release(self, job_id: str) -> int:
        """Remove the temporary locks of a job.

        Args:
            job_id: the job's id, in canonical form.

        Returns:
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._database.write(self._database.change, self._delete_of_job, {"job_id": job_id})

    def remove(
        self, owner: str, service_instance_ids: Sequence[str], ids: Sequence[int] = ()
    ) -> int:
        """Remove an owner's locks on these instances, except temporary ones.

        Contract: "Lock", "remove"; "Holding a lock".

        Args:
            owner: the owner, in canonical form.
            service_instance_ids: the instances, likewise.
            ids: if not empty, only locks with these ids are removed.

        Returns:
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        delete = self._delete_these if ids else self._delete_owned
        wanted = {"owner": owner, "instances": service_instance_ids, "ids": ids}
        return self._database.write(self._database.change, delete, wanted)

    def delete_expired(self, moment: str, pause: Pause) -> int:
        """Delete the locks that had expired at a moment, in batches; return how many there were.

        Args:
            moment: a DateTime in the past.
            pause: as for `delete_in_batches`.
        """
        return delete_in_batches(self._database, self._delete_expired, {"now": moment}, pause)

    def _demand_unfinished(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        unfinished = set(self._database.rows(self._select_unfinished, {"ids": job_ids}))
        for job_id in job_ids:
            if (job_id,) not in unfinished:
                raise NoUnfinishedJob(job_id)
