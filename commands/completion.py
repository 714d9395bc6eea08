"""The command that lets a shell complete the others."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what lets SHELL complete the commands and their options.

    Where a shell starts, have it read the output: eval "$(orchmgmt completion bash)" in ~/.bashrc,
    the same with zsh in ~/.zshrc after compinit, or for fish the output itself as
    ~/.config/fish/completions/orchmgmt.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "orchmgmt", "_ORCHMGMT_COMPLETE").source())
