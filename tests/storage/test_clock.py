"""A clock that a program gives the store, and the clocks that tests put in the machine's place."""

import time
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from freezegun import freeze_time

from orchmgmt.entries import Lock
from orchmgmt.errors import InvalidParameter
from orchmgmt.locks import AlreadyLocked
from orchmgmt.serving.cleaner import Cleaner
from orchmgmt.store import Store

THEN = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
INSTANCE = "Boiler|heat|1.0.0"


class Given:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.present = THEN

    def __call__(self):
        return self.present.timestamp()


@pytest.fixture
def clock():
    return Given()


@pytest.fixture
def store(clock, database_url):
    with Store({"DATABASE_URL": database_url}, clock=clock) as store:
        yield store


def lock(seconds, owner="Alice", instance=INSTANCE):
    expires_at = THEN + timedelta(seconds=seconds)
    return Lock(service_instance_id=instance, owner=owner, expires_at=expires_at)


def test_what_is_past_and_what_has_expired_goes_by_the_clock_given(store, clock):
    with pytest.raises(InvalidParameter, match="Expires at is in the past: 2030-01-01T00:00:00Z"):
        store.locks.create([lock(0)])
    store.locks.create([lock(60)])
    clock.present += timedelta(seconds=59)
    with pytest.raises(AlreadyLocked):
        store.locks.create([lock(120, "Bob")])
    clock.present += timedelta(seconds=1)
    assert store.locks.find().count == 0
    store.locks.create([lock(120, "Bob")])


@pytest.mark.parametrize("page", [0, 1])
def test_a_page_and_its_count_are_of_one_moment(database_url, page):
    def passing():
        moments.append(moments[-1] + 1)
        return moments[-1]

    moments = [THEN.timestamp()]
    with Store({"DATABASE_URL": database_url}, clock=passing) as store:
        store.locks.add(lock(60 + number, instance=f"B{number}|heat|1.0.0") for number in range(9))
        store.locks.add([lock(3600)])
        for _ in range(80):
            found = store.locks.find(owners=["Alice"], page=page, size=5, descending=False)
            assert len(found.entries) == max(0, min(5, found.count - 5 * page))


def test_a_jobs_times_go_by_the_clock_given(store, clock):
    job = store.history.create("PULL", "Alice", "Alice", "heat")
    clock.present += DAY
    store.history.start(job)
    clock.present += DAY
    store.history.finish(job)
    found = store.history.get(job)
    assert (found.created_at, found.started_at, found.finished_at) == (
        THEN,
        THEN + DAY,
        THEN + 2 * DAY,
    )


def test_the_cleaner_goes_by_the_clock_given_however_it_jumps(store, clock):
    store.locks.create([lock(60), lock(30 * 86400, instance="Other|heat|1.0.0")])
    job = store.history.create("PULL", "Alice", "Alice", "heat")
    store.history.start(job)
    store.history.finish(job)
    cleaner = Cleaner(store, 0.01)
    cleaner.start("")
    try:
        while not cleaner.rounds:
            time.sleep(0.01)
        assert (cleaner.locks, cleaner.jobs) == (0, 0)
        clock.present += 16 * DAY
        while not (cleaner.locks and cleaner.jobs):
            assert not cleaner.failures
            time.sleep(0.01)
    finally:
        cleaner.stop()
    assert (cleaner.locks, cleaner.jobs) == (1, 1)
    assert store.locks.find().count == 1


@pytest.mark.sqlite
@pytest.mark.parametrize("opened", ["before", "after"])
@pytest.mark.parametrize("library", ["freezegun", "time-machine"])
def test_libraries_that_stop_the_machines_clock_stop_ours(database_url, library, opened):
    def expires_in_time(store, forward):
        store.locks.create([lock(60)])
        forward(59)
        assert store.locks.find().count == 1
        forward(1)
        assert store.locks.find().count == 0
        store.locks.create([lock(120, "Bob")])

    early = Store({"DATABASE_URL": database_url}) if opened == "before" else None
    if library == "freezegun":
        with freeze_time(THEN) as frozen, early or Store({"DATABASE_URL": database_url}) as store:
            expires_in_time(store, frozen.tick)
    else:
        with (
            time_machine.travel(THEN, tick=False) as travel,
            early or Store({"DATABASE_URL": database_url}) as store,
        ):
            expires_in_time(store, travel.shift)
