"""Finding plugins, and surviving broken ones."""

import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap

import click
import pytest

from deployd_core import api, hookspecs
from deployd_core.boundary import Provider
from deployd_core.errors import ConfigError, PluginError, UnknownPlugin
from deployd_core.model import Event, RestartRequest, Veto
from deployd_core.plugins import Kind, Plugins, PluginState, convert
from deployd_core.spec import ServiceSpec
from deployd_core.testing.child import run_in_child

STRATEGY = """
    from deployd_core.api import HostView, Options, Plan, Strategy, hookimpl


    class Mine(Strategy[Options]):
        '''Restart my way.'''

        name = "NAME"

        def plan(self, view: HostView) -> Plan:
            return Plan(cycle=view.stale, why="my way")


    @hookimpl
    def deployd_strategies():
        return [Mine]
"""


@pytest.fixture
def load(tmp_path):
    """Load plugins with these files in the plugin directory: `load(night="source", disabled=[...])`."""

    def loaded(*, disabled=(), **files):
        for name, source in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return Plugins.load(directory=tmp_path, disabled=disabled)

    return loaded


def strategy(name):
    """The source of a plugin module with one strategy."""
    return STRATEGY.replace("NAME", name)


def row(plugins, entry):
    """The one row of an entry."""
    (found,) = [found for found in plugins.rows if found.provider.entry == entry]
    return found


def built_in_rows(plugins):
    """The rows of what ships, as values to compare."""
    return [(found.kind, found.name, found.state) for found in plugins.rows if found.provider.distribution == "deployd"]


def test_everything_that_ships_can_be_used():
    """Each built-in is found through its entry point and is in order."""
    plugins = Plugins.load()

    assert {PluginState.OK} == {found.state for found in plugins.rows}, [found for found in plugins.rows if found.reason]
    assert {"all-at-once", "concurrency"} <= {found.name for found in plugins.of_kind(Kind.STRATEGY)}


def test_a_row_says_where_a_plugin_comes_from(load, tmp_path):
    """A row has the name, the kind, the first line of the docstring and the provider."""
    found = row(load(night=strategy("by-night")), "night")

    assert ("by-night", "strategy", "Restart my way.", PluginState.OK, "") == (
        found.name,
        found.kind,
        found.summary,
        found.state,
        found.reason,
    )
    assert Provider(entry="night", distribution="file", version="", origin=str(tmp_path / "night.py")) == found.provider


def test_a_single_file_makes_a_strategy(load):
    """What a file offers can be made with the options of a spec."""
    bound = load(night=strategy("by-night")).make(Kind.STRATEGY, "by-night", {}, where="web: [restart.options]")

    assert "by-night" == bound.plugin.name
    assert "night" == bound.provider.entry


def test_without_a_directory_there_are_the_installed_plugins(tmp_path):
    """A missing plugin directory is an empty one."""
    assert Plugins.load().rows == Plugins.load(directory=tmp_path / "missing").rows


BROKEN = {
    "broken import": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "syntax error": ("def (", "SyntaxError"),
    "exit on import": ("raise SystemExit(1)", "failed on import: SystemExit: 1"),
    "no hook": ("x = 1", "implements no hook: is @hookimpl missing?"),
    "misspelt hook": (
        strategy("mine").replace("deployd_strategies", "deployd_strategy"),
        "there is no hook deployd_strategy, did you mean deployd_strategies?",
    ),
    "unknown hook": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef acme_thing(): ...",
        "there is no hook acme_thing; known: deployd_strategies, ",
    ),
    "class in place of a list": (
        strategy("mine").replace("[Mine]", "Mine"),
        r"deployd_strategies returned Mine, and not a list: return \[Mine\]",
    ),
    "wrong signature": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_veto(request, phase_of_the_moon): ...",
        "a hook has the wrong signature: .*phase_of_the_moon",
    ),
    "raising hook": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_gates():\n    return 1 / 0",
        "failed in deployd_gates: ZeroDivisionError",
    ),
    "raising generator": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_gates():\n    yield 1 / 0",
        "failed in deployd_gates: ZeroDivisionError",
    ),
    "returns nothing": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_gates(): ...",
        "failed in deployd_gates: TypeError",
    ),
    "wrong kind": (
        strategy("mine").replace("deployd_strategies", "deployd_gates"),
        "deployd_gates returned Mine, which does not derive from Gate",
    ),
    "an object, not a class": (
        strategy("mine").replace("return [Mine]", "return [Mine(Options())]"),
        "which does not derive from Strategy",
    ),
    "abstract": (strategy("mine").replace("def plan", "def plant"), "strategy Mine does not define plan"),
    "no name": (strategy("mine").replace('name = "mine"', ""), "strategy Mine needs a name of lower-case words"),
    "bad name": (strategy("My_Own"), "strategy Mine needs a name of lower-case words"),
    "no docstring": (strategy("mine").replace("'''Restart my way.'''", ""), "strategy Mine needs a docstring"),
    "no command": (
        "from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_commands(): return [print]",
        "which is not a click command",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_a_row_with_its_reason(load, source, reason):
    """A plugin that cannot be used says why, and takes nothing else down."""
    plugins = load(bad=source, good=strategy("by-night"))

    found = row(plugins, "bad")
    assert PluginState.BROKEN is found.state
    assert re.search(reason, found.reason), found.reason
    assert "\n" not in found.reason
    assert PluginState.OK is row(plugins, "good").state
    assert built_in_rows(Plugins.load()) == built_in_rows(plugins)


def test_a_broken_plugin_says_why_when_it_is_asked_for(load):
    """Using a broken plugin by its entry name repeats its reason."""
    with pytest.raises(UnknownPlugin, match="strategy 'bad' cannot be used: .*no_such_module") as caught:
        load(bad="import no_such_module").get(Kind.STRATEGY, "bad")

    assert "deployd plugins list" == caught.value.hint


def test_a_file_that_broke_is_found_by_the_name_that_its_plugin_has(load):
    """A file cannot have the dashes of the plugin in it, and what broke on import never said its name."""
    with pytest.raises(UnknownPlugin, match="strategy 'by-halves' cannot be used: .*SyntaxError") as caught:
        load(by_halves="def (").get(Kind.STRATEGY, "by-halves")

    assert 1 == caught.value.message.count("/by_halves.py")


def test_what_broke_before_it_could_say_its_name_is_told_with_what_there_is(load):
    """It may be the one that is asked for."""
    with pytest.raises(UnknownPlugin, match="there is no strategy 'by-halves'") as caught:
        load(halves="def (", good=strategy("by-night")).get(Kind.STRATEGY, "by-halves")

    assert caught.value.hint.endswith("; cannot be used: halves (deployd plugins list)")


def test_a_plugin_for_a_newer_deployd_is_not_loaded(load):
    """A module that asks for a later API is reported, and its hooks are not called."""
    plugins = load(late=f"DEPLOYD_API_VERSION = {api.API_VERSION + 1}\n" + textwrap.dedent(strategy("by-night")))

    found = row(plugins, "late")
    assert PluginState.TOO_NEW is found.state
    assert f"was made for API {api.API_VERSION + 1}, this deployd has {api.API_VERSION}: upgrade deployd" == found.reason
    with pytest.raises(UnknownPlugin):
        plugins.get(Kind.STRATEGY, "by-night")


def test_a_plugin_for_this_deployd_is_loaded(load):
    """A module that asks for the present API is fine."""
    plugins = load(now=f"DEPLOYD_API_VERSION = {api.API_VERSION}\n" + textwrap.dedent(strategy("by-night")))

    assert PluginState.OK is row(plugins, "now").state


def test_of_two_strangers_with_one_name_neither_is_used(load):
    """Which of two would win must not depend on the order of files: both are refused, each naming the other."""
    plugins = load(one=strategy("by-night"), two=strategy("by-night"))

    rows = [row(plugins, "one"), row(plugins, "two")]
    assert [PluginState.DUPLICATE] * 2 == [found.state for found in rows]
    assert "also claimed by two (" in rows[0].reason
    assert "also claimed by one (" in rows[1].reason
    with pytest.raises(UnknownPlugin, match="also claimed by"):
        plugins.get(Kind.STRATEGY, "by-night")


def test_a_built_in_keeps_its_name(load):
    """A stranger cannot take the name of what ships, nor disturb it."""
    plugins = load(thief=strategy("concurrency"))

    assert PluginState.DUPLICATE is row(plugins, "thief").state
    assert "deployd" == plugins.get(Kind.STRATEGY, "concurrency").provider.distribution


def test_a_file_cannot_take_the_entry_name_of_another(load):
    """A file named like an entry point is a duplicate; what was there first goes on working."""
    plugins = load(concurrency=strategy("by-night"))

    (duplicate,) = [found for found in plugins.rows if found.state is PluginState.DUPLICATE]
    assert "concurrency (deployd " in duplicate.reason
    assert "file" == duplicate.provider.distribution
    assert "deployd" == plugins.get(Kind.STRATEGY, "concurrency").provider.distribution


def test_disabling_one_of_two_settles_it(load):
    """Of two plugins with one name, the other is used once one is disabled by its entry."""
    plugins = load(one=strategy("by-night"), two=strategy("by-night"), disabled=["one"])

    assert PluginState.DISABLED is row(plugins, "one").state
    assert "two" == plugins.get(Kind.STRATEGY, "by-night").provider.entry


def test_a_plugin_disabled_by_entry_is_not_imported(load):
    """Blocking an entry means that its code never runs."""
    plugins = load(bad="raise RuntimeError", disabled=["bad"])

    assert (PluginState.DISABLED, "disabled by the configuration") == (row(plugins, "bad").state, row(plugins, "bad").reason)


@pytest.mark.parametrize("name", ["concurrency", "by-night"])
def test_a_plugin_is_disabled_by_its_name(load, name):
    """Blocking a plugin name works for a stranger's and for a built-in."""
    plugins = load(night=strategy("by-night"), disabled=[name])

    with pytest.raises(UnknownPlugin, match="disabled by the configuration"):
        plugins.get(Kind.STRATEGY, name)


def opened(directory):
    """Make a directory that everybody may write to."""
    directory.mkdir()
    directory.chmod(0o777)


def moved(path):
    """Leave a link where a file was, which lies elsewhere and may be written by everybody."""
    target = path.parents[2] / "else.py"
    path.rename(target)
    target.chmod(0o666)
    path.symlink_to(target)


WEAK = {
    "the file, by anybody": (lambda path: path.chmod(0o666), "night.py can be written by anybody: chmod o-w "),
    "the directory, by anybody": (lambda path: path.parent.chmod(0o777), "plugins.d can be written by anybody: chmod o-w "),
    "the directory, though sticky": (lambda path: path.parent.chmod(0o1777), "plugins.d can be written by anybody: chmod o-w "),
    "one further up": (lambda path: path.parents[1].chmod(0o777), "etc can be written by anybody: chmod o-w "),
    "a cache of bytecode": (lambda path: opened(path.parent / "__pycache__"), "__pycache__ can be written by anybody: chmod o-w "),
    "where a link leads": (moved, "else.py can be written by anybody: chmod o-w "),
}


@pytest.fixture
def night(tmp_path):
    """A plugin file two directories down, with the rights that a careful administrator gives."""
    path = tmp_path / "etc" / "plugins.d" / "night.py"
    path.parent.mkdir(parents=True)
    path.write_text(textwrap.dedent(strategy("by-night")))
    for place in (path.parent, path.parents[1]):
        place.chmod(0o755)
    return path


@pytest.mark.parametrize("way", WEAK)
def test_what_others_may_write_is_not_run(night, way):
    """The agent may be root: it runs no file that others may edit, replace, or have Python take another for."""
    weaken, words = WEAK[way]
    weaken(night)

    found = row(Plugins.load(directory=night.parent), "night")

    assert PluginState.BROKEN is found.state
    assert words in found.reason


@pytest.mark.root
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_belongs_to_another_user_is_not_run(night, place):
    """Not the file, its directory or one further up: root would run what that user writes."""
    strange = (night, *night.parents)[place]
    os.chown(strange, 65534, -1)

    found = row(Plugins.load(directory=night.parent), "night")

    assert PluginState.BROKEN is found.state
    assert f"{strange} belongs to another user (uid 65534): chown 0 {strange}" in found.reason


@pytest.mark.root
def test_what_a_group_may_write_is_not_run(night):
    """Unless it is root's, or the user's own."""
    night.chmod(0o664)
    states = [row(Plugins.load(directory=night.parent), "night").state]
    os.chown(night, -1, 65534)
    states.append(row(Plugins.load(directory=night.parent), "night").state)

    assert [PluginState.OK, PluginState.BROKEN] == states


def test_a_user_runs_what_is_theirs(night, monkeypatch):
    """In a directory of their own below a sticky one, as /tmp is, with a relative path."""
    night.parents[1].chmod(0o1777)
    monkeypatch.chdir(night.parent)

    assert PluginState.OK is row(Plugins.load(directory=pathlib.Path()), "night").state


@pytest.mark.root
def test_an_ordinary_user_runs_what_is_theirs(tmp_path):
    """`--plugins-dir .` works where root has no part in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        home = pathlib.Path(name)
        (home / "night.py").write_text(textwrap.dedent(strategy("by-night")))
        for place in (home, home / "night.py"):
            os.chown(place, 65534, 65534)
        home.chmod(0o775)

        def listed():
            os.chdir(home)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            return row(Plugins.load(directory=pathlib.Path()), "night").state.value

        assert "ok" == run_in_child(listed, timeout=60)


def test_commands_are_collected(load):
    """A command becomes a row and can be found by its name; of two with one name the second is refused."""
    source = """
        import click
        from deployd_core.api import hookimpl

        @click.command("hello")
        def hello():
            "Say hello."

        @hookimpl
        def deployd_commands():
            return [hello]
    """
    plugins = load(a=source, b=source)

    assert isinstance(plugins.commands["hello"], click.Command)
    assert ("command", "hello", "Say hello.", PluginState.OK) == (
        row(plugins, "a").kind,
        row(plugins, "a").name,
        row(plugins, "a").summary,
        row(plugins, "a").state,
    )
    assert (PluginState.DUPLICATE, "the command 'hello' is taken") == (row(plugins, "b").state, row(plugins, "b").reason)


EVENT = Event(name="host.failed", service="web", host="h1", at="2026-11-23T00:00:00Z")
REQUEST = RestartRequest(service="web", host="h1", zone="a", build="v2", serving="v1")


@pytest.mark.parametrize("arguments", ["", "request", "request, ", "**everything"])
def test_a_hook_may_take_fewer_arguments(load, arguments):
    """A hook function is called with what it takes, so that hooks can grow."""
    plugins = load(
        quiet=f"from deployd_core.api import Veto, hookimpl\n@hookimpl\ndef deployd_veto({arguments}): return Veto(reason='no')"
    )

    ((provider, function),) = plugins.hook_functions("deployd_veto")

    assert "quiet" == provider.entry
    if arguments != "**everything":
        assert Veto(reason="no") == function(request=REQUEST)


def test_a_hook_is_a_row_of_its_own(load):
    """Hooks that are called while deploys happen are listed, with the first line of their docstring."""
    found = row(load(watch="from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_event(event):\n    'Watch.'"), "watch")

    assert ("hook", "deployd_event", "Watch.", PluginState.OK) == (found.kind, found.name, found.summary, found.state)


def test_a_broken_module_leaves_nothing_behind(load):
    """Of a module with one broken hook, no other hook is called, no command is there and no row says ok."""
    plugins = load(
        half="""
            import click
            from deployd_core.api import hookimpl

            @hookimpl
            def deployd_event(): ...

            @hookimpl
            def deployd_commands():
                return [click.Command("hello")]

            @hookimpl
            def deployd_steps():
                return [1]
        """
    )

    assert [] == plugins.hook_functions("deployd_event")
    assert {} == plugins.commands
    assert PluginState.BROKEN is row(plugins, "half").state


def test_commands_are_taken_all_or_none(load):
    """Of a module whose second command is no command, the first is not there either."""
    plugins = load(
        half="""
            import click
            from deployd_core.api import hookimpl

            @hookimpl
            def deployd_commands():
                return [click.Command("hello"), 1]
        """
    )

    assert {} == plugins.commands
    assert PluginState.BROKEN is row(plugins, "half").state


@pytest.mark.parametrize(
    ("name", "hint"),
    [("concurency", "did you mean 'concurrency'? known: all-at-once, concurrency"), ("zzz", "known: all-at-once, concurrency")],
)
def test_an_unknown_plugin_is_refused_with_what_there_is(name, hint):
    """A name that nobody has gets a suggestion, and the list."""
    with pytest.raises(UnknownPlugin, match=f"there is no strategy '{name}'") as caught:
        Plugins.load().get(Kind.STRATEGY, name)

    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": 1}, "web: .restart.options.: unknown key 'limits', did you mean 'limit'?"),
        ({"limit": 1.5}, "web: .restart.options.: limit: .*needs a unit"),
        ({"limit": "lots"}, "web: .restart.options.: limit: 'lots' is neither a count"),
        ({"instances_at_once": []}, "instances_at_once: "),
    ],
)
def test_a_wrong_option_is_named(options, message):
    """The error of an option says where it stands, which key it is and what is wrong."""
    with pytest.raises(ConfigError, match=message) as caught:
        Plugins.load().make(Kind.STRATEGY, "concurrency", options, where="web: [restart.options]")

    assert "deployd plugins show strategy concurrency" == caught.value.hint


def test_a_constructor_that_fails_is_the_plugins_fault(load):
    """What a plugin raises when it is made names the plugin."""
    source = strategy("by-night").replace(
        "def plan", "def __init__(self, options):\n            raise KeyError('moon')\n\n        def plan"
    )

    with pytest.raises(PluginError, match=r"plugin night \(.*night.py\) failed making strategy by-night: KeyError: 'moon'"):
        load(night=source).make(Kind.STRATEGY, "by-night", {}, where="web")


def test_a_missing_key_is_named_with_its_table():
    """A missing key says its whole path."""
    with pytest.raises(ConfigError, match=r"^web.toml: service.root is missing$"):
        convert({"service": {}, "source": {}}, ServiceSpec, where="web.toml")


def test_a_nested_unknown_key_is_named_with_its_table():
    """An unknown key in a table says its whole path."""
    with pytest.raises(ConfigError, match=r"^web.toml: unknown key 'service.rot'"):
        convert({"service": {"root": "/srv/web", "rot": 1}, "source": {}}, ServiceSpec, where="web.toml")


def test_options_come_from_the_type_argument():
    """A plugin class knows its option type, also through a base class of its own."""

    class MyOptions(api.Options, frozen=True, kw_only=True):
        depth: int = 1

    class Base(api.Strategy[MyOptions]):
        pass

    class Derived(Base):
        pass

    assert [MyOptions, MyOptions] == [Base.options_type, Derived.options_type]


def example_of(hook):
    """The example of a hook's docstring, as a module."""
    text = inspect.getdoc(getattr(hookspecs, hook))
    return textwrap.dedent(text.partition("Example::")[2])


HOOKS = [name for name in vars(hookspecs) if name.startswith("deployd_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_every_hook_runs(load, hook):
    """The example in a hook's docstring, given its imports, is a plugin that loads."""
    plugins = load(example="import pathlib\nimport click\nfrom deployd_core.api import *\n" + example_of(hook))

    rows = [found for found in plugins.rows if found.provider.entry == "example"]
    assert [PluginState.OK] == [found.state for found in rows], rows


def test_every_kind_has_its_hook():
    """Kinds and hooks name each other."""
    assert set(HOOKS) == {kind.hook for kind in Kind} | {
        "deployd_commands",
        "deployd_veto",
        "deployd_veto_promotion",
        "deployd_event",
    }


def test_the_gate_of_the_example_closes_and_opens(load, tmp_path):
    """The gate example keeps its contract: closed until opened, both repeatable."""
    (tmp_path / "shared").mkdir()
    call = {"service": "web", "host": "h1", "zone": "a", "root": tmp_path, "timeout": 1.0}
    instance = api.Instance.parse("web", "web@8001")
    gate = (
        load(example="from deployd_core.api import *\n" + example_of("deployd_gates"))
        .make(Kind.GATE, "file", {}, where="web")
        .plugin
    )

    for _ in range(2):
        gate.close(api.GateCall(**call, instance=instance, until=99.0, owner="me"))
    closed = gate.closed(api.HostCall(**call))
    for _ in range(2):
        gate.open(api.InstanceCall(**call, instance=instance))

    assert (api.ClosedGate(service="web", instance="web@8001", owner="me", until=99.0),) == closed
    assert () == gate.closed(api.HostCall(**call))


def test_the_veto_of_the_example_says_no_while_its_file_exists(load, tmp_path):
    """The veto example answers None, or a veto."""
    flag = tmp_path / "no-restarts"
    source = example_of("deployd_veto").replace("/run/no-restarts", str(flag))
    plugins = load(example="import pathlib\nfrom deployd_core.api import *\n" + source)
    ((_, veto),) = plugins.hook_functions("deployd_veto")

    before = veto(request=REQUEST)
    flag.touch()

    assert before is None
    assert Veto(reason=f"{flag} exists", retry_after=10) == veto(request=REQUEST)


def test_listing_plugins_imports_nothing_heavy():
    """What `strategies list` does not need is not imported to list strategies."""
    code = "import sys; from deployd_core.plugins import Plugins; Plugins.load(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))

    assert set() == {"kazoo", "psutil", "textual", "structlog", "http.client", "jeepney", "subprocess", "asyncio"} & set(
        done.stdout.split()
    )


def test_the_docstring_of_the_api_is_a_plugin(load):
    """The example that greets whoever opens api.py loads, and plans."""
    source = textwrap.dedent(api.__doc__.partition("returns the class::")[2].partition("Every call of a plugin")[0])

    plugins = load(first=source)

    assert PluginState.OK is row(plugins, "first").state
    assert pathlib.Path(row(plugins, "first").provider.origin).exists()
