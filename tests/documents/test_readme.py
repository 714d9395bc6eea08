"""The README and what it leads to are held to the code: commands, examples, tables."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
from needs import program
from pages import README, ROOT, blocks, console, marked, page, table
from support import Process

from orchmgmt import cli, models
from orchmgmt.commands.demo import EXAMPLE
from orchmgmt.schemas import JobEntry, LockEntry
from orchmgmt.settings import Settings, describe
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite


@pytest.mark.parametrize("name", ["README.md", "use.md"])
def test_every_command_prints_what_the_page_shows(serve: Callable[..., Process], name: str) -> None:
    program("curl")
    demo = serve("--still", command="demo")
    commands = console(README if name == "README.md" else page(name))
    script = "".join(f"{command}printf '\\1'\n" for command, _ in commands)
    script = script.replace("127.0.0.1:8441", urlsplit(demo.url).netloc)
    script += 'printf %s "$until"'
    before = datetime.now(UTC).replace(microsecond=0)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    *outputs, until = result.stdout.split("\1")
    assert len(commands) == len(outputs) > 8
    if name == "README.md":  # its lock ends five minutes later, whenever that is
        assert before + timedelta(minutes=5) <= datetime.fromisoformat(until.replace("Z", "+00:00"))
        outputs = [it.replace(until, "2026-11-25T14:05:00Z") for it in outputs]
    assert [
        (command, output.rstrip("\n"))
        for (command, _), output in zip(commands, outputs, strict=True)
    ] == [(command, output.rstrip("\n")) for command, output in commands]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_figures_of_the_readme_are_those_measured() -> None:
    measured = (ROOT / "bench" / "RESULTS.md").read_text()
    cases = ["lock_by_id", "page_of_1000_locks", "page_of_10_jobs", "create_1", "create_100"]
    cases += ["start to first answer, s", "resident memory after all the load, MiB"]
    for case, row in zip(cases, table(marked("speed")), strict=True):
        assert f"\n| {case} | {row[1]} |" in measured


def test_the_examples_of_embedding_run_and_close_what_they_open(tmp_path: Path) -> None:
    examples = blocks("python", page("embedding.md"))
    assert "create_app" in examples[0]
    assert "store.locks.create" in examples[1]
    for example in examples:
        assert warnings_of(example, tmp_path) == ""


def test_threads_that_used_a_store_and_end_leave_nothing_open(tmp_path: Path) -> None:
    example = """
import gc, threading
from orchmgmt.store import Store
with Store({"DATABASE_URL": "sqlite:///orchmgmt.db"}) as store:
    for _ in range(3):
        thread = threading.Thread(target=store.clean)
        thread.start()
        thread.join()
gc.collect()
try:
    Store({"DATABASE_URL": "sqlite:///no/such/folder.db"})
except Exception as error:
    assert "there is no folder" in str(error)
gc.collect()
"""
    assert warnings_of(example, tmp_path) == ""


def warnings_of(example: str, folder: Path) -> str:
    """What a program says that runs with every warning on."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", example]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_the_settings_table_is_the_programs() -> None:
    assert table(marked("settings")) == [
        [f"`{row.name}`", f"`{row.default}`" if row.default else "", row.type, row.help]
        for row in describe()
    ]


def test_every_command_is_on_the_page_about_them() -> None:
    def leaves(group: click.Group, prefix: str) -> list[str]:
        found = []
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            nested = isinstance(command, click.Group)
            found += leaves(command, f"{prefix} {name}") if nested else [f"{prefix} {name}"]
        return found

    described = " ".join(row[0] for row in table(marked("commands")))
    for command in leaves(cli.main, "orchmgmt"):
        assert f"`{command}" in described


def test_the_example_database_has_the_current_schema(tmp_path: Path) -> None:
    def schema(path: Path) -> list[tuple[str, str]]:
        connection = sqlite3.connect(path)
        found = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        found += connection.execute(
            f"SELECT 'v', version FROM {models.SchemaVersion._meta.table_name}"
        )
        connection.close()
        return found

    Store(Settings(database_url=f"sqlite:///{tmp_path}/new.db")).close()
    assert schema(EXAMPLE) == schema(tmp_path / "new.db")


def test_the_example_database_holds_valid_locks_and_jobs(tmp_path: Path) -> None:
    shutil.copyfile(EXAMPLE, tmp_path / "copy.db")
    settings = Settings(database_url=f"sqlite:///{tmp_path}/copy.db")
    with Store(settings) as store:
        for schema, rows in (
            (LockEntry(settings), store.database.read(lambda: list(store.lock_table.stream()))),
            (JobEntry(settings), store.database.read(lambda: list(store.job_table.stream()))),
        ):
            entries = schema.entries_of(rows)
            assert len(entries) > 30
            for entry in entries:
                found = schema.read(entry)
                assert schema.entries_of([tuple(found[name] for name in schema.fields)]) == [entry]
        query = "SELECT DISTINCT status, type FROM orchestration_job"
        statuses = store.database.read(store.database.rows, query)
    assert len(statuses) == len(models.STATUSES) * len(models.TYPES)
