"""Volumes: a journal each, with one head and its replicas (paper §II-C)."""

from dataclasses import dataclass
from enum import Enum

from nuage.errors import InvalidRequest
from nuage.ids import IaasId, ImageId, NodeId, SiteId, VmId, VolumeId
from nuage.model.contract import AckPolicy, JournalRule
from nuage.model.history import CloneOrigin
from nuage.units import MIB, TIB

VOLUME_BYTES_MAX = 64 * TIB


class VolumeState(Enum):
    """Life of a volume."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlace:
    """One copy of a volume. `address` is where its daemon listens for the head, ``host:port``."""

    node_id: NodeId
    site_id: SiteId
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A block device of an IaaS. `epoch` rises with each change of head, by the quorum alone.

    `head` orders the writes; it is one of the replicas' nodes, near the VM. `portal` is the
    head's iSCSI address ``host:port``, `iqn` its target name; the LUN is 0.
    """

    volume_id: VolumeId
    iaas_id: IaasId
    name: str
    size_bytes: int
    ack_policy: AckPolicy
    journal: JournalRule
    state: VolumeState
    image_id: ImageId | None = None
    origin: CloneOrigin | None = None
    vm_id: VmId | None = None
    replicas: tuple[ReplicaPlace, ...] = ()
    head: NodeId | None = None
    epoch: int = 0
    portal: str = ""
    iqn: str = ""
    failure: str = ""

    def __post_init__(self) -> None:
        if not MIB <= self.size_bytes <= VOLUME_BYTES_MAX or self.size_bytes % 4096:
            raise InvalidRequest(
                f"a volume has 1 MiB to 64 TiB in steps of 4 KiB, not {self.size_bytes} bytes",
                field="size_bytes",
            )
