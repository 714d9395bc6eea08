"""The plugin for pytest: the service as fixtures, and its requests in the report of a failed test.

pytest imports it in every project where this package is installed, so it must stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from orchmgmt.testing import Service
    from orchmgmt.testing.faults import Faults
    from orchmgmt.testing.requests import Requests

#: A report shows the last so many requests of a service, and so many characters of each.
SHOWN, LONGEST = 50, 2000

STRICT_FAULTS = "orchmgmt_strict_faults"

#: The fixtures that are a service.
SERVICES = ("orchmgmt", "orchmgmt_shared", "orchmgmt_session")


@dataclass
class Watched:
    """A service that has been running during a test.

    Attributes:
        service: the service.
        url: where it was.
        requests: its requests since it was started.
        faults: its faults.
        before: how many requests came before the test.
        new: whether it was started during the test.
    """

    service: Service
    url: str
    requests: Requests
    faults: Faults
    before: int = 0
    new: bool = True


#: The services of the present test, in the order of their start.
watched: list[Watched] = []


def watch(service: Service) -> None:
    """Watch a service that has just been started, whoever has started it."""
    watched.append(Watched(service, service.url, service.requests, service.faults))


@pytest.fixture
def orchmgmt(orchmgmt_factory: Callable[..., Service]) -> Service:
    """An orchmgmt service with default settings and an empty database, for this test alone."""
    return orchmgmt_factory()


@pytest.fixture
def orchmgmt_factory() -> Iterator[Callable[..., Service]]:
    """Start orchmgmt services: `orchmgmt_factory(max_page_size=10)`; they end with the test."""
    with _factory() as start:
        yield start


@pytest.fixture
def orchmgmt_shared(_orchmgmt_shared: Service) -> Iterator[Service]:
    """An orchmgmt service that is reset for each test: its start is paid for once a session."""
    try:
        _orchmgmt_shared.reset()
    except Exception:  # an earlier test has stopped it, or closed its store
        _orchmgmt_shared.stop()
        _orchmgmt_shared.start().reset()
    yield _orchmgmt_shared
    _orchmgmt_shared.check()


@pytest.fixture(scope="session")
def _orchmgmt_shared(orchmgmt_session_factory: Callable[..., Service]) -> Service:
    return orchmgmt_session_factory()


@pytest.fixture(scope="session")
def orchmgmt_session(orchmgmt_session_factory: Callable[..., Service]) -> Service:
    """One orchmgmt service for the session, for fixtures of any scope; only you reset it."""
    return orchmgmt_session_factory()


@pytest.fixture(scope="session")
def orchmgmt_session_factory() -> Iterator[Callable[..., Service]]:
    """Start orchmgmt services for fixtures of any scope; they end with the session."""
    with _factory() as start:
        yield start


@contextmanager
def _factory() -> Iterator[Callable[..., Service]]:
    from orchmgmt.testing import Service

    with ExitStack() as running:
        yield lambda **settings: running.enter_context(Service(**settings))


@pytest.fixture
def orchmgmt_client(request: pytest.FixtureRequest) -> FlaskClient:
    """Flask's test client of the test's orchmgmt service, as an operator."""
    service = _service_of(request)
    if "fs" in request.fixturenames:  # pyfakefs hides the version that Flask's client sends
        request.getfixturevalue("fs").add_package_metadata("werkzeug")
    client = service.app.test_client()
    for name, value in service.headers.items():
        if name != "Content-Type":  # the client knows the body
            client.environ_base[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return client


def _service_of(request: pytest.FixtureRequest) -> Service:
    """Return the service that a test uses, which is one of its fixtures."""
    from orchmgmt.testing import Service

    names = request.fixturenames
    found: list[Service] = [request.getfixturevalue(it) for it in SERVICES if it in names]
    found += [it for it in request.node.funcargs.values() if isinstance(it, Service)]
    services = list(dict.fromkeys(found))
    if len(services) == 1:
        return services[0]
    if services or "orchmgmt_factory" in names or "orchmgmt_session_factory" in names:
        pytest.fail(
            "orchmgmt_client cannot tell which service it belongs to: "
            "write SERVICE.client() or SERVICE.app.test_client() instead",
            pytrace=False,
        )
    service: Service = request.getfixturevalue("orchmgmt")
    return service


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the option of pytest's configuration."""
    help = "fail a test that ends before all faults of its orchmgmt services have happened"
    parser.addini(STRICT_FAULTS, help, type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget the services that have ended, and what the others were asked before this test."""
    watched[:] = [it for it in watched if it.service.is_running]
    for it in watched:
        it.before, it.new, it.faults.excused = it.requests.total, False, False
    names = getattr(item, "fixturenames", [])
    if "orchmgmt_client" in names:  # at the end all services are there
        names.remove("orchmgmt_client")
        names.append("orchmgmt_client")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that overlooks what has ended a request, or a fault that has not happened."""
    try:
        result = yield
        for it in watched:
            it.service.check()
            if it.service.strict_faults or item.config.getini(STRICT_FAULTS):
                _settle(it.faults)
        return result
    except BaseException as error:
        for it in watched:
            it.faults.excused = True
            if not isinstance(error, pytest.skip.Exception):
                _add_failure(error, it.service)
        raise


def _settle(faults: Faults) -> None:
    try:
        faults.settle()
        return
    except AssertionError as error:
        said = str(error)
    pytest.fail(said, pytrace=False)  # the traceback would be ours


def _add_failure(error: BaseException, service: Service) -> None:
    """Say beside what has failed a test what has ended a request meanwhile, if something has."""
    try:
        service.check()
    except RuntimeError as other:
        error.add_note(str(other))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the requests to the report of a test that failed."""
    report = yield
    if report.failed:
        own = [id(it) for it in getattr(item, "funcargs", {}).values()]
        for it in watched:
            said = _said(it)
            if said or it.new or id(it.service) in own:
                report.sections.append((f"requests to orchmgmt ({it.url})", said or "none"))
    return report


def _said(it: Watched) -> str:
    """Return the last requests of the test, whatever state it has left the service in."""
    try:
        came = it.requests.total - it.before
        new = it.requests[-SHOWN:][-came:] if came else []
        lines = [_cut(str(line)) for line in new]
        if came > SHOWN:
            lines.insert(0, f"(the last {len(new)} of {came})")
        # xdist would lose a report that it cannot encode.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()
    except (
        Exception
    ) as error:  # pytest would lose the failed test, and xdist would count it as passed
        return f"they cannot be shown: {error!r}"


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
