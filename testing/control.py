"""The control of a service under test over HTTP, for tests in any language.

Its paths are below `/test/` and need no identity. Only programs on this machine reach them, unless
whoever starts the service says on purpose that others may.
"""

import inspect
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Request, Response

from orchmgmt import models
from orchmgmt.entries import Entry, Job, Lock, camel_case
from orchmgmt.errors import ServiceError
from orchmgmt.schemas import LOCK_ID_MAX, parse_json
from orchmgmt.testing.faults import ARGUMENTS
from orchmgmt.testing.names import unknown
from orchmgmt.testing.server import Server
from orchmgmt.testing.service import Service

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PREFIX = "/test/"
DOWN = f"{PREFIX}down"

#: The stand-ins of other systems, and what a test may do to them.
STAND_INS = {
    "identity": ("token", "expire", "revoke", "down", "up", "slow"),
    "authorization": ("grant", "revoke", "down", "up", "slow"),
}


class Control:
    """Answers requests below `/test/`, and passes on the rest.

    It also has an address of its own, which answers even while the service is down.

    Args:
        service: what is controlled. From now on its requests come through here.
        host: where its own address is; by default that of the service.
        port: the port there, or 0 for a free one.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, service: Service, host: str | None = None, port: int = 0) -> None:
        self._service = service
        self._next = service.app.wsgi_app
        self._operations: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
            "reset": ("POST", self._reset),
            "down": ("POST", self._down),
            "up": ("POST", self._up),
            "clean": ("POST", self._clean),
            "clock": ("POST", self._clock),
            "faults": ("POST", self._faults),
            "seed": ("POST", self._seed),
            "requests": ("GET", self._requests),
            **{
                f"{system}/{action}": ("POST", partial(self._stand_in, system, action))
                for system, actions in STAND_INS.items()
                for action in actions
            },
        }
        self._server = Server(self._control, host or service.settings.host, port)
        service.app.wsgi_app = self  # type: ignore[method-assign]  # as Flask would have it

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        if not environ["PATH_INFO"].startswith(PREFIX):
            return self._next(environ, start_response)
        if environ["PATH_INFO"] == DOWN:
            where = f"{DOWN} goes to {self.url}{DOWN}: this address will be gone"
            return _respond(400, {"error": where})(environ, start_response)
        return self._control(environ, start_response)

    @property
    def url(self) -> str:
        """Its own address."""
        return self._server.url

    def close(self) -> None:
        """Give up its own address."""
        self._server.stop()

    def _control(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        try:
            status, answer = self._answer(Request(environ))
        except ServiceError as error:
            status, answer = error.status.value, {"error": str(error)}
        except ValueError as error:
            status, answer = 400, {"error": str(error)}
        return _respond(status, answer)(environ, start_response)

    def _answer(self, request: Request) -> tuple[int, Any]:
        name = request.path.removeprefix(PREFIX)
        if not request.path.startswith(PREFIX) or name not in self._operations:
            return 404, {"error": f"There are {', '.join(PREFIX + it for it in self._operations)}"}
        method, operation = self._operations[name]
        if request.method != method:
            return 405, {"error": f"It is {method} {request.path}"}
        return 200, operation(_payload(request))

    def _reset(self, payload: dict[str, Any]) -> Any:
        _demand_known(payload, ())
        self._service.reset()
        return {}

    def _down(self, payload: dict[str, Any]) -> Any:
        _demand_known(payload, ())
        self._service.down()
        return {}

    def _up(self, payload: dict[str, Any]) -> Any:
        _demand_known(payload, ())
        self._service.up()
        return {}

    def _clean(self, payload: dict[str, Any]) -> Any:
        _demand_known(payload, ())
        locks, jobs = self._service.clean()
        return {"locks": locks, "jobs": jobs}

    def _clock(self, payload: dict[str, Any]) -> Any:
        clock = self._service.clock
        _demand_known(payload, ("advance", "set", "freeze", "resume"))
        _demand_one(payload)
        for name, value in payload.items():
            if name == "advance":
                clock.advance(value)
            elif name == "set":
                clock.set(value)
            elif _is_true(name, value):
                getattr(clock, name)()
        return {"now": clock.now().isoformat()}

    def _faults(self, payload: dict[str, Any]) -> Any:
        faults = self._service.faults
        _demand_known(payload, ("next", "always", "clear"))
        _demand_one(payload)
        for name, value in payload.items():
            if name == "next":
                several = value if isinstance(value, list) else [value]
                for it in several:
                    _demand_object(it, ARGUMENTS)
                faults.next(several)
            elif name == "always":
                _demand_object(value, [it for it in ARGUMENTS if it != "times"])
                faults.always(**value)
            elif _is_true(name, value):
                faults.clear()
        return {"unused": faults.unused()}

    def _seed(self, payload: dict[str, Any]) -> Any:
        service, store = self._service, self._service.store
        _demand_known(payload, ("locks", "jobs"))
        for name, values in payload.items():
            if not isinstance(values, list):
                raise ValueError(f"{name} must be a list")
        locks = [_made(service.add_lock, service.new_lock, it) for it in payload.get("locks", ())]
        jobs = [_made(service.add_job, service.new_job, it) for it in payload.get("jobs", ())]

        def put() -> tuple[list[Lock], list[Job]]:
            there = [it for lock in locks for it in self._put(lock)]
            return there, store.history.put(jobs)

        new_locks, new_jobs = store.database.write(put)
        return {"locks": self._entries(new_locks), "jobs": self._entries(new_jobs)}

    def _put(self, lock: Lock) -> list[Lock]:
        """Put in a lock, under its id if it has one, within a `Backend.write`."""
        store = self._service.store
        if lock.id is not None:
            if type(lock.id) is not int or not 0 < lock.id <= LOCK_ID_MAX:
                raise ValueError(f"The id of a lock is an integer from 1 to {LOCK_ID_MAX}")
            last = store.database.last_id(models.Lock.id)
            if lock.id <= last:
                raise ValueError(f"The ids of locks rise: {lock.id} is not larger than {last}")
            store.database.keep_others_off(models.Lock.id, lock.id - 1)
        return store.locks.put([lock])

    def _entries(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Return entries as the service answers with them."""
        found = [it.to_wire() for it in entries]
        if self._service.settings.omit_empty:
            return found
        return [
            dict.fromkeys(map(camel_case, vars(entry)), "") | wire
            for entry, wire in zip(entries, found, strict=True)
        ]

    def _requests(self, payload: dict[str, Any]) -> Any:
        _demand_known(payload, ("operation", "requester", "since"))
        found = list(self._service.requests)
        if "operation" in payload:
            found = self._service.requests.of(payload["operation"])
        if "requester" in payload:
            found = [it for it in found if it.requester == payload["requester"]]
        if "since" in payload:
            since = _moment(payload["since"])
            found = [it for it in found if it.received_at >= since]
        return {"requests": [it.to_json() for it in found]}

    def _stand_in(self, system: str, action: str, payload: dict[str, Any]) -> Any:
        act = getattr(getattr(self._service, system), action)
        answer = act(**_arguments(act, payload))
        return {} if answer is None else {action: answer}


def _payload(request: Request) -> dict[str, Any]:
    """Return the keys of the body and the parameters of the query string."""
    body = request.get_data()
    payload = parse_json(body) if body.strip() else {}
    if not isinstance(payload, dict):
        raise ValueError("A JSON object was expected")
    for name, value in request.args.items(multi=True):
        if name in payload:
            raise ValueError(f"{name} is there twice")
        payload[name] = value
    return payload


def _moment(text: Any) -> datetime:
    """Return the time that a parameter names; an unescaped `+` of its zone has become a space."""
    try:
        moment = datetime.fromisoformat(str(text).replace(" ", "+"))
        if moment.tzinfo is None:
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is no time such as 2030-01-01T00:00:00Z") from None
    return moment


def _demand_known(payload: dict[str, Any], known: Collection[str]) -> None:
    for name in payload:
        if name not in known:
            raise ValueError(unknown("key", name, known))


def _demand_object(value: Any, known: Collection[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError("A JSON object was expected")
    _demand_known(value, known)


def _demand_one(payload: dict[str, Any]) -> None:
    if len(payload) > 1:
        raise ValueError(f"One at a time, not {', '.join(payload)}")


def _is_true(name: str, value: Any) -> bool:
    if value is not True:
        raise ValueError(f"{name} must be true")
    return True


def _respond(status: int, answer: Any) -> Response:
    return Response(json.dumps(answer) + "\n", status, content_type="application/json")


def _arguments(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object as the arguments of a method."""
    parameters = inspect.signature(function).parameters
    _demand_known(values, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise ValueError(f"{name} is missing")
    return values


def _made(adds: Callable[..., Any], makes: Callable[..., Any], values: Any) -> Any:
    """Return the entry that a JSON object describes, by the wire's keys or Python's names.

    Args:
        adds: the method of the service whose arguments it gives, beside the id.
        makes: what makes the entry of all of them.
        values: the object.
    """
    defaults = {name: it.default for name, it in inspect.signature(adds).parameters.items()}
    names = {camel_case(name): name for name in ("id", *defaults)}
    _demand_object(values, {**names, **defaults})
    given: dict[str, Any] = {"id": None, **defaults}
    for key, value in values.items():
        name = names.get(key, key)
        if key != name and name in values:
            raise ValueError(f"{key} and {name} are the same")
        if given[name] or value not in ("", None):  # where there need be none
            given[name] = value
    for key, name in names.items():
        if given[name] is inspect.Parameter.empty:
            raise ValueError(f"{key} is missing")
    number = given.pop("id")
    entry = makes(**given)
    return entry if number is None else replace(entry, id=number)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return all(ip_address(it[4][0]).is_loopback for it in found)


@contextmanager
def tell_ready(path: Path | None, ready: str) -> Iterator[None]:
    """Keep a file while the context lasts, which says that the service listens.

    Args:
        path: the file, which appears when it is complete; `None` for no file.
        ready: what it says.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(f"{ready}\n")
    try:
        partial.replace(path)
        yield
    finally:
        partial.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
