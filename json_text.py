"""JSON texts: read as strictly as RFC 8259 has them, written compactly."""

import json
from typing import Any, NoReturn

from orchmgmt.errors import InvalidParameter


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text says (RFC 8259: UTF-8, no duplicated keys, no NaN).

    Raises:
        InvalidParameter: it is malformed; the message says where.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return _DECODER.decode(text)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise InvalidParameter(f"Malformed JSON: {reason}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicated key {json.dumps(key)}")
            seen.add(key)
    return found


def _integer(digits: str) -> int | float:
    # More digits than 64 bits have are a number all the same, but no Number.
    return int(digits) if len(digits) <= 20 else float("inf")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def write_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return _ENCODER.encode(value)
