"""The policy `outsourced`: the identity service says who a token is."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from standin import IDENTITY, NONSENSE, PASSWORD, Cloud
from support import MANAGEMENT, Answer, Process, Service, lock, until
from wire import raw

from orchmgmt.databases.queries import Page
from orchmgmt.policies import outsourced
from orchmgmt.settings import ASKING_AT_ONCE, SettingError, Settings

pytestmark = pytest.mark.sqlite

ECHO = "/serviceorchestration/monitor/echo"
INVALID = "Invalid authorization header"
NO_HEADER = "No authorization header has been provided"
DOWN = "The identity service does not answer; try again later"
UNKNOWN = "00000000-0000-4000-8000-000000000000"

POLICY = {"AUTHENTICATION_POLICY": "outsourced", "DATABASE_URL": "sqlite:///:memory:"}

Start = Callable[..., Service]


def ask(service: Service, token: str, path: str = ECHO) -> Answer:
    headers = {"Authorization": f"Bearer IDENTITY-TOKEN//{token}"}
    return service.send("GET" if path == ECHO else "POST", path, headers=headers)


def query(service: Service, token: str) -> Answer:
    return ask(service, token, f"{MANAGEMENT}/lock/query")


def test_a_verified_token_names_its_system_and_sysop_makes_the_operator(
    begin: Start, cloud: Cloud
) -> None:
    service = begin(MANAGEMENT_POLICY="whitelist", MANAGEMENT_WHITELIST="Alice")
    operator = cloud.token("Carol", sysop=True)
    assert query(service, operator).status == 200
    assert query(service, cloud.token("Alice")).status == 200
    assert ask(service, cloud.token("Bob")).body == b"Got it!"
    assert query(service, cloud.token("Bob")).status == 403
    # The name Sysop means nothing here.
    assert query(service, cloud.token("Sysop")).status == 403
    assert cloud.requests[0] == ("POST", f"{IDENTITY}/login", None)
    assert cloud.requests[1][:2] == ("GET", f"{IDENTITY}/verify/{operator}")


def test_an_unknown_or_ended_token_is_invalid(begin: Start, cloud: Cloud) -> None:
    service = begin()
    for token in (UNKNOWN, cloud.token("Alice", seconds=-1)):
        answer = ask(service, token)
        assert (answer.status, answer.error) == (401, INVALID)


@pytest.mark.parametrize(
    "token",
    [
        "",
        " ",
        ".",
        "..",
        "...",
        "../login",
        "..%2Flogin",
        "%2e%2e",
        "a/b",
        "/a",
        "a//b",
        "a\\..\\b",
        "a?b",
        "a#b",
        "a;b",
        "a b",
        "a%20b",
        "a%0d%0ab",
        "a,b",
        "a@b",
        "a:b",
        "é",
        "a" * 1001,
        "a" * 10_000,
    ],
)
def test_a_token_that_could_reach_another_path_is_refused_without_asking(
    shared: tuple[Service, Cloud], token: str
) -> None:
    service, cloud = shared
    answer = ask(service, token)
    assert (answer.status, answer.error) == (401, INVALID)
    assert cloud.requests == []


@pytest.mark.parametrize("token", ["a..b", ".a", "~", "-", "_", "a" * 1000, "...a..."])
def test_any_other_token_is_asked_about_under_its_own_path(
    begin: Start, cloud: Cloud, token: str
) -> None:
    assert ask(begin(), token).error == INVALID
    assert cloud.paths() == [f"{IDENTITY}/login", f"{IDENTITY}/verify/{token}"]


@pytest.mark.parametrize(
    "header",
    [
        "bearer IDENTITY-TOKEN//{}",
        "BEARER IDENTITY-TOKEN//{}",
        "Bearer identity-token//{}",
        "Bearer  IDENTITY-TOKEN//{}",
        "Bearer\tIDENTITY-TOKEN//{}",
        "BearerIDENTITY-TOKEN//{}",
        "Bearer IDENTITY-TOKEN //{}",
        "Bearer IDENTITY-TOKEN/{}",
        "Bearer IDENTITY-TOKEN///{}",
        "Bearer IDENTITY-TOKEN:{}",
        "Bearer SYSTEM//{}",
        "Bearer SYSTEM//Sysop",
        "Bearer AUTHENTICATOR-KEY//{}",
        "Bearer {}",
        "IDENTITY-TOKEN//{}",
        "Basic IDENTITY-TOKEN//{}",
        "Bearer IDENTITY-TOKEN//{} x",
        "Bearer IDENTITY-TOKEN//{}, Bearer IDENTITY-TOKEN//{}",
    ],
)
def test_any_other_header_is_invalid_even_with_a_valid_token(
    shared: tuple[Service, Cloud], header: str
) -> None:
    service, cloud = shared
    token = cloud.token("Alice", sysop=True)
    answer = service.send("GET", ECHO, headers={"Authorization": header.replace("{}", token)})
    assert (answer.status, answer.error) == (401, INVALID)
    assert cloud.requests == []


def test_a_missing_header_and_two_headers_are_refused(start_server: Start, cloud: Cloud) -> None:
    service = start_server(**POLICY, **cloud.settings)
    assert service.send("GET", ECHO, headers={}).error == NO_HEADER
    header = f"Authorization: Bearer IDENTITY-TOKEN//{cloud.token('Alice')}\r\n"
    answer = raw(service, f"GET {ECHO} HTTP/1.1\r\n{header}{header}\r\n".encode())
    assert (answer.status, answer.error) == (401, INVALID)
    assert cloud.requests == []


@pytest.mark.parametrize("name", ["ſysop", "Ａlice", "Alice|x", "9lice", "", "a" * 64])
def test_a_verified_name_that_is_none_lets_nobody_in(begin: Start, cloud: Cloud, name: str) -> None:
    answer = ask(begin(), cloud.token(name, sysop=True))
    assert (answer.status, answer.error) == (503, DOWN)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=[f"{a}-{b[:40]!r}" for a, b in NONSENSE])
def test_an_identity_service_that_answers_nonsense_lets_nobody_in(
    shared: tuple[Service, Cloud], nonsense: tuple[int, bytes]
) -> None:
    service, cloud = shared
    cloud.answer = lambda path: nonsense if "verify" in path else None
    answer = ask(service, cloud.token("Alice"))
    assert (answer.status, answer.error) == (503, DOWN)
    assert answer.headers["Retry-After"]
    assert "elsewhere" not in str(cloud.paths())


@pytest.mark.parametrize(
    "nonsense",
    [
        (200, b"{}"),
        (200, b"[]"),
        (200, b'"token"'),
        (200, b'{"token": 5, "expirationTime": "2099-01-01T00:00:00Z"}'),
        (200, b'{"token": "a\\r\\nX: y", "expirationTime": "2099-01-01T00:00:00Z"}'),
        (200, b'{"token": "\\u00e9", "expirationTime": "2099-01-01T00:00:00Z"}'),
        (200, b'{"token": "a", "expirationTime": "never"}'),
        (200, b'{"token": "a", "expirationTime": null}'),
        (401, b"{}"),
        (500, b"{}"),
        (307, b"{}"),
    ],
)
def test_a_login_that_fails_lets_nobody_in_and_is_tried_again(
    begin: Start, cloud: Cloud, nonsense: tuple[int, bytes]
) -> None:
    cloud.answer = lambda path: nonsense if "login" in path else None
    service = begin()
    token = cloud.token("Alice")
    answer = ask(service, token)
    assert (answer.status, answer.error) == (503, DOWN)
    assert cloud.count("verify") == 0
    cloud.answer = lambda path: None
    assert ask(service, token).status == 200


def test_an_identity_service_that_is_down_lets_nobody_in(begin: Start, cloud: Cloud) -> None:
    service = begin()
    token = cloud.token("Alice", sysop=True)
    assert query(service, token).status == 200
    cloud.stop()
    answer = query(service, cloud.token("Alice", sysop=True))
    assert (answer.status, answer.error) == (503, DOWN)
    # Who is remembered is still let in, and health needs nobody.
    assert query(service, token).status == 200
    assert service.send("GET", "/health").status == 200


def test_an_answer_that_does_not_come_in_time_lets_nobody_in(begin: Start, cloud: Cloud) -> None:
    service = begin(READ_TIMEOUT_SECONDS=0.2)
    cloud.open.clear()
    answer = ask(service, cloud.token("Alice"))
    assert (answer.status, answer.error) == (503, DOWN)
    cloud.open.set()
    until(lambda: ask(service, cloud.token("Alice")).status == 200)


def test_an_answer_that_comes_in_drops_does_not_hold_a_request_for_ever(start: Start) -> None:
    """Each byte comes in time, and all of them together would not."""
    dropped = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            with contextlib.suppress(OSError):
                while not dropped.wait(0.05):
                    connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        service = start(
            AUTHENTICATION_POLICY="outsourced",
            IDENTITY_URL=f"http://127.0.0.1:{listener.getsockname()[1]}",
            SYSTEM_PASSWORD=PASSWORD,
            CONNECT_TIMEOUT_SECONDS=0.1,
            READ_TIMEOUT_SECONDS=0.3,
        )
        answer = ask(service, UNKNOWN)
        dropped.set()
        thread.join()
    assert (answer.status, answer.error) == (503, DOWN)


def test_own_login_is_made_once_and_connections_are_kept(begin: Start, cloud: Cloud) -> None:
    service = begin()
    for _ in range(5):
        assert ask(service, cloud.token("Alice")).status == 200
    assert cloud.count("login") == 1
    assert cloud.connections == 1


def test_own_login_is_renewed_before_it_ends(
    begin: Start, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = begin()
    monkeypatch.setattr(outsourced, "LOGIN_AGES", 0.0)
    for _ in range(3):
        assert ask(service, cloud.token("Alice")).status == 200
    assert cloud.count("login") == 3
    assert all(status != 401 for status in cloud.requests)


def test_a_clock_that_is_ahead_does_not_log_in_for_each_request(
    begin: Start, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    cloud.lifetime = -60.0
    service = begin()
    for _ in range(5):
        assert ask(service, cloud.token("Alice")).status == 200
    assert cloud.count("login") == 1
    cloud.end_own_session()
    assert ask(service, cloud.token("Alice")).status == 200
    assert cloud.count("login") == 2
    assert [it.message for it in caplog.records if "clock" in it.message] == [
        "by this machine's clock a login at the identity service has ended before it began: set "
        "the clock of one of the two; until then requesters are refused"
    ]


def test_own_login_is_made_again_once_after_a_401(begin: Start, cloud: Cloud) -> None:
    service = begin()
    assert ask(service, cloud.token("Alice")).status == 200
    cloud.end_own_session()
    assert ask(service, cloud.token("Alice")).status == 200
    assert [path.split("/")[3] for path in cloud.paths()] == [
        *("login", "verify"),
        *("verify", "login", "verify"),
    ]
    cloud.answer = lambda path: (401, b"{}") if "verify" in path else None
    assert ask(service, cloud.token("Alice")).status == 503
    assert cloud.count("login") == 3  # not again and again


def test_several_threads_share_one_login(begin: Start, cloud: Cloud) -> None:
    service = begin()
    cloud.open.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, service, cloud.token("Alice")) for _ in range(8)]
        cloud.wait_for(held=1)
        assert service.send("GET", "/health").status == 200
        cloud.open.set()
        assert {answer.result().status for answer in answers} == {200}
    assert cloud.count("login") == 1


def test_several_threads_share_a_login_that_fails(begin: Start, cloud: Cloud) -> None:
    service = begin()
    cloud.answer = lambda path: (500, b"")
    cloud.open.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, service, cloud.token("Alice")) for _ in range(8)]
        cloud.wait_for(held=1)
        cloud.open.set()
        assert {answer.result().error for answer in answers} == {DOWN}


@pytest.mark.parametrize("name", ["SYSTEM_PASSWORD", "SYSTEM_PASSWORD_FILE"])
def test_the_password_is_a_setting_or_in_a_file(
    begin: Start, cloud: Cloud, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    values = {"SYSTEM_PASSWORD": PASSWORD, "SYSTEM_PASSWORD_FILE": str(path)}
    service = begin(**{key: values[key] if key == name else "" for key in values})
    assert ask(service, cloud.token("Alice")).status == 200


# What is remembered.


def test_a_verified_identity_is_remembered(begin: Start, cloud: Cloud) -> None:
    service = begin()
    token = cloud.token("Alice")
    assert [ask(service, token).status for _ in range(3)] == [200] * 3
    assert cloud.count("verify") == 1


def test_refusals_and_failures_are_never_remembered(begin: Start, cloud: Cloud) -> None:
    service = begin()
    assert [ask(service, UNKNOWN).status for _ in range(3)] == [401] * 3
    assert cloud.count("verify") == 3
    token = cloud.token("Alice")
    cloud.answer = lambda path: (500, b"")
    assert ask(service, token).status == 503
    cloud.answer = lambda path: None
    assert ask(service, token).status == 200


def test_0_seconds_remember_nothing(begin: Start, cloud: Cloud) -> None:
    service = begin(IDENTITY_CACHE_SECONDS=0)
    token = cloud.token("Alice")
    assert ask(service, token).status == 200
    cloud.end(token)
    assert ask(service, token).status == 401


class Clock:
    """A monotonic clock that a test moves, and a wall clock that goes on and is moved with it."""

    def __init__(self) -> None:
        self.now = self._began = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time() + self.now - self._began


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outsourced, "time", clock)
    return clock


@pytest.mark.parametrize("cache", [0, 10, 300])
def test_a_token_that_has_ended_is_refused_before_the_identity_service_cleans_up(
    begin: Start, cloud: Cloud, clock: Clock, cache: float
) -> None:
    service = begin(IDENTITY_CACHE_SECONDS=cache)
    token = cloud.token("Carol", sysop=True, seconds=60)
    ended = cloud.token("Carol", sysop=True, seconds=-47)
    show = {"Authorization": f"Bearer IDENTITY-TOKEN//{token}"}
    assert service.post("/lock/query", **show).status == 200
    refused = service.post("/lock/query", Authorization=f"Bearer IDENTITY-TOKEN//{ended}")
    assert (refused.status, refused.error) == (401, INVALID)
    clock.now += 60
    create = {"locks": [lock("A|b|1.0.0")]}
    for _ in range(2):
        refused = service.post("/lock/create", create, **show)
        assert (refused.status, refused.error) == (401, INVALID)
        cloud.clean()
    assert service.store.lock_table.find({}, Page(0, 1))[1] == 0


@pytest.mark.parametrize(("ahead", "status"), [(0.25, 200), (0, 401), (-0.25, 401)])
def test_a_token_is_valid_before_its_end_and_not_at_it(
    begin: Start,
    cloud: Cloud,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    ahead: float,
    status: int,
) -> None:
    end = int(time.time()) + 60
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end))
    verified = {"verified": True, "systemName": "Alice", "sysop": False, "expirationTime": written}
    answer = json.dumps(verified).encode()
    cloud.answer = lambda path: (200, answer) if "verify" in path else None
    monkeypatch.setattr(clock, "time", lambda: end - ahead)
    assert ask(begin(), UNKNOWN).status == status


@pytest.mark.parametrize(
    ("seconds", "lifetime", "until"), [(10, 300, 10), (10, 4, 4), (300, 60, 60)]
)
def test_an_identity_is_forgotten_in_time_and_at_its_tokens_end(
    begin: Start,
    cloud: Cloud,
    clock: Clock,
    seconds: float,
    lifetime: float,
    until: float,
) -> None:
    service = begin(IDENTITY_CACHE_SECONDS=seconds)
    token = cloud.token("Alice", seconds=lifetime)
    assert ask(service, token).status == 200
    cloud.end(token)
    clock.now += until - 2
    assert ask(service, token).status == 200
    clock.now += 2
    assert ask(service, token).status == 401


def test_a_token_without_a_known_end_is_not_remembered(begin: Start, cloud: Cloud) -> None:
    answer = json.dumps({"verified": True, "systemName": "Alice", "sysop": False}).encode()
    cloud.answer = lambda path: (200, answer) if "verify" in path else None
    service = begin()
    assert [ask(service, UNKNOWN).status for _ in range(2)] == [200] * 2
    assert cloud.count("verify") == 2


def test_memory_is_bounded_and_holds_no_token(
    begin: Start, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Spy(outsourced._Remembered):
        def __init__(self, seconds: float) -> None:
            super().__init__(seconds)
            made.append(self)

    monkeypatch.setattr(outsourced, "_Remembered", Spy)
    monkeypatch.setattr(outsourced, "REMEMBERED_AT_MOST", 3)
    service = begin()
    tokens = [cloud.token("Alice") for _ in range(4)]
    for token in tokens[:3]:
        assert ask(service, token).status == 200
    assert ask(service, tokens[0]).status == 200  # used lately: tokens[1] is the oldest
    assert ask(service, tokens[3]).status == 200
    before = cloud.count("verify")
    assert ask(service, tokens[0]).status == 200
    assert cloud.count("verify") == before
    assert ask(service, tokens[1]).status == 200
    assert cloud.count("verify") == before + 1
    (memory,) = made
    assert len(memory._entries) == 3
    assert all(len(key) == 32 for key in memory._entries)
    assert not any(token in repr(memory._entries) for token in tokens)


# A slow identity service.


@pytest.mark.parametrize("threads", [1, 4])
def test_clients_that_wait_for_it_do_not_stop_health_nor_who_is_remembered(
    start_server: Start, cloud: Cloud, threads: int
) -> None:
    service = start_server(**POLICY, **cloud.settings, THREADS=threads, READ_TIMEOUT_SECONDS=60)
    known = cloud.token("Alice", sysop=True)
    assert query(service, known).status == 200
    cloud.open.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, service, cloud.token("Bob")) for _ in range(8)]
        cloud.wait_for(held=8)
        for _ in range(3):
            assert service.send("GET", "/health").status == 200
            assert query(service, known).status == 200
            assert service.send("GET", ECHO, headers={}).status == 401
        assert not any(answer.done() for answer in waiting)
        cloud.open.set()
        assert [answer.result().status for answer in waiting] == [200] * 8


def test_more_than_may_wait_are_told_to_come_again(start_server: Start, cloud: Cloud) -> None:
    service = start_server(**POLICY, **cloud.settings, THREADS=1, READ_TIMEOUT_SECONDS=60)
    known = cloud.token("Alice")
    assert ask(service, known).status == 200
    cloud.open.clear()
    with ThreadPoolExecutor(ASKING_AT_ONCE) as pool:
        waiting = [pool.submit(ask, service, UNKNOWN) for _ in range(ASKING_AT_ONCE)]
        cloud.wait_for(held=ASKING_AT_ONCE)
        answer = ask(service, UNKNOWN)
        assert (answer.status, answer.error) == (503, DOWN)
        assert answer.headers["Retry-After"]
        assert ask(service, known).status == 200
        cloud.open.set()
        assert {answer.result().status for answer in waiting} == {401}


# What is said and logged.


def test_no_token_and_no_password_gets_into_a_log_or_an_answer(
    begin: Start, cloud: Cloud, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service = begin()
    good = cloud.token("Alice")
    own = []
    replies = [
        None,
        (500, b"secret-of-the-service"),
        (0, b"HTTP/1.1 %s\r\n\r\n" % UNKNOWN.encode()),
        (0, b"HTTP/1.1 200 OK\r\nbroken\r\n: %s\r\n\r\n" % UNKNOWN.encode()),
        (200, b"{"),
    ]
    said = b""
    for reply in replies:
        cloud.answer = lambda path, reply=reply: reply if "verify" in path else None
        for token in (good, UNKNOWN, "a" * 1001, "..%2f" + UNKNOWN):
            said += ask(service, token).body
        own += [header for _, _, header in cloud.requests if header]
    assert caplog.records
    text = caplog.text + said.decode()
    for secret in (good, UNKNOWN, PASSWORD, "secret-of", "Authorization", "Bearer", *own):
        assert secret not in text


def test_it_is_asked_over_tls_only_with_a_certificate_that_is_believed(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    cloud = Cloud(authority.server_context())
    try:
        settings = {"AUTHENTICATION_POLICY": "outsourced", **cloud.settings}
        token = cloud.token("Alice")
        believing = start(**settings, CA_FILE=authority.ca_file)
        assert ask(believing, token).status == 200
        assert ask(start(**settings), token).error == DOWN
        other = start(**settings, CA_FILE=Authority(tmp_path, "other").ca_file)
        assert ask(other, token).error == DOWN
    finally:
        cloud.stop()


# Settings.

COMPLETE = {
    **POLICY,
    "IDENTITY_URL": "http://127.0.0.1:1/identity",
    "SYSTEM_PASSWORD": PASSWORD,
}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"IDENTITY_URL": ""}, "the policy `outsourced` needs ORCHMGMT_IDENTITY_URL"),
        ({"SYSTEM_PASSWORD": ""}, "the policy `outsourced` needs ORCHMGMT_SYSTEM_PASSWORD"),
        ({"IDENTITY_URL": "127.0.0.1:8445"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"IDENTITY_URL": "ftp://host/x"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"IDENTITY_URL": "http://"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"IDENTITY_URL": "http://host:99999/"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"IDENTITY_URL": f"http://me:{PASSWORD}@host/"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"IDENTITY_URL": "http://host/?a=b"}, "ORCHMGMT_IDENTITY_URL must be http"),
        ({"SYSTEM_NAME": "9"}, "ORCHMGMT_SYSTEM_NAME: The specified system name does not"),
        ({"SYSTEM_PASSWORD_FILE": "/"}, "_PASSWORD_FILE and ORCHMGMT_SYSTEM_PASSWORD exclude"),
        (
            {"SYSTEM_PASSWORD": "", "SYSTEM_PASSWORD_FILE": "/no/such"},
            "ORCHMGMT_SYSTEM_PASSWORD_FILE cannot be read: No such file",
        ),
        (
            {"SYSTEM_PASSWORD": "", "SYSTEM_PASSWORD_FILE": "/dev/null"},
            "ORCHMGMT_SYSTEM_PASSWORD_FILE names an empty file",
        ),
        ({"CA_FILE": "/no/such"}, "ORCHMGMT_CA_FILE cannot be used: No such file"),
        ({"CA_FILE": __file__}, "ORCHMGMT_CA_FILE cannot be used: "),
        ({"CERTIFICATE_FILE": "/no/such"}, "ORCHMGMT_CERTIFICATE_FILE cannot be used: No such"),
        ({"IDENTITY_CACHE_SECONDS": "-1"}, "ORCHMGMT_IDENTITY_CACHE_SECONDS must be a number"),
        ({"CONNECT_TIMEOUT_SECONDS": "0"}, "ORCHMGMT_CONNECT_TIMEOUT_SECONDS must be a number"),
        ({"READ_TIMEOUT_SECONDS": "x"}, "ORCHMGMT_READ_TIMEOUT_SECONDS must be a number"),
        ({"TRUSTED_PROXIES": "proxy"}, "ORCHMGMT_TRUSTED_PROXIES: 'proxy' does not appear"),
        ({"TRUSTED_PROXIES": "10.0.0.1/8"}, "ORCHMGMT_TRUSTED_PROXIES: 10.0.0.1/8 has host bits"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_stops_the_start(
    settings: dict[str, str], says: str
) -> None:
    from orchmgmt.app import create_app

    with pytest.raises(SettingError) as raised:
        create_app({**COMPLETE, **settings})
    assert says in str(raised.value)
    assert PASSWORD not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_command_says_in_one_line_what_is_missing(run: Callable[..., Any]) -> None:
    ended = run("serve", "--port", "0", env={"ORCHMGMT_AUTHENTICATION_POLICY": "outsourced"})
    assert ended.returncode == 2
    assert ended.stderr == "Error: the policy `outsourced` needs ORCHMGMT_IDENTITY_URL\n"


def test_the_command_says_in_one_line_which_package_is_missing(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    # A folder that hides the package, as if it were not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'cryptography':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    policy = {"ORCHMGMT_AUTHENTICATION_POLICY": "certificate"}
    ended = run("serve", "--port", "0", env={**env, **policy})
    assert ended.returncode == 2
    assert ended.stderr == (
        "Error: the policy `certificate` needs cryptography: pip install 'orchmgmt[certificate]'\n"
    )
    # The others do not need it.
    assert run("lock", "import", "-", input="", env=env).returncode == 0


def test_the_password_shows_nowhere(run: Callable[..., Any], serve: Callable[..., Process]) -> None:
    env = {"ORCHMGMT_SYSTEM_PASSWORD": PASSWORD}
    assert PASSWORD not in run("serve", "--help", env=env).stdout
    assert PASSWORD not in run("serve", "--port", "x", env=env).stderr
    assert PASSWORD not in repr(Settings(system_password=PASSWORD))
    with pytest.raises(SettingError) as raised:
        Settings.read({"SYSTEM_PASSWORD": 12345678})
    assert "12345678" not in str(raised.value)
