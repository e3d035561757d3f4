"""`strategies check` and `plugins check`: a plugin is tried, and what came of it is printed."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from deployd_core.cli.exits import Exit
from deployd_core.cli.output import folded, message, print_json, print_table
from deployd_core.conformance import SEEDS
from deployd_core.errors import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deployd_core.boundary import Bound
    from deployd_core.conformance.findings import Check, Findings
    from deployd_core.plugins import Kind, Plugins

F = TypeVar("F", bound="Callable[..., Any]")

NO_FACTS = "{}"
_COLOURS = {"ok": "green", "failed": "red"}


def option_option(command: F) -> F:
    """``--option KEY=VALUE``."""
    return click.option(
        "-o",
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
        default=NO_FACTS,
        help="What the strategy's own look at a host finds; its instances: web@8001, web@8002, …",
    )(command)


class Wish(Struct, frozen=True, kw_only=True):
    """What is to be tried, in the words of the command line."""

    kind: Kind
    name: str
    options: tuple[str, ...]
    facts: str
    seed: int
    seeds: int
    where: tuple[str, ...]
    """Flags that say where plugins are, as they were given."""

    def again(self, seed: int) -> str:
        """The command that tries one seed again."""
        words = ["deployd", "strategies", "check", self.name]
        for option in self.options:
            words += ["-o", option]
        words += ["--facts", self.facts] if self.facts != NO_FACTS else []
        return shlex.join([*words, "--seed", str(seed), "--seeds", "1", *self.where])


def check(plugins: Plugins, wish: Wish, *, as_json: bool) -> int:
    """Try a plugin, print what came of it, and return the exit code.

    Raises:
        UnknownPlugin: There is none of that name.
        ConfigError: It does not accept the options.
        click.BadParameter: The options or facts cannot be read.
    """
    plugins.get(wish.kind, wish.name)
    findings = _find(plugins, wish)
    if as_json:
        print_json("deployd.plugins.check/1", _as_json(wish, findings))
    else:
        _print(wish, findings)
    return Exit.USAGE if findings.refused else Exit.DONE if findings.passed else Exit.FAILED


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE``: a value is what TOML takes it for, or text.

    Raises:
        click.BadParameter: There is no ``=``.
    """
    import tomllib

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


def facts_by_host(texts: Sequence[str], hosts: Sequence[str]) -> dict[str, Mapping[str, object]]:
    """Read what a strategy's looks at hosts find: ``host-1={"primary": "web@8001"}``, or without a host for `OTHERS`.

    Raises:
        click.BadParameter: It is no object of JSON, or there is no such host.
    """
    from deployd_core.simulate.scenario import OTHERS

    found: dict[str, Mapping[str, object]] = {}
    for text in texts:
        host, equals, facts = text.partition("=")
        named = bool(equals) and not host.lstrip().startswith("{")
        if named and host not in hosts:
            raise click.BadParameter(f"there is no host {host!r}. {did_you_mean(host, hosts)}", param_hint="--facts")
        found[host if named else OTHERS] = _read_facts(facts if named else text)
    return found


def _read_facts(text: str) -> Mapping[str, object]:
    import json

    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--facts") from error
    if not isinstance(facts, dict):
        raise click.BadParameter("must be an object", param_hint="--facts")
    return facts


def _find(plugins: Plugins, wish: Wish) -> Findings:
    from deployd_core.conformance.suites import cannot_check, check_gate, check_probe
    from deployd_core.plugins import Kind

    if wish.kind not in (Kind.STRATEGY, Kind.GATE, Kind.PROBE):
        return cannot_check(wish.kind)  # whatever its options: none need be given
    table, facts = read_options(wish.options), _read_facts(wish.facts)

    def make() -> Bound[Any]:
        return plugins.make(wish.kind, wish.name, table, where="--option")

    made = make()
    if wish.kind is not Kind.STRATEGY:
        return check_gate(make) if wish.kind is Kind.GATE else check_probe(make)
    from deployd_core.conformance.strategies import Subject, check_strategy

    found = plugins.get(wish.kind, wish.name)
    plugin: Any = found.plugin
    options = made.plugin.options
    subject = Subject(name=wish.name, provider=found.provider, plugin=plugin, options=options, facts=lambda _: facts)
    return check_strategy(subject, seed=wish.seed, seeds=wish.seeds)


def _print(wish: Wish, findings: Findings) -> None:
    what = f"{wish.kind.value} {wish.name}"
    if findings.refused:
        message(f"{what} was not checked: {findings.refused}")
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
            click.echo(f"Again: {wish.again(check.seed)}")  # to be copied, however long
    count, tried = len(findings.checks), sum(check.cases > 0 for check in findings.checks)
    passes = f"passes all {count} checks" if tried == count else f"passes the {tried} of {count} checks that could be tried"
    click.echo(f"\n{what} {f'fails {len(failed)} of {count} checks' if failed else passes}")
    if not failed and tried < count:
        click.echo("To it no web server here is healthy: have its tests inherit ProbeContract, and bring an instance that is")
    if findings.unlimited:
        from deployd_core.conformance.width import NO_LIMIT

        click.echo(f"It sets {NO_LIMIT}")


def _state(check: Check) -> str:
    return "failed" if not check.passed else "ok" if check.cases else "untried"


def _as_json(wish: Wish, findings: Findings) -> dict[str, Any]:
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
        "kind": wish.kind.value,
        "name": wish.name,
        "passed": findings.passed,
        "refused": findings.refused,
        "unlimited": findings.unlimited,
        "seed": wish.seed,
        "seeds": wish.seeds,
        "checks": checks,
    }
