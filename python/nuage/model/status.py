"""What a site says of its nodes, and of a VM on its way: facts that others need to see."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.contract import NO_LIMITS, DiskClass, Limits


class SpaceAlarm(Enum):
    """How an IO-node stands for space: low before it hurts, full before writers are refused."""

    NONE = ""
    LOW = "low"
    FULL = "full"


NODE_LOST_AFTER_S: Final = 6.0  # of silence; agents report every two seconds at least
FREE_SHARE_MIN: Final = 0.05  # of a disk, kept for seals, epochs and compaction
# Bytes of volumes that an IO-node may be promised for each byte of its disks, if it says nothing.
OVERCOMMIT_RATIO: Final = 4.0
OVERCOMMIT_RATIO_BOUNDS: Final = (0.1, 100.0)  # least and most that one may say
# Free share of the disk below which an alarm is raised, and above which it ends.
ALARM_SHARES: Final = {SpaceAlarm.LOW: (0.20, 0.25), SpaceAlarm.FULL: (0.07, 0.10)}


def space_alarm(before: SpaceAlarm, free_bytes: int, total_bytes: int) -> SpaceAlarm:
    """Return the alarm now; between its two thresholds one stays as it was."""
    if total_bytes <= 0:
        return SpaceAlarm.NONE
    share = free_bytes / total_bytes
    held = {SpaceAlarm.LOW: {SpaceAlarm.LOW, SpaceAlarm.FULL}, SpaceAlarm.FULL: {SpaceAlarm.FULL}}
    for alarm in (SpaceAlarm.FULL, SpaceAlarm.LOW):
        begins, ends = ALARM_SHARES[alarm]
        if share < (ends if before in held[alarm] else begins):
            return alarm
    return SpaceAlarm.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskStatus:
    """A disk of an IO-node. `capacity` is what it does a second, 0: not known.

    `for_bases`: old data of volumes whose journals lie on faster disks rests here, too.
    """

    name: str
    disk_class: DiskClass
    free_bytes: int
    total_bytes: int
    capacity: Limits = NO_LIMITS
    for_bases: bool = False
    alarm: SpaceAlarm = SpaceAlarm.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The last facts of a node, written by its site when they change.

    `replica_addresses` tells heads of other sites where the daemon of an IaaS listens, `portals`
    hosts where its iSCSI door is, `daemon_versions` which version of the product it was started
    from ("": one that does not say). `restarting`: its agent was stopped in order a moment ago. Of
    an IO-node, `free_bytes` and `total_bytes` are of all its disks, `alarm` is the worst;
    `overcommit_ratio` times `total_bytes` may be promised to volumes, and `promise_alarm` tells
    when little of that is left.
    """

    node_id: NodeId
    site_id: SiteId
    connected: bool
    since_s: float
    replica_addresses: dict[IaasId, str] = field(default_factory=dict)
    portals: dict[IaasId, str] = field(default_factory=dict)
    daemon_versions: dict[IaasId, str] = field(default_factory=dict)
    free_bytes: int = 0
    total_bytes: int = 0
    accelerator: str = ""
    orphans: tuple[VmId, ...] = ()
    unreadable: tuple[VmId, ...] = ()  # VMs of which the node has a folder that says nothing
    alarm: SpaceAlarm = SpaceAlarm.NONE
    disks: tuple[DiskStatus, ...] = ()
    restarting: bool = False
    overcommit_ratio: float = OVERCOMMIT_RATIO
    promise_alarm: SpaceAlarm = SpaceAlarm.NONE

    @property
    def promise_bytes_max(self) -> int:
        """How many bytes of volumes may have copies on an IO-node."""
        return int(self.total_bytes * self.overcommit_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A VM arriving at `target_node`; written by the target's site, gone once it has arrived."""

    vm_id: VmId
    source_site: SiteId
    source_node: NodeId
    target_node: NodeId
    source_epoch: int
    target_epoch: int
    address: str = ""
    failure: str = ""
