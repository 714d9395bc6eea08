"""A payload is loaded field by field: what comes out is what marshmallow's own load returns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from marshmallow import Schema, ValidationError
from support import FUTURE, UUID

from orchmgmt.schemas import (
    Fault,
    HistoryQuery,
    JobEntry,
    LockEntry,
    LockPagination,
    LockQuery,
    LockRequest,
    Reservation,
    first_fault,
)
from orchmgmt.settings import Settings

VALUES = {
    "id": [7, "7", UUID],
    "orchestrationJobId": [UUID.upper()],
    "serviceInstanceId": ["Provider|kelvinInfo|1.0.0", " provider | kelvin-info | 1 "],
    "owner": ["Owner", "the owner"],
    "expiresAt": [FUTURE, "2099-01-01T00:00:00.5+01:00", "2020-01-01T00:00:00Z"],
    "temporary": [True, False],
    "status": ["DONE", "error", "PENDING", "IN_PROGRESS"],
    "type": ["PULL", "push"],
    "requesterSystem": ["Requester"],
    "targetSystem": ["Target"],
    "serviceDefinition": ["kelvinInfo"],
    "subscriptionId": [UUID],
    "message": ["Zwölf", "\ud800"],
    "createdAt": ["2026-01-01T00:00:00Z"],
    "startedAt": ["2026-01-01T00:00:00.9Z"],
    "finishedAt": ["2026-01-01T00:00:02Z"],
    "ids": [[7], [7, "8"], [UUID], [UUID, None], []],
    "orchestrationJobIds": [[UUID]],
    "subscriptionIds": [[UUID, "x"]],
    "serviceInstanceIds": [["Provider|kelvinInfo|1.0.0", " "]],
    "owners": [["Owner"], ["an owner", "Another"]],
    "requesterSystems": [["Requester"]],
    "targetSystems": [["Target"]],
    "serviceDefinitions": [["kelvinInfo"]],
    "statuses": [["done"]],
    "expiresBefore": [FUTURE],
    "expiresAfter": [FUTURE],
    "pagination": [{}, {"page": 0, "size": 7}, {"page": 1}, {"sortField": "id"}],
    "page": [0, "1", -1],
    "size": [10, 0, 1001],
    "direction": ["asc"],
    "sortField": ["owner", "nonsense"],
}
BAD = some.sampled_from([None, "", " ", 0, 1.5, [], {}, "!", "2026-02-30T00:00:00Z"])


def payloads(schema):
    """Objects for a schema: complete or not, good or bad, and some that are no objects."""
    keys = [field.data_key or name for name, field in schema.load_fields.items()]
    good = {key: some.sampled_from(VALUES[key]) for key in keys}
    mixed = {key: value | BAD for key, value in good.items()}
    return (
        some.fixed_dictionaries(good)
        | some.fixed_dictionaries(good, optional={"unknown": BAD})
        | some.fixed_dictionaries({}, optional=mixed)
        | BAD
    )


def loaded(schema, payload):
    """What marshmallow makes of a payload, or what is wrong with it."""
    try:
        return Schema.load(schema, payload)
    except ValidationError as error:
        return first_fault(error.messages)


def read(schema, payload):
    """The same, of ours."""
    try:
        return schema.load(payload)
    except ValidationError as error:
        return first_fault(error.messages)


@pytest.mark.parametrize(
    "kind",
    [LockRequest, Reservation, LockEntry, JobEntry, LockQuery, HistoryQuery, LockPagination],
)
def test_a_payload_is_loaded_as_marshmallow_would(kind):
    schema = kind(Settings())
    refused = set()

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(payloads(schema))
    def check(payload):
        outcome = loaded(schema, payload)
        assert read(schema, payload) == outcome
        refused.add(isinstance(outcome, Fault))

    check()
    assert refused == {False, True}
