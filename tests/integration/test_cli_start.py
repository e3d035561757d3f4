"""The installed program as a process of its own: what it imports, and what other distributions do to it."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-P", "-m", "deployd_core"]
GOOD = """
from deployd_core.api import HostView, Options, Plan, Strategy, hookimpl


class Acme(Strategy[Options]):
    \"\"\"Restart as Acme does.\"\"\"

    name = "acme-restart"

    def plan(self, view: HostView) -> Plan:
        return Plan(cycle=view.stale, why="why not")


@hookimpl
def deployd_strategies():
    return [Acme]
"""


def deployd(*arguments, site=None, **environment):
    """Run the program, with further distributions in `site`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DEPLOYD_") and key != "NO_COLOR"}
    path = {"PYTHONPATH": str(site)} if site else {}
    return subprocess.run(
        [*PROGRAM, *arguments], env=clean | path | environment, capture_output=True, text=True, timeout=60, check=False
    )


def install(site, name, module, text, *, version="1.0"):
    """Lay out a distribution as an installer would."""
    (site / f"{module}.py").write_text(text)
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[deployd]\n{name} = {module}\n")


def rows(result):
    """The rows of `list --json`, by distribution."""
    assert 0 == result.returncode, result.stderr
    return {row["source"]["distribution"]: row for row in json.loads(result.stdout)["strategies"]}


def test_listing_strategies_imports_nothing_heavy():
    """`strategies list` imports neither kazoo nor psutil, structlog, Textual or importlib.metadata."""
    program = "import sys; from deployd_core.cli.main import run; run(['strategies', 'list']); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60, check=True)

    imported = set(result.stdout.splitlines()[-1].split())
    assert "deployd_strategies.concurrency" in imported
    heavy = {"kazoo", "psutil", "structlog", "textual", "importlib.metadata", "asyncio", "http.client", "ssl", "socket", "tomllib"}
    assert set() == imported & heavy


def test_installed_plugin_is_listed_with_its_distribution(tmp_path):
    """A stranger's distribution is found, and its strategy is listed under its name and version."""
    install(tmp_path, "acme-deployd", "acme_deployd", GOOD, version="0.3")

    row = rows(deployd("strategies", "list", "--json", site=tmp_path))["acme-deployd"]

    assert ("acme-restart", "ok", "0.3") == (row["name"], row["state"], row["source"]["version"])


def test_broken_distributions_cost_a_row_each(tmp_path):
    """Distributions that cannot be imported, misspell a hook or are too new leave everything else as it was."""
    install(tmp_path, "acme-good", "acme_good", GOOD)
    install(tmp_path, "acme-broken", "acme_broken", "import no_such_module")
    install(tmp_path, "acme-misspelt", "acme_misspelt", GOOD.replace("def deployd_strategies", "def deployd_stategies"))
    install(tmp_path, "acme-new", "acme_new", "DEPLOYD_API_VERSION = 99\n" + GOOD)
    install(tmp_path, "acme-exits", "acme_exits", "raise SystemExit(1)")
    install(tmp_path, "acme-missing", "acme_missing", "")
    (tmp_path / "acme_missing.py").unlink()

    found = rows(deployd("strategies", "list", "--json", site=tmp_path))

    states = {name: row["state"] for name, row in found.items() if name.startswith("acme")}
    expected = dict.fromkeys(["acme-broken", "acme-misspelt", "acme-exits", "acme-missing"], "broken")
    assert expected | {"acme-good": "ok", "acme-new": "too-new"} == states
    assert "No module named 'no_such_module'" in found["acme-broken"]["reason"]
    assert "did you mean deployd_strategies?" in found["acme-misspelt"]["reason"]


def test_built_in_keeps_its_name(tmp_path):
    """A stranger that claims the name of a built-in strategy is refused, and the built-in one stays usable."""
    install(tmp_path, "acme-thief", "acme_thief", GOOD.replace("acme-restart", "concurrency"))

    result = deployd("strategies", "list", "--json", site=tmp_path)
    shown = deployd("strategies", "show", "concurrency", site=tmp_path)

    assert "duplicate" == rows(result)["acme-thief"]["state"]
    assert "deployd_strategies.concurrency.Concurrency" in shown.stdout


def test_environment_says_where_plugins_are(tmp_path):
    """DEPLOYD_PLUGINS_DIR is used when there is no flag, and the flag wins over it."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(GOOD.replace("acme-restart", f"acme-{name}"))
    environment = {"DEPLOYD_PLUGINS_DIR": str(tmp_path / "one")}

    by_environment = deployd("strategies", "list", **environment)
    by_flag = deployd("--plugins-dir", str(tmp_path / "two"), "strategies", "list", **environment)

    assert "acme-one" in by_environment.stdout
    assert "acme-two" not in by_environment.stdout
    assert "acme-two" in by_flag.stdout
    assert "acme-one" not in by_flag.stdout


def test_pipe_has_no_colour_and_a_terminal_has():
    """Colour is for terminals, unless NO_COLOR or FORCE_COLOR say otherwise."""
    assert "\x1b[" not in deployd("strategies", "list").stdout
    assert "\x1b[32mok" in deployd("strategies", "list", FORCE_COLOR="1").stdout
    assert "\x1b[32mok" in on_terminal("strategies", "list")
    assert "\x1b[" not in on_terminal("strategies", "list", NO_COLOR="1")
    assert "\x1b[" not in on_terminal("strategies", "list", TERM="dumb")


def on_terminal(*arguments, **environment):
    """What the program writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    settings = {"TERM": "xterm", "COLUMNS": "100", "PATH": os.environ["PATH"]} | environment
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=settings)
    os.close(theirs)
    output = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                chunk = terminal.read(65536)
            except OSError:  # EIO: nobody has the other end open
                break
            if not chunk:
                break
            output += chunk
    assert 0 == process.wait(timeout=60)
    return output.decode()


@pytest.mark.parametrize(
    ("output", "code", "error"),
    [
        (">/dev/full", 1, "deployd: error: the output cannot be written: No space left on device\n"),
        (">&-", 0, ""),
    ],
)
def test_output_that_nobody_takes_is_no_fault_of_ours(output, code, error):
    """A disk that is full is told as such, and a standard output that is closed is somebody's wish."""
    done = subprocess.run(
        f"{' '.join(PROGRAM)} strategies list --plugins-dir /none {output}", shell=True, capture_output=True, text=True, check=False
    )

    assert (code, "", error) == (done.returncode, done.stdout, done.stderr)


def test_fault_of_ours_is_short_unless_asked(tmp_path):
    """An unexpected exception is one line that says where, and a traceback with --debug; it exits 1 either way."""
    (tmp_path / "fails.py").write_text(
        "import click\nfrom deployd_core.api import hookimpl\n\n"
        '@click.command("fails")\n@click.option("--debug", is_flag=True)\ndef fails(debug):\n    """Fail."""\n    {}["key"]\n\n'
        "@hookimpl\ndef deployd_commands():\n    return [fails]\n"
    )
    environment = {"DEPLOYD_PLUGINS_DIR": str(tmp_path)}

    short = deployd("fails", **environment)
    long = deployd("fails", "--debug", **environment)

    assert (1, 1) == (short.returncode, long.returncode)
    assert (
        f"deployd: internal error: KeyError: 'key' ({tmp_path}/fails.py:8). Run the same with --debug, and report it\n"
        == short.stderr
    )
    assert long.stderr.startswith("Traceback (most recent call last):")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["st"], {"status", "strategies"}),
        (["strategies", "sh"], {"show"}),
        (["strategies", "show", "c"], {"concurrency"}),
        (["plugins", "show", "probe", ""], {"command", "http", "tcp"}),
    ],
)
def test_completion_answers(words, expected):
    """The shell is told what may follow: commands, and the names of plugins."""
    result = deployd(
        _DEPLOYD_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["deployd", *words]),
        COMP_CWORD=str(len(words)),
        DEPLOYD_PLUGINS_DIR="/none",
    )

    assert (0, "") == (result.returncode, result.stderr)
    assert expected == {line.rpartition(",")[2] for line in result.stdout.splitlines()}


def test_script_is_installed():
    """The distribution installs the program `deployd`."""
    result = subprocess.run([Path(sys.executable).with_name("deployd"), "--version"], capture_output=True, text=True, check=True)

    assert result.stdout.startswith("deployd ")


@pytest.mark.parametrize("hosts", ["", "127.0.0.1:x", "127.0.0.1:70000"])
def test_a_reload_with_a_wrong_address_keeps_the_agent(tmp_path, hosts):
    """The agent says which file and key, goes on with what it had, and refuses to begin with it."""
    path = tmp_path / "agent.toml"
    text = f'host = "h1"\nstate_directory = "{tmp_path}"\n[zookeeper]\nhosts = "{{hosts}}"\n'
    path.write_text(text.format(hosts="127.0.0.1:1"))
    command = [*PROGRAM, "agent", "--config", str(path)]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(agent.stderr.readline, "")
        assert any("waiting for it" in line for line in lines)
        path.write_text(text.format(hosts=hosts))

        agent.send_signal(signal.SIGHUP)

        told = next(line for line in lines if "agent.toml" in line)
        assert f"{path}: [zookeeper] hosts: " in told
        assert "going on with the configuration as it was" in told
        assert any("waiting for it" in line for line in lines)
    finally:
        agent.terminate()
        agent.communicate(timeout=20)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (1, True) == (refused.returncode, f"{path}: [zookeeper] hosts: " in refused.stderr)
