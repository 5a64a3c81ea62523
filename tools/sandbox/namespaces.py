"""The kernel's side: namespaces, mounts, cgroups and the veth pair. Python 3.11 has no os.unshare,
so libc is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sandbox.shell import CommandError, run

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x04000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 0x1000, 0x4000, 1 << 18, 1 << 20
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

CGROUPS = Path("/sys/fs/cgroup")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    _check(_libc.setns(fd, flags), "setns")


def mount(
    source: str, target: str | Path, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    encoded = [None if x is None else str(x).encode() for x in (source, target, kind)]
    _check(
        _libc.mount(*encoded, ctypes.c_ulong(flags), None if options is None else options.encode()),
        f"mount {target}",
    )


def sethostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


# Kubelet sets these for the whole machine and refuses to start when it cannot: it gets files of its
# own to write to.
_TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_HIDDEN = ("/var/lib", "/var/log", "/run")


def private_mounts(keep: list[Path], scratch: Path) -> None:
    """A mount namespace in which the fixed paths of kubelet, containerd and CNI are empty and its
    own.

    `keep` are folders that must stay visible even where they lie under a hidden one.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    descriptors = [
        (os.open(k, os.O_PATH | os.O_DIRECTORY), k) for k in keep if any(k.is_relative_to(h) for h in _HIDDEN)
    ]
    for hidden in _HIDDEN:
        mount("tmpfs", hidden, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for fd, path in descriptors:
        path.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", path, None, MS_BIND | MS_REC)
        os.close(fd)
    scratch.mkdir(parents=True, exist_ok=True)
    for name, value in _TUNABLES.items():
        if not Path("/proc/sys", name).exists():
            continue
        stand_in = scratch / name.replace("/", ".")
        stand_in.write_text(value + "\n")
        mount(str(stand_in), Path("/proc/sys", name), None, MS_BIND)
    # so that mount propagation works for pods that ask for it
    mount("none", "/", None, MS_REC | MS_SHARED)


@cache
def cgroup_hierarchies() -> dict[str, Path]:
    """Controller (or named hierarchy) -> where it is mounted; on cgroup v2 every controller leads
    to the one tree.
    """
    hierarchies: dict[str, Path] = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        path = Path(target)
        if not path.is_relative_to(CGROUPS):
            continue
        if kind == "cgroup2" and path == CGROUPS:
            return dict.fromkeys((path / "cgroup.controllers").read_text().split(), path)
        if kind == "cgroup2":  # beside v1 hierarchies: runc makes its folders there too
            hierarchies["unified"] = path
        if kind == "cgroup":
            for option in options.split(","):
                if option in {
                    "cpu",
                    "cpuacct",
                    "cpuset",
                    "memory",
                    "pids",
                    "devices",
                    "freezer",
                    "blkio",
                    "hugetlb",
                    "name=systemd",
                }:
                    hierarchies[option.removeprefix("name=")] = path
    return hierarchies


def _trees() -> list[Path]:
    return sorted(set(cgroup_hierarchies().values()))


def make_cgroup(name: str) -> None:
    """Create a cgroup in every hierarchy; on v1 a new cpuset is unusable until it has processors
    and memory nodes.
    """
    for tree in _trees():
        path = tree
        for word in name.split("/"):
            parent, path = path, path / word
            path.mkdir(exist_ok=True)
            if tree == CGROUPS:
                enabled = (parent / "cgroup.subtree_control").read_text().split()
                for controller in (parent / "cgroup.controllers").read_text().split():
                    if controller not in enabled:
                        with contextlib.suppress(OSError):
                            (parent / "cgroup.subtree_control").write_text(f"+{controller}")
            for file in ("cpuset.cpus", "cpuset.mems"):
                if tree != CGROUPS and (path / file).exists() and not (path / file).read_text().strip():
                    (path / file).write_text((parent / file).read_text())


def join_cgroup(name: str) -> None:
    for tree in _trees():
        (tree / name / "cgroup.procs").write_text(str(os.getpid()))


def cgroup_processes(name: str) -> set[int]:
    """Everything alive below a cgroup, in this process's numbering; 0 stands for a process that it
    cannot see.
    """
    processes: set[int] = set()
    for tree in _trees():
        for file in [tree / name / "cgroup.procs", *(tree / name).rglob("cgroup.procs")]:
            with contextlib.suppress(OSError):
                processes.update(int(p) for p in file.read_text().split())
    processes.discard(0)
    return processes


def kill_cgroup(name: str, timeout: float = 20) -> None:
    """Kill what runs below a cgroup, then remove it."""
    deadline = time.monotonic() + timeout
    while left := cgroup_processes(name):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(left)} of cgroup {name} do not end")
        time.sleep(0.05)
    for tree in _trees():
        folders = (
            sorted((p for p in (tree / name).rglob("*") if p.is_dir()), key=lambda p: -len(p.parts))
            if (tree / name).is_dir()
            else []
        )
        for folder in [*folders, tree / name]:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.05)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks: with the number, it names one process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def mounts_below(path: Path) -> Iterator[Path]:
    """Mounts of this namespace under a path, deepest first."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = Path(line.split()[4].encode().decode("unicode_escape"))
        if target.is_relative_to(path):
            yield target


def unmount_below(path: Path) -> None:
    for target in list(mounts_below(path)):
        _check(_libc.umount2(str(target).encode(), 2), f"umount {target}")


def host_routes() -> list[str]:
    """Destinations this machine already routes, without default routes."""
    routes: list[str] = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        _, destination, _, _, _, _, _, mask, *_ = line.split()
        bits = int(mask, 16).bit_count()
        if bits:
            octets = bytes.fromhex(destination)[::-1]
            routes.append(".".join(map(str, octets)) + f"/{bits}")
    return routes


def connect(pid: int, veth: str, host: str, inside: list[str], routes: list[str]) -> None:
    """The veth pair between this machine and the sandbox: the only way in, and no default route
    leads out.
    """
    disconnect(veth)
    into = ["nsenter", "--net", "--target", str(pid)]
    run(["ip", "link", "add", veth, "type", "veth", "peer", "name", "host0", "netns", str(pid)])
    run([*into, "ip", "link", "set", "lo", "up"])
    for address in inside:
        run([*into, "ip", "address", "add", f"{address}/28", "dev", "host0"])
    run([*into, "ip", "link", "set", "host0", "up"])
    run([*into, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.ip_local_port_range=32768 60999"])
    run(["ip", "address", "add", f"{host}/28", "dev", veth])
    run(["ip", "link", "set", veth, "up"])
    for route in routes:
        run(["ip", "route", "replace", route, "via", inside[0], "dev", veth])


def disconnect(veth: str) -> None:
    """The routes go with the link."""
    if Path("/sys/class/net", veth).exists():
        with contextlib.suppress(CommandError):
            run(["ip", "link", "delete", veth])
