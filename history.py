"""The history of one database: its orchestration jobs, from their creation to their end.

As in `locks.py`, Python programs get `orchmgmt.entries.Job`s, and under that are rows.

history = Store().history
job_id = history.create("PULL", "TemperatureConsumer", "TemperatureConsumer", "kelvinInfo")
history.start(job_id)
history.finish(job_id)
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import uuid4

from peewee import SQL, Case

from orchmgmt import entries
from orchmgmt.databases import Database, Row
from orchmgmt.databases.queries import BulkInsert, Page, Pause, Selection, delete_in_batches
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.fields import camel_case
from orchmgmt.models import DONE, ERROR, FINISHED, IN_PROGRESS, PENDING, STATUSES, Job, JobCount
from orchmgmt.schemas import HistoryQuery, JobEntry, payload_of
from orchmgmt.settings import Settings
from orchmgmt.values import strip, write_instant

COLUMNS = list(Job._meta.sorted_fields)

#: What a job has from its beginning to its end.
FOR_LIFE = (
    "type",
    "requester_system",
    "target_system",
    "service_definition",
    "subscription_id",
)

_ROW = itemgetter(*[column.name for column in COLUMNS])


class StepBack(InvalidParameter):
    """A job would go back in its life, or become another.

    Attributes:
        place: which of the jobs that were given it is, from 0.
    """

    def __init__(self, place: int, reason: object) -> None:
        super().__init__(str(reason))
        self.place = place


class History:
    """The orchestration jobs of one database. Every method may be called from any thread.

    Args:
        database: where they are kept.
        settings: how what is given to `create` is normalised, and how long jobs are kept.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        # A program that misspells a filter shall hear of it.
        self._query = HistoryQuery(replace(settings, unknown_keys="refuse"))
        self._entry = JobEntry(settings)
        self._message = self._entry.fields["message"]
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
            known=self._known if database.one_writer else None,
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
        self._start = database.sql(Job.update({**changes, **started}).where(this_job))
        ended = {Job.finished_at: place("now")}
        self._end = database.sql(
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

    def create(
        self,
        type: str,
        requester_system: str,
        target_system: str,
        service_definition: str,
        subscription_id: str = "",
        message: str = "",
    ) -> str:
        """Record a new job, `PENDING`.

        Args:
            type: `PULL` (asked for by the requester) or `PUSH` (by a subscription).
            requester_system: the system that asked.
            target_system: the system that the result is for.
            service_definition: the service that is looked for.
            subscription_id: the UUID of the subscription that triggered the job, if one did.
            message: free text, at most 16,384 characters.

        Returns:
            The job's id, a UUID.

        Raises:
            InvalidParameter: a value is malformed.
            Unavailable: the database does not answer.
        """
        job = entries.Job(
            id=str(uuid4()),
            type=type,
            requester_system=requester_system,
            target_system=target_system,
            service_definition=service_definition,
            subscription_id=subscription_id,
            message=message,
        )
        self.add([job])
        return job.id

    def add(self, jobs: Iterable[entries.Job]) -> list[entries.Job]:
        """Put jobs there as they are, of any age and status, all or none.

        For what was recorded elsewhere, and for tests and demonstrations.

        Args:
            jobs: the jobs. One without an id gets one; one whose id is there replaces it. One
                without `created_at` is made now.

        Returns:
            The jobs as they are stored, in the same order.

        Raises:
            InvalidParameter: a value is malformed, or does not go with the status.
            Unavailable: the database does not answer.
        """
        return self._database.write(self.add_within, list(jobs))

    def add_within(self, jobs: Iterable[entries.Job]) -> list[entries.Job]:
        """As `add`, within a `Database.write`."""
        created = {"createdAt": self._database.now()}
        wanted = [{**created, **payload_of(vars(job))} for job in jobs]
        return self._read(self.put([self._entry.load(job) for job in wanted]))

    def start(self, job_id: str, message: str = "") -> None:
        """Put a job `IN_PROGRESS`, from now; a finished one starts anew.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the message is no string.
            Unavailable: the database does not answer.
        """
        self._change(self._start, job_id, message, IN_PROGRESS)

    def finish(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `DONE`, now.

        Args:
            job_id: the job.
            message: replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the job is not in progress, or the message is no string.
            Unavailable: the database does not answer.
        """
        self._change(self._end, job_id, message, DONE)

    def fail(self, job_id: str, message: str = "") -> None:
        """End a job that is in progress as `ERROR`, now.

        Args:
            job_id: the job.
            message: what went wrong; replaces the job's message, unless blank.

        Raises:
            NotFound: there is no such job.
            InvalidParameter: the job is not in progress, or the message is no string.
            Unavailable: the database does not answer.
        """
        self._change(self._end, job_id, message, ERROR)

    def get(self, job_id: str) -> entries.Job:
        """Return one job.

        Raises:
            NotFound: there is no such job.
            Unavailable: the database does not answer.
        """
        rows, _ = self.find_rows({"ids": [strip(job_id).lower()]}, Page(0, 1))
        if not rows:
            raise NotFound(f"There is no orchestration job {job_id}")
        return self._read(rows)[0]

    def find(
        self,
        *,
        page: int = 0,
        size: int = 0,
        sort_field: str = "",
        descending: bool = True,
        **filters: Any,
    ) -> entries.Found[entries.Job]:
        """Return a page of the jobs that match: by default the newest of all.

        Contract: "History", and "Pagination".

        Args:
            page: which page, from 0.
            size: how many jobs are on a page; less than 1 is as many as the largest page holds.
            sort_field: `id`, `created_at`, `started_at` or `finished_at`; `created_at` by default.
            descending: the order.
            filters: `ids`, `statuses`, `requester_systems`, `target_systems`,
                `service_definitions` and `subscription_ids` are lists; `type` is one of them.

        Raises:
            InvalidParameter: a value is malformed, or there is no such filter.
            Unavailable: the database does not answer.
        """
        wanted = self._query.load_arguments(filters, page, size, sort_field, descending)
        rows, count = self.find_rows(*wanted)
        return entries.Found(self._read(rows), count)

    def _read(self, rows: Iterable[Row]) -> list[entries.Job]:
        return [entries.Job.from_wire(entry) for entry in self._entry.dump(rows)]

    def find_rows(self, wanted: Mapping[str, Any], page: Page) -> tuple[list[Row], int]:
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
        """Return all jobs, the oldest first, as they are read. For use inside `Database.read`."""
        return self._jobs.stream()

    def put(self, jobs: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Insert jobs, or update those whose id is there, within a `Database.write`.

        Args:
            jobs: jobs as `JobEntry` loads them; one without an id is new, and of several with
                one id the last counts.

        Returns:
            Their rows, in the same order.
        """
        rows = [_ROW({**job, "id": job["id"] or str(uuid4())}) for job in jobs]
        self._upsert.rows(list({row[0]: row for row in rows}.values()))
        return rows

    def put_forward(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """As `put`, but a job that is there only goes forward in its life, as `record_rows` has it.

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
        return {row[0]: dict(zip(self._entry.fields, row, strict=True)) for row in found}

    def _write(self, rows: Sequence[Row], there: Container[str]) -> None:
        # Writers come to new jobs in one order, as to others. One that another writer has put
        # there meanwhile is a conflict; at the next try it is there.
        self._insert.rows(sorted(row for row in rows if row[0] not in there))
        self._upsert.rows([row for row in rows if row[0] in there])

    def record_rows(self, jobs: Sequence[Mapping[str, str]]) -> list[Row]:
        """Put new jobs there and bring others forward in their life, all or none.

        Contract: "Extensions of ours", `record`. Times that a job's status needs and that are not
        given are the present.

        Args:
            jobs: jobs as `HistoryRecord` loads them, each with the values that are given. One
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

        def record() -> list[Row]:
            now = self._database.now()
            there = self._there(ids)
            rows = []
            for job_id, job in zip(ids, jobs, strict=True):
                whole = _stepped(job_id, job, there.get(job_id), now)
                kept = whole.pop("message", "")  # earlier versions took longer ones
                try:
                    loaded = self._entry.load(payload_of({**whole, "message": job.get("message")}))
                    rows.append(_ROW({**loaded, "message": loaded["message"] or kept}))
                except InvalidParameter as error:
                    if "id" in job and job_id not in there:
                        text = f"There is no orchestration job {job_id} yet: {error}"
                        raise InvalidParameter(text) from None
                    raise
            self._write(rows, there)
            return rows

        return self._database.write(record)

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

    def _known(self, wanted: Mapping[str, Any]) -> int | None:
        """How many jobs match, if statuses and a type are all that is asked for."""
        if wanted.keys() - {"statuses", "type"}:
            return None
        statuses, type = wanted.get("statuses", STATUSES), wanted.get("type")
        rows: list[tuple[str, str, int]] = self._database.rows(self._counts)
        return sum(
            jobs for status, kind, jobs in rows if status in statuses and type in (None, kind)
        )

    def _change(self, sql: str, job_id: str, message: str, status: str) -> None:
        values = {
            "id": strip(job_id).lower(),
            "message": self._message.deserialize(message),
            "status": status,
        }

        def change() -> None:
            if self._database.change(sql, {**values, "now": self._database.now()}):
                return
            found = self._database.rows(self._status, values)
            if not found:
                raise NotFound(f"There is no orchestration job {job_id}")
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
        raise InvalidParameter(
            f"Orchestration job {job['id']} is {before}: it cannot become {status}"
        )
