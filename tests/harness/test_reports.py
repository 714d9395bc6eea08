"""`orchmgmt.testing`: a red test is never green, and its report shows the requests."""

import re

import pytest
from projects import pytest_in

pytestmark = pytest.mark.sqlite

BOTH = pytest.mark.parametrize("processes", [[], ["-n2"]], ids=["plain", "xdist"])


def sections(said):
    """The requests in each failed test's report, by the test's name."""
    found = {}
    for part in re.split(r"^_{3,} (?=\S.* _{3,}$)", said, flags=re.MULTILINE)[1:]:
        shown = re.findall(
            r"^-+ requests to orchmgmt \(http://\S+\) -+\n((?:(?!---|===|\[gw).*\n)*)",
            part,
            re.MULTILINE,
        )
        found[part.split(" ___")[0]] = shown
    return found


@BOTH
def test_a_report_shows_every_service_of_the_test(tmp_path, processes):
    said = pytest_in(
        tmp_path,
        *processes,
        test_it="""
        import unittest
        from urllib.request import urlopen
        import pytest
        from orchmgmt.testing import Service

        def ask(service, path):
            with pytest.raises(OSError):
                urlopen(service.url + path)

        @pytest.fixture(scope="module")
        def of_module():
            with Service() as service:
                yield service

        @pytest.fixture
        def of_test():
            with Service() as service:
                ask(service, "/set-up")
                yield service

        def test_before(of_module):
            ask(of_module, "/before")

        def test_module(of_module):
            ask(of_module, "/now")
            assert False

        def test_own(of_test):
            assert False

        def test_with():
            with Service() as service:
                ask(service, "/within")
                assert False

        def helper():
            with Service() as service:
                ask(service, "/helper")

        def test_forgotten():
            helper()
            assert False

        def test_again():
            service = Service()
            for path in "/first", "/second":
                with service:
                    ask(service, path)
            assert False

        def test_session(orchmgmt_session):
            ask(orchmgmt_session, "/session")
            orchmgmt_session.reset()
            ask(orchmgmt_session, "/reset")
            assert False

        class Boilers(unittest.TestCase):
            def setUp(self):
                self.service = Service().start()
                self.addCleanup(self.service.stop)

            def test_unittest(self):
                ask(self.service, "/unittest")
                self.fail()

        def test_unasked(of_module):
            assert False

        def test_without():
            assert False
        """,
    )
    assert "9 failed, 1 passed" in said, said
    shown = {
        name: re.findall(r"404 GET (/\S+):", "".join(it)) for name, it in sections(said).items()
    }
    assert shown == {
        "test_module": ["/now"],
        "test_own": ["/set-up"],
        "test_with": ["/within"],
        "test_forgotten": ["/helper"],
        "test_again": ["/first", "/second"],
        "test_session": ["/reset"],
        "Boilers.test_unittest": ["/unittest"],
        "test_unasked": [],
        "test_without": [],
    }, said
    assert sections(said)["test_unasked"] == ["none\n"]
    assert sections(said)["test_without"] == []


@BOTH
def test_strict_faults_fail_the_test_that_leaves_them(tmp_path, processes):
    project = """
        import unittest
        import pytest
        from orchmgmt.testing import Service

        def test_fixture(orchmgmt):
            orchmgmt.faults.next(status=503)

        def test_shared(orchmgmt_shared):
            orchmgmt_shared.faults.always(status=503)

        def test_with():
            with Service() as service:
                service.faults.next(drop="after")

        def test_session(orchmgmt_session):
            orchmgmt_session.faults.next(status=500)

        def test_session_after(orchmgmt_session):
            assert orchmgmt_session.faults.unused() == []

        class Boilers(unittest.TestCase):
            def test_unittest(self):
                service = Service().start()
                self.addCleanup(service.stop)
                service.faults.next(status=503)

        def test_used(orchmgmt):
            orchmgmt.faults.next(status=503)
            orchmgmt.app.test_client().get("/nowhere")

        def test_red_already(orchmgmt_factory):
            orchmgmt_factory(strict_faults=True).faults.next(status=503)
            assert False, "for another reason"

        def test_skipped(orchmgmt_factory):
            orchmgmt_factory(strict_faults=True).faults.next(status=503)
            pytest.skip()

        @pytest.fixture(scope="module")
        def strict():
            with Service(strict_faults=True) as service:
                yield service

        def test_own(strict):
            strict.faults.next(status=503)

        def test_own_after(strict):
            strict.faults.next(status=503)
            strict.app.test_client().get("/nowhere")
        """
    option = ["-o", "orchmgmt_strict_faults=true"]
    said = pytest_in(tmp_path, *processes, *option, test_it=project)
    assert re.search("7 failed, 3 passed, 1 skipped in", said), said
    assert said.count("\nFaults that have not happened: next(") == 5
    assert "AssertionError: for another reason" in said
    if not processes:
        said = pytest_in(tmp_path, test_it=project)
        assert re.search("3 failed, 7 passed, 1 skipped in", said), said


@BOTH
def test_what_ends_a_request_fails_the_test_in_which_it_did(tmp_path, processes):
    said = pytest_in(
        tmp_path,
        *processes,
        test_it="""
        from contextlib import suppress
        from urllib.request import urlopen
        import pytest

        def ask(service):
            service.faults.next(status=503, when=lambda it: it.nothing)
            with suppress(OSError):
                urlopen(service.url + "/nowhere")

        def test_broken(orchmgmt_session):
            ask(orchmgmt_session)

        def test_broken_and_red(orchmgmt_session):
            ask(orchmgmt_session)
            assert False, "red"

        def test_passes(orchmgmt_session):
            pass
        """,
    )
    assert "2 failed, 1 passed in" in said, said
    assert "E       AssertionError: red" in said
    assert said.count("A request has ended with BrokenFault: `when` of next(") >= 2


def test_a_report_says_why_a_request_was_refused(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        from urllib.request import Request, urlopen

        def test_misspelt(orchmgmt):
            path = "/serviceorchestration/orchestration/mgmt/lock/create"
            urlopen(Request(orchmgmt.url + path, b'{"lock": []}', orchmgmt.headers))

        def test_by_a_fault(orchmgmt):
            orchmgmt.faults.next(status=500, body={"errorMessage": ["busy"]})
            urlopen(orchmgmt.url + "/nowhere")
        """,
    )
    ((misspelt,), (by_a_fault,)) = sections(said).values()
    assert misspelt.endswith(' from Sysop {"lock": []}: Request payload is empty\n'), said
    assert by_a_fault.startswith("500 GET /nowhere, met next("), said


def test_a_report_says_how_many_requests_it_leaves_out(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        def ask(service, times):
            for number in range(times):
                service.app.test_client().get(f"/{number}")

        def test_many(orchmgmt):
            ask(orchmgmt, 51)
            assert False

        def test_few(orchmgmt):
            ask(orchmgmt, 50)
            assert False
        """,
    )
    ((many,), (few,)) = sections(said).values()
    assert many.startswith("(the last 50 of 51)\n404 GET /1:"), said
    assert many.count("\n") == 51
    assert few.startswith("404 GET /0:"), said


def test_a_report_of_a_wrong_argument_shows_the_test_and_not_the_harness(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        def test_fault(orchmgmt):
            orchmgmt.faults.next(stauts=503)

        def test_delay(orchmgmt):
            orchmgmt.faults.always(delay="1")

        def test_operation(orchmgmt):
            orchmgmt.requests.of("create")

        def test_clock(orchmgmt):
            orchmgmt.clock.advance("1")

        def test_stopped(orchmgmt):
            orchmgmt.stop()
            orchmgmt.locks()
        """,
    )
    assert "5 failed in" in said, said
    assert re.findall(r"^(\S+\.py):\d+: \w+$", said, re.MULTILINE) == ["test_it.py"] * 5, said
