"""`/metrics`: what it counts, what it costs, and what is there when it is off."""

import re
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
from pages import marked
from prometheus_client.parser import text_string_to_metric_families
from support import MANAGEMENT, job, lock

from orchmgmt.app import create_app
from orchmgmt.serving.cleaner import Cleaner

PAST = "2020-01-01T00:00:00Z"


def metrics(service):
    """Each sample's value of our own, by its name and labels, but for times."""
    answer = service.send("GET", "/metrics", headers={})
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name.removeprefix("orchmgmt_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if sample.name.startswith("orchmgmt_") and not sample.name.endswith("_created")
    }


def test_the_version_and_the_process_are_told_of(start):
    service = start(METRICS=True)
    assert metrics(service)["build_info", version("orchmgmt")] == 1
    text = service.send("GET", "/metrics", headers={}).body.decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds"} <= names
    assert {"python_info", "python_gc_collections"} <= names


def test_requests_are_counted_by_operation_and_status(start):
    service = start(METRICS=True)
    service.create(lock("A|b|1.0.0"))
    service.create(lock("A|b|1.0.0"))
    service.create(lock("C|d|1.0.0"))
    service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0")
    service.post("/lock/query", {}, Authorization="Bearer SYSTEM//Alice")
    service.send("GET", "/nobody/knows/this")
    service.send("GET", f"{MANAGEMENT}/lock/create")
    service.send("GET", f"{MANAGEMENT}/lock/create2")
    found = metrics(service)
    counted = {key[1:]: value for key, value in found.items() if key[0] == "requests_total"}
    assert counted == {
        ("lock.create", "201"): 2,
        ("lock.create", "400"): 1,
        ("lock.remove", "200"): 1,
        ("lock.query", "403"): 1,
        ("unknown", "404"): 2,
        ("unknown", "405"): 1,
    }
    assert found["request_seconds_count", "lock.create"] == 3
    assert found["request_seconds_bucket", "+Inf", "lock.create"] == 3
    assert found["request_seconds_sum", "lock.create"] > 0
    assert metrics(service)["requests_total", "metrics.metrics", "200"] == 1


def test_locks_and_jobs_are_counted_as_they_are_now(start):
    service = start(METRICS=True)
    assert metrics(service)["active_locks",] == 0
    service.create(lock("A|b|1.0.0"), lock("C|d|1.0.0"))
    store = service.store
    store.database.write(
        store.database.change,
        "INSERT INTO orchestration_lock (orchestration_job_id, service_instance_id, owner,"
        f" expires_at, temporary) VALUES ('', 'E|f|1.0.0', 'Owner', '{PAST}', FALSE)",
    )
    store.database.write(store.job_table.put, [job(1), job(2), job(3, status="PENDING")])
    found = metrics(service)
    assert found["active_locks",] == 2
    assert {key[1]: value for key, value in found.items() if key[0] == "jobs"} == {
        "PENDING": 1, "IN_PROGRESS": 0, "DONE": 2, "ERROR": 0,
    }  # fmt: skip


@pytest.mark.sqlite
def test_a_database_that_is_away_is_told_of(start, tmp_path):
    service = start(METRICS=True)
    (tmp_path / "orchmgmt.db").rename(tmp_path / "aside.db")
    assert service.locks().status == 503
    found = metrics(service)
    assert found["database_up",] == 0
    assert found["requests_total", "lock.query", "503"] == 1
    assert ("active_locks",) not in found
    (tmp_path / "aside.db").rename(tmp_path / "orchmgmt.db")
    assert metrics(service)["database_up",] == 1


def test_the_cleaner_is_told_of_and_the_page_names_every_metric(serve, cloud, tmp_path):
    more = ("--service-registry-url", cloud.registry["SERVICE_REGISTRY_URL"])
    more = (*more, "--mqtt-url", "mqtt://127.0.0.1:1")  # where nobody listens
    server = serve("--metrics", "true", "--cleaner-interval-seconds", "0.05", *more)
    server.locks()
    found = metrics(server)
    while found["cleaner_rounds_total",] < 2:
        time.sleep(0.02)
        found = metrics(server)
    assert found["cleaner_failures_total",] == 0
    (tmp_path / "orchmgmt.db").rename(tmp_path / "aside.db")
    while found["cleaner_failures_total",] < 1:
        time.sleep(0.02)
        found = metrics(server)
    (tmp_path / "aside.db").rename(tmp_path / "orchmgmt.db")
    found = metrics(server)
    names = {re.sub("_(bucket|count|sum)$", "", key[0]) for key in found}
    assert set(re.findall(r"^\| `orchmgmt_(\w+)`", marked("metrics"), re.MULTILINE)) == names


def test_what_the_cleaner_deletes_is_counted(start, tmp_path):
    store = start().store
    store.database.write(store.job_table.put, [job(1, finished_at=PAST), job(2, finished_at=PAST)])
    cleaner = Cleaner(store, 0.01)
    cleaner.start("")
    while not cleaner.jobs:
        time.sleep(0.01)
    cleaner.stop()
    assert (cleaner.jobs, cleaner.locks, cleaner.failures) == (2, 0, 0)


def test_two_applications_count_for_themselves(start, tmp_path):
    first = start(METRICS=True)
    second = start(METRICS=True, DATABASE_URL=f"sqlite:///{tmp_path}/2.db")
    first.create(lock("A|b|1.0.0"))
    assert metrics(first)["requests_total", "lock.create", "201"] == 1
    assert ("requests_total", "lock.create", "201") not in metrics(second)


def test_nothing_is_there_when_it_is_off(service, run, tmp_path):
    assert service.send("GET", "/metrics").status == 404
    app = create_app({"DATABASE_URL": "sqlite:///:memory:"})
    assert None not in app.before_request_funcs
    assert None not in app.after_request_funcs
    script = "import sys, orchmgmt.app\norchmgmt.app.create_app()\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "orchmgmt.views" in ended.stdout.split()
    assert "prometheus_client" not in ended.stdout.split()


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["demo", "--port", "0"]])
def test_without_the_extra_the_start_ends_with_one_clear_line(run, tmp_path, command):
    missing = "raise ImportError('no such module', name='a package')"
    (tmp_path / "prometheus_client.py").write_text(missing)
    ended = run(*command, "--metrics", "true", env={"PYTHONPATH": str(tmp_path)})
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: ORCHMGMT_METRICS needs a package: ")
    assert line.endswith("pip install 'orchmgmt[metrics]'")
