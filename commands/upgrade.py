"""`orchmgmt upgrade`."""

import sys
from typing import Any

import click

from orchmgmt.cli import OF_THE_STORE, begin, takes_settings
from orchmgmt.databases.schema import SCHEMA_VERSION, TO_READ, OldSchema, Permitted
from orchmgmt.logs.audit import command
from orchmgmt.store import Store

#: What `upgrade --check` exits with when there is something to do.
SOMETHING_TO_DO = 1


@click.command()
@click.option(
    "--check", is_flag=True, help="Only say whether an upgrade is needed (then the exit code is 1)."
)
@takes_settings(*OF_THE_STORE)
def upgrade(check: bool, **options: Any) -> None:
    """Upgrade the schema of the database, as servers and imports do when they start."""
    settings = begin(options)
    try:
        with Store(settings, permitted=TO_READ):
            click.echo(f"The schema has version {SCHEMA_VERSION}: no upgrade is needed.")
            return
    except OldSchema as error:
        earlier = error.version
    if check:
        click.echo(
            f"The schema has version {earlier}: an upgrade to version {SCHEMA_VERSION} is needed."
        )
        sys.exit(SOMETHING_TO_DO)
    with command("upgrade") as tell:
        tell(before=earlier, after=SCHEMA_VERSION)
        Store(settings, permitted=Permitted(create=False)).close()
    click.echo(f"Upgraded the schema from version {earlier} to {SCHEMA_VERSION}.")
