"""What changes in the history of a running service."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from orchmgmt.client import Client
from orchmgmt.entries import Job

#: A writer that waited for others comes after them, and may have an earlier time.
OVERLAP = timedelta(seconds=60)

#: Seconds after which a look is at all jobs again, and not only at those that have changed.
ALL_AGAIN = 600.0

#: How many times as long as a look at all jobs it is at least until the next.
REST = 10


class Changes:
    """The jobs of a service, and from the second look on what has changed since the one before.

    A job that has a time since then is found by that. One that was recorded late, with times that
    are past, is found because there are more jobs than are known: the next look is at all. No time
    and no number tells of a new message, or of a late step of a job that is known: only the look at
    all jobs, every ten minutes, finds those.

    Args:
        client: how to ask for them.
        filters: which of them, as `Client.jobs` takes it.
    """

    def __init__(self, client: Client, filters: dict[str, Any] | None = None) -> None:
        self._client = client
        self._filters = filters or {}
        self._since: datetime | None = None
        self._known = 0  # how many jobs there are, as far as is known
        self._count: int | None = None  # how many there were at the last look, if it was not at all
        self._again = self._soonest = 0.0

    def look(self, everything: bool = False) -> Iterator[Job]:
        """Return the jobs that have changed since the last look, and those of the minute before.

        Args:
            everything: return all, as the first look does.

        Raises:
            Refused: as `Client.jobs` does, while iterating.
            Unavailable: likewise; the next look begins where this one did.
        """
        begun = time.monotonic()
        whole = everything or self._since is None or begun >= self._again
        count = None if whole else self._client.count_jobs(**self._filters)
        found, latest = 0, self._since
        for job in self._client.jobs(**self._filters, since=None if whole else self._since):
            yield job
            found += 1
            for moment in (job.created_at, job.started_at, job.finished_at):
                if moment and (latest is None or moment > latest):
                    latest = moment
        if latest and latest != self._since:
            # A job may claim to be of the future: nothing would be later then.
            self._since = min(latest, datetime.now(UTC)) - OVERLAP
        self._count = count
        if whole:
            self._known = found
            now = time.monotonic()
            self._again, self._soonest = now + ALL_AGAIN, now + REST * (now - begun)

    def settle(self, new: int) -> None:
        """See whether the last look may have missed a job. Call it once it is complete.

        Args:
            new: how many of the jobs that it returned were not known before.
        """
        if self._count is None:
            return
        if self._count > self._known + new:
            self._again = min(self._again, self._soonest)
        # There are fewer when some have been deleted.
        self._known = self._known + new if self._count >= self._known else self._count
