"""Pages of other origins: what they may ask and read with CORS_ORIGINS, and that it is off."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from support import MANAGEMENT, OPERATOR, Answer, Client, Service, lock

TOOLS = "https://tools.example:8080"
LOCAL = "http://[::1]:3000"
QUERY = f"{MANAGEMENT}/lock/query"
ALLOWED = "Access-Control-Allow-Origin"

pytestmark = pytest.mark.sqlite


@pytest.fixture
def start(shared_start: Callable[..., Service]) -> Callable[..., Service]:
    return shared_start


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    return start(CORS_ORIGINS=f"{TOOLS},{LOCAL}", OPENAPI=True, UI=True, METRICS=True)


def asked(service: Client, origin: str, path: str = QUERY, method: str = "POST") -> Answer:
    """What a browser asks before it sends the request of a page of this origin."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return service.send("OPTIONS", path, headers=headers)


@pytest.mark.parametrize("origin", [TOOLS, LOCAL, "HTTPS://Tools.example:8080"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/lock/create"),
        ("POST", "/lock/query"),
        ("DELETE", "/lock/remove/Owner"),
        ("POST", "/history/query"),
    ],
)
def test_a_page_of_a_named_origin_may_ask(
    service: Service, origin: str, method: str, path: str
) -> None:
    answer = asked(service, origin, MANAGEMENT + path, method)
    assert answer.status == 200
    assert answer.headers[ALLOWED] == origin
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in answer.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert service.locks().status == 200


def test_a_question_before_a_request_is_no_operation(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "orchmgmt.audit"):
        asked(service, TOOLS, f"{MANAGEMENT}/lock/create")
    assert caplog.records == []
    text = service.send("GET", "/metrics").body.decode()
    assert 'operation="preflight",status="200"' in text
    assert 'operation="lock.create"' not in text


@pytest.mark.parametrize(
    "origin",
    [
        "https://tools.example",
        "http://tools.example:8080",
        "https://tools.example:80801",
        "https://toolsxexample:8080",
        "https://tools.example:8080.attacker.example",
        "https://attacker.example",
        "null",
    ],
)
def test_a_page_of_another_origin_reads_nothing(service: Service, origin: str) -> None:
    assert ALLOWED not in asked(service, origin).headers
    answer = service.send("POST", QUERY, headers={"Origin": origin, "Authorization": OPERATOR})
    assert answer.status == 200
    assert ALLOWED not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", QUERY, {"Authorization": OPERATOR}, 200),
        ("POST", QUERY, {}, 401),
        ("POST", QUERY, {"Authorization": "Bearer SYSTEM//Alice"}, 403),
        ("POST", f"{MANAGEMENT}/lock/create", {"Authorization": OPERATOR}, 400),
        ("GET", QUERY, {"Authorization": OPERATOR}, 405),
        ("GET", "/nowhere", {}, 404),
        ("GET", "/health", {}, 200),
        ("GET", "/openapi.json", {}, 200),
    ],
)
def test_errors_can_be_read_too(
    service: Service, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = service.send(method, path, headers={**headers, "Origin": TOOLS})
    assert answer.status == status
    assert answer.headers[ALLOWED] == TOOLS
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    assert ALLOWED not in service.send(method, path, headers=headers).headers


def test_with_an_asterisk_any_page_may(start: Callable[..., Service]) -> None:
    service = start(CORS_ORIGINS="*")
    for origin in (TOOLS, "https://attacker.example"):
        assert asked(service, origin).headers[ALLOWED] == "*"
        answer = service.send("POST", QUERY, headers={"Origin": origin})
        assert (answer.status, answer.headers[ALLOWED]) == (401, "*")


def test_it_is_off_by_default(start: Callable[..., Service]) -> None:
    service = start()
    answer = asked(service, TOOLS)
    assert (answer.status, answer.error) == (
        405,
        "The method is not allowed for the requested URL.",
    )
    assert not [it for it in answer.headers if it.lower().startswith("access-control")]
    answer = service.send("POST", QUERY, headers={"Authorization": OPERATOR, "Origin": TOOLS})
    assert not [it for it in answer.headers if it.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "origin",
    [
        "tools.example",
        "https://tools.example/",
        "https://tools.example:443",
        "http://tools.example:80",
        "https://*.example",
        "https://user@tools.example",
        "null",
    ],
)
def test_what_is_no_origin_stops_the_start(run: Callable[..., Any], origin: str) -> None:
    ended = run("serve", "--port", "0", env={"ORCHMGMT_CORS_ORIGINS": f"{TOOLS},{origin}"})
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"Error: ORCHMGMT_CORS_ORIGINS: {origin!r} is not an origin: give")


def test_without_the_extra_the_start_ends_with_one_clear_line(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "flask_cors.py").write_text("raise ImportError('no such module')")
    ended = run("serve", "--cors-origins", "*", env={"PYTHONPATH": str(tmp_path)})
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: ORCHMGMT_CORS_ORIGINS needs no such module: ")
    assert line.endswith("pip install 'orchmgmt[cors]'")


@pytest.mark.parametrize(
    ("origins", "policy", "word"),
    [("*", "declared", "warn"), (TOOLS, "declared", "ok"), ("*", "outsourced", "ok")],
)
def test_a_check_warns_where_any_page_could_be_an_operator(
    run: Callable[..., Any], origins: str, policy: str, word: str
) -> None:
    ended = run("check", "--cors-origins", origins, "--authentication-policy", policy)
    (line,) = (it for it in ended.stdout.splitlines() if it.split()[1] == "settings:")
    assert line.split()[0] == word
    if word == "warn":
        assert "ORCHMGMT_CORS_ORIGINS is * under the policy `declared`: any page" in line


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    """The origin of a page that is not the service's."""
    (tmp_path / "index.html").write_text("<!doctype html><title>Tools</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


FETCH = """
const [url, method, body, done] = arguments;
const headers = {Authorization: "Bearer SYSTEM//Sysop", "Content-Type": "application/json"};
fetch(url, {method, headers, body}).then(
  async (answer) => done([answer.status, await answer.text()]),
  () => done(["unreadable", ""]),
);
"""


def test_a_page_of_another_origin_in_a_browser(start: Callable[..., Service], other: str) -> None:
    let_in, closed = start(CORS_ORIGINS=other), start()
    browser = Browser()
    try:
        browser.driver.get(other)

        def fetch(service: Service, method: str, path: str, body: str | None = None) -> list[Any]:
            url = service.url + MANAGEMENT + path
            found: list[Any] = browser.driver.execute_async_script(FETCH, url, method, body)
            return found

        held = '{"locks": [{"serviceInstanceId": "A|b|1", "owner": "Owner", %s}]}'
        held %= '"expiresAt": "2099-01-01T00:00:00Z"'
        assert fetch(let_in, "POST", "/lock/create", held)[0] == 201
        status, text = fetch(let_in, "POST", "/lock/create", held)
        assert (status, "Already locked: A|b|1.0.0" in text) == (400, True)
        assert '"count":1' in fetch(let_in, "POST", "/lock/query", "{}")[1]
        assert fetch(let_in, "DELETE", "/lock/remove/Owner?instanceIds=A%7Cb%7C1") == [200, ""]
        assert let_in.locks().json["count"] == 0
        closed.create(lock("A|b|1"))
        for method, path in (("POST", "/lock/query"), ("DELETE", "/lock/remove/Owner")):
            assert fetch(closed, method, path, None) == ["unreadable", ""]
        assert closed.locks().json["count"] == 1
    finally:
        browser.close()
