"""Which commands make a database or upgrade it, and which leave it as it is."""

import re
import shutil
import sqlite3
from contextlib import closing
from importlib.metadata import version as program
from pathlib import Path

import pytest
from pages import marked, table
from wire import JOB, LOCK, connect, make_earlier

from orchmgmt import cli
from orchmgmt.commands.asking import NoAnswer, NotDone
from orchmgmt.commands.holding import NotHeld
from orchmgmt.commands.mirror import NotExact
from orchmgmt.commands.upgrade import SOMETHING_TO_DO
from orchmgmt.databases.schema import SCHEMA_VERSION

DATA = Path(__file__).parents[1] / "data"
LEAVES_IT = [
    ("lock", "export"),
    ("history", "export"),
    ("clean",),
    ("upgrade",),
    ("upgrade", "--check"),
    ("serve", "--port", "0", "--read-only"),
]


def refused(ended, *words):
    assert ended.returncode == 3
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: cannot use ")
    for word in words:
        assert word in line
    return True


def version_of(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT version FROM orchestration_schema").fetchone()[0]


@pytest.fixture(params=range(1, SCHEMA_VERSION))
def earlier(request, tmp_path):
    path = tmp_path / "orchmgmt.db"
    shutil.copyfile(DATA / f"schema-{request.param}.sqlite", path)
    return path, request.param


@pytest.mark.parametrize("command", LEAVES_IT, ids=" ".join)
def test_a_database_that_is_not_there_is_not_made(run, tmp_path, command):
    assert refused(run(*command), "there is no such file", "`orchmgmt serve`")
    assert list(tmp_path.iterdir()) == []
    assert refused(run(*command, "--database-url", "sqlite:///no/such.db"), "no such file")
    (tmp_path / "orchmgmt.db").touch()
    assert refused(run(*command), "it is empty", "`orchmgmt serve`")
    assert [(it.name, it.stat().st_size) for it in tmp_path.iterdir()] == [("orchmgmt.db", 0)]


@pytest.mark.postgresql
@pytest.mark.parametrize("command", LEAVES_IT, ids=" ".join)
def test_tables_that_are_not_there_are_not_made(run, postgresql, command):
    url = postgresql.create_database()
    ended = run(*command, "--database-url", url)
    assert refused(ended, "postgresql://orchmgmt:***@", "it is empty", "`orchmgmt serve`")
    with closing(connect(url)) as database:
        tables = "SELECT 1 FROM pg_class WHERE relname IN (%s, %s)"
        assert database.execute(tables.replace("%s", f"'{LOCK}'", 1) % f"'{JOB}'").fetchall() == []


@pytest.mark.parametrize("command", [*LEAVES_IT[:3], LEAVES_IT[5]], ids=" ".join)
def test_an_earlier_schema_is_not_upgraded_by_the_way(run, earlier, command):
    path, version = earlier
    before = path.read_bytes()
    assert refused(run(*command), f"version {version}", "run `orchmgmt upgrade`")
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", [*LEAVES_IT[:3], LEAVES_IT[4]], ids=" ".join)
def test_a_restored_backup_is_left_as_it_is(run, tmp_path, command):
    used = ("--database-url", "sqlite:///used.db")
    assert run("lock", "import", "-", *used, input="").returncode == 0
    assert run("backup", "orchmgmt.db", *used).returncode == 0
    path = tmp_path / "orchmgmt.db"
    before = path.read_bytes()
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes() == before


def test_upgrade_says_what_there_is_to_do_and_does_it(run, earlier):
    path, version = earlier
    for _ in range(2):  # to look changes nothing
        ended = run("upgrade", "--check")
        assert ended.returncode == 1
        assert ended.stdout == (
            f"The schema has version {version}: an upgrade to version {SCHEMA_VERSION} is needed.\n"
        )
        assert version_of(path) == version
    ended = run("upgrade")
    assert ended.returncode == 0
    assert ended.stdout == f"Upgraded the schema from version {version} to {SCHEMA_VERSION}.\n"
    said = f" operation=upgrade result=done before={version} after={SCHEMA_VERSION}\n"
    assert ended.stderr.endswith(said)
    assert version_of(path) == SCHEMA_VERSION
    for command in (("upgrade", "--check"), ("upgrade",)):
        ended = run(*command)
        assert ended.returncode == 0
        assert ended.stdout == f"The schema has version {SCHEMA_VERSION}: no upgrade is needed.\n"
        assert ended.stderr == ""
    assert run("lock", "export").stderr == "Exported 10 locks.\n"


def test_an_import_upgrades_and_says_so(run, earlier):
    path, version = earlier
    ended = run("history", "import", "-", input="")
    assert ended.stdout == f"Imported 0 jobs into sqlite:///{path}.\n"
    assert f"upgrades the schema from version {version} to {SCHEMA_VERSION}" in ended.stderr
    assert version_of(path) == SCHEMA_VERSION


def test_a_server_upgrades_and_says_so(serve, earlier, tmp_path):
    path, version = earlier
    server = serve()
    assert server.locks().json["count"] == 10
    assert server.stop() == 0
    upgraded, started, _ = (tmp_path / "server-0.log").read_text().splitlines()
    done = f"upgrades the schema from version {version} to {SCHEMA_VERSION}"
    assert upgraded.endswith(f" orchmgmt {program('orchmgmt')} {done}")
    assert f"serves sqlite:///{path}" in started
    assert version_of(path) == SCHEMA_VERSION


@pytest.mark.postgresql
def test_a_schema_on_a_server_is_upgraded_the_same_way(run, serve, postgresql):
    url = postgresql.create_database()
    options = ("--database-url", url)
    ended = run("lock", "import", "-", *options, input="")
    assert re.fullmatch(
        r"Imported 0 locks into postgresql://orchmgmt:\*\*\*@.*; 0 had expired.*\n", ended.stdout
    )
    make_earlier(url, 2)
    assert refused(run("clean", *options), "version 2", "run `orchmgmt upgrade`")
    assert run("upgrade", "--check", *options).returncode == 1
    assert run("upgrade", *options).returncode == 0
    assert run("upgrade", "--check", *options).returncode == 0
    assert run("clean", *options).returncode == 0


def test_every_exit_code_is_on_the_page():
    failures = (cli.Failure, cli.NoDatabase, cli.NoAddress, NotDone, NoAnswer, NotExact, NotHeld)
    codes = {it.exit_code for it in failures}
    listed = [code for code, _ in table(marked("codes"))]
    assert listed == [str(code) for code in sorted({0, SOMETHING_TO_DO, *codes})]
