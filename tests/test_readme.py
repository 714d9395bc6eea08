"""The README is held to the code: its commands, its example, its tables."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
from support import Process

from orchmgmt import cli, models
from orchmgmt.schemas import JobEntry, LockEntry
from orchmgmt.settings import Settings, describe
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def console(text: str) -> list[tuple[str, str]]:
    """Each command of a page, and what it is said to print."""
    lines = "".join(blocks("console", text))
    found = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:[^$].*\n|\n)*)", lines, re.MULTILINE)
    return [(re.sub("^> ", "", command, flags=re.MULTILINE), output) for command, output in found]


def table(start: str, end: str) -> list[list[str]]:
    rows = README.split(start)[1].split(end)[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_every_command_prints_what_the_readme_shows(serve: Callable[..., Process]) -> None:
    if shutil.which("curl") is None:
        if os.environ.get("CI"):
            pytest.fail("curl is missing")
        pytest.skip("curl is not installed")
    demo = serve("--still", command="demo")
    commands = console(README)
    script = "".join(f"{command}printf '\\1'\n" for command, _ in commands)
    script = script.replace("127.0.0.1:8441", urlsplit(demo.url).netloc)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    outputs = result.stdout.split("\1")
    assert len(commands) == len(outputs) - 1 > 10
    assert [
        (command, output.rstrip("\n"))
        for (command, _), output in zip(commands, outputs, strict=False)
    ] == [(command, output.rstrip("\n")) for command, output in commands]


def test_the_examples_of_embedding_run_and_close_what_they_open(tmp_path: Path) -> None:
    examples = blocks("python", README)
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
    assert table("<!-- settings -->", "<!-- /settings -->") == [
        [f"`{row.name}`", f"`{row.default}`" if row.default else "", row.type, row.help]
        for row in describe()
    ]


def test_every_command_is_in_the_readme() -> None:
    def leaves(group: click.Group, prefix: str) -> list[str]:
        found = []
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            nested = isinstance(command, click.Group)
            found += leaves(command, f"{prefix} {name}") if nested else [f"{prefix} {name}"]
        return found

    described = " ".join(row[0] for row in table("## Command line\n", "\nA line of"))
    for command in leaves(cli.main, "orchmgmt"):
        assert f"`{command}" in described


def test_the_example_database_has_the_current_schema(tmp_path: Path) -> None:
    def schema(path: Path) -> list[tuple[str, str]]:
        connection = sqlite3.connect(path)
        found = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        found += connection.execute(f"SELECT 'v', version FROM {models.Schema._meta.table_name}")
        connection.close()
        return found

    Store(Settings(database_url=f"sqlite:///{tmp_path}/new.db")).close()
    assert schema(cli.EXAMPLE) == schema(tmp_path / "new.db")


def test_the_example_database_holds_valid_locks_and_jobs(tmp_path: Path) -> None:
    shutil.copyfile(cli.EXAMPLE, tmp_path / "copy.db")
    settings = Settings(database_url=f"sqlite:///{tmp_path}/copy.db")
    with Store(settings) as store:
        for schema, batches in (
            (LockEntry(settings), store.database.read(lambda: list(store.locks.stream()))),
            (JobEntry(settings), store.database.read(lambda: list(store.history.stream()))),
        ):
            entries = [entry for rows in batches for entry in schema.dump(rows)]
            assert len(entries) > 30
            for entry in entries:
                loaded = schema.load(entry)
                assert schema.dump([tuple(loaded[name] for name in schema.fields)]) == [entry]
        statuses = store.database.rows("SELECT DISTINCT status, type FROM orchestration_job")
    assert len(statuses) == len(models.STATUSES) * len(models.TYPES)
