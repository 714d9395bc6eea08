"""`orchmgmt history`: the jobs of a running service, and import and export of a database's."""

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
@any_of("--requester-system", "requester_systems", help="Who asked for it.")
@any_of("--target-system", "target_systems", help="Whom its result is for.")
@any_of("--service-definition", "service_definitions", help="What was looked for.")
@any_of("--subscription-id", "subscription_ids", help="What triggered it.")
@watches("Go on with what is new and what changes, until ^C.")
@as_json
@asks()
def list_jobs(client: Client, watch: bool, interval: float, as_json: bool, **filters: Any) -> None:
    """Show the orchestration jobs of a running service, the newest last.

    Those that match every filter; a filter that is repeated, with any of its values.
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
@click.option("--replace", is_flag=True, help="Let a job that is there go back in its life too.")
@takes_settings(*OF_THE_STORE)
def import_history(file: BinaryIO, replace: bool, **options: Any) -> None:
    """Insert the jobs in FILE (- is standard input), or update those whose id is there.

    All of them, or none when a line is bad, or would take a job that is there back in its life.
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
    """Write all jobs to FILE (- or none is standard output)."""
    with opened(options, TO_READ) as store, output(file) as stream:
        count = export_jobs(store, stream.write)
    click.echo(f"Exported {many(count, 'job')}.", err=True)


def _jobs_shower(as_json: bool) -> Callable[[list[Job]], None]:
    """What shows jobs, and more of them."""
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
    """What puts the newest job last."""
    return job.created_at is not None, job.created_at, job.id
