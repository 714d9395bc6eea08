"""The service inside other people's tests: in any state, at any time, failing on demand.

with Service() as service:
    service.add_lock("Boiler|heat|1.0.0", owner="BoilerControl", expires_in=60)
    service.clock.advance(61)

`docs/testing.md` shows all of it. Nothing here is imported by a server in production, and
pytest imports of it only `plugin/`, in every project of whoever has it installed.
"""

from orchmgmt.testing.service import Service

__all__ = ["Service"]
