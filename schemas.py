"""The wire: what each request may hold and what each answer looks like, as marshmallow schemas.

One field class per type of the contract's table "Values". A schema is made once, for one
application's settings, and used for every request.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, NoReturn

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validates_schema
from marshmallow import missing as absent

from orchmgmt import values
from orchmgmt.databases import Row
from orchmgmt.databases.queries import Page
from orchmgmt.errors import InvalidParameter
from orchmgmt.models import FINISHED, IN_PROGRESS, PENDING, STATUSES, TYPES, NewLock
from orchmgmt.settings import Settings

INTEGER_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)
LOCK_ID_MAX = 2**62  # new ids go on from the largest: as many again are left

IN_THE_PAST = "Expires at is in the past"

# What counts first: a wrong JSON type, then what is missing or contradicts something else, then a
# value's form, then its name.
WRONG_TYPE, INCOMPLETE, MALFORMED, MISNAMED = range(4)


class Fault(str):
    """A message of the contract, and how early it counts among several."""

    rank: int

    def __new__(cls, rank: int, message: str) -> "Fault":
        """Return a message of this rank."""
        fault = super().__new__(cls, message)
        fault.rank = rank
        return fault


def is_blank(value: Any) -> bool:
    """Return whether a JSON value is the same as none."""
    return value is None or (isinstance(value, str) and not values.strip(value))


def _fail(rank: int, message: str) -> NoReturn:
    raise ValidationError(Fault(rank, message))


class Value(fields.Field[Any]):
    """A value of the contract: `null`, the empty string and white space are the same as absent.

    Args:
        missing: the message when there is no value; without one the value is optional.
        invalid: the message, before the value, when it is malformed.
    """

    type_name = "a string"

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
        self.invalid = invalid

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the canonical form of `value`, or that it is absent.

        Raises:
            ValidationError: with the contract's message, a `Fault`.
        """
        if isinstance(value, str):
            value = values.strip(value)
        if value is absent or value is None or value == "":
            if self.missing is not None:
                _fail(INCOMPLETE, self.missing)
            return self.load_default
        return self._convert(value)

    def read(self, value: Any) -> Any:
        """Return the canonical form of a value by itself.

        Raises:
            InvalidParameter: with the value's fault.
        """
        try:
            return self.deserialize(value)
        except ValidationError as error:
            raise InvalidParameter(first_fault(error.messages)) from None

    def _convert(self, value: Any) -> Any:
        """Return the canonical form of what is not blank."""
        if not isinstance(value, str):
            self._refuse_type()
        try:
            return self._canonical(value)
        except ValueError as error:
            if self.invalid is None:
                _fail(MISNAMED, str(error))
            _fail(MALFORMED, f"{self.invalid}: {value}")

    def _canonical(self, text: str) -> Any:
        return text

    def _refuse_type(self) -> NoReturn:
        name = self.data_key or self.name or type(self).__name__.lower()
        _fail(WRONG_TYPE, f"{name} must be {self.type_name}")


class Name(Value):
    """A value that the application's naming normalises."""

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        super()._bind_to_schema(field_name, parent)
        self._naming: values.Naming = self.root.settings.naming  # type: ignore[union-attr]


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


class DateTime(Value):
    """A moment, in whole seconds of UTC.

    Args:
        round_up: count a fraction as the whole second, instead of cutting it off.
        stored: the moment must be one that can be returned: a year from 1 to 9999.
    """

    def __init__(self, *, round_up: bool, stored: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._second = values.second_from if round_up else values.second_until
        self._stored = stored

    def _canonical(self, text: str) -> str:
        second = self._second(text)
        if self._stored and second in (values.START_OF_TIME, values.END_OF_TIME):
            raise ValueError
        return second


class FutureDateTime(DateTime):
    """A DateTime that has not come yet, as far as the schema knows what time it is.

    Args:
        past: the message, before the value, when it has.
    """

    def __init__(self, *, past: str, **kwargs: Any) -> None:
        super().__init__(round_up=True, **kwargs)
        self._past = past

    def _canonical(self, text: str) -> str:
        second = super()._canonical(text)
        if second <= self.root.present:  # type: ignore[union-attr]
            _fail(MALFORMED, f"{self._past}: {text}")
        if second == values.END_OF_TIME:
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
        self._minimum = minimum
        self._maximum = maximum

    def _convert(self, value: Any) -> int:
        if isinstance(value, str):
            digits = value.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
                self._refuse_type()
            value = int(value)
        if type(value) is not int:
            self._refuse_type()
        if not self._minimum <= value <= self._maximum:
            name = self.data_key or self.name
            _fail(WRONG_TYPE, f"{name} must be from {self._minimum} to {self._maximum}")
        return value


class Choice(Value):
    """One of a few words, in any letter case.

    Args:
        sentence: the message when it is none of them, if that does not name the value.
    """

    words: ClassVar[Sequence[str]] = ()

    def __init__(self, *, sentence: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sentence = sentence

    def _canonical(self, text: str) -> str:
        # Only ASCII letters have a case here: "ſ".upper() would be an S.
        word = text.upper() if text.isascii() else ""
        if word not in self.words:
            if self._sentence is not None:
                _fail(MALFORMED, self._sentence)
            raise ValueError
        return word


class Direction(Choice):
    """Ascending or descending."""

    words = ("ASC", "DESC")


class JobStatus(Choice):
    """How far a job got."""

    words = STATUSES


class JobType(Choice):
    """Who asked for a job: the requester itself, or a subscription."""

    words = TYPES


class Flag(Value):
    """A JSON boolean."""

    type_name = "true or false"

    def _convert(self, value: Any) -> bool:
        if not isinstance(value, bool):
            self._refuse_type()
        return value


class Message(Value):
    """Free text. What no database or JSON text can hold becomes U+FFFD: a message is never lost."""

    def _canonical(self, text: str) -> str:
        text = text.replace("\0", "\ufffd")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class SortField(Value):
    """One of a table's fields that a query may sort by, returned as the model calls it."""

    def __init__(self, sort_fields: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sort_fields = sort_fields

    def _canonical(self, text: str) -> str:
        if text not in self._sort_fields:
            allowed = ", ".join(self._sort_fields)
            _fail(MALFORMED, f"Sort field is invalid. Only the following are allowed: [{allowed}]")
        return self._sort_fields[text]


class ListOf(fields.Field[Any]):
    """A filter's list of values; absent, `null` and `[]` are the same.

    Args:
        element: the type of its elements.
        empty: the message when an element is missing.
        missing: the message when the list is; without one the list is optional.
    """

    def __init__(
        self,
        element: Value,
        *,
        empty: str,
        missing: str | None = None,
        data_key: str | None = None,
    ) -> None:
        super().__init__(data_key=data_key)
        self.missing = missing
        self._element = element
        element.missing = empty

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        super()._bind_to_schema(field_name, parent)
        self._element = deepcopy(self._element)
        self._element._bind_to_schema(f"an element of {self.data_key or field_name}", self)

    def deserialize(self, value: Any, attr: Any = None, data: Any = None, **kwargs: Any) -> Any:
        """Return the values in canonical form, or that there are none.

        Raises:
            ValidationError: with the contract's message, a `Fault`: that an element is missing, or
                what is wrong with the first bad one.
        """
        if value is absent or value is None or value == []:
            if self.missing is not None:
                _fail(INCOMPLETE, self.missing)
            return absent
        if not isinstance(value, list):
            _fail(WRONG_TYPE, f"{self.data_key or self.name} must be a list")
        found = []
        for index, element in enumerate(value):
            try:
                found.append(self._element.deserialize(element))
            except ValidationError as error:
                # Only one fault counts: a long list of them must not cost anything.
                if any(map(is_blank, value[index:])):
                    _fail(INCOMPLETE, self._element.missing or "")
                raise error
        return found


class WireSchema(Schema):
    """A JSON object of the contract; keys that the contract does not name are ignored.

    Args:
        settings: the application's settings.
        present: the DateTime up to which all is past. Only the database knows what time it is: by
            default nothing is past, and who writes to it sees to that.
    """

    class Meta:
        unknown = EXCLUDE

    def __init__(self, settings: Settings, present: str = "") -> None:
        self.settings = settings
        self.present = present
        super().__init__()
        self.error_messages["type"] = Fault(WRONG_TYPE, "A JSON object was expected")
        self._fields = [
            (name, field.data_key or name, field.deserialize)
            for name, field in self.load_fields.items()
        ]

    def read(self, payload: Any) -> Any:
        """Return what a payload holds.

        Raises:
            InvalidParameter: with the payload's first fault.
        """
        try:
            return self.load(payload)
        except ValidationError as error:
            raise InvalidParameter(first_fault(error.messages)) from None

    def load(self, data: Any, **kwargs: Any) -> Any:
        """Return what `data` holds: field by field, in half of the time that marshmallow takes.

        marshmallow is left to tell what is wrong.

        Raises:
            ValidationError: with every fault.
        """
        try:
            return self._load_good(data)
        except ValidationError:
            return super().load(data, **kwargs)

    def _load_good(self, data: Any) -> Any:
        """As `load`, of what has no fault; else a ValidationError that says little."""
        if not isinstance(data, dict):
            raise ValidationError("")
        found = {}
        for name, key, deserialize in self._fields:
            value = deserialize(data.get(key, absent))
            if value is not absent:
                found[name] = value
        return found


def first_fault(messages: Any) -> Fault:
    """Return the fault that counts: the one of the lowest rank, the first among several."""
    return min(_faults(messages), key=lambda fault: fault.rank)


def _faults(messages: Any) -> Iterator[Fault]:
    if isinstance(messages, Mapping):
        for inner in messages.values():
            yield from _faults(inner)
    else:
        yield from messages


class Pagination(WireSchema):
    """The contract's section "Pagination", loaded as a `Page`."""

    page = Number(default=None)
    size = Number(default=None)
    direction = Direction(
        default="DESC", sentence="Direction is invalid. Only ASC or DESC are allowed"
    )

    def _load_good(self, data: Any) -> Any:
        found = super()._load_good(data)
        self._check_size(found)
        return self._make_page(found)

    @validates_schema(skip_on_field_errors=False)
    def _check_size(self, data: dict[str, Any], **kwargs: Any) -> None:
        page, size, largest = data.get("page"), data.get("size"), self.settings.max_page_size
        if page is None and size is not None:
            _fail(
                INCOMPLETE, "If size parameter is defined then page parameter cannot be undefined"
            )
        if size is None and page is not None:
            _fail(
                INCOMPLETE, "If page parameter is defined then size parameter cannot be undefined"
            )
        if size is not None and size > largest:
            _fail(INCOMPLETE, f"The page size cannot be larger than {largest}")

    @post_load
    def _make_page(self, data: dict[str, Any], **kwargs: Any) -> Page:
        size = data["size"]
        return Page(
            number=max(data["page"] or 0, 0),
            size=self.settings.max_page_size if size is None or size < 1 else size,
            sort_field=data["sort_field"],
            descending=data["direction"] == "DESC",
        )


class LockPagination(Pagination):
    """Pages of locks."""

    sort_field = SortField(
        {
            "id": "id",
            "owner": "owner",
            "serviceInstanceId": "service_instance_id",
            "expiresAt": "expires_at",
        },
        data_key="sortField",
        default=None,
    )


class HistoryPagination(Pagination):
    """Pages of jobs."""

    sort_field = SortField(
        {
            "id": "id",
            "createdAt": "created_at",
            "startedAt": "started_at",
            "finishedAt": "finished_at",
        },
        data_key="sortField",
        default=None,
    )


class Paged(Value):
    """A query's `pagination`; without one, the first page in the default order."""

    type_name = "an object"

    def __init__(self, schema: type[Pagination]) -> None:
        super().__init__()
        self._class = schema

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        super()._bind_to_schema(field_name, parent)
        self._schema = self._class(parent.settings)
        self.load_default = self._schema.load({})

    def _convert(self, value: Any) -> Any:
        if not isinstance(value, dict):
            self._refuse_type()
        return self._schema.load(value)


class LockRequest(WireSchema):
    """One element of a create request's `locks`."""

    service_instance_id = ServiceInstanceId(
        data_key="serviceInstanceId", missing="Service instance id is missing"
    )
    owner = SystemName(missing="Owner is missing")
    expires_at = FutureDateTime(
        data_key="expiresAt",
        missing="Expiration time is missing",
        invalid="Invalid expires at format",
        past=IN_THE_PAST,
    )


class Reservation(LockRequest):
    """A temporary lock for a job (`Locks.reserve`)."""

    orchestration_job_id = Uuid(
        data_key="orchestrationJobId",
        missing="Orchestration job id is missing",
        invalid="Invalid orchestration job id",
    )


class LockRequests(Value):
    """A create request's `locks`, loaded as a list of `NewLock`."""

    type_name = "a list"

    def _bind_to_schema(self, field_name: str, parent: Any) -> None:
        super()._bind_to_schema(field_name, parent)
        self._schema = LockRequest(parent.settings, parent.present)

    def _convert(self, value: Any) -> list[NewLock]:
        if value == []:
            _fail(INCOMPLETE, self.missing or "")
        if not isinstance(value, list):
            self._refuse_type()
        locks = []
        for element in value:
            if element is None:
                _fail(INCOMPLETE, "Request payload contains null element")
            locks.append(NewLock(**self._schema.read(element)))
        return locks


class LockCreate(WireSchema):
    """The body of lock create: ServiceOrchestrationLockListRequest."""

    locks = LockRequests(missing="Request payload is empty")

    def read(self, payload: Any) -> list[NewLock]:
        """Return the locks to make.

        Raises:
            InvalidParameter: with the payload's first fault.
        """
        if payload is None:
            raise InvalidParameter("Request payload is null")
        locks: list[NewLock] = super().read(payload)["locks"]
        return locks


class QuerySchema(WireSchema):
    """The body of a query: loaded as the filters asked for, and the page."""

    def read(self, payload: Any) -> tuple[dict[str, Any], Page]:
        """Return the filters, each with its values, and the page.

        Raises:
            InvalidParameter: with the payload's first fault.
        """
        wanted: dict[str, Any] = super().read({} if payload is None else payload)
        page: Page = wanted.pop("pagination")
        return wanted, page


class LockQuery(QuerySchema):
    """The body of lock query: ServiceOrchestrationLockQueryRequest."""

    pagination = Paged(LockPagination)
    ids = ListOf(Number(), empty="ID list contains empty element")
    orchestration_job_ids = ListOf(
        Uuid(invalid="Invalid orchestration job id"),
        data_key="orchestrationJobIds",
        empty="Orchestration job id list contains empty element",
    )
    service_instance_ids = ListOf(
        ServiceInstanceId(),
        data_key="serviceInstanceIds",
        empty="Service instance id list contains empty element",
    )
    owners = ListOf(SystemName(), empty="Owner list contains empty element")
    expires_before = DateTime(
        data_key="expiresBefore", invalid="Invalid expires before", round_up=True
    )
    expires_after = DateTime(
        data_key="expiresAfter", invalid="Invalid expires after", round_up=False
    )


class LockRemove(WireSchema):
    """The owner and the instances of lock remove, from its path and its query string."""

    owner = SystemName(missing="Owner is missing")
    service_instance_ids = ListOf(
        ServiceInstanceId(),
        data_key="instanceIds",
        missing="Service instance id list empty",
        empty="Service instance id list contains empty element",
    )

    def read_path(self, owner: str, instance_ids: Sequence[str]) -> tuple[str, list[str]]:
        """Return the owner and the instances.

        Args:
            owner: the path's last part.
            instance_ids: each `instanceIds` of the query string: ids separated by commas.

        Raises:
            InvalidParameter: with the request's first fault.
        """
        instances = [part for text in instance_ids for part in text.split(",")]
        if len(instances) == 1 and not values.strip(instances[0]):
            instances = []
        loaded = self.read({"owner": owner, "instanceIds": instances})
        return loaded["owner"], loaded["service_instance_ids"]


class HistoryQuery(QuerySchema):
    """The body of history query: ServiceOrchestrationHistoryQueryRequest."""

    pagination = Paged(HistoryPagination)
    ids = ListOf(
        Uuid(invalid="Invalid orchestration job id"), empty="ID list contains empty element"
    )
    statuses = ListOf(
        JobStatus(invalid="Invalid status"), empty="Status list contains empty element"
    )
    type = JobType(invalid="Invalid type")
    requester_systems = ListOf(
        SystemName(),
        data_key="requesterSystems",
        empty="Requester system list contains empty element",
    )
    target_systems = ListOf(
        SystemName(),
        data_key="targetSystems",
        empty="Target system list contains empty element",
    )
    service_definitions = ListOf(
        ServiceName(),
        data_key="serviceDefinitions",
        empty="Service definition list contains empty element",
    )
    subscription_ids = ListOf(
        Uuid(invalid="Invalid subscription id"),
        data_key="subscriptionIds",
        empty="Subscription ID list contains empty element",
    )


class EntrySchema(WireSchema):
    """A response's entry. It dumps rows of the table, whose columns are this schema's fields."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        named = {field.data_key or name: field for name, field in self.dump_fields.items()}
        self._keys = tuple(named)
        self._flags = [key for key, field in named.items() if isinstance(field, Flag)]

    def dump(self, obj: Iterable[Row], **kwargs: Any) -> list[dict[str, Any]]:
        """Return rows as entries: but for SQLite's booleans, they are in their wire form already.

        Args:
            obj: rows of the table.
        """
        keys = self._keys
        entries = [dict(zip(keys, row, strict=True)) for row in obj]
        for key in self._flags:
            for entry in entries:
                entry[key] = bool(entry[key])
        if self.settings.omit_empty:
            return [{key: it for key, it in entry.items() if it != ""} for entry in entries]
        return entries


class LockEntry(EntrySchema):
    """A lock, as queries return it and as `lock import` reads it."""

    id = Number(minimum=1, maximum=LOCK_ID_MAX, default=None)
    orchestration_job_id = Uuid(
        data_key="orchestrationJobId", invalid="Invalid orchestration job id", default=""
    )
    service_instance_id = ServiceInstanceId(
        data_key="serviceInstanceId", missing="Service instance id is missing"
    )
    owner = SystemName(missing="Owner is missing")
    expires_at = DateTime(
        data_key="expiresAt",
        missing="Expiration time is missing",
        invalid="Invalid expires at format",
        round_up=True,
        stored=True,
    )
    temporary = Flag(default=False)


class JobEntry(EntrySchema):
    """A job, as queries return it and as `history import` reads it."""

    id = Uuid(invalid="Invalid orchestration job id", default=None)
    status = JobStatus(invalid="Invalid status", missing="Status is missing")
    type = JobType(invalid="Invalid type", missing="Type is missing")
    requester_system = SystemName(data_key="requesterSystem", missing="Requester system is missing")
    target_system = SystemName(data_key="targetSystem", missing="Target system is missing")
    service_definition = ServiceName(
        data_key="serviceDefinition", missing="Service definition is missing"
    )
    subscription_id = Uuid(data_key="subscriptionId", invalid="Invalid subscription id", default="")
    message = Message(default="")
    created_at = DateTime(
        data_key="createdAt",
        missing="Creation time is missing",
        invalid="Invalid created at format",
        round_up=False,
        stored=True,
    )
    started_at = DateTime(
        data_key="startedAt",
        invalid="Invalid started at format",
        round_up=False,
        stored=True,
        default="",
    )
    finished_at = DateTime(
        data_key="finishedAt",
        invalid="Invalid finished at format",
        round_up=False,
        stored=True,
        default="",
    )

    def _load_good(self, data: Any) -> Any:
        found = super()._load_good(data)
        self._check_life(found)
        return found

    @validates_schema
    def _check_life(self, data: dict[str, Any], **kwargs: Any) -> None:
        finished = data["status"] in FINISHED
        if finished and not data["finished_at"]:
            _fail(INCOMPLETE, "A finished job must have finishedAt")
        if not finished and data["finished_at"]:
            _fail(INCOMPLETE, "An unfinished job cannot have finishedAt")
        if data["status"] == IN_PROGRESS and not data["started_at"]:
            _fail(INCOMPLETE, "A job in progress must have startedAt")
        if data["status"] == PENDING and data["started_at"]:
            _fail(INCOMPLETE, "A pending job cannot have startedAt")


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text says (RFC 8259: UTF-8, no duplicated keys, no NaN).

    Raises:
        InvalidParameter: it is malformed; the message says where.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return _DECODER.decode(text)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise InvalidParameter(f"Malformed JSON: {reason}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicated key {json.dumps(key)}")
            seen.add(key)
    return found


def _integer(digits: str) -> int | float:
    # More digits than 64 bits have are a number all the same, but no Number.
    return int(digits) if len(digits) <= 20 else float("inf")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def write_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return _ENCODER.encode(value)
