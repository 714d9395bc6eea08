"""The service inside other people's tests: in any state, at any time, failing on demand.

with Service() as service:
    service.add_lock("Boiler|heat|1.0.0", owner="BoilerControl", expires_in=60)
    service.clock.advance(61)

`docs/testing.md` shows all of it. A server in production imports nothing of it. Where the package
is installed, pytest imports `plugin/` in every project, and nothing else of it.
"""

from orchmgmt.testing.service import Service

__all__ = ["Service"]
