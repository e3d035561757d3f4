"""The one place where a plugin's code is called."""

import asyncio
import threading

import pytest

from deployd_core.boundary import Bound, Provider, call_plugin, checked, trace
from deployd_core.errors import ConfigError, DeploydError, PluginError, RestartFailed, Unavailable
from deployd_core.model import Veto

ACME = Provider(entry="acme", distribution="acme-deployd", version="0.3", origin="acme_deployd.restart")


def raiser(error):
    """A plugin call that raises this."""

    def call(*_):
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


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt()])
def test_on_a_thread_of_its_own_nothing_gets_through(error):
    """There nobody interrupts it from outside: whatever it raises is its own, and must not end the caller's thread."""
    with pytest.raises(PluginError, match=f"acme .* failed planning: {type(error).__name__}"):
        Bound([], "list", ACME).call_within(10, "planning", lambda _: raiser(error)())


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


@pytest.mark.parametrize("answer", [3, "no", Veto(reason="no", retry_after="30s"), object()])
def test_an_answer_of_another_kind_is_the_plugins_fault(answer):
    """It is named with what it returned, be it wrong in one field only."""
    with pytest.raises(PluginError) as caught:
        checked(ACME, Veto, "asking for a veto", answer)

    assert str(caught.value).startswith(f"plugin acme (acme-deployd 0.3) failed asking for a veto: it returned {answer!r}")


def test_an_answer_in_time_is_the_answer():
    """On a thread of its own a call returns and raises what it would on this one."""
    bound = Bound([3, 1, 2], "list", ACME)

    assert [1, 2, 3] == bound.call_within(10, "sorting", sorted)
    with pytest.raises(PluginError, match="acme .* failed indexing: IndexError"):
        bound.call_within(10, "indexing", lambda plugin: plugin[3])
    with pytest.raises(Unavailable, match="later"):
        bound.call_within(10, "asking", lambda _: raiser(Unavailable("later"))())


def test_a_call_that_hangs_is_left_and_none_is_made_beside_it():
    """The caller goes on after the deadline; the next call fails at once while the first one hangs, and works when it has ended."""
    bound, done, calls = Bound([], "list", ACME), threading.Event(), []

    with pytest.raises(PluginError, match=r"failed planning: no answer within 0.05 s"):
        bound.call_within(0.05, "planning", lambda _: done.wait(30))
    with pytest.raises(PluginError, match="an earlier call still hangs"):
        bound.call_within(30, "planning", calls.append)
    done.set()
    bound._late.join(30)

    assert bound.call_within(30, "planning", lambda _: "an answer") == "an answer"
    assert [] == calls


def test_a_machine_without_a_thread_to_spare_is_no_fault_of_a_plugin(monkeypatch):
    """It is worth trying again, and said with what was to be done."""
    monkeypatch.setattr(threading.Thread, "start", raiser(RuntimeError("can't start new thread")))

    with pytest.raises(Unavailable, match="planning with plugin acme .* could not begin: can't start new thread"):
        Bound([], "list", ACME).call_within(10, "planning", len)


def test_every_call_can_be_traced():
    """Each is a line: how long it took, whose it was, what for, and what it raised."""
    lines = []
    trace(lines.append)
    try:
        call_plugin(ACME, "counting", lambda: 42)
        for error in (ValueError("bad"), Unavailable("later")):
            with pytest.raises(DeploydError):
                call_plugin(ACME, "restarting web@8001", raiser(error))
    finally:
        trace(None)
    call_plugin(ACME, "counting", lambda: 42)

    assert [
        "acme (acme-deployd 0.3) counting",
        "acme (acme-deployd 0.3) restarting web@8001, raised ValueError: bad",
        "acme (acme-deployd 0.3) restarting web@8001, raised Unavailable: later",
    ] == [line.partition(" ms: ")[2] for line in lines]
    assert all(float(line.partition(" ms: ")[0]) >= 0 for line in lines)
