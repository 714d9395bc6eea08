"""What the commands ask of a service, done at its database, for emergencies."""

from collections.abc import Iterable, Iterator
from typing import Any

from orchmgmt.entries import Lock
from orchmgmt.logs.audit import command
from orchmgmt.store import Store

#: As many as there may be: all that is asked for is of one moment.
LARGEST_PAGE = 1_000_000


class Direct:
    """The locks of a database, asked for as a `Client` asks a service.

    Whoever can open the database may. What changes it is audited with the user of the machine.

    Args:
        store: the database, with pages of `LARGEST_PAGE`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def locks(self, **filters: Any) -> Iterator[Lock]:
        """Return the active locks that match.

        Raises:
            InvalidParameter: a value is malformed.
            orchmgmt.errors.Unavailable: the database does not answer.
        """
        given: dict[str, Any] = {
            name: list(it) if isinstance(it, (list, tuple)) else it for name, it in filters.items()
        }
        return iter(self._store.locks.find(**given).entries)

    def create_locks(self, locks: Iterable[Lock], *, expires_in: int | None = None) -> list[Lock]:
        """Lock service instances, all or none.

        Args:
            locks: the instance, the owner and the end of each.
            expires_in: how many seconds all of them last, instead.

        Raises:
            InvalidParameter: a value is malformed, or somebody holds one of them.
            orchmgmt.errors.Unavailable: the database does not answer.
        """
        wanted = list(locks)
        with command("lock.create") as tell:
            tell(
                locks=len(wanted),
                instances=[it.service_instance_id for it in wanted],
                owners=dict.fromkeys(it.owner for it in wanted),
            )
            made = self._store.locks.create(wanted, expires_in=expires_in)
            tell(ids=[str(it.id) for it in made])
        return made

    def remove_locks(self, owner: str, *instances: str) -> None:
        """Remove an owner's locks, but for temporary ones.

        Raises:
            InvalidParameter: a value is malformed.
            orchmgmt.errors.Unavailable: the database does not answer.
        """
        with command("lock.remove") as tell:
            tell(locks=len(instances), instances=instances, owners=[owner])
            tell(removed=self._store.locks.remove(owner, instances))
