"""`orchmgmt lock`: the locks of a running service, and their import and export."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, BinaryIO

import click

from orchmgmt.cli import OF_THE_STORE, Group, many, opened, printable, takes_settings
from orchmgmt.client import Client, Refused, Unavailable
from orchmgmt.commands.asking import OF_A_LOGIN, Moment, NoAnswer, Table, asks, say
from orchmgmt.commands.direct import Direct
from orchmgmt.commands.holding import Before, run_while_held
from orchmgmt.commands.lists import any_of, as_json, go_on, show_json, watches, written
from orchmgmt.commands.transfer import export_locks, import_locks, output, progress
from orchmgmt.databases.opening import shown
from orchmgmt.databases.schema import READY, TO_READ
from orchmgmt.entries import Lock
from orchmgmt.logs.audit import command
from orchmgmt.schemas import EXPIRES_IN_MAX

#: How many seconds each unit has.
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS)).fullmatch


class Duration(click.ParamType[timedelta]):
    """A duration such as `1h`, `90s` or `1d12h`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the duration."""
        match = _DURATION(value)
        if not match or not any(match.groups()):
            self.fail(f"{printable(value)!r} is not like 1h, 90s or 1d12h", param, ctx)
        numbers = (int(number or 0) for number in match.groups())
        seconds = sum(a * b for a, b in zip(numbers, _UNITS.values(), strict=True))
        if seconds > EXPIRES_IN_MAX:
            days = EXPIRES_IN_MAX // _UNITS["d"]
            self.fail(f"{value!r} is longer than {days} days", param, ctx)
        return timedelta(seconds=seconds)


@click.group(cls=Group)
def lock() -> None:
    """Manage the locks of a running service; import and export those of a database."""


@lock.command("list")
@any_of("--id", "ids", type=int, help="The id of a lock.")
@any_of("--orchestration-job-id", "orchestration_job_ids", help="The job that holds it.")
@any_of("--service-instance-id", "service_instance_ids", help="SystemName|serviceName|version.")
@any_of("--owner", "owners", help="The system that holds it.")
@click.option(
    "--expires-before", type=Moment(round_up=True), help="Only locks that end before this time."
)
@click.option("--expires-after", type=Moment(), help="Only locks that end after this time.")
@watches("Continue with new, changed and ended locks, until ^C.")
@as_json
@asks(direct=True)
def list_locks(
    client: Client | Direct, watch: bool, interval: float, as_json: bool, **filters: Any
) -> None:
    """Show the active locks of a running service, the newest last.

    Shows those that match every filter. A repeated filter matches any of its values.
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
        go_on(look, interval)


@lock.command("create")
@click.option("--owner", required=True, help="The system that will hold the locks.")
@click.option(
    "--expires-in", type=Duration(), help="How long the locks last, such as 1h, 90s or 1d12h."
)
@click.option(
    "--expires-at",
    type=Moment(round_up=True),
    help="When the locks end, instead, such as 2099-01-01T00:00:00Z.",
)
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

    An INSTANCE is SystemName|serviceName|version; put it in quotes. --expires-in goes by the
    service's clock.
    """
    if (expires_in is None) == (expires_at is None):
        raise click.UsageError("give --expires-in or --expires-at")
    wanted = [Lock(service_instance_id=it, owner=owner, expires_at=expires_at) for it in instances]
    try:
        made = client.create_locks(wanted, expires_in=_seconds(expires_in))
    except Unavailable as failure:
        raise NoAnswer(
            printable(f"{failure}; check with `orchmgmt lock list` whether it was done")
        ) from None
    _locks_shower(as_json)(made)


@lock.command("renew")
@click.option("--owner", required=True, help="The system that holds the locks.")
@click.option(
    "--expires-in",
    type=Duration(),
    required=True,
    help="How long the locks last from now on, such as 1h, 90s or 1d12h.",
)
@click.argument("instances", metavar="INSTANCE...", nargs=-1, required=True)
@as_json
@asks()
def renew_locks(
    client: Client, owner: str, expires_in: timedelta, instances: tuple[str, ...], as_json: bool
) -> None:
    """Give an owner's locks at a running service a new end, all of them or none.

    A lock that has expired cannot be renewed. The locks keep their ids.
    """
    wanted = [Lock(service_instance_id=it, owner=owner, expires_at=None) for it in instances]
    renewed = client.renew_locks(wanted, expires_in=_seconds(expires_in))
    _locks_shower(as_json)(renewed)


@lock.command("hold", cls=Before)
@click.option("--owner", required=True, help="The system that will hold the locks.")
@click.option(
    "--lease",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long the locks last without a renewal.",
)
@click.option(
    "--wait",
    type=Duration(),
    help="How long to wait while others hold them; by default until they are free.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait.")
@click.option(
    "--grace",
    type=Duration(),
    default="10s",
    show_default=True,
    help="If the locks are lost: how long after SIGTERM the command gets SIGKILL.",
)
@click.argument("instances", metavar="INSTANCE... -- COMMAND...", nargs=-1, required=True)
@click.option(
    "--system-name", metavar="NAME", help="Log in at the identity service as this operator."
)
@takes_settings(*OF_A_LOGIN)
@asks()
def hold_locks(
    client: Client,
    owner: str,
    lease: timedelta,
    wait: timedelta | None,
    no_wait: bool,
    grace: timedelta,
    instances: tuple[str, ...],
    command: tuple[str, ...],
    **_login: Any,
) -> None:
    """Run a command while its owner holds locks; all of them, or the command does not run.

    The locks are renewed until the command ends, and then removed. Signals are passed on to the
    command, and its exit code is the exit code. It finds the ids of the locks in
    ORCHMGMT_LOCK_IDS, separated by commas, and the largest in ORCHMGMT_LOCK_FENCE. If the locks
    are lost, it gets SIGTERM, and SIGKILL after --grace; the exit code is then 6.
    """
    if wait is not None and no_wait:
        raise click.UsageError("give --wait or --no-wait, not both")
    seconds = None if wait is None else wait.total_seconds()
    hold = client.hold(
        *instances,
        owner=owner,
        lease=int(lease.total_seconds()),
        wait=0 if no_wait else seconds,
    )
    raise SystemExit(run_while_held(command, hold, grace.total_seconds()))


@lock.command("remove")
@click.option("--owner", help="The system that holds the locks.")
@click.option("--force", is_flag=True, help="Remove the locks of any owner.")
@click.argument("instances", metavar="INSTANCE...", nargs=-1, required=True)
@asks(direct=True)
def remove_locks(
    client: Client | Direct, owner: str | None, force: bool, instances: tuple[str, ...]
) -> None:
    """Remove an owner's locks at a running service, or with --force those of any owner.

    Temporary locks belong to a job and stay. Instances that the owner has not locked are skipped.
    At the end it says how many locks were removed; it queries before and after to know.
    """
    if (owner is None) != force:
        raise click.UsageError("give --owner or --force")
    try:
        held = list(client.locks(service_instance_ids=instances))
        asked = held if owner is None else _of(client, owner, instances)
    except Refused as refusal:
        if owner is None or refusal.status != HTTPStatus.FORBIDDEN:
            raise
        # Permission to remove does not imply permission to query.
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


def _locks_shower(as_json: bool) -> Callable[..., None]:
    """Return a function that shows locks, and those that are gone. It can be called repeatedly."""
    if as_json:
        return lambda locks, gone=(): show_json(locks)
    table = Table("ID", "INSTANCE", "OWNER", "EXPIRES", "HELD BY")

    def held_by(lock: Lock) -> str:
        return (lock.orchestration_job_id or "a job") if lock.temporary else "its owner"

    def show(locks: Iterable[Lock], gone: Iterable[Lock] = ()) -> None:
        rows = [(lock, held_by(lock)) for lock in locks] + [(lock, "(gone)") for lock in gone]
        table.show(
            (lock.id, lock.service_instance_id, lock.owner, written(lock.expires_at), by)
            for lock, by in rows
        )

    return show


def _seconds(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds())


def _number(lock: Lock) -> int:
    return lock.id or 0


@lock.command("import")
@click.argument("file", type=click.File("rb"))
@takes_settings(*OF_THE_STORE)
def import_lock(file: BinaryIO, **options: Any) -> None:
    """Create the locks in FILE (- is standard input). A lock whose id exists is replaced.

    All of them, or none when a line is bad or an instance is held.
    """
    with opened(options, READY) as store, progress(file) as lines, command("lock.import") as tell:
        imported, expired = import_locks(store, lines)
        tell(locks=imported, expired=expired)
    click.echo(
        f"Imported {many(imported, 'lock')} into {shown(store.settings.database_url)}; "
        f"{expired} had expired and {'was' if expired == 1 else 'were'} skipped."
    )


@lock.command("export")
@click.argument("file", default="-")
@takes_settings(*OF_THE_STORE, "omit_empty")
def export_lock(file: str, **options: Any) -> None:
    """Write all active locks to FILE (default, or -: standard output)."""
    with opened(options, TO_READ) as store, output(file) as stream:
        count = export_locks(store, stream.write)
    click.echo(f"Exported {many(count, 'lock')}.", err=True)
