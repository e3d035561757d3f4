"""What people type about a rollout under way, against a real ZooKeeper: each verb, what it says, and what it leaves there."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest

from deployd_core import rollouts
from deployd_core.cli.exits import Exit
from deployd_core.coordination import Permit, RolloutState, Verb
from deployd_core.errors import NotFound

pytestmark = pytest.mark.zookeeper

CANARY_FIRST = "[rollout]\ncanary_first = true\n"


@pytest.fixture
def two(desk):
    """A desk with hosts h1 and h2 that serve v1, which is complete, and with v2 to come."""
    desk.apply("h1", "h2")
    for build in ("v1", "v2"):
        desk.build(build)
    desk.type("enable", "web", "v1", "--by", "ann")
    desk.take("h1")
    desk.finish("h1")
    desk.take("h2")
    desk.finish("h2")
    return desk


def verbs(desk):
    """What the history holds, the oldest first."""
    return [entry.verb for entry in rollouts.history(desk.session, "web")]


def rollout(desk):
    """The rollout as it is."""
    return rollouts.read_service(desk.session, "web").rollout


def test_pause_and_resume(two):
    """A pause says who may finish and how to go on, a second one that it is there already; resuming undoes it once."""
    two.type("enable", "web", "v2")
    two.take("h1")

    paused = two.type("pause", "web", "--why", "lunch", "--by", "ann")
    again = two.type("pause", "web", "--by", "bob")
    state = rollout(two)
    resumed, not_paused = two.type("resume", "web"), two.type("resume", "web")

    assert (0, "paused web\n", "web: h1 finishes: it holds a permit\ngo on: deployd resume web\n") == paused
    assert (0, "web is stopped already: the rollout is paused by ann: lunch\n") == again[:2]
    assert (RolloutState.PAUSED, "ann", "lunch") == (state.state, state.by, state.why)
    assert (0, "resumed web\n", "watch it: deployd status web --watch\n") == resumed
    assert (0, "web was not paused\n") == not_paused[:2]
    assert [Verb.ENABLE, Verb.PAUSE, Verb.RESUME] == verbs(two)[-3:]


def test_halted_rollout_is_not_resumed_but_retried(two):
    """Resuming a halt is refused with the two ways on; retry forgets the failure and says on which hosts."""
    two.type("enable", "web", "v2")
    two.take("h1")
    two.fail("h1")

    refused, retried, again = two.type("resume", "web"), two.type("retry", "web"), two.type("retry", "web")

    assert 1 == refused[0]
    assert "web is not paused but halted: 1 host failed in v2-" in refused[2]
    assert refused[2].endswith("Try: deployd retry web (tries the failed hosts again); or deployd rollback web (goes back)\n")
    assert (0, "the rollout of web goes on; on h1 again\n") == retried[:2]
    assert "go back instead: deployd rollback web" in retried[2]
    assert (0, "web has nothing to retry: its rollout is open, and no host has failed in it\n") == again[:2]
    assert {} == rollout(two).failures


def test_freeze_stops_every_service_until_it_is_lifted(two):
    """A freeze has an end, a reason and a way out, and lifting it says what it was."""
    two.apply(service="api")

    frozen = two.type("freeze", "--until", "2h", "--why", "outage", "--by", "ann")
    until = rollouts.read_service(two.session, "web").freeze.until
    enabled = two.type("enable", "web", "v2")
    lifted, nothing = two.type("unfreeze"), two.type("unfreeze")

    assert (0, f"froze all 2 services until {until}\n", "lift it: deployd unfreeze\n") == frozen
    assert timedelta(hours=1, minutes=59) < datetime.fromisoformat(until) - datetime.now(UTC) <= timedelta(hours=2)
    assert f"nothing restarts for now: every service is frozen by ann until {until}: outage" in enabled[2]
    assert (0, "lifted the freeze by ann: outage\n") == lifted[:2]
    assert (0, "nothing was frozen\n") == nothing[:2]


def test_a_second_freeze_says_which_one_it_takes_the_place_of(two):
    """Somebody else's end and reason are not lost without a word."""
    two.type("freeze", "--until", "2h", "--why", "outage", "--by", "ann")
    until = rollouts.read_service(two.session, "web").freeze.until

    _, output, error = two.type("freeze", "--by", "bob")

    assert until.endswith("Z")
    assert "froze 1 service\n" == output
    assert f"this takes the place of another freeze: it was frozen by ann until {until}: outage\n" in error


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("tomorrow", "is no time such as 2026-12-27T08:00, and 'tomorrow' is not a duration: write it with a unit"),
        ("2020-01-01T00:00:00Z", "has passed"),
        ("9999999999d", "seconds are no duration: it must be at most ten years, 3650d"),
        ("9999-12-31T23:59:59-12:00", "calendars"),
    ],
)
def test_end_of_a_freeze_must_make_sense(two, until, message):
    """What is no time, or is over, is wrong usage and freezes nothing."""
    code, output, error = two.type("freeze", "--until", until)

    assert (2, "") == (code, output)
    assert message in error
    assert rollouts.read_service(two.session, "web").freeze is None


def test_promotion_waits_for_the_canaries(two):
    """A build goes to the fleet when its canary hosts are healthy with it; before that only by force and with a reason."""
    two.type("services", "apply", two.spec(more=CANARY_FIRST))
    two.type("hosts", "role", "web", "h1", "canary")

    enabled = two.type("enable", "web", "v2")
    too_early, unexplained = two.type("promote", "web"), two.type("promote", "web", "--force")
    two.take("h1")
    two.finish("h1")
    promoted, again = two.type("promote", "web"), two.type("promote", "web")

    assert "the canary hosts go first (h1); then: deployd promote web\n" in enabled[2]
    assert 1 == too_early[0]
    assert "v2 cannot be promoted: h1 is not healthy with it. Try: deployd why web; or deployd promote web --force" in too_early[2]
    assert 1 == unexplained[0]
    assert "promoting v2 by force needs a reason. Say why: --why TEXT" in unexplained[2]
    assert (0, "promoted v2 to the fleet of web\n") == promoted[:2]
    assert "stop it: deployd pause web" in promoted[2]
    assert 1 == again[0]
    assert "web has no build that waits to be promoted. Try: deployd enable web BUILD --canary" in again[2]


def test_promotion_by_force_says_so(two):
    """With a reason a build is promoted whatever its canaries say, and the history keeps both."""
    two.type("services", "apply", two.spec(more=CANARY_FIRST))
    two.type("hosts", "role", "web", "h1", "canary")
    two.type("enable", "web", "v2")

    code, output, _ = two.type("promote", "web", "--force", "--why", "the canary lost its disk")

    entry = rollouts.history(two.session, "web")[-1]
    assert (0, "promoted v2 to the fleet of web by force\n") == (code, output)
    assert (Verb.PROMOTE, "the canary lost its disk") == (entry.verb, entry.why)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('return "too many errors"', "v2 is not promoted: vetoed by careful: too many errors. Try: deployd promote web --force"),
        ("raise OSError('away')", "v2 is not promoted: vetoed by careful: plugin careful"),
    ],
)
def test_plugin_may_veto_a_promotion(two, body, message):
    """A plugin that objects, or that breaks, keeps a build from the fleet until it is forced."""
    two.type("services", "apply", two.spec(more=CANARY_FIRST))
    two.type("hosts", "role", "web", "h1", "canary")
    two.type("enable", "web", "v2")
    two.take("h1")
    two.finish("h1")
    (two.directory / "none").mkdir()
    text = f"from deployd_core.api import hookimpl\n@hookimpl\ndef deployd_veto_promotion(service, build):\n    {body}\n"
    (two.directory / "none" / "careful.py").write_text(text)

    refused, forced = two.type("promote", "web"), two.type("promote", "web", "--force", "--why", "it errs")

    assert (1, "") == refused[:2]
    assert message in refused[2]
    assert (0, "promoted v2 to the fleet of web by force\n") == forced[:2]


def test_rollback_goes_to_the_last_complete_build(two):
    """It names both builds, and refuses when there is none to go to."""
    two.type("enable", "web", "v2")

    back, nowhere = two.type("rollback", "web", "--why", "issue 17", "--by", "ann"), two.type("rollback", "web")
    unknown = two.type("rollback", "web", "--to", "v9")

    enabled = rollouts.read_service(two.session, "web").enabled
    assert (0, "the fleet of web goes back to v1 (was v2)\n", "watch it: deployd status web --watch\n") == back
    assert ("v1", "ann") == (enabled.build, enabled.by)
    assert 1 == nowhere[0]
    assert "web has completed no build before v1 that was not rolled back from. Try: deployd rollback web --to BUILD" in nowhere[2]
    assert 1 == unknown[0]
    assert "web was never told to serve 'v9'. Try: deployd history web; or deployd enable web v9" in unknown[2]


def test_enabling_says_how_to_go_back(two):
    """The message names the build that the fleet completed last, and never one that only was enabled before."""
    two.build("v3")
    two.type("enable", "web", "v2")

    again, failed = two.type("enable", "web", "v3"), two.type("enable", "web", "v1")

    assert again[1].startswith("enabled v3 for the fleet of web (was v2), sha256:")
    assert "watch it: deployd status web --watch; go back: deployd enable web v1\n" == again[2]
    assert "watch it: deployd status web --watch\n" == failed[2]


def test_rollback_to_a_build_by_name(two):
    """--to takes any build that was ever enabled, complete or not."""
    two.type("enable", "web", "v2")
    two.type("rollback", "web")

    code, output, _ = two.type("rollback", "web", "--to", "v2")

    assert (0, "the fleet of web goes back to v2 (was v1)\n") == (code, output)


def test_restart_begins_a_rollout_of_the_same_build(two):
    """Hosts are stale again, and the history says that it was a restart."""
    before = rollouts.read_service(two.session, "web").fleet_rollout

    code, output, error = two.type("restart", "web", "--why", "new certificate")
    canary = two.type("restart", "web", "--canary")

    record = rollouts.read_service(two.session, "web")
    assert (0, "the fleet of web restarts v1\n") == (code, output)
    assert "stop it: deployd pause web" in error
    assert record.fleet_rollout != before
    assert ("v1", True) == (record.enabled.build, record.enabled.restart)
    assert 1 == canary[0]
    assert canary[2].endswith("nothing is enabled for the canary hosts of web alone. Try: deployd enable web BUILD --canary\n")


def stop(desk, how):
    """Pause the rollout of the fleet, or have it halted by one of its hosts."""
    if how == "paused":
        desk.type("pause", "web", "--by", "bob", "--why", "lunch")
        return
    desk.type("enable", "web", "v2")
    desk.take("h2")
    desk.fail("h2")


@pytest.mark.parametrize("how", ["paused", "halted"])
@pytest.mark.parametrize("order", [["enable", "web", "v1"], ["restart", "web"], ["rollback", "web", "--to", "v1"]], ids=" ".join)
def test_an_order_for_the_fleet_says_that_it_has_opened_what_was_stopped(two, order, how):
    """Somebody has stopped it: whoever gives the order is told that it goes on, before the way to watch it."""
    stop(two, how)

    code, _, error = two.type(*order)

    assert (0, RolloutState.OPEN) == (code, rollout(two).state)
    assert f"the rollout was {how}, and is open again\nwatch it: deployd status web --watch" in error
    assert "nothing restarts for now" not in error


@pytest.mark.parametrize(("how", "way_on"), [("paused", "deployd resume web"), ("halted", "deployd retry web")])
def test_an_order_for_the_canary_hosts_says_that_the_fleet_stays_stopped(two, how, way_on):
    """It does not end a stop of the fleet's, be it a new build or a restart: nothing restarts, and how to go on is said."""
    two.type("hosts", "role", "web", "h1", "canary")
    stop(two, how)

    for order in (["enable", "web", "v1", "--canary"], ["restart", "web", "--canary"]):
        code, _, error = two.type(*order)

        assert 0 == code
        assert how == rollout(two).state.value
        assert f"the rollout stays {how}; go on: {way_on}\n" in error
        assert f"deployd: warning: nothing restarts for now: the rollout is {how} by " in error
        assert "is open again" not in error


def test_an_order_says_that_what_it_has_opened_is_frozen(two):
    """One stop has ended, another has not: both are said."""
    stop(two, "paused")
    two.type("freeze", "--by", "bob", "--why", "holidays")

    error = two.type("restart", "web")[2]

    assert "the rollout was paused, and is open again\n" in error
    assert "deployd: warning: nothing restarts for now: every service is frozen by bob: holidays\n" in error


def test_a_canary_that_halted_the_rollout_opens_it_again(two):
    """A halt that is about the canary hosts alone ends with another build for them."""
    two.type("hosts", "role", "web", "h1", "canary")
    two.type("enable", "web", "v2", "--canary")
    two.take("h1")
    two.fail("h1")

    error = two.type("enable", "web", "v1", "--canary")[2]

    assert "the rollout was halted, and is open again\n" in error


def finish_when_enabled(desk, build):
    """Have both hosts finish, on a thread, once a build other than v1 or a restart is enabled."""
    before = rollouts.read_service(desk.session, "web").fleet_rollout

    def act():
        stop = threading.Event()
        for fleet in rollouts.watch_statuses(desk.session, "web", stop):
            if fleet.record.fleet_rollout != before and fleet.record.enabled.build == build:
                stop.set()
        desk.finish("h1", "h2")

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@pytest.mark.parametrize(("arguments", "build"), [(["restart", "web"], "v1"), (["rollback", "web"], "v1")])
def test_verbs_that_move_hosts_can_wait_for_them(two, arguments, build):
    """`restart --wait` and `rollback --wait` end as `enable --wait` does."""
    if arguments[0] == "rollback":
        two.type("enable", "web", "v2")
    thread = finish_when_enabled(two, build)

    code, output, _ = two.type(*arguments, "--wait", "--timeout", "1m")
    thread.join()

    assert 0 == code
    assert f"2 of 2 hosts of web serve {build}" == output.splitlines()[-1]


def after(desk, act):
    """Do something, on a thread, once v2 is enabled."""

    def wait_and_act():
        stop = threading.Event()
        for fleet in rollouts.watch_statuses(desk.session, "web", stop):
            if fleet.record.enabled.build == "v2":
                stop.set()
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_waiting_ends_when_the_rollout_is_taken_back_by_itself(two):
    """Over budget with on_budget = "rollback", the wait says what failed and where the fleet goes, with exit code 4."""
    two.type("services", "apply", two.spec(more='[rollout]\non_budget = "rollback"\n'))

    thread = after(two, lambda: (two.take("h1"), two.fail("h1")))
    code, _, error = two.type("enable", "web", "v2", "--wait", "--timeout", "1m")
    thread.join()

    assert Exit.HELD == code
    assert re.search(
        r"^deployd: error: v2 was taken back by itself, and the fleet goes to v1: 1 host failed in v2-\w+, the budget is 0: "
        r"h1: web@8001 did not get healthy\. Try: deployd why web$",
        error,
        re.MULTILINE,
    )
    assert re.match(r"web: v2-\w+ was taken back, and the fleet goes to v1: 1 host failed", two.type("why", "web")[1])


def test_waiting_ends_when_the_canaries_wait_for_a_person(two):
    """Where somebody has to promote a build, nobody is kept waiting for that."""
    two.type("services", "apply", two.spec(more=CANARY_FIRST))
    two.type("hosts", "role", "web", "h1", "canary")

    thread = after(two, lambda: (two.take("h1"), two.finish("h1"), two.take("h2")))
    code, _, error = two.type("enable", "web", "v2", "--wait", "--timeout", "1m")
    thread.join()

    assert Exit.HELD == code
    assert error.endswith("1 of 2 hosts serve v2: v2 waits to be promoted. Try: deployd promote web\n")


def test_waiting_ends_with_a_halt(two):
    """A halt ends the wait with exit code 4 and the hosts that are not done."""
    thread = after(two, lambda: (two.take("h1"), two.fail("h1")))
    code, _, error = two.type("enable", "web", "v2", "--wait", "--timeout", "1m")
    thread.join()

    assert Exit.HELD == code
    assert "  h1 failed: web@8001 did not get healthy\n" in error
    assert "0 of 2 hosts serve v2: the rollout is halted by h1: 1 host failed in v2-" in error


def test_a_restart_that_is_held_does_not_say_that_hosts_lack_the_build(two):
    """They serve it: what they have not done is to restart it."""
    two.type("freeze", "--why", "outage", "--by", "ann")

    code, _, error = two.type("restart", "web", "--wait", "--timeout", "1m")

    assert Exit.HELD == code
    assert "0 of 2 hosts have restarted v1: every service is frozen by ann: outage. Try: deployd why web\n" in error


def test_waiting_ends_when_those_who_lack_are_excused(two):
    """A rollout that is complete without a host that was given up has been completed."""
    two.die("h2")

    thread = after(
        two, lambda: (two.take("h1"), two.finish("h1"), rollouts.lose(two.session, "web", "h2", by="ann", why="its disk is dead"))
    )
    code, output, _ = two.type("enable", "web", "v2", "--wait", "--timeout", "1m")
    thread.join()

    assert 0 == code
    assert "1 of 2 hosts of web serve v2; h2 excused" == output.splitlines()[-1]


def test_permits_are_listed_and_released(two):
    """A permit has its host, since when, whether the agent lives; taking it away needs a reason and is on record."""
    two.type("enable", "web", "v2")
    two.take("h1")

    listed, of_all = two.type("permits", "list", "web"), two.type("permits", "list")
    body = json.loads(two.type("permits", "list", "web", "--json")[1])
    unexplained = two.type("permits", "release", "web", "h1")
    released = two.type("permits", "release", "web", "h1", "--why", "stopped by hand", "--by", "ann")
    again = two.type("permits", "release", "web", "h1", "--why", "once more")
    nothing = two.type("permits", "list", "web")

    assert ["SERVICE", "HOST", "ZONE", "HELD", "AGENT", "STEP", "ROLLOUT"] == listed[1].splitlines()[0].split()
    assert re.fullmatch(r"web +h1 +zone-a +\d+s +running +restarting +v2-\w+", listed[1].splitlines()[1])
    assert listed[1] == of_all[1]
    assert [("web", "h1", True, "restarting")] == [
        (row["service"], row["host"], row["alive"], row["step"]) for row in body["permits"]
    ]
    assert 2 == unexplained[0]
    assert "Missing option '--why'" in unexplained[2]
    assert (0, "took the permit of h1 away\n") == released[:2]
    assert "it asks for one again when it wants to restart: deployd why web h1\n" == released[2]
    assert (0, "h1 holds no permit of web\n") == again[:2]
    assert (0, "No host of web holds a permit.\n") == nothing[:2]
    entry = rollouts.history(two.session, "web")[-1]
    assert (Verb.RELEASE, "h1", "ann", "stopped by hand") == (entry.verb, entry.host, entry.by, entry.why)


def test_hosts_that_are_gone_are_excused_given_up_and_retired(two):
    """Each decision about a host is refused while its agent lives, says what it did and what else there is."""
    two.type("enable", "web", "v2")
    two.take("h1")
    alive = [two.type("hosts", verb, "web", "h1", "--why", "x") for verb in ("lost", "retire")]
    well = two.type("hosts", "excuse", "web", "h1", "--why", "x")
    two.die("h1")

    excused = two.type("hosts", "excuse", "web", "h1", "--why", "in repair", "--by", "ann")
    listed = two.type("hosts", "list", "web")[1].splitlines()
    status = two.type("status", "web")[1].splitlines()
    body = json.loads(two.type("status", "web", "--json")[1])["services"][0]["hosts"]
    lost, again = (two.type("hosts", "lost", "web", "h1", "--why", "its disk is dead") for _ in range(2))
    retired = two.type("hosts", "retire", "web", "h1", "--why", "sold")
    unknown = two.type("hosts", "retire", "web", "h1", "--why", "sold")

    assert [1, 1] == [code for code, _, _ in alive]
    assert all("the agent of h1 is running: it is not gone" in error for _, _, error in alive)
    assert (1, "") == well[:2]
    assert "h1 is well: its agent runs, and does not say that it is down. To go on without it, stop its agent first" in well[2]
    assert (0, "excused h1 from web until it is back\n") == excused[:2]
    assert status[3].endswith("  its agent is not running; it last said: restarting v2; excused by ann: in repair")
    assert [("ann", "in repair"), None] == [host["excused"] and (host["excused"]["by"], host["excused"]["why"]) for host in body]
    assert "it keeps its permit; to take that away: deployd hosts lost web h1 --why TEXT\n" == excused[2]
    assert re.fullmatch(r"h1 +fleet +zone-a +dead +0.1.0 +- +excused by ann: in repair; holds a permit for \d+s", listed[1]), listed
    assert (0, "gave h1 up: web goes on without it\n") == lost[:2]
    assert (0, "h1 was given up already\n") == again[:2]
    assert (0, "took h1 out of web\n") == retired[:2]
    assert 1 == unknown[0]
    assert "no host 'h1' in service 'web'; known: h2" in unknown[2]
    assert [Verb.EXCUSE, Verb.LOST, Verb.RETIRE] == verbs(two)[-3:]


def test_history_tells_how_each_rollout_ended(two):
    """A line per thing that was done, with the outcome of what began a rollout and how long it took; `--json` has all of it."""
    two.type("enable", "web", "v2", "--by", "bob", "--why", "issue 17")
    two.take("h1")
    two.fail("h1")
    two.type("rollback", "web", "--by", "ann", "--why", "h1 failed")

    lines = two.type("history", "web")[1].splitlines()
    last = two.type("history", "web", "--last", "1")
    body = json.loads(two.type("history", "web", "--json")[1])

    assert ["WHEN", "WHO", "WHAT", "OUTCOME", "TOOK", "WHY"] == lines[0].split()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +", line) for line in lines[1:])
    told = [re.sub(r"^\S+ +", "", line) for line in lines[1:]]
    assert re.fullmatch(r"ann +enable v1 +completed +\S+ +-", told[0])
    assert re.fullmatch(r"bob +enable v2 +rolled back +\S+ +issue 17", told[1])
    assert re.fullmatch(r"h1 +halt +- +- +1 host failed in v2-\w+, the budget is 0: h1: web@8001 did not get healthy", told[2])
    assert re.fullmatch(r"ann +rollback v1 +going on +- +h1 failed", told[3])
    assert "and 3 before: deployd history web --last 4\n" == last[2]
    assert ("deployd.history/1", ["completed", "rolled back", None, "going on"]) == (
        body["schema"],
        [entry["outcome"] for entry in body["entries"]],
    )


def test_history_of_a_new_service_says_how_to_begin(desk):
    """Nothing done is no empty table."""
    desk.apply("h1")

    assert (0, "Nothing was done to web yet. Enable a build: deployd enable web BUILD\n") == desk.type("history", "web")[:2]


def test_why_names_who_is_in_the_way_and_the_place_in_the_queue(two):
    """A host that waits is told what the machine would tell it, by whom, for how long, and where it stands."""
    two.start_agent("h3")
    two.type("enable", "web", "v2")
    for host in ("h1", "h2", "h3"):
        two.take(host)

    output = two.type("why", "web")[1]
    body = json.loads(two.type("why", "web", "h2", "--json")[1])

    assert re.search(
        r"^h2, h3: v2 waiting \(slots-full\) since \S+ \(\d+s\)\n"
        r"  reason 1 of 1 host at a time: h1 restarting now\n"
        r"         h1 holds a permit for \d+s: restarting\n"
        r"  queue  places 1 to 2 of 2 in zone zone-a\n"
        r"  next   nothing: it goes on by itself$",
        output,
        re.MULTILINE,
    ), output
    [host] = body["hosts"]
    assert ("slots-full", 1, 2) == (host["code"], host["place"], host["queue"])
    assert [("h1", "holds a permit")] == [(blocker["host"], blocker["how"]) for blocker in host["blockers"]]


def test_why_says_what_to_do_about_a_dead_holder(two):
    """A permit whose holder is gone is told with the command that takes it away, and that command is right."""
    two.type("enable", "web", "v2")
    two.take("h1")
    two.take("h2")
    two.die("h1")

    output = two.type("why", "web", "h2")[1]
    command = re.search(r"should it never come back: deployd (hosts lost web h1) --why TEXT$", output, re.MULTILINE)[1]
    assert 0 == two.type(*command.split(), "--why", "its disk is dead")[0]

    assert isinstance(two.take("h2"), Permit)


def test_why_of_a_halt_names_who_failed_and_the_way_back(two):
    """Which hosts failed, when and why, and both ways on; what it says to type works."""
    two.type("enable", "web", "v2")
    two.take("h1")
    two.fail("h1")
    two.take("h2")

    output = two.type("why", "web")[1]
    assert re.search(
        r"^web: the rollout is halted by h1: 1 host failed in v2-\w+, the budget is 0: h1: web@8001 did not get healthy\n"
        r"  next   deployd retry web tries the failed hosts again\n         deployd rollback web goes back to v1\n",
        output,
    ), output
    assert re.search(r"^h2: v2 waiting \(halted\) since \S+ \(\d+s\)\n  queue  place 1 of 1", output, re.MULTILINE), output
    assert 0 == two.type("rollback", "web")[0]


def test_status_shows_what_the_service_waits_for(two):
    """Above the hosts stands what concerns all of them: here that somebody has to promote a build."""
    two.type("services", "apply", two.spec(more=CANARY_FIRST))
    two.type("hosts", "role", "web", "h1", "canary")
    two.type("enable", "web", "v2")
    two.take("h1")
    two.finish("h1")

    assert (
        "  v2 waits to be promoted: it is on 1 canary host, healthy with it for 0s" == two.type("status", "web")[1].splitlines()[1]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["pause", "wbe"],
        ["resume", "wbe"],
        ["retry", "wbe"],
        ["promote", "wbe"],
        ["rollback", "wbe"],
        ["restart", "wbe"],
        ["history", "wbe"],
        ["why", "wbe"],
        ["permits", "list", "wbe"],
        ["permits", "release", "wbe", "h1", "--why", "x"],
        ["hosts", "excuse", "wbe", "h1", "--why", "x"],
        ["hosts", "lost", "wbe", "h1", "--why", "x"],
        ["hosts", "retire", "wbe", "h1", "--why", "x"],
    ],
    ids=" ".join,
)
def test_unknown_service_is_an_error_with_a_guess(two, arguments):
    """Every verb says which service may have been meant."""
    code, output, error = two.type(*arguments)

    assert (1, "") == (code, output)
    assert "no service 'wbe'; known: web. Did you mean 'web'?" in error
    with pytest.raises(NotFound):
        rollouts.read_service(two.session, "wbe")


def test_unknown_host_is_the_same_error_in_every_verb(two):
    """Whoever mistypes a host is told which one may have been meant, in one wording."""
    verbs = (
        ["why", "web", "h11"],
        ["hosts", "role", "web", "h11", "canary"],
        ["permits", "release", "web", "h11", "--why", "x"],
        *(["hosts", verb, "web", "h11", "--why", "x"] for verb in ("excuse", "lost", "retire")),
    )

    said = {two.type(*verb) for verb in verbs}

    assert {(1, "", "deployd: error: no host 'h11' in service 'web'; known: h1, h2. Did you mean 'h1'?\n")} == said


def test_restart_is_complete_when_every_host_has_restarted(two):
    """Hosts serve the build all along: what counts is what they report of this rollout."""
    two.type("restart", "web")
    two.take("h1")
    two.finish("h1")
    record = rollouts.read_service(two.session, "web")
    half_way = record.fleet_rollout in record.rollout.done
    two.take("h2")
    two.finish("h2")

    assert (False, True) == (half_way, record.fleet_rollout in rollout(two).done)
