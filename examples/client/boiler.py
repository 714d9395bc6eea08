"""A small program that heats a boiler only while it holds the boiler's lock."""

BOILER = "Boiler|heat|1.0.0"
ME = "BoilerControl"


class Boiler:
    """What the lock protects. It refuses whoever held the lock before somebody else did."""

    def __init__(self, fence=0):
        self.target, self.fence = 20, fence

    def set(self, target, fence):
        """Set the target temperature under the id of a lock."""
        if fence < self.fence:
            raise PermissionError(f"lock {self.fence} is newer than lock {fence}")
        self.target, self.fence = target, fence


def heat(client, boiler, targets, lease=60, wait=0):
    """Set one target after the other, as long as the lock is held."""
    with client.hold(BOILER, owner=ME, lease=lease, wait=wait) as held:
        for target in targets:
            held.check()
            boiler.set(target, held.fence)
