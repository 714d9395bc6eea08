"""The tables of counts, and the triggers that maintain them (`models.JobCount`, `LockCount`)."""

import peewee
from peewee import SchemaManager

from orchmgmt.models import Job, JobCount, Lock, LockCount

JOB, JOBS, LOCK, LOCKS = (it._meta.table_name for it in (Job, JobCount, Lock, LockCount))

_MORE = (
    f"INSERT INTO {JOBS} VALUES (NEW.status, NEW.type, 1)"
    " ON CONFLICT DO UPDATE SET jobs = jobs + 1;"
)
_FEWER = f"UPDATE {JOBS} SET jobs = jobs - 1 WHERE status = OLD.status AND type = OLD.type;"

#: How SQLite fills and maintains the tables.
SQLITE = (
    f"INSERT INTO {JOBS} SELECT status, type, COUNT(*) FROM {JOB} GROUP BY status, type",
    f"INSERT INTO {LOCKS} SELECT COUNT(*) FROM {LOCK}",
    f"CREATE TRIGGER {JOB}_count_insert AFTER INSERT ON {JOB} BEGIN {_MORE} END",
    f"CREATE TRIGGER {JOB}_count_delete AFTER DELETE ON {JOB} BEGIN {_FEWER} END",
    f"CREATE TRIGGER {JOB}_count_update AFTER UPDATE OF status, type ON {JOB}"
    f" BEGIN {_FEWER + _MORE} END",
    f"CREATE TRIGGER {LOCK}_count_insert AFTER INSERT ON {LOCK}"
    f" BEGIN UPDATE {LOCKS} SET locks = locks + 1; END",
    f"CREATE TRIGGER {LOCK}_count_delete AFTER DELETE ON {LOCK}"
    f" BEGIN UPDATE {LOCKS} SET locks = locks - 1; END",
)

#: On PostgreSQL one in so many writes adds the differences up.
ONE_IN = 100


def _postgresql(table: str, counts: str, number: str, *kinds: str) -> tuple[str, ...]:
    """Return how PostgreSQL makes, fills and maintains a table of counts.

    Args:
        table: the table whose rows are counted.
        counts: the table of counts.
        number: its column with the number.
        kinds: the columns whose values are counted separately.
    """
    columns, groups = "".join(f"{it}, " for it in kinds), f"GROUP BY ({', '.join(kinds)})"
    function = f"""
CREATE FUNCTION {counts}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE {counts};
        RETURN NULL;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {counts} SELECT {columns}COUNT(*) FROM added {groups} HAVING COUNT(*) > 0;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO {counts} SELECT {columns}-COUNT(*) FROM gone {groups} HAVING COUNT(*) > 0;
    END IF;
    -- One at a time, so that nobody waits for the rows that another one has deleted.
    IF random() * {ONE_IN} < 1 AND pg_try_advisory_xact_lock(TG_RELID::bigint) THEN
        WITH differences AS (DELETE FROM {counts} RETURNING *)
        INSERT INTO {counts} SELECT {columns}SUM({number}) FROM differences {groups}
        HAVING SUM({number}) <> 0;
    END IF;
    RETURN NULL;
END $$"""
    events = {
        "INSERT": "REFERENCING NEW TABLE AS added",
        "DELETE": "REFERENCING OLD TABLE AS gone",
        "TRUNCATE": "",
    }
    if kinds:  # an update may change them
        events["UPDATE"] = "REFERENCING OLD TABLE AS gone NEW TABLE AS added"
    return (
        f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE",  # nobody writes until all is committed
        f"CREATE TABLE {counts} AS SELECT {columns}COUNT(*) AS {number} FROM {table} {groups}",
        f"ALTER TABLE {counts} REPLICA IDENTITY FULL",  # without it nothing published is deleted
        function,
        *(
            f"CREATE TRIGGER {counts}_{event.lower()} AFTER {event} ON {table} {rows}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {counts}()"
            for event, rows in events.items()
        ),
    )


POSTGRESQL = (
    *_postgresql(JOB, JOBS, "jobs", "status", "type"),
    *_postgresql(LOCK, LOCKS, "locks"),
)


def create_counts(engine: peewee.Database) -> None:
    """Create and fill the tables of counts, and the triggers that maintain them."""
    statements = POSTGRESQL
    if isinstance(engine, peewee.SqliteDatabase):
        for model in (JobCount, LockCount):
            SchemaManager(model, engine).create_all(safe=False)
        statements = SQLITE
    for statement in statements:
        engine.execute_sql(statement)
