"""The operations: what each takes, does and returns, whatever carries the request.

`views.py` offers them over HTTP, `extensions/mqtt` over MQTT. An operation knows neither requests
nor identities.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchmgmt import schemas
from orchmgmt.databases import Row
from orchmgmt.errors import InvalidParameter
from orchmgmt.locks import AlreadyLocked, InThePast, Key, KeyUsed, NotLocked
from orchmgmt.store import Store

#: The service definition of each group of operations, as the cloud's other systems know it.
SERVICES = {
    "lock": "serviceOrchestrationLockManagement",
    "history": "serviceOrchestrationHistoryManagement",
}


class Tell(Protocol):
    """Adds to the audit log's line about the present request, in the order of the calls."""

    def __call__(self, **details: int | Collection[Any]) -> None:
        """Add numbers and collections; the line names the first few elements of a collection."""


#: What an operation returns: a page of rows and how many match in all, other JSON, or nothing.
Result = tuple[Sequence[Row], int] | dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a service.

    Attributes:
        group: the service that it belongs to, a key of `SERVICES`.
        scope: its name, and the scope that the management policies are asked about.
        changes: whether it may change locks or jobs. If so, each attempt is audited, and a
            read-only server refuses it.
        takes: the payload.
        perform: does it, given the payload as JSON has it and what adds to the audit log's line.
        takes_key: whether a request may have an idempotency key. If it has one, `perform` also
            receives `key`: the key as it was sent, and who sent it.
        returns: what the answer holds: the entries of a page, or one JSON object; `None` if the
            answer is empty.
        summary: what it does, on one line, for OpenAPI.
        outcome: what its answer means, likewise.
        status: the HTTP status of its answer.
        method: the HTTP method.
        in_path: the part of the payload that HTTP has at the end of the path, if there is one.
        from_path: makes the payload of that part and the query string then.
        from_params: makes the payload where it comes in two parts, as over MQTT: named values, and
            the rest.
    """

    group: str
    scope: str
    changes: bool
    takes: schemas.WireSchema
    perform: Callable[..., Result]
    summary: str
    outcome: str
    takes_key: bool = False
    returns: schemas.WireSchema | None = None
    status: int = 200
    method: str = "POST"
    in_path: str = ""
    from_path: Callable[[str, Mapping[str, list[str]]], Any] | None = None
    from_params: Callable[[Mapping[str, Any], Any], Any] | None = None

    @property
    def name(self) -> str:
        """What logs, metrics and the harness call it: `lock.create`."""
        return f"{self.group}.{self.scope}"

    @property
    def service(self) -> str:
        """The service definition."""
        return SERVICES[self.group]


def operations(store: Store) -> list[Operation]:
    """Return the operations of both services (contract, "Lock" and "History")."""
    settings, locks, jobs = store.settings, store.lock_table, store.job_table
    lock_entry, job_entry = schemas.LockEntry(settings), schemas.JobEntry(settings)
    lock_query, history_query = schemas.LockQuery(settings), schemas.HistoryQuery(settings)
    creation, renewal = schemas.LockCreate(settings), schemas.LockRenew(settings)
    removal = schemas.LockRemove(settings)

    def remove(payload: Any, tell: Tell) -> None:
        wanted = removal.read(payload)
        owner, instances = wanted["owner"], wanted["service_instance_ids"]
        tell(locks=len(instances), instances=instances, owners=[owner])
        if "ids" in wanted:
            tell(ids=wanted["ids"])
        tell(removed=locks.remove(**wanted))

    return [
        Operation(
            group="lock",
            scope="create",
            changes=True,
            takes=creation,
            perform=lock_maker(store, creation, lambda new, _, key: locks.create(new, key)),
            takes_key=True,
            summary="Lock service instances, all or none",
            outcome="The new locks, in the order of the request",
            returns=lock_entry,
            status=201,
        ),
        Operation(
            group="lock",
            scope="query",
            changes=False,
            takes=lock_query,
            perform=lambda payload, _: locks.find(*lock_query.read(payload)),
            summary="Find the active locks that match every filter",
            outcome="A page; `count` is of all that match",
            returns=lock_entry,
        ),
        Operation(
            group="lock",
            scope="renew",
            changes=True,
            takes=renewal,
            perform=lock_maker(store, renewal, lambda ends, *_: locks.renew(ends)),
            summary="Give an owner's locks new ends, all or none, but not temporary ones",
            outcome="The locks as they are now, in the order of the request",
            returns=lock_entry,
        ),
        Operation(
            group="lock",
            scope="remove",
            changes=True,
            takes=removal,
            perform=remove,
            summary="Remove an owner's locks, but not temporary ones",
            outcome="They are gone, if they were there",
            method="DELETE",
            in_path="owner",
            from_path=removal.from_path,
            from_params=removal.from_params,
        ),
        Operation(
            group="history",
            scope="query",
            changes=False,
            takes=history_query,
            perform=lambda payload, _: jobs.find(*history_query.read(payload)),
            summary="Find the orchestration jobs that match every filter",
            outcome="A page; `count` is of all that match",
            returns=job_entry,
        ),
    ]


def lock_maker(
    store: Store,
    request: schemas.LockCreate,
    make_rows: Callable[[list[Any], Tell, Key | None], list[Row]],
) -> Callable[..., Result]:
    """Return what makes, or renews, the locks of a payload.

    Args:
        store: the store of the locks.
        request: the schema of the payload.
        make_rows: makes or renews all of the locks or none, and returns their rows.
    """

    def make(payload: Any, tell: Tell, key: Key | None = None) -> Result:
        if key is not None:
            key = key._replace(text=schemas.read_key(key.text))
        try:
            wanted = request.read(payload)
            tell(
                locks=len(wanted),
                instances=[lock.service_instance_id for lock in wanted],
                owners=dict.fromkeys(lock.owner for lock in wanted),
            )
            rows = make_rows(wanted, tell, key)
        except (AlreadyLocked, NotLocked, KeyUsed):
            raise
        except InvalidParameter as fault:
            if past := request.past_before(payload, fault, store.now()):
                raise InThePast(past) from None
            raise
        tell(ids=[row[0] for row in rows])
        return rows, len(rows)

    return make
