"""Operating from a shell: the real commands, against real services and stand-ins for the cloud."""

import grp
import inspect
import json
import os
import pwd
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from certificates import CLOUD, DAY, NOW, Authority, subject
from click.testing import CliRunner
from conftest import COMMAND
from needs import bound_by_permissions, program
from nginx import Nginx
from standin import PASSWORD, Cloud
from support import FUTURE, Process, Service, job, lock, served, until
from wire import JOB, LOCK, job_entry, job_id, lock_entry, put

from orchmgmt.cli import main
from orchmgmt.client import Client
from orchmgmt.commands.history import list_jobs
from orchmgmt.commands.lock import list_locks
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.settings import Settings
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Begin = Callable[..., Service]

POLICY = {"DATABASE_URL": "sqlite:///:memory:"}

HOSTILE = "an \x1b[2J\x07\u202eevil\nline two"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `run`, but in this process: where it is about what is said, and not how it is started."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, env: dict[str, str] | None = None) -> Any:
        ended = CliRunner().invoke(main, arguments, env=env)
        if ended.exception and not isinstance(ended.exception, SystemExit):
            raise ended.exception
        return subprocess.CompletedProcess(arguments, ended.exit_code, ended.stdout, ended.stderr)

    return call


@pytest.fixture
def service(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service of this machine, as the settings say."""
    monkeypatch.setenv("ORCHMGMT_PORT", service.url.rpartition(":")[2])
    return service


def lines(ended: "subprocess.CompletedProcess[str]") -> list[Any]:
    """What a command prints for programs."""
    assert (ended.returncode, ended.stderr) == (0, "")
    return [json.loads(line) for line in ended.stdout.splitlines()]


# Locks and history of a running service


def test_locks_are_created_shown_and_removed(run: Run, service: Service) -> None:
    owned = ("--owner", "boiler-control")
    made = run("lock", "create", *owned, "--expires-at", FUTURE, "Boiler|heat|1", "Tank|level|2")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == (
        "ID  INSTANCE           OWNER          EXPIRES               HELD BY\n"
        f"1   Boiler|heat|1.0.0  BoilerControl  {FUTURE}  its owner\n"
        f"2   Tank|level|2.0.0   BoilerControl  {FUTURE}  its owner\n"
    )
    (entry,) = lines(
        run("lock", "create", *owned, "--expires-in", "1d2h3m4s", "--json", "C|d|1.0.0")
    )
    assert service.locks(ids=[3]).entries == [entry]
    removed = run("lock", "remove", *owned, "Boiler|heat|1", "C|d|1")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "Removed 2 locks.\n", "")
    (entry,) = lines(run("lock", "list", "--json"))
    assert entry["serviceInstanceId"] == "Tank|level|2.0.0"


def test_what_is_shown_can_be_imported(
    run: Run, call: Run, service: Service, tmp_path: Path
) -> None:
    put(service, LOCK, lock_entry(7, orchestrationJobId=job_id(1), temporary=True))
    put(service, JOB, job_entry(1, message=HOSTILE, finishedAt=""))
    url = f"sqlite:///{tmp_path}/other.db"
    for kind in ("lock", "history"):
        shown = call(kind, "list", "--json").stdout
        imported = run(kind, "import", "-", "--database-url", url, input=shown)
        assert imported.returncode == 0
        ours, theirs = (
            call(kind, "export", "exported", "--database-url", it).returncode
            or (tmp_path / "exported").read_text()
            for it in (url, service.store.settings.database_url)
        )
        assert ours == theirs
        assert shown


def test_every_filter_of_the_contract_is_an_option(call: Run, service: Service) -> None:
    values = {"orchestrationJobId": job_id(3), "owner": "Wanted", "temporary": True}
    put(service, LOCK, lock_entry(1), lock_entry(2), lock_entry(3, **values))
    assert lines(
        call(
            *("lock", "list", "--json", "--id", "1", "--id", "3"),
            *("--orchestration-job-id", job_id(3)),
            *("--service-instance-id", "Provider3|kelvinInfo|1"),
            *("--owner", "wanted", "--owner", "Other"),
            *("--expires-before", "2099-01-01T00:00:00.5Z"),
            *("--expires-after", "2099-01-01T00:59:59+01:00"),
        )
    ) == [lock_entry(3, **values)]
    for option in (["--owner", "Other"], ["--expires-before", FUTURE], ["--expires-after", FUTURE]):
        assert lines(call("lock", "list", "--json", *option)) == []
    subscription = "f0e1d2c3-0000-4000-8000-000000000000"
    values = {"type": "PUSH", "subscriptionId": subscription, "targetSystem": "Target"}
    put(service, JOB, job_entry(1), job_entry(2), job_entry(3, **values))
    assert lines(
        call(
            *("history", "list", "--json", "--id", job_id(3), "--status", "pending"),
            *("--type", "PUSH", "--requester-system", "Consumer", "--target-system", "Target"),
            *("--service-definition", "kelvinInfo", "--subscription-id", subscription),
        )
    ) == [job_entry(3, **values)]
    assert lines(call("history", "list", "--json", "--status", "DONE")) == []
    for ask, command in ((Client.locks, list_locks), (Client.jobs, list_jobs)):
        filters = set(inspect.signature(ask).parameters) - {"self", "since"}
        assert filters <= {it.name for it in command.params}


def test_what_somebody_else_wrote_cannot_command_a_terminal(run: Run, service: Service) -> None:
    put(service, JOB, job_entry(1, message=HOSTILE), job_entry(2))
    for env in ({}, {"PYTHONIOENCODING": "ascii"}):
        ended = run("history", "list", env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert len(ended.stdout.splitlines()) == 3
        assert "evil" in ended.stdout
        assert ended.stdout.replace("\n", "").isprintable()
    ended = run("lock", "list", "--owner", "\x1b[2J\u202e")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: The specified system name does not match")
    assert ended.stderr.replace("\n", "").isprintable()


def test_a_reader_that_has_had_enough_is_left_alone(service: Service, tmp_path: Path) -> None:
    put(service, JOB, *(job_entry(it, message="x" * 100) for it in range(3000)))
    command = f"set -o pipefail; {COMMAND} history list | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert ended.stdout.startswith("CREATED ")
    assert (ended.returncode, ended.stderr) == (1, "")


def test_the_exit_code_tells_a_refusal_from_an_absence(run: Run, service: Service) -> None:
    service.create(lock("Boiler|heat|1.0.0"))
    create = ("lock", "create", "--owner", "Other", "--expires-in", "1h", "Boiler|heat|1")
    held = run(*create)
    assert (held.returncode, held.stdout) == (1, "")
    assert held.stderr == "Error: Already locked: Boiler|heat|1.0.0\n"
    forbidden = run("lock", "list", "--name", "Alice")
    assert forbidden.returncode == 1
    assert forbidden.stderr == "Error: Requester has no management permission\n"
    away = run(*create, "--url", "http://127.0.0.1:1")
    assert away.returncode == 5
    assert away.stderr.startswith("Error: no connection to http://127.0.0.1:1: ")
    assert away.stderr.endswith("; check with `orchmgmt lock list` whether it was done\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--id", "x"], "'x' is not a valid integer"),
        (["list", "--expires-after", "2099-01-01"], "is not like 2099-01-01T00:00:00Z"),
        (["list", "--expires-after", "9999-12-31T23:59:59-18:00"], "is not like"),
        (["list", "--url", "ftp://x"], "ftp://x must be http://HOST:PORT"),
        (["list", "--url", "http://x:port"], "Port could not be cast"),
        (["list", "--url", "http://x\x1b"], "must have its special characters escaped"),
        (["list", "--name", "\x1b\n\u202e"], "\N{REPLACEMENT CHARACTER}"),
        (["list", "--name", "ä"], "ä cannot be sent as a name"),
        (["list", "--key", __file__], "--key goes with --certificate"),
        (
            ["list", "--url", "https://x", "--certificate", __file__],
            "hold a certificate and its key",
        ),
        (["list", "--url", "https://x", "--ca", __file__], "is not a PEM file"),
        (["list", "--name", "A", "--token-file", __file__], "not both"),
        (["list", "--token-file", __file__], "has no token"),
        (["list", "--token-file", "/proc/self/mem"], "/proc/self/mem cannot be read: "),
        (["create", "--owner", "A", "A|b|1"], "give --expires-in or --expires-at"),
        (["create", "--owner", "A", "--expires-in", "1h", "--expires-at", FUTURE, "A|b|1"], "give"),
        (["create", "--owner", "A", "--expires-in", "1 hour", "A|b|1"], "is not like 1h"),
        (["create", "--owner", "A", "--expires-in", "", "A|b|1"], "is not like 1h"),
        (["create", "--owner", "A", "--expires-in", "999999999d", "A|b|1"], "longer than 365 days"),
        (["create", "--owner", "A", "--expires-in", "999999999d9h", "A|b|1"], "than 365 days"),
        (["create", "--expires-in", "1h", "A|b|1"], "Missing option '--owner'"),
        (["create", "--owner", "A", "--expires-in", "1h"], "Missing argument"),
        (["remove", "--owner", "A"], "Missing argument"),
    ],
)
def test_a_wrong_use_is_told_in_words(arguments: list[str], message: str) -> None:
    ended = CliRunner().invoke(main, ["lock", *arguments], env={"ORCHMGMT_PORT": "1"})
    assert ended.exit_code == 2
    assert message in ended.output
    assert "\x1b" not in ended.output


def test_the_service_of_this_machine_may_listen_on_a_unix_socket(run: Run, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [COMMAND, "serve", "--unix-socket", "a socket"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout
    assert started.stdout.readline().startswith("Listening on ")
    env = {"ORCHMGMT_UNIX_SOCKET": "a socket"}
    assert lines(run("lock", "list", "--json", env=env)) == []
    started.terminate()
    started.communicate(timeout=30)


def test_who_asks_is_proved_by_a_token(
    run: Run, begin: Begin, cloud: Cloud, tmp_path: Path
) -> None:
    url = begin(AUTHENTICATION_POLICY="outsourced").url
    token = cloud.token("Carol", sysop=True)
    (tmp_path / "token").write_text(f"{token}\n")
    assert lines(run("lock", "list", "--json", "--url", url, "--token-file", "token")) == []
    again = run("lock", "list", "--json", "--url", url, "--token-file", "-", input=token)
    assert lines(again) == []
    refused = run("lock", "list", "--url", url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Invalid authorization header: say who asks, by --name")
    (tmp_path / "token").write_text(f"{token}\n{token}")
    refused = run("lock", "list", "--url", url, "--token-file", "token")
    assert refused.returncode == 2
    assert token not in refused.stderr


def test_who_asks_is_proved_by_a_certificate(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    server = authority.server_file()
    authority.operator().save(tmp_path / "carol.pem")
    with served(
        AUTHENTICATION_POLICY="certificate", CLOUD=CLOUD, DATABASE_URL="sqlite:///:memory:"
    ) as service:
        files = {
            "/etc/orchmgmt/server.pem": server,
            "/etc/orchmgmt/server.key": server,
            "/etc/orchmgmt/cloud-ca.pem": authority.ca_file,
            "/etc/orchmgmt/cloud-crl.pem": authority.revocations(),
            "127.0.0.1:8441": service.url.removeprefix("http://"),
        }
        nginx = Nginx(tmp_path / "nginx", "generic_https_certificate.conf", files)
        try:
            where = ("--url", f"https://127.0.0.1:{nginx.port}", "--ca", authority.ca_file)
            own = ("--certificate", "carol.pem", "--key", "carol.pem")
            assert lines(run("lock", "list", "--json", *where, *own[:2])) == []
            assert lines(run("history", "list", "--json", *where, *own)) == []
            assert run("lock", "list", *where).returncode == 1
        finally:
            nginx.stop()


def test_a_watch_shows_what_is_new_and_what_changes_once(service: Service) -> None:
    history = service.store.history
    first = history.create("PULL", "Alice", "Bob", "kelvinInfo")
    watch = subprocess.Popen(
        [COMMAND, "history", "list", "--json", "--watch", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout

    def seen() -> tuple[str, str]:
        assert watch.stdout
        entry = json.loads(watch.stdout.readline())
        return entry["id"], entry["status"]

    assert seen() == (first, "PENDING")
    second = history.create("PULL", "Alice", "Bob", "kelvinInfo")
    assert seen() == (second, "PENDING")
    history.start(first)
    assert seen() == (first, "IN_PROGRESS")
    history.fail(first, "no")
    assert seen() == (first, "ERROR")
    put(service, JOB, job_entry(7))  # recorded now, with a time that is long past
    assert seen() == (job_id(7), "PENDING")
    watch.send_signal(signal.SIGINT)
    output, log = watch.communicate(timeout=30)
    assert (watch.returncode, output, log) == (0, "", "")


def test_a_watch_of_locks_shows_what_is_new_what_changes_and_what_is_gone(
    service: Service,
) -> None:
    watch = subprocess.Popen(
        [COMMAND, "lock", "list", "--watch", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout
    assert watch.stdout.readline() == "No locks.\n"
    service.create(lock("Boiler|heat|1.0.0"))
    assert watch.stdout.readline().split() == ["ID", "INSTANCE", "OWNER", "EXPIRES", "HELD", "BY"]
    assert watch.stdout.readline().split()[:3] == ["1", "Boiler|heat|1.0.0", "Owner"]
    service.remove("Owner", "instanceIds=Boiler%7Cheat%7C1.0.0")
    row = watch.stdout.readline().split()
    assert (row[0], row[-1]) == ("1", "(gone)")
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=30) == ("", "")
    assert watch.returncode == 0


def test_an_empty_list_says_so(call: Run, service: Service) -> None:
    assert call("lock", "list").stdout == "No locks.\n"
    assert call("history", "list").stdout == "No jobs.\n"
    assert call("lock", "list", "--json").stdout == ""


def test_a_removal_says_how_many_and_why_not_more(call: Run, service: Service) -> None:
    put(service, LOCK, lock_entry(9, temporary=True))
    instances = ["Boiler|heat|1", "Tank|level|1", "Lift|motor|1"]

    def removed(*arguments: str) -> str:
        ended = call("lock", "remove", *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        return str(ended.stdout)

    def made(*owners: str) -> None:
        for instance, owner in zip(instances, owners, strict=True):
            service.create(lock(instance, owner))

    made("Alice", "Alice", "Bob")
    said = removed("--owner", "alice", *instances)
    assert said == "Removed 2 of 3 locks; 1 is not of this owner.\n"
    said = removed("--owner", "alice", *instances)
    assert said == "Removed 0 of 3 locks; 1 is not of this owner; 2 are not locked.\n"
    assert removed("--owner", "bob", instances[2]) == "Removed 1 lock.\n"
    made("Alice", "Bob", "Carol")
    said = removed("--force", *instances, "Provider9|kelvinInfo|1")
    assert said == "Removed 3 of 4 locks; 1 is held by a job.\n"
    assert removed("--force", instances[0]) == "Removed 0 of 1 lock; 1 is not locked.\n"
    for wrong in ([], ["--owner", "Alice", "--force"]):
        ended = call("lock", "remove", *wrong, *instances)
        assert ended.returncode == 2
        assert "give --owner or --force" in ended.stderr


def test_whoever_can_open_the_database_needs_no_service(
    run: Run, request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    if engine == "postgresql":
        url = request.getfixturevalue("postgresql").empty_database()
    user = pwd.getpwuid(os.getuid()).pw_name
    refused = run("lock", "list", "--database-url", url)
    assert refused.returncode == (3 if engine == "sqlite" else refused.returncode)
    Store({"DATABASE_URL": url}).close()
    direct = ("--database-url", url)
    # Where the policy would let nobody in.
    env = {"ORCHMGMT_AUTHENTICATION_POLICY": "outsourced", "ORCHMGMT_URL": "http://127.0.0.1:1"}
    until = ("--expires-in", "1h")
    made = run("lock", "create", *direct, "--owner", "alice", *until, "A|b|1", "C|d|1", env=env)
    assert made.returncode == 0
    assert f" INFO orchmgmt.audit: user={user} operation=lock.create result=done " in made.stderr
    held = run("lock", "create", *direct, "--owner", "bob", *until, "A|b|1", env=env)
    assert (held.returncode, held.stdout) == (1, "")
    assert "operation=lock.create result=failed" in held.stderr
    assert held.stderr.endswith("Error: Already locked: A|b|1.0.0\n")
    shown = run("lock", "list", *direct, "--owner", "Alice", "--json", env=env)
    assert [json.loads(line)["owner"] for line in shown.stdout.splitlines()] == ["Alice"] * 2
    assert shown.stderr == ""
    removed = run("lock", "remove", *direct, "--force", "A|b|1", env=env)
    assert removed.stdout == "Removed 1 lock.\n"
    assert f"user={user} operation=lock.remove result=done locks=1 " in removed.stderr
    assert removed.stderr.endswith(" owners=Alice removed=1\n")
    both = run("lock", "list", *direct, "--name", "Sysop")
    assert both.returncode == 2
    assert "--database-url uses no service" in both.stderr


def test_where_and_who_may_come_from_the_environment_and_options_win(
    run: Run, begin: Begin, cloud: Cloud, tmp_path: Path
) -> None:
    service = begin(AUTHENTICATION_POLICY="outsourced")
    (tmp_path / "token").write_text(cloud.token("Carol", sysop=True))
    (tmp_path / "bad").write_text("bad")
    env = {"ORCHMGMT_URL": service.url, "ORCHMGMT_TOKEN_FILE": "token"}
    assert lines(run("lock", "list", "--json", env=env)) == []
    assert lines(run("history", "list", "--json", env=env)) == []
    assert lines(run("lock", "list", "--json", env={**env, "ORCHMGMT_CA_FILE": "none"})) == []
    assert run("lock", "list", "--token-file", "bad", env=env).returncode == 1
    assert run("lock", "list", "--name", "Sysop", env=env).returncode == 1
    assert run("lock", "list", "--url", "http://127.0.0.1:1", env=env).returncode == 5
    ended = run("lock", "list", env={**env, "ORCHMGMT_TOKEN_FILE": "none"})
    message = "Error: ORCHMGMT_TOKEN_FILE: none: No such file or directory\n"
    assert (ended.returncode, ended.stderr) == (2, message)
    ended = run("lock", "list", env={**env, "ORCHMGMT_TOKEN_FIEL": "x"})
    assert ended.returncode == 2
    assert "did you mean ORCHMGMT_TOKEN_FILE?" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy-files", "deploy"],
        ["config"],
        ["check"],
        ["lock", "list"],
        ["lock", "export"],
        ["history", "export"],
        ["completion", "bash"],
        ["upgrade", "--check"],
        ["backup", "copy.db"],
        ["clean"],
        ["serve", "--port", "0"],
        ["test-server"],
        ["--help"],
    ],
)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(
    service: Service, tmp_path: Path, arguments: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [COMMAND, *arguments],
        cwd=tmp_path,
        env={**os.environ, "ORCHMGMT_DATABASE_URL": service.store.settings.database_url},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    for sign in ("Error", "Broken pipe", "Traceback", "Exception", "cannot"):
        assert sign not in ended.stderr
    if arguments[0] == "deploy-files":
        assert len(list(tmp_path.glob("deploy/*/*"))) > 5


# What a server needs, and the settings


def looked(ended: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """What a check says of each thing."""
    found = dict(line.partition(": ")[::2] for line in ended.stdout.splitlines())
    assert ended.stderr == ""
    assert ended.returncode == any(name.startswith("wrong") for name in found)
    return found


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database that is in order."""
    path = tmp_path / "orchmgmt.db"
    Store({"DATABASE_URL": f"sqlite:///{path}"}).close()
    return path


def test_a_check_of_what_is_in_order_changes_nothing(run: Run, database: Path) -> None:
    database.chmod(0o640)
    before = database.read_bytes()
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    for thorough in ([], ["--thorough"]):
        assert looked(run("check", *thorough)) == {
            "ok     settings": "authentication policy declared, management policy sysop-only",
            "ok     policies": "they have what they need",
            "ok     database": f"schema version {SCHEMA_VERSION}; {database} has mode 0640 and "
            f"belongs to {user}:{group}",
        }
    assert database.read_bytes() == before
    assert [it.name for it in database.parent.iterdir()] == [database.name]


def test_a_check_says_what_is_wrong_and_what_to_do(call: Run, tmp_path: Path) -> None:
    found = looked(call("check", env={"ORCHMGMT_PROT": "1"}))
    message = "ORCHMGMT_PROT is not a setting (did you mean ORCHMGMT_PORT?)"
    assert found == {"wrong  settings": message}
    assert looked(call("check"))["ok     database"] == f"{tmp_path}/orchmgmt.db will be created"
    assert list(tmp_path.iterdir()) == []
    found = looked(call("check", "--database-url", "sqlite:///no/such.db"))
    assert found["wrong  database"].endswith("`orchmgmt serve` or an import makes a database")
    (tmp_path / "orchmgmt.db").touch()
    assert looked(call("check"))["ok     database"].endswith("/orchmgmt.db will be created")
    assert (tmp_path / "orchmgmt.db").stat().st_size == 0
    shutil.copyfile(
        Path(__file__).parents[1] / "data" / "schema-1.sqlite", tmp_path / "orchmgmt.db"
    )
    assert looked(call("check"))["wrong  database"].endswith("run `orchmgmt upgrade`")
    found = looked(call("check", "--port", "x"))
    assert list(found) == ["wrong  settings"]
    found = looked(call("check", "--authentication-policy", "certificate"))
    assert found["wrong  policies"] == "the policy `certificate` needs ORCHMGMT_CLOUD"


def test_a_check_finds_a_damaged_database(call: Run, database: Path) -> None:
    with Store({"DATABASE_URL": f"sqlite:///{database}"}) as store:
        store.database.write(store.job_table.put, [job(number) for number in range(2000)])
    pages = bytearray(database.read_bytes())
    whole = bytes(pages)
    middle = len(pages) // 2 // 4096 * 4096
    pages[middle : middle + 4096] = b"\xff" * 4096
    database.write_bytes(pages)
    for thorough in ([], ["--thorough"]):
        found = looked(call("check", *thorough))["wrong  database"]
        assert found.startswith("the database is damaged: ")
        assert found.endswith(": restore a backup")
        assert "***" not in found
    # An index that lacks what its table has is sound by itself.
    database.write_bytes(whole)
    with closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA writable_schema = ON")
        other.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, '(\"started_at\"', '(\"finished_at\"')"
            " WHERE name = 'job_started_at_id'"
        )
        other.commit()
    assert "ok     database" in looked(call("check"))
    assert "damaged" in looked(call("check", "--thorough"))["wrong  database"]


def test_a_check_of_a_busy_database_warns(run: Run, database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ended = run("check", "--database-timeout-seconds", "0.1")
    assert "busy" in looked(ended)["warn   database"]
    assert ended.returncode == 0


def test_a_check_says_that_there_is_no_room(run: Run, database: Path) -> None:
    limit = (40_000, 40_000)  # bytes of its log
    ended = run("check", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert looked(ended)["wrong  database"].startswith("the database ")
    assert "ok     database" in looked(run("check"))


@pytest.mark.parametrize(
    ("part", "mode", "does"),
    [
        (".", 0o600, "enter"),
        ("data", 0o600, "enter"),
        ("data", 0o555, "write to"),
        ("data/orchmgmt.db", 0o400, "write to"),
        ("data/orchmgmt.db", 0o200, "read"),
    ],
)
def test_what_is_in_the_way_of_a_user_is_named(
    run: Run, tmp_path: Path, part: str, mode: int, does: str
) -> None:
    folder = tmp_path / "outer"
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "orchmgmt.db"
    Store({"DATABASE_URL": f"sqlite:///{path}"}).close()
    blocked = folder / part
    blocked.chmod(mode)
    try:
        ended = run("check", "--database-url", f"sqlite:///{path}", preexec_fn=bound_by_permissions)
        found = looked(ended)
        if "ok     database" in found:
            pytest.skip("this user may do as it likes")
        name = pwd.getpwuid(os.getuid()).pw_name
        said = f"{name} cannot {does} {blocked.resolve()}, which has mode {mode:04o} and belongs to"
        assert said in found["wrong  database"]
    finally:
        blocked.chmod(0o700)


def test_a_check_looks_when_certificates_and_revocation_lists_end(
    call: Run, database: Path, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue(subject("own"), ends=NOW + 30 * DAY)
    own.save(tmp_path / "own.pem")
    authority.issue(subject("old"), ends=NOW - DAY / 2).save(tmp_path / "old.pem")
    authority.issue(subject("other")).save(tmp_path / "other.pem")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    (tmp_path / "crl.pem").write_bytes(Path(authority.revocations(ends=NOW + DAY)).read_bytes())
    files = ("old.pem", "crl.pem", "bad.pem", "none.pem", "orchmgmt.db")
    ca, certificate = ("--ca-file", authority.ca_file), ("--certificate-file", "own.pem")
    found = looked(call("check", *files, *ca, *certificate, "--key-file", "other.pem"))
    soon = f"it expires soon, at {NOW + DAY:%Y-%m-%dT%H:%M:%SZ}: replace it"
    assert found["wrong  ORCHMGMT_CA_FILE"] == soon
    lasts = f"it is valid until {NOW + 30 * DAY:%Y-%m-%dT%H:%M:%SZ}"
    assert found["ok     ORCHMGMT_CERTIFICATE_FILE"] == lasts
    assert found["wrong  ORCHMGMT_KEY_FILE"].startswith("it does not belong to the certificate")
    assert found["wrong  old.pem"].startswith("it expired at ")
    assert found["wrong  crl.pem"] == soon
    assert found["wrong  bad.pem"] == "it is damaged: replace the file"
    assert found["wrong  none.pem"] == "it cannot be read: No such file or directory"
    assert found["wrong  orchmgmt.db"].startswith("it has no certificate and no revocation list")
    found = looked(call("check", "crl.pem", *ca, *certificate, "--days", "0.5"))
    assert [name[:2] for name in found] == ["ok"] * 7


def test_a_check_asks_the_clouds_other_systems(call: Run, database: Path, cloud: Cloud) -> None:
    env = {
        **{
            f"ORCHMGMT_{name}": value
            for name, value in {**cloud.settings, **cloud.registry}.items()
        },
        "ORCHMGMT_AUTHENTICATION_POLICY": "outsourced",
        "ORCHMGMT_MANAGEMENT_POLICY": "authorization",
    }
    found = looked(call("check", env=env))
    name = "OrchestrationManagement"
    assert found["ok     identity service"] == f"{name} can log in there"
    assert found["ok     authorization system"] == f"{name} may ask it"
    there = f"{name} is not there: `serve` registers it, at http://127.0.0.1:8441"
    assert found["ok     ServiceRegistry"] == there
    assert cloud.systems == cloud.services == {}
    assert cloud.writes == []
    cloud.lifetime = -60.0
    found = looked(call("check", "--read-timeout-seconds", "6", env=env))
    assert "clock" in found["wrong  identity service"]
    cloud.lifetime = 300.0
    secret = "not the password"
    ended = call("check", env={**env, "ORCHMGMT_SYSTEM_PASSWORD": secret})
    found = looked(ended)
    refused = "the identity service does not answer as it should: it refuses this system's name or"
    for system in ("identity service", "authorization system", "ServiceRegistry"):
        assert found[f"wrong  {system}"].startswith(refused)
    assert secret not in ended.stdout
    assert PASSWORD not in ended.stdout
    cloud.answer = lambda path: None if "login" in path else (200, b'{"hello": "world"}')
    found = looked(call("check", env=env))
    assert found["wrong  identity service"] == "ORCHMGMT_IDENTITY_URL leads to something else"
    cloud.stop()
    found = looked(call("check", env=env))
    assert "Connection refused" in found["wrong  identity service"]


def test_a_check_says_what_the_registry_knows_and_would_refuse(
    call: Run, database: Path, cloud: Cloud, serve: Callable[..., Process]
) -> None:
    name = "OrchestrationManagement"
    seen = "serviceOrchestrationLockManagement and serviceOrchestrationHistoryManagement"
    registry = {f"ORCHMGMT_{key}": it for key, it in cloud.registry.items()}
    registry["ORCHMGMT_SERVICE_METADATA"] = "unrestrictedDiscovery=true"

    def says(**settings: object) -> str:
        written = len(cloud.writes)
        env = {**registry, **{f"ORCHMGMT_{key}": str(it) for key, it in settings.items()}}
        (found,) = (
            f"{what.partition(' ')[0]} {it}"
            for what, it in looked(call("check", env=env)).items()
            if "ServiceRegistry" in what
        )
        assert len(cloud.writes) == written
        return found

    cloud.refused.add("192.0.2.7")
    refuses = "wrong it refuses ORCHMGMT_SERVICE_ADDRESSES: Address verification failure: 192.0.2.7"
    assert says(SERVICE_ADDRESSES="127.0.0.1,192.0.2.7").startswith(refuses)
    process = serve(env=registry)
    until(lambda: len(cloud.services) == 2)
    port = int(process.url.rpartition(":")[2])
    answers = f"ok {name} is there with {seen}, and answers at {process.url}"
    assert says(SERVICE_PORT=port) == answers
    cloud.restricted = False
    assert says(SERVICE_PORT=port, SERVICE_METADATA="") == answers
    cloud.restricted = True
    assert says(SERVICE_PORT=port, SERVICE_ADDRESSES="::ffff:127.0.0.1").startswith("ok ")
    elsewhere = says(SERVICE_PORT=1)
    assert elsewhere.startswith(f"warn {seen} of {name} lead elsewhere: `serve` has them lead to ")
    other = says(SERVICE_ADDRESSES="locks.example")
    assert other.startswith(f"warn {name} is there at 127.0.0.1: `serve` takes that away once and ")
    process.stop(signal.SIGKILL)
    assert says(SERVICE_PORT=port) == (
        f"warn {name} is there with {seen}, but nothing answers at {process.url}"
    )
    cloud.services.clear()
    assert says(SERVICE_PORT=port).startswith(f"warn {name} is there with no service, but nothing ")
    instance = f"{name}|kelvinInfo|1.0.0"
    cloud.services[instance] = {
        "instanceId": instance,
        "serviceDefinition": {"name": "kelvinInfo"},
        "metadata": {"unrestrictedDiscovery": True},
    }
    assert says(SERVICE_PORT=port) == (
        f"wrong it has another system {name}, with {instance}: choose another ORCHMGMT_SYSTEM_NAME"
    )
    cloud.identity_away = True
    assert "status 503 to system-discovery/lookup: No answer" in says()


def test_a_check_goes_by_the_name_in_the_certificate(
    call: Run, database: Path, authority: Authority, tmp_path: Path
) -> None:
    env = {
        "ORCHMGMT_AUTHENTICATION_POLICY": "certificate",
        "ORCHMGMT_CLOUD": CLOUD,
        "ORCHMGMT_CERTIFICATE_FILE": authority.system("locks").save(tmp_path / "own.pem"),
        "ORCHMGMT_SERVICE_PORT": "443",
        "ORCHMGMT_SERVICE_REGISTRY_URL": "https://127.0.0.1:1/serviceregistry",
        "ORCHMGMT_SYSTEM_NAME": "Other",
    }
    found = looked(call("check", env=env))
    assert found["wrong  ServiceRegistry"].startswith(
        "ORCHMGMT_SYSTEM_NAME is Other, and ORCHMGMT_"
    )
    found = looked(call("check", env={**env, "ORCHMGMT_SYSTEM_NAME": "locks"}))
    assert "Connection refused" in found["wrong  ServiceRegistry"]


def test_a_check_doubts_the_name_of_a_core_system(call: Run, database: Path) -> None:
    found = looked(call("check", env={"ORCHMGMT_SYSTEM_NAME": "service-registry"}))
    doubt = found["warn   settings"]
    assert doubt.startswith("ORCHMGMT_SYSTEM_NAME is ServiceRegistry, the name of a core system")
    found = looked(call("check", env={"ORCHMGMT_SYSTEM_NAME": "sysop"}))
    assert found["wrong  settings"].startswith("ORCHMGMT_SYSTEM_NAME: Sysop is the operator")


def test_the_settings_in_effect_are_shown_with_where_they_come_from(call: Run) -> None:
    env = {
        "ORCHMGMT_PORT": "1234",
        "ORCHMGMT_HOST": " ",
        "ORCHMGMT_SYSTEM_PASSWORD": "hunter2",
        "ORCHMGMT_DATABASE_URL": "postgresql://me:hunter2@db/orchmgmt",
        "ORCHMGMT_IDENTITY_URL": "https://hunter2@cloud/identity",
    }
    ended = call("config", "--json", "--metrics", "yes", env=env)
    assert "hunter2" not in ended.stdout
    found = json.loads(ended.stdout)
    assert list(found) == [f"ORCHMGMT_{it.name.upper()}" for it in fields(Settings)]
    assert found["ORCHMGMT_PORT"] == {"value": 1234, "from": "environment"}
    assert found["ORCHMGMT_HOST"] == {"value": "127.0.0.1", "from": "default"}
    assert found["ORCHMGMT_METRICS"] == {"value": True, "from": "option"}
    assert found["ORCHMGMT_SYSTEM_PASSWORD"] == {"value": "***", "from": "environment"}
    table = call("config", "--metrics", "yes", env=env)
    assert "hunter2" not in table.stdout
    rows = [line.split(maxsplit=2) for line in table.stdout.splitlines()]
    assert ["ORCHMGMT_METRICS", "option", "true"] in rows
    assert len(rows) == len(found) + 1
    wrong = call("config", "--port", "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_variables_come_from_a_file_as_the_unit_reads_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "unit.env").write_text(
        "# a comment\n; another\n\n  ORCHMGMT_PORT=1234  \nORCHMGMT_HOST=127.0.0.2\r\n"
        "ORCHMGMT_SYSTEM_PASSWORD='a \"#; b $x %20'\nORCHMGMT_CLOUD=a#b.c d\n"
        'ORCHMGMT_CA_FILE="it\'s \\"\\\\ $HOME"\nORCHMGMT_METRICS=\nOTHER=${ORCHMGMT_PORT}\n'
    )
    env = {"ORCHMGMT_PORT": "1", "ORCHMGMT_MAX_PAGE_SIZE": "7"}
    ended = run("config", "--json", "--env-file", "unit.env", "--host", "127.0.0.3", env=env)
    assert ended.stderr == ""
    found = {name.removeprefix("ORCHMGMT_"): it for name, it in json.loads(ended.stdout).items()}
    assert found["PORT"] == {"value": 1234, "from": "environment"}
    assert found["HOST"] == {"value": "127.0.0.3", "from": "option"}
    assert found["MAX_PAGE_SIZE"]["value"] == 7
    assert found["CLOUD"]["value"] == "a#b.c d"
    assert found["CA_FILE"]["value"] == "it's \"\\ $HOME"
    assert found["METRICS"] == {"value": False, "from": "default"}
    for command in (["lock", "list"], ["lock", "export"], ["check"], ["serve"], ["mirror", "x"]):
        wrong = run(*command, "--env-file", "none.env")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr == "Error: none.env cannot be read: No such file or directory\n"
    assert "--env-file" not in run("test-server", "--help").stdout


@pytest.mark.parametrize(
    "line",
    [
        "ORCHMGMT_CLOUD=a # systemd takes this as part of the value",
        "ORCHMGMT_CLOUD=a\\b",
        'ORCHMGMT_CLOUD="a\\n"',
        "ORCHMGMT_CLOUD='a\\'b'",
        'ORCHMGMT_CLOUD=a"b',
        'ORCHMGMT_CLOUD="a',
        'ORCHMGMT_CLOUD="a" b',
        "export ORCHMGMT_CLOUD=a",
        "ORCHMGMT_CLOUD",
        "ORCHMGMT CLOUD=a",
    ],
)
def test_a_line_that_systemd_reads_otherwise_is_refused(
    call: Run, tmp_path: Path, line: str
) -> None:
    (tmp_path / "unit.env").write_text(f"ORCHMGMT_PORT=1234\n{line}\n")
    ended = call("config", "--env-file", "unit.env")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Error: unit.env, line 2: it must be NAME=VALUE, on one line")
    assert "ORCHMGMT_PORT" not in os.environ


@pytest.mark.parametrize("package", ["cryptography", "dotenv"])
def test_a_check_without_a_package_says_which_extra_it_takes(
    run: Run, database: Path, tmp_path: Path, cloud: Cloud, package: str
) -> None:
    text = f"raise ModuleNotFoundError('No module named {package}', name='{package}')"
    (tmp_path / f"{package}.py").write_text(text)
    (tmp_path / "unit.env").write_text("ORCHMGMT_PORT=1234\n")
    env = {f"ORCHMGMT_{name}": it for name, it in {**cloud.settings, **cloud.registry}.items()}
    env |= {"ORCHMGMT_MANAGEMENT_POLICY": "authorization", "PYTHONPATH": "."}
    if package == "cryptography":
        policy = {"ORCHMGMT_AUTHENTICATION_POLICY": "certificate", "ORCHMGMT_CLOUD": CLOUD}
        env |= {**policy, "ORCHMGMT_CERTIFICATE_FILE": "own.pem", "ORCHMGMT_SERVICE_PORT": "443"}
    else:
        env["ORCHMGMT_AUTHENTICATION_POLICY"] = "outsourced"
    if package == "dotenv":
        ended = run("check", "--env-file", "unit.env", env=env)
        assert (ended.returncode, ended.stdout) == (2, "")
        needs = "Error: --env-file needs python-dotenv: pip install 'orchmgmt[dotenv]'\n"
        assert ended.stderr == needs
        return
    found = looked(run("check", env=env))
    assert "pip install 'orchmgmt[" in found["wrong  policies"]
    assert [name[:5] for name in found if "ServiceReg" in name or " system" in name] == [
        "wrong"
    ] * 2


@pytest.mark.parametrize(
    ("setting", "value", "package"),
    [
        ("METRICS", "true", "prometheus_client"),
        ("OPENAPI", "true", "apispec"),
        ("CORS_ORIGINS", "https://tools.example", "flask_cors"),
        ("MQTT_URL", "mqtt://127.0.0.1:1", "paho"),
    ],
)
def test_a_check_finds_the_package_without_which_no_server_starts(
    run: Run, database: Path, tmp_path: Path, setting: str, value: str, package: str
) -> None:
    text = f"raise ModuleNotFoundError('No module named {package}', name='{package}')"
    (tmp_path / f"{package}.py").write_text(text)
    env = {f"ORCHMGMT_{setting}": value, "PYTHONPATH": "."}
    served = run("serve", "--port", "0", env=env)
    assert served.returncode == 2
    checked = run("check", env=env)
    assert checked.returncode == 1
    assert f"Error: {looked(checked)['wrong  settings']}\n" == served.stderr


# The shell


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    script = """
    eval "$(orchmgmt completion bash)"
    for words in "orchmgmt lo" "orchmgmt lock cr" "orchmgmt lock create --expires-" \\
        "orchmgmt serve --authentication-policy " "orchmgmt serve --ui t"; do
        COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
        case "$words" in *" ") COMP_WORDS+=(""); COMP_CWORD=$((COMP_CWORD + 1)) ;; esac
        _orchmgmt_completion orchmgmt
        echo "${COMPREPLY[@]}"
    done
    """
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "lock",
        "create",
        "--expires-in --expires-at",
        "declared outsourced certificate",
        "true",
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_another_shell_can_read_what_it_is_given(run: Run, shell: str) -> None:
    path = program(shell)
    script = run("completion", shell)
    assert script.returncode == 0
    read = subprocess.run([path, "-n"], input=script.stdout, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")
    env = {"_ORCHMGMT_COMPLETE": f"{shell}_complete", "COMP_WORDS": "orchmgmt lock cr"}
    offered = run(env={**env, "COMP_CWORD": "cr" if shell == "fish" else "2"})
    assert "create" in offered.stdout


def test_a_server_imports_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys; from orchmgmt.cli import main, Group\n"
        "import orchmgmt.app, orchmgmt.serving.server\n"
        "print([it for it in sys.modules if it.startswith('orchmgmt.commands')"
        " or it == 'orchmgmt.client'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "[]\n"
