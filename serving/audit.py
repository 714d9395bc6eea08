"""The audit log: one line for each attempt to change locks or jobs: who, what, result.

Nothing in it is as somebody sent it, but for the values that an error's message repeats.
"""

import logging
from collections.abc import Collection
from typing import Any

from flask import Blueprint, Response, g, request

from orchmgmt.serving.logs import written

log = logging.getLogger("orchmgmt.audit")

#: A line names this many of a request's ids, instances and owners.
SHOWN = 10
LONGEST_REASON = 300  # characters


def audited(blueprint: Blueprint, *operations: str) -> Blueprint:
    """Return `blueprint`, with a line for each request to these of its operations."""
    endpoints = {f"{blueprint.name}.{operation}" for operation in operations}

    @blueprint.after_request
    def write(response: Response) -> Response:
        if request.endpoint in endpoints and log.isEnabledFor(logging.INFO):
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
    known = g.setdefault("audit_details", {})
    for name, value in details.items():
        known[name] = value if isinstance(value, int) else list(value)[:SHOWN]


def _result(status: int) -> str:
    if status < 400:
        return "done"
    return "refused" if status < 500 else "failed"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."
