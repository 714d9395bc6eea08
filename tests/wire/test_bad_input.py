"""Whatever is sent, the answer is a 400 that says what is wrong, never a crash."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import FUTURE, MANAGEMENT, OPERATOR, Answer, Client, Process, Service, lock
from wire import JOB, chunked, job_entry, job_id, put, raw

BODIES = ["/lock/create", "/lock/query", "/history/query"]
JSON = {"Authorization": OPERATOR, "Content-Type": "application/json"}

LOCK_CREATE = {"locks": [lock("A|b|1.0.0"), lock("C|d|1.0.0")]}
LOCK_QUERY = {
    "pagination": {"page": 0, "size": 10, "direction": "ASC", "sortField": "owner"},
    "ids": [5],
    "orchestrationJobIds": [job_id(1)],
    "serviceInstanceIds": ["A|b|1.0.0"],
    "owners": ["Owner"],
    "expiresBefore": FUTURE,
    "expiresAfter": "2025-11-08T11:00:00Z",
}
HISTORY_QUERY = {
    "pagination": {"page": 0, "size": 10, "direction": "ASC", "sortField": "id"},
    "ids": [job_id(1)],
    "statuses": ["PENDING"],
    "type": "PUSH",
    "requesterSystems": ["A"],
    "targetSystems": ["A"],
    "serviceDefinitions": ["a"],
    "subscriptionIds": [job_id(1)],
}
PAYLOADS: dict[str, Any] = {
    "/lock/create": LOCK_CREATE,
    "/lock/query": LOCK_QUERY,
    "/history/query": HISTORY_QUERY,
}
JSON_VALUES = [True, False, 0, -7, 1.5, 1e308, 10**30, "text", [], ["text"], [[]], {}, {"a": 1}]


def post(service: Client, path: str, body: bytes, **headers: str) -> Answer:
    return service.send("POST", MANAGEMENT + path, body, {**JSON, **headers})


def places(payload: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a payload, itself included."""
    yield path
    inside: dict[Any, Any] = {}
    if isinstance(payload, dict):
        inside = payload
    elif isinstance(payload, list):
        inside = dict(enumerate(payload))
    for key, inner in inside.items():
        yield from places(inner, (*path, key))


def replaced(payload: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(payload))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@pytest.mark.parametrize("path", BODIES)
def test_the_payloads_that_are_spoilt_below_are_good(service: Service, path: str) -> None:
    assert service.post(path, PAYLOADS[path]).status in (200, 201)


@pytest.mark.parametrize(
    ("path", "place"),
    [(path, place) for path in BODIES for place in places(PAYLOADS[path])],
    ids=lambda part: part if isinstance(part, str) else ".".join(map(str, part)) or "whole",
)
def test_a_wrong_json_type_is_refused_wherever_it_is(
    service: Service, path: str, place: tuple[Any, ...]
) -> None:
    payload = PAYLOADS[path]
    good = payload
    for key in place:
        good = good[key]
    for value in JSON_VALUES:
        if type(value) is type(good) and value != [[]]:
            continue
        answer = service.post(path, replaced(payload, place, value))
        assert answer.status == 400, value
        assert answer.error
    assert service.locks().entries == []


@pytest.mark.parametrize("path", BODIES)
def test_a_wrong_type_is_the_first_thing_to_be_named(service: Service, path: str) -> None:
    name = {"/lock/create": "locks", "/lock/query": "owners", "/history/query": "statuses"}[path]
    wrong = {**PAYLOADS[path], name: 7, "pagination": {"size": 1}, "serviceInstanceIds": [""]}
    assert service.post(path, wrong).error == f"{name} must be a list"


MALFORMED = {
    "nothing closed": b"{",
    "only an end": b"}",
    "half": b'{"locks": [',
    "no value": b'{"ids": }',
    "no key": b"{1: 2}",
    "single quotes": b"{'ids': []}",
    "trailing comma": b'{"ids": [1,]}',
    "trailing text": b"{} x",
    "two objects": b"{}{}",
    "trailing NUL": b"{}\x00",
    "comment": b"{} // all",
    "word": b"all",
    "capital null": b"NULL",
    "NaN": b'{"ids": [NaN]}',
    "Infinity": b'{"ids": [Infinity]}',
    "-Infinity": b'{"more": -Infinity}',
    "NaN alone": b"NaN",
    "leading zero": b'{"ids": [01]}',
    "plus": b'{"ids": [+1]}',
    "hexadecimal": b'{"ids": [0x1]}',
    "bare point": b'{"ids": [1.]}',
    "duplicated key": b'{"ids": [1], "ids": [2]}',
    "duplicated key written otherwise": b'{"ids": [1], "id\\u0073": [2]}',
    "duplicated key inside": b'{"pagination": {"page": 0, "page": 0, "size": 1}}',
    "duplicated key in an element": b'{"locks": [{"owner": "A", "owner": "A"}]}',
    "duplicated key that is ignored": b'{"more": {"a": 1, "b": 2, "a": 1}}',
    "duplicated surrogate": b'{"\\ud800": 1, "\\ud800": 2}',
    "no UTF-8": b'{"owners": ["\xff"]}',
    "cut UTF-8": b'{"owners": ["\xc3"]}',
    "overlong UTF-8": b'{"owners": ["\xc0\xaf"]}',
    "UTF-8 surrogate": b'{"owners": ["\xed\xa0\x80"]}',
    "Latin-1": '{"owners": ["é"]}'.encode("latin-1"),
    "UTF-16": "{}".encode("utf-16"),
    "UTF-32": "{}".encode("utf-32"),
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "byte order mark within": b"{\xef\xbb\xbf}",
    "only a byte order mark": b"\xef\xbb\xbf",
    "only white space": b" \r\n\t",
    "raw line end in a string": b'{"owners": ["A\n"]}',
    "raw NUL in a string": b'{"owners": ["A\x00"]}',
    "bad escape": b'{"owners": ["\\x41"]}',
    "short escape": b'{"owners": ["\\u00"]}',
    "open string": b'{"owners": ["A',
    "other white space": b"\xc2\xa0{}",
    "a form": b"ids=1&owners=A",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(service: Service, body: bytes) -> None:
    for path in BODIES:
        answer = post(service, path, body)
        assert answer.status == 400
        assert answer.error.startswith("Malformed JSON: ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_another_encoding_of_json_is_named(service: Service, encoding: str) -> None:
    answer = post(service, "/lock/query", '{"owners": ["A"]}'.encode(encoding))
    assert (answer.status, answer.error) == (400, "Malformed JSON: it is not UTF-8")


def test_a_byte_order_mark_before_json_is_ignored(service: Service) -> None:
    body = json.dumps({"locks": [lock("A|b|1")]}).encode()
    assert post(service, "/lock/create", b"\xef\xbb\xbf" + body).status == 201
    assert post(service, "/lock/query", b"\xef\xbb\xbf{}").json["count"] == 1
    assert post(service, "/history/query", b"\xef\xbb\xbfnull").status == 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate, gzip", "br", "identity, gzip", "x"])
def test_an_encoded_body_is_refused_and_the_encoding_named(service: Service, encoding: str) -> None:
    headers = {**service.headers, "Content-Type": "application/json", "Content-Encoding": encoding}
    for path in BODIES:
        answer = service.send("POST", MANAGEMENT + path, gzip.compress(b"{}"), headers)
        assert answer.status == 415
        assert answer.error.endswith(f"Content-Encoding: {encoding}")
        assert answer.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_says_that_it_is_not_encoded_is_taken(service: Service, encoding: str) -> None:
    headers = {**service.headers, "Content-Type": "application/json", "Content-Encoding": encoding}
    assert service.send("POST", f"{MANAGEMENT}/lock/query", b"{}", headers).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"ids":' * 100_000,
        b'{"ids":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"more":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=["open lists", "lists", "open objects", "lists in a filter", "ignored objects"],
)
def test_deep_nesting_is_refused(service: Service, body: bytes) -> None:
    for path in BODIES:
        answer = post(service, path, body)
        assert (answer.status, answer.error) == (400, "Malformed JSON: it is nested too deeply")


def test_what_is_ignored_may_be_nested_and_strange(service: Service) -> None:
    body = b'{"a": %s1%s, "\\ud800": "\\udfff", "": {"": []}, "c": [1e400, -1e400, %s]}' % (
        b"[" * 300,
        b"]" * 300,
        b"9" * 10_000,
    )
    assert post(service, "/lock/query", body).json == {"entries": [], "count": 0}
    assert post(service, "/history/query", body).json == {"entries": [], "count": 0}
    assert post(service, "/lock/create", body).error == "Request payload is empty"


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 10_000, b"-" + b"9" * 10_000])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/lock/create", b"%s"),
        ("/lock/create", b'{"locks": %s}'),
        ("/lock/create", b'{"locks": [%s]}'),
        ("/lock/create", b'{"locks": [{"serviceInstanceId": %s}]}'),
        ("/lock/create", b'{"locks": [{"expiresAt": %s}]}'),
        ("/lock/query", b"%s"),
        ("/lock/query", b'{"ids": [%s]}'),
        ("/lock/query", b'{"ids": %s}'),
        ("/lock/query", b'{"pagination": {"page": %s, "size": 1}}'),
        ("/lock/query", b'{"expiresAfter": %s}'),
        ("/history/query", b'{"pagination": {"page": 0, "size": %s}}'),
        ("/history/query", b'{"type": %s}'),
    ],
)
def test_a_huge_number_is_refused_where_it_counts(
    service: Service, path: str, body: bytes, number: bytes
) -> None:
    answer = post(service, path, body % number)
    assert answer.status == 400
    assert len(answer.error) < 200


@pytest.mark.parametrize("surrogate", ["\ud800", "A\udc80", "a-\ud83d", "\ude00\ud83d"])
def test_a_lone_surrogate_is_named_as_it_was_sent(service: Service, surrogate: str) -> None:
    instance = f"A|b|{surrogate}"
    for answer in (
        service.create(lock("A|b|1", surrogate)),
        service.create(lock(instance)),
        service.create(lock(surrogate)),
        service.create(lock("A|b|1", expires_at=surrogate)),
        service.locks(owners=[surrogate]),
        service.locks(serviceInstanceIds=[instance]),
        service.locks(orchestrationJobIds=[surrogate]),
        service.locks(ids=[surrogate]),
        service.locks(expiresBefore=surrogate),
        service.locks(pagination={"sortField": surrogate}),
        service.locks(pagination={"direction": surrogate}),
        service.jobs(ids=[surrogate]),
        service.jobs(statuses=[surrogate]),
        service.jobs(type=surrogate),
    ):
        assert answer.status == 400
        assert answer.error
    assert service.jobs(type=surrogate).error == f"Invalid type: {surrogate}"


@pytest.mark.parametrize(
    "text",
    ["' OR '1'='1", '"; DROP TABLE orchestration_lock; --', "%", "_%", "A*", "\\", "${jndi:x}"],
)
def test_text_is_never_a_command(service: Service, text: str) -> None:
    service.create(lock("A|b|1", "Owner"))
    put(service, JOB, job_entry(1))
    for answer in (
        service.locks(owners=[text]),
        service.locks(serviceInstanceIds=[f"{text}|b|1"]),
        service.locks(orchestrationJobIds=[text]),
        service.jobs(ids=[text]),
        service.jobs(serviceDefinitions=[text]),
    ):
        assert answer.status == 400
        assert answer.error
    assert service.locks().json["count"] == service.jobs().json["count"] == 1


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "text/json",
        "application/xml",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/jsonp",
        "json",
        "",
        ";",
        None,
    ],
)
def test_a_body_that_is_not_said_to_be_json_is_refused(
    service: Service, path: str, media_type: str | None
) -> None:
    headers = {"Authorization": OPERATOR}
    if media_type is not None:
        headers["Content-Type"] = media_type
    for body in (json.dumps(PAYLOADS[path]).encode(), b"["):
        answer = service.send("POST", MANAGEMENT + path, body, headers)
        assert answer.status == 415
        assert answer.error == "The body must be JSON: Content-Type: application/json"
    assert service.locks().entries == []


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
    ],
)
def test_a_body_that_is_said_to_be_json_is_read(service: Service, media_type: str) -> None:
    body = '{"owners": ["é"]}'.encode()
    answer = post(service, "/lock/query", body, **{"Content-Type": media_type})
    assert answer.error.endswith("naming convention: é")


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", ""])
def test_without_a_body_its_type_does_not_matter(service: Service, media_type: str) -> None:
    answer = post(service, "/lock/query", b"", **{"Content-Type": media_type})
    assert answer.status == 200


def too_large(limit: int) -> tuple[int, str]:
    return 413, f"The request body is larger than {limit} bytes"


@pytest.mark.parametrize("path", [*BODIES, "/lock/remove/A?instanceIds=A%7Cb%7C1"])
def test_a_body_above_the_limit_is_refused(server: Process, path: str) -> None:
    method = "DELETE" if "remove" in path else "POST"
    for size in (4 * 1024 * 1024 + 1, 20 * 1024 * 1024):
        answer = server.send(method, MANAGEMENT + path, b" " * size, JSON)
        assert (answer.status, answer.error) == too_large(4 * 1024 * 1024)


def test_a_body_of_exactly_the_limit_is_read(server: Process) -> None:
    assert post(server, "/lock/query", b"{}".ljust(4 * 1024 * 1024)).status == 200


@pytest.mark.parametrize("announced", ["4194305", "99999999999999999999", "9" * 4000])
def test_a_length_above_the_limit_is_refused_unseen(server: Process, announced: str) -> None:
    answer = raw(
        server,
        f"POST {MANAGEMENT}/lock/query HTTP/1.1\r\nAuthorization: {OPERATOR}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {announced}\r\n\r\n".encode(),
    )
    assert (answer.status, answer.error) == too_large(4 * 1024 * 1024)


@pytest.mark.parametrize("limit", [1, 2, 20, 5000])
def test_the_limit_is_a_setting(start: Callable[..., Service], limit: int) -> None:
    service = start(MAX_BODY_BYTES=limit)
    assert post(service, "/lock/query", b"").status == 200
    assert post(service, "/lock/query", b"{}".ljust(limit)[:limit]).status == (
        400 if limit == 1 else 200
    )
    for excess in (1, 2, 100_000):
        answer = post(service, "/lock/query", b"{}".ljust(limit + excess))
        assert (answer.status, answer.error) == too_large(limit)


def test_a_body_in_chunks_is_read(server: Process) -> None:
    assert raw(server, chunked(b'{"owners"', b": [", b'"A"]}')).status == 200
    assert raw(server, chunked(b'{"owners"', b": [", b'"9"]}')).error.endswith(": 9")
    assert raw(server, chunked()).status == 200


def test_a_body_in_chunks_above_the_limit_is_refused(serve: Callable[..., Process]) -> None:
    server = serve("--max-body-bytes", "100000")
    assert raw(server, chunked(b"{}".ljust(50_000), b" " * 49_000)).status == 200
    for chunks in ([b"{}".ljust(100_001)], [b"{}".ljust(10_000)] * 11, [b" " * 900_000] * 3):
        answer = raw(server, chunked(*chunks))
        assert (answer.status, answer.error) == too_large(100_000)
