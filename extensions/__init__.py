"""What a setting switches on: a module, and a line of `EXTENSIONS` in `settings.py`, for each.

It is imported only when its setting is on. An extension may know all of the core; the core knows
only the table.
"""

from orchmgmt.app import Service


class Extension:
    """Something that is attached to a service.

    Args:
        service: what to attach it to. Its application has all operations of the core, and those of
            the extensions before.

    Raises:
        SettingError: a setting is wrong or missing.
    """

    def __init__(self, service: Service) -> None:
        raise NotImplementedError

    def start(self, url: str) -> None:
        """Begin what goes on in the background, now that a server listens.

        A read-only server begins nothing: it may have another database than those beside it.

        Args:
            url: where it listens.
        """

    def ready(self) -> bool:
        """Return whether what has been started works by now."""
        return True

    def stop(self) -> None:
        """End that, once nobody listens any more."""
