"""What the lab does to this machine's kernel: namespaces, cables, sysctls, mounts.

Everything is named by the lab's prefix, so that `remove` finds it without any memory of
what was made. Needs root.
"""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from nuage.errors import InvalidRequest, NotFound, NuageError, Unavailable
from nuage.lab.cabling import CablePlan
from nuage.network.kernel_pins import mount_pins

NETNS_DIR: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000
PARALLEL: Final = 4  # `ip` processes at once; more only queue on the kernel's RTNL lock
COMMAND_TIMEOUT_S: Final = 30.0

# Tool → the Debian package that has it.
TOOLS: Final = {
    "ip": "iproute2", "tc": "iproute2", "nft": "nftables", "nsenter": "util-linux",
    "unshare": "util-linux", "mount": "mount",
}  # fmt: skip

T = TypeVar("T")


def require_able() -> None:
    """Raise Unavailable, saying exactly what is missing, unless this machine can host a lab."""
    if os.geteuid() != 0:
        raise Unavailable(
            "a lab needs root: it creates network namespaces, cgroups and mounts",
            hint="run the same command with sudo, or as root in a virtual machine",
        )
    missing = {tool: package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise Unavailable(
            "a lab needs " + ", ".join(missing),
            hint="apt-get install " + " ".join(sorted(set(missing.values()))),
        )
    # A probe beats a guess: containers often show root and refuse namespaces.
    outcome = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, check=False, timeout=10
    )
    if outcome.returncode != 0:
        raise Unavailable(
            "this machine refuses new namespaces: " + outcome.stderr.decode().strip(),
            hint="a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN; a virtual machine has both",
        )


def namespaces(prefix: str) -> list[str]:
    """Return the named network namespaces that begin with `prefix`."""
    try:
        names = [entry.name for entry in NETNS_DIR.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.startswith(prefix))


def apply(plan: CablePlan) -> None:
    """Make what the plan says. Namespaces that exist already are left as they are."""
    present = set(namespaces(""))
    missing = [name for name in plan.namespaces if name not in present]
    _batch(["ip", "-batch", "-"], [f"netns add {name}" for name in missing])
    with ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda name: _tune(name, forwards=name in plan.forwarding), missing))
        _batch(["ip", "-batch", "-"], plan.cables)
        configure(plan.ip_lines, pool)
        jobs = [(["tc", "-n", name, "-batch", "-"], lines) for name, lines in plan.tc_lines.items()]
        list(pool.map(lambda job: _batch(*job), jobs))


def configure(ip_lines: dict[str, list[str]], pool: ThreadPoolExecutor | None = None) -> None:
    """Run lines of `ip` in each namespace."""
    jobs = [(["ip", "-n", name, "-batch", "-"], lines) for name, lines in ip_lines.items()]
    run_all: Callable[..., Iterator[None]] = map if pool is None else pool.map
    list(run_all(lambda job: _batch(*job), jobs))


def _batch(argv: Sequence[str], lines: Sequence[str]) -> None:
    if lines:
        run(argv, stdin="\n".join(lines) + "\n")


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a tool and return what it printed; Unavailable carries what it complained about."""
    try:
        outcome = subprocess.run(
            list(argv), input=stdin, capture_output=True, text=True, check=False,
            timeout=COMMAND_TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError as error:
        package = TOOLS.get(argv[0], argv[0])
        raise Unavailable(
            f"{argv[0]} is not installed", hint=f"apt-get install {package}"
        ) from error
    if outcome.returncode != 0:
        raise Unavailable(f"`{' '.join(argv)}` failed: {outcome.stderr.strip()}")
    return outcome.stdout


def unplug(ports: Mapping[str, str]) -> None:
    """Delete one port in each namespace, and with it the cable; on return it is gone.

    A deleted namespace takes its cables along at some later moment of the kernel's, which on a busy
    machine comes after the next cable of that name was wanted.
    """
    for namespace, port in ports.items():
        try:
            run(["ip", "-n", namespace, "link", "delete", "dev", port])
        except Unavailable:
            if port in links(namespace):
                raise


def delete_namespaces(names: Sequence[str]) -> None:
    """Delete namespaces; the kernel takes their interfaces and cables away some time later."""
    present = set(namespaces(""))
    lines = [f"netns delete {name}" for name in names if name in present]
    if lines:
        _batch(["ip", "-force", "-batch", "-"], lines)


def inside(namespace: str, act: Callable[[], T]) -> T:
    """Run `act` on a thread of its own within `namespace`; sockets made there stay there."""
    outcome: list[T] = []
    failure: list[OSError | NuageError] = []

    def enter() -> None:
        try:
            _setns(namespace)
            outcome.append(act())
        except (OSError, NuageError) as error:
            failure.append(error)

    thread = threading.Thread(target=enter, name=f"in {namespace}")
    thread.start()
    thread.join()
    if failure and isinstance(failure[0], NuageError):
        raise failure[0]
    if failure:
        raise Unavailable(f"in namespace {namespace}: {failure[0]}") from failure[0]
    return outcome[0]


def listen(namespace: str, address: str, port: int) -> socket.socket:
    """Return a TCP socket that listens at `address` inside `namespace`."""

    def bind() -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
        listener.setblocking(False)  # noqa: FBT003 - its only parameter
        return listener

    return inside(namespace, bind)


def datagrams(namespace: str, address: str, port: int) -> socket.socket:
    """Return a UDP socket bound to `address` inside `namespace`."""

    def bind() -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind((address, port))
        bound.setblocking(False)  # noqa: FBT003 - its only parameter
        return bound

    return inside(namespace, bind)


_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _setns(namespace: str) -> None:
    """Move this thread into `namespace`; `os.setns` comes with Python 3.12 only."""
    handle = os.open(NETNS_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(handle, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)


def _tune(namespace: str, *, forwards: bool) -> None:
    """Set what a router or a host of the lab needs in /proc/sys/net of its namespace."""
    values = {
        "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/default/rp_filter": "0",
        # A route over a line without carrier is no route: the second provider takes over.
        "ipv4/conf/all/ignore_routes_with_linkdown": "1",
        "ipv4/conf/default/ignore_routes_with_linkdown": "1",
        "ipv4/ip_forward": "1" if forwards else "0",
        # A rack switch sends on to the edge that is there: nobody is to remember which it was.
        "ipv4/conf/all/send_redirects": "0",
        "ipv4/conf/default/send_redirects": "0",
        # The lab's own addresses are IPv4; without this each idle port solicits for routers.
        "ipv6/conf/default/accept_ra": "0",
        "ipv6/conf/default/router_solicitations": "0",
    }

    def write() -> None:
        for key, value in values.items():
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path("/proc/sys/net", key).write_text(value, encoding="ascii")

    inside(namespace, write)


def processes_inside(prefix: str) -> list[int]:
    """Return the processes whose network namespace is one of the lab's."""
    inodes = set()
    for name in namespaces(prefix):
        with contextlib.suppress(OSError):
            inodes.add((NETNS_DIR / name).stat().st_ino)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
    return found


def mount_bpf(where: Path) -> None:
    """Give a node its own BPF file system, if this kernel has one."""
    where.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Unavailable):
        mount_pins(where)


def unmount_below(directory: Path) -> None:
    """Unmount whatever is mounted below `directory`, deepest first."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [line.split(" ")[1].encode().decode("unicode_escape") for line in mounts]
    below = [point for point in points if Path(point).is_relative_to(directory)]
    for point in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", point], capture_output=True, check=False, timeout=10)


def process_start(pid: int) -> int | None:
    """Return when a process began, in ticks since boot; None when there is none.

    A pid alone may have been given to another process since; pid and start never are.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def require_namespace(name: str, what: str) -> None:
    """Raise NotFound unless the namespace exists."""
    if not (NETNS_DIR / name).exists():
        raise NotFound(what, name, hint="is it switched on? `nuage lab status` tells")


def check_writable(directory: Path) -> None:
    """Raise InvalidRequest unless `directory` can hold the lab's state."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(
            f"the state directory {directory} cannot be made: {error}", field="state_dir"
        ) from error


def links(namespace: str) -> set[str]:
    """Return the names of a namespace's interfaces."""
    shown = run(["ip", "-n", namespace, "-oneline", "link", "show"])
    return {line.split(":")[1].strip().partition("@")[0] for line in shown.splitlines()}
