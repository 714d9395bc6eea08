"""The value types of the contract: how each is normalised, checked and written.

There is one function for each text of the contract's table "Values". Each takes a string without
surrounding white space (`strip`) and returns its canonical form, or raises `ValueError`. The error
has the contract's message if that is the same everywhere. Nothing here knows JSON, HTTP or the
database.
"""

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from math import ceil
from string import ascii_lowercase, ascii_uppercase
from time import gmtime, strftime

NAME_MAX_LENGTH = 63
VERSION_MAX_LENGTH = 14
MAX_OFFSET_HOURS = 18

#: Later than all moments that a DateTime can name: ISO 8601's form of the start of the year 10000.
END_OF_TIME = "9999-12-31T24:00:00Z"
START_OF_TIME = "0000-01-01T00:00:00Z"

#: The last second that a DateTime can name, since the epoch.
LAST_SECOND = 253_402_300_799

_SURROUNDING = "".join(map(chr, range(0x21)))
_NAME_TAIL = f"[0-9A-Za-z]{{0,{NAME_MAX_LENGTH - 1}}}"
_SYSTEM_NAME = re.compile(f"[A-Z]{_NAME_TAIL}").fullmatch
_SERVICE_NAME = re.compile(f"[a-z]{_NAME_TAIL}").fullmatch
_SERVICE_INSTANCE_ID = re.compile(
    rf"[A-Z]{_NAME_TAIL}\|[a-z]{_NAME_TAIL}"
    rf"\|(?=[0-9.]{{1,{VERSION_MAX_LENGTH}}}$)[0-9]+\.[0-9]+\.[0-9]+"
).fullmatch
_DIGITS = re.compile("[0-9]+").fullmatch
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_CANONICAL_INSTANT = re.compile(f"(?!0000)[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T{_CLOCK}Z").fullmatch
_INSTANT = re.compile(
    rf"([0-9]{{4}})(-[0-9]{{2}}-[0-9]{{2}})[Tt]({_CLOCK})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-5][0-9]))"
).fullmatch
# Unicode's White_Space; \s would also take the separators U+001C to U+001F.
_WHITE_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_SEPARATORS = re.compile("[_-]+")
_LATER_SEPARATOR = re.compile("_(.?)", re.DOTALL)
# Only ASCII letters have a case here.
_UPPER = str.maketrans(ascii_lowercase, ascii_uppercase)
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def strip(text: str) -> str:
    """Return `text` without surrounding characters up to U+0020."""
    return text.strip(_SURROUNDING)


def meant(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` if a known name is similar to this misspelt one, else nothing."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def repeated(texts: Iterable[str]) -> str | None:
    """Return the first of these texts that has come before, if there is one."""
    seen: set[str] = set()
    for text in texts:
        if text in seen:
            return text
        seen.add(text)
    return None


class Naming:
    """How names are normalised before they are checked.

    Args:
        extended: the contract's `extended` mode; otherwise `simple`, where names are only stripped.
    """

    def __init__(self, extended: bool = True) -> None:
        self.extended = extended

    def system_name(self, text: str) -> str:
        """Return a SystemName (PascalCase, at most 63 characters).

        Raises:
            ValueError: the contract's naming message, with the normalised name.
        """
        return self._name(text, _SYSTEM_NAME, self._pascal_case, "system name")

    def service_name(self, text: str) -> str:
        """Return a ServiceName (camelCase, at most 63 characters).

        Raises:
            ValueError: the contract's naming message, with the normalised name.
        """
        return self._name(text, _SERVICE_NAME, self._camel_case, "service definition name")

    def service_instance_id(self, text: str) -> str:
        """Return a ServiceInstanceID, `SystemName|ServiceName|Version`, each part normalised.

        Raises:
            ValueError: the text does not have three parts, or its system or service part is empty
                (with the contract's message for the whole identifier); or a part is wrong (with
                the message for the first wrong part).
        """
        if _SERVICE_INSTANCE_ID(
            text
        ):  # a short cut: without it, reading 100 locks takes half as long again
            return text
        parts = text.split("|")
        if len(parts) != 3 or not strip(parts[0]) or not strip(parts[1]):
            convert = (self._pascal_case, self._camel_case, _complete_version)
            known = [change(strip(part)) for change, part in zip(convert, parts, strict=False)]
            raise _misnamed("service instance identifier", "|".join(known + parts[len(known) :]))
        system, service, number = map(strip, parts)
        return f"{self.system_name(system)}|{self.service_name(service)}|{version(number)}"

    def _name(
        self, text: str, is_name: Callable[[str], object], convert: Callable[[str], str], kind: str
    ) -> str:
        if is_name(text):
            return text
        name = convert(text)
        if not is_name(name):
            raise _misnamed(kind, name)
        return name

    def _pascal_case(self, text: str) -> str:
        return self._conventional(text, _UPPER)

    def _camel_case(self, text: str) -> str:
        return self._conventional(text, _LOWER)

    def _conventional(self, text: str, first: dict[int, int]) -> str:
        if not self.extended:
            return text
        text = _SEPARATORS.sub("_", _WHITE_SPACE.sub("_", text))
        tail = _LATER_SEPARATOR.sub(lambda match: match[1].translate(_UPPER), text[1:])
        return text[:1].translate(first) + tail


def _misnamed(kind: str, name: str) -> ValueError:
    return ValueError(f"The specified {kind} does not match the naming convention: {name}")


def version(text: str) -> str:
    """Return a Version, three numbers, completed when it is short (`2` is `2.0.0`).

    Raises:
        ValueError: the contract's version messages, tried in the contract's order.
    """
    number = _complete_version(text)
    for is_wrong, problem in (
        (len(number) > VERSION_MAX_LENGTH, "version is too long"),
        (number.count(".") != 2, "version must contain exactly 2 separator . characters"),
        (len(_parts(number)) != 3, "version must contain exactly 3 numbers"),
        (
            not all(map(_DIGITS, number.split("."))),
            "the version should only contain numbers and separator . characters",
        ),
    ):
        if is_wrong:
            raise ValueError(f"Version verification failure: {problem}")
    return number


def _complete_version(text: str) -> str:
    parts = _parts(text or "1")
    if len(parts) in (1, 2):
        return ".".join(parts + ["0"] * (3 - len(parts)))
    return text


def _parts(number: str) -> list[str]:
    """Return the parts of a version, without trailing empty ones."""
    return number.rstrip(".").split(".") if number.strip(".") else []


def uuid(text: str) -> str:
    """Return a UUID in its textual form of RFC 9562, lower case.

    Raises:
        ValueError: the text is not a UUID. The error has no message: the contract has one for each
            place.
    """
    text = text.lower()
    if not _UUID(text):
        raise ValueError
    return text


def second(text: str, round_up: bool = False) -> str:
    """Return the whole second of a DateTime, in UTC.

    A moment after the year 9999 is `END_OF_TIME`, one before the year 1 is `START_OF_TIME`.

    Args:
        text: the DateTime.
        round_up: round a fraction up to the next second, instead of cutting it off.

    Raises:
        ValueError: `text` is not a DateTime of the contract. The error has no message.
    """
    if _CANONICAL_INSTANT(text):  # a short cut: without it, reading 100 locks takes twice as long
        datetime.fromisoformat(text[:-1])  # the calendar may have no such day
        return text
    match = _INSTANT(text)
    if not match:
        raise ValueError
    year, day, clock, fraction, sign, hours, minutes = match.groups()
    # Python's calendar begins with the year 1; the year 0 has the same days as the year 4.
    local = datetime.fromisoformat(f"{'0004' if year == '0000' else year}{day}T{clock}")
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    if offset > timedelta(hours=MAX_OFFSET_HOURS):
        raise ValueError
    if year == "0000":
        return START_OF_TIME
    rounding = timedelta(seconds=1 if round_up and fraction and fraction.strip("0") else 0)
    shift = rounding + (offset if sign == "-" else -offset)
    try:
        return write_instant(local + shift)
    except OverflowError:
        return END_OF_TIME if shift > timedelta(0) else START_OF_TIME


def write_instant(utc: datetime) -> str:
    """Return a naive UTC time as the contract's DateTime, `YYYY-MM-DDThh:mm:ssZ`."""
    return utc.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def duration(seconds: int) -> str:
    """Return a duration in the form of ISO 8601. As text it sorts after every DateTime."""
    return f"PT{seconds}S"


def is_duration(text: str) -> bool:
    """Return whether a text is a duration (`duration`), and not a DateTime."""
    return text.startswith("P")


def end_of(duration: str, time: float) -> str:
    """Return the second at which a duration ends, rounded up.

    Args:
        duration: the duration, as `duration` returns it.
        time: when it begins, in seconds since the epoch.
    """
    return write_second(min(ceil(time + int(duration[2:-1])), LAST_SECOND))


@lru_cache(maxsize=1)  # a create asks three times for the present second: 3 % of its cost
def write_second(second: int) -> str:
    """Return a second since the epoch as a DateTime."""
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(second))
