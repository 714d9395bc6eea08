"""The payloads: what each request may hold and what each answer looks like, as marshmallow schemas.

A schema is made once, for one application's settings, and used for every request. The fields that
it declares are marshmallow's; they are loaded by `WireSchema.load` alone, because marshmallow's own
load takes a seventh of the throughput of creating 100 locks, and a fifth of an import's.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from typing import Any, NoReturn

from marshmallow import Schema
from marshmallow import missing as absent
from marshmallow.fields import Field

from orchmgmt import entries, fields, values
from orchmgmt.databases import Row
from orchmgmt.databases.queries import Page
from orchmgmt.entries import camel_case
from orchmgmt.errors import InvalidParameter
from orchmgmt.fields import CONTRADICTORY, INCOMPLETE, UNKNOWN, WRONG_TYPE, Fault
from orchmgmt.models import FINISHED, IN_PROGRESS, PENDING, NewLock
from orchmgmt.settings import Settings
from orchmgmt.values import meant

LOCK_ID_MAX = 2**62  # new ids go on from the largest: as many again are left

NOT_UTF_8 = "it is not UTF-8"

IN_THE_PAST = "Expires at is in the past: {}"
CREATED_AT = "Invalid created at format: {}"
STARTED_AT = "Invalid started at format: {}"
FINISHED_AT = "Invalid finished at format: {}"


class WireSchema(Schema):
    """A JSON object of the contract. Other keys are ignored, or refused if `UNKNOWN_KEYS` says so.

    Args:
        settings: the application's settings.
        present: the DateTime up to which all is past. Only the database knows what time it is: by
            default nothing is past, and who writes to it sees to that.
    """

    def __init__(self, settings: Settings, present: str = "") -> None:
        self.settings = settings
        self.present = present
        super().__init__()
        self._loaders = [
            (name, field.data_key, field.deserialize) for name, field in self.load_fields.items()
        ]
        self._keys = [key for _, key, _ in self._loaders]

    def on_bind_field(self, field_name: str, field_obj: Field[Any]) -> None:
        """Give a field its key."""
        field_obj.data_key = field_obj.data_key or camel_case(field_name)

    def load(self, data: Any, **kwargs: Any) -> Any:
        """Return what a payload holds: its values by the names of the fields.

        Raises:
            Fault: the first, by rank, of what is wrong.
        """
        if not isinstance(data, dict):
            raise Fault(WRONG_TYPE, "A JSON object was expected")
        self._demand_known(data, self._keys)
        found: dict[str, Any] = {}
        faults = []
        for name, key, deserialize in self._loaders:
            try:
                value = deserialize(data.get(key, absent))
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
        return found

    def _demand_known(self, keys: Iterable[str], known: Sequence[Any]) -> None:
        """Raise the Fault of the first key that is not known, if such keys are refused."""
        if self.settings.unknown_keys == "ignore":
            return
        for key in keys:
            if key not in known:
                raise Fault(UNKNOWN, f"Unknown key: {key}{meant(key, known)}")

    def _check(self, found: dict[str, Any]) -> None:
        """Raise the Fault of what is wrong with several values together.

        Args:
            found: the values that are good by themselves.
        """


class Pagination(WireSchema):
    """The contract's section "Pagination", loaded as a `Page`."""

    page = fields.Number(default=None)
    size = fields.Number(default=None)
    direction = fields.Direction(default="DESC")

    def load(self, data: Any, **kwargs: Any) -> Page:
        """Return the page that is asked for.

        Raises:
            Fault: as `WireSchema.load`.
        """
        found = super().load(data)
        size = found["size"]
        return Page(
            number=max(found["page"] or 0, 0),
            size=self.settings.max_page_size if size is None or size < 1 else size,
            sort_field=found["sort_field"],
            descending=found["direction"] == "DESC",
        )

    def _check(self, found: dict[str, Any]) -> None:
        page, size = found.get("page"), found.get("size")
        if (page is None) != (size is None):
            given, other = ("size", "page") if page is None else ("page", "size")
            raise Fault(
                INCOMPLETE,
                f"If {given} parameter is defined then {other} parameter cannot be undefined",
            )
        largest = self.settings.max_page_size
        if (size or 0) > largest:
            raise Fault(INCOMPLETE, f"The page size cannot be larger than {largest}")


class LockPagination(Pagination):
    """Pages of locks."""

    sort_field = fields.SortField("id", "owner", "service_instance_id", "expires_at", default=None)


class HistoryPagination(Pagination):
    """Pages of jobs."""

    sort_field = fields.SortField("id", "created_at", "started_at", "finished_at", default=None)


class Object(fields.Value):
    """A value that a schema of its own loads.

    Args:
        schema: that schema.
    """

    type_name = "an object"

    def __init__(self, schema: type[WireSchema], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._class = schema

    @cached_property
    def schema(self) -> WireSchema:
        """The schema, for the same settings and the same present."""
        root: Any = self.root
        return self._class(root.settings, root.present)

    def _convert(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self._wrong_type()
        return self.schema.load(value)


class Objects(Object):
    """A request's list of objects, which must not be empty; the first bad one is named."""

    type_name = "a list"

    def _convert(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong_type()
        if not value:
            raise Fault(INCOMPLETE, self.missing or "")
        loaded = []
        for element in value:
            if element is None:
                raise Fault(INCOMPLETE, "Request payload contains null element")
            loaded.append(self.schema.load(element))
        return loaded


def _expiration() -> fields.DateTime:
    return fields.DateTime(
        missing="Expiration time is missing",
        invalid="Invalid expires at format: {}",
        past=IN_THE_PAST,
        round_up=True,
        stored=True,
    )


class LockRequest(WireSchema):
    """One element of a create request's `locks`."""

    service_instance_id = fields.ServiceInstanceId(missing="Service instance id is missing")
    owner = fields.SystemName(missing="Owner is missing")
    expires_at = _expiration()


class Reservation(LockRequest):
    """A temporary lock for a job (`Locks.reserve`)."""

    orchestration_job_id = fields.JobId(missing="Orchestration job id is missing")


def payload_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Python program gives, by name, as a payload of the wire.

    Raises:
        InvalidParameter: a time has no zone.
    """
    try:
        return entries.to_wire(values)
    except ValueError as error:
        raise InvalidParameter(str(error)) from None


class ListRequest(WireSchema):
    """A body that must be there, for it lists what to make."""

    def load(self, data: Any, **kwargs: Any) -> Any:
        """Return what the body holds.

        Raises:
            Fault: as `WireSchema.load`, or there is no body.
        """
        if data is None:
            raise Fault(INCOMPLETE, "Request payload is null")
        return super().load(data)


class LockCreate(ListRequest):
    """The body of lock create: ServiceOrchestrationLockListRequest."""

    locks = Objects(LockRequest, missing="Request payload is empty")

    def load(self, data: Any, **kwargs: Any) -> list[NewLock]:
        """Return the locks to make.

        Raises:
            Fault: as `ListRequest.load`.
        """
        return [NewLock(**lock) for lock in super().load(data)["locks"]]


class LockReserve(LockCreate):
    """The body of lock reserve."""

    locks = Objects(Reservation, missing="Request payload is empty")

    def load(self, data: Any, **kwargs: Any) -> list[NewLock]:
        """Return the locks to make.

        Raises:
            Fault: as `ListRequest.load`.
        """
        return [lock._replace(temporary=True) for lock in super().load(data)]


class QuerySchema(WireSchema):
    """The body of a query."""

    def load(self, data: Any, **kwargs: Any) -> tuple[dict[str, Any], Page]:
        """Return the filters asked for, each with its values, and the page.

        Raises:
            Fault: as `WireSchema.load`.
        """
        wanted: dict[str, Any] = super().load({} if data is None else data)
        page = wanted.pop("pagination", None) or Page(0, self.settings.max_page_size)
        return wanted, page

    def load_arguments(
        self, filters: Mapping[str, Any], page: int, size: int, sort_field: str, descending: bool
    ) -> tuple[dict[str, Any], Page]:
        """Return the same of what a Python program asks for.

        Raises:
            InvalidParameter: as `WireSchema.load`, or a time has no zone.
        """
        pagination = {
            "page": page,
            "size": size,
            "sortField": camel_case(sort_field),
            "direction": "DESC" if descending else "ASC",
        }
        return self.load({**payload_of(filters), "pagination": pagination})


class LockQuery(QuerySchema):
    """The body of lock query: ServiceOrchestrationLockQueryRequest."""

    pagination = Object(LockPagination)
    ids = fields.ListOf(fields.Number(), "ID")
    orchestration_job_ids = fields.ListOf(fields.JobId(), "Orchestration job id")
    service_instance_ids = fields.ListOf(fields.ServiceInstanceId(), "Service instance id")
    owners = fields.ListOf(fields.SystemName(), "Owner")
    expires_before = fields.DateTime(invalid="Invalid expires before: {}", round_up=True)
    expires_after = fields.DateTime(invalid="Invalid expires after: {}")


class LockRemove(WireSchema):
    """The owner and the instances of lock remove, from its path and its query string."""

    owner = fields.SystemName(missing="Owner is missing")
    service_instance_ids = fields.ListOf(
        fields.ServiceInstanceId(),
        data_key="instanceIds",
        what="Service instance id",
        needed=True,
    )

    def from_path(self, owner: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """Return the payload.

        Args:
            owner: the path's last part.
            query: the query string: each `instanceIds` holds ids separated by commas, and so does
                each `instanceIds[]`, as some clients write it.

        Raises:
            Fault: there are other keys, and such are refused.
        """
        keys = ["instanceIds", "instanceIds[]"]
        self._demand_known(query, keys)
        instances = [part for it in keys for text in query.get(it, []) for part in text.split(",")]
        if len(instances) == 1 and not values.strip(instances[0]):
            instances = []
        return {"owner": owner, "instanceIds": instances}


class LockRelease(WireSchema):
    """The job of lock release, from its path."""

    orchestration_job_id = fields.JobId(missing="Orchestration job id is missing")

    def from_path(self, job_id: str, query: Iterable[str]) -> dict[str, Any]:
        """Return the payload.

        Args:
            job_id: the path's last part.
            query: the keys of the query string; the contract names none.

        Raises:
            Fault: there are some, and such are refused.
        """
        self._demand_known(query, [])
        return {"orchestrationJobId": job_id}


class HistoryQuery(QuerySchema):
    """The body of history query: ServiceOrchestrationHistoryQueryRequest."""

    pagination = Object(HistoryPagination)
    ids = fields.ListOf(fields.JobId(), "ID")
    statuses = fields.ListOf(fields.JobStatus(), "Status")
    type = fields.JobType()
    requester_systems = fields.ListOf(fields.SystemName(), "Requester system")
    target_systems = fields.ListOf(fields.SystemName(), "Target system")
    service_definitions = fields.ListOf(fields.ServiceName(), "Service definition")
    subscription_ids = fields.ListOf(fields.SubscriptionId(), "Subscription ID")


class EntrySchema(WireSchema):
    """A response's entry. It dumps rows of the table, whose columns are this schema's fields."""

    def __init__(self, settings: Settings, present: str = "") -> None:
        super().__init__(settings, present)
        self._flags = [it.data_key for it in self.fields.values() if isinstance(it, fields.Flag)]

    def dump(self, obj: Iterable[Row], **kwargs: Any) -> list[dict[str, Any]]:
        """Return rows as entries: but for SQLite's booleans, they are in their wire form already.

        Args:
            obj: rows of the table.
        """
        keys: Any = self._keys
        dumped = [dict(zip(keys, row, strict=True)) for row in obj]
        for key in self._flags:
            for entry in dumped:
                entry[key] = bool(entry[key])
        if self.settings.omit_empty:
            return [{key: it for key, it in entry.items() if it != ""} for entry in dumped]
        return dumped


class LockEntry(EntrySchema):
    """A lock, as queries return it and as `lock import` reads it."""

    id = fields.Number(minimum=1, maximum=LOCK_ID_MAX, default=None)
    orchestration_job_id = fields.JobId(default="")
    service_instance_id = fields.ServiceInstanceId(missing="Service instance id is missing")
    owner = fields.SystemName(missing="Owner is missing")
    expires_at = _expiration()
    temporary = fields.Flag(default=False)


class JobEntry(EntrySchema):
    """A job, as queries return it and as `history import` reads it."""

    id = fields.JobId(default=None)
    status = fields.JobStatus(missing="Status is missing")
    type = fields.JobType(missing="Type is missing")
    requester_system = fields.SystemName(missing="Requester system is missing")
    target_system = fields.SystemName(missing="Target system is missing")
    service_definition = fields.ServiceName(missing="Service definition is missing")
    subscription_id = fields.SubscriptionId(default="")
    message = fields.Message(default="")
    created_at = fields.DateTime(
        missing="Creation time is missing", invalid=CREATED_AT, stored=True
    )
    started_at = fields.DateTime(invalid=STARTED_AT, default="", stored=True)
    finished_at = fields.DateTime(invalid=FINISHED_AT, default="", stored=True)

    def _check(self, found: dict[str, Any]) -> None:
        status, started, finished = map(found.get, ("status", "started_at", "finished_at"))
        if status in FINISHED and not finished:
            raise Fault(CONTRADICTORY, "A finished job must have finishedAt")
        if status not in FINISHED and finished:
            raise Fault(CONTRADICTORY, "An unfinished job cannot have finishedAt")
        if status == IN_PROGRESS and not started:
            raise Fault(CONTRADICTORY, "A job in progress must have startedAt")
        if status == PENDING and started:
            raise Fault(CONTRADICTORY, "A pending job cannot have startedAt")


class JobRecord(WireSchema):
    """One element of a record request's `jobs`: what is not given, the job has or begins with."""

    id = fields.JobId()
    status = fields.JobStatus()
    type = fields.JobType()
    requester_system = fields.SystemName()
    target_system = fields.SystemName()
    service_definition = fields.ServiceName()
    subscription_id = fields.SubscriptionId()
    message = fields.Message()
    created_at = fields.DateTime(invalid=CREATED_AT, stored=True)
    started_at = fields.DateTime(invalid=STARTED_AT, stored=True)
    finished_at = fields.DateTime(invalid=FINISHED_AT, stored=True)


class HistoryRecord(ListRequest):
    """The body of history record."""

    jobs = Objects(JobRecord, missing="Request payload is empty")

    def load(self, data: Any, **kwargs: Any) -> list[dict[str, str]]:
        """Return the jobs, each with the values that are given.

        Raises:
            Fault: as `ListRequest.load`.
        """
        jobs: list[dict[str, str]] = super().load(data)["jobs"]
        return jobs


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text says (RFC 8259: UTF-8, no duplicated keys, no NaN).

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


def _real(text: str) -> int | float:
    # `5.0` and `5e0` are the number 5.
    number = float(text)
    if number.is_integer() and abs(number) <= 2**64:
        with suppress(ArithmeticError):  # of an exponent that has 20 digits itself
            exact = Decimal(text)
            if exact == int(exact):
                return int(exact)
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant
)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def write_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return _ENCODER.encode(value)
