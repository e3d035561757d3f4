"""What people type, against a real ZooKeeper: services, enable, status, why, hosts."""

import getpass
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from msgspec.structs import replace

from deployd_core import rollouts
from deployd_core.cli import output
from deployd_core.cli.exits import Exit
from deployd_core.cli.main import run
from deployd_core.model import Role
from deployd_core.spec import RestartTable
from deployd_core.testing.zookeeper import ZooKeeperServer, home_from_environment

pytestmark = pytest.mark.zookeeper


def test_service_is_created_changed_and_left_alone(desk):
    """`services apply` says what it did, also when that was nothing."""
    path = desk.spec()

    created, again = desk.type("services", "apply", path), desk.type("services", "apply", path)
    desk.spec(old="limit = 1", new="limit = 2")
    changed = desk.type("services", "apply", path)

    assert (0, "web created\n") == created[:2]
    assert (0, "web unchanged\n") == again[:2]
    assert (0, "web changed\n") == changed[:2]
    assert "next: deployd enable web BUILD" in created[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('strategy = "concurrency"', 'strategy = "concurency"', "there is no strategy 'concurency'. Did you mean 'concurrency'?"),
        ("limit = 1", 'limit = "many"', "[restart.options]"),
        ("limit = 1", "min_available = 2", "[restart] strategy concurrency could restart no instance: min_available keeps 2 of 2"),
        ("limit = 1", "limits = 1", "unknown key 'limits', did you mean 'limit'?"),
        ('root = "/srv/{name}"', 'root = "srv"', "must be an absolute path"),
        ("[service]", "[servce]", "'servce'"),
        ("[service]", "service", "is not TOML"),
    ],
)
def test_wrong_spec_is_not_written(desk, old, new, message):
    """A mistake in a spec is explained, and ZooKeeper does not even get the chroot."""
    code, output, error = desk.type("services", "apply", desk.spec(old=old, new=new))

    assert (1, "") == (code, output)
    assert message in error
    assert desk.session.stat("/") is None


def test_services_are_listed_and_shown(desk):
    """`services list` has a line per service, `show` the spec as it is stored, and both speak JSON."""
    desk.apply("h1")
    desk.apply(service="api")
    desk.build("v1")
    assert 0 == desk.type("enable", "web", "v1")[0]

    listed = desk.type("services", "list")[1].splitlines()
    as_json = json.loads(desk.type("services", "list", "--json")[1])
    shown = json.loads(desk.type("services", "show", "web")[1])
    shown_as_json = json.loads(desk.type("services", "show", "web", "--json")[1])

    assert ["NAME", "ENABLED", "CANARY", "STRATEGY", "HOSTS", "ROLLOUT"] == listed[0].split()
    assert [["api", "-", "-", "concurrency", "0", "open"], ["web", "v1", "-", "concurrency", "1", "open"]] == [
        line.split() for line in listed[1:]
    ]
    assert "deployd.services.list/1" == as_json["schema"]
    assert ["api", "web"] == [service["name"] for service in as_json["services"]]
    assert "/srv/web" == shown["service"]["root"]
    assert shown == shown_as_json["spec"]


def test_spec_that_is_shown_as_toml_is_applied_unchanged(desk):
    """What `services show --toml` prints is the spec: applied again it changes nothing, and with --check nothing is written."""
    desk.apply(more="[rollout]\nramp = [1, '10%']\nbake = '90s'\n[rollout.windows]\nallow = ['Mon-Fri 09:00-16:00']\n")
    desk.apply(service="api")

    for service in ("web", "api"):
        (desk.directory / "copy.toml").write_text(desk.type("services", "show", service, "--toml")[1])
        again = desk.type("services", "apply", str(desk.directory / "copy.toml"), "--name", service)
        assert (0, f"{service} unchanged\n") == again[:2]

    (desk.directory / "web.toml").write_text(desk.type("services", "show", "api", "--toml")[1])
    checked = desk.type("services", "apply", str(desk.directory / "web.toml"), "--check")
    assert (0, "/srv/web") == (checked[0], rollouts.read_service(desk.session, "web").spec.service.root)
    assert 2 == desk.type("services", "show", "web", "--toml", "--json")[0]


def test_service_without_a_spec_says_which_command_writes_it(desk):
    """A node that is empty, or holds nonsense, is named with the command that mends it, by every verb that needs the spec."""
    desk.apply("h1")
    for data, why in ((b"", "the spec of web is empty"), (b"nonsense", "the spec of web cannot be read: node ")):
        desk.session.set("/services/web/spec", data)
        for verb in (["enable", "web", "v1"], ["services", "show", "web"], ["services", "show", "web", "--toml"]):
            code, output, error = desk.type(*verb)

            assert (1, "") == (code, output), verb
            assert error.startswith(f"deployd: error: {why}"), error
            assert error.endswith("Try: deployd services apply web.toml\n"), error


def test_service_is_deleted_by_those_who_mean_it(desk):
    """Deleting asks for the name, and for --force while hosts are registered."""
    desk.apply("h1")

    unsure, wrong = desk.type("services", "delete", "web"), desk.type("services", "delete", "web", "--confirm", "api")
    in_use = desk.type("services", "delete", "web", "--confirm", "web")
    meant = desk.type("services", "delete", "web", "--confirm", "web", "--force")

    assert (2, 2, 1, 0) == (unsure[0], wrong[0], in_use[0], meant[0])
    assert "nothing was deleted" in unsure[2]
    assert "h1" in in_use[2]
    assert "no service 'web'" in desk.type("services", "show", "web")[2]


def test_enabling_pins_the_published_digest(desk):
    """`enable` writes the digest that lies beside the build, and who did it."""
    desk.apply("h1")
    digest = desk.build("v1")

    code, output, error = desk.type("enable", "web", "v1")

    enabled = rollouts.read_service(desk.session, "web").enabled
    assert (0, f"enabled v1 for the fleet of web, {digest}\n") == (code, output)
    assert "watch it: deployd status web --watch\n" == error
    assert ("v1", digest) == (enabled.build, enabled.digest)
    assert f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}" == enabled.by


def test_enabling_fetches_what_has_no_digest(desk):
    """Without a published digest the build is fetched once, and what it is now gets pinned."""
    desk.apply("h1")
    digest = desk.build("v1")
    (desk.builds / "v1.tar.gz.sha256").unlink()

    code, output, error = desk.type("enable", "web", "v1", "--by", "ann")

    assert (0, f"enabled v1 for the fleet of web, {digest}\n") == (code, output)
    assert "publishes no digest: fetching it" in error
    assert "ann" == rollouts.read_service(desk.session, "web").enabled.by


OTHER = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["web", "v9"], 1, "there is no build 'v9' of web"),
        (["wbe", "v1"], 1, "no service 'wbe'; known: web. Did you mean 'web'?"),
        (["web", "../v1"], 1, "build id '../v1' must be"),
        (["web", "v1", "--digest", "sha256:12"], 1, "digest 'sha256:12' must be"),
        (["web", "v1", "--digest", OTHER], 1, f"not with {OTHER}. Leave --digest out"),
        (["web", "v1", "--no-check"], 2, "--no-check needs --digest"),
        (["web", "v1", "--wait", "--timeout", "10"], 2, "is not a duration"),
        (["web"], 2, "Missing argument 'BUILD'"),
    ],
)
def test_what_cannot_be_enabled_is_refused(desk, arguments, code, message):
    """Each impossible wish has its message and exit code, and nothing is enabled."""
    desk.apply("h1")
    desk.build("v1")

    refused = desk.type("enable", *arguments)

    assert (code, "") == refused[:2]
    assert message in refused[2]
    assert rollouts.read_service(desk.session, "web").enabled is None


def test_enabling_asks_the_strategy_of_the_stored_spec(desk):
    """A spec that was stored with options under which nothing could ever restart is refused when a build is enabled."""
    desk.apply("h1")
    desk.build("v1")
    spec = rollouts.read_service(desk.session, "web").spec
    floor = RestartTable(strategy="concurrency", options={"limit": 1, "min_available": "100%"})
    rollouts.apply_spec(desk.session, "web", replace(spec, restart=floor))

    code, output, error = desk.type("enable", "web", "v1")

    assert (1, "") == (code, output)
    assert "web: [restart] strategy concurrency could restart no instance: min_available keeps 2 of 2 instances up" in error
    assert "Try: deployd services show web --toml (prints it as a file" in error
    assert rollouts.read_service(desk.session, "web").enabled is None


def test_build_id_names_one_artifact_for_ever(desk):
    """A build that was enabled with one digest is not enabled with another."""
    desk.apply("h1")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    desk.build("v1", "something else")

    code, _, error = desk.type("enable", "web", "v1")

    assert 1 == code
    assert "build 'v1' was enabled with sha256:" in error
    assert ". Publish it under a new id" in error


def test_source_out_of_reach_can_be_vouched_for(desk):
    """With --no-check nobody looks at the source, and the given digest is pinned."""
    desk.apply("h1")

    code, output, _ = desk.type("enable", "web", "v7", "--digest", OTHER, "--no-check")

    assert (0, f"enabled v7 for the fleet of web, {OTHER}\n") == (code, output)


def test_enabling_warns_of_what_stands_in_the_way(desk):
    """No host, no canary host, a freeze: enabling goes through and says so."""
    desk.apply()
    desk.build("v1")
    rollouts.freeze(desk.session, by="ann", why="holidays")

    fleet, canary = desk.type("enable", "web", "v1"), desk.type("enable", "web", "v1", "--canary")

    assert (0, 0) == (fleet[0], canary[0])
    assert "warning: web has no host: one registers itself when its agent starts" in fleet[2]
    assert "warning: nothing restarts for now: every service is frozen by ann: holidays" in fleet[2]
    assert "warning: web has no canary host; choose one: deployd hosts role web HOST canary" in canary[2]


def test_waiting_ends_when_every_host_serves_the_build(desk):
    """In a pipe `enable --wait` prints a line per change and exits 0 when the last host is done."""
    desk.apply("h1", "h2")
    desk.build("v1")

    def roll():
        while rollouts.read_service(desk.session, "web").enabled is None:
            time.sleep(0.01)
        for host in ("h1", "h2"):
            for step in ("fetching", "waiting", "restarting", "converged"):
                desk.report(host, step, reason=f"{step} it")
                time.sleep(0.25)

    agents = threading.Thread(target=roll)
    agents.start()
    code, output, _ = desk.type("enable", "web", "v1", "--wait", "--timeout", "1m")
    agents.join()

    lines = output.splitlines()
    assert 0 == code
    assert all(re.match(r"\d\d:\d\d:\d\d web h[12] [a-z]+", line) for line in lines[1:-1])
    assert any(line.endswith(" web h1 restarting: restarting it") for line in lines)
    assert lines[-2].endswith(" web h2 converged")
    assert "2 of 2 hosts of web serve v1" == lines[-1]


def test_waiting_ends_in_time(desk):
    """Past --timeout it says who lacks the build and why, exits 3, and the build stays enabled."""
    desk.apply("h1", "h2")
    desk.build("v1")

    code, _, error = desk.type("enable", "web", "v1", "--wait", "--timeout", "700ms")

    assert Exit.LATE == code
    assert "  h1 unaware: has not reported on this rollout yet\n" in error
    assert error.endswith("deployd: error: 0 of 2 hosts serve v1 after 700ms; the rollout goes on. Try: deployd why web\n")
    assert "v1" == rollouts.read_service(desk.session, "web").enabled.build


def test_waiting_without_hosts_ends_in_time(desk):
    """A service without hosts does not converge by having nothing to do."""
    desk.apply()
    desk.build("v1")

    code, _, error = desk.type("enable", "web", "v1", "--wait", "--timeout", "500ms")

    assert Exit.LATE == code
    assert "no host has registered for it after 500ms" in error


def act_when_enabled(desk, act):
    """Run `act` on a thread of its own once a build is enabled."""

    def wait_and_act():
        while rollouts.read_service(desk.session, "web").enabled is None:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (lambda desk: rollouts.pause(desk.session, "web", by="ann", why="lunch"), "the rollout is paused by ann: lunch"),
        (lambda desk: rollouts.freeze(desk.session, by="bob", why="outage"), "every service is frozen by bob: outage"),
        (lambda desk: rollouts.enable(desk.session, "web", "v2", OTHER, by="eve"), "v2 was enabled by eve meanwhile"),
    ],
    ids=["paused", "frozen", "superseded"],
)
def test_waiting_ends_when_somebody_holds_it(desk, stop, message):
    """A pause, a freeze or another build ends the wait with exit code 4, and says who and why."""
    desk.apply("h1")
    desk.build("v1")

    thread = act_when_enabled(desk, lambda: stop(desk))
    code, _, error = desk.type("enable", "web", "v1", "--wait", "--timeout", "1m")
    thread.join()

    assert Exit.HELD == code
    assert message in error


def test_waiting_ends_when_nobody_gets_further(desk):
    """When every host that is left is blocked, there is nothing to wait for."""
    desk.apply("h1", "h2")
    desk.build("v1")

    def fail():
        desk.report("h1", "converged")
        desk.report("h2", "blocked", reason="the archive is hostile")

    thread = act_when_enabled(desk, fail)
    code, _, error = desk.type("enable", "web", "v1", "--wait", "--timeout", "1m")
    thread.join()

    assert Exit.FAILED == code
    assert "  h2 blocked: the archive is hostile\n" in error
    assert "1 of 2 hosts serve v1, and no other gets further by itself. Try: deployd why web\n" in error


def test_canary_hosts_are_waited_for_alone(desk):
    """`enable --canary --wait` ends when the canary hosts are done, whatever the fleet does."""
    desk.apply("h1", "h2")
    desk.build("v1")
    assert (0, "h2 is now a canary host of web\n") == desk.type("hosts", "role", "web", "h2", "canary")[:2]

    thread = threading.Thread(target=lambda: (wait_for_canary(desk), desk.report("h2", "converged")))
    thread.start()
    code, output, _ = desk.type("enable", "web", "v1", "--canary", "--wait", "--timeout", "1m")
    thread.join()

    assert 0 == code
    assert "1 of 1 hosts of web serve v1" == output.splitlines()[-1]


def wait_for_canary(desk):
    """Return once a build is enabled for the canary hosts."""
    while rollouts.read_service(desk.session, "web").canary is None:
        time.sleep(0.01)


def test_status_is_a_table_per_service(desk):
    """`status` says what is enabled, counts the hosts by state, and has a row per host with step, since and reason."""
    desk.apply("h1", "h2", "h3")
    desk.build("v1")
    desk.type("enable", "web", "v1", "--by", "ann")
    desk.report("h1", "converged")
    desk.report("h2", "waiting", reason="1 of 1 permits are held: h3")

    code, output, _ = desk.type("status")

    lines = output.splitlines()
    assert 0 == code
    assert re.fullmatch(r"web: v1 enabled by ann \d+s ago", lines[0])
    assert "  1 converged, 1 waiting, 1 unaware" == lines[1]
    assert ["HOST", "ROLE", "ZONE", "STEP", "SINCE", "SERVES", "READY", "REASON"] == lines[2].split()
    assert re.fullmatch(r"h1 +fleet +zone-a +converged +\d+s +v1 +2/2 +-", lines[3])
    assert re.fullmatch(r"h2 +fleet +zone-a +waiting +\d+s +- +2/2 +1 of 1 permits are held: h3", lines[4])
    assert re.fullmatch(r"h3 +fleet +zone-a +unaware +- +- +- +has not reported on this rollout yet", lines[5])


def test_dead_agents_are_marked(desk):
    """A host whose agent is gone is dead when it was not done, and marked when it was."""
    desk.apply("h1", "h2")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    desk.report("h1", "converged")
    desk.report("h2", "restarting")
    desk.session.close()

    _, output, _ = desk.type("status", "web")

    assert re.search(r"^h1 .* converged, agent dead ", output, re.MULTILINE)
    assert re.search(r"^h2 .* dead .* its agent is not running; it last said: restarting v1$", output, re.MULTILINE)


def test_status_as_json_has_every_host(desk):
    """The JSON of `status` has the counts, and for each host what it reported."""
    desk.apply("h1")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    desk.report("h1", "restarting", reason="web@8001 is starting", deadline="2100-01-01T00:00:00Z")

    body = json.loads(desk.type("status", "web", "--json")[1])

    [service] = body["services"]
    [host] = service["hosts"]
    assert "deployd.status/1" == body["schema"]
    assert {"restarting": 1} == service["counts"]
    assert ("h1", True, "restarting", "web@8001 is starting", "v1") == tuple(
        host[key] for key in ("host", "alive", "state", "reason", "wanted")
    )
    assert ["web@8001", "web@8002"] == [instance["name"] for instance in host["instances"]]


def test_status_without_services_says_how_to_make_one(desk):
    """With no service at all the next command is named."""
    desk.apply()
    desk.type("services", "delete", "web", "--confirm", "web")

    assert (0, "There is no service yet. Make one: deployd services apply FILE\n") == desk.type("status")[:2]
    assert (0, "There is no service yet. Make one: deployd services apply FILE\n") == desk.type("services", "list")[:2]


def test_a_service_without_hosts_says_how_they_come(desk):
    """No empty table."""
    desk.apply()

    assert (0, "web has no host: one registers itself when its agent starts.\n") == desk.type("hosts", "list", "web")[:2]


def test_why_explains_every_host_that_is_not_done(desk):
    """`why` has the reason, since when, until when, the last error and what to type, and leaves out who is done."""
    desk.apply("h1", "h2", "h3")
    desk.build("v1")
    desk.build("v2")
    desk.type("enable", "web", "v1")
    desk.type("enable", "web", "v2")
    desk.report("h1", "converged")
    desk.report("h2", "waiting", reason="1 of 1 permits are held: h3", deadline="2100-01-01T00:00:00+00:00")
    desk.report("h3", "failed", reason="web@8001 did not get healthy", last_error="connection refused")

    code, output, _ = desk.type("why", "web")

    assert 0 == code
    assert "h1" not in output
    assert re.search(
        r"^h2: v2 waiting since \S+ \(\d+s\)\n  reason 1 of 1 permits are held: h3\n  until  2100-\S+ \(in \d+d\)\n", output, re.M
    )
    assert (
        "  error  connection refused\n  next   mend h3, then deployd retry web\n         or deployd enable web BUILD takes"
        in output
    )


def test_why_of_one_host(desk):
    """`why SERVICE HOST` speaks of that host alone, and asks what was meant by an unknown one."""
    desk.apply("web-1", "web-2")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    desk.report("web-1", "converged")

    known, unknown = desk.type("why", "web", "web-1"), desk.type("why", "web", "web-11")

    assert known[1].startswith("web-1: v1 converged since ")
    assert (1, "deployd: error: no host 'web-11' in service 'web'; known: web-1, web-2. Did you mean 'web-1'?\n") == (
        unknown[0],
        unknown[2],
    )


def test_why_begins_with_who_stopped_everything(desk):
    """A pause comes first, with what to type to go on; hosts that have not heard of the build are named after it."""
    desk.apply("h1")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    rollouts.pause(desk.session, "web", by="ann", why="lunch")

    output = desk.type("why", "web")[1]

    assert output.startswith("web: the rollout is paused by ann: lunch\n  next   deployd resume web\nh1: v1 unaware\n")


@pytest.mark.parametrize(
    ("hosts", "enabled", "message"),
    [
        ([], False, "Nothing is enabled for web. Enable a build: deployd enable web BUILD\n"),
        ([], True, "web has no host: one registers itself when its agent starts.\n"),
        (["h1"], True, "All 1 hosts of web serve what they should.\n"),
    ],
)
def test_why_has_an_answer_when_nobody_waits(desk, hosts, enabled, message):
    """When there is nothing to explain, that is said."""
    desk.apply(*hosts)
    desk.build("v1")
    if enabled:
        desk.type("enable", "web", "v1")
    for host in hosts:
        desk.report(host, "converged")

    assert message == desk.type("why", "web")[1]


def test_hosts_are_listed_with_their_agents(desk):
    """`hosts list` has role, zone, agent and what each serves, and speaks JSON."""
    desk.apply("h1")
    desk.build("v1")
    desk.type("enable", "web", "v1")
    desk.report("h1", "converged")

    lines = desk.type("hosts", "list", "web")[1].splitlines()
    body = json.loads(desk.type("hosts", "list", "web", "--json")[1])

    assert ["h1", "fleet", "zone-a", "running", "0.1.0", "v1", "-"] == lines[1].split()
    assert "deployd.hosts.list/1" == body["schema"]
    known = {"host": "h1", "role": "fleet", "zone": "zone-a", "alive": True, "agent": "0.1.0", "served": "v1"}
    assert [known | {"down": False, "excused": None, "permit_since": None}] == body["hosts"]


def test_roles_change_what_a_host_follows(desk):
    """A role is set once, repeated without harm, and refused for a host that is not there."""
    desk.apply("h1")

    first, again = desk.type("hosts", "role", "web", "h1", "canary"), desk.type("hosts", "role", "web", "h1", "canary")
    unknown = desk.type("hosts", "role", "web", "h2", "canary")

    assert "h1 is now a canary host of web\n" == first[1]
    assert "h1 is already a canary host of web\n" == again[1]
    assert Role.CANARY is rollouts.statuses(desk.session, "web")[0].role
    assert 1 == unknown[0]
    assert "no host 'h2' in service 'web'" in unknown[2]


def test_missing_chroot_is_not_created_by_looking(desk):
    """A mistyped chroot is an error with what to do, and stays missing."""
    code, _, error = desk.type("status")

    assert 1 == code
    assert "has no node /t-" in error
    assert desk.session.stat("/") is None


@pytest.mark.parametrize(
    "arguments", [["status"], ["enable", "web", "v1"], ["services", "list"], ["hosts", "list", "web"], ["why", "web"]]
)
def test_silent_zookeeper_is_an_error_in_bounded_time(capsys, arguments):
    """When nobody answers, the address, the reason and where the address comes from are said, and the exit code is 1."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"

        code = run([*arguments, "--zookeeper", f"{address}/x", "--connect-timeout", "300ms"])

    error = capsys.readouterr().err
    assert 1 == code
    assert f"deployd: error: ZooKeeper at {address} does not answer" in error
    assert "gave up after 300ms. Is it running? The address is from --zookeeper" in error


def test_address_that_is_none_is_refused(capsys):
    """A malformed --zookeeper is refused before anything is tried."""
    assert 1 == run(["status", "--zookeeper", "/deployd"])

    assert "is not host:port" in capsys.readouterr().err


def spawn(desk, *arguments, **options):
    """The program as a process of its own."""
    environment = {"PATH": os.environ["PATH"], "DEPLOYD_ZOOKEEPER": desk.address, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    return subprocess.Popen([sys.executable, "-P", "-u", "-m", "deployd_core", *arguments], env=environment, **options)


def test_interrupting_the_wait_leaves_the_rollout_going(desk):
    """Ctrl-C ends the view with exit code 130, says that the rollout goes on, and leaves the build enabled."""
    desk.apply("h1")
    desk.build("v1")

    process = spawn(desk, "enable", "web", "v1", "--wait", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "unaware" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)

    assert Exit.INTERRUPTED == process.returncode
    assert "the rollout of v1 goes on without you. Watch it: deployd status web --watch" in error
    assert "Traceback" not in error
    assert "v1" == rollouts.read_service(desk.session, "web").enabled.build


def test_terminal_shows_bars_in_place(desk):
    """On a terminal the wait draws a bar per state over the last one, in colour."""
    desk.apply("h1", "h2")
    desk.build("v1")
    ours, theirs = pty.openpty()
    process = spawn(desk, "enable", "web", "v1", "--wait", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = ""

    def read_until(text):
        nonlocal output
        while text not in output:
            assert select.select([ours], [], [], 30)[0], output
            output += os.read(ours, 65536).decode()

    read_until("unaware")
    desk.report("h1", "converged")
    read_until("1 of 2 hosts")
    desk.report("h2", "converged")
    read_until("2 of 2 hosts of web serve v1")
    os.close(ours)

    assert 0 == process.wait(timeout=30)
    assert "\x1b[32m█" in output  # a green bar
    assert re.search(r"\x1b\[\d+F\x1b\[J", output)  # back to the first line of the last drawing


@pytest.mark.parametrize(
    "verb",
    [
        ["status"],
        ["status", "web"],
        ["why", "web"],
        ["history", "web"],
        ["hosts", "list", "web"],
        ["services", "list"],
        ["enable", "web", "v2", "--canary"],
        ["resume", "web"],
    ],
    ids=" ".join,
)
def test_screens_of_a_fleet_fit_into_80_columns(desk, monkeypatch, verb):
    """Whatever people and hosts have to say, nothing runs over the edge of a terminal; in a pipe it is in one line."""
    words = "the certificate on the load balancers of this site has to be renewed by Monday, and by nobody but ann"
    desk.apply("h1", "h2", "h3")
    desk.build("v1")
    desk.build("v2")
    desk.type("enable", "web", "v1", "--why", words)
    desk.take("h1")
    desk.fail("h1", words)
    desk.take("h2")
    desk.die("h3")
    desk.type("hosts", "excuse", "web", "h3", "--why", words)
    if verb[0] not in ("enable", "resume"):  # those two can be done once
        assert max(map(len, desk.type(*verb)[1].splitlines())) > 80

    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    _, shown, said = desk.type(*verb)

    assert [] == [line for line in (shown + said).splitlines() if len(line) > 80]


def test_status_can_be_watched(desk):
    """`status --watch` prints a line per change in a pipe, until Ctrl-C, which is how one leaves it."""
    desk.apply("h1")
    desk.build("v1")
    desk.type("enable", "web", "v1")

    process = spawn(desk, "status", "web", "--watch", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    desk.report("h1", "restarting", reason="web@8001 is starting")
    second = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)

    assert first.endswith(" web h1 unaware: has not reported on this rollout yet\n")
    assert second.endswith(" web h1 restarting: web@8001 is starting\n")
    assert (0, "") == (process.returncode, error)


def test_who_watches_is_told_that_zookeeper_is_away(desk, tmp_path, monkeypatch):
    """What is shown meanwhile is old, and looks as if nothing went on."""
    with ZooKeeperServer(tmp_path / "zookeeper", home=home_from_environment()) as server:
        monkeypatch.setattr(desk, "address", f"{server.address}/deployd")
        desk.type("services", "apply", desk.spec())
        desk.type("pause", "web")
        process = spawn(desk, "status", "web", "--watch", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        server.kill()
        away = process.stderr.readline()
        server.start()
        back = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)

    assert f"deployd: ZooKeeper at {server.address} does not answer any more; waiting for it\n" == away
    assert f"deployd: ZooKeeper at {server.address} answers again\n" == back
    assert (0, "") == (process.returncode, error)


def test_a_look_from_elsewhere_says_that_this_is_no_host_of_the_service(desk, tmp_path):
    """What it finds is then a host on which nothing runs."""
    desk.apply("h1", "h2")
    (tmp_path / "agent.toml").write_text('host = "laptop"\n')
    (tmp_path / "h1.toml").write_text('host = "h1"\n')

    elsewhere = desk.type("strategies", "plan", "web", "--build", "v1", "--config", str(tmp_path / "agent.toml"))[2]
    there = desk.type("strategies", "plan", "web", "--build", "v1", "--config", str(tmp_path / "h1.toml"))[2]

    assert "laptop is none of the hosts of web (h1, h2); type it there, or name its agent.toml: --config\n" in elsewhere
    assert "none of the hosts" not in there
