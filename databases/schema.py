"""The tables in a database: whether they are ours, how they are made, and how they are upgraded.

Whoever changes the tables in `models.py` adds the step that changes those of an existing database
to `UPGRADES`, and a SQLite file of the version before to `tests/data`.
"""

import logging
from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import NamedTuple

import peewee
from peewee import SchemaManager

from orchmgmt.databases.counts import create_counts
from orchmgmt.models import (
    KEY_INDEX,
    Job,
    JobCount,
    Lock,
    MissingDatabase,
    SchemaVersion,
    UnusableDatabase,
)

log = logging.getLogger("orchmgmt")


class Permitted(NamedTuple):
    """What may be done to a database so that it can be used.

    Attributes:
        create: create it, or its tables, if it does not exist.
        upgrade: upgrade an earlier version of the schema, and put a SQLite file into the mode that
            servers use.
        write: write to it; otherwise it may be where nothing can be written.
    """

    create: bool = True
    upgrade: bool = True
    write: bool = True


READY = Permitted()

#: For a process that only reads the database.
TO_READ = Permitted(create=False, upgrade=False, write=False)


class OldSchema(UnusableDatabase):
    """The schema is of an earlier version, and must not be upgraded.

    Attributes:
        version: that version.
    """

    def __init__(self, version: int) -> None:
        super().__init__(
            f"its schema has version {version}, this program needs version {SCHEMA_VERSION}: "
            "run `orchmgmt upgrade`"
        )
        self.version = version


def drop_earlier_counts(engine: peewee.Database) -> None:
    """Drop the table and triggers of the counts in version 2. Version 1 had no counts."""
    counts = JobCount._meta.table_name
    for event in ("insert", "delete", "update"):
        engine.execute_sql(f"DROP TRIGGER IF EXISTS {counts}_{event}")
    engine.execute_sql(f"DROP TABLE IF EXISTS {counts}")


def add_idempotency_key(engine: peewee.Database) -> None:
    """Add the columns of the idempotency key to the table of locks, and their index."""
    for field in (Lock.idempotency_key, Lock.request):
        context = engine.get_sql_context()
        definition, _ = context.sql(field.ddl(context)).query()
        engine.execute_sql(f"ALTER TABLE {Lock._meta.table_name} ADD COLUMN {definition}")
    engine.execute(KEY_INDEX)


#: SQL, or what runs it.
Step = str | Callable[[peewee.Database], None]


class Upgrade(NamedTuple):
    """The steps from one version of the schema to the next.

    Attributes:
        steps: those for SQLite and PostgreSQL.
        sqlite: those for SQLite alone, which come after them.
        postgresql: likewise.
    """

    steps: tuple[Step, ...] = ()
    sqlite: tuple[Step, ...] = ()
    postgresql: tuple[Step, ...] = ()


#: How each version of the schema is made from the one before. A new column is one line:
#: `6: Upgrade(("ALTER TABLE orchestration_lock ADD COLUMN note TEXT NOT NULL DEFAULT ''",)),`
UPGRADES = {
    2: Upgrade(),  # version 3 replaces all that this one did
    3: Upgrade(sqlite=(drop_earlier_counts, create_counts)),
    4: Upgrade((add_idempotency_key,)),
    5: Upgrade(postgresql=(create_counts,)),
}

#: The version of the schema that this program uses.
SCHEMA_VERSION = max(UPGRADES)


def check_schema(engine: peewee.Database, permitted: Permitted) -> int:
    """Return the version of the schema, 0 if there is none. Call it inside a transaction.

    Args:
        engine: the database.
        permitted: what may be done to it so that it can be used.

    Raises:
        UnusableDatabase: the tables are newer than this program or belong to another program, or
            what they need is not permitted.
    """
    tables = [name for name in engine.get_tables() if not name.startswith("sqlite_")]
    if SchemaVersion._meta.table_name in tables:
        version: int = SchemaVersion.select(SchemaVersion.version).bind(engine).scalar()
        if not 1 <= version <= SCHEMA_VERSION:
            raise UnusableDatabase(
                f"its schema has version {version}, this program knows version {SCHEMA_VERSION}: "
                "use a newer orchmgmt, or another database"
            )
        if version < SCHEMA_VERSION and not permitted.upgrade:
            raise OldSchema(version)
        return version
    if not _is_sqlite(engine):  # then other programs may have tables beside ours
        ours = {model._meta.table_name for model in (Lock, Job)}
        tables = [name for name in tables if name in ours]
    if tables:
        raise UnusableDatabase(
            f"it belongs to another program (it has a table {tables[0]}): use another database"
        )
    if not permitted.create:
        raise MissingDatabase("it is empty")
    return 0


def prepare_schema(engine: peewee.Database, permitted: Permitted) -> None:
    """Create the tables in an empty database, or upgrade those of an earlier version.

    Call it inside a transaction that keeps out everyone else who does so.

    Args:
        engine: the database.
        permitted: whether that may be done.

    Raises:
        UnusableDatabase: the tables are newer than this program or belong to another program, or
            what they need is not permitted.
    """
    version = check_schema(engine, permitted)
    if not version:
        _create(engine)
    elif version < SCHEMA_VERSION:
        _upgrade(engine, version)
    if version < SCHEMA_VERSION or _is_sqlite(engine):
        # This also fails where nothing can be written; opening a SQLite file does not.
        SchemaVersion.update(version=SCHEMA_VERSION).bind(engine).execute()


def _create(engine: peewee.Database) -> None:
    for model in (Lock, Job, SchemaVersion):
        SchemaManager(model, engine).create_all(safe=False)
    create_counts(engine)
    SchemaVersion.insert(version=SCHEMA_VERSION).bind(engine).execute()


def _upgrade(engine: peewee.Database, version: int) -> None:
    log.info(
        "orchmgmt %s upgrades the schema from version %d to %d",
        version_of("orchmgmt"),
        version,
        SCHEMA_VERSION,
    )
    for number in range(version + 1, SCHEMA_VERSION + 1):
        upgrade = UPGRADES[number]
        more = upgrade.sqlite if _is_sqlite(engine) else upgrade.postgresql
        for step in upgrade.steps + more:
            if callable(step):
                step(engine)
            else:
                engine.execute_sql(step)


def _is_sqlite(engine: peewee.Database) -> bool:
    return isinstance(engine, peewee.SqliteDatabase)
