"""Make the man page of the command, from its help.

Usage: make_man.py FILE
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from inspect import cleandoc
from pathlib import Path

import click

from orchmgmt.cli import main
from orchmgmt.settings import PREFIX, describe


def escaped(text: str) -> str:
    """The text as roff takes it: nothing in it is a command, and a hyphen can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def page() -> Iterator[str]:
    """The lines of the page. Settings, which many commands take, are described once."""
    yield f'.TH ORCHMGMT 1 "" "orchmgmt {version("orchmgmt")}" "User Commands"'
    yield ".nh"  # the name of an option stays whole
    yield ".SH NAME"
    yield "orchmgmt \\- locks and history of an Arrowhead local cloud's orchestration"
    yield ".SH SYNOPSIS"
    yield ".B orchmgmt"
    yield "\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]..."
    yield ".SH DESCRIPTION"
    yield escaped(cleandoc(main.help or ""))
    yield ".SH COMMANDS"
    settings: dict[str, tuple[str, str]] = {}
    for context in commands(click.Context(main, info_name="orchmgmt")):
        command = context.command
        yield f".SS {escaped(context.command_path)}"
        yield f".B {escaped(context.command_path)}"
        yield escaped(" ".join(command.collect_usage_pieces(context)))
        yield ".PP"
        yield escaped(cleandoc(command.help or "")).replace("\n\n", "\n.PP\n")
        taken = []
        for option in command.params:
            record = option.get_help_record(context)
            if not record or not isinstance(option, click.Option):
                continue
            if f"[{PREFIX}" in record[1]:
                taken.append(option.opts[0])
                settings.setdefault(option.opts[0], record)
            else:
                yield from described(record)
        if taken:
            yield ".PP"
            yield f"Settings: {escaped(', '.join(taken))}."
    yield ".SH SETTINGS"
    yield "Each is an option, or the variable of the environment that is named behind it."
    for row in describe():
        option = "--" + row.name.removeprefix(PREFIX).lower().replace("_", "-")
        yield from described(settings[option])
    yield ".SH SEE ALSO"
    yield "README.md and docs/ of the source: commands.md, settings.md, deploy.md, operations.md."


def described(record: tuple[str, str]) -> Iterator[str]:
    yield ".TP"
    yield f".B {escaped(record[0])}"
    yield escaped(record[1])


def commands(context: click.Context) -> Iterator[click.Context]:
    """Each command that is no group, in alphabetical order."""
    group = context.command
    if not isinstance(group, click.Group):
        yield context
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        yield from commands(click.Context(command, parent=context, info_name=name))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(page()) + "\n")
