"""The types of the contract's table "Values", as marshmallow fields.

Each brings a JSON value to its canonical form, or says what is wrong with it.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from marshmallow import fields
from marshmallow import missing as absent

from orchmgmt import values
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter
from orchmgmt.models import STATUSES, TYPES

INTEGER_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)
MESSAGE_MAX_LENGTH = 16_384

# What counts first: a key that is not known, then a wrong JSON type, then what is missing, then a
# value's form, then its name, then values that are good by themselves and not together.
UNKNOWN, WRONG_TYPE, INCOMPLETE, MALFORMED, MISNAMED, CONTRADICTORY = range(6)


class Fault(InvalidParameter):
    """What is wrong with a value, in the contract's words.

    Attributes:
        rank: how early it counts among several.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank


def is_blank(value: Any) -> bool:
    """Return whether a JSON value is the same as none."""
    return value is None or (isinstance(value, str) and not values.strip(value))


class Value(fields.Field[Any]):
    """A value of the contract: `null`, the empty string and white space are the same as absent.

    Args:
        missing: the message when there is no value; without one the value is optional.
        invalid: the message when it is malformed, with `{}` for the value; by default the type's.
        default: what stands for no value.
        data_key: the key, if it is not the field's name in camelCase.
    """

    type_name: ClassVar[str] = "a string"
    invalid: str | None = None

    def __init__(
        self,
        *,
        missing: str | None = None,
        invalid: str | None = None,
        default: Any = absent,
        data_key: str | None = None,
    ) -> None:
        super().__init__(data_key=data_key, load_default=default)
        self.missing = missing
        self.invalid = invalid or self.invalid

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the canonical form of `value`, or what stands for none.

        Raises:
            Fault: there is no value and must be, or it is malformed.
        """
        if isinstance(value, str):
            value = values.strip(value)
        if value is absent or value is None or value == "":
            if self.missing is not None:
                raise Fault(INCOMPLETE, self.missing)
            return self.load_default
        return self._convert(value)

    def _convert(self, value: Any) -> Any:
        """Return the canonical form of what is not blank."""
        if not isinstance(value, str):
            raise self._wrong_type()
        try:
            return self._canonical(value)
        except ValueError as error:
            if self.invalid is None:
                raise Fault(MISNAMED, str(error)) from None
            raise Fault(MALFORMED, self.invalid.format(value)) from None

    def _canonical(self, text: str) -> Any:
        return text

    def _wrong_type(self, expected: str | None = None) -> Fault:
        key = self.data_key or f"an element of {self.parent.data_key}"  # type: ignore[union-attr]
        return Fault(WRONG_TYPE, f"{key} must be {expected or self.type_name}")


class Name(Value):
    """A value that the application's naming normalises."""

    @cached_property
    def _naming(self) -> values.Naming:
        naming: values.Naming = self.root.settings.naming  # type: ignore[union-attr]
        return naming


class SystemName(Name):
    """A system's name, PascalCase."""

    def _canonical(self, text: str) -> str:
        return self._naming.system_name(text)


class ServiceName(Name):
    """A service definition's name, camelCase."""

    def _canonical(self, text: str) -> str:
        return self._naming.service_name(text)


class ServiceInstanceId(Name):
    """`SystemName|ServiceName|Version`."""

    def _canonical(self, text: str) -> str:
        return self._naming.service_instance_id(text)


class Uuid(Value):
    """A UUID, returned in lower case."""

    def _canonical(self, text: str) -> str:
        return values.uuid(text)


class JobId(Uuid):
    """The id of an orchestration job."""

    invalid = "Invalid orchestration job id: {}"


class SubscriptionId(Uuid):
    """The id of the subscription that triggered a job."""

    invalid = "Invalid subscription id: {}"


class DateTime(Value):
    """A moment, in whole seconds of UTC.

    Args:
        round_up: count a fraction as the whole second, instead of cutting it off.
        stored: the moment must be one that can be returned: a year from 1 to 9999.
        past: the message, with `{}` for the value, when it is past, as far as the schema knows.
    """

    def __init__(
        self,
        *,
        round_up: bool = False,
        stored: bool = False,
        past: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._round_up = round_up
        self._stored = stored
        self._past = past

    def _canonical(self, text: str) -> str:
        second = values.second(text, self._round_up)
        if self._past and second <= self.root.present:  # type: ignore[union-attr]
            raise Fault(MALFORMED, self._past.format(text))
        if self._stored and second in (values.START_OF_TIME, values.END_OF_TIME):
            raise ValueError
        return second


class Number(Value):
    """A JSON integer of 64 bits, or a string of its digits.

    Args:
        minimum: the smallest.
        maximum: the largest.
    """

    type_name = "an integer"

    def __init__(
        self, *, minimum: int = INTEGER_MIN, maximum: int = INTEGER_MAX, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.minimum = minimum
        self.maximum = maximum

    def _convert(self, value: Any) -> int:
        if isinstance(value, str):
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
                raise self._wrong_type()
            value = int(value)
        if type(value) is not int:
            raise self._wrong_type()
        if not self.minimum <= value <= self.maximum:
            raise self._wrong_type(f"from {self.minimum} to {self.maximum}")
        return value


class Choice(Value):
    """One of a few words, in any letter case."""

    words: ClassVar[Sequence[str]]

    def _canonical(self, text: str) -> str:
        # Only ASCII letters have a case here: "ſ".upper() would be an S.
        word = text.upper() if text.isascii() else ""
        if word not in self.words:
            raise ValueError
        return word


class Direction(Choice):
    """Ascending or descending."""

    words = ("ASC", "DESC")
    invalid = "Direction is invalid. Only ASC or DESC are allowed"


class JobStatus(Choice):
    """How far a job got."""

    words = STATUSES
    invalid = "Invalid status: {}"


class JobType(Choice):
    """Who asked for a job: the requester itself, or a subscription."""

    words = TYPES
    invalid = "Invalid type: {}"


class Flag(Value):
    """A JSON boolean."""

    type_name = "true or false"

    def _convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong_type()
        return value


class Message(Value):
    """Free text, of a limited length so that a page of jobs has one too.

    What no database or JSON text can hold becomes U+FFFD: a message is never lost.
    """

    def _canonical(self, text: str) -> str:
        if len(text) > MESSAGE_MAX_LENGTH:
            raise Fault(MALFORMED, "Message is too long")
        text = text.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class SortField(Value):
    """One of a table's fields that a query may sort by, returned as the model calls it.

    Args:
        names: those fields, as the model calls them.
    """

    def __init__(self, *names: str, **kwargs: Any) -> None:
        self.names = {camel_case(name): name for name in names}
        allowed = ", ".join(self.names)
        message = f"Sort field is invalid. Only the following are allowed: [{allowed}]"
        super().__init__(invalid=message, **kwargs)

    def _canonical(self, text: str) -> str:
        if text not in self.names:
            raise ValueError
        return self.names[text]


class ListOf(fields.List[Any]):
    """A filter's list of values; absent, `null` and `[]` are the same.

    Args:
        element: the type of its elements.
        what: what the messages call its elements.
        needed: whether there must be some.
        data_key: as `Value` has it.
    """

    def __init__(
        self, element: Value, what: str, *, needed: bool = False, data_key: str | None = None
    ) -> None:
        super().__init__(element, data_key=data_key)
        self.missing = f"{what} list empty" if needed else None
        self._empty = element.missing = f"{what} list contains empty element"

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the values in canonical form, or that there are none.

        Raises:
            Fault: an element is missing, or what is wrong with the first bad one.
        """
        if value is absent or value is None or value == []:
            if self.missing is not None:
                raise Fault(INCOMPLETE, self.missing)
            return absent
        if not isinstance(value, list):
            raise Fault(WRONG_TYPE, f"{self.data_key} must be a list")
        try:
            return [self.inner.deserialize(element) for element in value]
        except Fault:
            if any(map(is_blank, value)):
                raise Fault(INCOMPLETE, self._empty) from None
            raise
