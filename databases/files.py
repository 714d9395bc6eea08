"""The three files of a SQLite database, and what other programs do to them.

SQLite continues to use files that were removed while it had them open. What it writes to them is
lost when the process ends, and another process makes new files and does not see it. So a process
compares the files that exist with those that it has opened: before and after each write, and many
times a second for reads.
"""

import grp
import os
import pwd
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from math import inf
from pathlib import Path
from typing import Any

from orchmgmt.models import UnusableDatabase

DATABASE, LOG, INDEX = SUFFIXES = ("", "-wal", "-shm")

#: What a write-ahead log begins with, in either byte order.
LOG_BEGINS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")

LOG_HEADER = 32  # bytes
FRAME_HEADER = 24  # bytes, before each page of the log

#: The size of the smallest database in bytes: one page.
SMALLEST = 512

PAUSE = 0.01  # seconds


class Files:
    """The files of a database that the connections of this process use.

    Args:
        path: the database's file, which exists.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._paths = {suffix: path + suffix for suffix in SUFFIXES}
        self._known: dict[str, tuple[int, int]] = {}
        self._sizes: dict[str, float] = {}
        self._log: int | None = None  # a descriptor: SQLite has no locks on this file to lose
        self._look(DATABASE)

    def opened(self) -> None:
        """Remember the log and the index as those in use. Call it once a connection has read.

        In write-ahead mode they exist by then, and are removed with the last connection.
        """
        for suffix in (LOG, INDEX):
            self._known.pop(suffix, None)
            self._sizes.pop(suffix, None)
            self._look(suffix)
        self.close()
        if LOG in self._known:
            self._log = os.open(self._path + LOG, os.O_RDONLY)

    def harm(self, in_use: bool = True) -> str:
        """Return what another program has done to one of the files, or an empty text.

        Args:
            in_use: whether there are connections; without them only the database itself matters.
        """
        for suffix in SUFFIXES if in_use else (DATABASE,):
            if found := self._look(suffix):
                return found
        return ""

    def harm_of_commit(self) -> str:
        """Return the same after a commit, which has written to the log."""
        if self._log is not None:
            begins = os.pread(self._log, len(LOG_BEGINS[0]), 0)
            # After a write beyond the end of an emptied file, the file begins with zeros.
            if begins and begins not in LOG_BEGINS:
                self._sizes[LOG] = inf
        return self.harm()

    def close(self) -> None:
        """Forget the log: there are no connections any longer."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _look(self, suffix: str) -> str:
        known = self._known.get(suffix)
        try:
            found = os.stat(self._paths[suffix])
        except OSError:
            return f"{self._path}{suffix} was removed" if known else ""
        identity = (found.st_ino, found.st_dev)
        if identity == known and found.st_size == self._sizes[suffix]:
            return ""
        if identity != known:
            if known:
                return f"{self._path}{suffix} was replaced"
            self._known[suffix] = identity
        size = self._sizes.get(suffix, 0)
        if found.st_size < size and (size == inf or not self._may_shrink(suffix)):
            self._sizes[suffix] = inf  # even if it grows again
            return f"{self._path}{suffix} was truncated"
        self._sizes[suffix] = found.st_size
        return ""

    def _may_shrink(self, suffix: str) -> bool:
        """Return whether SQLite itself has made a file smaller."""
        if suffix == INDEX or os.stat(self._path).st_size < SMALLEST:
            return False
        try:
            with closing(sqlite3.connect(self._path)) as other:
                if suffix == DATABASE:  # by VACUUM
                    return bool(other.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
                # By a checkpoint: then the index has no more frames than the log.
                _, frames, _ = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                (page,) = other.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error:
            return False
        needed = LOG_HEADER + frames * (FRAME_HEADER + page) if frames > 0 else 0
        return os.stat(self._path + LOG).st_size >= needed


def demand_whole(path: str, timeout: float) -> None:
    """Raise if files of a database are missing that another process is still using.

    Call it before a connection that may be the first of the process.

    Args:
        path: the database's file, which exists.
        timeout: how long to wait for a process that is about to make them, in seconds.

    Raises:
        UnusableDatabase: its text says what is missing and what to do.
    """
    deadline = time.monotonic() + timeout
    log = path + LOG
    if os.stat(path).st_size < SMALLEST and os.path.exists(log) and os.path.getsize(log):
        raise UnusableDatabase(f"it was truncated ({log} is there): restore a backup")
    while missing := [it for it in (LOG, INDEX) if not os.path.exists(path + it)]:
        if os.stat(path).st_size < SMALLEST:
            return
        try:
            with closing(sqlite3.connect(path, timeout=0)) as probe:
                # In this mode a read needs a lock that any other connection prevents.
                probe.execute("PRAGMA locking_mode = EXCLUSIVE")
                probe.execute("SELECT 1 FROM sqlite_schema").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                return  # opening it will fail in the same way, and say so
        if time.monotonic() > deadline:
            raise UnusableDatabase(
                f"{path}{missing[0]} is missing, though other processes use the database: "
                "stop them all, and start again"
            )
        time.sleep(PAUSE)


def owned(path: str) -> str:
    """Return the mode and the owner of a file or folder, as a clause."""
    found = os.stat(path)
    return (
        f"has mode {stat.S_IMODE(found.st_mode):04o} and belongs to "
        f"{_name(pwd.getpwuid, found.st_uid)}:{_name(grp.getgrgid, found.st_gid)}"
    )


def in_the_way(path: str, to_write: bool = True) -> str:
    """Return the first part of a database's path that keeps this user from using the database.

    Args:
        path: the database's file, from the root.
        to_write: whether it is to be written to.

    Returns:
        A clause that names the user and the part, or an empty text if nothing is in the way.
    """
    file = Path(path)
    wanted = [(it, os.X_OK, "enter") for it in reversed(file.parents)]
    if to_write:
        wanted += [(file.parent, os.W_OK, "write to"), (file, os.W_OK, "write to")]
    wanted += [(file, os.R_OK, "read")]
    for part, mode, does in wanted:
        if os.path.exists(part) and not os.access(part, mode, effective_ids=True):
            read_only = mode & os.W_OK and os.statvfs(part).f_flag & os.ST_RDONLY
            reason = "is on a read-only file system" if read_only else owned(str(part))
            user = _name(pwd.getpwuid, os.geteuid())
            return f"{user} cannot {does} {part}, which {reason}"
    return ""


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    """Return the name of a user or a group; its number if it has none, as in some containers."""
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
