"""The command that writes the files of `deploy/`, which are part of the package."""

import shutil
from pathlib import Path

import click

from orchmgmt.cli import Failure

FILES = Path(__file__).parents[1] / "deploy"


@click.command("deploy-files")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace existing files.")
def deploy_files(folder: Path, force: bool) -> None:
    """Write the files for nginx, systemd, Docker Compose, Prometheus and Grafana to DIR.

    If one of the files exists, nothing is written.
    """
    files = sorted(path for path in FILES.glob("*/*") if path.is_file())
    targets = [folder / path.relative_to(FILES) for path in files]
    if not force:
        there = next((target for target in targets if target.exists()), None)
        if there:
            raise Failure(f"{there} exists already: --force replaces it and all the others")
    try:
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}") from None
    for target in targets:  # once all are there: nobody need read this
        click.echo(target)
