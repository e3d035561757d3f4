"""Bad input on a live host: each gets its clear error in the report, nothing is half-done, and the old build goes on serving."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.zookeeper

TOLD = ("host.flipping", "host.restarting", "host.reverting", "host.reverted", "host.failed", "host.broken", "host.converged")

NEVER_HEALTHY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(503, "warming up for ever")
    def log_message(self, *args):
        pass
http.server.HTTPServer((sys.argv[3], int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def serving(deploy: Any) -> Any:
    """One host that serves v1."""
    job = deploy({"web": [8001]}, hosts=1)
    job.apply("web", healthy_timeout="3s")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")
    return job


def expect(job: Any, step: str, *words: str, timeout: float = 30.0) -> str:
    """Wait for a step whose reason holds the words, and see that v1 goes on undisturbed."""

    def there(found: dict[str, Any]) -> bool:
        report = found["h1"]
        return report.step == step and all(word in report.reason for word in words)

    job.wait("web", there, f"{step} because of {words}", timeout)
    return job.statuses("web")["h1"].reason


def expect_untouched(job: Any) -> None:
    """The host serves v1 by the process it had, and nothing of v2 is in the way."""
    root = job.fleet.directory / "h1" / "web"
    assert job.answers("web") == {"v1"}
    assert job.starts("h1", "web", 8001) == ["v1"]
    assert (root / "current").readlink().name == "v1"
    assert sorted(path.name for path in (root / "releases").iterdir()) == ["v1"]
    assert list((root / ".deployd" / "unpacking").iterdir()) == []


def archive_of(job: Any, build: str, members: list[tarfile.TarInfo]) -> str:
    """Write an archive with the members as they are, good or evil; its digest."""
    path = job.builds / f"web-{build}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def member(name: str, **attributes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = 0 if "linkname" in attributes else 4
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def test_another_digest_than_the_pinned_one(serving: Any) -> None:
    """What arrives must have the digest that was enabled; both are named."""
    serving.pack("web", "v2")
    serving.enable("web", "v2", digest="sha256:" + "0" * 64)

    expect(serving, "blocked", "sha256:" + "0" * 64, serving.digests["web", "v2"])
    expect_untouched(serving)


def test_a_truncated_archive(serving: Any) -> None:
    """An archive that ends too early is refused even when its digest is the pinned one."""
    serving.pack("web", "v2")
    path = serving.builds / "web-v2.tar.gz"
    path.write_bytes(path.read_bytes()[:-200])
    serving.enable("web", "v2", digest="sha256:" + hashlib.sha256(path.read_bytes()).hexdigest())

    expect(serving, "blocked", "v2")
    expect_untouched(serving)


@pytest.mark.parametrize(
    "evil",
    [
        member("../outside"),
        member("/etc/deployd-was-here"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc"),
        member("link", type=tarfile.SYMTYPE, linkname="../../../.."),
        member("hard", type=tarfile.LNKTYPE, linkname="../../shared/x"),
        member("pipe", type=tarfile.FIFOTYPE),
    ],
    ids=["dotdot", "absolute", "link-absolute", "link-out", "hardlink-out", "fifo"],
)
def test_a_hostile_archive(serving: Any, evil: tarfile.TarInfo) -> None:
    """An archive that would leave its directory is refused whole, and the member is named."""
    digest = archive_of(serving, "v2", [member("VERSION"), evil])
    serving.enable("web", "v2", digest=digest)

    expect(serving, "blocked", "the archive holds", evil.linkname if evil.name == "hard" else evil.name)
    expect_untouched(serving)
    assert not Path("/etc/deployd-was-here").exists()


def test_a_build_that_is_not_there(serving: Any) -> None:
    """A missing build is named with where it was looked for, and fetched as soon as it appears."""
    serving.enable("web", "v2", digest="sha256:" + "1" * 64)
    expect(serving, "fetching", "web-v2.tar.gz")
    expect_untouched(serving)

    digest = serving.pack("web", "v3")
    serving.enable("web", "v3", digest=digest)
    serving.wait_converged("web", "v3")


def test_an_unknown_strategy(serving: Any) -> None:
    """A strategy that this host does not have is named, with those it has; a spec that is mended is carried out."""
    serving.apply("web", strategy="one-by-won")
    serving.enable("web", "v2")
    reason = expect(serving, "blocked", "'one-by-won'")
    assert "concurrency" in reason
    expect_untouched(serving)

    serving.apply("web", strategy="concurrency")
    serving.wait_converged("web", "v2")


def test_an_option_of_the_wrong_type(serving: Any) -> None:
    """The table and the key are named, and what would be right."""
    serving.apply("web", strategy="concurrency", options='limit = "many"')
    serving.enable("web", "v2")

    expect(serving, "blocked", "[restart.options]", "limit", "'many'")
    expect_untouched(serving)


def test_a_service_that_never_gets_healthy(serving: Any) -> None:
    """The host goes back to v1 with what the probe said last, gives its permit back, and the rollout halts; a fix converges."""
    serving.pack("web", "v2", server=NEVER_HEALTHY)
    serving.enable("web", "v2")

    expect(serving, "reverted", "serves v1; v2 failed: web@8001 was not healthy 3 s after its restart", "503")
    assert serving.answers("web") == {"v1"}
    assert serving.starts("h1", "web", 8001) == ["v1", "v1"]
    assert serving.session.children("/services/web/rollout/permits").names == ()
    rollout = serving.session.get("/services/web/rollout").data
    assert b"halted" in rollout
    assert b"web@8001 was not healthy 3 s" in rollout
    assert ["host.flipping", "host.restarting", "host.reverting", "host.reverted"] == [
        event["name"] for event in serving.events("h1") if event["build"] == "v2" and event["name"] in TOLD
    ]

    serving.enable("web", "v3")
    serving.wait_converged("web", "v3")
    assert serving.session.children("/services/web/rollout/permits").names == ()


def test_a_build_that_dies_at_once(serving: Any) -> None:
    """A process that does not survive its start fails the host at once, in the manager's words, and not after the deadline."""
    serving.apply("web", healthy_timeout="10m")
    serving.pack("web", "v2", server="raise SystemExit('no database')")
    serving.enable("web", "v2")

    expect(serving, "reverted", "serves v1; v2 failed: web@8001 died", "times since its restart")
    assert serving.answers("web") == {"v1"}


def test_a_host_that_is_to_stay_stands_still(serving: Any) -> None:
    """With `on_host_failure = "stay"` the host stays as it is, with its permit; retried with the build mended, it converges."""
    serving.apply("web", healthy_timeout="3s", extra='[rollout]\non_host_failure = "stay"')
    serving.pack("web", "v2", server=NEVER_HEALTHY)
    serving.enable("web", "v2")

    expect(serving, "failed", "web@8001 was not healthy 3 s after its restart", "503")
    assert serving.session.children("/services/web/rollout/permits").names == ("h1",)

    serving.enable("web", "v1")
    serving.wait_converged("web", "v1")
    assert serving.session.children("/services/web/rollout/permits").names == ()


def test_both_builds_are_bad(serving: Any) -> None:
    """A host that can serve neither build says why of both, keeps its permit, and takes the next build with it."""
    root = serving.fleet.directory / "h1" / "web"
    server = root / "releases" / "v1" / "server.py"
    good = server.read_text()
    server.write_text(NEVER_HEALTHY)
    serving.pack("web", "v2", server=NEVER_HEALTHY)
    serving.enable("web", "v2")

    expect(
        serving, "broken", "v2 failed: web@8001 was not healthy 3 s", "going back to v1 failed too: web@8001 was not healthy 3 s"
    )
    assert serving.statuses("web")["h1"].down
    assert serving.session.children("/services/web/rollout/permits").names == ("h1",)

    server.write_text(good)
    serving.enable("web", "v3")
    serving.wait_converged("web", "v3")
    assert not serving.statuses("web")["h1"].down
    assert serving.session.children("/services/web/rollout/permits").names == ()


def test_a_broken_plugin_takes_nothing_down(deploy: Any) -> None:
    """A plugin that cannot be imported is logged with its reason; the others work."""
    job = deploy({"web": [8001]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    (job.fleet.plugins / "broken.py").write_text("import no_such_module")
    host.start_agent()
    job.apply("web")
    job.enable("web", "v1")
    job.wait_converged("web", "v1")

    assert "broken (" in host.log()
    assert "No module named 'no_such_module'" in host.log()


@pytest.mark.root
def test_a_full_disk(deploy: Any) -> None:
    """A disk without room is named with what is missing; nothing is left behind, and with room again the deploy goes on."""
    job = deploy({"web": [8001]}, hosts=1, agents=False)
    [host] = job.fleet.hosts.values()
    root = host.directory / "web"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(root)], check=True)
    try:
        text = job.fleet.spec("web", job.builds).replace("[source]", 'reserve = "0B"\n[source]')
        job.apply("web", text=text)
        job.enable("web", "v1")
        host.start_agent()
        job.wait_converged("web", "v1")
        ballast = root / "ballast"
        with ballast.open("wb") as file:
            while True:
                try:
                    file.write(bytes(1 << 16))
                    file.flush()
                except OSError:
                    break

        job.enable("web", "v2")
        job.wait("web", lambda found: "disk" in found["h1"].reason, "a full disk in the report")
        assert job.answers("web") == {"v1"}
        ballast.unlink()
        job.wait_converged("web", "v2")
        assert job.answers("web") == {"v2"}
    finally:
        job.fleet.stop()
        subprocess.run(["umount", "--lazy", str(root)], check=True)
