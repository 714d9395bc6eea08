"""JSON texts: read as strictly as RFC 8259 has them, written compactly."""

import json
from contextlib import suppress
from decimal import Decimal
from typing import Any, NoReturn

from orchmgmt.errors import InvalidParameter

NOT_UTF_8 = "it is not UTF-8"


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text says (RFC 8259: UTF-8, no duplicated keys, no NaN).

    A byte order mark before it is ignored.

    Raises:
        InvalidParameter: it is malformed; the message says where.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return _DECODER.decode(text.removeprefix("\ufeff"))
    except UnicodeDecodeError:
        reason = NOT_UTF_8
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        # UTF-16 has a NUL beside each ASCII character, with which a JSON text begins.
        reason = NOT_UTF_8 if "\0" in text[:4] else str(error)
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


def _real(text: str) -> int | float:
    # `5.0` and `5e0` are the number 5.
    number = float(text)
    if number.is_integer() and abs(number) <= 2**64:
        with suppress(ArithmeticError):  # of an exponent that has 20 digits itself
            exact = Decimal(text)
            if exact == int(exact):
                return int(exact)
    return number


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant
)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def write_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return _ENCODER.encode(value)
