"""The limit that the service is measured against: what the machine can do without us.

A bare Flask route with hand-written SQL on the same tables, behind plain waitress with one
thread, as it is fastest: no schema, no model, no identity, no check of what it gets.

Usage: limit_server.py DATABASE
"""

import json
import logging
import sqlite3
import sys
import threading
import warnings
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, request
from waitress import create_server

LOCK_KEYS = (
    "id", "orchestrationJobId", "serviceInstanceId", "owner", "expiresAt", "temporary"
)  # fmt: skip
JOB_KEYS = (
    "id", "status", "type", "requesterSystem", "targetSystem", "serviceDefinition",
    "subscriptionId", "message", "createdAt", "startedAt", "finishedAt",
)  # fmt: skip
LOCKS = (
    "SELECT id, orchestration_job_id, service_instance_id, owner, expires_at, temporary"
    " FROM orchestration_lock"
)
JOBS = (
    "SELECT id, status, type, requester_system, target_system, service_definition,"
    " subscription_id, message, created_at, started_at, finished_at FROM orchestration_job"
)

app = Flask(__name__)
local = threading.local()


def database() -> sqlite3.Connection:
    if not hasattr(local, "connection"):
        local.connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
        local.connection.execute("PRAGMA synchronous = FULL")
    connection: sqlite3.Connection = local.connection
    return connection


def answer(keys: tuple[str, ...], rows: list[Any], count: int, status: int = 200) -> Response:
    entries = [dict(zip(keys, row, strict=True)) for row in rows]
    body = json.dumps({"entries": entries, "count": count})
    return Response(body, status, content_type="application/json")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@app.post("/serviceorchestration/orchestration/mgmt/lock/query")
def lock_query() -> Response:
    wanted = json.loads(request.get_data())
    if "ids" in wanted:
        rows = database().execute(
            f"{LOCKS} WHERE id = ? AND expires_at > ? ORDER BY id DESC LIMIT 1000",
            (wanted["ids"][0], now()),
        ).fetchall()  # fmt: skip
        return answer(LOCK_KEYS, rows, len(rows))
    if "owners" in wanted:
        rows = database().execute(
            f"{LOCKS} WHERE owner = ? AND +expires_at > ? ORDER BY id DESC LIMIT 1000",
            (wanted["owners"][0], now()),
        ).fetchall()  # fmt: skip
        return answer(LOCK_KEYS, rows, len(rows))
    moment = now()
    rows = database().execute(
        f"{LOCKS} WHERE +expires_at > ? ORDER BY id DESC LIMIT ?",
        (moment, wanted["pagination"]["size"]),
    ).fetchall()  # fmt: skip
    count = database().execute(
        "SELECT COUNT(*) FROM orchestration_lock WHERE expires_at > ?", (moment,)
    ).fetchone()[0]  # fmt: skip
    return answer(LOCK_KEYS, rows, count)


@app.post("/serviceorchestration/orchestration/mgmt/history/query")
def history_query() -> Response:
    wanted = json.loads(request.get_data())
    if "ids" in wanted:
        rows = database().execute(f"{JOBS} WHERE id = ?", (wanted["ids"][0],)).fetchall()
        return answer(JOB_KEYS, rows, len(rows))
    where, values = "", []
    if "statuses" in wanted:
        where = " WHERE requester_system = ? AND status = ?"
        values = [wanted["requesterSystems"][0], wanted["statuses"][0]]
    rows = database().execute(
        f"{JOBS}{where} ORDER BY created_at DESC, id DESC LIMIT ?",
        (*values, wanted["pagination"]["size"]),
    ).fetchall()  # fmt: skip
    count = database().execute(f"SELECT COUNT(*) FROM orchestration_job{where}", values)
    return answer(JOB_KEYS, rows, count.fetchone()[0])


@app.post("/serviceorchestration/orchestration/mgmt/lock/create")
def lock_create() -> Response:
    locks = json.loads(request.get_data())["locks"]
    values = [v for it in locks for v in (it["serviceInstanceId"], it["owner"], it["expiresAt"])]
    database().execute("BEGIN IMMEDIATE")
    rows = database().execute(
        "INSERT INTO orchestration_lock"
        " (orchestration_job_id, service_instance_id, owner, expires_at, temporary) VALUES "
        + ", ".join(["('', ?, ?, ?, 0)"] * len(locks))
        + " RETURNING id, '', service_instance_id, owner, expires_at, temporary",
        values,
    ).fetchall()  # fmt: skip
    database().execute("COMMIT")
    return answer(LOCK_KEYS, rows, len(rows), 201)


@app.get("/health")
def health() -> str:
    return "ok"


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of send_bytes
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = create_server(
        app, listen="127.0.0.1:0", threads=1, send_bytes=16 * 1024 * 1024, connection_limit=1000
    )
    print(f"Listening on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()
