"""The README and the pages of `docs/`, for the tests that hold them to the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *sorted(f"docs/{it.name}" for it in DOCS.glob("*.md")),
]


def page(name: str) -> str:
    """The text of a page of `docs/`."""
    return (DOCS / name).read_text()


def marked(name: str) -> str:
    """The text between `<!-- name -->` and `<!-- /name -->`, on whichever page it is."""
    found = [
        text
        for it in PAGES
        for text in re.findall(
            rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", (ROOT / it).read_text(), re.DOTALL
        )
    ]
    (text,) = found
    return text


def blocks(language: str, text: str) -> list[str]:
    """The code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def console(text: str) -> list[tuple[str, str]]:
    """Each command of a page, and what it is said to print."""
    lines = "".join(blocks("console", text))
    found = re.findall(r"^\$ (.*\n(?:> .*\n)*)((?:[^$].*\n|\n)*)", lines, re.MULTILINE)
    return [(re.sub("^> ", "", command, flags=re.MULTILINE), output) for command, output in found]


def table(text: str) -> list[list[str]]:
    """The rows of the only table in a text, without its head."""
    rows = [it for it in text.splitlines() if it.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
