"""`orchmgmt backup`: a copy of a SQLite database, made while servers use it."""

import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import click
import peewee

from orchmgmt.cli import OF_THE_LOG, Failure, begin, printable, takes_settings
from orchmgmt.commands.unfinished import unfinished
from orchmgmt.databases.files import demand_whole, in_the_way
from orchmgmt.databases.schema import Permitted, check_schema
from orchmgmt.databases.sqlite import MEMORY, may_write, sqlite_path, state_of, uri_of
from orchmgmt.models import UnusableDatabase


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
    if not to_file and sys.stdout is None:
        raise Failure("cannot back up to standard output: it is closed")
    if not to_file and sys.stdout.isatty():
        raise Failure("cannot back up to a terminal: send the output to a file or a command")
    size = back_up(source, file if to_file else sys.stdout.buffer, timeout)
    where = f" to {file}" if to_file else ""
    click.echo(f"Copied {size} bytes{where}.", err=not to_file)


def back_up(url: str, target: Path | BinaryIO, timeout: float) -> int:
    """Copy a database as it is at one moment, while servers go on writing.

    The copy is a single file. It gets its name once it is complete and on disk.

    Args:
        url: the setting `DATABASE_URL`. The schema may be of an earlier version.
        target: the file to make, or a stream to write to once the copy is complete.
        timeout: how long to wait for servers that are just starting, in seconds.

    Returns:
        Its size in bytes.

    Raises:
        Failure: the target exists or cannot be written, or a database of this kind is not
            backed up so.
        UnusableDatabase: the database cannot be read, or is another program's.
    """
    if not url.startswith("sqlite:"):
        raise Failure("cannot back up this database: PostgreSQL has pg_dump for that")
    path = sqlite_path(url)
    if path == MEMORY:
        raise Failure("cannot back up a database in memory: it is its process's alone")
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        # SQLite would make one.
        reason = in_the_way(path, to_write=False) or "there is no such file"
        raise UnusableDatabase(f"cannot back up {path}: {reason}")
    if isinstance(target, Path):
        where, parent = str(target), target.parent
        if os.path.lexists(target):
            raise Failure(printable(f"cannot back up to {target}: it exists already"))
    else:
        parent = Path(tempfile.gettempdir())
        where = f"standard output, by way of {parent}"
    try:
        # The folder is this user's alone: nobody who may not read the database can read the copy.
        with unfinished(parent) as folder:
            partial = folder / "copy"
            _copy(path, partial, timeout)
            size = partial.stat().st_size
            if isinstance(target, Path):
                shutil.copymode(path, partial)
                _move(partial, target)
            else:
                where = "standard output"
                with partial.open("rb") as copy:
                    shutil.copyfileobj(copy, target)
                    target.flush()
    except BrokenPipeError:
        raise  # the reader has stopped reading
    except UnusableDatabase as error:
        raise UnusableDatabase(f"cannot back up {path}: {error}") from None
    except OSError as error:
        raise Failure(printable(f"cannot back up to {where}: {error.strerror or error}")) from None
    except (peewee.DatabaseError, sqlite3.Error) as error:
        raise UnusableDatabase(f"cannot back up {path} to {where}: {error}") from None
    return size


def _copy(path: str, partial: Path, timeout: float) -> None:
    demand_whole(path, timeout)
    before = state_of(path)
    source = peewee.SqliteDatabase(uri_of(path), uri=True)
    try:
        with source.atomic("DEFERRED"):
            check_schema(source, Permitted(create=False))
        with closing(sqlite3.connect(partial)) as copy:
            copy.execute("PRAGMA journal_mode = MEMORY")  # what fails is thrown away
            # In one step, the copy is of one moment; in several, each write would restart it.
            source.connection().backup(copy)
            # Only a database in use needs the write-ahead log; the copy must be a single file.
            copy.execute("PRAGMA journal_mode = DELETE")
            found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"the database is damaged: {found.splitlines()[-1]}")
    finally:
        source.close()
    if not may_write(path) and state_of(path) != before:
        raise UnusableDatabase("it has come into use meanwhile: try again")


def _move(partial: Path, target: Path) -> None:
    """Give a file its name, on disk, unless another file has got that name meanwhile."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        partial.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
