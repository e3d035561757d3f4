"""The program itself: help, versions, errors and exit codes."""

import re

import click
import pytest

from deployd_core.cli.groups import COMMANDS, Group
from deployd_core.cli.main import run

BARE = """\
Deploy builds of services to a fleet, and restart them by pluggable
strategies.

Examples:
  deployd services apply web.toml
  deployd builds pack dist/ --build 2026.11.23-1 --out builds/
  deployd enable web 2026.11.23-1 --wait
  deployd why web

Common commands:
  enable      Enable a build of a service, for the fleet or its canary hosts.
  status      Show which build every host serves, and what it is doing.
  why         Say why hosts wait or have failed, and what to type next.
  services    Write, list and delete the specs of services.
  strategies  List, describe, preview, check and simulate strategies.
  demo        Roll a small fleet on this machine from one build to the next.

All commands: deployd --help. One of them: deployd COMMAND --help.
"""

GROUP = """\
Usage: deployd strategies [OPTIONS] COMMAND [ARGS]...

  List, describe, preview, check and simulate strategies.

Examples:
  deployd strategies list
  deployd strategies show concurrency
  deployd strategies plan web
  deployd strategies simulate concurrency

Options:
  -h, --help  Show this message and exit.

Commands:
  check     Try a strategy on hundreds of modelled hosts before a real one.
  list      List the strategies that a spec can name.
  plan      Say what the agent would do on this host now, move by move.
  show      Describe a strategy and its options.
  simulate  Run a strategy over a virtual fleet, in virtual time.
"""


def leaves():
    """Every command line that can run, as words, with its command."""
    found = {}
    for name, entry in COMMANDS.items():
        command = entry.load()
        if isinstance(command, Group):
            found |= {(name, sub): command.commands[sub] for sub in command.commands}
        else:
            found[name,] = command
    return found


def test_called_with_nothing_it_shows_the_way(capsys):
    """`deployd` alone prints a short page with examples and succeeds."""
    assert 0 == run([])

    assert (BARE, "") == tuple(capsys.readouterr())


@pytest.mark.parametrize("arguments", [["strategies"], ["strategies", "-h"], ["strategies", "--help"], ["help", "strategies"]])
def test_group_shows_its_commands(capsys, arguments):
    """A group alone, or asked for help in any way, lists its commands with examples first."""
    assert 0 == run(arguments)

    assert GROUP == capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_table_of_commands_tells_the_truth(name):
    """What the lazy table says of a command is what the command says of itself."""
    command = COMMANDS[name].load()

    assert name == command.name
    assert COMMANDS[name].summary == command.get_short_help_str(200)


@pytest.mark.parametrize("name", [name for name, entry in COMMANDS.items() if isinstance(entry.load(), Group)])
def test_the_help_of_a_group_tells_whole_sentences(capsys, name):
    """What a command is for is folded, and not cut."""
    run([name])

    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, path):
    """Each command explains itself and every option of its own, and begins with an example."""
    assert 0 == run([*path, "--help"])

    page = capsys.readouterr().out
    assert f"Examples:\n  deployd {' '.join(path)}" in page
    silent = [option.name for option in leaves()[path].params if isinstance(option, click.Option) and not option.help]
    assert [] == silent


def test_version_names_what_matters(capsys):
    """`--version` prints deployd, Python, pluggy and the API of plugins."""
    assert 0 == run(["--version"])

    assert re.fullmatch(r"deployd \S+, Python 3\.\d+\.\S+, pluggy 1\.\S+, plugin API 1\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statsu"], "there is no command 'statsu'. Did you mean 'status'? known: agent, builds, "),
        (["strategies", "lst"], "there is no command 'strategies lst'. Did you mean 'list'? known: check, list, plan, show"),
        (["strategies", "list", "--jsn"], "No such option '--jsn'"),
        (["strategies", "show"], "Missing argument 'NAME'. Try: deployd strategies show --help"),
        (["strategies", "list", "extra"], "Got unexpected extra argument (extra). Try: deployd strategies list --help"),
        (["plugins", "list", "--kind", "probes-"], "there is no kind 'probes-'; did you mean 'probe'?"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'. Try: deployd completion --help"),
        (["--debug"], "Missing command. Try: deployd --help"),
        (["status", "--connect-timeout", "5"], "is not a duration: write it with a unit"),
    ],
)
def test_wrong_usage_is_explained(capsys, arguments, message):
    """Each mistake on the command line has its message, as the last line, and exit code 2."""
    assert 2 == run(arguments)

    captured = capsys.readouterr()
    assert "" == captured.out
    assert captured.err.splitlines()[-1].startswith("deployd: error: ")
    assert message in captured.err.splitlines()[-1]


def test_named_configuration_must_exist(capsys, tmp_path):
    """An agent.toml that somebody named and is not there is an error, not a default."""
    path = tmp_path / "agent.toml"

    assert 1 == run(["strategies", "list", "--config", str(path)])

    assert f"deployd: error: {path} does not exist. Write one: see docs/agent.md\n" == capsys.readouterr().err


def test_wrong_configuration_names_the_key(capsys, tmp_path):
    """A misspelt key in agent.toml is named, with what it may have been."""
    path = tmp_path / "agent.toml"
    path.write_text('[plugins]\ndirectroy = "/x"\n')

    assert 1 == run(["strategies", "list", "--config", str(path)])

    error = capsys.readouterr().err
    assert error.startswith(f"deployd: error: {path}: unknown key 'plugins.directroy'")


def test_help_survives_a_wrong_configuration(capsys, tmp_path):
    """Help is for people in trouble: a broken agent.toml costs it the commands of plugins and nothing else."""
    path = tmp_path / "agent.toml"
    path.write_text("nonsense")

    assert 0 == run(["--config", str(path), "--help"])

    captured = capsys.readouterr()
    assert "Exit codes:" in captured.out
    assert f"deployd: warning: commands of plugins are not listed: {path} is not TOML" in captured.err


def test_debug_shows_where_an_error_came_from(capsys, tmp_path):
    """With --debug an error has its traceback before its message."""
    assert 1 == run(["strategies", "list", "--debug", "--config", str(tmp_path / "absent")])

    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("deployd: error: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_us(capsys, shell):
    """The script of each shell asks the program what may follow."""
    assert 0 == run(["completion", shell])

    assert f"_DEPLOYD_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_packing_prints_path_and_digest(capsys, tmp_path):
    """`builds pack` prints one line on standard output: the file and its digest."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_text("hello")

    assert 0 == run(["builds", "pack", str(tmp_path / "dist"), "--service", "web", "--build", "v7", "--out", str(tmp_path)])

    captured = capsys.readouterr()
    assert re.fullmatch(rf"{tmp_path}/web-v7\.tar\.gz  sha256:[0-9a-f]{{64}}\n", captured.out)
    assert re.fullmatch(r"packed 1 files and directories, 0\.\d kB; digest in web-v7\.tar\.gz\.sha256\n", captured.err)


@pytest.mark.parametrize(
    ("out", "options", "archive"),
    [
        ("builds", ["--build", "v1"], "builds/v1.tar.gz"),
        ("srv/builds/", ["--build", "v1"], "srv/builds/v1.tar.gz"),
        ("v1.rar/", ["--build", "v1", "--format", "zip"], "v1.rar/v1.zip"),
        ("v1.zip/", ["--build", "v1"], "v1.zip/v1.tar.gz"),
        ("srv/builds/web.tar.xz", [], "srv/builds/web.tar.xz"),
        ("here.d", ["--build", "v1"], "here.d/v1.tar.gz"),
    ],
)
def test_packing_makes_the_directories_that_are_missing(capsys, tmp_path, monkeypatch, out, options, archive):
    """What has no ending, or a / at its end, is a directory; one that is there may be called anything."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_text("hello")
    (tmp_path / "here.d").mkdir()
    monkeypatch.chdir(tmp_path)

    assert 0 == run(["builds", "pack", "dist", "--out", out, *options])

    assert capsys.readouterr().out.startswith(f"{archive}  sha256:")
    assert (tmp_path / archive).is_file()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--out", __file__], 2, "is neither a directory nor ends in .tar.gz"),
        (["--build", "a b"], 1, "build id 'a b' must be"),
        (["--service", "-web", "--build", "v1"], 1, "service '-web' must be"),
        (["--out", "v1.rar"], 2, "is neither a directory nor ends in .tar.gz, .tar.zst, .tar.xz, .zip"),
        (["--out", "v1.zip", "--format", "xz"], 2, "contradict each other"),
        (["--out", "v1.zip", "--build", "v1"], 2, "--out names a file"),
        (["--format", "rar"], 2, "'rar' is not one of"),
    ],
)
def test_packing_refuses_what_makes_no_sense(capsys, tmp_path, options, code, message):
    """Bad names and contradictions are refused before anything is written."""
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "index.html").write_text("hello")

    assert code == run(["builds", "pack", str(tmp_path / "dist"), *options])

    assert message in capsys.readouterr().err
