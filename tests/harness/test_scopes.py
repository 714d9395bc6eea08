"""`orchmgmt.testing`: the fixtures, each in its scope."""

import pytest
from projects import pytest_in

pytestmark = pytest.mark.sqlite


@pytest.mark.parametrize("processes", [[], ["-n2"]], ids=["plain", "xdist"])
def test_fixtures_of_every_scope_have_a_service(tmp_path, processes):
    said = pytest_in(
        tmp_path,
        *processes,
        "--dist=loadfile",
        "-p",
        "no:randomly",
        test_it="""
        import pytest

        @pytest.fixture(scope="session")
        def small(orchmgmt_session_factory):
            return orchmgmt_session_factory(max_page_size=10)

        @pytest.fixture(scope="module", autouse=True)
        def seeded(orchmgmt_session):
            orchmgmt_session.reset()
            orchmgmt_session.add_lock("Boiler|heat|1.0.0")

        @pytest.fixture(scope="class")
        def pump(orchmgmt_session):
            return orchmgmt_session.add_lock("Pump|flow|1.0.0")

        class TestPump:
            def test_first(self, pump, orchmgmt_session):
                assert len(orchmgmt_session.locks()) == 2

            def test_second(self, pump, orchmgmt_session):
                assert len(orchmgmt_session.locks()) == 2

        def test_nobody_resets_it(orchmgmt_session, orchmgmt_shared, orchmgmt):
            assert len(orchmgmt_session.locks()) == 2
            assert len({orchmgmt_session.url, orchmgmt_shared.url, orchmgmt.url}) == 3

        def test_factory(small):
            assert small.settings.max_page_size == 10
        """,
    )
    assert "4 passed" in said, said


def test_a_client_belongs_to_the_service_of_the_test(tmp_path):
    said = pytest_in(
        tmp_path,
        test_it="""
        import pytest
        from orchmgmt.testing import Service

        PATH = "/serviceorchestration/orchestration/mgmt/lock/query"

        def sees(client, service):
            before = len(service.requests)
            assert client.post(PATH, json={}).status_code == 200
            return len(service.requests) == before + 1

        @pytest.fixture
        def own():
            with Service() as service:
                yield service

        @pytest.fixture
        def made(orchmgmt_factory):
            return orchmgmt_factory(authentication_policy="certificate", cloud="A.B")

        @pytest.fixture
        def through(orchmgmt_shared):
            return orchmgmt_shared

        @pytest.fixture
        def held(orchmgmt_shared):
            orchmgmt_shared.add_lock("Boiler|heat|1.0.0")

        def test_alone(orchmgmt_client, request):
            assert sees(orchmgmt_client, request.getfixturevalue("orchmgmt"))

        def test_orchmgmt(orchmgmt_client, orchmgmt):
            assert sees(orchmgmt_client, orchmgmt)

        def test_shared(orchmgmt_client, orchmgmt_shared):
            assert sees(orchmgmt_client, orchmgmt_shared)

        def test_session(orchmgmt_session, orchmgmt_client):
            assert sees(orchmgmt_client, orchmgmt_session)

        def test_through(orchmgmt_client, through):
            assert sees(orchmgmt_client, through)

        def test_held(orchmgmt_client, held):
            assert orchmgmt_client.post(PATH).json["count"] == 1

        def test_own(orchmgmt_client, own):
            assert sees(orchmgmt_client, own)

        def test_made(orchmgmt_client, made):
            assert sees(orchmgmt_client, made)

        def test_also_a_factory(orchmgmt_factory, orchmgmt, orchmgmt_client):
            orchmgmt_factory()
            assert sees(orchmgmt_client, orchmgmt)

        @pytest.mark.parametrize("number", [1, 2])
        def test_each(number, orchmgmt_client, own):
            assert sees(orchmgmt_client, own)

        class TestClass:
            def test_method(self, orchmgmt_client, orchmgmt_shared):
                assert sees(orchmgmt_client, orchmgmt_shared)
        """,
        test_unclear="""
        from test_it import own

        def test_two(orchmgmt, orchmgmt_shared, orchmgmt_client):
            pass

        def test_two_own(own, orchmgmt_shared, orchmgmt_client):
            pass

        def test_factory(orchmgmt_factory, orchmgmt_client):
            pass
        """,
    )
    assert "12 passed, 3 errors in" in said, said
    assert said.count("E       Failed: ") == 0
    unclear = "orchmgmt_client cannot tell which service it belongs to: write SERVICE.client() or"
    assert said.count(unclear) >= 3, said
