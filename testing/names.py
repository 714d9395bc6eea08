"""What to say of a name that is none, so that a misspelt one is mended at once."""

from collections.abc import Collection
from difflib import get_close_matches


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Return that message, with the name that was probably meant, or all that there are."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
    return f"Unknown {kind}: {name} ({hint})"
