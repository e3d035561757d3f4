"""`strategies check` and `plugins check`: a plugin is tried, and what came of it is printed."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deployd_core.cli.exits import Exit
from deployd_core.cli.output import folded, message, print_json, print_table
from deployd_core.conformance import SEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deployd_core.boundary import Bound
    from deployd_core.conformance.findings import Check, Findings
    from deployd_core.plugins import Kind, Plugins

F = TypeVar("F", bound="Callable[..., Any]")

_COLOURS = {"ok": "green", "failed": "red"}


def option_option(command: F) -> F:
    """``--option KEY=VALUE``."""
    return click.option(
        "--option",
        "options",
        metavar="KEY=VALUE",
        multiple=True,
        help="An option of the plugin, as in a spec: limit=3. May be repeated.",
    )(command)


def seed_options(command: F) -> F:
    """``--seed`` and ``--seeds``."""
    command = click.option(
        "--seeds", type=click.IntRange(0, 1_000_000), default=SEEDS, show_default=True, help="How many hosts to try it on."
    )(command)
    return click.option("--seed", type=int, default=0, show_default=True, help="The first seed: that of a failure shows it again.")(
        command
    )


def facts_option(command: F) -> F:
    """``--facts JSON``."""
    return click.option(
        "--facts",
        metavar="JSON",
        default="{}",
        help="What the strategy's own look at a host finds; its instances: web@8001, web@8002, …",
    )(command)


def check(
    plugins: Plugins, kind: Kind, name: str, *, options: Sequence[str], facts: str, seed: int, seeds: int, as_json: bool
) -> int:
    """Try a plugin, print what came of it, and return the exit code.

    Raises:
        UnknownPlugin: There is none of that name.
        ConfigError: It does not accept the options.
        click.BadParameter: The options or facts cannot be read.
    """
    table = read_options(options)
    plugins.make(kind, name, table, where="--option")
    findings = _find(plugins, kind, name, table, facts=_read_facts(facts), seed=seed, seeds=seeds)
    if as_json:
        print_json("deployd.plugins.check/1", _as_json(kind, name, findings, seed, seeds))
    else:
        _print(kind, name, findings)
    return Exit.DONE if findings.passed else Exit.FAILED


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE``: a value is what TOML takes it for, or text.

    Raises:
        click.BadParameter: There is no ``=``.
    """
    table = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--option")
        try:
            table[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = value
    return table


def _read_facts(text: str) -> Mapping[str, object]:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--facts") from error
    if not isinstance(facts, dict):
        raise click.BadParameter("must be an object", param_hint="--facts")
    return facts


def _find(
    plugins: Plugins, kind: Kind, name: str, table: Mapping[str, Any], *, facts: Mapping[str, object], seed: int, seeds: int
) -> Findings:
    from deployd_core.plugins import Kind

    found = plugins.get(kind, name)
    if kind is Kind.STRATEGY:
        from deployd_core.conformance.strategies import Subject, check_strategy

        plugin: Any = found.plugin
        options = plugins.make(kind, name, table, where="--option").plugin.options
        subject = Subject(name=name, provider=found.provider, plugin=plugin, options=options, facts=lambda _: facts)
        return check_strategy(subject, seed=seed, seeds=seeds)
    from deployd_core.conformance.suites import cannot_check, check_gate, check_probe

    def make() -> Bound[Any]:
        return plugins.make(kind, name, table, where="--option")

    if kind is Kind.GATE:
        return check_gate(make)
    return check_probe(make) if kind is Kind.PROBE else cannot_check(kind)


def _print(kind: Kind, name: str, findings: Findings) -> None:
    if findings.refused:
        message(f"{kind.value} {name} was not checked: {findings.refused}")
        return
    print_table(
        ("CHECK", "STATE", "TRIED", "WHAT HOLDS"),
        [(check.name, _state(check), str(check.cases), check.promise) for check in findings.checks],
        colours=_COLOURS,
    )
    failed = [check for check in findings.checks if not check.passed]
    for check in failed:
        click.echo(folded(f"\n{check.name}: {check.problem}"))
        if check.seed is not None:
            click.echo(f"Again: deployd strategies check {name} --seed {check.seed} --seeds 1")
    passes = f"passes all {len(findings.checks)} checks" if not failed else f"fails {len(failed)} of {len(findings.checks)} checks"
    click.echo(f"\n{kind.value} {name} {passes}")
    if findings.unlimited:
        from deployd_core.conformance.width import NO_LIMIT

        click.echo(f"It sets {NO_LIMIT}")


def _state(check: Check) -> str:
    return "failed" if not check.passed else "ok" if check.cases else "untried"


def _as_json(kind: Kind, name: str, findings: Findings, seed: int, seeds: int) -> dict[str, Any]:
    checks = [
        {
            "name": check.name,
            "promise": check.promise,
            "passed": check.passed,
            "cases": check.cases,
            "problem": check.problem,
            "seed": check.seed,
        }
        for check in findings.checks
    ]
    return {
        "kind": kind.value,
        "name": name,
        "passed": findings.passed,
        "refused": findings.refused,
        "unlimited": findings.unlimited,
        "seed": seed,
        "seeds": seeds,
        "checks": checks,
    }
