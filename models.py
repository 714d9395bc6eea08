"""The tables: locks, jobs, and the version of the schema that holds them.

Every value is stored in its wire form (`values.py`): times are DateTime text in UTC, which sorts
as time does, and what has no value is the empty string, which sorts first. So every engine sorts
and compares alike, whatever its time zone or collation, and rows go out as they come in.
"""

import logging
from importlib.metadata import version as program
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
    SchemaManager,
    TextField,
)

log = logging.getLogger("orchmgmt")

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


if ("id", *NewLock._fields) != tuple(column.name for column in Lock._meta.sorted_fields):
    raise TypeError("NewLock must have the columns of Lock, in their order")


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
    """How many jobs there are of each status and type, so that counting does not read the jobs.

    Triggers keep it, so it is exact whoever writes; and it has so few rows that keeping it costs
    the same whatever is stored.
    """

    status = TextField()
    type = TextField()
    jobs = IntegerField()

    class Meta:
        table_name = "orchestration_job_count"
        primary_key = CompositeKey("status", "type")
        without_rowid = True


class LockCount(Model):
    """The single row that says how many locks there are, expired or not; triggers keep it."""

    locks = IntegerField()

    class Meta:
        table_name = "orchestration_lock_count"
        primary_key = False


class Schema(Model):
    """The single row that says which version of this schema a database holds."""

    version = IntegerField()

    class Meta:
        table_name = "orchestration_schema"
        primary_key = False


class UnusableDatabase(Exception):
    """The database cannot be used; its text is one line that says why and what to do."""


class WrongUrl(UnusableDatabase):
    """The setting `DATABASE_URL` names no database."""


class MissingDatabase(UnusableDatabase):
    """There is no database there, and none shall be made."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; `orchmgmt serve` or an import makes a database")


class OldSchema(UnusableDatabase):
    """The schema is of an earlier version, and shall not be upgraded.

    Attributes:
        version: which.
    """

    def __init__(self, version: int) -> None:
        super().__init__(
            f"its schema has version {version}, this program needs version {SCHEMA_VERSION}: "
            "run `orchmgmt upgrade`"
        )
        self.version = version


class Opening(NamedTuple):
    """What may be done to a database so that it can be used.

    Attributes:
        create: make it, or its tables, when it is not there.
        upgrade: bring the schema of an earlier version up to date, and a SQLite file into the mode
            that servers use.
        write: write to it; otherwise it may lie where nothing can be written.
    """

    create: bool = True
    upgrade: bool = True
    write: bool = True


READY = Opening()

#: For those who only read it.
TO_READ = Opening(create=False, upgrade=False, write=False)


def check_schema(database: Database, opening: Opening, shared: bool = False) -> int:
    """Return the version of the schema, 0 when there is none. Call it inside a transaction.

    Args:
        database: the database.
        opening: what may be done to it so that it can be used.
        shared: whether other programs may have tables beside ours.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours, or what they need
            may not be done.
    """
    tables = [name for name in database.get_tables() if not name.startswith("sqlite_")]
    if Schema._meta.table_name in tables:
        version: int = Schema.select(Schema.version).bind(database).scalar()
        if not 1 <= version <= SCHEMA_VERSION:
            raise UnusableDatabase(
                f"its schema has version {version}, this program knows version {SCHEMA_VERSION}: "
                "use a newer orchmgmt, or another database"
            )
        if version < SCHEMA_VERSION and not opening.upgrade:
            raise OldSchema(version)
        return version
    if shared:
        ours = {model._meta.table_name for model in (Lock, Job)}
        tables = [name for name in tables if name in ours]
    if tables:
        raise UnusableDatabase(
            f"it belongs to another program (it has a table {tables[0]}): use another database"
        )
    if not opening.create:
        raise MissingDatabase("it is empty")
    return 0


def prepare_schema(database: Database, opening: Opening, shared: bool = False) -> None:
    """Create the tables in an empty database, or bring those of an earlier version up to date.

    Call it inside a transaction that excludes others who do so.

    Args:
        database: the database.
        opening: whether that may be done.
        shared: whether other programs may have tables beside ours, and several write at once: then
            there are no tables of counts, for all would wait for a row that each changes.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours, or what they need
            may not be done.
    """
    version = check_schema(database, opening, shared)
    if not version:
        for model in (Lock, Job, Schema):
            SchemaManager(model, database).create_all(safe=False)
        Schema.insert(version=SCHEMA_VERSION).bind(database).execute()
    elif version < SCHEMA_VERSION:
        log.info(
            "orchmgmt %s upgrades the schema from version %d to %d",
            program("orchmgmt"),
            version,
            SCHEMA_VERSION,
        )
    if version < SCHEMA_VERSION and not shared:  # versions differ in their counts alone
        _count(database)
    if version < SCHEMA_VERSION or not shared:
        # This also fails where nothing can be written, as opening a file does not.
        Schema.update(version=SCHEMA_VERSION).bind(database).execute()


def _count(database: Database) -> None:
    """Create the tables of counts, fill them, and let triggers keep them (SQLite)."""
    job, jobs, lock, locks = (it._meta.table_name for it in (Job, JobCount, Lock, LockCount))
    for event in ("insert", "delete", "update"):  # version 2 counted in another way
        database.execute_sql(f"DROP TRIGGER IF EXISTS {jobs}_{event}")
    SchemaManager(JobCount, database).drop_table(safe=True)
    for model in (JobCount, LockCount):
        SchemaManager(model, database).create_all(safe=False)
    more = (
        f"INSERT INTO {jobs} VALUES (NEW.status, NEW.type, 1)"
        " ON CONFLICT DO UPDATE SET jobs = jobs + 1;"
    )
    fewer = f"UPDATE {jobs} SET jobs = jobs - 1 WHERE status = OLD.status AND type = OLD.type;"
    for statement in (
        f"INSERT INTO {jobs} SELECT status, type, COUNT(*) FROM {job} GROUP BY status, type",
        f"INSERT INTO {locks} SELECT COUNT(*) FROM {lock}",
        f"CREATE TRIGGER {job}_count_insert AFTER INSERT ON {job} BEGIN {more} END",
        f"CREATE TRIGGER {job}_count_delete AFTER DELETE ON {job} BEGIN {fewer} END",
        f"CREATE TRIGGER {job}_count_update AFTER UPDATE OF status, type ON {job}"
        f" BEGIN {fewer + more} END",
        f"CREATE TRIGGER {lock}_count_insert AFTER INSERT ON {lock}"
        f" BEGIN UPDATE {locks} SET locks = locks + 1; END",
        f"CREATE TRIGGER {lock}_count_delete AFTER DELETE ON {lock}"
        f" BEGIN UPDATE {locks} SET locks = locks - 1; END",
    ):
        database.execute_sql(statement)


#: Raised by each change to the tables, so that an earlier program does not touch later ones.
SCHEMA_VERSION = 3
