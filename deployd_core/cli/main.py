"""The program `deployd`: its root command, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click

from deployd_core import __version__
from deployd_core.cli.exits import Exit
from deployd_core.cli.groups import COMPLETE_VARIABLE, LazyGroup, UnknownCommandError
from deployd_core.cli.output import complain, use_colour
from deployd_core.cli.settings import Settings, config_options
from deployd_core.errors import DeploydError


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import pluggy

    from deployd_core.api import API_VERSION

    click.echo(f"deployd {__version__}, Python {sys.version.split()[0]}, pluggy {pluggy.__version__}, plugin API {API_VERSION}")
    ctx.exit()


@click.group(
    "deployd",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=[
        "deployd services apply web.toml",
        "deployd builds pack dist/ --build 2026.11.23-1 --out builds/",
        "deployd enable web 2026.11.23-1 --wait",
        "deployd why web",
    ],
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print versions.")
@config_options
def command() -> None:
    """Deploy builds of services to a fleet, and restart them by pluggable strategies."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; a failure is a message on standard error.

    Raises:
        Exception: A fault of deployd itself.
    """
    settings = Settings()
    settings.debug = settings.debug or "--debug" in arguments  # for errors in the command line itself
    colour = use_colour()
    try:
        result = command.main(
            args=list(arguments),
            prog_name="deployd",
            standalone_mode=False,
            obj=settings,
            color=colour,
            complete_var=COMPLETE_VARIABLE,
        )
    except UnknownCommandError as error:
        return _fail(settings, error, Exit.USAGE)
    except DeploydError as error:
        return _fail(settings, error, Exit.FAILED)
    except click.UsageError as error:
        return _fail_usage(error)
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except click.Abort as error:
        return Exit.INTERRUPTED if isinstance(error.__cause__, KeyboardInterrupt) else Exit.FAILED
    return int(result) if isinstance(result, int) else Exit.DONE


def _fail(settings: Settings, error: DeploydError, code: int) -> int:
    if settings.debug:
        import traceback

        traceback.print_exception(error)
    complain(error.message, error.hint)
    return code


def _fail_usage(error: click.UsageError) -> int:
    context = error.ctx
    if context is not None:
        click.echo(context.get_usage(), err=True)
    help_of = context.command_path if context is not None else "deployd"
    complain(error.format_message(), f"{help_of} --help")
    return Exit.USAGE


def _report_fault(kind: type[BaseException], fault: BaseException, traceback: TracebackType | None) -> Any:
    """The excepthook: what gets here is a mistake of deployd's, not of its user."""
    if "--debug" in sys.argv or os.environ.get("DEPLOYD_DEBUG"):
        return sys.__excepthook__(kind, fault, traceback)
    where = ""
    while traceback is not None:
        where = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    click.echo(f"deployd: internal error: {kind.__name__}: {fault} ({where}). Run the same with --debug, and report it", err=True)
    return None


def main() -> None:
    """Run the program."""
    sys.excepthook = _report_fault
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        complain(f"the output cannot be written: {error.strerror}")
        code = Exit.FAILED
    gc.freeze()  # the process is over: looking through everything for cycles would take a sixth of a short command's time
    sys.exit(code)
