"""The application: settings, store, gate, operations and extensions, put together."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flask import Flask

from orchmgmt.databases import Clock
from orchmgmt.databases.schema import READY, TO_READ
from orchmgmt.errors import BodyTooLarge
from orchmgmt.logs import start_logging
from orchmgmt.operations import Operation, operations
from orchmgmt.policies.gate import Gate
from orchmgmt.settings import PREFIX, SettingError, Settings, switched_on
from orchmgmt.store import Store
from orchmgmt.views import add_error_handlers, add_monitor, add_operation

if TYPE_CHECKING:
    from orchmgmt.extensions import Extension


class Service:
    """What an application serves; extensions are attached to it.

    Args:
        settings: the settings.
        clock: as `Store` takes it.
        read_only: whether the database is only read, as it is.

    Attributes:
        app: the application.
        store: the locks and the history.
        gate: who is let in.
        operations: the operations, those of extensions too.
        extensions: what the settings have switched on.
        watchers: called for each request that did not come over HTTP, once it is answered, with
            the operation's name, the status, and the seconds that it took.

    Raises:
        SettingError: a setting is wrong, or needs a package that is missing.
        UnusableDatabase: the database cannot be opened, or belongs to another program.
    """

    def __init__(self, settings: Settings, clock: Clock | None, read_only: bool) -> None:
        # If something is missing, the database is not touched.
        self.gate = Gate(settings, read_only)
        _demand_files(settings)
        extensions = switched_on(settings)
        self.store = Store(settings, clock, TO_READ if read_only else READY)
        self.app = Flask(__name__, static_folder=None)
        self.app.extensions["orchmgmt"] = self
        self.app.config["MAX_CONTENT_LENGTH"] = BodyTooLarge.smallest(settings.max_body_bytes)
        # For the contract OPTIONS is a wrong method.
        self.app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
        # A path is right or unknown, never redirected.
        self.app.url_map.merge_slashes = False
        self.app.url_map.redirect_defaults = False
        self.operations: list[Operation] = []
        self.watchers: list[Callable[[str, int, float], object]] = []
        self.offer(operations(self.store))
        add_monitor(self.app, self.store, self.gate)
        add_error_handlers(self.app)
        try:
            self.extensions: list[Extension] = [extension(self) for extension in extensions]
        except BaseException:
            self.store.close()
            raise

    def offer(self, operations: list[Operation]) -> None:
        """Serve these operations too."""
        self.operations += operations
        for operation in operations:
            add_operation(self.app, operation, self.gate)


def _demand_files(settings: Settings) -> None:
    """Raise SettingError if a file of certificates cannot be read, whether it is needed or not."""
    for name in ("ca_file", "certificate_file", "key_file"):
        if file := getattr(settings, name):
            try:
                with open(file, "rb"):
                    pass
            except OSError as error:
                setting = f"{PREFIX}{name.upper()}"
                raise SettingError(f"{setting} cannot be used: {error.strerror}") from None


def create_app(
    settings: Mapping[str, object] | Settings | None = None,
    clock: Clock | None = None,
    read_only: bool = False,
) -> Flask:
    """Return the WSGI application. It starts no thread; `store_of` gives its locks and history.

    Args:
        settings: settings by name, which override those of the environment; or ready settings.
            Without them, as a WSGI server calls it, only the environment counts, and the
            application starts to log unless that server logs already.
        clock: as `Store` takes it.
        read_only: whether the database is only read, as it is. Then the answer to operations that
            write is 403.

    Raises:
        SettingError: a setting is wrong, or needs a package that is missing.
        UnusableDatabase: the database cannot be opened, or belongs to another program.
    """
    if settings is None:
        settings = Settings.read()
        start_logging(settings)
    elif not isinstance(settings, Settings):
        settings = Settings.read(settings)
    return Service(settings, clock, read_only).app


def service_of(app: Flask) -> Service:
    """Return what an application serves."""
    service: Service = app.extensions["orchmgmt"]
    return service


def store_of(app: Flask) -> Store:
    """Return the locks and the history that an application serves."""
    return service_of(app).store
