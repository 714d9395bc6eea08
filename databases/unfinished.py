"""A folder for what is not complete yet."""

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
    """Return a new folder in `parent`, for this user alone, which goes at the end.

    What a process left there when it was killed goes at the beginning of the next. A folder is
    locked for as long as its process lives.

    Raises:
        OSError: nothing can be made there.
    """
    with _open(parent) as others:
        # Between its making and its lock nobody shall take a new folder for an abandoned one.
        fcntl.flock(others, fcntl.LOCK_EX)
        for abandoned in parent.glob(f"{PREFIX}*{SUFFIX}"):
            with suppress(OSError), _open(abandoned) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned)
        folder = Path(tempfile.mkdtemp(SUFFIX, PREFIX, parent))
        own = os.open(folder, os.O_RDONLY)
        fcntl.flock(own, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(own)


@contextmanager
def _open(folder: Path) -> Iterator[int]:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield opened
    finally:
        os.close(opened)
