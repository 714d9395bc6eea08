"""The tables: locks, jobs, and the version of the schema that holds them.

Every value is stored in its wire form (`values.py`). Times are DateTime text in UTC, which sorts in
the order of time, and a missing value is the empty string, which sorts first. So every engine sorts
and compares in the same way, whatever its time zone or collation, and rows go out as they came in.
"""

from typing import NamedTuple

from peewee import (
    SQL,
    AutoField,
    BooleanField,
    CompositeKey,
    Context,
    IntegerField,
    Model,
    NodeList,
    TextField,
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
        # Only SQLite must be told; there the column's type is a plain INTEGER.
        if ctx.state.field_types[self.field_type] == "INTEGER":
            return NodeList((definition, SQL("AUTOINCREMENT")))
        return definition


class Lock(Model):
    """One service instance, reserved for one owner until `expires_at`.

    The unique service instance keeps a lock exclusive, for any number of threads and processes. Ids
    count up, and the database never gives out the same id twice.
    """

    id = CountedId()
    orchestration_job_id = TextField(default="")
    service_instance_id = TextField(unique=True)
    owner = TextField()
    expires_at = TextField()
    temporary = BooleanField(default=False)
    # These are not part of an entry. Both are NULL if the lock was created without a key.
    idempotency_key = TextField(null=True)
    request = TextField(null=True)  # which request had the key, and how many locks it created

    class Meta:
        table_name = "orchestration_lock"
        indexes = (
            (("orchestration_job_id",), False),
            (("owner", "id"), False),
            (("expires_at", "id"), False),
        )


#: Contains only the locks that were created with a key, so that the others cost nothing.
KEY_INDEX = Lock.index(Lock.idempotency_key, where=Lock.idempotency_key.is_null(False))
Lock.add_index(KEY_INDEX)


class NewLock(NamedTuple):
    """A lock to create: its entry without the id, which the database assigns.

    `expires_at` may be a duration (`values.duration`) until the lock is granted.
    """

    orchestration_job_id: str = ""
    service_instance_id: str = ""
    owner: str = ""
    expires_at: str = ""
    temporary: bool = False


_COLUMNS = [column.name for column in Lock._meta.sorted_fields]
if _COLUMNS[: 1 + len(NewLock._fields)] != ["id", *NewLock._fields]:
    raise TypeError("Lock must begin with its id and the columns of NewLock, in their order")


class Renewal(NamedTuple):
    """A new end for a lock that somebody holds.

    `expires_at` may be a duration, as in `NewLock`. With an `id`, only the lock with that id is
    renewed.
    """

    service_instance_id: str
    owner: str
    expires_at: str
    id: int | None = None


class Job(Model):
    """One orchestration that was asked for, and how far it has got."""

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
        # Each filter's index continues in the default order, newest first, so that a page of the
        # jobs with one value is read from the index and not sorted.
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


# The tables of counts: with them, counting does not read what is counted. Triggers maintain them
# (`databases/counts.py`), so they are exact in every transaction, whoever writes. A count is the
# sum of its rows. SQLite has one writer at a time, which changes the single row of its kind. On
# PostgreSQL each writer adds a row with the difference, so that no writer waits for another; from
# time to time a writer adds the differences up. So there are always few rows.


class JobCount(Model):
    """How many jobs there are of each status and type."""

    status = TextField()
    type = TextField()
    jobs = IntegerField()

    class Meta:
        table_name = "orchestration_job_count"
        primary_key = CompositeKey("status", "type")
        without_rowid = True


class LockCount(Model):
    """How many locks there are, expired or not."""

    locks = IntegerField()

    class Meta:
        table_name = "orchestration_lock_count"
        primary_key = False


class SchemaVersion(Model):
    """The single row that says which version of these tables a database has."""

    version = IntegerField()

    class Meta:
        table_name = "orchestration_schema"
        primary_key = False


#: The columns that count up, by their table.
COUNTED_IDS = {Lock._meta.table_name: Lock.id}


class UnusableDatabase(Exception):
    """The database cannot be used; its text is one line that says why and what to do."""


class BusyDatabase(UnusableDatabase):
    """Another process has been writing to the database for longer than the timeout."""


class WrongUrl(UnusableDatabase):
    """The setting `DATABASE_URL` names no database."""


class MissingDatabase(UnusableDatabase):
    """The database does not exist, and must not be created."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; `orchmgmt serve` or an import makes a database")
