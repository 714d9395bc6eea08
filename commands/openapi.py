"""`orchmgmt openapi`."""

import json
from typing import Any

import click

from orchmgmt.cli import OF_THE_LOG, begin, takes_settings
from orchmgmt.settings import EXTENSIONS


@click.command()
@takes_settings(
    "authentication_policy", "max_page_size", "omit_empty", "unknown_keys", "recorder", *OF_THE_LOG
)
def openapi(**options: Any) -> None:
    """Print what OpenAPI 3.1 says of the operations under these settings."""
    EXTENSIONS["openapi"].load("the description of the operations")
    from orchmgmt.extensions.openapi import document

    click.echo(json.dumps(document(begin(options)), indent=2))
