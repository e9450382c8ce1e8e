"""What a site says of its nodes, and of a VM on its way: facts that others need to see."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nuage.ids import IaasId, NodeId, SiteId, VmId


class SpaceAlarm(Enum):
    """How an IO-node stands for space: low before it hurts, full before writers are refused."""

    NONE = ""
    LOW = "low"
    FULL = "full"


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
class NodeStatus:
    """The last facts of a node, written by its site when they change.

    `replica_addresses` tells heads of other sites where the daemon of an IaaS listens.
    """

    node_id: NodeId
    site_id: SiteId
    connected: bool
    since_s: float
    replica_addresses: dict[IaasId, str] = field(default_factory=dict)
    free_bytes: int = 0
    total_bytes: int = 0
    accelerator: str = ""
    orphans: tuple[VmId, ...] = ()
    alarm: SpaceAlarm = SpaceAlarm.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A VM arriving at `target_node`; written by the target's site, gone once it has arrived."""

    vm_id: VmId
    source_site: SiteId
    source_node: NodeId
    target_node: NodeId
    source_epoch: int
    target_epoch: int
    login_generation: int = 0
    address: str = ""
    failure: str = ""
