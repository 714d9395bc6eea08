"""Rows put straight into a database, bytes that no HTTP client sends, and a model of queries."""

import http.client
import re
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import psycopg
from support import MANAGEMENT, OPERATOR, Answer, Client, Service

from orchmgmt.models import Lock
from orchmgmt.store import Store

LOCK, JOB = "orchestration_lock", "orchestration_job"

PAST = "2020-01-01T00:00:00Z"
JOB_ID = "091cc9c3-e704-4d0a-8d70-96fb2c11da55"

#: Lock query's filters that are lists, with the key that each is about, and what it can sort by.
LOCK_LISTS = {
    "ids": "id",
    "orchestrationJobIds": "orchestrationJobId",
    "serviceInstanceIds": "serviceInstanceId",
    "owners": "owner",
}
LOCK_SORT_FIELDS = ["id", "owner", "serviceInstanceId", "expiresAt"]


def connect(url: str) -> Any:
    """A connection beside the service's, which commits each statement; any thread may use it."""
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        return sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    return psycopg.connect(url, autocommit=True)


def make_earlier(url: str, version: int) -> None:
    """Turn a PostgreSQL database into one of an earlier version of the schema."""
    with closing(connect(url)) as database:
        for counts in ("orchestration_job_count", "orchestration_lock_count"):
            database.execute(f"DROP TABLE {counts}")
            database.execute(f"DROP FUNCTION {counts} CASCADE")
        if version < 4:  # up to version 3 the tables there are the same
            database.execute(f"ALTER TABLE {LOCK} DROP COLUMN idempotency_key, DROP COLUMN request")
        database.execute(f"UPDATE orchestration_schema SET version = {version}")


def execute(store: Store, sql: str, *rows: Sequence[Any]) -> None:
    """Run a statement, in which each `?` is a value, once or for each of `rows`."""
    database = store.database

    def run() -> None:
        for row in rows or [()]:
            database.change(sql.replace("?", database.engine.param), row)

    database.write_once(run)


def put(service: Service, table: str, *entries: dict[str, Any]) -> None:
    """Insert rows, given as the entries that a query would return."""
    insert(service.store, table, *entries)


def insert(store: Store, table: str, *entries: dict[str, Any]) -> None:
    """As `put`, where there is no service."""
    keys = list(entries[0])
    columns = ",".join(re.sub("([A-Z])", lambda match: "_" + match[1].lower(), key) for key in keys)
    places = ",".join("?" * len(keys))
    database = store.database
    if table == LOCK:
        highest = max(entry["id"] for entry in entries)
        database.write_once(database.keep_others_off, Lock.id, highest)
    sql = f"INSERT INTO {table} ({columns}) VALUES ({places})"
    execute(store, sql, *([entry[key] for key in keys] for entry in entries))


def lock_entry(id: int, **values: Any) -> dict[str, Any]:
    return {
        "id": id,
        "orchestrationJobId": "",
        "serviceInstanceId": f"Provider{id}|kelvinInfo|1.0.0",
        "owner": "Owner",
        "expiresAt": "2099-01-01T00:00:00Z",
        "temporary": False,
        **values,
    }


def job_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def job_entry(number: int, **values: Any) -> dict[str, Any]:
    return {
        "id": job_id(number),
        "status": "PENDING",
        "type": "PULL",
        "requesterSystem": "Consumer",
        "targetSystem": "Consumer",
        "serviceDefinition": "kelvinInfo",
        "subscriptionId": "",
        "message": "",
        "createdAt": "2025-11-08T12:00:00Z",
        "startedAt": "",
        "finishedAt": "",
        **values,
    }


def expected(
    entries: list[dict[str, Any]],
    query: Mapping[str, Any],
    lists: Mapping[str, str],
    default_sort: str,
) -> dict[str, Any]:
    """The answer to a query, as the contract's words say it. `lists`: each filter's key."""
    found = [
        entry
        for entry in entries
        if all(not query.get(name) or entry[key] in query[name] for name, key in lists.items())
        and ("type" not in query or entry["type"] == query["type"])
        and ("expiresBefore" not in query or entry["expiresAt"] < query["expiresBefore"])
        and ("expiresAfter" not in query or entry["expiresAt"] > query["expiresAfter"])
    ]
    pagination = query.get("pagination", {})
    sort_field = pagination.get("sortField", default_sort)
    descending = pagination.get("direction", "DESC") == "DESC"
    found.sort(key=lambda entry: (entry[sort_field], entry["id"]), reverse=descending)
    size = pagination.get("size", 1000)
    first = pagination.get("page", 0) * size
    return {"entries": found[first : first + size], "count": len(found)}


def chunked(*chunks: bytes) -> bytes:
    """A lock query whose body comes in chunks."""
    head = (
        f"POST {MANAGEMENT}/lock/query HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(it), it) for it in (*chunks, b""))


def raw(service: Client, request: bytes) -> Answer:
    """Send bytes as they are, and read one answer to the end of the connection."""
    address = urlsplit(service.url)
    with socket.create_connection((str(address.hostname), address.port), timeout=30) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        line = request.partition(b"\r\n")[0].decode("latin-1")
        method, _, rest = line.partition(" ")
        path = re.sub("^http://[^/]*", "", rest.partition(" ")[0]).partition("?")[0]
        return Answer(response.status, response.headers, response.read(), f"{method} {path}")
