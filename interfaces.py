"""What every interface does with a request: find out who asks, then perform the operation.

`views.py` carries requests over HTTP, and `extensions/mqtt` over MQTT. Neither knows the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

from orchmgmt.databases import Row
from orchmgmt.locks import Key
from orchmgmt.logs.audit import Attempt
from orchmgmt.operations import Operation, Result
from orchmgmt.policies import Evidence
from orchmgmt.policies.gate import Gate
from orchmgmt.schemas import EntrySchema, write_json

#: So many entries are written at once.
PART = 20


def perform(
    operation: Operation,
    gate: Gate,
    evidence: Evidence,
    identified: Callable[[str], object],
    read: Callable[[], tuple[Any, str | None]],
) -> Result:
    """Perform an operation for those whom the gate lets in, and tell the audit log.

    Args:
        operation: what is asked for.
        gate: who is let in.
        evidence: what tells who asks.
        identified: is given the requester's SystemName once it is known, before anything else.
        read: returns the payload as JSON has it, and the idempotency key if there is one.

    Raises:
        ServiceError: the requester is not let in, or the request is malformed or cannot be done.
    """
    with Attempt(operation) as line:
        requester = gate.identify(evidence, operation.name)
        line.requester = requester.name
        identified(requester.name)
        gate.permit(requester, operation, evidence)
        payload, key = read()
        if key is None or not operation.takes_key:
            return operation.perform(payload, line.tell)
        return operation.perform(payload, line.tell, key=Key(key, requester.name))


def written(operation: Operation, result: Result) -> list[bytes]:
    """Return what an operation has returned as JSON, in parts; none if it returns nothing.

    Entries are written in parts, so that a large answer is not there as entries, as text and as
    bytes.
    """
    if result is None:
        return []
    if isinstance(result, tuple):
        assert isinstance(operation.returns, EntrySchema)
        return _entries(operation.returns, *result)
    return [write_json(result).encode()]


def _entries(schema: EntrySchema, rows: Sequence[Row], count: int) -> list[bytes]:
    """Contract, "Lock" and "History"."""
    parts, separator = [b'{"entries":['], b""
    for start in range(0, len(rows), PART):
        written = write_json(schema.entries_of(rows[start : start + PART]))
        parts.append(separator + written[1:-1].encode())
        separator = b","
    parts.append(b'],"count":%d}' % count)
    return parts
