"""`orchmgmt backup`."""

import sys
from pathlib import Path
from typing import Any

import click

from orchmgmt.cli import OF_THE_LOG, Failure, begin, printable, takes_settings
from orchmgmt.databases.backup import CannotBackUp, back_up


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@takes_settings("database_url", "database_timeout_seconds", *OF_THE_LOG)
def backup(file: Path, **options: Any) -> None:
    """Make a consistent copy of the database in a new FILE (- is standard output).

    Servers can use the database meanwhile.
    """
    settings = begin(options)
    source, timeout = settings.database_url, settings.database_timeout_seconds
    to_file = str(file) != "-"
    if not to_file and sys.stdout.isatty():
        raise Failure("cannot back up to a terminal: send the output to a file or a command")
    try:
        size = back_up(source, file if to_file else sys.stdout.buffer, timeout)
    except CannotBackUp as error:
        raise Failure(printable(str(error))) from None
    where = f" to {file}" if to_file else ""
    click.echo(f"Copied {size} bytes{where}.", err=not to_file)
