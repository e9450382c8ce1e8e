"""Table entries as the bytes of the kernel's maps, and back (`bpf/intf.h`; sizes checked there).

Pure. Numbers are in host order, addresses as on the wire. A trunk is a bit (its slot) in the
sets of tree and prune entries; `Slots` keeps which.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from nuage.errors import Unavailable
from nuage.network.forwarding import (
    ECMP_MAX,
    AdjacencyEntry,
    Direction,
    EidEntry,
    FibEntry,
    FloodEntry,
    GuardEntry,
    Label,
    LearnedMac,
    LispHeard,
    LispMiss,
    MacEntry,
    MapAction,
    MapCacheEntry,
    NextHop,
    Nickname,
    PolicyEntry,
    PortEntry,
    PortNumber,
    PortRole,
    Rloc,
    SelfEntry,
)
from nuage.network.security_group import RULES_PER_PORT_MAX

EVENT_MISS: Final = 1
U32: Final = struct.Struct("=I")
U64: Final = struct.Struct("=Q")
SELF: Final = struct.Struct("=HH")
PORT: Final = struct.Struct("=IIQIHH6s6sBBH")
SLOT: Final = struct.Struct("=IH6sII")
TUNNEL_KEY: Final = struct.Struct("=II")
TUNNEL: Final = struct.Struct("=8sI4s4sHHI")
FIB_HEAD: Final = struct.Struct("=BB")
HOP: Final = struct.Struct("=6s6sH")
RPF_KEY: Final = struct.Struct("=HH")
PRUNE_KEY: Final = struct.Struct("=II")
FLOOD_HEAD: Final = struct.Struct("=I")
STATION_KEY: Final = struct.Struct("=I6sxx")
STATION: Final = struct.Struct("=HHIQ")
GUARD_KEY: Final = struct.Struct("=HBx16s")
RULE: Final = struct.Struct("=BBBBHH16s16s")
STATE: Final = struct.Struct("=II4xIQQQQ")
NEIGHBOUR_KEY: Final = struct.Struct("=II16s")
NEIGHBOUR: Final = struct.Struct("=6s?x")  # MAC, is it the router
LISP_SELF: Final = struct.Struct("=I4s6sBxI16s")
LISP_OF_PORT: Final = 0xFFFFFFFF
EID_KEY: Final = struct.Struct("=I4sB16sxxx")
MAP_CACHE_HEAD: Final = struct.Struct("=HH")
RLOC: Final = struct.Struct("=4sHH")
EID: Final = struct.Struct("=H6s4sI")
ECHO: Final = struct.Struct("=16sQIxxxx")
LINE: Final = struct.Struct("=III16s")
GRO_PORT: Final = struct.Struct("=II")
HEARD_KEY: Final = struct.Struct("=28s4s")
EVENT: Final = struct.Struct("=I4s28s16s")

TRUNKS_MAX: Final = 64
FLOOD_MAX: Final = 512
RLOCS_MAX: Final = 8
PORT_TRUNK: Final = 1
PORT_GUARDED: Final = 2
PORT_FILTERED: Final = 4
PORT_ADJACENT: Final = 8
PORT_XDP: Final = 16
ECHO_ON_LINE: Final = 1
RPF_REST: Final = 0xFFFFFFFF  # instead of a slot: by no trunk, for a while
EID_PREFIX_BITS: Final = 40  # instance and family, before the address
DIRECTIONS: Final = (Direction.INGRESS, Direction.EGRESS)  # enum direction of intf.h

SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "self_entry": (4, SELF.size),
    "ports": (4, PORT.size),
    "places": (4, PORT.size),
    "slots": (4, SLOT.size),
    "fib": (4, FIB_HEAD.size + ECMP_MAX * HOP.size),
    "trees": (4, 8),
    "rpf": (RPF_KEY.size, 4),
    "prunes": (PRUNE_KEY.size, 8),
    "floods": (4, FLOOD_HEAD.size + 2 * FLOOD_MAX),
    "directory": (STATION_KEY.size, STATION.size),
    "learned": (STATION_KEY.size, STATION.size),
    "guards": (GUARD_KEY.size, 4),
    "rules": (4, 4 + RULES_PER_PORT_MAX * RULE.size),
    "states": (4, STATE.size),
    "neighbours": (NEIGHBOUR_KEY.size, NEIGHBOUR.size),
    "lisp_self": (4, LISP_SELF.size),
    "map_cache": (EID_KEY.size, MAP_CACHE_HEAD.size + RLOCS_MAX * RLOC.size),
    "eids": (EID_KEY.size, EID.size),
    "echoes": (4, ECHO.size),
    "lines": (4, LINE.size),
    "gro_port": (4, GRO_PORT.size),
    "tunnels": (TUNNEL_KEY.size, TUNNEL.size),
    "heard": (HEARD_KEY.size, 8),
}


class Slots:
    """Which trunk has which bit."""

    def __init__(self) -> None:
        self.slots: dict[PortNumber, int] = {}
        self.numbers: dict[int, PortNumber] = {}

    def put(self, number: PortNumber, slot: int) -> None:
        """Note a bit that is in use already."""
        self.slots[number] = slot
        self.numbers[slot] = number

    def of(self, number: PortNumber) -> int:
        """Return the bit of a port, a new one at its first mention.

        Raises:
            Unavailable: there are TRUNKS_MAX trunks.
        """
        slot = self.slots.get(number)
        if slot is None:
            free = (slot for slot in range(TRUNKS_MAX) if slot not in self.numbers)
            slot = next(free, None)
            if slot is None:
                raise Unavailable(
                    f"port {number} would be trunk {TRUNKS_MAX + 1} of this node",
                    hint=f"a node has {TRUNKS_MAX} trunks at most",
                )
            self.put(number, slot)
        return slot

    def free(self, kept: Iterable[PortNumber]) -> None:
        """Let go of all bits but those of `kept`."""
        wanted = set(kept)
        for number in [number for number in self.slots if number not in wanted]:
            del self.numbers[self.slots.pop(number)]

    def bits(self, ports: Iterable[PortNumber]) -> bytes:
        """Return the set of `ports` as a map value."""
        total = 0
        for number in ports:
            total |= 1 << self.of(number)
        return U64.pack(total)

    def ports(self, value: bytes) -> tuple[PortNumber, ...]:
        """Return the ports of a map value, in ascending order."""
        (total,) = U64.unpack(value)
        found = (self.numbers[slot] for slot in range(TRUNKS_MAX) if total >> slot & 1)
        return tuple(sorted(found))


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Return `data` in pieces of `size`."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def address_bytes(address: IPv4Address | IPv6Address) -> bytes:
    """Return sixteen bytes; IPv4 fills the first four."""
    return address.packed.ljust(16, b"\0")


def address_of(family: int, data: bytes) -> IPv4Address | IPv6Address:
    """Return what `address_bytes` made of an address of `family`."""
    return IPv4Address(data[:4]) if family == 4 else IPv6Address(data[:16])


# ---- ports ----


class Batch:
    """Writes gathered per map."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[bytes, bytes]] = {}
        self.deletes: dict[str, dict[bytes, None]] = {}

    def set(self, name: str, key: bytes, value: bytes) -> None:
        """Have an entry written."""
        self.sets.setdefault(name, {})[key] = value
        self.deletes.get(name, {}).pop(key, None)

    def delete(self, name: str, key: bytes) -> None:
        """Have an entry deleted."""
        self.deletes.setdefault(name, {})[key] = None


@dataclass(frozen=True, slots=True)
class Place:
    """A port with what else the kernel keeps of it: interface (0: none), neighbour, slot, XDP.

    `generation` is of its rules: flows that another one judged are judged anew.
    """

    port: PortEntry
    ifindex: int = 0
    neighbour: bytes | None = None
    slot: int = 0
    has_xdp: bool = False
    generation: int = 0


def encode_place(place: Place) -> bytes:
    """Return the `port_value` of a port."""
    port = place.port
    flags = (
        PORT_TRUNK * (port.role is PortRole.TRUNK)
        | PORT_GUARDED * port.guarded
        | PORT_FILTERED * port.filtered
        | PORT_ADJACENT * (place.neighbour is not None)
        | PORT_XDP * place.has_xdp
    )
    return PORT.pack(
        place.ifindex, port.label, port.limit_bits_per_s, port.burst_bytes, port.port,
        port.mtu_bytes, port.mac, place.neighbour or bytes(6), flags, place.slot,
        place.generation,
    )  # fmt: skip


def decode_place(value: bytes) -> Place:
    """Return what `encode_place` was given."""
    (
        ifindex, label, rate, _, number, mtu_bytes, mac, neighbour, flags, slot, generation,
    ) = PORT.unpack(value)  # fmt: skip
    port = PortEntry(
        port=PortNumber(number),
        role=PortRole.TRUNK if flags & PORT_TRUNK else PortRole.ACCESS,
        mac=mac,
        label=Label(label),
        mtu_bytes=mtu_bytes,
        guarded=bool(flags & PORT_GUARDED),
        filtered=bool(flags & PORT_FILTERED),
        rate_bits_per_s=0 if flags & PORT_TRUNK else rate,
    )
    near = neighbour if flags & PORT_ADJACENT else None
    return Place(port, ifindex, near, slot, bool(flags & PORT_XDP), generation)


def adjacency_of(place: Place) -> AdjacencyEntry | None:
    """Return the adjacency on a trunk, if there is one."""
    return None if place.neighbour is None else AdjacencyEntry(place.port.port, place.neighbour)


# ---- fabric ----


def encode_self(entry: SelfEntry) -> bytes:
    """Return the `self_value`."""
    return SELF.pack(entry.nickname, entry.tree)


def encode_fib(entry: FibEntry, slots: Slots) -> bytes:
    """Return the `fib_value` of an egress nickname."""
    equal = entry.next_hops[:ECMP_MAX]
    hops = (*equal, *entry.backups)[:ECMP_MAX]
    body = b"".join(HOP.pack(hop.dmac, hop.smac, slots.of(hop.port)) for hop in hops)
    return FIB_HEAD.pack(len(equal), len(hops)) + body.ljust(ECMP_MAX * HOP.size, b"\0")


def decode_fib(nickname: int, value: bytes, slots: Slots) -> FibEntry:
    """Return what `encode_fib` was given."""
    count, total = FIB_HEAD.unpack_from(value)
    hops = []
    for index in range(total):
        dmac, smac, slot = HOP.unpack_from(value, FIB_HEAD.size + index * HOP.size)
        hops.append(NextHop(slots.numbers[slot], dmac, smac))
    return FibEntry(Nickname(nickname), tuple(hops[:count]), tuple(hops[count:]))


def encode_flood(entry: FloodEntry) -> bytes:
    """Return the `flood_value` of a label.

    Raises:
        Unavailable: more ports than the map's value holds.
    """
    if len(entry.ports) > FLOOD_MAX:
        raise Unavailable(
            f"segment {entry.label} has {len(entry.ports)} ports here, {FLOOD_MAX} at most"
        )
    body = struct.pack(f"={len(entry.ports)}H", *entry.ports)
    return FLOOD_HEAD.pack(len(entry.ports)) + body.ljust(2 * FLOOD_MAX, b"\0")


def decode_flood(label: int, value: bytes) -> FloodEntry:
    """Return what `encode_flood` was given."""
    (count,) = FLOOD_HEAD.unpack_from(value)
    ports = struct.unpack_from(f"={count}H", value, FLOOD_HEAD.size)
    return FloodEntry(Label(label), tuple(PortNumber(port) for port in ports))


def encode_station(entry: MacEntry) -> bytes:
    """Return the `station_value` of a directory entry."""
    return STATION.pack(entry.nickname, entry.port, 0, 0)


def decode_station(key: bytes, value: bytes) -> MacEntry:
    """Return what `encode_station` was given."""
    label, mac = STATION_KEY.unpack(key)
    nickname, port, _, _ = STATION.unpack(value)
    return MacEntry(Label(label), mac, Nickname(nickname), PortNumber(port))


def decode_learned(key: bytes, value: bytes, now_ns: int) -> LearnedMac:
    """Return what the programs learned of a station; `now_ns` is CLOCK_MONOTONIC."""
    label, mac = STATION_KEY.unpack(key)
    nickname, port, _, seen_ns = STATION.unpack(value)
    age_s = max(0, now_ns - seen_ns) / 1e9
    return LearnedMac(Label(label), mac, Nickname(nickname), PortNumber(port), age_s)


# ---- guests ----


def guard_key(entry: GuardEntry) -> bytes:
    """Return the `guard_key`."""
    address = entry.address
    return GUARD_KEY.pack(entry.port, address.version, address_bytes(address))


def decode_guard(key: bytes) -> GuardEntry:
    """Return what `guard_key` was given."""
    port, family, address = GUARD_KEY.unpack(key)
    return GuardEntry(PortNumber(port), address_of(family, address))


def encode_rules(rules: Mapping[int, PolicyEntry]) -> bytes:
    """Return the `rules_value` of a port's rules by index.

    Raises:
        Unavailable: an index is beyond the map's value.
    """
    count = max(rules, default=-1) + 1
    if count > RULES_PER_PORT_MAX:
        raise Unavailable(f"rule {count - 1} of a port, {RULES_PER_PORT_MAX - 1} is the last")
    body = bytearray(RULES_PER_PORT_MAX * RULE.size)
    for index, rule in rules.items():
        family, address, mask = 0, bytes(16), bytes(16)
        if rule.remote is not None:
            family = rule.remote.version
            address = address_bytes(rule.remote.network_address)
            mask = address_bytes(rule.remote.netmask)
        RULE.pack_into(
            body, index * RULE.size, 1, DIRECTIONS.index(rule.direction), rule.protocol, family,
            rule.first, rule.last, address, mask,
        )  # fmt: skip
    return U32.pack(count) + bytes(body)


def decode_rules(port: int, value: bytes) -> Iterator[PolicyEntry]:
    """Return what `encode_rules` was given."""
    (count,) = U32.unpack_from(value)
    for index in range(count):
        used, direction, protocol, family, first, last, address, mask = RULE.unpack_from(
            value, 4 + index * RULE.size
        )
        if used:
            yield PolicyEntry(
                port=PortNumber(port),
                index=index,
                direction=DIRECTIONS[direction],
                protocol=protocol,
                remote=_network(family, address, mask) if family else None,
                first=first,
                last=last,
            )


def _network(family: int, address: bytes, mask: bytes) -> IPv4Network | IPv6Network:
    bits = int.from_bytes(mask, "big").bit_count()
    return ip_network((address_of(family, address), bits))


# ---- LISP ----


def eid_key(instance_id: int, prefix: IPv4Network | IPv6Network) -> bytes:
    """Return the `eid_key` of a prefix."""
    return EID_KEY.pack(
        EID_PREFIX_BITS + prefix.prefixlen,
        instance_id.to_bytes(4, "big"),
        prefix.version,
        address_bytes(prefix.network_address),
    )


def decode_eid_key(key: bytes) -> tuple[int, IPv4Network | IPv6Network]:
    """Return (instance, prefix); host bits beyond the prefix do not count."""
    bits, instance, family, packed = EID_KEY.unpack(key)
    address = address_of(family, packed)
    prefix_bits = min(bits - EID_PREFIX_BITS, address.max_prefixlen)  # a miss says 128 for both
    network = ip_network((address, prefix_bits), strict=False)
    return int.from_bytes(instance, "big"), network


def _rloc_bytes(rloc: str) -> bytes:
    """Return an RLOC of the kernel plane, which tunnels over IPv4.

    Raises:
        Unavailable: it is IPv6.
    """
    address = ip_address(rloc)
    if not isinstance(address, IPv4Address):
        raise Unavailable(f"RLOC {rloc} is IPv6; the kernel plane tunnels over IPv4 only")
    return address.packed


def encode_map_cache(entry: MapCacheEntry) -> bytes:
    """Return the `map_cache_value` of a mapping; IPv6 RLOCs are left out beside IPv4 ones."""
    usable = [rloc for rloc in entry.rlocs if ip_address(rloc.address).version == 4]
    if entry.rlocs and not usable:
        _rloc_bytes(entry.rlocs[0].address)
    body = b"".join(
        RLOC.pack(_rloc_bytes(rloc.address), rloc.priority, rloc.weight)
        for rloc in usable[:RLOCS_MAX]
    )
    head = MAP_CACHE_HEAD.pack(len(usable[:RLOCS_MAX]), entry.action.value)
    return head + body.ljust(RLOCS_MAX * RLOC.size, b"\0")


def decode_map_cache(key: bytes, value: bytes) -> MapCacheEntry:
    """Return what `encode_map_cache` was given."""
    instance_id, prefix = decode_eid_key(key)
    count, action = MAP_CACHE_HEAD.unpack_from(value)
    rlocs = []
    for index in range(count):
        offset = MAP_CACHE_HEAD.size + index * RLOC.size
        address, priority, weight = RLOC.unpack_from(value, offset)
        rlocs.append(Rloc(str(IPv4Address(address)), priority, weight))
    return MapCacheEntry(instance_id, prefix, tuple(rlocs), MapAction(action))


def encode_eid(entry: EidEntry) -> bytes:
    """Return the `eid_value` of a local EID."""
    onward = _rloc_bytes(entry.forward_to) if entry.forward_to else bytes(4)
    bits = EID_PREFIX_BITS + entry.prefix.prefixlen
    return EID.pack(entry.port, entry.mac or bytes(6), onward, bits)


def decode_eid(key: bytes, value: bytes) -> EidEntry:
    """Return what `encode_eid` was given."""
    instance_id, prefix = decode_eid_key(key)
    port, mac, onward, _ = EID.unpack(value)
    forward_to = str(IPv4Address(onward)) if any(onward) else ""
    return EidEntry(instance_id, prefix, PortNumber(port), mac, forward_to)


def decode_event(record: bytes) -> LispMiss | LispHeard:
    """Return what a program told in the ring of events."""
    kind, rloc, eid, source = EVENT.unpack(record)
    instance_id, prefix = decode_eid_key(eid)
    if kind == EVENT_MISS:
        came_from = address_of(prefix.version, source)
        return LispMiss(instance_id, came_from, prefix.network_address)
    return LispHeard(instance_id, prefix, IPv4Address(rloc))
