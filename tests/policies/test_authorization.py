"""The policy `authorization`: ConsumerAuthorization says who may manage."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from certificates import CLOUD, Authority
from standin import AUTHORIZATION, NAME, NONSENSE, PASSWORD, Cloud
from support import MANAGEMENT, Answer, Service, lock, until

from orchmgmt.app import create_app
from orchmgmt.policies import AuthenticationPolicy, Evidence, OwnIdentity, Requester, declared
from orchmgmt.settings import AUTHENTICATION_POLICIES, Part, SettingError, Settings

pytestmark = pytest.mark.sqlite

DOWN = "The authorization system does not answer; try again later"
FORBIDDEN = "Requester has no management permission"
LOCKS = "serviceOrchestrationLockManagement"
HISTORY = "serviceOrchestrationHistoryManagement"

POLICY = {"MANAGEMENT_POLICY": "authorization", "DATABASE_URL": "sqlite:///:memory:"}

Start = Callable[..., Service]


def ask(service: Service, operation: str, name: str = "Alice") -> Answer:
    identity = {"Authorization": f"Bearer SYSTEM//{name}"}
    if operation == "remove":
        path = f"{MANAGEMENT}/lock/remove/A?instanceIds=A%7Cb%7C1.0.0"
        return service.send("DELETE", path, headers=identity)
    body = {"locks": [lock("A|b|1.0.0")]} if operation == "create" else {}
    path = "/history/query" if operation == "history" else f"/lock/{operation}"
    return service.post(path, body, **identity)


@pytest.mark.parametrize(
    ("operation", "target", "scope"),
    [
        ("create", LOCKS, "create"),
        ("query", LOCKS, "query"),
        ("remove", LOCKS, "remove"),
        ("history", HISTORY, "query"),
    ],
)
def test_each_operation_is_asked_about_by_itself(
    begin: Start, cloud: Cloud, operation: str, target: str, scope: str
) -> None:
    service = begin()
    answer = ask(service, operation)
    assert (answer.status, answer.error) == (403, FORBIDDEN)
    assert cloud.questions == [
        {
            "provider": NAME,
            "consumer": "Alice",
            "cloud": "LOCAL",
            "targetType": "SERVICE_DEF",
            "target": target,
            "scope": scope,
        }
    ]
    assert cloud.requests == [("POST", f"{AUTHORIZATION}/verify", f"Bearer SYSTEM//{NAME}")]
    cloud.allowed.add(("Alice", target, scope))
    allowed = [
        it for it in ("create", "query", "history", "remove") if ask(service, it).status < 400
    ]
    assert allowed == [operation]


def test_a_refused_request_changes_nothing(begin: Start) -> None:
    service = begin()
    assert service.create(lock("A|b|1.0.0")).status == 201
    assert ask(service, "remove").status == 403
    assert service.locks().json["count"] == 1


def test_operators_and_the_whitelist_are_not_asked_about(begin: Start, cloud: Cloud) -> None:
    service = begin(MANAGEMENT_WHITELIST="plant-manager")
    cloud.stop()
    assert ask(service, "query", "Sysop").status == 200
    assert ask(service, "query", "PlantManager").status == 200
    assert cloud.requests == []
    assert ask(service, "query").error == DOWN


def test_the_echo_and_health_need_no_permission(begin: Start, cloud: Cloud) -> None:
    service = begin()
    identity = {"Authorization": "Bearer SYSTEM//Alice"}
    assert service.send("GET", "/serviceorchestration/monitor/echo", headers=identity).status == 200
    assert service.send("GET", "/health", headers={}).status == 200
    assert cloud.requests == []


def test_identity_comes_first_and_the_payload_last(begin: Start, cloud: Cloud) -> None:
    service = begin()
    assert service.send("POST", f"{MANAGEMENT}/lock/query", b"[", {}).status == 401
    assert cloud.requests == []
    identity = {"Authorization": "Bearer SYSTEM//Alice", "Content-Type": "application/json"}
    assert service.send("POST", f"{MANAGEMENT}/lock/query", b"[", identity).status == 403
    cloud.allowed.add(("Alice", LOCKS, "query"))
    assert service.send("POST", f"{MANAGEMENT}/lock/query", b"[", identity).status == 400


def test_an_answer_is_not_remembered(begin: Start, cloud: Cloud) -> None:
    service = begin()
    cloud.allowed.add(("Alice", LOCKS, "query"))
    assert ask(service, "query").status == 200
    cloud.allowed.clear()
    assert ask(service, "query").status == 403


@pytest.mark.parametrize(
    "nonsense",
    [it for it in NONSENSE if it[1] != b"true"]
    + [
        (200, b'"true"'),
        (200, b"1"),
        (200, b"null"),
        (200, b"True"),
        (200, b"true true"),
        (200, b'{"allowed": true}'),
        (201, b"true"),
        (302, b"true"),
        (500, b"true"),
    ],
    ids=str,
)
def test_nonsense_lets_nobody_in(
    shared: tuple[Service, Cloud], nonsense: tuple[int, bytes]
) -> None:
    service, cloud = shared
    cloud.answer = lambda path: nonsense
    answer = ask(service, "query")
    assert (answer.status, answer.error) == (503, DOWN)
    assert answer.headers["Retry-After"]


def test_an_authorization_system_that_is_slow_lets_nobody_in(begin: Start, cloud: Cloud) -> None:
    service = begin(READ_TIMEOUT_SECONDS=0.2)
    cloud.allowed.add(("Alice", LOCKS, "query"))
    cloud.open.clear()
    assert ask(service, "query").error == DOWN
    cloud.open.set()
    until(lambda: ask(service, "query").status == 200)


def test_clients_that_wait_for_it_do_not_stop_the_others(start_server: Start, cloud: Cloud) -> None:
    service = start_server(**POLICY, **cloud.settings, READ_TIMEOUT_SECONDS=60, THREADS=1)
    cloud.open.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, service, "query") for _ in range(8)]
        cloud.wait_for(held=8)
        assert service.send("GET", "/health").status == 200
        assert ask(service, "query", "Sysop").status == 200
        assert not any(answer.done() for answer in waiting)
        cloud.open.set()
        assert {answer.result().status for answer in waiting} == {403}


def test_under_outsourced_both_are_asked_under_one_login(begin: Start, cloud: Cloud) -> None:
    service = begin(AUTHENTICATION_POLICY="outsourced")
    headers = {"Authorization": f"Bearer IDENTITY-TOKEN//{cloud.token('Alice')}"}
    cloud.allowed.add(("Alice", LOCKS, "query"))
    for _ in range(3):
        assert service.post("/lock/query", {}, **headers).status == 200
    assert cloud.count("login") == 1
    cloud.end_own_session()
    assert service.post("/lock/query", {}, **headers).status == 200
    assert cloud.count("login") == 2


def test_under_certificate_its_own_certificate_is_the_identity(
    start: Start, authority: Authority, tmp_path: Any
) -> None:
    context = authority.server_context()
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = 2  # ssl.CERT_REQUIRED
    cloud = Cloud(context)
    cloud.answer = lambda path: (200, b"true")
    settings = {
        "AUTHENTICATION_POLICY": "certificate",
        "MANAGEMENT_POLICY": "authorization",
        "CLOUD": CLOUD,
        "AUTHORIZATION_URL": cloud.url,
        "CA_FILE": authority.ca_file,
        "CERTIFICATE_FILE": authority.system("own").save(tmp_path / "own.pem"),
    }
    try:
        headers = {"X-Client-Certificate": authority.system().escaped}
        assert start(**settings).post("/lock/query", {}, **headers).status == 200
        assert cloud.requests == [("POST", "/verify", None)]
    finally:
        cloud.stop()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "the policy `authorization` needs ORCHMGMT_AUTHORIZATION_URL"),
        ({"AUTHORIZATION_URL": "host"}, "ORCHMGMT_AUTHORIZATION_URL must be http:// or https://"),
        (
            {"AUTHENTICATION_POLICY": "outsourced", "SYSTEM_PASSWORD": PASSWORD},
            "the policy `outsourced` needs ORCHMGMT_IDENTITY_URL",
        ),
    ],
)
def test_a_setting_that_is_missing_or_wrong_stops_the_start(
    settings: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        create_app({"MANAGEMENT_POLICY": "authorization", **settings})


class Mine(AuthenticationPolicy):
    """A policy that somebody adds."""

    def __init__(self, settings: Settings) -> None:
        pass

    def identify(self, evidence: Evidence) -> Requester:
        return Requester("Alice", operator=False)


class MineToo(Mine):
    """One that also says how this system proves who it is."""

    @classmethod
    def own_identity(cls, settings: Settings) -> OwnIdentity:
        return OwnIdentity("Own", "Mine own")


def test_a_policy_says_itself_who_this_system_is(
    begin: Start, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(policy: type[Mine]) -> Service:
        monkeypatch.setattr(declared, "Mine", policy, raising=False)
        monkeypatch.setitem(AUTHENTICATION_POLICIES, "declared", Part("policies.declared:Mine"))
        return begin(SYSTEM_NAME=policy.__name__)

    cloud.answer = lambda path: (200, b"true")
    with pytest.raises(SettingError, match="`declared` does not say how this system proves"):
        start(Mine)
    assert ask(start(MineToo), "query").status == 200
    assert cloud.requests == [("POST", f"{AUTHORIZATION}/verify", "Mine own")]


def test_the_stand_in_refuses_a_question_that_is_not_its_askers(begin: Start, cloud: Cloud) -> None:
    service = begin(SYSTEM_NAME="SomebodyElse")
    assert ask(service, "query").error == DOWN
    assert json.dumps(cloud.questions) == "[]"
