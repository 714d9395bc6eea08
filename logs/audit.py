"""The audit log: one line for each attempt to change locks or jobs: who, what, result.

For a request it names the requester; for a command, the user of the machine who runs it.

Nothing in it is as somebody sent it, but for the values that an error's message repeats.
"""

import logging
import os
import pwd
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, Response, g, request

from orchmgmt.logs import written

log = logging.getLogger("orchmgmt.audit")

#: A line names this many of a request's ids, instances and owners.
SHOWN = 10
LONGEST_REASON = 300  # characters


def audited(blueprint: Blueprint, *operations: str) -> Blueprint:
    """Return `blueprint`, with a line for each request to these of its operations."""
    endpoints = {f"{blueprint.name}.{operation}" for operation in operations}

    @blueprint.after_request
    def write(response: Response) -> Response:
        asked = request.endpoint in endpoints and request.method != "OPTIONS"
        if asked and log.isEnabledFor(logging.INFO):
            fields = {
                "requester": g.get("requester", "-"),
                "operation": request.endpoint,
                "status": response.status_code,
                "result": _result(response.status_code),
                **g.get("audit_details", {}),
            }
            if "refusal" in g:
                fields["reason"] = _shortened(g.refusal)
            log.info(written(fields), extra={"fields": fields})
        return response

    return blueprint


def tell(**details: int | Collection[Any]) -> None:
    """Add to the line of the present request, in the order of the calls.

    Args:
        details: numbers, and collections of which the first few are named.
    """
    g.setdefault("audit_details", {}).update(_shown(details))


@contextmanager
def command(operation: str, always: bool = True) -> Iterator[Callable[..., None]]:
    """Write a line about a command that changes the database, once it has or has failed.

    Args:
        operation: what it does.
        always: also when nothing is added to the line, for then nothing has changed.

    Yields:
        what adds to the line, as `tell` does.
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
    """Who runs this process: not as the environment says, which anybody can set."""
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
