"""The audit log: a line for each attempt to change locks or jobs says who, what, and the result.

For a request it names the requester, and for a command the user of the machine who runs it.

Values are in canonical form, except those that an error message repeats.
"""

import logging
import os
import pwd
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchmgmt.errors import fault_of
from orchmgmt.logs import written

if TYPE_CHECKING:
    from orchmgmt.operations import Operation

log = logging.getLogger("orchmgmt.audit")

#: A line names this many of a request's ids, instances and owners.
SHOWN = 10
LONGEST_REASON = 300  # characters


class Attempt:
    """Writes a line about a request that may change something, when its block ends.

    Args:
        operation: what is asked for.

    Attributes:
        requester: the system that asks, once it is known.
    """

    def __init__(self, operation: "Operation") -> None:
        self._operation = operation
        self._details: dict[str, Any] = {}
        self.requester = "-"

    def tell(self, **details: int | Collection[Any]) -> None:
        """Add numbers and collections; the line names the first few elements of a collection."""
        self._details.update(_shown(details))

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        operation = self._operation
        if not (operation.changes and log.isEnabledFor(logging.INFO)):
            return
        status, reason = operation.status, ""
        if isinstance(error, Exception):
            status, reason = fault_of(error)
        fields = {
            "requester": self.requester,
            "operation": operation.name,
            "status": int(status),
            "result": _result(status),
            **self._details,
        }
        if reason:
            fields["reason"] = _shortened(reason)
        log.info(written(fields), extra={"fields": fields})


@contextmanager
def command(operation: str, always: bool = True) -> Iterator[Callable[..., None]]:
    """Write a line about a command that changes the database, when it ends.

    Args:
        operation: what the command does.
        always: whether to write a line even if nothing was added to it, because nothing changed.

    Yields:
        a function that adds to the line, like `Attempt.tell`.
    """
    details: dict[str, Any] = {}
    end: dict[str, str] = {}
    try:
        yield lambda **more: details.update(_shown(more))
    except BaseException as error:
        end = {"reason": _shortened(str(error) or type(error).__name__)}
        raise
    finally:
        if details or always:
            fields = {
                "user": _user(),
                "operation": operation,
                "result": "failed" if end else "done",
                **details,
                **end,
            }
            log.info(written(fields), extra={"fields": fields})


def _user() -> str:
    """Return the user who runs this process. The environment may be wrong, so it is not used."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _shown(details: Mapping[str, int | str | Collection[Any]]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (int, str)) else list(value)[:SHOWN]
        for name, value in details.items()
    }


def _result(status: int) -> str:
    if status < 400:
        return "done"
    return "refused" if status < 500 else "failed"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
