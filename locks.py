"""The locks of one database: exclusive, all or nothing, gone the moment they expire.

Values and rows are as the contract and the table have them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

from peewee import SQL, Select, fn

from orchmgmt import values
from orchmgmt.databases import Backend, Row
from orchmgmt.databases.queries import BulkInsert, Page, Pause, Selection, delete_in_batches
from orchmgmt.entries import ALREADY_LOCKED, NOT_LOCKED
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import Job, Lock, LockCount, NewLock, Renewal

COLUMNS = [getattr(Lock, name) for name in NewLock._fields]

#: The columns of an entry, in the order of its rows.
ENTRY = [Lock.id, *COLUMNS]

#: A lock that is to be made, or to be renewed.
Wanted = TypeVar("Wanted", NewLock, Renewal)

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


def _demand_different(locks: Iterable[NewLock | Renewal]) -> None:
    seen: set[str] = set()
    for lock in locks:
        if lock.service_instance_id in seen:
            raise DuplicatedInstance(lock.service_instance_id)
        seen.add(lock.service_instance_id)


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


class NotLocked(InvalidParameter):
    """Locks that were to be renewed are not there, or others hold the service instances.

    Args:
        service_instance_ids: the service instances, by the owner who was to hold them.
    """

    def __init__(self, service_instance_ids: Mapping[str, Sequence[str]]) -> None:
        parts = [f"{NOT_LOCKED}{it}: {', '.join(of)}" for it, of in service_instance_ids.items()]
        super().__init__("; ".join(parts))


class KeyUsed(InvalidParameter):
    """The locks of another request with the same idempotency key are there."""

    def __init__(self) -> None:
        super().__init__("The idempotency key was used for another request")


class Key(NamedTuple):
    """What makes a create safe to repeat: the same requester's same request is done once.

    Attributes:
        text: the idempotency key.
        requester: who sent the request.
    """

    text: str
    requester: str

    def of(self, locks: Sequence[NewLock]) -> str:
        """Return what tells the request apart, and how many locks it makes."""
        asked = json.dumps([self.requester, *locks])
        return f"{len(locks)} {sha256(asked.encode()).hexdigest()}"


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
        # Such a job cannot end before its locks are made.
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

    def _select_active(self) -> Selection:
        database, place = self._database, self._database.place
        return Selection(
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
            quick_count=lambda shape: None if shape else self._active_count(),
        )

    def _active_count(self) -> Select:
        """Return the query of how many active locks there are: all minus the few expired ones."""
        expired = Lock.select(fn.COUNT(SQL("*"))).where(
            Lock.expires_at <= self._database.place("now")
        )
        return LockCount.select(fn.COALESCE(fn.SUM(LockCount.locks), SQL("0")) - expired)

    def _insert_or_replace_expired(self) -> BulkInsert:
        # This one statement is what keeps locks exclusive: an active lock on the instance stays.
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
        """Make all of `locks` or none; return their rows in the same order.

        Contract: "Lock", "create"; "Holding a lock"; "Extensions of ours", `reserve`.

        Args:
            locks: what to make, in canonical form, as `LockCreate` or `LockReserve` reads it.
            key: if the request had it before, and all the locks that it made then are there, their
                rows are returned as they are now, and nothing is made.

        Raises:
            KeyUsed: the locks of another request with this key are there.
            InThePast: one of them has expired by the time that it is made.
            DuplicatedInstance: one service instance is named twice.
            NoUnfinishedJob: the job of one of them does not exist or has ended.
            AlreadyLocked: somebody holds one of the service instances.
            Unavailable: the database does not answer.
        """
        return self._database.write(lambda: self._made_by(locks, key) or self._create(locks, key))

    def _made_by(self, locks: Sequence[NewLock], key: Key | None) -> list[Row]:
        """Return the rows of the locks that this request has made, if all are there.

        Raises:
            KeyUsed: all locks of another request with this key are there.
        """
        if key is None:
            return []
        database = self._database
        database.take_turns(key.text)
        found = database.rows(self._select_of_key, {"key": key.text, "now": database.now()})
        # Locks of several requests may be there, but all locks of only the last request.
        for request, locks_of_it in groupby(sorted(found), key=itemgetter(0)):
            made = {NewLock(*row[2:]).service_instance_id: row[1:] for row in locks_of_it}
            if len(made) == int(request.partition(" ")[0]):
                if request != key.of(locks):
                    raise KeyUsed
                return [made[lock.service_instance_id] for lock in locks]
        return []

    def _create(self, locks: Sequence[NewLock], key: Key | None) -> list[Row]:
        granted = self._granted(locks)
        self._demand_future(granted)
        self._demand_unfinished([it.orchestration_job_id for it in locks if it.temporary])
        rows = self.put(granted)
        later = self._granted(locks)  # it may have waited for other writers
        self._demand_future(later)
        if later is not granted and later != granted:
            rows = self._set_ends(rows, later)
        if key is not None:
            values = {"key": key.text, "request": key.of(locks), "ids": [row[0] for row in rows]}
            self._database.change(self._remember, values)
        return rows

    def renew(self, renewals: Sequence[Renewal]) -> list[Row]:
        """Give locks their new ends, all or none; return their rows in the same order.

        Contract: "Holding a lock", `renew`.

        Args:
            renewals: the ends, in canonical form, as `LockRenew` reads them.

        Raises:
            InThePast: a lock would have expired by the time that it is renewed.
            DuplicatedInstance: one service instance is named twice.
            NotLocked: some of the locks are not there.
            Unavailable: the database does not answer.
        """
        return self._database.write(self._renew, renewals)

    def _renew(self, renewals: Sequence[Renewal]) -> list[Row]:
        instances = [it.service_instance_id for it in renewals]
        rows = self._database.rows(self._select_held, {"instances": instances})
        # From here on nobody else can change them, so this is the moment that counts.
        granted, present = self._granted(renewals), self._database.now()
        self._demand_future(granted)
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
        """Give locks, which nobody else can change, their new ends; return their new rows."""
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
        """Return what is wanted with a time for each end that is a duration from now."""
        durations = {it.expires_at for it in wanted if values.is_duration(it.expires_at)}
        if not durations:
            return wanted
        present = self._database.time()
        ends = {it: values.end_of(it, present) for it in durations}
        return [it._replace(expires_at=ends.get(it.expires_at, it.expires_at)) for it in wanted]

    def put(self, locks: Sequence[NewLock]) -> list[Row]:
        """Insert locks as they are, even expired ones, within a `Backend.write`.

        Returns:
            Their rows, in the same order; the ids rise in it.

        Raises:
            DuplicatedInstance: one service instance is named twice.
            AlreadyLocked: somebody holds one of them; the write must roll back.
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
        """Insert the rows whose instances are free, within a `Backend.write`.

        Returns:
            The service instance and the id of each row that was inserted.
        """
        return self._insert.rows(rows, self._database.now())

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

    def remove(
        self, owner: str, service_instance_ids: Sequence[str], ids: Sequence[int] = ()
    ) -> int:
        """Remove an owner's locks on these instances, except temporary ones.

        Contract: "Lock", "remove"; "Holding a lock".

        Args:
            owner: the owner, in canonical form.
            service_instance_ids: the instances, likewise.
            ids: if there are some, only locks with these ids are removed.

        Returns:
            How many locks were removed.

        Raises:
            Unavailable: the database does not answer.
        """
        wanted: dict[str, Any] = {"owner": owner, "instances": service_instance_ids}
        if not ids:
            return self._database.write(self._database.change, self._delete_owned, wanted)
        wanted["ids"] = ids
        return self._database.write(self._database.change, self._delete_these, wanted)

    def delete_expired(self, moment: str, pause: Pause) -> int:
        """Delete the locks that had expired by then, in batches; return how many.

        Args:
            moment: a DateTime that is past.
            pause: as for `delete_in_batches`.
        """
        return delete_in_batches(self._database, self._delete_expired, {"now": moment}, pause)

    def _demand_future(self, locks: Iterable[NewLock | Renewal]) -> None:
        present = self._database.now()
        for lock in locks:
            if lock.expires_at <= present:
                raise InThePast(lock.expires_at)

    def _demand_unfinished(self, job_ids: Sequence[str]) -> None:
        if not job_ids:
            return
        unfinished = set(self._database.rows(self._select_unfinished, {"ids": job_ids}))
        for job_id in job_ids:
            if (job_id,) not in unfinished:
                raise NoUnfinishedJob(job_id)
