"""The time that a service under test goes by."""

import time
from datetime import UTC, datetime, timedelta

from orchmgmt.entries import read_time
from orchmgmt.values import second

#: pytest leaves the frames of this module out of tracebacks, and shows who has called it.
__tracebackhide__ = True

#: The first second of the year 10000, since the epoch.
END = 253402300800
RANGE = "The clock goes from the year 1970 to the year 9999"


class Clock:
    """The machine's clock, until a test moves it; calling it gives the seconds since the epoch."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._frozen: float | None = None

    def __call__(self) -> float:
        """Return the present, in seconds since the epoch."""
        frozen = self._frozen
        # No DateTime is later than the last second: there it stands.
        return min(time.time() + self._ahead, END - 1) if frozen is None else frozen

    def now(self) -> datetime:
        """Return the present, in UTC."""
        return _moment(self())

    def after(self, seconds: float | timedelta) -> datetime:
        """Return the moment that is so many seconds from the present, in UTC.

        Raises:
            ValueError: it is outside the years from 1970 to 9999.
        """
        return _moment(self() + _number(seconds))

    def ago(self, seconds: float | timedelta) -> datetime:
        """Return the moment that was so many seconds before the present, in UTC.

        Raises:
            ValueError: as `after`.
        """
        return _moment(self() - _number(seconds))

    def advance(self, seconds: float | timedelta) -> None:
        """Move on by so many seconds (back, if negative); a frozen clock stays frozen.

        Raises:
            ValueError: it would leave the years from 1970 to 9999.
        """
        self._move(self.after(seconds).timestamp())

    def set(self, moment: datetime | str) -> None:
        """Move to a moment, and go on from there unless frozen.

        Args:
            moment: a time with a zone, or a DateTime such as `2030-01-01T00:00:00Z`.

        Raises:
            ValueError: it is neither, or outside the years from 1970 to 9999.
        """
        self._move(moment_of(moment).timestamp())

    def freeze(self) -> None:
        """Stand still from now on."""
        self._frozen = self()

    def resume(self) -> None:
        """Go on from where the clock stands."""
        self._ahead = self() - time.time()
        self._frozen = None

    def reset(self) -> None:
        """Go by the machine's clock again."""
        self._ahead, self._frozen = 0.0, None

    def __repr__(self) -> str:
        state = "running" if self._frozen is None else "frozen"
        return f"<Clock {self.now().isoformat()}, {state}>"

    def _move(self, present: float) -> None:
        if self._frozen is None:
            self._ahead = present - time.time()
        else:
            self._frozen = present


def moment_of(value: datetime | str) -> datetime:
    """Return the moment that a test names, in UTC.

    Args:
        value: a time with a zone, or a DateTime such as `2030-01-01T00:00:00Z`.

    Raises:
        ValueError: it is neither, or outside the years from 1970 to 9999.
    """
    if isinstance(value, str):
        try:
            value = read_time(second(value))
        except ValueError:
            raise ValueError(f"{value!r} is no time such as 2030-01-01T00:00:00Z") from None
    elif not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{value!r} is no datetime with a zone, such as timezone.utc")
    return _moment(value.timestamp())


def _moment(present: float) -> datetime:
    if not 0 <= present < END:
        raise ValueError(RANGE)
    return datetime.fromtimestamp(present, UTC)


def _number(seconds: float | timedelta) -> float:
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise ValueError(f"A number of seconds was expected, not {seconds!r}")
    if not -END <= seconds <= END:
        raise ValueError(RANGE)
    return seconds
