"""The command `orchmgmt`: its group, the options made from settings, and how it fails.

Each command is a module of `commands`, imported when it is used.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

import click

from orchmgmt.errors import Unavailable
from orchmgmt.logs import start_logging
from orchmgmt.models import Opening, UnusableDatabase, WrongUrl
from orchmgmt.settings import PREFIX, SettingError, Settings, describe
from orchmgmt.store import Store

OF_EVERYTHING = tuple(setting.name for setting in fields(Settings))
OF_THE_LOG = ("log_level", "log_format")
OF_THE_STORE = ("database_url", "database_timeout_seconds", "normalization_mode", *OF_THE_LOG)

Command = TypeVar("Command", bound=Callable[..., Any])


#: For commands that use a database as it is.
AS_IT_IS = Opening(create=False, upgrade=False)


#: A line that systemd and python-dotenv read alike. They differ in a comment behind a value, in
#: most escapes, in quotes within a value, and in values of several lines.
_ALIKE = re.compile(
    r"""\s*(?:[A-Za-z_][A-Za-z0-9_]*=[ \t]*
        (?:"(?:[^"\\]|\\["\\])*"|'[^'\\]*'|(?:[^\s"'\\]|[ \t]+(?![\s#]))*)
        [ \t]*)?""",
    re.VERBOSE,
).fullmatch

_COMMENT = re.compile(r"\s*[#;]").match


class Failure(click.ClickException):
    """What ends a command with one clear line: what it was told cannot be done."""

    exit_code = 2  # as click's own of a wrong command line


class NoDatabase(Failure):
    """The database cannot be used."""

    exit_code = 3


class NoAddress(Failure):
    """The address cannot be listened on."""

    exit_code = 4


def takes_settings(*names: str, **defaults: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings, passed on as text.

    Args:
        names: the settings.
        defaults: the defaults that are the command's own.
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
    """Complete the value of an option, where it is one of a few words."""
    return lambda _context, _parameter, begun: [it for it in words if it.startswith(begun)]


@contextmanager
def _environment_of(path: Path) -> Iterator[None]:
    """Have the variables of a file in the environment while the context lasts, over those there.

    Raises:
        SettingError: the file cannot be read, or holds a line that systemd would read otherwise.
    """
    before = dict(os.environ)
    os.environ.update(_read_env_file(path))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        from dotenv import dotenv_values
    except ImportError:
        raise SettingError(
            "--env-file needs python-dotenv: pip install 'orchmgmt[dotenv]'"
        ) from None
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingError(f"{path} cannot be read: {reason}") from None
    lines = ["" if _COMMENT(line) else line for line in lines]
    for number, line in enumerate(lines, 1):
        if not _ALIKE(line):
            raise SettingError(
                f"{path}, line {number}: it must be NAME=VALUE, on one line and without a "
                "comment; a value with quotes or # in it must be in quotes of the other kind, one "
                "with \\ in double quotes, as \\\\"
            )
    found = dotenv_values(stream=StringIO("\n".join(lines)), interpolate=False)
    return {name: value or "" for name, value in found.items()}


def _use_env_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path:
        context.with_resource(_environment_of(path))


#: Read before all other options, which win.
ENV_FILE = click.Option(
    ["--env-file"],
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_use_env_file,
    help="File of variables, such as the systemd unit's: /etc/orchmgmt/orchmgmt.env.",
)

#: Commands that no variable has an effect on.
WITHOUT_ENVIRONMENT = ("completion", "deploy-files", "test-server")


class Group(click.Group):
    """Commands that end with one clear line where the user can mend the cause.

    Args:
        lazy: commands that are imported when they are used, each from its module of `commands`.
    """

    group_class = type  # a group in a group is of the same kind

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
            # What could not be written would be tried again, and complained of, at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            what = error.filename or "the output"
            raise Failure(f"cannot write {what}: {error.strerror}") from None


def printable(text: str) -> str:
    """Return `text` on one line, with nothing that a terminal would obey."""
    return "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)


def many(count: int, noun: str) -> str:
    """Return `1 lock`, `2 locks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def begin(options: dict[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings, and start to log."""
    settings = Settings.read(options, environ=environ)
    start_logging(settings)
    return settings


def opened(options: dict[str, Any], opening: Opening = AS_IT_IS) -> Store:
    """Open the store that the settings name."""
    return Store(begin(options), opening=opening)


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
