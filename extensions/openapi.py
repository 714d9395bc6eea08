"""What OpenAPI 3.1 says of the operations, and the pages that show it.

The operations, the schemas, the fields and the faults describe themselves. Here they are put
together, with examples.
"""

import base64
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, NamedTuple

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Blueprint, Response
from flask_swagger_ui import get_swaggerui_blueprint

from orchmgmt import fields, schemas
from orchmgmt.app import Service
from orchmgmt.databases import BUSY
from orchmgmt.entries import IDEMPOTENCY_KEY, MANAGEMENT, ROOT
from orchmgmt.errors import (
    CRASHED,
    EXCEPTION_TYPES,
    RETRY_AFTER_SECONDS,
    BodyTooLarge,
    NotJson,
    error_body,
)
from orchmgmt.extensions import Extension
from orchmgmt.history import cannot_become
from orchmgmt.locks import AlreadyLocked, InThePast, NotLocked, NoUnfinishedJob
from orchmgmt.models import DONE, PENDING
from orchmgmt.operations import Operation
from orchmgmt.policies import AuthenticationPolicy, authentication_policy
from orchmgmt.policies.gate import NO_PERMISSION
from orchmgmt.settings import Settings
from orchmgmt.views import NO_SUCH_PATH

LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}

DOCUMENT = "/openapi.json"
PAGES = "/docs"

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

NEW_JOB_EXAMPLE = {
    "id": "091cc9c3-e704-4d0a-8d70-96fb2c11da55",
    "type": "PULL",
    "requesterSystem": "RoomClimate",
    "targetSystem": "RoomClimate",
    "serviceDefinition": "kelvinInfo",
}

_LOCK = {key: LOCK_EXAMPLE[key] for key in ("serviceInstanceId", "owner", "expiresAt")}
_INSTANCE = str(LOCK_EXAMPLE["serviceInstanceId"])
_JOB_ID = NEW_JOB_EXAMPLE["id"]
_RESERVATION = {"orchestrationJobId": _JOB_ID, **_LOCK}


_KEY = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "required": False,
    "description": (
        "A request that is repeated with its key, while its locks are there, is answered with them."
        " The quotes may be left out."
    ),
    "schema": {"type": "string", "pattern": r'^"[!#-\[\]-~]{1,64}"$'},
    "example": '"b1c5d8e2"',
}


class Example(NamedTuple):
    """How an operation is shown.

    Attributes:
        payload: what it is asked.
        found: the entry, or the object, that it answers with.
        refused: the messages of requests that it refuses with 400, by a name.
    """

    payload: Mapping[str, Any]
    found: Mapping[str, Any]
    refused: Mapping[str, str]


NO_EXAMPLE = Example({}, {}, {})

EXAMPLES = {
    "lock.create": Example(
        {"locks": [_LOCK]},
        LOCK_EXAMPLE,
        {
            "locked": str(AlreadyLocked([_INSTANCE])),
            "empty": "Request payload is empty",
            "past": str(InThePast("2020-01-01T00:00:00Z")),
        },
    ),
    "lock.query": Example(
        {
            "owners": ["TemperatureManager"],
            "expiresAfter": "2026-11-08T11:24:43Z",
            "pagination": {"page": 0, "size": 10, "sortField": "expiresAt"},
        },
        LOCK_EXAMPLE,
        {"owner": "Owner list contains empty element"},
    ),
    "lock.renew": Example(
        {
            "locks": [
                {
                    "serviceInstanceId": _INSTANCE,
                    "owner": LOCK_EXAMPLE["owner"],
                    "expiresIn": 60,
                    "id": LOCK_EXAMPLE["id"],
                }
            ]
        },
        LOCK_EXAMPLE,
        {
            "lost": str(NotLocked({str(LOCK_EXAMPLE["owner"]): [_INSTANCE]})),
            "empty": "Request payload is empty",
        },
    ),
    "lock.remove": Example(
        {
            "owner": LOCK_EXAMPLE["owner"],
            "instanceIds": [_INSTANCE],
            "ids": [LOCK_EXAMPLE["id"]],
        },
        {},
        {"instances": "Service instance id list empty"},
    ),
    "history.query": Example(
        {
            "statuses": ["ERROR"],
            "type": "PUSH",
            "requesterSystems": ["RoomClimate"],
            "pagination": {"page": 0, "size": 1},
        },
        JOB_EXAMPLE,
        {"id": "Invalid orchestration job id: abc123"},
    ),
    "lock.reserve": Example(
        {"locks": [_RESERVATION]},
        {**LOCK_EXAMPLE, "orchestrationJobId": _JOB_ID, "temporary": True},
        {
            "job": str(NoUnfinishedJob(_JOB_ID)),
            "locked": str(AlreadyLocked([_INSTANCE])),
        },
    ),
    "lock.release": Example(
        {"orchestrationJobId": _JOB_ID},
        {"count": 1},
        {"job": "Invalid orchestration job id: abc123"},
    ),
    "history.record": Example(
        {"jobs": [NEW_JOB_EXAMPLE]},
        JOB_EXAMPLE,
        {"back": cannot_become(_JOB_ID, DONE, PENDING), "new": "Type is missing"},
    ),
}

_ERROR_RESPONSE: dict[str, Any] = {
    "type": "object",
    "description": "What every answer of 400 and above is.",
    "properties": {
        "errorMessage": {"type": "string"},
        "errorCode": {"type": "integer", "minimum": 400, "maximum": 599},
        "exceptionType": {"type": "string", "enum": list(EXCEPTION_TYPES.values())},
        "origin": {"type": "string", "description": "The method, a space and the path."},
    },
    "required": ["errorMessage", "errorCode", "exceptionType", "origin"],
}

DESCRIPTION = """\
Lock management and history management of orchestration in an Eclipse Arrowhead 5 local cloud.

The patterns show the canonical form of values, which answers have. Requests may spell a name or a
version otherwise and are brought to that form; `null`, an empty string and white space are the same
as a key that is left out, and keys that are not named here are {unknown_keys}.

The service can refuse a request with 400 although its schema allows it: `expiresAt` is past, an
instance is locked, a version has more than 14 characters, or a zone more than 18 hours.

Any other path is answered with 404 and any other method with 405, in the form of an ErrorResponse.
"""


class Document(Extension):
    """The description and, for people, Swagger UI; both for everybody.

    Each address in them is relative: a proxy may put a path before the service's.
    """

    def __init__(self, service: Service) -> None:
        text = json.dumps(document(service.store.settings, service.operations))
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


class Converter(OpenAPIConverter):
    """Says in OpenAPI what our fields and schemas take and return."""

    def schema2jsonschema(self, schema: schemas.WireSchema) -> dict[str, Any]:
        """Return a schema as OpenAPI has it."""
        settings = schema.settings
        result: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        needed = [it.data_key for it in schema.fields.values() if _is_needed(it)]
        if needed:
            result["required"] = needed
        result.pop("additionalProperties", None)  # marshmallow's own default does not count
        if settings.unknown_keys == "refuse" and not isinstance(schema, schemas.EntrySchema):
            result["additionalProperties"] = False
        for field in schema.fields.values():
            if unless := getattr(field, "unless", ""):
                # Not `oneOf`, of which generators make a class for each choice.
                one, other = {"required": [field.data_key]}, {"required": [unless]}
                result.update({"if": other, "then": {"not": one}, "else": one})
        if isinstance(schema, schemas.Pagination):
            result["dependentRequired"] = {"page": ["size"], "size": ["page"]}
        return {"description": (inspect.getdoc(type(schema)) or "").split("\n")[0], **result}

    def field2property(self, field: Any) -> dict[str, Any]:
        """Return a field as OpenAPI has it."""
        root: Any = field.root
        if isinstance(field, fields.ListOf):
            least = {"minItems": 1} if field.required else {}
            return {"type": "array", "items": self.field2property(field.inner), **least}
        if isinstance(field, schemas.NestedList):
            items = self.resolve_nested_schema(field.schema)  # type: ignore[no-untyped-call]
            return {"type": "array", "items": items, "minItems": 1}
        if isinstance(field, schemas.Nested):
            nested: dict[str, Any] = self.resolve_nested_schema(field.schema)  # type: ignore[no-untyped-call]
            return nested
        in_answer = isinstance(root, schemas.EntrySchema)
        described = {**field.describe(in_answer), **field.metadata}
        if isinstance(root, schemas.Pagination) and field.name == "size":
            described["maximum"] = root.settings.max_page_size
        may_be_empty = field.load_default == "" and not root.settings.omit_empty
        if in_answer and may_be_empty and "pattern" in described:
            # One pattern: a choice of two types is a class of its own to many generators.
            return {
                "type": "string",
                "pattern": f"^({described['pattern'][1:-1]})?$",
                "description": "The empty string where there is none.",
            }
        return described


def document(settings: Settings, operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the description of operations under these settings, as OpenAPI 3.1.

    Args:
        settings: of which five matter: the policy that identifies, the largest page and body, and
            whether empty keys are left out and unknown ones refused.
        operations: the operations.
    """

    def name_of(schema: Any) -> str:
        return str(schema.title)

    plugin = MarshmallowPlugin(schema_name_resolver=name_of)
    plugin.Converter = Converter
    unknown_keys = "refused" if settings.unknown_keys == "refuse" else "ignored"
    spec = APISpec(
        title="orchmgmt",
        version=version("orchmgmt"),
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": DESCRIPTION.format(unknown_keys=unknown_keys), "license": LICENSE},
        # Where the document is, whatever a proxy puts before it.
        servers=[{"url": ".", "description": "The service that gives this document"}],
        security=[{"identity": []}],
    )
    policy = authentication_policy(settings)
    spec.components.security_scheme("identity", dict(policy.scheme))
    spec.components.schema("ErrorResponse", _ERROR_RESPONSE)
    for status, (meaning, message) in _errors(settings, policy).items():
        origin = f"POST {MANAGEMENT}/lock/query"
        spec.components.response(str(status), _error(status, meaning, {"example": message}, origin))
    for operation in operations:
        path, described = _described(operation, plugin.converter, spec)
        spec.path(path, operations={operation.method.lower(): described})
    for path, monitor in _monitor().items():
        spec.path(path, operations={"get": monitor})
    found: dict[str, Any] = spec.to_dict()
    return found


def _errors(settings: Settings, policy: type[AuthenticationPolicy]) -> dict[int, tuple[str, str]]:
    """For each status but 400: what it means, and the message of its example."""
    too_large = BodyTooLarge.smallest(settings.max_body_bytes)
    return {
        401: ("The requester has no identity, or a bad one", policy.refusal),
        403: ("The requester is known and may not manage", NO_PERMISSION),
        404: ("There is no such path: its last part holds a slash", NO_SUCH_PATH),
        413: ("The body is too large", str(BodyTooLarge(too_large))),
        415: ("The body is not declared to be JSON, or has a Content-Encoding", str(NotJson())),
        500: ("A fault of the service; its log has the details", CRASHED),
        503: ("The database, or a system that must be asked, does not answer now", BUSY),
    }


def _described(operation: Operation, converter: Any, spec: APISpec) -> tuple[str, dict[str, Any]]:
    """Return the path of an operation, and what OpenAPI calls an operation."""
    example = EXAMPLES.get(operation.name, NO_EXAMPLE)
    path = f"{MANAGEMENT}/{operation.group}/{operation.scope}"
    described: dict[str, Any] = {
        "operationId": operation.scope + {"lock": "Locks", "history": "Jobs"}[operation.group],
        "tags": [operation.group],
        "summary": operation.summary,
    }
    origin = f"{operation.method} {path}"
    if operation.in_path:
        origin += f"/{example.payload.get(operation.in_path, '')}"
        path += f"/{{{operation.in_path}}}"
        described["parameters"] = _parameters(operation, example.payload, converter)
    else:
        if operation.takes_key:
            described["parameters"] = [_KEY]
        required = not isinstance(operation.takes, schemas.QuerySchema)
        # Not `type: [object, null]`, of which generators make two classes.
        optional = {} if required else {"description": "No body and `null` ask for everything."}
        described["requestBody"] = {
            **optional,
            "required": required,
            "content": _json(converter.resolve_nested_schema(operation.takes), example.payload),
        }
    answer: dict[str, Any] = {"description": operation.outcome}
    if operation.returns:
        answer["content"] = _returned(operation.returns, example.found, converter, spec)
    others = (401, 403, *((404,) if operation.in_path else (413, 415)), 500, 503)
    described["responses"] = {
        str(operation.status): answer,
        "400": _error(400, "Malformed JSON, or a wrong or missing value", example.refused, origin),
        **_references(others),
    }
    return path, described


def _parameters(
    operation: Operation, payload: Mapping[str, Any], converter: Any
) -> list[dict[str, Any]]:
    """What an operation takes from its path and its query string."""
    return [
        {
            "name": field.data_key,
            "in": "path" if field.data_key == operation.in_path else "query",
            "required": field.required,
            **field.metadata,
            "schema": converter.field2property(field),
            **({"example": payload[key]} if (key := str(field.data_key)) in payload else {}),
        }
        for field in operation.takes.fields.values()
    ]


def _returned(
    returns: schemas.WireSchema, example: Mapping[str, Any], converter: Any, spec: APISpec
) -> dict[str, Any]:
    """The content of an answer: a page of entries, or one object."""
    if not isinstance(returns, schemas.EntrySchema):
        return _json(converter.schema2jsonschema(returns), example)
    entry = converter.resolve_nested_schema(returns)
    name = returns.page_title
    if name not in spec.components.schemas:
        entries = {"type": "array", "items": entry}
        page = {
            "type": "object",
            "description": "A page of entries.",
            "properties": {"entries": entries, "count": {"type": "integer", "minimum": 0}},
            "required": ["entries", "count"],
        }
        spec.components.schema(name, page)
    omitted = returns.settings.omit_empty
    shown = {key: it for key, it in example.items() if it != "" or not omitted}
    return _json({"$ref": f"#/components/schemas/{name}"}, {"entries": [shown], "count": 1})


def _monitor() -> dict[str, dict[str, Any]]:
    """The operations by which others see that the service is there, by path."""
    healthy = {
        "type": "object",
        "properties": {"status": {"type": "string", "const": "ok"}},
        "required": ["status"],
    }
    return {
        f"{ROOT}/monitor/echo": {
            "operationId": "echo",
            "tags": ["monitor"],
            "summary": "See, as any identified system, that the service is there",
            "responses": {
                "200": {
                    "description": "It is so",
                    "content": {"text/plain": {"schema": {"type": "string", "const": "Got it!"}}},
                },
                **_references((401, 403, 500, 503)),
            },
        },
        "/health": {
            "operationId": "health",
            "tags": ["monitor"],
            "summary": "See that the database answers and can be written to",
            "security": [],
            "responses": {
                "200": {
                    "description": "It is so",
                    "content": {"application/json": {"schema": healthy}},
                },
                **_references((500, 503)),
            },
        },
    }


def _references(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(it): {"$ref": f"#/components/responses/{it}"} for it in statuses}


def _json(schema: object, example: object) -> dict[str, Any]:
    return {"application/json": {"schema": schema, "example": example}}


def _is_needed(field: Any) -> bool:
    """Whether a key is always there: in a request, or in an answer."""
    if isinstance(field.root, schemas.EntrySchema):
        return not (field.root.settings.omit_empty and field.load_default == "")
    return bool(field.required and not getattr(field, "unless", ""))


def _error(
    status: int, description: str, messages: Mapping[str, str], origin: str
) -> dict[str, Any]:
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
