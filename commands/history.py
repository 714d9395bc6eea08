"""`orchmgmt history`: the jobs of a running service, and their import and export."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import click

from orchmgmt.cli import OF_THE_STORE, Group, many, opened, takes_settings
from orchmgmt.client import Client
from orchmgmt.commands.asking import Table, asks, say
from orchmgmt.commands.changes import Changes
from orchmgmt.commands.lists import any_of, as_json, go_on, show_json, watches, written
from orchmgmt.commands.transfer import export_jobs, import_jobs, output, progress
from orchmgmt.databases.opening import shown
from orchmgmt.databases.schema import READY, TO_READ
from orchmgmt.entries import Job
from orchmgmt.logs.audit import command
from orchmgmt.models import STATUSES, TYPES


@click.group(cls=Group)
def history() -> None:
    """Show the jobs of a running service; import and export those of a database."""


@history.command("list")
@any_of("--id", "ids", help="The UUID of a job.")
@any_of("--status", "statuses", help=" ".join(STATUSES) + ".")
@click.option("--type", help=" or ".join(TYPES) + ".")
@any_of("--requester-system", "requester_systems", help="The system that asked for the service.")
@any_of("--target-system", "target_systems", help="The system that the result is for.")
@any_of(
    "--service-definition",
    "service_definitions",
    help="The service definition that was searched for.",
)
@any_of(
    "--subscription-id", "subscription_ids", help="The UUID of the subscription that triggered it."
)
@watches("Continue with new and changed jobs, until ^C.")
@as_json
@asks()
def list_jobs(client: Client, watch: bool, interval: float, as_json: bool, **filters: Any) -> None:
    """Show the orchestration jobs of a running service, the newest last.

    Shows those that match every filter. A repeated filter matches any of its values.
    """
    show = _jobs_shower(as_json)
    changes = Changes(client, filters)
    seen: dict[str, int] = {}

    def look() -> None:
        changed = [job for job in changes.look() if seen.get(job.id) != hash(job)]
        changes.settle(sum(job.id not in seen for job in changed))
        seen.update((job.id, hash(job)) for job in changed)
        show(sorted(changed, key=_age))

    look()
    if not (seen or as_json):
        say("No jobs.")
    if watch:
        go_on(look, interval)


@history.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Also replace jobs with an earlier state of them.")
@takes_settings(*OF_THE_STORE)
def import_history(file: BinaryIO, replace: bool, **options: Any) -> None:
    """Insert the jobs in FILE (- is standard input), or update those whose id exists.

    Imports all of them, or none if a line is invalid or would set a job back to an earlier state.
    """
    with (
        opened(options, READY) as store,
        progress(file) as lines,
        command("history.import") as tell,
    ):
        count = import_jobs(store, lines, replace)
        tell(jobs=count)
    click.echo(f"Imported {many(count, 'job')} into {shown(store.settings.database_url)}.")


@history.command("export")
@click.argument("file", default="-")
@takes_settings(*OF_THE_STORE, "omit_empty")
def export_history(file: str, **options: Any) -> None:
    """Write all jobs to FILE (default, or -: standard output)."""
    with opened(options, TO_READ) as store, output(file) as stream:
        count = export_jobs(store, stream.write)
    click.echo(f"Exported {many(count, 'job')}.", err=True)


def _jobs_shower(as_json: bool) -> Callable[[list[Job]], None]:
    """Return a function that shows jobs. It can be called repeatedly."""
    if as_json:
        return show_json
    table = Table(
        "CREATED", "ID", "STATUS", "TYPE", "REQUESTER", "TARGET", "SERVICE", "FINISHED", "MESSAGE"
    )
    return lambda jobs: table.show(
        (
            written(job.created_at),
            job.id,
            job.status,
            job.type,
            job.requester_system,
            job.target_system,
            job.service_definition,
            written(job.finished_at),
            job.message,
        )
        for job in jobs
    )


def _age(job: Job) -> tuple[bool, datetime | None, str]:
    """Return the sort key that puts the newest job last."""
    return job.created_at is not None, job.created_at, job.id
