"""What pages of other origins may read."""

import re

from flask import Response, current_app, request
from flask_cors import CORS
from werkzeug.exceptions import MethodNotAllowed

from orchmgmt.app import Service
from orchmgmt.extensions import Extension
from orchmgmt.settings import ANY_ORIGIN

METHODS = ["GET", "POST", "DELETE"]

#: Headers of our answers that a page may read besides those that each may.
EXPOSED = ["Allow", "Retry-After"]

KEPT = 600  # seconds, for which a browser need not ask again


class OtherOrigins(Extension):
    """Lets browsers show all answers, errors too, to pages of the origins in `CORS_ORIGINS`."""

    def __init__(self, service: Service) -> None:
        origins = service.store.settings.cors_origins
        everybody = ANY_ORIGIN in origins
        exact = [re.compile(rf"{re.escape(it)}\Z", re.IGNORECASE) for it in origins]
        service.app.before_request(_preflight)
        CORS(
            service.app,
            origins=ANY_ORIGIN if everybody else exact,
            methods=METHODS,
            expose_headers=EXPOSED,
            max_age=KEPT,
            send_wildcard=everybody,
            always_send=False,
        )


def _preflight() -> Response | None:
    """Answer what a browser asks before the request itself, at each path that there is."""
    if request.method == "OPTIONS" and isinstance(request.routing_exception, MethodNotAllowed):
        return current_app.make_default_options_response()
    return None
