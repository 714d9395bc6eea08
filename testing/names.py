"""The message for an unknown name, which helps to correct a misspelt one."""

from collections.abc import Collection

from orchmgmt.values import meant


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Return that message, with the name that was probably meant, or all that there are."""
    hint = meant(name, known) or f" (known: {', '.join(known) or 'none'})"
    return f"Unknown {kind}: {name}{hint}"
