"""agent.toml and service specs, from text into the model."""

import json
import socket
import textwrap
import tomllib

import msgspec
import pytest

from deployd_core import config
from deployd_core.api import ProbeOptions
from deployd_core.config import (
    load_agent_config,
    load_spec,
    make_reporters,
    read_toml,
    set_up,
    spec_to_json,
    spec_to_toml,
    step_timeout,
)
from deployd_core.errors import ConfigError, UnknownPlugin
from deployd_core.plugins import Plugins, convert
from deployd_core.spec import ServiceSpec
from deployd_core.units import Duration, Share, decode_unit

SPEC = """
[service]
root = "/srv/web"
[source]
url = "memory://builds/{build}.tar.gz"
[[steps]]
use = "note"
text = "hello"
timeout = "20s"
[instances]
names = ["web@8001", "web@8002"]
manager = { use = "nothing", program = "web:{port}" }
probe = { use = "always", healthy_after = 3 }
[restart]
strategy = "concurrency"
[restart.options]
limit = "25%"
"""

PLUGINS = """
from typing import Annotated

from deployd_core.api import *


class NothingOptions(Options, frozen=True, kw_only=True):
    program: Annotated[str, Meta(description="what to start")]


class Nothing(Manager[NothingOptions]):
    '''Manage nothing.'''

    name = "nothing"

    def state(self, call):
        return Status(state=State.RUNNING)

    def restart(self, call):
        pass

    start = stop = restart


class Always(Probe[ProbeOptions]):
    '''Call everything healthy.'''

    name = "always"

    def check(self, call):
        return Verdict.healthy()


class MemoryOptions(Options, frozen=True, kw_only=True):
    url: str


class Memory(Source[MemoryOptions]):
    '''Serve builds from memory.'''

    name = "memory"

    def resolve(self, call):
        raise NotFound("none")

    def fetch(self, call):
        raise NotFound("none")


class NoteOptions(StepOptions, frozen=True, kw_only=True):
    text: str


class Note(Step[NoteOptions]):
    '''Leave a note.'''

    name = "note"

    def run(self, call):
        pass


class Quiet(Reporter[Options]):
    '''Say nothing.'''

    name = "quiet"

    def report(self, event):
        pass


@hookimpl
def deployd_managers():
    return [Nothing]


@hookimpl
def deployd_probes():
    return [Always]


@hookimpl
def deployd_sources():
    return [Memory]


@hookimpl
def deployd_steps():
    return [Note]


@hookimpl
def deployd_reporters():
    return [Quiet]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    """The built-ins, and one small plugin of each kind that a spec can name."""
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "small.py").write_text(PLUGINS)
    return Plugins.load(directory=directory)


def file(path, text):
    """A file with this text."""
    path.write_text(textwrap.dedent(text))
    return path


def test_an_empty_agent_file_has_defaults(tmp_path):
    """Everything in agent.toml has a default; the host is the machine's name."""
    loaded = load_agent_config(file(tmp_path / "agent.toml", ""))

    assert (socket.gethostname(), "default", ()) == (loaded.host, loaded.zone, loaded.services)
    assert ("127.0.0.1:2181", "/deployd") == (loaded.zookeeper.hosts, loaded.zookeeper.chroot)


def test_an_agent_file_is_read(tmp_path):
    """Values with units and tables arrive as what they mean."""
    loaded = load_agent_config(
        file(
            tmp_path / "agent.toml",
            """
            host = "h1"
            zone = "rack-7"
            services = ["web", "worker"]
            observe_every = "5s"
            [zookeeper]
            hosts = "zk1:2181,zk2:2181"
            session_timeout = "4s"
            [plugins]
            disabled = ["pip-step"]
            """,
        )
    )

    assert ("h1", "rack-7", ("web", "worker"), Duration("5s")) == (loaded.host, loaded.zone, loaded.services, loaded.observe_every)
    assert ("zk1:2181,zk2:2181", Duration("4s")) == (loaded.zookeeper.hosts, loaded.zookeeper.session_timeout)
    assert ("pip-step",) == loaded.plugins.disabled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('host = "a/b"', "host 'a/b' must be"),
        ('host = "h"\nzone = ""', "zone '' must be"),
        ('host = "h"\nservices = ["../etc"]', r"service '\.\./etc' must be"),
        ("hots = 1", "unknown key 'hots', did you mean 'host'"),
        ("observe_every = 30", "observe_every: 30 needs a unit"),
        ('[zookeeper]\nchroot = "deployd"', "zookeeper.chroot: "),
        ('[zookeeper]\nchroot = "/deployd/"', "zookeeper.chroot: "),
        ('host = "h"\n[zookeeper]\nsession_timeout = "0s"', "zookeeper.session_timeout is 0s, which is less than 1s"),
        ('host = "h"\n[zookeeper]\nuser = "a:b"\npassword_file = "p"', "zookeeper.user: "),
        ('host = "h"\n[zookeeper]\nuser = "a"', "zookeeper.user is of no use without zookeeper.password_file"),
        ('host = "h"\n[zookeeper]\npassword_file = "p"', "zookeeper.password_file is of no use without zookeeper.user"),
        ('host = "h"\n[zookeeper]\nca = "c"\nkey = "k"', "zookeeper.key is of no use without zookeeper.certificate"),
        ('host = "h"\n[zookeeper]\ncertificate = "c"', "zookeeper.certificate is of no use without zookeeper.ca"),
        ("host = ", "is not TOML: Invalid value"),
        ('host = "h"\nhost = "h"', "is not TOML"),
    ],
)
def test_a_wrong_agent_file_is_refused(tmp_path, text, message):
    """The error names the file, the key, and what is wrong with it."""
    path = file(tmp_path / "agent.toml", text)

    with pytest.raises(ConfigError, match=message) as caught:
        load_agent_config(path)

    assert str(caught.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path):
    """A file that is not there is an error of ours."""
    with pytest.raises(ConfigError, match=f"^{tmp_path}/agent.toml does not exist$"):
        read_toml(tmp_path / "agent.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A directory in the place of a file is an error of ours, with the system's reason."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    """TOML is UTF-8."""
    (tmp_path / "agent.toml").write_bytes(b'host = "\xff"')

    with pytest.raises(ConfigError, match="is not TOML"):
        read_toml(tmp_path / "agent.toml")


def test_a_spec_becomes_its_plugins(tmp_path, plugins):
    """Each table of a spec is the plugin it names, with its own options; a source may be named by the scheme of its URL."""
    spec = load_spec(file(tmp_path / "web.toml", SPEC), plugins, "web")

    setup = set_up(spec, "web", plugins)

    assert ["concurrency", "memory", "note", "nothing", "always"] == [
        bound.name for bound in (setup.strategy, setup.source, *setup.steps, setup.manager, setup.probe)
    ]
    assert Share("25%") == setup.strategy.plugin.options.limit
    assert "web:{port}" == setup.manager.plugin.options.program
    assert 3 == setup.probe_options.healthy_after
    assert [8001, 8002] == [instance.port for instance in setup.instances]
    assert 20.0 == step_timeout(setup.steps[0])
    assert setup.gate is None


def test_without_a_probe_its_defaults_count(tmp_path, plugins):
    """What the core asks of the probe's options has an answer without one."""
    text = "\n".join(line for line in SPEC.splitlines() if not line.startswith("probe"))
    spec = load_spec(file(tmp_path / "web.toml", text), plugins, "web")

    assert ProbeOptions() == set_up(spec, "web", plugins).probe_options


def test_a_spec_survives_being_stored(tmp_path, plugins):
    """The JSON in the spec node decodes to the spec that was written, and reads like the file."""
    spec = load_spec(file(tmp_path / "web.toml", SPEC), plugins, "web")

    stored = spec_to_json(spec)

    assert spec == msgspec.json.decode(stored, type=ServiceSpec, dec_hook=decode_unit)
    assert "25%" == json.loads(stored)["restart"]["options"]["limit"]


EVERY_TABLE = (
    SPEC
    + """
[rollout]
budget = 0
ramp = [1, "10%"]
bake = "90s"
canary_first = true
on_budget = "rollback"
windows = { allow = ["Mon-Fri 09:00-16:00"], takes = "1m30s" }
"""
)


@pytest.mark.parametrize(
    "text",
    [
        SPEC,
        EVERY_TABLE,
        SPEC.replace('"hello"', "'a \"quoted\"\\ path'"),
        SPEC.replace("[instances]", "[instances]\nwarmup = { paths = ['/'], rounds = 3 }"),
        SPEC.replace('names = ["web@8001", "web@8002"]', 'count = 2\npattern = "web@{port}"\nfirst_port = 8001'),
        SPEC.replace('root = "/srv/web"', 'root = "/srv/web"\nkeep_bytes = "2GiB"\nkeep_releases = 5'),
    ],
)
def test_a_spec_is_the_same_when_it_is_written_as_a_file_again(tmp_path, plugins, text):
    """What `services show --toml` prints is read as the very spec that it was printed from."""
    spec = load_spec(file(tmp_path / "web.toml", text), plugins, "web")

    again = load_spec(file(tmp_path / "again.toml", spec_to_toml(spec)), plugins, "web")

    assert spec == again


def test_a_spec_is_written_without_its_defaults(tmp_path, plugins):
    """Whoever reads it sees what somebody chose, and nothing else."""
    spec = load_spec(file(tmp_path / "web.toml", EVERY_TABLE), plugins, "web")

    written = tomllib.loads(spec_to_toml(spec))

    assert {"root": "/srv/web"} == written["service"]
    assert {
        "ramp": ["1", "10%"],
        "bake": "1m30s",
        "canary_first": True,
        "on_budget": "rollback",
        "windows": {"allow": ["Mon-Fri 09:00-16:00"], "takes": "1m30s"},
    } == written["rollout"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"/srv/web"', '"srv/web"', r"\[service\] root 'srv/web' must be an absolute path"),
        ('"/srv/web"', '"/"', r"\[service\] root '/' must be an absolute path below /"),
        ('strategy = "concurrency"', 'strategy = "concurency"', "there is no strategy 'concurency'"),
        ('limit = "25%"', "limit = 2.5", r"\[restart.options\]: limit: 2.5 needs a unit"),
        ('limit = "25%"', "depth = 2", r"\[restart.options\]: unknown key 'depth'"),
        ('use = "nothing"', 'use = "systemt"', "there is no manager 'systemt'"),
        ('use = "nothing", ', "", r"\[instances\] manager does not say which manager"),
        ("healthy_after = 3", "healthy_after = 0", r"\[instances\] probe: healthy_after: expected `int` >= 1"),
        ('manager = { use = "nothing", program = "web:{port}" }', "", r"\[instances\] has no manager"),
        (', program = "web:{port}"', "", r"\[instances\] manager: program is missing"),
        ('text = "hello"', "text = 5", r"\[\[steps\]\] 1: text: expected `str`"),
        ('"memory://builds/{build}.tar.gz"', '"gopher://builds"', "there is no source 'gopher'"),
        ('url = "memory://builds/{build}.tar.gz"', "", r"\[source\] does not say which source"),
        ("[restart]", "[restarts]", "unknown key 'restarts', did you mean 'restart'"),
        ('"web@8002"', '"web@8001"', "names one instance twice"),
    ],
)
def test_a_wrong_spec_is_refused(tmp_path, plugins, old, new, message):
    """Whatever is wrong in a spec, the error says in which table, at which key."""
    assert old in SPEC
    path = file(tmp_path / "web.toml", SPEC.replace(old, new))

    with pytest.raises((ConfigError, UnknownPlugin), match=message):
        load_spec(path, plugins, "web")


@pytest.mark.parametrize(("floor", "refused"), [("1", False), ('"50%"', False), ('"51%"', True), ("2", True), ("3", True)])
def test_a_floor_that_leaves_none_to_restart_is_refused(tmp_path, plugins, floor, refused):
    """A spec under which no instance of a host could restart, ever, is refused before it is written, with its arithmetic."""
    path = file(tmp_path / "web.toml", SPEC.replace("[instances]", f"[instances]\nmin_available = {floor}"))

    try:
        load_spec(path, plugins, "web")
        said = ""
    except ConfigError as error:
        said = error.message

    assert refused is ("[instances] min_available keeps 2 of 2 instances up, which leaves none" in said or "keeps 3 of 2" in said)


def test_a_service_must_have_a_name_that_can_be_a_node(tmp_path, plugins):
    """The service of a spec is checked like every name."""
    with pytest.raises(ConfigError, match="service 'a/b'"):
        load_spec(file(tmp_path / "web.toml", SPEC), plugins, "a/b")


def test_a_changed_step_has_another_marker(tmp_path, plugins):
    """A step runs again when its options or its place change, and only then."""

    def markers(*steps):
        table = {"service": {"root": "/srv/web"}, "source": {"url": "memory:x"}, "steps": steps}
        return set_up(convert(table, ServiceSpec, where="t"), "web", plugins).step_markers

    note, other = {"use": "note", "text": "a"}, {"use": "note", "text": "b"}

    assert markers(note) == markers(dict(reversed(note.items())))
    assert markers(note) != markers(other)
    assert len({*markers(note, other, note)}) == 3
    assert markers(note, other)[0].startswith("01-note-")


def test_reporters_are_made_from_the_agent_file(plugins):
    """Each [[reporters]] table is the reporter it names."""
    made = make_reporters(convert({"reporters": [{"use": "quiet"}]}, config.AgentConfig, where="agent.toml"), plugins)

    assert ["quiet"] == [reporter.name for reporter in made]


def test_an_unknown_reporter_is_refused(plugins):
    """A reporter that nobody has is an error that names it."""
    with pytest.raises(UnknownPlugin, match="there is no reporter 'loud'"):
        make_reporters(convert({"reporters": [{"use": "loud"}]}, config.AgentConfig, where="agent.toml"), plugins)
