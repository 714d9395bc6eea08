"""What changes in the history of a running service."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from orchmgmt.client import Client
from orchmgmt.entries import Job

#: A writer that waited for others commits after them, perhaps with an earlier time.
OVERLAP = timedelta(seconds=60)

#: After this many seconds all jobs are read again, and not only those that have changed.
ALL_AGAIN = 600.0

#: Between two reads of all jobs there is a pause of at least this many times their duration.
REST = 10


class Changes:
    """The jobs of a service: the first look returns all, each later one what has changed.

    A later look asks for the jobs with a time since the look before. A job that was recorded late,
    with earlier times, is noticed because there are more jobs than are known; then the next look
    reads all. Neither times nor numbers show a new message, or a late step of a known job: only the
    look at all jobs, every ten minutes, finds those.

    Args:
        client: asks the service.
        filters: which jobs, as `Client.jobs` takes them.
    """

    def __init__(self, client: Client, filters: dict[str, Any] | None = None) -> None:
        self._client = client
        self._filters = filters or {}
        self._since: datetime | None = None
        self._known = 0  # how many jobs are known
        self._count: int | None = None  # how many there were, if the last look did not read all
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
        """Check whether the last look may have missed a job. Call it when the look is complete.

        Args:
            new: how many of the jobs that it returned were not known before.
        """
        if self._count is None:
            return
        if self._count > self._known + new:
            self._again = min(self._again, self._soonest)
        # There are fewer when some have been deleted.
        self._known = self._known + new if self._count >= self._known else self._count
