"""The forwarding plane in the kernel: tables into eBPF maps, ports bound to interfaces.

Acts; decides nothing. `apply` writes what the control machines decided, `bind` says which
interface a numbered port is. Programs and maps are pinned below a directory on a BPF file
system, so frames go on while no daemon runs, and a later `KernelPlane` on the same directory
begins with the entries that stand there. Interfaces are looked up in the network namespace of
the calling thread.

Invariants:
    `entries()` is what the maps hold. An entry's map value is replaced whole. Nothing is
    attached to an interface but by `bind`, and `unbind` takes it off.
"""

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, NamedTuple, assert_never

from nuage._core import BpfPlane, bpf_refusal
from nuage.errors import Unavailable
from nuage.network import kernel_tables as tables
from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import (
    AGE_MAX_S,
    NICKNAME_UNKNOWN,
    PORT_NONE,
    AdjacencyEntry,
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
    LispHeard,
    LispMiss,
    MacEntry,
    MapCacheEntry,
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
from nuage.network.gro_port import GroPort
from nuage.network.kernel_tables import U32, U64, Batch, Place, Slots, pieces
from nuage.network.line_echo import LineEnd
from nuage.network.offload import disable_segmentation
from nuage.network.trunk import TunnelEnd

SUMS: Final = (
    "ingress", "transit", "egress", "flooded", "punted", "encapsulated", "decapsulated",
    "strays", "answered", "kernel_refused", "into_tunnel", "out_of_tunnel",
)  # fmt: skip
SUM_FIRST: Final = 32
LISP_PRIORITY: Final = 2  # of the tc filter behind access_in
LINE_PRIORITY: Final = 3  # and of the one on a provider's line
TUNNEL_PRIORITY: Final = 4  # and of the one on a tunnel
GENERATION_MAX: Final = 0xFFFF  # then from 0 again: no flow outlives that many changes
_DROP_ORDER: Final = tuple(Drop)
# Tables in the order they are filled: what is pointed to before what points there.
_ORDER: Final = (
    "slots", "states", "self_entry", "fib", "trees", "rpf", "prunes", "directory", "guards",
    "rules", "floods", "eids", "map_cache", "places", "ports",
)  # fmt: skip


class XdpMode(Enum):
    """Where the XDP program of a trunk runs; the values are the kernel's flags."""

    OFF = 0
    GENERIC = 2  # behind the driver: as a test of what a driver would do
    DRIVER = 4


class Neighbour(NamedTuple):
    """Who has an address in a segment: the kernel answers ARP from these."""

    label: Label
    address: IPv4Address | IPv6Address
    mac: bytes


def why_not() -> str | None:
    """Return why this machine's kernel cannot carry the plane, None when it can."""
    return bpf_refusal()


class KernelPlane:
    """The tables in the kernel's maps, and the programs on the interfaces."""

    def __init__(self, directory: Path | str, *, keep_offload: bool = False) -> None:
        """Load the programs and take up what is pinned below `directory` ("": nothing is).

        `keep_offload` leaves TSO on at trunks: only for trunks that never leave this machine.

        Raises:
            Unavailable: the kernel refuses, with its reason; `why_not` asks beforehand.
        """
        try:
            self._bpf = BpfPlane(str(directory))
        except OSError as error:
            raise Unavailable(f"the kernel plane cannot be loaded: {error}") from error
        sizes = {name: (key, value) for name, key, value in self._bpf.map_sizes()}
        assert all(sizes[name] == size for name, size in tables.SIZES.items())
        self._keep_offload = keep_offload
        self._slots = Slots()
        self._entries: dict[EntryKey, Entry] = {}
        self._bound: dict[PortNumber, int] = {}
        self._fast: set[PortNumber] = set()
        self._attached: dict[PortNumber, tuple[int, PortRole]] = {}
        self._lines: dict[PortNumber, tuple[int, int]] = {}  # UDP port, interface index
        self._tunnels: dict[PortNumber, tuple[int, int]] = {}  # interface index, VNI
        self._echoes: dict[PortNumber, bytes] = {}
        self._rules: dict[PortNumber, dict[int, PolicyEntry]] = {}
        self._generations: dict[PortNumber, int] = {}  # of a port's rules
        self._neighbours: dict[bytes, bytes] = {}
        self._joins_in = 0
        self._batch = Batch()
        self._touched: set[PortNumber] = set()
        self._ruled: set[PortNumber] = set()
        self._misses: dict[LispMiss, None] = {}
        self._heard: dict[LispHeard, None] = {}
        self._take_up()

    # ---- tables ----

    def apply(self, delta: ForwardingDelta) -> None:
        """Change the tables.

        Raises:
            Unavailable: a map is full, or a value does not fit; applying again is safe.
        """
        self._batch, self._touched, self._ruled = Batch(), set(), set()
        for entry in delta.removed:
            self._entries.pop(key_of(entry), None)
            self._remove(entry)
        for entry in delta.set:
            self._entries[key_of(entry)] = entry
            self._set(entry)
        for number in self._ruled:
            self._generations[number] = self._generations.get(number, 0) + 1 & GENERATION_MAX
        self._render_ports()
        self._flush()
        self._forget_gone(delta)

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries held."""
        return tuple(self._entries.values())

    def _set(self, entry: Entry) -> None:
        put = self._batch.set
        match entry:
            case SelfEntry():
                put("self_entry", U32.pack(0), tables.encode_self(entry))
            case PortEntry() | AdjacencyEntry():
                self._touched.add(entry.port)
            case FibEntry():
                put("fib", U32.pack(entry.nickname), self._with_slots(entry, tables.encode_fib))
            case TreeEntry():
                put("trees", U32.pack(entry.tree), self._slot_bits(entry.ports))
            case RpfEntry():
                key = tables.RPF_KEY.pack(entry.tree, entry.ingress)
                slot = self._slot(entry.port) if entry.port else tables.RPF_REST
                put("rpf", key, U32.pack(slot))
            case PruneEntry():
                key = tables.PRUNE_KEY.pack(entry.tree, entry.label)
                put("prunes", key, self._slot_bits(entry.ports))
            case FloodEntry():
                put("floods", U32.pack(entry.label), tables.encode_flood(entry))
            case MacEntry():
                key = tables.STATION_KEY.pack(entry.label, entry.mac)
                put("directory", key, tables.encode_station(entry))
                self._unlearn(key)  # it may be of another place, and this line may go again
            case GuardEntry():
                put("guards", tables.guard_key(entry), U32.pack(1))
            case PolicyEntry():
                self._rules.setdefault(entry.port, {})[entry.index] = entry
                self._touched.add(entry.port)
                self._ruled.add(entry.port)
            case MapCacheEntry():
                key = tables.eid_key(entry.instance_id, entry.prefix)
                put("map_cache", key, tables.encode_map_cache(entry))
            case EidEntry():
                key = tables.eid_key(entry.instance_id, entry.prefix)
                put("eids", key, tables.encode_eid(entry))
            case _:
                assert_never(entry)

    def _remove(self, entry: Entry) -> None:
        gone = self._batch.delete
        match entry:
            case SelfEntry():
                unknown = SelfEntry(NICKNAME_UNKNOWN, NICKNAME_UNKNOWN)
                self._batch.set("self_entry", U32.pack(0), tables.encode_self(unknown))
            case PortEntry() | AdjacencyEntry():
                self._touched.add(entry.port)
            case FibEntry():
                gone("fib", U32.pack(entry.nickname))
            case TreeEntry():
                gone("trees", U32.pack(entry.tree))
            case RpfEntry():
                gone("rpf", tables.RPF_KEY.pack(entry.tree, entry.ingress))
            case PruneEntry():
                gone("prunes", tables.PRUNE_KEY.pack(entry.tree, entry.label))
            case FloodEntry():
                gone("floods", U32.pack(entry.label))
            case MacEntry():
                gone("directory", tables.STATION_KEY.pack(entry.label, entry.mac))
            case GuardEntry():
                gone("guards", tables.guard_key(entry))
            case PolicyEntry():
                self._rules.get(entry.port, {}).pop(entry.index, None)
                self._touched.add(entry.port)
                self._ruled.add(entry.port)
            case MapCacheEntry():
                gone("map_cache", tables.eid_key(entry.instance_id, entry.prefix))
            case EidEntry():
                gone("eids", tables.eid_key(entry.instance_id, entry.prefix))
            case _:
                assert_never(entry)

    # ---- trunks as bits ----

    def _slot(self, number: PortNumber) -> int:
        known = number in self._slots.slots
        if not known and len(self._slots.slots) >= tables.TRUNKS_MAX:
            self._slots.free(self._mentioned())
        slot = self._slots.of(number)
        if not known:
            self._batch.set("slots", U32.pack(slot), tables.SLOT.pack(0, number, bytes(6), 0, 0))
        return slot

    def _slot_bits(self, ports: Iterable[PortNumber]) -> bytes:
        for number in ports:
            self._slot(number)
        return self._slots.bits(ports)

    def _with_slots(self, entry: FibEntry, encode: Callable[[FibEntry, Slots], bytes]) -> bytes:
        for hop in (*entry.next_hops, *entry.backups):
            self._slot(hop.port)
        return encode(entry, self._slots)

    def _mentioned(self) -> set[PortNumber]:
        """Return the trunks that some entry needs."""
        found: set[PortNumber] = set()
        for entry in self._entries.values():
            match entry:
                case PortEntry(role=PortRole.TRUNK) | AdjacencyEntry() | RpfEntry():
                    found.add(entry.port)
                case FibEntry():
                    found.update(hop.port for hop in (*entry.next_hops, *entry.backups))
                case TreeEntry() | PruneEntry():
                    found.update(entry.ports)
                case _:
                    pass
        return found

    # ---- ports ----

    def bind(self, number: PortNumber, interface: str, *, xdp: XdpMode = XdpMode.OFF) -> None:
        """Say which interface a port is. Its programs go on as soon as its entry is set.

        `xdp` puts the XDP program on a trunk besides, or takes it off.

        Raises:
            Unavailable: no such interface here, or the kernel refuses the programs.
        """
        try:
            ifindex = socket.if_nametoindex(interface)
        except OSError as error:
            raise Unavailable(f"port {number}: no interface {interface!r} here") from error
        if self._bound.get(number, ifindex) != ifindex:
            self.unbind(number)
        is_new = number not in self._bound
        self._bound[number] = ifindex
        if xdp is XdpMode.OFF:
            if is_new:
                self._fast.add(number)  # an earlier release's plane may have left its own
            self._detach_xdp(number, ifindex)
        else:
            self._try(lambda: self._bpf.attach_xdp("xdp_trunk", ifindex, flags=xdp.value))
            self._fast.add(number)
        self._render(number)

    def has_xdp(self, number: PortNumber) -> bool:
        """Tell whether a trunk has the XDP program."""
        return number in self._fast

    def unbind(self, number: PortNumber) -> None:
        """Take the programs off a port's interface; the entry stays, without a way out."""
        self._unbind_line(number)
        self._forget_tunnel(number)
        ifindex = self._bound.pop(number, 0)
        if not ifindex:
            return
        self._detach(number, ifindex)
        self._render(number)
        self._try(lambda: self._bpf.delete("ports", U32.pack(ifindex)))

    def bind_gro(self, port: GroPort) -> None:
        """Say in which pair of interfaces TCP is joined on its way to guests.

        Raises:
            Unavailable: no such interface here, or the kernel refuses the program.
        """
        try:
            into, out_of = (socket.if_nametoindex(name) for name in (port.into, port.out_of))
        except OSError as error:
            self.unbind_gro()
            raise Unavailable(f"no interfaces {port.into} and {port.out_of} here") from error
        self._try(lambda: self._bpf.attach("gro_in", out_of))
        value = tables.GRO_PORT.pack(into, port.queues)
        self._try(lambda: self._bpf.update("gro_port", U32.pack(0), value))
        self._joins_in = into

    def unbind_gro(self) -> None:
        """Let all TCP go to guests frame by frame."""
        value = bytes(tables.GRO_PORT.size)
        self._try(lambda: self._bpf.update("gro_port", U32.pack(0), value))
        self._joins_in = 0

    def joins_in(self, port: GroPort) -> bool:
        """Tell whether this plane joins TCP in that pair, and it is there."""
        with suppress(OSError):
            return socket.if_nametoindex(port.into) == self._joins_in
        return False

    def bind_line(self, number: PortNumber, interface: str, line: LineEnd) -> None:
        """Say on which interface a trunk's tunnel comes in: its echoes go beside it there.

        Raises:
            Unavailable: no such interface here, or the kernel refuses the program.
        """
        there = ip_address(line.there)
        try:
            ifindex = socket.if_nametoindex(interface)
        except OSError as error:
            raise Unavailable(f"port {number}: no interface {interface!r} here") from error
        self._unbind_line(number)
        value = tables.LINE.pack(number, line.end, there.version, tables.address_bytes(there))
        self._try(lambda: self._bpf.update("lines", U32.pack(line.udp_port), value))
        self._try(lambda: self._bpf.attach("line_in", ifindex, priority=LINE_PRIORITY))
        self._lines[number] = (line.udp_port, ifindex)

    def _unbind_line(self, number: PortNumber) -> None:
        udp_port, ifindex = self._lines.pop(number, (0, 0))
        if not ifindex:
            return
        self._try(lambda: self._bpf.delete("lines", U32.pack(udp_port)))
        if all(other != ifindex for _, other in self._lines.values()):
            with suppress(OSError):  # the interface may be gone, and its programs with it
                self._bpf.detach(ifindex, priority=LINE_PRIORITY)

    def bind_tunnel(self, number: PortNumber, tunnel: TunnelEnd) -> None:
        """Say what a trunk lies over, a tunnel or the rack: plain frames go past its VXLAN port.

        Raises:
            Unavailable: no such interface here, or the kernel refuses the program.
        """
        try:
            ifindex = socket.if_nametoindex(tunnel.interface)
        except OSError as error:
            raise Unavailable(f"port {number}: no interface {tunnel.interface!r} here") from error
        self._forget_tunnel(number)
        key = tables.TUNNEL_KEY.pack(ifindex, tunnel.vni)
        value = tables.TUNNEL.pack(
            key, number, tunnel.here.packed, tunnel.there.packed,
            tunnel.udp_port, tunnel.mtu_bytes, tunnel.is_ethernet,
        )  # fmt: skip
        program = "rack_in" if tunnel.is_ethernet else "tunnel_in"
        self._try(lambda: self._bpf.update("tunnels", key, value))
        self._try(lambda: self._bpf.attach(program, ifindex, priority=TUNNEL_PRIORITY))
        self._tunnels[number] = (ifindex, tunnel.vni)
        self._render(number)

    def unbind_tunnel(self, number: PortNumber) -> None:
        """Let all frames of a trunk go by its VXLAN port."""
        self._forget_tunnel(number)
        self._render(number)

    def _forget_tunnel(self, number: PortNumber) -> None:
        ifindex, vni = self._tunnels.pop(number, (0, 0))
        if not ifindex:
            return
        self._try(lambda: self._bpf.delete("tunnels", tables.TUNNEL_KEY.pack(ifindex, vni)))
        if any(other == ifindex for other, _ in self._tunnels.values()):
            return  # the rack's network has several trunks
        with suppress(OSError):  # the interface may be gone, and its program with it
            self._bpf.detach(ifindex, priority=TUNNEL_PRIORITY)

    def take_echoes(self) -> tuple[EchoSeen, ...]:
        """Return the last echo that came back on each trunk, when it is a new one."""
        found = []
        for number, (_, role) in self._attached.items():
            value = self._bpf.lookup("echoes", U32.pack(number)) if role is PortRole.TRUNK else None
            if value is None or value == self._echoes.get(number):
                continue
            self._echoes[number] = value
            content, returned_ns, way = tables.ECHO.unpack(value)
            on_line = way == tables.ECHO_ON_LINE
            found.append(EchoSeen(number, content, returned_ns / 1e9, on_line=on_line))
        return tuple(found)

    def bound(self) -> dict[PortNumber, int]:
        """Return the interface index of each port that has one."""
        return dict(self._bound)

    def _render(self, number: PortNumber) -> None:
        self._batch, self._touched, self._ruled = Batch(), {number}, set()
        self._render_ports()
        self._flush()

    def _render_ports(self) -> None:
        for number in self._touched:
            port = self._entries.get((PortEntry, number))
            if isinstance(port, PortEntry):
                self._render_port(port)
            else:
                self._clear_port(number)

    def _render_port(self, port: PortEntry) -> None:
        number, key = port.port, U32.pack(port.port)
        ifindex = self._bound.get(number, 0)
        neighbour = self._entries.get((AdjacencyEntry, number))
        generation = self._generations.get(number, 0)
        place = Place(port, ifindex, has_xdp=number in self._fast, generation=generation)
        if port.role is PortRole.TRUNK:
            mac = neighbour.mac if isinstance(neighbour, AdjacencyEntry) else None
            place = replace(place, neighbour=mac, slot=self._slot(number))
            # Without its neighbour nothing is sent over it: paths go by their other hops.
            way_out = 0 if mac is None else ifindex
            tunnel = self._tunnels.get(number, (0, 0))
            value = tables.SLOT.pack(way_out, number, port.mac, *tunnel)
            self._batch.set("slots", U32.pack(place.slot), value)
            if self._bpf.lookup("states", key) is None:
                self._fill_bucket(port)
        else:
            self._render_guest(port)
        value = tables.encode_place(place)
        self._batch.set("places", key, value)
        if ifindex:
            self._batch.set("ports", U32.pack(ifindex), value)

    def _render_guest(self, port: PortEntry) -> None:
        key = U32.pack(port.port)
        self._batch.set("rules", key, tables.encode_rules(self._rules.get(port.port, {})))
        state = self._bpf.lookup("states", key)
        learned, since_s = tables.STATE.unpack(state)[1:3] if state else (0, 0)
        if port.filtered and self._bpf.lookup("flows", key) is None:
            self._try(lambda: self._bpf.renew_flows(port.port))
            since_s = 0
        self._fill_bucket(port, (learned, since_s))

    def _fill_bucket(self, port: PortEntry, kept: tuple[int, int] = (0, 0)) -> None:
        full, now_ns = port.burst_bytes, time.monotonic_ns()
        value = tables.STATE.pack(0, *kept, full, full, now_ns, now_ns)
        self._batch.set("states", U32.pack(port.port), value)

    def _clear_port(self, number: PortNumber) -> None:
        key = U32.pack(number)
        place = self._bpf.lookup("places", key)
        if place is None:
            return
        for name in ("places", "states", "rules", "flows"):
            self._batch.delete(name, key)
        guards, _ = self._bpf.items("guards")
        for guard in pieces(guards, tables.GUARD_KEY.size):
            if tables.decode_guard(guard).port == number:
                self._batch.delete("guards", guard)
        if number in self._slots.slots:
            slot = U32.pack(self._slots.slots[number])
            self._batch.set("slots", slot, tables.SLOT.pack(0, number, bytes(6), 0, 0))
        ifindex = self._bound.pop(number, 0) or tables.decode_place(place).ifindex
        if ifindex:
            self._batch.delete("ports", U32.pack(ifindex))
            self._detach(number, ifindex)
        self._forget_tunnel(number)
        self._rules.pop(number, None)
        self._generations.pop(number, None)
        self._forget(lambda found: found.port == number)

    def _attach(self, port: PortEntry, ifindex: int) -> None:
        if self._attached.get(port.port) == (ifindex, port.role):
            return
        if port.role is PortRole.TRUNK:
            if not self._keep_offload:
                disable_segmentation(socket.if_indextoname(ifindex))
            self._bpf.attach("trunk_in", ifindex)
        else:
            self._bpf.attach("access_in", ifindex)
            self._bpf.attach("lisp_in", ifindex, priority=LISP_PRIORITY)
            self._bpf.attach("access_out", ifindex, egress=True)
        self._attached[port.port] = (ifindex, port.role)

    def _detach(self, number: PortNumber, ifindex: int) -> None:
        self._attached.pop(number, None)
        self._detach_xdp(number, ifindex)
        with suppress(OSError):  # the interface may be gone, and its programs with it
            self._bpf.detach(ifindex)
            self._bpf.detach(ifindex, priority=LISP_PRIORITY)
            self._bpf.detach(ifindex, egress=True)

    def _detach_xdp(self, number: PortNumber, ifindex: int) -> None:
        if number in self._fast:
            self._fast.discard(number)
            with suppress(OSError):
                self._bpf.detach_xdp(ifindex)

    # ---- writing ----

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            raise Unavailable(f"the kernel plane: {error.strerror or error}") from error

    def _flush(self) -> None:
        for name, keys in self._batch.deletes.items():
            self._try(lambda name=name, keys=keys: self._bpf.delete(name, b"".join(keys)))  # type: ignore[misc]
        for name in _ORDER:
            values = self._batch.sets.get(name)
            if values:
                self._try(
                    lambda name=name, values=values: self._bpf.update(  # type: ignore[misc]
                        name, b"".join(values), b"".join(values.values())
                    )
                )
        for number in self._touched:
            port, ifindex = self._entries.get((PortEntry, number)), self._bound.get(number, 0)
            if isinstance(port, PortEntry) and ifindex:
                self._try(lambda port=port, ifindex=ifindex: self._attach(port, ifindex))  # type: ignore[misc]

    def _forget_gone(self, delta: ForwardingDelta) -> None:
        """Unlearn what was behind nicknames that nothing leads to any more."""
        gone = {
            entry.nickname
            for entry in delta.removed
            if isinstance(entry, FibEntry) and (FibEntry, entry.nickname) not in self._entries
        }
        if gone:
            self._forget(lambda found: found.nickname in gone)

    # ---- what the programs learned ----

    def _learned(self) -> Iterable[tuple[bytes, LearnedMac]]:
        keys, values = self._bpf.items("learned")
        now_ns = time.monotonic_ns()
        for key, value in zip(
            pieces(keys, tables.STATION_KEY.size), pieces(values, tables.STATION.size), strict=True
        ):
            yield key, tables.decode_learned(key, value, now_ns)

    def _forget(self, is_gone: Callable[[LearnedMac], bool]) -> int:
        """Unlearn; a port may then learn as many again."""
        keys, freed = [], dict[PortNumber, int]()
        for key, found in self._learned():
            if is_gone(found):
                keys.append(key)
                freed[found.port] = freed.get(found.port, 0) + bool(found.port)
        if keys:
            self._try(lambda: self._bpf.delete("learned", b"".join(keys)))
        for number, count in freed.items():
            self._give_back(number, count)
        return len(keys)

    def _give_back(self, number: PortNumber, count: int) -> None:
        """Let a port learn `count` more."""
        state = self._bpf.lookup("states", U32.pack(number)) if number else None
        if state is None:
            return
        fields = list(tables.STATE.unpack(state))
        fields[1] = max(0, fields[1] - count)
        value = tables.STATE.pack(*fields)
        self._try(lambda: self._bpf.update("states", U32.pack(number), value))

    def _unlearn(self, key: bytes) -> None:
        value = self._bpf.lookup("learned", key)
        if value is None:
            return
        self._batch.delete("learned", key)
        port = PortNumber(tables.STATION.unpack(value)[1])
        if port:
            self._give_back(port, 1)

    def learned_at(self, label: Label, mac: bytes) -> LearnedMac | None:
        """Return where a station was learned to be."""
        key = tables.STATION_KEY.pack(label, mac)
        value = self._bpf.lookup("learned", key)
        if value is None:
            return None
        found = tables.decode_learned(key, value, time.monotonic_ns())
        return found if found.age_s < AGE_MAX_S else None

    def learned(self) -> tuple[LearnedMac, ...]:
        """Return what was learned and has not aged out; directory entries are not listed."""
        return tuple(found for _, found in self._learned() if found.age_s < AGE_MAX_S)

    def age(self, *, age_max_s: float = AGE_MAX_S) -> int:
        """Delete what is too old to be used, once a minute or so; return how much it was."""
        return self._forget(lambda found: found.age_s >= age_max_s)

    def _cell(self, index: int) -> int:
        value = self._bpf.lookup("counters", U32.pack(index))
        return int(U64.unpack(value)[0]) if value else 0

    def counters(self) -> PlaneCounters:
        """Return the sums since the maps were made."""
        sums = self.sums()
        return PlaneCounters(
            ingress_frames=sums["ingress"],
            transit_frames=sums["transit"],
            egress_frames=sums["egress"],
            flooded_frames=sums["flooded"],
            drops={cause: self._cell(index) for index, cause in enumerate(_DROP_ORDER)},
        )

    def sums(self) -> dict[str, int]:
        """Return all sums by name, those beyond `PlaneCounters` included."""
        return {name: self._cell(SUM_FIRST + index) for index, name in enumerate(SUMS)}

    # ---- ARP, LISP ----

    def set_neighbours(self, neighbours: Iterable[Neighbour]) -> None:
        """Say who has which address: ARP for these is answered in the kernel, daemon or not."""
        new = {
            tables.NEIGHBOUR_KEY.pack(
                label, address.version, tables.address_bytes(address)
            ): tables.NEIGHBOUR.pack(mac, mac == SERVER_MAC)
            for label, address, mac in neighbours
        }
        changed = {key: value for key, value in new.items() if self._neighbours.get(key) != value}
        gone = [key for key in self._neighbours if key not in new]
        self._try(lambda: self._bpf.delete("neighbours", b"".join(gone)))
        keys, values = b"".join(changed), b"".join(changed.values())
        self._try(lambda: self._bpf.update("neighbours", keys, values))
        self._neighbours = new

    def set_router(
        self,
        interface: str,
        rloc: IPv4Address,
        mac: bytes,
        *,
        instance_id: int | None = None,
        lines: Mapping[str, IPv4Address] | None = None,
    ) -> None:
        """Make this node a LISP tunnel router: guests' packets to `mac` are looked up.

        `interface` leads to the other RLOCs, by the kernel's own routes and neighbours. What
        guests send is looked up in `instance_id`, or (None) in the instance of their segment's
        label. `lines` are more interfaces, with our RLOC on each: then the kernel's routes say
        which one a packet leaves by, and the host must be an IP router.
        """
        more = lines or {}
        addresses = b"".join(address.packed for address in more.values())
        instance = tables.LISP_OF_PORT if instance_id is None else instance_id
        indices = [socket.if_nametoindex(name) for name in (interface, *more)]
        value = tables.LISP_SELF.pack(indices[0], rloc.packed, mac, bool(more), instance, addresses)
        self._try(lambda: self._bpf.update("lisp_self", U32.pack(0), value))
        for ifindex in indices:
            self._try(lambda ifindex=ifindex: self._bpf.attach("lisp_under", ifindex))  # type: ignore[misc]

    def events_fileno(self) -> int | None:
        """Return a descriptor that is readable when there is something to take."""
        return self._bpf.event_descriptor()

    def _drain(self) -> None:
        for record in self._bpf.events():
            found = tables.decode_event(record)
            if isinstance(found, LispMiss):
                self._misses[found] = None
            else:
                self._heard[found] = None

    def take_misses(self) -> tuple[LispMiss, ...]:
        """Return, once, the misses since the last call; each is told ten times a second."""
        self._drain()
        found = tuple(self._misses)
        self._misses.clear()
        return found

    def take_heard(self) -> tuple[LispHeard, ...]:
        """Return, once, who was heard since the last call; the first call: since the maps began."""
        self._drain()
        found = tuple(self._heard)
        self._heard.clear()
        return found

    # ---- a life before ----

    def _pairs(self, name: str) -> Iterable[tuple[bytes, bytes]]:
        keys, values = self._bpf.items(name)
        key_size, value_size = tables.SIZES[name]
        return zip(pieces(keys, key_size), pieces(values, value_size), strict=True)

    def _keep(self, entry: Entry) -> None:
        self._entries[key_of(entry)] = entry

    def _take_up(self) -> None:
        """Begin from what the maps hold, and put these programs where others stand."""
        for key, value in self._pairs("slots"):
            _, number, *_ = tables.SLOT.unpack(value)
            if number:
                self._slots.put(PortNumber(number), U32.unpack(key)[0])
        nickname, tree = tables.SELF.unpack(self._bpf.lookup("self_entry", U32.pack(0)) or b"")
        if nickname or tree:
            self._keep(SelfEntry(Nickname(nickname), Nickname(tree)))
        self._take_up_ports()
        self._take_up_fabric()
        for key, value in self._pairs("directory"):
            self._keep(tables.decode_station(key, value))
        for key, value in self._pairs("eids"):
            self._keep(tables.decode_eid(key, value))
        for key, value in self._pairs("map_cache"):
            self._keep(tables.decode_map_cache(key, value))
        self._neighbours = dict(self._pairs("neighbours"))
        for key, _ in self._pairs("heard"):
            eid, rloc = tables.HEARD_KEY.unpack(key)
            self._heard[LispHeard(*tables.decode_eid_key(eid), IPv4Address(rloc))] = None

    def _take_up_ports(self) -> None:
        for _, value in self._pairs("places"):
            place = tables.decode_place(value)
            self._keep(place.port)
            self._generations[place.port.port] = place.generation
            adjacency = tables.adjacency_of(place)
            if adjacency is not None:
                self._keep(adjacency)
            if place.ifindex:
                with suppress(OSError):  # gone meanwhile: the port waits for `bind`
                    socket.if_indextoname(place.ifindex)
                    self._attach(place.port, place.ifindex)
                    self._bound[place.port.port] = place.ifindex
                    if place.has_xdp:
                        self._fast.add(place.port.port)
                        self._renew_xdp(place.ifindex)
        self._take_up_tunnels()
        self._take_up_guests()

    def _take_up_tunnels(self) -> None:
        for _, value in self._pairs("tunnels"):
            key, number, *_, is_ethernet = tables.TUNNEL.unpack(value)
            ifindex, vni = tables.TUNNEL_KEY.unpack(key)
            program = "rack_in" if is_ethernet else "tunnel_in"
            with suppress(OSError):  # gone meanwhile: the trunk waits for `bind_tunnel`
                socket.if_indextoname(ifindex)
                self._bpf.attach(program, ifindex, priority=TUNNEL_PRIORITY)
                self._tunnels[PortNumber(number)] = (ifindex, vni)

    def _renew_xdp(self, ifindex: int) -> None:
        """Put this program where an older one stands, in the mode that it has there."""
        try:
            self._bpf.attach_xdp("xdp_trunk", ifindex, flags=XdpMode.DRIVER.value)
        except OSError:
            self._bpf.attach_xdp("xdp_trunk", ifindex, flags=XdpMode.GENERIC.value)

    def _take_up_guests(self) -> None:
        for key, _ in self._pairs("guards"):
            self._keep(tables.decode_guard(key))
        for key, value in self._pairs("rules"):
            for rule in tables.decode_rules(U32.unpack(key)[0], value):
                self._keep(rule)
                self._rules.setdefault(rule.port, {})[rule.index] = rule

    def _take_up_fabric(self) -> None:
        for key, value in self._pairs("fib"):
            self._keep(tables.decode_fib(U32.unpack(key)[0], value, self._slots))
        for key, value in self._pairs("trees"):
            self._keep(TreeEntry(Nickname(U32.unpack(key)[0]), self._slots.ports(value)))
        for key, value in self._pairs("rpf"):
            tree, ingress = tables.RPF_KEY.unpack(key)
            (slot,) = U32.unpack(value)
            port = PORT_NONE if slot == tables.RPF_REST else self._slots.numbers[slot]
            self._keep(RpfEntry(Nickname(tree), Nickname(ingress), port))
        for key, value in self._pairs("prunes"):
            tree, label = tables.PRUNE_KEY.unpack(key)
            self._keep(PruneEntry(Nickname(tree), Label(label), self._slots.ports(value)))
        for key, value in self._pairs("floods"):
            self._keep(tables.decode_flood(U32.unpack(key)[0], value))
