"""The application: settings, database, policies, operations, errors, put together."""

from collections.abc import Mapping

from flask import Flask

from orchmgmt import views
from orchmgmt.databases import Clock
from orchmgmt.entries import MANAGEMENT, ROOT
from orchmgmt.errors import register_error_handlers
from orchmgmt.logs import start_logging
from orchmgmt.models import READY, TO_READ
from orchmgmt.policies.gate import Gate
from orchmgmt.settings import Settings
from orchmgmt.store import Store

#: The service definition that each blueprint is, as the cloud's other systems know it.
SERVICES = {
    "lock": "serviceOrchestrationLockManagement",
    "history": "serviceOrchestrationHistoryManagement",
}


def create_app(
    settings: Mapping[str, object] | Settings | None = None,
    clock: Clock | None = None,
    read_only: bool = False,
) -> Flask:
    """Return the WSGI application. It starts no thread; `store_of` gives its locks and history.

    Args:
        settings: settings by name, over those of the environment; or ready settings. Without
            them, as a WSGI server calls it, those of the environment are all, and unless that
            server already logs for everybody, the application begins to.
        clock: as `Store` takes it.
        read_only: whether the database is only read, as it is: then operations that write are 403.

    Raises:
        SettingError: a setting is wrong, or needs a package that is missing.
        UnusableDatabase: the database cannot be opened, or is another program's.
    """
    if settings is None:
        settings = Settings.read()
        start_logging(settings)
    elif not isinstance(settings, Settings):
        settings = Settings.read(settings)
    gate = Gate(settings, read_only)
    if settings.metrics:
        from orchmgmt.extensions.metrics import Metrics
    if settings.openapi:
        from orchmgmt.extensions.openapi import publish
    if settings.cors_origins:
        from orchmgmt.extensions.cors import allow_origins
    store = Store(settings, clock, TO_READ if read_only else READY)

    app = Flask(__name__, static_folder=None)
    app.extensions["orchmgmt"] = store
    # A body that comes in chunks is cut off here: what is as long is too large.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1
    # To the contract OPTIONS is a wrong method; a browser asks so for a page of another origin.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = bool(settings.cors_origins)
    # A path is right or unknown, never redirected.
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    services = {"lock": views.lock_blueprint(store), "history": views.history_blueprint(store)}
    if settings.recorder:
        from orchmgmt.extensions.recorder import extend

        extend(services["lock"], services["history"], store)
    for name, blueprint in services.items():
        app.register_blueprint(
            gate.guard(blueprint, SERVICES[name]), url_prefix=f"{MANAGEMENT}/{name}"
        )
    app.register_blueprint(gate.guard(views.monitor_blueprint()), url_prefix=f"{ROOT}/monitor")
    app.register_blueprint(views.health_blueprint(store))
    if settings.ui:
        from orchmgmt.extensions.ui import ui_blueprint

        app.register_blueprint(ui_blueprint(store, gate))
    register_error_handlers(app)
    if settings.metrics:
        app.extensions["orchmgmt-metrics"] = Metrics(app, store)
    if settings.openapi:
        publish(app, settings)
    if settings.cors_origins:
        allow_origins(app, settings.cors_origins)
    return app


def store_of(app: Flask) -> Store:
    """Return the locks and the history that an application serves."""
    store: Store = app.extensions["orchmgmt"]
    return store
