"""The history of one database: its orchestration jobs, from their creation to their end.

As in `locks.py`, values have the form of the contract, and rows the form of the table.
"""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import uuid4

from peewee import SQL, Case, Select, fn

from orchmgmt.databases import Backend, Row
from orchmgmt.databases.queries import BulkInsert, Pause, Shape, Table, condition, delete_in_batches
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import FINISHED, IN_PROGRESS, PENDING, Job, JobCount
from orchmgmt.schemas import JobEntry, payload_of
from orchmgmt.settings import Settings
from orchmgmt.values import repeated, write_instant

COLUMNS = list(Job._meta.sorted_fields)
NAMES = [column.name for column in COLUMNS]

#: The fields that never change in the life of a job.
FOR_LIFE = (
    "type",
    "requester_system",
    "target_system",
    "service_definition",
    "subscription_id",
)

EMPTY = SQL("''")

_ROW = itemgetter(*NAMES)


class StepBack(InvalidParameter):
    """A job would go back in its life, or become another job.

    Attributes:
        place: the position of the job in the list, from 0.
    """

    def __init__(self, place: int, reason: object) -> None:
        super().__init__(str(reason))
        self.place = place


class NoSuchJob(NotFound):
    """There is no job with this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no orchestration job {job_id}")


class JobTable(Table):
    """The orchestration jobs of one database.

    Args:
        database: the database.
        settings: say how jobs are normalised, and how long they are kept.
    """

    def __init__(self, database: Backend, settings: Settings) -> None:
        super().__init__(
            database,
            COLUMNS,
            filters={
                "ids": Job.id,
                "subscription_ids": Job.subscription_id,
                "requester_systems": Job.requester_system,
                "target_systems": Job.target_system,
                "service_definitions": Job.service_definition,
                "statuses": Job.status,
                "type": Job.type,
            },
            default_sort="created_at",
        )
        self._entry = JobEntry(settings)
        self._max_age = timedelta(days=settings.history_max_age_days)
        self._insert = BulkInsert(database, COLUMNS, lambda insert: insert)
        self._upsert = BulkInsert(
            database,
            COLUMNS,
            lambda insert: insert.on_conflict(conflict_target=[Job.id], preserve=COLUMNS[1:]),
        )
        among = Job.select().where(database.any_of(Job.id, "ids")).order_by(Job.id)
        self._select_among = database.sql(database.locking(among, "UPDATE"))
        self._start_sql, self._end_sql = self._steps()
        self._status = database.sql(Job.select(Job.status).where(Job.id == database.place("id")))
        self._delete_old = self._delete_finished()

    def _steps(self) -> tuple[str, str]:
        """Return the SQL that puts a job in progress, and the SQL that ends one in progress."""
        place, message = self._database.place, self._database.place("message")
        changes = {
            Job.status: place("status"),
            Job.message: Case(None, [(message == EMPTY, Job.message)], message),
        }
        started = {**changes, Job.started_at: place("now"), Job.finished_at: EMPTY}
        ended = {**changes, Job.finished_at: place("now")}
        this_job = Job.id == place("id")
        in_progress = Job.status == SQL(f"'{IN_PROGRESS}'")
        start = Job.update(started).where(this_job)
        end = Job.update(ended).where(this_job, in_progress)
        return self._database.sql(start), self._database.sql(end)

    def _delete_finished(self) -> str:
        place = self._database.place
        chosen = (
            Job.select(Job.id)
            # With `<> ''` the database would read all unfinished jobs first.
            .where(Job.finished_at > EMPTY, Job.finished_at < place("before"))
            .order_by(Job.finished_at)
            .limit(place("limit"))
        )
        # A job that starts again at this moment must stay.
        return self._database.deletion(Job.id, chosen, "UPDATE SKIP LOCKED")

    def put(self, jobs: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Insert jobs, or update those whose id is known, inside a `Backend.write`.

        Args:
            jobs: jobs as `JobEntry` reads them. A job without an id is new. If several have the
                same id, the last one counts.

        Returns:
            Their rows, in the same order.
        """
        rows = [_ROW({**job, "id": job["id"] or str(uuid4())}) for job in jobs]
        self._upsert.rows(list({row[0]: row for row in rows}.values()))
        return rows

    def put_forward(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Like `put`, but known jobs only go forward in their life, as with `record`.

        Raises:
            StepBack: a job would go back, the first one in the list; the write must be rolled back.
        """
        there = self._there([job["id"] for job in jobs if job["id"]])
        known: dict[str, Mapping[str, Any]] = dict(there)
        rows: dict[str, Row] = {}
        for place, job in enumerate(jobs):
            job = {**job, "id": job["id"] or str(uuid4())}
            try:
                _demand_forward(job, known.get(job["id"]))
            except InvalidParameter as error:
                raise StepBack(place, error) from None
            known[job["id"]] = job
            rows[job["id"]] = _ROW(job)
        self._write(list(rows.values()), there)

    def _there(self, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the jobs among these that exist, locked until the end of the write."""
        found = self._database.rows(self._select_among, {"ids": ids})
        return {row[0]: dict(zip(NAMES, row, strict=True)) for row in found}

    def _write(self, rows: Sequence[Row], there: Container[str]) -> None:
        # All writers insert new jobs in the same order. If another writer has just inserted one,
        # there is a collision, and the next attempt finds that job.
        self._insert.rows(sorted(row for row in rows if row[0] not in there))
        self._upsert.rows([row for row in rows if row[0] in there])

    def record(self, jobs: Sequence[Mapping[str, str]]) -> list[Row]:
        """Insert new jobs and bring known ones forward in their life, all of them or none.

        Contract: "Extensions of ours", `record`. If a job's status needs a time and none is given,
        the time is the present.

        Args:
            jobs: jobs as `HistoryRecord` reads them, with only the given values. A job without an
                id, or with an unknown id, is new.

        Returns:
            Their rows, in the same order.

        Raises:
            InvalidParameter: a job is named twice, would go back in its life, would change a field
                that never changes, or is new and incomplete; or its times do not fit its status.
            Unavailable: the database does not answer.
        """
        if twice := repeated(job["id"] for job in jobs if job.get("id")):
            raise InvalidParameter(f"Duplicated orchestration job id: {twice}")
        ids = [job.get("id") or str(uuid4()) for job in jobs]

        def record_all() -> list[Row]:
            now = self._database.now()
            there = self._there(ids)
            rows = []
            for job_id, job in zip(ids, jobs, strict=True):
                whole = _stepped(job_id, job, there.get(job_id), now)
                kept = whole.pop("message", "")  # earlier versions allowed longer ones
                try:
                    loaded = self._entry.read(payload_of({**whole, "message": job.get("message")}))
                    rows.append(_ROW({**loaded, "message": loaded["message"] or kept}))
                except InvalidParameter as error:
                    if "id" in job and job_id not in there:
                        text = f"There is no orchestration job {job_id} yet: {error}"
                        raise InvalidParameter(text) from None
                    raise
            self._write(rows, there)
            return rows

        return self._database.write(record_all)

    def delete_old(self, moment: str, pause: Pause) -> int:
        """Delete the jobs that ended at least the maximum age before a moment, in batches.

        Args:
            moment: a DateTime in the past.
            pause: as for `delete_in_batches`.

        Returns:
            How many jobs were deleted.
        """
        # The maximum age may reach back before the year 1, when Python's calendar begins.
        then = datetime.fromisoformat(moment.removesuffix("Z"))
        before = write_instant(then - min(self._max_age, then - datetime.min))
        return delete_in_batches(self._database, self._delete_old, {"before": before}, pause)

    def _quick_count(self, shape: Shape) -> Select | None:
        """Return the query of how many jobs match, if the only filters are statuses and a type."""
        kinds = {"statuses": JobCount.status, "type": JobCount.type}
        if dict(shape).keys() - kinds:
            return None
        of_kind = [condition(self._database, kinds[it], it, several) for it, several in shape]
        total = JobCount.select(fn.COALESCE(fn.SUM(JobCount.jobs), SQL("0")))
        return total.where(*of_kind) if of_kind else total

    def step(self, job_id: str, status: str, message: str) -> None:
        """Put a job in progress, or end one that is in progress, now.

        Args:
            job_id: the job's id, in canonical form.
            status: its new status, not `PENDING`.
            message: replaces the job's message, unless empty.

        Raises:
            NotFound: the job does not exist.
            InvalidParameter: the job cannot end, because it is not in progress.
            Unavailable: the database does not answer.
        """
        sql = self._start_sql if status == IN_PROGRESS else self._end_sql
        values = {"id": job_id, "message": message, "status": status}

        def change() -> None:
            if self._database.change(sql, {**values, "now": self._database.now()}):
                return
            found = self._database.rows(self._status, values)
            if not found:
                raise NoSuchJob(job_id)
            raise InvalidParameter(
                f"Orchestration job {job_id} is {found[0][0]}: only a job in progress can end"
            )

        self._database.write(change)


def _stepped(
    job_id: str, job: Mapping[str, str], there: Mapping[str, str] | None, now: str
) -> dict[str, str]:
    """Return a job as it will be after a step.

    Args:
        job_id: its id.
        job: the given values.
        there: the job as it is now, if it exists.
        now: the present, as a DateTime.
    """
    whole = {"status": PENDING, "created_at": now, **(there or {}), **job, "id": job_id}
    _demand_forward(whole, there)
    needed = {
        "started_at": whole["status"] != PENDING,
        "finished_at": whole["status"] in FINISHED,
    }
    return whole | {it: now for it, need in needed.items() if need and not whole.get(it)}


def _demand_forward(job: Mapping[str, str], there: Mapping[str, str] | None) -> None:
    """Raise InvalidParameter if the known job must not become this one."""
    if there is None:
        return
    for name in FOR_LIFE:
        if job[name] != there[name]:
            raise InvalidParameter(
                f"Orchestration job {job['id']} has {camel_case(name)} {there[name] or 'empty'}: "
                f"it cannot become {job[name]}"
            )
    before, status = there["status"], job["status"]
    if status != before and (before in FINISHED or status == PENDING):
        raise InvalidParameter(cannot_become(job["id"], before, status))


def cannot_become(job_id: str, status: str, wanted: str) -> str:
    """Return the message for a job that would go back in its life."""
    return f"Orchestration job {job_id} is {status}: it cannot become {wanted}"
