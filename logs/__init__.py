"""How a line of the log looks: text for people, or JSON for programs."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchmgmt.settings import Settings

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # ASCII but for space, quote, = and \


def written(fields: Mapping[str, Any]) -> str:
    """Return `name=value name=value`; a value that is not plain ASCII is quoted as in JSON.

    In a JSON log each field is a key, if the call to log also gets `extra={"fields": fields}`.

    Args:
        fields: texts, numbers, and lists of them.
    """
    return " ".join(f"{name}={_write(value)}" for name, value in fields.items())


def start_logging(settings: Settings) -> None:
    """Log to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    # At DEBUG the access log says who was let in. Every statement of SQL would bury that.
    logging.getLogger("peewee").setLevel(logging.INFO)


class _Text(logging.Formatter):
    """Writes each message on one line, whatever a client sent; a traceback has further lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        return "".join(it if it.isprintable() else repr(it)[1:-1] for it in line)


class _Json(logging.Formatter):
    """One JSON object on one line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds") + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line = {**getattr(record, "fields", {}), **line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


def _write(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if _PLAIN(text) else json.dumps(text)
