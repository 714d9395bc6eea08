"""The plugin for pytest: the service as fixtures, and its requests in the report of a failed test.

pytest imports it in every project where this package is installed, so it must stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flask.testing import FlaskClient

    from orchmgmt.testing import Service

#: The services of a test, and how many requests each had when the test got it.
SERVICES = pytest.StashKey["list[tuple[str, Service]]"]()

#: A report shows the last so many requests of a service, and so many characters of each.
SHOWN, LONGEST = 50, 2000


@pytest.fixture
def orchmgmt(orchmgmt_factory: Callable[..., Service]) -> Service:
    """An orchmgmt service with default settings and an empty database, for this test alone."""
    return orchmgmt_factory()


@pytest.fixture
def orchmgmt_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., Service]]:
    """Start orchmgmt services: `orchmgmt_factory(max_page_size=10)`; they end with the test."""
    from orchmgmt.testing import Service

    with ExitStack() as running:

        def start(**settings: Any) -> Service:
            service = running.enter_context(Service(**settings))
            _show(request, service)
            return service

        yield start


@pytest.fixture
def orchmgmt_shared(
    request: pytest.FixtureRequest, _orchmgmt_session: Service
) -> Iterator[Service]:
    """The session's orchmgmt service, reset for this test: its start is paid for once."""
    try:
        _orchmgmt_session.reset()
    except Exception:  # an earlier test has stopped it, or closed its store
        _orchmgmt_session.stop()
        _orchmgmt_session.start().reset()
    _show(request, _orchmgmt_session)
    yield _orchmgmt_session
    _orchmgmt_session.check()


@pytest.fixture(scope="session")
def _orchmgmt_session() -> Iterator[Service]:
    from orchmgmt.testing import Service

    with Service() as service:
        yield service


@pytest.fixture
def orchmgmt_client(request: pytest.FixtureRequest, orchmgmt: Service) -> FlaskClient:
    """Flask's test client of the service `orchmgmt`, an operator unless told otherwise."""
    if "fs" in request.fixturenames:  # pyfakefs hides the version that Flask's client sends
        request.getfixturevalue("fs").add_package_metadata("werkzeug")
    client = orchmgmt.app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = orchmgmt.headers["Authorization"]
    return client


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Add the requests to the report of a test that failed."""
    report: pytest.TestReport = (yield).get_result()
    if not report.failed:
        return
    for url, service in item.stash.get(SERVICES, []):
        report.sections.append((f"requests to orchmgmt ({url})", _said(service)))


def _said(service: Service) -> str:
    """Return the last requests of a service, whatever state the test has left it in."""
    try:
        lines = [_cut(str(it)) for it in service.requests[-SHOWN:]] or ["none"]
        # xdist would lose a report that it cannot encode.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()
    except (
        Exception
    ) as error:  # pytest would lose the failed test, and xdist would count it as passed
        return f"they cannot be shown: {error!r}"


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _show(request: pytest.FixtureRequest, service: Service) -> None:
    request.node.stash.setdefault(SERVICES, []).append((service.url, service))
