"""The types of the contract's table "Values", as marshmallow fields.

Each brings a JSON value to its canonical form, or raises a `Fault` that says what is wrong.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from marshmallow import ValidationError, fields
from marshmallow import missing as absent

from orchmgmt import values
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter
from orchmgmt.models import STATUSES, TYPES

INTEGER_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)
MESSAGE_MAX_LENGTH = 16_384

#: The ranks of faults. The first counts first: an unknown key, a wrong JSON type, a missing value,
#: a malformed value, a name against the naming convention, values that are right by themselves but
#: contradict each other.
UNKNOWN, WRONG_TYPE, INCOMPLETE, MALFORMED, MISNAMED, CONTRADICTORY = range(6)


class Fault(InvalidParameter, ValidationError):
    """What is wrong with a payload, in the contract's words.

    Attributes:
        rank: of several faults in a payload, the one with the lowest rank counts.
        place: the element of the request's list that has the fault, from 0; `None` if the fault is
            not in an element.
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.place: int | None = None


def is_blank(value: Any) -> bool:
    """Return whether a JSON value counts as absent."""
    return value is None or (isinstance(value, str) and not values.strip(value))


class Value(fields.Field[Any]):
    """A value of the contract: `null`, the empty string and white space count as no value.

    Args:
        absent_message: the message if there is no value; without it the value is optional.
        unless: the key of a value that may be given instead.
        invalid_message: the message if the value is malformed, with `{}` for the value; by default
            the message of the type.
        kwargs: the arguments of marshmallow's fields, such as `load_default`, which replaces a
            missing value, and `data_key`, a key that is not the field's name in camelCase. OpenAPI
            shows the `description` in `metadata` beside what the type says.
    """

    type_name: ClassVar[str] = "a string"
    invalid_message: str | None = None

    #: What OpenAPI says of the value, and the pattern of its canonical form.
    described: ClassVar[Mapping[str, Any]] = {"type": "string"}
    canonical = ""

    def __init__(
        self,
        *,
        absent_message: str | None = None,
        unless: str = "",
        invalid_message: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(required=absent_message is not None, **kwargs)
        self.absent_message = absent_message or ""
        self.unless = unless
        self.invalid_message = invalid_message or self.invalid_message

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the canonical form of `value`, or what replaces a missing value.

        Raises:
            Fault: the value is missing but required, or it is wrong.
        """
        if isinstance(value, str):
            value = values.strip(value)
        if value is absent or value is None or value == "":
            if self.required and (not self.unless or is_blank((data or {}).get(self.unless))):
                raise Fault(INCOMPLETE, self.absent_message)
            return self.load_default
        return self._from_json(value)

    def _from_json(self, value: Any) -> Any:
        """Return the canonical form of a value that is not blank."""
        if not isinstance(value, str):
            raise self._wrong_type()
        try:
            return self._from_text(value)
        except ValueError as error:
            if self.invalid_message is None:
                raise Fault(MISNAMED, str(error)) from None
            raise Fault(MALFORMED, self.invalid_message.format(value)) from None

    def _from_text(self, text: str) -> Any:
        """Return the canonical form of a string, or raise ValueError."""
        return text

    def describe(self, in_answer: bool) -> dict[str, Any]:
        """Return what OpenAPI says of the value.

        Args:
            in_answer: whether the value is in an answer, and so in its canonical form.
        """
        pattern = {"pattern": self.canonical} if in_answer and self.canonical else {}
        return {**self.described, **pattern}

    def _wrong_type(self, expected: str | None = None) -> Fault:
        key = self.data_key or f"an element of {self.parent.data_key}"  # type: ignore[union-attr]
        return Fault(WRONG_TYPE, f"{key} must be {expected or self.type_name}")


def _name(first: str) -> str:
    """The pattern of a name that begins with one of these letters."""
    return f"[{first}][0-9A-Za-z]{{0,{values.NAME_MAX_LENGTH - 1}}}"


class Name(Value):
    """A value that is normalised as the setting `NORMALIZATION_MODE` says."""

    @cached_property
    def _naming(self) -> values.Naming:
        naming: values.Naming = self.root.settings.naming  # type: ignore[union-attr]
        return naming


class SystemName(Name):
    """A system's name, PascalCase."""

    described: ClassVar[Mapping[str, Any]] = {"type": "string", "pattern": f"^{_name('A-Z')}$"}

    def _from_text(self, text: str) -> str:
        return self._naming.system_name(text)


class ServiceName(Name):
    """A service definition's name, camelCase."""

    described: ClassVar[Mapping[str, Any]] = {"type": "string", "pattern": f"^{_name('a-z')}$"}

    def _from_text(self, text: str) -> str:
        return self._naming.service_name(text)


class ServiceInstanceId(Name):
    """`SystemName|ServiceName|Version`."""

    described: ClassVar[Mapping[str, Any]] = {
        "type": "string",
        "pattern": rf"^{_name('A-Z')}\|{_name('a-z')}\|" + r"\.".join(3 * ["[0-9]{1,10}"]) + "$",
        "description": f"A version has at most {values.VERSION_MAX_LENGTH} characters.",
    }

    def _from_text(self, text: str) -> str:
        return self._naming.service_instance_id(text)


class Uuid(Value):
    """A UUID, returned in lower case."""

    described: ClassVar[Mapping[str, Any]] = {"type": "string", "format": "uuid"}
    canonical = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"

    def _from_text(self, text: str) -> str:
        return values.uuid(text)


class JobId(Uuid):
    """The id of an orchestration job."""

    invalid_message = "Invalid orchestration job id: {}"


class SubscriptionId(Uuid):
    """The id of the subscription that triggered a job."""

    invalid_message = "Invalid subscription id: {}"


class DateTime(Value):
    """A moment, in whole seconds of UTC.

    Args:
        round_up: round a fraction up to the next second, instead of cutting it off.
        stored: accept only a moment that can be returned, of the years 1 to 9999.
    """

    described: ClassVar[Mapping[str, Any]] = {"type": "string", "format": "date-time"}
    canonical = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"

    def __init__(self, *, round_up: bool = False, stored: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._round_up = round_up
        self._stored = stored

    def _from_text(self, text: str) -> str:
        second = values.second(text, self._round_up)
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

    def _from_json(self, value: Any) -> int:
        if isinstance(value, str):
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
                raise self._wrong_type()
            value = int(value)
        if type(value) is not int:
            raise self._wrong_type()
        if not self.minimum <= value <= self.maximum:
            if self.invalid_message is not None:
                raise Fault(MALFORMED, self.invalid_message.format(value))
            raise self._wrong_type(f"from {self.minimum} to {self.maximum}")
        return value

    def describe(self, in_answer: bool) -> dict[str, Any]:
        """Return what OpenAPI says of it."""
        limits = {"minimum": self.minimum, "maximum": self.maximum}
        return {"type": "integer", "format": "int64", **limits}


class Duration(Number):
    """A number of seconds, returned as a duration."""

    def _from_json(self, value: Any) -> Any:
        return values.duration(super()._from_json(value))


class Choice(Value):
    """One of a few words, in any letter case."""

    words: Sequence[str]

    def _from_text(self, text: str) -> str:
        # Only ASCII letters have a case here: "ſ".upper() would be an S.
        word = text.upper() if text.isascii() else ""
        if word not in self.words:
            raise ValueError
        return word

    def describe(self, in_answer: bool) -> dict[str, Any]:
        """Return what OpenAPI says of it."""
        return {"type": "string", "enum": list(self.words)}


class Direction(Choice):
    """Ascending or descending."""

    words = ("ASC", "DESC")
    invalid_message = "Direction is invalid. Only ASC or DESC are allowed"


class JobStatus(Choice):
    """How far a job has got."""

    words = STATUSES
    invalid_message = "Invalid status: {}"


class JobType(Choice):
    """Who asked for a job: the requester itself, or a subscription."""

    words = TYPES
    invalid_message = "Invalid type: {}"


class Flag(Value):
    """A JSON boolean."""

    type_name = "true or false"
    described: ClassVar[Mapping[str, Any]] = {"type": "boolean"}

    def _from_json(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong_type()
        return value


class Message(Value):
    """Free text. Its length is limited, which limits the size of a page of jobs.

    Characters that a database or a JSON text cannot hold become U+FFFD: no message is lost.
    """

    def _from_text(self, text: str) -> str:
        if len(text) > MESSAGE_MAX_LENGTH:
            raise Fault(MALFORMED, "Message is too long")
        text = text.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def describe(self, in_answer: bool) -> dict[str, Any]:
        """Return what OpenAPI says of it."""
        # Earlier versions accepted longer messages.
        limit = {} if in_answer else {"maxLength": MESSAGE_MAX_LENGTH}
        return {"type": "string", **limit}


class SortField(Choice):
    """The field that a query sorts by, returned as the model names it.

    Args:
        names: the fields that a query may sort by, as the model names them.
    """

    def __init__(self, *names: str, **kwargs: Any) -> None:
        self._names = {camel_case(name): name for name in names}
        self.words = list(self._names)
        allowed = ", ".join(self.words)
        message = f"Sort field is invalid. Only the following are allowed: [{allowed}]"
        super().__init__(invalid_message=message, **kwargs)

    def _from_text(self, text: str) -> str:
        if text not in self._names:
            raise ValueError
        return self._names[text]


class ListOf(fields.List[Any]):
    """A filter's list of values. `null` and `[]` count as no list.

    Args:
        element: the type of its elements.
        what: what the messages call an element.
        kwargs: as for `Value`; if `required`, the list must have an element.
    """

    def __init__(self, element: type[Value], what: str, **kwargs: Any) -> None:
        self.absent_message = f"{what} list empty"
        self._blank_message = f"{what} list contains empty element"
        super().__init__(element(absent_message=self._blank_message), **kwargs)

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the values in canonical form, or marshmallow's `missing` if there are none.

        Raises:
            Fault: the list is required and has no element, or an element is blank or wrong. A blank
                element counts first.
        """
        if value is absent or value is None or value == []:
            if self.required:
                raise Fault(INCOMPLETE, self.absent_message)
            return absent
        if not isinstance(value, list):
            raise Fault(WRONG_TYPE, f"{self.data_key} must be a list")
        try:
            return [self.inner.deserialize(element) for element in value]
        except Fault:
            if any(map(is_blank, value)):
                raise Fault(INCOMPLETE, self._blank_message) from None
            raise
