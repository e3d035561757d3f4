"""`deployd strategies simulate`: what it prints, draws and writes."""

import hashlib
import json
import re
import shlex
import xml.etree.ElementTree as ET

import pytest
from msgspec.structs import replace

from deployd_core.cli.main import run
from deployd_core.cli.simulated import by_zone, measured
from deployd_core.cli.simulation import Wish
from deployd_core.plugins import Plugins
from deployd_core.simulate.faults import FaultKind
from deployd_core.simulate.picture import draw, values_at
from deployd_core.simulate.record import Record
from deployd_core.simulate.runner import Outcome, Summary, simulate
from deployd_core.simulate.scenario import Scenario, roster, spec_for
from deployd_core.units import Duration

SPEC = """
[service]
root = "/srv/web"
[source]
url = "https://builds.example.com/web/{build}.tar.gz"
[instances]
names = ["web@8001", "web@8002", "web@8003"]
manager = { use = "systemd", unit = "web@{port}" }
[restart]
strategy = "concurrency"
options = { limit = 2, instances_at_once = 1 }
[rollout]
budget = "10%"
"""
SMALL = ["strategies", "simulate", "concurrency", "--hosts", "6", "--zones", "2", "--instances", "2", "-o", "limit=2"]


def output(capsys, *arguments):
    """Exit code, standard output and error of a command."""
    code = run([*SMALL, *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def as_json(capsys, *arguments):
    """What a command prints as JSON."""
    return json.loads(output(capsys, *arguments, "--json")[1])


def test_the_facts_come_first_and_the_picture_after(capsys):
    """Outcome, duration, capacity, blast radius, requests and rules are on a line each; every host has a line of the picture."""
    code, text, _ = output(capsys, "--seeds", "3")

    words = ["ended", "duration", "capacity", "blast radius", "requests", "rules"]
    assert (0, words) == (code, [line[2:15].strip() for line in text.splitlines()[2:8]])
    assert "never below 66 % of the instances; by zone: zone-a 33 %, zone-b 33 %" in text
    assert 6 == len(re.findall(r"^host-\d ", text, re.MULTILINE))


def test_requests_that_restarts_cut_are_counted(capsys):
    """Without a gate those of every restart; behind one none, unless they outlast its drain."""
    drained = ["strategies", "simulate", "iptables-drain", "--hosts", "4", "--instances", "2", "--json"]
    found = []
    for words in (["strategies", "simulate", "concurrency", *drained[3:]], drained, [*drained, "--faults", "slow-drain:1"]):
        assert 0 == run(words)
        found.append(json.loads(capsys.readouterr().out)["most_cut"])

    assert 4 * 2 * 2 == found[0]
    assert 0 == found[1] < found[2] < found[0]


LOOKS = """
from deployd_core.api import *


class Looks(Strategy[FleetOptions]):
    '''Restart the host of the primary last.'''

    name = "looks"

    def facts(self, host):
        raise Unavailable("there is no world to look at")

    def plan(self, view):
        here = view.facts.get("primary", "nobody knows")
        blocked = here if here == "nobody knows" else ""
        return Plan(cycle=view.stale, limit=self.options.fleet_limit, priority=0 if here else 1, why="all", impossible=blocked)


@hookimpl
def deployd_strategies():
    return [Looks]
"""


@pytest.fixture
def looks(tmp_path):
    """The beginning of a command about a strategy that looks at hosts, on a fleet of four."""
    (tmp_path / "looks.py").write_text(LOOKS)
    where = ["--plugins-dir", str(tmp_path)]
    return ["strategies", "simulate", "looks", "--hosts", "4", "--zones", "1", "-o", "limit=1", *where]


def test_what_a_strategy_finds_is_given_for_each_host_or_for_all(capsys, looks):
    """The one host with the primary goes last wherever it stands, unless nobody waits when it asks."""
    last = []
    for host in ("host-1", "host-3", "host-4"):
        facts = ["--facts", '{"primary": ""}', "--facts", f'{host}={{"primary": "web@8001"}}']
        code = run([*looks, "--seed", "3", *facts, "--json"])
        shown = json.loads(capsys.readouterr().out)["shown"]["order"]
        last.append((code, shown.index(host) in (0, 3)))

    assert [(0, True)] * 3 == last


def test_the_command_that_runs_it_again_has_the_same_facts():
    """What a strategy was shown decides the run as much as the seed."""
    facts = ('{"primary": ""}', 'host-3={"primary": "web@8001"}')
    names = {"hosts": 6, "zones": 1, "instances": 2, "spec_file": None, "service": "", "build": "", "faults": "", "seeds": 9}
    wish = Wish(strategy="looks", options=(), start=Duration("20s"), seed=1, facts=facts, **names)

    words = shlex.split(wish.again(7))

    assert list(facts) == [words[number + 1] for number, word in enumerate(words) if word == "--facts"]


def test_a_strategy_that_is_shown_nothing_is_said_to_be(capsys, looks):
    """It plans as after a look that failed, and who runs it is told what is missing."""
    run(looks)
    shown = capsys.readouterr()

    assert "deployd: warning: looks looks at hosts, and is shown nothing: say what it finds, with --facts JSON" in shown.err
    assert "is blocked: nobody knows" in shown.out


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("host-9={}", "there is no host 'host-9'. did you mean 'host-4'? known: host-1, host-2, host-3, host-4"),
        ("host-1=[]", "must be an object"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_facts_that_cannot_be_meant_are_refused(capsys, looks, facts, message):
    """A host that is not there is a slip of the pen."""
    assert 2 == run([*looks, "--facts", facts])
    assert message in capsys.readouterr().err


def test_a_pipe_gets_no_colour_and_always_the_same(capsys):
    """Without a terminal there are no escapes, and the picture takes a hundred columns, of which the last stays empty."""
    first, second = output(capsys)[1], output(capsys)[1]

    assert first == second
    assert "\x1b" not in first
    assert {99} == {len(line) for line in first.splitlines() if line.startswith("host-")}


def test_colour_can_be_asked_for_and_refused(capsys, monkeypatch):
    """FORCE_COLOR paints the picture also in a pipe, NO_COLOR never."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    painted = output(capsys)[1]
    monkeypatch.setenv("NO_COLOR", "1")

    assert "\x1b[36m█" in painted
    assert "\x1b" not in output(capsys)[1]


def test_json_holds_the_numbers_and_the_curves(capsys):
    """The numbers of all runs, and of the one that is shown its order, curves and the digest of its trace."""
    found = as_json(capsys, "--seeds", "2")

    assert ("deployd.strategies.simulate/1", 6, 12, [1, 2]) == tuple(
        found[key] for key in ("schema", "hosts", "instances", "seeds")
    )
    assert {"converged": 2, "halted": 0, "taken-back": 0, "held": 0, "waiting": 0, "stuck": 0} == found["outcomes"]
    assert found["seconds"]["p50"] <= found["seconds"]["p95"]
    assert sorted(found["shown"]["order"]) == [f"host-{number}" for number in range(1, 7)]
    assert max(count for _, count in found["shown"]["permits"]) == found["most_permits"] == 2
    assert min(count for _, count in found["shown"]["capacity"]) == found["instances"] - found["most_out"]


def test_json_holds_what_the_picture_is_made_of(capsys):
    """Of every host its states, each since when; of every zone how many instances could serve, which add up to the fleet's."""
    found = as_json(capsys, "--faults", "dead:1@30%")
    hosts, zones = found["shown"]["hosts"], found["shown"]["capacity_by_zone"]
    ends = [states[-1][1] for states in hosts.values()]

    assert [f"host-{number}" for number in range(1, 7)] == list(hosts)
    assert (1, 5) == (ends.count("down"), ends.count("converged"))
    assert all(states == sorted(states, key=lambda state: state[0]) for states in hosts.values())
    assert {"waiting", "restarting"} <= {state for states in hosts.values() for _, state in states}
    assert [[0.0, 6], [0.0, 6]] == [zones[zone][0] for zone in ("zone-a", "zone-b")]
    assert sum(curve[-1][1] for curve in zones.values()) == found["shown"]["capacity"][-1][1] == 10
    assert min(count for _, count in zones["zone-a"]) / 6 == pytest.approx(found["lowest_by_zone"]["zone-a"], abs=1e-4)


def test_a_seed_alone_is_the_run_that_it_was_among_others(capsys):
    """The second of two runs takes as long as the run of its seed alone."""
    both, second = as_json(capsys, "--seeds", "2"), as_json(capsys, "--seed", "2")

    assert second["shown"]["seconds"] in both["seconds"].values()
    assert both["shown"]["seconds"] in both["seconds"].values()


def test_the_trace_can_be_written(capsys, tmp_path):
    """Every act of the run that is shown stands in the file, and is named by the digest in the JSON."""
    found = as_json(capsys, "--trace", str(tmp_path / "trace"))
    text = (tmp_path / "trace").read_bytes()

    assert f"sha256:{hashlib.sha256(text).hexdigest()}" == found["shown"]["trace"]
    assert b"host-1 begins flip" in text


def test_the_drawing_is_well_formed(capsys, tmp_path):
    """The SVG parses, has every host, and a curve of capacity and one of permits."""
    code, _, error = output(capsys, "--svg", str(tmp_path / "web.svg"), "--faults", "reboot:1")
    texts = [element.text for element in ET.parse(tmp_path / "web.svg").iter("{http://www.w3.org/2000/svg}text")]

    assert (0, f"deployd: wrote {tmp_path / 'web.svg'}\n") == (code, error)
    assert {f"host-{number}" for number in range(1, 7)} | {"can serve", "permits", "down"} <= set(texts)


def test_a_spec_says_what_runs(capsys, tmp_path):
    """Instances and options come from the file; options on the command line and another strategy take their place."""
    (tmp_path / "web.toml").write_text(SPEC)
    spec = ["--hosts", "6", "--zones", "1", "--spec", str(tmp_path / "web.toml"), "--json"]
    measured = []
    for words in (["concurrency"], ["concurrency", "-o", "limit=3"], ["all-at-once"]):
        assert 0 == run(["strategies", "simulate", *words, *spec])
        measured.append(json.loads(capsys.readouterr().out))

    assert [18, 18, 18] == [found["instances"] for found in measured]
    assert [2, 3, 6] == [found["most_permits"] for found in measured]
    assert [2, 3, 18] == [found["most_out"] for found in measured]


def test_the_help_names_every_fault(capsys):
    """And so does what is said of one that does not exist."""
    run(["strategies", "simulate", "--help"])

    page = re.sub(r"-\s+", "-", capsys.readouterr().out)
    assert [] == [kind.value for kind in FaultKind if not re.search(rf"\b{kind.value}\b", page.partition("WHEN is")[0])]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--faults", "earthquake"], 1, "there is no fault 'earthquake'"),
        (["-o", "limit"], 1, "option 'limit' has no value. Write -o KEY=VALUE"),
        (["-o", "limits=2"], 1, "limits"),
        (["--hosts", "0"], 2, "--hosts"),
        (["--at", "noon"], 2, "'noon' is no time such as 2026-12-27T08:00Z"),
        (["--spec", "x", "--service", "web"], 2, "--spec and --service both say where the spec comes from"),
        (["--svg", "/nonexistent/web.svg"], 1, "/nonexistent/web.svg cannot be written"),
        (["--build", "v1"], 1, "every host serves v1 already"),
        (["--hosts", "3", "--zones", "5"], 2, "--zones 5 is more than --hosts 3"),
        (["--faults", "crash:2,,"], 1, "the list of faults 'crash:2,,' has nothing before or behind a comma"),
    ],
)
def test_a_mistake_is_named(capsys, arguments, code, message):
    """What was typed wrong ends with a message and the exit code for it."""
    found, _, error = output(capsys, *arguments)

    assert code == found
    assert message in error


def test_a_fleet_of_which_no_host_is_left_is_told_as_any_other(capsys):
    """The only host leaves: nothing is divided by what is not there any more."""
    assert 0 == run(["strategies", "simulate", "concurrency", "--hosts", "1", "--faults", "leave"])

    text = capsys.readouterr().out
    assert text.startswith("concurrency: 1 host in 1 zone, 4 instances each, v1 to v2, with leave:1; seed 1")
    assert "0 of 0 hosts" in text


def test_a_spec_that_is_not_there_is_named(capsys):
    """With the path that was given."""
    assert 1 == run(["strategies", "simulate", "concurrency", "--spec", "/nonexistent.toml"])

    assert "/nonexistent.toml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "vain", "message"),
    [
        (["--spec", "web.toml"], ["--instances", "4"], "--spec says which instances there are: leave --instances out"),
        (["--service", "web"], ["--hosts", "200"], "--service takes hosts, zones and instances from ZooKeeper: leave --hosts out"),
        (["--service", "web"], ["--zones", "3", "--instances", "2"], "leave --zones and --instances out"),
    ],
)
def test_what_would_have_no_effect_is_refused(capsys, place, vain, message):
    """Where a spec or a service says what there is, flags that say it too are refused, their defaults included."""
    assert 2 == run(["strategies", "simulate", "concurrency", *place, *vain])

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("hosts", "zones"), [(1, 1), (2, 2), (3, 3), (40, 3)])
def test_zones_are_as_many_as_a_small_fleet_has_hosts(capsys, hosts, zones):
    """Three, unless there are fewer hosts; whoever names neither is not bothered."""
    assert 0 == run(["strategies", "simulate", "all-at-once", "--hosts", str(hosts), "--json"])

    assert zones == len(json.loads(capsys.readouterr().out)["lowest_by_zone"])


def test_a_large_fleet_shares_lines():
    """Of a fleet that is larger than the picture several hosts share a line, and the most telling state is shown."""
    made = Scenario(spec=spec_for("all-at-once", {}, 1), hosts=roster(50, 2))
    result, record = simulate(made, Plugins.load(), 1, full=True)

    lines = list(draw(record, hosts=result.order, seconds=result.seconds, width=80, paint=lambda text, _: text))

    assert f"{result.order[0]} +3" == lines[0].partition("  ")[0]
    assert 13 + 4 + 4 == len(lines)
    assert "A line with +3 stands for 4 hosts, and shows the worst state among them" == lines[-2]
    assert {True} == {len(line) <= 80 for line in lines[:13]}


@pytest.mark.parametrize(
    ("at", "table", "hours"),
    [
        ("2026-11-26T10:00:00Z", "", 0),
        ("2026-11-26T12:00:00+02:00", "", 0),
        ("2026-11-28T10:00:00Z", "", 47),
        (None, "", 9),
        ("2026-11-26T10:00:00Z", 'timezone = "America/New_York"\n', 4),
    ],
)
def test_the_time_at_which_it_is_enabled_decides_about_windows(capsys, tmp_path, at, table, hours):
    """On a Thursday hosts may begin, on a Saturday not before Monday; without a time it is the same one whenever it is run."""
    (tmp_path / "web.toml").write_text(SPEC + f'[rollout.windows]\nallow = ["Mon-Fri 09:00-16:00"]\n{table}')
    words = ["strategies", "simulate", "concurrency", "--spec", str(tmp_path / "web.toml"), "--hosts", "4", "--json"]

    assert 0 == run([*words, *(["--at", at] if at else [])])
    shown = json.loads(capsys.readouterr().out)["shown"]
    assert "converged" == shown["outcome"]
    assert hours == shown["seconds"] // 3600


def test_durations_are_those_of_runs_that_converged(capsys):
    """A fleet that waits for a dead host has no duration; when it got no further is said apart, and JSON has no number for it."""
    faults = ["--seeds", "3", "--faults", "dead"]

    assert re.search(r"^  duration +waiting after \S+( to \S+)?$", output(capsys, *faults)[1], re.MULTILINE)
    found = as_json(capsys, *faults)
    assert ({"p50": None, "p95": None}, ["waiting"]) == (found["seconds"], list(found["other_ends"]))


def test_a_mixture_of_ends_says_of_how_many_the_durations_are():
    """Two of three runs converged: the percentiles are theirs, and the third is told apart."""
    made = Scenario(spec=spec_for("all-at-once", {}, 1), hosts=roster(2, 1))
    one = simulate(made, Plugins.load(), 1)[0]
    ends = ((Outcome.CONVERGED, 60.0), (Outcome.CONVERGED, 120.0), (Outcome.HELD, 9000.0))
    summary = Summary(runs=tuple(replace(one, outcome=outcome, seconds=seconds) for outcome, seconds in ends))

    assert "p50 1m, p95 2m of the 2 that converged; held after 2h30m" == dict(measured(summary))["duration"]


def test_a_fault_whose_moment_never_came_is_told(capsys):
    """The run was over before, or the host never got so far; what did happen is not told."""
    faults = ["--faults", "pause@90m,reboot:2@50%,reboot:1@2h,crash:1"]

    assert "did not happen: pause@1h30m, reboot:1@2h (the run was over)" in output(capsys, *faults)[1]
    assert ["pause@1h30m", "reboot:1@2h"] == as_json(capsys, *faults)["shown"]["missed"]
    assert "pause@1h30m in 2 of 2 runs, reboot:1@2h in 2 of 2 runs (they were over)" in output(capsys, *faults, "--seeds", "2")[1]
    assert "did not happen" not in output(capsys, "--faults", "reboot:2@50%,crash:1")[1]


def test_what_shows_at_an_act_has_not_happened_before_it(capsys):
    """A dead host takes the only permit's place: nobody restarts, so no start fails, and agents that die of later acts live."""
    nobody = ["-o", "limit=1", "--faults", "dead:1@1s,crash:6,failed-start:2"]

    crashes, starts = as_json(capsys, *nobody)["shown"]["missed"]
    assert ("failed-start:2", "crash:6") == (starts, crashes.partition(" of ")[2])
    assert [] == as_json(capsys, "--faults", "failed-start:2")["shown"]["missed"]


def test_of_many_zones_the_worst_are_shown():
    """However many zones there are, the worst one is among those that are named, and it is said how many are not."""
    zones = {f"zone-{number:02}": 1 - number / 100 for number in range(20)}

    text = by_zone(zones)
    assert text.startswith("zone-19 81 %, zone-18 82 %, ")
    assert text.endswith("zone-12 88 % and 12 more, none of them lower")
    assert "a 50 %, b 25 %" == by_zone({"a": 0.5, "b": 0.25})


def test_a_curve_keeps_its_extremes():
    """However narrow the picture, the worst moment is in it."""
    curve = [(1.0, 9), (1.1, 3), (1.2, 9), (5.0, 8)]

    assert [(3, 10), (9, 9), (8, 9)] == values_at(curve, [0.0, 2.0, 4.0, 6.0], 10)


def test_a_record_counts_by_zone():
    """What cannot serve lowers its zone and the fleet, and the worst moment is kept."""
    record = Record(full=False)
    for zone in ("a", "b"):
        record.enter(zone, 2, 2)
    for by in (-1, -1, 1):
        record.changed(1.0, "a", by)

    assert (2, 0.5, 0.0, 1.0) == (record.fleet.most_out, record.fleet.lowest, record.zones["a"].lowest, record.zones["b"].lowest)


def test_a_fleet_of_nobody_lacks_nothing():
    """Where every host is excused there is no instance of which a part could be away."""
    record = Record(full=True)
    record.begin()

    assert (1.0, 0, []) == (record.fleet.lowest, record.fleet.most_out, record.capacity)
