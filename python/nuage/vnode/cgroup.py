"""Shares of CPU and disk by QoS class, and a memory bound, through cgroup v2.

Each guest's QEMU gets a group of its own below `root`. Where the tree is missing or may not be
written (a container, cgroup v1) nothing is done, and `available` says so.
"""

from pathlib import Path
from typing import Final

from nuage.ids import VmId
from nuage.model.contract import QosClass

# Weights of cgroup v2 (1 to 10000, 100 is the default): gold gets 4 times silver, 16 times bronze.
WEIGHTS: Final = {QosClass.GOLD: 400, QosClass.SILVER: 100, QosClass.BRONZE: 25}
# What QEMU needs beside the guest's memory: code, page tables, block and network buffers, and
# under TCG the translated code (1 GiB at most by default, 512 MiB asked for).
OVERHEAD_MIB: Final = 768
CONTROLLERS: Final = ("cpu", "io", "memory")


class CgroupTree:
    """The groups below one folder of a cgroup v2 file system."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    @property
    def available(self) -> bool:
        """Tell whether groups can be made here."""
        return self._root is not None and (self._root / "cgroup.procs").exists()

    def place(self, vm_id: VmId, pid: int, qos_class: QosClass, memory_mib: int) -> tuple[str, ...]:
        """Put a process into its guest's group; return the controllers that took effect."""
        if self._root is None or not self.available:
            return ()
        present = (self._root / "cgroup.controllers").read_text().split()
        wanted = [name for name in CONTROLLERS if name in present]
        try:
            enable = " ".join(f"+{name}" for name in wanted)
            (self._root / "cgroup.subtree_control").write_text(enable)
            group = self._root / vm_id
            group.mkdir(exist_ok=True)
            weight = WEIGHTS[qos_class]
            limits = {
                "cpu": ("cpu.weight", f"{weight}"),
                "io": ("io.weight", f"default {weight}"),
                "memory": ("memory.max", f"{(memory_mib + OVERHEAD_MIB) * 1024 * 1024}"),
            }
            for name in wanted:
                file, value = limits[name]
                (group / file).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            return ()  # a share is a service, not a promise: the guest runs without it
        return tuple(wanted)

    def remove(self, vm_id: VmId) -> None:
        """Remove the guest's group once its process has ended."""
        if self._root is not None and (self._root / vm_id).is_dir():
            try:
                (self._root / vm_id).rmdir()
            except OSError:
                return  # still busy: the next start takes the same group
