"""A real systemd of one's own, in namespaces: for tests of what talks to it over D-Bus. Needs root, Linux, systemd and dbus.

It boots as PID 1 of new pid, mount, ipc, uts, cgroup and network namespaces, on an overlay of the machine's own root file system
whose changes stay in memory. A child cgroup keeps it off the cgroups of the machine, a read-only /proc/sys off its settings.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import psutil

from deployd_core.errors import ConfigError, Unavailable

_START_SECONDS = 20.0
_TOOLS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "dbus-daemon": "dbus",
    "systemctl": "systemd",
}
_INITS = (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd"))

_ENTER_CGROUP = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--propagation=private", "--ipc", "--uts", "--cgroup", "--net")

# $1: an empty directory, $2: one with units, $3: systemd; the rest: directories that the machine and the booted system share.
_BOOT = """\
new=$1 units=$2 init=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$new"
mkdir "$new/upper" "$new/work" "$new/root"
mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$new/root"
cd "$new/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/systemd/system.conf.d run/lock
cp -R "$units" run/systemd/system
printf '[Manager]\\nDefaultStandardOutput=null\\nDefaultStandardError=null\\n' > run/systemd/system.conf.d/test.conf
for shared in "$@"; do mkdir -p "./$shared"; mount --rbind "$shared" "./$shared"; done
mkdir -p mnt/machine
pivot_root . mnt/machine
cd /
umount -l mnt/machine
exec env -i container=deployd PATH=/usr/sbin:/usr/bin:/sbin:/bin "$init" --unit=test.target --log-target=null --show-status=no
"""

_UNITS = {
    # Without its default dependencies nothing pulls in what a machine boots: devices, journal, temporary files, time.
    "test.target": "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nRequires=dbus.service\nAfter=dbus.service\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n"
    "[Service]\nType=notify\nNotifyAccess=main\n"
    "ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
}


class Systemd:
    """A booted systemd with the given units beside its own few; a context manager that boots it and takes it down.

    Units must say ``DefaultDependencies=no`` in ``[Unit]``, or they pull in the services of a whole machine. The directories of
    `shared` are seen by both sides; everything else that it writes is lost with it.
    """

    def __init__(self, units: Mapping[str, str], *, shared: Iterable[Path] = ()) -> None:
        self._units = {**_UNITS, **units}
        self._shared = [str(path.resolve()) for path in shared]
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None
        self._directory: Path | None = None
        self._cgroup: Path | None = None

    @property
    def pid(self) -> int:
        """The pid of its PID 1, as the machine sees it."""
        if self._init is None:
            raise Unavailable("systemd has not been booted")
        return self._init.pid

    @property
    def bus(self) -> str:
        """The address of its system bus, as the machine reaches it."""
        return f"unix:path=/proc/{self.pid}/root/run/dbus/system_bus_socket"

    def start(self) -> None:
        """Boot it, and return when it answers on its bus.

        Raises:
            ConfigError: A program or a right is missing.
            Unavailable: It did not boot.
        """
        init = _check()
        self._cgroup = _make_cgroup()
        self._directory = Path(tempfile.mkdtemp(prefix="deployd-systemd-"))
        units, new = self._directory / "units", self._directory / "new"
        units.mkdir()
        new.mkdir()
        for name, text in self._units.items():
            (units / name).write_text(text, encoding="utf-8")
        log = self._directory / "boot.log"
        boot = ["unshare", *_NAMESPACES, "sh", "-ec", _BOOT, "boot", str(new), str(units), str(init), *self._shared]
        with log.open("wb") as output:
            self._unshare = subprocess.Popen(
                ["sh", "-c", _ENTER_CGROUP, str(self._cgroup), *boot],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._booted():
            if self._unshare.poll() is not None or time.monotonic() > deadline:
                words = log.read_text(encoding="utf-8", errors="replace")
                self.stop()
                raise Unavailable(f"systemd did not boot: {words.strip() or 'it says nothing'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill its PID 1, with which the kernel ends everything in its namespaces."""
        init, self._init = self._init, None
        unshare, self._unshare = self._unshare, None
        if init is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                init.kill()
        elif unshare is not None:
            unshare.kill()
        if unshare is not None:
            # It buries PID 1 and ends with it.
            unshare.wait()
        if self._cgroup is not None:
            _remove_cgroup(self._cgroup)
            self._cgroup = None
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, such as ``systemctl daemon-reload``."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
        return subprocess.run([*enter, *argv], check=False, capture_output=True, text=True, timeout=30)

    def write_unit(self, name: str, text: str) -> None:
        """Add or replace a unit, and have it read."""
        Path(f"/proc/{self.pid}/root/run/systemd/system/{name}").write_text(text, encoding="utf-8")
        self.run("systemctl", "daemon-reload")

    def pid_of(self, inner: int) -> int:
        """The pid that the machine knows a process by which is `inner` to the booted system.

        Raises:
            Unavailable: It has no such process.
        """
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                (pids,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if int(pids[-1]) == inner:
                    return process.pid
        raise Unavailable(f"the booted systemd has no process {inner}")

    def __enter__(self) -> Systemd:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _booted(self) -> bool:
        if self._unshare is None:
            return False
        if self._init is None:
            try:
                (init,) = psutil.Process(self._unshare.pid).children()
            except (ValueError, psutil.NoSuchProcess):
                return False
            self._init = init
        try:
            # Until systemd is there, its PID 1 is the shell that mounts, and has the machine's root.
            if self._init.name() != "systemd":
                return False
        except psutil.NoSuchProcess:
            return False
        return self.run("systemctl", "is-active", "test.target").stdout.strip() == "active"


def _check() -> Path:
    if os.geteuid() != 0:
        raise ConfigError("booting a systemd in namespaces needs root")
    missing = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise ConfigError(
            f"programs of {', '.join(missing)} are missing", hint=f"install them: apt-get install {' '.join(missing)}"
        )
    for init in _INITS:
        if init.exists():
            return init
    raise ConfigError("systemd is missing", hint="install it: apt-get install systemd")


def _make_cgroup() -> Path:
    """A child of our own cgroup: systemd takes what it is booted in for the root of all, and rearranges it."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines())
    roots = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if not roots or not own:
        raise ConfigError("no cgroup2 file system is mounted", hint="make one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
    cgroup = roots[0] / own[0].lstrip("/") / f"deployd-systemd-{os.getpid()}-{time.monotonic_ns()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        raise ConfigError(f"cannot make the cgroup {cgroup}: {error.strerror}") from error
    return cgroup


def _remove_cgroup(cgroup: Path) -> None:
    deadline = time.monotonic() + 10
    for directory in [*sorted(cgroup.rglob("*/"), key=lambda path: -len(path.parts)), cgroup]:
        while True:
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                # Busy until the last process in it has been buried.
                if time.monotonic() > deadline:
                    raise Unavailable(f"cannot remove the cgroup {directory}: {error.strerror}") from error
                time.sleep(0.01)
