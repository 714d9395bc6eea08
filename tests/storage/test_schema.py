"""Upgrades of the tables, one version after the other, on both kinds of database."""

import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest
from support import until
from wire import LOCK, connect, make_earlier

from orchmgmt.databases import schema
from orchmgmt.databases.schema import SCHEMA_VERSION, TO_READ, OldSchema, Upgrade
from orchmgmt.models import UnusableDatabase
from orchmgmt.store import Store

EARLIER = range(1, SCHEMA_VERSION)
NEXT = SCHEMA_VERSION + 1
COLUMN = f"ALTER TABLE {LOCK} ADD COLUMN note TEXT NOT NULL DEFAULT ''"


@pytest.fixture(params=EARLIER, ids=[f"version {it}" for it in EARLIER])
def version(request):
    return request.param


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.sqlite),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ]
)
def earlier(request, version, tmp_path):
    """The URL of a database of an earlier version, with locks or jobs in it."""
    if request.param == "sqlite":
        data = Path(__file__).parents[1] / "data" / f"schema-{version}.sqlite"
        shutil.copyfile(data, tmp_path / "earlier.db")
        return f"sqlite:///{tmp_path}/earlier.db"
    url = request.getfixturevalue("postgresql").create_database()
    with Store({"DATABASE_URL": url}) as store:
        store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    make_earlier(url, version)
    return url


def rows(url, sql):
    with closing(connect(url)) as database:
        return database.execute(sql).fetchall()


def version_of(url):
    return rows(url, "SELECT version FROM orchestration_schema")


@pytest.fixture
def next_version(monkeypatch):
    """Let the program be of the next version, which these steps lead to."""

    def be(*steps):
        monkeypatch.setitem(schema.UPGRADES, NEXT, Upgrade(steps))
        monkeypatch.setattr(schema, "SCHEMA_VERSION", NEXT)

    return be


def test_an_earlier_version_becomes_the_present_one_and_keeps_its_rows(earlier, version):
    jobs = "SELECT * FROM orchestration_job ORDER BY id"
    before = rows(earlier, jobs)
    assert before
    with pytest.raises(OldSchema, match="run `orchmgmt upgrade`"):
        Store({"DATABASE_URL": earlier}, permitted=TO_READ)
    assert version_of(earlier) == [(version,)]
    with Store({"DATABASE_URL": earlier}) as store:
        assert store.history.find().count == len(before)
    assert version_of(earlier) == [(SCHEMA_VERSION,)]
    assert rows(earlier, jobs) == before


def test_a_new_column_is_one_step(earlier, version, next_version, caplog):
    caplog.set_level("INFO", "orchmgmt")
    next_version(COLUMN)
    locks = f"SELECT id FROM {LOCK} ORDER BY id"
    before = rows(earlier, locks)
    for _ in range(2):  # the second time there is nothing to do
        Store({"DATABASE_URL": earlier}).close()
    assert rows(earlier, f"SELECT id, note FROM {LOCK} ORDER BY id") == [
        (*row, "") for row in before
    ]
    assert version_of(earlier) == [(NEXT,)]
    assert caplog.text.count(f"from version {version} to {NEXT}") == 1


@pytest.mark.postgresql
def test_an_upgrade_counts_what_others_write_until_then(postgresql):
    """Also if the server reads all of a transaction in one snapshot, unless told otherwise."""
    url = postgresql.create_database()
    with Store({"DATABASE_URL": url}) as store:
        store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    make_earlier(url, 4)
    upgrading = f"{url}?options=-c%20default_transaction_isolation%3Drepeatable%5C%20read"
    with closing(connect(url)) as other:
        other.execute("BEGIN")
        other.execute("DELETE FROM orchestration_job")
        thread = threading.Thread(target=lambda: Store({"DATABASE_URL": upgrading}).close())
        thread.start()
        until(lambda: rows(url, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        other.execute("COMMIT")
        thread.join()
    assert version_of(url) == [(SCHEMA_VERSION,)]
    assert rows(url, "SELECT * FROM orchestration_job_count") == []


def test_an_upgrade_that_fails_leaves_everything_as_it_was(earlier, version, next_version):
    next_version(COLUMN, "ALTER TABLE no_such_table ADD COLUMN note TEXT")
    with pytest.raises(UnusableDatabase, match="no_such_table"):
        Store({"DATABASE_URL": earlier})
    assert version_of(earlier) == [(version,)]
    with pytest.raises(Exception, match="note"):
        rows(earlier, f"SELECT note FROM {LOCK}")
