"""`orchmgmt clean`."""

from typing import Any

import click

from orchmgmt.cli import OF_THE_STORE, many, opened, takes_settings
from orchmgmt.logs.audit import command


@click.command()
@takes_settings(*OF_THE_STORE, "history_max_age_days")
def clean(**options: Any) -> None:
    """Delete expired locks and old finished jobs, once."""
    with opened(options) as store, command("clean") as tell:
        locks, jobs = store.clean()
        tell(locks=locks, jobs=jobs)
    click.echo(f"Deleted {many(locks, 'expired lock')} and {many(jobs, 'old job')}.")
