"""What the control plane tells a forwarding plane, as values: the contract between the two.

Not a data path: `software_plane` is one (tests, simulation, the slow path of `runner`), the
eBPF plane is another. A plane holds one table per class below; each entry names its own key.
A `ForwardingDelta` first removes, then sets, and is to be applied whole.

Invariants:
    Ports are numbered 1 … 65535 by the owner of the RBridge machine (the kernel plane maps
    them to interface indexes). A MAC is six bytes. A label is 1 … 0xFFFFFE (RFC 7172), also
    the LISP instance-ID of the same tenant. A nickname is 1 … 0xFFBF.
    Directory entries (`MacEntry`) outrank what the plane learns (RFC 8171).
    A plane answers echoes by itself (a one-hop channel frame of protocol 3 whose inner source is
    its outer source goes back, `trill_frame.reflect`): that is how a neighbour tells a dead
    daemon, over whose plane frames still flow, from a dead link. Ours that come back it notes
    (`take_echoes`), or hands up as it does other channel frames.
    No tenant's frame leaves by a trunk that has no `AdjacencyEntry`; a next hop over one is passed
    over while another is there.
    Unicast channel frames (inner Ethertype 0x8946 to 01-80-C2-00-00-42 in a VLAN tag) go up to
    control when they are for our nickname, or when their hop count is 0 here (`fabric_trace`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NewType, Protocol, TypeAlias

Nickname = NewType("Nickname", int)
Label = NewType("Label", int)
PortNumber = NewType("PortNumber", int)

NICKNAME_UNKNOWN: Final = Nickname(0)
NICKNAME_MAX: Final = Nickname(0xFFBF)
NICKNAME_ANY: Final = Nickname(0xFFC0)  # Any-RBridge, RFC 7180 §2: one hop, never forwarded
PORT_NONE: Final = PortNumber(0)
LABEL_MAX: Final = Label(0xFFFFFE)
AGE_MAX_S: Final = 300.0  # of a learned station; AGE_MAX_NS of bpf/intf.h
STRANGERS_BITS_PER_S: Final = 1_000_000  # a thousand Hellos: 1 % of a core
BURST_S: Final = 0.05  # of a port's rate
SUPER_FRAME_BYTES: Final = 14 + 0xFFFF  # what a guest sends whole, for its node to cut
ECMP_MAX: Final = 8  # next hops kept per nickname; fixed-size value in the kernel's map


class PortRole(Enum):
    """What a port leads to."""

    TRUNK = "trunk"  # exactly one other RBridge
    ACCESS = "access"  # a VM's tap or a gateway; must not reach a second RBridge


class Drop(Enum):
    """Why a frame was not forwarded. The value is the counter's name, the order its index."""

    SHORT = "short"
    VERSION = "version"
    OUTER_DESTINATION = "outer_destination"
    NO_ADJACENCY = "no_adjacency"
    OPTIONS = "options"
    INGRESS = "ingress"
    OWN_INGRESS = "own_ingress"
    HOP_COUNT = "hop_count"
    NO_ROUTE = "no_route"
    UNKNOWN_TREE = "unknown_tree"
    NOT_TREE_PORT = "not_tree_port"
    RPF = "rpf"
    INNER = "inner"
    LABEL = "label"
    NO_PORT = "no_port"
    SPOOFED = "spoofed"
    RATE = "rate"
    BRIDGE_CONTROL = "bridge_control"
    NATIVE = "native"
    NO_NICKNAME = "no_nickname"
    NO_MAPPING = "no_mapping"
    LISP = "lisp"
    POLICY = "policy"
    TREE_REST = "tree_rest"


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where to send, and under which outer addresses."""

    port: PortNumber
    dmac: bytes
    smac: bytes


@dataclass(frozen=True, slots=True)
class SelfEntry:
    """Who we are: one entry. `tree` is the root whose tree we use as ingress (0: none yet)."""

    nickname: Nickname
    tree: Nickname

    @property
    def key(self) -> tuple[()]:
        """There is one."""
        return ()


@dataclass(frozen=True, slots=True)
class PortEntry:
    """A port the plane serves. `label` is the segment of an access port, 0 on a trunk.

    `mac` is the RBridge's own address on a trunk, and the guest's on an access port. A
    `guarded` access port may send from `mac` and its `GuardEntry` addresses only; a `filtered`
    one takes and sends only what a `PolicyEntry` or an open flow allows. `rate_bits_per_s`
    limits each direction of an access port (0: no limit).

    On a trunk with a neighbour, IS-IS of anybody else is heard no faster than
    `STRANGERS_BITS_PER_S`: a neighbour may come back by another port of its.
    """

    port: PortNumber
    role: PortRole
    mac: bytes
    label: Label = Label(0)
    mtu_bytes: int = 1500
    guarded: bool = False
    filtered: bool = False
    rate_bits_per_s: int = 0

    @property
    def key(self) -> int:
        """The port."""
        return self.port

    @property
    def limit_bits_per_s(self) -> int:
        """What the port's token bucket lets through, 0: all."""
        return STRANGERS_BITS_PER_S if self.role is PortRole.TRUNK else self.rate_bits_per_s

    @property
    def burst_bytes(self) -> int:
        """What it lets through at once: of a guest a super-frame, which passes whole or not."""
        whole = 2 * self.mtu_bytes if self.role is PortRole.TRUNK else SUPER_FRAME_BYTES
        return min(0xFFFFFFFF, int(max(self.limit_bits_per_s / 8 * BURST_S, whole)))


@dataclass(frozen=True, slots=True)
class AdjacencyEntry:
    """The neighbour on a trunk, in state Report: TRILL data is taken from this sender only."""

    port: PortNumber
    mac: bytes

    @property
    def key(self) -> int:
        """The port: a trunk has one neighbour."""
        return self.port


@dataclass(frozen=True, slots=True)
class FibEntry:
    """Shortest paths to an egress nickname: all of equal cost, ordered by port, ≤ ECMP_MAX.

    `backups` are taken once all of `next_hops` have lost their neighbour: they do not lead back to
    us (RFC 5286, `reroute`). Both together are ≤ ECMP_MAX.
    """

    nickname: Nickname
    next_hops: tuple[NextHop, ...]
    backups: tuple[NextHop, ...] = ()

    @property
    def key(self) -> int:
        """The egress nickname."""
        return self.nickname


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A distribution tree as seen here: the trunk ports that are part of it."""

    tree: Nickname
    ports: tuple[PortNumber, ...]

    @property
    def key(self) -> int:
        """The root's nickname."""
        return self.tree


@dataclass(frozen=True, slots=True)
class RpfEntry:
    """The only port on which frames of `ingress` may come over `tree`.

    `PORT_NONE`: none, for a rest between two trees (`applied_table`).
    """

    tree: Nickname
    ingress: Nickname
    port: PortNumber

    @property
    def key(self) -> tuple[int, int]:
        """Tree and ingress."""
        return (self.tree, self.ingress)


@dataclass(frozen=True, slots=True)
class PruneEntry:
    """The ports of `tree` behind which somebody has `label`; label 0: who wants every label.

    A frame goes to the ports of its label's entry and of label 0's. No entry: no port.
    """

    tree: Nickname
    label: Label
    ports: tuple[PortNumber, ...]

    @property
    def key(self) -> tuple[int, int]:
        """Tree and label."""
        return (self.tree, self.label)


@dataclass(frozen=True, slots=True)
class FloodEntry:
    """The local access ports of a segment: who gets its multi-destination frames here."""

    label: Label
    ports: tuple[PortNumber, ...]

    @property
    def key(self) -> int:
        """The label."""
        return self.label


@dataclass(frozen=True, slots=True)
class MacEntry:
    """A directory entry: where a station is. Exactly one of `nickname` and `port` is not zero."""

    label: Label
    mac: bytes
    nickname: Nickname = NICKNAME_UNKNOWN
    port: PortNumber = PortNumber(0)

    @property
    def key(self) -> tuple[int, bytes]:
        """Label and MAC."""
        return (self.label, self.mac)


@dataclass(frozen=True, slots=True)
class GuardEntry:
    """A source address that a guarded access port may use."""

    port: PortNumber
    address: IPv4Address | IPv6Address

    @property
    def key(self) -> tuple[int, str]:
        """Port and address."""
        return (self.port, str(self.address))


class Direction(Enum):
    """Of a flow, as the guest sees it."""

    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """Something a filtered port allows; answers to what is allowed come back by themselves.

    `protocol` 0 is any; `remote` None is any address of both families; the port range is the
    destination's (TCP, UDP) or ICMP's type, 0 … 65535 for any.
    """

    port: PortNumber
    index: int
    direction: Direction
    protocol: int = 0
    remote: IPv4Network | IPv6Network | None = None
    first: int = 0
    last: int = 65535

    @property
    def key(self) -> tuple[int, int]:
        """Port and the rule's index on it."""
        return (self.port, self.index)


class MapAction(Enum):
    """What a map-cache entry without locators says (RFC 9301 §5.4, ACT)."""

    NO_ACTION = 0
    NATIVELY_FORWARD = 1
    SEND_MAP_REQUEST = 2
    DROP = 3
    DROP_POLICY = 4
    DROP_AUTHENTICATION = 5


@dataclass(frozen=True, slots=True)
class Rloc:
    """A locator of the map-cache: underlay address, priority (lower first), weight."""

    address: str
    priority: int = 1
    weight: int = 100


@dataclass(frozen=True, slots=True)
class MapCacheEntry:
    """Where packets to an EID prefix go: longest prefix wins; only best-priority RLOCs listed."""

    instance_id: int
    prefix: IPv4Network | IPv6Network
    rlocs: tuple[Rloc, ...]
    action: MapAction = MapAction.NO_ACTION

    @property
    def key(self) -> tuple[int, str]:
        """Instance and prefix."""
        return (self.instance_id, str(self.prefix))


@dataclass(frozen=True, slots=True)
class EidEntry:
    """An EID prefix that is here: decapsulated packets to it leave by `port` to `mac`.

    `forward_to` is set for a few seconds after a move away: stragglers go on to that RLOC.
    """

    instance_id: int
    prefix: IPv4Network | IPv6Network
    port: PortNumber
    mac: bytes
    forward_to: str = ""

    @property
    def key(self) -> tuple[int, str]:
        """Instance and prefix."""
        return (self.instance_id, str(self.prefix))


Entry: TypeAlias = (
    SelfEntry
    | PortEntry
    | AdjacencyEntry
    | FibEntry
    | TreeEntry
    | RpfEntry
    | PruneEntry
    | FloodEntry
    | MacEntry
    | GuardEntry
    | PolicyEntry
    | MapCacheEntry
    | EidEntry
)
EntryKey: TypeAlias = tuple[type[Entry], object]


def key_of(entry: Entry) -> EntryKey:
    """Return what identifies `entry` among all tables."""
    return (type(entry), entry.key)


@dataclass(frozen=True, slots=True)
class ForwardingDelta:
    """A change of the tables: `removed` (the entries as they were), then `set` (the new ones)."""

    set: tuple[Entry, ...] = ()
    removed: tuple[Entry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.removed)


def delta_between(old: Mapping[EntryKey, Entry], new: Mapping[EntryKey, Entry]) -> ForwardingDelta:
    """Return the change that turns `old` into `new`."""
    return ForwardingDelta(
        set=tuple(entry for key, entry in new.items() if old.get(key) != entry),
        removed=tuple(entry for key, entry in old.items() if key not in new),
    )


def table(entries: Iterable[Entry]) -> dict[EntryKey, Entry]:
    """Return `entries` by key; of two with one key the later wins."""
    return {key_of(entry): entry for entry in entries}


def fabric_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries that the RBridge machine owns."""
    kinds = (SelfEntry, AdjacencyEntry, FibEntry, TreeEntry, RpfEntry, PruneEntry)
    return tuple(
        entry
        for entry in entries
        if isinstance(entry, kinds)
        or (isinstance(entry, PortEntry) and entry.role is PortRole.TRUNK)
    )


def segment_entries(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries that the segment switch owns."""
    kinds = (FloodEntry, MacEntry, GuardEntry, PolicyEntry)
    return tuple(
        entry
        for entry in entries
        if isinstance(entry, kinds)
        or (isinstance(entry, PortEntry) and entry.role is PortRole.ACCESS)
    )


@dataclass(frozen=True, slots=True)
class LearnedMac:
    """What a plane learned from frames: a station, and the ingress or port it was seen at."""

    label: Label
    mac: bytes
    nickname: Nickname
    port: PortNumber
    age_s: float


@dataclass(frozen=True, slots=True)
class PlaneCounters:
    """Sums since the plane was loaded. `drops` has every cause, zeros included."""

    ingress_frames: int = 0
    transit_frames: int = 0
    egress_frames: int = 0
    flooded_frames: int = 0
    drops: Mapping[Drop, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EchoSeen:
    """An echo of ours that came back at `at_s` (monotonic). `on_line`: beside its tunnel."""

    port: PortNumber
    content: bytes
    at_s: float
    on_line: bool = False


class ForwardingPlane(Protocol):
    """Something that forwards frames by the tables above.

    Implementations: `software_plane.SoftwarePlane` and the eBPF plane. One contract suite
    (tests/contract/network) runs on each.
    """

    def apply(self, delta: ForwardingDelta) -> None:
        """Change the tables. A later entry of the same key replaces the earlier one.

        Raises:
            Unavailable: the plane could not take it (kernel map full); nothing is half-applied
                within one entry, and applying the same delta again is safe.
        """
        ...

    def entries(self) -> tuple[Entry, ...]:
        """Return what the plane holds: a control plane that starts afresh begins from it."""
        ...

    def counters(self) -> PlaneCounters:
        """Return the sums since loading."""
        ...

    def learned(self) -> tuple[LearnedMac, ...]:
        """Return what was learned and has not aged out; directory entries are not listed."""
        ...

    def learned_at(self, label: Label, mac: bytes) -> LearnedMac | None:
        """Return where one station was learned to be; what the directory lists is not learned."""
        ...

    def take_echoes(self) -> tuple[EchoSeen, ...]:
        """Return the last echo that came back on each trunk, when it is a new one."""
        ...


@dataclass(frozen=True, slots=True)
class LispMiss:
    """A packet that found no mapping: somebody must ask."""

    instance_id: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class LispHeard:
    """`rloc` sent packets for a local EID prefix: it has it in its map-cache."""

    instance_id: int
    prefix: IPv4Network | IPv6Network
    rloc: IPv4Address | IPv6Address


class LispPlane(ForwardingPlane, Protocol):
    """A forwarding plane that also carries LISP and tells what its tunnel router must know."""

    def take_misses(self) -> tuple[LispMiss, ...]:
        """Return, once, the misses since the last call; bounded, equal ones told once."""
        ...

    def take_heard(self) -> tuple[LispHeard, ...]:
        """Return, once, who was heard since the last call; bounded, equal ones told once."""
        ...

    def events_fileno(self) -> int | None:
        """Return a descriptor that is readable when there is something to take; None: poll."""
        ...
