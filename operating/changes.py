"""What changes in the history of a running service."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from orchmgmt.client import Client
from orchmgmt.entries import Job

#: A writer that waited for others comes after them, and may have an earlier time.
OVERLAP = timedelta(seconds=60)


class Changes:
    """The jobs of a service, and from the second look on what has changed since the one before.

    Args:
        client: how to ask for them.
        filters: which of them, as `Client.jobs` takes it.
    """

    def __init__(self, client: Client, filters: dict[str, Any] | None = None) -> None:
        self._client = client
        self._filters = filters or {}
        self._since: datetime | None = None

    def look(self, everything: bool = False) -> Iterator[Job]:
        """Return the jobs that have changed since the last look, and those of the minute before.

        Args:
            everything: return all, as the first look does. A job that somebody imports, with times
                that are past, is seen in no other way.

        Raises:
            Refused: as `Client.jobs` does, while iterating.
            Unavailable: likewise; the next look begins where this one did.
        """
        latest = self._since
        for job in self._client.jobs(**self._filters, since=None if everything else self._since):
            yield job
            for moment in (job.created_at, job.started_at, job.finished_at):
                if moment and (latest is None or moment > latest):
                    latest = moment
        if latest and latest != self._since:
            # A job may claim to be of the future: nothing would be later then.
            self._since = min(latest, datetime.now(timezone.utc)) - OVERLAP
