"""`orchmgmt.testing`: the log of requests, and what everything says of itself."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from support import Client, lock

from orchmgmt.client import Lock, Unavailable
from orchmgmt.settings import SettingError
from orchmgmt.testing import Service

pytestmark = pytest.mark.sqlite

INSTANCE = "Boiler|heat|1.0.0"
QUERY = "/serviceorchestration/orchestration/mgmt/lock/query"


@pytest.fixture
def service(orchmgmt_shared):
    return orchmgmt_shared


@pytest.fixture
def client(service):
    return Client(service.url, service.headers)


def test_an_entry_has_the_bytes_and_the_times(service, client):
    before = datetime.now(UTC)
    service.clock.set("2030-01-01T00:00:00Z")
    assert client.send("POST", QUERY, b'{"owners": [\xff').status == 400
    (request,) = service.requests
    assert (request.raw, request.json) == (b'{"owners": [\xff', None)
    assert before <= request.received_at <= request.answered_at <= datetime.now(UTC)
    assert request.message.startswith("Malformed JSON")
    assert str(request).endswith(rf'from Sysop {{"owners": [\xff: {request.message}')
    assert json.dumps(request.to_json())


def test_requests_are_waited_for_and_chosen_by_operation(service, client):
    def work():
        for _ in range(3):
            client.locks()
        client.create(lock(INSTANCE))

    service.faults.always(delay_before=0.01)
    thread = threading.Thread(target=work)
    thread.start()
    (create,) = service.requests.wait_for(operation="lock.create", count=1, timeout=60)
    assert create.owners == ["Owner"]
    assert create.instances == [INSTANCE]
    assert len(service.requests.wait_for("lock.query", 3, timeout=60, answered=True)) == 3
    thread.join()
    assert service.requests.of("lock.create") == [create] == service.requests[3:]
    assert service.requests.of("history.query") == []
    with pytest.raises(ValueError, match=r"lock.crate \(did you mean lock.create\?\)"):
        service.requests.of("lock.crate")
    with pytest.raises(ValueError, match="did you mean"):
        service.requests.wait_for("lock.crate")


def test_a_wait_in_vain_says_what_came_instead(service, client):
    client.locks()
    with pytest.raises(TimeoutError, match=r"for 2 x lock.query, in vain; <Requests: 200 POST /"):
        service.requests.wait_for("lock.query", count=2, timeout=0.01)
    service.faults.next(delay=1e6)
    thread = threading.Thread(target=pytest.raises, args=(OSError, client.locks), daemon=True)
    thread.start()
    service.requests.wait_for(count=2, timeout=60)
    with pytest.raises(TimeoutError, match="2 x any operation, answered"):
        service.requests.wait_for(count=2, timeout=0.01, answered=True)
    service.reset()
    thread.join(30)


def test_everything_says_what_it_is(service, client):
    assert repr(service) == f"<Service at {service.url}, 0 requests>"
    assert repr(service.requests) == "<Requests: none>"
    assert repr(service.faults) == "<Faults: none>"
    service.faults.next(status=503, owner="alice")
    service.faults.always(drop="after", operation="lock.query", when=len)
    assert repr(service.faults) == (
        "<Faults: next(status=503, owner='Alice'), "
        "always(drop='after', operation='lock.query', when=<built-in function len>)>"
    )
    client.jobs()
    assert repr(service.requests).startswith("<Requests: 200 POST /serviceorchestration/")
    assert "operation='history.query'" in repr(service.requests[0])
    service.clock.set("2030-01-01T00:00:00Z")
    service.clock.freeze()
    service.clock.set("2030-01-01T00:00:00Z")
    assert repr(service.clock) == "<Clock 2030-01-01T00:00:00+00:00, frozen>"
    service.clock.reset()
    assert repr(service.clock).endswith(", running>")
    stopped = Service()
    assert repr(stopped) == "<Service, not running>"
    for use in (lambda: stopped.requests, lambda: stopped.faults):
        with pytest.raises(RuntimeError, match="is not running"):
            use()


def test_the_log_and_the_faults_of_a_service_that_has_ended_stay():
    with Service() as service:
        service.faults.next(status=503)
        Client(service.url, service.headers).locks()
    service.faults.assert_all_used()
    assert [it.status for it in service.requests.of("lock.query")] == [503]
    assert repr(service) == "<Service, not running>"


def test_a_ready_client_belongs_to_the_service(service):
    with service.client() as client:
        end = service.clock.after(60)
        (made,) = client.create_locks(
            [Lock(service_instance_id=INSTANCE, owner="Me", expires_at=end)]
        )
        assert service.locks() == [made]
    service.faults.next(status=503)
    with service.client(name="RoomClimate", retries=0) as other, pytest.raises(Unavailable):
        list(other.locks())
    with Service(authentication_policy="certificate", cloud="Cloud.Company") as strict:
        with pytest.raises(SettingError, match="under the policy `certificate`: use tls=True"):
            strict.client()
        strict.client(name="Sysop").close()


# --- state


def test_a_lock_ends_when_it_is_told_to(service):
    end = datetime(2035, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert service.add_lock("A|b|1", expires_at=end).expires_at == end
    assert service.add_lock("B|b|1", expires_at="2035-05-06T07:08:09Z").expires_at == end
    lasting = service.add_lock("C|b|1", expires_in=timedelta(minutes=2)).expires_at
    assert timedelta(seconds=100) < lasting - service.clock.now() <= timedelta(seconds=121)
    service.clock.advance(timedelta(minutes=3))
    assert [it.service_instance_id[0] for it in service.locks()] == ["A", "B"]
    service.add_lock("D|b|1", expires_at="2020-01-01T00:00:00Z")
    assert len(service.locks()) == 2
    assert service.clean() == (2, 0)
    for wrong, message in (
        ({"expires_at": end, "expires_in": 5}, "do not go together"),
        ({"expires_at": datetime(2035, 5, 6)}, "no datetime with a zone"),
        ({"expires_at": "tomorrow"}, "no time such as"),
    ):
        with pytest.raises(ValueError, match=message):
            service.add_lock("E|b|1", **wrong)


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ONE, TWO = NOON + timedelta(hours=1), NOON + timedelta(hours=2)


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({"status": "PENDING", "created_at": NOON}, (NOON, None, None)),
        (
            {"status": "DONE", "created_at": NOON, "started_at": ONE, "finished_at": TWO},
            (NOON, ONE, TWO),
        ),
        ({"status": "DONE", "created_at": NOON}, (NOON, NOON, NOON)),
        ({"status": "DONE", "finished_at": "2026-01-01T14:00:00Z"}, (TWO, TWO, TWO)),
        ({"status": "ERROR", "created_at": NOON, "finished_at": TWO}, (NOON, NOON, TWO)),
        ({"status": "IN_PROGRESS", "started_at": ONE}, (ONE, ONE, None)),
    ],
)
def test_a_job_has_the_times_that_it_is_told(service, given, times):
    job = service.add_job(**given)
    assert (job.created_at, job.started_at, job.finished_at) == times
    assert service.jobs() == [job]


def test_the_age_of_a_job_may_be_a_timedelta_and_times_must_go_together(service):
    job = service.add_job("DONE", age=timedelta(days=1), finished_at=service.clock.now())
    assert timedelta(hours=23) < job.finished_at - job.created_at < timedelta(hours=25)
    assert job.started_at == job.created_at
    for wrong, message in (
        ({"age": 5, "created_at": NOON}, "age and created_at do not go together"),
        ({"started_at": NOON}, "PENDING has neither started nor finished"),
        ({"status": "IN_PROGRESS", "finished_at": NOON}, "IN_PROGRESS has not finished"),
        ({"status": "DONE", "created_at": TWO, "started_at": ONE}, "created, then started"),
        ({"status": "DONE", "started_at": TWO, "finished_at": ONE}, "created, then started"),
        ({"created_at": datetime(2026, 1, 1)}, "no datetime with a zone"),
    ):
        with pytest.raises(ValueError, match=message):
            service.add_job(**wrong)
    assert len(service.jobs()) == 1


def test_the_service_itself_is_misspelt_as_clearly_as_a_setting():
    for name, meant in (("strict_fault", "strict_faults"), ("max_pagesize", "max_page_size")):
        with pytest.raises(
            SettingError, match=rf"{name} is not a setting \(did you mean {meant}\?\)"
        ):
            Service(**{name: True})
