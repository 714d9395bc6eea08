"""The commands that create, show and remove locks, and show the history, of a running service."""

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import Any

import click

from orchmgmt.cli import many, printable
from orchmgmt.client import Client, Refused, Unavailable
from orchmgmt.entries import Entry, Job, Lock, write_time
from orchmgmt.errors import Unavailable as DatabaseUnavailable
from orchmgmt.models import STATUSES, TYPES
from orchmgmt.operating.asking import Moment, NoAnswer, Table, asks, say, wire
from orchmgmt.operating.changes import Changes
from orchmgmt.operating.direct import Direct

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS)).fullmatch

#: A filter with several values: its option is repeated.
any_of = partial(click.option, multiple=True)

as_json = click.option(
    "--json", "as_json", is_flag=True, help="A line of JSON for each, as an export has it."
)


def watches(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a list that goes on."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--interval",
            type=click.FloatRange(0.1, 3600),
            default=2.0,
            show_default=True,
            help="Seconds between two looks of --watch.",
        )(command)
        return click.option("--watch", is_flag=True, help=help)(command)

    return decorate


class Duration(click.ParamType[timedelta]):
    """How long, such as `1h`, `90s` or `1d12h`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return it."""
        match = _DURATION(value)
        if not match or not any(match.groups()):
            self.fail(f"{printable(value)!r} is not like 1h, 90s or 1d12h", param, ctx)
        numbers = (int(number or 0) for number in match.groups())
        return timedelta(**dict(zip(_UNITS.values(), numbers, strict=True)))


@click.command("list")
@any_of("--id", "ids", type=int, help="The number of a lock.")
@any_of("--orchestration-job-id", "orchestration_job_ids", help="The job that holds it.")
@any_of("--service-instance-id", "service_instance_ids", help="SystemName|serviceName|version.")
@any_of("--owner", "owners", help="Who holds it.")
@click.option("--expires-before", type=Moment(round_up=True), help="It ends earlier.")
@click.option("--expires-after", type=Moment(), help="It ends later.")
@watches("Go on with what is new, changes or is gone, until ^C.")
@as_json
@asks(direct=True)
def list_locks(
    client: Client | Direct, watch: bool, interval: float, as_json: bool, **filters: Any
) -> None:
    """Show the active locks of a running service, the newest last.

    Those that match every filter; a filter that is repeated, with any of its values.
    """
    show = _locks_shower(as_json)
    seen: dict[int | None, Lock] = {}

    def look() -> None:
        found = {lock.id: lock for lock in client.locks(**filters)}
        gone = [lock for number, lock in seen.items() if number not in found]
        changed = [lock for number, lock in found.items() if seen.get(number) != lock]
        show(sorted(changed, key=_number), gone)
        seen.clear()
        seen.update(found)

    look()
    if not (seen or as_json):
        say("No locks.")
    if watch:
        _go_on(look, interval)


@click.command("create")
@click.option("--owner", required=True, help="Who is to hold them.")
@click.option("--expires-in", type=Duration(), help="For how long, such as 1h, 90s or 1d12h.")
@click.option("--expires-at", type=Moment(round_up=True), help="Until when, instead.")
@click.argument("instances", metavar="INSTANCE...", nargs=-1, required=True)
@as_json
@asks(direct=True)
def create_locks(
    client: Client | Direct,
    owner: str,
    expires_in: timedelta | None,
    expires_at: datetime | None,
    instances: tuple[str, ...],
    as_json: bool,
) -> None:
    """Lock service instances at a running service, all of them or none.

    An INSTANCE is SystemName|serviceName|version; a shell needs quotes round it. --expires-in goes
    by this machine's clock.
    """
    if (expires_in is None) == (expires_at is None):
        raise click.UsageError("give --expires-in or --expires-at")
    if expires_in is not None:
        try:
            expires_at = datetime.now(UTC) + expires_in
        except OverflowError:
            raise click.UsageError("--expires-in reaches beyond the year 9999") from None
    wanted = [Lock(service_instance_id=it, owner=owner, expires_at=expires_at) for it in instances]
    try:
        made = client.create_locks(wanted)
    except Unavailable as failure:
        raise NoAnswer(
            printable(f"{failure}; if it was sent, `orchmgmt lock list` tells whether it was done")
        ) from None
    _locks_shower(as_json)(made)


@click.command("remove")
@click.option("--owner", help="Who holds them.")
@click.option("--force", is_flag=True, help="Whoever holds them, which is looked up first.")
@click.argument("instances", metavar="INSTANCE...", nargs=-1, required=True)
@asks(direct=True)
def remove_locks(
    client: Client | Direct, owner: str | None, force: bool, instances: tuple[str, ...]
) -> None:
    """Remove locks at a running service: those of an owner, or with --force anybody's.

    Temporary ones stay, for they are a job's; what the owner does not hold is passed over. At the
    end it says how many there were, as a query before and one after tell.
    """
    if (owner is None) != force:
        raise click.UsageError("give --owner or --force")
    try:
        held = list(client.locks(service_instance_ids=instances))
        asked = held if owner is None else _of(client, owner, instances)
    except Refused as refusal:
        if owner is None or refusal.status != HTTPStatus.FORBIDDEN:
            raise
        # Who may remove need not be one who may query.
        client.remove_locks(owner, *instances)
        say("Removed what this owner held.")
        return
    if owner is not None:
        client.remove_locks(owner, *instances)
    else:
        for holder in sorted({lock.owner for lock in held}):
            its = [lock.service_instance_id for lock in held if lock.owner == holder]
            client.remove_locks(holder, *its)
    numbers = [_number(lock) for lock in asked]
    left = {lock.id for lock in client.locks(ids=numbers)} if numbers else set()
    removed = [lock for lock in asked if lock.id not in left]
    kept = [lock for lock in asked if lock.id in left]
    _tell_removed(
        len(removed),
        {
            "not of this owner": len(held) - len(asked),
            "held by a job": sum(lock.temporary for lock in kept),
            "still there": sum(not lock.temporary for lock in kept),
            "not locked": len(set(instances)) - len(held),
        },
    )


def _of(client: Client | Direct, owner: str, instances: tuple[str, ...]) -> list[Lock]:
    return list(client.locks(owners=[owner], service_instance_ids=instances))


def _tell_removed(removed: int, others: dict[str, int]) -> None:
    """Say how many locks were removed, and why others were not."""
    others = {why: count for why, count in others.items() if count > 0}
    if not others:
        say(f"Removed {many(removed, 'lock')}.")
        return
    reasons = "; ".join(f"{it} {'is' if it == 1 else 'are'} {why}" for why, it in others.items())
    say(f"Removed {removed} of {many(removed + sum(others.values()), 'lock')}; {reasons}.")


@click.command("list")
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
        _go_on(look, interval)


def _go_on(look: Callable[[], None], interval: float) -> None:
    """Look again and again, until ^C."""
    try:
        while True:
            time.sleep(interval)
            try:
                look()
            except (Unavailable, DatabaseUnavailable) as failure:
                click.echo(printable(f"{failure}; it is asked again"), err=True)
    except KeyboardInterrupt:
        pass  # which is how a watch ends


def _locks_shower(as_json: bool) -> Callable[..., None]:
    """What shows locks, and more of them, and those that are gone."""
    if as_json:
        return lambda locks, gone=(): _show_json(locks)
    table = Table("ID", "INSTANCE", "OWNER", "EXPIRES", "HELD BY")

    def held_by(lock: Lock) -> str:
        return (lock.orchestration_job_id or "a job") if lock.temporary else "its owner"

    def show(locks: Iterable[Lock], gone: Iterable[Lock] = ()) -> None:
        rows = [(lock, held_by(lock)) for lock in locks] + [(lock, "(gone)") for lock in gone]
        table.show(
            (lock.id, lock.service_instance_id, lock.owner, _written(lock.expires_at), by)
            for lock, by in rows
        )

    return show


def _jobs_shower(as_json: bool) -> Callable[[list[Job]], None]:
    """What shows jobs, and more of them."""
    if as_json:
        return _show_json
    table = Table(
        "CREATED", "ID", "STATUS", "TYPE", "REQUESTER", "TARGET", "SERVICE", "FINISHED", "MESSAGE"
    )
    return lambda jobs: table.show(
        (
            _written(job.created_at),
            job.id,
            job.status,
            job.type,
            job.requester_system,
            job.target_system,
            job.service_definition,
            _written(job.finished_at),
            job.message,
        )
        for job in jobs
    )


def _show_json(entries: Iterable[Entry]) -> None:
    for entry in entries:
        say(wire(entry))


def _number(lock: Lock) -> int:
    return lock.id or 0


def _age(job: Job) -> tuple[bool, datetime | None, str]:
    """What puts the newest job last."""
    return job.created_at is not None, job.created_at, job.id


def _written(moment: datetime | None) -> str:
    return write_time(moment) if moment else ""
