"""The history of one database: its orchestration jobs, from their creation to their end.

As in `locks.py`, values and rows are in the form in which they are on the wire and in the table.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import uuid4

from peewee import SQL, Case

from orchmgmt.databases import Backend, Row
from orchmgmt.databases.index_choice import no_quick_count
from orchmgmt.databases.queries import BulkInsert, Page, Pause, Selection, delete_in_batches
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import FINISHED, IN_PROGRESS, PENDING, STATUSES, Job, JobCount
from orchmgmt.schemas import JobEntry, payload_of
from orchmgmt.settings import Settings
from orchmgmt.values import write_instant

COLUMNS = list(Job._meta.sorted_fields)
NAMES = [column.name for column in COLUMNS]

#: What a job has from its beginning to its end.
FOR_LIFE = (
    "type",
    "requester_system",
    "target_system",
    "service_definition",
    "subscription_id",
)

_ROW = itemgetter(*NAMES)


class StepBack(InvalidParameter):
    """A job would go back in its life, or become another.

    Attributes:
        place: which of the jobs that were given it is, from 0.
    """

    def __init__(self, place: int, reason: object) -> None:
        super().__init__(str(reason))
        self.place = place


class NoSuchJob(NotFound):
    """There is no job with an id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no orchestration job {job_id}")


class JobTable:
    """The orchestration jobs of one database. Every method may be called from any thread.

    Args:
        database: where they are kept.
        settings: how jobs are normalised, and how long they are kept.
    """

    def __init__(self, database: Backend, settings: Settings) -> None:
        self._database = database
        self._entry = JobEntry(settings)
        self._max_age = timedelta(days=settings.history_max_age_days)
        self._jobs = Selection(
            database,
            Job,
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
            quick_count=self._quick_count if database.one_writer else no_quick_count,
        )
        self._counts = database.sql(JobCount.select())
        self._upsert = BulkInsert(
            database,
            COLUMNS,
            lambda insert: insert.on_conflict(conflict_target=[Job.id], preserve=COLUMNS[1:]),
        )
        place = database.place
        self._insert = BulkInsert(database, COLUMNS, lambda insert: insert)
        among = Job.select().where(database.any_of(Job.id, "ids")).order_by(Job.id)
        self._select_among = database.sql(database.locking(among, "UPDATE"))
        this_job = Job.id == place("id")
        message = place("message")
        nothing = SQL("''")
        changes = {
            Job.status: place("status"),
            Job.message: Case(None, [(message == nothing, Job.message)], message),
        }
        started = {Job.started_at: place("now"), Job.finished_at: nothing}
        self._start_sql = database.sql(Job.update({**changes, **started}).where(this_job))
        ended = {Job.finished_at: place("now")}
        self._end_sql = database.sql(
            Job.update({**changes, **ended}).where(this_job, Job.status == SQL(f"'{IN_PROGRESS}'"))
        )
        self._status = database.sql(Job.select(Job.status).where(this_job))
        self._delete_old = database.deletion(
            Job.id,
            Job.select(Job.id)
            # Not `<> ''`, which would walk through all unfinished jobs first.
            .where(Job.finished_at > nothing, Job.finished_at < place("before"))
            .order_by(Job.finished_at)
            .limit(place("limit")),
            "UPDATE SKIP LOCKED",  # a job that starts anew meanwhile must stay
        )

    def find(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
        """Return a page of the jobs that match, and how many match in all.

        Contract: "History".

        Args:
            wanted: for each filter asked for, its list of values; `type` is a single value.
            page: which page, in which order.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._jobs.find(wanted, page)

    def stream(self) -> Iterator[Row]:
        """Return all jobs, the oldest first, as they are read. For use inside `Backend.read`."""
        return self._jobs.stream()

    def put(self, jobs: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Insert jobs, or update those whose id is there, within a `Backend.write`.

        Args:
            jobs: jobs as `JobEntry` reads them; one without an id is new, and of several with
                one id the last counts.

        Returns:
            Their rows, in the same order.
        """
        rows = [_ROW({**job, "id": job["id"] or str(uuid4())}) for job in jobs]
        self._upsert.rows(list({row[0]: row for row in rows}.values()))
        return rows

    def put_forward(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """As `put`, but a job that is there only goes forward in its life, as `record` has it.

        Raises:
            StepBack: the first that would not; the write must roll back.
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
        """Those of these jobs that are there; they stay as they are until the end of the write."""
        found = self._database.rows(self._select_among, {"ids": ids})
        return {row[0]: dict(zip(NAMES, row, strict=True)) for row in found}

    def _write(self, rows: Sequence[Row], there: Container[str]) -> None:
        # Writers come to new jobs in one order, as to others. One that another writer has put
        # there meanwhile is a conflict; at the next try it is there.
        self._insert.rows(sorted(row for row in rows if row[0] not in there))
        self._upsert.rows([row for row in rows if row[0] in there])

    def record(self, jobs: Sequence[Mapping[str, str]]) -> list[Row]:
        """Put new jobs there and bring others forward in their life, all or none.

        Contract: "Extensions of ours", `record`. Times that a job's status needs and that are not
        given are the present.

        Args:
            jobs: jobs as `HistoryRecord` reads them, each with the values that are given. One
                without an id, or with one that is not there, is new.

        Returns:
            Their rows, in the same order.

        Raises:
            InvalidParameter: a job is named twice, would take a step back, changes what stays, or
                is new and not complete; or its times do not go with its status.
            Unavailable: the database does not answer.
        """
        seen: set[str] = set()
        for job_id in filter(None, (job.get("id") for job in jobs)):
            if job_id in seen:
                raise InvalidParameter(f"Duplicated orchestration job id: {job_id}")
            seen.add(job_id)
        ids = [job.get("id") or str(uuid4()) for job in jobs]

        def record_all() -> list[Row]:
            now = self._database.now()
            there = self._there(ids)
            rows = []
            for job_id, job in zip(ids, jobs, strict=True):
                whole = _stepped(job_id, job, there.get(job_id), now)
                kept = whole.pop("message", "")  # earlier versions took longer ones
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
        """Delete the jobs that had ended the maximum age before then, in batches.

        Args:
            moment: a DateTime that is past.
            pause: as `delete_in_batches` has it.

        Returns:
            How many there were.
        """
        # As old as the calendar allows is old enough: an age may reach back before it.
        then = datetime.fromisoformat(moment.removesuffix("Z"))
        before = write_instant(then - min(self._max_age, then - datetime.min))
        return delete_in_batches(self._database, self._delete_old, {"before": before}, pause)

    def _quick_count(self, wanted: Mapping[str, Any]) -> int | None:
        """How many jobs match, if statuses and a type are all that is asked for."""
        if wanted.keys() - {"statuses", "type"}:
            return None
        statuses, type = wanted.get("statuses", STATUSES), wanted.get("type")
        rows: list[tuple[str, str, int]] = self._database.rows(self._counts)
        return sum(
            jobs for status, kind, jobs in rows if status in statuses and type in (None, kind)
        )

    def step(self, job_id: str, status: str, message: str) -> None:
        """Put a job in progress, or end one that is in progress, now.

        Args:
            job_id: the job's id, in canonical form.
            status: its new status; `PENDING` is none.
            message: replaces the job's message, unless empty.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: it cannot end, for it is not in progress.
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
    """Return a job as it will be.

    Args:
        job_id: its id.
        job: what is given.
        there: the job as it is, if it is there.
        now: the present.
    """
    whole = {"status": PENDING, "created_at": now, **(there or {}), **job, "id": job_id}
    _demand_forward(whole, there)
    needed = {
        "started_at": whole["status"] != PENDING,
        "finished_at": whole["status"] in FINISHED,
    }
    return whole | {it: now for it, need in needed.items() if need and not whole.get(it)}


def _demand_forward(job: Mapping[str, str], there: Mapping[str, str] | None) -> None:
    """Raise InvalidParameter unless the job that is there may become this one."""
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
