"""`orchmgmt openapi`."""

import json
from dataclasses import replace
from typing import Any

import click

from orchmgmt.cli import OF_THE_LOG, begin, takes_settings
from orchmgmt.operations import operations
from orchmgmt.settings import EXTENSIONS
from orchmgmt.store import Store


@click.command()
@takes_settings(
    "authentication_policy", "max_page_size", "omit_empty", "unknown_keys", "recorder", *OF_THE_LOG
)
def openapi(**options: Any) -> None:
    """Print the OpenAPI 3.1 document of the operations, for these settings."""
    settings = begin(options)
    EXTENSIONS["openapi"].load("the description of the operations")
    from orchmgmt.extensions import openapi, recorder

    with Store(replace(settings, database_url="sqlite:///:memory:")) as store:
        described = operations(store)
        if settings.recorder:
            described += recorder.operations(store)
        click.echo(json.dumps(openapi.document(settings, described), indent=2))
