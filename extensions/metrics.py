"""What `/metrics` tells Prometheus. Only imported where the setting `METRICS` is on."""

from collections.abc import Iterator
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, g, request

from orchmgmt.databases.queries import Page
from orchmgmt.errors import Unavailable
from orchmgmt.models import STATUSES
from orchmgmt.serving.cleaner import Cleaner
from orchmgmt.settings import SettingError
from orchmgmt.store import Store

if TYPE_CHECKING:
    from orchmgmt.extensions.registration import Registration  # it needs an extra of its own

try:
    from prometheus_client import (
        CollectorRegistry,
        Counter,
        GCCollector,
        Histogram,
        Info,
        PlatformCollector,
        ProcessCollector,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise SettingError(
        f"ORCHMGMT_METRICS needs prometheus-client ({error}): pip install 'orchmgmt[metrics]'"
    ) from error

#: Seconds; most requests take one to ten thousandths, one that waits for the database some seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST = Page(0, 1)


class Metrics(Collector):
    """The metrics of one application, in a registry of its own.

    Args:
        app: whose requests are counted from now on.
        store: whose locks and jobs are counted when somebody asks.

    Attributes:
        cleaner: whose rounds are told of, once it is set.
        registration: likewise; `None` where this system is not registered.
    """

    def __init__(self, app: Flask, store: Store) -> None:
        self.cleaner: Cleaner | None = None
        self.registration: Registration | None = None
        self._store = store
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "orchmgmt_requests",
            "Requests answered, by operation and HTTP status",
            ("operation", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "orchmgmt_request_seconds",
            "Time from the request's arrival in a thread to its whole answer",
            ("operation",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        build = Info("orchmgmt_build", "The version that runs", registry=self._registry)
        build.info({"version": version("orchmgmt")})
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(self)
        app.before_request(_begin)
        app.after_request(self._end)
        blueprint = Blueprint("metrics", __name__)
        blueprint.add_url_rule("/metrics", "metrics", self._tell)
        app.register_blueprint(blueprint)

    def _end(self, response: Response) -> Response:
        operation = request.endpoint or "unknown"
        if request.endpoint and request.method == "OPTIONS":  # a browser asks whether it may ask
            operation = "preflight"
        self._requests.labels(operation, str(response.status_code)).inc()
        self._seconds.labels(operation).observe(perf_counter() - g.begun)
        return response

    def _tell(self) -> Response:
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE)

    def describe(self) -> list[Metric]:
        """Return nothing: prometheus-client would ask the database when it registers this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return what is counted when somebody asks."""
        contents = self._contents()
        yield GaugeMetricFamily(
            "orchmgmt_database_up", "Whether the database answers and takes writes", bool(contents)
        )
        yield from contents
        if self.cleaner is not None:
            for name, help, value in (
                ("rounds", "Rounds of the cleaner, with those that failed", self.cleaner.rounds),
                ("failures", "Rounds of the cleaner that failed", self.cleaner.failures),
                ("locks_deleted", "Expired locks deleted", self.cleaner.locks),
                ("jobs_deleted", "Old jobs deleted", self.cleaner.jobs),
            ):
                yield CounterMetricFamily(f"orchmgmt_cleaner_{name}", help, value)
        if self.registration is not None:
            yield GaugeMetricFamily(
                "orchmgmt_registered",
                "Whether the last look at the ServiceRegistry found or left all as it should be",
                self.registration.registered,
            )
            yield CounterMetricFamily(
                "orchmgmt_registration_attempts",
                "Looks at the ServiceRegistry, with those that failed",
                self.registration.attempts,
            )
            yield CounterMetricFamily(
                "orchmgmt_registration_failures",
                "Looks at the ServiceRegistry that failed, or that were refused",
                self.registration.failures,
            )

    def _contents(self) -> list[Metric]:
        jobs = GaugeMetricFamily("orchmgmt_jobs", "Jobs, by status", labels=("status",))
        try:
            self._store.database.check()
            for status in STATUSES:
                count = self._store.history.find_rows({"statuses": [status]}, FIRST)[1]
                jobs.add_metric((status,), count)
            count = self._store.locks.find_rows({}, FIRST)[1]
        except Unavailable:  # just then the other metrics are wanted
            return []
        return [
            GaugeMetricFamily("orchmgmt_active_locks", "Locks that have not expired", count),
            jobs,
        ]


def _begin() -> None:
    g.begun = perf_counter()
