"""Commands whose help begins with examples, and groups that import a command when it is wanted and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from deployd_core.errors import DeploydError, did_you_mean

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not converged in time, 4 halted or held, 130 interrupted."

_SENTENCE = 1000
"""Letters of a summary before it is cut: it is folded instead."""

COMPLETE_VARIABLE = "_DEPLOYD_COMPLETE"
"""Where the shell says what it wants completed."""


class Entry(NamedTuple):
    """A built-in command: enough to list it without importing it."""

    module: str
    """It has the click command as `command`, or under the name after the colon."""
    summary: str
    section: str

    def load(self) -> click.Command:
        """Import it."""
        module, _, name = self.module.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name or "command")
        return command


COMMANDS: dict[str, Entry] = {
    "enable": Entry("deployd_core.cli.enable", "Enable a build of a service, for the fleet or its canary hosts.", "Deploy"),
    "status": Entry("deployd_core.cli.status", "Show which build every host serves, and what it is doing.", "Deploy"),
    "why": Entry("deployd_core.cli.why", "Say why hosts wait or have failed, and what to type next.", "Deploy"),
    "promote": Entry("deployd_core.cli.moving:promote", "Let the fleet have the build of the canary hosts.", "Steer"),
    "pause": Entry("deployd_core.cli.stopping:pause", "Stop handing out permits for a service.", "Steer"),
    "resume": Entry("deployd_core.cli.stopping:resume", "Hand out permits again after a pause.", "Steer"),
    "retry": Entry("deployd_core.cli.moving:retry", "Try the hosts that failed again, and go on after a halt.", "Steer"),
    "rollback": Entry("deployd_core.cli.moving:rollback", "Go back to the build that was completed last.", "Steer"),
    "restart": Entry("deployd_core.cli.moving:restart", "Restart every instance with the build it serves.", "Steer"),
    "freeze": Entry("deployd_core.cli.stopping:freeze", "Stop handing out permits for every service.", "Steer"),
    "unfreeze": Entry("deployd_core.cli.stopping:unfreeze", "Lift the freeze of every service.", "Steer"),
    "history": Entry("deployd_core.cli.history", "Tell who did what to a service, why, and how it ended.", "Steer"),
    "permits": Entry("deployd_core.cli.permits", "List the permits of a service, and take one away.", "Steer"),
    "services": Entry("deployd_core.cli.services", "Write, list and delete the specs of services.", "Set up"),
    "hosts": Entry(
        "deployd_core.cli.hosts", "List the hosts of a service, choose its canaries, and decide about lost ones.", "Set up"
    ),
    "builds": Entry("deployd_core.cli.builds", "Make builds.", "Set up"),
    "strategies": Entry("deployd_core.cli.strategies", "List, describe, preview, check and simulate strategies.", "Plugins"),
    "plugins": Entry("deployd_core.cli.plugins", "List, describe, check and begin plugins of every kind.", "Plugins"),
    "doctor": Entry("deployd_core.cli.doctor", "Check this host, and say what to do about what is wrong.", "Run"),
    "drains": Entry("deployd_core.cli.drains", "List and open what is closed on this host, and rehearse a drain.", "Run"),
    "agent": Entry("deployd_core.cli.agent", "Run the agent of this host, in the foreground.", "Run"),
    "demo": Entry("deployd_core.cli.demo", "Roll a small fleet on this machine from one build to the next.", "Run"),
    "completion": Entry("deployd_core.cli.completion", "Print the completion script of a shell.", "Run"),
}
"""Every built-in command, in the order of the help."""


class UnknownCommandError(DeploydError):
    """No command of that name; a mistake in usage, so that the exit code is 2."""


class _Examples(click.Command):
    """Puts examples before the options of a help page."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_examples(formatter)
        super().format_options(ctx, formatter)

    def format_examples(self, formatter: click.HelpFormatter) -> None:
        """Write the section of examples, unwrapped, so that they can be copied."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_Examples):
    """A command with examples in its help."""


class Group(_Examples, click.Group):
    """A group of commands; called with nothing it shows its help, and it knows what was meant."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help when there is nothing to parse."""
        if not args and not ctx.resilient_parsing:
            click.echo(self.bare_help(ctx))
            ctx.exit()
        return super().parse_args(ctx, args)

    def bare_help(self, ctx: click.Context) -> str:
        """What is printed when the group is called with nothing."""
        return self.get_help(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List its commands, each with its whole first sentence."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=_SENTENCE)) for name, command in found if command and not command.hidden]
            )

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may have been meant."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            path = " ".join([*ctx.command_path.split(" ")[1:], args[0]])
            raise UnknownCommandError(f"there is no command {path!r}", hint=did_you_mean(args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root: its built-in commands are a table, and plugins are asked only for a name that is not in it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of every command, those of plugins last."""
        return [*COMMANDS, *sorted(self.plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of a name."""
        if cmd_name not in COMMANDS:
            return self.plugin_commands(ctx).get(cmd_name)
        return COMMANDS[cmd_name].load()

    def plugin_commands(self, ctx: click.Context) -> Mapping[str, click.Command]:
        """The commands that plugins add; loads the plugins."""
        from deployd_core.cli.settings import Settings

        commands: Mapping[str, click.Command] = ctx.ensure_object(Settings).plugins().commands
        return commands

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``help X`` for ``X --help``."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)

    def bare_help(self, ctx: click.Context) -> str:
        """A page that fits on any screen."""
        formatter = ctx.make_formatter()
        formatter.write_text((self.help or "").partition("\n")[0])
        self.format_examples(formatter)
        with formatter.section("Common commands"):
            formatter.write_dl(
                [(name, COMMANDS[name].summary) for name in ("enable", "status", "why", "services", "strategies", "demo")]
            )
        formatter.write_paragraph()
        formatter.write_text("All commands: deployd --help. One of them: deployd COMMAND --help.")
        return formatter.getvalue().rstrip("\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the built-in commands by section, from the table, and those of plugins."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in COMMANDS.items():
            sections.setdefault(entry.section, []).append((name, entry.summary))
        try:
            more = self.plugin_commands(ctx)
        except DeploydError as error:
            more = {}  # help is for people in trouble: a broken agent.toml must not take it away
            click.echo(f"deployd: warning: commands of plugins are not listed: {error}", err=True)
        if more:
            sections["From plugins"] = [(name, more[name].get_short_help_str(80)) for name in sorted(more)]
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Close with the exit codes."""
        super().format_epilog(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(EXIT_CODES)
        formatter.write_text("Every command and its output: docs/cli.md.")
