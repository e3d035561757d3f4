"""Finds plugins, keeps one registry per kind, and survives a broken one.

Entry points of the group ``deployd`` and single files of a directory are loaded one by one: a plugin that cannot be imported,
misspells a hook, was made for a newer deployd or takes a name that is taken becomes a row with the reason, and nothing else is
touched. (pluggy's own loader stops at the first broken distribution.) The idea of rows with reasons is conda's.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pluggy

from deployd_core import api, decoding, hookspecs
from deployd_core.boundary import Bound, Provider, call_plugin
from deployd_core.entry_points import find_entry_points
from deployd_core.errors import ConfigError, DeploydError, PluginError, UnknownPlugin, did_you_mean
from deployd_core.trust import weakness

ENTRY_POINT_GROUP = "deployd"
OWN_DISTRIBUTION = "deployd"
PLUGIN_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


class Kind(Enum):
    """The kinds of plugins that are classes."""

    STRATEGY = "strategy"
    GATE = "gate"
    MANAGER = "manager"
    PROBE = "probe"
    SOURCE = "source"
    STEP = "step"
    REPORTER = "reporter"

    @property
    def plural(self) -> str:
        """As in `deployd strategies list`."""
        return {"strategy": "strategies"}.get(self.value, f"{self.value}s")

    @property
    def hook(self) -> str:
        """The hook that returns classes of this kind."""
        return f"deployd_{self.plural}"

    @property
    def contract(self) -> type[api.Plugin[Any]]:
        """The class they derive from."""
        return _CONTRACTS[self]


_CONTRACTS: dict[Kind, type[api.Plugin[Any]]] = {
    Kind.STRATEGY: api.Strategy,
    Kind.GATE: api.Gate,
    Kind.MANAGER: api.Manager,
    Kind.PROBE: api.Probe,
    Kind.SOURCE: api.Source,
    Kind.STEP: api.Step,
    Kind.REPORTER: api.Reporter,
}


class PluginState(Enum):
    """Whether a plugin can be used."""

    OK = "ok"
    BROKEN = "broken"
    DUPLICATE = "duplicate"
    TOO_NEW = "too-new"
    DISABLED = "disabled"


class PluginRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `deployd plugins list`."""

    name: str
    kind: str
    """A `Kind`, ``command``, ``hook``, or empty when the plugin could not be loaded far enough to tell."""
    summary: str
    provider: Provider
    state: PluginState
    reason: str = ""


class Implementation(msgspec.Struct, frozen=True, kw_only=True):
    """A usable plugin class."""

    kind: Kind
    name: str
    plugin: type[api.Plugin[Any]]
    provider: Provider


class Rejected(DeploydError):
    """A plugin cannot be used; the state says in which way."""

    def __init__(self, state: PluginState, message: str) -> None:
        super().__init__(message)
        self.state = state


class Plugins:
    """The plugins of this process."""

    def __init__(self) -> None:
        self.rows: list[PluginRow] = []
        self.commands: dict[str, Any] = {}
        self._implementations: dict[tuple[Kind, str], Implementation] = {}
        self._manager = pluggy.PluginManager("deployd")
        self._manager.add_hookspecs(hookspecs)
        self._providers: dict[str, Provider] = {}
        self._disabled: frozenset[str] = frozenset()
        self._reserved_commands: frozenset[str] = frozenset()

    @classmethod
    def load(cls, *, directory: Path | None = None, disabled: Iterable[str] = (), reserved_commands: Iterable[str] = ()) -> Plugins:
        """Load every installed plugin and every file of `directory`.

        Args:
            directory: Single-file plugins, ``*.py``; a missing directory is an empty one.
            disabled: Entry points, files (without ``.py``) or plugin names that are not to be used.
            reserved_commands: Names that a plugin's command cannot have.
        """
        plugins = cls()
        plugins._disabled = frozenset(disabled)
        plugins._reserved_commands = frozenset(reserved_commands)
        offers: list[tuple[Kind, type[api.Plugin[Any]], Provider]] = []
        for provider, load in [*_installed(), *_single_files(directory)]:
            offers += plugins._take(provider, load)
        plugins._register(offers)
        plugins.rows.sort(key=lambda row: (row.kind, row.name, row.provider.entry))
        return plugins

    def of_kind(self, kind: Kind) -> list[Implementation]:
        """The usable plugins of a kind, by name."""
        return sorted((found for found in self._implementations.values() if found.kind is kind), key=lambda found: found.name)

    def get(self, kind: Kind, name: str) -> Implementation:
        """Look up a plugin.

        Raises:
            UnknownPlugin: There is none that can be used; the message says what became of one of that name, or what is close.
        """
        found = self._implementations.get((kind, name))
        if found is not None:
            return found
        for row in self.rows:
            # A file that broke on import is known by its own name alone, which has underscores where the plugin's has dashes.
            if row.state is not PluginState.OK and name in (row.name, row.provider.entry, row.provider.entry.replace("_", "-")):
                whose = "" if str(row.provider) in row.reason else f" [{row.provider}]"
                raise UnknownPlugin(f"{kind.value} {name!r} cannot be used: {row.reason}{whose}", hint="deployd plugins list")
        hint = did_you_mean(name, [implementation.name for implementation in self.of_kind(kind)])
        nameless = [row.provider.entry for row in self.rows if not row.kind and row.state is not PluginState.DISABLED]
        hint += f"; cannot be used: {', '.join(nameless)} (deployd plugins list)" if nameless else ""
        raise UnknownPlugin(f"there is no {kind.value} {name!r}", hint=hint)

    def make(self, kind: Kind, name: str, options: Mapping[str, Any], *, where: str) -> Bound[Any]:
        """Make a plugin object with the options of a spec.

        Args:
            kind: Which registry.
            name: As the spec names it.
            options: As they were written.
            where: The table they stand in, for messages: ``web: [restart.options]``.

        Raises:
            UnknownPlugin: See `get`.
            ConfigError: An option is unknown or has the wrong type.
            PluginError: Its constructor failed.
        """
        found = self.get(kind, name)
        checked = convert(options, found.plugin.options_type, where=where, hint=f"deployd plugins show {kind.value} {name}")
        plugin = call_plugin(found.provider, f"making {kind.value} {name}", lambda: found.plugin(checked))
        return Bound(plugin, name, found.provider)

    def add(self, kind: Kind, plugin: type[api.Plugin[Any]]) -> None:
        """Take a class that nothing has registered, for a test of it; it wins over one of its name.

        Raises:
            PluginError: It is no plugin of that kind.
        """
        provider = Provider(entry=plugin.name, distribution="test", version="", origin=plugin.__module__)
        found = _checked_class(kind, plugin)
        self._implementations[kind, plugin.name] = Implementation(kind=kind, name=plugin.name, plugin=found, provider=provider)

    def hook_functions(self, hook: str) -> list[tuple[Provider, Callable[..., Any]]]:
        """The implementations of a hook that is called while deploys happen, each to be called on its own with keywords."""
        return [
            (self._providers[implementation.plugin_name], _accepting(implementation))
            for implementation in getattr(self._manager.hook, hook).get_hookimpls()
        ]

    def _take(self, provider: Provider, load: Callable[[], ModuleType]) -> list[tuple[Kind, type[api.Plugin[Any]], Provider]]:
        """Import one plugin module and ask it what it offers; a fault becomes a row."""
        if provider.entry in self._disabled:
            self._row(provider, PluginState.DISABLED, "disabled by the configuration")
            return []
        try:
            module = call_plugin(provider, "on import", load)
            self._hook_up(module, provider)
            return self._offers(module, provider)
        except Rejected as rejection:
            self._row(provider, rejection.state, rejection.message)
        except DeploydError as error:
            self._row(provider, PluginState.BROKEN, error.message)
        if self._manager.has_plugin(provider.entry):
            self._manager.unregister(name=provider.entry)
        return []

    def _hook_up(self, module: ModuleType, provider: Provider) -> None:
        wanted = getattr(module, "DEPLOYD_API_VERSION", api.API_VERSION)
        if wanted > api.API_VERSION:
            raise Rejected(PluginState.TOO_NEW, f"was made for API {wanted}, this deployd has {api.API_VERSION}: upgrade deployd")
        if self._manager.has_plugin(provider.entry):
            raise Rejected(PluginState.DUPLICATE, f"{self._providers[provider.entry]} has the same entry name {provider.entry!r}")
        try:
            self._manager.register(module, name=provider.entry)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"a hook has the wrong signature: {error}") from error
        self._providers[provider.entry] = provider
        callers = self._manager.get_hookcallers(module) or []
        for caller in callers:
            if not caller.has_spec():
                close = difflib.get_close_matches(caller.name, _hook_names(), n=1)
                question = f", did you mean {close[0]}?" if close else f"; known: {', '.join(_hook_names())}"
                raise PluginError(f"there is no hook {caller.name}{question}")
        if not callers:
            raise PluginError("implements no hook: is @hookimpl missing?")

    def _offers(self, module: ModuleType, provider: Provider) -> list[tuple[Kind, type[api.Plugin[Any]], Provider]]:
        kinds = {kind.hook: kind for kind in Kind}
        offers: list[tuple[Kind, type[api.Plugin[Any]], Provider]] = []
        # What can still go wrong comes first: a broken module must leave neither a row that says ok nor a command behind.
        order = [*kinds, "deployd_commands", *_hook_names()]
        for caller in sorted(self._manager.get_hookcallers(module) or [], key=lambda caller: order.index(caller.name)):
            function = next(found.function for found in caller.get_hookimpls() if found.plugin is module)
            if caller.name == "deployd_commands":
                self._add_commands(call_plugin(provider, f"in {caller.name}", lambda f=function: list(f())), provider)  # type: ignore[misc]
            elif caller.name in kinds:
                kind = kinds[caller.name]
                classes = call_plugin(provider, f"in {caller.name}", lambda f=function, hook=caller.name: _all_of(hook, f()))  # type: ignore[misc]
                offers += [(kind, _checked_class(kind, found), provider) for found in classes]
            else:
                self._row(provider, PluginState.OK, kind="hook", name=caller.name, summary=_first_line(function.__doc__))
        return offers

    def _register(self, offers: list[tuple[Kind, type[api.Plugin[Any]], Provider]]) -> None:
        """Give every name to the one plugin that claims it. Our own keep theirs; of two strangers neither gets it."""
        claims: dict[tuple[Kind, str], list[tuple[type[api.Plugin[Any]], Provider]]] = defaultdict(list)
        for kind, plugin, provider in offers:
            claims[kind, plugin.name].append((plugin, provider))
        for (kind, name), claimants in claims.items():
            usable = [claim for claim in claimants if name not in self._disabled]
            own = [claim for claim in usable if claim[1].distribution == OWN_DISTRIBUTION]
            winner = own[0] if own else usable[0] if len(usable) == 1 else None
            for plugin, provider in claimants:
                row = {"kind": kind.value, "name": name, "summary": _first_line(plugin.__doc__)}
                if name in self._disabled:
                    self._row(provider, PluginState.DISABLED, "disabled by the configuration", **row)
                elif winner is not None and winner[0] is plugin:
                    self._implementations[kind, name] = Implementation(kind=kind, name=name, plugin=plugin, provider=provider)
                    self._row(provider, PluginState.OK, **row)
                else:
                    others = ", ".join(str(other) for claimed, other in usable if claimed is not plugin)
                    self._row(provider, PluginState.DUPLICATE, f"the name {name!r} is also claimed by {others}; disable one", **row)

    def _add_commands(self, commands: list[Any], provider: Provider) -> None:
        """Take all of a module's commands, or none."""
        for command in commands:
            name = getattr(command, "name", None)
            if not isinstance(name, str):
                raise PluginError(f"deployd_commands returned {command!r}, which is not a click command")
            if name in self.commands or name in self._reserved_commands:
                raise Rejected(PluginState.DUPLICATE, f"the command {name!r} is taken")
        for command in commands:
            self.commands[command.name] = command
            self._row(provider, PluginState.OK, kind="command", name=command.name, summary=command.get_short_help_str(80))

    def _row(
        self, provider: Provider, state: PluginState, reason: str = "", *, kind: str = "", name: str = "", summary: str = ""
    ) -> None:
        line = " ".join(reason.split())  # pluggy and some import errors speak in paragraphs
        self.rows.append(
            PluginRow(name=name or provider.entry, kind=kind, summary=summary, provider=provider, state=state, reason=line)
        )


def convert(value: object, kind: type[Any], *, where: str, hint: str = "") -> Any:
    """Check what a file or a znode holds against a type of ours.

    Raises:
        ConfigError: It does not fit; the message says at which key.
    """
    try:
        return decoding.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), kind)}", hint=hint) from error


def _explain(message: str, kind: type[Any]) -> str:
    """Put msgspec's message, ``Expected `int`, got `str` - at `$.a.b` ``, into the words of a file."""
    text, _, path = message.partition(" - at `$")
    key = path.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], getattr(kind, "__struct_fields__", ()), n=1)
        name = f"{key}.{unknown[1]}" if key else unknown[1]
        return f"unknown key {name!r}" + (f", did you mean {close[0]!r}?" if close else "")
    missing = re.search(r"missing required field `(.*)`", text)
    if missing:
        return f"{f'{key}.' if key else ''}{missing[1]} is missing"
    return f"{key}: {text[:1].lower()}{text[1:]}" if key else text


def _installed() -> Iterable[tuple[Provider, Callable[[], ModuleType]]]:
    for point in find_entry_points(ENTRY_POINT_GROUP):
        yield Provider(entry=point.name, distribution=point.distribution, version=point.version, origin=point.value), point.load


def _single_files(directory: Path | None) -> Iterable[tuple[Provider, Callable[[], ModuleType]]]:
    if directory is None or not directory.is_dir():
        return
    for path in sorted(directory.glob("*.py")):
        yield Provider(entry=path.stem, distribution="file", version="", origin=str(path)), lambda path=path: _load_file(path)  # type: ignore[misc]


def _load_file(path: Path) -> ModuleType:
    if weak := weakness(path):
        raise PluginError(f"it is not run, for others could have written it: {weak}")
    spec = importlib.util.spec_from_file_location(f"deployd_plugin_file_{path.stem.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    # Types that are written as text (`from __future__ import annotations`) are looked up in the module of their class, by its name.
    sys.modules[spec.name] = module
    with contextlib.ExitStack() as undo:
        undo.callback(sys.modules.pop, spec.name, None)
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


def _all_of(hook: str, found: Any) -> list[Any]:
    """What a hook returned, which may come one by one."""
    if isinstance(found, type):
        raise PluginError(f"{hook} returned {_name_of(found)}, and not a list: return [{_name_of(found)}]")
    return list(found)


def _name_of(found: object) -> str:
    return str(getattr(found, "__name__", repr(found)))


def _checked_class(kind: Kind, found: object) -> type[api.Plugin[Any]]:
    what = _name_of(found)
    if not isinstance(found, type) or not issubclass(found, kind.contract):
        raise PluginError(f"{kind.hook} returned {what}, which does not derive from {kind.contract.__name__}")
    if found.__abstractmethods__:
        raise PluginError(f"{kind.value} {what} does not define {', '.join(sorted(found.__abstractmethods__))}")
    if not PLUGIN_NAME.fullmatch(getattr(found, "name", "")):
        raise PluginError(f"{kind.value} {what} needs a name of lower-case words joined by dashes")
    if not _first_line(found.__doc__):
        raise PluginError(f"{kind.value} {what} needs a docstring: its first line is the summary")
    return found


def _accepting(implementation: pluggy.HookImpl) -> Callable[..., Any]:
    """A call by keywords that leaves out those the implementation does not take, as pluggy would."""
    names = (*implementation.argnames, *implementation.kwargnames)
    return lambda **keywords: implementation.function(**{name: keywords[name] for name in names})


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("deployd_")]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].strip()
