"""`orchmgmt.testing`: who asks, under each policy, and the stand-ins of those who know."""

import json
import subprocess
import sys
import threading
from contextlib import closing, suppress
from http.client import HTTPException
from urllib.parse import urlsplit

import pytest
from support import MANAGEMENT, Client

from orchmgmt.client import Refused
from orchmgmt.settings import SettingError
from orchmgmt.testing import Service
from orchmgmt.testing.control import Control

pytestmark = pytest.mark.sqlite

QUERY = f"{MANAGEMENT}/lock/query"


@pytest.fixture(scope="module")
def outsourced():
    with Service(authentication_policy="outsourced", management_policy="authorization") as service:
        yield service


@pytest.fixture
def service(outsourced):
    outsourced.reset()
    return outsourced


def asks(service, headers):
    """The status of a query, and who sent it."""
    request = service.app.test_client().post(QUERY, headers=headers, data=b"{}")
    return request.status_code, service.requests[-1].requester


def call(url, method, payload=None, headers=None):
    body = None if payload is None else json.dumps(payload).encode()
    return Client(url).send(method, urlsplit(url).path, body, headers or {})


def bearing(token):
    return {"Authorization": f"Bearer IDENTITY-TOKEN//{token}", "Content-Type": "application/json"}


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"authentication_policy": "outsourced"},
        {"authentication_policy": "certificate", "cloud": "test.company"},
    ],
    ids=["declared", "outsourced", "certificate"],
)
def test_headers_of_any_system_under_every_policy(policy):
    with Service(**policy) as service:
        assert asks(service, service.headers_of("RoomClimate")) == (403, "RoomClimate")
        assert asks(service, service.headers_of("Sysop", operator=True)) == (200, "Sysop")
        assert asks(service, service.headers) == (200, "Sysop")
        if policy:
            headers = service.headers_of("RoomClimate", operator=True)
            assert asks(service, headers) == (200, "RoomClimate")
        else:
            with pytest.raises(ValueError, match="Sysop is the operator and nobody else"):
                service.headers_of("RoomClimate", operator=True)


def test_a_token_that_has_ended_or_been_revoked_is_refused_at_once(service):
    for end in (service.identity.expire, service.identity.revoke):
        token = service.identity.token("Alice", operator=True)
        assert asks(service, bearing(token)) == (200, "Alice")
        end(token)
        assert asks(service, bearing(token)) == (401, "")
    with pytest.raises(ValueError, match="no such token"):
        service.identity.revoke("none")


def test_a_system_has_one_token(service):
    first, second = (service.identity.token("Alice", operator=True) for _ in range(2))
    assert [asks(service, bearing(it))[0] for it in (first, second)] == [401, 200]


def test_only_what_is_granted_is_allowed(service):
    alice = service.headers_of("Alice")
    assert asks(service, alice)[0] == 403
    service.authorization.grant("Alice", "remove")
    assert asks(service, alice)[0] == 403
    service.authorization.grant("Alice", "query")
    assert asks(service, alice)[0] == 200
    service.authorization.revoke("Alice", "query")
    assert asks(service, alice)[0] == 403
    with pytest.raises(ValueError, match="has not been granted"):
        service.authorization.revoke("Alice", "query")
    with pytest.raises(ValueError, match=r"Unknown scope: qery \(did you mean"):
        service.authorization.grant("Alice", "qery")


def test_operations_that_the_service_has_can_be_granted(service):
    with pytest.raises(ValueError, match=r"Unknown scope: record \(known: create, query, renew"):
        service.authorization.grant("Alice", "record")
    with Service(management_policy="authorization", recorder=True) as recorder:
        recorder.authorization.grant("Alice", "record")


@pytest.mark.parametrize("system", ["identity", "authorization"])
def test_a_stand_in_can_be_down(service, system):
    alice, stand_in = service.headers_of("Alice"), getattr(service, system)
    stand_in.down()
    assert asks(service, alice)[0] == 503
    stand_in.up()
    assert asks(service, alice)[0] == 403
    for wrong in (-1, "1", True, float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            stand_in.slow(wrong)


@pytest.mark.parametrize(
    ("system", "policy"),
    [
        ("identity", {"authentication_policy": "outsourced"}),
        ("authorization", {"management_policy": "authorization"}),
    ],
)
def test_a_stand_in_can_be_slow(system, policy):
    with Service(**policy, read_timeout_seconds=0.05, connect_timeout_seconds=0.05) as service:
        getattr(service, system).slow(60)
        assert asks(service, service.headers_of("Alice"))[0] == 503


def test_a_reset_makes_the_stand_ins_as_new(service):
    token = service.identity.token("Bob", operator=True)
    service.authorization.grant("Alice", "query")
    with service.client() as client:
        assert list(client.locks()) == []
        service.identity.down()
        service.authorization.slow(60)
        service.reset()
        assert list(client.locks()) == []  # it gets a new token by itself
    assert asks(service, bearing(token))[0] == 401
    assert asks(service, service.headers_of("Alice"))[0] == 403


def test_a_service_ends_while_another_system_is_slow():
    service = Service(authentication_policy="outsourced", read_timeout_seconds=300).start()
    alice = service.headers_of("Alice")
    service.identity.slow(600)

    def ask():
        with suppress(OSError, HTTPException):  # the service may be gone before it has answered
            call(service.url + QUERY, "POST", {}, alice)

    asking = threading.Thread(target=ask)
    asking.start()
    service.requests.wait_for(count=1, timeout=60)
    service.stop()
    asking.join()
    assert service.requests[-1].answered_at


def test_what_the_stand_ins_answer(service):
    """As docs/testing.md and the contract show it."""
    identity, authorization = service.identity.url, service.authorization.url
    password = service.identity.password

    def log_in(name, password):
        credentials = {"systemName": name, "credentials": {"password": password}}
        return call(f"{identity}/login", "POST", credentials)

    def verify(token, asker):
        return call(f"{identity}/verify/{token}", "GET", headers=bearing(asker))

    answer = log_in("alice", password)
    assert answer.status == 200
    assert answer.json["expirationTime"].endswith("000Z")
    assert log_in("alice", "wrong").json["errorMessage"] == "Invalid name and/or credentials"
    statuses = [log_in(*it).status for it in (("alice", "x"), ("alice", "x" * 64), ("", "x"))]
    assert statuses == [401, 400, 400]
    own = log_in("alice", password).json["token"]
    bob = service.identity.token("Bob")
    found = verify(bob, own)
    assert found.status == 200
    assert {**found.json, "loginTime": 0, "expirationTime": 0} == {
        "verified": True,
        "systemName": "Bob",
        "sysop": False,
        "loginTime": 0,
        "expirationTime": 0,
    }
    assert len(found.json["expirationTime"]) == len("2026-11-21T19:42:42Z")
    service.identity.expire(bob)
    assert verify(bob, own).json["verified"] is True
    unknown = verify("none", own)
    assert (unknown.status, unknown.json) == (200, {"verified": False})
    assert verify(own, bob).status == 401

    question = {
        "provider": "Alice",
        "consumer": "Bob",
        "cloud": "LOCAL",
        "targetType": "SERVICE_DEF",
        "target": "serviceOrchestrationLockManagement",
        "scope": "query",
    }

    def allowed(**changes):
        answer = call(f"{authorization}/verify", "POST", question | changes, bearing(own))
        return answer.status, answer.json

    assert allowed() == (200, False)
    service.authorization.grant("Bob", "query")
    assert allowed() == (200, True)
    assert allowed(provider="Carol")[0] == 403
    assert allowed(scope=5)[0] == 400
    assert call(f"{authorization}/verify", "POST", question, bearing("none")).status == 401


def test_the_stand_ins_are_controlled_over_http(service):
    with closing(Control(service)) as control:

        def do(path, **payload):
            answer = call(f"{control.url}/test/{path}", "POST", payload)
            return answer.status, answer.json

        token = do("identity/token", name="Alice", operator=True)[1]["token"]
        assert asks(service, bearing(token)) == (200, "Alice")
        assert do("identity/expire", token=token) == (200, {})
        assert asks(service, bearing(token))[0] == 401
        assert do("identity/revoke", token=token) == (200, {})
        assert do("identity/revoke", token=token)[0] == 400
        token = do("identity/token", name="Alice")[1]["token"]
        assert do("authorization/grant", name="Alice", scope="query") == (200, {})
        assert asks(service, bearing(token))[0] == 200
        assert do("authorization/revoke", name="Alice", scope="query") == (200, {})
        assert asks(service, bearing(token))[0] == 403
        for system in ("identity", "authorization"):
            assert do(f"{system}/down") == (200, {})
            assert asks(service, bearing(token))[0] == 503
            assert do(f"{system}/up") == (200, {})
            assert asks(service, bearing(token))[0] == 403
            assert do(f"{system}/slow", seconds=0.001) == (200, {})
            assert do(f"{system}/slow", seconds=-1)[0] == 400
        assert do("identity/token")[1]["error"] == "name is missing"
        assert do("identity/token", nam="A")[0] == 400
        assert do("identity/token", name=5)[0] == 400
        assert do("authorization/grant", name="Alice", scope=["query"])[0] == 400


def test_without_a_stand_in_the_message_says_which_settings_start_one():
    with Service() as service, closing(Control(service)) as control:
        for system, setting in (("identity", "identity_url"), ("authorization", "_policy")):
            with pytest.raises(SettingError, match=setting):
                getattr(service, system)
            answer = call(f"{control.url}/test/{system}/down", "POST", {})
            assert answer.status == 400
            assert setting in answer.json["error"]


def test_an_identity_service_of_ones_own_is_asked(service):
    settings = {"identity_url": service.identity.url, "system_password": service.identity.password}
    with Service(authentication_policy="outsourced", **settings) as other:
        assert asks(other, service.headers_of("Alice", operator=True)) == (200, "Alice")
        with pytest.raises(SettingError, match="no system's headers under"):
            other.headers_of("Alice")
        with pytest.raises(SettingError, match=r"no operator's client.*: give a token$"):
            other.client()
        with pytest.raises(Refused), other.client(token="none", retries=0) as client:
            list(client.locks())


def test_what_nobody_asked_for_is_not_imported():
    program = """
import json, sys
from orchmgmt.testing import Service
with Service() as service:
    service.headers, service.headers_of("Alice")
new = ("orchmgmt.testing.tls", "orchmgmt.testing.cloud", "orchmgmt.testing.certificates")
print(json.dumps([it for it in (*new, "trustme", "cryptography") if it in sys.modules]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(ended.stdout) == []
