"""The access log: who was refused or let in, to what and why; never a secret."""

import http.client
import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from standin import Cloud
from support import MANAGEMENT, OPERATOR, Process, Service, lock
from wire import raw

from orchmgmt.schemas import LockRemove

pytestmark = pytest.mark.sqlite

ECHO = "/serviceorchestration/monitor/echo"
Start = Callable[..., Service]


@pytest.fixture
def start(start_server: Start) -> Start:
    return start_server


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """The lines of the access log so far, each with its level."""
    caplog.set_level(logging.DEBUG, logger="orchmgmt.access")
    return lambda: [
        (it.levelname, it.getMessage()) for it in caplog.records if it.name == "orchmgmt.access"
    ]


def test_a_line_names_system_operation_client_and_reason(
    service: Service, lines: Callable[[], list[tuple[str, str]]]
) -> None:
    alice = {"Authorization": "Bearer SYSTEM//alice"}
    service.create(lock("A|b|1.0.0"))
    service.remove("A", "instanceIds=A%7Cb%7C1.0.0")
    service.send("GET", ECHO, headers=alice)
    service.post("/history/query", {}, **alice)
    service.send("POST", f"{MANAGEMENT}/lock/query", headers={})
    service.send("POST", f"{MANAGEMENT}/lock/query", headers={"Authorization": "Basic x"})
    service.send("GET", "/health")
    assert lines() == [
        ("DEBUG", "allowed Sysop lock.create from 127.0.0.1: operator"),
        ("DEBUG", "allowed Sysop lock.remove from 127.0.0.1: operator"),
        ("DEBUG", "allowed Alice monitor.echo from 127.0.0.1: system"),
        (
            "INFO",
            "refused Alice history.query from 127.0.0.1: "
            "403 Requester has no management permission",
        ),
        (
            "INFO",
            "refused - lock.query from 127.0.0.1: 401 No authorization header has been provided",
        ),
        ("INFO", "refused - lock.query from 127.0.0.1: 401 Invalid authorization header"),
    ]


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:0DB8:0000::0007", "2001:db8::7"),
        ("203.0.113.5:5678", "203.0.113.5"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("[::ffff:203.0.113.5]:80", "203.0.113.5"),
        ("fe80::1%eth0", "fe80::1"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("", "127.0.0.1"),
        ("unknown", "127.0.0.1"),
        ("192.0.2.7,", "127.0.0.1"),
        ("192.0.2.7 refused Sysop", "127.0.0.1"),
        ("192.0.2.7\x1b[2J", "127.0.0.1"),
        ("é", "127.0.0.1"),
    ],
)
def test_the_client_is_whom_the_trusted_proxy_names(
    service: Service,
    lines: Callable[[], list[tuple[str, str]]],
    forwarded: str,
    client: str,
) -> None:
    header = f"X-Forwarded-For: {forwarded}".encode("latin-1")
    answer = raw(service, b"GET %s HTTP/1.1\r\n%s\r\n\r\n" % (ECHO.encode(), header))
    if answer.status == 400:  # nothing with a control character comes as far as a line
        assert "\x1b" in forwarded
        return
    ((_, line),) = lines()
    assert f" from {client}: " in line


@pytest.mark.parametrize("trusted", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.0/127"])
def test_an_address_that_others_name_is_not_believed(
    start: Start, lines: Callable[[], list[tuple[str, str]]], trusted: str
) -> None:
    service = start(TRUSTED_PROXIES=trusted)
    to = urlsplit(service.url)
    for peer in ("127.0.0.1", "127.0.0.2"):
        connection = http.client.HTTPConnection(
            str(to.hostname), to.port, timeout=30, source_address=(peer, 0)
        )
        connection.request("GET", ECHO, headers={"X-Forwarded-For": "192.0.2.7"})
        connection.getresponse().read()
        connection.close()
    assert [line.split(" from ")[1].split(":")[0] for _, line in lines()] == [
        "192.0.2.7",
        "127.0.0.2",
    ]


def test_nothing_that_was_sent_makes_a_line_of_its_own(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    forged = "%0A2026-01-01%20INFO%20orchmgmt.access:%20allowed%20Sysop%20lock.create"
    for authorization in ("Bearer SYSTEM//x", "Bearer SYSTEM//\xe9\x85"):
        headers = {"Authorization": authorization}
        service.send("DELETE", f"{MANAGEMENT}/lock/remove/{forged}?instanceIds=x", headers=headers)
    assert not any("allowed Sysop" in it.getMessage() for it in caplog.records)


def test_a_crash_of_a_forged_path_makes_no_line_of_its_own(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LockRemove, "read", lambda *args: 1 / 0)
    assert service.remove("Alice%0Aforged%1b[2J", "instanceIds=A%7Cb%7C1.0.0").status == 500
    (record,) = [it for it in caplog.records if it.levelname == "ERROR"]
    assert record.getMessage().isprintable()


def test_by_default_only_refused_requests_are_logged_and_never_a_secret(
    serve: Callable[..., Process], cloud: Cloud, tmp_path: Path
) -> None:
    environ = {f"ORCHMGMT_{name}": value for name, value in cloud.settings.items()}
    environ["ORCHMGMT_AUTHENTICATION_POLICY"] = "outsourced"
    token = cloud.token("Alice", sysop=True)
    bad = "11111111-0000-4000-8000-000000000000"
    for level in ("INFO", "DEBUG"):
        process = serve(env={**environ, "ORCHMGMT_LOG_LEVEL": level})
        for it in (token, bad):
            headers = {"Authorization": f"Bearer IDENTITY-TOKEN//{it}"}
            process.send("POST", f"{MANAGEMENT}/lock/query", headers=headers)
        process.send("POST", f"{MANAGEMENT}/lock/query", headers={"Authorization": OPERATOR})
        assert process.stop() == 0
    logs = [(tmp_path / f"server-{number}.log").read_text() for number in (0, 1)]
    for log in logs:
        for secret in (token, bad, "Bearer", "Authorization:", environ["ORCHMGMT_SYSTEM_PASSWORD"]):
            assert secret not in log
        assert log.count("orchmgmt.access: refused - lock.query from 127.0.0.1: 401") == 2
    assert "allowed" not in logs[0]
    assert "allowed Alice lock.query from 127.0.0.1: operator" in logs[1]


def test_at_debug_it_is_not_lost_among_statements(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    server = serve("--log-level", "DEBUG")
    server.create(lock("A|b|1.0.0"))
    server.locks()
    assert server.stop() == 0
    written = (tmp_path / "server-0.log").read_text()
    assert "allowed Sysop lock.create from 127.0.0.1: operator" in written
    assert "allowed Sysop lock.query from 127.0.0.1: operator" in written
    assert "SELECT" not in written
