"""The tables: locks, jobs, and the version of the schema that holds them.

Every value is stored in its wire form (`values.py`): times are DateTime text in UTC, which sorts
as time does, and what has no value is the empty string, which sorts first. So every engine sorts
and compares alike, whatever its time zone or collation, and rows go out as they come in.
"""

from collections.abc import Collection
from typing import NamedTuple

from peewee import (
    SQL,
    AutoField,
    BooleanField,
    CompositeKey,
    Context,
    Database,
    IntegerField,
    Model,
    NodeList,
    Query,
    SchemaManager,
    TextField,
    fn,
)

#: The life of a job (contract, "History").
PENDING, IN_PROGRESS, DONE, ERROR = STATUSES = ("PENDING", "IN_PROGRESS", "DONE", "ERROR")
FINISHED = (DONE, ERROR)
PULL, PUSH = TYPES = ("PULL", "PUSH")


class CountedId(AutoField):
    """An id that counts up and is never used again, even if its row was the last one."""

    def ddl(self, ctx: Context) -> NodeList:
        """Return the column's definition."""
        definition = super().ddl(ctx)
        # SQLite, alone, must be told; there the column's type is a plain INTEGER.
        if ctx.state.field_types[self.field_type] == "INTEGER":
            return NodeList((definition, SQL("AUTOINCREMENT")))
        return definition


class Lock(Model):
    """One service instance, reserved for one owner until `expires_at`.

    The unique service instance is what keeps a lock exclusive, for any number of threads and
    processes. Ids count up, and the database gives none out twice.
    """

    id = CountedId()
    orchestration_job_id = TextField(default="")
    service_instance_id = TextField(unique=True)
    owner = TextField()
    expires_at = TextField()
    temporary = BooleanField(default=False)

    class Meta:
        table_name = "orchestration_lock"
        indexes = (
            (("orchestration_job_id",), False),
            (("owner", "id"), False),
            (("expires_at", "id"), False),
        )


class NewLock(NamedTuple):
    """A lock to be made: its row, but for the id that the database gives it."""

    orchestration_job_id: str = ""
    service_instance_id: str = ""
    owner: str = ""
    expires_at: str = ""
    temporary: bool = False


class Job(Model):
    """One orchestration that was asked for, and how far it got."""

    id = TextField(primary_key=True)
    status = TextField()
    type = TextField()
    requester_system = TextField()
    target_system = TextField()
    service_definition = TextField()
    subscription_id = TextField(default="")
    message = TextField(default="")
    created_at = TextField()
    started_at = TextField(default="")
    finished_at = TextField(default="")

    class Meta:
        table_name = "orchestration_job"
        # Each filter's index goes on in the default order, newest first, so that a page of one
        # value's jobs is read off the index and not sorted.
        indexes = (
            (("created_at", "id"), False),
            (("started_at", "id"), False),
            (("finished_at", "id"), False),
            (("status", "created_at", "id"), False),
            (("type", "created_at", "id"), False),
            (("requester_system", "created_at", "id"), False),
            (("target_system", "created_at", "id"), False),
            (("service_definition", "created_at", "id"), False),
            (("subscription_id", "created_at", "id"), False),
        )


class JobCount(Model):
    """How many jobs there are of each kind, so that counting does not read the jobs.

    Triggers keep it, so it is exact whoever writes. A row whose other columns are empty counts all
    jobs of its status.
    """

    requester_system = TextField()
    status = TextField()
    type = TextField()
    target_system = TextField()
    service_definition = TextField()
    jobs = IntegerField()

    class Meta:
        table_name = "orchestration_job_count"
        primary_key = CompositeKey(
            "requester_system", "status", "type", "target_system", "service_definition"
        )
        without_rowid = True

    @classmethod
    def sum(cls, filters: Collection[str]) -> Query:
        """Return the query that counts the jobs which fulfil conditions on these columns."""
        query = cls.select(fn.COALESCE(fn.SUM(cls.jobs), 0))
        if set(filters) <= {"status"}:
            return query.where(cls.requester_system == "")
        if "requester_system" not in filters:
            return query.where(cls.requester_system != "")
        return query


class Schema(Model):
    """The single row that says which version of this schema a database holds."""

    version = IntegerField()

    class Meta:
        table_name = "orchestration_schema"
        primary_key = False


class UnusableDatabase(Exception):
    """The database cannot be used; its text is one line that says why and what to do."""


def check_schema(database: Database, shared: bool = False) -> int:
    """Return the version of the schema, 0 when there is none. Call it inside a transaction.

    Args:
        database: the database.
        shared: whether other programs may have tables beside ours.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours.
    """
    tables = [name for name in database.get_tables() if not name.startswith("sqlite_")]
    if Schema._meta.table_name in tables:
        version: int = Schema.select(Schema.version).bind(database).scalar()
        if not 1 <= version <= SCHEMA_VERSION:
            raise UnusableDatabase(
                f"its schema has version {version}, this program knows version {SCHEMA_VERSION}: "
                "use a newer orchmgmt, or another database"
            )
        return version
    if shared:
        ours = {model._meta.table_name for model in (Lock, Job)}
        tables = [name for name in tables if name in ours]
    if tables:
        raise UnusableDatabase(
            f"it belongs to another program (it has a table {tables[0]}): use another database"
        )
    return 0


def prepare_schema(database: Database, keeps_counts: bool, shared: bool = False) -> None:
    """Create the tables in an empty database, or bring those of an earlier version up to date.

    Call it inside a transaction that excludes others who do so.

    Args:
        database: the database.
        keeps_counts: whether it has the table `JobCount`.
        shared: whether other programs may have tables beside ours.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours.
    """
    version = check_schema(database, shared)
    if not version:
        for model in (Lock, Job, Schema):
            SchemaManager(model, database).create_all(safe=False)
        if keeps_counts:
            _count_jobs(database)
        Schema.insert(version=SCHEMA_VERSION).bind(database).execute()
        return
    for upgrade in UPGRADES[version - 1 :]:
        upgrade(database)
    # This also fails where nothing can be written, as opening a file does not.
    Schema.update(version=SCHEMA_VERSION).bind(database).execute()


def _count_jobs(database: Database) -> None:
    """Create the table of counts, fill it, and let triggers keep it (SQLite)."""
    SchemaManager(JobCount, database).create_all(safe=False)
    kind = "requester_system, status, type, target_system, service_definition"
    count, job = JobCount._meta.table_name, Job._meta.table_name
    database.execute_sql(
        f"INSERT INTO {count} ({kind}, jobs)"
        f" SELECT {kind}, COUNT(*) FROM {job} GROUP BY {kind}"
        f" UNION ALL SELECT '', status, '', '', '', COUNT(*) FROM {job} GROUP BY status"
    )

    def both(row: str) -> str:
        values = ", ".join(f"{row}.{column}" for column in kind.split(", "))
        return f"VALUES ({values}), ('', {row}.status, '', '', '')"

    more = (
        f"INSERT INTO {count} ({kind}, jobs) SELECT *, 1 FROM ({both('NEW')}) WHERE 1"
        " ON CONFLICT DO UPDATE SET jobs = jobs + 1;"
    )
    fewer = (
        f"UPDATE {count} SET jobs = jobs - 1 WHERE ({kind}) IN ({both('OLD')});"
        f" DELETE FROM {count} WHERE ({kind}) IN ({both('OLD')}) AND jobs = 0;"
    )
    changed = " OR ".join(f"OLD.{column} <> NEW.{column}" for column in kind.split(", "))
    for name, event, action in (
        ("insert", "INSERT", more),
        ("delete", "DELETE", fewer),
        ("update", f"UPDATE OF {kind}", f"{fewer} {more}"),
    ):
        when = f" WHEN {changed}" if name == "update" else ""
        database.execute_sql(
            f"CREATE TRIGGER {count}_{name} AFTER {event} ON {job}{when} BEGIN {action} END"
        )


#: What brings a database from version 1 to 2, from 2 to 3, and so on.
UPGRADES = (_count_jobs,)

SCHEMA_VERSION = len(UPGRADES) + 1
