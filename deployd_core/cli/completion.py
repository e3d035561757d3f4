"""`deployd completion`: what a shell needs to complete our command lines."""

from __future__ import annotations

import click

from deployd_core.cli.groups import COMPLETE_VARIABLE, Command
from deployd_core.cli.settings import debug_option


@click.command(
    "completion",
    cls=Command,
    examples=[
        "deployd completion bash > /etc/bash_completion.d/deployd",
        'deployd completion zsh > "${fpath[1]}/_deployd"',
        "deployd completion fish > ~/.config/fish/completions/deployd.fish",
    ],
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@debug_option
@click.pass_context
def command(ctx: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None, shell
    click.echo(found(ctx.find_root().command, {}, "deployd", COMPLETE_VARIABLE).source())
