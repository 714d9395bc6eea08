"""The command `orchmgmt` to its end, in a process that begins with its modules imported.

Nearly all the time of a command goes into the start of Python and the modules. A server of the
standard library that has them forks a process for each command: with descriptors, environment,
folder and exit code of its own, for a tenth of the time.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["orchmgmt.cli"])
PATIENCE = 60  # s


def _begin(
    arguments: Sequence[str], environ: dict[str, str], folder: Path, stdin: Connection, outputs: str
) -> None:
    """Do in the new process what a shell and the script of the package do."""
    from orchmgmt.cli import main

    os.dup2(stdin.fileno(), 0)
    sys.stdin = os.fdopen(0)  # the server's own is closed
    for number in (1, 2):
        os.dup2(os.open(f"{outputs}/{number}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["orchmgmt", *arguments]
    sys.exit(main())


def run_command(
    arguments: Sequence[str], environ: dict[str, str], folder: Path, input: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run the command with these arguments, as `subprocess.run` would."""
    stdin, writer = PROCESSES.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as outputs, writer:
        with stdin:
            process = PROCESSES.Process(
                target=_begin, args=(arguments, environ, folder, stdin, outputs)
            )
            process.start()
        with suppress(BrokenPipeError), open(writer.fileno(), "w", closefd=False) as file:
            file.write(input)
        writer.close()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), PATIENCE)
        said = [Path(outputs, number).read_text() for number in "12"]
    assert process.exitcode is not None
    ended = subprocess.CompletedProcess(list(arguments), process.exitcode, *said)
    process.close()
    return ended
