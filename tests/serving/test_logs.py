"""The log: its two forms, the audit of creates and removes, and what must never be in it."""

import json
import logging
import re
import subprocess
import sys
from datetime import datetime

import pytest
from pages import blocks, marked
from support import FUTURE, lock

from orchmgmt.logs import written
from orchmgmt.logs.audit import SHOWN

BOILER = "Boiler|heat|1.0.0"


@pytest.fixture
def audit(caplog):
    """The audit's lines so far, without the records."""
    caplog.set_level(logging.INFO, "orchmgmt.audit")

    def audit():
        found = [it.fields for it in caplog.records if it.name == "orchmgmt.audit"]
        caplog.clear()
        assert all(str(line).isascii() and str(line).isprintable() for line in found)
        return found

    return audit


def test_the_page_shows_the_audit(start, audit):
    service = start()
    service.create(*[lock(f"Other{n}|s|1.0.0") for n in range(6)])
    audit()
    service.create(lock(BOILER, "Alice"))
    service.create(lock(BOILER, "Bob"))
    service.remove("Alice", "instanceIds=Boiler%7Cheat%7C1.0.0")
    service.post("/lock/create", {}, Authorization="Bearer SYSTEM//Alice")
    (shown,) = blocks("", marked("audit"))
    assert [written(line) for line in audit()] == shown.splitlines()


def test_queries_and_other_paths_leave_no_line(service, audit):
    service.locks()
    service.jobs()
    service.send("GET", "/health")
    service.send("GET", "/serviceorchestration/orchestration/mgmt/lock/create")
    assert audit() == []


def test_a_bulk_request_is_one_short_line(service, audit):
    names = [f"P{'x' * 62}|s{n}{'y' * 50}|1.0.{n}" for n in range(500)]
    made = service.create(*[lock(name, f"Owner{n}") for n, name in enumerate(names)]).entries
    service.create(*map(lock, names))
    query = "&".join(f"instanceIds={name.replace('|', '%7C')}" for name in names[:200])
    service.remove("Owner0", query)
    created, refused, removed = audit()
    assert created["locks"] == refused["locks"] == 500
    assert created["instances"] == removed["instances"] == names[:SHOWN]
    assert created["ids"] == [entry["id"] for entry in made[:SHOWN]]
    assert len(created["owners"]) == SHOWN
    assert "ids" not in refused
    assert refused["reason"].startswith(f"Already locked: {names[0]}")
    assert (removed["locks"], removed["removed"]) == (200, 1)
    assert max(len(str(line)) for line in (created, refused, removed)) < 4000


def test_every_refusal_is_audited_and_no_secret_with_it(start, audit):
    service = start()
    secret = "Bearer IDENTITY-TOKEN//0d9fe78c-secret"
    service.post("/lock/create", {}, Authorization=secret)
    service.send("DELETE", "/serviceorchestration/orchestration/mgmt/lock/remove/A", headers={})
    service.post("/lock/create", {"locks": [], "password": "0d9fe78c-secret"})
    service.remove("Alice")
    lines = audit()
    assert [(it["requester"], it["operation"], it["status"], it["result"]) for it in lines] == [
        ("-", "lock.create", 401, "refused"),
        ("-", "lock.remove", 401, "refused"),
        ("Sysop", "lock.create", 400, "refused"),
        ("Sysop", "lock.remove", 400, "refused"),
    ]
    assert "secret" not in str(lines)


@pytest.mark.sqlite
def test_a_failure_is_audited(start, audit, tmp_path):
    service = start()
    (tmp_path / "orchmgmt.db").rename(tmp_path / "aside.db")
    service.create(lock(BOILER))
    (line,) = audit()
    assert (line["status"], line["result"], line["instances"]) == (503, "failed", [BOILER])


def test_what_a_client_sends_makes_no_line_of_its_own(serve, tmp_path):
    """The text goes into an error's message, and the path into a traceback's first line."""
    server = serve()
    forged = "x\n2026-01-01 INFO orchmgmt.audit: requester=Sysop \u2028\x1b[31m\x85 \u202e"
    server.create(lock(BOILER, expires_at=forged))
    server.create(lock("a\r\nb|c|1.0.0"))
    assert server.stop() == 0
    _, *lines, _, _ = (tmp_path / "server-0.log").read_bytes().decode("ascii").split("\n")
    assert [line.count("requester=") for line in lines] == [2, 1]
    assert all(line.isprintable() for line in lines)
    assert all(re.match(r"[0-9:, -]+ INFO orchmgmt.audit: requester=Sysop ", it) for it in lines)


def test_a_long_value_is_cut(service, audit):
    service.create(lock(BOILER, expires_at="x" * 100_000))
    (line,) = audit()
    assert len(str(line)) < 600
    assert line["reason"].endswith("x...")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Alice", "a=Alice"),
        (7, "a=7"),
        (["A|b|1.0.0", "C|d|1.0.0"], "a=A|b|1.0.0,C|d|1.0.0"),
        ("", 'a=""'),
        ("two words", 'a="two words"'),
        ("b=c", 'a="b=c"'),
        ('"', 'a="\\""'),
        ("\\", 'a="\\\\"'),
        ("\x1b\n\u2028é", 'a="\\u001b\\n\\u2028\\u00e9"'),
    ],
)
def test_fields_as_text(value, text):
    assert written({"a": value}) == text


def test_json_lines(serve, tmp_path):
    server = serve("--host", "0.0.0.0", "--log-format", "json")
    server.create(lock(BOILER, "Alice"))
    server.create(lock("a\r\nb|c|1.0.0", expires_at=f"{FUTURE}\u2028"))
    server.post("/lock/query", Authorization="Bearer SYSTEM//Alice")
    assert server.stop() == 0
    text = (tmp_path / "server-0.log").read_bytes().decode("ascii")
    _, warning, created, refused, access, _ = [json.loads(line) for line in text.splitlines()]
    assert list(warning) == ["time", "level", "logger", "message"]
    assert (warning["level"], warning["logger"]) == ("WARNING", "orchmgmt")
    assert datetime.fromisoformat(warning["time"].replace("Z", "+00:00")).tzinfo
    assert created["logger"] == "orchmgmt.audit"
    assert created["instances"] == [BOILER]
    assert created["ids"] == [1]
    assert created["message"].startswith("requester=Sysop operation=lock.create status=201 ")
    assert refused["result"] == "refused"
    assert (access["logger"], access["requester"], access["operation"], access["client"]) == (
        ("orchmgmt.access", "Alice", "lock.query", "127.0.0.1")
    )


def test_a_traceback_is_a_key_of_its_json_line(run, tmp_path):
    script = (
        "import logging; from orchmgmt.logs import start_logging;"
        "from orchmgmt.settings import Settings\n"
        "start_logging(Settings.read())\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('any').exception('%s failed\\n', 'it')\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    env = {"ORCHMGMT_LOG_FORMAT": "json"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    line = json.loads(ended.stderr)
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "any", "it failed\n")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
    ended = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    first, second, *_ = ended.stderr.splitlines()
    assert first.endswith(r"ERROR any: it failed\n")
    assert second == "Traceback (most recent call last):"
