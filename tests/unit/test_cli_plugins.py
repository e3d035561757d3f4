"""`deployd strategies` and `deployd plugins`, run in this process on single-file plugins."""

import json

import pytest

from deployd_core.cli.main import run

NIGHTLY = '''
"""A module."""
from typing import Annotated, Literal
from deployd_core.api import Duration, HostView, Meta, Options, Plan, Share, Size, Strategy, hookimpl


class NightlyOptions(Options, frozen=True, kw_only=True):
    """When."""

    window: Annotated[str, Meta(description="hours in which restarts may begin")]
    pause: Annotated[Duration, Meta(description="rest between two hosts")] = Duration("1m30s")
    at_once: Annotated[int, Meta(ge=1, le=8, description="instances at a time")] = 2
    limit: Share | None = None
    memory: Size = Size("64MB")
    days: tuple[str, ...] = ("sat", "sun")
    labels: dict[str, str] = {}
    mode: Literal["soft", "hard"] = "soft"
    dry: Annotated[bool, Meta(description="only say what would happen")] = False


class Nightly(Strategy[NightlyOptions]):
    """Restart at night.

    Nobody is awake then.
    """

    name = "nightly"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why="it is dark")


@hookimpl
def deployd_strategies():
    return [Nightly]
'''

HELLO = '''
import click
from deployd_core.api import hookimpl


@click.command("{name}")
@click.option("--code", type=int, default=0)
def hello(code):
    """Say hello."""
    click.echo("hello")
    return code


@hookimpl
def deployd_commands():
    return [hello]
'''


@pytest.fixture
def plugins(tmp_path):
    """A plugin directory."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    return directory


def listed(capsys, plugins, *arguments):
    """What `list --json` says, by name."""
    assert 0 == run([*arguments, "list", "--json", "--plugins-dir", str(plugins)])
    body = json.loads(capsys.readouterr().out)
    assert f"deployd.{arguments[0]}.list/1" == body["schema"]
    return {row["name"]: row for row in body[arguments[0]]}


def test_list_prints_one_line_per_strategy(capsys, plugins):
    """In a pipe every strategy is one line of aligned columns that end in its state."""
    (plugins / "night.py").write_text(NIGHTLY)

    assert 0 == run(["strategies", "list", "--plugins-dir", str(plugins)])

    lines = capsys.readouterr().out.splitlines()
    assert ["NAME", "SUMMARY", "KIND", "SOURCE", "STATE"] == lines[0].split()
    [line] = [line for line in lines if line.startswith("nightly ")]
    assert ["nightly", "Restart at night.", "strategy", f"file {plugins}/night.py", "ok"] == [
        cell.strip() for cell in line.split("  ") if cell.strip()
    ]
    assert 1 == len({line.index("STATE") if "STATE" in line else len(line.rpartition(" ")[0]) + 1 for line in (lines[0], line)})


def test_list_as_json_has_a_documented_shape(capsys, plugins):
    """Every row has the same keys, and says where the plugin comes from."""
    (plugins / "night.py").write_text(NIGHTLY)

    row = listed(capsys, plugins, "strategies")["nightly"]

    source = {"distribution": "file", "version": None, "entry": "night", "origin": str(plugins / "night.py")}
    expected = {
        "name": "nightly",
        "summary": "Restart at night.",
        "kind": "strategy",
        "source": source,
        "state": "ok",
        "reason": "",
    }
    assert expected == row


@pytest.mark.parametrize(
    ("text", "state", "reason"),
    [
        ("1 / 0", "broken", "failed on import: ZeroDivisionError"),
        ("raise SystemExit(3)", "broken", "failed on import: SystemExit: 3"),
        ("this is no Python", "broken", "SyntaxError"),
        (NIGHTLY.replace("def deployd_strategies", "def deployd_strategy"), "broken", "did you mean deployd_strategies?"),
        (NIGHTLY.replace("@hookimpl", ""), "broken", "is @hookimpl missing?"),
        (NIGHTLY.replace('name = "nightly"', 'name = "Nightly!"'), "broken", "needs a name of lower-case words"),
        ("DEPLOYD_API_VERSION = 99\n" + NIGHTLY, "too-new", "was made for API 99"),
    ],
)
def test_plugin_that_cannot_be_used_is_a_row_with_the_reason(capsys, plugins, text, state, reason):
    """A faulty file costs one row: the command still exits 0 and lists everything else."""
    (plugins / "faulty.py").write_text(text)

    rows = listed(capsys, plugins, "strategies")

    assert state == rows["faulty"]["state"]
    assert reason in rows["faulty"]["reason"]
    assert "ok" == rows["concurrency"]["state"]


def test_two_strangers_of_one_name_are_both_refused(capsys, plugins):
    """Neither file gets a name that both claim, and each row names the other."""
    (plugins / "one.py").write_text(NIGHTLY)
    (plugins / "two.py").write_text(NIGHTLY)

    assert 0 == run(["strategies", "list", "--plugins-dir", str(plugins)])

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nightly ")]
    assert 2 == len(rows)
    assert "one.py  duplicate: the name 'nightly' is also claimed by two" in rows[0]
    assert "two.py  duplicate: the name 'nightly' is also claimed by one" in rows[1]


def test_disabled_plugin_is_a_row(capsys, plugins, tmp_path):
    """agent.toml's blocked plugins are listed as disabled."""
    config = tmp_path / "agent.toml"
    config.write_text(f'[plugins]\ndirectory = "{plugins}"\ndisabled = ["nightly"]\n')
    (plugins / "night.py").write_text(NIGHTLY)

    assert 0 == run(["--config", str(config), "strategies", "list"])

    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nightly ")]
    assert row.endswith("disabled: disabled by the configuration")


def test_row_is_one_line_whatever_the_plugin_raised(capsys, plugins):
    """A reason of many lines does not break the table."""
    (plugins / "faulty.py").write_text("raise ValueError('first\\nsecond\\n\\n  third')")

    assert 0 == run(["plugins", "list", "--plugins-dir", str(plugins)])

    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("faulty")]
    assert row.endswith("broken: failed on import: ValueError: first second third")


SHOWN = """\
nightly: Restart at night.

Nobody is awake then.

Kind    strategy
Source  file PLUGINS/night.py, class Nightly

OPTION   TYPE                                   DEFAULT   MEANING
window   text                                   required  hours in which restarts may begin
pause    duration, such as 30s                  1m30s     rest between two hosts
at_once  whole number, at least 1, at most 8    2         instances at a time
limit    count or percentage, such as 3 or 10%  none      -
memory   size, such as 500MB                    64MB      -
days     list of text                           sat, sun  -
labels   table of text                          none      -
mode     'hard' or 'soft'                       soft      -
dry      true or false                          false     only say what would happen
"""


@pytest.mark.parametrize("arguments", [["strategies", "show", "nightly"], ["plugins", "show", "strategy", "nightly"]])
def test_show_describes_every_option(capsys, plugins, arguments):
    """`show` prints summary, docstring, source and the options with type, default, unit and meaning."""
    (plugins / "night.py").write_text(NIGHTLY)

    assert 0 == run([*arguments, "--plugins-dir", str(plugins)])

    assert SHOWN.replace("PLUGINS", str(plugins)) == capsys.readouterr().out


def test_show_as_json_has_the_options_and_their_schema(capsys, plugins):
    """The JSON of `show` has defaults as a spec writes them, and a JSON Schema that refuses unknown keys."""
    (plugins / "night.py").write_text(NIGHTLY)

    assert 0 == run(["strategies", "show", "nightly", "--json", "--plugins-dir", str(plugins)])

    body = json.loads(capsys.readouterr().out)
    assert "deployd.strategies.show/1" == body["schema"]
    assert ["window", "pause", "at_once", "limit", "memory", "days", "labels", "mode", "dry"] == [
        o["name"] for o in body["options"]
    ]
    expected = {
        "name": "pause",
        "type": "duration, such as 30s",
        "required": False,
        "default": "1m30s",
        "meaning": "rest between two hosts",
    }
    assert expected == body["options"][1]
    schema = body["options_schema"]["$defs"]["NightlyOptions"]
    assert ["window"] == schema["required"]
    assert "64MB" == schema["properties"]["memory"]["default"]
    assert schema["additionalProperties"] is False


def test_everything_that_ships_can_be_shown(capsys, plugins):
    """No plugin of ours is broken, and `show` can describe each, in words and in JSON."""
    assert 0 == run(["plugins", "list", "--json", "--plugins-dir", str(plugins)])
    rows = json.loads(capsys.readouterr().out)["plugins"]

    assert [] == [row for row in rows if row["state"] != "ok"]
    for row in rows:
        assert 0 == run(["plugins", "show", row["kind"], row["name"]])
        assert 0 == run(["plugins", "show", row["kind"], row["name"], "--json"])


def test_unknown_strategy_asks_what_was_meant(capsys, plugins):
    """A misspelt name is an error with the closest one."""
    assert 1 == run(["strategies", "show", "concurency", "--plugins-dir", str(plugins)])

    captured = capsys.readouterr()
    assert "" == captured.out
    known = "known: all-at-once, concurrency, iptables-drain"
    assert f"deployd: error: there is no strategy 'concurency'. Did you mean 'concurrency'? {known}\n" == captured.err


def test_broken_plugin_is_not_unknown(capsys, plugins):
    """`show` of a plugin that broke says why it cannot be used."""
    (plugins / "faulty.py").write_text("1 / 0")

    assert 1 == run(["strategies", "show", "faulty", "--plugins-dir", str(plugins)])

    error = capsys.readouterr().err
    assert "cannot be used" in error
    assert "ZeroDivisionError" in error


def test_kinds_can_be_chosen(capsys, plugins):
    """`plugins list --kind` takes the singular and the plural, and lists nothing else."""
    for kind in ("strategy", "strategies"):
        assert 0 == run(["plugins", "list", "--kind", kind, "--json", "--plugins-dir", str(plugins)])

        rows = json.loads(capsys.readouterr().out)["plugins"]
        assert {"all-at-once", "concurrency", "iptables-drain"} == {row["name"] for row in rows if row["state"] == "ok"}


def test_command_of_a_plugin_runs(capsys, plugins):
    """A plugin's command is found by its name, and its number is the exit code."""
    (plugins / "hello.py").write_text(HELLO.replace("{name}", "hello"))

    assert 7 == run(["--plugins-dir", str(plugins), "hello", "--code", "7"])

    assert "hello\n" == capsys.readouterr().out


def test_command_of_a_plugin_is_in_the_help(capsys, plugins):
    """Commands of plugins have a section of their own in the help, and a row in `plugins list`."""
    (plugins / "hello.py").write_text(HELLO.replace("{name}", "hello"))

    assert 0 == run(["--plugins-dir", str(plugins), "--help"])

    assert "From plugins:\n  hello  Say hello.\n" in capsys.readouterr().out
    assert "command" == listed(capsys, plugins, "plugins")["hello"]["kind"]


def test_command_cannot_replace_a_built_in_one(capsys, plugins):
    """A plugin that claims the name of a built-in command is refused, and the built-in one is what runs."""
    (plugins / "hello.py").write_text(HELLO.replace("{name}", "strategies"))

    row = listed(capsys, plugins, "strategies")["hello"]

    assert ("duplicate", "the command 'strategies' is taken") == (row["state"], row["reason"])


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ('Plan(cycle=view.stale, why="all")', True),
        ('Plan(cycle=view.stale, why="all", limit=self.options.fleet_limit)', False),
        ('Plan(cycle=(), why="none", impossible="no")', None),
        ("1 / 0", None),
    ],
)
def test_show_says_when_a_strategy_lets_all_hosts_go_at_once(capsys, plugins, plan, says):
    """A strategy whose plan sets no limit says so itself; of one that does, or cannot be asked, nothing is said."""
    text = NIGHTLY.replace("Options, Plan", "FleetOptions, Plan").replace("(Options,", "(FleetOptions,")
    text = text.replace('    window: Annotated[str, Meta(description="hours in which restarts may begin")]\n', "")
    text = text.replace("    limit: Share | None = None\n", "")
    (plugins / "night.py").write_text(text.replace('Plan(cycle=view.stale, why="it is dark")', plan))
    show = ["strategies", "show", "nightly", "--plugins-dir", str(plugins)]

    assert 0 == run(show)
    assert (says is True) == ("\nFleet   no fleet limit: all hosts at once\n" in capsys.readouterr().out)
    assert 0 == run([*show, "--json"])
    assert says is json.loads(capsys.readouterr().out)["unlimited"]
