"""Virtual machines: what was asked, what is wanted, what is seen."""

from dataclasses import dataclass
from enum import Enum

from nuage.errors import InvalidRequest
from nuage.ids import IaasId, NodeId, PortId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.infrastructure import require_slug


class PowerWish(Enum):
    """What the owner wants a VM to do."""

    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class VmState(Enum):
    """What a VM is seen to do."""

    PLACING = "placing"
    STARTING = "starting"
    RUNNING = "running"
    MIGRATING = "migrating"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"  # its node has not reported for longer than its lease
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmShape:
    """The size of a VM. `preserved_vcpus` of its vCPUs have cores that nobody else is sold."""

    vcpu_count: int = 1
    memory_mib: int = 256
    preserved_vcpus: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.vcpu_count <= 128:
            raise InvalidRequest("a VM has 1 to 128 vCPUs", field="vcpu_count")
        if not 64 <= self.memory_mib <= 4 * 1024 * 1024:
            raise InvalidRequest(
                f"a VM has 64 MiB to 4 TiB of memory, not {self.memory_mib} MiB", field="memory_mib"
            )
        if not 0 <= self.preserved_vcpus <= self.vcpu_count:
            raise InvalidRequest(
                f"0 to all {self.vcpu_count} vCPUs can be preserved", field="preserved_vcpus"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vm:
    """A virtual machine. Its home is the site where it runs; `epoch` rises with each new owner.

    `user_data` is handed to cloud-init unread. `preference` is the cursor between
    performance (-1) and energy (+1) for this VM alone.
    """

    vm_id: VmId
    iaas_id: IaasId
    name: str
    shape: VmShape
    wish: PowerWish = PowerWish.RUNNING
    state: VmState = VmState.PLACING
    node_id: NodeId | None = None
    site_id: SiteId | None = None
    epoch: int = 0
    volumes: tuple[VolumeId, ...] = ()
    ports: tuple[PortId, ...] = ()
    segment_id: SegmentId | None = None
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    near: tuple[VmId, ...] = ()
    apart: tuple[VmId, ...] = ()
    fence: tuple[str, ...] = ()  # nodes, racks and sites: it runs there only
    ban: tuple[str, ...] = ()  # nodes, racks and sites: it never runs there
    preference: float = 0.0
    reboot_count: int = 0  # raised by one to ask for a reboot
    migrating_to: NodeId | None = None
    disk_slots: tuple[VolumeId, ...] = ()  # as its node has them plugged; a target must do alike
    move_within_s: float = 0.0  # its memory is to go within this, else it stays; 0: no limit
    downtime_ms: float = 0.0  # the guest's pause in its last live migration
    restart_count: int = 0  # how often its node started it anew, unasked, since it came there
    failure: str = ""
    asked_at: SiteId | None = None  # the site that took the request for it, and decided
    request_id: str = ""  # of the API request that changed it last: logs of its node carry it

    @property
    def is_let_go(self) -> bool:
        """Tell whether its home is stopping it because the quorum has given it to its target."""
        return self.migrating_to is not None and self.state in (VmState.STOPPING, VmState.STOPPED)

    def __post_init__(self) -> None:
        require_slug(self.name, "name")
        if not -1.0 <= self.preference <= 1.0:
            raise InvalidRequest("preference is -1 to 1", field="preference")
