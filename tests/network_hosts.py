"""Several hosts on one machine, each with namespaces of its own: network, processes, mounts and name; on one switch.

Each host has a disk and a shared memory that no other sees, at the same path, and an address of its own; what is
installed, such as Python and this checkout, is the same for all, as on machines of one image. Every process of a host
ends with the host, and the hosts end with the process that made them, whatever becomes of that.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).parents[1]
INIT = """
set -e
hostname "$NAME"
mount -t tmpfs none "$DISK"
mount -t tmpfs none /dev/shm
mkdir -p "$DISK/home" "$DISK/tmp" "$DISK/work"
# As Debian installs it: a host's own name is of its loopback, and there is no name of another.
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$NAME" >"$DISK/hosts"
: >"$DISK/resolv.conf"
mount --bind "$DISK/hosts" /etc/hosts
mount --bind "$DISK/resolv.conf" "$(readlink -f /etc/resolv.conf)"
ip link set lo up
echo up
exec "$PYTHON" -S -c 'import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True: signal.pause()'
"""
"""Of the first process of a host, to which processes fall whose parent has ended."""
NAMESPACES = ["--net", "--mount", "--uts", "--pid", "--ipc"]


class Host:
    """One of them.

    Attributes:
        name: of the host.
        address: its IP.
        disk: the folder that is its own; ``home``, ``tmp`` and ``work``, where processes start, lie in it.
    """

    def __init__(self, name: str, address: str, disk: Path) -> None:
        self.name, self.address, self.disk = name, address, disk
        # Killed with the thread that starts it, and with it the first process, whose end ends all others.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child"]
        python = str(Path(os.sys.executable).resolve())  # type: ignore[attr-defined]
        self._outer = subprocess.Popen(
            [*command, "sh", "-c", INIT],
            env=os.environ | {"NAME": name, "DISK": str(disk), "PYTHON": python},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._outer.stdout
        assert self._outer.stderr
        if self._outer.stdout.readline() != "up\n":
            self.end()
            raise PermissionError(self._outer.stderr.read().strip())
        [first] = psutil.Process(self._outer.pid).children()
        self.pid = first.pid
        """Of its first process, as this machine sees it."""

    def command(self, *command: object, **environment: str) -> tuple[list[str], dict[str, str]]:
        """A command of this host, and the environment for it, as for ``subprocess``."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "MINDSEYE_"))}
        home = str(self.disk / "home")
        own |= {"HOME": home, "XDG_CACHE_HOME": f"{home}/.cache", "TMPDIR": str(self.disk / "tmp")}
        own |= {"PYTHONPATH": str(ROOT)} | environment
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wdns={self.disk / 'work'}"]
        return [*enter, *map(str, command)], own

    def start(self, *command: object, log: IO[Any] | int = subprocess.DEVNULL, **environment: str) -> Process:
        """Start a command here; what it says goes to ``log``."""
        words, own = self.command(*command, **environment)
        return Process(subprocess.Popen(words, env=own, stdout=log, stderr=subprocess.STDOUT, text=True))

    def run(self, *command: object, timeout: float = 300, **environment: str) -> str:
        """Run a command here; return what it says."""
        words, own = self.command(*command, **environment)
        pipe = subprocess.PIPE
        done = subprocess.run(words, env=own, stdout=pipe, stderr=subprocess.STDOUT, text=True, timeout=timeout)
        assert not done.returncode, f"{self.name}: {done.args} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def path(self, name: str) -> Path:
        """A file of its disk, as this machine sees it."""
        return Path(f"/proc/{self.pid}/root{self.disk}/{name}")

    def end(self) -> None:
        """Take the power away."""
        self._outer.kill()
        self._outer.wait()


class Process:
    """A command that was started on a host."""

    def __init__(self, entering: subprocess.Popen[str]) -> None:
        self._entering = entering

    @property
    def running(self) -> bool:
        return self._entering.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the command itself, and not to what has entered the host for it."""
        for process in psutil.Process(self._entering.pid).children():
            process.send_signal(number)

    def wait(self, timeout: float) -> int:
        return self._entering.wait(timeout)


class Network:
    """A switch, with the hosts at it and this machine. Its own host is called ``switch``."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        taken = _run("ip", "-4", "route")
        self.subnet = next(subnet for n in range(256) if f"{(subnet := f'10.213.{n}')}." not in taken)
        """The last part of this machine's own address there is 254, of the hosts 1, 2, …"""
        self._switch = Host("switch", "", disk)
        self.hosts: list[Host] = []
        self._ip("link", "add", "bridge", "type", "bridge")
        self._ip("link", "set", "bridge", "up")
        self._plug("here", os.getpid())
        _run("ip", "address", "add", f"{self.subnet}.254/24", "dev", self.here)
        _run("ip", "link", "set", self.here, "up")

    @property
    def here(self) -> str:
        """The interface of this machine."""
        return f"hosts{os.getpid()}"

    def host(self, name: str) -> Host:
        """Add a host."""
        host = Host(name, f"{self.subnet}.{len(self.hosts) + 1}", self.disk)
        self.hosts.append(host)
        self._plug(name, host.pid)
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", f"{self.subnet}.254")
        return host

    def cut(self, host: Host) -> None:
        """Pull its cable; nothing that it or others send arrives, and neither is told so."""
        self._ip("link", "set", "dev", host.name, "down")

    def mend(self, host: Host) -> None:
        """Plug the cable in again."""
        self._ip("link", "set", "dev", host.name, "up")

    def end(self) -> None:
        """Every process of every host is gone, and so are their interfaces and disks."""
        for host in [*self.hosts, self._switch]:
            host.end()
        with contextlib.suppress(PermissionError):  # it goes with the switch by itself, but later
            _run("ip", "link", "delete", "dev", self.here)

    def _plug(self, name: str, pid: int) -> None:
        inside = self.here if name == "here" else "eth0"
        words = ["ip", "link", "add", "name", name, "type", "veth", "peer", "name", inside, "netns", str(pid)]
        # In its network alone: process ids are this machine's.
        _run("nsenter", "--target", str(self._switch.pid), "--net", *words)
        self._ip("link", "set", "dev", name, "master", "bridge")
        self._ip("link", "set", "dev", name, "up")

    def _ip(self, *arguments: str) -> None:
        self._switch.run("ip", *arguments)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network without hosts.

    Raises:
        OSError: this machine does not let us have one; the message says why.
    """
    # Short, for a path of Ray's sockets may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hosts-", dir="/tmp") as disk:
        if os.geteuid():
            raise PermissionError("namespaces are root's to make")
        made = Network(Path(disk))
        try:
            yield made
        finally:
            made.end()


def wait_until_listening(host: Host, port: int, seconds: float = 60) -> None:
    """Wait until a process listens there."""
    end = time.monotonic() + seconds
    while f":{port} " not in host.run("ss", "-ltn"):
        assert time.monotonic() < end, f"nothing listens at port {port} of {host.name}"
        time.sleep(0.1)


def started(host: Host, log: Path, *command: object, **environment: str) -> Process:
    """Start a command whose output goes to a file."""
    with log.open("a") as output:
        return host.start(*command, log=output, **environment)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
