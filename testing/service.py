"""One service under test, with everything that a test may do to it."""

import sys
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flask import Flask

from orchmgmt.app import create_app, service_of, store_of
from orchmgmt.entries import Job, Lock, all_of
from orchmgmt.models import FINISHED, PENDING
from orchmgmt.policies import authentication_policy
from orchmgmt.settings import OPERATOR_NAME, SettingError, Settings
from orchmgmt.store import Store
from orchmgmt.testing.clock import Clock, moment_of
from orchmgmt.testing.faults import Faults
from orchmgmt.testing.identity import headers_of
from orchmgmt.testing.requests import Requests
from orchmgmt.testing.server import TICK, Server
from orchmgmt.testing.wire import Wire
from orchmgmt.values import meant

if TYPE_CHECKING:
    import ssl

    from orchmgmt.client import Client
    from orchmgmt.testing.cloud import Authorization, Identity, StandIn
    from orchmgmt.testing.tls import Authority, CertificateFiles

#: pytest leaves the frames of this module out of tracebacks, and shows who has called it.
__tracebackhide__ = True

#: How long the broker may take until requests can come over it, in seconds.
PATIENCE = 10.0

DEFAULTS = {"database_url": "sqlite:///:memory:", "port": 0}

#: What `Service` takes beside the settings.
OPTIONS = ("strict", "strict_faults", "mqtt", "tls")

#: The plugin for pytest. Where pytest has imported it, it watches the services.
PLUGIN = "pytest_orchmgmt"

NOT_RUNNING = "The service is not running: use `with`, or `start()`"

#: Seconds that a lock lasts, unless a test says how long.
AN_HOUR = 3600


class Service:
    """The service on a free port of this machine, in threads of the test.

    The environment does not matter. As a context manager it is started and stopped with its block.

    Args:
        strict: whether payload keys that the contract does not name are refused, as the setting
            `unknown_keys="refuse"` has it: a misspelt filter then fails.
        strict_faults: whether a fault that has not happened is an error when the test or the
            service ends, as `faults.assert_all_used()` raises it.
        mqtt: the URL of a broker over which requests come too, as the setting `mqtt_url` has it.
        tls: whether it speaks TLS, under the policy `certificate` mutual TLS (extra `testing-tls`).
        settings: settings by their names in lower case; the database is in memory, and the port
            a free one, unless they say otherwise.

    Attributes:
        settings: all settings.
        strict_faults: as given.
        clock: the time that the service goes by.

    Raises:
        SettingError: a setting is wrong, or is none.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        strict_faults: bool = False,
        mqtt: str | None = None,
        tls: bool = False,
        **settings: object,
    ) -> None:
        for name in settings.keys() - {it.name for it in fields(Settings)}:
            if hint := meant(name, OPTIONS):
                raise SettingError(f"{name} is not a setting{hint}")
        given = {"unknown_keys": "refuse" if strict else None, "mqtt_url": mqtt}
        self.settings = Settings.read(DEFAULTS, given, settings, environ={})
        if self.settings.unix_socket:
            raise SettingError("A service under test has an address, and no Unix socket")
        self._asked = self.settings
        # Otherwise a token that a test revokes would be good for seconds.
        self._cache = settings.get("identity_cache_seconds")
        self.strict_faults = strict_faults
        self.tls = tls
        self.clock = Clock()
        self._server: Server | None = None
        self._wire: Wire | None = None
        self._headers: dict[str, str] = {}
        self._identity: Identity | None = None
        self._authorization: Authorization | None = None

    def start(self) -> "Service":
        """Serve from now on; return this service.

        Raises:
            SettingError: a setting needs another, or a package that is missing.
            UnusableDatabase: the database cannot be opened.
            OSError: the address cannot be listened on.
            RuntimeError: it has been started already, or the broker cannot be reached.
        """
        if self._server:
            raise RuntimeError("The service has been started already")
        with ExitStack() as if_it_fails:
            if_it_fails.callback(self._stop_stand_ins)
            self._start_stand_ins()
            app = create_app(self.settings, self.clock)
            if_it_fails.callback(store_of(app).close)
            if self._authorization:
                scopes = dict.fromkeys(it.scope for it in service_of(app).operations)
                self._authorization.scopes = list(scopes)
            wire = Wire(app)
            self._server = self._serve(app)
            if_it_fails.pop_all()
        self._app, self._wire = app, wire
        self._extensions = service_of(app).extensions
        for it in self._extensions:
            it.start(self._server.url)
        deadline = time.monotonic() + PATIENCE
        while not all(it.ready() for it in self._extensions):
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("The MQTT broker cannot be reached; the log says why")
            time.sleep(TICK)
        if plugin := sys.modules.get(PLUGIN):
            plugin.watch(self)
        return self

    def stop(self) -> None:
        """Drop what is under way and free everything; faults and the log of requests stay.

        In a fork of the process that started it, the service itself goes on.

        Raises:
            RuntimeError: a request has ended with `SystemExit`, `pytest.fail()` or the like, which
                nobody has seen yet.
            AssertionError: `strict_faults` is set, and a fault has not happened.
        """
        server = self._server
        if not server:
            return
        wire = self._served()
        if server.elsewhere:
            # What its threads hold, and the database's connections, are not ours to end.
            server.stop()
            self._stop_stand_ins()
            self._server = None
            return
        for it in reversed(self._extensions):
            it.stop()
        wire.cut()
        self._stop_stand_ins()  # before the server, whose threads may wait for them
        server.stop()
        self.store.close()
        self._server = None
        _raise_failure(server)
        if self.strict_faults:
            wire.faults.settle()

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
        if error and self._wire:
            self._wire.faults.excused = True
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and not stopped. One that is `down` runs too."""
        return self._server is not None

    @property
    def url(self) -> str:
        """Where the service is: `http://127.0.0.1:PORT`, or `https://...`."""
        return self._started().url

    @property
    def headers(self) -> dict[str, str]:
        """What an operator sends with a request, ready for any HTTP client.

        Raises:
            SettingError: the policy is `outsourced`, with an identity service of your own.
        """
        if not self._headers:
            self._headers = self.headers_of(OPERATOR_NAME, operator=True)
        return dict(self._headers)

    def headers_of(self, name: str, operator: bool = False) -> dict[str, str]:
        """Return what a system sends with a request, as a proxy hands it on.

        With `tls=True`, the certificate of the connection counts, and not the one in a header.

        Args:
            name: the SystemName.
            operator: whether it is an operator. Under the policy `declared` only `Sysop` is.

        Raises:
            SettingError: the policy is `outsourced`, with an identity service of your own.
            ValueError: the policy knows no such operator.
        """
        identity = self.identity if self._identity else None
        proof = headers_of(self.settings, name, operator, identity)
        return {**proof, "Content-Type": "application/json"}

    @property
    def ca_file(self) -> str:
        """The PEM file of the authority that has signed the service's certificate."""
        return self._authority().ca_file

    def ssl_context(self, certificate: "CertificateFiles | None" = None) -> "ssl.SSLContext":
        """Return what a client needs for TLS with the service.

        Args:
            certificate: what the client shows, as `certificate` returns it.

        Raises:
            SettingError: a package is missing.
        """
        return self._authority().client_context(certificate)

    def certificate(
        self,
        name: str,
        operator: bool = False,
        *,
        cloud: str | None = None,
        profile: str | None = None,
        expired: bool = False,
        foreign: bool = False,
    ) -> "CertificateFiles":
        """Return the files of a new client certificate and its key.

        Args:
            name: the SystemName.
            operator: whether it is an operator's.
            cloud: `<cloud>.<organisation>`, by default the one of the settings.
            profile: the DN qualifier, by default `op` of an operator and `sy` of a system.
            expired: whether it is valid no longer.
            foreign: whether an authority has signed it that the service does not trust.

        Raises:
            SettingError: a package is missing.
        """
        cloud = self.settings.cloud if cloud is None else cloud
        return self._authority(foreign).certificate(name, operator, cloud, profile, expired)

    @property
    def identity(self) -> "Identity":
        """The stand-in of the Authentication system.

        Raises:
            SettingError: there is none.
        """
        if not self._identity:
            raise SettingError(
                'A running service with authentication_policy="outsourced" and without an '
                "identity_url has a stand-in of the Authentication system"
            )
        self._running()
        return self._identity

    @property
    def authorization(self) -> "Authorization":
        """The stand-in of ConsumerAuthorization.

        Raises:
            SettingError: there is none.
        """
        if not self._authorization:
            raise SettingError(
                'A running service with management_policy="authorization" and without an '
                "authorization_url has a stand-in of ConsumerAuthorization"
            )
        self._running()
        return self._authorization

    def client(self, **options: Any) -> "Client":
        """Return a client of this service, which is an operator unless told otherwise.

        Args:
            options: as `orchmgmt.client.Client` takes them: `name="RoomClimate"`, `retries=0`.

        Raises:
            SettingError: only the policy `declared` takes a name as proof. Under another one, give
                the `token` or the `certificate`.
        """
        from orchmgmt.client import Client

        if self.tls:
            options.setdefault("ca", self.ca_file)
        if not options.keys() & {"name", "token", "certificate"}:
            options |= self._operator()
        return Client(self.url, **options)

    def _operator(self) -> dict[str, Any]:
        """Return by which arguments a client is an operator."""
        policy = authentication_policy(self.settings)
        if policy.reads_certificate and self.tls:
            return {"certificate": self.certificate(OPERATOR_NAME, operator=True)}
        if self._identity:
            return {"token": self._operators_token}
        if policy.verifies:
            other = "use tls=True" if policy.reads_certificate else "give a token"
            raise SettingError(
                "The harness has no operator's client under the policy "
                f"`{self.settings.authentication_policy}`: {other}"
            )
        return {"name": OPERATOR_NAME}

    def _operators_token(self, refused: str | None) -> str:
        if refused and self.headers["Authorization"].endswith(refused):
            self._headers = {}
        return self.headers["Authorization"].rpartition("//")[2]

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
        if self._server:
            self._running()
        return self._served().faults

    @property
    def requests(self) -> Requests:
        """The requests since the start or the last `reset`, those without an answer too."""
        return self._served().requests

    def down(self) -> None:
        """Drop all connections and refuse new ones, until `up`."""
        server = self._running()
        self._served().cut()
        server.down()

    def up(self) -> None:
        """Serve again, on the same port and with the same data."""
        server = self._running()
        self._served().mend()
        server.up()

    def reset(self) -> None:
        """Make data, clock, faults and requests as new; a service that is down comes up."""
        self._running()
        for stand_in in self._stand_ins():
            stand_in.reset()
        if self._identity:
            self._headers = {}  # the operator's token is forgotten too
        self.faults.clear()
        self._served().cut()
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
        expires_in: float | timedelta | None = None,
        temporary: bool = False,
        orchestration_job_id: str = "",
        expires_at: datetime | str | None = None,
    ) -> Lock:
        """Put in a lock, as it might have been left by others.

        Args:
            service_instance_id: `SystemName|ServiceName|Version`.
            owner: the system that holds it.
            expires_in: seconds from the present, or a timedelta; it lives at least so long, an hour
                by default. A negative one makes a lock that has expired.
            temporary: whether a job holds it.
            orchestration_job_id: that job.
            expires_at: when it expires, instead of `expires_in`: a time with a zone, or a DateTime.

        Raises:
            InvalidParameter: a value is malformed, or the instance is held (`AlreadyLocked`).
            ValueError: there are two ends, one is malformed, or no clock has it.
        """
        values = (service_instance_id, owner, expires_in, temporary, orchestration_job_id)
        return self.store.locks.add([self.new_lock(*values, expires_at)])[0]

    def new_lock(
        self,
        service_instance_id: str,
        owner: str,
        expires_in: float | timedelta | None,
        temporary: bool,
        orchestration_job_id: str,
        expires_at: datetime | str | None,
    ) -> Lock:
        """Return what `add_lock` puts in."""
        if expires_at is not None and expires_in is not None:
            raise ValueError("expires_in and expires_at do not go together")
        if expires_at is None:
            end = self.clock.after(AN_HOUR if expires_in is None else expires_in)
        else:
            end = moment_of(expires_at)
        return Lock(
            service_instance_id=service_instance_id,
            owner=owner,
            expires_at=end,
            temporary=temporary,
            orchestration_job_id=orchestration_job_id,
        )

    def add_job(
        self,
        status: str = PENDING,
        type: str = "PULL",
        age: float | timedelta | None = None,
        requester_system: str = "Requester",
        target_system: str = "",
        service_definition: str = "service",
        subscription_id: str = "",
        message: str = "",
        created_at: datetime | str | None = None,
        started_at: datetime | str | None = None,
        finished_at: datetime | str | None = None,
    ) -> Job:
        """Put in a job, as it might have been left by an orchestrator.

        A time is one with a zone, or a DateTime. As far as the job got, each time that is not given
        is that of the step before; its creation is that of the step after, or the present.

        Args:
            status: `PENDING`, `IN_PROGRESS`, `DONE` or `ERROR`.
            type: `PULL` or `PUSH`.
            age: how many seconds ago it was created, or a timedelta; instead of `created_at`.
            requester_system: the system that asked.
            target_system: the system that the result is for; the requester by default.
            service_definition: the service that is looked for.
            subscription_id: the UUID of the subscription that triggered it, if one did.
            message: free text.
            created_at: when it was created.
            started_at: when it was started.
            finished_at: when it was finished.

        Raises:
            InvalidParameter: a value is malformed.
            ValueError: a time or `age` is malformed or does not go with the others, or no clock
                has it.
        """
        systems = (requester_system, target_system)
        values = (status, type, age, *systems, service_definition, subscription_id, message)
        times = (created_at, started_at, finished_at)
        return self.store.history.add([self.new_job(*values, *times)])[0]

    def new_job(
        self,
        status: str,
        type: str,
        age: float | timedelta | None,
        requester_system: str,
        target_system: str,
        service_definition: str,
        subscription_id: str,
        message: str,
        created_at: datetime | str | None,
        started_at: datetime | str | None,
        finished_at: datetime | str | None,
    ) -> Job:
        """Return what `add_job` puts in."""
        status = str(status).strip().upper()
        if age is not None and created_at:
            raise ValueError("age and created_at do not go together")
        if status == PENDING and (started_at or finished_at):
            raise ValueError("A job that is PENDING has neither started nor finished")
        if status not in FINISHED and finished_at:
            raise ValueError(f"A job that is {status} has not finished")
        given = (created_at, started_at, finished_at)
        created, started, finished = (moment_of(it) if it else None for it in given)
        if not created:
            earliest = started or finished
            created = earliest if earliest and age is None else self.clock.ago(age or 0)
        if status != PENDING:
            started = started or created
        if status in FINISHED:
            finished = finished or started
        times = [it for it in (created, started, finished) if it]
        if times != sorted(times):
            raise ValueError("A job is created, then started, then finished")
        return Job(
            status=status,
            type=type,
            requester_system=requester_system,
            target_system=target_system or requester_system,
            service_definition=service_definition,
            subscription_id=subscription_id,
            message=message,
            created_at=created,
            started_at=started,
            finished_at=finished,
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

    def __repr__(self) -> str:
        if not self._server:
            return "<Service, not running>"
        return f"<Service at {self.url}, {len(self.requests)} requests>"

    def _authority(self, foreign: bool = False) -> "Authority":
        try:
            from orchmgmt.testing import tls
        except ImportError as error:
            raise SettingError(
                f"certificates need {error.name}: pip install 'orchmgmt[testing-tls]'"
            ) from error
        return tls.foreign_authority() if foreign else tls.authority()

    def _serve(self, app: Flask) -> Server:
        settings = self.settings
        if not self.tls:
            return Server(app, settings.host, settings.port)
        mutual = authentication_policy(settings).reads_certificate
        context = self._authority().server_context(settings.host, mutual)
        header = settings.client_certificate_header if mutual else ""
        return Server(app, settings.host, settings.port, context, header)

    def _start_stand_ins(self) -> None:
        """Start what the policies ask and the settings do not say where it is."""
        self.settings = settings = self._asked
        self._headers = {}
        if settings.authentication_policy == "outsourced" and not settings.identity_url:
            from orchmgmt.testing.cloud import PASSWORD, Identity

            if not (settings.system_password or settings.system_password_file):
                settings = replace(settings, system_password=PASSWORD)
            if self._cache is None:
                settings = replace(settings, identity_cache_seconds=0.0)
            self._identity = Identity(settings)
            settings = replace(settings, identity_url=self._identity.url)
        if settings.management_policy == "authorization" and not settings.authorization_url:
            from orchmgmt.testing.cloud import Authorization

            if authentication_policy(settings).reads_certificate and not settings.certificate_file:
                certificate, key = self.certificate(settings.own_name)
                settings = replace(settings, certificate_file=certificate, key_file=key)
            self._authorization = Authorization(settings, self._identity)
            settings = replace(settings, authorization_url=self._authorization.url)
        self.settings = settings

    def _stop_stand_ins(self) -> None:
        for stand_in in self._stand_ins():
            stand_in.stop()
        self._identity = self._authorization = None

    def _stand_ins(self) -> "list[StandIn]":
        return [it for it in (self._identity, self._authorization) if it]

    def _started(self) -> Server:
        if not self._server:
            raise RuntimeError(NOT_RUNNING)
        return self._server

    def _served(self) -> Wire:
        """What it serves, or has served."""
        if not self._wire:
            raise RuntimeError(NOT_RUNNING)
        return self._wire

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
