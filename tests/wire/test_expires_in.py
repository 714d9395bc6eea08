"""Locks that end so long after they are granted."""

import pytest
from support import FUTURE, UUID, lock

NAME = "Boiler|heat|1.0.0"
YEAR = 31_536_000
PRESENT = "2027-01-15T08:00:00Z"


def lasting(seconds, **more):
    return {"serviceInstanceId": NAME, "owner": "Alice", "expiresIn": seconds, **more}


@pytest.fixture
def timed(start):
    """A service whose clock is set by the test."""
    service = start(RECORDER="true")
    service.clock.freeze()
    service.clock.set(PRESENT)
    return service


@pytest.mark.parametrize(
    ("fraction", "seconds", "end"),
    [
        (0.0, 60, "2027-01-15T08:01:00Z"),
        (0.001, 60, "2027-01-15T08:01:01Z"),
        (0.999, 1, "2027-01-15T08:00:02Z"),
        (0.0, "60", "2027-01-15T08:01:00Z"),
        (0.0, 60.0, "2027-01-15T08:01:00Z"),
        (0.5, YEAR, "2028-01-15T08:00:01Z"),
    ],
)
def test_it_ends_so_long_after_it_is_granted_rounded_up(timed, fraction, seconds, end):
    timed.clock.advance(fraction)
    (entry,) = timed.create(lasting(seconds)).entries
    assert entry["expiresAt"] == end
    assert "expiresIn" not in entry
    assert timed.locks().entries == [entry]
    (renewed,) = timed.post("/lock/renew", {"locks": [lasting(seconds)]}).entries
    assert renewed == entry


def test_create_renew_and_reserve_take_it(timed):
    job = timed.store.history.create("PULL", "Alice", "Alice", "heat")
    other = lock("Tank|level|1.0.0", "Alice", FUTURE)
    created = timed.create(lasting(60), other).entries
    assert [it["expiresAt"] for it in created] == ["2027-01-15T08:01:00Z", FUTURE]
    timed.clock.advance(30)
    (renewed,) = timed.post("/lock/renew", {"locks": [lasting(45)]}).entries
    assert renewed == {**created[0], "expiresAt": "2027-01-15T08:01:15Z"}
    element = {**lasting(5, serviceInstanceId="X|s|1.0.0"), "orchestrationJobId": job}
    (reserved,) = timed.post("/lock/reserve", {"locks": [element]}).entries
    assert (reserved["expiresAt"], reserved["temporary"]) == ("2027-01-15T08:00:35Z", True)


def test_a_lock_outlives_the_year_9999_no_more_than_a_date_does(timed):
    timed.clock.set("9999-12-31T23:58:20Z")
    (entry,) = timed.create(lasting(YEAR)).entries
    assert entry["expiresAt"] == "9999-12-31T23:59:59Z"


BOTH = "Expires at and expires in exclude each other"


@pytest.mark.parametrize("path", ["/lock/create", "/lock/renew", "/lock/reserve"])
@pytest.mark.parametrize(
    ("element", "message"),
    [
        (lasting(60, expiresAt=FUTURE), BOTH),
        (lasting(0), "Invalid expires in: 0"),
        (lasting(-1), "Invalid expires in: -1"),
        (lasting("-7"), "Invalid expires in: -7"),
        (lasting(YEAR + 1), f"Invalid expires in: {YEAR + 1}"),
        (lasting(2**64), f"Invalid expires in: {2**64}"),
        (lasting(0, expiresAt=FUTURE), "Invalid expires in: 0"),
        (lasting(60, expiresAt="now"), "Invalid expires at format: now"),
        (lasting(0, owner=""), "Owner is missing"),
        (lasting(0, owner="9"), "Invalid expires in: 0"),
        (
            lasting(60, owner="9"),
            "The specified system name does not match the naming convention: 9",
        ),
        (lasting(1.5), "expiresIn must be an integer"),
        (lasting("1m"), "expiresIn must be an integer"),
        (lasting(True), "expiresIn must be an integer"),
        (lasting(None), "Expiration time is missing"),
        (lasting(" "), "Expiration time is missing"),
        (lasting(None, expiresAt=" "), "Expiration time is missing"),
    ],
)
def test_what_is_wrong_with_it_is_said(timed, path, element, message):
    answer = timed.post(path, {"locks": [{"orchestrationJobId": UUID, **element}]})
    assert (answer.status, answer.error) == (400, message)
    assert timed.locks().entries == []


def test_a_past_time_before_a_bad_duration_counts_first(timed):
    past = "2020-01-01T00:00:00Z"
    answer = timed.create(lock("A|b|1", "Alice", past), lasting(0))
    assert answer.error == f"Expires at is in the past: {past}"
    assert timed.create(lasting(0), lock("A|b|1", "Alice", past)).error == "Invalid expires in: 0"
