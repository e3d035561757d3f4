"""The instances that a spec names."""

import pytest

from deployd_core.errors import ConfigError
from deployd_core.spec import InstancesTable, ServiceSpec, ServiceTable


def spec(**instances):
    """A spec with these keys in its [instances] table."""
    return ServiceSpec(service=ServiceTable(root="/srv/web"), source={}, instances=InstancesTable(**instances))


def names(**instances):
    """The names and ports that such a spec gives."""
    return [(instance.name, instance.port) for instance in spec(**instances).instances_of("web")]


def test_instances_are_those_named():
    """Names are kept in their order, and belong to the service."""
    instances = spec(names=("web@8002", "web@8001")).instances_of("web")

    assert [("web", "web@8002", 8002), ("web", "web@8001", 8001)] == [
        (found.service, found.name, found.port) for found in instances
    ]


def test_a_service_may_have_no_instances():
    """A service of files alone has none."""
    assert [] == names()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"count": 2, "pattern": "web@{port}", "first_port": 8001}, [("web@8001", 8001), ("web@8002", 8002)]),
        ({"count": 2, "pattern": "worker-{number}"}, [("worker-1", None), ("worker-2", None)]),
        ({"count": 1, "pattern": "web"}, [("web", None)]),
        ({"count": 2, "pattern": "{number}.web@{port}", "first_port": 80}, [("1.web@80", 80), ("2.web@81", 81)]),
    ],
)
def test_a_pattern_counts(table, expected):
    """A pattern gives so many names, with ports and numbers counted up."""
    assert expected == names(**table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"names": ("a",), "count": 1, "pattern": "a"}, "both names and count"),
        ({"count": 2, "pattern": "web@{port}"}, "no first_port"),
        ({"count": 2, "pattern": "web"}, "gives 2 instances one name"),
        ({"names": ("a", "a")}, "one instance twice"),
        ({"names": ("a b",)}, "instance name"),
        ({"count": 2, "pattern": "web@{port}", "first_port": 65535}, "not between 1 and 65535"),
        ({"count": 1}, "instance name"),
    ],
)
def test_instances_that_cannot_be_are_refused(table, message):
    """Each way to misname instances has its own message."""
    with pytest.raises(ConfigError, match=message):
        names(**table)
