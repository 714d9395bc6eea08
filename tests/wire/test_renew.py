"""Renewing locks."""

import pytest
from support import FUTURE, lock

NAME = "Boiler|heat|1.0.0"
OTHER = "Tank|level|1.0.0"
LATER = "2099-06-01T00:00:00Z"


def renewal(instance=NAME, owner="Alice", **end):
    return {"serviceInstanceId": instance, "owner": owner, **(end or {"expiresAt": LATER})}


@pytest.fixture
def held(service):
    """Two locks of Alice's, as they were made."""
    return service.create(lock(NAME, "Alice", FUTURE), lock(OTHER, "Alice", FUTURE)).entries
