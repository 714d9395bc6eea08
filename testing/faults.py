"""The faults that a test asks for."""

import json
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import Any, TypedDict, Unpack

from orchmgmt.testing.names import demand_operation, unknown
from orchmgmt.testing.requests import Request
from orchmgmt.values import Naming, strip

#: pytest leaves the frames of this module out of tracebacks, and shows who has called it.
__tracebackhide__ = True

DROPS = ("before", "after", "middle", "reset")

#: What only a client notices that gets an answer.
OF_AN_ANSWER = ("status", "body", "headers", "retry_after", "trickle")

#: What goes wrong; the rest of a fault says with which requests, or how often.
EFFECTS = (*OF_AN_ANSWER, "delay", "delay_before", "drop")

#: A fault without an operation does not meet these: whoever waits for a service asks them.
SPARED = ("health.health", "monitor.echo")

#: Seconds, longer than any test. A thread cannot wait much longer than some hundred years.
LONGEST = 10**9


class BrokenFault(BaseException):
    """What a test's own function `when` has raised. It ends the request, and fails the test."""


class Always(TypedDict, total=False):
    """What `Faults.always` takes; `Fault` says what it means."""

    status: int | None
    body: Any
    headers: Mapping[str, str]
    retry_after: int | None
    delay: float
    delay_before: float
    trickle: float
    drop: str | None
    operation: str | None
    requester: str | None
    owner: str | None
    instance: str | None
    when: Callable[[Request], object] | None
    skip: int


class Next(Always, total=False):
    """What `Faults.next` takes."""

    times: int


@dataclass(kw_only=True)
class Fault:
    """Something that goes wrong with a request.

    Attributes:
        status: the status to answer with, from 200 on; nothing is done then.
        body: the body to answer with: text, bytes, or what JSON can say; nothing is done then. The
            status is 200 unless there is one.
        headers: headers of the answer, instead of those of the same name or beside the others.
        retry_after: the answer's `Retry-After`, in seconds.
        delay: how much later the answer comes, or the connection is dropped, in seconds.
        delay_before: how long to wait before anything is done, in seconds.
        trickle: how long to wait between two bytes of the body, in seconds.
        drop: when to drop the connection: `before` anything is done, `after` it is done and before
            it is answered, in the `middle` of the answer, or before anything is done by a `reset`
            of TCP.
        operation: the only operation that it happens to, such as `lock.create`; `None` is any, but
            neither `health.health` nor `monitor.echo`.
        requester: the only system whose requests it happens to.
        owner: an owner of locks that the request must name, perhaps among others.
        instance: a service instance that the request must name, perhaps among others.
        when: says whether it happens to a request.
        skip: how many requests to spare first, of those that it could happen to.
        times: how often it still happens.
        happened: whether it has.
    """

    status: int | None = None
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: int | None = None
    delay: float = 0
    delay_before: float = 0
    trickle: float = 0
    drop: str | None = None
    operation: str | None = None
    requester: str | None = None
    owner: str | None = None
    instance: str | None = None
    when: Callable[[Request], object] | None = None
    skip: int = 0
    times: float = 1
    happened: bool = field(default=False, init=False, repr=False)

    def is_given(self, name: str) -> bool:
        """Return whether an attribute is something else than by default."""
        (it,) = (it for it in fields(self) if it.name == name)
        default = {} if it.default is MISSING else it.default
        return bool(getattr(self, name) != default)

    def __str__(self) -> str:
        shown = [it.name for it in fields(self) if it.repr and self.is_given(it.name)]
        said = [f"{it}={getattr(self, it)!r}" for it in shown if getattr(self, it) != inf]
        return f"{'always' if self.times == inf else 'next'}({', '.join(said)})"

    def check(self, operations: Collection[str], naming: Naming) -> None:
        """Bring names to their convention.

        Args:
            operations: what the service's operations are called.
            naming: the convention.

        Raises:
            ValueError: no service could do what is asked for.
        """
        if self.operation is not None:
            demand_operation(self.operation, operations)
        for name, convert in _conversions(naming).items():
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, str):
                    raise ValueError(f"{name} must be a text, not {value!r}")
                setattr(self, name, convert(strip(value)))
        if self.when is not None and not callable(self.when):
            raise ValueError(f"when must be a function, not {self.when!r}")
        if self.status is not None and not _is_whole(self.status, 200, 599):
            raise ValueError(f"status must be an HTTP status from 200 to 599, not {self.status!r}")
        for name in ("delay", "delay_before", "trickle"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and 0 <= value <= LONGEST):
                raise ValueError(
                    f"{name} must be a number of seconds up to {LONGEST}, not {value!r}"
                )
        if self.retry_after is not None:
            if not _is_whole(self.retry_after, 0, LONGEST):
                raise ValueError(
                    f"retry_after must be whole seconds up to {LONGEST}, not {self.retry_after!r}"
                )
            if self.status is None:
                raise ValueError("retry_after needs a status to go with")
        if not _is_whole(self.skip, 0, LONGEST):
            raise ValueError(f"skip must be a whole number from 0, not {self.skip!r}")
        if self.times != inf and not _is_whole(self.times, 1, LONGEST):
            raise ValueError(f"times must be a whole number from 1, not {self.times!r}")
        self._check_answer()

    def _check_answer(self) -> None:
        try:
            self.content()
        except (TypeError, ValueError) as error:
            raise ValueError(f"body must be text, bytes or JSON: {error}") from None
        if not isinstance(self.headers, Mapping) or not all(
            isinstance(it, str) and it.isascii() and it.isprintable()
            for header in self.headers.items()
            for it in header
        ):
            raise ValueError(f"headers must be texts by name, in ASCII, not {self.headers!r}")
        if self.drop is not None and self.drop not in DROPS:
            raise ValueError(f"drop must be one of {', '.join(DROPS)}, not {self.drop!r}")
        unseen = [it for it in OF_AN_ANSWER if self.is_given(it)]
        if self.drop not in (None, "middle") and unseen:
            raise ValueError(
                f"{unseen[0]} and drop={self.drop!r} do not go together: nobody would see it"
            )
        if not any(map(self.is_given, EFFECTS)):
            raise ValueError(f"a fault needs one of {', '.join(EFFECTS)}")

    @property
    def is_unused(self) -> bool:
        """Whether it has not happened, or not as often as it should."""
        return not self.happened if self.times == inf else self.times > 0

    def content(self) -> tuple[bytes, str]:
        """Return the bytes of `body`, and their Content-Type.

        Raises:
            TypeError, ValueError: JSON cannot say it.
        """
        if isinstance(self.body, bytes):
            return self.body, "application/octet-stream"
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain; charset=utf-8"
        return json.dumps(self.body).encode(), "application/json"

    def may_meet(self, operation: str) -> bool:
        """Return whether it still happens to requests for an operation."""
        if not self.times:
            return False
        return operation not in SPARED if self.operation is None else operation == self.operation

    def meets(self, request: Request, naming: Naming) -> bool:
        """Return whether it could happen to a request.

        Raises:
            BrokenFault: `when` has raised something.
        """
        named = {
            "requester": [request.requester],
            "owner": request.owners,
            "instance": request.instances,
        }
        for name, convert in _conversions(naming).items():
            wanted = getattr(self, name)
            if wanted is not None and wanted not in _converted(convert, named[name]):
                return False
        try:
            return self.when is None or bool(self.when(request))
        except Exception as error:
            raise BrokenFault(f"`when` of {self} has raised {error!r}") from error


#: What a fault may say, by name.
ARGUMENTS = tuple(it.name for it in fields(Fault) if it.init)


class Faults:
    """The faults of one service.

    A request meets one of them: the first that is meant for it, in the order in which they were
    asked for, those of `next` before those of `always`.

    Args:
        operations: what the service's operations are called.
        naming: its convention for names.

    Attributes:
        excused: whether a test has failed already, so that `settle` is content with everything.
    """

    def __init__(self, operations: Collection[str], naming: Naming) -> None:
        self.excused = False
        self._operations = operations
        self._naming = naming
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def next(self, several: Sequence[Next] | None = None, /, **fault: Unpack[Next]) -> None:
        """Let the next request, or the next `times` requests, go wrong as `Fault` says.

        Args:
            several: several faults at once, all or none.
            fault: the only one.

        Raises:
            ValueError: no service could do that.
            TypeError: an argument is misspelt.
        """
        if several is None:
            self._add([fault])
        elif fault or not isinstance(several, (list, tuple)):
            raise TypeError("give one fault by keywords, or a list such as [{'status': 503}]")
        else:
            self._add(several)

    def always(self, **fault: Unpack[Always]) -> None:
        """Let every request go wrong as `Fault` says, until `clear`.

        Raises:
            ValueError: no service could do that.
            TypeError: an argument is misspelt.
        """
        if "times" in fault:
            raise TypeError("times goes with next: always has no end")
        self._add([fault], times=inf)

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def unused(self) -> list[str]:
        """Return the faults that have not happened, or not as often as they should."""
        with self._lock:
            return [str(it) for it in self._faults if it.is_unused]

    def assert_all_used(self) -> None:
        """Check that all faults have happened, those of `always` once, others as often as asked.

        Raises:
            AssertionError: some have not; it names them.
        """
        unused = self.unused()
        if unused:
            raise AssertionError(f"Faults that have not happened: {'; '.join(unused)}")

    def settle(self) -> None:
        """Check what `assert_all_used` checks, and forget what it complains of: it says it once.

        Raises:
            AssertionError: as `assert_all_used`.
        """
        if self.excused:
            return
        try:
            self.assert_all_used()
        finally:
            with self._lock:
                self._faults = [it for it in self._faults if not it.is_unused]

    def take(self, request: Request, identify: Callable[[], str]) -> Fault | None:
        """Return the fault that a request meets, if there is one.

        Args:
            request: the request.
            identify: returns who sent it. It is called only if that matters.

        Raises:
            BrokenFault: a `when` has raised something.
        """
        with self._lock:
            meant = [it for it in self._faults if it.may_meet(request.operation)]
        if any(it.requester or it.when for it in meant):
            request.requester = identify()
        for fault in meant:
            if fault.meets(request, self._naming):
                with self._lock:  # another request may have met it meanwhile
                    if fault.times and fault.skip:
                        fault.skip -= 1
                    elif fault.times:
                        request.fault = str(fault)
                        fault.times -= 1
                        fault.happened = True
                        return fault
        return None

    def _add(self, several: Sequence[Always], **more: float) -> None:
        faults = []
        for wanted in several:
            if not isinstance(wanted, dict):
                raise TypeError(f"A fault was expected, such as {{'status': 503}}, not {wanted!r}")
            for name in wanted:
                if name not in ARGUMENTS:
                    raise TypeError(unknown("argument of a fault", name, ARGUMENTS))
            values: dict[str, Any] = {**wanted, **more}
            fault = Fault(**values)
            fault.check(self._operations, self._naming)
            faults.append(fault)
        with self._lock:
            self._faults += faults
            self._faults.sort(key=lambda it: it.times == inf)

    def __repr__(self) -> str:
        with self._lock:
            return f"<Faults: {', '.join(str(it) for it in self._faults if it.times) or 'none'}>"


def _conversions(naming: Naming) -> dict[str, Callable[[str], str]]:
    """The attributes of a fault that are names, and the convention of each."""
    return {
        "requester": naming.system_name,
        "owner": naming.system_name,
        "instance": naming.service_instance_id,
    }


def _converted(convert: Callable[[str], str], names: Iterable[str]) -> Iterable[str]:
    for name in names:
        try:
            yield convert(strip(name))
        except ValueError:  # the service will refuse it
            continue


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
