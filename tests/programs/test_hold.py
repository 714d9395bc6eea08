"""Holding locks from a program: against the service, and a stand-in for Java."""

import json
import signal
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import until

from orchmgmt.client import AlreadyLocked, Client, Lock, LockLost, Refused, Unavailable, holding
from orchmgmt.testing import Service

BOILER, TANK = "Boiler|heat|1.0.0", "Tank|level|1.0.0"
ME = "BoilerControl"

POLICY = {}

pytestmark = pytest.mark.sqlite


@pytest.fixture
def service():
    with Service() as service:
        yield service


@pytest.fixture
def client(service):
    with Client(service.url, name="Sysop") as client:
        yield client


@pytest.fixture
def pauses(monkeypatch):
    """How long the holder has slept between two requests for locks."""
    pauses, sleep = [], holding.time.sleep

    def recorded(seconds):
        pauses.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(holding.time, "sleep", recorded)
    return pauses


def operations(service):
    return [it.operation for it in service.requests]


def renewals(service):
    return [it.status for it in service.requests if it.operation == "lock.renew"]


def test_locks_are_held_while_the_block_runs(service, client):
    with client.hold(BOILER, "tank|level|1", owner="boiler-control") as held:
        assert held.locks == service.locks()
        assert [(it.service_instance_id, it.owner) for it in held.locks] == [
            (BOILER, ME),
            (TANK, ME),
        ]
        assert held.fence == held.locks[1].id == 2
        held.check()
        assert not held.lost.is_set()
    assert service.locks() == []
    assert operations(service) == ["lock.create", "lock.remove"]
    with pytest.raises(LockLost, match="the block has ended"):
        held.check()
    assert not held.lost.is_set()


def test_they_are_given_back_when_the_block_fails(service, client):
    with pytest.raises(ZeroDivisionError), client.hold(BOILER, owner=ME):
        raise ZeroDivisionError
    assert service.locks() == []


def test_they_are_renewed_for_as_long_as_the_block_runs(service, client):
    with client.hold(BOILER, owner=ME, lease=1) as held:
        (first,) = held.locks
        until(lambda: held.locks[0].expires_at > first.expires_at + timedelta(seconds=2))
        held.check()
        assert held.locks == service.locks()
        assert held.fence == first.id
    assert set(renewals(service)) == {200}


def test_the_clock_of_the_requester_does_not_matter(service, client):
    service.clock.advance(3600)
    with client.hold(BOILER, owner=ME, lease=1) as held:
        until(lambda: len(renewals(service)) > 3)
        held.check()
    wanted = [it.json["locks"][0] for it in service.requests if it.json]
    assert {it["expiresIn"] for it in wanted} == {1}
    assert not any("expiresAt" in it for it in wanted)


def test_nobody_waits_who_does_not_want_to(service, client, pauses):
    service.add_lock(TANK, owner="Rival")
    with pytest.raises(AlreadyLocked) as refusal, client.hold(BOILER, TANK, owner=ME, wait=0):
        pytest.fail("it is locked")
    assert refusal.value.service_instance_ids == [TANK]
    assert [it.owner for it in service.locks()] == ["Rival"]
    assert operations(service) == ["lock.create"]
    assert pauses == []


def test_the_wait_may_be_over(service, client, pauses):
    service.add_lock(BOILER, owner="Rival")
    with pytest.raises(AlreadyLocked), client.hold(BOILER, owner=ME, wait=1.5):
        pytest.fail("it is locked")
    assert operations(service).count("lock.create") == len(pauses) + 1 > 1
    assert min(pauses) >= 0.5
    assert sum(pauses) <= 1.5


def test_who_waits_asks_at_the_latest_when_the_lease_of_the_holder_ends(
    service, client, pauses, monkeypatch
):
    monkeypatch.setattr(holding.random, "uniform", lambda *_: 1000)
    service.add_lock(BOILER, owner="Rival", expires_in=3)
    with client.hold(BOILER, owner=ME, wait=None) as held:
        assert [it.id for it in service.locks()] == [held.fence] == [2]
    assert pauses
    assert all(0.5 <= it <= 3 for it in pauses)


def test_who_waits_asks_with_jitter_and_never_more_than_twice_a_second(service, client, pauses):
    service.add_lock(BOILER, owner="Rival")
    threading.Timer(4, service.store.locks.remove, ("Rival", [BOILER])).start()
    with client.hold(BOILER, owner=ME, wait=30):
        pass
    asked = operations(service).count("lock.create")
    assert len(set(pauses)) == asked - 1 > 1
    assert all(0.5 <= it <= 2 for it in pauses)


def test_who_may_not_query_waits_too(service, client, monkeypatch):
    service.faults.always(status=403, operation="lock.query")
    service.add_lock(BOILER, owner="Rival", expires_in=1)
    with client.hold(BOILER, owner=ME, wait=30):
        assert [it.owner for it in service.locks()] == [ME]
    assert "lock.query" in operations(service)


@pytest.mark.parametrize("drop", ["before", "middle", "after"])
def test_a_create_whose_answer_is_lost_is_repeated_and_not_doubled(service, client, drop):
    service.faults.next(drop=drop, operation="lock.create", times=2)
    with client.hold(BOILER, TANK, owner=ME) as held:
        assert service.locks() == held.locks
        assert held.fence == 2
    assert service.locks() == []
    service.faults.assert_all_used()


def test_locks_of_a_try_long_ago_are_renewed_before_they_count(service, client, monkeypatch):
    """The first try makes the locks, and its answer is lost; the second tells when they end."""

    def slowly(seconds):
        moved.append(seconds)
        service.clock.advance(40)

    moved = []
    service.clock.freeze()
    service.clock.set("2030-01-01T00:00:00Z")
    service.faults.next(drop="after", operation="lock.create")
    with monkeypatch.context() as patched:
        patched.setattr(holding.time, "sleep", slowly)
        with client.hold(BOILER, owner=ME, lease=60) as held:
            (lock,) = held.locks
            assert lock.expires_at == service.clock.after(60)
            assert [lock] == service.locks()
    assert len(moved) == 1


def test_a_service_that_is_away_at_first_is_waited_for(service, client, monkeypatch):
    service.down()
    monkeypatch.setattr(holding.time, "sleep", lambda _: service.up())
    with client.hold(BOILER, owner=ME):
        assert len(service.locks()) == 1


def test_a_service_that_stays_away_is_told_of(service, client, pauses):
    service.down()
    with pytest.raises(Unavailable, match="refused"), client.hold(BOILER, owner=ME):
        pytest.fail("it is not there")
    assert len(pauses) == client.retries


def test_lost_answers_to_renewals_do_not_matter(service, client):
    with client.hold(BOILER, owner=ME, lease=3) as held:
        service.faults.next(drop="after", operation="lock.renew", times=2)
        service.faults.next(drop="before", operation="lock.renew")
        service.faults.next(status=503, operation="lock.renew")
        until(lambda: 200 in renewals(service))
        held.check()
    service.faults.assert_all_used()


def test_a_lease_that_ends_within_the_block_is_noticed(service, client):
    told = []
    with client.hold(BOILER, owner=ME, lease=3, on_lost=lambda: told.append(1)) as held:
        service.clock.advance(10)
        assert held.lost.wait(30)
        with pytest.raises(LockLost, match=f"refuses to renew .*Not locked by {ME}: Boiler"):
            held.check()
    until(lambda: told)
    with pytest.raises(LockLost, match="refuses"):
        held.check()
    assert told == [1]
    assert renewals(service) == [400]


@pytest.mark.parametrize("owner", ["Rival", ME])
def test_the_end_of_the_block_frees_nobody_elses_lock(service, client, owner):
    with client.hold(BOILER, owner=ME, lease=60):
        service.clock.advance(100)
        later = service.add_lock(BOILER, owner=owner)
    assert operations(service) == ["lock.create", "lock.remove"]
    assert service.locks() == [later]


def test_without_the_service_the_lock_is_lost_when_its_lease_has_passed(service, client):
    lost = threading.Event()
    with client.hold(BOILER, owner=ME, lease=1, on_lost=lost.set) as held:
        service.down()
        assert lost.wait(30)
        with pytest.raises(LockLost, match="could not be renewed within 1 s: no connection"):
            held.check()
        service.up()


def test_if_the_service_is_away_at_the_end_the_lock_ends_by_itself(service, client):
    with client.hold(BOILER, owner=ME, lease=1):
        service.down()
    service.up()
    until(lambda: service.locks() == [])
    assert "lock.remove" not in operations(service)


def test_a_frozen_service_does_not_freeze_the_judgement(serve):
    process = serve("--database-url", "sqlite:///frozen.db")
    with Client(process.url, name="Sysop") as client:
        told = threading.Event()
        with client.hold(BOILER, owner=ME, lease=2, on_lost=told.set) as held:
            process.process.send_signal(signal.SIGSTOP)
            try:
                assert held.lost.wait(30)
                assert told.wait(30)
                with pytest.raises(LockLost, match="could not be renewed within 2 s"):
                    held.check()
            finally:
                process.process.send_signal(signal.SIGCONT)
        assert list(client.locks()) == []


def test_a_pause_of_the_process_is_noticed_by_the_first_check(service, client, monkeypatch):
    present = holding.present
    with client.hold(BOILER, owner=ME, lease=60) as held:
        held.check()
        monkeypatch.setattr(holding, "present", lambda: present() + 60)
        with pytest.raises(LockLost, match="could not be renewed within 60 s"):
            held.check()
        assert held.lost.is_set()


def test_an_answer_that_comes_after_the_lease_does_not_bring_it_back(service, client, monkeypatch):
    """Here the process stands still while its renewal is under way, which is granted."""
    present, ahead = holding.present, [0]
    monkeypatch.setattr(holding, "present", lambda: present() + ahead[0])
    renew = Client.renew_locks

    def late(*arguments, **options):
        found = renew(*arguments, **options)
        ahead[0] = 60
        return found

    monkeypatch.setattr(Client, "renew_locks", late)
    with client.hold(BOILER, owner=ME, lease=3) as held:
        assert held.lost.wait(30)
        assert renewals(service) == [200]


def test_a_token_that_cannot_be_had_is_asked_for_again(begin, cloud):
    def token(refused):
        asked.append(refused)
        if len(asked) == 2:
            raise RuntimeError("no token now")
        return good

    asked, good = [], cloud.token("Carol", sysop=True)
    url = begin(AUTHENTICATION_POLICY="outsourced", DATABASE_URL="sqlite:///:memory:").url
    with Client(url, token=token) as client, client.hold(BOILER, owner=ME, lease=1) as held:
        (first,) = held.locks
        until(lambda: held.locks[0].expires_at > first.expires_at)
        held.check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease": 0},
        {"lease": 1.5},
        {"lease": True},
        {"wait": -1},
        {"wait": float("nan")},
    ],
)
def test_arguments_are_found_wrong_at_once(client, wrong):
    with pytest.raises(ValueError, match="must be"):
        client.hold(BOILER, owner=ME, **wrong)
    with pytest.raises(ValueError, match="name the service instances"):
        client.hold(owner=ME)


def test_what_is_refused_is_said_at_once(service, client):
    for wrong in ({"owner": "b@b"}, {"owner": ME, "lease": 10**9}):
        with pytest.raises(Refused), client.hold(BOILER, wait=None, **wrong):
            pytest.fail("it is refused")
    assert operations(service) == ["lock.create"] * 2


# The operations themselves


def wanted(instance, **values):
    return Lock(service_instance_id=instance, owner=ME, **{"expires_at": None, **values})


def test_locks_are_renewed_with_their_ids_or_without(service, client):
    service.clock.freeze()
    service.clock.set("2030-01-01T00:00:00Z")
    locks = client.create_locks([wanted(BOILER), wanted(TANK)], expires_in=60)
    assert {it.expires_at for it in locks} == {service.clock.after(60)}
    end = datetime(2099, 1, 1, tzinfo=UTC)
    (later,) = client.renew_locks([wanted(TANK, expires_at=end)])
    assert (later.id, later.expires_at) == (locks[1].id, end)
    assert client.renew_locks(locks, expires_in=90) == service.locks()
    assert {it.expires_at for it in service.locks()} == {service.clock.after(90)}
    with pytest.raises(Refused, match=f"Not locked by {ME}: Tank"):
        client.renew_locks([wanted(BOILER), wanted(TANK, id=17)], expires_in=10)
    assert {it.expires_at for it in service.locks()} == {service.clock.after(90)}


def test_a_create_with_a_key_is_repeated_and_done_once(service, client):
    service.faults.next(drop="after", operation="lock.create")
    (lock,) = client.create_locks([wanted(BOILER)], expires_in=60, key="one-of-mine")
    assert service.locks() == [lock]
    assert [it.status for it in service.requests] == [None, 201]
    service.faults.next(drop="after", operation="lock.create")
    with pytest.raises(Unavailable):
        client.create_locks([wanted(TANK)], expires_in=60)


def test_a_remove_by_ids_leaves_later_locks(service, client):
    first = client.create_locks([wanted(f"P{it}|s|1.0.0") for it in range(300)], expires_in=60)
    instances = [it.service_instance_id for it in first]
    client.remove_locks(ME, *instances, ids=[])
    assert len(service.locks()) == 300
    client.remove_locks(ME, *instances, ids=[it.id for it in first[1:]])
    assert service.locks() == [first[0]]
    client.remove_locks(ME, *instances, ids=[first[0].id + 1000])
    assert service.locks() == [first[0]]


# The Java implementation, which knows none of it


class Java(BaseHTTPRequestHandler):
    """Answers as Java does; its clock is an hour ahead."""

    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp=None):
        return format_datetime(now_there(), usegmt=True)

    def log_message(self, *_):
        pass

    def answer(self, status, body=b""):
        self.server.seen.append((self.command, self.path.rpartition("/")[2], status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message):
        self.answer(status, json.dumps({"errorMessage": message}).encode())

    def do_GET(self):
        self.answer(200, b"Got it!")

    def do_POST(self):
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/create"):
            self.refuse(404, "Not Found")
        elif "expiresAt" not in payload["locks"][0]:
            self.refuse(400, "Expiration time is missing")
        else:
            (asked,) = payload["locks"]
            self.server.made.append(asked)
            entry = {**asked, "id": 7, "temporary": False}
            self.answer(201, json.dumps({"entries": [entry], "count": 1}).encode())

    def do_DELETE(self):
        self.answer(200)


def now_there():
    return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def java():
    with ThreadingHTTPServer(("127.0.0.1", 0), Java) as server:
        server.seen, server.made = [], []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}", name="Sysop") as client:
            server.client = client
            yield server
        server.shutdown()
        thread.join()


def end_there(java):
    return datetime.fromisoformat(java.made[-1]["expiresAt"].replace("Z", "+00:00"))


def test_at_java_the_end_is_reckoned_by_its_clock(java):
    before = now_there()
    with java.client.hold(BOILER, owner=ME, lease=600):
        assert before + timedelta(seconds=600) <= end_there(java)
        assert end_there(java) <= now_there() + timedelta(seconds=603)
    assert [it[1][:6] for it in java.seen] == ["create", "echo", "create", ME[:6]]
    (lock,) = java.client.create_locks([wanted(BOILER)], expires_in=60)
    assert lock.expires_at == end_there(java)


def test_at_java_locks_are_held_for_one_lease(java):
    with java.client.hold(BOILER, owner=ME, lease=1) as held:
        until(lambda: ("POST", "renew", 404) in java.seen)
        with suppress(LockLost):
            held.check()
        assert held.lost.wait(30)
        with pytest.raises(LockLost, match=r"within 1 s: the service cannot renew, .*Java"):
            held.check()
    # It would remove whatever this owner has on the instance by now.
    assert not any(it[0] == "DELETE" for it in java.seen)
