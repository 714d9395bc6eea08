"""Records are read field by field: the same comes out as when marshmallow loads them whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from marshmallow import ValidationError
from support import FUTURE, UUID

from orchmgmt.errors import InvalidParameter
from orchmgmt.schemas import JobEntry, LockEntry, LockRequest, Reservation, first_fault
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
}
BAD = some.sampled_from([None, "", " ", 0, 1.5, [], {}, "!", "2026-02-30T00:00:00Z"])


def records(schema):
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


def loaded(schema, record):
    """What marshmallow makes of a record, or what is wrong with it."""
    try:
        return schema.load(record)
    except ValidationError as error:
        return str(first_fault(error.messages))


def read(schema, record):
    """The same, of ours."""
    try:
        return schema.read(record)
    except InvalidParameter as error:
        return str(error)


@pytest.mark.parametrize("kind", [LockRequest, Reservation, LockEntry, JobEntry])
def test_a_record_is_read_as_marshmallow_loads_it(kind):
    schema = kind(Settings())
    outcomes = set()

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(records(schema))
    def check(record):
        outcome = loaded(schema, record)
        assert read(schema, record) == outcome
        outcomes.add(type(outcome))

    check()
    assert outcomes == {dict, str}
