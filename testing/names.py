"""The message for an unknown name, which helps to correct a misspelt one."""

from collections.abc import Collection

from orchmgmt.values import meant

#: pytest leaves the frames of this module out of tracebacks, and shows who has called it.
__tracebackhide__ = True

#: The operations that a service has only with `recorder=True`.
OF_THE_RECORDER = ("history.record", "lock.release", "lock.reserve")


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Return that message, with the name that was probably meant, or all that there are."""
    hint = meant(name, known) or f" (known: {', '.join(known) or 'none'})"
    return f"Unknown {kind}: {name}{hint}"


def demand_operation(name: object, known: Collection[str]) -> None:
    """Raise ValueError if a service has no operation of this name."""
    if name in OF_THE_RECORDER and name not in known:
        raise ValueError(f"Unknown operation: {name} (a service has it with recorder=True)")
    if name not in known:
        raise ValueError(unknown("operation", str(name), known))
