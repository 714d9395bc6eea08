"""An orchestrator in any language records its jobs, reserves instances for them and releases."""

import http.client
import itertools
import logging
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import closing
from datetime import datetime

import pytest
from support import FUTURE, MANAGEMENT, OPERATOR, Connection, in_threads, lock
from wire import JOB, PAST, connect, job_entry, job_id, put

from orchmgmt.entries import Job, Lock
from orchmgmt.errors import InvalidParameter
from orchmgmt.logs.audit import SHOWN

NEW = {
    "type": "PULL",
    "requesterSystem": "Consumer",
    "targetSystem": "Consumer",
    "serviceDefinition": "kelvinInfo",
}
NAMING = "does not match the naming convention"
UUID_FORM = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
BLANK = [None, "", " ", "\t\r\n"]
CREATED, STARTED, FINISHED = (f"2026-11-08T12:00:0{n}Z" for n in range(3))


@pytest.fixture
def start(shared_start):
    return shared_start


@pytest.fixture
def service(start):
    return start(RECORDER=True)


def record(service, *jobs, **headers):
    return service.post("/history/record", {"jobs": list(jobs)}, **headers)


def reserve(service, *locks, **headers):
    return service.post("/lock/reserve", {"locks": list(locks)}, **headers)


def release(service, job, query="", headers=None):
    path = f"{MANAGEMENT}/lock/release/{job}{query and '?' + query}"
    return service.send("DELETE", path, headers=headers)


def reservation(job, instance, owner="Owner", expires_at=FUTURE):
    return {"orchestrationJobId": job, **lock(instance, owner, expires_at)}


def new_job(service, **values):
    (entry,) = record(service, {**NEW, **values}).entries
    return entry["id"]


def moment(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


# Only where it is switched on.


def test_without_the_setting_there_are_no_such_paths(start):
    service = start()
    for answer in (record(service, NEW), reserve(service), release(service, job_id(1))):
        assert (answer.status, answer.error) == (404, "There is no such path")


@pytest.mark.sqlite
def test_without_the_setting_nothing_of_it_is_imported():
    program = (
        "import sys; from orchmgmt.app import create_app;"
        "create_app({'DATABASE_URL': 'sqlite:///:memory:', 'RECORDER': RECORDER});"
        "print('orchmgmt.extensions.recorder' in sys.modules)"
    )
    for on in (True, False):
        command = [sys.executable, "-c", program.replace("RECORDER}", f"{on}}}")]
        assert subprocess.run(command, capture_output=True, text=True).stdout == f"{on}\n"


# A new job.


def test_a_new_job_is_pending_and_made_now(service):
    before = moment(service.store.now())
    answer = record(service, NEW)
    assert answer.status == 201
    assert answer.headers["Content-Type"] == "application/json"
    (entry,) = answer.entries
    assert answer.json["count"] == 1
    assert UUID_FORM(entry["id"])
    assert before <= moment(entry["createdAt"]) <= moment(service.store.now())
    assert list(entry.items()) == [
        ("id", entry["id"]),
        ("status", "PENDING"),
        *NEW.items(),
        ("subscriptionId", ""),
        ("message", ""),
        ("createdAt", entry["createdAt"]),
        ("startedAt", ""),
        ("finishedAt", ""),
    ]
    assert service.jobs().json == answer.json


def test_a_job_is_kept_as_it_is_given_once_normalised(service):
    given = {
        "id": f" {job_id(10).upper()} ",
        "status": "error",
        "type": "push",
        "requesterSystem": "room-climate",
        "targetSystem": " BoilerControl",
        "serviceDefinition": "Alarm_notification",
        "subscriptionId": job_id(11).upper(),
        "message": " too hot ",
        "createdAt": "2026-11-08T13:00:00.9+01:00",
        "startedAt": "2026-11-08t12:00:01z",
        "finishedAt": FINISHED,
    }
    assert record(service, given).entries == [
        {
            "id": job_id(10),
            "status": "ERROR",
            "type": "PUSH",
            "requesterSystem": "RoomClimate",
            "targetSystem": "BoilerControl",
            "serviceDefinition": "alarmNotification",
            "subscriptionId": job_id(11),
            "message": "too hot",
            "createdAt": CREATED,
            "startedAt": STARTED,
            "finishedAt": FINISHED,
        }
    ]


@pytest.mark.parametrize(
    ("status", "filled"),
    [
        ("PENDING", ["createdAt"]),
        ("IN_PROGRESS", ["createdAt", "startedAt"]),
        ("DONE", ["createdAt", "startedAt", "finishedAt"]),
        ("ERROR", ["createdAt", "startedAt", "finishedAt"]),
    ],
)
def test_times_that_a_status_needs_are_filled_and_those_given_are_kept(service, status, filled):
    before = moment(service.store.now())
    (entry,) = record(service, {**NEW, "status": status}).entries
    for key in ("createdAt", "startedAt", "finishedAt"):
        if key in filled:
            assert before <= moment(entry[key]) <= moment(service.store.now())
        else:
            assert entry[key] == ""
    for key in filled:
        (entry,) = record(service, {**NEW, "status": status, key: PAST}).entries
        assert entry[key] == PAST


def test_the_clock_is_the_databases(service):
    database_now = service.store.database.now
    service.store.database.now = lambda: CREATED
    try:
        (entry,) = record(service, {**NEW, "status": "DONE"}).entries
    finally:
        service.store.database.now = database_now
    assert [entry[it] for it in ("createdAt", "startedAt", "finishedAt")] == [CREATED] * 3


def test_keys_without_a_value_are_left_out_on_request(start):
    service = start(RECORDER=True, OMIT_EMPTY=True)
    (entry,) = record(service, NEW).entries
    assert list(entry) == ["id", "status", *NEW, "createdAt"]
    (reserved,) = reserve(service, reservation(entry["id"], "A|b|1")).entries
    assert len(reserved) == 6
    assert record(service, entry).entries == [entry]


@pytest.mark.parametrize("count", [2, 90, 91, 300])
def test_jobs_come_in_the_order_of_the_request_new_and_known(service, count):
    known = [job_entry(number) for number in range(0, count, 2)]
    record(service, *reversed(known))
    jobs = [{**job_entry(n), "status": "IN_PROGRESS", "startedAt": STARTED} for n in range(count)]
    jobs = jobs[::-3] + jobs[::-1][1::3] + jobs[::-1][2::3]
    answer = record(service, *jobs)
    assert answer.entries == jobs
    assert answer.json["count"] == count == service.jobs().json["count"]
    assert service.jobs(statuses=["IN_PROGRESS"]).json["count"] == count


# The life of a job.


LIFE = ("PENDING", "IN_PROGRESS", "DONE", "ERROR")
FORWARD = [
    ("PENDING", "IN_PROGRESS"),
    ("PENDING", "DONE"),
    ("PENDING", "ERROR"),
    ("IN_PROGRESS", "DONE"),
    ("IN_PROGRESS", "ERROR"),
]


@pytest.mark.parametrize(("before", "after"), FORWARD)
def test_a_job_takes_one_or_more_steps_forward(service, before, after):
    made = new_job(service, status=before)
    (entry,) = record(service, {"id": made, "status": after}).entries
    assert entry["status"] == after
    assert entry["startedAt"]
    assert bool(entry["finishedAt"]) == (after != "IN_PROGRESS")
    assert service.jobs().entries == [entry]


@pytest.mark.parametrize("status", LIFE)
@pytest.mark.parametrize("again", ["the whole entry", "the status", "the id alone"])
def test_a_repeated_step_changes_nothing(service, status, again):
    whole = {**NEW, "status": status, "message": "so", "createdAt": CREATED}
    whole |= {} if status == "PENDING" else {"startedAt": STARTED}
    whole |= {} if status in ("PENDING", "IN_PROGRESS") else {"finishedAt": FINISHED}
    (entry,) = record(service, whole).entries
    repeated = {
        "the whole entry": entry,
        "the status": {"id": entry["id"], "status": status},
        "the id alone": {"id": entry["id"]},
    }[again]
    assert record(service, repeated).entries == [entry]
    assert service.jobs().entries == [entry]


@pytest.mark.parametrize(
    ("before", "after"),
    [(it, to) for it in LIFE for to in LIFE if it != to and (it, to) not in FORWARD],
)
def test_a_step_back_is_refused(service, before, after):
    made = new_job(service, status=before)
    stored = service.jobs().json
    answer = record(service, {"id": made, "status": after})
    message = f"Orchestration job {made} is {before}: it cannot become {after}"
    assert (answer.status, answer.error) == (400, message)
    assert service.jobs().json == stored


def test_a_message_has_so_many_characters_at_most(service):
    longest = "\N{GRINNING FACE}" * 16384
    made = new_job(service, message=f"  {longest}\n")
    assert service.jobs().entries[0]["message"] == longest
    history = service.store.history
    for give in (
        lambda: history.create("PULL", "A", "B", "c", message=longest + "x"),
        lambda: history.start(made, longest + "x"),
    ):
        with pytest.raises(InvalidParameter, match="Message is too long"):
            give()
    assert service.jobs().json["count"] == 1


def test_a_longer_message_of_an_earlier_version_goes_on_with_its_job(service):
    long = "x" * 20_000
    put(service, JOB, job_entry(1, message=long))
    step = {"id": job_id(1), "status": "IN_PROGRESS"}
    assert record(service, step).entries[0]["message"] == long
    assert service.jobs().entries[0]["message"] == long
    service.store.history.finish(job_id(1))
    assert service.jobs().entries[0]["message"] == long


@pytest.mark.parametrize("blank", BLANK)
def test_a_message_replaces_the_old_one_only_when_it_is_not_blank(service, blank):
    made = new_job(service, message="first")
    step = {"id": made, "status": "IN_PROGRESS", "message": blank}
    assert record(service, step).entries[0]["message"] == "first"
    step = {"id": made, "status": "DONE", "message": " second "}
    assert record(service, step).entries[0]["message"] == "second"


def test_times_are_given_with_a_step_or_mended_afterwards(service):
    made = new_job(service)
    step = {"id": made, "status": "DONE", "startedAt": STARTED, "finishedAt": FINISHED}
    (entry,) = record(service, step).entries
    assert (entry["startedAt"], entry["finishedAt"]) == (STARTED, FINISHED)
    (mended,) = record(service, {"id": made, "createdAt": CREATED, "finishedAt": STARTED}).entries
    assert mended == {**entry, "createdAt": CREATED, "finishedAt": STARTED}


@pytest.mark.parametrize(
    ("status", "times", "message"),
    [
        ("PENDING", {"startedAt": STARTED}, "A pending job cannot have startedAt"),
        ("PENDING", {"finishedAt": FINISHED}, "An unfinished job cannot have finishedAt"),
        ("IN_PROGRESS", {"finishedAt": FINISHED}, "An unfinished job cannot have finishedAt"),
    ],
)
def test_times_go_with_the_status(service, status, times, message):
    answer = record(service, {**NEW, "status": status, **times})
    assert (answer.status, answer.error) == (400, message)
    made = new_job(service, status=status)
    stored = service.jobs().json
    answer = record(service, {"id": made, **times})
    assert (answer.status, answer.error) == (400, message)
    assert service.jobs().json == stored


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("type", "PULL", "PUSH"),
        ("requesterSystem", "Consumer", "Other"),
        ("targetSystem", "Consumer", "Other"),
        ("serviceDefinition", "kelvinInfo", "other"),
        ("subscriptionId", "empty", job_id(9)),
    ],
)
def test_what_a_job_began_with_stays(service, key, old, new):
    made = new_job(service)
    answer = record(service, {"id": made, "status": "DONE", key: new})
    message = f"Orchestration job {made} has {key} {old}: it cannot become {new}"
    assert (answer.status, answer.error) == (400, message)
    assert service.jobs().entries[0]["status"] == "PENDING"


def test_a_recorded_job_is_one_for_the_python_api_too(service):
    history = service.store.history
    made = new_job(service)
    history.start(made)
    record(service, {"id": made, "status": "DONE"})
    assert history.get(made).status == "DONE"
    given = history.create("PUSH", "A", "B", "c")
    (entry,) = record(service, {"id": given, "status": "ERROR", "message": "no"}).entries
    assert history.get(given) == Job.from_wire(entry)


# What is refused.


@pytest.mark.parametrize(("path", "key"), [("/history/record", "jobs"), ("/lock/reserve", "locks")])
def test_a_request_with_nothing_in_it_is_refused(service, path, key):
    for payload, message in [
        (None, "Request payload is null"),
        ({}, "Request payload is empty"),
        ({key: None}, "Request payload is empty"),
        ({key: []}, "Request payload is empty"),
        ({key: [None]}, "Request payload contains null element"),
        ({key: {}}, f"{key} must be a list"),
        ({key: [7]}, "A JSON object was expected"),
        ([], "A JSON object was expected"),
    ]:
        answer = service.post(path, payload)
        assert (answer.status, answer.error) == (400, message), payload
    answer = service.send("POST", MANAGEMENT + path)
    assert (answer.status, answer.error) == (400, "Request payload is null")


MISSING = {
    "type": "Type is missing",
    "requesterSystem": "Requester system is missing",
    "targetSystem": "Target system is missing",
    "serviceDefinition": "Service definition is missing",
}


@pytest.mark.parametrize("key", MISSING)
def test_a_new_job_is_complete(service, key):
    absent = {name: value for name, value in NEW.items() if name != key}
    for job in [absent, *({**NEW, key: blank} for blank in BLANK)]:
        answer = record(service, job)
        assert (answer.status, answer.error) == (400, MISSING[key]), job
        answer = record(service, {**job, "id": job_id(1)})
        says = f"There is no orchestration job {job_id(1)} yet: {MISSING[key]}"
        assert (answer.status, answer.error) == (400, says), job
    assert service.jobs().entries == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", "5", "Invalid orchestration job id: 5"),
        ("id", 5, "id must be a string"),
        ("status", "ENDED", "Invalid status: ENDED"),
        ("status", ["DONE"], "status must be a string"),
        ("type", "POLL", "Invalid type: POLL"),
        ("requesterSystem", "9", f"The specified system name {NAMING}: 9"),
        ("targetSystem", "9", f"The specified system name {NAMING}: 9"),
        ("serviceDefinition", "-", f"The specified service definition name {NAMING}: _"),
        ("subscriptionId", "x", "Invalid subscription id: x"),
        ("message", {}, "message must be a string"),
        ("message", "x" * 16385, "Message is too long"),
        ("createdAt", "soon", "Invalid created at format: soon"),
        ("startedAt", "2026-11-08", "Invalid started at format: 2026-11-08"),
        ("finishedAt", "2026-02-30T00:00:00Z", "Invalid finished at format: 2026-02-30T00:00:00Z"),
        ("createdAt", "9999-12-31T23:59:59-01:00", "Invalid created at format: 9999-12-31T23:59:5"),
    ],
)
def test_a_malformed_value_is_named(service, key, value, message):
    for base in (NEW, {"id": new_job(service)}):
        answer = record(service, {**base, key: value})
        assert answer.status == 400
        assert answer.error.startswith(message)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**NEW, "type": "POLL"}, "Invalid type: POLL"),
        ({"id": job_id(2)}, f"There is no orchestration job {job_id(2)} yet: Type is missing"),
        ({"id": job_id(1), "status": "PENDING"}, "it cannot become PENDING"),
        ({"id": job_id(1), "requesterSystem": "Other"}, "it cannot become Other"),
        ({**NEW, "finishedAt": FINISHED}, "An unfinished job cannot have finishedAt"),
        ({**NEW, "id": job_id(3)}, f"Duplicated orchestration job id: {job_id(3)}"),
        (None, "Request payload contains null element"),
    ],
)
def test_one_bad_job_among_many_leaves_all_as_it_was(service, bad, message):
    began = {"status": "IN_PROGRESS", "startedAt": STARTED}
    record(service, job_entry(1, **began), job_entry(4, **began))
    stored = service.jobs().json
    good = [{"id": job_id(4), "status": "DONE"}, {**NEW, "id": job_id(3)}]
    more = [{**NEW, "message": str(n)} for n in range(200)]
    answer = record(service, *good, *more, bad, NEW)
    assert answer.status == 400
    assert message in answer.error
    assert service.jobs().json == stored


def test_the_same_job_twice_in_a_request_is_refused_in_any_letter_case(service):
    made = new_job(service)
    steps = [{"id": made, "status": "IN_PROGRESS"}, {"id": made.upper(), "status": "DONE"}]
    answer = record(service, *steps)
    assert answer.error == f"Duplicated orchestration job id: {made}"
    assert service.jobs().entries[0]["status"] == "PENDING"


# Reservations.


def test_a_reservation_is_a_temporary_lock_of_its_job(service):
    made = new_job(service)
    answer = reserve(
        service, reservation(f" {made.upper()}", "provider|Kelvin_info|2", "the-owner")
    )
    assert answer.status == 201
    (entry,) = answer.entries
    assert list(entry.items()) == [
        ("id", entry["id"]),
        ("orchestrationJobId", made),
        ("serviceInstanceId", "Provider|kelvinInfo|2.0.0"),
        ("owner", "TheOwner"),
        ("expiresAt", FUTURE),
        ("temporary", True),
    ]
    assert service.locks(orchestrationJobIds=[made]).json == answer.json
    service.remove("TheOwner", "instanceIds=Provider%7CkelvinInfo%7C2")
    assert service.locks().json == answer.json


@pytest.mark.parametrize("status", ["PENDING", "IN_PROGRESS"])
def test_an_unfinished_job_reserves(service, status):
    made = new_job(service, status=status)
    assert reserve(service, reservation(made, "A|b|1")).status == 201


@pytest.mark.parametrize("count", [2, 90, 91, 300])
def test_ids_of_reservations_rise_in_the_order_of_the_request(service, count):
    jobs = [new_job(service) for _ in range(3)]
    wanted = [reservation(jobs[n % 3], f"P{n * 7 % count}x{n}|b|1.0.0") for n in range(count)]
    entries = reserve(service, *wanted).entries
    assert [it["serviceInstanceId"] for it in entries] == [it["serviceInstanceId"] for it in wanted]
    assert [it["orchestrationJobId"] for it in entries] == [
        it["orchestrationJobId"] for it in wanted
    ]
    ids = [it["id"] for it in entries]
    assert ids == sorted(set(ids))
    assert service.create(lock("Later|b|1")).entries[0]["id"] > ids[-1]


@pytest.mark.parametrize("end", ["DONE", "ERROR", "never there"])
def test_only_an_unfinished_job_reserves_and_else_nothing_is_reserved(service, end):
    good = new_job(service)
    bad = job_id(7) if end == "never there" else new_job(service, status=end)
    wanted = [reservation(good, "A|b|1"), reservation(bad, "C|d|1"), reservation(good, "E|f|1")]
    answer = reserve(service, *wanted)
    message = f"There is no unfinished orchestration job {bad}"
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().entries == []


def test_a_held_instance_is_not_reserved_and_every_one_is_named(service):
    made = new_job(service)
    service.create(lock("A|b|1"))
    reserve(service, reservation(made, "C|d|1"))
    answer = reserve(service, *[reservation(made, f"{it}|1") for it in ("E|f", "C|d", "A|b")])
    assert (answer.status, answer.error) == (400, "Already locked: C|d|1.0.0, A|b|1.0.0")
    assert service.create(lock("C|d|1")).error == "Already locked: C|d|1.0.0"
    assert service.locks().json["count"] == 2


def test_an_expired_lock_gives_way_to_a_reservation(service):
    made = new_job(service)
    service.store.locks.add(
        [Lock(service_instance_id="A|b|1", owner="Old", expires_at=moment(PAST))]
    )
    assert reserve(service, reservation(made, "A|b|1")).entries[0]["owner"] == "Owner"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"orchestrationJobId": ""}, "Orchestration job id is missing"),
        ({"orchestrationJobId": "5"}, "Invalid orchestration job id: 5"),
        ({"serviceInstanceId": " "}, "Service instance id is missing"),
        ({"owner": None}, "Owner is missing"),
        ({"expiresAt": ""}, "Expiration time is missing"),
        ({"expiresAt": "soon"}, "Invalid expires at format: soon"),
        ({"expiresAt": f" {PAST} "}, f"Expires at is in the past: {PAST}"),
        ({"owner": "9"}, f"The specified system name {NAMING}: 9"),
        (
            {"serviceInstanceId": "A|b"},
            f"The specified service instance identifier {NAMING}: A|b",
        ),
        (
            {"serviceInstanceId": "A|b|1.2.3.4"},
            "Version verification failure: version must contain exactly 2 separator . characters",
        ),
        (
            {"serviceInstanceId": "Good|one|1"},
            "Duplicated service instance id: Good|one|1.0.0",
        ),
    ],
)
def test_a_bad_reservation_among_good_ones_is_named_and_nothing_reserved(service, changed, message):
    made = new_job(service)
    bad = {**reservation(made, "A|b|1"), **changed}
    answer = reserve(service, reservation(made, "Good|one|1"), bad)
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().entries == []


def test_a_time_that_is_past_counts_in_the_order_of_the_list(service):
    wanted = [reservation(job_id(1), "A|b|1", expires_at="2020-01-01T01:00:00+01:00"), {}]
    says = "Expires at is in the past: 2020-01-01T01:00:00+01:00"
    assert reserve(service, *wanted).error == says
    assert reserve(service, *reversed(wanted)).error == "Service instance id is missing"
    assert reserve(service, {**wanted[0], "orchestrationJobId": "5"}).error == says
    missing = {**wanted[0], "orchestrationJobId": ""}
    assert reserve(service, missing).error == "Orchestration job id is missing"


# Release.


def test_release_removes_the_temporary_locks_of_the_job_alone(service):
    made, other = new_job(service), new_job(service)
    reserve(service, *[reservation(made, f"P{n}|b|1") for n in range(150)])
    (kept,) = reserve(service, reservation(other, "Other|b|1")).entries
    lasting = Lock(
        service_instance_id="Lasting|b|1",
        owner="Owner",
        expires_at=moment(FUTURE),
        orchestration_job_id=made,
    )
    service.store.locks.add([lasting])
    answer = release(service, f"%20{made.upper()}")
    assert (answer.status, answer.json) == (200, {"count": 150})
    assert answer.headers["Content-Type"] == "application/json"
    assert service.locks(owners=["Owner"]).json["count"] == 2
    assert kept in service.locks().entries
    assert release(service, made).json == {"count": 0}
    assert release(service, job_id(77)).json == {"count": 0}


def test_an_ended_jobs_reservations_stay_until_they_are_released(service):
    made = new_job(service)
    reserve(service, reservation(made, "A|b|1"))
    record(service, {"id": made, "status": "DONE"})
    assert service.locks().json["count"] == 1
    assert release(service, made).json == {"count": 1}
    assert service.create(lock("A|b|1")).status == 201


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("release", "Orchestration job id is missing"),
        ("release/", "Orchestration job id is missing"),
        ("release/%20", "Orchestration job id is missing"),
        ("release/5", "Invalid orchestration job id: 5"),
    ],
)
def test_release_names_a_job(service, path, message):
    answer = service.send("DELETE", f"{MANAGEMENT}/lock/{path}")
    assert (answer.status, answer.error) == (400, message)


# Who may, what is written down of it, and what is not known.


OPERATIONS = [
    ("POST", "/history/record", b"[", "History", "record"),
    ("POST", "/lock/reserve", b"[", "Lock", "reserve"),
    ("DELETE", "/lock/release/9", None, "Lock", "release"),
    ("DELETE", "/lock/release", None, "Lock", "release"),
]
every_operation = pytest.mark.parametrize(
    ("method", "path", "body", "service_name", "scope"),
    OPERATIONS,
    ids=[it[1] for it in OPERATIONS],
)


@every_operation
def test_identity_then_permission_then_payload(service, method, path, body, service_name, scope):
    def ask(**headers):
        headers = {"Content-Type": "application/json", **headers}
        return service.send(method, MANAGEMENT + path, body, headers)

    for headers, status, message in [
        ({}, 401, "No authorization header has been provided"),
        ({"Authorization": "Sysop"}, 401, "Invalid authorization header"),
        (
            {"Authorization": "Bearer SYSTEM//Consumer"},
            403,
            "Requester has no management permission",
        ),
    ]:
        answer = ask(**headers)
        assert (answer.status, answer.error) == (status, message)
    assert ask(Authorization=OPERATOR).status == 400


@every_operation
def test_a_wrong_method_is_told_the_right_one(service, method, path, body, service_name, scope):
    answer = service.send("GET", MANAGEMENT + path)
    assert answer.status == 405
    assert answer.headers["Allow"] == method
    assert answer.error


@pytest.mark.parametrize("path", ["/history/record", "/lock/reserve"])
def test_bodies_are_held_to_the_same_limits(start, path):
    service = start(RECORDER=True, MAX_BODY_BYTES=100)
    for body, headers, status in [
        (b'{"a":1,"a":2}', {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b" " * 101, {"Content-Type": "application/json"}, 413),
    ]:
        answer = service.send("POST", MANAGEMENT + path, body, {**service.headers, **headers})
        assert answer.status == status
        assert answer.error


@every_operation
@pytest.mark.sqlite
def test_consumer_authorization_is_asked_with_the_operations_scope(
    start, cloud, method, path, body, service_name, scope
):
    cloud.allowed.add(("Orchestrator", f"serviceOrchestration{service_name}Management", scope))
    settings = {k: v for k, v in cloud.settings.items() if k != "IDENTITY_URL"}
    service = start(RECORDER=True, MANAGEMENT_POLICY="authorization", **settings)
    headers = {"Content-Type": "application/json"}
    for name, status in (("Orchestrator", 400), ("Other", 403)):
        headers["Authorization"] = f"Bearer SYSTEM//{name}"
        assert service.send(method, MANAGEMENT + path, body, headers).status == status


@pytest.fixture
def audit(caplog):
    """The audit's lines so far."""
    caplog.set_level(logging.INFO, "orchmgmt.audit")
    return lambda: [it.fields for it in caplog.records if it.name == "orchmgmt.audit"]


def test_each_of_the_three_is_a_line_of_the_audit_log(service, audit):
    made = new_job(service, status="PENDING")
    record(service, {"id": made, "status": "IN_PROGRESS"}, *[NEW] * 30)
    (locked,) = reserve(service, reservation(made, "A|b|1")).entries
    reserve(service, reservation(made, "A|b|1"))
    release(service, made)
    release(service, "x", headers={"Authorization": "Bearer SYSTEM//Alice"})
    record(service, {"id": made, "status": "PENDING"})
    began, bulk, reserved, held, released, forbidden, back = audit()
    line = {"requester": "Sysop", "operation": "history.record", "status": 201, "result": "done"}
    assert began == {**line, "jobs": 1, "statuses": ["PENDING"], "ids": [made]}
    assert (bulk["jobs"], len(bulk["ids"]), bulk["ids"][0]) == (31, SHOWN, made)
    assert reserved == {
        "requester": "Sysop",
        "operation": "lock.reserve",
        "status": 201,
        "result": "done",
        "locks": 1,
        "instances": ["A|b|1.0.0"],
        "owners": ["Owner"],
        "job_ids": [made],
        "ids": [locked["id"]],
    }
    assert (held["result"], held["reason"]) == ("refused", "Already locked: A|b|1.0.0")
    assert (released["operation"], released["job_ids"]) == ("lock.release", [made])
    assert released["removed"] == 1
    assert (forbidden["requester"], forbidden["status"]) == ("Alice", 403)
    assert back["reason"] == f"Orchestration job {made} is IN_PROGRESS: it cannot become PENDING"


def test_metrics_name_the_operations(start):
    service = start(RECORDER=True, METRICS=True)
    made = new_job(service)
    reserve(service, reservation(made, "A|b"))
    release(service, made)
    text = service.send("GET", "/metrics").body.decode()
    for operation, status in (
        ("history.record", 201),
        ("lock.reserve", 400),
        ("lock.release", 200),
    ):
        labels = f'operation="{operation}",status="{status}"'
        assert f"orchmgmt_requests_total{{{labels}}} 1.0" in text


def test_unknown_keys_are_ignored_or_refused(start):
    service = start(RECORDER=True)
    (entry,) = record(service, {**NEW, "statuss": "DONE"}).entries
    assert entry["status"] == "PENDING"
    strict = start(RECORDER=True, UNKNOWN_KEYS="refuse")
    for answer, key in [
        (record(strict, {**NEW, "statuss": "DONE"}), "statuss (did you mean status?)"),
        (strict.post("/history/record", {"job": []}), "job (did you mean jobs?)"),
        (reserve(strict, {**reservation(entry["id"], "A|b|1"), "id": 1}), "id"),
        (strict.post("/lock/reserve", {"locks": [], "x": 1}), "x"),
        (release(strict, entry["id"], "force=1"), "force"),
    ]:
        assert (answer.status, answer.error) == (400, f"Unknown key: {key}")
    assert record(strict, entry).entries == [entry]
    assert reserve(strict, reservation(entry["id"], "A|b|1")).status == 201
    assert release(strict, entry["id"]).json == {"count": 1}


@pytest.mark.sqlite
def test_the_registry_hears_of_the_operations(serve, cloud):
    serve("--recorder", "true", env={f"ORCHMGMT_{k}": v for k, v in cloud.registry.items()})
    deadline = time.monotonic() + 30
    while len(cloud.services) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    known = {}
    for it in cloud.services.values():
        known |= it["interfaces"][0]["properties"]["operations"]
    assert known["record"] == {"method": "POST", "path": "/record"}
    assert known["reserve"] == {"method": "POST", "path": "/reserve"}
    assert known["release"] == {"method": "DELETE", "path": "/release"}


# Several processes on one database, many clients at once.


CLIENTS = 6


@pytest.fixture
def servers(serve, database_url):
    options = ("--recorder", "true", "--threads", "6", "--database-timeout-seconds", "60")
    return [serve(*options) for _ in range(2)]


def race(servers, work):
    """Run `work(number, connection)` in every client, half of them on each server."""
    faults = []

    def run(number):
        with closing(Connection(servers[number % 2].url)) as connection:
            try:
                work(number, connection)
            except BaseException as error:
                faults.append(error)

    in_threads(run, range(CLIENTS))
    assert faults == []


def recorded(connection, *jobs):
    return connection.send("POST", "/history/record", {"jobs": jobs})


def reserved(connection, *locks):
    return connection.send("POST", "/lock/reserve", {"locks": locks})


def test_of_two_ends_of_a_job_one_wins_also_when_it_is_new(servers):
    rounds = 40
    together = threading.Barrier(CLIENTS, timeout=60)
    won = [set() for _ in range(rounds)]

    def work(number, connection):
        end = ("DONE", "ERROR")[number // 2 % 2]
        for round in range(rounds):
            job = job_entry(round, status=end, startedAt=STARTED, finishedAt=FINISHED)
            together.wait()
            status, answer = recorded(connection, job)
            if status == 201:
                won[round].add(end)
            else:
                other = {"DONE": "ERROR", "ERROR": "DONE"}[end]
                says = f"Orchestration job {job['id']} is {other}: it cannot become {end}"
                assert (status, answer["errorMessage"]) == (400, says)

    race(servers, work)
    assert [len(ends) for ends in won] == [1] * rounds
    stored = {it["id"]: it["status"] for it in servers[0].jobs().entries}
    assert stored == {job_id(round): end for round, (end,) in enumerate(won)}


def test_overlapping_records_are_all_or_nothing_and_none_waits_for_ever(servers):
    rounds = 25
    together = threading.Barrier(CLIENTS, timeout=60)
    won = []

    def work(number, connection):
        chance = random.Random(number)
        end = ("DONE", "ERROR")[number // 2 % 2]
        for round in range(rounds):
            wanted = [100 * round + it for it in chance.sample(range(12), 5)]
            together.wait()
            status, answer = recorded(connection, *[{**NEW, "id": job_id(it)} for it in wanted])
            # Those that somebody has ended already cannot begin again.
            assert status == 201 or "it cannot become PENDING" in answer["errorMessage"]
            steps = [{**NEW, "id": job_id(it), "status": end} for it in wanted]
            status, answer = recorded(connection, *steps)
            if status == 201:
                won.extend((job_id(it), end) for it in wanted)
            else:
                assert "it cannot become" in answer["errorMessage"]

    race(servers, work)
    assert len(won) >= 5 * rounds  # in every round, at least the first to come
    stored = {it["id"]: it["status"] for it in servers[0].jobs().entries}
    assert {(it, stored[it]) for it, _ in won} == set(won)
    ended = {it for it, status in stored.items() if status != "PENDING"}
    assert ended == {it for it, _ in won}


def test_nothing_is_reserved_once_the_end_of_its_job_is_acknowledged(servers):
    rounds = 10
    together = threading.Barrier(CLIENTS, timeout=60)
    seen = servers[0]

    def work(number, connection):
        for round in range(rounds):
            made = job_id(round)
            if number == 0:
                assert recorded(connection, {**NEW, "id": made})[0] == 201
            together.wait()
            if number == 0:
                while not seen.locks(orchestrationJobIds=[made]).json["count"]:
                    pass
                assert recorded(connection, {"id": made, "status": "DONE"})[0] == 201
                kept = seen.locks(orchestrationJobIds=[made]).json["count"]
            else:
                for attempt in itertools.count():
                    instance = f"P{number}|round{round}|1.0.{attempt}"
                    status, answer = reserved(connection, reservation(made, instance))
                    if status != 201:
                        break
                says = f"There is no unfinished orchestration job {made}"
                assert (status, answer["errorMessage"]) == (400, says)
            together.wait()
            if number == 0:
                assert seen.locks(orchestrationJobIds=[made]).json["count"] == kept

    race(servers, work)


def test_a_reservation_and_a_create_never_both_hold_an_instance(servers):
    rounds = 30
    together = threading.Barrier(CLIENTS, timeout=60)
    won = []
    servers[0].post("/history/record", {"jobs": [{**NEW, "id": job_id(n)} for n in range(CLIENTS)]})

    def work(number, connection):
        chance = random.Random(number)
        for round in range(rounds):
            wanted = chance.sample([f"P{n}|round{round}|1.0.0" for n in range(8)], 3)
            owner = f"Owner{number}"
            together.wait()
            if number // 2 % 2:
                made = job_id(number)
                status, answer = reserved(
                    connection, *[reservation(made, it, owner) for it in wanted]
                )
            else:
                made = ""
                status, answer = connection.create(*[lock(it, owner) for it in wanted])
            if status == 201:
                won.extend((it, owner, made) for it in wanted)
            else:
                assert answer["errorMessage"].startswith("Already locked: "), answer

    race(servers, work)
    kinds = {bool(made) for _, _, made in won}
    assert kinds == {True, False}
    stored = [
        (it["serviceInstanceId"], it["owner"], it["orchestrationJobId"])
        for it in servers[1].locks().entries
    ]
    assert sorted(stored) == sorted(won)


def test_release_frees_for_others_what_it_counts(servers):
    """A reservation and its release in one process, and whoever comes next in the other."""
    instance = "P|b|1.0.0"
    holder = threading.Lock()  # held by whoever the servers say holds the instance
    servers[0].post("/history/record", {"jobs": [{**NEW, "id": job_id(n)} for n in range(CLIENTS)]})

    def work(number, connection):
        for _ in range(30):
            if reserved(connection, reservation(job_id(number), instance))[0] == 201:
                assert holder.acquire(blocking=False)
                (found,) = servers[0].locks().entries
                assert found["orchestrationJobId"] == job_id(number)
                holder.release()
                assert connection.send("DELETE", f"/lock/release/{job_id(number)}") == (
                    200,
                    {"count": 1},
                )
            else:
                status, answer = connection.send("DELETE", f"/lock/release/{job_id(number)}")
                assert (status, answer) == (200, {"count": 0})

    race(servers, work)
    assert servers[0].locks().json["count"] == 0


BULK = 200  # several statements


def test_a_killed_server_has_kept_what_it_acknowledged_and_nothing_by_halves(serve, database_url):
    server = serve("--recorder", "true", "--threads", "4")
    asked, acknowledged, unexpected = [], [], []
    ready, killed = threading.Event(), threading.Event()

    def work(client):
        for number in itertools.count():
            subscription = job_id(1000 * client + number)
            new = [{**NEW, "subscriptionId": subscription, "type": "PUSH"}] * BULK
            asked.append(subscription)
            try:
                answer = record(server, *new)
                assert answer.status == 201
                acknowledged.append((subscription, "PENDING"))
                steps = [{"id": it["id"], "status": "DONE"} for it in answer.entries]
                assert record(server, *steps).status == 201
                acknowledged.append((subscription, "DONE"))
            except (OSError, http.client.HTTPException):
                assert killed.is_set()
                return
            except BaseException as error:
                unexpected.append(error)
                return
            if len(asked) > 6:
                ready.set()

    threads = [threading.Thread(target=work, args=(client,)) for client in range(3)]
    for thread in threads:
        thread.start()
    assert ready.wait(60), unexpected
    killed.set()
    server.process.kill()
    for thread in threads:
        thread.join()
    assert server.process.wait(30) == -signal.SIGKILL
    assert unexpected == []
    stored = defaultdict(list)
    with closing(connect(database_url)) as database:
        for subscription, status in database.execute(
            "SELECT subscription_id, status FROM orchestration_job"
        ):
            stored[subscription].append(status)
    for subscription in asked:
        assert len(stored[subscription]) in (0, BULK)
        assert len(set(stored[subscription])) <= 1
    assert {len(stored[it]) for it, _ in acknowledged} == {BULK}
    assert {stored[it][0] for it, status in acknowledged if status == "DONE"} == {"DONE"}
