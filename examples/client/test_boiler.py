"""The tests of the client: docs/testing.md tells all that they use."""

import boiler
import pytest


@pytest.fixture
def service(orchmgmt_shared):
    return orchmgmt_shared


def test_a_boiler_is_taken_and_given_back(service):
    boiler.take(service.url, service.headers)
    assert [it.owner for it in service.locks()] == [boiler.ME]
    boiler.give_back(service.url, service.headers)
    assert service.locks() == []
    assert [it.operation for it in service.requests] == ["lock.create", "lock.remove"]


def test_others_are_waited_for_until_their_lock_expires(service):
    service.add_lock(boiler.BOILER, owner="Rival", expires_in=60)
    with pytest.raises(boiler.Busy, match="Already locked"):
        boiler.take(service.url, service.headers)
    service.clock.advance(61)
    assert boiler.take(service.url, service.headers, seconds=600)["owner"] == boiler.ME


def test_a_503_is_survived(service):
    service.faults.next(status=503, times=2, operation="lock.create", retry_after=0)
    boiler.take(service.url, service.headers)
    service.faults.assert_all_used()
    assert [it.status for it in service.requests] == [503, 503, 201]


@pytest.mark.parametrize("drop", ["before", "middle", "after"])
def test_a_dropped_answer_leaves_one_lock(service, drop):
    service.faults.next(drop=drop, operation="lock.create")
    lock = boiler.take(service.url, service.headers)
    assert [it.id for it in service.locks()] == [lock["id"]]


def test_a_server_that_goes_down_is_waited_for(service, monkeypatch):
    service.down()
    monkeypatch.setattr(boiler.time, "sleep", lambda _: service.up())
    assert boiler.take(service.url, service.headers)


def test_a_server_that_stays_away_is_told_of(service):
    service.down()
    with pytest.raises(TimeoutError):
        boiler.take(service.url, service.headers)
