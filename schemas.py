"""The payloads: the JSON of requests and answers, and what each may hold, as marshmallow schemas.

The fields and the hooks are marshmallow's, and so is `load`. The service calls `WireSchema.read`,
which returns the same as `load`, or raises the fault that the contract puts first. Reading takes
a third of the time of loading: with `load`, creating 100 locks over HTTP takes 8.1 ms of processor
time instead of 6.0 ms, and importing 20,000 locks 2.1 s instead of 1.5 s.

Each application makes its schemas once, from its settings, and uses them for every request.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, ClassVar, NoReturn

from marshmallow import EXCLUDE, RAISE, Schema, post_load, validates_schema
from marshmallow import missing as absent
from marshmallow.fields import Field
from peewee import Model

from orchmgmt import entries, fields, values
from orchmgmt.databases import Row
from orchmgmt.databases.queries import Page
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter
from orchmgmt.fields import CONTRADICTORY, INCOMPLETE, MALFORMED, UNKNOWN, WRONG_TYPE, Fault
from orchmgmt.models import FINISHED, IN_PROGRESS, PENDING, Job, Lock, NewLock, Renewal
from orchmgmt.settings import Settings
from orchmgmt.values import meant

#: The largest id that an import may contain: new ids continue from it, and as many remain.
LOCK_ID_MAX = 2**62

NOT_UTF_8 = "it is not UTF-8"

#: The longest `expiresIn`, in seconds: a year.
EXPIRES_IN_MAX = 31_536_000

CREATED_AT = "Invalid created at format: {}"
STARTED_AT = "Invalid started at format: {}"
FINISHED_AT = "Invalid finished at format: {}"

_QUOTED = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])*)"').fullmatch
_KEY = re.compile("[!-~]{1,64}").fullmatch


class WireSchema(Schema):
    """A JSON object of the contract.

    Unknown keys are ignored, or refused if the setting `UNKNOWN_KEYS` says so.

    Args:
        settings: the application's settings.

    Attributes:
        title: its name in the data models of Eclipse Arrowhead, or a name that we chose.
    """

    title: ClassVar[str] = ""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__(unknown=RAISE if settings.unknown_keys == "refuse" else EXCLUDE)
        self._readers = [
            (name, field.data_key, field.deserialize) for name, field in self.load_fields.items()
        ]
        self._keys = [key for _, key, _ in self._readers]

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        """Give a field its key."""
        field_obj.data_key = field_obj.data_key or camel_case(field_name)

    def read(self, payload: Any) -> Any:
        """Return what a payload holds, like `load`.

        Raises:
            Fault: the payload is wrong; of several faults, this is the first by rank.
        """
        if not isinstance(payload, dict):
            raise Fault(WRONG_TYPE, "A JSON object was expected")
        self._refuse_unknown(payload, self._keys)
        found: dict[str, Any] = {}
        faults = []
        for name, key, deserialize in self._readers:
            try:
                value = deserialize(payload.get(key, absent), name, payload)
            except Fault as fault:
                faults.append(fault)
            else:
                if value is not absent:
                    found[name] = value
        try:
            self._check(found)
        except Fault as fault:
            faults.append(fault)
        if faults:
            raise min(faults, key=lambda fault: fault.rank)
        return self._make(found)

    def _refuse_unknown(self, keys: Iterable[str], known: Sequence[Any]) -> None:
        """Raise the Fault of the first unknown key, if unknown keys are refused."""
        if self.unknown == EXCLUDE:
            return
        for key in keys:
            if key not in known:
                raise Fault(UNKNOWN, f"Unknown key: {key}{meant(key, known)}")

    def _check(self, data: dict[str, Any], **kwargs: Any) -> None:
        """Raise a Fault if values contradict each other.

        A method that overrides this one is also a hook of marshmallow, so that `load` calls it too.

        Args:
            data: the values that are right by themselves.
        """

    def _make(self, data: dict[str, Any], **kwargs: Any) -> Any:
        """Return what the service works with, made of right values. It is a hook likewise."""
        return data


class Pagination(WireSchema):
    """The contract's section "Pagination", read as a `Page`."""

    page = fields.Number(load_default=None, metadata={"description": "Pages count from 0."})
    size = fields.Number(
        load_default=None,
        metadata={"description": "Entries of a page; less than 1 stands for the maximum."},
    )
    direction = fields.Direction(load_default="DESC")

    @validates_schema(skip_on_field_errors=False)
    def _check(self, data: dict[str, Any], **kwargs: Any) -> None:
        page, size = data.get("page"), data.get("size")
        if (page is None) != (size is None):
            given, other = ("size", "page") if page is None else ("page", "size")
            raise Fault(
                INCOMPLETE,
                f"If {given} parameter is defined then {other} parameter cannot be undefined",
            )
        largest = self.settings.max_page_size
        if (size or 0) > largest:
            raise Fault(INCOMPLETE, f"The page size cannot be larger than {largest}")

    @post_load
    def _make(self, data: dict[str, Any], **kwargs: Any) -> Page:
        size = data["size"]
        return Page(
            number=max(data["page"] or 0, 0),
            size=self.settings.max_page_size if size is None or size < 1 else size,
            sort_field=data["sort_field"],
            descending=data["direction"] == "DESC",
        )


class LockPagination(Pagination):
    """Pages of locks."""

    title = "LockPagination"

    sort_field = fields.SortField(
        "id", "owner", "service_instance_id", "expires_at", load_default=None
    )


class HistoryPagination(Pagination):
    """Pages of jobs."""

    title = "HistoryPagination"

    sort_field = fields.SortField(
        "id", "created_at", "started_at", "finished_at", load_default=None
    )


class Nested(fields.Value):
    """An object within another, under the same settings.

    Args:
        schema: the schema that reads it.
    """

    type_name = "an object"

    def __init__(self, schema: type[WireSchema], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._class = schema

    @cached_property
    def schema(self) -> WireSchema:
        """The schema that reads it."""
        root: Any = self.root
        return self._class(root.settings)

    def _from_json(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self._wrong_type()
        return self.schema.read(value)


class NestedList(Nested):
    """A request's list of objects. It must not be empty; the fault is that of the first bad one."""

    type_name = "a list"

    def _from_json(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong_type()
        if not value:
            raise Fault(INCOMPLETE, self.absent_message)
        found = []
        try:
            for element in value:
                if element is None:
                    raise Fault(INCOMPLETE, "Request payload contains null element")
                found.append(self.schema.read(element))
        except Fault as fault:
            fault.place = len(found)
            raise
        return found


def _expiration(**kwargs: Any) -> fields.DateTime:
    return fields.DateTime(
        absent_message="Expiration time is missing",
        invalid_message="Invalid expires at format: {}",
        round_up=True,
        stored=True,
        **kwargs,
    )


class LockRequest(WireSchema):
    """One element of a create request's `locks`.

    It is read as a `NewLock`, whose end is `expiresAt` or, as a duration, `expiresIn`.

    Attributes:
        makes: what it is read as, made of its values by name.
    """

    title = "ServiceOrchestrationLockRequest"
    makes: ClassVar[Callable[..., Any]] = NewLock

    service_instance_id = fields.ServiceInstanceId(absent_message="Service instance id is missing")
    owner = fields.SystemName(absent_message="Owner is missing")
    expires_at = _expiration(
        unless="expiresIn",
        metadata={"description": "A time that is past is refused with 400."},
    )
    expires_in = fields.Duration(
        minimum=1,
        maximum=EXPIRES_IN_MAX,
        invalid_message="Invalid expires in: {}",
        metadata={"description": "Seconds from when the lock is granted, instead of `expiresAt`."},
    )

    @validates_schema(skip_on_field_errors=False)
    def _check(self, data: dict[str, Any], **kwargs: Any) -> None:
        if "expires_in" in data and "expires_at" in data:
            raise Fault(CONTRADICTORY, "Expires at and expires in exclude each other")

    @post_load
    def _make(self, data: dict[str, Any], **kwargs: Any) -> Any:
        if "expires_in" in data:
            data["expires_at"] = data.pop("expires_in")
        return self.makes(**data)


class Reservation(LockRequest):
    """A temporary lock for a job."""

    title = "Reservation"
    makes = staticmethod(partial(NewLock, temporary=True))

    orchestration_job_id = fields.JobId(absent_message="Orchestration job id is missing")


class RenewalRequest(LockRequest):
    """One element of a renew request's `locks`, read as a `Renewal`."""

    title = "RenewalRequest"
    makes = Renewal

    id = fields.Number(
        load_default=None, metadata={"description": "Only the lock with this id is renewed."}
    )


def payload_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Python program gives, by name, as a payload of the wire.

    Raises:
        InvalidParameter: a time has no zone.
    """
    try:
        return entries.to_wire(values)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None


def read_key(text: str) -> str:
    """Return an idempotency key, 1 to 64 visible ASCII characters, without its quotes.

    Args:
        text: the key, as it is or as a string of RFC 9651 (structured fields).

    Raises:
        InvalidParameter: the text is not such a key.
    """
    quoted = _QUOTED(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not _KEY(key) or (not quoted and key.startswith('"')):
        raise InvalidParameter("Invalid idempotency key")
    return key


class ListRequest(WireSchema):
    """A body that is required, and lists what to create. It is read as the list."""

    def read(self, payload: Any) -> Any:
        """Like `WireSchema.read`; a missing body, `None`, is a Fault."""
        if payload is None:
            raise Fault(INCOMPLETE, "Request payload is null")
        return super().read(payload)

    @post_load
    def _make(self, data: dict[str, Any], **kwargs: Any) -> Any:
        (elements,) = data.values()
        return elements


class LockCreate(ListRequest):
    """The body of lock create."""

    title = "ServiceOrchestrationLockListRequest"

    locks = NestedList(LockRequest, absent_message="Request payload is empty")

    def past_before(self, payload: Any, fault: InvalidParameter, present: str) -> str | None:
        """Return the first time in a refused payload that has passed and counts before the fault.

        Only the database knows the present. Times are compared with it when locks are created, and
        here only if something else is wrong with the payload.

        Args:
            payload: the payload.
            fault: why it was refused, when it was read or when its locks were created.
            present: times up to this DateTime have passed.

        Returns:
            The time as it was sent, or `None` if the fault counts first.
        """
        end = None
        if isinstance(fault, Fault):
            if fault.place is None:
                return None
            end = fault.place + (fault.rank >= MALFORMED)
        for element in payload["locks"][:end]:
            text = values.strip(element.get("expiresAt") or "")
            with suppress(ValueError):  # the time may be the fault, or missing
                if values.second(text, round_up=True) <= present:
                    return text
        return None


class LockReserve(LockCreate):
    """The body of lock reserve."""

    title = "LockReserveRequest"

    locks = NestedList(Reservation, absent_message="Request payload is empty")


class LockRenew(LockCreate):
    """The body of lock renew."""

    title = "LockRenewRequest"

    locks = NestedList(RenewalRequest, absent_message="Request payload is empty")


class QuerySchema(WireSchema):
    """The body of a query, read as the given filters, each with its values, and the page."""

    def read(self, payload: Any) -> Any:
        """Like `WireSchema.read`; a missing body, `None`, asks for everything."""
        return super().read({} if payload is None else payload)

    @post_load
    def _make(self, data: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], Page]:
        page = data.pop("pagination", None) or Page(0, self.settings.max_page_size)
        return data, page


class LockQuery(QuerySchema):
    """The body of lock query."""

    title = "ServiceOrchestrationLockQueryRequest"

    pagination = Nested(LockPagination)
    ids = fields.ListOf(fields.Number, "ID")
    orchestration_job_ids = fields.ListOf(fields.JobId, "Orchestration job id")
    service_instance_ids = fields.ListOf(fields.ServiceInstanceId, "Service instance id")
    owners = fields.ListOf(fields.SystemName, "Owner")
    expires_before = fields.DateTime(invalid_message="Invalid expires before: {}", round_up=True)
    expires_after = fields.DateTime(invalid_message="Invalid expires after: {}")


class LockRemove(WireSchema):
    """The owner and the instances of lock remove, from its path and its query string."""

    owner = fields.SystemName(absent_message="Owner is missing")
    service_instance_ids = fields.ListOf(
        fields.ServiceInstanceId,
        "Service instance id",
        required=True,
        data_key="instanceIds",
        metadata={
            "description": "Service instances; one value may also hold several, "
            "separated by commas."
        },
    )
    ids = fields.ListOf(
        fields.Number,
        "ID",
        metadata={
            "description": "If there are some, only locks with these ids are removed; likewise."
        },
    )

    def from_path(self, owner: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """Return the payload.

        Args:
            owner: the path's last part.
            query: the values of the query string by key: `instanceIds` and `ids`, or
                `instanceIds[]` and `ids[]`, as some clients write them. Each value holds ids
                separated by commas.

        Raises:
            Fault: there is another key, and unknown keys are refused.
        """
        lists = ["instanceIds", "ids"]
        self._refuse_unknown(query, [key for it in lists for key in (it, f"{it}[]")])
        payload: dict[str, Any] = {"owner": owner}
        for key in lists:
            found = [*query.get(key, []), *query.get(f"{key}[]", [])]
            parts = [part for text in found for part in text.split(",")]
            payload[key] = [] if len(parts) == 1 and not values.strip(parts[0]) else parts
        return payload

    def from_params(self, params: Mapping[str, Any], instance_ids: Any) -> dict[str, Any]:
        """Return the payload of a message (contract, "MQTT").

        Args:
            params: `owner`, and `ids`, separated by commas.
            instance_ids: the list of service instances; `None` if it is missing.

        Raises:
            Fault: there is another key, and unknown keys are refused.
        """
        self._refuse_unknown(params, ["owner", "ids"])
        ids = params.get("ids")
        if isinstance(ids, str):
            ids = ids.split(",") if values.strip(ids) else None
        return {"owner": params.get("owner"), "instanceIds": instance_ids, "ids": ids}


class LockRelease(WireSchema):
    """The job of lock release, from its path."""

    orchestration_job_id = fields.JobId(absent_message="Orchestration job id is missing")

    def from_path(self, job_id: str, query: Iterable[str]) -> dict[str, Any]:
        """Return the payload.

        Args:
            job_id: the path's last part.
            query: the keys of the query string; the contract names none.

        Raises:
            Fault: there is a key, and unknown keys are refused.
        """
        self._refuse_unknown(query, [])
        return {"orchestrationJobId": job_id}


class Released(WireSchema):
    """The answer of lock release."""

    count = fields.Number(minimum=0, absent_message="Count is missing")


class HistoryQuery(QuerySchema):
    """The body of history query."""

    title = "ServiceOrchestrationHistoryQueryRequest"

    pagination = Nested(HistoryPagination)
    ids = fields.ListOf(fields.JobId, "ID")
    statuses = fields.ListOf(fields.JobStatus, "Status")
    type = fields.JobType()
    requester_systems = fields.ListOf(fields.SystemName, "Requester system")
    target_systems = fields.ListOf(fields.SystemName, "Target system")
    service_definitions = fields.ListOf(fields.ServiceName, "Service definition")
    subscription_ids = fields.ListOf(fields.SubscriptionId, "Subscription ID")


class EntrySchema(WireSchema):
    """An answer's entry. Its fields have the names of columns of the model, in any order.

    Attributes:
        model: the table whose rows become entries.
        page_title: the name of a page of entries, like `title`.
    """

    model: ClassVar[type[Model]]
    page_title: ClassVar[str]

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        names = [column.name for column in self.model._meta.sorted_fields]
        columns = [self.fields[name] for name in names if name in self.fields]
        self._columns = [str(column.data_key) for column in columns]
        self._flags = [str(it.data_key) for it in columns if isinstance(it, fields.Flag)]

    def entries_of(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """Return rows of the table as entries.

        Values are stored as the wire has them, apart from SQLite's booleans.
        """
        found = [dict(zip(self._columns, row, strict=True)) for row in rows]
        for key in self._flags:
            for entry in found:
                entry[key] = bool(entry[key])
        if self.settings.omit_empty:
            return [{key: it for key, it in entry.items() if it != ""} for entry in found]
        return found


class LockEntry(EntrySchema):
    """A lock, as queries return it and as `lock import` reads it."""

    title = "Lock"
    page_title = "ServiceOrchestrationLockListResponse"
    model = Lock

    id = fields.Number(minimum=1, maximum=LOCK_ID_MAX, load_default=None)
    orchestration_job_id = fields.JobId(load_default="")
    service_instance_id = fields.ServiceInstanceId(absent_message="Service instance id is missing")
    owner = fields.SystemName(absent_message="Owner is missing")
    expires_at = _expiration()
    temporary = fields.Flag(load_default=False)


class JobEntry(EntrySchema):
    """A job, as queries return it and as `history import` reads it."""

    title = "Job"
    page_title = "ServiceOrchestrationHistoryResponse"
    model = Job

    id = fields.JobId(load_default=None)
    status = fields.JobStatus(absent_message="Status is missing")
    type = fields.JobType(absent_message="Type is missing")
    requester_system = fields.SystemName(absent_message="Requester system is missing")
    target_system = fields.SystemName(absent_message="Target system is missing")
    service_definition = fields.ServiceName(absent_message="Service definition is missing")
    subscription_id = fields.SubscriptionId(load_default="")
    message = fields.Message(load_default="")
    created_at = fields.DateTime(
        absent_message="Creation time is missing", invalid_message=CREATED_AT, stored=True
    )
    started_at = fields.DateTime(invalid_message=STARTED_AT, load_default="", stored=True)
    finished_at = fields.DateTime(invalid_message=FINISHED_AT, load_default="", stored=True)

    @validates_schema(skip_on_field_errors=False)
    def _check(self, data: dict[str, Any], **kwargs: Any) -> None:
        status, started, finished = map(data.get, ("status", "started_at", "finished_at"))
        if status in FINISHED and not finished:
            raise Fault(CONTRADICTORY, "A finished job must have finishedAt")
        if status not in FINISHED and finished:
            raise Fault(CONTRADICTORY, "An unfinished job cannot have finishedAt")
        if status == IN_PROGRESS and not started:
            raise Fault(CONTRADICTORY, "A job in progress must have startedAt")
        if status == PENDING and started:
            raise Fault(CONTRADICTORY, "A pending job cannot have startedAt")


class JobRecord(WireSchema):
    """One element of a record request's `jobs`; what is left out stays, or gets its default."""

    title = "JobRecord"

    id = fields.JobId()
    status = fields.JobStatus()
    type = fields.JobType()
    requester_system = fields.SystemName()
    target_system = fields.SystemName()
    service_definition = fields.ServiceName()
    subscription_id = fields.SubscriptionId()
    message = fields.Message()
    created_at = fields.DateTime(invalid_message=CREATED_AT, stored=True)
    started_at = fields.DateTime(invalid_message=STARTED_AT, stored=True)
    finished_at = fields.DateTime(invalid_message=FINISHED_AT, stored=True)


class HistoryRecord(ListRequest):
    """The body of history record."""

    title = "HistoryRecordRequest"

    jobs = NestedList(JobRecord, absent_message="Request payload is empty")


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text (RFC 8259: UTF-8, no duplicated keys, no NaN).

    A byte order mark before it is ignored.

    Raises:
        InvalidParameter: it is malformed; the message says where.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return _DECODER.decode(text.removeprefix("\ufeff"))
    except UnicodeDecodeError:
        reason = NOT_UTF_8
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        # UTF-16 has a NUL beside each ASCII character, with which a JSON text begins.
        reason = NOT_UTF_8 if "\0" in text[:4] else str(error)
    raise InvalidParameter(f"Malformed JSON: {reason}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = values.repeated(key for key, _ in pairs)
        raise ValueError(f"duplicated key {json.dumps(key)}")
    return found


def _integer(digits: str) -> int | float:
    # With more digits than 64 bits have, it is still a number of JSON, but not a `Number`.
    return int(digits) if len(digits) <= 20 else float("inf")


def _real(text: str) -> int | float:
    # `5.0` and `5e0` are the number 5.
    with suppress(ArithmeticError):  # of an exponent that has 20 digits itself
        number = Decimal(text)
        if abs(number) <= 2**64 and number == int(number):
            return int(number)
    return float(text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates,
    parse_int=_integer,
    parse_float=_real,
    parse_constant=_no_constant,
)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def write_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return _ENCODER.encode(value)
