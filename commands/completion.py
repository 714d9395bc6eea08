"""`orchmgmt completion`."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete the commands and their options.

    For bash, add the line eval "$(orchmgmt completion bash)" to ~/.bashrc. For zsh, add it with
    zsh instead of bash to ~/.zshrc, after compinit. For fish, write the output to
    ~/.config/fish/completions/orchmgmt.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "orchmgmt", "_ORCHMGMT_COMPLETE").source())
