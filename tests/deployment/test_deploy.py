"""What is in deploy/ and the Dockerfile, as far as it can be tried without root and Docker."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import COMMAND
from needs import program
from nginx import Nginx
from pages import marked, page
from support import MANAGEMENT, Client, Process, in_threads, lock

from orchmgmt.serving.server import (
    CONNECTIONS,
    DRAIN_TIMEOUT,
    FILES_OF_A_THREAD,
    RESERVED_FILES,
)
from orchmgmt.serving.threads import EXTRA_THREADS
from orchmgmt.settings import PREFIX, Settings, describe
from orchmgmt.store import Store

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = SYSTEMD / "orchmgmt@.service"
CLEAN = SYSTEMD / "orchmgmt-clean.service"
BACKUP = SYSTEMD / "orchmgmt-backup.service"
UPSTREAM = ROOT / "deploy" / "nginx" / "orchmgmt-upstream-several.conf"


# systemd


def unit_values(name, unit=UNIT):
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.fixture
def units(tmp_path):
    """The units, with the command of this environment in the place of the installed one."""
    for unit in SYSTEMD.iterdir():
        text = unit.read_text().replace("/opt/orchmgmt/current/bin/orchmgmt", COMMAND)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "orchmgmt@8441.service",
        "orchmgmt-clean.service",
        "orchmgmt-clean.timer",
        "orchmgmt-backup.service",
        "orchmgmt-backup.timer",
    ],
)
def test_systemd_finds_no_fault_with_the_units(units, name):
    command = [program("systemd-analyze"), "verify", "--man=no", str(units / name)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "Failed to initialize manager" in ended.stderr:
        pytest.skip("systemd-analyze cannot verify here: " + ended.stderr.splitlines()[0])
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("unit", [UNIT, CLEAN, BACKUP], ids=lambda unit: unit.name)
def test_systemd_finds_the_units_well_confined(units, unit):
    command = [program("systemd-analyze"), "security", "--offline=true", "--threshold=20"]
    ended = subprocess.run(
        [*command, str(units / unit.name)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_unit_outlives_a_database_that_starts_later():
    (unit,) = re.findall(
        r"^\[Unit\]\n(.*?)^\[Service\]$", UNIT.read_text(), re.DOTALL | re.MULTILINE
    )
    assert "StartLimitIntervalSec=0" in unit.splitlines()
    assert unit_values("Restart") == ["on-failure"]
    assert unit_values("RestartPreventExitStatus") == ["2"]  # which a wrong setting ends with


def test_the_backup_unit_keeps_the_last_fourteen(tmp_path):
    for name in ("User", "Group", "EnvironmentFile", "WorkingDirectory"):
        assert unit_values(name, BACKUP) == unit_values(name)
    assert unit_values("StateDirectory", BACKUP) == ["orchmgmt orchmgmt/backups"]
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    with Store({"DATABASE_URL": url}) as store:
        job_id = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    folder = tmp_path / "backups"
    folder.mkdir()
    old = [f"2026-01-{day:02}T02-30-00Z.db" for day in range(1, 21)]
    for name in [*old, "mine.db"]:
        (folder / name).touch()
    for key in ("ExecStart", "ExecStartPost"):
        (command,) = unit_values(key, BACKUP)
        command = command.replace("$$", "$").replace("%%", "%")
        arguments = shlex.split(command.replace("/opt/orchmgmt/current/bin/orchmgmt", COMMAND))
        environ = {**os.environ, "ORCHMGMT_DATABASE_URL": url}
        subprocess.run(arguments, cwd=tmp_path, env=environ, check=True, timeout=60)
    left = sorted(it.name for it in folder.iterdir())
    assert left[:13] == old[7:]
    assert left[14:] == ["mine.db"]
    with Store({"DATABASE_URL": f"sqlite:///{folder / left[13]}"}) as store:
        store.history.start(job_id)  # it is there


def test_the_environment_file_names_settings_and_can_be_read(run, tmp_path):
    text = (SYSTEMD / "orchmgmt.env").read_text()
    names = re.findall(r"^#(ORCHMGMT_\w+)=\S+$", text, re.MULTILINE)
    assert len(names) > 15
    assert len(set(names)) == len(names)
    file = tmp_path / "orchmgmt.env"
    some = {"DATABASE_URL": "sqlite:///a.db", "SYSTEM_PASSWORD_FILE": "", "IDENTITY_URL": ""}
    file.write_text(
        re.sub(r"^#(ORCHMGMT_)", r"\1", text, flags=re.MULTILINE)
        + "".join(f"ORCHMGMT_{name}={value}\n" for name, value in some.items())
    )
    shown = run("config", "--env-file", str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    for name in names:
        assert name in shown.stdout


def test_the_cleaning_unit_cleans_what_the_server_uses(run, tmp_path):
    for name in ("User", "Group", "EnvironmentFile", "StateDirectory"):
        assert unit_values(name, CLEAN) == unit_values(name)
    (command,) = unit_values("ExecStart", CLEAN)
    name, *arguments = shlex.split(command)
    assert name == "/opt/orchmgmt/current/bin/orchmgmt"
    database = {"ORCHMGMT_DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}
    Store(database).close()
    assert run(*arguments, env=database).stdout == "Deleted 0 expired locks and 0 old jobs.\n"


def test_the_units_command_starts_and_its_limits_suffice(tmp_path):
    (command,) = unit_values("ExecStart")
    name, *arguments = shlex.split(command.replace("%i", "0"))
    assert name == "/opt/orchmgmt/current/bin/orchmgmt"
    assert unit_values("EnvironmentFile") == ["/etc/orchmgmt/orchmgmt.env"]
    lines = (SYSTEMD / "orchmgmt.env").read_text().splitlines()
    (active,) = [it for it in lines if it and not it.startswith("#")]
    variable, _, url = active.partition("=")
    assert (variable, url) == ("ORCHMGMT_DATABASE_URL", "sqlite:////var/lib/orchmgmt/orchmgmt.db")
    url = url.replace("/var/lib/orchmgmt", str(tmp_path))
    started = subprocess.Popen(
        [COMMAND, *arguments], env={**os.environ, variable: url}, stdout=subprocess.PIPE, text=True
    )
    with started:
        server = Process(started)
        assert server.create(lock("A|b|1.0.0")).status == 201
        assert server.stop() == 0
    assert (tmp_path / "orchmgmt.db").exists()
    assert int(unit_values("TimeoutStopSec")[0]) > DRAIN_TIMEOUT + 30
    assert int(unit_values("LimitNOFILE")[0]) >= (
        CONNECTIONS + RESERVED_FILES + FILES_OF_A_THREAD * (EXTRA_THREADS + 4)
    )


# Docker: no engine runs here, so its steps are done in a folder instead


def dockerfile():
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    return [(name, value) for name, value in steps]


def step(name, stage=2):
    """The values of the Dockerfile's steps of one kind, in its first or second stage."""
    reached = 0
    found = []
    for kind, value in dockerfile():
        reached += kind == "FROM"
        if reached == stage and kind == name:
            found.append(value)
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """What the image has in /opt/orchmgmt and /data, and the variables that it sets."""
    folder = tmp_path_factory.mktemp("image")
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if line and line[0] not in "#!"] == ["*"]
    (folder / "source").mkdir()
    for pattern in (line[1:] for line in lines if line.startswith("!")):
        found = list(ROOT.glob(pattern))
        assert found, pattern
        for path in found:
            target = folder / "source" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def here(text):
        return re.sub(r"/(opt/orchmgmt|data)\b", rf"{folder}/\1", text)

    (folder / "opt").mkdir()
    (folder / "data").mkdir()
    # The packages that it needs are those of the tests: nothing is downloaded.
    packages = {"PYTHONPATH": sysconfig.get_path("purelib")}
    options = "--no-index --no-build-isolation --quiet"
    make, install = step("RUN", stage=1)
    # The environment would only get the pip that PYTHONPATH has anyway, in many seconds.
    make = make.replace("python -m venv", f"{sys.executable} -m venv --without-pip")
    install = install.replace("/bin/pip install", f"/bin/python -m pip install {options}")
    for command in map(here, (make, install)):
        subprocess.run(
            ["sh", "-ec", command],
            cwd=folder / "source",
            env={**os.environ, **packages},
            check=True,
            timeout=120,
        )
    variables = dict(part.split("=", 1) for value in step("ENV") for part in here(value).split())
    return folder, here, {**os.environ, **packages, **variables, "ORCHMGMT_HOST": "127.0.0.1"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def test_the_image_serves_is_healthy_and_writes_only_to_its_volume(image):
    folder, here, environment = image
    environment = {**environment, "ORCHMGMT_PORT": free_port()}

    def files():
        return {
            path: path.stat().st_mtime_ns
            for part in ("opt", "source")
            for path in (folder / part).rglob("*")
        }

    before = files()
    command = [here(part) for kind in ("ENTRYPOINT", "CMD") for part in json.loads(step(kind)[0])]
    check = [here(it) for it in json.loads(step("HEALTHCHECK")[0].partition(" CMD ")[2])]
    started = subprocess.Popen(
        command, env=environment, cwd=folder / "data", stdout=subprocess.PIPE, text=True
    )
    with started:
        server = Process(started)
        assert server.create(lock("A|b|1.0.0")).status == 201
        assert subprocess.run(check, env=environment, timeout=60).returncode == 0
        (folder / "data" / "orchmgmt.db").rename(folder / "data" / "aside.db")
        sick = subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, timeout=60)
        (folder / "data" / "aside.db").rename(folder / "data" / "orchmgmt.db")
        assert sick.returncode == 1
        assert server.stop() == 0
    gone = subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, timeout=60)
    assert gone.returncode == 1
    assert files() == before
    assert (folder / "data" / "orchmgmt.db").exists()


def test_the_image_is_healthy_on_a_unix_socket_too(image, tmp_path):
    _, here, environment = image
    path = tmp_path / "http.sock"
    environment = {
        **environment,
        "ORCHMGMT_UNIX_SOCKET": str(path),
        "ORCHMGMT_DATABASE_URL": "sqlite:///:memory:",
    }
    command = [here(part) for kind in ("ENTRYPOINT", "CMD") for part in json.loads(step(kind)[0])]
    check = [here(it) for it in json.loads(step("HEALTHCHECK")[0].partition(" CMD ")[2])]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with started:
        assert started.stdout.readline().startswith("Listening on http+unix://")
        assert subprocess.run(check, env=environment, timeout=60).returncode == 0
        started.terminate()
        assert started.wait(60) == 0
    gone = subprocess.run(check, env=environment, stderr=subprocess.DEVNULL, timeout=60)
    assert gone.returncode == 1


def test_the_image_has_what_every_policy_and_option_needs():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extras = set(settings["options.extras_require"]) - {"test", "lint"}
    (installed,) = re.findall(r"\.\[(.*)\]", step("RUN", stage=1)[1])
    assert set(installed.split(",")) == extras


def test_the_image_holds_the_package_alone_and_runs_it_without_rights():
    (user,) = step("USER")
    assert re.fullmatch("[1-9][0-9]+:[1-9][0-9]+", user)  # by number, for runAsNonRoot
    (made,) = step("RUN")
    assert f"--owner={user.split(':')[0]}" in made
    assert step("VOLUME") == ["/data"]
    assert step("COPY") == ["--from=build /opt/orchmgmt /opt/orchmgmt"]
    assert len([name for name, _ in dockerfile() if name == "FROM"]) == 2
    (base,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert "curl" not in (ROOT / "Dockerfile").read_text()
    assert base.startswith("python:3.")


# Docker Compose: no engine runs here; the file is looked at, and nginx runs on what it mounts

COMPOSE = ROOT / "deploy" / "compose"


def example(chosen=("ORCHMGMT_CLOUD",)):
    """The variables of env.example, with those that are commented out if they are chosen."""
    found = re.findall(r"^#?([A-Z_]+)=(.*)$", (COMPOSE / "env.example").read_text(), re.MULTILINE)
    assert len(dict(found)) == len(found) > 5
    return {name: value for name, value in found if name in chosen}


def composed(file="compose.yaml", **variables):
    """What a file says with these variables; each other one must have a default."""
    text = (COMPOSE / file).read_text()
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda it: variables.get(it[1]) or it[2], text)
    assert "${" not in text
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    ("file", "profiles", "expected"),
    [
        ("compose.yaml", "", {"orchmgmt", "nginx"}),
        ("compose.yaml", "postgresql", {"orchmgmt", "nginx", "postgresql"}),
        ("compose.yaml", "mqtt", {"orchmgmt", "nginx", "mosquitto"}),
        ("test-server.yaml", "", {"orchmgmt"}),
    ],
)
def test_docker_compose_takes_the_file(tmp_path, file, profiles, expected):
    compose = program("docker-compose")  # it asks no engine for this
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    folder = tmp_path / "deploy" / "compose"
    (folder / "env.example").rename(folder / ".env")
    version = subprocess.run([compose, "version"], capture_output=True, text=True, timeout=60)
    if "version 1." in version.stdout:  # two keys are newer than Debian 12
        text = (folder / file).read_text()
        older = re.sub("^name:.*\n|^ +required: false\n", "", text, flags=re.MULTILINE)
        assert len(text.splitlines()) - len(older.splitlines()) in (1, 2)
        (folder / file).write_text(older)
    ended = subprocess.run(
        [compose, "--file", file, "config", "--services"],
        cwd=folder,
        env={**os.environ, "COMPOSE_PROFILES": profiles},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert set(ended.stdout.split()) >= expected


def test_the_image_runs_the_test_server_as_compose_says(image):
    _, here, environment = image
    service = composed("test-server.yaml")["services"]["orchmgmt"]
    command = " ".join(service["command"])
    ports = [it.rpartition(":")[2] for it in service["ports"]]
    assert f"--port={ports[0]} " in command
    assert command.endswith(f"--control-port={ports[1]}")
    assert all(it.startswith("127.0.0.1:") for it in service["ports"])
    # The documentation runs the same without a file, and the image's health check finds it there.
    assert command.replace("=", " ") in page("testing.md")
    assert f"ORCHMGMT_PORT={ports[0]}" in " ".join(step("ENV"))
    free = {it: free_port() for it in ports}
    arguments = [
        re.sub("=([0-9]{4})$", lambda it: f"={free[it[1]]}", it) for it in service["command"]
    ]
    check = [here(it) for it in json.loads(step("HEALTHCHECK")[0].partition(" CMD ")[2])]
    (entry,) = json.loads(step("ENTRYPOINT")[0])
    started = subprocess.Popen(
        [here(entry), *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )
    with started:
        server = Process(started)
        environment = {**environment, "ORCHMGMT_PORT": free[ports[0]]}
        assert subprocess.run(check, env=environment, timeout=60).returncode == 0
        control = Client(f"http://127.0.0.1:{free[ports[1]]}", {})
        assert control.send("POST", "/test/down").status == 200
        with pytest.raises(ConnectionRefusedError):
            server.locks()
        assert server.stop() == 0


def test_compose_names_only_what_there_is():
    file = composed()
    made_by_the_user = {"certificates", "own"}
    for service in file["services"].values():
        for volume in service["volumes"]:
            source, _, _ = volume.partition(":")
            if not source.startswith("."):
                assert source in file["volumes"]
            elif source.removeprefix("./") not in made_by_the_user:
                assert (COMPOSE / source).exists(), source
        assert set(service["networks"]) <= set(file["networks"])
        for other in service.get("depends_on", {}):
            assert other in file["services"]
    assert file["services"]["postgresql"]["profiles"] == ["postgresql"]
    assert "profiles" not in file["services"]["orchmgmt"]
    assert file["services"]["mosquitto"]["profiles"] == ["mqtt"]
    assert [name for name, it in file["services"].items() if "ports" in it] == [
        "nginx",
        "mosquitto",
    ]


def test_compose_fits_the_image():
    service = composed()["services"]["orchmgmt"]
    assert service["volumes"][0].partition(":")[2] in step("VOLUME")
    assert step("HEALTHCHECK")  # nginx waits for it
    assert composed()["services"]["nginx"]["depends_on"]["orchmgmt"] == {
        "condition": "service_healthy"
    }
    variables = dict(part.split("=", 1) for value in step("ENV") for part in value.split())
    for name in ("ORCHMGMT_HOST", "ORCHMGMT_PORT"):
        assert service["environment"][name] == variables[name]
    upstream = (COMPOSE / "orchmgmt-upstream.conf").read_text()
    assert f"server orchmgmt:{variables['ORCHMGMT_PORT']};" in upstream
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_TIMEOUT + 30


def test_in_compose_the_service_believes_nginx_alone():
    file = composed()
    proxy = file["services"]["nginx"]["networks"]["cloud"]["ipv4_address"]
    environment = file["services"]["orchmgmt"]["environment"]
    assert environment["ORCHMGMT_TRUSTED_PROXIES"] == proxy
    assert environment["ORCHMGMT_AUTHENTICATION_POLICY"] == "certificate"
    assert "ports" not in file["services"]["orchmgmt"]


def test_the_variables_of_compose_are_settings_or_its_own():
    names = set(example(chosen=re.findall(r"\w+", (COMPOSE / "env.example").read_text())))
    text = (COMPOSE / "compose.yaml").read_text()
    of_compose = {*re.findall(r"\$\{(\w+)", text), "COMPOSE_PROFILES"}
    settings = {row.name for row in describe()}
    assert names - settings == of_compose
    assert not any(name.startswith(PREFIX) for name in of_compose)  # the service would not know it
    given = composed()["services"]["orchmgmt"]["environment"]
    assert set(given) <= settings
    assert not set(given) & names  # what the file gives cannot be set there
    chosen = example(names & settings)
    read = Settings.read(environ={**given, **chosen})
    assert read.cloud == "testcloud.company"
    assert read.database_url == "postgresql://orchmgmt@postgresql/orchmgmt"
    database = composed(PGPASSWORD="x")["services"]["postgresql"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("orchmgmt", "orchmgmt")
    assert database["POSTGRES_PASSWORD"] == "x"


def test_nginx_serves_operators_on_the_mounts_of_compose(serve, authority, tmp_path):
    root = tmp_path / "container"
    for volume in composed()["services"]["nginx"]["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        inside = root / target.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source == "./certificates":
            inside.mkdir()
            both = authority.server_file()  # certificate and key
            for name in ("server.pem", "server.key"):
                shutil.copy(both, inside / name)
            shutil.copy(authority.ca_file, inside / "cloud-ca.pem")
            shutil.copy(authority.revocations(), inside / "cloud-crl.pem")
        elif (COMPOSE / source).is_dir():
            shutil.copytree(COMPOSE / source, inside)
        else:
            shutil.copy(COMPOSE / source, inside)
    environment = composed()["services"]["orchmgmt"]["environment"] | example()
    # Beside the proxy, not in a network of their own.
    for name in ("ORCHMGMT_HOST", "ORCHMGMT_TRUSTED_PROXIES"):
        environment[name] = "127.0.0.1"
    process = serve(env=environment)
    replace = {
        "orchmgmt:8441": urlsplit(process.url).netloc,
        "/etc/orchmgmt": str(root / "etc" / "orchmgmt"),
    }
    configurations = root / "etc" / "nginx"
    nginx = Nginx(tmp_path / "nginx", "default.conf", replace, [*configurations.glob("*/*.conf")])
    try:
        context = ssl.create_default_context(cafile=authority.ca_file)
        context.load_cert_chain(authority.operator().save(tmp_path / "carol.pem"))
        connection = http.client.HTTPSConnection("127.0.0.1", nginx.port, context=context)
        connection.request("POST", f"{MANAGEMENT}/lock/query")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b'{"entries":[],"count":0}')
        connection.close()
    finally:
        nginx.stop()


# Prometheus and Grafana

PROMETHEUS = ROOT / "deploy" / "prometheus"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("check", "rules", PROMETHEUS / "orchmgmt-alerts.yml"),
        ("test", "rules", ROOT / "tests" / "data" / "alerts-test.yml"),
    ],
    ids=lambda it: f"{it[0]} {it[1]}",
)
def test_promtool_finds_no_fault(arguments):
    ended = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def alerts():
    rules = yaml.safe_load((PROMETHEUS / "orchmgmt-alerts.yml").read_text())
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def test_each_alert_is_on_the_page_and_tested():
    page = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"^\| `(Orchmgmt\w+)`", page, re.MULTILINE) == list(alerts())
    tested = yaml.safe_load((ROOT / "tests" / "data" / "alerts-test.yml").read_text())
    fired = {
        it["alertname"]
        for test in tested["tests"]
        for it in test["alert_rule_test"]
        if it["exp_alerts"]
    }
    assert fired == set(alerts())


def series():
    """The names under which Prometheus stores what the service tells."""
    names = set(re.findall(r"^\| `(orchmgmt_\w+)`", marked("metrics"), re.MULTILINE))
    (histogram,) = (name for name in names if name.endswith("_seconds"))
    return names - {histogram} | {f"{histogram}_bucket"}


def test_the_alerts_ask_for_metrics_that_there_are():
    asked = set(re.findall(r"\borchmgmt_\w+", " ".join(it["expr"] for it in alerts().values())))
    assert asked <= series()


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "orchmgmt.json").read_text())
    shown = " ".join(it["expr"] for panel in dashboard["panels"] for it in panel["targets"])
    assert set(re.findall(r"\borchmgmt_\w+", shown)) == series()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    variables = {it["name"] for it in dashboard["templating"]["list"]} | {"__rate_interval"}
    text = json.dumps(dashboard).replace("$__all", "")
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables


# The command that writes all of this


def test_deploy_files_writes_them_all_and_lists_them(run, tmp_path):
    ended = run("deploy-files", "out/there")
    assert (ended.returncode, ended.stderr) == (0, "")
    files = sorted(it for it in (ROOT / "deploy").glob("*/*"))
    listed = [f"out/there/{it.relative_to(ROOT / 'deploy')}" for it in files]
    assert ended.stdout.splitlines() == listed
    for path, name in zip(files, listed, strict=True):
        assert (tmp_path / name).read_bytes() == path.read_bytes()


def test_deploy_files_replaces_nothing_unless_it_is_told_to(run, tmp_path):
    mine = tmp_path / "nginx" / "generic_https.conf"
    mine.parent.mkdir()
    mine.write_text("mine")
    ended = run("deploy-files", ".")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "Error: nginx/generic_https.conf exists already: --force replaces it and all the others\n"
    )
    assert mine.read_text() == "mine"
    assert [it.name for it in tmp_path.iterdir()] == ["nginx"]
    assert run("deploy-files", "--force", ".").returncode == 0
    assert "ssl" in mine.read_text()


def test_deploy_files_says_where_it_cannot_write(run, tmp_path):
    (tmp_path / "file").touch()
    ended = run("deploy-files", "file")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Error: cannot write file")
    assert len(ended.stderr.splitlines()) == 1


# Several processes behind nginx

FRAME = """
{user}
daemon off;
pid nginx.pid;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {upstream}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://orchmgmt;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


@pytest.fixture(params=["ports", "sockets"])
def behind_nginx(request, serve, tmp_path):
    """Two processes on one file, and a client of the nginx in front of them."""
    nginx = program("nginx")
    options = ("--database-url", "sqlite:///shared.db", "--database-timeout-seconds", "60")
    sockets = tempfile.mkdtemp(prefix="orchmgmt-", dir="/tmp")  # a socket's path must be short
    servers = []
    upstream = UPSTREAM.read_text()
    for port in ("8441", "8442"):
        if request.param == "ports":
            servers.append(serve(*options))
            address = urlsplit(servers[-1].url).netloc
        else:
            path = f"{sockets}/{port}.sock"
            servers.append(serve(*options, "--unix-socket", path))
            address = f"unix:{path}"
        upstream = upstream.replace(f"127.0.0.1:{port}", address)
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # else its workers could not write here
    (tmp_path / "nginx.conf").write_text(FRAME.format(user=user, upstream=upstream, port=port))
    errors = str(tmp_path / "error.log")
    process = subprocess.Popen(
        [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", errors],
        stderr=subprocess.DEVNULL,
    )
    client = Client(f"http://127.0.0.1:{port}")
    try:
        while process.poll() is None:
            try:
                client.send("GET", "/health")
            except ConnectionRefusedError:
                continue
            break
        assert process.poll() is None, Path(errors).read_text()
        yield client, servers
    finally:
        process.terminate()
        process.wait(30)
        for server in servers:
            if server.process.poll() is None:
                server.stop()
        shutil.rmtree(sockets)


def test_processes_behind_nginx_share_the_load_and_lock_nothing_twice(behind_nginx, tmp_path):
    client, servers = behind_nginx
    statuses: Counter[int] = Counter()

    def work(_):
        for number in range(40):
            statuses[client.create(lock(f"P|s{number}|1.0.0")).status] += 1

    in_threads(work, range(4))
    assert statuses == {201: 40, 400: 120}
    for number in range(len(servers)):
        log = (tmp_path / f"server-{number}.log").read_text()
        assert "operation=lock.create status=" in log  # each had its share


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_others_serve_on_when_a_process_goes(behind_nginx, number):
    client, (first, _) = behind_nginx
    for n in range(4):
        assert client.create(lock(f"Before{n}|s|1.0.0")).status == 201
    first.stop(number)
    for n in range(10):
        assert client.locks().json["count"] == 4 + n
        assert client.create(lock(f"After{n}|s|1.0.0")).status == 201
    assert client.locks().json["count"] == 14
