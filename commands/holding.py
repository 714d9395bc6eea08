"""How `orchmgmt lock hold` runs a command: with signals passed on, and ended if locks are lost."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import click

from orchmgmt.cli import Failure, printable
from orchmgmt.client import Hold, LockLost
from orchmgmt.settings import OF_A_HOLD

#: What a terminal sends to all processes in its foreground, so also to the command itself.
OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT)

#: The signals that are passed on to the command.
PASSED_ON = (*OF_A_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

#: What a shell adds to the number of the signal that ended a command.
BY_SIGNAL = 128

Process: TypeAlias = "subprocess.Popen[bytes]"


class NotHeld(Failure):
    """The locks were lost while the command ran."""

    exit_code = 6


class Before(click.Command):
    """A command whose arguments end with `--` and the command line that it runs."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Take what follows the first `--` as the parameter `command`."""
        place = args.index("--") if "--" in args else len(args)
        own, command = args[:place], args[place + 1 :]
        rest = super().parse_args(context, own)
        if not command and not context.resilient_parsing:
            raise click.UsageError("give the command to run, after --", context)
        context.params["command"] = tuple(command)
        return rest


def run_while_held(command: Sequence[str], hold: Hold, grace: float) -> int:
    """Run a command while locks are held, and end it if they are lost.

    Args:
        command: its words.
        hold: the locks.
        grace: how many seconds after SIGTERM it gets SIGKILL.

    Returns:
        Its exit code, or 128 and the number of the signal that ended it.

    Raises:
        Failure: it cannot be run.
        NotHeld: the locks were lost while it ran.
        AlreadyLocked: as `Hold.__enter__`, like others.
    """
    with _passing_on() as start, hold as held:
        environ = {
            **os.environ,
            OF_A_HOLD["ids"]: ",".join(str(lock.id) for lock in held.locks),
            OF_A_HOLD["fence"]: str(held.fence),
        }
        try:
            process = start(command, environ)
        except OSError as error:
            raise Failure(printable(f"cannot run {command[0]}: {error.strerror}")) from None
        threading.Thread(target=_end_if_lost, args=(process, held, grace), daemon=True).start()
        code = process.wait()
        try:
            held.check()
        except LockLost as loss:
            raise NotHeld(printable(f"lost: {loss}")) from None
    return BY_SIGNAL - code if code < 0 else code


def _end_if_lost(process: Process, held: Hold, grace: float) -> None:
    held.lost.wait()
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def _passing_on() -> Iterator[Callable[[Sequence[str], dict[str, str]], Process]]:
    """Pass signals on to the process that the function starts; before, they end this one."""
    begun, early = False, list[int]()
    process: Process | None = None

    def pass_on(number: int, _frame: object) -> None:
        if not begun:
            raise SystemExit(BY_SIGNAL + number)
        if process is None:
            early.append(number)
        elif number not in OF_A_TERMINAL or not _in_the_foreground():
            process.send_signal(number)

    def start(command: Sequence[str], environ: dict[str, str]) -> Process:
        nonlocal begun, process
        begun = True
        process = subprocess.Popen(command, env=environ)
        for number in early:
            process.send_signal(number)
        return process

    # What is ignored, as under nohup, the command ignores too.
    before = {it: signal.getsignal(it) for it in PASSED_ON}
    taken = {it: old for it, old in before.items() if old != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, pass_on)
    try:
        yield start
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


def _in_the_foreground() -> bool:
    """Whether a terminal sends its signals to this process, and so to the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
