"""What tests of the server share: their services have that server, and not the harness's."""

from collections.abc import Callable

import pytest
from support import Service


@pytest.fixture
def start(start_server: Callable[..., Service]) -> Callable[..., Service]:
    return start_server
