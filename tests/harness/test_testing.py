"""`orchmgmt.testing`: the service inside other people's tests."""

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import IncompleteRead, RemoteDisconnected

import pytest
from projects import pytest_in
from support import Client, lock

from orchmgmt.errors import InvalidParameter
from orchmgmt.settings import SettingError
from orchmgmt.testing import Service

pytestmark = pytest.mark.sqlite

INSTANCE = "Boiler|heat|1.0.0"


@pytest.fixture
def service(orchmgmt_shared):
    return orchmgmt_shared


@pytest.fixture
def client(service):
    return Client(service.url, service.headers)


# --- start and stop


def test_nothing_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHMGMT_DATABASE_URL", "sqlite:///no/such/folder.db")
    monkeypatch.setenv("ORCHMGMT_MAX_PAGE_SIZE", "no number")
    with Service() as service:
        assert Client(service.url, service.headers).locks().json == {"entries": [], "count": 0}
    assert list(tmp_path.iterdir()) == []


def test_settings_are_taken_by_name_and_checked_at_once():
    with Service(omit_empty=True) as service:
        service.add_lock(INSTANCE)
        (entry,) = Client(service.url, service.headers).locks().entries
    assert "orchestrationJobId" not in entry
    with pytest.raises(SettingError, match="omit_emty is not a setting"):
        Service(omit_emty=True)
    with pytest.raises(SettingError, match="must be true or false"):
        Service(omit_empty="perhaps")
    with pytest.raises(SettingError, match="no Unix socket"):
        Service(unix_socket="socket")


def test_a_port_that_is_taken_is_said_and_leaves_nothing_open():
    with Service() as service, pytest.raises(OSError, match="in use"):
        Service(port=int(service.url.rpartition(":")[2])).start()


def test_what_needs_a_started_service_says_so():
    service = Service()
    for use in (lambda: service.url, lambda: service.locks(), service.reset, service.down):
        with pytest.raises(RuntimeError, match="is not running"):
            use()
    service.stop()
    with service.start(), pytest.raises(RuntimeError, match="already"):
        service.start()


def test_a_service_can_be_started_again():
    service = Service()
    for _ in range(2):
        with service:
            assert service.locks() == []
            service.add_lock(INSTANCE)
    assert len(service.requests) == 0


def test_the_data_of_a_real_database_stay(tmp_path):
    with Service(database_url=f"sqlite:///{tmp_path}/boilers.db") as service:
        service.add_lock(INSTANCE)
    with Service(database_url=f"sqlite:///{tmp_path}/boilers.db") as service:
        assert [it.service_instance_id for it in service.locks()] == [INSTANCE]


def test_several_at_once_are_apart(orchmgmt_factory):
    services = [orchmgmt_factory() for _ in range(3)]
    services[1].add_lock(INSTANCE)
    services[1].clock.set("2030-01-01T00:00:00Z")
    services[1].faults.next(status=503)
    clients = [Client(it.url, it.headers) for it in services]
    assert [it.locks().status for it in clients] == [200, 503, 200]
    assert [it.clock.now().year == 2030 for it in services] == [False, True, False]


def test_an_operator_is_known_by_certificate_too():
    with Service(authentication_policy="certificate", cloud="Cloud.Company") as service:
        assert Client(service.url, service.headers).create(lock(INSTANCE)).status == 201
        assert service.requests[-1].requester == "Sysop"
        assert Client(service.url, {}).locks().status == 401


def test_under_outsourced_headers_are_the_identity_services_to_give():
    with (
        Service(
            authentication_policy="outsourced",
            identity_url="http://127.0.0.1:1/authentication/identity",
            system_password="secret",
        ) as service,
        pytest.raises(SettingError, match="operator's headers under the policy `outsourced`"),
    ):
        _ = service.headers


def test_asyncio_tests_can_use_it(service):
    async def ask():
        client = Client(service.url, service.headers)
        return await asyncio.gather(*(asyncio.to_thread(client.locks) for _ in range(5)))

    assert [it.status for it in asyncio.run(ask())] == [200] * 5


LEAVES_NOTHING = """
import gc, logging, os, resource, socket, threading, warnings
from http.client import HTTPConnection
from orchmgmt.testing import Service

def state():
    gc.collect()
    loggers = {name: (it.level, it.propagate, list(it.handlers))
               for name, it in logging.root.manager.loggerDict.items()
               if isinstance(it, logging.Logger)}
    return {
        "threads": threading.enumerate(),
        "files": sorted(os.listdir("/proc/self/fd")),
        "folder": os.listdir("."),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "loggers": {name: it for name, it in loggers.items() if it != (0, True, [])},
        "root": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
    }

def use():
    with Service() as service:
        address = service.url.removeprefix("http://")
        idle = socket.create_connection(address.split(":"))
        http = HTTPConnection(address)
        for path in "/health", "/nowhere":
            http.request("POST", path, b"{", service.headers)
            http.getresponse().read()
        slow = HTTPConnection(address)
        service.faults.next(delay=1e6, operation="health.health")
        slow.request("GET", "/health")
        while len(service.requests) < 3:
            pass
        service.faults.next(drop="before", operation="health.health")
        for _ in range(2):
            service.down()
            service.up()
            service.reset()
        service.add_lock("Boiler|heat|1.0.0")
        service.faults.next(delay=1e6, operation="health.health")
        late = HTTPConnection(address)
        late.request("GET", "/health")
        while not service.requests:
            pass
    for it in idle, http, slow, late:
        it.close()

use()  # imports what is imported late
before = state()
use()
after = state()
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
"""


def test_nothing_is_left_behind(tmp_path):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", LEAVES_NOTHING]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stderr) == (0, "")


FORKS = """
import os, signal, sys
from http.client import HTTPConnection
from select import select
from orchmgmt.testing import Service

def status(service):
    http = HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    try:
        http.request("GET", "/health")
        return http.getresponse().status
    finally:
        http.close()

def forked(work):
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            work()
        except BaseException as error:
            print("in the fork:", repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def stop():
    assert status(service) == 200  # a fork may ask it
    for use in service.locks, service.down, service.reset, lambda: service.store:
        try:
            use()
        except RuntimeError as error:
            assert "in the process that started it" in str(error), error
        else:
            assert False, use
    service.stop()
    service.stop()
    try:
        service.url
    except RuntimeError:
        pass
    else:
        assert False

def leave():
    with service:
        pass

with Service(**eval(sys.argv[1])) as service:
    service.add_lock("Boiler|heat|1.0.0")
    service.faults.next(delay=1e6, operation="health.health")
    slow = HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    slow.request("GET", "/health")
    while not service.requests:
        pass
    for work in stop, leave:
        forked(work)
        assert status(service) == 200
        assert len(service.locks()) == 1
    assert select([slow.sock], [], [], 0)[0] == []  # what is under way goes on
    slow.close()
    service.faults.always(status=503, operation="health.health")
    service.down()
    forked(service.stop)
    service.up()
    assert status(service) == 503
    address = service.url
with Service(port=int(address.rpartition(":")[2])) as again:
    assert again.locks() == []
"""


@pytest.mark.sqlite
@pytest.mark.postgresql
def test_a_fork_can_stop_it_and_its_parents_goes_on(tmp_path, database_url):
    for url in (database_url, "sqlite:///:memory:"):
        arguments = [FORKS, repr({"database_url": url})]
        command = [sys.executable, "-W", "error", "-W", "ignore:This process", "-c", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert (ended.returncode, ended.stderr) == (0, "")


# --- state


def test_what_was_put_in_is_there_on_the_wire(service, client):
    put = service.add_lock(INSTANCE, owner="boiler-control", expires_in=60)
    (entry,) = client.locks().entries
    assert (entry["id"], entry["owner"]) == (put.id, put.owner) == (put.id, "BoilerControl")
    job = service.add_job(
        "in_progress",
        "push",
        3600,
        "RoomClimate",
        "BoilerControl",
        "heat",
        "f0e1d2c3-0000-4000-8000-000000000000",
        "begun",
    )
    (entry,) = client.jobs().entries
    assert entry == {**dict.fromkeys(entry, ""), **job.to_wire()}
    assert job.created_at == job.started_at
    assert job.finished_at is None
    assert 3599 <= (service.clock.now() - job.created_at).total_seconds() <= 3602


def test_expired_locks_are_there_only_for_the_cleaner(service, client):
    service.add_lock(INSTANCE, expires_in=-5)
    assert service.locks() == client.locks().entries == []
    assert service.clean() == (1, 0)
    service.add_lock(INSTANCE, expires_in=-5)
    assert client.create(lock(INSTANCE)).status == 201


def test_temporary_locks_of_jobs_cannot_be_removed(service, client):
    job = service.add_job("IN_PROGRESS")
    service.add_lock(INSTANCE, temporary=True, orchestration_job_id=job.id)
    assert client.remove("Owner", f"instanceIds={INSTANCE.replace('|', '%7C')}").status == 200
    assert [it.orchestration_job_id for it in service.locks()] == [job.id]


@pytest.mark.parametrize("age", [16 * 86400, 14 * 86400])
def test_old_jobs_are_cleaned_by_the_services_clock(service, age):
    service.add_job("DONE", age=age)
    assert service.clean() == (0, int(age > 15 * 86400))
    service.clock.advance(2 * 86400)
    service.clean()
    assert service.jobs() == []


def test_all_that_match_are_returned_oldest_first(orchmgmt_factory):
    service = orchmgmt_factory(max_page_size=2)
    put = [service.add_lock(f"Boiler{number}|heat|1.0.0") for number in range(5)]
    assert service.locks() == put
    assert service.locks(ids=[it.id for it in put[1:3]]) == put[1:3]
    assert (
        service.locks(expires_after=put[0].expires_at, expires_before="2020-01-01T00:00:00Z") == []
    )


def test_bad_values_and_filters_are_refused(service):
    service.add_lock(INSTANCE)
    for bad, message in (
        (lambda: service.add_lock(INSTANCE), "Already locked"),
        (lambda: service.add_lock("Boiler"), "naming convention"),
        (lambda: service.add_job(status="LOST"), "Invalid status: LOST"),
        (lambda: service.add_job(status=5), "Invalid status: 5"),
        (lambda: service.locks(ids=[None]), "ID list contains empty element"),
    ):
        with pytest.raises(InvalidParameter, match=message):
            bad()
    with pytest.raises(InvalidParameter, match=r"Unknown key: owner \(did you mean owners\?\)"):
        service.locks(owner="Owner")
    with pytest.raises(TypeError, match="multiple values for keyword argument 'page'"):
        service.jobs(page=1)
    for bad in (
        lambda: service.add_lock("A|b|1", expires_in="1"),
        lambda: service.add_job(age="1"),
    ):
        with pytest.raises(ValueError, match="A number of seconds was expected"):
            bad()
    assert len(service.locks()) == 1
    assert service.jobs() == []


def test_reset_makes_all_as_new(service, client):
    service.add_lock(INSTANCE)
    service.add_job()
    service.clock.set("2030-01-01T00:00:00Z")
    service.clock.freeze()
    service.faults.always(status=500)
    client.locks()
    service.down()
    service.reset()
    assert (service.locks(), service.jobs(), service.requests) == ([], [], [])
    assert abs(service.clock() - time.time()) < 60
    service.faults.assert_all_used()
    assert client.locks().json == {"entries": [], "count": 0}


# --- the clock


@pytest.mark.sqlite
@pytest.mark.postgresql
def test_locks_expire_and_jobs_happen_by_the_clock(database_url):
    with Service(database_url=database_url) as service:
        service.clock.set("2030-01-01T00:00:00Z")
        service.clock.freeze()
        client = Client(service.url, service.headers)
        past = client.create(lock(INSTANCE, expires_at="2029-12-31T23:59:59Z"))
        assert "in the past" in past.error
        assert client.create(lock(INSTANCE, expires_at="2030-01-01T00:01:00Z")).status == 201
        service.clock.advance(59)
        assert len(client.locks().entries) == 1
        service.clock.advance(1)
        assert client.locks().entries == []
        job = service.store.history.create("PULL", "Alice", "Alice", "heat")
        assert str(service.jobs(ids=[job])[0].created_at) == "2030-01-01 00:01:00+00:00"
        assert service.clean() == (1, 0)


def test_the_clock_stands_at_the_last_second_that_can_be_written(service, client):
    service.clock.set("9999-12-31T23:59:59Z")
    service.add_lock(INSTANCE, expires_in=-1)
    assert service.clock.now() == service.clock.now()
    assert client.locks().entries == []
    late = client.create(lock(INSTANCE, expires_at="9999-12-31T23:59:59Z"))
    assert "in the past" in late.error
    with pytest.raises(ValueError, match="the year 9999"):
        service.clock.advance(10**400)
    service.clock.advance(-1)
    assert client.create(lock(INSTANCE, expires_at="9999-12-31T23:59:59Z")).status == 201


def test_a_frozen_clock_stands_and_a_resumed_one_goes_on(service):
    clock = service.clock
    clock.freeze()
    assert clock() == clock()
    clock.set("2030-01-01T00:00:00+01:00")
    assert clock.now().isoformat() == "2029-12-31T23:00:00+00:00"
    clock.resume()
    first = clock()
    while clock() == first:
        pass
    assert clock.now().isoformat().startswith("2029-12-31T23:0")


@pytest.mark.parametrize("moment", ["tomorrow", "2030-01-01", 5, None, "1969-12-31T23:59:59Z"])
def test_no_time_is_refused(service, moment):
    with pytest.raises(ValueError, match=r"no time such as|no datetime with a zone|the year"):
        service.clock.set(moment)
    for seconds in ("1", None, float("inf"), -1e12, float("nan")):
        with pytest.raises(ValueError, match=r"A number of seconds was expected|the year"):
            service.clock.advance(seconds)


# --- faults


def test_a_status_is_an_error_response_and_nothing_is_done(service, client):
    service.faults.next(status=503, times=2, operation="lock.create", retry_after=7)
    assert client.locks().status == 200
    for _ in range(2):
        answer = client.create(lock(INSTANCE))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
        assert answer.error == "A fault that the test asked for"
    assert service.locks() == []
    assert client.create(lock(INSTANCE)).status == 201
    assert [it.status for it in service.requests] == [200, 503, 503, 201]


@pytest.mark.parametrize(
    ("drop", "error", "done", "status"),
    [
        ("before", RemoteDisconnected, 0, None),
        ("after", RemoteDisconnected, 1, None),
        ("middle", IncompleteRead, 1, 201),
    ],
)
def test_a_connection_is_dropped(service, client, drop, error, done, status):
    service.faults.next(drop=drop)
    with pytest.raises(error):
        client.create(lock(INSTANCE))
    assert len(service.locks()) == done
    assert service.requests[-1].status == status
    assert client.locks().status == 200


def test_even_an_empty_answer_has_a_middle(service, client):
    service.faults.next(drop="middle")
    with pytest.raises(IncompleteRead):
        client.remove("Owner", "instanceIds=Boiler%7Cheat%7C1.0.0")


def test_a_delay_is_waited_for_and_others_are_not(service, client):
    service.faults.next(delay=1e6)

    def ask():
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            client.locks()

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    while not service.requests:
        pass
    assert client.locks().status == 200
    assert waiting.is_alive()
    assert service.requests[0].status is None
    service.down()
    waiting.join(30)
    assert not waiting.is_alive()
    service.up()
    service.faults.next(delay=0.001)
    assert client.locks().status == 200
    service.faults.assert_all_used()


def test_faults_come_in_turn_and_those_for_always_last(service, client):
    service.faults.always(status=500)
    service.faults.next(status=502, operation="history.query")
    service.faults.next(status=503)
    service.faults.next(status=504)
    assert [client.locks().status for _ in range(4)] == [503, 504, 500, 500]
    with pytest.raises(AssertionError, match=r"next\(status=502, operation='history.query'\)"):
        service.faults.assert_all_used()
    assert client.jobs().status == 502
    service.faults.assert_all_used()
    service.faults.clear()
    assert client.locks().status == 200
    service.faults.always(drop="after")
    with pytest.raises(AssertionError, match=r"always\(drop='after'\)"):
        service.faults.assert_all_used()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"status": 503, "operation": "lock.crate"}, r"lock.crate \(did you mean lock.create\?\)"),
        ({"status": 199}, "from 200 to 599, not 199"),
        ({"status": 600}, "from 200 to 599, not 600"),
        ({"status": "503"}, "from 200 to 599, not '503'"),
        ({"status": 503, "times": 0}, "times must be a whole number from 1, not 0"),
        ({"status": 503, "times": True}, "times must be"),
        ({"status": 503, "retry_after": -1}, "retry_after must be whole seconds"),
        ({"retry_after": 1, "delay": 1}, "retry_after needs a status"),
        ({"status": 503, "drop": "after"}, "do not go together"),
        ({"drop": "never"}, "drop must be one of before, after, middle, reset, not 'never'"),
        ({"delay": -1}, "delay must be a number of seconds"),
        ({"delay": 1e10}, "delay must be a number of seconds up to"),
        ({"status": 503, "retry_after": 10**20}, "retry_after must be whole seconds up to"),
        ({"delay": "1"}, "delay must be a number of seconds"),
        ({}, "a fault needs one of status, body"),
        ({"operation": "lock.create"}, "a fault needs one of status, body"),
    ],
)
def test_a_fault_that_cannot_be_is_an_error_at_once(service, fault, message):
    with pytest.raises(ValueError, match=message):
        service.faults.next(**fault)
    service.faults.assert_all_used()


def test_a_misspelt_fault_is_an_error_at_once(service):
    with pytest.raises(TypeError):
        service.faults.next(stats=503)
    with pytest.raises(TypeError):
        service.faults.always(status=503, times=2)


def test_threads_that_switch_it_at_once_are_not_in_each_others_way(service, client):
    def switch():
        for _ in range(5):
            service.down()
            service.up()

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(switch) for _ in range(4)]:
            done.result()
    service.reset()
    assert client.locks().status == 200


def test_a_server_that_is_down_refuses_and_comes_back_with_its_data(service, client):
    service.add_lock(INSTANCE)
    address = service.url.removeprefix("http://").split(":")
    with socket.create_connection(address, timeout=30) as idle:
        service.down()
        service.down()
        with suppress(ConnectionResetError):  # it may not have been taken yet
            assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        client.locks()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((address[0], int(address[1])))
    service.up()
    service.up()
    assert len(client.locks().entries) == 1


# --- the log of requests


def test_requests_are_kept_as_they_came(service, client):
    client.create(lock(INSTANCE))
    client.remove("Owner", "instanceIds=Boiler%7Cheat%7C1.0.0,A%7Cb%7C1&instanceIds=C%7Cd%7C1")
    client.send("POST", "/nowhere", b"{", {"X-Thing": "1"})
    client.send("POST", "/serviceorchestration/orchestration/mgmt/history/query")
    create, remove, nowhere, query = service.requests
    assert (create.operation, create.method, create.requester) == ("lock.create", "POST", "Sysop")
    assert create.path == "/serviceorchestration/orchestration/mgmt/lock/create"
    assert create.json == {"locks": [lock(INSTANCE)]}
    assert (create.headers["authorization"], create.status) == ("Bearer SYSTEM//Sysop", 201)
    assert (remove.operation, remove.json, remove.status) == ("lock.remove", None, 200)
    assert remove.query == {"instanceIds": ["Boiler|heat|1.0.0,A|b|1", "C|d|1"]}
    assert (nowhere.operation, nowhere.json, nowhere.status) == ("", None, 404)
    assert (nowhere.requester, nowhere.headers["x-thing"]) == ("", "1")
    assert (query.operation, query.status) == ("history.query", 200)


def test_a_body_that_comes_in_chunks_or_is_too_large_arrives(orchmgmt_factory):
    service = orchmgmt_factory(max_body_bytes=100)
    client = Client(service.url, {**service.headers, "Transfer-Encoding": "chunked"})
    path = "/serviceorchestration/orchestration/mgmt/lock/query"
    chunked = client.send("POST", path, b"d\r\n" + b'{"ids": [1]} ' + b"\r\n0\r\n\r\n")
    assert (chunked.status, service.requests[-1].json) == (200, {"ids": [1]})
    large = Client(service.url, service.headers).locks(owners=["A" * 200])
    assert "larger than 100 bytes" in large.error
    assert service.requests[-1].status == 413


def test_faults_and_the_log_are_there_without_a_socket(orchmgmt, orchmgmt_client):
    path = "/serviceorchestration/orchestration/mgmt/lock/query"
    assert orchmgmt_client.post(path).json == {"entries": [], "count": 0}
    assert orchmgmt_client.post(path, headers={"Authorization": ""}).status_code == 401
    orchmgmt.faults.next(status=503)
    assert orchmgmt_client.post(path).status_code == 503
    orchmgmt.faults.next(drop="after")
    with pytest.raises(ConnectionResetError):
        orchmgmt_client.post(path)
    assert [it.status for it in orchmgmt.requests] == [200, 401, 503, None]


# --- the plugin


def test_a_failed_test_shows_what_its_services_were_asked(tmp_path):
    said = pytest_in(
        tmp_path,
        "-n2",
        test_it="""
        PATH = "/serviceorchestration/orchestration/mgmt/lock/query"

        def test_fails(orchmgmt_shared, orchmgmt):
            orchmgmt.faults.next(drop="before", operation="lock.create")
            client = orchmgmt.app.test_client()
            client.environ_base["HTTP_AUTHORIZATION"] = orchmgmt.headers["Authorization"]
            client.post(PATH, json={"owners": ["BoilerControl"]})
            orchmgmt.faults.assert_all_used()

        def test_passes(orchmgmt_client):
            orchmgmt_client.post(PATH, json={"owners": ["Nobody"]})
        """,
    )
    assert "1 failed, 1 passed" in said, said
    assert "Faults that have not happened: next(drop='before', operation='lock.create')" in said
    asked = re.findall(r"^-+ requests to orchmgmt \(http://127.*\) -+\n(.*)$", said, re.MULTILINE)
    assert asked[0] == "none"
    assert asked[1].startswith("200 POST /serviceorchestration/orchestration/mgmt/lock/query from")
    assert "BoilerControl" in asked[1]
    assert len(asked) == 2
    assert "Nobody" not in said


@pytest.mark.parametrize("processes", [[], ["-n2"]], ids=["plain", "xdist"])
def test_what_fails_in_a_request_fails_the_test(tmp_path, processes):
    said = pytest_in(
        tmp_path,
        *processes,
        test_it="""
        import sys
        from contextlib import suppress
        from urllib.request import urlopen
        import pytest
        from orchmgmt.testing import Service

        def ask(service, monkeypatch, end):
            monkeypatch.setattr(service.store.database, "check", end)
            with suppress(OSError):
                urlopen(service.url + "/health")

        def test_fail(orchmgmt, monkeypatch):
            ask(orchmgmt, monkeypatch, lambda: pytest.fail("not to be asked"))

        def test_exit(orchmgmt_factory, monkeypatch):
            ask(orchmgmt_factory(), monkeypatch, lambda: sys.exit(3))

        def test_shared(orchmgmt_shared, monkeypatch):
            ask(orchmgmt_shared, monkeypatch, lambda: pytest.skip("not here"))

        def test_shared_passes(orchmgmt_shared):
            assert orchmgmt_shared.locks() == []

        def test_with(monkeypatch):
            with Service() as service:
                ask(service, monkeypatch, lambda: pytest.fail("not to be asked"))

        def test_long(orchmgmt, orchmgmt_client):
            orchmgmt_client.post("/health", json="x" * 1_000_000)
            assert False
        """,
    )
    assert "5 failed, 1 passed in" in said, said[-3000:]
    assert "A request has ended with Failed: not to be asked" in said
    assert "A request has ended with SystemExit: 3" in said
    assert "A request has ended with Skipped: not here" in said
    assert len(said) < 100_000


def test_a_test_that_breaks_the_shared_service_breaks_no_other(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        def test_stops_it(orchmgmt_shared):
            orchmgmt_shared.stop()

        def test_closes_its_store(orchmgmt_shared):
            assert orchmgmt_shared.locks() == []
            orchmgmt_shared.store.close()

        def test_leaves_it_down(orchmgmt_shared):
            orchmgmt_shared.add_lock("Boiler|heat|1.0.0")
            orchmgmt_shared.down()

        def test_finds_it_as_new(orchmgmt_shared):
            assert orchmgmt_shared.locks() == []
        """,
    )
    assert "4 passed" in said, said


def test_the_fixtures_come_before_or_after_an_imaginary_file_system(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        from urllib.request import urlopen
        from orchmgmt.testing import Service

        def test_before(fs, orchmgmt):
            assert urlopen(orchmgmt.url + "/health").status == 200

        def test_after(orchmgmt, fs):
            assert urlopen(orchmgmt.url + "/health").status == 200

        def test_client_before(fs, orchmgmt_client):
            assert orchmgmt_client.get("/health").status_code == 200

        def test_client_after(orchmgmt_client, fs):
            assert orchmgmt_client.get("/health").status_code == 200

        def test_shared(fs, orchmgmt_shared):
            assert orchmgmt_shared.locks() == []

        def test_factory(fs, orchmgmt_factory):
            service = orchmgmt_factory(authentication_policy="certificate", cloud="A.B")
            assert service.headers
            assert Service().start().stop() is None
        """,
    )
    assert "6 passed" in said, said


@pytest.mark.parametrize("processes", [[], ["-n2"]], ids=["plain", "xdist"])
def test_a_failing_test_fails_whatever_it_has_done_to_its_services(tmp_path, processes):
    said = pytest_in(
        tmp_path,
        *processes,
        test_it="""
        import pytest
        from orchmgmt.testing import Service

        def test_stopped(orchmgmt, orchmgmt_factory, orchmgmt_client):
            orchmgmt_client.get("/health")
            orchmgmt.stop()
            assert False, "stopped"

        def test_never_started():
            Service().url

        def test_down(orchmgmt):
            orchmgmt.down()
            assert False, "down"

        def test_closed_store(orchmgmt):
            orchmgmt.store.close()
            orchmgmt.locks()
            assert False, "closed"

        def test_fault_left_over(orchmgmt):
            orchmgmt.faults.next(status=503)
            orchmgmt.stop()
            assert False, "left over"

        def test_spoilt_log(orchmgmt):
            orchmgmt.requests.append("\\ud800")
            orchmgmt.requests.append(Spoilt())
            assert False, "spoilt"

        def test_lone_surrogate(orchmgmt):
            orchmgmt.requests.append("\\ud800")
            assert False, "surrogate"

        class Spoilt:
            def __str__(self):
                raise RuntimeError("no text")

        @pytest.fixture
        def checked(orchmgmt):
            yield orchmgmt
            orchmgmt.stop()
            assert False, "teardown"

        def test_teardown(checked):
            pass

        @pytest.fixture
        def broken(orchmgmt):
            orchmgmt.stop()
            assert False, "setup"

        def test_setup(broken):
            pass

        def test_passes(orchmgmt):
            pass
        """,
    )
    assert "INTERNALERROR" not in said, said
    assert re.search("7 failed, 2 passed, 2 errors in", said), said
    assert "200 GET /health" in said  # the log of a service that is stopped
    assert "they cannot be shown: RuntimeError('no text')" in said


def test_a_project_that_does_not_use_it_imports_no_flask(tmp_path):
    said = pytest_in(
        tmp_path,
        "-p",
        "no:xdist",
        test_it="""
        import sys

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("orchmgmt")
            assert not [it for it in sys.modules if it.partition(".")[0] == "orchmgmt"]
            assert not {"flask", "werkzeug", "peewee", "marshmallow"} & set(sys.modules)
        """,
    )
    assert "1 passed" in said, said
