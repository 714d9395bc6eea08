"""A client of the service, for Python programs; only the standard library is needed.

with Client("http://127.0.0.1:8441", name="Sysop") as client:
    end = datetime.now(timezone.utc) + timedelta(minutes=5)
    wanted = Lock(service_instance_id="Boiler|heat|1.0.0", owner="BoilerControl", expires_at=end)
    (lock,) = client.create_locks([wanted])
    client.remove_locks(lock.owner, lock.service_instance_id)

It also talks to the Java implementation of Eclipse Arrowhead.
"""

import copy
import http
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from orchmgmt.client.connections import Answer, Connections, split_url, tls_context
from orchmgmt.client.failures import AlreadyLocked, LockLost, Refused, Unavailable, undone
from orchmgmt.client.holding import Hold
from orchmgmt.entries import (
    IDEMPOTENCY_KEY,
    MANAGEMENT,
    ROOT,
    Job,
    Lock,
    already_locked,
    camel_case,
    demand,
    to_wire,
    write_time,
)

__all__ = ["AlreadyLocked", "Client", "Hold", "Job", "Lock", "LockLost", "Refused", "Unavailable"]

#: Seconds. The client does not wait longer than this; the caller may.
LONGEST_PAUSE = 10.0

#: Seconds before the second try. Each further pause is twice as long.
FIRST_PAUSE = 0.1

#: The longest query string of a remove, in characters. Many servers accept 8,000 for the first line
#: of a request.
QUERY_STRING_LENGTH = 4000

#: How many ids one request of a remove names.
IDS_AT_ONCE = 200

#: The keys of a lock in a create request; a `Lock` has more.
REQUESTED = ("serviceInstanceId", "owner", "expiresAt")

#: The Java implementation says this to `expiresIn`, which it does not know.
NO_END = "Expiration time is missing"

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

#: What reading an answer can raise that is not the expected JSON, or is nested too deeply.
UNEXPECTED_JSON = (ValueError, TypeError, KeyError, RecursionError)

E = TypeVar("E", Lock, Job)


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
        self._context = None
        if parts.scheme == "https":
            files = certificate if isinstance(certificate, tuple) else (certificate, None)
            self._context = tls_context(ca, *files)
        elif certificate is not None or ca is not None:
            raise ValueError(f"{url} must be https:// to go with a certificate or a ca")
        self._connections = Connections(timeout, timeout, self._context)

    def create_locks(
        self, locks: Iterable[Lock], *, expires_in: int | None = None, key: str | None = None
    ) -> list[Lock]:
        """Lock service instances, all of them or none (contract, "Lock", "create").

        Args:
            locks: the instance, the owner and the end of each.
            expires_in: how many seconds all of them last, whatever their `expires_at` says. The
                clock of this machine does not matter. For a service that does not know
                `expiresIn`, the client reckons with the `Date` of an answer.
            key: an idempotency key of 1 to 64 visible ASCII characters, a new one for each set of
                locks. With it, the client repeats a create whose answer was lost, and the service
                does not make the locks twice.

        Returns:
            The new locks in the same order, with their ids.

        Raises:
            AlreadyLocked: some of the instances are locked already.
            Refused: a value is wrong, or the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
            ValueError: an `expires_at` has no zone, or the key cannot be sent.
        """
        return self._create(list(locks), expires_in, key)[0]

    def renew_locks(self, locks: Iterable[Lock], *, expires_in: int | None = None) -> list[Lock]:
        """Give locks a new end, all of them or none (contract, "Holding a lock", "renew").

        Args:
            locks: the instance, the owner and the new end of each; with an id, only that very lock
                is meant.
            expires_in: how many seconds all of them last from now on, whatever their `expires_at`
                says.

        Returns:
            The locks in the same order, with the same ids as before.

        Raises:
            Refused: one of them is not held by its owner any more, a value is wrong, the requester
                has no permission, or (404) the service cannot renew, like the Java implementation.
            Unavailable: there was no answer, or a 5xx.
            ValueError: an `expires_at` has no zone.
        """
        wanted = _requested(locks, expires_in, (*REQUESTED, "id"))
        return self._post("/lock/renew", {"locks": wanted}, Lock)[0]

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

    def remove_locks(self, owner: str, *instances: str, ids: Iterable[int] | None = None) -> None:
        """Remove an owner's locks, except temporary ones (contract, "Lock", "remove").

        Instances that are not locked, or not by this owner, are ignored. A long list is sent in
        several requests.

        Args:
            owner: the system that holds them.
            instances: the service instances.
            ids: only locks with these ids are removed. The Java implementation ignores them.

        Raises:
            Refused: a value is wrong, there are no instances, or the requester has no permission.
            Unavailable: there was no answer, or a 5xx.
        """
        path = f"{MANAGEMENT}/lock/remove/{quote(owner, safe='')}"
        for only, query in itertools.product(_id_filters(ids), list(_query_strings(instances))):
            self._ask("DELETE", f"{path}?{query}{only}")

    def hold(
        self,
        *instances: str,
        owner: str,
        lease: int = 60,
        wait: float | None = 0,
        on_lost: Callable[[], object] | None = None,
    ) -> Hold:
        """Return a context manager that holds locks while its block runs (docs/holding.md).

        A thread renews the locks after a third of the lease, and again while that fails. At the end
        of the block they are removed, by their ids.

        Args:
            instances: the service instances; all are locked, or none.
            owner: the system that will hold them.
            lease: how many seconds the locks last without a renewal.
            wait: for how many seconds to wait while some of the instances are locked: 0 not to
                wait, `None` to wait for ever.
            on_lost: called once, in another thread, if the locks are lost within the block.

        Raises:
            AlreadyLocked: when the block is entered: some are locked, and the wait is over.
            Refused: when it is entered: a value is wrong, or the requester has no permission.
            Unavailable: when it is entered: no answer, after `retries` and until the wait is over.
            ValueError: there are no instances, or `lease` or `wait` is no such number.
        """
        if not instances:
            raise ValueError("name the service instances to hold")
        if type(lease) is not int or lease < 1:
            raise ValueError(f"the lease must be a whole number of seconds from 1, not {lease!r}")
        if wait is not None and not wait >= 0:  # this refuses NaN too
            raise ValueError(f"wait must be 0 or more, or None, not {wait!r}")
        # Several tries must fit into the lease, also if a server does not answer.
        quick = copy.copy(self)
        quick.timeout = min(self.timeout, lease / 3)
        quick.retries = 0
        quick._connections = Connections(
            quick.timeout, quick.timeout, self._context, answer_timeout=quick.timeout
        )
        return Hold(quick, instances, owner, lease, wait, self.retries, on_lost)

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

    def _create(
        self, locks: list[Lock], expires_in: int | None, key: str | None
    ) -> tuple[list[Lock], bool]:
        """Create locks; return them, and whether the service knows what `expires_in` needs."""
        headers = {} if key is None else {IDEMPOTENCY_KEY: f'"{key}"'}

        def post(wanted: list[dict[str, Any]]) -> list[Lock]:
            payload = {"locks": wanted}
            return self._post("/lock/create", payload, Lock, key is not None, headers)[0]

        try:
            return post(_requested(locks, expires_in)), True
        except Refused as refusal:
            if expires_in is None or refusal.message != NO_END:
                raise
        asked = time.monotonic()
        date = self._date(self._ask("GET", f"{ROOT}/monitor/echo"))
        # The service's clock shows a later second by now: no lock may end too early.
        late = math.ceil(time.monotonic() - asked) + 1
        end = date + timedelta(seconds=late + expires_in)
        return post(_requested([replace(it, expires_at=end) for it in locks], None)), False

    def _ends_in(self, instances: Iterable[str]) -> float | None:
        """Return for how many seconds at least some of these instances stay locked, as it seems."""
        query = _query({"service_instance_ids": instances})
        answer = self._ask("POST", f"{MANAGEMENT}/lock/query", json.dumps(query))
        ends = [it.expires_at for it in self._read(answer, Lock)[0] if it.expires_at]
        return (max(ends) - self._date(answer)).total_seconds() - 1 if ends else None

    def _date(self, answer: Answer) -> datetime:
        """Return what the service's clock showed in an answer; a fraction is cut off."""
        try:
            return parsedate_to_datetime(answer.headers["Date"]).replace(tzinfo=UTC)
        except (ValueError, TypeError):
            raise Refused(answer.status, f"{self.url} does not say what time it is") from None

    def _post(
        self,
        path: str,
        payload: dict[str, Any],
        entry: type[E],
        repeatable: bool = True,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[list[E], int]:
        """Return the entries of an answer, and its count."""
        body = json.dumps(payload)
        return self._read(self._ask("POST", MANAGEMENT + path, body, repeatable, more), entry)

    def _read(self, answer: Answer, entry: type[E]) -> tuple[list[E], int]:
        """Return the entries in an answer, and its count."""
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
        self,
        method: str,
        path: str,
        body: str | None = None,
        repeatable: bool = True,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Answer:
        """Return a good answer, under a new token if the first one is refused."""
        token = self._token and self._token(None)
        try:
            return self._retry(token, method, path, body, repeatable, more)
        except Refused as refusal:
            fresh = None
            if self._token and refusal.status == http.HTTPStatus.UNAUTHORIZED:
                fresh = self._token(token)
            if fresh == token or fresh is None:
                raise
            return self._retry(fresh, method, path, body, repeatable, more)

    def _retry(
        self,
        token: str | None,
        method: str,
        path: str,
        body: str | None,
        repeatable: bool,
        more: Mapping[str, str],
    ) -> Answer:
        """Return a good answer, after as many tries as allowed."""
        headers = {**self._headers, **more}
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
                if not left or not (repeatable or undone(failure)) or wait > LONGEST_PAUSE:
                    raise
                time.sleep(min(wait + backoff * random.uniform(0.5, 1), LONGEST_PAUSE))
                backoff *= 2
        raise AssertionError("the last try returns or raises")


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


def _requested(
    locks: Iterable[Lock], expires_in: int | None, keys: Iterable[str] = REQUESTED
) -> list[dict[str, Any]]:
    """Locks as a request has them: each with its own end, or all with the same time to last."""
    wanted = demand(Lock, locks)
    if expires_in is not None:
        wanted = [replace(lock, expires_at=None) for lock in wanted]
    wires = [lock.to_wire() for lock in wanted]
    lasting = {} if expires_in is None else {"expiresIn": expires_in}
    return [{**{key: wire[key] for key in keys if key in wire}, **lasting} for wire in wires]


def _id_filters(ids: Iterable[int] | None) -> list[str]:
    """What a query string says of ids: nothing, or some of them each."""
    if ids is None:
        return [""]
    wanted = [str(it) for it in ids]
    return [
        "&ids=" + ",".join(wanted[first : first + IDS_AT_ONCE])
        for first in range(0, len(wanted), IDS_AT_ONCE)
    ]


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
