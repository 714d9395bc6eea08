"""The log of the requests to a service under test."""

import json
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from werkzeug.datastructures import Headers

from orchmgmt.testing.names import demand_operation

#: pytest leaves the frames of this module out of tracebacks, and shows who has called it.
__tracebackhide__ = True


def now() -> datetime:
    """Return the present by the clock of this machine."""
    return datetime.now(UTC)


@dataclass
class Request:
    """A request that a service got.

    All times are in UTC, by the clock of this machine, which a test's clock does not move.

    Attributes:
        operation: `lock.create`, `history.query`, ...; empty if there is no such path or method.
        method: the HTTP method.
        path: the path, unquoted and without query string.
        query: the query string's values, by name.
        headers: what the client sent, by name in any letter case.
        json: what the body says; `None` if it is empty or no JSON.
        raw: the bytes of the body.
        received_at: when it had arrived.
        requester: the system that sent it; empty if nobody was identified.
        fault: the fault that it met, such as `next(status=503)`; empty if it met none.
        status: the status that it was answered with; `None` if it was not answered.
        message: why it was refused, as the answer says; empty if it does not say.
        answered_at: when it was answered, or its connection dropped; `None` while it is in flight.
        delivered: whether the client was there when it was answered; `None` while it is in flight.
    """

    operation: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Headers = field(repr=False)
    json: Any
    raw: bytes = field(default=b"", repr=False)
    received_at: datetime = field(default_factory=now)
    requester: str = ""
    fault: str = ""
    status: int | None = None
    message: str = ""
    answered_at: datetime | None = None
    delivered: bool | None = None

    @property
    def owners(self) -> list[str]:
        """The owners that it names, as it names them."""
        in_path = [self.path.rpartition("/")[2]] if self.operation == "lock.remove" else []
        return [*in_path, *self._named("owner", "owners")]

    @property
    def instances(self) -> list[str]:
        """The service instances that it names, as it names them."""
        lists = self.query.get("instanceIds", []) + self.query.get("instanceIds[]", [])
        in_query = [it for text in lists for it in text.split(",")]
        return [*in_query, *self._named("serviceInstanceId", "serviceInstanceIds")]

    def _named(self, of_a_lock: str, of_a_query: str) -> Iterator[str]:
        """What the body names under the key of a lock to be made, and under that of a query."""
        body = self.json if isinstance(self.json, dict) else {}
        locks, found = body.get("locks"), body.get(of_a_query)
        values = list(found) if isinstance(found, list) else []
        for lock in locks if isinstance(locks, list) else []:
            values.append(lock.get(of_a_lock) if isinstance(lock, dict) else None)
        return (it for it in values if isinstance(it, str))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON can say it: the times as text, and the bytes as UTF-8."""
        times = {it: getattr(self, it) for it in ("received_at", "answered_at")}
        return {
            **vars(self),
            "headers": dict(self.headers),
            "raw": self.raw.decode("utf-8", "backslashreplace"),
            **{name: it and it.isoformat() for name, it in times.items()},
        }

    def __str__(self) -> str:
        if self.answered_at is None:
            outcome = "in flight"
        else:
            outcome = "no answer" if self.status is None else str(self.status)
        query = f" {self.query}" if self.query else ""
        who = f" from {self.requester}" if self.requester else ""
        if self.json is None:
            body = self.raw.decode("utf-8", "backslashreplace")
        else:
            body = json.dumps(self.json)
        met = f", met {self.fault}" if self.fault else ""
        why = f": {self.message}" if self.message else ""
        lost = ", not delivered" if self.status is not None and self.delivered is False else ""
        request = f"{self.method} {self.path}{query}{who}{body and ' ' + body}"
        return f"{outcome} {request}{met}{why}{lost}"


class Requests(list[Request]):
    """The requests to a service, the oldest first.

    Args:
        operations: what the service's operations are called.

    Attributes:
        total: how many there have ever been, those that `clear` has removed too.
    """

    def __init__(self, operations: Collection[str]) -> None:
        self.total = 0
        self._operations = operations
        self._changed = threading.Condition()

    def of(self, operation: str) -> list[Request]:
        """Return those for one operation.

        Raises:
            ValueError: there is no such operation.
        """
        demand_operation(operation, self._operations)
        return [it for it in self if it.operation == operation]

    def wait_for(
        self,
        operation: str | None = None,
        count: int = 1,
        timeout: float = 5,
        *,
        answered: bool = False,
    ) -> list[Request]:
        """Wait until so many requests have come, in all since the start or the last `reset`.

        Args:
            operation: the operation that they are for; `None` is any.
            count: how many at least.
            timeout: for how many seconds to wait.
            answered: whether to wait until they are no longer in flight.

        Returns:
            Those that have come, which may be more.

        Raises:
            TimeoutError: there were fewer; it names all requests.
            ValueError: there is no such operation.
        """
        if operation is not None:
            demand_operation(operation, self._operations)

        def found() -> list[Request]:
            return [
                it
                for it in self
                if operation in (None, it.operation) and (it.answered_at or not answered)
            ]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, timeout):
                wanted = f"{count} x {operation or 'any operation'}{', answered' * answered}"
                raise TimeoutError(f"Waited {timeout} s for {wanted}, in vain; {self!r}")
            return found()

    def append(self, request: Request) -> None:
        """Add a request that has just come."""
        with self._changed:
            super().append(request)
            self.total += 1
            self._changed.notify_all()

    def end(self, request: Request, delivered: bool) -> None:
        """Note that a request is no longer in flight."""
        with self._changed:
            request.delivered = delivered
            request.answered_at = request.answered_at or now()
            self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<Requests: {'; '.join(map(str, self)) or 'none'}>"
