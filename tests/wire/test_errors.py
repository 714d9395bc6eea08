"""Every refusal is an ErrorResponse, whoever refuses."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from support import MANAGEMENT, OPERATOR, Process, Service, lock
from wire import raw

pytestmark = pytest.mark.sqlite

QUERY = f"{MANAGEMENT}/lock/query"
ECHO = "/serviceorchestration/monitor/echo"
METHODS = {
    f"{MANAGEMENT}/lock/create": "POST",
    f"{MANAGEMENT}/lock/query": "POST",
    f"{MANAGEMENT}/lock/remove": "DELETE",
    f"{MANAGEMENT}/lock/remove/Owner": "DELETE",
    f"{MANAGEMENT}/history/query": "POST",
    ECHO: "GET",
    "/health": "GET",
}


def test_an_error_response_is_as_documented(service: Service) -> None:
    answer = service.create({**lock("A|b|1"), "owner": ""})
    assert answer.json == {
        "errorMessage": "Owner is missing",
        "errorCode": 400,
        "exceptionType": "INVALID_PARAMETER",
        "origin": "POST /serviceorchestration/orchestration/mgmt/lock/create",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/serviceorchestration",
        MANAGEMENT,
        f"{MANAGEMENT}/",
        f"{MANAGEMENT}/lock",
        f"{MANAGEMENT}/lock/",
        f"{MANAGEMENT}/lock/query/",
        f"{MANAGEMENT}/lock/query//",
        f"{MANAGEMENT}//lock/query",
        f"{MANAGEMENT}/lock/Query",
        f"{MANAGEMENT}/lock/../lock/query",
        f"{MANAGEMENT}/lock/query;a=1",
        f"{MANAGEMENT}/lock/remove/a/b",
        f"{MANAGEMENT}/lock/remove/a%2Fb",
        f"{MANAGEMENT}/history/create",
        f"{ECHO}/",
        "/health/",
        "/%FF",
        "/%C3%A9",
        "/%00",
        "/%",
        "/%zz",
        "/<script>",
        "/static/app.py",
        "/../../etc/passwd",
        "/" + "a" * 5000,
        "/" + "a/" * 2500,
        MANAGEMENT + "/lock/" + "%FF" * 1700,
        "/nope?instanceIds=a&b=%FF",
    ],
    ids=lambda path: path[-30:],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_not_found(service: Service, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": OPERATOR, "Content-Type": "application/json"}):
        answer = service.send(method, path, b"[", headers)
        assert (answer.status, answer.error) == (404, "There is no such path")


@pytest.mark.parametrize("path", METHODS)
def test_a_wrong_method_is_refused_and_the_right_one_named(service: Service, path: str) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "LOCK", "X"} - {METHODS[path]}:
        answer = service.send(method, path)
        assert answer.status == 405
        assert METHODS[path] in answer.headers["Allow"].split(", ")
        assert method not in answer.headers["Allow"].split(", ")
        assert answer.error


@pytest.mark.parametrize(
    ("path", "status"),
    [(path, 200 if method == "GET" else 405) for path, method in METHODS.items()]
    + [("/nope", 404)],
)
def test_head_is_answered_without_a_body(service: Service, path: str, status: int) -> None:
    answer = service.send("HEAD", path)
    assert (answer.status, answer.body) == (status, b"")
    assert (status == 405) == ("Allow" in answer.headers)


def test_head_of_an_unidentified_system_has_no_body_either(service: Service) -> None:
    answer = service.send("HEAD", ECHO, headers={})
    assert (answer.status, answer.body) == (401, b"")


@pytest.mark.parametrize("query", ["?", "?a=b", "?path=/other?x", "?%FF", "?a=%00&&;=?"])
def test_the_origin_has_no_query_string(service: Service, query: str) -> None:
    answer = service.send("POST", QUERY + query, b"[", {})
    assert answer.error
    assert answer.json["origin"] == f"POST {QUERY}"


def test_the_origin_is_the_path_as_requested(service: Service) -> None:
    path = f"{MANAGEMENT}/lock/remove/a%C3%A9%20%2e+b"
    answer = service.send("DELETE", path + "?instanceIds=A%7Cb%7C1")
    assert answer.status == 400
    assert answer.error
    assert answer.json["origin"] == f"DELETE {path}"


def test_a_full_url_may_be_requested(server: Process) -> None:
    answer = raw(
        server, f"GET {server.url}{QUERY}?a=1 HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.status == 405
    assert answer.json["origin"] == f"GET {QUERY}"


@pytest.mark.parametrize("host", ["<a b>", "a_b", "é", "[::1", "a:b:c", "", "../x"])
def test_a_strange_host_does_not_matter(server: Process, host: str) -> None:
    head = f"Host: {host}\r\nConnection: close\r\n\r\n".encode()
    assert raw(server, b"GET /health HTTP/1.1\r\n" + head).status == 200
    assert raw(server, b"GET /nope HTTP/1.1\r\n" + head).error == "There is no such path"


def test_a_host_that_no_dns_can_hold_is_refused(server: Process) -> None:
    answer = raw(server, b"GET /health HTTP/1.1\r\nHost: %s\r\n\r\n" % (b"a" * 5000))
    assert answer.status == 400
    assert answer.error


POST = f"POST {QUERY} HTTP/1.1\r\nAuthorization: {OPERATOR}\r\n".encode()
CHUNKED = POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

BROKEN = {
    "no request": (b"\x00\x01\x02\r\n\r\n", 400),
    "one word": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "method in lower case": (b"get /health HTTP/1.1\r\n\r\n", 400),
    "method of no token": (b"G@T /health HTTP/1.1\r\n\r\n", 400),
    "two blanks": (b"GET  /health HTTP/1.1\r\n\r\n", 400),
    "blank in the path": (b"GET /hea lth HTTP/1.1\r\n\r\n", 400),
    "no version": (b"GET /health HTTP/x\r\n\r\n", 400),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 400),
    "open IPv6 address": (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
    "open IPv6 address and path": (b"GET http://[::1/health HTTP/1.1\r\n\r\n", 400),
    "header without a colon": (POST + b"Accept\r\n\r\n", 400),
    "blank before the colon": (POST + b"Accept : a\r\n\r\n", 400),
    "header without a name": (POST + b": a\r\n\r\n", 400),
    "bare line end": (POST + b"Accept: a\nb: c\r\n\r\n", 400),
    "NUL in a header": (POST + b"Accept: a\x00\r\n\r\n", 400),
    "continued first header": (b"GET /health HTTP/1.1\r\n Accept: a\r\n\r\n", 400),
    "length of no number": (POST + b"Content-Length: ten\r\n\r\n", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "signed length": (POST + b"Content-Length: +1\r\n\r\n1", 400),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", 400),
    "length of 5,000 digits": (POST + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000), 400),
    "unknown transfer coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "chunk without a size": (CHUNKED + b"{}\r\n0\r\n\r\n", 400),
    "chunk of a negative size": (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", 400),
    "chunk longer than its size": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n", 400),
    "bad chunk extension": (CHUNKED + b"2;\x00\r\n{}\r\n0\r\n\r\n", 400),
    "long header": (POST + b"Accept: %s\r\n\r\n" % (b"a" * 300_000), 431),
    "many headers": (POST + b"Accept: a\r\n" * 30_000 + b"\r\n", 431),
}


@pytest.mark.parametrize(("request_", "status"), BROKEN.values(), ids=BROKEN)
def test_a_broken_http_request_is_refused(server: Process, request_: bytes, status: int) -> None:
    answer = raw(server, request_)
    assert answer.status == status
    assert answer.error
    assert server.send("GET", "/health").status == 200


def test_a_request_line_of_300000_bytes_is_refused(server: Process) -> None:
    answer = raw(server, b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n\r\n")
    assert answer.status == 431
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json["exceptionType"] == "INVALID_PARAMETER"
    assert answer.json["origin"].startswith("GET /aaaa")


def test_a_refusal_in_pieces_knows_its_origin(server: Process) -> None:
    answer = raw(server, b"\r\n\r\n" + POST + b"Accept\r\n\r\n")
    answer.origin = f"POST {QUERY}"
    assert answer.error == "Bad Request: Invalid header"


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("method", "path", "part", "operation"),
    [
        ("POST", "/lock/create", "database", "write"),
        ("POST", "/lock/query", "lock_table", "find"),
        ("DELETE", "/lock/remove/Owner?instanceIds=A%7Cb%7C1", "lock_table", "remove"),
        ("POST", "/history/query", "job_table", "find"),
    ],
)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError, MemoryError])
def test_a_crash_is_logged_and_tells_the_client_nothing(
    service: Service,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    part: str,
    operation: str,
    kind: type[Exception],
) -> None:
    def crash(*args: Any, **more: Any) -> None:
        raise kind("SELECT secret FROM orchestration_lock")

    monkeypatch.setattr(getattr(service.store, part), operation, crash)
    body = b'{"locks": [%s]}' % (
        b'{"serviceInstanceId": "A|b|1", "owner": "A", "expiresAt": "2099-01-01T00:00:00Z"}'
    )
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    with caplog.at_level(logging.ERROR, logger="orchmgmt"):
        answer = service.send(method, MANAGEMENT + path, body, headers)
    assert answer.status == 500
    assert answer.error == "An unexpected error happened; the server's log has the details"
    for leaked in (b"SELECT", b"secret", b"Traceback", b"test_errors", kind.__name__.encode()):
        assert leaked not in answer.body
    (record,) = [record for record in caplog.records if record.name == "orchmgmt"]
    assert record.exc_info
    assert "secret" in str(record.exc_info[1])
    assert service.send("GET", "/health").status == 200


@pytest.mark.postgresql
def test_a_crash_leaves_the_service_as_it_was(
    start_server: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_server(THREADS=1)
    with monkeypatch.context() as patch:
        patch.setattr(service.store.lock_table, "find", lambda *args: 1 / 0)
        for _ in range(3):
            assert service.locks().status == 500
    assert service.locks().json == {"entries": [], "count": 0}
