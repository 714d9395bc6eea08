"""The command that shows the settings in effect."""

import json
import os
import re
from dataclasses import fields
from typing import Any

import click

from orchmgmt.cli import OF_EVERYTHING, takes_settings
from orchmgmt.commands.asking import Table
from orchmgmt.databases.opening import shown
from orchmgmt.settings import PREFIX, Settings, write
from orchmgmt.values import strip

HIDDEN = "***"

SECRET = [setting.name for setting in fields(Settings) if not setting.repr]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with typed values.")
@takes_settings(*OF_EVERYTHING)
def config(as_json: bool, **options: Any) -> None:
    """Show the settings in effect, and where each comes from.

    That is what a server would have that is started here with the same options. Passwords are
    not shown.
    """
    settings = Settings.read(options)
    rows = {}
    for name in OF_EVERYTHING:
        variable = PREFIX + name.upper()
        value = getattr(settings, name)
        if name in SECRET and value:
            value = HIDDEN
        elif name == "database_url":
            value = shown(value)
        elif name.endswith("_url"):  # somebody may have put a password into it
            value = re.sub("//.*@", f"//{HIDDEN}@", value)
        if options[name] is not None:
            source = "option"
        elif strip(os.environ.get(variable, "")):
            source = "environment"
        else:
            source = "default"
        rows[variable] = value, source
    if as_json:
        found = {name: {"value": value, "from": source} for name, (value, source) in rows.items()}
        click.echo(json.dumps(found, indent=2))
    else:
        table = Table("SETTING", "FROM", "VALUE")
        table.show((name, source, write(value)) for name, (value, source) in rows.items())
