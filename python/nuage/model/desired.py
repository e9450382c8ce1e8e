"""What a controller wants of a node, and what the node reports back.

Desired state comes down whole, numbered by `revision`; an agent keeps the last one on its disk
and works towards it without its controller. Reports are facts; nothing in them is a command.
"""

from dataclasses import dataclass, field
from enum import Enum

from nuage.ids import IaasId, NodeId, PortId, SegmentId, SiteId, VmId, VolumeId
from nuage.model.contract import (
    ANY_DISK,
    NO_LIMITS,
    NO_RPO,
    AckPolicy,
    DiskClass,
    DiskRule,
    JournalRule,
    Limits,
    QosClass,
    RpoRule,
)
from nuage.model.history import NO_PAST, CloneOrigin, PastSeen
from nuage.model.infrastructure import LostDisk
from nuage.model.placement import EstimationVector
from nuage.model.status import OVERCOMMIT_RATIO
from nuage.model.vm import PowerWish, VmShape, VmState
from nuage.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskWish:
    """A volume as a VM sees it: an iSCSI disk. The CHAP secret is never logged.

    Where `chap_generation` differs, a running guest logs in anew. `far_node` is the IO-node where
    that is at another site: it is reached over TLS, by the port after the portal's.
    """

    volume_id: VolumeId
    portal: str
    iqn: str
    chap_user: str
    chap_secret: str
    epoch: int
    size_bytes: int
    chap_generation: int = 0
    far_node: str = ""
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PortWish:
    """A VM's network plug."""

    port_id: PortId
    segment_id: SegmentId
    label: int
    mac: str
    addresses: tuple[str, ...]
    gateway: str
    mtu_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingMigration:
    """The VM arrives from another node: start it waiting for its memory.

    `disk_slots` is the source's `VmReport.disk_slots`: both ends must show the same machine.
    Its memory comes from `source_address`, the source node's. `secret` is known to both ends alone.
    """

    source_node_id: NodeId
    source_epoch: int
    disk_slots: tuple[VolumeId, ...] = ()
    source_address: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingMigration:
    """Send the VM's memory to `address` (``host:port``), where the target waits.

    It switches over only once `may_switch` is set, after the quorum has promised the VM to the
    target; a source that is ready before stands still and reports `ready_to_switch`. It gives up
    what has not all gone `within_s` seconds (0: whatever time it takes). `secret` is known to both
    ends alone.
    """

    target_node_id: NodeId
    address: str
    may_switch: bool = False
    downtime_ms_max: int = 100
    bandwidth_bytes_per_s_max: int = 0  # 0: as fast as the link goes
    attempt: int = 0  # raise it to try the same target address again after a failure
    within_s: float = 0.0
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmWish:
    """One VM that a V-node shall have, and how. `epoch` fences: a lower one is refused."""

    vm_id: VmId
    iaas_id: IaasId
    name: str
    shape: VmShape
    wish: PowerWish
    epoch: int
    disks: tuple[DiskWish, ...]
    ports: tuple[PortWish, ...]
    user_data: str = ""
    ssh_keys: tuple[str, ...] = ()
    reboot_count: int = 0
    qos_class: QosClass = QosClass.SILVER
    incoming: IncomingMigration | None = None
    outgoing: OutgoingMigration | None = None
    lease_until_s: float = 0.0  # 0: none. After it the agent stops the VM (CutOffRule.FAIL_OVER)
    request_id: str = ""  # of the API request behind the last change, for logs


@dataclass(frozen=True, slots=True, kw_only=True)
class VnodeWish:
    """All that a V-node shall run. A VM it has that is not here is an orphan: reported, kept.

    `withheld` are VMs of the node that cannot be told of now: a disk opens anew, say. What ended of
    an orphan that is not among them goes; None, of an older controller, says nothing of any.

    `lease_term` counts the site's leases: what an answer under a later one tells of its length
    says nothing about the VMs here, which may have been taken over in between.
    """

    revision: int
    vms: tuple[VmWish, ...]
    lease_term: int = 0
    withheld: tuple[VmId, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmReport:
    """What a V-node sees of one VM. `downtime_ms` is QEMU's own figure of the last migration.

    `migrated`: it has gone to its target. `is_lost`: whether it has, nobody here can know, and it
    does not run here.
    """

    vm_id: VmId
    state: VmState
    epoch: int
    orphan: bool = False
    failure: str = ""
    console_bytes: int = 0
    migration_address: str = ""
    migration_progress: float = 0.0
    ready_to_switch: bool = False
    migrated: bool = False
    is_lost: bool = False
    downtime_ms: float = 0.0
    cpu_seconds: float = 0.0
    reboot_count: int = 0
    restart_count: int = 0  # how often it had ended, unasked, and was started anew
    disk_slots: tuple[VolumeId, ...] = ()  # "" where a slot is free


@dataclass(frozen=True, slots=True, kw_only=True)
class VnodeReport:
    """A V-node's facts; `wish_revision` is the last desired state it has taken.

    `unreadable`: VMs of which it has a folder that says nothing. What runs of them nobody sees.
    """

    node_id: NodeId
    site_id: SiteId
    wish_revision: int
    vms: tuple[VmReport, ...]
    estimate: EstimationVector
    unreadable: tuple[VmId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaWish:
    """A copy of a volume that an IO-node shall keep."""

    volume_id: VolumeId
    iaas_id: IaasId
    size_bytes: int
    journal: JournalRule
    origin: CloneOrigin | None = None  # make it from that volume's past, which is here
    encrypted: bool = False
    leads: bool = False  # the volume's head opens here
    joins: bool = False  # the volume was written to elsewhere: an empty copy vouches for nothing
    epoch: int = 0  # of the volume: who joins hears no head of an earlier one
    sector_bytes: int = SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPeer:
    """Where a head finds a replica."""

    node_id: NodeId
    site_id: SiteId
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChapWish:
    """A name and secret of CHAP: an initiator's that may log in, or the target's own."""

    user: str
    secret: str = field(repr=False)


class PathState(Enum):
    """What a path to a volume does for a host (SPC-4 §5.15.2.4)."""

    OPTIMIZED = "optimized"  # the head is here
    STANDBY = "standby"  # it may come here


@dataclass(frozen=True, slots=True)
class PortGroup:
    """The portals of an IO-node, by its portal group's tag, and what they do for a volume now."""

    tag: int
    state: PathState


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerSet:
    """The copies that acknowledged together before a volume's set of copies was changed."""

    policy: AckPolicy
    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWish:
    """A volume whose writes this IO-node shall order, under `epoch` from the quorum.

    `position` is the place of the node's own copy among all; `replicas` are the others in order.
    `rpo` binds the copies on the nodes `bound`: not those that are still being filled.
    `accepts_loss`: the owner's word to go on with what the copies have, though it is not all.
    `former`: whom the head must hear besides, once after the set of copies was changed.
    `initiators`: who else is let in by name, empty: whoever knows a secret. `chap_own`: by what the
    target proves itself to a host. `groups` are the paths that a host has, this one first.
    """

    volume_id: VolumeId
    iaas_id: IaasId
    epoch: int
    policy: AckPolicy
    replicas: tuple[ReplicaPeer, ...]
    iqn: str
    chap: tuple[ChapWish, ...]
    image_sha256: str = ""  # fill a fresh volume from this image first
    limits: Limits = NO_LIMITS
    rpo: RpoRule = NO_RPO
    bound: tuple[NodeId, ...] = ()
    position: int = 0
    accepts_loss: bool = False
    former: FormerSet | None = None
    initiators: tuple[str, ...] = ()
    groups: tuple[PortGroup, ...] = ()
    chap_own: ChapWish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWish:
    """A volume that this IO-node shall show to a host while its head is elsewhere.

    The host keeps a session here, and goes on by it once the head opens here. `groups` are all its
    paths, this one first.
    """

    volume_id: VolumeId
    iaas_id: IaasId
    iqn: str
    chap: tuple[ChapWish, ...]
    initiators: tuple[str, ...]
    groups: tuple[PortGroup, ...]
    chap_own: ChapWish | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonWish:
    """The storage daemon of one IaaS on this IO-node; data key by reference, never by value.

    `key_id` names the key that the daemon shall have; ``KEY_SHREDDED``: none, ever again. `disk`
    says what it has of each disk, and on which a new copy goes.

    Only what `erased` names is deleted. A copy that is in no wish is kept and reported: its
    volume may be of a site that has not been heard yet.
    """

    iaas_id: IaasId
    label: int
    replicas: tuple[ReplicaWish, ...]
    heads: tuple[HeadWish, ...]
    erased: tuple[VolumeId, ...] = ()
    key_id: str = ""
    disk: DiskRule = ANY_DISK
    paths: tuple[PathWish, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetKey:
    """A controller gives an IO-node the data key of an IaaS, hexadecimal; it is kept in memory.

    `earlier` are those before it, to read what was written with them.
    """

    iaas_id: IaasId
    key: str = field(repr=False)
    earlier: tuple[str, ...] = field(default=(), repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return all of them, the one to write with first."""
        return self.key, *self.earlier


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeWish:
    """All that an IO-node shall store and serve."""

    revision: int
    daemons: tuple[DaemonWish, ...]
    neighbours: tuple[str, ...] = ()  # addresses of the site's nodes: iSCSI is in clear from there
    lost_disks: tuple[LostDisk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LostBlocks:
    """What a pass found rotten in a copy: blocks that no copy has, segments that are unreadable."""

    block_count: int = 0
    segment_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredCopy:
    """A copy that another one, on another disk of its node, has taken the place of.

    It ends with the write `sequence`, and lies aside on `disk` since `since_s`.
    """

    disk: str
    since_s: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """What an IO-node sees of one copy.

    `lost` is what no copy has, `quarantine_bytes` what this one has put aside of its log; None:
    it cannot be told now.
    """

    volume_id: VolumeId
    iaas_id: IaasId
    state: str
    durable_sequence: int = 0
    mapped_bytes: int = 0
    journal_bytes: int = 0
    failure: str = ""
    disk: str = ""
    lost: LostBlocks | None = None
    quarantine_bytes: int | None = None
    retired: tuple[RetiredCopy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """How far a copy is that is made anew from the blocks of its head."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyReport:
    """How a head sees another copy: `is_live` once it gets each write as it is made.

    `lag_writes`, `lag_bytes` and `lag_s` are what it lacks, the last the age of the oldest of it.
    `lag_is_at_least`: this head never heard it, and cannot tell what it lacks of former heads'.
    `is_let_go`: it is cut off, or not yet near again, and no bound holds writers back for it.
    `silent_since_s`: it is cut off, and was heard last then. `is_failed`: it cannot take the log.
    `rebuild`: the log does not reach back to what it has, or its disk is new, and it is made anew.
    """

    node_id: NodeId
    is_connected: bool
    is_live: bool
    durable_sequence: int = 0
    lag_writes: int = 0
    lag_bytes: int = 0
    lag_s: float = 0.0
    lag_is_at_least: bool = False
    is_let_go: bool = False
    silent_since_s: float | None = None
    is_failed: bool = False
    rebuild: Rebuild | None = None


class Answering(Enum):
    """How a head answers writes, by the bound on its copies' lag."""

    AT_ONCE = "at_once"
    SLOWED = "slowed"
    HELD = "held"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadReport:
    """What an IO-node sees of one head. `portal` is where initiators log in.

    `is_lost`: what was acknowledged is on no copy any more; no other node can help.
    `lacks_origin`: the past that the volume should start from is not there. `is_locked`: it waits
    for its data key. `key_id` names the data key that it writes with, `next_key_id` the one that a
    head opened now would ("": in clear).
    """

    volume_id: VolumeId
    iaas_id: IaasId
    state: str
    epoch: int
    portal: str = ""
    sequence: int = 0
    fill_bytes: int = 0
    failure: str = ""
    is_lost: bool = False
    answering: Answering = Answering.AT_ONCE
    past: PastSeen = NO_PAST
    lacks_origin: bool = False
    copies: tuple[CopyReport, ...] = ()
    key_id: str = ""
    next_key_id: str = ""
    is_locked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReport:
    """A disk of an IO-node; `capacity` is what it does a second (0: not known).

    `for_bases`: old data of volumes whose journals lie on other disks rests here. `serial` is what
    receipts call it ("": an agent that does not say).
    """

    name: str
    disk_class: DiskClass
    free_bytes: int
    total_bytes: int
    capacity: Limits = NO_LIMITS
    for_bases: bool = False
    serial: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsentDisk:
    """A disk that was in service and is not: where it was or is, and why.

    `is_back`: it is there again. One that was declared lost is named only if it is.
    """

    serial: str
    name: str
    is_back: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareReport:
    """What an IaaS may take of a disk now (`limits`, 0: all there is), and what it takes.

    `waits`: it would take more.
    """

    iaas_id: IaasId
    disk: str
    rule: DiskRule
    limits: Limits
    operations_per_s: float
    bytes_per_s: float
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IonodeReport:
    """An IO-node's facts. `replica_addresses` maps an IaaS to its daemon's ``host:port``.

    `portals` maps it to where initiators log in, `daemon_versions` to the version of the product
    that its daemon was started from.

    `erased` are the copies that the wish said to erase and that are gone. `locked` are the IaaSes
    whose data key is wanted here and missing. `outdated` are those whose daemon serves heads, and
    so was not yet started anew with disks that came since. `overcommit_ratio` is how many bytes of
    volumes it may be promised for each byte of its disks.
    """

    node_id: NodeId
    site_id: SiteId
    wish_revision: int
    replicas: tuple[ReplicaReport, ...]
    heads: tuple[HeadReport, ...]
    replica_addresses: dict[IaasId, str]
    erased: tuple[VolumeId, ...] = ()
    locked: tuple[IaasId, ...] = ()
    disks: tuple[DiskReport, ...] = ()
    shares: tuple[ShareReport, ...] = ()
    portals: dict[IaasId, str] = field(default_factory=dict)
    daemon_versions: dict[IaasId, str] = field(default_factory=dict)
    absent_disks: tuple[AbsentDisk, ...] = ()
    outdated: tuple[IaasId, ...] = ()
    overcommit_ratio: float = OVERCOMMIT_RATIO
