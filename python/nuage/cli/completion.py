"""`nuage completion SHELL`: what a shell needs to complete our commands."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_NUAGE_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options.

    Put it where your shell reads such scripts, or read it in at once:

    \b
    nuage completion bash > /etc/bash_completion.d/nuage
    nuage completion zsh  > ~/.zfunc/_nuage
    nuage completion fish > ~/.config/fish/completions/nuage.fish
    """  # noqa: D301 - a backspace is how click is told to leave lines as they are
    kind = get_completion_class(shell)
    assert kind is not None, "one of SHELLS"
    click.echo(kind(context.find_root().command, {}, "nuage", VARIABLE).source())


COMMANDS = (completion_command,)
