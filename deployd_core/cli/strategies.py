"""`deployd strategies`: what decides when instances restart."""

from __future__ import annotations

import click

from deployd_core.cli.groups import Group
from deployd_core.cli.settings import Settings, complete_plugins, config_options, json_option, pass_settings


@click.group("strategies", cls=Group, examples=["deployd strategies list", "deployd strategies show concurrency"])
def command() -> None:
    """List and describe restart strategies."""


@command.command("list", examples=["deployd strategies list", "deployd strategies list --json"])
@json_option
@config_options
@pass_settings
def list_strategies(settings: Settings, *, as_json: bool) -> None:
    """List the strategies that a spec can name.

    A plugin that cannot be used is a row with the reason; one that broke before it could say its kind is listed too.
    """
    from deployd_core.cli.listing import print_rows
    from deployd_core.plugins import Kind

    print_rows(settings.plugins(), Kind.STRATEGY, as_json=as_json, group="strategies")


@command.command("show", examples=["deployd strategies show concurrency"])
@click.argument("name", shell_complete=complete_plugins)
@json_option
@config_options
@pass_settings
def show_strategy(settings: Settings, *, name: str, as_json: bool) -> None:
    """Describe a strategy and its options."""
    from deployd_core.cli.listing import print_plugin
    from deployd_core.plugins import Kind

    print_plugin(settings.plugins(), Kind.STRATEGY, name, as_json=as_json, group="strategies")
