"""What a rule says of itself, and what gates refuse before they touch anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deployd_core.api import ClosedGate, ConfigError, Duration, GateCall, Instance
from deployd_plugins.gates import leases
from deployd_plugins.gates.auto import AutoOptions
from deployd_plugins.gates.firewall import FirewallOptions
from deployd_plugins.gates.iptables import IptablesGate, IptablesOptions
from deployd_plugins.gates.nftables import NftablesGate, NftablesOptions

LIMITS = [255, 127]


def call(name="web@8001", *, service="web", owner="h1.example.com/4711/12345.67", lease=120.0, hold=False):
    """A call that closes an instance."""
    return GateCall(
        service=service,
        host="h1",
        zone="",
        root=Path("/srv/web"),
        timeout=10.0,
        instance=Instance.parse(service, name),
        until=time.time() + lease,
        owner=owner,
        hold=hold,
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", ["web@8001", "a:b:c@1", "web", "x" * 20])
def test_a_comment_says_what_it_was_made_of(name, limit):
    """Service, instance, owner and end are read back as they were written."""
    made = call(name)

    found = leases.parse(leases.comment_for(made, limit))

    assert ClosedGate(service="web", instance=name, owner=made.owner, until=float(int(made.until))) == found
    assert leases.comment_for(made, limit) == leases.comment_of(found)


@pytest.mark.parametrize(
    "comment",
    ["", "foreign", "deployd:v2:web:web@8001:h/1/2:3", "deployd:v1:web:web@8001:h/1/2:soon", "deployd:v1::::1", "deployd:v1:"],
)
def test_comments_of_others_are_no_leases(comment):
    """What is not written as ours is not ours."""
    assert leases.parse(comment) is None


@pytest.mark.parametrize("limit", LIMITS)
def test_a_long_host_is_cut_and_the_process_kept(limit):
    """When a comment would be too long, the host's name gives way, and nothing else."""
    made = call(owner=f"{'h' * 250}/4711/12345.67")

    comment = leases.comment_for(made, limit)

    assert limit == len(comment.encode())
    assert leases.parse(comment).owner.endswith("hh/4711/12345.67")


@pytest.mark.parametrize("limit", LIMITS)
def test_names_that_do_not_fit_are_refused(limit):
    """An instance whose names are too long for a comment is refused, with by how much."""
    made = call("x" * 120, service="s" * 63, owner=f"h/{'9' * 80}/1")

    with pytest.raises(ConfigError, match=f"bytes too long for the {limit} bytes"):
        leases.comment_for(made, limit)


def test_a_lease_never_outlives_its_end():
    """Ends are whole seconds, rounded down."""
    assert (made := call()).until - 1 < leases.ends_at(made) <= made.until


@pytest.mark.parametrize("lease", [-5.0, 0.0])
def test_a_lease_that_is_over_closes_nothing(lease):
    """A lease that would end before it began is refused."""
    with pytest.raises(ConfigError, match="would end before"):
        leases.ends_at(call(lease=lease))


@pytest.mark.parametrize(
    ("service", "instance", "expired_only", "expected"),
    [
        (None, None, False, True),
        ("web", None, False, True),
        ("web", "web@8001", False, True),
        ("web", "web@8002", False, False),
        ("api", None, False, False),
        (None, None, True, False),
    ],
)
def test_clearing_selects_by_service_instance_and_age(service, instance, expired_only, expected):
    """What is to be cleared is named by service, by instance, or by having run out."""
    lease = ClosedGate(service="web", instance="web@8001", owner="h/1/2", until=100.0)

    assert expected is leases.selected(lease, service, instance, expired_only=expired_only, now=50.0)
    assert leases.selected(lease, service, None, expired_only=True, now=100.0) is (service in (None, "web"))


@pytest.mark.parametrize("options", [FirewallOptions, IptablesOptions, NftablesOptions, AutoOptions])
@pytest.mark.parametrize("wrong", [{"bypass_source": "::1"}, {"bypass_source": "lo"}, {"address": "eth0"}, {"address": "{port}"}])
def test_what_is_no_address_is_refused(options, wrong):
    """Options that should be addresses are."""
    with pytest.raises(ValueError, match="address"):
        options(**wrong)


@pytest.mark.parametrize("gate", [IptablesGate(IptablesOptions()), NftablesGate(NftablesOptions())])
def test_an_instance_without_a_port_is_refused(gate):
    """There is nothing to close for an instance that has no port."""
    with pytest.raises(ConfigError, match="has no port") as refused:
        gate.close(call("web"))

    assert "NAME@PORT" in refused.value.hint


def test_what_iptables_would_be_told():
    """A preview is the commands that do the same, for IPv4 with the bypass address."""
    gate = IptablesGate(IptablesOptions(ipv6="off", bypass_source="127.0.0.9", mark=7))
    made = call()
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(made.until) - 1))

    syn = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
    matches = f"-p tcp -m tcp --dport 8001 {syn[14:]} -m mark ! --mark 0x7 -m time --datestop {end}"
    comment = f'-m comment --comment "{leases.comment_for(made, 255)}"'
    expected = (
        "iptables-legacy -N deployd",
        f"iptables-legacy -I INPUT {syn} -j deployd",
        f"iptables-legacy -A deployd ! -s 127.0.0.9/32 {matches} {comment} -j REJECT --reject-with tcp-reset",
    )

    assert expected == gate.preview(made)
    assert gate.preview(call(hold=True))[-1].endswith("-j DROP")


def test_what_nft_would_be_told():
    """A preview is the commands that do the same, once the table is there."""
    lines = NftablesGate(NftablesOptions(ipv6="off", idle_after=Duration("2s"))).preview(call())

    assert ["pass_source { 127.0.0.2 . 8001", "pass_mark { 0x00000deb . 8001", "reject_port { ipv4 . 8001"] == [
        line.partition("inet deployd ")[2].partition(" timeout")[0] for line in lines
    ]
