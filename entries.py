"""Locks and jobs as Python programs see them: the client and the embedded API return and take them.

Their names are those of the contract, in Python's letter case. The paths of the operations are here
too. This module needs only the standard library.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar

ROOT = "/serviceorchestration"
MANAGEMENT = f"{ROOT}/orchestration/mgmt"

#: The header of a request that may be repeated (contract, "Holding a lock").
IDEMPOTENCY_KEY = "Idempotency-Key"

#: The message of a create begins so if some of the instances are locked; their ids follow.
ALREADY_LOCKED = "Already locked: "

#: The message of a renew begins so if some of the locks are not held; their owner and ids follow.
NOT_LOCKED = "Not locked by "

E = TypeVar("E", bound="Entry")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What locks and jobs have in common: their form in JSON (contract, "Values")."""

    TIMES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_wire(cls: type[E], entry: Mapping[str, Any]) -> E:
        """Return the entry of an answer. Keys without a value may be empty or absent.

        Raises:
            ValueError: a time is malformed.
        """
        found = {it.name: entry[key] for it in fields(cls) if (key := camel_case(it.name)) in entry}
        for name in cls.TIMES:
            found[name] = read_time(found[name]) if found.get(name) else None
        return cls(**found)

    def to_wire(self) -> dict[str, Any]:
        """Return the entry as a request has it, without the keys that have no value.

        Raises:
            ValueError: a time has no zone.
        """
        return to_wire(vars(self))


@dataclass(frozen=True)
class Found(Generic[E]):
    """One page of what matches a query.

    Attributes:
        entries: those of the page.
        count: how many match in all.
    """

    entries: list[E]
    count: int


@dataclass(frozen=True, kw_only=True)
class Lock(Entry):
    """One service instance, reserved for one owner until it expires (contract, "Lock").

    Attributes:
        service_instance_id: `SystemName|ServiceName|Version`.
        owner: the system that holds it.
        expires_at: when it ends, with a zone.
        temporary: whether a job holds it. Such a lock is removed only by its job or by its end.
        orchestration_job_id: that job's UUID; empty for others.
        id: its number, larger than that of every lock before; `None` until the service gives it.
    """

    TIMES = ("expires_at",)

    service_instance_id: str
    owner: str
    expires_at: datetime | None
    temporary: bool = False
    orchestration_job_id: str = ""
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job(Entry):
    """One orchestration that was asked for, and how far it got (contract, "History").

    Attributes:
        type: `PULL` (the requester asked for it) or `PUSH` (a subscription triggered it).
        requester_system: the system that asked.
        target_system: the system that gets the result.
        service_definition: the service that is searched for.
        status: `PENDING`, `IN_PROGRESS`, `DONE` or `ERROR`.
        id: its UUID; empty until the service gives it one.
        subscription_id: the UUID of the subscription that triggered it, if one did.
        message: free text.
        created_at: when it was asked for, with a zone.
        started_at: when it was begun, or `None`.
        finished_at: when it ended, or `None`.
    """

    TIMES = ("created_at", "started_at", "finished_at")

    type: str
    requester_system: str
    target_system: str
    service_definition: str
    status: str = "PENDING"
    id: str = ""
    subscription_id: str = ""
    message: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def demand(kind: type[E], values: Iterable[object]) -> list[E]:
    """Return values that are all entries of one kind.

    Raises:
        TypeError: one is not.
    """
    found = []
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(
                f"A {kind.__name__} of orchmgmt.entries was expected, not {value!r:.100}; "
                f"{kind.__name__}.from_wire() makes one of a dict"
            )
        found.append(value)
    return found


def all_of(find: Callable[..., Found[E]], **filters: Any) -> list[E]:
    """Return all entries that match, the oldest first. Nobody may change them meanwhile.

    Args:
        find: `Locks.find` or `History.find`.
        filters: as that method takes them.
    """
    found: list[E] = []
    for page in count():
        part = find(page=page, descending=False, **filters)
        found += part.entries
        if not part.entries or len(found) >= part.count:
            break
    return found


def to_wire(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by their keys in JSON, times as DateTimes, and without empty ones.

    Raises:
        ValueError: a time has no zone.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, datetime):
            value = write_time(value)
        if isinstance(value, (tuple, set, frozenset)):
            value = list(value)
        if value is not None and value != "":
            found[camel_case(name)] = value
    return found


def already_locked(message: str) -> list[str]:
    """Return the ids in an `errorMessage` that says which instances are locked; `[]` for others."""
    if not message.startswith(ALREADY_LOCKED):
        return []
    return message.removeprefix(ALREADY_LOCKED).split(", ")


def read_time(text: str) -> datetime:
    """Return the moment that a DateTime of an answer names, in UTC.

    Raises:
        ValueError: the text is not a DateTime.
    """
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def write_time(moment: datetime) -> str:
    """Return a moment as a DateTime, in UTC, with its fraction of a second.

    Raises:
        ValueError: the moment has no zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no zone, such as timezone.utc")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def camel_case(name: str) -> str:
    """Return the key of a field: `expiresAt` for `expires_at`."""
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))
