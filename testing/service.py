"""One service under test, with everything that a test may do to it."""

from types import TracebackType
from typing import Any

from flask import Flask

from orchmgmt.app import create_app, store_of
from orchmgmt.entries import Job, Lock, all_of
from orchmgmt.models import FINISHED, PENDING
from orchmgmt.settings import SettingError, Settings
from orchmgmt.store import Store
from orchmgmt.testing.clock import Clock
from orchmgmt.testing.faults import Faults
from orchmgmt.testing.identity import operator_headers
from orchmgmt.testing.server import Server
from orchmgmt.testing.wire import Request, Wire

DEFAULTS = {"database_url": "sqlite:///:memory:", "port": 0}


class Service:
    """The service on a free port of this machine, in threads of the test.

    The environment does not matter. As a context manager it is started and stopped with its block.

    Args:
        strict: whether payload keys that the contract does not name are refused, as the setting
            `unknown_keys="refuse"` has it: a misspelt filter then fails.
        settings: settings by their names in lower case; the database is in memory, and the port
            a free one, unless they say otherwise.

    Attributes:
        settings: all settings.
        clock: the time that the service goes by.

    Raises:
        SettingError: a setting is wrong, or is none.
    """

    def __init__(self, *, strict: bool = False, **settings: object) -> None:
        self.settings = Settings.read(
            DEFAULTS, {"unknown_keys": "refuse" if strict else None}, settings, environ={}
        )
        if self.settings.unix_socket:
            raise SettingError("A service under test has an address, and no Unix socket")
        self.clock = Clock()
        self._server: Server | None = None
        self._headers: dict[str, str] = {}

    def start(self) -> "Service":
        """Serve from now on; return this service.

        Raises:
            SettingError: a setting needs another, or a package that is missing.
            UnusableDatabase: the database cannot be opened.
            OSError: the address cannot be listened on.
            RuntimeError: it has been started already.
        """
        if self._server:
            raise RuntimeError("The service has been started already")
        app = create_app(self.settings, self.clock)
        try:
            wire = Wire(app)
            self._server = Server(app, self.settings.host, self.settings.port)
        except BaseException:
            store_of(app).close()
            raise
        self._app, self._wire = app, wire
        return self

    def stop(self) -> None:
        """Drop what is under way and free everything; the log of requests stays.

        In a fork of the process that started it, the service itself goes on.

        Raises:
            RuntimeError: a request has ended with `SystemExit`, `pytest.fail()` or the like, which
                nobody has seen yet.
        """
        server = self._server
        if not server:
            return
        if server.elsewhere:
            # What its threads hold, and the database's connections, are not ours to end.
            server.stop()
            self._server = None
            return
        self._wire.cut()
        server.stop()
        self.store.close()
        self._server = None
        _raise_failure(server)

    def check(self) -> None:
        """Raise what has ended a request in the service's threads, where no test sees it.

        Raises:
            RuntimeError: as `stop`.
        """
        if self._server:
            _raise_failure(self._server)

    def __enter__(self) -> "Service":
        return self if self._server else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the service is: `http://127.0.0.1:PORT`."""
        return self._started().url

    @property
    def headers(self) -> dict[str, str]:
        """What an operator sends with a request, ready for any HTTP client.

        Raises:
            SettingError: under the policy `outsourced` only the identity service gives a token.
        """
        if not self._headers:
            self._headers = {
                **operator_headers(self.settings),
                "Content-Type": "application/json",
            }
        return dict(self._headers)

    @property
    def app(self) -> Flask:
        """The application, for Flask's test client; faults happen and requests are logged there."""
        self._running()
        return self._app

    @property
    def store(self) -> Store:
        """The locks and the history, for all that this class has no method for."""
        self._running()
        return store_of(self._app)

    @property
    def faults(self) -> Faults:
        """What shall go wrong."""
        self._running()
        return self._wire.faults

    @property
    def requests(self) -> list[Request]:
        """The requests since the start or the last `reset`, those without an answer too."""
        return self._wire.requests

    def down(self) -> None:
        """Drop all connections and refuse new ones, until `up`."""
        server = self._running()
        self._wire.cut()
        server.down()

    def up(self) -> None:
        """Serve again, on the same port and with the same data."""
        server = self._running()
        self._wire.mend()
        server.up()

    def reset(self) -> None:
        """Make data, clock, faults and requests as new; a service that is down comes up."""
        self._running()
        self.faults.clear()
        self._wire.cut()
        self.up()
        self.store.clear()
        self.clock.reset()
        self.requests.clear()

    def clean(self) -> tuple[int, int]:
        """Delete expired locks and old jobs by the service's clock, as a server does now and then.

        Returns:
            How many locks, and how many jobs.
        """
        self._running()
        return self.store.clean()

    def add_lock(
        self,
        service_instance_id: str,
        owner: str = "Owner",
        expires_in: float = 3600,
        temporary: bool = False,
        orchestration_job_id: str = "",
    ) -> Lock:
        """Put in a lock, as it might have been left by others.

        Args:
            service_instance_id: `SystemName|ServiceName|Version`.
            owner: the system that holds it.
            expires_in: seconds from the present; it lives at least so long. A negative number makes
                a lock that has expired.
            temporary: whether a job holds it.
            orchestration_job_id: that job.

        Raises:
            InvalidParameter: a value is malformed, or the instance is held (`AlreadyLocked`).
            ValueError: `expires_in` is no number of seconds, or a moment that no clock has.
        """
        values = (service_instance_id, owner, expires_in, temporary, orchestration_job_id)
        return self.store.locks.add([self.new_lock(*values)])[0]

    def new_lock(
        self,
        service_instance_id: str,
        owner: str,
        expires_in: float,
        temporary: bool,
        orchestration_job_id: str,
    ) -> Lock:
        """Return what `add_lock` puts in."""
        return Lock(
            service_instance_id=service_instance_id,
            owner=owner,
            expires_at=self.clock.after(expires_in),
            temporary=temporary,
            orchestration_job_id=orchestration_job_id,
        )

    def add_job(
        self,
        status: str = PENDING,
        type: str = "PULL",
        age: float = 0,
        requester_system: str = "Requester",
        target_system: str = "",
        service_definition: str = "service",
        subscription_id: str = "",
        message: str = "",
    ) -> Job:
        """Put in a job, as it might have been left by an orchestrator.

        Args:
            status: `PENDING`, `IN_PROGRESS`, `DONE` or `ERROR`.
            type: `PULL` or `PUSH`.
            age: how many seconds ago it was created and, as far as it got, started and finished.
            requester_system: the system that asked.
            target_system: the system that the result is for; the requester by default.
            service_definition: the service that is looked for.
            subscription_id: the UUID of the subscription that triggered it, if one did.
            message: free text.

        Raises:
            InvalidParameter: a value is malformed.
            ValueError: `age` is no number of seconds, or a moment that no clock has.
        """
        systems = (requester_system, target_system)
        values = (status, type, age, *systems, service_definition, subscription_id, message)
        return self.store.history.add([self.new_job(*values)])[0]

    def new_job(
        self,
        status: str,
        type: str,
        age: float,
        requester_system: str,
        target_system: str,
        service_definition: str,
        subscription_id: str,
        message: str,
    ) -> Job:
        """Return what `add_job` puts in."""
        then = self.clock.ago(age)
        status = str(status).strip().upper()
        return Job(
            status=status,
            type=type,
            requester_system=requester_system,
            target_system=target_system or requester_system,
            service_definition=service_definition,
            subscription_id=subscription_id,
            message=message,
            created_at=then,
            started_at=None if status == PENDING else then,
            finished_at=then if status in FINISHED else None,
        )

    def locks(self, **filters: Any) -> list[Lock]:
        """Return the active locks, or those that match, the oldest first.

        Args:
            filters: as lock query has them, in Python's letter case: `owners=["BoilerControl"]`;
                a time may be a datetime.

        Raises:
            InvalidParameter: a value is malformed, or a filter is none that there is.
        """
        return all_of(self.store.locks.find, **filters)

    def jobs(self, **filters: Any) -> list[Job]:
        """Return the jobs, or those that match, the oldest first.

        Args:
            filters: as history query has them, in Python's letter case: `statuses=["ERROR"]`.

        Raises:
            InvalidParameter: a value is malformed, or a filter is none that there is.
        """
        return all_of(self.store.history.find, **filters)

    def _started(self) -> Server:
        if not self._server:
            raise RuntimeError("The service has not been started: use `with`, or `start()`")
        return self._server

    def _running(self) -> Server:
        server = self._started()
        if server.elsewhere:
            raise RuntimeError("The service runs in the process that started it: ask it at its url")
        return server


def _raise_failure(server: Server) -> None:
    if server.failures:
        failure = server.failures[0]
        server.failures.clear()
        said = f"{type(failure).__name__}: {failure}"
        raise RuntimeError(f"A request has ended with {said}") from failure
