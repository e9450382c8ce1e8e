"""How a process becomes one of a node's: the command line that puts it there. Pure.

The chain of `exec` keeps the process id: what is started is, in the end, the service itself,
within the node's cgroup, network namespace, host name and `/sys`. `/sys/fs/bpf` is the
node's own, shared by its services and kept over their restarts, gone when the power goes.
`/sys/fs/cgroup` is the node's own cgroup, as in a container. `/run/wireguard` is the node's own
too: user-space tunnels are named alike in every federation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuage.lab.kernel import NETNS_DIR

_JOIN: Final = 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"'
_SETTLE: Final = (
    'hostname "$1" 2>/dev/null;'
    ' (cd "$3" && mount -t sysfs sysfs /sys && mount -c --bind . /sys/fs/cgroup) 2>/dev/null'
    ' && { [ -d "$2" ] && mount --bind "$2" /sys/fs/bpf 2>/dev/null; };'
    ' mkdir -p "$2/../wireguard" /run/wireguard'
    ' && mount --bind "$2/../wireguard" /run/wireguard;'
    ' shift 3; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's processes live."""

    node: str
    namespace: str
    cgroup: Path
    bpf: Path

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` wrapped so that it runs on this node."""
        return [
            "/bin/sh", "-c", _JOIN, "sh", str(self.cgroup),
            "nsenter", f"--net={NETNS_DIR / self.namespace}",
            "unshare", "--mount", "--uts", "--propagation", "slave",
            "/bin/sh", "-c", _SETTLE, "sh", self.node, str(self.bpf), str(self.cgroup),
            *argv,
        ]  # fmt: skip
