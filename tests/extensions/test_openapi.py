"""What OpenAPI says of the operations: complete, true, and of use to other programs."""

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode, urljoin

import pytest
from jsonschema_rs import validator_for
from needs import program
from openapi_spec_validator import OpenAPIV31SpecValidator
from pages import blocks
from support import MANAGEMENT, OPERATOR, Client
from wire import put

from orchmgmt.app import create_app, service_of, store_of
from orchmgmt.extensions import openapi
from orchmgmt.extensions.openapi import LOCK_EXAMPLE, NEW_JOB_EXAMPLE

pytestmark = pytest.mark.sqlite

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
EXAMPLE = COMMITTED.parent.parent / "db.sqlite.example"


def document(**settings):
    """What is published under these settings."""
    service = service_of(create_app({"DATABASE_URL": "sqlite:///:memory:", **settings}))
    with service.store as store:
        return openapi.document(store.settings, service.operations)


DOCUMENT = document(recorder=True)
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
IDS = [operation["operationId"] for _, _, operation in OPERATIONS]


def test_the_committed_document_is_that_of_the_code(run):
    printed = run("openapi").stdout
    assert printed == COMMITTED.read_text(), "orchmgmt openapi > docs/openapi.json"


@pytest.fixture
def service(start):
    return start(RECORDER=True)


@pytest.mark.parametrize("recorder", [True, False])
def test_every_operation_is_described(recorder):
    app = create_app({"DATABASE_URL": "sqlite:///:memory:", "RECORDER": recorder})
    with store_of(app):
        served = {
            (method.lower(), re.sub("<(.*)>", r"{\1}", rule.rule))
            for rule in app.url_map.iter_rules()
            if not rule.defaults  # another spelling of an operation
            for method in rule.methods - {"HEAD", "OPTIONS"}
        }
    described = document(recorder=recorder)["paths"].items()
    assert served == {(method, path) for path, methods in described for method in methods}


@pytest.mark.parametrize("policy", ["declared", "certificate"])
def test_the_document_is_as_openapi_defines_one(policy):
    other = document(
        recorder=True, omit_empty=True, authentication_policy=policy, cloud="cloud.company"
    )
    for described in (DOCUMENT, other):
        OpenAPIV31SpecValidator(described).validate()
        (server,) = described["servers"]
        assert urljoin("https://host/arrowhead/openapi.json", server["url"]) == (
            "https://host/arrowhead/"
        )
    # Generators make a class for each choice of two types, and some of them one that does not work.
    assert not re.search('"(anyOf|oneOf|allOf)"', json.dumps(DOCUMENT))


def resolve(described):
    """What a reference stands for."""
    while "$ref" in described:
        *_, kind, name = described["$ref"].split("/")
        described = DOCUMENT["components"][kind][name]
    return described


def is_valid(example, schema):
    return validator_for({**schema, "components": DOCUMENT["components"]}).is_valid(example)


LOCK = {
    "serviceInstanceId": "TemperatureProvider2|kelvinInfo|1.0.0",
    "owner": "Owner",
    "expiresAt": "2099-01-01T00:00:00Z",
}
KNOWN = "00000000-0000-4000-8000-000000000001"
UNKNOWN = "00000000-0000-4000-8000-000000000002"


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_examples_are_as_described(method, path, operation):
    contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
    contents += [resolve(it).get("content", {}) for it in operation["responses"].values()]
    shown = 0
    for content in contents:
        for described in content.values():
            examples = [it["value"] for it in described.get("examples", {}).values()]
            examples += [described["example"]] if "example" in described else []
            for example in examples:
                assert is_valid(example, described["schema"]), example
            shown += len(examples)
    for parameter in operation.get("parameters", []):
        assert is_valid(parameter["example"], parameter["schema"])
    assert shown >= len(operation["responses"]) - 1


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_the_service_takes_the_examples(service, method, path, operation):
    body = operation.get("requestBody")
    example = body and json.dumps(body["content"]["application/json"]["example"]).encode()
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    query = {}
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
        elif parameter["in"] == "header":
            headers[parameter["name"]] = parameter["example"]
        else:
            query[parameter["name"]] = parameter["example"]
    path += (query and "?" + urlencode(query, doseq=True)) or ""
    if operation["operationId"] == "renewLocks":
        put(service, "orchestration_lock", LOCK_EXAMPLE)
    service.post("/history/record", {"jobs": [NEW_JOB_EXAMPLE]})  # a reservation needs its job
    if operation.get("security") == []:
        headers = {}
    answer = service.send(method.upper(), path, example, headers)
    good = str(answer.status)
    assert good[0] == "2"
    (described,) = [it for status, it in operation["responses"].items() if status == good]
    for media_type, content in described.get("content", {}).items():
        assert answer.headers["Content-Type"].partition(";")[0] == media_type
        text = media_type == "text/plain"
        assert is_valid(answer.body.decode() if text else answer.json, content["schema"])


#: Requests that are refused as the example of this name says.
REFUSED = {
    "createLocks": {
        "locked": ("POST", "/lock/create", {"locks": [LOCK]}),
        "empty": ("POST", "/lock/create", {"locks": []}),
        "past": (
            "POST",
            "/lock/create",
            {"locks": [{**LOCK, "expiresAt": "2020-01-01T00:00:00Z"}]},
        ),
    },
    "renewLocks": {
        "lost": ("POST", "/lock/renew", {"locks": [{**LOCK, "owner": "TemperatureManager"}]}),
        "empty": ("POST", "/lock/renew", {}),
    },
    "queryLocks": {"owner": ("POST", "/lock/query", {"owners": [""]})},
    "removeLocks": {"instances": ("DELETE", "/lock/remove/TemperatureManager", None)},
    "queryJobs": {"id": ("POST", "/history/query", {"ids": ["abc123"]})},
    "reserveLocks": {
        "job": ("POST", "/lock/reserve", {"locks": [{"orchestrationJobId": UNKNOWN, **LOCK}]}),
        "locked": ("POST", "/lock/reserve", {"locks": [{"orchestrationJobId": KNOWN, **LOCK}]}),
    },
    "releaseLocks": {"job": ("DELETE", "/lock/release/abc123", None)},
    "recordJobs": {
        "back": ("POST", "/history/record", {"jobs": [{"id": KNOWN, "status": "PENDING"}]}),
        "new": ("POST", "/history/record", {"jobs": [{}]}),
    },
}


def said(example):
    """The message of an example, in which one job stands for all."""
    return example["value"]["errorMessage"].replace(NEW_JOB_EXAMPLE["id"], "JOB")


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_each_example_of_a_refusal_is_what_the_service_says(service, method, path, operation):
    refused = operation["responses"].get("400")
    requests = REFUSED.get(operation["operationId"], {})
    examples = refused["content"]["application/json"]["examples"] if refused else {}
    assert requests.keys() == examples.keys()
    service.create(LOCK)
    times = {"startedAt": "2026-11-01T00:00:00Z", "finishedAt": "2026-11-01T00:00:00Z"}
    done = {**NEW_JOB_EXAMPLE, "id": KNOWN, "status": "DONE", **times}
    if operation["operationId"] == "reserveLocks":
        done = {**NEW_JOB_EXAMPLE, "id": KNOWN}
    assert service.post("/history/record", {"jobs": [done]}).status == 201
    for name, (verb, target, payload) in requests.items():
        if verb == "DELETE":
            answer = service.send(verb, MANAGEMENT + target)
        else:
            answer = service.post(target, payload)
        message = re.sub(f"{KNOWN}|{UNKNOWN}", "JOB", answer.error)
        assert (answer.status, message) == (400, said(examples[name]))
        assert examples[name]["value"]["exceptionType"] == answer.json["exceptionType"]


def test_each_example_of_another_error_is_what_the_service_says(start, tmp_path):
    service = start(MAX_BODY_BYTES=500, OPENAPI=True, DATABASE_TIMEOUT_SECONDS=0)
    shown = service.send("GET", "/openapi.json").json["components"]["responses"]
    asked = {
        "401": service.send("POST", f"{MANAGEMENT}/lock/query", headers={"Authorization": "x"}),
        "403": Client(service.url, {"Authorization": "Bearer SYSTEM//Somebody"}).locks(),
        "404": service.send("DELETE", f"{MANAGEMENT}/lock/remove/a/b"),
        "413": service.post("/lock/query", {"owners": ["A" * 600]}),
        "415": service.post("/lock/query", {}, **{"Content-Type": "text/plain"}),
    }
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asked["503"] = service.create(LOCK)
    table = service.store.lock_table
    table.find = lambda *_: 1 / 0
    asked["500"] = service.locks()
    assert asked.keys() == shown.keys()
    for status, answer in asked.items():
        example = shown[status]["content"]["application/json"]["examples"]["example"]["value"]
        assert answer.status == int(status)
        assert answer.error == example["errorMessage"]
        assert answer.json["exceptionType"] == example["exceptionType"]


def test_an_entry_may_be_empty_where_it_is_said_to_be(service):
    create = ["ServiceOrchestrationLockListResponse", service.create(LOCK).json]
    schema = {"$ref": f"#/components/schemas/{create[0]}"}
    assert create[1]["entries"][0]["orchestrationJobId"] == ""
    assert is_valid(create[1], schema)
    job = DOCUMENT["components"]["schemas"]["Job"]
    empty = {
        name: "pattern" in described and is_valid("", described)
        for name, described in job["properties"].items()
    }
    assert [name for name, it in empty.items() if it] == [
        "subscriptionId",
        "startedAt",
        "finishedAt",
    ]
    assert set(job["required"]) == set(job["properties"])


#: The commands of the documentation that make a client of the document, and check the service.
GENERATE, CHECK = (
    shlex.split(it) for it in blocks("sh", COMMITTED.with_name("client.md").read_text())
)


@pytest.mark.parametrize(
    ("settings", "operations"),
    [({}, 7), ({"RECORDER": True, "UNKNOWN_KEYS": "refuse", "OMIT_EMPTY": True}, 10)],
    ids=["plain", "all else"],
)
def test_every_answer_to_schemathesis_is_as_described(start, tmp_path, settings, operations):
    """With the checks of the documentation."""
    shutil.copyfile(EXAMPLE, tmp_path / "orchmgmt.db")
    service = start(OPENAPI=True, MAX_PAGE_SIZE=20, **settings)
    report = tmp_path / "report.json"
    command = [
        Path(sys.executable).with_name(CHECK[0]),
        *[it.replace("http://127.0.0.1:8441", service.url) for it in CHECK[1:]],
        *["--continue-on-failure", "--generation-deterministic", "--max-examples", "5"],
        *["--report", "json", "--report-json-path", report, "--no-color"],
    ]
    ended = subprocess.run(command, cwd=tmp_path, stdout=-1, stderr=-2, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout
    result = json.loads(report.read_text())
    assert {it["status"] for it in result["phases"].values()} == {"success"}
    assert result["operations"]["tested"] == operations
    assert result["test_cases"]["generated"] >= 400


def test_a_client_made_of_the_document_works(service, tmp_path):
    shutil.copy(COMMITTED, tmp_path)
    (tmp_path / "config.yml").write_text("post_hooks: []")  # without its formatter
    program, *arguments = GENERATE
    generate = [Path(sys.executable).with_name(program), *arguments]
    generate += ["--config", "config.yml", "--fail-on-warning"]
    made = subprocess.run(generate, cwd=tmp_path, stdout=-1, stderr=-2, text=True, timeout=60)
    assert made.returncode == 0, made.stdout
    program = [sys.executable, "-X", "dev", "-W", "error", "-c", GENERATED, service.url]
    ended = subprocess.run(program, cwd=tmp_path, stdout=-1, stderr=-2, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout


GENERATED = """
import sys
from datetime import datetime, timezone

from generated import AuthenticatedClient
from generated.api.history import query_jobs
from generated.api.lock import create_locks, query_locks, remove_locks
from generated.models import (
    ErrorResponse,
    ServiceOrchestrationHistoryQueryRequest,
    ServiceOrchestrationLockListRequest,
    ServiceOrchestrationLockQueryRequest,
    ServiceOrchestrationLockRequest,
)

instance, end = "Boiler|heat|1.0.0", datetime(2099, 1, 1, tzinfo=timezone.utc)
wanted = ServiceOrchestrationLockListRequest(
    locks=[
        ServiceOrchestrationLockRequest(service_instance_id=instance, owner="Me", expires_at=end)
    ]
)
mine = ServiceOrchestrationLockQueryRequest(owners=["Me"])
with AuthenticatedClient(sys.argv[1], token="SYSTEM//Sysop") as client:
    (lock,) = create_locks.sync(client=client, body=wanted).entries
    assert (lock.service_instance_id, lock.owner, lock.expires_at) == (instance, "Me", end)
    refusal = create_locks.sync(client=client, body=wanted)
    assert isinstance(refusal, ErrorResponse)
    assert refusal.error_message == f"Already locked: {instance}"
    assert query_locks.sync(client=client, body=mine).entries == [lock]
    removed = remove_locks.sync_detailed("Me", client=client, instance_ids=[instance])
    assert removed.status_code == 200
    assert query_locks.sync(client=client, body=mine).entries == []
    jobs = query_jobs.sync(client=client, body=ServiceOrchestrationHistoryQueryRequest())
    assert jobs.entries == []
"""


def test_settings_change_what_is_said(run):
    def schemas(**settings):
        return document(**settings)["components"]["schemas"]

    small = schemas(max_page_size=10)
    assert small["LockPagination"]["properties"]["size"]["maximum"] == 10
    lean = schemas(omit_empty=True)
    assert "orchestrationJobId" not in lean["Lock"]["required"]
    assert {"id", "owner"} <= set(lean["Lock"]["required"])
    assert lean["Job"]["properties"]["subscriptionId"]["format"] == "uuid"
    assert "additionalProperties" not in json.dumps(lean)
    strict = schemas(unknown_keys="refuse")
    refusing = {name for name, it in strict.items() if it.get("additionalProperties") is False}
    assert refusing == {it for it in strict if it.endswith(("Request", "Pagination"))}
    strict = schemas(unknown_keys="refuse", recorder=True)
    more = {n for n, it in strict.items() if it.get("additionalProperties") is False} - refusing
    requests = {"LockReserveRequest", "Reservation", "HistoryRecordRequest", "JobRecord"}
    assert more == requests
    assert run("openapi", "--recorder", "true").stdout == json.dumps(DOCUMENT, indent=2) + "\n"
    printed = json.loads(run("openapi", "--authentication-policy", "certificate").stdout)
    assert printed["components"]["securitySchemes"]["identity"]["type"] == "mutualTLS"


def test_no_identity_is_asked_for(start):
    service = start(OPENAPI=True, MAX_PAGE_SIZE=7)
    answer = service.send("GET", "/openapi.json", headers={})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == document(max_page_size=7)
    assert service.send("GET", "/docs", headers={}).headers["Location"] == "docs/"
    page = service.send("GET", "/docs/", headers={})
    assert page.status == 200
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())
    assert len(linked) > 4
    for path in linked:
        assert path.startswith("./")
        assert service.send("GET", f"/docs/{path}", headers={}).status == 200
    assert service.send("GET", "/docs/nothing", headers={}).error == "There is no such path"


def test_nothing_is_said_where_it_is_off(service):
    for path in ("/openapi.json", "/docs", "/docs/"):
        assert service.send("GET", path, headers={}).status == 404


def test_the_page_shows_the_operations_without_a_network(start, tmp_path):
    browser = program("chromium")
    shown = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--dump-dom",
            f"{start(OPENAPI=True, RECORDER=True).url}/docs/",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    for name in IDS:
        assert re.search(f'id="operations-[a-z]+-{name}"', shown.stdout), shown.stderr
    assert "Content Security Policy" not in shown.stderr


WITHOUT = (
    "import importlib.util, sys\n"
    "sys.modules['apispec'] = None\n"
    "found = importlib.util.find_spec\n"
    "importlib.util.find_spec = lambda name: None if name == 'apispec' else found(name)\n"
    "from orchmgmt.cli import main\n"
    "main()\n"
)


def test_without_its_packages_it_says_what_to_install():
    needs = "needs apispec: pip install 'orchmgmt[openapi]'"
    for arguments, what in (
        (["openapi"], "the description of the operations"),
        (["serve", "--openapi", "true"], "ORCHMGMT_OPENAPI"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1] == f"Error: {what} {needs}"


@pytest.mark.parametrize("packages", [True, False])
@pytest.mark.parametrize("name", ["demo", "test-server"])
def test_what_is_no_production_has_it_if_it_can(name, packages):
    command = [sys.executable, "-c", "from orchmgmt.cli import main; main()"]
    if not packages:
        command[-1] = WITHOUT
    with subprocess.Popen(
        [*command, name, "--port", "0"], stdout=-1, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            greeting = next(line for line in process.stdout if "http://" in line)
            url = re.search(r"http://[0-9.]+:[0-9]+", greeting)[0]
            answer = Client(url).send("GET", "/openapi.json", headers={})
        finally:
            process.terminate()
    assert process.returncode == 0
    assert answer.status == (200 if packages else 404)
