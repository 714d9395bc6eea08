"""The demonstration: it moves the example to the present, and simulates a small factory.

The factory uses what every program can use: the embedded API for jobs and reservations, and HTTP
for an operator's locks.
"""

import heapq
import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from orchmgmt.client import Client, Refused, Unavailable
from orchmgmt.commands.transfer import import_locks
from orchmgmt.entries import Job, Lock, all_of, read_time
from orchmgmt.errors import ServiceError
from orchmgmt.locks import AlreadyLocked
from orchmgmt.settings import OPERATOR_NAME
from orchmgmt.store import Store

log = logging.getLogger("orchmgmt")

#: The jobs of the example are spread over this time, and the last one is so old.
HISTORY, LATEST = timedelta(minutes=30), timedelta(seconds=5)

#: The example's locks last eight seconds more than their number to this power. So they end one
#: after the other, the last after three minutes.
LASTING = 1.4

#: For how long the factory reserves, and an operator locks, in seconds.
RESERVED, LOCKED = (5, 60), (30, 180)

#: An operator locks something once in so many jobs.
JOBS_PER_LOCK = 3

FAILURES = (
    "No interface that the requester accepts",
    "The authorization system did not answer",
    "The provider did not answer",
)


def bring_to_the_present(store: Store) -> None:
    """Move the example's jobs into the last half hour, and let its locks end within minutes."""
    present = read_time(store.now())
    jobs = [(job, job.created_at) for job in all_of(store.history.find) if job.created_at]
    moments = [created for _, created in jobs]
    first, last = min(moments), max(moments)

    def moved(job: Job, created: datetime) -> Job:
        age = (last - created) / (last - first) * HISTORY + LATEST
        times = {name: getattr(job, name) for name in Job.TIMES}
        shift = present - age - created
        return replace(job, **{name: it and it + shift for name, it in times.items()})

    store.history.add([moved(*it) for it in jobs])
    locks = [
        replace(lock, expires_at=present + timedelta(seconds=int(8 + number**LASTING)))
        for number, lock in enumerate(all_of(store.locks.find))
    ]
    import_locks(store, [json.dumps(lock.to_wire()).encode() for lock in locks])  # under their ids


class Factory:
    """Systems that have jobs done, reserve, collide, fail and release, in a thread of their own.

    Args:
        store: where the jobs and reservations go; its example says who there is.
        rate: new jobs a minute.
        speed: how many times as fast as usual a job and its reservation go by.
    """

    def __init__(self, store: Store, rate: float, speed: float) -> None:
        self._store = store
        self._pause = 60 / rate
        self._speed = speed
        self._chance = random.Random()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count(1)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="factory", daemon=True)
        jobs, locks = all_of(store.history.find), all_of(store.locks.find)
        self._systems = sorted({job.requester_system for job in jobs})
        self._instances: dict[str, list[str]] = {}
        for instance in sorted(lock.service_instance_id for lock in locks):
            self._instances.setdefault(instance.split("|")[1], []).append(instance)
        self._subscriptions = sorted({job.subscription_id for job in jobs} - {""})
        # What the example has left unfinished goes on.
        held = {lock.orchestration_job_id: lock.service_instance_id for lock in locks}
        for job in jobs:
            if job.status == "PENDING":
                wanted = job.id, job.requester_system, job.service_definition
                self._later((1, 15), self._start, *wanted)
            elif job.status == "IN_PROGRESS":
                self._later((2, 30), self._end, job.id, held.get(job.id, ""))

    def start(self, url: str) -> None:
        """Begin to work. `url` is where the service listens."""
        self._client = Client(url, name=OPERATOR_NAME)
        self._later((0, 0), self._create)
        self._thread.start()

    def stop(self) -> None:
        """Stop the work, whatever is going on."""
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            moment, _, step = self._due[0]
            if self._ending.wait(max(0.0, moment - time.monotonic())):
                break
            heapq.heappop(self._due)
            try:
                step()
            except (ServiceError, Refused, Unavailable) as error:
                log.info("the factory of the demonstration: %s", error)

    def _later(
        self, seconds: tuple[float, float], step: Callable[..., None], *arguments: str
    ) -> None:
        moment = time.monotonic() + self._chance.uniform(*seconds) / self._speed
        heapq.heappush(self._due, (moment, next(self._number), lambda: step(*arguments)))

    def _create(self) -> None:
        pause = self._chance.uniform(0.3, 1.7) * self._pause * self._speed
        self._later((pause, pause), self._create)  # the rate counts real minutes
        requester = self._chance.choice(self._systems)
        service = self._chance.choice(list(self._instances))
        push = self._chance.random() < 0.35
        target = self._chance.choice(self._systems) if push else requester
        subscription = self._chance.choice(self._subscriptions) if push else ""
        job_id = self._store.history.create(
            "PUSH" if push else "PULL", requester, target, service, subscription
        )
        self._later((1, 6), self._start, job_id, target, service)
        if self._chance.random() < 1 / JOBS_PER_LOCK:
            self._lock()

    def _start(self, job_id: str, owner: str, service: str) -> None:
        self._store.history.start(job_id)
        seconds = self._chance.uniform(*RESERVED) / self._speed
        for instance in self._chance.sample(self._instances[service], 2):
            try:
                self._store.locks.reserve(job_id, instance, owner, self._after(seconds))
            except AlreadyLocked:
                continue
            # Most are released early; some run out, and then so has the job.
            share = self._chance.uniform(0.5, 1.1) * seconds * self._speed
            self._later((share, share), self._end, job_id, instance)
            return
        self._later((1, 4), self._give_up, job_id)

    def _end(self, job_id: str, instance: str) -> None:
        held = self._store.locks.release(job_id)
        if instance and not held:
            self._store.history.fail(job_id, f"The reservation of {instance} ran out")
        elif self._chance.random() < 0.08:
            self._store.history.fail(job_id, self._chance.choice(FAILURES))
        else:
            chosen = f"{instance.split('|')[0]} was chosen" if instance else ""
            self._store.history.finish(job_id, chosen)

    def _give_up(self, job_id: str) -> None:
        self._store.history.fail(job_id, "Every matching provider is locked")

    def _lock(self) -> None:
        instance = self._chance.choice(self._chance.choice(list(self._instances.values())))
        owner = self._chance.choice(self._systems)
        seconds = self._chance.uniform(*LOCKED) / self._speed
        end = self._after(seconds)
        self._client.create_locks([Lock(service_instance_id=instance, owner=owner, expires_at=end)])
        if self._chance.random() < 0.5:
            self._later((5, seconds * self._speed), self._remove, owner, instance)

    def _remove(self, owner: str, instance: str) -> None:
        self._client.remove_locks(owner, instance)

    def _after(self, seconds: float) -> datetime:
        # Rounded up as the service does it, and never to the present.
        return read_time(self._store.now()) + timedelta(seconds=int(seconds) + 1)
