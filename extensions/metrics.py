"""What `/metrics` tells Prometheus."""

from collections.abc import Iterator
from importlib.metadata import version
from time import perf_counter

from flask import Response, g, request
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

from orchmgmt.app import Service
from orchmgmt.databases.queries import Page
from orchmgmt.errors import Unavailable
from orchmgmt.extensions import Extension
from orchmgmt.models import STATUSES

#: Seconds. Most requests take less than one thousandth; waiting for the database takes seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIRST = Page(0, 1)


class Metrics(Extension, Collector):
    """The metrics of one application, in a registry of its own.

    Requests are counted as they come. Locks, jobs and `Store.figures` are read when somebody asks.
    """

    def __init__(self, service: Service) -> None:
        self._store = service.store
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
        service.watchers.append(self._count)
        service.app.before_request(_begin)
        service.app.after_request(self._end)
        service.app.add_url_rule("/metrics", "metrics.metrics", self._tell)

    def _end(self, response: Response) -> Response:
        operation = request.endpoint or "unknown"
        if request.method == "OPTIONS" and response.status_code < 400:
            operation = "preflight"  # a browser asks first whether it may ask
        self._count(operation, response.status_code, perf_counter() - g.begun)
        return response

    def _count(self, operation: str, status: int, seconds: float) -> None:
        self._requests.labels(operation, str(status)).inc()
        self._seconds.labels(operation).observe(seconds)

    def _tell(self) -> Response:
        return Response(generate_latest(self._registry), content_type=CONTENT_TYPE)

    def describe(self) -> list[Metric]:
        """Return nothing, so that prometheus-client does not ask the database at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return what is counted when somebody asks."""
        contents = self._contents()
        yield GaugeMetricFamily(
            "orchmgmt_database_up", "Whether the database answers and takes writes", bool(contents)
        )
        yield from contents
        for figure in self._store.figures:
            family = CounterMetricFamily if figure.counts else GaugeMetricFamily
            yield family(f"orchmgmt_{figure.name}", figure.help, figure.value())

    def _contents(self) -> list[Metric]:
        jobs = GaugeMetricFamily("orchmgmt_jobs", "Jobs, by status", labels=("status",))
        try:
            self._store.database.check()
            for status in STATUSES:
                count = self._store.job_table.find({"statuses": [status]}, FIRST)[1]
                jobs.add_metric((status,), count)
            count = self._store.lock_table.find({}, FIRST)[1]
        except Unavailable:  # the other metrics matter all the more
            return []
        return [
            GaugeMetricFamily("orchmgmt_active_locks", "Locks that have not expired", count),
            jobs,
        ]


def _begin() -> None:
    g.begun = perf_counter()
