"""`orchmgmt lock|history import|export`: JSON Lines in and out, all or nothing."""

import json
import os
import pwd
import subprocess
import sys
import threading

import pytest
from conftest import COMMAND
from needs import terminal
from pages import marked
from support import FUTURE, lock
from wire import JOB, LOCK, execute, insert

from orchmgmt.commands.transfer import BadLine, export_jobs, export_locks, import_jobs, import_locks
from orchmgmt.models import NewLock
from orchmgmt.store import Store

PAST = "2020-01-01T00:00:00Z"
JOB_ID = "0b7e6f1e-3e0f-4f5a-9d3e-0a1b2c3d4e5f"
OTHER_ID = "7c1d2e3f-0000-4000-8000-00000000000a"


@pytest.fixture(autouse=True)
def _without_audit_log(monkeypatch):
    """What a command says beside the audit log, of which one test asks."""
    monkeypatch.setenv("ORCHMGMT_LOG_LEVEL", "WARNING")


def lock_entry(instance="Provider|kelvinInfo|1.0.0", **values):
    return {
        "id": 7,
        "orchestrationJobId": "",
        "serviceInstanceId": instance,
        "owner": "Owner",
        "expiresAt": FUTURE,
        "temporary": False,
        **values,
    }


def job_entry(id=JOB_ID, **values):
    return {
        "id": id,
        "status": "DONE",
        "type": "PULL",
        "requesterSystem": "Requester",
        "targetSystem": "Target",
        "serviceDefinition": "kelvinInfo",
        "subscriptionId": OTHER_ID,
        "message": "Zwölf Ω 😀\nline",
        "createdAt": "2026-01-01T00:00:00Z",
        "startedAt": "2026-01-01T00:00:01Z",
        "finishedAt": "2026-01-01T00:00:02Z",
        **values,
    }


def lines(*entries):
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries)


def encoded(*entries):
    return lines(*entries).encode().splitlines(keepends=True)


def without(entry, *keys):
    return {key: value for key, value in entry.items() if key not in keys}


def exported(run, what, *options):
    ended = run(what, "export", *options)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture
def store(database_url):
    with Store({"DATABASE_URL": database_url}) as store:
        yield store


def contents(store):
    """Everything that the database holds."""
    return [
        store.database.read(store.database.rows, f"SELECT * FROM {table} ORDER BY 1")
        for table in (LOCK, JOB)
    ]


def written(export, store):
    """The entries that an export writes, without the line that tells the last id."""
    text = []
    count = export(store, text.append)
    entries = [json.loads(line) for line in "".join(text).splitlines()]
    entries = [it for it in entries if it.get("owner") != "Nobody"]
    assert count == len(entries)
    return entries


@pytest.mark.parametrize(
    ("what", "entries"),
    [
        (
            "lock",
            [
                lock_entry(),
                lock_entry("Other|b|2.0.0", id=9, orchestrationJobId=JOB_ID, temporary=True),
            ],
        ),
        (
            "history",
            [
                job_entry(),
                job_entry(OTHER_ID, status="PENDING", message="", startedAt="", finishedAt=""),
            ],
        ),
    ],
)
def test_what_is_imported_is_exported_by_file_and_by_pipe(run, tmp_path, what, entries):
    entries.sort(key=lambda entry: entry["id"])
    text = lines(*entries)
    (tmp_path / "in.jsonl").write_text(text)
    first = run(what, "import", "in.jsonl")
    assert first.returncode == 0
    assert first.stderr == ""
    assert first.stdout.startswith("Imported 2 ")
    assert run(what, "export", "out.jsonl").stdout == ""
    from_file = (tmp_path / "out.jsonl").read_text()
    assert [json.loads(line) for line in from_file.splitlines()] == entries
    by_pipe = run(what, "export", *(["-"] if what == "lock" else []))
    assert by_pipe.stdout == from_file
    assert by_pipe.stderr.startswith("Exported 2 ")

    other = ("--database-url", "sqlite:///other.db")
    second = run(what, "import", "-", *other, input=from_file)
    assert second.returncode == 0
    assert second.stdout == first.stdout.replace("orchmgmt.db", "other.db")
    assert run(what, "export", *other).stdout == from_file


def test_answers_of_a_service_can_be_imported(start, run, tmp_path):
    service = start(DATABASE_URL=f"sqlite:///{tmp_path}/source.db")
    service.create(*[lock(f"Provider{number}|s|1.0.0") for number in range(3)])
    job = service.store.history.create("PUSH", "Alice", "Bob", "kelvinInfo", message="\n√2")
    service.store.history.start(job)
    locks, jobs = service.locks().entries, service.jobs().entries
    assert run("lock", "import", "-", input=lines(*locks)).returncode == 0
    assert run("history", "import", "-", input=lines(*jobs)).returncode == 0
    assert exported(run, "lock") == locks[::-1]
    assert exported(run, "history") == jobs


@pytest.mark.parametrize("what", ["lock", "history"])
def test_omit_empty_leaves_keys_out_and_still_imports(run, store, what):
    load, dump = (import_locks, export_locks) if what == "lock" else (import_jobs, export_jobs)
    entry = lock_entry() if what == "lock" else job_entry(message="", subscriptionId="")
    load(store, encoded(entry))
    short = exported(run, what, "--omit-empty", "true")
    assert short == [{key: value for key, value in entry.items() if value != ""}]
    with Store({"DATABASE_URL": "sqlite:///:memory:"}) as other:
        load(other, encoded(*short))
        assert written(dump, other) == [entry]


def test_locks_without_an_id_get_new_ones(store):
    import_locks(store, encoded(lock_entry(id=40)))
    absent = without(lock_entry("A|b|1.0.0"), "id", "temporary", "orchestrationJobId")
    imported = import_locks(
        store,
        encoded(absent, lock_entry("C|d|1.0.0", id=None), lock_entry("E|f|1.0.0", id="")),
    )
    assert imported == (3, 0)
    entries = written(export_locks, store)
    assert [entry["id"] for entry in entries] == [40, 41, 42, 43]
    assert entries[1] == lock_entry("A|b|1.0.0", id=41)


def test_jobs_without_an_id_get_new_ones(store):
    for _ in range(2):
        assert import_jobs(store, encoded(without(job_entry(), "id"), job_entry(id=None))) == 2
    ids = {entry["id"] for entry in written(export_jobs, store)}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("load", "dump", "entry"),
    [(import_locks, export_locks, lock_entry), (import_jobs, export_jobs, job_entry)],
    ids=["locks", "jobs"],
)
def test_an_import_can_be_repeated(store, load, dump, entry):
    other = entry(OTHER_ID) if load is import_jobs else entry("Other|b|1.0.0", id=8)
    text = encoded(entry(), other)
    load(store, text)
    before = contents(store)
    load(store, text)
    assert contents(store) == before
    assert len(written(dump, store)) == 2


def test_importing_a_known_job_updates_every_part_of_it(store):
    import_jobs(store, encoded(job_entry()))
    changed = {
        "status": "IN_PROGRESS",
        "type": "PUSH",
        "requesterSystem": "Changed",
        "targetSystem": "Changed",
        "serviceDefinition": "changed",
        "subscriptionId": "",
        "message": "",
        "createdAt": "2026-02-01T00:00:00Z",
        "startedAt": "2026-02-01T00:00:01Z",
        "finishedAt": "",
    }
    text = encoded(job_entry(JOB_ID.upper(), **changed))
    reason = f"Orchestration job {JOB_ID} has type PULL: it cannot become PUSH"
    refuses(import_jobs, store, text, 1, f"{reason}; use --replace to allow it")
    import_jobs(store, text, replace=True)
    assert written(export_jobs, store) == [{"id": JOB_ID, **changed}]


def test_an_import_takes_no_job_back_unless_it_is_told_to(run, tmp_path, database_url):
    env = {"ORCHMGMT_DATABASE_URL": database_url}
    pending = job_entry(status="PENDING", startedAt="", finishedAt="")
    failed = job_entry(status="ERROR")
    many = [job_entry(f"{n:08x}-0000-4000-8000-000000000000") for n in range(999)]

    def imports(*entries, options=()):
        text = lines(job_entry(OTHER_ID), *entries)
        return run("history", "import", "-", *options, env=env, input=text)

    def there():
        text = run("history", "export", env=env).stdout
        return {it["id"]: it["status"] for it in map(json.loads, text.splitlines())}

    assert imports(pending).returncode == 0
    assert imports(job_entry()).returncode == 0
    for back, status in ((pending, "PENDING"), (failed, "ERROR")):
        # Also where the file itself has the later state before it, far away.
        for between in ([], many):
            ended = imports(job_entry(), *between, back)
            assert (ended.returncode, ended.stdout) == (2, "")
            reason = f"Orchestration job {JOB_ID} is DONE: it cannot become {status}"
            line = len(between) + 3
            assert ended.stderr == f"Error: line {line}: {reason}; use --replace to allow it\n"
        assert there() == {OTHER_ID: "DONE", JOB_ID: "DONE"}
    assert imports(pending, options=["--replace"]).returncode == 0
    assert there() == {OTHER_ID: "DONE", JOB_ID: "PENDING"}


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_without_end_takes_no_memory(run, tmp_path, end):
    with (tmp_path / "jobs.jsonl").open("w") as file:
        file.write(lines(job_entry()))
        file.writelines(["[" * 1_000_000] * 500)
        file.write(end)
    code = (
        "import resource, sys; from orchmgmt.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 * 2**20,) * 2)\n"
        "main(['history', 'import', 'jobs.jsonl'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert ended.stderr == "Error: line 2: it is longer than 1,048,576 bytes\n"


def test_messages_of_the_largest_size_take_little_memory(run, tmp_path, database_url):
    job = job_entry(message="\U0001f600" * 16_384)
    (tmp_path / "jobs.jsonl").write_text("")
    with (tmp_path / "jobs.jsonl").open("a") as file:
        for number in range(1500):
            job["id"] = f"{number:08x}-0000-4000-8000-000000000000"
            file.write(json.dumps(job) + "\n")
    for what in ("import", "export"):
        code = (
            "from orchmgmt.cli import main\n"
            f"main(['history', '{what}', 'jobs.jsonl'], standalone_mode=False)\n"
            "print(*[it for it in open('/proc/self/status') if it.startswith('VmHWM')])"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "ORCHMGMT_DATABASE_URL": database_url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout.split()[-2]) < 150 * 1024  # KiB; a batch of a thousand is 64 MiB


def test_of_several_jobs_with_one_id_the_last_counts(store):
    import_jobs(store, encoded(job_entry(message="first"), job_entry(message="last")))
    assert [entry["message"] for entry in written(export_jobs, store)] == ["last"]


def test_importing_a_known_lock_replaces_it(store):
    import_locks(store, encoded(lock_entry()))
    changed = {"expiresAt": "2098-01-01T00:00:00Z", "temporary": True}
    import_locks(store, encoded(lock_entry(**changed, orchestrationJobId=JOB_ID)))
    assert written(export_locks, store) == [lock_entry(**changed, orchestrationJobId=JOB_ID)]


def test_importing_a_known_lock_of_another_owner_is_refused_while_it_is_active(store):
    import_locks(store, encoded(lock_entry()))
    other = encoded(lock_entry("A|b|1.0.0", id=9), lock_entry(owner="Other"))
    refuses(import_locks, store, other, 2, "Already locked: Provider|kelvinInfo|1.0.0")
    change = f"UPDATE {LOCK} SET expires_at = '{PAST}'"
    store.database.write(store.database.change, change)
    assert import_locks(store, other) == (2, 0)
    assert [it["owner"] for it in written(export_locks, store)] == ["Other", "Owner"]


def test_what_is_created_after_the_largest_id_was_imported_can_be_imported_as_well(store, tmp_path):
    import_locks(store, encoded(lock_entry(id=2**53)))
    ((highest, *_),) = store.lock_table.create([NewLock("", "A|b|1.0.0", "Owner", FUTURE)])
    assert highest == 2**53 + 1
    exported = written(export_locks, store)
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/other.db"}) as other:
        assert import_locks(other, encoded(*exported)) == (2, 0)
        assert written(export_locks, other) == exported


def test_an_import_that_is_refused_leaves_the_ids_as_they_were(store):
    import_locks(store, encoded(lock_entry(id=7)))
    bad = encoded(lock_entry("A|b|1.0.0", id=1000), lock_entry(id=8))
    refuses(import_locks, store, bad, 2, "Already locked")
    ((lock_id, *_),) = store.lock_table.create([NewLock("", "A|b|1.0.0", "Owner", FUTURE)])
    assert lock_id == 8


def test_values_are_normalised(store):
    rough = lock_entry(
        " provider-one | Kelvin_info | 1 ",
        id="5",
        owner=" plant-manager ",
        expiresAt="2098-12-31T23:59:59.5-01:00",
    )
    import_locks(store, encoded(rough))
    neat = lock_entry(
        "ProviderOne|kelvinInfo|1.0.0",
        id=5,
        owner="PlantManager",
        expiresAt="2099-01-01T01:00:00Z",
    )
    assert written(export_locks, store) == [neat]
    import_jobs(store, encoded(job_entry(status="done", type="pull", targetSystem="the-target")))
    (job,) = written(export_jobs, store)
    assert (job["status"], job["type"], job["targetSystem"]) == ("DONE", "PULL", "TheTarget")


def test_ids_go_on_after_the_largest_imported(service):
    import_locks(service.store, encoded(lock_entry(id=1000)))
    (entry,) = service.create(lock("A|b|1.0.0")).entries
    assert entry["id"] == 1001


def test_a_move_goes_on_with_the_ids_though_locks_were_removed(
    run, service, database_url, tmp_path, request
):
    service.create(*[lock(f"Provider{number}|s|1.0.0") for number in range(5)])
    service.remove("Owner", "instanceIds=Provider4%7Cs%7C1.0.0")
    here = {"ORCHMGMT_DATABASE_URL": database_url}
    for removed in ([], ["Provider0", "Provider1", "Provider2", "Provider3"]):  # some, and all
        for name in removed:
            removal = service.remove("Owner", f"instanceIds={name}%7Cs%7C1.0.0")
            assert removal.status == 200, removal.error
        text = run("lock", "export", env=here)
        there = [] if removed else service.locks().entries[::-1]
        assert text.stderr == f"Exported {len(there)} locks.\n"
        *entries, last = map(json.loads, text.stdout.splitlines())
        assert entries == there
        assert (last["id"], last["expiresAt"]) == (5, "1970-01-01T00:00:00Z")
        targets = [f"sqlite:///{tmp_path}/{len(there)}.db"]
        if database_url.startswith("postgresql"):
            targets.append(request.getfixturevalue("postgresql").create_database())
        for url in targets:
            other = {"ORCHMGMT_DATABASE_URL": url}
            for _ in range(2):
                ended = run("lock", "import", "-", env=other, input=text.stdout)
                assert ended.returncode == 0
                assert ended.stdout.startswith(f"Imported {len(there)} locks into ")
                assert ended.stdout.endswith("; 0 had expired and were skipped.\n")
            with Store({"DATABASE_URL": url}) as moved:
                ((number, *_),) = moved.lock_table.create([NewLock("", "A|b|1.0.0", "O", FUTURE)])
            assert number == 6


def test_ids_go_on_from_those_of_locks_that_have_expired_in_the_file(store):
    import_locks(store, encoded(lock_entry(id=1000, expiresAt=PAST)))
    import_locks(store, encoded(lock_entry(id=None)))
    assert [entry["id"] for entry in written(export_locks, store)] == [1001]


def test_an_import_that_is_refused_leaves_the_last_id_as_it_was(store):
    text = encoded(lock_entry(id=1000, expiresAt=PAST), lock_entry(owner="!"))
    refuses(import_locks, store, text, 2, "does not match")
    import_locks(store, encoded(lock_entry(id=None)))
    assert [entry["id"] for entry in written(export_locks, store)] == [1]


def test_expired_locks_are_passed_over(run, tmp_path):
    entries = [lock_entry(), lock_entry("A|b|1.0.0", id=8, expiresAt=PAST), lock_entry(id=9)]
    entries[2]["expiresAt"] = PAST  # neither its id nor its instance counts: it is not there
    ended = run("lock", "import", "-", input=lines(*entries))
    assert ended.returncode == 0
    database = f"sqlite:///{tmp_path}/orchmgmt.db"
    assert ended.stdout == (f"Imported 1 lock into {database}; 2 had expired and were skipped.\n")
    last = lock_entry("Removed|lock|1.0.0", id=9, owner="Nobody", expiresAt="1970-01-01T00:00:00Z")
    assert exported(run, "lock") == [lock_entry(), last]


def test_an_expired_lock_in_the_database_does_not_stop_an_import(store):
    insert(
        store,
        LOCK,
        lock_entry(id=7, owner="Old", expiresAt=PAST),
        lock_entry("A|b|1.0.0", id=8, owner="Old", expiresAt=PAST),
    )
    import_locks(store, encoded(lock_entry(), lock_entry("A|b|1.0.0", id=None)))
    entries = written(export_locks, store)
    assert [entry["owner"] for entry in entries] == ["Owner", "Owner"]
    assert entries[0]["id"] == 7
    assert entries[1]["id"] > 8


def test_expired_locks_are_not_exported(store):
    import_locks(store, encoded(lock_entry()))
    execute(store, "UPDATE orchestration_lock SET expires_at = ?", [PAST])
    assert written(export_locks, store) == []


GOOD_LOCK = lines(lock_entry("Good|s|1.0.0", id=1)).encode()
GOOD_JOB = lines(job_entry(OTHER_ID)).encode()

BAD_JSON = [
    (b'{"id": 1', "Malformed JSON"),
    (b"nonsense", "Malformed JSON"),
    (b"{} {}", "Malformed JSON"),
    (b'{"owner": "A", "owner": "B"}', "Malformed JSON: duplicated key"),
    (b'{"id": NaN}', "Malformed JSON: NaN"),
    (b'{"owner": "\xff"}', "Malformed JSON: it is not UTF-8"),
    (b"[" * 100_000, "Malformed JSON: it is nested too deeply"),
    ("{}".encode("utf-16"), "Malformed JSON: it is not UTF-8"),
    (b"[]", "A JSON object was expected"),
    (b'"text"', "A JSON object was expected"),
    (b"5", "A JSON object was expected"),
    (b"null", "A JSON object was expected"),
]
BAD_LOCKS = [
    ({"id": 0}, f"id must be from 1 to {2**62}"),
    ({"id": 2**62 + 1}, f"id must be from 1 to {2**62}"),
    ({"id": 2**70}, "id must be"),
    ({"id": 1.5}, "id must be an integer"),
    ({"id": True}, "id must be an integer"),
    ({"serviceInstanceId": ""}, "Service instance id is missing"),
    ({"serviceInstanceId": "A|b"}, "does not match the naming convention: A|b"),
    ({"owner": None}, "Owner is missing"),
    ({"owner": "x y!"}, "does not match the naming convention: XY!"),
    ({"owner": 5}, "owner must be a string"),
    ({"expiresAt": ""}, "Expiration time is missing"),
    ({"expiresAt": "tomorrow"}, "Invalid expires at format: tomorrow"),
    ({"expiresAt": "9999-12-31T23:59:59-01:00"}, "Invalid expires at format"),
    ({"temporary": "yes"}, "temporary must be true or false"),
    ({"orchestrationJobId": "5"}, "Invalid orchestration job id: 5"),
]
BAD_JOBS = [
    ({"id": "5"}, "Invalid orchestration job id: 5"),
    ({"status": "READY"}, "Invalid status: READY"),
    ({"status": ""}, "Status is missing"),
    ({"type": "PUT"}, "Invalid type: PUT"),
    ({"type": None}, "Type is missing"),
    ({"requesterSystem": "!"}, "system name does not match the naming convention: !"),
    ({"targetSystem": ""}, "Target system is missing"),
    ({"serviceDefinition": ""}, "Service definition is missing"),
    ({"subscriptionId": "x"}, "Invalid subscription id: x"),
    ({"message": 5}, "message must be a string"),
    ({"message": "x" * 16385}, "Message is too long"),
    ({"createdAt": ""}, "Creation time is missing"),
    ({"createdAt": "2026-02-30T00:00:00Z"}, "Invalid created at format"),
    ({"startedAt": "now"}, "Invalid started at format: now"),
    ({"finishedAt": ""}, "A finished job must have finishedAt"),
    ({"status": "IN_PROGRESS"}, "An unfinished job cannot have finishedAt"),
    ({"status": "IN_PROGRESS", "finishedAt": "", "startedAt": ""}, "must have startedAt"),
    ({"status": "PENDING", "finishedAt": ""}, "A pending job cannot have startedAt"),
]


def refuses(load, store, text, number, says):
    before = contents(store)
    with pytest.raises(BadLine) as caught:
        load(store, text)
    assert str(caught.value).startswith(f"line {number}: ")
    assert says in str(caught.value)
    assert contents(store) == before


@pytest.mark.parametrize(("line", "says"), BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize(
    ("load", "good"), [(import_locks, GOOD_LOCK), (import_jobs, GOOD_JOB)], ids=["lock", "job"]
)
def test_malformed_line_is_named_and_nothing_changed(store, load, good, line, says):
    refuses(load, store, [good, b"\n", line + b"\n", good], 3, says)


@pytest.mark.parametrize(("values", "says"), BAD_LOCKS, ids=map(str, BAD_LOCKS))
def test_bad_lock_is_named_and_nothing_changed(store, values, says):
    refuses(import_locks, store, [GOOD_LOCK, *encoded(lock_entry(**values))], 2, says)


@pytest.mark.parametrize(("values", "says"), BAD_JOBS, ids=map(str, BAD_JOBS))
def test_bad_job_is_named_and_nothing_changed(store, values, says):
    refuses(import_jobs, store, [GOOD_JOB, *encoded(job_entry(**values))], 2, says)


def test_bad_line_far_down_undoes_what_came_before(store):
    many = [lock_entry(f"Provider{n}|s|1.0.0", id=None) for n in range(3000)]
    text = [*encoded(*many), b"bad\n"]
    refuses(import_locks, store, text, 3001, "Malformed JSON")
    jobs = encoded(*[without(job_entry(), "id") for _ in range(3000)])
    refuses(import_jobs, store, [*jobs, b"bad\n"], 3001, "Malformed JSON")


@pytest.mark.parametrize(("first", "second"), [(7, 8), (7, 7), (None, None), (7, None), (None, 7)])
def test_instance_twice_in_a_file_is_named(store, first, second):
    text = encoded(lock_entry(id=first), lock_entry("A|b|1.0.0", id=99), lock_entry(id=second))
    says = "Provider|kelvinInfo|1.0.0 is in line 1 already"
    refuses(import_locks, store, text, 3, says)


def test_id_twice_in_a_file_is_named(store):
    text = encoded(lock_entry(), lock_entry("A|b|1.0.0"))
    refuses(import_locks, store, text, 2, "7 is in line 1 already")


def test_instance_twice_far_apart_is_named(store):
    many = [lock_entry(f"Provider{n}|s|1.0.0", id=None) for n in range(2000)]
    refuses(import_locks, store, encoded(*many, many[0]), 2001, "is in line 1 already")


@pytest.mark.parametrize("lock_id", [8, None], ids=["another id", "no id"])
def test_held_instance_is_named(store, lock_id):
    import_locks(store, encoded(lock_entry()))
    text = encoded(lock_entry("A|b|1.0.0", id=9), lock_entry(id=lock_id, owner="Other"))
    refuses(import_locks, store, text, 2, "Already locked: Provider|kelvinInfo|1.0.0")


def test_id_of_another_instance_is_named(store):
    import_locks(store, encoded(lock_entry()))
    text = encoded(lock_entry("A|b|1.0.0", id=9), lock_entry("C|d|1.0.0"))
    refuses(import_locks, store, text, 2, "lock 7 is of another service instance")


def test_id_of_another_instance_whose_lock_has_expired_is_named_too(store):
    insert(store, LOCK, lock_entry("Old|s|1.0.0", id=7, owner="Old", expiresAt=PAST))
    # Ids are never used again, so this one is of a lock that was another.
    refuses(import_locks, store, encoded(lock_entry()), 1, "lock 7 is of another service instance")


def test_first_of_several_bad_lines_is_named(store):
    import_locks(store, encoded(lock_entry()))
    text = encoded(lock_entry("A|b|1.0.0", id=9), lock_entry(id=8), lock_entry("C|d|1.0.0"))
    refuses(import_locks, store, [*text, b"bad\n"], 2, "Already locked")


def test_two_instances_swap_their_places_in_one_import(store):
    later = {"expiresAt": "2098-01-01T00:00:00Z"}
    import_locks(store, encoded(lock_entry(id=1), lock_entry("A|b|1.0.0", id=2)))
    text = encoded(lock_entry("A|b|1.0.0", id=2, **later), lock_entry(id=1, **later))
    assert import_locks(store, text) == (2, 0)
    assert {entry["expiresAt"] for entry in written(export_locks, store)} == set(later.values())


def test_blank_lines_and_line_ends_do_not_matter(store):
    one = json.dumps(lock_entry()).encode()
    two = json.dumps(lock_entry("A|b|1.0.0", id=8)).encode()
    assert import_locks(store, [b"\n", b" \t\r\n", one + b"\r\n", b"\n", b"  " + two]) == (2, 0)
    assert import_locks(store, []) == import_locks(store, [b"\n"]) == (0, 0)
    assert import_locks(store, [b"\xef\xbb\xbf" + one]) == (1, 0)  # as some editors begin a file


def test_bad_line_ends_the_command_with_one_clear_line(run, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(job_entry(), job_entry(status="READY")))
    ended = run("history", "import", "jobs.jsonl")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == "Error: line 2: Invalid status: READY\n"
    assert exported(run, "history") == []


def test_bytes_that_are_not_utf_8_end_the_command_with_one_clear_line(run):
    ended = run("lock", "import", "-", input=b'{"owner": "\xff"}\n', text=False)
    assert ended.returncode == 2
    assert ended.stderr == b"Error: line 1: Malformed JSON: it is not UTF-8\n"


def test_value_with_a_line_end_stays_on_one_line(run):
    ended = run("lock", "import", "-", input=lines(lock_entry(expiresAt="A\n\x1b[31mB")))
    assert ended.returncode == 2
    assert ended.stderr == "Error: line 1: Invalid expires at format: A\ufffd\ufffd[31mB\n"


@pytest.mark.parametrize(("what", "name"), [("lock", "missing.jsonl"), ("history", ".")])
def test_unreadable_file_is_named(run, tmp_path, what, name):
    ended = run(what, "import", name)
    assert ended.returncode == 2
    assert f"'{name}'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("what", "name"), [("lock", "missing/out.jsonl"), ("history", "folder")])
def test_unwritable_file_is_one_clear_line(run, tmp_path, what, name):
    (tmp_path / "folder").mkdir()
    assert run(what, "import", "-", input="").returncode == 0
    ended = run(what, "export", name)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert name in ended.stderr


@pytest.mark.parametrize("what", ["lock", "history"])
def test_full_disk_is_one_clear_line(run, store, what):
    import_locks(store, encoded(lock_entry()))
    import_jobs(store, encoded(job_entry()))
    with open("/dev/full", "w") as full:
        ended = run(what, "export", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left on device" in ended.stderr


def test_export_replaces_a_file_only_when_it_is_complete(run, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("what was there")
    out.chmod(0o640)
    jobs = [without(job_entry(message="x" * 500), "id") for _ in range(3000)]
    assert run("history", "import", "-", input=lines(*jobs)).returncode == 0
    database = tmp_path / "orchmgmt.db"
    whole = database.read_bytes()
    half = len(whole) // 2
    database.write_bytes(whole[:half] + b"\xff" * (len(whole) - half))
    ended = run("history", "export", "out.jsonl")
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr
    assert out.read_text() == "what was there"
    assert {it.suffix for it in tmp_path.iterdir()} <= {".jsonl", ".db", ".db-wal", ".db-shm"}
    database.write_bytes(whole)
    assert run("history", "export", "out.jsonl").returncode == 0
    assert len(out.read_text().splitlines()) == 3000
    assert out.stat().st_mode & 0o777 == 0o640


def test_export_through_a_link_keeps_the_link(run, tmp_path):
    (tmp_path / "link").symlink_to("out.jsonl")
    assert run("lock", "import", "-", input="").returncode == 0
    assert run("lock", "export", "link").returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_export_writes_into_a_pipe_that_has_a_name(run, store, tmp_path):
    import_locks(store, encoded(lock_entry()))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    keep = os.open(pipe, os.O_RDWR)  # so that nobody waits for the other end
    try:
        assert run("lock", "export", "pipe").returncode == 0
        assert pipe.is_fifo()
        assert json.loads(os.read(keep, 65536)) == lock_entry()
    finally:
        os.close(keep)


def test_many_rows_go_out_and_in(run, store, tmp_path):
    wanted = [job_entry(f"{n:08x}-0000-4000-8000-000000000000") for n in range(5000)]
    (tmp_path / "jobs.jsonl").write_text(lines(*wanted))
    assert run("history", "import", "jobs.jsonl").stdout.startswith("Imported 5000 jobs into ")
    ended = run("history", "export", "out.jsonl")
    assert ended.stderr == "Exported 5000 jobs.\n"
    with (tmp_path / "out.jsonl").open() as file:
        assert [json.loads(line) for line in file] == wanted


def test_reader_that_stops_early_is_no_traceback(run, store):
    import_jobs(store, encoded(*[without(job_entry(), "id") for _ in range(5000)]))
    process = subprocess.Popen(
        [COMMAND, "history", "export", "--database-url", store.settings.database_url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait(30)
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_export_shows_one_moment_while_a_service_writes(start):
    service = start()
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            pair = [lock(f"{side}{number}|s|1.0.0") for side in ("Left", "Right")]
            assert service.create(*pair).status == 201

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [len(written(export_locks, service.store)) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    assert all(count % 2 == 0 for count in counts)
    assert counts == sorted(counts)


def on_a_terminal(tmp_path, *arguments):
    """Run a command whose standard error is a terminal; return its exit code and what it shows."""
    ours, theirs = terminal()
    process = subprocess.Popen(
        [COMMAND, *arguments],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # how a terminal without its other end says that it is over
        pass
    os.close(ours)
    process.stdout.close()
    return process.wait(30), shown.decode()


def test_import_shows_a_progress_bar_on_a_terminal(tmp_path):
    jobs = [job_entry(f"{n:08x}-0000-4000-8000-000000000000") for n in range(3000)]
    (tmp_path / "jobs.jsonl").write_text(lines(*jobs))
    code, shown = on_a_terminal(tmp_path, "history", "import", "jobs.jsonl")
    assert code == 0
    assert "Importing" in shown
    assert "100%" in shown


def test_error_comes_on_a_line_of_its_own_after_a_progress_bar(tmp_path):
    (tmp_path / "locks.jsonl").write_text(lines(lock_entry()) + "bad\n")
    code, shown = on_a_terminal(tmp_path, "lock", "import", "locks.jsonl")
    assert code == 2
    last = shown.replace("\x1b[?25h", "").splitlines()[-1]
    assert last.startswith("Error: line 2: Malformed JSON")


def test_import_waits_for_no_terminal_where_there_is_none(run, tmp_path):
    (tmp_path / "locks.jsonl").write_text(lines(lock_entry()))
    assert run("lock", "import", "locks.jsonl").stderr == ""


@pytest.mark.parametrize("how", ["pipe", "file"])
def test_no_room_for_temporary_files_is_not_blamed_on_the_database(store, tmp_path, how):
    # A file system that is full is not at hand everywhere; what it says is.
    code = (
        "import errno, sqlite3, shutil; from orchmgmt import cli\n"
        "from orchmgmt.commands import transfer\n"
        "def full(*_): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        f"if {how!r} == 'pipe': shutil.copyfileobj = full\n"
        "opened = transfer._open_places\n"
        "def small():\n"
        "    places = opened()\n"
        "    places.execute('PRAGMA max_page_count = 1')\n"
        "    return places\n"
        "transfer._open_places = small\n"
        f"cli.main(['lock', 'import', '-' if {how!r} == 'pipe' else 'locks.jsonl'])"
    )
    many = lines(*[lock_entry(f"P{n}|s|1.0.0", id=n + 1) for n in range(2000)])
    (tmp_path / "locks.jsonl").write_text(many)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "ORCHMGMT_DATABASE_URL": store.settings.database_url},
        input=many,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    if how == "pipe":
        assert ended.stderr.startswith("Error: cannot keep the input in ")
        assert ended.stderr.endswith(": No space left on device\n")
    else:
        assert ended.stderr == "Error: cannot write temporary files: database or disk is full\n"
    assert contents(store) == [[], []]


def test_commands_that_change_the_database_are_audited_as_the_page_says(run, database_url):
    env = {"ORCHMGMT_DATABASE_URL": database_url, "ORCHMGMT_LOG_LEVEL": "INFO"}
    user = pwd.getpwuid(os.getuid()).pw_name

    def audited(*arguments, input=""):
        line = run(*arguments, env=env, input=input).stderr.splitlines()[0]
        return line.partition(" INFO orchmgmt.audit: ")[2].replace(
            f"user={user} ", "user=orchmgmt "
        )

    shown = marked("audit-commands")
    entries = [lock_entry(), lock_entry("A|b|1.0.0", id=8, expiresAt=PAST)]
    said = audited("lock", "import", "-", input=lines(*entries))
    assert said == "user=orchmgmt operation=lock.import result=done locks=1 expired=1"
    assert said.replace("=1", "=40", 1).replace("=1", "=2") in shown
    said = audited("history", "import", "-", input=lines(job_entry(), job_entry(OTHER_ID)))
    assert said == "user=orchmgmt operation=history.import result=done jobs=2"
    bad = lines(job_entry(), job_entry(status=""))
    assert audited("history", "import", "-", input=bad) in shown
    said = audited("clean")
    assert said == "user=orchmgmt operation=clean result=done locks=0 jobs=2"
    assert said.replace("=0", "=12").replace("=2", "=345") in shown
