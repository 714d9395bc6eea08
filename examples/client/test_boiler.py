"""The tests of the program: docs/testing.md tells all that they use."""

import pytest
from boiler import BOILER, Boiler, heat

from orchmgmt.client import AlreadyLocked, Client, LockLost, Unavailable


@pytest.fixture
def client(orchmgmt):
    with Client(orchmgmt.url, name="Sysop", retries=0) as client:
        yield client


def test_a_boiler_is_heated_under_its_lock(orchmgmt, client):
    boiler = Boiler()
    heat(client, boiler, [60, 65])
    assert (boiler.target, boiler.fence) == (65, 1)
    assert [it.operation for it in orchmgmt.requests] == ["lock.create", "lock.remove"]


def test_nothing_is_done_while_somebody_else_has_it(orchmgmt, client):
    orchmgmt.add_lock(BOILER, owner="Rival", expires_in=60)
    with pytest.raises(AlreadyLocked):
        heat(client, Boiler(), [60])
    orchmgmt.clock.advance(61)
    heat(client, Boiler(), [60])


@pytest.mark.parametrize("drop", ["before", "after"])
def test_a_dropped_answer_leaves_one_lock(orchmgmt, client, drop):
    orchmgmt.faults.next(drop=drop, operation="lock.create")
    heat(client, Boiler(), (len(orchmgmt.locks()) for _ in range(3)), wait=5)
    assert orchmgmt.locks() == []


def test_the_heating_ends_when_the_lease_does(orchmgmt, client):
    with pytest.raises(LockLost, match="Not locked by BoilerControl"):
        heat(client, Boiler(), (orchmgmt.clock.advance(9) for _ in iter(int, 1)), lease=3)


def test_a_later_holder_shuts_an_earlier_one_out(orchmgmt, client):
    boiler = Boiler()
    heat(client, boiler, [60])
    heat(client, boiler, [65])
    with pytest.raises(PermissionError, match="lock 2 is newer than lock 1"):
        boiler.set(90, fence=1)


def test_the_lock_is_given_back_after_a_failure(orchmgmt, client):
    with pytest.raises(PermissionError):
        heat(client, Boiler(fence=9), [60])
    assert orchmgmt.locks() == []


def test_a_server_that_stays_away_is_told_of(orchmgmt, client):
    orchmgmt.down()
    with pytest.raises(Unavailable):
        heat(client, Boiler(), [60])
