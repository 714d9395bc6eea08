"""What a Python program that embeds the store gives and gets: locks and jobs, times as datetime."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from support import FUTURE, UUID, in_threads

from orchmgmt.entries import Found, Job, Lock
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.locks import AlreadyLocked, DuplicatedInstance, InThePast
from orchmgmt.store import Store

DAY = timedelta(days=1)
LATER = datetime(2099, 1, 1, 12, tzinfo=UTC)
INSTANCE = "Boiler|heat|1.0.0"
LOCK = Lock(service_instance_id=INSTANCE, owner="Alice", expires_at=LATER)
JOB = Job(
    type="PULL",
    requester_system="Alice",
    target_system="Bob",
    service_definition="heat",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def store(database_url):
    with Store({"DATABASE_URL": database_url}) as store:
        yield store


def now():
    return datetime.now(UTC)


def test_locks_are_created_as_on_the_wire(store):
    east = LATER.replace(microsecond=1).astimezone(timezone(timedelta(hours=2)))
    one, two = store.locks.create(
        [
            Lock(service_instance_id=" boiler|Heat|1", owner="the-owner", expires_at=east, id=7),
            replace(LOCK, service_instance_id="Other|heat|1.0.0"),
        ]
    )
    assert one == replace(
        LOCK, owner="TheOwner", expires_at=LATER + timedelta(seconds=1), id=one.id
    )
    assert two.id == one.id + 1
    assert store.locks.find() == Found([two, one], 2)


@pytest.mark.parametrize(
    ("locks", "error", "says"),
    [
        ([], InvalidParameter, "Request payload is empty"),
        ([LOCK, replace(LOCK, owner="")], InvalidParameter, "Owner is missing"),
        ([replace(LOCK, owner="9")], InvalidParameter, "does not match the naming convention: 9"),
        ([replace(LOCK, expires_at=None)], InvalidParameter, "Expiration time is missing"),
        ([replace(LOCK, expires_at=datetime(2099, 1, 1))], InvalidParameter, "has no zone"),
        (
            [replace(LOCK, expires_at=LATER.replace(year=2020))],
            InThePast,
            "Expires at is in the past",
        ),
        ([LOCK, LOCK], DuplicatedInstance, "Duplicated service instance id: Boiler"),
        ([replace(LOCK, temporary=True)], InvalidParameter, "is made with `reserve`"),
        ([replace(LOCK, orchestration_job_id=UUID)], InvalidParameter, "is made with `reserve`"),
    ],
)
def test_what_the_wire_refuses_is_refused(store, locks, error, says):
    with pytest.raises(error, match=says):
        store.locks.create(locks)
    assert store.locks.find().count == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda store, it: store.locks.create([it]),
        lambda store, it: store.locks.renew([it], expires_in=5),
        lambda store, it: store.locks.add([it]),
        lambda store, it: store.history.add([it]),
    ],
)
def test_what_is_no_entry_is_refused_with_what_is_wanted(store, use):
    with pytest.raises(TypeError, match=r"A (Lock|Job) of orchmgmt.entries was expected, not \{'o"):
        use(store, {"owner": "Bob"})


def test_the_name_of_the_order_is_said(store):
    for find in (store.locks.find, store.history.find):
        with pytest.raises(InvalidParameter, match="say descending=False"):
            find(direction="ASC")


def test_held_instances_are_named(store):
    store.locks.create([LOCK])
    with pytest.raises(AlreadyLocked) as caught:
        store.locks.create([replace(LOCK, service_instance_id="A|b|1"), replace(LOCK, owner="Bob")])
    assert caught.value.service_instance_ids == [INSTANCE]
    assert store.locks.find().count == 1


def test_of_many_that_create_at_once_one_gets_the_lock(store):
    made = []

    def create(owner):
        with suppress(AlreadyLocked):
            made.extend(store.locks.create([replace(LOCK, owner=owner)]))

    in_threads(create, ["A", "B", "C", "D"])
    assert store.locks.find().entries == made
    assert len(made) == 1


def test_locks_are_found_by_each_filter_and_page(store):
    made = store.locks.create(
        [
            replace(
                LOCK, service_instance_id=f"P{n}|s|1.0.0", owner=owner, expires_at=LATER + n * DAY
            )
            for n, owner in enumerate(["Alice", "Bob", "Alice"])
        ]
    )
    find = store.locks.find
    assert find(owners=["alice"]) == Found([made[2], made[0]], 2)
    assert find(owners=("Alice", "Bob"), size=2).count == 3
    assert find(ids={made[1].id}).entries == [made[1]]
    assert find(service_instance_ids=["p1|s|1", "P9|s|1"]).entries == [made[1]]
    assert find(expires_after=LATER).entries == [made[2], made[1]]
    assert find(expires_before="2099-01-02T12:00:00Z", owners=[]).entries == [made[0]]
    assert find(orchestration_job_ids=[UUID]) == Found([], 0)
    assert find(page=1, size=2, sort_field="expires_at", descending=False) == Found([made[2]], 3)
    assert find(sort_field="service_instance_id", descending=False).entries == made


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"owner": ["Alice"]}, "Unknown key: owner \\(did you mean owners\\?\\)"),
        ({"owners": "Alice"}, "owners must be a list"),
        ({"owners": ["a b!"]}, "naming convention: A"),
        ({"expires_after": datetime(2099, 1, 1)}, "has no zone"),
        ({"size": 1001}, "The page size cannot be larger than 1000"),
        ({"sort_field": "temporary"}, "Sort field is invalid"),
    ],
)
def test_a_wrong_query_is_refused(store, arguments, says):
    with pytest.raises(InvalidParameter, match=says):
        store.locks.find(**arguments)


def test_locks_are_removed_by_owner_and_instance(store):
    store.locks.create([LOCK, replace(LOCK, service_instance_id="Other|heat|1.0.0")])
    assert store.locks.remove("bob", [INSTANCE]) == 0
    assert store.locks.remove("alice", ["boiler|heat|1", "None|heat|1"]) == 1
    assert [it.service_instance_id for it in store.locks.find().entries] == ["Other|heat|1.0.0"]
    with pytest.raises(InvalidParameter, match="Service instance id list empty"):
        store.locks.remove("Alice", [])


@pytest.mark.parametrize("expires_at", [LATER, "2099-01-01T12:00:00Z"])
def test_a_reservation_is_a_lock_of_its_job(store, expires_at):
    job = store.history.create("PULL", "Alice", "Alice", "heat")
    made = store.locks.reserve(job, INSTANCE, "Alice", expires_at)
    assert made == replace(LOCK, id=made.id, temporary=True, orchestration_job_id=job)
    assert store.locks.find(orchestration_job_ids=[job]).entries == [made]
    with pytest.raises(InvalidParameter, match="has no zone"):
        store.locks.reserve(job, INSTANCE, "Alice", datetime(2099, 1, 1))


def test_any_lock_can_be_put_there(store):
    past = now() - timedelta(seconds=5)
    gone, kept = store.locks.add(
        [
            replace(LOCK, expires_at=past),
            replace(
                LOCK,
                service_instance_id="Other|heat|1.0.0",
                orchestration_job_id=UUID,
                temporary=True,
            ),
        ]
    )
    assert gone.expires_at >= past.replace(microsecond=0)
    assert kept.temporary
    assert store.locks.find().entries == [kept]
    with pytest.raises(AlreadyLocked):
        store.locks.add([kept])
    with pytest.raises(DuplicatedInstance):
        store.locks.add([LOCK, LOCK])
    assert store.locks.create([LOCK])[0].id > kept.id


def test_a_jobs_life_is_seen_with_its_times(store):
    begun = now().replace(microsecond=0)
    job_id = store.history.create("push", "alice", "Bob", "Heat", UUID.upper(), "why")
    job = store.history.get(job_id.upper())
    assert begun - timedelta(seconds=1) <= job.created_at <= now() + timedelta(seconds=1)
    assert job == replace(
        JOB,
        id=job_id,
        type="PUSH",
        created_at=job.created_at,
        subscription_id=UUID,
        message="why",
    )
    store.history.start(job_id)
    store.history.fail(job_id, "no answer")
    job = store.history.get(job_id)
    assert (job.status, job.message) == ("ERROR", "no answer")
    assert job.created_at <= job.started_at <= job.finished_at
    with pytest.raises(NotFound, match="There is no orchestration job"):
        store.history.get(UUID)


def test_any_job_can_be_put_there_and_is_found(store):
    old, made_now, pending = store.history.add(
        [
            replace(JOB, status="DONE", finished_at=JOB.created_at, message="old"),
            replace(JOB, type="push", created_at=None),
            replace(JOB, id=UUID.upper(), subscription_id=UUID),
        ]
    )
    assert old == replace(JOB, id=old.id, status="DONE", finished_at=JOB.created_at, message="old")
    assert made_now.created_at > now() - timedelta(minutes=1)
    assert pending == replace(JOB, id=UUID, subscription_id=UUID)
    find = store.history.find
    assert find(statuses=["done"]) == Found([old], 1)
    assert find(type="PUSH").entries == [made_now]
    assert find(subscription_ids=[UUID], ids=[UUID]).entries == [pending]
    assert find(requester_systems=["Alice"], target_systems=["Bob"]).count == 3
    assert find(service_definitions=["cold"]) == Found([], 0)
    assert find(page=0, size=1, sort_field="created_at").entries == [made_now]
    store.history.add([replace(pending, message="again")])
    assert store.history.get(UUID).message == "again"
    assert store.clean() == (0, 1)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (replace(JOB, status="DONE"), "A finished job must have finishedAt"),
        (replace(JOB, type=""), "Type is missing"),
        (replace(JOB, created_at=datetime(2026, 1, 1)), "has no zone"),
        (replace(JOB, id="7"), "Invalid orchestration job id: 7"),
    ],
)
def test_of_jobs_with_a_bad_one_none_is_put_there(store, job, says):
    with pytest.raises(InvalidParameter, match=says):
        store.history.add([JOB, job])
    assert store.history.find().count == 0


def test_a_misspelt_filter_of_jobs_is_named(store):
    with pytest.raises(InvalidParameter, match=r"Unknown key: status \(did you mean statuses"):
        store.history.find(status=["DONE"])


def test_empty_values_are_the_same_where_the_wire_leaves_them_out(database_url):
    with Store(
        {"DATABASE_URL": database_url, "OMIT_EMPTY": True, "UNKNOWN_KEYS": "refuse"}
    ) as store:
        (lock,) = store.locks.create([LOCK])
        assert store.locks.find().entries == [replace(LOCK, id=lock.id)] == [lock]
        assert store.history.add([JOB])[0].message == ""


def test_clearing_leaves_nothing_and_ids_go_on(store):
    (lock,) = store.locks.create([LOCK])
    store.history.add([JOB])
    store.clear()
    assert (store.locks.find().count, store.history.find().count) == (0, 0)
    assert store.locks.create([LOCK])[0].id > lock.id


def test_over_http_the_same_is_seen(service):
    service.store.locks.create([LOCK])
    (entry,) = service.locks(owners=["Alice"]).entries
    assert entry["expiresAt"] == "2099-01-01T12:00:00Z"
    service.create({"serviceInstanceId": "A|b|1", "owner": "Bob", "expiresAt": FUTURE})
    assert service.store.locks.find(owners=["Bob"]).count == 1
