"""The recorder: operations by which an orchestrator in any language keeps its work here.

Contract: "Extensions of ours".
"""

from typing import Any

from orchmgmt import schemas
from orchmgmt.app import Service
from orchmgmt.databases import Row
from orchmgmt.extensions import Extension
from orchmgmt.locks import Key
from orchmgmt.models import NewLock
from orchmgmt.operations import Operation, Result, Tell, lock_maker
from orchmgmt.store import Store


class Recorder(Extension):
    """The operations `record`, `reserve` and `release`."""

    def __init__(self, service: Service) -> None:
        service.offer(operations(service.store))


def operations(store: Store) -> list[Operation]:
    """Return the operations that the recorder adds."""
    settings = store.settings
    recording = schemas.HistoryRecord(settings)
    reserving = schemas.LockReserve(settings)
    releasing = schemas.LockRelease(settings)

    def record(payload: Any, tell: Tell) -> Result:
        jobs = recording.read(payload)
        statuses = dict.fromkeys(it["status"] for it in jobs if "status" in it)
        tell(jobs=len(jobs), statuses=statuses)
        rows = store.job_table.record(jobs)
        tell(ids=[row[0] for row in rows])
        return rows, len(rows)

    def reserve(locks: list[NewLock], tell: Tell, key: Key | None) -> list[Row]:
        tell(job_ids=dict.fromkeys(it.orchestration_job_id for it in locks))
        return store.lock_table.create(locks, key)

    def release(payload: Any, tell: Tell) -> Result:
        job_id = releasing.read(payload)["orchestration_job_id"]
        tell(job_ids=[job_id])
        count = store.lock_table.release(job_id)
        tell(removed=count)
        return {"count": count}

    return [
        Operation(
            group="lock",
            scope="reserve",
            changes=True,
            takes=reserving,
            perform=lock_maker(store, reserving, reserve),
            takes_key=True,
            summary="Lock service instances for unfinished jobs, temporarily, all or none",
            outcome="The new locks, in the order of the request",
            returns=schemas.LockEntry(settings),
            status=201,
        ),
        Operation(
            group="lock",
            scope="release",
            changes=True,
            takes=releasing,
            perform=release,
            summary="Remove the temporary locks of a job",
            outcome="They are gone; `count` is how many there were",
            returns=schemas.Released(settings),
            method="DELETE",
            in_path="orchestrationJobId",
            from_path=releasing.from_path,
            from_params=lambda params, _: params,
        ),
        Operation(
            group="history",
            scope="record",
            changes=True,
            takes=recording,
            perform=record,
            summary="Put new jobs there, and bring others forward in their life, all or none",
            outcome="The jobs as they are now, in the order of the request",
            returns=schemas.JobEntry(settings),
            status=201,
        ),
    ]
