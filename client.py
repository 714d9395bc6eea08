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
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from operator import attrgetter
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from orchmgmt.entries import MANAGEMENT, ROOT, Job, Lock, camel_case, write_time

__all__ = ["AlreadyLocked", "Client", "Job", "Lock", "Refused", "Unavailable"]

#: Seconds. A longer `Retry-After` is the caller's to wait for.
LONGEST_PAUSE = 10.0

#: Seconds before the second try; twice as many before each further one.
FIRST_PAUSE = 0.1

#: Characters of a remove's query string. Many servers take 8,000 for a request's first line.
QUERY_STRING_LENGTH = 4000

#: The keys of a create request; a `Lock` has more.
REQUESTED = ("serviceInstanceId", "owner", "expiresAt")

ALREADY_LOCKED = "Already locked: "

#: The filters of a history query that are lists.
JOB_LISTS = {
    "ids",
    "statuses",
    "requester_systems",
    "target_systems",
    "service_definitions",
    "subscription_ids",
}

#: The page for who only wants to know how many there are.
ONE = {"page": 0, "size": 1}

#: What reading an answer raises that is not what it should be, or nested without end.
NO_JSON_OF_OURS = (ValueError, TypeError, KeyError, RecursionError)

E = TypeVar("E", Lock, Job)


class Refused(Exception):
    """The service does not do what is asked, and would not if it were asked again.

    Attributes:
        status: the HTTP status: 4xx, or another where something else than the service answered.
        message: why, as the answer says it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status
        self.message = message


class AlreadyLocked(Refused):
    """Nothing was locked, because others hold some of the service instances.

    Attributes:
        instances: every one of those.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.instances = message.removeprefix(ALREADY_LOCKED).split(", ")


class Unavailable(Exception):
    """No connection, no answer in time, or a 5xx: another time it may do what is asked.

    Of a create nobody but a query can tell then whether it was done.

    Attributes:
        status: the HTTP status, or `None` without an answer.
        retry_after: in how many seconds to ask again, or `None` if the answer does not say.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message if status is None else f"{message} ({status})")
        self.status = status
        self.retry_after = retry_after


class _NoConnection(Unavailable):
    """Nothing was sent."""


class Client:
    """Creates, queries and removes locks and queries jobs. Any thread may call any method.

    Args:
        url: where the service is: `http://`, `https://`, or `http+unix://` and the escaped path
            of a Unix socket. A path before or with `/serviceorchestration` may follow.
        name: the system that asks, where the authentication policy is `declared`.
        token: its identity token, where the policy is `outsourced`; or what returns it: a function
            that is given `None` before each request, and after a 401 the token that was refused.
            If it returns another one then, the request is sent once more.
        certificate: the PEM file of its certificate and key, or a pair of two files, where the
            policy is `certificate`; a name or a token may go with it.
        ca: the PEM file of who may certify the service; the machine's own by default.
        timeout: for how many seconds the service may be silent.
        retries: how often to try again. A query and a remove are repeated after whatever is
            `Unavailable`; a create only if nothing had been sent, or the answer was a 503 that
            says when to try again. After such a 503, `AlreadyLocked` may name the lock that the
            first try made after all; a query tells.

    Raises:
        TypeError: nothing says who asks, or a name and a token both do.
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
        if name is not None and token is not None:
            raise TypeError("give a name or a token, not both")
        if name is None and token is None and certificate is None:
            raise TypeError("say who asks: name=, token= or certificate=")
        who = name or (token if isinstance(token, str) else "") or ""
        if not who.isascii() or not who.isprintable():
            raise ValueError("a name or a token has letters, digits and signs of ASCII alone")
        if not (timeout > 0 and retries >= 0):  # nor is NaN
            raise ValueError("the timeout must be above 0, and retries 0 or more")
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self._headers = {"Accept": "application/json"}
        if name is not None:
            self._headers["Authorization"] = f"Bearer SYSTEM//{name}"
        self._token = (lambda refused: token) if isinstance(token, str) else token
        parts = urlsplit(url)
        self._scheme, self._host, self._port = parts.scheme, parts.hostname, parts.port
        if self._scheme == "http+unix":
            self._host = unquote(parts.netloc)
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("the URL must have no user, query or fragment")
        if self._scheme not in ("http", "https", "http+unix") or not self._host:
            raise ValueError(f"{url} must be http://HOST:PORT, https:// or http+unix://%2FPATH")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(f"{url!r} must have its special characters escaped")
        self._prefix = parts.path.partition(ROOT)[0].rstrip("/")
        self._context = None
        if self._scheme == "https":
            self._context = _tls(certificate, ca)
        elif certificate is not None or ca is not None:
            raise ValueError(f"{url} must be https:// to go with a certificate or a ca")
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def create_locks(self, locks: Iterable[Lock]) -> list[Lock]:
        """Lock service instances, all or none (contract, "Lock", "create").

        Args:
            locks: what to make: the instance, the owner and the end of each.

        Returns:
            The new locks in the same order, with their ids.

        Raises:
            AlreadyLocked: others hold some of them.
            Refused: a value is wrong, or the requester may not.
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

        Contract: "Lock", "query". A lock matches a list when it has one of its values; an empty
        list does not filter.

        Args:
            ids: the numbers of locks.
            orchestration_job_ids: the jobs that hold them.
            service_instance_ids: the locked instances.
            owners: who holds them.
            expires_before: a moment, with a zone; so they end earlier.
            expires_after: a moment, with a zone; so they end later.

        Raises:
            TypeError: a list is a string.
            ValueError: a moment has no zone.
            Refused: while iterating: a value is wrong, or the requester may not.
            Unavailable: while iterating: there was no answer, or a 5xx.
        """
        filters = {
            "ids": _list(ids),
            "orchestrationJobIds": _list(orchestration_job_ids),
            "serviceInstanceIds": _list(service_instance_ids),
            "owners": _list(owners),
            "expiresBefore": expires_before and write_time(expires_before),
            "expiresAfter": expires_after and write_time(expires_after),
        }
        return self._pages("/lock/query", filters, Lock)

    def remove_locks(self, owner: str, *instances: str) -> None:
        """Remove an owner's locks, but for temporary ones (contract, "Lock", "remove").

        What is not locked, or not by this owner, is passed over. Very many instances go out in
        several requests.

        Args:
            owner: who holds them.
            instances: the service instances.

        Raises:
            Refused: a value is wrong, there are no instances, or the requester may not.
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
        """Return the jobs that match every filter, in the order of their ids, which tells nothing.

        Contract: "History". A job matches a list when it has one of its values; an empty list
        does not filter.

        Args:
            ids: the jobs' UUIDs.
            statuses: `PENDING`, `IN_PROGRESS`, `DONE`, `ERROR`.
            type: `PULL` or `PUSH`.
            requester_systems: who asked for them.
            target_systems: whom their results are for.
            service_definitions: what was looked for.
            subscription_ids: the UUIDs of the subscriptions that triggered them.
            since: a moment, with a zone; so they were created, begun or ended then or later, and
                come in no order. No filter of the contract, but as cheap: only those are read.
                While thousands change each second it may miss some.

        Raises:
            TypeError: a list is a string.
            ValueError: the moment has no zone.
            Refused: while iterating: a value is wrong, or the requester may not.
            Unavailable: while iterating: there was no answer, or a 5xx.
        """
        filters = _job_filters(
            ids=ids,
            statuses=statuses,
            type=type,
            requester_systems=requester_systems,
            target_systems=target_systems,
            service_definitions=service_definitions,
            subscription_ids=subscription_ids,
        )
        if since is not None:
            write_time(since)
            return self._latest("/history/query", filters, since)
        return self._pages("/history/query", filters, Job)

    def count_jobs(self, **filters: Any) -> int:
        """Return how many jobs match every filter.

        Args:
            filters: as `jobs` takes them, but for `since`.

        Raises:
            TypeError: a list is a string, or there is no such filter.
            Refused: a value is wrong, or the requester may not ask.
            Unavailable: there was no answer, or a 5xx.
        """
        query = {key: value for key, value in _job_filters(**filters).items() if value}
        return self._post("/history/query", {**query, "pagination": ONE}, Job)[1]

    def counts(self) -> tuple[int, int]:
        """Return how many active locks and how many jobs there are.

        Raises:
            Refused: the requester may not ask.
            Unavailable: there was no answer, or a 5xx.
        """
        return self._post("/lock/query", {"pagination": ONE}, Lock)[1], self.count_jobs()

    def echo(self) -> None:
        """See whether the service is there and knows the requester.

        Raises:
            Refused: it does not.
            Unavailable: it is not.
        """
        self._ask("GET", f"{ROOT}/monitor/echo")

    def health(self) -> None:
        """See whether the service and its database can be used (not in the Java implementation).

        Raises:
            Refused: there is no such path.
            Unavailable: they cannot.
        """
        self._ask("GET", "/health")

    def close(self) -> None:
        """Close the connections; no more can be asked."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pages(self, path: str, filters: dict[str, Any], entry: type[E]) -> Iterator[E]:
        """Return all that match, from as many pages as it takes.

        Others come and go between two pages, so that what follows moves to and fro. Whatever stays
        is returned, and once: entries are in the order of their ids, and each page overlaps what
        came before; if it turns out not to, the one before it is read again. (Pages of a few
        entries cannot always overlap.)
        """
        query = {key: value for key, value in filters.items() if value}
        id_of = attrgetter("id")
        largest = size = 0  # which stands for the largest page
        place = 0  # how many entries there were up to the last
        last: Any = None
        while True:
            number = place // size if size else 0
            pagination = {"page": number, "size": size, "direction": "DESC", "sortField": "id"}
            found, count = self._post(path, {**query, "pagination": pagination}, entry)
            start = number * size
            if 0 < start < place and not (found and id_of(found[0]) >= last):
                place = start
            else:
                fresh = [it for it in found if last is None or id_of(it) < last]
                yield from fresh
                last = id_of(fresh[-1]) if fresh else last
                place = start + len(found)
                if place >= count or not found:
                    return
            largest = largest or len(found)
            # The page with both the last entry and the next that has the most of what follows.
            size = max(range(largest // 2 + 1, largest + 1), key=lambda it: (-place % it, it))

    def _latest(self, path: str, filters: dict[str, Any], since: datetime) -> Iterator[Job]:
        """Return the jobs that have a time since then: each kind of time, the latest first."""
        query = {key: value for key, value in filters.items() if value}
        latest: dict[str, Job] = {}
        for name in Job.TIMES:
            # As for `_pages`, 0 stands for the largest page.
            page = {"size": 0, "direction": "DESC", "sortField": camel_case(name)}
            place = 0
            for number in itertools.count():
                pagination = {**page, "page": number}
                found, count = self._post(path, {**query, "pagination": pagination}, Job)
                place += len(found)
                recent = [it for it in found if (moment := getattr(it, name)) and moment >= since]
                latest |= {it.id: it for it in recent}
                if place >= count or not found or len(recent) < len(found):
                    break
        yield from latest.values()

    def _post(
        self, path: str, payload: dict[str, Any], entry: type[E], repeatable: bool = True
    ) -> tuple[list[E], int]:
        """Return the entries of an answer, and how many there are in all."""
        status, body = self._ask("POST", MANAGEMENT + path, json.dumps(payload), repeatable)
        try:
            answer = json.loads(body)
            found = [entry.from_wire(it) for it in answer["entries"]]
            if not all(isinstance(it.id, int if entry is Lock else str) for it in found):
                raise ValueError("an id is none")
            return found, int(answer["count"])
        except (*NO_JSON_OF_OURS, AttributeError, OverflowError) as error:
            message = f"{self.url} does not answer as an orchestration service does"
            raise Refused(status, message) from error

    def _ask(
        self, method: str, path: str, body: str | None = None, repeatable: bool = True
    ) -> tuple[int, bytes]:
        """Return the status and the body of a good answer, however many tries it takes."""
        token = self._token and self._token(None)
        try:
            return self._ask_as(token, method, path, body, repeatable)
        except Refused as refusal:
            fresh = None
            if self._token and refusal.status == http.HTTPStatus.UNAUTHORIZED:
                fresh = self._token(token)
            if fresh == token or fresh is None:
                raise
            return self._ask_as(fresh, method, path, body, repeatable)

    def _ask_as(
        self, token: str | None, method: str, path: str, body: str | None, repeatable: bool
    ) -> tuple[int, bytes]:
        headers = dict(self._headers)
        if token is not None:
            headers["Authorization"] = f"Bearer IDENTITY-TOKEN//{token}"
        backoff = FIRST_PAUSE
        for left in range(self.retries, -1, -1):
            try:
                return self._try(method, path, body, headers)
            except Unavailable as failure:
                wait = failure.retry_after or 0.0
                undone = isinstance(failure, _NoConnection) or (
                    failure.status == http.HTTPStatus.SERVICE_UNAVAILABLE
                    and failure.retry_after is not None
                )
                if not left or not (repeatable or undone) or wait > LONGEST_PAUSE:
                    raise
                time.sleep(min(wait + backoff * random.uniform(0.5, 1), LONGEST_PAUSE))
                backoff *= 2
        raise AssertionError("the last try returns or raises")

    def _try(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException, OverflowError, MemoryError) as error:
            connection.close()  # the last two: it promised more than a machine can hold
            raise Unavailable(f"{self.url} did not answer: {_reason(error)}") from error
        except BaseException:
            connection.close()
            raise
        if self._closed or response.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        if 200 <= response.status < 300:
            return response.status, content
        message = _message(content) or response.reason or "no reason was given"
        if response.status >= 500:
            retry_after = _seconds(response.headers.get("Retry-After"))
            raise Unavailable(message, response.status, retry_after)
        if message.startswith(ALREADY_LOCKED):
            raise AlreadyLocked(response.status, message)
        raise Refused(response.status, message)

    def _connection(self) -> http.client.HTTPConnection:
        """Return a connection that nobody else uses."""
        if self._closed:
            raise ValueError("the client is closed")
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if not _is_over(connection):
                return connection
            connection.close()
        connection = self._new_connection()
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _NoConnection(f"no connection to {self.url}: {_reason(error)}") from error
        return connection

    def _new_connection(self) -> http.client.HTTPConnection:
        host = self._host or ""
        if self._scheme == "http+unix":
            return _UnixConnection(host, self.timeout)
        if self._context is not None:
            return http.client.HTTPSConnection(
                host, self._port, timeout=self.timeout, context=self._context
            )
        return http.client.HTTPConnection(host, self._port, timeout=self.timeout)


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


def _is_over(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed an idle connection; what is sent would be lost."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _tls(certificate: str | tuple[str, str] | None, ca: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"{ca} is no PEM file of certificates: {error}") from error
    if certificate is not None:
        files = (certificate,) if isinstance(certificate, str) else certificate
        try:
            # An empty password, instead of asking for it at the terminal.
            context.load_cert_chain(files[0], files[-1], password="")
        except OSError as error:
            names = " and ".join(files)
            raise ValueError(f"{names} hold no certificate and its key: {error}") from error
    return context


def _job_filters(type: str | None = None, **lists: Iterable[str]) -> dict[str, Any]:
    """The filters of a history query, by the keys of the wire."""
    unknown = lists.keys() - JOB_LISTS
    if unknown:
        raise TypeError(f"there is no filter {min(unknown)}")
    return {"type": type, **{camel_case(name): _list(it) for name, it in lists.items()}}


def _list(values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str):
        raise TypeError(f"a list is wanted, such as [{values!r}]")
    return list(values)


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


def _message(content: bytes) -> str | None:
    """The `errorMessage` of an ErrorResponse, if it is one."""
    try:
        message = json.loads(content)["errorMessage"]
    except NO_JSON_OF_OURS:
        return None
    return message if isinstance(message, str) else None


def _seconds(retry_after: str | None) -> float | None:
    """How long a `Retry-After` says, which is a number of seconds or a date (RFC 9110, 10.2.3)."""
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
    return str(error) or type(error).__name__
