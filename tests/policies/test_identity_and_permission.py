"""Who is asking, and who may."""

import json
from collections.abc import Callable

import pytest
from support import MANAGEMENT, OPERATOR, Answer, Client, Process, Service, lock
from wire import raw

pytestmark = pytest.mark.sqlite

ECHO = "/serviceorchestration/monitor/echo"
NO_HEADER = "No authorization header has been provided"
INVALID = "Invalid authorization header"
FORBIDDEN = "Requester has no management permission"
JSON = {"Content-Type": "application/json"}


# Every management operation, each with a payload that is wrong.
OPERATIONS = [
    ("POST", "/lock/create", b"["),
    ("POST", "/lock/query", b"["),
    ("DELETE", "/lock/remove/9", None),
    ("DELETE", "/lock/remove", None),
    ("POST", "/history/query", b"["),
]
every_operation = pytest.mark.parametrize(
    ("method", "path", "body"),
    [(method, MANAGEMENT + path, body) for method, path, body in OPERATIONS],
    ids=[f"{method}{path}" for method, path, _ in OPERATIONS],
)


@pytest.fixture
def start(shared_start: Callable[..., Service]) -> Callable[..., Service]:
    return shared_start


def echo(service: Client, authorization: str | None) -> Answer:
    return service.send(
        "GET", ECHO, headers={} if authorization is None else {"Authorization": authorization}
    )


@every_operation
def test_identity_comes_before_permission_and_permission_before_the_payload(
    service: Service, method: str, path: str, body: bytes | None
) -> None:
    def ask(**headers: str) -> Answer:
        return service.send(method, path, body, {**JSON, **headers})

    for headers, status, message in [
        ({}, 401, NO_HEADER),
        ({"Authorization": " "}, 401, NO_HEADER),
        ({"Authorization": "Sysop"}, 401, INVALID),
        ({"Authorization": "Bearer SYSTEM//Consumer"}, 403, FORBIDDEN),
        ({"Authorization": "Bearer SYSTEM//Consumer", "Content-Type": "text/x"}, 403, FORBIDDEN),
    ]:
        answer = ask(**headers)
        assert (answer.status, answer.error) == (status, message), headers
    answer = ask(Authorization=OPERATOR)
    assert answer.status == 400
    assert answer.error


@pytest.mark.postgresql
@every_operation
def test_nobody_else_changes_or_sees_anything(
    service: Service, method: str, path: str, body: bytes | None
) -> None:
    service.create(lock("A|b|1", "Owner"))
    path = path.replace("/9", "/Owner?instanceIds=A%7Cb%7C1")
    body = body and json.dumps({"locks": [lock("C|d|1")]}).encode()
    for headers in (JSON, {**JSON, "Authorization": "Bearer SYSTEM//Owner"}):
        answer = service.send(method, path, body, headers)
        assert answer.error in (NO_HEADER, FORBIDDEN)
    assert service.locks().json["count"] == 1


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer SYSTEM//Consumer",
        "Bearer SYSTEM//consumer",
        "Bearer SYSTEM//temperature-consumer_",
        "Bearer SYSTEM//a b",
        "  Bearer SYSTEM//Consumer  ",
        "Bearer SYSTEM//" + "a" * 63,
        OPERATOR,
    ],
)
def test_a_declared_name_identifies_any_system(server: Process, authorization: str) -> None:
    answer = echo(server, authorization)
    assert (answer.status, answer.body) == (200, b"Got it!")
    assert answer.headers["Content-Type"] == "text/plain"


@pytest.mark.parametrize("authorization", [None, "", " ", "\t \t"])
def test_a_missing_header_is_named(server: Process, authorization: str | None) -> None:
    answer = echo(server, authorization)
    assert (answer.status, answer.error) == (401, NO_HEADER)


@pytest.mark.parametrize(
    "authorization",
    [
        "Sysop",
        "SYSTEM//Sysop",
        "Bearer",
        "Bearer Sysop",
        "Bearer SYSTEM",
        "Bearer SYSTEM/Sysop",
        "Bearer SYSTEM//",
        "Bearer SYSTEM// \t",
        "Bearer //Sysop",
        "Bearer  SYSTEM//Sysop",
        "Bearer\tSYSTEM//Sysop",
        "BearerSYSTEM//Sysop",
        "bearer SYSTEM//Sysop",
        "BEARER SYSTEM//Sysop",
        "Bearer: SYSTEM//Sysop",
        "Basic SYSTEM//Sysop",
        "Bearer system//Sysop",
        "Bearer System//Sysop",
        "Bearer SYSTEM //Sysop",
        "Bearer SYSTEM// Sysop",
        "Bearer SYSTEM//\tSysop",
        "Bearer SYSTEM///Sysop",
        "Bearer SYSTEM//Sysop//Sysop",
        "Bearer SYSTEM//Sysop/",
        "Bearer SYSTEM//Sysop, Bearer SYSTEM//Sysop",
        "Bearer SYSTEM//Sysop,",
        "Bearer SYSTEM//9ysop",
        "Bearer SYSTEM//_sysop",
        "Bearer SYSTEM//" + "a" * 64,
        "Bearer IDENTITY-TOKEN//Sysop",
        "Bearer IDENTITY-TOKEN//0b5e4f5a-7f5c-4b4d-9a9e-3a7f2d6c8e10",
        "Bearer AUTHENTICATOR-KEY//Sysop",
    ],
)
def test_any_other_header_is_invalid(server: Process, authorization: str) -> None:
    answer = echo(server, authorization)
    assert (answer.status, answer.error) == (401, INVALID)


@pytest.mark.parametrize("name", ["ſysop", "Sysoр", "Sÿsop", "Ｓysop", "Sysop\u200b", "ß", "名"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_name_beyond_ascii_is_invalid(server: Process, name: str, encoding: str) -> None:
    header = b"Authorization: Bearer SYSTEM//" + name.encode(encoding, "replace")
    answer = raw(
        server, b"GET %s HTTP/1.1\r\nConnection: close\r\n%s\r\n\r\n" % (ECHO.encode(), header)
    )
    assert answer.status == 401
    assert answer.error == INVALID


@pytest.mark.parametrize("second", [OPERATOR, "Bearer SYSTEM//Consumer", "Basic x"])
def test_two_headers_are_invalid(server: Process, second: str) -> None:
    lines = [
        f"POST {MANAGEMENT}/lock/query HTTP/1.1",
        f"Authorization: {OPERATOR}",
        f"Authorization: {second}",
        "Connection: close",
    ]
    answer = raw(server, "\r\n".join([*lines, "", ""]).encode())
    assert (answer.status, answer.error) == (401, INVALID)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("Sysop", 200),
        ("sysop", 200),
        ("sysop_", 200),
        ("SYSOP", 403),
        ("sys-op", 403),
        ("Sysop2", 403),
        ("Consumer", 403),
    ],
)
def test_only_the_operator_may_manage(service: Service, name: str, status: int) -> None:
    headers = {"Authorization": f"Bearer SYSTEM//{name}"}
    for path in ("/lock/query", "/history/query"):
        answer = service.send("POST", MANAGEMENT + path, headers=headers)
        assert answer.status == status
        assert status == 200 or answer.error == FORBIDDEN


def test_in_simple_mode_the_name_must_be_exact(serve: Callable[..., Process]) -> None:
    service = serve("--normalization-mode", "simple")
    assert echo(service, "Bearer SYSTEM//Sysop ").status == 200  # HTTP's own white space
    for name in ("sysop", "Sys-op", "a b", " Sysop"):
        answer = echo(service, f"Bearer SYSTEM//{name}")
        assert (answer.status, answer.error) == (401, INVALID)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("TemperatureManager", 200),
        ("temperature-manager", 200),
        ("Second", 200),
        ("Sysop", 200),
        ("TEMPERATURE_MANAGER", 403),
        ("Third", 403),
        ("TemperatureManager,Second", 401),
    ],
)
def test_the_whitelist_lets_its_systems_in(
    start: Callable[..., Service], name: str, status: int
) -> None:
    service = start(
        MANAGEMENT_POLICY="whitelist", MANAGEMENT_WHITELIST=" temperature-manager , Second"
    )
    headers = {"Authorization": f"Bearer SYSTEM//{name}"}
    answers = [
        service.send("POST", f"{MANAGEMENT}/lock/query", headers=headers),
        service.send("POST", f"{MANAGEMENT}/history/query", headers=headers),
        service.send("DELETE", f"{MANAGEMENT}/lock/remove/A?instanceIds=A%7Cb%7C1", None, headers),
    ]
    for answer in answers:
        assert answer.status == status
        assert status == 200 or answer.error in (FORBIDDEN, INVALID)


def test_an_empty_whitelist_leaves_the_operator(start: Callable[..., Service]) -> None:
    service = start(MANAGEMENT_POLICY="whitelist")
    assert service.locks().status == 200
    assert service.post("/lock/query", Authorization="Bearer SYSTEM//Other").error == FORBIDDEN


def test_the_whitelist_without_its_policy_lets_nobody_in(start: Callable[..., Service]) -> None:
    service = start(MANAGEMENT_WHITELIST="Other")
    assert service.post("/lock/query", Authorization="Bearer SYSTEM//Other").error == FORBIDDEN


def test_health_needs_no_identity(service: Service) -> None:
    answer = service.send("GET", "/health", headers={})
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert answer.headers["Content-Type"] == "application/json"
