"""`list` and `show`, the same for strategies and for plugins of every kind."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from deployd_core.cli.output import columns_of, folded, print_json, print_table

if TYPE_CHECKING:
    from deployd_core.boundary import Provider
    from deployd_core.plugins import Implementation, Kind, PluginRow, Plugins

STATE_COLOURS = {"ok": "green", "disabled": "yellow"} | dict.fromkeys(("broken", "duplicate", "too-new"), "red")


def print_rows(plugins: Plugins, kind: Kind | None, *, as_json: bool, group: str) -> None:
    """Print what was found of a kind, and whatever broke before it could say its kind.

    Args:
        plugins: What was loaded.
        kind: None for all.
        as_json: JSON rather than a table.
        group: Plural, for the JSON: ``strategies``.
    """
    rows = [row for row in plugins.rows if kind is None or row.kind in (kind.value, "")]
    rows.sort(key=lambda row: not row.kind)  # what could not say its kind comes last
    if as_json:
        print_json(f"deployd.{group}.list/1", {group: [_row_as_json(row) for row in rows]})
        return
    cells = [(row.name, row.summary, row.kind, str(source_of(row.provider)), _state(row)) for row in rows]
    print_table(("NAME", "SUMMARY", "KIND", "SOURCE", "STATE"), cells, fold=(1, 4), colours=STATE_COLOURS)


def print_plugin(plugins: Plugins, kind: Kind, name: str, *, as_json: bool, group: str) -> None:
    """Print everything about one plugin.

    Raises:
        UnknownPlugin: There is none of that name that can be used.
    """
    from deployd_core.cli.describe import describe_options, options_schema
    from deployd_core.plugins import Kind

    found = plugins.get(kind, name)
    summary, _, rest = inspect.cleandoc(found.plugin.__doc__ or "").partition("\n")
    options = describe_options(found.plugin.options_type)
    unlimited = _unlimited(plugins, name) if kind is Kind.STRATEGY else None
    if as_json:
        body: dict[str, Any] = {
            "name": name,
            "kind": kind.value,
            "summary": summary,
            "description": rest.strip(),
            "source": _source_as_json(found.provider),
            "unlimited": unlimited,
            "options": options,
            "options_schema": options_schema(found.plugin.options_type),
        }
        print_json(f"deployd.{group}.show/1", body)
        return
    click.echo(click.style(name, bold=True) + folded(f"{name}: {summary}").removeprefix(name))
    if rest.strip():
        click.echo(f"\n{_paragraphs(rest.strip())}")
    click.echo(folded(f"\nKind    {kind.value}\nSource  {source_of(found.provider)}, {_where(found)}", indent=8))
    if unlimited:
        from deployd_core.conformance.width import NO_LIMIT

        click.echo(f"Fleet   {NO_LIMIT}")
    click.echo()
    if not options:
        click.echo("It has no options.")
        return
    cells = [(option.name, option.type, _default(option.default, required=option.required), option.meaning) for option in options]
    print_table(("OPTION", "TYPE", "DEFAULT", "MEANING"), cells, fold=(1, 3))


def _paragraphs(text: str) -> str:
    """A docstring; on a terminal that is narrower, its paragraphs are broken anew, but for those that have a form of their own."""
    columns = columns_of()
    if columns is None or all(len(line) <= columns for line in text.splitlines()):
        return text
    plain = (part if "\n " in part else " ".join(part.splitlines()) for part in text.split("\n\n"))
    return folded("\n\n".join(plain), indent=0)


def _unlimited(plugins: Plugins, name: str) -> bool | None:
    """Whether a strategy with its default options lets all hosts restart at once; None when that cannot be told."""
    from deployd_core.conformance.width import lets_all_hosts_go
    from deployd_core.errors import DeploydError
    from deployd_core.plugins import Kind

    try:
        return lets_all_hosts_go(plugins.make(Kind.STRATEGY, name, {}, where="default options"))
    except DeploydError:
        return None  # an option is required


def source_of(provider: Provider) -> str:
    """Where a plugin comes from, in a few words: ``acme-deployd 0.3``, ``file /etc/deployd/plugins.d/x.py``."""
    return f"{provider.distribution} {provider.version or provider.origin}"


def _state(row: PluginRow) -> str:
    reason = row.reason.removeprefix(f"plugin {row.provider} ")  # the other columns say that
    return f"{row.state.value}: {reason}" if reason else row.state.value


def _row_as_json(row: PluginRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "summary": row.summary,
        "kind": row.kind or None,
        "source": _source_as_json(row.provider),
        "state": row.state.value,
        "reason": row.reason,
    }


def _source_as_json(provider: Provider) -> dict[str, Any]:
    return {
        "distribution": provider.distribution,
        "version": provider.version or None,
        "entry": provider.entry,
        "origin": provider.origin,
    }


def _where(found: Implementation) -> str:
    return (
        f"{found.plugin.__module__}.{found.plugin.__qualname__}" if found.provider.version else f"class {found.plugin.__qualname__}"
    )


def _default(value: Any, *, required: bool) -> str:
    if required:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ("", [], {}, ()):
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
