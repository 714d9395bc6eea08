"""The faults that a test asks for."""

import threading
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from math import inf

from orchmgmt.testing.names import unknown

DROPS = ("before", "after", "middle")
STATUSES = {int(it) for it in HTTPStatus if it >= 400}

#: Seconds, longer than any test. A thread cannot wait much longer than some hundred years.
LONGEST = 10**9


@dataclass
class Fault:
    """Something that goes wrong with a request.

    Attributes:
        status: an error status to answer with; nothing is done then.
        delay: how long to wait first, in seconds.
        drop: when to drop the connection: `before` anything is done, `after` it is done and before
            it is answered, or in the `middle` of the answer.
        operation: the only operation that it happens to, such as `lock.create`; `None` is any.
        retry_after: the answer's `Retry-After`, in seconds.
        times: how often it still happens.
        happened: whether it has.
    """

    status: int | None = None
    delay: float = 0
    drop: str | None = None
    operation: str | None = None
    retry_after: int | None = None
    times: float = 1
    happened: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        given = [(it, getattr(self, it.name)) for it in fields(self) if it.repr]
        shown = [f"{it.name}={value!r}" for it, value in given if value not in (it.default, inf)]
        return f"{'always' if self.times == inf else 'next'}({', '.join(shown)})"


class Faults:
    """The faults of one service.

    A request meets one of them: the first for its operation, in the order in which they were asked
    for, those of `next` before those of `always`.

    Args:
        operations: what the service's operations are called.
    """

    def __init__(self, operations: Collection[str]) -> None:
        self._operations = operations
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._used: list[Fault] = []

    def next(
        self,
        *,
        status: int | None = None,
        delay: float = 0,
        drop: str | None = None,
        operation: str | None = None,
        retry_after: int | None = None,
        times: int = 1,
    ) -> None:
        """Let the next request, or the next `times` requests, go wrong as `Fault` says.

        Raises:
            ValueError: no service could do that.
        """
        if type(times) is not int or times < 1:
            raise ValueError(f"times must be a whole number from 1, not {times!r}")
        self._add(Fault(status, delay, drop, operation, retry_after, times))

    def always(
        self,
        *,
        status: int | None = None,
        delay: float = 0,
        drop: str | None = None,
        operation: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Let every request go wrong as `Fault` says, until `clear`.

        Raises:
            ValueError: no service could do that.
        """
        self._add(Fault(status, delay, drop, operation, retry_after, inf))

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def unused(self) -> list[str]:
        """Return the faults that have not happened, or not as often as they should."""
        with self._lock:
            return [
                str(it)
                for it in self._faults
                if (not it.happened if it.times == inf else it.times > 0)
            ]

    def assert_all_used(self) -> None:
        """Check that all faults have happened, those of `always` once, others as often as asked.

        Raises:
            AssertionError: some have not; it names them.
        """
        unused = self.unused()
        if unused:
            raise AssertionError(f"Faults that have not happened: {'; '.join(unused)}")

    def take(self, operation: str) -> Fault | None:
        """Return the fault that a request meets, if there is one."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.operation in (None, operation):
                    fault.times -= 1
                    fault.happened = True
                    return fault
        return None

    def _add(self, fault: Fault) -> None:
        if fault.operation is not None and fault.operation not in self._operations:
            raise ValueError(unknown("operation", str(fault.operation), self._operations))
        if fault.drop is not None and fault.drop not in DROPS:
            raise ValueError(f"drop must be one of {', '.join(DROPS)}, not {fault.drop!r}")
        known = type(fault.status) is int and fault.status in STATUSES
        if fault.status is not None and not known:
            raise ValueError(f"status must be an HTTP status from 400 on, not {fault.status!r}")
        if not (_is_number(fault.delay) and 0 <= fault.delay <= LONGEST):
            raise ValueError(
                f"delay must be a number of seconds up to {LONGEST}, not {fault.delay!r}"
            )
        if fault.status is not None and fault.drop is not None:
            raise ValueError("status and drop do not go together: nobody would see the status")
        if fault.retry_after is not None:
            if type(fault.retry_after) is not int or not 0 <= fault.retry_after <= LONGEST:
                raise ValueError(
                    f"retry_after must be whole seconds up to {LONGEST}, not {fault.retry_after!r}"
                )
            if fault.status is None:
                raise ValueError("retry_after needs a status to go with")
        if not (fault.status or fault.drop or fault.delay):
            raise ValueError("a fault needs a status, a delay or a drop")
        with self._lock:
            self._faults.append(fault)
            self._faults.sort(key=lambda it: it.times == inf)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
