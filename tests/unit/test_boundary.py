"""The one place where a plugin's code is called."""

import pytest

from deployd_core.boundary import Bound, Provider, call_plugin
from deployd_core.errors import ConfigError, DeploydError, PluginError, RestartFailed, Unavailable

ACME = Provider(entry="acme", distribution="acme-deployd", version="0.3", origin="acme_deployd.restart")


def raiser(error):
    """A plugin call that raises this."""

    def call():
        raise error

    return call


def test_a_result_passes():
    """What a plugin returns comes out as it is."""
    assert 42 == call_plugin(ACME, "counting", lambda: 42)


@pytest.mark.parametrize("error", [Unavailable("later"), RestartFailed("no"), ConfigError("wrong")])
def test_what_a_plugin_raises_on_purpose_passes(error):
    """An error of our own tree is the plugin's answer, not its fault."""
    with pytest.raises(DeploydError) as caught:
        call_plugin(ACME, "restarting web@8001", raiser(error))

    assert error is caught.value


@pytest.mark.parametrize(
    "error", [ValueError("bad"), ZeroDivisionError("zero"), SystemExit(3), RecursionError("deep"), MemoryError("full")]
)
def test_anything_else_is_the_plugins_fault(error):
    """The message names the plugin, its distribution and version, and what it was asked for; the original is the cause."""
    with pytest.raises(PluginError) as caught:
        call_plugin(ACME, "restarting web@8001", raiser(error))

    assert f"plugin acme (acme-deployd 0.3) failed restarting web@8001: {type(error).__name__}: {error}" == str(caught.value)
    assert error is caught.value.__cause__


def test_an_interrupt_is_nobodys_fault():
    """Ctrl-C goes through the boundary."""
    with pytest.raises(KeyboardInterrupt):
        call_plugin(ACME, "anything", raiser(KeyboardInterrupt()))


def test_a_bound_plugin_is_called_through_the_boundary():
    """Calls of a bound plugin come with its provider's name."""
    bound = Bound([3, 1, 2], "list", ACME)

    assert [1, 2, 3] == bound.call("sorting", sorted)
    with pytest.raises(PluginError, match="acme .* failed indexing: IndexError"):
        bound.call("indexing", lambda plugin: plugin[3])


def test_a_file_is_named_by_its_path():
    """A plugin that is a single file has no version; its path is what helps."""
    provider = Provider(entry="night", distribution="file", version="", origin="/etc/deployd/plugins.d/night.py")

    assert "night (/etc/deployd/plugins.d/night.py)" == str(provider)
