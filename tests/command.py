"""The command `orchmgmt`, in a process that begins with its modules imported.

Nearly all the time of a command goes into the start of Python and the modules. A server of the
standard library that has them forks a process for each command: with descriptors, environment,
folder and exit code of its own, for a tenth of the time.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import iter_modules
from typing import TextIO

from orchmgmt import commands

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("orchmgmt.app", "orchmgmt.cli", "orchmgmt.serving.server", "orchmgmt.databases.pool"),
        *("orchmgmt.databases.postgresql", "orchmgmt.databases.sqlite"),
        *(it.name for it in iter_modules(commands.__path__, "orchmgmt.commands.")),
    ]
)
PATIENCE = 60  # s


def _begin(
    arguments: Sequence[str],
    environ: dict[str, str],
    folder: Path,
    stdin: Connection | None,
    stdout: Connection | Path,
    stderr: Path,
) -> None:
    """Do in the new process what a shell and the script of the package do."""
    from orchmgmt.cli import main

    os.dup2(stdin.fileno() if stdin else os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)  # the server's own is closed
    for number, output in ((1, stdout), (2, stderr)):
        to_file = isinstance(output, Path)
        opened = os.open(output, os.O_WRONLY | os.O_CREAT) if to_file else output.fileno()
        os.dup2(opened, number)
        os.close(opened) if to_file else output.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["orchmgmt", *arguments]
    sys.exit(main())


class Started:
    """A command that runs, as `subprocess.Popen` has it.

    Attributes:
        pid: of its process.
        stdout: what it prints.
    """

    def __init__(
        self, arguments: Sequence[str], environ: dict[str, str], folder: Path, stderr: Path
    ) -> None:
        reader, writer = PROCESSES.Pipe(duplex=False)
        with writer:
            given = (arguments, environ, folder, None, writer, stderr)
            self._process = PROCESSES.Process(target=_begin, args=given)
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdout: TextIO | None = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        self.stderr = None

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("orchmgmt", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(
    arguments: Sequence[str], environ: dict[str, str], folder: Path, input: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run the command with these arguments, as `subprocess.run` would."""
    stdin, writer = PROCESSES.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as outputs, writer:
        said = [Path(outputs, number) for number in "12"]
        with stdin:
            process = PROCESSES.Process(
                target=_begin, args=(arguments, environ, folder, stdin, *said)
            )
            process.start()
        with suppress(BrokenPipeError), open(writer.fileno(), "w", closefd=False) as file:
            file.write(input)
        writer.close()
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(list(arguments), PATIENCE)
        texts = [it.read_text() for it in said]
    assert process.exitcode is not None
    ended = subprocess.CompletedProcess(list(arguments), process.exitcode, *texts)
    process.close()
    return ended
