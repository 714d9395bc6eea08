"""The kind of database that a URL names, and the URL without its password."""

import os
import re
import time
from contextlib import suppress
from urllib.parse import quote

from orchmgmt.databases import Backend, Clock
from orchmgmt.databases.schema import READY, Permitted
from orchmgmt.models import UnusableDatabase, WrongUrl


def open_database(
    url: str,
    timeout: float,
    connections: int,
    permitted: Permitted = READY,
    clock: Clock | None = None,
) -> Backend:
    """Open a database, and make its tables if it is empty.

    Args:
        url: the setting `DATABASE_URL`.
        timeout: how long a statement waits for a busy database, in seconds.
        connections: how many connections to PostgreSQL there may be at once.
        permitted: what may be done to the database so that it can be used.
        clock: replaces the machine's clock (SQLite) or the server's (PostgreSQL).

    Raises:
        UnusableDatabase: the database cannot be opened, or belongs to another program.
    """
    scheme = url.partition("://")[0]
    try:
        if scheme == "sqlite":
            from orchmgmt.databases.sqlite import SqliteBackend

            # `time.time` is looked up at each call, because libraries may replace it.
            return SqliteBackend(url, timeout, permitted, clock or (lambda: time.time()))
        if scheme == "postgresql":
            try:
                from orchmgmt.databases.postgresql import PostgresqlBackend
            except ImportError as error:
                raise UnusableDatabase(
                    f"it needs psycopg 3 ({error}): pip install 'orchmgmt[postgresql]'"
                ) from error
            return PostgresqlBackend(url, timeout, connections, permitted, clock)
        raise WrongUrl("a database URL begins with sqlite:/// or postgresql://")
    except UnusableDatabase as error:
        error.args = (f"cannot use {shown(url)}: {error}",)
        raise


def shown(url: str) -> str:
    """Return a database URL to show: without its password, and with the whole path."""
    if re.match("sqlite:///(?!/|:memory:)", url):
        with suppress(FileNotFoundError):  # the folder is no longer there
            return url.replace("///", f"///{quote(os.getcwd())}/", 1)
    url = re.sub("(://[^:@/]*):.*@", r"\1:***@", url)
    return re.sub("(password=)[^&]*", r"\1***", url)
