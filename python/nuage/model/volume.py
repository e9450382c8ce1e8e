"""Volumes: a journal each, with one head and its replicas (paper §II-C)."""

from dataclasses import dataclass
from enum import Enum

from nuage.errors import InvalidRequest
from nuage.ids import IaasId, ImageId, NodeId, SiteId, VmId, VolumeId
from nuage.model.contract import NO_LIMITS, AckPolicy, JournalRule, Limits
from nuage.model.history import CloneOrigin
from nuage.units import MIB, SECTOR_BYTES, SECTORS_BYTES, TIB

VOLUME_BYTES_MAX = 64 * TIB


class VolumeState(Enum):
    """Life of a volume."""

    CREATING = "creating"
    READY = "ready"
    LOST = "lost"  # its disks are gone, and what was acknowledged with them
    DELETING = "deleting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlace:
    """One copy of a volume. `address` is where its daemon listens for the head, ``host:port``."""

    node_id: NodeId
    site_id: SiteId
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideHost:
    """A host that is no VM and uses a volume: its iSCSI name, and under which name it logs in.

    Its secret derives from `login` as those of VMs do; another `login` is another secret. With
    `mutual` the target has a secret of its own, too, and proves itself to a host that asks.
    """

    initiator: str
    login: str
    mutual: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A block device of an IaaS. `epoch` rises with each change of head, by the quorum alone.

    `head` orders the writes; it is one of the replicas' nodes, near the VM. `portal` is the
    head's iSCSI address ``host:port``, `iqn` its target name; the LUN is 0.

    `without` are copies that the head goes on without, by a decision; `catching_up` have not all of
    it yet; `leaving` go once all others are whole. `whole` are those that acknowledged writes were
    counted on when the head last became ready, under `settled_epoch`, by `settled_policy`: a head
    may open there. Under `loss_accepted_epoch` the head goes on with what the copies have, by the
    owner's decision.

    `limits` are the owner's, within what its class allows.

    `sector_bytes` is what initiators address it by, for ever: 512 (512e) or 4096 (4Kn).

    `host` uses it from outside, by a path to each copy; then no VM does.

    `held_up` says why a change of its copies has not gone on for a while, and what would help.

    `is_template`: it holds an image for the volumes of its IaaS that start from it.
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
    host: OutsideHost | None = None
    replicas: tuple[ReplicaPlace, ...] = ()
    head: NodeId | None = None
    epoch: int = 0
    portal: str = ""
    iqn: str = ""
    failure: str = ""
    held_up: str = ""
    without: tuple[NodeId, ...] = ()
    catching_up: tuple[NodeId, ...] = ()
    leaving: tuple[NodeId, ...] = ()
    whole: tuple[NodeId, ...] = ()
    settled_epoch: int = 0
    settled_policy: AckPolicy | None = None
    loss_accepted_epoch: int = 0
    is_template: bool = False
    limits: Limits = NO_LIMITS
    sector_bytes: int = SECTOR_BYTES

    def __post_init__(self) -> None:
        if self.sector_bytes not in SECTORS_BYTES:
            raise InvalidRequest(
                f"a volume has sectors of 512 or 4096 bytes, not {self.sector_bytes}",
                field="sector_bytes",
            )
        if not MIB <= self.size_bytes <= VOLUME_BYTES_MAX or self.size_bytes % 4096:
            raise InvalidRequest(
                f"a volume has 1 MiB to 64 TiB in steps of 4 KiB, not {self.size_bytes} bytes",
                field="size_bytes",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Copies that shall be erased, by the word of the volume's home; gone once all of them are.

    `is_deleted`: the volume is gone, whatever record of it up to `volume_epoch` a site may have.
    """

    volume_id: VolumeId
    iaas_id: IaasId
    name: str
    label: int
    places: tuple[ReplicaPlace, ...]
    is_deleted: bool = True
    volume_epoch: int = 0
