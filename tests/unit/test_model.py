"""Names, digests, placeholders, instances and what a host sees."""

import pytest

from deployd_core.errors import ConfigError
from deployd_core.model import (
    Health,
    HostView,
    Instance,
    InstanceView,
    Phase,
    Role,
    State,
    check_build_id,
    check_digest,
    check_name,
    expand,
)


@pytest.mark.parametrize("name", ["w", "web", "web-1.example_com", "9", "a" * 63])
def test_a_good_name_passes(name):
    """Names that can be a znode and a directory come back as they are."""
    assert name == check_name(name, "service")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a-", "a b", "ä", "a" * 64, "a\n", "a\0"])
def test_a_bad_name_is_refused_by_what_it_names(name):
    """Names that could leave a directory or a znode are refused, and the message says which thing it is."""
    with pytest.raises(ConfigError, match="service .* must be"):
        check_name(name, "service")


@pytest.mark.parametrize("build", ["v1", "2026.11.23-1", "1.0+git~abc_d", "a" * 128])
def test_a_good_build_id_passes(build):
    """Build ids that can be a directory come back as they are."""
    assert build == check_build_id(build)


@pytest.mark.parametrize("build", ["", "..", "../v1", "/v1", ".hidden", "v 1", "a" * 129, "v1\n"])
def test_a_bad_build_id_is_refused(build):
    """Build ids that could leave the releases directory are refused."""
    with pytest.raises(ConfigError, match="build id"):
        check_build_id(build)


def test_a_digest_is_sha256_in_hexadecimal():
    """A digest comes back as it is."""
    assert "sha256:" + "0" * 64 == check_digest("sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "digest", ["", "0" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "A" * 64, "sha256:" + "g" * 64]
)
def test_a_bad_digest_is_refused(digest):
    """Anything but sha256 and 64 lower-case hexadecimal digits is refused."""
    with pytest.raises(ConfigError, match="digest"):
        check_digest(digest)


def test_placeholders_are_filled():
    """Words between braces become their values."""
    assert "http://127.0.0.1:8001/web" == expand("http://127.0.0.1:{port}/{service}", {"port": 8001, "service": "web"})


@pytest.mark.parametrize("text", ['{"a": 1}', "{}", "${HOME}", "{ port }", "awk '{print $1}'", "{0}", "{PORT}"])
def test_other_braces_pass_untouched(text):
    """JSON and shell fragments are no placeholders."""
    assert text == expand(text, {"port": 8001})


@pytest.mark.parametrize("values", [{"service": "web"}, {"service": "web", "port": None}])
def test_a_placeholder_without_a_value_is_refused(values):
    """A placeholder that has no value here is an error that lists those that have one."""
    with pytest.raises(ConfigError, match=r"no value for \{port\}") as caught:
        expand("{port}", values)

    assert "placeholders here: {service}" == caught.value.hint


@pytest.mark.parametrize(
    ("name", "port"),
    [("web@8001", 8001), ("web", None), ("web@blue", None), ("web@1@65535", 65535), ("celery:worker-1", None), ("web@", None)],
)
def test_digits_after_the_at_are_the_port(name, port):
    """An instance knows the port that its name ends in."""
    assert Instance("web", name, port) == Instance.parse("web", name)


@pytest.mark.parametrize("name", ["", "@8001", "web@0", "web@65536", "a/b", "web 1", "a" * 129])
def test_a_bad_instance_name_is_refused(name):
    """Names with other characters, or with a port that is none, are refused."""
    with pytest.raises(ConfigError, match="instance name"):
        Instance.parse("web", name)


def view(name, phase, *, health=Health.HEALTHY, gate_closed=False):
    """An instance as a strategy sees it."""
    return InstanceView(name=name, port=None, phase=phase, serves="v1", state=State.RUNNING, health=health, gate_closed=gate_closed)


def test_a_host_view_sorts_its_instances_by_what_they_do():
    """Stale are those before the cycle, cycling those in it, both in the order of the spec."""
    phases = [Phase.READY, Phase.STALE, Phase.DRAINING, Phase.RESTARTING, Phase.WARMING, Phase.STALE]
    host = HostView(
        service="web",
        host="h1",
        zone="a",
        role=Role.FLEET,
        build="v2",
        instances=tuple(view(f"i{number}", phase) for number, phase in enumerate(phases)),
    )

    assert ("i1", "i5") == host.stale
    assert ("i2", "i3", "i4") == host.cycling


@pytest.mark.parametrize(
    ("instance", "available"),
    [
        (view("a", Phase.READY), True),
        (view("a", Phase.STALE), True),
        (view("a", Phase.WARMING), False),
        (view("a", Phase.STALE, gate_closed=True), False),
        (view("a", Phase.STALE, health=Health.UNHEALTHY), False),
        (view("a", Phase.STALE, health=Health.UNKNOWN), False),
    ],
)
def test_available_is_open_healthy_and_not_in_the_cycle(instance, available):
    """Only an instance that can take a request now is available; unknown health is not health."""
    assert available is instance.available
