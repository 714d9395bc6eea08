"""The service inside other people's tests: in any state, at any time, failing on demand.

with Service() as service:
    service.add_lock("Boiler|heat|1.0.0", owner="BoilerControl", expires_in=60)
    service.clock.advance(61)

`docs/testing.md` shows all of it. Nothing here is imported by a server in production, and nothing
but `Service` needs Flask: pytest imports `plugin.py` in projects that do not use it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchmgmt.testing.service import Service

__all__ = ["Service"]


def __getattr__(name: str) -> Any:
    if name != "Service":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchmgmt.testing.service import Service

    return Service
