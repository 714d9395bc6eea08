"""What a test needs and a machine may lack: there it is skipped with its reason, in CI it fails."""

import ctypes
import os
import pty
import shutil
from typing import NoReturn

import pytest

#: Where Debian has programs that are not on every user's PATH.
PLACES = ":/usr/sbin:/usr/local/sbin"


def lacking(reason: str) -> NoReturn:
    """End the test: something is not here."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + PLACES)
    if found is None:
        lacking(f"{name} is not installed")
    return found


def terminal() -> tuple[int, int]:
    """Both ends of a new terminal."""
    try:
        return pty.openpty()
    except OSError as error:
        lacking(f"there is no terminal to be had: {error}")


def bound_by_permissions() -> None:
    """Give up, in a child, what lets an administrator write to a read-only file."""
    drop_bounding_capability, dac_override, dac_read_search = 24, 1, 2
    for capability in (dac_override, dac_read_search):
        ctypes.CDLL(None).prctl(drop_bounding_capability, capability, 0, 0, 0)
