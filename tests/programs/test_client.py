"""The client for Python programs, against the service, and against a stand-in for its faults."""

import contextlib
import json
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections import deque
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote

import pytest
from support import OPERATOR, in_threads, served
from wire import JOB, LOCK, execute, job_entry, job_id, lock_entry, put

from orchmgmt import client as module
from orchmgmt.client import AlreadyLocked, Client, Job, Lock, Refused, Unavailable
from orchmgmt.commands.transfer import import_jobs
from orchmgmt.entries import already_locked, to_wire

pytestmark = pytest.mark.sqlite

END = datetime(2099, 1, 1, tzinfo=UTC)
UUIDS = [job_id(number) for number in range(4)]


def wanted(instance, owner="Owner", expires_at=END):
    return Lock(service_instance_id=instance, owner=owner, expires_at=expires_at)


@pytest.fixture
def client(service):
    with Client(service.url, name="Sysop") as client:
        yield client


# Against the service


def test_locks_are_created_queried_and_removed(client):
    first, second = client.create_locks([wanted("A|b|1.0.0"), wanted("C|d|1.0.0", "other-owner")])
    assert first == Lock(id=1, service_instance_id="A|b|1.0.0", owner="Owner", expires_at=END)
    assert second.owner == "OtherOwner"
    assert list(client.locks()) == [second, first]
    client.remove_locks("Owner", "A|b|1.0.0", "C|d|1.0.0")
    assert list(client.locks()) == [second]


def test_a_lock_that_was_returned_can_be_asked_for_again(client):
    (lock,) = client.create_locks([wanted("A|b|1.0.0")])
    client.remove_locks(lock.owner, lock.service_instance_id)
    (again,) = client.create_locks([lock])
    assert again.id == lock.id + 1


def test_what_is_locked_already_is_named(client):
    client.create_locks([wanted("A|b|1.0.0"), wanted("C|d|1.0.0")])
    with pytest.raises(AlreadyLocked) as refusal:
        client.create_locks([wanted(it, "Other") for it in ("E|f|1.0.0", "C|d|1.0.0", "A|b|1.0.0")])
    assert refusal.value.service_instance_ids == ["C|d|1.0.0", "A|b|1.0.0"]
    with pytest.warns(DeprecationWarning, match="use service_instance_ids") as warned:
        assert refusal.value.instances == refusal.value.service_instance_ids
    assert warned[0].filename == __file__
    with pytest.raises(TypeError, match=r"A Lock of orchmgmt\.entries was expected, not \{"):
        client.create_locks([{"serviceInstanceId": "A|b|1.0.0"}])
    assert refusal.value.status == 400
    assert len(list(client.locks())) == 2


@pytest.mark.parametrize(
    ("ask", "status", "message"),
    [
        (lambda it: it.create_locks([]), 400, "Request payload is empty"),
        (lambda it: it.create_locks([wanted("A|b|1.0.0", "")]), 400, "Owner is missing"),
        (
            lambda it: it.create_locks([wanted("A|b|1.0.0", expires_at=None)]),
            400,
            "Expiration time is missing",
        ),
        (lambda it: it.remove_locks("Owner"), 400, "Service instance id list empty"),
        (lambda it: it.remove_locks("", "A|b|1.0.0"), 400, "Owner is missing"),
        (lambda it: next(it.locks(owners=["b@b"])), 400, "naming convention: B@b"),
        (lambda it: next(it.jobs(ids=["abc"])), 400, "Invalid orchestration job id: abc"),
        (lambda it: it.create_locks([wanted("A|b|1", "x" * 5000)]), 413, "larger than 4000 bytes"),
    ],
)
def test_what_is_refused_says_why(start, ask, status, message):
    with (
        Client(start(MAX_BODY_BYTES=4000).url, name="Sysop") as client,
        pytest.raises(Refused, match=message) as refusal,
    ):
        ask(client)
    assert type(refusal.value) is Refused
    assert refusal.value.status == status
    assert message in refusal.value.message


def test_who_asks_decides(service):
    with Client(service.url, name="Alice") as client:
        client.echo()
        with pytest.raises(Refused, match="no management permission") as refusal:
            next(client.locks())
    assert refusal.value.status == 403
    with Client(service.url, token="abc") as client, pytest.raises(Refused) as refusal:
        client.echo()
    assert refusal.value.status == 401


def test_a_token_is_enough(begin, cloud):
    url = begin(AUTHENTICATION_POLICY="outsourced").url
    with Client(url, token=cloud.token("Carol", sysop=True)) as client:
        assert list(client.locks()) == []


def test_a_token_may_come_from_a_function_which_hears_that_it_was_refused(begin, cloud):
    url = begin(AUTHENTICATION_POLICY="outsourced").url
    good = cloud.token("Carol", sysop=True)
    given = []

    def token(refused):
        given.append(refused)
        return good if refused == "bad" else "bad"

    with Client(url, token=token) as client:
        assert list(client.locks()) == []
    assert given == [None, "bad"]
    with Client(url, token=lambda refused: "bad") as client, pytest.raises(Refused) as refusal:
        list(client.locks())
    assert refusal.value.status == 401


POLICY = {}


LOCK_FILTERS = [
    ({"ids": [2, 3]}, [3, 2]),
    ({"orchestration_job_ids": UUIDS[1:3]}, [2, 1]),
    ({"service_instance_ids": ["Provider3|kelvinInfo|1.0.0"]}, [3]),
    ({"owners": ("Bob",)}, [2]),
    ({"expires_before": END + timedelta(days=2)}, [1]),
    ({"expires_after": END.astimezone(timezone(timedelta(hours=5))) + timedelta(days=2)}, [3]),
    ({"ids": {1, 2}, "owners": (it for it in ["Bob"])}, [2]),
    ({"ids": []}, [3, 2, 1]),
]


def test_locks_are_filtered(service, client):
    entries = [
        lock_entry(
            it, owner=owner, orchestrationJobId=UUIDS[it], expiresAt=f"2099-01-0{it + 1}T00:00:00Z"
        )
        for it, owner in enumerate(["Alice", "Bob", "Carol"], 1)
    ]
    put(service, LOCK, *entries)
    for filters, ids in LOCK_FILTERS:
        assert [lock.id for lock in client.locks(**filters)] == ids, filters
    assert {name for filters, _ in LOCK_FILTERS for name in filters} == arguments(Client.locks)


JOB_FILTERS = [
    ({"ids": UUIDS[1:3]}, [2, 1]),
    ({"statuses": ["done", "ERROR"]}, [3, 2]),
    ({"type": "PUSH"}, [3]),
    ({"requester_systems": ["Requester2"]}, [2]),
    ({"target_systems": ["Target1"]}, [1]),
    ({"service_definitions": ["service3"]}, [3]),
    ({"subscription_ids": [UUIDS[2]]}, [2]),
    ({"subscription_ids": [UUIDS[2]], "statuses": ["PENDING"]}, []),
    ({"since": datetime(2090, 1, 1, tzinfo=UTC)}, []),
    ({"since": datetime(2000, 1, 1, tzinfo=UTC), "type": "PUSH"}, [3]),
]


def test_jobs_are_filtered(service, client):
    for it, status, type in ((1, "PENDING", "PULL"), (2, "DONE", "PULL"), (3, "ERROR", "PUSH")):
        values = {"status": status, "type": type, "subscriptionId": UUIDS[it]}
        values |= {"requesterSystem": f"Requester{it}", "targetSystem": f"Target{it}"}
        put(service, JOB, job_entry(it, serviceDefinition=f"service{it}", **values))
    for filters, ids in JOB_FILTERS:
        assert [job.id for job in client.jobs(**filters)] == [UUIDS[it] for it in ids], filters
    assert {name for filters, _ in JOB_FILTERS for name in filters} == arguments(Client.jobs)


def arguments(method):
    return set(method.__kwdefaults__)


def test_a_job_has_all_that_the_history_tells(service, client):
    lines = [json.dumps(job_entry(1, status="DONE", startedAt=T1, finishedAt=T2, message="Well"))]
    import_jobs(service.store, [it.encode() for it in lines])
    assert list(client.jobs()) == [
        Job(
            id=job_id(1),
            status="DONE",
            type="PULL",
            requester_system="Consumer",
            target_system="Consumer",
            service_definition="kelvinInfo",
            message="Well",
            created_at=datetime(2025, 11, 8, 12, tzinfo=UTC),
            started_at=datetime(2025, 11, 8, 12, 0, 1, tzinfo=UTC),
            finished_at=datetime(2025, 11, 8, 12, 0, 2, tzinfo=UTC),
        )
    ]


T1, T2 = "2025-11-08T12:00:01Z", "2025-11-08T12:00:02Z"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 59, 60, 1000])
def test_all_pages_are_read(start, size):
    service = start(MAX_PAGE_SIZE=size)
    put(service, LOCK, *[lock_entry(it) for it in range(1, 61)])
    with Client(service.url, name="Sysop") as client:
        assert [lock.id for lock in client.locks()] == [*range(60, 0, -1)]


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_returned_once_while_locks_come_and_go(start, seed):
    chance = random.Random(seed)
    service = start(MAX_PAGE_SIZE=16)
    there, fresh = set(range(1000, 1300)), iter(range(2000, 5000))
    put(service, LOCK, *map(lock_entry, there))
    with Client(service.url, name="Sysop") as client:
        found = []
        for lock in client.locks():
            found.append(lock.id)
            if chance.random() < 0.1:
                # Where one has just been, or anywhere.
                at = chance.choice([lock.id, 1000, 1300])
                gone = sorted(there, key=lambda it: abs(it - at))[: chance.randrange(1, 24)]
                there -= set(gone)
                execute(service.store, f"DELETE FROM {LOCK} WHERE id = ?", *[(it,) for it in gone])
                put(
                    service, LOCK, *[lock_entry(next(fresh)) for _ in range(chance.randrange(1, 9))]
                )
    assert len(found) == len(set(found))
    assert there <= set(found)


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_returned_once_while_jobs_come_and_go(start, seed):
    chance = random.Random(seed)
    service = start(MAX_PAGE_SIZE=16)
    there = {chance.randrange(10**9) for _ in range(300)}
    ever = set(there)
    put(service, JOB, *map(job_entry, there))
    with Client(service.url, name="Sysop") as client:
        found = []
        for job in client.jobs():
            found.append(job.id)
            if chance.random() < 0.1:
                read = [it for it in sorted(there) if job_id(it) >= job.id]
                gone = chance.sample(read, min(len(read), chance.randrange(1, 24)))
                there -= set(gone)
                ids = [(job_id(it),) for it in gone] or [(UUIDS[0],)]
                execute(service.store, f"DELETE FROM {JOB} WHERE id = ?", *ids)
                fresh = {chance.randrange(10**9) for _ in range(chance.randrange(1, 9))} - ever
                ever |= fresh
                put(service, JOB, *map(job_entry, fresh))
    assert len(found) == len(set(found))
    assert {job_id(it) for it in there} <= set(found)


def test_very_many_instances_are_removed_though_a_url_has_an_end(client):
    instances = [f"Provider{it}{'x' * 40}|kelvinInfo|1.0.0" for it in range(300)]
    client.create_locks([wanted(it) for it in instances])
    client.remove_locks("Owner", *instances[:-1])
    assert [lock.service_instance_id for lock in client.locks()] == instances[-1:]


@pytest.mark.parametrize(
    "more", ["/", "/serviceorchestration", "/serviceorchestration/orchestration/mgmt/lock"]
)
def test_the_url_may_be_longer_than_need_be(service, more):
    with Client(service.url + more, name="Sysop") as client:
        client.echo()
        client.health()
        assert list(client.locks()) == []


def test_a_unix_socket_is_as_good(start_server, tmp_path):
    service = start_server(UNIX_SOCKET=str(tmp_path / "a socket"))
    assert service.url.startswith("http+unix://")
    with Client(service.url, name="Sysop") as client:
        assert client.create_locks([wanted("A|b|1.0.0")]) == list(client.locks())


def test_threads_share_a_client(service, client):
    def work(number):
        instance = f"Provider{number}|kelvinInfo|1.0.0"
        for _ in range(10):
            (lock,) = client.create_locks([wanted(instance)])
            assert lock.service_instance_id == instance
            assert list(client.locks(ids=[lock.id])) == [lock]
            client.remove_locks("Owner", instance)
        done.append(number)

    done = []
    in_threads(work, range(8))
    assert sorted(done) == [*range(8)]
    assert list(client.locks()) == []


def test_health_tells_of_the_database(start):
    service = start()
    with Client(service.url, name="Sysop", retries=0) as client:
        client.health()
        service.store.database.close()
        service.store.database.check = fail
        with pytest.raises(Unavailable, match="gone") as failure:
            client.health()
    assert failure.value.status == 503
    assert failure.value.retry_after == 1


def fail():
    from orchmgmt.errors import Unavailable

    raise Unavailable("The database is gone")


def test_it_needs_the_standard_library_alone():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import orchmgmt.client\n"
        "print(*{it.partition('.')[0] for it in set(sys.modules) - before})\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert set(loaded.split()) - sys.stdlib_module_names == {"orchmgmt"}


def test_what_is_false_is_a_value_of_an_entry():
    assert to_wire({"temporary": False, "number": 0, "owner": "", "expires_at": None}) == {
        "temporary": False,
        "number": 0,
    }


@pytest.mark.parametrize(
    ("message", "instances"),
    [
        ("Already locked: A|b|1.0.0", ["A|b|1.0.0"]),
        ("Already locked: A|b|1.0.0, C|d|2.0.0", ["A|b|1.0.0", "C|d|2.0.0"]),
        ("Owner is missing", []),
        ("A|b|1.0.0 is Already locked: C|d|2.0.0", []),
    ],
)
def test_a_message_tells_which_instances_are_locked(message, instances):
    assert already_locked(message) == instances


# What is wrong before anything is sent


@pytest.mark.parametrize(
    "ask",
    [
        lambda it: it.locks(owner=["Bob"]),
        lambda it: it.jobs(owners=["Bob"]),
        lambda it: it.locks(owners="Bob"),
        lambda it: it.jobs(statuses="DONE"),
        lambda it: it.locks(["Bob"]),
    ],
)
def test_a_wrong_filter_is_found_at_once(ask):
    with pytest.raises(TypeError):
        ask(Client("http://127.0.0.1:9", name="Sysop"))


def test_a_moment_without_zone_is_found_at_once():
    client = Client("http://127.0.0.1:9", name="Sysop")
    naive = datetime(2099, 1, 1)
    with pytest.raises(ValueError, match="no zone"):
        client.locks(expires_after=naive)
    with pytest.raises(ValueError, match="no zone"):
        client.create_locks([wanted("A|b|1.0.0", expires_at=naive)])


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:8441", "must be http://"),
        ("ftp://127.0.0.1", "must be http://"),
        ("http://", "must be http://"),
        ("http://me:secret@127.0.0.1", "must have no user"),
        ("http://127.0.0.1/?a=b", "must have no user, query"),
        ("http://127.0.0.1:http", "[Pp]ort"),
        ("http://127.0.0.1/a b", "escaped"),
    ],
)
def test_a_wrong_url_is_found_at_once(url, problem):
    with pytest.raises(ValueError, match=problem) as error:
        Client(url, name="Sysop")
    assert "secret" not in str(error.value)


def test_somebody_must_ask():
    with pytest.raises(TypeError, match="say who asks"):
        Client("http://127.0.0.1:9")
    with pytest.raises(TypeError, match="not both"):
        Client("http://127.0.0.1:9", name="Sysop", token="abc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "\u017fharp"},
        {"name": "Sysop\r\nX: y"},
        {"token": "\n"},
        {"name": "Sysop", "timeout": 0},
        {"name": "Sysop", "timeout": float("nan")},
        {"name": "Sysop", "retries": -1},
    ],
)
def test_arguments_are_found_wrong_at_once(wrong):
    with pytest.raises(ValueError, match=r"printable ASCII|must be above 0, and retries 0 or more"):
        Client("http://127.0.0.1:1", **wrong)


def test_files_are_found_wrong_at_once(tmp_path):
    empty = tmp_path / "empty.pem"
    empty.touch()
    for files in (
        {"certificate": str(empty)},
        {"certificate": (str(empty), "no.pem")},
        {"ca": str(empty)},
    ):
        with pytest.raises(ValueError, match=r"empty\.pem"):
            Client("https://127.0.0.1:9", name="Sysop", **files)
        with pytest.raises(ValueError, match="must be https"):
            Client("http://127.0.0.1:9", name="Sysop", **files)


# Against a stand-in


def answer(status, body=b"", **headers):
    """The bytes of an answer; a keyword `retry_after` is the header Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def error(status, message="It is so", **headers):
    return answer(status, {"errorMessage": message, "errorCode": status}, **headers)


EMPTY = answer(200, {"entries": [], "count": 0})
MADE = answer(201, {"entries": [], "count": 0})
DROP = None
SILENCE = "silence"


class Stand:
    """Gives one scripted answer to each request, on a real socket.

    Attributes:
        script: the answers to come: bytes, a list of bytes to hang up after them, `DROP` to hang up
            at once, `SILENCE` to say nothing.
        requests: the number of the connection, the first line, the Authorization and the body.
        ended: how many connections the client has closed.
    """

    def __init__(self, context=None):
        self.script, self.requests, self.ended = deque(), [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.listener.getsockname()[1]}"
        self.context, self.over = context, threading.Event()
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self):
        number = 0
        while True:
            connection, _ = self.listener.accept()
            if self.over.is_set():
                connection.close()
                return
            number += 1
            self.threads.append(threading.Thread(target=self.serve, args=(connection, number)))
            self.threads[-1].start()

    def serve(self, connection, number):
        with connection, contextlib.suppress(OSError):
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while line := stream.readline().decode().strip():
                    headers = {}
                    while header := stream.readline().decode().strip():
                        key, _, value = header.partition(": ")
                        headers[key.lower()] = value
                    body = stream.read(int(headers.get("content-length", 0)))
                    self.requests.append((number, line, headers.get("authorization"), body))
                    now = self.script.popleft()
                    if now is DROP:
                        return
                    if now == SILENCE:
                        self.over.wait(30)
                        return
                    if isinstance(now, list):
                        connection.sendall(now[0])
                        return
                    connection.sendall(now)
                self.ended += 1

    def stop(self):
        self.over.set()
        socket.create_connection(self.listener.getsockname()).close()
        for thread in self.threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def stand():
    stand = Stand()
    yield stand
    stand.stop()


@pytest.fixture
def pauses(monkeypatch):
    """How long the client would have slept."""
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def fault():
    """The name of the first answer: nothing special."""
    return "none"


@pytest.fixture
def asking(stand, pauses, fault):
    timeout = 1 if fault in WAITED_FOR else 30
    with Client(stand.url, name="Sysop", timeout=timeout, retries=2) as client:
        yield client


def query(client):
    assert list(client.locks()) == []


def remove(client):
    client.remove_locks("Owner", "A|b|1.0.0")


def create(client):
    client.create_locks([wanted("A|b|1.0.0")])


FAULTS = {
    "dropped": DROP,
    "silent": SILENCE,
    "500": error(500),
    "502 of a proxy": answer(502),
    "503": error(503),
    "cut off": EMPTY[:-3],
    "cut off by its end": [EMPTY[:-3]],
    "chunks cut off": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"],
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
}
WAITED_FOR = {"silent", "cut off"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", [query, remove])
def test_what_is_safe_is_repeated(stand, asking, pauses, fault, operation):
    stand.script += [FAULTS[fault], EMPTY]
    operation(asking)
    assert len(stand.requests) == 2
    assert stand.requests[0][1:] == stand.requests[1][1:]
    assert len(pauses) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_create_whose_end_nobody_knows_is_not_repeated(stand, asking, pauses, fault):
    stand.script += [FAULTS[fault]]
    with pytest.raises(Unavailable) as failure:
        create(asking)
    assert failure.value.status == (int(fault[:3]) if fault[0] == "5" else None)
    assert failure.value.retry_after is None
    assert len(stand.requests) == 1
    assert pauses == []


@pytest.mark.parametrize("operation", [query, remove, create])
def test_a_503_says_when_to_try_again(stand, asking, pauses, operation):
    stand.script += [error(503, Retry_After=2), error(503, Retry_After=3), MADE]
    operation(asking)
    assert 2 < pauses[0] <= 2.1
    assert 3 < pauses[1] <= 3.2


def test_a_503_may_say_it_as_a_date(stand, asking, pauses):
    moment = datetime.now(UTC) + timedelta(seconds=8)
    stand.script += [
        error(503, Retry_After=moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
        error(503, Retry_After="Sun, 06 Nov 1994 08:49:37 GMT"),
        MADE,
    ]
    create(asking)
    assert 1 < pauses[0] < 9
    assert pauses[1] < 1


def test_a_retry_after_that_says_nothing_is_none(stand, asking):
    stand.script += [error(503, Retry_After="soon")]
    with pytest.raises(Unavailable) as failure:
        create(asking)
    assert failure.value.retry_after is None


@pytest.mark.parametrize("operation", [query, create])
def test_who_is_told_to_wait_long_decides_for_himself(stand, asking, pauses, operation):
    stand.script += [error(503, "Not now", Retry_After=3600)]
    with pytest.raises(Unavailable, match=r"^Not now \(503\)$") as failure:
        operation(asking)
    assert failure.value.retry_after == 3600
    assert pauses == []


def test_tries_have_an_end_and_pauses_grow(stand, asking, pauses):
    stand.script += [DROP, error(500), error(503, "The last", Retry_After=1)]
    with pytest.raises(Unavailable, match="The last") as failure:
        query(asking)
    assert failure.value.retry_after == 1
    assert 0.05 <= pauses[0] <= 0.1 <= pauses[1] <= 0.2
    assert len(stand.requests) == 3


def test_without_retries_nothing_is_repeated(stand, pauses):
    stand.script += [error(503, Retry_After=0)]
    with Client(stand.url, name="Sysop", retries=0) as client, pytest.raises(Unavailable):
        query(client)
    assert pauses == []


@pytest.mark.parametrize("operation", [query, remove, create])
def test_a_connection_that_is_refused_is_tried_again(monkeypatch, operation):
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{port.getsockname()[1]}"
        pauses = []
        monkeypatch.setattr(module.time, "sleep", pauses.append)
        with (
            Client(url, name="Sysop", retries=2) as client,
            pytest.raises(Unavailable, match="no connection") as failure,
        ):
            operation(client)
    assert len(pauses) == 2
    assert failure.value.status is failure.value.retry_after is None


def test_a_connection_is_used_again(stand, asking):
    stand.script += [EMPTY, MADE, answer(200), error(404), answer(200)]
    query(asking)
    create(asking)
    remove(asking)
    with pytest.raises(Refused):
        asking.health()
    asking.echo()
    assert {number for number, *_ in stand.requests} == {1}
    assert [line.split()[0] for _, line, *_ in stand.requests] == [
        "POST",
        "POST",
        "DELETE",
        "GET",
        "GET",
    ]


def test_a_create_does_not_go_into_a_connection_that_is_over(stand, asking, pauses):
    stand.script += [EMPTY, MADE]
    query(asking)
    ((idle,),) = asking._connections._idle.values()
    idle.sock.shutdown(socket.SHUT_WR)  # so that the other side ends it
    while stand.ended < 1:
        threading.Event().wait(0.01)  # not `time.sleep`, whose calls are looked at
    create(asking)
    assert [number for number, *_ in stand.requests] == [1, 2]
    assert pauses == []


def test_an_answer_may_end_its_connection(stand, asking, pauses):
    stand.script += [answer(201, {"entries": [], "count": 0}, Connection="close"), MADE]
    create(asking)
    create(asking)
    assert [number for number, *_ in stand.requests] == [1, 2]
    assert pauses == []


def test_a_closed_client_has_no_connections(stand, asking):
    stand.script += [EMPTY]
    query(asking)
    asking.close()
    asking.close()
    with pytest.raises(ValueError, match="the client is closed"):
        query(asking)


ENTRY = {"id": 7, "serviceInstanceId": "A|b|1.0.0", "owner": "Bob", "temporary": False}
DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        DEEP,
        None,
        [],
        {},
        {"entries": []},
        {"entries": [{}], "count": 1},
        {"entries": [5], "count": 1},
        {"entries": [], "count": float("inf")},
        {"entries": [{**ENTRY, "id": None}], "count": 2},
        {"entries": [{**ENTRY, "expiresAt": "0001-01-01T00:00:00+05:00"}], "count": 1},
    ],
    ids=lambda it: repr(it)[:40],
)
def test_an_answer_of_something_else_is_no_answer(stand, asking, body):
    stand.script += [answer(200, body)]
    with pytest.raises(Refused, match="not answer as an orchestration service does") as refusal:
        query(asking)
    assert refusal.value.status == 200


def test_an_answer_longer_than_any_machine_holds_is_none(stand, asking):
    for length in (10**15, 10**30):
        stand.script += [[b"HTTP/1.1 200 Fine\r\nContent-Length: %d\r\n\r\n{}" % length]] * 3
        with pytest.raises(Unavailable, match="did not answer"):
            query(asking)


def test_the_latest_jobs_end_though_each_page_is_the_same(stand, asking):
    stand.script += [answer(200, {"entries": [job_entry(1)], "count": 1})] * 3
    assert len(list(asking.jobs(since=datetime(1970, 1, 1, tzinfo=UTC)))) == 1


@pytest.mark.parametrize(
    "body", [None, DEEP, [], {"errorMessage": 5}, {"detail": "no"}], ids=lambda it: repr(it)[:20]
)
def test_a_refusal_of_something_else_has_its_reason(stand, asking, body):
    stand.script += [answer(404, body)]
    with pytest.raises(Refused, match=r"^Reason \(404\)$"):
        query(asking)


def test_a_redirection_is_not_followed(stand, asking):
    stand.script += [answer(302, Location="http://127.0.0.1:9/")]
    with pytest.raises(Refused) as refusal:
        create(asking)
    assert refusal.value.status == 302


def test_keys_without_a_value_may_be_left_out(stand, asking):
    job = {key: it for key, it in job_entry(1).items() if it}
    stand.script += [
        answer(200, {"entries": [ENTRY], "count": 1}),
        answer(200, {"entries": [job], "count": 1}),
    ]
    assert list(asking.locks()) == [
        Lock(id=7, service_instance_id="A|b|1.0.0", owner="Bob", expires_at=None)
    ]
    (found,) = asking.jobs()
    assert (found.message, found.subscription_id, found.finished_at) == ("", "", None)


def test_a_request_holds_what_the_contract_names(stand, asking):
    stand.script += [EMPTY, MADE, answer(200)]
    list(asking.locks(owners=["Bob"], expires_before=END))
    lock = Lock(id=5, service_instance_id="A|b|1.0.0", owner="Bob", expires_at=END, temporary=True)
    asking.create_locks([lock])
    asking.remove_locks("A/b", "A|b|1.0.0", "C|d,e")
    (_, asked, identity, sent), (_, _, _, made), (_, removed, _, body) = stand.requests
    management = "/serviceorchestration/orchestration/mgmt"
    assert asked == f"POST {management}/lock/query HTTP/1.1"
    assert identity == OPERATOR
    assert json.loads(sent) == {
        "owners": ["Bob"],
        "expiresBefore": "2099-01-01T00:00:00Z",
        "pagination": {"page": 0, "size": 0, "direction": "DESC", "sortField": "id"},
    }
    assert json.loads(made) == {
        "locks": [
            {
                "serviceInstanceId": "A|b|1.0.0",
                "owner": "Bob",
                "expiresAt": "2099-01-01T00:00:00Z",
            }
        ]
    }
    instances = f"instanceIds={quote('A|b|1.0.0')}&instanceIds={quote('C|d,e')}"
    assert removed == f"DELETE {management}/lock/remove/A%2Fb?{instances} HTTP/1.1"
    assert body == b""


def test_a_path_before_the_services_is_kept(stand):
    stand.script += [EMPTY]
    with Client(f"{stand.url}/cloud/serviceorchestration/", name="Sysop") as client:
        query(client)
    assert stand.requests[0][1].startswith("POST /cloud/serviceorchestration/orchestration/mgmt/")


def test_certificates_prove_both_sides(authority, tmp_path):
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    stand = Stand(context)
    own = authority.operator().save(tmp_path / "carol.pem")
    try:
        stand.script += [EMPTY, EMPTY]
        with Client(stand.url, certificate=own, ca=authority.ca_file) as client:
            query(client)
        with Client(stand.url, certificate=(own, own), ca=authority.ca_file) as client:
            query(client)
        assert [identity for _, _, identity, _ in stand.requests] == [None, None]
        with (
            Client(stand.url, name="Sysop", ca=authority.ca_file, retries=0) as client,
            pytest.raises(Unavailable),
        ):
            query(client)
        with (
            Client(stand.url, certificate=own, retries=0) as client,
            pytest.raises(Unavailable, match="certificate verify failed"),
        ):
            query(client)
    finally:
        stand.stop()
    assert len(stand.requests) == 2


def test_a_service_that_went_away_and_came_back_is_found(monkeypatch, tmp_path):
    database = f"sqlite:///{tmp_path}/orchmgmt.db"
    with contextlib.ExitStack() as running:
        first = running.enter_context(contextlib.ExitStack())
        service = first.enter_context(served(DATABASE_URL=database))
        client = running.enter_context(Client(service.url, name="Sysop"))
        create(client)
        first.close()
        port = int(service.url.rpartition(":")[2])
        monkeypatch.setattr(
            module.time,
            "sleep",
            lambda _: running.enter_context(served(DATABASE_URL=database, PORT=port)),
        )
        client.create_locks([wanted("C|d|1.0.0")])
        assert [lock.id for lock in client.locks()] == [2, 1]
