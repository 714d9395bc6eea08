"""Projects of others, which test with the plugin of this package."""

import subprocess
import sys
import textwrap
from pathlib import Path

#: Leave out the plugins that take long to import.
QUICKLY = [f"-pno:{it}" for it in ("schemathesis", "asyncio", "anyio", "hypothesispytest")]


def pytest_in(folder: Path, *arguments: str, **files: str) -> str:
    """What pytest says of a project of its own."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(folder)]
    ended = subprocess.run(
        [
            *command,
            "-W",
            "error",
            "-p",
            "no:cacheprovider",
            *QUICKLY,
            *arguments,
            str(folder),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return ended.stdout + ended.stderr
