"""`orchmgmt lock hold` and `lock renew`, against a real service and with real commands."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND
from support import Process, Service, after, lock, until

from orchmgmt import testing

pytestmark = pytest.mark.sqlite

Run = Callable[..., "subprocess.CompletedProcess[str]"]

BOILER, TANK = "Boiler|heat|1.0.0", "Tank|level|1.0.0"
ME = ("--owner", "BoilerControl")


@pytest.fixture
def service(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service of this machine, as the settings say."""
    monkeypatch.setenv("ORCHMGMT_PORT", service.url.rpartition(":")[2])
    monkeypatch.setenv("PATH", f"{Path(COMMAND).parent}:/usr/local/bin:/usr/bin:/bin")
    return service


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


def begun(*arguments: str) -> "subprocess.Popen[str]":
    """Start `lock hold`, and return it once its command has said that it runs."""
    process = subprocess.Popen(
        [COMMAND, "lock", "hold", *ME, *arguments], stdout=-1, stderr=-1, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    return process


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for its end; return the exit code and what it said of its own."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_a_command_runs_while_the_locks_are_held(service: Service, run: Run) -> None:
    inner = "orchmgmt lock list --json; echo $ORCHMGMT_LOCK_IDS $ORCHMGMT_LOCK_FENCE; exit 7"
    found = run("lock", "hold", *ME, BOILER, "tank|level|1", "--", "sh", "-c", inner)
    assert (found.returncode, found.stderr) == (7, "")
    *entries, told = found.stdout.splitlines()
    assert [json.loads(it)["serviceInstanceId"] for it in entries] == [BOILER, TANK]
    assert told == "1,2 2"
    assert service.locks().entries == []


def test_options_of_the_command_are_its_own(service: Service, run: Run) -> None:
    found = run("lock", "hold", BOILER, *ME, "--", "printf", "%s ", "--owner", "--", "-x")
    assert (found.returncode, found.stdout) == (0, "--owner -- -x ")


def test_a_command_does_not_run_without_the_locks(
    service: Service, run: Run, tmp_path: Path
) -> None:
    service.create(lock(TANK, "Rival"))
    for options in (["--no-wait"], ["--wait", "1s"]):
        found = run("lock", "hold", *ME, *options, BOILER, TANK, "--", "touch", "ran")
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr == f"Error: Already locked: {TANK}\n"
    assert not (tmp_path / "ran").exists()
    assert [it["owner"] for it in service.locks().entries] == ["Rival"]


def test_it_waits_until_the_locks_are_free(service: Service, run: Run) -> None:
    service.create(lock(BOILER, "Rival", after(3)))
    found = run("lock", "hold", *ME, BOILER, "--", "echo", "now")
    assert (found.returncode, found.stdout) == (0, "now\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((BOILER,), "give the command to run, after --"),
        ((BOILER, "--"), "give the command to run, after --"),
        (("--", "ls"), "Missing argument"),
        ((BOILER, "--wait", "1s", "--no-wait", "--", "ls"), "not both"),
        ((BOILER, "--lease", "soon", "--", "ls"), "is not like 1h"),
        ((BOILER, "--", "/no/such/command"), "cannot run /no/such/command: No such file"),
    ],
)
def test_what_cannot_be_run_is_said(
    service: Service, run: Run, arguments: tuple[str, ...], said: str
) -> None:
    found = run("lock", "hold", *ME, *arguments)
    assert found.returncode == 2
    assert said in found.stderr
    assert service.locks().entries == []


def test_without_a_service_nothing_runs(run: Run, tmp_path: Path) -> None:
    url = ("--url", "http://127.0.0.1:1", "--no-wait")
    found = run("lock", "hold", *ME, *url, BOILER, "--", "touch", str(tmp_path / "ran"))
    assert found.returncode == 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_are_passed_on(service: Service, name: str) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(9))\n"
        "print('runs', flush=True)\n"
        "time.sleep(60)"
    )
    process = begun(BOILER, "--", *python(code))
    process.send_signal(getattr(signal, name))
    assert ended(process) == (9, "")
    assert service.locks().entries == []


def test_a_signal_ends_the_wait() -> None:
    with testing.Service() as service:
        service.add_lock(BOILER, owner="Rival")
        arguments = ("lock", "hold", "--url", service.url, *ME, BOILER, "--", "ls")
        process = subprocess.Popen([COMMAND, *arguments], stdout=-1, stderr=-1)
        until(lambda: service.requests and service.requests[-1].status)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 128 + signal.SIGTERM


def test_a_command_that_a_signal_ends_has_the_exit_code_of_a_shell(service: Service) -> None:
    process = begun(BOILER, "--", "sh", "-c", "echo runs; exec sleep 60")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (128 + signal.SIGTERM, "")
    assert service.locks().entries == []


def test_the_locks_are_renewed_while_it_runs(service: Service) -> None:
    process = begun("--lease", "1s", BOILER, "--", "sh", "-c", "echo runs; exec sleep 4")
    (first,) = service.locks().entries
    while process.poll() is None:
        entries = service.locks().entries
        assert [it["id"] for it in entries] == [first["id"]] or process.wait(10) == 0
        time.sleep(0.1)
    assert ended(process) == (0, "")


def test_a_command_ends_when_the_locks_are_lost(serve: Callable[..., Process]) -> None:
    server = serve("--database-url", "sqlite:///lost.db")
    end = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import time\n"
    run_on = "print('runs', flush=True); time.sleep(60)"
    where = ("--url", server.url, "--lease", "2s")
    polite = begun(*where, BOILER, "--", *python(f"import time; {run_on}"))
    deaf = begun(*where, "--grace", "1s", TANK, "--", *python(end + run_on))
    server.stop(signal.SIGKILL)
    for process in (polite, deaf):
        code, said = ended(process)
        assert code == 6
        assert said.startswith("Error: lost: the locks could not be renewed within 2 s")


def test_a_lock_of_another_is_not_freed_at_the_end(service: Service) -> None:
    process = begun(BOILER, "--", "sh", "-c", "echo runs; exec sleep 60")
    service.remove("BoilerControl", "instanceIds=Boiler%7Cheat%7C1.0.0")
    service.create(lock(BOILER, "BoilerControl"))
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] in (128 + signal.SIGTERM, 6)
    assert [it["id"] for it in service.locks().entries] == [2]


def test_locks_are_renewed_all_or_none(service: Service, run: Run) -> None:
    service.create(lock(BOILER, "BoilerControl", after(60)), lock(TANK, "Rival"))
    found = run("lock", "renew", *ME, "--expires-in", "1h", "boiler|heat|1", "--json")
    entry: dict[str, Any] = json.loads(found.stdout)
    assert (entry["id"], entry["owner"]) == (1, "BoilerControl")
    assert after(3500) < entry["expiresAt"] <= after(3602)
    found = run("lock", "renew", *ME, "--expires-in", "2h", BOILER, TANK)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == f"Error: Not locked by BoilerControl: {TANK}\n"
    assert service.locks(ids=[1]).entries == [entry]


def test_a_lock_that_is_created_ends_by_the_clock_of_the_service(
    serve: Callable[..., Process], new_clock: Callable[..., Any], run: Run
) -> None:
    hour = 3600
    server = serve("--database-url", "sqlite:///ahead.db", env=new_clock(hour).env)
    made = run("lock", "create", *ME, "--expires-in", "60s", BOILER, "--url", server.url, "--json")
    entry = json.loads(made.stdout)
    assert after(hour) < entry["expiresAt"] <= after(hour + 61)
    until(lambda: server.locks().entries == [entry])
