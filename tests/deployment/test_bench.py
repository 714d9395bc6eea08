"""What the service is measured against gives the same answers."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import MANAGEMENT, Client, job, lock

from orchmgmt.models import NewLock
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def limit(tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/limit.db"}) as store:
        jobs = [job(n, status=("DONE", "ERROR")[n % 2]) for n in range(30)]
        store.database.write(store.job_table.put, jobs)
        store.lock_table.create(
            [
                NewLock("", f"P{n}|s|1.0.0", f"Owner{n % 3}", "2099-01-01T00:00:00Z")
                for n in range(9)
            ]
        )
    shutil.copyfile(tmp_path / "limit.db", tmp_path / "orchmgmt.db")
    process = subprocess.Popen(
        [sys.executable, BENCH / "limit_server.py", tmp_path / "limit.db"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield Client(process.stdout.readline().split()[-1])
    process.terminate()
    process.communicate(timeout=30)


def test_the_limit_server_gives_our_answers(start, limit):
    service = start()
    for path, payload in (
        ("/lock/query", {"ids": [4]}),
        ("/lock/query", {"owners": ["Owner2"]}),
        ("/lock/query", {"pagination": {"page": 0, "size": 5}}),
        ("/history/query", {"ids": [job(7)["id"]]}),
        ("/history/query", {"pagination": {"page": 0, "size": 5}}),
        (
            "/history/query",
            {
                "statuses": ["DONE"],
                "requesterSystems": ["Alice"],
                "pagination": {"page": 0, "size": 5},
            },
        ),
        ("/lock/create", {"locks": [lock("New1|s|1.0.0"), lock("New2|s|1.0.0")]}),
    ):
        ours, theirs = service.post(path, payload), limit.post(path, payload)
        assert (ours.status, ours.json["count"]) == (theirs.status, theirs.json["count"])
        for entry in theirs.json["entries"]:
            if "temporary" in entry:
                entry["temporary"] = bool(entry["temporary"])
        assert ours.json == theirs.json


def test_the_application_is_measured_under_granian_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    run = importlib.import_module("run")
    run.fill(tmp_path / "data.db", 10, 10)
    with run.granian(tmp_path / "data.db", 1) as running:
        assert Client(running.url).locks().json["count"] == 10
    with pytest.raises(ConnectionError):
        Client(running.url).locks()


def test_the_requests_of_the_load_are_those_of_the_table():
    script = (BENCH / "requests.lua").read_text()
    for case in ("lock_by_id", "page_of_10_jobs_filtered", "create_100", "job_by_id"):
        assert f"  {case} = function" in script
    assert MANAGEMENT in script
