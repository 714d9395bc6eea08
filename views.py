"""The operations over HTTP: load the request, call the model, dump the answer."""

from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from orchmgmt import schemas
from orchmgmt.databases import Row
from orchmgmt.errors import IDENTITY, EncodedBody, InvalidParameter, body_too_large
from orchmgmt.json_text import parse_json, write_json
from orchmgmt.locks import AlreadyLocked
from orchmgmt.logs.audit import audited, tell
from orchmgmt.models import NewLock
from orchmgmt.store import Store

#: So many entries are written at once.
PART = 20

#: An answer of fewer bytes goes out in one piece: in many it takes half as long again.
WHOLE = 1_000_000


def lock_blueprint(store: Store) -> Blueprint:
    """Return the operations of serviceOrchestrationLockManagement."""
    blueprint = Blueprint("lock", __name__)
    locks = store.locks
    query_request = schemas.LockQuery(store.settings)
    remove_request = schemas.LockRemove(store.settings)
    entry = schemas.LockEntry(store.settings)
    blueprint.post("/create", endpoint="create")(
        lock_maker(store, schemas.LockCreate, locks.create_rows)
    )

    @blueprint.post("/query")
    def query() -> Response:
        return answer(entry, *locks.find_rows(*query_request.load(read_payload())))

    @blueprint.delete("/remove", defaults={"owner": ""})
    @blueprint.delete("/remove/", defaults={"owner": ""})
    @blueprint.delete("/remove/<owner>")
    def remove(owner: str) -> Response:
        owner, instances = remove_request.read_path(owner, request.args.to_dict(flat=False))
        tell(locks=len(instances), instances=instances, owners=[owner])
        tell(removed=locks.remove_rows(owner, instances))
        response = Response()
        del response.headers["Content-Type"]  # there is no content
        return response

    return audited(blueprint, "create", "remove")


def lock_maker(
    store: Store,
    request_schema: type[schemas.LockCreate],
    make_rows: Callable[[list[NewLock]], list[Row]],
) -> Callable[[], Response]:
    """Return an operation that makes the locks of its payload.

    Args:
        store: where the locks are kept.
        request_schema: what the payload looks like.
        make_rows: makes all of the locks, or none, and returns their rows.
    """
    wanted_request = request_schema(store.settings)
    entry = schemas.LockEntry(store.settings)

    def make() -> Response:
        payload = read_payload()
        try:
            wanted = wanted_request.load(payload)
            tell(
                locks=len(wanted),
                instances=[lock.service_instance_id for lock in wanted],
                owners=dict.fromkeys(lock.owner for lock in wanted),
            )
            rows = make_rows(wanted)
        except AlreadyLocked:
            raise
        except InvalidParameter:
            # A time that is past may count before this fault, in the form in which it was sent.
            request_schema(store.settings, present=store.now()).load(payload)
            raise
        tell(ids=[row[0] for row in rows])
        return answer(entry, rows, len(rows), status=201)

    return make


def history_blueprint(store: Store) -> Blueprint:
    """Return the operation of serviceOrchestrationHistoryManagement."""
    blueprint = Blueprint("history", __name__)
    query_request = schemas.HistoryQuery(store.settings)
    entry = schemas.JobEntry(store.settings)

    @blueprint.post("/query")
    def query() -> Response:
        return answer(entry, *store.history.find_rows(*query_request.load(read_payload())))

    return blueprint


def monitor_blueprint() -> Blueprint:
    """Return the operation by which Arrowhead systems see that this one is there."""
    blueprint = Blueprint("monitor", __name__)

    @blueprint.get("/echo")
    def echo() -> Response:
        return Response("Got it!", content_type="text/plain")

    return blueprint


def health_blueprint(store: Store) -> Blueprint:
    """Return the check that a proxy or a supervisor makes; it needs no identity."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/health")
    def health() -> Response:
        store.database.check()
        return Response('{"status": "ok"}', content_type="application/json")

    return blueprint


def read_payload() -> Any:
    """Return the request's JSON; `None` when there is no body."""
    limit = (request.max_content_length or 0) - 1
    length = request.content_length or 0
    if length <= limit:
        body = request.get_data(cache=False)
        length = len(body)
    if length > limit:
        raise RequestEntityTooLarge(body_too_large(limit))
    if not body:
        return None
    encoding = request.headers.get("Content-Encoding", IDENTITY)
    if encoding.strip().lower() not in ("", IDENTITY):
        raise EncodedBody(encoding)
    if not request.is_json:
        raise UnsupportedMediaType("The body must be JSON: Content-Type: application/json")
    return parse_json(body)


def answer(
    schema: schemas.EntrySchema, rows: Sequence[Row], count: int, status: int = 200
) -> Response:
    """Return an answer of entries (contract, "Lock" and "History").

    It is written in parts, so that a large one is not there as entries, as text and as bytes.
    """
    parts, separator = [b'{"entries":['], b""
    for start in range(0, len(rows), PART):
        entries = write_json(schema.dump(rows[start : start + PART]))
        parts.append(separator + entries[1:-1].encode())
        separator = b","
    parts.append(b'],"count":%d}' % count)
    if sum(map(len, parts)) < WHOLE:
        parts = [b"".join(parts)]
    return Response(parts, status, content_type="application/json")
