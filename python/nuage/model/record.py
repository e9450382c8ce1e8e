"""How an object stands in a catalogue: the value, its home and its revision."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from nuage.ids import IaasId, SiteId
from nuage.model.energy import EnergyRules, EnergySource, SiteEnergy
from nuage.model.iaas import Iaas, IaasKey, PastIaas
from nuage.model.identity import User
from nuage.model.image import Image
from nuage.model.infrastructure import Datacenter, Node, Pdu, Rack
from nuage.model.network import AddressPool, Port, PublicAddress, SecurityGroup, Segment
from nuage.model.placement import Decision
from nuage.model.status import Migration, NodeStatus
from nuage.model.trust import SiteTrust
from nuage.model.vm import Vm
from nuage.model.volume import Erasure, Volume

Noun: TypeAlias = (
    Datacenter
    | Rack
    | Node
    | Pdu
    | Iaas
    | IaasKey
    | PastIaas
    | Image
    | Volume
    | Erasure
    | Vm
    | Segment
    | Port
    | SecurityGroup
    | AddressPool
    | PublicAddress
    | User
    | Decision
    | NodeStatus
    | Migration
    | SiteTrust
    | SiteEnergy
    | EnergyRules
    | EnergySource
)

# The one list of what a catalogue stores: kind as written in it, its class, the id's field.
KINDS: Final[dict[str, tuple[type[Noun], str]]] = {
    "datacenter": (Datacenter, "site_id"),
    "rack": (Rack, "rack_id"),
    "node": (Node, "node_id"),
    "pdu": (Pdu, "pdu_id"),
    "iaas": (Iaas, "iaas_id"),
    "iaas-key": (IaasKey, "iaas_id"),
    "past-iaas": (PastIaas, "iaas_id"),
    "image": (Image, "image_id"),
    "volume": (Volume, "volume_id"),
    "erasure": (Erasure, "volume_id"),
    "vm": (Vm, "vm_id"),
    "segment": (Segment, "segment_id"),
    "port": (Port, "port_id"),
    "security-group": (SecurityGroup, "group_id"),
    "address-pool": (AddressPool, "pool_id"),
    "address": (PublicAddress, "address"),
    "user": (User, "user_id"),
    "decision": (Decision, "vm_id"),
    "node-status": (NodeStatus, "node_id"),
    "migration": (Migration, "vm_id"),
    "trust": (SiteTrust, "site_id"),
    "site-energy": (SiteEnergy, "site_id"),
    "energy-rules": (EnergyRules, "site_id"),
    "energy-source": (EnergySource, "source_id"),
}
KIND_OF: Final[dict[type[object], str]] = {cls: kind for kind, (cls, _) in KINDS.items()}


def iaas_of(value: Noun) -> IaasId | None:
    """Return the IaaS that an object belongs to, None for what is a site's or the federation's."""
    match value:
        case (
            Iaas() | IaasKey() | Image() | Volume() | Erasure() | Vm() | Segment() | Port()
            | SecurityGroup() | PublicAddress()
        ):  # fmt: skip
            return value.iaas_id
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One stored object.

    `home` is the only site that writes it. `revision` is the home catalogue's revision of
    the last change: it rises by one with each write at that site, over all kinds.
    `epoch` is the owner's epoch for what can move between sites, else 0.
    """

    kind: str
    id: str
    home: SiteId
    revision: int
    epoch: int
    changed_s: float
    value: Noun
