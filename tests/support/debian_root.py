"""A clean Debian root made by debootstrap, with this tree's Debian package, and systemd as its process 1.

systemd runs in namespaces of its own (processes, mounts, network, IPC, host name, control groups), and a control group
below that of this process. Nothing of it is left when the block ends.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.load_clients import wait_until

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PROGRAMS: Final = ("debootstrap", "unshare", "nsenter", "dpkg-deb")
# starts systemd in the namespaces that `unshare` made: $1 is the root
START = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
for each in run tmp dev; do mount -t tmpfs tmpfs $each; done
for each in null zero full random urandom tty; do touch dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --unit=multi-user.target
"""
NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")


def reason_without_debian() -> str | None:
    """Return why no Debian root can be made on this machine, or None."""
    if os.geteuid() != 0:
        return "only root can make a Debian root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    if not _codename():
        return "the package is built with Debian's Python, and this machine is not Debian"
    done = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this process may not create namespaces"


def build_package(folder: Path) -> Path:
    """Build the Debian package as `make deb` does, and return its path.

    Args:
        folder: an existing folder for the wheel and the package.
    """
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, REPOSITORY], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    build = REPOSITORY / "packaging" / "debian" / "build"
    environment = {**os.environ, "PIP_PYTHON": sys.executable}
    subprocess.run([build, wheel, folder], check=True, capture_output=True, env=environment)
    (package,) = folder.glob("*.deb")
    return package


def create_root(folder: Path, package: Path, *further: str) -> None:
    """Create a Debian root with systemd and what the package depends on, and install the package.

    Args:
        folder: a folder that does not exist.
        package: path of the package.
        further: names of further Debian packages.
    """
    depends = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    names = {part.split()[0] for part in depends.split(",")} | {"systemd", "systemd-sysv", *further}
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(sorted(names))}", _codename(), str(folder)]
    subprocess.run(words, check=True, capture_output=True)
    shutil.copy(package, folder / "srv" / "agent.deb")
    subprocess.run(["chroot", folder, "dpkg", "--install", "/srv/agent.deb"], check=True, capture_output=True)


@dataclass(frozen=True)
class Machine:
    """A Debian root whose systemd runs.

    Attributes:
        root: its folder.
        pid: systemd.
    """

    root: Path
    pid: int

    def run(self, *words: str, user: str = "root", check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command in the machine, and return its output.

        Args:
            words: the command.
            user: its user.
            check: whether to assert that it succeeds.
        """
        enter = ["nsenter", "--target", str(self.pid), "--all", f"--root=/proc/{self.pid}/root", "--wdns=/"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        done = subprocess.run(
            [*enter, *become, *clean, *words], capture_output=True, text=True, check=False, timeout=300
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.journal()}"
        return done

    def journal(self) -> str:
        """Return the last lines of the agent's log."""
        words = ("journalctl", "--no-pager", "-n", "40", "-o", "cat", "-u", "airweights-agent")
        return self.run(*words, check=False).stdout if self.pid else ""

    def in_network(self, *words: str | Path) -> list[str]:
        """Return a command of this machine that runs in the network of the other.

        Args:
            words: the command.
        """
        return ["nsenter", "--target", str(self.pid), "--net", *map(str, words)]


@contextlib.contextmanager
def start_machine(root: Path) -> Iterator[Machine]:
    """Start systemd in a Debian root, and stop it at the end of the block.

    Args:
        root: the folder of the root.
    """
    with _control_group() as join:
        script = f"{join}exec unshare {' '.join(NAMESPACES)} --fork --kill-child sh -c '{START}' sh \"$1\""
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", root], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            wait_until(lambda: children.read_text().split() != [], 60)
            machine = Machine(root, int(children.read_text().split()[0]))
            wait_until(lambda: _is_started(machine), 120)
            yield machine
        finally:
            process.kill()
            process.wait(60)


def _is_started(machine: Machine) -> bool:
    if Path(f"/proc/{machine.pid}/comm").read_text() != "systemd\n":
        return False
    # "degraded": the root has no console
    return machine.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")


@contextlib.contextmanager
def _control_group() -> Iterator[str]:
    """Create a control group below systemd's hierarchy; yield the shell command by which a process joins it."""
    base = Path("/sys/fs/cgroup")
    base = base if (base / "cgroup.controllers").exists() else base / "systemd"
    own = base / f"airweights-test-{os.getpid()}"
    own.mkdir()
    try:
        yield f"echo $$ > {own}/cgroup.procs; "
    finally:
        for folder in sorted((path for path in own.rglob("*") if path.is_dir()), reverse=True):
            wait_until(lambda folder=folder: _removes(folder), 30)  # type: ignore[misc]
        wait_until(lambda: _removes(own), 30)


def _removes(folder: Path) -> bool:
    """Return whether an empty control group could be removed; its processes may still be ending."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines() if Path("/etc/os-release").exists() else []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "") if values.get("ID") == "debian" else ""
