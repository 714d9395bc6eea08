"""`orchmgmt demo`."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from orchmgmt.cli import OF_EVERYTHING, begin, takes_settings
from orchmgmt.commands.factory import Factory, bring_to_the_present
from orchmgmt.commands.serve import run_server
from orchmgmt.commands.unfinished import unfinished
from orchmgmt.serving.server import hold_signals
from orchmgmt.settings import EXTENSIONS, PREFIX, write
from orchmgmt.store import Store

EXAMPLE = Path(__file__).parents[1] / "db.sqlite.example"

#: The demonstration's own defaults. The example's jobs are older than any sensible limit, and are
#: to stay; the log has nothing for an audience.
DEMO = {"history_max_age_days": "1000000", "log_level": "WARNING", "ui": "true"}

#: The same as the help says it.
DEMO_SAID = {**DEMO, "openapi": "true, where its extra is installed"}

OF_THE_DEMO = tuple(name for name in OF_EVERYTHING if name != "database_url")


@click.command()
@click.option(
    "--rate",
    default=15.0,
    show_default=True,
    type=click.FloatRange(0.1, 6000),
    help="New jobs a minute.",
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 100),
    help="How many times as fast as normal jobs and reservations run.",
)
@click.option(
    "--still",
    is_flag=True,
    help="Keep the example and its times as they are, and change nothing.",
)
@takes_settings(*OF_THE_DEMO, **DEMO_SAID)
def demo(rate: float, speed: float, still: bool, **options: Any) -> None:
    """Run a demonstration on a fresh copy of the example, which is deleted at the end.

    The example's times are brought to the present, and a small simulated factory has jobs done,
    reserves for 5 to 60 seconds, collides, fails and releases.
    """

    def factory(store: Store) -> Factory:
        bring_to_the_present(store)
        return Factory(store, rate, speed)

    hold_signals()
    defaults = {**DEMO, "openapi": write(EXTENSIONS["openapi"].is_installed())}
    environ = {PREFIX + name.upper(): value for name, value in defaults.items()} | dict(os.environ)
    with unfinished(Path(tempfile.gettempdir())) as folder:
        copy = folder / "orchmgmt.db"
        shutil.copyfile(EXAMPLE, copy)
        options["database_url"] = f"sqlite:///{quote(str(copy))}"
        settings = begin(options, environ)
        run_server(settings, "Open {}/", also=None if still else factory)
