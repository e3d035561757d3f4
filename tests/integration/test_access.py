"""A tree that one user may write and everybody may read: who agent.toml says that we are, on a real ZooKeeper."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from deployd_core import rollouts
from deployd_core.cli.main import run
from deployd_core.coordination import AgentInfo, Denied, HostStatus
from deployd_core.errors import ConfigError
from deployd_core.model import FleetLimit, Role
from deployd_core.packing import pack
from deployd_core.testing.instances import eventually
from deployd_core.testing.zookeeper import ZooKeeperServer, find_classpath, find_java, home_from_environment
from deployd_core.units import Share
from deployd_core.zookeeper import layout, members, status
from deployd_core.zookeeper.address import Identity, split_address
from deployd_core.zookeeper.coordination import ZooKeeperCoordination
from deployd_core.zookeeper.session import Session

pytestmark = pytest.mark.zookeeper

OPS = Identity(digest="ops:s3cret")
OURS = {("digest", "cdrwa"), ("world", "r")}
ANYBODYS = {("world", "cdrwa")}
SPEC = """
[service]
root = "/srv/web"
[source]
url = "file://{builds}/{{build}}.tar.gz"
[instances]
names = ["web@8001"]
manager = {{ use = "command", start = ["true"], stop = ["true"], status = ["true"] }}
[restart]
strategy = "concurrency"
options = {{ limit = 1 }}
"""

Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def open_session(zookeeper: str) -> Iterator[Callable[[Identity | None], Session]]:
    """Make sessions of somebody; they end with the test."""
    opened: list[Session] = []

    def make(identity: Identity | None = None) -> Session:
        opened.append(Session(*split_address(zookeeper), identity=identity))
        opened[-1].start()
        return opened[-1]

    yield make
    for session in opened:
        session.close()


@pytest.fixture
def typed(zookeeper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Type:
    """Type a command as the user of a password, or as nobody; its exit code, output and messages."""

    def type_(*words: str, password: str = "s3cret") -> tuple[int, str, str]:
        hosts, chroot = split_address(zookeeper)
        config, secret = tmp_path / "agent.toml", tmp_path / "password"
        secret.touch(mode=0o600)
        secret.write_text(password + "\n")
        user = f'user = "ops"\npassword_file = "{secret}"\n' if password else ""
        config.write_text(f'host = "here"\n[zookeeper]\nhosts = "{hosts}"\nchroot = "{chroot}"\n{user}')
        code = run([*words, "--config", str(config), "--plugins-dir", str(tmp_path / "none")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return type_


def apply(typed: Type, directory: Path, **how: str) -> None:
    """Make the service and two builds of it."""
    (directory / "web.toml").write_text(SPEC.format(builds=directory))
    (directory / "content").mkdir(exist_ok=True)
    for build in ("v1", "v2"):
        (directory / "content" / "VERSION").write_text(build)
        pack(directory / "content", directory / f"{build}.tar.gz", replace=True)
    assert 0 == typed("services", "apply", str(directory / "web.toml"), **how)[0]


def access_lists(address: str) -> dict[str, set[tuple[str, str]]]:
    """Who may do what with each node, as any stranger sees it."""
    letters = {"r": 1, "w": 2, "c": 4, "d": 8, "a": 16}
    client = KazooClient(address)
    client.start()
    found = {}

    def walk(path: str) -> None:
        entries = client.get_acls(path)[0]
        found[path] = {(one.id.scheme, "".join(letter for letter in "cdrwa" if one.perms & letters[letter])) for one in entries}
        for name in client.get_children(path):
            walk(f"{path.rstrip('/')}/{name}")

    try:
        walk("/")
    finally:
        client.stop()
        client.close()
    return found


def report(host: str, step: str, **more: str) -> HostStatus:
    """What a host says of itself."""
    return HostStatus(host=host, zone="zone-a", role=Role.FLEET, wanted="v1", step=step, since="2026-01-01T00:00:00Z", **more)


def ask(coordination: ZooKeeperCoordination) -> bool:
    """Whether a host gets a permit."""
    return not isinstance(coordination.take_permit(coordination.snapshot("web"), FleetLimit(hosts=Share(1))), Denied)


def roll(agent: Session, typed: Type) -> tuple[ZooKeeperCoordination, ZooKeeperCoordination]:
    """Have a host join, take a permit, and report, and another one wait; so that every kind of node is there."""
    for host in ("h1", "h2"):
        members.register(agent, "web", host, "zone-a")
        status.announce(agent, AgentInfo(host=host, instance=host, version="0.1.0"))
    assert 0 == typed("enable", "web", "v1")[0]
    holder, waiter = ZooKeeperCoordination(agent, "h1", bool), ZooKeeperCoordination(agent, "h2", bool)
    assert (True, False) == (ask(holder), ask(waiter))
    status.write_status(agent, "web", report("h1", "restarting"))
    return holder, waiter


def test_all_that_is_created_is_the_users_to_write_and_everybodys_to_read(
    open_session: Callable[..., Session], typed: Type, zookeeper: str, tmp_path: Path
) -> None:
    """Every node, be it made alone, in a transaction, ephemeral or numbered, by an agent or by a person."""
    apply(typed, tmp_path)
    roll(open_session(OPS), typed)

    found = access_lists(zookeeper)

    kinds = ("", "services", "agents", "h1", "permits", "queue", "zone-a", "status", "spec", "canary", "history")
    assert set() == set(kinds) - {path.rpartition("/")[2] for path in found}
    assert any("entry-" in path for path in found)
    assert any("/queue/zone-a/" in path for path in found)
    assert {} == {path: entries for path, entries in found.items() if entries != OURS}


def test_what_one_session_makes_another_of_the_user_takes_away(
    open_session: Callable[..., Session], typed: Type, tmp_path: Path
) -> None:
    """A permit and a report of an agent are a person's to delete, the order of a person an agent's to carry out."""
    apply(typed, tmp_path)
    person, agent = open_session(OPS), open_session(OPS)
    _, waiter = roll(agent, typed)

    assert (0, "took the permit of h1 away\n") == typed("permits", "release", "web", "h1", "--why", "test")[:2]
    assert ask(waiter)
    waiter.release_permit(waiter.snapshot("web"), report("h2", "converged", served="v1"))
    assert agent.stat(layout.ServicePaths("web").permit("h2")) is None
    agent.close()
    assert 0 == typed("hosts", "retire", "web", "h1", "--why", "test")[0]
    assert 0 == typed("services", "delete", "web", "--confirm", "web", "--force")[0]
    assert () == rollouts.list_services(person)


def test_a_stranger_reads_and_is_told_what_to_set(open_session: Callable[..., Session], typed: Type, tmp_path: Path) -> None:
    """Without a user the status can be read, and an order is refused with what is missing; nothing of it happens."""
    apply(typed, tmp_path)

    assert 0 == typed("status", "web", password="")[0]
    code, _, error = typed("enable", "web", "v1", password="")

    assert 1 == code
    assert "ZooKeeper does not allow an anonymous client to write /t-" in error
    assert "Set user and password_file in [zookeeper] of agent.toml; the node's access list: zkCli getAcl /t-" in error
    assert rollouts.read_service(open_session(), "web").enabled is None
    with pytest.raises(ConfigError, match="an anonymous client"):
        open_session().delete(layout.ServicePaths("web").history)


def test_a_wrong_password_is_said_with_the_first_thing_that_is_refused(typed: Type, tmp_path: Path) -> None:
    """ZooKeeper takes any password for that of another user: to connect and to read works."""
    apply(typed, tmp_path)

    assert 0 == typed("status", "web", password="other")[0]
    code, _, error = typed("enable", "web", "v1", password="other")

    assert 1 == code
    assert "ZooKeeper does not allow user 'ops' to write /t-" in error
    assert "Is the password right? another one makes another user; the node's access list: zkCli getAcl /t-" in error
    assert "s3cret" not in error + repr(OPS)
    assert "other" not in error.replace("another", "")


class DemandingServer(ZooKeeperServer):
    """One that turns clients away who do not say who they are."""

    def _settings(self) -> str:
        return super()._settings() + "enforce.auth.enabled=true\nenforce.auth.schemes=digest\n"


def test_an_ensemble_that_demands_a_user_says_so_to_who_has_none(tmp_path: Path) -> None:
    """It lets them connect, and turns them away at the first question."""
    with DemandingServer(tmp_path, home=home_from_environment()) as server:
        with Session(server.address, "", identity=OPS) as session:
            assert session.stat("/") is not None
        with pytest.raises(ConfigError, match="does not accept an anonymous client") as caught:
            Session(server.address, "").start()

    assert "set user and password_file in [zookeeper] of agent.toml" == caught.value.hint


def test_an_agent_with_a_wrong_password_says_so_and_is_mended_by_a_reload(typed: Type, zookeeper: str, tmp_path: Path) -> None:
    """It waits to be told another one, and does nothing under the name of who it is not."""
    apply(typed, tmp_path)
    hosts, chroot = split_address(zookeeper)
    config, secret, log = tmp_path / "h1.toml", tmp_path / "h1.password", tmp_path / "log"
    secret.touch(mode=0o600)
    secret.write_text("other")
    config.write_text(
        f'host = "h1"\nservices = ["web"]\nstate_directory = "{tmp_path}"\n'
        f'[zookeeper]\nhosts = "{hosts}"\nchroot = "{chroot}"\nuser = "ops"\npassword_file = "{secret}"\n'
    )
    command = [sys.executable, "-P", "-m", "deployd_core", "agent", "--config", str(config)]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as agent:
        try:
            assert eventually(
                lambda: f"ZooKeeper does not allow user 'ops' to write {chroot}/agents/h1 (is the password" in log.read_text()
            )
            assert "h1" not in typed("hosts", "list", "web")[1]
            secret.write_text("s3cret")
            agent.send_signal(signal.SIGHUP)
            assert eventually(lambda: "h1" in typed("hosts", "list", "web")[1])
        finally:
            agent.terminate()


@pytest.mark.parametrize(
    ("made_with", "looked_at_with", "said"),
    [
        ("s3cret", "s3cret", "ok access: user 'ops' may write /t-"),
        ("s3cret", "other", "fail access: ZooKeeper does not allow user 'ops' to write /t-"),
        ("s3cret", "", "fail access: ZooKeeper does not allow an anonymous client to write /t-"),
        ("", "s3cret", "warn access: user 'ops' may write /t-"),
        ("", "", "ok access: an anonymous client may write /t-"),
    ],
)
def test_the_doctor_says_who_we_are_and_whether_that_will_do(
    typed: Type, tmp_path: Path, zookeeper: str, made_with: str, looked_at_with: str, said: str
) -> None:
    """It tries to write what cannot be written whoever one is, and so changes nothing."""
    apply(typed, tmp_path, password=made_with)

    out = " ".join(typed("doctor", password=looked_at_with)[1].split())

    assert f"ok zookeeper: answers at {zookeeper}, in plain text" in out
    assert said in out
    assert ("so may anybody" in out) == (said.startswith("warn"))


def zkcli(address: str, *commands: str) -> str:
    """What ZooKeeper's own program says to commands."""
    hosts, chroot = split_address(address)
    lines = "\n".join(command.replace("/deployd", chroot) for command in (*commands, "quit"))
    java = [find_java(), "-cp", find_classpath(home_from_environment()), "org.apache.zookeeper.ZooKeeperMain"]
    done = subprocess.run([*java, "-server", hosts], input=lines, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def test_a_tree_is_moved_to_a_user_while_it_is_in_use(
    open_session: Callable[..., Session], typed: Type, zookeeper: str, tmp_path: Path
) -> None:
    """By what docs/agent.md says: a user first, whom an open tree lets in like anybody; then the access lists; and back again."""
    apply(typed, tmp_path, password="")
    holder, _ = roll(open_session(), typed)  # people are the user already, the agent is not
    moving = [line for line in commands_of_the_docs() if "setAcl" in line or "addauth" in line]

    zkcli(zookeeper, *(line.replace("deployd:PASSWORD", "ops:s3cret") for line in moving))

    assert {"/": OURS} == {path: entries for path, entries in access_lists(zookeeper).items() if entries != OURS} | {"/": OURS}
    with pytest.raises(ConfigError, match="an anonymous client"):
        holder.release_permit(holder.snapshot("web"), report("h1", "converged", served="v1"))
    assert 0 == typed("permits", "release", "web", "h1", "--why", "test")[0]

    zkcli(zookeeper, "addauth digest ops:s3cret", "setAcl -R /deployd world:anyone:cdrwa")

    assert {} == {path: entries for path, entries in access_lists(zookeeper).items() if entries != ANYBODYS}


def commands_of_the_docs() -> list[str]:
    """What docs/agent.md has one type into zkCli."""
    text = (Path(__file__).parents[2] / "docs" / "agent.md").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.startswith(("addauth ", "setAcl "))]
