"""A small client of lock management: it takes a boiler for itself, whatever the network does."""

import http.client
import json
import time
from datetime import UTC, datetime, timedelta
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

LOCKS = "/serviceorchestration/orchestration/mgmt/lock"
BOILER = "Boiler|heat|1.0.0"
ME = "BoilerControl"


class Busy(Exception):
    """Somebody else has the boiler."""


def ask(url, headers, method, path, payload=None, tries=4):
    """Return what an operation answers, however long it takes."""
    body = None if payload is None else json.dumps(payload).encode()
    for left in range(tries - 1, -1, -1):
        try:
            with urlopen(Request(url + LOCKS + path, body, headers, method=method)) as response:
                return json.loads(response.read() or "null")
        except HTTPError as error:
            with error:
                if error.code != 503:
                    raise Busy(json.load(error)["errorMessage"]) from None
                pause = float(error.headers.get("Retry-After", 0.01))
        except (URLError, ConnectionError, http.client.HTTPException):
            pause = 0.01
        if left:
            time.sleep(pause)
    raise TimeoutError(f"{url} does not answer")


def holder(url, headers):
    """Return the lock on the boiler, or `None`."""
    answer = ask(url, headers, "POST", "/query", {"serviceInstanceIds": [BOILER]})
    return next(iter(answer["entries"]), None)


def take(url, headers, seconds=60):
    """Lock the boiler; return the lock, of an earlier try too whose answer was lost."""
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    lock = {"serviceInstanceId": BOILER, "owner": ME, "expiresAt": end.isoformat()}
    try:
        return ask(url, headers, "POST", "/create", {"locks": [lock]})["entries"][0]
    except Busy:
        found = holder(url, headers)
        if found and found["owner"] == ME:
            return found
        raise


def give_back(url, headers):
    """Unlock the boiler."""
    ask(url, headers, "DELETE", f"/remove/{ME}?instanceIds={quote(BOILER)}")
