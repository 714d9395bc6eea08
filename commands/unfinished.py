"""A temporary folder for what is not complete yet."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, SUFFIX = "orchmgmt-", ".part"


@contextmanager
def unfinished(parent: Path) -> Iterator[Path]:
    """Return a new folder in `parent`, for this user alone, which is removed at the end.

    What a process of this user left there when it was killed is removed at the beginning of the
    next. A folder is locked for as long as its process lives.

    Raises:
        OSError: nothing can be made there.
    """
    for abandoned in parent.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            lock = _lock(abandoned, fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(abandoned, ignore_errors=True)
            os.close(lock)
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(SUFFIX, PREFIX, parent))
        # Before its lock another process may take it for an abandoned one, and remove it.
        with suppress(FileNotFoundError):
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path, how: int = 0) -> int:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | how)
    except OSError:
        os.close(opened)
        raise
    return opened
