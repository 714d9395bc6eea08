"""How a command calls a running service: its address, the identity, and how answers are shown."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from functools import wraps
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from orchmgmt import errors
from orchmgmt.cli import AS_IT_IS, Failure, begin, printable
from orchmgmt.client import Client, Refused, Unavailable
from orchmgmt.entries import Entry, camel_case, read_time
from orchmgmt.errors import InvalidParameter
from orchmgmt.settings import OF_A_CLIENT, OPERATOR_NAME, PREFIX, Settings, demand_known
from orchmgmt.store import Store
from orchmgmt.values import second, strip

#: Addresses that one can listen on but not connect to, and the ones to connect to instead.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}

#: The settings for a command that logs in by itself.
OF_A_LOGIN = ("system_password_file", "identity_url")

#: Seconds between a login that ended early and the next one. They double each time.
FIRST_PAUSE = 5.0
LONGEST_PAUSE = 3600.0

SCHEME = "Bearer IDENTITY-TOKEN//"

#: Raised while the service does not answer, or the database does not.
AWAY = (Unavailable, errors.Unavailable)

Command = Callable[..., None]

log = logging.getLogger("orchmgmt")

_FILE = click.Path(exists=True, dir_okay=False)


class NotDone(Failure):
    """The service refuses, or something is not as it should be."""

    exit_code = 1


class NoAnswer(Failure):
    """The service does not answer."""

    exit_code = 5


#: The options that make a `Client`, and the one with which a command does without.
_URL = click.option(
    "--url",
    envvar=OF_A_CLIENT["url"],
    help="URL of the service; by default at HOST and PORT, or UNIX_SOCKET.  [ORCHMGMT_URL]",
)
_REQUESTER = [
    click.option(
        "--name", help=f"Your system name, under the policy `declared`.  [default: {OPERATOR_NAME}]"
    ),
    click.option(
        "--token-file",
        type=click.File(),
        help="File with your identity token, instead; - is standard input.  [ORCHMGMT_TOKEN_FILE]",
    ),
    click.option(
        "--certificate",
        type=_FILE,
        help="PEM file of your certificate, instead.  [ORCHMGMT_CLIENT_CERTIFICATE_FILE]",
    ),
    click.option(
        "--key",
        type=_FILE,
        help="PEM file of its key, if it is a separate file.  [ORCHMGMT_CLIENT_KEY_FILE]",
    ),
]
_CONNECTION = [
    click.option(
        "--ca",
        type=_FILE,
        help="PEM file of the CA trusted for the service; by default those of the machine.  "
        "[ORCHMGMT_CA_FILE]",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0.1, 3600),
        default=5.0,
        show_default=True,
        help="For how many seconds the service may be silent.",
    ),
]
_DATABASE_URL = click.option(
    "--database-url",
    metavar="<text>",
    help="Use this database directly, not a service; you must be able to open it.",
)


def asks(url: bool = True, direct: bool = False) -> Callable[[Command], Command]:
    """Give a command a `Client` as `client`, and the options that make it.

    Args:
        url: whether an option says where the service is; otherwise an argument does.
        direct: whether the command also takes a database, and then gets a `Direct`.
    """
    options = [*_REQUESTER, *_CONNECTION]
    if url:
        options.insert(0, _URL)
    if direct:
        options.insert(0, _DATABASE_URL)

    def decorate(command: Command) -> Command:
        @wraps(command)
        def ask(**rest: Any) -> None:
            database_url = rest.pop("database_url") if direct else None
            identity = {it: rest.pop(it) for it in ("name", "token_file", "certificate", "key")}
            where = {it: rest.pop(it) for it in ("url", "ca", "timeout")}
            if database_url is None:
                with _client(identity, rest, **where) as client, explained():
                    command(client=client, **rest)
                return
            if any([_given("url"), where["ca"], *identity.values()]):
                raise click.UsageError(
                    "--database-url uses no service: give neither a URL nor an identity"
                )
            _at_the_database(command, database_url, rest)

        asking: Command = ask
        for option in reversed(options):
            asking = option(asking)
        return asking

    return decorate


def _client(
    identity: dict[str, Any], rest: dict[str, Any], url: str | None, ca: str | None, timeout: float
) -> Client:
    """The client that the options and the environment describe.

    Args:
        identity: the options that say who asks.
        rest: the options of the command itself, of which some may say how to log in.
        url: where the service is.
        ca: the file of the CAs that are trusted for it.
        timeout: how many seconds it may be silent.
    """
    demand_known(os.environ)
    where = url or own_url()
    tls = where.startswith("https:")
    if tls and not ca:
        ca = strip(os.environ.get(PREFIX + "CA_FILE", "")) or None
    system_name = rest.get("system_name")
    if system_name is None:
        who = _who(**_with_environment(identity, tls))
    elif any(identity.values()):
        raise click.UsageError("--system-name identifies you: give no other identity")
    else:
        who = {"token": Login(system_name, {**{it: rest[it] for it in OF_A_LOGIN}, "ca_file": ca})}
    try:
        return Client(where, **who, ca=ca, timeout=timeout)
    except ValueError as error:
        raise Failure(printable(str(error))) from None


def _given(name: str) -> bool:
    """Whether an option is on the command line, and not in the environment."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _at_the_database(command: Command, url: str, rest: dict[str, Any]) -> None:
    from orchmgmt.commands.direct import LARGEST_PAGE, Direct

    settings = begin({"database_url": url, "max_page_size": LARGEST_PAGE})
    with Store(settings, permitted=AS_IT_IS) as store:
        try:
            command(client=Direct(store), **rest)
        except InvalidParameter as error:
            raise NotDone(printable(str(error))) from None


def _with_environment(identity: dict[str, Any], tls: bool) -> dict[str, Any]:
    """Add the identity from the environment to that of the options, which override it.

    Args:
        identity: what the options say.
        tls: whether a certificate can be shown.
    """
    found = dict(identity)
    said = {name: strip(os.environ.get(it, "")) for name, it in OF_A_CLIENT.items()}
    if said["token_file"] and not (found["name"] or found["token_file"]):
        try:
            found["token_file"] = open(said["token_file"], encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            message = f"{OF_A_CLIENT['token_file']}: {said['token_file']}: {error.strerror}"
            raise Failure(printable(message)) from None
    if tls and not found["certificate"]:
        found["certificate"] = said["certificate"] or None
        found["key"] = found["key"] or said["key"] or None
    return found


class Login:
    """An operator's login at the identity service: a token for a `Client` that never ends.

    A system has one session there. When another program logs in as the same system, this login
    ends; and when this one then logs in again, the other one's ends. So it waits longer each time.

    Args:
        name: the operator.
        options: the settings of `OF_A_LOGIN`, and `ca_file`.

    Raises:
        SettingError: one is missing or wrong.
        NoAnswer: the identity service does not accept the login.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        from orchmgmt.policies.outsourced import OwnLogin

        settings = Settings.read(options)
        try:
            # The setting SYSTEM_NAME would refuse the operator's name: a service must not have it.
            operator = settings.naming.system_name(strip(name))
        except ValueError as error:
            raise Failure(printable(f"--system-name: {error}")) from None
        self._login = OwnLogin(operator, settings)
        self._pause = FIRST_PAUSE
        self._last = -inf  # when it last logged in after a refusal
        self._told = False
        with explained():
            self()

    def __call__(self, refused: str | None = None) -> str:
        """Return the token: a new one if `refused` was refused and the pause is over.

        Raises:
            orchmgmt.client.Unavailable: the identity service does not accept the login.
        """
        if refused is None:
            return self._token()
        now = time.monotonic()
        if now - self._last >= LONGEST_PAUSE:
            self._pause = FIRST_PAUSE
        if now - self._last < self._pause:
            return refused
        if not self._told:
            log.warning(
                "the login of %s has ended early, because somebody else logged in as %s: "
                "logging in again, with a longer wait each time",
                *(self._login.name, self._login.name),
            )
        self._told = True
        token = self._token(SCHEME + refused)
        self._last = now
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return token

    def _token(self, refused: str | None = None) -> str:
        try:
            return self._login.authorization(refused).removeprefix(SCHEME)
        except errors.Unavailable as failure:
            raise Unavailable(str(failure)) from None


def _who(name: str | None, token_file: Any, certificate: str | None, key: str | None) -> Any:
    """The identity for a `Client`."""
    if key and not certificate:
        raise click.UsageError("--key goes with --certificate")
    if name and token_file:
        raise click.UsageError("give --name or --token-file, not both")
    who: dict[str, Any] = {"certificate": (certificate, key) if key else certificate}
    if token_file:
        try:
            who["token"] = _plain(token_file.read())
        except ValueError:
            raise Failure(f"{token_file.name} has no token: it must be one line of ASCII") from None
        except OSError as error:
            raise Failure(f"{token_file.name} cannot be read: {error.strerror}") from None
    elif name or not certificate:
        try:
            who["name"] = _plain(name or OPERATOR_NAME)
        except ValueError:
            raise Failure(
                f"{printable(name or '')} cannot be sent as a name: it must be ASCII"
            ) from None
    return who


def _plain(text: str) -> str:
    """Return a text that a header can contain."""
    text = strip(text)
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError
    return text


@contextmanager
def explained() -> Iterator[None]:
    """End the command with one clear line if the service refuses or does not answer."""
    try:
        yield
    except Refused as refusal:
        hint = ""
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            hint = ": say who asks, by --name, --token-file or --certificate, as its policy wants"
        raise NotDone(printable(f"{refusal.message}{hint}")) from None
    except Unavailable as failure:
        raise NoAnswer(printable(str(failure))) from None


def own_url() -> str:
    """Return the URL of this machine's service, according to the settings."""
    settings = Settings.read()
    if settings.unix_socket:
        return f"http+unix://{quote(str(Path(settings.unix_socket).absolute()), safe='')}"
    host = EVERYWHERE.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


class Moment(click.ParamType[datetime]):
    """A DateTime of the contract, in whole seconds.

    Args:
        round_up: count a fraction as the whole second, instead of cutting it off.
    """

    name = "time"

    def __init__(self, round_up: bool = False) -> None:
        self._round_up = round_up

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the moment, in UTC."""
        try:
            return read_time(second(strip(value), self._round_up))
        except ValueError:
            self.fail(f"{printable(value)!r} is not like 2099-01-01T00:00:00Z", param, ctx)


def wire(entry: Entry) -> str:
    """Return an entry as the line of JSON that an export writes, with all its keys."""
    empty = {camel_case(it.name): "" for it in fields(entry)}
    return json.dumps({**empty, **entry.to_wire()}, separators=(",", ":"))


class Table:
    """A table for people. Its columns get wider as needed.

    Args:
        titles: of the columns.
    """

    def __init__(self, *titles: str) -> None:
        self._titles = titles
        self._widths = [0] * len(titles)

    def show(self, rows: Iterable[Sequence[object]]) -> None:
        """Print rows, below the titles if they are the first."""
        texts = [[printable(str(cell)) for cell in row] for row in rows]
        if texts and not any(self._widths):
            texts.insert(0, list(self._titles))
        for number, width in enumerate(self._widths):
            self._widths[number] = max([width, *(len(text[number]) for text in texts)])
        for text in texts:
            cells = (cell.ljust(width) for cell, width in zip(text, self._widths, strict=True))
            say("  ".join(cells).rstrip())


def say(text: str) -> None:
    """Print a line, with a question mark for what the terminal's encoding does not have."""
    encoding = sys.stdout.encoding
    click.echo(text.encode(encoding, "replace").decode(encoding))
