"""The Python API: the life of a job, and the instances that are reserved for it."""

import re
import threading
from collections import Counter

import pytest
from support import FUTURE, in_threads, lock, traced
from wire import execute

from orchmgmt.databases.queries import Page
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.locks import AlreadyLocked
from orchmgmt.store import Store

UNKNOWN = "0b7e6f1e-3e0f-4f5a-9d3e-0a1b2c3d4e5f"
INSTANCE = "Provider|kelvinInfo|1.0.0"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ").fullmatch
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def start(shared_start):
    return shared_start


@pytest.fixture
def store(service):
    return service.store


@pytest.fixture
def history(store):
    return store.history


@pytest.fixture
def job_id(history):
    return history.create("PULL", "Requester", "Target", "kelvinInfo", message="created")


@pytest.fixture
def job(service):
    """Look a job up over the wire."""

    def job(job_id):
        (entry,) = service.jobs(ids=[job_id]).entries
        return entry

    return job


def backdate(store):
    """Let all that has happened have happened long ago."""
    for column in ("created_at", "started_at", "finished_at"):
        execute(
            store,
            f"UPDATE orchestration_job SET {column} = '2020-01-01T00:00:00Z' WHERE {column} != ''",
        )


def state(entry):
    """Which of its times a job has, and whether each is old."""
    times = [entry[key] for key in ("createdAt", "startedAt", "finishedAt")]
    assert all(it == "" or MOMENT(it) for it in times)
    return entry["status"], *["old" if it.startswith("2020") else "new" * bool(it) for it in times]


def test_created_job_is_pending_and_has_what_it_was_given(history, job):
    job_id = history.create("push", "the-requester", " Target ", "Kelvin_info", UNKNOWN.upper())
    entry = job(job_id)
    assert state(entry) == ("PENDING", "new", "", "")
    assert entry == {
        "id": job_id,
        "status": "PENDING",
        "type": "PUSH",
        "requesterSystem": "TheRequester",
        "targetSystem": "Target",
        "serviceDefinition": "kelvinInfo",
        "subscriptionId": UNKNOWN,
        "message": "",
        "createdAt": entry["createdAt"],
        "startedAt": "",
        "finishedAt": "",
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("PUT", "A", "B", "c"), "Invalid type: PUT"),
        (("", "A", "B", "c"), "Type is missing"),
        (("PULL", " ", "B", "c"), "Requester system is missing"),
        (("PULL", "A", "", "c"), "Target system is missing"),
        (("PULL", "A", "B", ""), "Service definition is missing"),
        (("PULL", "A!", "B", "c"), "system name does not match the naming convention: A!"),
        (("PULL", "A", "B", "c", "none"), "Invalid subscription id: none"),
    ],
)
def test_malformed_job_is_refused(store, history, values, says):
    with pytest.raises(InvalidParameter, match=says):
        history.create(*values)
    assert store.job_table.find({}, Page(0, 10)) == ([], 0)


@pytest.mark.parametrize(("end", "status"), [("finish", "DONE"), ("fail", "ERROR")])
def test_job_lives_from_pending_through_progress_to_its_end(
    store, history, job, job_id, end, status
):
    assert state(job(job_id)) == ("PENDING", "new", "", "")
    backdate(store)
    history.start(job_id)
    assert state(job(job_id)) == ("IN_PROGRESS", "old", "new", "")
    backdate(store)
    getattr(history, end)(job_id)
    assert state(job(job_id)) == (status, "old", "old", "new")


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_ended_job_can_start_anew_and_has_no_end_then(store, history, job, job_id, end):
    history.start(job_id)
    getattr(history, end)(job_id, "ended")
    backdate(store)
    history.start(job_id)
    assert state(job(job_id)) == ("IN_PROGRESS", "old", "new", "")
    assert job(job_id)["message"] == "ended"


def test_started_job_can_start_again(store, history, job, job_id):
    history.start(job_id)
    backdate(store)
    history.start(job_id)
    assert state(job(job_id)) == ("IN_PROGRESS", "old", "new", "")


@pytest.mark.parametrize("end", ["finish", "fail"])
@pytest.mark.parametrize("before", [(), ("start", "finish"), ("start", "fail")], ids=str)
def test_only_a_job_in_progress_can_end(history, job, job_id, before, end):
    for step in before:
        getattr(history, step)(job_id)
    found = job(job_id)
    with pytest.raises(InvalidParameter, match=f"{job_id} is {found['status']}"):
        getattr(history, end)(job_id, "too late")
    assert job(job_id) == found


@pytest.mark.parametrize("step", ["start", "finish", "fail"])
@pytest.mark.parametrize("wrong", [UNKNOWN, "", "nonsense", "%", "' OR 1=1 --"])
def test_unknown_job_is_not_found(history, job, job_id, step, wrong):
    found = job(job_id)
    with pytest.raises(NotFound, match="There is no orchestration job"):
        getattr(history, step)(wrong)
    assert job(job_id) == found


def test_ids_are_found_in_any_letter_case(history, job, job_id):
    history.start(job_id.upper())
    history.finish(job_id.upper())
    assert job(job_id)["status"] == "DONE"


@pytest.mark.parametrize("blank", ["", " ", "\t\r\n", "\0", "\x1f "])
@pytest.mark.parametrize("end", ["finish", "fail"])
def test_blank_message_keeps_the_old_one(history, job, job_id, end, blank):
    history.start(job_id, blank)
    getattr(history, end)(job_id, blank)
    assert job(job_id)["message"] == "created"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  no provider\n", "no provider"),
        ("Größe Ω 😀", "Größe Ω 😀"),
        ("two\nlines", "two\nlines"),
        ("a\0b", f"a{REPLACEMENT}b"),
        ("a\ud800b", f"a{REPLACEMENT}b"),
        ("a\udc00", f"a{REPLACEMENT}"),
        ("\ud83d\ude00", "😀"),
        ("'; DROP TABLE orchestration_job; --", "'; DROP TABLE orchestration_job; --"),
        ("\N{NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"),
        ("x" * 16_384, "x" * 16_384),
    ],
    ids=range(10),
)
def test_message_replaces_the_old_one_and_is_never_lost(history, job, job_id, given, kept):
    history.start(job_id, given)
    assert job(job_id)["message"] == kept
    history.start(job_id, "other")
    history.fail(job_id, given)
    assert job(job_id)["message"] == kept
    created = history.create("PULL", "A", "B", "c", message=given)
    assert job(created)["message"] == kept


@pytest.mark.sqlite
def test_each_step_is_one_statement(store, history, job_id):
    for step in (
        lambda: history.create("PULL", "A", "B", "c"),
        lambda: history.start(job_id),
        lambda: history.finish(job_id),
        lambda: history.start(job_id),
        lambda: history.fail(job_id),
        lambda: store.locks.release(job_id),
    ):
        with traced(store) as statements:
            step()
        # A statement is told again for each step of the triggers that it fires.
        statements = list(dict.fromkeys(statements))
        assert [statements[0].split()[0], statements[-1]] == ["BEGIN", "COMMIT"]
        assert len(statements) == 3


def test_only_one_of_several_threads_ends_a_job(store, history, job, job_id):
    outcomes: Counter[str] = Counter()
    for _ in range(20):
        history.start(job_id)
        together = threading.Barrier(6, timeout=30)

        def end(number, together=together):
            together.wait()
            try:
                (history.finish if number % 2 else history.fail)(job_id, f"by {number}")
                outcomes["ended"] += 1
            except InvalidParameter:
                outcomes["refused"] += 1

        in_threads(end, range(6))
        entry = job(job_id)
        assert entry["status"] == ("DONE" if int(entry["message"][-1]) % 2 else "ERROR")
    assert outcomes == {"ended": 20, "refused": 100}


def test_jobs_of_several_threads_do_not_disturb_each_other(service, history):
    def work(_):
        for number in range(20):
            job_id = history.create("PULL", "Requester", "Target", "kelvinInfo")
            history.start(job_id)
            (history.finish if number % 2 else history.fail)(job_id, job_id)

    in_threads(work, range(6))
    entries = service.jobs().entries
    assert Counter(entry["status"] for entry in entries) == {"DONE": 60, "ERROR": 60}
    assert all(entry["message"] == entry["id"] for entry in entries)


def test_reservation_is_a_temporary_lock_of_the_job(service, store, job_id):
    made = store.locks.reserve(job_id.upper(), " provider|Kelvin_info|1 ", "the-owner", FUTURE)
    (entry,) = service.locks().entries
    assert entry == {
        "id": made.id,
        "orchestrationJobId": job_id,
        "serviceInstanceId": INSTANCE,
        "owner": "TheOwner",
        "expiresAt": FUTURE,
        "temporary": True,
    }
    assert service.locks(orchestrationJobIds=[job_id]).json["count"] == 1
    assert service.create(lock(INSTANCE)).error == f"Already locked: {INSTANCE}"


def test_reservation_is_not_removed_over_the_wire_but_released(service, store, job_id):
    store.locks.reserve(job_id, INSTANCE, "Owner", FUTURE)
    store.locks.reserve(job_id, "Other|kelvinInfo|1.0.0", "Owner", FUTURE)
    service.create(lock("Third|kelvinInfo|1.0.0"))
    assert service.remove("Owner", "instanceIds=Provider%7CkelvinInfo%7C1.0.0").status == 200
    assert service.locks().json["count"] == 3
    assert store.locks.release(UNKNOWN) == 0
    assert store.locks.release(job_id.upper()) == 2
    assert store.locks.release(job_id) == 0
    (left,) = service.locks().entries
    assert left["serviceInstanceId"] == "Third|kelvinInfo|1.0.0"


def test_release_leaves_other_jobs_and_lasting_locks_alone(service, store, history, job_id):
    other = history.create("PULL", "A", "B", "c")
    store.locks.reserve(job_id, INSTANCE, "Owner", FUTURE)
    store.locks.reserve(other, "Other|kelvinInfo|1.0.0", "Owner", FUTURE)
    execute(store, "UPDATE orchestration_lock SET temporary = FALSE WHERE owner = 'Owner'")
    execute(store, "UPDATE orchestration_lock SET temporary = TRUE WHERE id = 2")
    assert store.locks.release(job_id) == 0
    assert store.locks.release(other) == 1


def test_held_instance_cannot_be_reserved(service, store, job_id):
    service.create(lock(INSTANCE))
    with pytest.raises(AlreadyLocked) as caught:
        store.locks.reserve(job_id, INSTANCE, "Other", FUTURE)
    assert caught.value.service_instance_ids == [INSTANCE]
    assert [it["temporary"] for it in service.locks().entries] == [False]


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_ended_job_cannot_reserve(service, store, history, job_id, end):
    history.start(job_id)
    store.locks.reserve(job_id, INSTANCE, "Owner", FUTURE)
    getattr(history, end)(job_id)
    with pytest.raises(NotFound, match="no unfinished orchestration job"):
        store.locks.reserve(job_id, "Other|kelvinInfo|1.0.0", "Owner", FUTURE)
    assert service.locks().json["count"] == 1


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ((UNKNOWN, INSTANCE, "Owner", FUTURE), NotFound, "no unfinished orchestration job"),
        (("5", INSTANCE, "Owner", FUTURE), InvalidParameter, "Invalid orchestration job id: 5"),
        (("", INSTANCE, "Owner", FUTURE), InvalidParameter, "Orchestration job id is missing"),
        ((UNKNOWN, "A|b", "Owner", FUTURE), InvalidParameter, "naming convention: A.b"),
        ((UNKNOWN, "", "Owner", FUTURE), InvalidParameter, "Service instance id is missing"),
        ((UNKNOWN, INSTANCE, " ", FUTURE), InvalidParameter, "Owner is missing"),
        ((UNKNOWN, INSTANCE, "O!", FUTURE), InvalidParameter, "naming convention: O!"),
        ((UNKNOWN, INSTANCE, "Owner", ""), InvalidParameter, "Expiration time is missing"),
        ((UNKNOWN, INSTANCE, "Owner", "soon"), InvalidParameter, "Invalid expires at format: soon"),
        (
            (UNKNOWN, INSTANCE, "Owner", "2020-01-01T00:00:00Z"),
            InvalidParameter,
            "Expires at is in the past: 2020-01-01T00:00:00Z",
        ),
    ],
)
def test_malformed_reservation_is_refused(service, store, values, error, says):
    with pytest.raises(error, match=says):
        store.locks.reserve(*values)
    assert service.locks().json["count"] == 0


def test_expired_reservation_frees_its_instance(service, store, history, job_id):
    old = store.locks.reserve(job_id, INSTANCE, "Owner", FUTURE)
    execute(store, "UPDATE orchestration_lock SET expires_at = '2020-01-01T00:00:00Z'")
    new = store.locks.reserve(history.create("PULL", "A", "B", "c"), INSTANCE, "Other", FUTURE)
    assert new.id > old.id
    assert [it["owner"] for it in service.locks().entries] == ["Other"]


def test_only_one_of_several_threads_reserves_an_instance(store, history):
    jobs = [history.create("PULL", "A", "B", "c") for _ in range(6)]
    won: list[str] = []
    for round in range(20):
        together = threading.Barrier(len(jobs), timeout=30)

        def reserve(job_id, round=round, together=together):
            together.wait()
            try:
                store.locks.reserve(job_id, f"Provider|service{round}|1.0.0", "Owner", FUTURE)
                won.append(job_id)
            except AlreadyLocked:
                pass

        in_threads(reserve, jobs)
    assert len(won) == 20
    assert sum(store.locks.release(job_id) for job_id in jobs) == 20


def test_life_without_a_file_and_without_a_server():
    with Store({"DATABASE_URL": "sqlite:///:memory:"}) as store:
        job_id = store.history.create("PULL", "Requester", "Target", "kelvinInfo")
        store.history.start(job_id)
        store.locks.reserve(job_id, INSTANCE, "Owner", FUTURE)
        store.history.finish(job_id, "found")
        ((found_id, status, *_),), count = store.job_table.find({}, Page(0, 10))
        assert (found_id, status, count) == (job_id, "DONE", 1)
        assert store.locks.release(job_id) == 1
