"""Locks that are held while a block runs: waited for, renewed, and given back (docs/holding.md)."""

import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import uuid4

from orchmgmt.client.failures import AlreadyLocked, LockLost, Refused, Unavailable, undone
from orchmgmt.entries import NOT_LOCKED, Lock

if TYPE_CHECKING:
    from orchmgmt.client import Client

#: Seconds between two requests for locks: at least, and at most while others hold them.
SHORTEST_PAUSE = 0.5
LONGEST_PAUSE = 2.0

#: Seconds: a longer `Retry-After` is not waited for.
LONGEST_BUSY = 10.0

#: Seconds. Whoever looks at the clock at least this often sees soon that the machine has slept.
LONGEST_LOOK = 1.0

if sys.platform == "linux":

    def present() -> float:
        """Return seconds by a clock that only goes on, also while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    present = time.monotonic


class Hold:
    """Holds locks while its block runs; `Client.hold` makes it.

    The locks are certainly held from the moment at which the last request that extended them was
    sent, for the length of the lease. After that they are lost, whatever the service says.

    Attributes:
        lost: is set at the moment when the locks are lost.
    """

    def __init__(
        self,
        client: "Client",
        instances: tuple[str, ...],
        owner: str,
        lease: int,
        wait: float | None,
        retries: int,
        on_lost: Callable[[], object] | None,
    ) -> None:
        self.lost = threading.Event()
        self._client = client
        self._wanted = [
            Lock(service_instance_id=it, owner=owner, expires_at=None) for it in instances
        ]
        self._lease = lease
        self._wait = inf if wait is None else wait
        self._retries = retries
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._locks: list[Lock] = []
        self._renews = True  # whether the service can renew, and removes by id
        self._until = 0.0
        self._ended = False
        self._failure: object = None
        self._reason = ""
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    @property
    def locks(self) -> list[Lock]:
        """The locks as they are now, in the order of the instances, with their ids and ends."""
        with self._changed:
            return list(self._locks)

    @property
    def fence(self) -> int:
        """The largest of their ids, larger than that of any earlier lock.

        Pass it on to whatever you write to: it must refuse a smaller one than it has seen.
        """
        return max(lock.id or 0 for lock in self.locks)

    def check(self) -> None:
        """Do nothing if the locks are held.

        Raises:
            LockLost: they are not, or it is not certain. It tells why.
        """
        with self._changed:
            self._look()
            if self._reason:
                raise LockLost(self._reason)
            if self._ended:
                raise LockLost("the locks are not held any more: the block has ended")

    def __enter__(self) -> "Hold":
        """Lock the instances.

        Raises:
            AlreadyLocked: some are locked, and the wait is over.
            Refused: a value is wrong, or the requester has no permission.
            Unavailable: no answer, after all retries and until the wait is over.
        """
        try:
            self._acquire()
        except BaseException:
            self._client.close()
            raise
        threading.Thread(target=self._watch, daemon=True).start()
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the locks, if the service answers; otherwise they end by themselves."""
        with self._changed:
            self._look()
            self._ended = True
            self._changed.notify_all()
        try:
            # A service that does not know ids would remove a later lock of the same owner.
            if self._renews or not self.lost.is_set():
                self._remove()
        finally:
            self._renewer.join()
            self._client.close()

    def _acquire(self) -> None:
        """Lock the instances, as soon as they are free."""
        deadline = present() + self._wait
        key = uuid4().hex
        in_doubt = False  # whether an earlier try may have made the locks
        failures = 0
        free_at = -inf  # when the holder's lease ends, as far as known
        while True:
            try:
                sent = present()
                locks, self._renews = self._client._create(self._wanted, self._lease, key)
                if in_doubt and self._renews:
                    # They may have been made by the first try, and end soon.
                    sent = present()
                    locks = self._client.renew_locks(locks, expires_in=self._lease)
                if self._extend(sent, locks):
                    return
                failure: Exception = Unavailable("the service answers later than the lease ends")
                in_doubt = True
                pause = 0.0
            except AlreadyLocked as refusal:
                failure, failures = refusal, 0
                if deadline - present() < SHORTEST_PAUSE:
                    raise
                if free_at <= present():
                    free_at = self._free_at(refusal)
                jittered = random.uniform(SHORTEST_PAUSE, LONGEST_PAUSE)
                pause = min(free_at - present(), jittered, deadline - present())
            except Unavailable as away:
                failure = away
                in_doubt = in_doubt or not undone(away)
                pause = min(away.retry_after or 0.0, LONGEST_BUSY) + random.uniform(
                    0, SHORTEST_PAUSE
                )
            except Refused as refusal:
                if not in_doubt or not refusal.message.startswith(NOT_LOCKED):
                    raise
                failure, pause = refusal, 0.0  # the locks of the first try have just expired
            if not isinstance(failure, AlreadyLocked):
                failures += 1
                if failures > self._retries and present() >= deadline:
                    raise failure
            time.sleep(max(pause, SHORTEST_PAUSE))

    def _free_at(self, refusal: AlreadyLocked) -> float:
        """Return when the present holders' leases end, by the clock `present`, if that is known."""
        with suppress(Refused, Unavailable):  # who may create need not have permission to query
            left = self._client._ends_in(refusal.service_instance_ids)
            if left is not None:
                return present() + left
        return present() + LONGEST_PAUSE

    def _extend(self, sent: float, locks: list[Lock]) -> bool:
        """Count the lease from when a request was sent; return whether that was in time."""
        with self._changed:
            if present() >= sent + self._lease:
                return False
            self._until = sent + self._lease
            self._locks = locks
            self._changed.notify_all()
            return True

    def _look(self) -> None:
        """Notice that the lease has passed."""
        if not self._ended and not self._reason and present() >= self._until:
            why = f": {self._failure}" if self._failure else ""
            self._lose(f"the locks could not be renewed within {self._lease} s{why}")

    def _lose(self, reason: str) -> None:
        self._reason = reason
        self.lost.set()
        self._changed.notify_all()

    def _watch(self) -> None:
        """Notice the moment at which the locks are lost."""
        with self._changed:
            while not self._ended and not self._reason:
                self._changed.wait(min(self._until - present(), LONGEST_LOOK))
                self._look()
        if self._reason and self._on_lost:
            self._on_lost()

    def _renew(self) -> None:
        """Renew the locks again and again."""
        due = self._until - self._lease * 2 / 3
        while True:
            with self._changed:
                while not self._ended and not self._reason and (left := due - present()) > 0:
                    self._changed.wait(min(left, LONGEST_LOOK))
                if self._ended or self._reason:
                    return
            sent = present()
            due = sent + self._lease / 3
            failure = self._renewed(sent)
            if failure:
                self._failure = failure
                due = present() + min(self._lease / 12, LONGEST_PAUSE) * random.uniform(0.5, 1)

    def _renewed(self, sent: float) -> object:
        """Renew the locks once; return what went wrong, if it may go right the next time."""
        try:
            locks = self._client.renew_locks(self._locks, expires_in=self._lease)
        except Refused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return f"the service cannot renew, as the Java implementation: {refusal}"
            with self._changed:
                self._look()  # if the lease has passed, that is why
                if not self._ended and not self._reason:
                    self._lose(f"the service refuses to renew the locks: {refusal}")
            return None
        except Exception as error:  # also what the function for the token raises
            return error
        with self._changed:
            self._look()
            if not self._ended and not self._reason:
                self._extend(sent, locks)
        return None

    def _remove(self) -> None:
        locks = self.locks
        instances = [lock.service_instance_id for lock in locks]
        ids = [lock.id for lock in locks if lock.id is not None]
        for left in range(self._retries, -1, -1):
            try:
                self._client.remove_locks(locks[0].owner, *instances, ids=ids)
                return
            except Refused:
                return
            except Unavailable:
                if not left or present() >= self._until:
                    return
                time.sleep(SHORTEST_PAUSE)
