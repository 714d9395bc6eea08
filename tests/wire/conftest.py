"""What tests of the wire share: they find the tables empty, and nothing else new."""

from collections.abc import Callable

import pytest
from support import Service


@pytest.fixture
def start(shared_start: Callable[..., Service]) -> Callable[..., Service]:
    return shared_start
