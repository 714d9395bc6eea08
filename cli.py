"""The command `orchmgmt`: its group, the options made from settings, and its failures.

Each command is a module of `commands`, imported when it is used.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import click

from orchmgmt.databases.schema import Permitted
from orchmgmt.errors import Unavailable
from orchmgmt.logs import start_logging
from orchmgmt.models import UnusableDatabase, WrongUrl
from orchmgmt.settings import PREFIX, SettingError, Settings, describe, read_file
from orchmgmt.store import Store

OF_EVERYTHING = tuple(setting.name for setting in fields(Settings))
OF_THE_LOG = ("log_level", "log_format")
OF_THE_STORE = ("database_url", "database_timeout_seconds", "normalization_mode", *OF_THE_LOG)

Command = TypeVar("Command", bound=Callable[..., Any])


#: For commands that use a database as it is.
AS_IT_IS = Permitted(create=False, upgrade=False)


#: A line that systemd and python-dotenv read in the same way. They differ in comments after a
#: value, most escapes, quotes inside a value, and values of several lines.
_ALIKE = re.compile(
    r"""\s*(?:[A-Za-z_][A-Za-z0-9_]*=[ \t]*
        (?:"(?:[^"\\]|\\["\\])*"|'[^'\\]*'|(?:[^\s"'\\]|[ \t]+(?![\s#]))*)
        [ \t]*)?""",
    re.VERBOSE,
).fullmatch

_COMMENT = re.compile(r"\s*[#;]").match


class Failure(click.ClickException):
    """Ends a command with one clear line that says what cannot be done."""

    exit_code = 2  # the same as click's for a wrong command line


class NoDatabase(Failure):
    """The database cannot be used."""

    exit_code = 3


class NoAddress(Failure):
    """The address cannot be listened on."""

    exit_code = 4


def takes_settings(*names: str, **defaults: str) -> Callable[[Command], Command]:
    """Add an option for each of these settings to a command, which receives the option's text.

    Args:
        names: the settings.
        defaults: the command's own defaults.
    """
    rows = {row.name.removeprefix(PREFIX).lower(): row for row in describe()}

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            row, default = rows[name], defaults.get(name, rows[name].default)
            click.option(
                "--" + name.replace("_", "-"),
                metavar=f"<{row.type}>",
                shell_complete=_completer(row.type.split(" or ") if " or " in row.type else []),
                help=f"{row.help}.  [{row.name}; default: {default or 'none'}]",
            )(command)
        return command

    return decorate


def _completer(
    words: list[str],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes an option's value from a few words."""
    return lambda _context, _parameter, begun: [it for it in words if it.startswith(begun)]


def _read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file.

    Raises:
        SettingError: it cannot be read, or has a line that systemd would read differently.
    """
    try:
        from dotenv import dotenv_values
    except ImportError:
        raise SettingError(
            "--env-file needs python-dotenv: pip install 'orchmgmt[dotenv]'"
        ) from None
    text = read_file(path, str(path))
    lines = ["" if _COMMENT(line) else line for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if not _ALIKE(line):
            raise SettingError(
                f"{path}, line {number}: it must be NAME=VALUE, on one line and without a "
                "comment; put a value that contains quotes or # into quotes of the other kind, and "
                "one that contains \\ into double quotes, as \\\\"
            )
    found = dotenv_values(stream=StringIO("\n".join(lines)), interpolate=False)
    return {name: value or "" for name, value in found.items()}


def _use_env_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let the variables of a file override those of the environment while the command runs."""
    if path:
        before = dict(os.environ)
        os.environ.update(_read_env_file(path))

        @context.call_on_close
        def restore() -> None:
            os.environ.clear()
            os.environ.update(before)


#: Read before all other options, which override it.
ENV_FILE = click.Option(
    ["--env-file"],
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_use_env_file,
    help="File of variables, such as the systemd unit's: /etc/orchmgmt/orchmgmt.env.",
)

#: Commands that read no variables.
WITHOUT_ENVIRONMENT = ("completion", "deploy-files", "test-server")


class Group(click.Group):
    """Commands that end with one clear line if the user can fix the cause.

    Args:
        lazy: names of commands; each is imported from its module of `commands` when it is used.
    """

    group_class = type  # a group in a group has the same class

    def __init__(self, *args: Any, lazy: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(context), *self._lazy])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command by its name."""
        command: click.Command | None
        if name in self._lazy:
            module = name.replace("-", "_")
            command = resolve_name(f"orchmgmt.commands.{module}:{module}")
        else:
            command = super().get_command(context, name)
        if (
            command
            and not isinstance(command, click.Group)
            and name not in WITHOUT_ENVIRONMENT
            and ENV_FILE not in command.params
        ):
            command.params.append(ENV_FILE)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except (SettingError, WrongUrl) as error:
            raise Failure(printable(str(error))) from None
        except (UnusableDatabase, Unavailable) as error:
            raise NoDatabase(printable(str(error))) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # Otherwise Python would try to write the rest again when it exits, and fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            what = error.filename or "the output"
            raise Failure(f"cannot write {what}: {error.strerror}") from None


def printable(text: str) -> str:
    """Return `text` on one line, without control characters."""
    return "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)


def many(count: int, noun: str) -> str:
    """Return `1 lock`, `2 locks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def begin(options: dict[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings, and start logging."""
    settings = Settings.read(options, environ=environ)
    start_logging(settings)
    return settings


def opened(options: dict[str, Any], permitted: Permitted = AS_IT_IS) -> Store:
    """Open the store that the settings name."""
    return Store(begin(options), permitted=permitted)


@click.group(
    cls=Group,
    lazy=(
        "backup",
        "check",
        "clean",
        "completion",
        "config",
        "demo",
        "deploy-files",
        "history",
        "lock",
        "mirror",
        "mqtt",
        "openapi",
        "serve",
        "test-server",
        "upgrade",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("orchmgmt"), prog_name="orchmgmt", message="%(prog)s %(version)s")
def main() -> None:
    """Orchestration lock and history management of an Eclipse Arrowhead 5 local cloud."""
