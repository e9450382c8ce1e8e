"""What an operator owns: datacenters, racks, nodes, PDUs (paper §II-A)."""

import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nuage.errors import InvalidRequest
from nuage.ids import SLUG_CHARS_MAX, NodeId, PduId, RackId, SiteId, is_slug

SITES_MAX = 16  # slices of a segment's addresses; an etcd of one member a site is happy to 7


def require_slug(text: str, field: str) -> None:
    """Raise InvalidRequest unless `text` is a slug."""
    if not is_slug(text):
        raise InvalidRequest(
            f"{text!r} is not a name: lower-case letters, digits and single dashes, "
            f"at most {SLUG_CHARS_MAX}, beginning with a letter",
            field=field,
        )


def require_country(code: str, field: str) -> None:
    """Raise InvalidRequest unless `code` looks like an ISO 3166-1 alpha-2 code (``FR``)."""
    if not (len(code) == 2 and code.isascii() and code.isalpha() and code.isupper()):
        raise InvalidRequest(f"{code!r} is not a country code such as FR", field=field)


class NodeRole(Enum):
    """What a node is for. A controller may share a machine with any of the others."""

    CONTROLLER = "controller"
    VNODE = "vnode"
    IONODE = "ionode"
    EDGE = "edge"


PORTAL_GROUPS = 65_535


def portal_group_of(node_id: NodeId) -> int:
    """Return the tag, 1 to 65535, of an IO-node's iSCSI portals (RFC 7143 §3.1.1).

    It follows from the id, so that nobody has to hand out numbers over all sites. Two nodes that
    share one are two paths of one group: a host then has one of them less.
    """
    return 1 + zlib.crc32(node_id.encode()) % PORTAL_GROUPS


class NodePower(Enum):
    """What a site wants of a node's power: a node that is off on purpose is not lost."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who runs a datacenter; `country` is where the company answers to the law."""

    name: str
    country: str

    def __post_init__(self) -> None:
        require_country(self.country, "operator.country")


@dataclass(frozen=True, slots=True, kw_only=True)
class Datacenter:
    """One site of the federation. It stays its operator's and works when cut off.

    `tier` is TIA-942's 1 to 4 (paper table II). `addresses` are ``host:port`` of the
    site's controllers as other sites reach them. `number` is the site's own in the federation,
    0 to 15, given at its joining: it owns that slice of each segment's addresses.
    """

    site_id: SiteId
    place: str
    country: str
    operator: Operator
    tier: int
    power_capacity_watts: float
    latitude_deg: float = 0.0
    longitude_deg: float = 0.0
    addresses: tuple[str, ...] = ()
    number: int = 0

    def __post_init__(self) -> None:
        require_slug(self.site_id, "site_id")
        if not 0 <= self.number < SITES_MAX:
            raise InvalidRequest(f"a site's number is 0 to {SITES_MAX - 1}", field="number")
        require_country(self.country, "country")
        if not 1 <= self.tier <= 4:
            raise InvalidRequest(f"tier {self.tier} is not one of TIA-942's 1 to 4", field="tier")
        if self.power_capacity_watts <= 0:
            raise InvalidRequest(
                f"power capacity {self.power_capacity_watts} W is not above zero",
                field="power_capacity_watts",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rack:
    """The unit of administration (paper §II-A)."""

    rack_id: RackId
    site_id: SiteId
    name: str


@dataclass(frozen=True, slots=True)
class ProviderLine:
    """An edge's line to a provider: its public address there, and what the line promises."""

    provider: str
    address: str
    mtu_bytes: int = 1500
    mbit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLoss:
    """A site's signed word that a disk of its IO-node is lost for good: who said it, and when.

    `disk_serial` is what receipts call the disk; `signature` (base64) is the site's.
    """

    site_id: SiteId
    node_id: NodeId
    disk_serial: str
    declared_by: str
    time_ms: int
    key_id: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostDisk:
    """A disk that was declared lost; `erase`: should it come back, all that lies there goes."""

    loss: DiskLoss
    erase: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of a rack. `bmc_url` is its Redfish service; `outlets` are PDU outlet names.

    One that is `draining` is in maintenance, and its copies of volumes move to others.
    `revoked_generation` of the federation's keys began when its certificates were revoked last.
    `version` is the product's, as the node's agent said when it began. An edge has `lines`, the
    public half of its trunk key, and says when its trunks need no encryption: only both ends' word
    makes a bare trunk. `lost_disks` of an IO-node were declared lost.
    """

    node_id: NodeId
    site_id: SiteId
    rack_id: RackId
    name: str
    roles: tuple[NodeRole, ...]
    address: str = ""
    cpu_count: int = 0
    memory_mib: int = 0
    bmc_url: str = ""
    outlets: tuple[str, ...] = ()
    maintenance: bool = False
    draining: bool = False
    power: NodePower = NodePower.ON
    lines: tuple[ProviderLine, ...] = ()
    trunk_key: str = ""
    bare_trunks: bool = False
    revoked_generation: int = 0
    version: str = ""
    lost_disks: tuple[LostDisk, ...] = ()

    @property
    def is_revoked(self) -> bool:
        """Tell whether nothing goes to it since it was revoked; its operator takes it back."""
        return self.revoked_generation > 0 and self.maintenance


class PduKind(Enum):
    """The protocol that a PDU speaks."""

    REDFISH = "redfish"
    SNMP = "snmp"


_PDU_SCHEMES: Final = {
    "https": PduKind.REDFISH, "http": PduKind.REDFISH, "snmp": PduKind.SNMP,
}  # fmt: skip


def pdu_kind(url: str) -> PduKind:
    """Return the kind of PDU that an address names.

    Raises:
        InvalidRequest: it is neither ``https:`` nor ``snmp:``.
    """
    try:
        return _PDU_SCHEMES[url.partition(":")[0]]
    except KeyError:
        raise InvalidRequest(
            f"{url!r} is no address of a PDU", field="pdus", hint="https://… or snmp://…"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pdu:
    """A power distribution unit of a rack, read at `url`: ``https:`` Redfish, ``snmp:`` SNMP."""

    pdu_id: PduId
    site_id: SiteId
    rack_id: RackId
    name: str
    url: str
