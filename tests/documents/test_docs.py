"""The commands in `docs/` do what is written there."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from broker import Broker
from certificates import Authority
from cluster import Cluster
from conftest import COMMAND
from needs import program
from nginx import Nginx
from pages import DOCS, PAGES, ROOT, blocks, console, marked, page, table
from standin import PASSWORD, REGISTRY, Cloud
from support import Process, Service, after, lock, until
from wire import JOB, job_entry, job_id, put

from orchmgmt import client
from orchmgmt.app import create_app, store_of
from orchmgmt.commands.check import looks
from orchmgmt.commands.lock import remove_locks
from orchmgmt.commands.mirror import mirror
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.operations import SERVICES
from orchmgmt.settings import OF_A_CLIENT, Settings, describe

pytestmark = pytest.mark.sqlite

OWNED = "has mode 0644 and belongs to orchmgmt:orchmgmt"


def section(name: str, title: str) -> str:
    """A page, or the part of it below one of its titles."""
    text = page(name)
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0] if title else text.split("\n## ")[0]


def unmarked(text: str) -> str:
    """What is left without the marked parts, which other tests run."""
    return re.sub(r" *<!-- ([\w-]+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)


def environ(text: str) -> dict[str, str]:
    """The settings that the shell commands of a section export."""
    return dict(re.findall(r"^export (\w+)=(\S+)$", text, re.MULTILINE))


def check(text: str, folder: Path, replace: dict[str, str] | None = None) -> None:
    """Run the commands of a section, as if in /srv, and compare what they print."""
    program("curl")
    program("openssl")
    commands = console(text)
    assert commands
    script = "".join(f"{command}printf '\\1'\n" for command, _ in commands)
    for old, new in (replace or {}).items():
        script = script.replace(old, new)
    result = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"], cwd=folder, stdout=-1, text=True, timeout=180
    )
    printed = result.stdout.replace(f"{folder}/", "/srv/")
    printed = re.sub(r"has mode 0\d+ and belongs to \S+", OWNED, printed)
    outputs = printed.split("\1")[:-1]
    assert [it.rstrip("\n") for it in outputs] == [it.rstrip("\n") for _, it in commands]


@pytest.fixture(autouse=True)
def _the_command_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def secure_cloud(authority: Authority) -> Iterator[Cloud]:
    cloud = Cloud(authority.server_context())
    yield cloud
    cloud.stop()


def test_a_policy_says_what_it_misses(tmp_path: Path) -> None:
    check(section("policies.md", ""), tmp_path)


def test_outsourced(
    serve: Callable[..., Process], secure_cloud: Cloud, authority: Authority, tmp_path: Path
) -> None:
    text = section("policies.md", "`outsourced`")
    shutil.copyfile(authority.ca_file, tmp_path / "cloud-ca.pem")
    (tmp_path / "password").write_text(PASSWORD)
    secure_cloud.operators["Carol"] = "open sesame"
    settings = environ(text)
    address = "https://127.0.0.1:8444"
    settings["ORCHMGMT_IDENTITY_URL"] = settings["ORCHMGMT_IDENTITY_URL"].replace(
        address, secure_cloud.url
    )
    process = serve(env=settings)
    replace = {address: secure_cloud.url, "127.0.0.1:8441": urlsplit(process.url).netloc}
    check(text, tmp_path, replace)


def test_registration(serve: Callable[..., Process], cloud: Cloud, tmp_path: Path) -> None:
    text = section("registration.md", "")
    settings = {**environ(text), "ORCHMGMT_SERVICE_PORT": "8441"}
    address = "http://127.0.0.1:8443"
    assert settings["ORCHMGMT_SERVICE_REGISTRY_URL"] == address + REGISTRY
    settings["ORCHMGMT_SERVICE_REGISTRY_URL"] = cloud.url + REGISTRY
    serve(env=settings)
    deadline = time.monotonic() + 30
    while len(cloud.services) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    check(text, tmp_path, {address: cloud.url})
    (by_hand,) = blocks("sh", section("registration.md", "Removing the registration by hand"))
    command = by_hand.replace(address, cloud.url)
    subprocess.run(["sh", "-e", "-c", command], check=True, capture_output=True, timeout=30)
    assert cloud.systems == cloud.services == {}


def test_requests_over_mqtt(serve: Callable[..., Process], tmp_path: Path) -> None:
    program("mosquitto_rr")
    text = section("mqtt.md", "")
    address = "127.0.0.1:1883"
    assert environ(text) == {"ORCHMGMT_MQTT_URL": f"mqtt://{address}"}
    broker = Broker(tmp_path)
    process = serve(env={"ORCHMGMT_MQTT_URL": broker.url})
    until(lambda: "MQTT: connected" in (tmp_path / "server-0.log").read_text())
    ports = {"-p 1883": f"-p {broker.port}", "127.0.0.1:8441": urlsplit(process.url).netloc}
    check(text, tmp_path, ports)
    broker.stop()


def test_an_orchestrator_records_reserves_and_releases(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    text = section("recorder.md", "")
    process = serve(env=environ(text))
    check(text, tmp_path, {"127.0.0.1:8441": urlsplit(process.url).netloc})


def test_the_files_for_a_deployment_are_written_as_the_page_says(tmp_path: Path) -> None:
    check(section("deploy.md", "The files"), tmp_path)


def test_the_commands_at_a_running_service(
    serve: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = serve("--still", command="demo")
    netloc = urlsplit(demo.url).netloc
    monkeypatch.setenv("ORCHMGMT_PORT", netloc.partition(":")[2])
    monkeypatch.setenv("ORCHMGMT_LOG_LEVEL", "WARNING")
    check(page("commands.md"), tmp_path, {"127.0.0.1:8441": netloc})


def test_locks_are_held_as_the_page_says(
    serve: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = serve("--still", command="demo")
    netloc = urlsplit(demo.url).netloc
    monkeypatch.setenv("ORCHMGMT_PORT", netloc.partition(":")[2])
    check(page("holding.md"), tmp_path, {"127.0.0.1:8441": netloc})


def test_the_messages_on_the_wire_are_those_of_the_page(service: Service) -> None:
    rows = [[it.replace("\\|", "|").strip("`") for it in row] for row in table(marked("messages"))]
    assert len(rows) > 35
    for operation, payload, message in rows:
        answer = service.post("/" + operation.replace(" ", "/"), json.loads(payload))
        assert (answer.status, answer.error) == (400, message)


def test_removes_are_refused_as_the_page_says(service: Service) -> None:
    rows = [[it.strip("`") for it in row] for row in table(marked("remove"))]
    assert len(rows) == 4
    for request, message in rows:
        owner, _, query = request.removeprefix("/lock/remove/").partition("?")
        answer = service.remove(owner, query)
        assert (answer.status, answer.error) == (400, message)


def test_the_page_about_the_wire_has_the_sections_that_docstrings_name() -> None:
    parts = [it.parent.glob("*.py") for it in ROOT.glob("*/__init__.py")]
    code = "".join(it.read_text() for it in chain(ROOT.glob("*.py"), *parts))
    named = set(re.findall(r"""contract(?:: |, |'s (?:section|table) )"([^"]+)\"""", code, re.I))
    assert len(named) > 6
    assert {anchor(it) for it in named} <= anchors(DOCS / "wire.md")


def test_each_extra_is_on_the_page() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"]) - {"test", "lint"}
    rows = table(marked("extras"))
    assert {it for row in rows for it in re.findall(r"`([\w-]+)`", row[0])} == extras


def test_the_client_does_what_its_page_shows(start: Callable[..., Service]) -> None:
    text = (DOCS / "client.md").read_text()
    programs = [it.replace("http://127.0.0.1:8441", start().url) for it in blocks("python", text)]
    (shown,) = re.findall(r"^It prints:\n\n```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    # Else asyncio says, in this mode, what takes a tenth of a second on a busy machine.
    quiet = "import logging; logging.getLogger('asyncio').setLevel('ERROR')\n"
    printed = [
        subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", quiet + program],
            stdout=-1,
            stderr=-2,
            text=True,
            timeout=60,
        ).stdout
        for program in programs
    ]
    assert printed == [shown, "1\n", "True True\n", "60 True\n65 True\n70 True\n", ""]
    for name in ("AlreadyLocked", "LockLost", "Refused", "Unavailable"):
        (described,) = re.findall(rf"^\| `{name}` .*\| (.*) \|$", text, re.MULTILINE)
        for attribute in re.findall(r"`(\w+)`", described):
            assert f"{attribute}:" in (getattr(client, name).__doc__ or "")


def test_the_commands_options_are_those_of_the_page() -> None:
    text = section("commands.md", "Connection options")
    rows = re.findall(r"^\| (`--.*?) \|", text, re.M)
    named = [it for row in rows for it in re.findall("`(--[a-z-]+)`", row)]
    own = {it.name for it in mirror.params} & {it.name for it in remove_locks.params}
    own = {*own, "url"} - {"database_url", "env_file"}  # which say nothing of a service
    options = [it.opts[0] for it in remove_locks.params if it.name in own]
    assert sorted(named) == sorted(options)
    variables = re.findall(r"^\| `--.*? \| (`ORCHMGMT_.*?) \|", text, re.M)
    assert set(re.findall(r"ORCHMGMT_\w+", " ".join(variables))) == {
        *OF_A_CLIENT.values(),
        "ORCHMGMT_CA_FILE",
    }


def test_what_a_check_looks_at_is_what_the_page_says(tmp_path: Path) -> None:
    settings = {
        "authentication_policy": "outsourced",
        "management_policy": "authorization",
        **dict.fromkeys(("ca_file", "mqtt_ca_file", "certificate_file"), "file.pem"),
        **dict.fromkeys(("identity_url", "authorization_url"), "http://127.0.0.1:1/x"),
        "service_registry_url": "http://127.0.0.1:1/x",
        "mqtt_url": "mqtt://127.0.0.1:1",
    }
    found = []
    for what, look in looks(settings, (), timedelta(days=14), thorough=False):
        found.append(what)
        if what == "settings":
            look()
    rows = re.findall(r"^\| (`.*?`) \|", section("commands.md", "Check"), re.M)
    assert [it for row in rows for it in re.findall("`(.*?)`", row)] == found


def test_the_page_about_compose_says_what_its_file_says() -> None:
    text = section("deploy.md", "Containers")
    compose = (ROOT / "deploy" / "compose" / "compose.yaml").read_text()
    assert len(re.findall(r"172\.30\.84\.", compose)) == 4
    assert "172.30.84.2" in text
    example = (ROOT / "deploy" / "compose" / "env.example").read_text()
    (variables,) = [it for it in blocks("sh", text) if "COMPOSE_PROFILES" in it]
    names = [it.partition("=")[0] for it in variables.splitlines()]
    assert names == re.findall(
        r"^#(COMPOSE_PROFILES|ORCHMGMT_DATABASE_URL|PGPASSWORD)=", example, re.M
    )
    for name in ("server.pem", "server.key", "cloud-ca.pem", "cloud-crl.pem"):
        nginx = ROOT / "deploy" / "nginx" / "generic_https_certificate.conf"
        assert f"/etc/orchmgmt/{name}" in nginx.read_text()
        assert f"`{name}`" in text


def test_the_registrations_log_lines_are_those_of_the_page() -> None:
    code = (ROOT / "extensions" / "registration.py").read_text()
    rows = re.findall(r"^\| `(.*?)`", section("registration.md", "While it runs"), re.MULTILINE)
    assert len(rows) == 10
    known = ("registered as %s, to be reached at %s", "not registered: %s", "had forgotten this")
    for said in ("the ServiceRegistry has another system", "and not at "):
        assert said in code
        assert any(said in row for row in rows)
    assert all(it in code for it in known)
    for row in rows:
        assert any(row.split("%")[0].startswith(it.split("%")[0]) or it in row for it in known)


def test_what_differs_from_the_java_implementation_is_as_the_page_says(service: Service) -> None:
    text = section("wire.md", "Where the Java implementation differs")
    here = dict(re.findall(r"^\| (.*?) \| .* \| (.*?) \|$", text, re.MULTILINE))
    del here["case"], here["---"]
    # These have tests of their own: two processes, and an identity service, are more than one row.
    assert "the database guarantees it" in here.pop(
        "two requests for one instance at the same time"
    )
    assert here.pop("a token after its `expirationTime`") == "refused"

    def said(row: str) -> str:
        return here.pop(row)

    assert said("a key of an answer without a value").startswith("the empty string")
    (entry,) = service.create(lock("A|b|1")).entries
    assert entry["orchestrationJobId"] == ""
    assert said("an expired lock") == "blocks nothing"
    service.create(lock("C|d|1", expires_at=after(1)))
    until(lambda: service.create(lock("C|d|1")).status == 201)
    twice = service.create(lock("E|f|1"), lock("E|f|1")).error
    assert said("one instance twice in a create") == f"400 `{twice.partition(':')[0]}: ...`"
    missing = service.post("/lock/create", {}).error
    assert said("a create without `locks`") == f"400 `{missing}`"
    malformed = service.jobs(ids=["Q"]).error
    assert f"`{malformed.partition(':')[0]}: ...`" in said("a malformed id in a history query")
    assert said("a name with a letter such as `ſ`") == "refused"
    assert "does not match" in service.create(lock("ſharp|b|1")).error
    assert said("instances whose names differ only in letter case") == "two"
    assert service.create(lock("aB|cD|1"), lock("aB|cd|1"), lock("Ab|cD|1")).status == 201
    assert "`createdAt`, the newest" in said("the default order of a history query")
    put(service, JOB, *(job_entry(3 - number, createdAt=after(number)) for number in range(2)))
    assert [it["id"] for it in service.jobs().entries] == [job_id(2), job_id(3)]
    assert said("`2030-01-01T24:00:00Z`, and a second of `60`").startswith("refused")
    for time_ in ("2099-01-01T24:00:00Z", "2099-01-01T00:00:60Z"):
        assert "Invalid expires at format" in service.create(lock("G|h|1", expires_at=time_)).error
    assert said("a time after 2038-01-19").startswith("accepted, up to the year 9999")
    last = "9999-12-31T23:59:59Z"
    assert service.create(lock("G|h|1", expires_at=last)).entries[0]["expiresAt"] == last
    assert said("a fraction of a second").startswith("whole seconds: `expiresAt` is rounded up")
    (entry,) = service.create(lock("I|j|1", expires_at="2099-01-01T00:00:00.1Z")).entries
    assert entry["expiresAt"] == "2099-01-01T00:00:01Z"
    assert said("a number such as `5.5`") == "refused"
    assert service.locks(ids=[5.5]).status == 400
    assert here == {}


def test_nginx_and_certificates(serve: Callable[..., Process], tmp_path: Path) -> None:
    program("openssl")
    etc = tmp_path / "etc"
    etc.mkdir()
    text = section("nginx.md", "Certificates")
    for name in ("certificates", "place"):
        (commands,) = blocks("sh", marked(name))
        commands = commands.replace("/etc/orchmgmt", str(etc))
        made = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert made.returncode == 0, made.stderr
    process = serve(env=environ(section("policies.md", "`certificate`")))
    nginx = Nginx(
        tmp_path / "nginx",
        "generic_https_certificate.conf",
        {"/etc/orchmgmt": str(etc), "127.0.0.1:8441": urlsplit(process.url).netloc},
    )
    try:
        check(text, tmp_path, {"https://localhost": f"https://localhost:{nginx.port}"})
        for name in ("pkcs12", "revoke"):
            (commands,) = blocks("sh", textwrap.dedent(marked(name).replace("<!--", "  <!--")))
            subprocess.run(
                ["bash", "-e", "-c", commands],
                cwd=tmp_path,
                check=True,
                capture_output=True,
                timeout=60,
            )
        shown = subprocess.run(
            [*["openssl", "pkcs12", "-in", "carol.p12", "-passin", "file:password", "-nokeys"]],
            cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "carol.testcloud.company" in shown.stdout
        listed = subprocess.run(
            [*["openssl", "crl", "-in", "cloud-crl.pem", "-noout", "-text"]],
            cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "Serial Number" in listed.stdout
    finally:
        nginx.stop()


def test_the_bodies_for_the_other_systems_name_this_one_and_its_services() -> None:
    (account,) = blocks("json", section("policies.md", "`outsourced`"))
    (identity,) = json.loads(account)["identities"]
    assert identity["systemName"] == Settings().system_name
    assert identity["sysop"] is False
    text = section("policies.md", "`authorization`")
    (grant,) = blocks("json", text)
    assert f'"provider": "{Settings().system_name}"' in text
    body = json.loads(grant)
    app = create_app({"DATABASE_URL": "sqlite:///:memory:"})
    with store_of(app):
        scopes = [it.partition(".")[2] for it in app.view_functions if it.startswith("lock.")]
    assert set(body["scopedPolicies"]) <= set(scopes)
    assert body["target"] == SERVICES["lock"]


def test_authorization_starts_with_what_is_said(
    serve: Callable[..., Process], authority: Authority, tmp_path: Path
) -> None:
    shutil.copyfile(authority.ca_file, tmp_path / "cloud-ca.pem")
    assert serve(env=environ(section("policies.md", "`authorization`"))).locks().status == 200


def links(path: Path) -> list[tuple[Path, str]]:
    """The files and the titles in them that a page leads to."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", text)
    return [((path.parent / file).resolve() if file else path, title) for file, title in found]


def anchors(path: Path) -> set[str]:
    """What may stand behind the `#` of a link to a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {anchor(it) for it in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for file, title in links(ROOT / name):
        assert file.exists(), file
        assert not title or title in anchors(file), (file, title)


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "README.md"
    led_to = {file for file, _ in links(index)}
    assert led_to >= set(DOCS.glob("*.md")) - {index}
    assert index in {file for file, _ in links(ROOT / "README.md")}


def run_blocks(text: str, folder: Path) -> list[int]:
    """Run each shell block of a text by itself; return the exit codes."""
    return [
        subprocess.run(["bash", "-ec", textwrap.dedent(block)], cwd=folder, timeout=60).returncode
        for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    ]


def test_the_end_of_a_list_and_of_a_certificate_is_seen_as_the_page_says(
    authority: Authority, tmp_path: Path
) -> None:
    program("openssl")
    shutil.copyfile(authority.revocations(), tmp_path / "cloud-crl.pem")
    shutil.copyfile(authority.server_file(), tmp_path / "server.pem")
    text = unmarked(section("operations.md", "Certificates"))
    assert run_blocks(text, tmp_path) == [1, 1]  # those of the tests end tomorrow
    later = text.replace("2 days", "1 hour").replace("172800", "3600")
    assert later != text
    assert run_blocks(later, tmp_path) == [0, 0]


def test_the_alerts_name_metrics_that_there_are() -> None:
    text = section("operations.md", "What to alert on")
    known = set(re.findall(r"orchmgmt_\w+", marked("metrics")))
    named = set(re.findall(r"orchmgmt_\w+", text))
    assert named
    assert named <= known


def test_the_picture_of_the_parts_is_that_of_the_code() -> None:
    text = page("architecture.md")
    folders = [it.parent for it in ROOT.glob("*/__init__.py")]
    files = [*ROOT.glob("*.py"), ROOT / "tests/conftest.py"]
    files += [it for of in folders for it in of.rglob("*") if it.suffix in (".py", ".js")]
    for name in re.findall(r"\b(?:\w+/)*\w+\.(?:py|js)\b", text):
        assert any(it.as_posix().endswith(f"/{name}") for it in files), name
    for folder in folders:
        assert f"[`{folder.name}/`]" in text
        assert (folder / "__init__.py").read_text().startswith('"""')
    code = "".join(it.read_text() for it in files)
    for name in re.findall(r"`([\w.-]+)`", text):
        place, word = (ROOT / name).exists(), name.rpartition(".")[2]
        assert place or name.endswith((".py", ".js")) or word in code, name


def test_the_commands_for_contributors_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+) ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(targets) == 6
    assert all(f"\n{target}: " in makefile for target in targets)


STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
"""
STUBS = {
    **dict.fromkeys(("useradd", "userdel", "systemctl", "nginx"), STUB),
    "runuser": '#!/bin/sh\ntest "$1 $2 $3" = "-u orchmgmt --" && shift 3 && exec "$@"\n',
    "ssh": '#!/bin/sh\ntest "$1" = vault && cd "$VAULT" && exec sh -c "$2"\n',
}


class Machine:
    """A folder with what the pages' commands change on a machine, and stand-ins for its programs.

    Python packages come from this environment.

    Attributes:
        folder: where `/etc`, `/opt`, `/usr` and `/var` are.
        tree: a checkout.
        vault: the folder that `ssh vault` writes to.
        log: the calls of programs that change nothing here.
    """

    def __init__(self, parent: Path) -> None:
        self.folder, self.tree = parent / "machine", parent / "tree"
        self.vault, self.log = parent / "vault", parent / "log"
        left_out = (".*", "build", "dist", "*.egg-info", "__pycache__", "*.db*-*")
        shutil.copytree(ROOT, self.tree, ignore=shutil.ignore_patterns(*left_out))
        made = ("etc/systemd/system", "etc/nginx/sites-enabled", "usr/local/bin")
        for name in (*made, "var/lib/orchmgmt", "var/lib/systemd/timers"):
            (self.folder / name).mkdir(parents=True)
        self.vault.mkdir()
        stubs = parent / "stubs"
        stubs.mkdir()
        for name, text in STUBS.items():
            (stubs / name).write_text(text)
            (stubs / name).chmod(0o755)
        self._environ = {
            **os.environ,
            "PATH": f"{stubs}:{self.folder}/usr/local/bin:{os.environ['PATH']}",
            "LOG": str(self.log),
            "VAULT": str(self.vault),
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def follow(self, name: str, code: int = 0) -> str:
        """Run the commands of a marked block; return what they print."""
        (commands,) = blocks("sh", textwrap.dedent(re.sub(r"<!--.*-->", "", marked(name))))
        commands = re.sub(r"(?m)(^|[ '])/(opt|etc|var|usr)/", rf"\1{self.folder}/\2/", commands)
        commands = commands.replace("/tmp/build/bin/pip", f"{sys.executable} -m pip")
        commands = commands.replace("python3 -m venv /tmp/build\n", "")
        commands = commands.replace("pip wheel ", "pip wheel --no-build-isolation ")
        # The environment would only get the pip that PYTHONPATH has anyway, in many seconds.
        commands = commands.replace("python3 -m venv", f"{sys.executable} -m venv --without-pip")
        commands = commands.replace("/bin/pip ", "/bin/python -m pip ")
        commands = commands.replace(" -g orchmgmt", "")  # there is no such group here
        ended = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=self.tree,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout

    def build(self, version: str) -> Path:
        """Build the wheel of a version as the page says."""
        metadata = self.tree / "setup.cfg"
        text = re.sub(r"(?m)^version = .*$", f"version = {version}", metadata.read_text())
        metadata.write_text(text)
        self.follow("wheel")
        return self.tree / "dist" / f"orchmgmt-{version}-py3-none-any.whl"


def exported(path: Path) -> str:
    """The locks and jobs of a database, as an export writes them."""
    commands = [[COMMAND, it, "export", "--database-url"] for it in ("lock", "history")]
    run = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=60)
    return "".join(run([*it, f"sqlite:///{path}"]).stdout for it in commands)


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("SELECT version FROM orchestration_schema").fetchone()
    return int(version)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with a database of an earlier schema."""
    machine = Machine(tmp_path)
    earlier = ROOT / "tests" / "data" / "schema-1.sqlite"
    shutil.copyfile(earlier, machine / "var/lib/orchmgmt/orchmgmt.db")
    return machine


def test_the_steps_of_an_operator_install_upgrade_go_back_and_uninstall(machine: Machine) -> None:
    machine.build("0.1.0")
    machine.follow("install")
    variables = machine / "etc/orchmgmt/orchmgmt.env"
    variables.write_text(variables.read_text().replace("/var/lib", f"{machine.folder}/var/lib"))
    assert (machine / "usr/local/bin/orchmgmt").resolve() == (
        machine / "opt/orchmgmt/0.1.0/bin/orchmgmt"
    ).resolve()
    system = machine / "etc/systemd/system"
    assert {"orchmgmt@.service", "orchmgmt-backup.timer"} <= {it.name for it in system.iterdir()}
    assert "orchmgmt" in (machine / "etc/bash_completion.d/orchmgmt").read_text()
    manual = machine / "usr/local/share/man/man1/orchmgmt.1"
    assert manual.read_text() == (ROOT / "docs/orchmgmt.1").read_text()
    machine.follow("extra")
    machine.follow("policy")
    machine.follow("site")
    assert "server {" in (machine / "etc/nginx/sites-enabled/orchmgmt.conf").resolve().read_text()

    (machine.tree / "build/lib/orchmgmt/removed.py").touch()  # left by the build of 0.1.0
    with zipfile.ZipFile(machine.build("0.2.0")) as wheel:
        assert "orchmgmt/store.py" in wheel.namelist()
        assert "orchmgmt/removed.py" not in wheel.namelist()
    machine.follow("new-version")
    found = machine.follow("check-new", code=1)
    assert "ok     settings: authentication policy certificate" in found
    (wrong,) = [it for it in found.splitlines() if it.startswith("wrong")]
    assert wrong.startswith("wrong  database")
    assert wrong.endswith("run `orchmgmt upgrade`")
    machine.follow("upgrade")
    database = machine / "var/lib/orchmgmt/orchmgmt.db"
    assert version_of(machine / "var/lib/orchmgmt/before-0.2.0.db") == 1
    assert version_of(database) == SCHEMA_VERSION
    assert "wrong" not in machine.follow("check-new")
    unit = machine / "opt/orchmgmt/deploy/systemd/orchmgmt@.service"
    unit.write_text("earlier")
    machine.follow("switch")
    assert (system / unit.name).read_text() == unit.read_text() != "earlier"
    current = machine / "opt/orchmgmt/current"
    assert current.resolve().name == "0.2.0"
    assert [*current.glob("lib/*/site-packages/orchmgmt-0.2.0.dist-info")]
    assert "> #ORCHMGMT_" not in machine.follow("compare", code=1)

    before = exported(database)
    assert before.count("\n") > 3
    machine.follow("back")
    assert current.resolve().name == "0.1.0"
    assert exported(database) == before
    assert exported(machine / "var/lib/orchmgmt/after-0.2.0/orchmgmt.db") == before

    for name in ("multi-user.target.wants/orchmgmt@8441.service", "orchmgmt@.service.d/own.conf"):
        (system / name).parent.mkdir()
        (system / name).symlink_to(system / "orchmgmt@.service")
    (machine / "var/lib/systemd/timers/stamp-orchmgmt-backup.timer").touch()
    machine.follow("uninstall-nginx")
    machine.follow("uninstall")
    assert list(machine.folder.rglob("*orchmgmt*")) == []
    calls = machine.log.read_text().splitlines()
    assert "systemctl enable --now orchmgmt@8441 orchmgmt-backup.timer" in calls
    assert calls[-5:] == [
        "nginx -t",
        "nginx -s reload",
        "systemctl stop orchmgmt@* orchmgmt-*",
        "systemctl daemon-reload",
        "userdel orchmgmt",
    ]
    # systemctl finds stopped units by their names alone, and disables nothing by a pattern.
    for call in calls:
        assert "*" not in call or call.startswith("systemctl stop ")


def test_a_backup_that_fails_leaves_the_earlier_copies_alone(machine: Machine) -> None:
    database = machine / "var/lib/orchmgmt/orchmgmt.db"
    variables = machine / "etc/orchmgmt/orchmgmt.env"
    variables.parent.mkdir()
    variables.write_text(f"ORCHMGMT_DATABASE_URL=sqlite:///{database}\n")
    machine.follow("vault")
    (copy,) = machine.vault.iterdir()
    assert re.fullmatch(r"orchmgmt-[0-9TZ-]+\.db", copy.name)
    assert version_of(copy) == 1
    content = copy.read_bytes()
    database.unlink()
    machine.follow("vault", code=3)
    assert copy.read_bytes() == content
    assert {it.suffix for it in machine.vault.iterdir() if it != copy} == {".part"}


def test_the_way_from_sqlite_to_postgresql_keeps_ids(
    postgresql: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRESQL", postgresql.empty_database())
    shutil.copyfile(ROOT / "db.sqlite.example", tmp_path / "orchmgmt.db")
    commands = marked("move").replace("/var/lib/orchmgmt/", f"{tmp_path}/")
    assert run_blocks(commands, tmp_path) == [0]
    for what, file in (("lock", "locks.jsonl"), ("history", "jobs.jsonl")):
        again = f'orchmgmt {what} export --database-url "$POSTGRESQL" again'
        subprocess.run(["bash", "-c", again], cwd=tmp_path, check=True, timeout=60)
        assert sorted((tmp_path / "again").read_text().splitlines()) == sorted(
            (tmp_path / file).read_text().splitlines()
        )
        assert (tmp_path / file).read_text().count("\n") > 10
        (tmp_path / "again").unlink()


def test_the_man_page_is_made_from_the_help(tmp_path: Path) -> None:
    made = tmp_path / "orchmgmt.1"
    subprocess.run([sys.executable, ROOT / "scripts" / "make_man.py", made], check=True, timeout=60)
    text = made.read_text()
    assert (ROOT / "docs" / "orchmgmt.1").read_text() == text, "run `make man`"
    for row in describe():
        assert row.name in text
    for name in ("serve", "lock import", "backup", "deploy\\-files"):
        assert f"\n.SS orchmgmt {name}\n" in text
    assert not [it for it in text.splitlines() if re.match(r"['.](?!(TH|SH|SS|PP|TP|B|nh)\b)", it)]


#: Commands of the pages that no test can run, and why.
CANNOT_RUN = {
    "pip install granian": "needs a package registry",
    "pip install gunicorn": "likewise",
    "systemctl enable --now orchmgmt-clean.timer": "needs systemd as the first process",
    "docker build": "needs a Docker daemon",
    "cd deploy/compose": "goes with it; the files have tests of their own",
    "docker compose": "likewise",
    "createuser --pwprompt": "asks at a terminal; the tests' server has such a user and database",
    "COMPOSE_PROFILES=postgresql": "is a file of variables, which has a test of its own",
}

#: Commands without a mark that a test runs, and where.
RUN_ELSEWHERE = {
    "granian ": "serving/test_wsgi_servers.py",
    "gunicorn ": "serving/test_wsgi_servers.py",
    "orchmgmt deploy-files deploy": "deployment/test_deploy.py",
    "orchmgmt serve --read-only": "commands/test_read_only.py",
    "next=$(openssl crl": "documents/test_docs.py",
    "openssl x509 -in server.pem": "documents/test_docs.py",
}


@pytest.mark.parametrize("name", ["deploy.md", "operations.md"])
def test_every_block_of_commands_is_run_by_a_test_or_named_as_one_that_cannot(name: str) -> None:
    text = page(name)
    tests = "".join(it.read_text() for it in Path(__file__).parents[1].glob("*/test_*.py"))
    assert all((Path(__file__).parents[1] / it).is_file() for it in RUN_ELSEWHERE.values())
    open_marks: list[str] = []
    unrun = []
    pattern = r"<!-- (/?)([\w-]+) -->|^ *```(?:sh|console)\n(.*?)^ *```$"
    for end, mark, block in re.findall(pattern, text, re.DOTALL | re.MULTILINE):
        if mark:
            open_marks = open_marks[:-1] if end else [*open_marks, mark]
            continue
        command = block.strip().removeprefix("$ ")
        run = any(f'"{it}"' in tests for it in open_marks)
        if not run and not command.startswith((*RUN_ELSEWHERE, *CANNOT_RUN)):
            unrun.append(command)
    assert unrun == []
