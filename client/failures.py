"""What can go wrong when a program calls the service."""

import warnings
from http import HTTPStatus

from orchmgmt.entries import already_locked


class Refused(Exception):
    """The service refuses the request, and would refuse it again.

    Attributes:
        status: the HTTP status: 4xx, or another one if something else than the service answered.
        message: the reason that the answer gives.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status
        self.message = message


class AlreadyLocked(Refused):
    """Nothing was locked, because some of the service instances are locked already.

    Attributes:
        service_instance_ids: all of those.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.service_instance_ids = already_locked(message)

    @property
    def instances(self) -> list[str]:
        """The same; deprecated."""
        old = "AlreadyLocked.instances is deprecated: use service_instance_ids"
        warnings.warn(old, DeprecationWarning, stacklevel=2)
        return self.service_instance_ids


class Unavailable(Exception):
    """No connection, no answer in time, or a 5xx: the same request may succeed later.

    After a create, only a query can tell whether the locks were made.

    Attributes:
        status: the HTTP status, or `None` if there was no answer.
        retry_after: seconds to wait before the next try, or `None` if the answer does not say.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message if status is None else f"{message} ({status})")
        self.status = status
        self.retry_after = retry_after


class Unanswered(Unavailable):
    """No answer came, or none that can be read as HTTP.

    Attributes:
        reason: why; it holds nothing that the other side sent.
        sent: whether the other side may have received the request.
    """

    def __init__(self, url: str, reason: str, sent: bool = True) -> None:
        super().__init__(
            f"{url} did not answer: {reason}" if sent else f"no connection to {url}: {reason}"
        )
        self.reason = reason
        self.sent = sent


class LockLost(Exception):
    """The locks of a `hold` are not held any more, or it is not certain that they are."""


def undone(failure: Unavailable) -> bool:
    """Return whether the service has certainly not done what was asked."""
    if isinstance(failure, Unanswered):
        return not failure.sent
    busy = failure.status == HTTPStatus.SERVICE_UNAVAILABLE
    return busy and failure.retry_after is not None
