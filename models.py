"""The tables: locks, jobs, and the version of the schema that holds them.

Every value is stored in its wire form (`values.py`): times are DateTime text in UTC, which sorts
as time does, and what has no value is the empty string, which sorts first. So every engine sorts
and compares alike, whatever its time zone or collation, and rows go out as they come in.
"""

from typing import Any, NamedTuple

from peewee import (
    SQL,
    BooleanField,
    Database,
    IntegerField,
    Model,
    SchemaManager,
    TextField,
)
from playhouse.sqlite_ext import AutoIncrementField

SCHEMA_VERSION = 1

#: The life of a job (contract, "History").
PENDING, IN_PROGRESS, DONE, ERROR = STATUSES = ("PENDING", "IN_PROGRESS", "DONE", "ERROR")
FINISHED = (DONE, ERROR)
PULL, PUSH = TYPES = ("PULL", "PUSH")


class Lock(Model):
    """One service instance, reserved for one owner until `expires_at`.

    The unique service instance is what keeps a lock exclusive, for any number of threads and
    processes; ids count up and are never used again.
    """

    id = AutoIncrementField()
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


class Schema(Model):
    """The single row that says which version of this schema a database holds."""

    version = IntegerField()

    class Meta:
        table_name = "orchestration_schema"
        primary_key = False


class UnusableDatabase(Exception):
    """The database cannot be used; its text is one line that says why and what to do."""


def check_schema(database: Database) -> bool:
    """Return whether the tables are there. Call it inside a transaction.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours.
    """
    tables = [name for name in database.get_tables() if not name.startswith("sqlite_")]
    if Schema._meta.table_name in tables:
        version = Schema.select(Schema.version).bind(database).scalar()
        if version != SCHEMA_VERSION:
            raise UnusableDatabase(
                f"its schema has version {version}, this program knows version {SCHEMA_VERSION}: "
                "use a newer orchmgmt, or another database"
            )
    elif tables:
        raise UnusableDatabase(
            f"it belongs to another program (it has a table {tables[0]}): use another database"
        )
    return bool(tables)


def prepare_schema(database: Database) -> None:
    """Create the tables in an empty database, or check that they are the ones we know.

    Call it inside a transaction that excludes other writers.

    Raises:
        UnusableDatabase: the tables are newer than this program, or not ours.
    """
    if check_schema(database):
        # Changes nothing, but fails where nothing can be changed, as opening a file does not.
        Schema.delete().where(SQL("0")).bind(database).execute()
    else:
        models: tuple[type[Any], ...] = (Lock, Job, Schema)
        for model in models:
            SchemaManager(model, database).create_all(safe=False)
        Schema.insert(version=SCHEMA_VERSION).bind(database).execute()
