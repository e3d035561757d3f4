"""`deployd services` as far as it needs no ZooKeeper: a spec that is only checked."""

import re
from pathlib import Path

import pytest

from deployd_core.cli.main import run

NOWHERE = ["--zookeeper", "127.0.0.1:1", "--connect-timeout", "100ms"]
"""Whoever asked it would fail."""

SPEC = """
[service]
root = "/srv/web"
[source]
url = "https://builds.example.com/web/{build}.tar.gz"
[[steps]]
use = "command"
argv = ["true"]
[instances]
count = 12
pattern = "web@{port}"
first_port = 8001
manager = { use = "supervisor", url="unix:///run/supervisor.sock", program = "web:{port}" }
probe = { use = "http", url = "http://127.0.0.1:{port}/health", timeout = "2s" }
warmup = ["/"]
[restart]
strategy = "concurrency"
options = { limit = "10%" }
[rollout]
budget = "5%"
"""


def check(capsys, path, *more):
    """Check a spec; the exit code, what is printed, and what is said."""
    code = run(["services", "apply", str(path), "--check", *more, *NOWHERE, "--plugins-dir", str(path.parent / "none")])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def written(tmp_path, text=SPEC):
    """A file with a spec."""
    path = tmp_path / "web.toml"
    path.write_text(text)
    return path


def test_a_checked_spec_is_shown_as_it_was_understood(tmp_path, capsys):
    """Every part is named with the plugin that does it and all its options, and what to type to write it; no ZooKeeper is asked."""
    path = written(tmp_path)

    code, output, error = check(capsys, path)

    rows = dict(re.split(" {2,}", line, maxsplit=1) for line in output.splitlines()[1:])
    assert (0, f"{path} is in order, as the spec of web:") == (code, output.splitlines()[0])
    assert ["WHAT", "service", "source", "step 1", "instances", "manager", "probe", "warmup", "limits", "strategy", "rollout"] == [
        *rows
    ]
    assert rows["source"].startswith('https: url="https://builds.example.com/web/{build}.tar.gz", ')
    assert rows["step 1"].startswith("command: ")
    assert rows["instances"].endswith("web@8009, web@8010 and 2 more")
    assert rows["manager"].startswith('supervisor: url="unix:///run/supervisor.sock", program="web:{port}"')
    assert 'limit="10%", ' in rows["strategy"]
    assert 'instances_at_once="100%"' in rows["strategy"], "a default counts as well as what was written"
    assert 'budget="5%", on_host_failure="revert"' in rows["rollout"]
    assert f"nothing was written; to write it: deployd services apply {path}\n" == error


def test_a_check_says_that_all_hosts_restart_at_once(tmp_path, capsys):
    """A strategy without a fleet limit is pointed out; and the name that was given is part of what to type."""
    path = written(tmp_path, SPEC.replace('"concurrency"', '"all-at-once"').replace('limit = "10%"', ""))

    code, output, error = check(capsys, path, "--name", "api")

    assert (0, f"{path} is in order, as the spec of api:") == (code, output.splitlines()[0])
    assert re.search(r"^strategy .*\n- +no fleet limit: all hosts at once$", output, re.MULTILINE)
    assert error.endswith(f"deployd services apply {path} --name api\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('limit = "10%"', 'limit = "many"', "[restart.options]: limit: "),
        ('limit = "10%"', "depth = 3", "[restart.options]: unknown key 'depth'"),
        ('"concurrency"', '"concurency"', "/web.toml: there is no strategy 'concurency'"),
        ("[rollout]", "[rolout]", "unknown key 'rolout', did you mean 'rollout'?"),
        ("count = 12", "count = 12\nmin_available = 12", "leaves none to restart"),
    ],
)
def test_a_check_fails_on_what_could_not_be_applied(tmp_path, capsys, old, new, message):
    """What `services apply` would refuse a check refuses, options of the strategy as well, with its exit code."""
    assert old in SPEC

    code, output, error = check(capsys, written(tmp_path, SPEC.replace(old, new)))

    assert (1, "") == (code, output)
    assert message in error


def test_a_missing_spec_is_named(tmp_path: Path, capsys):
    """A file that is not there is an error that names it."""
    code, output, error = check(capsys, tmp_path / "web.toml")

    assert (1, "", f"deployd: error: {tmp_path}/web.toml does not exist\n") == (code, output, error)
