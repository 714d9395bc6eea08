"""The command line as a whole: how it is started, and commands that are imported when they run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import COMMAND

from orchmgmt import commands
from orchmgmt.cli import Group

pytestmark = pytest.mark.sqlite

LAZY = """
import click
from orchmgmt.settings import SettingError

@click.command()
@click.argument("word")
def late(word):
    \"\"\"Say a word.\"\"\"
    if not word:
        raise SettingError("a word\\nis needed")
    click.echo(word)
"""


@pytest.mark.parametrize("arguments", [["--version"], ["lock", "--help"], ["clean"], ["srve"]])
def test_the_package_runs_as_the_command(
    run: Callable[..., Any], tmp_path: Path, arguments: list[str]
) -> None:
    command = run(*arguments)
    module = subprocess.run(
        [sys.executable, "-m", "orchmgmt", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (module.returncode, module.stdout, module.stderr) == (
        command.returncode,
        command.stdout,
        command.stderr,
    )


@pytest.mark.parametrize("command", ["openapi", "config"])
def test_output_that_finds_no_room_is_one_clear_line(run: Callable[..., Any], command: str) -> None:
    with open("/dev/full", "w") as full:
        ended = run(command, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (
        2,
        "Error: cannot write the output: No space left on device\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serve", "--port", "0"], 3, "the current folder is no longer there"),
        (["lock", "export"], 3, "the current folder is no longer there"),
        (["config"], 0, ""),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else "",
)
def test_a_folder_that_is_gone_is_said(
    tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", COMMAND, *arguments],
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code
    assert said in ended.stderr
    assert ended.stderr.count("\n") == bool(said)


LATE = "orchmgmt.commands.late"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """A group in a group, with a command that is there already and one that is not."""
    (tmp_path / "late.py").write_text(LAZY)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, LATE, raising=False)
    outer = Group("outer")

    @outer.group(lazy=["late"])
    def inner() -> None:
        """Say something."""

    @inner.command()
    def early() -> None:
        """Say nothing."""

    return outer


def test_a_command_is_imported_only_when_it_is_used(group: click.Group) -> None:
    assert CliRunner().invoke(group, ["inner", "early"]).exit_code == 0
    assert CliRunner().invoke(group, ["--help"]).exit_code == 0
    assert CliRunner().invoke(group, ["inner", "wrong"]).exit_code == 2
    assert LATE not in sys.modules
    assert CliRunner().invoke(group, ["inner", "late", "word"]).output == "word\n"


def test_help_shows_a_command_that_is_imported_when_it_is_used(group: click.Group) -> None:
    shown = CliRunner().invoke(group, ["inner", "--help"]).output
    assert shown.index("early  Say nothing.") < shown.index("late   Say a word.")


def test_such_a_command_too_ends_with_one_clear_line(group: click.Group) -> None:
    ended = CliRunner().invoke(group, ["inner", "late", ""])
    assert (ended.exit_code, ended.output) == (
        2,
        "Error: a word\N{REPLACEMENT CHARACTER}is needed\n",
    )
