"""What pages of other origins may read. Imported only when `CORS_ORIGINS` is set."""

import re

from flask import Flask

from orchmgmt.settings import ANY_ORIGIN, SettingError

try:
    from flask_cors import CORS
except ImportError as error:
    raise SettingError(
        f"ORCHMGMT_CORS_ORIGINS needs Flask-CORS ({error}): pip install 'orchmgmt[cors]'"
    ) from error

METHODS = ["GET", "POST", "DELETE"]

#: Headers of our answers that a page may read besides those that each may.
EXPOSED = ["Allow", "Retry-After"]

KEPT = 600  # seconds, for which a browser need not ask again


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Let browsers show an application's answers, errors too, to pages of these origins.

    Args:
        app: the application; Flask answers `OPTIONS` for it.
        origins: origins as browsers send them, or `*` for any.
    """
    everybody = ANY_ORIGIN in origins
    exact = [re.compile(rf"{re.escape(it)}\Z", re.IGNORECASE) for it in origins]
    CORS(
        app,
        origins=ANY_ORIGIN if everybody else exact,
        methods=METHODS,
        expose_headers=EXPOSED,
        max_age=KEPT,
        send_wildcard=everybody,
        always_send=False,
    )
