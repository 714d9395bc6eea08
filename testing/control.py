"""The control of a service under test over HTTP, for tests in any language.

Its paths are below `/test/` and need no identity. Only programs on this machine reach them, because
the service listens on the loopback address.
"""

import inspect
import json
import os
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Request, Response

from orchmgmt.errors import ServiceError
from orchmgmt.schemas import parse_json
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

    Raises:
        OSError: no address is free.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._next = service.app.wsgi_app
        self._operations: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
            "reset": ("POST", self._reset),
            "down": ("POST", self._down),
            "up": ("POST", self._up),
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
        self._server = Server(self._control, service.settings.host, 0)
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
        body = request.get_data()
        payload = parse_json(body) if body.strip() else {}
        if not isinstance(payload, dict):
            raise ValueError("A JSON object was expected")
        return 200, operation(payload)

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
        locks = [
            service.new_lock(**_arguments(service.add_lock, it)) for it in payload.get("locks", ())
        ]
        jobs = [
            service.new_job(**_arguments(service.add_job, it)) for it in payload.get("jobs", ())
        ]
        new_locks, new_jobs = store.add(locks, jobs)
        return {
            "locks": [it.to_wire() for it in new_locks],
            "jobs": [it.to_wire() for it in new_jobs],
        }

    def _requests(self, payload: dict[str, Any]) -> Any:
        lines = list(self._service.requests)
        return {"requests": [it.to_json() for it in lines]}

    def _stand_in(self, system: str, action: str, payload: dict[str, Any]) -> Any:
        act = getattr(getattr(self._service, system), action)
        answer = act(**_arguments(act, payload))
        return {} if answer is None else {action: answer}


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


def _arguments(function: Callable[..., Any], values: Any) -> dict[str, Any]:
    """Return the arguments of a method of the service, from a JSON object and the defaults."""
    parameters = inspect.signature(function).parameters
    _demand_object(values, parameters)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in values:
            raise ValueError(f"{name} is missing")
    return {name: it.default for name, it in parameters.items()} | dict(values)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the host."""
    try:
        found = socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return all(ip_address(it[4][0]).is_loopback for it in found)


@contextmanager
def tell_ready(path: Path | None, url: str, control: str) -> Iterator[None]:
    """Keep a file while the context lasts, which says that the service listens.

    Args:
        path: the file, which appears when it is complete; `None` for no file.
        url: where the service is.
        control: where the control answers while the service is down.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    ready = {"url": url, "control": control, "pid": os.getpid()}
    partial.write_text(json.dumps(ready) + "\n")
    try:
        partial.replace(path)
        yield
    finally:
        partial.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
