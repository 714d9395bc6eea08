"""What OpenAPI 3.1 says of the operations, made from the schemas, and the pages that show it."""

import base64
import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

from orchmgmt import fields, schemas, values
from orchmgmt.app import Service
from orchmgmt.entries import MANAGEMENT, ROOT
from orchmgmt.errors import RETRY_AFTER_SECONDS, error_body
from orchmgmt.extensions import Extension
from orchmgmt.settings import Settings

LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}

DOCUMENT = "/openapi.json"
PAGES = "/docs"

#: The names that the data models of Eclipse Arrowhead have.
NAMES: dict[type[schemas.WireSchema], str] = {
    schemas.LockCreate: "ServiceOrchestrationLockListRequest",
    schemas.LockRequest: "ServiceOrchestrationLockRequest",
    schemas.LockQuery: "ServiceOrchestrationLockQueryRequest",
    schemas.LockPagination: "LockPagination",
    schemas.HistoryQuery: "ServiceOrchestrationHistoryQueryRequest",
    schemas.HistoryPagination: "HistoryPagination",
    schemas.LockEntry: "Lock",
    schemas.JobEntry: "Job",
}

#: Those of the recorder's operations, which Eclipse Arrowhead does not have.
RECORDER_NAMES: dict[type[schemas.WireSchema], str] = {
    schemas.LockReserve: "LockReserveRequest",
    schemas.Reservation: "Reservation",
    schemas.HistoryRecord: "HistoryRecordRequest",
    schemas.JobRecord: "JobRecord",
}
EVERY_NAME = NAMES | RECORDER_NAMES
LOCKS = "ServiceOrchestrationLockListResponse"
JOBS = "ServiceOrchestrationHistoryResponse"

IDENTITIES: dict[str, dict[str, Any]] = {
    "declared": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "SYSTEM//<name>",
        "description": "`Authorization: Bearer SYSTEM//<name>`; `SYSTEM//Sysop` is the operator.",
    },
    "outsourced": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "IDENTITY-TOKEN//<token>",
        "description": "`Authorization: Bearer IDENTITY-TOKEN//<token>`, "
        "with a token of the cloud's identity service.",
    },
    "certificate": {
        "type": "mutualTLS",
        "description": "A client certificate of the local cloud, of a system or an operator.",
    },
}

LOCK_EXAMPLE = {
    "id": 43,
    "orchestrationJobId": "",
    "serviceInstanceId": "TemperatureProvider2|kelvinInfo|1.0.0",
    "owner": "TemperatureManager",
    "expiresAt": "2099-11-08T11:24:43Z",
    "temporary": False,
}
JOB_EXAMPLE = {
    "id": "037b336d-b57d-4772-af88-d60225116d02",
    "status": "ERROR",
    "type": "PUSH",
    "requesterSystem": "RoomClimate",
    "targetSystem": "BoilerControl",
    "serviceDefinition": "alarmNotification",
    "subscriptionId": "5a780d98-aa07-4655-adb7-2d6e7d588850",
    "message": "The authorization system did not answer",
    "createdAt": "2026-11-11T18:18:44Z",
    "startedAt": "2026-11-11T18:18:46Z",
    "finishedAt": "2026-11-11T18:19:06Z",
}

#: The keys of a lock that a request has.
REQUESTED = ("serviceInstanceId", "owner", "expiresAt")

NEW_JOB_EXAMPLE = {
    "id": "091cc9c3-e704-4d0a-8d70-96fb2c11da55",
    "type": "PULL",
    "requesterSystem": "RoomClimate",
    "targetSystem": "RoomClimate",
    "serviceDefinition": "kelvinInfo",
}

#: For each part of a path that differs: an example.
IN_PATHS = {
    "owner": LOCK_EXAMPLE["owner"],
    "orchestrationJobId": NEW_JOB_EXAMPLE["id"],
}

_ERROR_RESPONSE: dict[str, Any] = {
    "type": "object",
    "description": "What every answer of 400 and above is.",
    "properties": {
        "errorMessage": {"type": "string"},
        "errorCode": {"type": "integer", "minimum": 400, "maximum": 599},
        "exceptionType": {
            "type": "string",
            "enum": [
                "INVALID_PARAMETER",
                "AUTH",
                "FORBIDDEN",
                "DATA_NOT_FOUND",
                "INTERNAL_SERVER_ERROR",
                "EXTERNAL_SERVER_ERROR",
            ],
        },
        "origin": {"type": "string", "description": "The method, a space and the path."},
    },
    "required": ["errorMessage", "errorCode", "exceptionType", "origin"],
}

#: For each status: what it means, and the message of its example.
ERRORS = {
    401: ("The requester has no identity, or a bad one", "Invalid authorization header"),
    403: (
        "The requester is known and may not manage",
        "Requester has no management permission",
    ),
    404: ("There is no such path: its last part holds a slash", "There is no such path"),
    413: ("The body is too large", "The request body is larger than 4194304 bytes"),
    415: (
        "The body is not declared to be JSON, or has a Content-Encoding",
        "The body must be JSON: Content-Type: application/json",
    ),
    500: (
        "A fault of the service; its log has the details",
        "An unexpected error happened; the server's log has the details",
    ),
    503: (
        "The database, or a system that must be asked, does not answer now",
        "The database is locked",
    ),
}

DESCRIPTION = """\
Lock management and history management of orchestration in an Eclipse Arrowhead 5 local cloud.

The patterns show the canonical form of values, which answers have. Requests may spell a name or a
version otherwise and are brought to that form; `null`, an empty string and white space are the same
as a key that is left out, and keys that are not named here are ignored.

Any other path is answered with 404 and any other method with 405, in the form of an ErrorResponse.
"""


class Converter(OpenAPIConverter):
    """Says in OpenAPI what our fields and schemas take and return."""

    def schema2jsonschema(self, schema: schemas.WireSchema) -> dict[str, Any]:
        """Return a schema as OpenAPI has it."""
        result: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        needed = [it.data_key for it in schema.fields.values() if _is_needed(it)]
        if needed:
            result["required"] = needed
        if isinstance(schema, schemas.EntrySchema):  # an answer may come to have more keys
            result.pop("additionalProperties", None)
        if isinstance(schema, schemas.Pagination):
            result["dependentRequired"] = {"page": ["size"], "size": ["page"]}
        return {"description": (inspect.getdoc(type(schema)) or "").split("\n")[0], **result}

    def field2property(self, field: Any) -> dict[str, Any]:
        """Return a field as OpenAPI has it."""
        root: Any = field.root
        answers = isinstance(root, schemas.EntrySchema)
        if isinstance(field, fields.ListOf):
            least = {"minItems": 1} if _is_needed(field) else {}
            return {"type": "array", "items": self.field2property(field.inner), **least}
        if isinstance(field, schemas.NestedList):
            items = self.resolve_nested_schema(field.schema)  # type: ignore[no-untyped-call]
            return {"type": "array", "items": items, "minItems": 1}
        if isinstance(field, schemas.Nested):
            nested: dict[str, Any] = self.resolve_nested_schema(field.schema)  # type: ignore[no-untyped-call]
            return nested
        described = self._value(field, answers)
        if isinstance(root, schemas.Pagination) and field.name == "size":
            described["maximum"] = root.settings.max_page_size
            described["description"] = "Entries of a page; less than 1 stands for the maximum."
        if isinstance(root, schemas.Pagination) and field.name == "page":
            described["description"] = "Pages count from 0."
        may_be_empty = field.load_default == "" and not root.settings.omit_empty
        if answers and may_be_empty and not isinstance(field, fields.Message):
            # One pattern: a choice of two types is a class of its own to many generators.
            return {
                "type": "string",
                "pattern": f"^({described['pattern'][1:-1]})?$",
                "description": "The empty string where there is none.",
            }
        return described

    def _value(self, field: Any, answers: bool) -> dict[str, Any]:
        text = {"type": "string"}
        match field:
            case fields.SystemName():
                return {**text, "pattern": f"^{_name('A-Z')}$"}
            case fields.ServiceName():
                return {**text, "pattern": f"^{_name('a-z')}$"}
            case fields.ServiceInstanceId():
                number = "[0-9]{1,10}"
                version = rf"{number}\.{number}\.{number}"
                return {
                    **text,
                    "pattern": rf"^{_name('A-Z')}\|{_name('a-z')}\|{version}$",
                    "description": f"A version has at most {values.VERSION_MAX_LENGTH} characters.",
                }
            case fields.Uuid():
                pattern = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
                return {**text, "format": "uuid", **({"pattern": pattern} if answers else {})}
            case fields.DateTime():
                pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
                return {**text, "format": "date-time", **({"pattern": pattern} if answers else {})}
            case fields.Choice():
                return {**text, "enum": list(field.words)}
            case fields.SortField():
                return {**text, "enum": list(field.names)}
            case fields.Number():
                limits = {"minimum": field.minimum, "maximum": field.maximum}
                return {"type": "integer", "format": "int64", **limits}
            case fields.Flag():
                return {"type": "boolean"}
            case fields.Message():  # earlier versions took longer ones
                return text if answers else {**text, "maxLength": fields.MESSAGE_MAX_LENGTH}
        raise TypeError(f"{type(field).__name__} has no description")


def document(settings: Settings) -> dict[str, Any]:
    """Return the description of the operations under these settings, as OpenAPI 3.1.

    Args:
        settings: of which five matter: the policy that identifies, the largest page, and whether
            empty keys are left out, unknown ones refused and the recorder's operations there.
    """

    def name_of(schema: Any) -> str:
        return EVERY_NAME[type(schema)]

    plugin = MarshmallowPlugin(schema_name_resolver=name_of)
    plugin.Converter = Converter
    spec = APISpec(
        title="orchmgmt",
        version=version("orchmgmt"),
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": DESCRIPTION, "license": LICENSE},
        # Where the document is, whatever a proxy puts before it.
        servers=[{"url": ".", "description": "The service that gives this document"}],
        security=[{"identity": []}],
    )
    spec.components.security_scheme("identity", IDENTITIES[settings.authentication_policy])
    for schema, name in (EVERY_NAME if settings.recorder else NAMES).items():
        if name not in spec.components.schemas:  # those within others come with these
            spec.components.schema(name, schema=schema(settings))
    spec.components.schema(LOCKS, _page_of("Lock"))
    spec.components.schema(JOBS, _page_of("Job"))
    spec.components.schema("ErrorResponse", _ERROR_RESPONSE)
    for status, (meaning, message) in ERRORS.items():
        examples = {"example": message}
        origin = f"POST {MANAGEMENT}/lock/query"
        spec.components.response(str(status), _error(status, meaning, examples, origin))

    converter: Any = plugin.converter  # there is one since the plugin has its specification
    operations = [*_operations(settings, converter)]
    if settings.recorder:
        operations += _recorder_operations(settings, converter)
    for method, path, operation in operations:
        refused = operation.pop("refused", None)
        answers = operation.pop("answers")
        if refused is not None:
            meaning = "Malformed JSON, or a wrong or missing value"
            origin = f"{method.upper()} {path.format(**IN_PATHS)}"
            answers["400"] = _error(400, meaning, refused, origin)
        for status in operation.pop("errors"):
            answers[str(status)] = {"$ref": f"#/components/responses/{status}"}
        spec.path(path, operations={method: {**operation, "responses": answers}})
    described: dict[str, Any] = spec.to_dict()
    return described


def _operations(
    settings: Settings, converter: OpenAPIConverter
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and what OpenAPI calls an operation.

    Instead of `responses` it has the good `answers`, the messages of examples of what is `refused`
    with 400, and the other `errors`.
    """
    lock = {key: it for key, it in LOCK_EXAMPLE.items() if it != "" or not settings.omit_empty}
    yield (
        "post",
        f"{MANAGEMENT}/lock/create",
        {
            "operationId": "createLocks",
            "tags": ["lock"],
            "summary": "Lock service instances, all or none",
            "requestBody": _body(
                schemas.LockCreate,
                {"locks": [{key: LOCK_EXAMPLE[key] for key in REQUESTED}]},
                required=True,
            ),
            "answers": {"201": _answer(LOCKS, "The new locks, in the order of the request", lock)},
            "refused": {
                "locked": f"Already locked: {LOCK_EXAMPLE['serviceInstanceId']}",
                "empty": "Request payload is empty",
                "past": "Expires at is in the past: 2020-01-01T00:00:00Z",
            },
            "errors": (401, 403, 413, 415, 500, 503),
        },
    )
    yield (
        "post",
        f"{MANAGEMENT}/lock/query",
        {
            "operationId": "queryLocks",
            "tags": ["lock"],
            "summary": "Find the active locks that match every filter",
            "requestBody": _body(
                schemas.LockQuery,
                {
                    "owners": ["TemperatureManager"],
                    "expiresAfter": "2026-11-08T11:24:43Z",
                    "pagination": {"page": 0, "size": 10, "sortField": "expiresAt"},
                },
            ),
            "answers": {"200": _answer(LOCKS, "A page; `count` is of all that match", lock)},
            "refused": {"owner": "Owner list contains empty element"},
            "errors": (401, 403, 413, 415, 500, 503),
        },
    )
    remove = schemas.LockRemove(settings).fields
    yield (
        "delete",
        f"{MANAGEMENT}/lock/remove/{{owner}}",
        {
            "operationId": "removeLocks",
            "tags": ["lock"],
            "summary": "Remove an owner's locks, but for temporary ones",
            "parameters": [
                {
                    "name": "owner",
                    "in": "path",
                    "required": True,
                    "schema": converter.field2property(remove["owner"]),
                    "example": LOCK_EXAMPLE["owner"],
                },
                {
                    "name": "instanceIds",
                    "in": "query",
                    "required": True,
                    "description": "Service instances; one value may also hold several, "
                    "separated by commas.",
                    "schema": converter.field2property(remove["service_instance_ids"]),
                    "example": [LOCK_EXAMPLE["serviceInstanceId"]],
                },
            ],
            "answers": {"200": {"description": "They are gone, if they were there"}},
            "refused": {"instances": "Service instance id list empty"},
            "errors": (401, 403, 404, 500, 503),
        },
    )
    yield (
        "post",
        f"{MANAGEMENT}/history/query",
        {
            "operationId": "queryJobs",
            "tags": ["history"],
            "summary": "Find the orchestration jobs that match every filter",
            "requestBody": _body(
                schemas.HistoryQuery,
                {
                    "statuses": ["ERROR"],
                    "type": "PUSH",
                    "requesterSystems": ["RoomClimate"],
                    "pagination": {"page": 0, "size": 1},
                },
            ),
            "answers": {"200": _answer(JOBS, "A page; `count` is of all that match", JOB_EXAMPLE)},
            "refused": {"id": "Invalid orchestration job id: abc123"},
            "errors": (401, 403, 413, 415, 500, 503),
        },
    )
    yield (
        "get",
        f"{ROOT}/monitor/echo",
        {
            "operationId": "echo",
            "tags": ["monitor"],
            "summary": "See, as any identified system, that the service is there",
            "answers": {"200": _constant("text/plain", {"type": "string", "const": "Got it!"})},
            "errors": (401, 403, 500, 503),
        },
    )
    healthy = {
        "type": "object",
        "properties": {"status": {"type": "string", "const": "ok"}},
        "required": ["status"],
    }
    yield (
        "get",
        "/health",
        {
            "operationId": "health",
            "tags": ["monitor"],
            "summary": "See that the database answers and can be written to",
            "security": [],
            "answers": {"200": _constant("application/json", healthy)},
            "errors": (500, 503),
        },
    )


def _recorder_operations(
    settings: Settings, converter: OpenAPIConverter
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the same of the recorder's operations."""
    job_id = NEW_JOB_EXAMPLE["id"]
    reserved = {**LOCK_EXAMPLE, "orchestrationJobId": job_id, "temporary": True}
    yield (
        "post",
        f"{MANAGEMENT}/lock/reserve",
        {
            "operationId": "reserveLocks",
            "tags": ["lock"],
            "summary": "Lock service instances for unfinished jobs, temporarily, all or none",
            "requestBody": _body(
                schemas.LockReserve,
                {"locks": [{key: reserved[key] for key in ("orchestrationJobId", *REQUESTED)}]},
                required=True,
            ),
            "answers": {
                "201": _answer(LOCKS, "The new locks, in the order of the request", reserved)
            },
            "refused": {
                "job": f"There is no unfinished orchestration job {job_id}",
                "locked": f"Already locked: {LOCK_EXAMPLE['serviceInstanceId']}",
            },
            "errors": (401, 403, 413, 415, 500, 503),
        },
    )
    release = schemas.LockRelease(settings).fields
    counted = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0}},
        "required": ["count"],
    }
    yield (
        "delete",
        f"{MANAGEMENT}/lock/release/{{orchestrationJobId}}",
        {
            "operationId": "releaseLocks",
            "tags": ["lock"],
            "summary": "Remove the temporary locks of a job",
            "parameters": [
                {
                    "name": "orchestrationJobId",
                    "in": "path",
                    "required": True,
                    "schema": converter.field2property(release["orchestration_job_id"]),
                    "example": job_id,
                }
            ],
            "answers": {
                "200": {
                    "description": "They are gone; `count` is how many there were",
                    "content": {"application/json": {"schema": counted, "example": {"count": 1}}},
                }
            },
            "refused": {"job": "Invalid orchestration job id: abc123"},
            "errors": (401, 403, 404, 500, 503),
        },
    )
    yield (
        "post",
        f"{MANAGEMENT}/history/record",
        {
            "operationId": "recordJobs",
            "tags": ["history"],
            "summary": "Put new jobs there, and bring others forward in their life, all or none",
            "requestBody": _body(schemas.HistoryRecord, {"jobs": [NEW_JOB_EXAMPLE]}, required=True),
            "answers": {
                "201": _answer(
                    JOBS, "The jobs as they are now, in the order of the request", JOB_EXAMPLE
                )
            },
            "refused": {
                "back": f"Orchestration job {job_id} is DONE: it cannot become PENDING",
                "new": "Type is missing",
            },
            "errors": (401, 403, 413, 415, 500, 503),
        },
    )


class Document(Extension):
    """The description and, for people, Swagger UI; both for everybody.

    Each address in them is relative: a proxy may put a path before the service's.
    """

    def __init__(self, service: Service) -> None:
        text = json.dumps(document(service.store.settings))
        blueprint = Blueprint("openapi", __name__)

        @blueprint.get(PAGES)
        def start() -> Response:
            return Response(status=302, headers={"Location": f"{PAGES[1:]}/"})

        @blueprint.get(DOCUMENT)
        def openapi() -> Response:
            return Response(text, content_type="application/json")

        # Without these two a page would name the host as the client spells it, and ask a validator
        # outside of this machine.
        config = {"app_name": "orchmgmt", "oauth2RedirectUrl": "", "validatorUrl": "none"}
        pages: Blueprint = get_swaggerui_blueprint(
            ".", f"..{DOCUMENT}", config, blueprint_name="docs"
        )

        pages.after_request(_protect)
        service.app.register_blueprint(blueprint)
        service.app.register_blueprint(pages, url_prefix=PAGES)


def _protect(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    if response.mimetype == "text/html":
        scripts = re.findall("<script>(.*?)</script>", response.get_data(True), re.DOTALL)
        hashes = [hashlib.sha256(script.encode()).digest() for script in scripts]
        allowed = "".join(f" 'sha256-{base64.b64encode(it).decode()}'" for it in hashes)
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'self'{allowed}; style-src 'self' 'unsafe-inline';"
            " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
            " frame-ancestors 'none'"
        )
    return response


def _is_needed(field: Any) -> bool:
    """Whether a key is always there: in a request, or in an answer."""
    settings: Settings = field.root.settings
    if isinstance(field.root, schemas.EntrySchema):
        return not (settings.omit_empty and field.load_default == "")
    return bool(field.required)


def _name(first: str) -> str:
    return f"[{first}][0-9A-Za-z]{{0,{values.NAME_MAX_LENGTH - 1}}}"


def _page_of(entry: str) -> dict[str, Any]:
    entries = {"type": "array", "items": {"$ref": f"#/components/schemas/{entry}"}}
    return {
        "type": "object",
        "description": "A page of entries.",
        "properties": {"entries": entries, "count": {"type": "integer", "minimum": 0}},
        "required": ["entries", "count"],
    }


def _body(
    schema: type[schemas.WireSchema], example: dict[str, Any], required: bool = False
) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{EVERY_NAME[schema]}"}
    content = {"application/json": {"schema": reference, "example": example}}
    return {"required": required, "content": content}


def _answer(schema: str, description: str, entry: dict[str, Any]) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    example = {"entries": [entry], "count": 1}
    content = {"application/json": {"schema": reference, "example": example}}
    return {"description": description, "content": content}


def _constant(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "It is so", "content": {media_type: {"schema": schema}}}


def _error(status: int, description: str, messages: dict[str, str], origin: str) -> dict[str, Any]:
    examples = {
        name: {"value": json.loads(error_body(status, message, origin))}
        for name, message in messages.items()
    }
    content = {"schema": {"$ref": "#/components/schemas/ErrorResponse"}, "examples": examples}
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/json": content},
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        seconds = {"type": "integer", "minimum": 0, "example": RETRY_AFTER_SECONDS}
        again = {"description": "Seconds after which to try again.", "schema": seconds}
        answer["headers"] = {"Retry-After": {**again, "required": True}}
    return answer
