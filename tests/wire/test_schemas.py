"""What is wrong with a payload is what is wrong with one of its values, whatever else is in it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from marshmallow import ValidationError
from support import FUTURE, UUID

from orchmgmt.fields import Fault
from orchmgmt.schemas import (
    HistoryPagination,
    HistoryQuery,
    HistoryRecord,
    JobEntry,
    LockCreate,
    LockEntry,
    LockPagination,
    LockQuery,
    LockRemove,
    LockRequest,
    LockReserve,
    RenewalRequest,
    Reservation,
)
from orchmgmt.settings import Settings

PRESENT = "2026-01-01T00:00:00Z"

# Each key's values by what the contract says of them, in the order in which faults count.
WRONG, MISSING, MALFORMED, MISNAMED = ORDER = ("wrong type", "missing", "malformed", "misnamed")

NAMES = {WRONG: [7, [], {}, True], MISNAMED: ["9", "a b!"]}
INSTANCES = {
    WRONG: [7, [], {}],
    MISNAMED: ["A|b", "9|b|1", "A|b|1.2.3.4"],
}
UUIDS = {WRONG: [1.5, {}], MALFORMED: ["x", UUID[:-1]]}
TIMES = {WRONG: [2026, [PRESENT]], MALFORMED: ["now", "2026-02-30T00:00:00Z"]}
BLANK = [None, "", " \t"]


def elements(values):
    """The same faults, of a list's first element; a list may also lack an element."""
    return {
        WRONG: [7, "A", {}, *([it] for it in values[WRONG])],
        MISSING: [[it] for it in BLANK],
        **{kind: [[it] for it in values[kind]] for kind in (MALFORMED, MISNAMED) if kind in values},
    }


def needed(values, **more):
    return {**values, MISSING: BLANK, **more}


BAD = {
    LockRequest: {
        "serviceInstanceId": needed(INSTANCES),
        "owner": needed(NAMES),
        "expiresAt": needed(TIMES, **{MALFORMED: ["now", "9999-12-31T23:59:59.1Z"]}),
        "expiresIn": {WRONG: [1.5, "x", True, []]},
    },
    LockEntry: {
        "id": {WRONG: [0, 1.5, "x", 2**62 + 1]},
        "orchestrationJobId": UUIDS,
        "serviceInstanceId": needed(INSTANCES),
        "owner": needed(NAMES),
        "expiresAt": needed(TIMES),
        "temporary": {WRONG: [1, "yes"]},
    },
    LockQuery: {
        "pagination": {
            WRONG: [[], 7, {"page": []}],
            MISSING: [{"page": 1}, {"size": 1, "direction": "up"}, {"page": 0, "size": 1001}],
            MALFORMED: [{"direction": "up"}, {"sortField": "createdAt"}],
        },
        "ids": {WRONG: [7, [True], ["x"]], MISSING: [[it] for it in BLANK]},
        "orchestrationJobIds": elements(UUIDS),
        "serviceInstanceIds": elements(INSTANCES),
        "owners": elements(NAMES),
        "expiresBefore": TIMES,
        "expiresAfter": TIMES,
    },
    LockRemove: {
        "owner": needed(NAMES),
        "instanceIds": {**elements(INSTANCES), MISSING: [[], None, [None]]},
        "ids": {WRONG: [7, [True], ["x"]], MISSING: [[it] for it in BLANK]},
    },
    HistoryQuery: {
        "ids": elements(UUIDS),
        "statuses": elements({WRONG: [7], MALFORMED: ["ENDED", "ıN_PROGRESS"]}),
        "type": {WRONG: [7, []], MALFORMED: ["PUΣH"]},
        "requesterSystems": elements(NAMES),
        "targetSystems": elements(NAMES),
        "serviceDefinitions": elements(NAMES),
        "subscriptionIds": elements(UUIDS),
    },
}
BAD[Reservation] = {**BAD[LockRequest], "orchestrationJobId": needed(UUIDS)}
BAD[RenewalRequest] = {**BAD[LockRequest], "id": {WRONG: [1.5, "x", True]}}

GOOD = {
    "serviceInstanceId": "Provider|kelvinInfo|1.0.0",
    "owner": "Owner",
    "expiresAt": FUTURE,
    "orchestrationJobId": UUID,
    "instanceIds": ["Provider|kelvinInfo|1.0.0"],
}


def fault(schema, payload):
    with pytest.raises(Fault) as refused:
        schema.read(payload)
    with pytest.raises(ValidationError):
        schema.load(payload)
    return str(refused.value)


@pytest.mark.parametrize("kind", BAD)
def test_the_fault_named_is_the_earliest_of_the_values_faults(kind):
    schema = kind(Settings())
    keys = [field.data_key for field in schema.fields.values()]
    good = {key: GOOD[key] for key in keys if key in GOOD}
    choices = {
        key: some.sampled_from([(rank, it) for rank in faults for it in faults[rank]])
        for key, faults in BAD[kind].items()
    }

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(some.fixed_dictionaries({}, optional=choices).filter(bool), some.randoms())
    def check(chosen, chance):
        first = min(
            (key for key in keys if key in chosen), key=lambda key: ORDER.index(chosen[key][0])
        )
        payload = [*{**good, "more": [], **{key: it for key, (_, it) in chosen.items()}}.items()]
        chance.shuffle(payload)
        alone = {**good, first: chosen[first][1]}
        assert fault(schema, dict(payload)) == fault(schema, alone)

    check()


@pytest.mark.parametrize(
    "kind", [*BAD, JobEntry, LockPagination, HistoryPagination], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("payload", [[], "{}", 7, True])
def test_only_an_object_is_a_payload(kind, payload):
    assert fault(kind(Settings()), payload) == "A JSON object was expected"


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        (LockEntry, {"id": "7", "temporary": True, "orchestrationJobId": UUID.upper()}),
        (LockEntry, {"owner": "the-owner", "serviceInstanceId": " provider|Kelvin-info|1"}),
        (LockEntry, {"expiresAt": "2099-01-01T00:00:00.5+01:00"}),
        (JobEntry, {"status": "pending", "message": "a\0b\ud800"}),
        (JobEntry, {"status": "in_progress", "startedAt": "2026-01-01t00:00:00.9z"}),
        (JobEntry, {"status": "error", "finishedAt": "2026-01-01T01:00:00+01:00"}),
    ],
)
def test_what_was_read_and_written_is_read_as_it_is(kind, entry):
    schema = kind(Settings())
    job = {
        "type": "push",
        "requesterSystem": "requester",
        "targetSystem": "Target",
        "serviceDefinition": "KelvinInfo",
        "createdAt": PRESENT,
    }
    found = schema.read({**GOOD, **job, **entry})
    columns = [it.name for it in kind.model._meta.sorted_fields if it.name in schema.fields]
    assert set(found) == set(columns)
    (written,) = schema.entries_of([tuple(found[name] for name in columns)])
    assert schema.read(written) == found


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (LockCreate, {"locks": [{**GOOD, "owner": "the-owner"}, GOOD]}),
        (LockReserve, {"locks": [GOOD]}),
        (LockQuery, {"ids": ["7"], "owners": ["a"], "pagination": {"page": 1, "size": 5}}),
        (LockQuery, {}),
        (LockRemove, GOOD),
        (HistoryQuery, {"type": "pull", "pagination": {"sortField": "startedAt"}}),
        (HistoryRecord, {"jobs": [{"id": UUID, "status": "done"}]}),
    ],
)
def test_reading_is_loading(kind, payload):
    schema = kind(Settings())
    assert schema.read(payload) == schema.load(payload)
