"""What a controller wants of an RBridge, and what the RBridge reports (paper §II-D).

Each V-node and each edge is one RBridge. Its wish is worked out from the catalogue alone
(`iaas.fabric`): whom it is joined to, which stations are where, what each port lets through.
Keys in a wish are secret: they travel on the channel, rest in 0600 files and are never logged.
"""

from dataclasses import dataclass, field

from nuage.ids import NodeId, PortId, SiteId
from nuage.model.contract import QosClass
from nuage.model.infrastructure import ProviderLine


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkWish:
    """A trunk inside the site: a point-to-point VXLAN port to another node's address."""

    node_id: NodeId
    address: str
    vni: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTrunkWish:
    """A trunk to another site's edge, over one provider's line.

    `number` is the federation's for this pair; both ends work it out alike.
    """

    number: int
    here: ProviderLine
    there: ProviderLine
    there_site: SiteId
    there_node: NodeId
    public_key: str
    encrypted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StationWish:
    """A line of the directory. `moving`: on its way, so frames themselves tell where it is."""

    label: int
    mac: str
    addresses: tuple[str, ...]
    node_id: NodeId | None
    moving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWish:
    """Something a port lets through: a `SecurityRule` worked out to prefixes."""

    ingress: bool
    protocol: str = "any"
    remote: str = ""
    port_first: int = 0
    port_last: int = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRulesWish:
    """What a port of this node may do; `rules` None: it is not filtered."""

    port_id: PortId
    hostname: str
    cidr: str
    qos_class: QosClass
    rules: tuple[RuleWish, ...] | None
    rate_mbit: int = 0  # 0: what the class gives
    public_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EidWish:
    """A public address that a node's port shall have; `version` rises with the VM's epoch.

    `arriving`: the VM is on its way here; until it is here the address is where it came from.
    """

    address: str
    port_id: PortId
    version: int
    arriving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyWish:
    """Where what goes to no public address of ours leaves the federation."""

    address: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrableWish:
    """A public address in use, and the sites that may say where it is now."""

    address: str
    sites: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LispWish:
    """A node's part in carrying public addresses. What only edges need is empty elsewhere.

    Each of `servers` is a map-server with its addresses, the own site's first; `lines` are those
    of the own site's edges towards providers. `site_keys` are hexadecimal, with the number `key_id`
    on the wire; `old_site_keys`, by number, are accepted besides while keys roll.
    """

    servers: tuple[tuple[str, ...], ...]
    proxies: tuple[ProxyWish, ...]
    lines: tuple[str, ...]
    pools: tuple[str, ...]
    eids: tuple[EidWish, ...] = ()
    registrable: tuple[RegistrableWish, ...] = ()
    site_keys: dict[SiteId, str] = field(default_factory=dict, repr=False)
    key_id: int = 0
    old_site_keys: dict[int, dict[SiteId, str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricWish:
    """All that a node's RBridge shall do.

    `key` signs under the number `key_id`; `old_keys`, each behind its number, are accepted
    besides while keys roll. In `maintenance` frames of others take other ways where there are any.
    """

    revision: int
    key: str = field(repr=False)
    key_id: int = 1
    old_keys: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    links: tuple[LinkWish, ...] = ()
    trunks: tuple[SiteTrunkWish, ...] = ()
    stations: tuple[StationWish, ...] = ()
    ports: tuple[PortRulesWish, ...] = ()
    lisp: LispWish | None = None  # no pool, or no edge: no public addresses
    maintenance: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkReport:
    """A trunk as its RBridge sees it. `failure`: why it could not be set up."""

    port: int
    interface: str
    to_node: NodeId
    to_site: SiteId
    provider: str = ""
    driver: str = ""
    state: str = ""
    bfd: str = ""
    metric: int = 0
    mtu_bytes: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RBridgeReport:
    """One RBridge of the campus, seen from another."""

    node_id: str
    nickname: int
    reachable: bool
    distance: int | None
    tree_parent: str
    label_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricStation:
    """A station that a node's plane knows. `learned` from frames, else from the directory."""

    label: int
    mac: str
    nickname: int
    port: int
    learned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RlocReport:
    """A way to an address. `up`: it answers probes; only ways of the best priority are taken."""

    address: str
    priority: int
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingReport:
    """A public address as a node has it. `role`: here, relayed, registered or cached."""

    prefix: str
    role: str
    version: int = 0
    rlocs: tuple[RlocReport, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class AskFabric:
    """Asks a node how it sees the fabric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricReport:
    """The fabric as one node sees it, on demand (`nuage fabric show`)."""

    node_id: NodeId
    site_id: SiteId
    wish_revision: int
    nickname: int
    plane: str
    tree_root: str
    trunks: tuple[TrunkReport, ...] = ()
    rbridges: tuple[RBridgeReport, ...] = ()
    stations: tuple[FabricStation, ...] = ()
    station_count: int = 0  # of which the first are in `stations`
    mappings: tuple[MappingReport, ...] = ()
    lisp: str = ""  # which part in LISP it plays, or why none
    counters: dict[str, int] = field(default_factory=dict)
    drops: dict[str, int] = field(default_factory=dict)
    news: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricNews:
    """A node's word to its controller that its fabric lives, and what happened."""

    node_id: NodeId
    wish_revision: int
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathQuestion:
    """Where would a frame to `mac` in segment `label` go, and (traced) where do probes go?"""

    label: int
    mac: str
    traced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EidQuestion:
    """Where would a packet to this public address go?"""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStep:
    """A RBridge on the way. `choices`: equal next hops, of which a flow takes one."""

    node_id: str
    distance: int
    choices: tuple[str, ...] = ()
    answer_ms: float | None = None
    by_port: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathAnswer:
    """The way, and why it is so."""

    reason: str
    steps: tuple[PathStep, ...] = ()
