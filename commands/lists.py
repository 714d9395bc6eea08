"""What the commands that list locks and jobs share: their options, and how they watch."""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any

import click

from orchmgmt.cli import printable
from orchmgmt.commands.asking import AWAY, say, wire
from orchmgmt.entries import Entry, write_time

#: The option of a filter with several values, which can be repeated.
any_of = partial(click.option, multiple=True)


as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a line of JSON for each, in the format of an export.",
)


def watches(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options with which a list is watched."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--interval",
            type=click.FloatRange(0.1, 3600),
            default=2.0,
            show_default=True,
            help="Seconds between two rounds of --watch.",
        )(command)
        return click.option("--watch", is_flag=True, help=help)(command)

    return decorate


def go_on(look: Callable[[], None], interval: float) -> None:
    """Call `look` at each interval, until ^C."""
    try:
        while True:
            time.sleep(interval)
            try:
                look()
            except AWAY as failure:
                click.echo(printable(f"{failure}; retrying"), err=True)
    except KeyboardInterrupt:
        pass  # which is how a watch ends


def show_json(entries: Iterable[Entry]) -> None:
    """Print a line of JSON for each entry."""
    for entry in entries:
        say(wire(entry))


def written(moment: datetime | None) -> str:
    """Return a time as a table shows it."""
    return write_time(moment) if moment else ""
