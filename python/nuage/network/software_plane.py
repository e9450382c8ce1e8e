"""A forwarding plane in plain Python, on real frame bytes: the reference for the eBPF one.

Used in tests, in simulation, and as the slow path of `runner` where eBPF is not there. Checks
are those of RFC 6325 §4.6.2 and RFC 7780, in their order; each refusal has its counter. Frames
that control must see (IS-IS, channel messages, ARP, ND and DHCP of guests) are handed up
(`punts`), never forwarded.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, assert_never

from nuage.network.forwarding import (
    AGE_MAX_S,
    NICKNAME_ANY,
    NICKNAME_MAX,
    NICKNAME_UNKNOWN,
    PORT_NONE,
    AdjacencyEntry,
    Direction,
    Drop,
    EchoSeen,
    EidEntry,
    Entry,
    EntryKey,
    FibEntry,
    FloodEntry,
    ForwardingDelta,
    GuardEntry,
    Label,
    LearnedMac,
    MacEntry,
    MapCacheEntry,
    NextHop,
    Nickname,
    PlaneCounters,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    PruneEntry,
    RpfEntry,
    SelfEntry,
    TreeEntry,
    key_of,
)
from nuage.network.guest_frame import flow_hash, is_for_control, is_rogue, parse_flow
from nuage.network.policy import PortPolicy
from nuage.network.rate_limit import Rate, TokenBucket
from nuage.network.trill_frame import (
    ALL_EGRESS_RBRIDGES,
    ALL_RBRIDGES,
    CHANNEL_ECHO,
    ETHERTYPE_CHANNEL,
    ETHERTYPE_L2_ISIS,
    ETHERTYPE_TRILL,
    TrillFrame,
    decode_trill,
    decrement,
    encode_trill,
    first_hops,
    reflect,
)
from nuage.network.wire import MalformedFrame

LEARNED_MAX: Final = 65_536
LEARNED_PER_PORT_MAX: Final = 128  # of an unguarded access port: a guest may not fill the table
BRIDGE_GROUP: Final = bytes.fromhex("0180c20000")
FABRIC_ETHERTYPES: Final = (ETHERTYPE_TRILL, ETHERTYPE_L2_ISIS, ETHERTYPE_CHANNEL)


class Sent(NamedTuple):
    """A frame that leaves."""

    port: PortNumber
    frame: bytes


@dataclass(slots=True)
class _Learned:
    nickname: Nickname
    port: PortNumber
    seen_s: float


class SoftwarePlane:
    """The tables and the path of a frame through them."""

    def __init__(self) -> None:
        self._entries: dict[EntryKey, Entry] = {}
        self._self = SelfEntry(NICKNAME_UNKNOWN, NICKNAME_UNKNOWN)
        self._ports: dict[int, PortEntry] = {}
        self._adjacencies: dict[int, bytes] = {}
        self._fib: dict[int, FibEntry] = {}
        self._trees: dict[int, tuple[PortNumber, ...]] = {}
        self._rpf: dict[tuple[int, int], PortNumber] = {}
        self._prune: dict[tuple[int, int], tuple[PortNumber, ...]] = {}
        self._flood: dict[int, tuple[PortNumber, ...]] = {}
        self._directory: dict[tuple[int, bytes], MacEntry] = {}
        self._guards: dict[int, set[IPv4Address | IPv6Address]] = {}
        self._policies: dict[int, PortPolicy] = {}
        self._learned: dict[tuple[int, bytes], _Learned] = {}
        self._learned_at: Counter[int] = Counter()
        self._buckets: dict[tuple[int, Direction], TokenBucket] = {}
        self._drops: Counter[Drop] = Counter()
        self._sums: Counter[str] = Counter()
        self._now_s = 0.0
        self.punts: list[Sent] = []

    # ---- tables ----

    def apply(self, delta: ForwardingDelta) -> None:
        """Change the tables."""
        for entry in delta.removed:
            self._entries.pop(key_of(entry), None)
            self._remove(entry)
        for entry in delta.set:
            self._entries[key_of(entry)] = entry
            self._set(entry)

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries held."""
        return tuple(self._entries.values())

    def _set(self, entry: Entry) -> None:
        match entry:
            case SelfEntry():
                self._self = entry
            case PortEntry():
                self._set_port(entry)
            case AdjacencyEntry():
                self._adjacencies[entry.port] = entry.mac
            case FibEntry():
                self._fib[entry.nickname] = entry
            case TreeEntry():
                self._trees[entry.tree] = entry.ports
            case RpfEntry():
                self._rpf[entry.key] = entry.port
            case PruneEntry():
                self._prune[entry.key] = entry.ports
            case FloodEntry():
                self._flood[entry.label] = entry.ports
            case MacEntry():
                self._directory[entry.key] = entry
                self._unlearn((entry.label, entry.mac))
            case GuardEntry():
                self._guards.setdefault(entry.port, set()).add(entry.address)
            case PolicyEntry():
                self._policies.setdefault(entry.port, PortPolicy()).set_rule(entry)
            case MapCacheEntry() | EidEntry():
                pass  # public addresses need the kernel's plane
            case _:
                assert_never(entry)

    def _set_port(self, entry: PortEntry) -> None:
        self._ports[entry.port] = entry
        for direction in Direction:
            self._buckets.pop((entry.port, direction), None)
            if entry.limit_bits_per_s:
                rate = Rate(entry.limit_bits_per_s / 8, entry.burst_bytes)
                self._buckets[entry.port, direction] = TokenBucket(rate, self._now_s)

    def _remove(self, entry: Entry) -> None:
        match entry:
            case SelfEntry():
                self._self = SelfEntry(NICKNAME_UNKNOWN, NICKNAME_UNKNOWN)
            case PortEntry():
                self._ports.pop(entry.port, None)
                self._guards.pop(entry.port, None)
                self._policies.pop(entry.port, None)
                self._forget(port=entry.port)
            case AdjacencyEntry():
                self._adjacencies.pop(entry.port, None)
            case FibEntry():
                self._fib.pop(entry.nickname, None)
                self._forget(nickname=entry.nickname)
            case TreeEntry():
                self._trees.pop(entry.tree, None)
            case RpfEntry():
                self._rpf.pop(entry.key, None)
            case PruneEntry():
                self._prune.pop(entry.key, None)
            case FloodEntry():
                self._flood.pop(entry.label, None)
            case MacEntry():
                self._directory.pop(entry.key, None)
            case GuardEntry():
                self._guards.get(entry.port, set()).discard(entry.address)
            case PolicyEntry():
                if entry.port in self._policies:
                    self._policies[entry.port].remove_rule(entry.index)
            case MapCacheEntry() | EidEntry():
                pass
            case _:
                assert_never(entry)

    def _forget(self, *, port: int = 0, nickname: int = 0) -> None:
        """Unlearn what was behind a port or a nickname that is gone."""
        gone = [
            key
            for key, found in self._learned.items()
            if (port and found.port == port) or (nickname and found.nickname == nickname)
        ]
        for key in gone:
            del self._learned[key]
        if port:
            del self._learned_at[port]

    def _unlearn(self, key: tuple[int, bytes]) -> None:
        """Forget one station: it may be of another place, and a directory line may go again."""
        found = self._learned.pop(key, None)
        if found is not None and found.port:
            self._learned_at[found.port] -= 1

    def counters(self) -> PlaneCounters:
        """Return the sums so far."""
        return PlaneCounters(
            ingress_frames=self._sums["ingress"],
            transit_frames=self._sums["transit"],
            egress_frames=self._sums["egress"],
            flooded_frames=self._sums["flooded"],
            drops={cause: self._drops[cause] for cause in Drop},
        )

    def learned(self) -> tuple[LearnedMac, ...]:
        """Return what was learned and is not too old."""
        return tuple(
            LearnedMac(Label(label), mac, found.nickname, found.port, self._now_s - found.seen_s)
            for (label, mac), found in self._learned.items()
            if self._now_s - found.seen_s < AGE_MAX_S
        )

    def learned_at(self, label: Label, mac: bytes) -> LearnedMac | None:
        """Return where a station was learned to be."""
        return next((at for at in self.learned() if (at.label, at.mac) == (label, mac)), None)

    def take_echoes(self) -> tuple[EchoSeen, ...]:
        """None: those that come back are handed up as frames."""
        return ()

    def labels(self) -> tuple[Label, ...]:
        """Return the segments that have a port here."""
        return tuple(Label(label) for label in self._flood)

    def ports_of(self, label: Label) -> tuple[PortNumber, ...]:
        """Return the access ports of a segment here."""
        return self._flood.get(label, ())

    def _drop(self, cause: Drop) -> list[Sent]:
        self._drops[cause] += 1
        return []

    # ---- frames ----

    def receive(self, port: PortNumber, frame: bytes, now_s: float) -> list[Sent]:
        """Take a frame from a port; return what leaves. What control must see is in `punts`."""
        self._now_s = now_s
        entry = self._ports.get(port)
        if entry is None:
            return self._drop(Drop.NO_PORT)
        if len(frame) < 14:
            return self._drop(Drop.SHORT)
        if entry.role is PortRole.TRUNK:
            return self._from_trunk(entry, frame)
        return self._from_access(entry, frame)

    def _from_trunk(self, port: PortEntry, data: bytes) -> list[Sent]:
        ethertype = int.from_bytes(data[12:14], "big")
        if ethertype == ETHERTYPE_L2_ISIS:
            if self._is_stranger(port, data[6:12]) and not self._may_be_heard(port, len(data)):
                return self._drop(Drop.RATE)
            self.punts.append(Sent(port.port, data))
            return []
        if ethertype != ETHERTYPE_TRILL:
            is_bpdu = data[:5] == BRIDGE_GROUP and data[5] < 0x10
            return self._drop(Drop.BRIDGE_CONTROL if is_bpdu else Drop.NATIVE)
        try:
            frame = decode_trill(data)
        except MalformedFrame:
            return self._drop(Drop.SHORT)
        cause = self._refusal(port, frame)
        if cause is not None:
            return self._drop(cause)
        if not frame.multi and frame.egress == NICKNAME_ANY:
            return self._channel(port, frame, data)
        return self._multi(port, frame, data) if frame.multi else self._unicast(port, frame, data)

    def _channel(self, port: PortEntry, frame: TrillFrame, data: bytes) -> list[Sent]:
        """A message from the neighbour: an echo goes straight back, the rest is control's."""
        if self._is_stranger(port, frame.outer_smac):
            return self._drop(Drop.NO_ADJACENCY)
        if not _is_channel(frame):
            return self._drop(Drop.INNER)
        is_echo = frame.payload[:2] == CHANNEL_ECHO.to_bytes(2, "big")
        if is_echo and frame.inner_smac == frame.outer_smac:
            return [Sent(port.port, reflect(data, smac=port.mac))]
        self.punts.append(Sent(port.port, data))
        return []

    def _is_stranger(self, port: PortEntry, smac: bytes) -> bool:
        """Tell whether a frame is of somebody else than the neighbour that the port has."""
        return self._adjacencies.get(port.port, smac) != smac

    def _may_be_heard(self, port: PortEntry, size_bytes: int) -> bool:
        """Tell whether control may hear a stranger: a neighbour may come back by another port."""
        bucket = self._buckets.get((port.port, Direction.EGRESS))
        return bucket is None or bucket.take(self._now_s, size_bytes)

    def _refusal(self, port: PortEntry, frame: TrillFrame) -> Drop | None:
        """Return why the frame may not be looked at further (RFC 6325 §4.6.2, in order)."""
        if frame.version:
            return Drop.VERSION
        if frame.outer_dmac != (ALL_RBRIDGES if frame.multi else port.mac):
            return Drop.OUTER_DESTINATION
        if not frame.multi and frame.egress == NICKNAME_ANY:
            return None  # one-hop channel: BFD runs before the adjacency is reported
        if self._adjacencies.get(port.port) != frame.outer_smac:
            return Drop.NO_ADJACENCY
        if frame.has_critical_options:
            return Drop.OPTIONS
        if not 0 < frame.ingress <= NICKNAME_MAX:
            return Drop.INGRESS
        if self._self.nickname == NICKNAME_UNKNOWN:
            return Drop.NO_NICKNAME
        if frame.ingress == self._self.nickname:
            return Drop.OWN_INGRESS
        return None

    def _unicast(self, port: PortEntry, frame: TrillFrame, data: bytes) -> list[Sent]:
        ends_here = frame.egress == self._self.nickname
        if _is_channel(frame) and (ends_here or frame.hop_count == 0):
            self.punts.append(Sent(port.port, data))
            return []
        if ends_here:
            return self._decapsulate(frame)
        if frame.hop_count == 0:
            return self._drop(Drop.HOP_COUNT)
        path = self._fib.get(frame.egress)
        hop = self._hop_of(path, flow_hash(frame.native(), frame.label or frame.vlan))
        if hop is None:
            return self._drop(Drop.NO_ROUTE)
        self._sums["transit"] += 1
        return [Sent(hop.port, decrement(data, dmac=hop.dmac, smac=hop.smac))]

    def _hop_of(self, path: FibEntry | None, mark: int) -> NextHop | None:
        """Return the flow's next hop; of those whose trunk has lost its neighbour the next one."""
        if path is None or not path.next_hops:
            return None
        first = mark % len(path.next_hops)
        order = (*path.next_hops[first:], *path.next_hops[:first], *path.backups)
        return next((hop for hop in order if hop.port in self._adjacencies), None)

    def _multi(self, port: PortEntry, frame: TrillFrame, data: bytes) -> list[Sent]:
        ports = self._trees.get(frame.egress)
        if ports is None:
            return self._drop(Drop.UNKNOWN_TREE)
        if port.port not in ports:
            return self._drop(Drop.NOT_TREE_PORT)
        way_in = self._rpf.get((frame.egress, frame.ingress))
        if way_in != port.port:
            return self._drop(Drop.TREE_REST if way_in == PORT_NONE else Drop.RPF)
        out: list[Sent] = []
        if frame.hop_count == 0:
            self._drop(Drop.HOP_COUNT)
        else:
            for number in self._branches(frame.egress, frame.label, ports):
                if number != port.port and self._leads_on(number):
                    smac = self._ports[number].mac
                    out.append(Sent(number, decrement(data, dmac=ALL_RBRIDGES, smac=smac)))
            self._sums["transit"] += bool(out)
        if frame.label is not None and frame.label in self._flood:
            out.extend(self._decapsulate(frame))
        return out

    def _leads_on(self, number: PortNumber) -> bool:
        """Tell whether a trunk has a neighbour to send to."""
        return number in self._ports and number in self._adjacencies

    def _branches(
        self, tree: Nickname, label: Label | None, ports: Sequence[PortNumber]
    ) -> Sequence[PortNumber]:
        """Return the tree's ports that want `label`; frames in a VLAN are not pruned."""
        if label is None:
            return ports
        wanted = {*self._prune.get((tree, label), ()), *self._prune.get((tree, 0), ())}
        return [number for number in ports if number in wanted]

    def _decapsulate(self, frame: TrillFrame) -> list[Sent]:
        if frame.label is None or frame.label not in self._flood:
            return self._drop(Drop.LABEL)
        if frame.inner_smac[0] & 1 or _is_fabrics_own(frame.inner_dmac, frame.ethertype):
            return self._drop(Drop.INNER)
        self._learn(frame.label, frame.inner_smac, nickname=frame.ingress)
        self._sums["egress"] += 1
        native = frame.native()
        targets = self._local_targets(frame.label, frame.inner_dmac)
        return [sent for number in targets for sent in self._to_access(number, native)]

    def _local_targets(self, label: Label, dmac: bytes) -> Sequence[PortNumber]:
        """Return the access ports here that get a frame which arrived over the fabric."""
        if not dmac[0] & 1:
            found = self._where(label, dmac)
            if found is not None:
                return (found[1],) if found[1] else ()
        return self._flood.get(label, ())

    def _where(self, label: Label, mac: bytes) -> tuple[Nickname, PortNumber] | None:
        entry = self._directory.get((label, mac))
        if entry is not None:
            return entry.nickname, entry.port
        found = self._learned.get((label, mac))
        if found is None or self._now_s - found.seen_s >= AGE_MAX_S:
            return None
        return found.nickname, found.port

    def _learn(
        self, label: Label, mac: bytes, *, nickname: Nickname = NICKNAME_UNKNOWN,
        port: PortNumber = PORT_NONE,
    ) -> None:  # fmt: skip
        key = (label, mac)
        if key in self._directory:
            return
        found = self._learned.get(key)
        if found is not None:
            found.nickname, found.port, found.seen_s = nickname, port, self._now_s
            return
        if port:
            if self._learned_at[port] >= LEARNED_PER_PORT_MAX:
                return
            self._learned_at[port] += 1
        if len(self._learned) >= LEARNED_MAX:
            self._learned.pop(next(iter(self._learned)))
        self._learned[key] = _Learned(nickname, port, self._now_s)

    # ---- guests ----

    def _from_access(self, port: PortEntry, data: bytes) -> list[Sent]:
        dmac, smac = data[:6], data[6:12]
        ethertype = int.from_bytes(data[12:14], "big")
        if _is_fabrics_own(dmac, ethertype):
            return self._drop(Drop.BRIDGE_CONTROL)
        if smac[0] & 1 or smac == bytes(6):
            return self._drop(Drop.SPOOFED)
        if len(data) - 14 > port.mtu_bytes:
            return self._drop(Drop.SHORT)
        if not self._within_rate(port, Direction.EGRESS, data):
            return self._drop(Drop.RATE)
        if is_for_control(data):
            if port.guarded and smac != port.mac:
                return self._drop(Drop.SPOOFED)
            self.punts.append(Sent(port.port, data))
            return []
        if port.guarded and not self._is_genuine(port, data):
            return self._drop(Drop.SPOOFED)
        if port.filtered and not self._may(port, data, Direction.EGRESS):
            return self._drop(Drop.POLICY)
        if not port.guarded:
            self._learn(port.label, smac, port=port.port)
        return self.inject(port.label, data, came_from=port.port)

    def _within_rate(self, port: PortEntry, direction: Direction, data: bytes) -> bool:
        bucket = self._buckets.get((port.port, direction))
        return bucket is None or bucket.take(self._now_s, len(data))

    def _is_genuine(self, port: PortEntry, data: bytes) -> bool:
        """Tell whether a guarded guest sends from its own MAC and addresses, and only IP."""
        if data[6:12] != port.mac or is_rogue(data):
            return False
        try:
            flow = parse_flow(data)
        except MalformedFrame:
            return False
        if flow is None:
            return False
        return flow.source in self._guards.get(port.port, ())

    def _may(self, port: PortEntry, data: bytes, direction: Direction) -> bool:
        policy = self._policies.get(port.port)
        if policy is None:
            return False
        try:
            return policy.allows(parse_flow(data), direction, self._now_s)
        except MalformedFrame:
            return False

    def _to_access(self, number: PortNumber, native: bytes) -> list[Sent]:
        port = self._ports.get(number)
        if port is None or port.role is not PortRole.ACCESS:
            return []
        if port.filtered and not self._may(port, native, Direction.INGRESS):
            return self._drop(Drop.POLICY)
        if not self._within_rate(port, Direction.INGRESS, native):
            return self._drop(Drop.RATE)
        return [Sent(number, native)]

    def inject(
        self, label: Label, native: bytes, *, came_from: PortNumber = PORT_NONE
    ) -> list[Sent]:
        """Put a native frame into a segment: from a guest, or an answer of our own."""
        dmac = native[:6]
        if dmac[0] & 1:
            return self._flood_out(label, native, came_from)
        found = self._where(label, dmac)
        if found is None:
            return self._flood_out(label, native, came_from)
        nickname, port = found
        if port:
            return self._to_access(port, native) if port != came_from else []
        return self._encapsulate(label, native, nickname)

    def _encapsulate(self, label: Label, native: bytes, egress: Nickname) -> list[Sent]:
        if self._self.nickname == NICKNAME_UNKNOWN:
            return self._drop(Drop.NO_NICKNAME)
        hop = self._hop_of(self._fib.get(egress), flow_hash(native, label))
        if hop is None:
            return self._drop(Drop.NO_ROUTE)
        self._sums["ingress"] += 1
        data = self._wrap(label, native, egress, dmac=hop.dmac, smac=hop.smac)
        return [Sent(hop.port, data)]

    def _wrap(
        self, label: Label, native: bytes, egress: Nickname, *, dmac: bytes, smac: bytes
    ) -> bytes:
        return encode_trill(
            TrillFrame(
                outer_dmac=dmac,
                outer_smac=smac,
                multi=dmac == ALL_RBRIDGES,
                hop_count=first_hops(native),
                egress=egress,
                ingress=self._self.nickname,
                inner_dmac=native[:6],
                inner_smac=native[6:12],
                label=label,
                vlan=0,
                priority=0,
                ethertype=int.from_bytes(native[12:14], "big"),
                payload=native[14:],
            )
        )

    def _flood_out(self, label: Label, native: bytes, came_from: PortNumber) -> list[Sent]:
        """Send to everybody of the segment: ports here, and the tree pruned by interest."""
        out = [
            sent
            for number in self._flood.get(label, ())
            if number != came_from
            for sent in self._to_access(number, native)
        ]
        tree = self._self.tree
        if NICKNAME_UNKNOWN in (self._self.nickname, tree):
            return out
        self._sums["flooded"] += 1
        for number in self._branches(tree, label, self._trees.get(tree, ())):
            if self._leads_on(number):
                smac = self._ports[number].mac
                data = self._wrap(label, native, tree, dmac=ALL_RBRIDGES, smac=smac)
                out.append(Sent(number, data))
        return out


def _is_fabrics_own(dmac: bytes, ethertype: int) -> bool:
    """Tell what RBridges and bridges say to each other: no guest sends it, none gets it."""
    return dmac[:5] == BRIDGE_GROUP or ethertype in FABRIC_ETHERTYPES


def _is_channel(frame: TrillFrame) -> bool:
    """Tell whether RBridges talk to each other in this frame; tenants' frames have a label."""
    return (
        frame.ethertype == ETHERTYPE_CHANNEL
        and frame.inner_dmac == ALL_EGRESS_RBRIDGES
        and frame.label is None
    )
