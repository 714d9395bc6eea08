"""Settings in a file of variables, as the systemd unit reads it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from orchmgmt.settings import SettingError

#: A line that systemd and python-dotenv read alike. They differ in a comment behind a value, in
#: most escapes, in quotes within a value, and in values of several lines.
_ALIKE = re.compile(
    r"""\s*(?:[A-Za-z_][A-Za-z0-9_]*=[ \t]*
        (?:"(?:[^"\\]|\\["\\])*"|'[^'\\]*'|(?:[^\s"'\\]|[ \t]+(?![\s#]))*)
        [ \t]*)?""",
    re.VERBOSE,
).fullmatch

_COMMENT = re.compile(r"\s*[#;]").match


@contextmanager
def environment_of(path: Path) -> Iterator[None]:
    """Have the variables of a file in the environment while the context lasts, over those there.

    Raises:
        SettingError: the file cannot be read, or holds a line that systemd would read otherwise.
    """
    before = dict(os.environ)
    os.environ.update(_read(path))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _read(path: Path) -> dict[str, str]:
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
