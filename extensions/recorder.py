"""The recorder: operations by which an orchestrator in any language keeps its work here.

Contract: "Extensions of ours". Only imported where the setting `RECORDER` is on.
"""

from flask import Blueprint, Response, request

from orchmgmt import schemas
from orchmgmt.databases import Row
from orchmgmt.json_text import write_json
from orchmgmt.logs.audit import audited, tell
from orchmgmt.models import NewLock
from orchmgmt.store import Store
from orchmgmt.views import answer, lock_maker, read_payload


def extend(lock: Blueprint, history: Blueprint, store: Store) -> None:
    """Add the recorder's operations to those of the two services."""
    record_request = schemas.HistoryRecord(store.settings)
    release_request = schemas.LockRelease(store.settings)
    entry = schemas.JobEntry(store.settings)

    @history.post("/record")
    def record() -> Response:
        jobs = record_request.load(read_payload())
        tell(jobs=len(jobs), statuses=dict.fromkeys(it["status"] for it in jobs if "status" in it))
        rows = store.history.record_rows(jobs)
        tell(ids=[row[0] for row in rows])
        return answer(entry, rows, len(rows), status=201)

    def reserve(locks: list[NewLock]) -> list[Row]:
        tell(job_ids=dict.fromkeys(it.orchestration_job_id for it in locks))
        return store.locks.reserve_rows(locks)

    lock.post("/reserve", endpoint="reserve")(lock_maker(store, schemas.LockReserve, reserve))

    @lock.delete("/release", defaults={"orchestrationJobId": ""})
    @lock.delete("/release/", defaults={"orchestrationJobId": ""})
    @lock.delete("/release/<orchestrationJobId>")
    def release(**path: str) -> Response:
        job_id = release_request.read_path(path["orchestrationJobId"], request.args)
        tell(job_ids=[job_id])
        count = store.locks.release(job_id)
        tell(removed=count)
        return Response(write_json({"count": count}), content_type="application/json")

    audited(lock, "reserve", "release")
    audited(history, "record")
