"""What a database holds for this service, for those who embed it.

with Store({"DATABASE_URL": "sqlite:///orchmgmt.db"}) as store:
    job_id = store.history.create("PULL", "Consumer", "Consumer", "kelvinInfo")
    store.locks.reserve(job_id, "Provider|kelvinInfo|1.0.0", "Consumer", "2099-01-01T00:00:00Z")
"""

from collections.abc import Callable, Mapping
from time import sleep
from typing import NamedTuple

from orchmgmt.databases import Clock
from orchmgmt.databases.opening import open_database
from orchmgmt.history import History
from orchmgmt.locks import Locks
from orchmgmt.models import READY, Job, Lock, Opening
from orchmgmt.settings import Settings


class Figure(NamedTuple):
    """A number about what this process does, for those who watch it.

    Attributes:
        name: its name, as metrics have it.
        help: what it is, on one line.
        value: returns it.
        counts: whether it only rises.
    """

    name: str
    help: str
    value: Callable[[], float]
    counts: bool = True


class Store:
    """The locks and the history of one database.

    Args:
        settings: settings by name, over those of the environment; or ready settings.
        clock: what returns the present when it is called, in seconds since the epoch: all that this
            store does goes by it, and so does its cleaner, however it jumps. By default the
            machine's clock for SQLite, and the server's for PostgreSQL.
        opening: what may be done to the database so that it can be used; by default it is made when
            it is not there, and upgraded when it is of an earlier version.

    Attributes:
        locks: the locks.
        history: the orchestration jobs.
        figures: what the parts of this process that work on it tell of themselves.

    Raises:
        SettingError: a setting is wrong.
        UnusableDatabase: the database cannot be opened, or is another program's.
    """

    def __init__(
        self,
        settings: Mapping[str, object] | Settings | None = None,
        clock: Clock | None = None,
        opening: Opening = READY,
    ) -> None:
        if not isinstance(settings, Settings):
            settings = Settings.read(settings or {})
        self.settings = settings
        self.clock = clock
        self.database = open_database(
            settings.database_url,
            settings.database_timeout_seconds,
            settings.database_connections,
            opening,
            clock,
        )
        self.locks = Locks(self.database, settings)
        self.history = History(self.database, settings)
        self.figures: list[Figure] = []

    def clean(
        self, moment: str | None = None, pause: Callable[[float], bool | None] = sleep
    ) -> tuple[int, int]:
        """Delete what has served its time, a batch at a time, so that others can write meanwhile.

        Args:
            moment: the DateTime by which it must have; by default the present.
            pause: what to call between two batches: it waits so many seconds, and returns whether
                to leave off.

        Returns:
            How many expired locks, and how many old finished jobs.

        Raises:
            Unavailable: the database does not answer.
        """
        moment = moment or self.now()
        return self.locks.delete_expired(moment, pause), self.history.delete_old(moment, pause)

    def clear(self) -> None:
        """Delete all locks and jobs, all or nothing: for tests. Ids go on from where they were.

        Raises:
            Unavailable: the database does not answer.
        """

        def delete() -> None:
            for model in (Lock, Job):
                self.database.change(self.database.sql(model.delete()))

        self.database.write(delete)

    def now(self) -> str:
        """Return the present second, as a DateTime, by the clock that the database goes by.

        Raises:
            Unavailable: the database does not answer.
        """
        return self.database.read(self.database.now)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
