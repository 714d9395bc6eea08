"""A client of the service, for Python programs; only the standard library is needed.

with Client("http://127.0.0.1:8441", name="Sysop") as client:
    end = datetime.now(timezone.utc) + timedelta(minutes=5)
    wanted = Lock(service_instance_id="Boiler|heat|1.0.0", owner="BoilerControl", expires_at=end)
    (lock,) = client.create_locks([wanted])
    client.remove_locks(lock.owner, lock.service_instance_id)

It also talks to the Java implementation of Eclipse Arrowhead.
"""

import http.client
import itertools
import json
import random
import selectors
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from math import inf
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from orchmgmt.entries import (
    MANAGEMENT,
    ROOT,
    Job,
    Lock,
    already_locked,
    camel_case,
    to_wire,
    write_time,
)

__all__ = ["AlreadyLocked", "Client", "Job", "Lock", "Refused", "Unavailable"]

#: Seconds. The client does not wait longer than this; the caller may.
LONGEST_PAUSE = 10.0

#: Seconds before the second try. Each further pause is twice as long.
FIRST_PAUSE = 0.1

#: The longest query string of a remove, in characters. Many servers accept 8,000 for the first line
#: of a request.
QUERY_STRING_LENGTH = 4000

#: The keys of a lock in a create request; a `Lock` has more.
REQUESTED = ("serviceInstanceId", "owner", "expiresAt")

#: The filters of a history query that are lists.
JOB_LISTS = {
    "ids",
    "statuses",
    "requester_systems",
    "target_systems",
    "service_definitions",
    "subscription_ids",
}

#: The page size that stands for the largest that the service gives.
LARGEST = 0

#: The page of a query that only counts.
ONE = {"page": 0, "size": 1}

#: How many bytes of an answer are read at once.
BLOCK_BYTES = 64 * 1024

#: What reading an answer can raise that is not the expected JSON, or is nested too deeply.
UNEXPECTED_JSON = (ValueError, TypeError, KeyError, RecursionError)

E = TypeVar("E", Lock, Job)


class Refused(Exception):
    """The service refuses the request, and would refuse it again.

    Attributes:
        status: the HTTP status: 4xx, or another one if something else than the service answered.
        message: the reason that the answer gives.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status
        self.message = message


class AlreadyLocked(Refused):
    """Nothing was locked, because some of the service instances are locked already.

    Attributes:
        instances: all of those.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.instances = already_locked(message)


class Unavailable(Exception):
    """No connection, no answer in time, or a 5xx: the same request may succeed later.

    After a create, only a query can tell whether the locks were made.

    Attributes:
        status: the HTTP status, or `None` if there was no answer.
        retry_after: seconds to wait before the next try, or `None` if the answer does not say.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message if status is None else f"{message} ({status})")
        self.status = status
        self.retry_after = retry_after


class Unanswered(Unavailable):
    """No answer came, or none that can be read as HTTP.

    Attributes:
        reason: why; it holds nothing that the other side sent.
        sent: whether the other side may have received the request.
    """

    def __init__(self, url: str, reason: str, sent: bool = True) -> None:
        super().__init__(
            f"{url} did not answer: {reason}" if sent else f"no connection to {url}: {reason}"
        )
        self.reason = reason
        self.sent = sent


class Client:
    """Creates, queries and removes locks, and queries jobs. Any thread may call any method.

    Args:
        url: where the service is: `http://`, `https://`, or `http+unix://` and the escaped path of
            a Unix socket. A path before `/serviceorchestration` is kept; what follows is ignored.
        name: the system that asks, if the authentication policy is `declared`.
        token: its identity token, if the policy is `outsourced`; or a function that returns it. The
            function gets `None` before each request, and after a 401 the token that was refused.
            If it then returns another one, the request is sent once more.
        certificate: the PEM file of its certificate and key, or a pair of two files, if the policy
            is `certificate`. A name or a token may go with it.
        ca: the PEM file of the CAs trusted for the service; by default those of this machine.
        timeout: how many seconds the service may be silent.
        retries: how often to try again. A query and a remove are repeated whenever the service is
            `Unavailable`; a create only if nothing was sent, or if the answer was a 503 with
            `Retry-After`. After such a 503, `AlreadyLocked` may name the locks that the first try
            made after all; a query tells.

    Raises:
        TypeError: there is no name, token or certificate, or both a name and a token.
        ValueError: the URL, one of the files or another argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        token: str | Callable[[str | None], str] | None = None,
        certificate: str | tuple[str, str] | None = None,
        ca: str | None = None,
        timeout: float = 5,
        retries: int = 3,
    ) -> None:
        _check_requester(name, token, certificate)
        if not (timeout > 0 and retries >= 0):  # this refuses NaN too
            raise ValueError("the timeout must be above 0, and retries 0 or more")
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self._headers = {"Accept": "application/json"}
        if name is not None:
            self._headers["Authorization"] = f"Bearer SYSTEM//{name}"
        self._token = (lambda refused: token) if isinstance(token, str) else token
        parts = split_url(url)
        before = parts.path.partition(ROOT)[0].rstrip("/")
        self._base = f"{parts.scheme}://{parts.netloc}{before}"
        context = None
        if parts.scheme == "https":
            files = certificate if isinstance(certificate, tuple) else (certificate, None)
            context = tls_context(ca, *files)
        elif certificate is not None or ca is not None:
            raise ValueError(f"{url} must be https:// to go with a certificate or a ca")
        self._connections = Connections(timeout, timeout, context)

    def create_locks(self, locks: Iterable[Lock]) -> list[Lock]:
        """Lock service instances, all of them or none (contract, "Lock", "create").

        Args:
            locks: the instance, the owner and the end of each.

        Returns:
            The new locks in the same order, with their ids.

        Raises:
            AlreadyLocked: some of the instances are locked already.
            Refused: a value is wrong, or the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
            ValueError: an `expires_at` has no zone.
        """
        wires = [lock.to_wire() for lock in locks]
        wanted = [{key: wire[key] for key in REQUESTED if key in wire} for wire in wires]
        return self._post("/lock/create", {"locks": wanted}, Lock, repeatable=False)[0]

    def locks(
        self,
        *,
        ids: Iterable[int] = (),
        orchestration_job_ids: Iterable[str] = (),
        service_instance_ids: Iterable[str] = (),
        owners: Iterable[str] = (),
        expires_before: datetime | None = None,
        expires_after: datetime | None = None,
    ) -> Iterator[Lock]:
        """Return the active locks that match every filter, the newest first.

        Contract: "Lock", "query". A lock matches a list if it has one of its values; an empty list
        does not filter.

        Args:
            ids: the ids of locks.
            orchestration_job_ids: the jobs that hold them.
            service_instance_ids: the locked instances.
            owners: the systems that hold them.
            expires_before: a time with a zone; the locks expire before it.
            expires_after: a time with a zone; the locks expire after it.

        Raises:
            TypeError: a list is a string.
            ValueError: a time has no zone.
            Refused: while iterating: a value is wrong, or the requester has no permission.
            Unavailable: while iterating: there was no answer, or a 5xx.
        """
        lists = {
            "ids": ids,
            "orchestration_job_ids": orchestration_job_ids,
            "service_instance_ids": service_instance_ids,
            "owners": owners,
        }
        query = _query(lists, expires_before=expires_before, expires_after=expires_after)
        return self._pages("/lock/query", query, Lock)

    def remove_locks(self, owner: str, *instances: str) -> None:
        """Remove an owner's locks, except temporary ones (contract, "Lock", "remove").

        Instances that are not locked, or not by this owner, are ignored. A long list is sent in
        several requests.

        Args:
            owner: the system that holds them.
            instances: the service instances.

        Raises:
            Refused: a value is wrong, there are no instances, or the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
        """
        for query in _query_strings(instances):
            path = f"{MANAGEMENT}/lock/remove/{quote(owner, safe='')}?{query}"
            self._ask("DELETE", path)

    def jobs(
        self,
        *,
        ids: Iterable[str] = (),
        statuses: Iterable[str] = (),
        type: str | None = None,
        requester_systems: Iterable[str] = (),
        target_systems: Iterable[str] = (),
        service_definitions: Iterable[str] = (),
        subscription_ids: Iterable[str] = (),
        since: datetime | None = None,
    ) -> Iterator[Job]:
        """Return the jobs that match every filter, in the order of their ids, which are random.

        Contract: "History". A job matches a list if it has one of its values; an empty list does
        not filter.

        Args:
            ids: the jobs' UUIDs.
            statuses: `PENDING`, `IN_PROGRESS`, `DONE`, `ERROR`.
            type: `PULL` or `PUSH`.
            requester_systems: the systems that asked for them.
            target_systems: the systems that their results are for.
            service_definitions: the services that they looked for.
            subscription_ids: the UUIDs of the subscriptions that triggered them.
            since: a time with a zone. The jobs were created, started or finished at that time or
                later, and come in no particular order. The contract has no such filter, but the
                client reads no more than these jobs. It may miss some while thousands change each
                second.

        Raises:
            TypeError: a list is a string.
            ValueError: the time has no zone.
            Refused: while iterating: a value is wrong, or the requester has no permission.
            Unavailable: while iterating: there was no answer, or a 5xx.
        """
        query = _job_query(
            ids=ids,
            statuses=statuses,
            type=type,
            requester_systems=requester_systems,
            target_systems=target_systems,
            service_definitions=service_definitions,
            subscription_ids=subscription_ids,
        )
        if since is not None:
            write_time(since)  # raises ValueError without a zone
            return self._latest("/history/query", query, since)
        return self._pages("/history/query", query, Job)

    def count_jobs(self, **filters: Any) -> int:
        """Return how many jobs match every filter.

        Args:
            filters: those of `jobs`, except `since`.

        Raises:
            TypeError: a list is a string, or there is no such filter.
            Refused: a value is wrong, or the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
        """
        return self._post("/history/query", {**_job_query(**filters), "pagination": ONE}, Job)[1]

    def counts(self) -> tuple[int, int]:
        """Return how many active locks and how many jobs there are.

        Raises:
            Refused: the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
        """
        return self._post("/lock/query", {"pagination": ONE}, Lock)[1], self.count_jobs()

    def echo(self) -> None:
        """Check that the service is there and accepts the requester's identity.

        Raises:
            Refused: it does not accept it.
            Unavailable: it is not there.
        """
        self._ask("GET", f"{ROOT}/monitor/echo")

    def health(self) -> None:
        """Check that the service and its database work (the Java implementation cannot tell).

        Raises:
            Refused: there is no such path.
            Unavailable: they do not work.
        """
        self._ask("GET", "/health")

    def close(self) -> None:
        """Close the connections. No method that asks can be called afterwards."""
        self._connections.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pages(self, path: str, query: dict[str, Any], entry: type[E]) -> Iterator[E]:
        """Return all entries that match, from as many pages as needed.

        Between two pages other entries come and go, and shift the rest. Still, each entry that
        stays is returned, and once. Entries come in the order of their ids, the largest first, and
        each page starts at the last entry that was returned, or before it. If a page turns out to
        start after it, entries were skipped, and the page before it is read next. (Pages of very
        few entries cannot always overlap.)
        """
        page, count = self._page(path, query, entry)
        yield from page
        largest = place = len(page)  # place: how many entries come up to the last one returned
        last: Any = page[-1].id if page else None
        more = 0 < place < count
        while more:
            size = _page_size(place, largest)
            start = place - place % size
            page, count = self._page(path, query, entry, start // size, size)
            if 0 < start < place and not (page and page[0].id >= last):
                place = start
                continue
            for it in page:
                if it.id < last:
                    yield it
            last = min(last, page[-1].id) if page else last
            place = start + len(page)
            more = bool(page) and place < count

    def _latest(self, path: str, query: dict[str, Any], since: datetime) -> Iterator[Job]:
        """Return the jobs that were created, started or finished since then."""
        latest: dict[str, Job] = {}
        for name in Job.TIMES:
            place = 0
            for number in itertools.count():
                page, count = self._page(path, query, Job, number, sort=camel_case(name))
                place += len(page)
                recent = [it for it in page if (moment := getattr(it, name)) and moment >= since]
                latest |= {it.id: it for it in recent}
                if place >= count or not page or len(recent) < len(page):
                    break
        yield from latest.values()

    def _page(
        self,
        path: str,
        query: dict[str, Any],
        entry: type[E],
        number: int = 0,
        size: int = LARGEST,
        sort: str = "id",
    ) -> tuple[list[E], int]:
        """Return one page of what matches, the largest values first, and the count of all."""
        page = {"page": number, "size": size, "direction": "DESC", "sortField": sort}
        return self._post(path, {**query, "pagination": page}, entry)

    def _post(
        self, path: str, payload: dict[str, Any], entry: type[E], repeatable: bool = True
    ) -> tuple[list[E], int]:
        """Return the entries of an answer, and its count."""
        answer = self._ask("POST", MANAGEMENT + path, json.dumps(payload), repeatable)
        try:
            body = json.loads(answer.body)
            found = [entry.from_wire(it) for it in body["entries"]]
            if not all(isinstance(it.id, int if entry is Lock else str) for it in found):
                raise ValueError("an id has the wrong type")
            return found, int(body["count"])
        except (*UNEXPECTED_JSON, AttributeError, OverflowError) as error:
            message = f"{self.url} does not answer as an orchestration service does"
            raise Refused(answer.status, message) from error

    def _ask(
        self, method: str, path: str, body: str | None = None, repeatable: bool = True
    ) -> "Answer":
        """Return a good answer, under a new token if the first one is refused."""
        token = self._token and self._token(None)
        try:
            return self._retry(token, method, path, body, repeatable)
        except Refused as refusal:
            fresh = None
            if self._token and refusal.status == http.HTTPStatus.UNAUTHORIZED:
                fresh = self._token(token)
            if fresh == token or fresh is None:
                raise
            return self._retry(fresh, method, path, body, repeatable)

    def _retry(
        self, token: str | None, method: str, path: str, body: str | None, repeatable: bool
    ) -> "Answer":
        """Return a good answer, after as many tries as allowed."""
        headers = dict(self._headers)
        if token is not None:
            headers["Authorization"] = f"Bearer IDENTITY-TOKEN//{token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        backoff = FIRST_PAUSE
        for left in range(self.retries, -1, -1):
            try:
                return _good(self._connections.ask(method, self._base, path, headers, body))
            except Unavailable as failure:
                wait = failure.retry_after or 0.0
                if not left or not (repeatable or _undone(failure)) or wait > LONGEST_PAUSE:
                    raise
                time.sleep(min(wait + backoff * random.uniform(0.5, 1), LONGEST_PAUSE))
                backoff *= 2
        raise AssertionError("the last try returns or raises")


class Answer(NamedTuple):
    """An answer as it came.

    Attributes:
        status: the HTTP status.
        reason: the words behind it, which may be empty.
        headers: the headers.
        body: the whole body.
    """

    status: int
    reason: str
    headers: Message
    body: bytes


class Connections:
    """Connections to servers, kept open and used again. Any thread may call any method.

    Each request is sent once: nothing is repeated, and no redirection is followed.

    Args:
        connect_timeout: how many seconds a connection and its TLS handshake may take.
        read_timeout: how many seconds the other side may be silent.
        context: what `https://` needs; see `tls_context`.
        answer_timeout: how many seconds a request may take until its answer is complete.
        answer_bytes: how large the body of an answer may be.
    """

    def __init__(
        self,
        connect_timeout: float,
        read_timeout: float,
        context: ssl.SSLContext | None = None,
        *,
        answer_timeout: float = inf,
        answer_bytes: float = inf,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._context = context
        self._answer_timeout = answer_timeout
        self._answer_bytes = answer_bytes
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._closed = False
        weakref.finalize(self, _close, self._idle)  # for those who do not close them

    def ask(
        self, method: str, base: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> Answer:
        """Send a request, and return the answer whatever its status.

        Args:
            method: the HTTP method.
            base: the URL of the server, as `split_url` accepts it; a path in it comes first.
            path: the rest of the path, escaped.
            headers: the headers.
            body: what is sent, in ASCII.

        Raises:
            Unanswered: there is no connection, or the answer is late, too large or not HTTP.
            ValueError: a header is malformed, or these connections were closed.
        """
        deadline = time.monotonic() + self._answer_timeout
        connection = self._connection(base)
        keep = False
        try:
            connection.request(method, urlsplit(base).path + path, body, headers)
            with connection.getresponse() as response:
                content = self._read(base, response, deadline)
            keep = not (response.will_close or self._closed)
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(base, _reason(error)) from error
        finally:
            if keep:
                self._idle[base].append(connection)
            else:
                connection.close()
        return Answer(response.status, response.reason, response.headers, content)

    def close(self) -> None:
        """Close the connections. Nothing can be asked afterwards."""
        self._closed = True
        _close(self._idle)

    def _read(self, base: str, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """Return the body of an answer; `read1` returns what has come, so that limits hold."""
        body = bytearray()
        while block := response.read1(BLOCK_BYTES):
            body += block
            if len(body) > self._answer_bytes:
                raise Unanswered(base, "its answer is too large")
            if time.monotonic() > deadline:
                raise Unanswered(base, "its answer comes too slowly")
        if response.length:
            raise Unanswered(base, "its answer is incomplete")
        return bytes(body)

    def _connection(self, base: str) -> http.client.HTTPConnection:
        """Return a connection that nobody else uses."""
        if self._closed:
            raise ValueError("the client is closed")
        idle = self._idle.setdefault(base, [])
        with suppress(IndexError):  # another thread may take the last one
            while True:
                connection = idle.pop()
                if not _was_closed(connection):
                    return connection
                connection.close()
        connection = _new_connection(base, self._connect_timeout, self._context)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: the name of the host
            connection.close()
            raise Unanswered(base, _reason(error), sent=False) from error
        connection.sock.settimeout(self._read_timeout)
        return connection


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket.

    Args:
        path: where it is.
        timeout: as for other connections, in seconds.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class UnusableFile(ValueError):
    """A file of certificates that cannot be used.

    Attributes:
        argument: `ca` or `certificate`.
        reason: what is wrong with it.
    """

    def __init__(self, argument: str, message: str, reason: str) -> None:
        super().__init__(f"{message}: {reason}")
        self.argument = argument
        self.reason = reason


def tls_context(
    ca: str | None, certificate: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Return what verifies the other side of a TLS connection, and proves who this side is.

    Args:
        ca: the PEM file of the trusted CAs; by default those of this machine.
        certificate: the PEM file of this side's certificate, if it shows one.
        key: the PEM file of its key, if that is another file.

    Raises:
        UnusableFile: one of the files cannot be read, or holds something else.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        message = f"{ca} is not a PEM file of certificates"
        raise UnusableFile("ca", message, _reason(error)) from error
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        try:
            # The password is for a key that has one: otherwise OpenSSL asks at the terminal.
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            names = f"{certificate} and {key} do" if key else f"{certificate} does"
            message = f"{names} not hold a certificate and its key"
            raise UnusableFile("certificate", message, _reason(error)) from error
    return context


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL that `Connections` can ask.

    Raises:
        ValueError: it cannot.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("the URL must have no user, query or fragment")
    right = parts.scheme in ("http", "https", "http+unix") and parts.hostname and parts.port != 0
    if not right:
        raise ValueError(f"{url} must be http://HOST:PORT, https:// or http+unix://%2FPATH")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} must have its special characters escaped")
    return parts


def _new_connection(
    base: str, timeout: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    parts = urlsplit(base)
    host = parts.hostname or ""
    if parts.scheme == "http+unix":
        return _UnixConnection(unquote(parts.netloc), timeout)
    if parts.scheme == "https":
        port = parts.port or http.client.HTTPS_PORT
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    return http.client.HTTPConnection(host, parts.port or http.client.HTTP_PORT, timeout=timeout)


def _close(connections: dict[str, list[http.client.HTTPConnection]]) -> None:
    for idle in list(connections.values()):
        while idle:
            idle.pop().close()


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed an idle connection; a request on it would be lost."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _check_requester(name: str | None, token: object, certificate: object) -> None:
    """Raise if the arguments of a `Client` do not say who asks."""
    if name is not None and token is not None:
        raise TypeError("give a name or a token, not both")
    if name is None and token is None and certificate is None:
        raise TypeError("say who asks: name=, token= or certificate=")
    for it in (name, token):
        if isinstance(it, str) and not (it.isascii() and it.isprintable()):
            raise ValueError("a name or a token must be printable ASCII")


def _query(lists: dict[str, Iterable[Any]], **others: Any) -> dict[str, Any]:
    """The filters of a query by the keys of the wire; without empty lists and what is `None`."""
    wanted: dict[str, Any] = {}
    for name, values in lists.items():
        if isinstance(values, str):
            raise TypeError(f"{name} must be a list, such as [{values!r}]")
        if found := list(values):
            wanted[name] = found
    return to_wire({**wanted, **others})


def _job_query(type: str | None = None, **lists: Iterable[str]) -> dict[str, Any]:
    """The same for jobs."""
    unknown = lists.keys() - JOB_LISTS
    if unknown:
        raise TypeError(f"there is no filter {min(unknown)}")
    return _query(lists, type=type)


def _page_size(place: int, largest: int) -> int:
    """The size of the pages of which one holds the entry before `place` and most of what follows.

    The size is more than half of the largest, so that a page is worth its request.
    """
    return max(range(largest // 2 + 1, largest + 1), key=lambda size: (-place % size, size))


def _query_strings(instances: Iterable[str]) -> Iterator[str]:
    """The query strings for these instances, none of them too long; at least one."""
    query = ""
    for instance in instances:
        one = urlencode({"instanceIds": instance})
        if query and len(query) + len(one) > QUERY_STRING_LENGTH:
            yield query
            query = ""
        query += f"&{one}" if query else one
    yield query


def _good(answer: Answer) -> Answer:
    """Return an answer of 2xx, and raise what any other stands for."""
    if 200 <= answer.status < 300:
        return answer
    message = _message(answer.body) or answer.reason or "no reason was given"
    if answer.status >= 500:
        raise Unavailable(message, answer.status, _seconds(answer.headers.get("Retry-After")))
    if already_locked(message):
        raise AlreadyLocked(answer.status, message)
    raise Refused(answer.status, message)


def _undone(failure: Unavailable) -> bool:
    """Whether the service has certainly not done what was asked."""
    if isinstance(failure, Unanswered):
        return not failure.sent
    busy = failure.status == http.HTTPStatus.SERVICE_UNAVAILABLE
    return busy and failure.retry_after is not None


def _message(body: bytes) -> str | None:
    """The `errorMessage` of an ErrorResponse, if the body is one."""
    try:
        message = json.loads(body)["errorMessage"]
    except UNEXPECTED_JSON:
        return None
    return message if isinstance(message, str) else None


def _seconds(retry_after: str | None) -> float | None:
    """The seconds of a `Retry-After`, which holds a number or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def _reason(error: Exception) -> str:
    """What went wrong, without anything that the other side sent: it may have sent a token back."""
    said = str(error) if isinstance(error, OSError) else ""
    return getattr(error, "strerror", None) or said or type(error).__name__
