"""A plane that carries LISP, in Python: longest prefix, encapsulate, decapsulate.

A model for tests of the control machines: in the product only the kernel's plane carries LISP.

What it cannot forward for want of a mapping is noted in `misses` (bounded, newest kept) for
the `Xtr` to ask about; who sent us packets for an EID is noted in `heard`, for the SMRs that
a move away needs.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple, TypeVar
from zlib import crc32

from nuage.network.forwarding import (
    Drop,
    EidEntry,
    ForwardingDelta,
    LispHeard,
    LispMiss,
    MapAction,
    MapCacheEntry,
)
from nuage.network.software_plane import SoftwarePlane
from nuage.network.wire import MalformedFrame, Reader

MISSES_MAX: Final = 1024
HEARD_MAX: Final = 4096


class Tunnelled(NamedTuple):
    """UDP payload for port 4341 of an RLOC."""

    rloc: str
    payload: bytes


class Delivered(NamedTuple):
    """A decapsulated IP packet for a local EID."""

    entry: EidEntry
    packet: bytes


def addresses_of(packet: bytes) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]:
    """Return source and destination of an IP packet.

    Raises:
        MalformedFrame: too short for its version.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    if version == 6 and len(packet) >= 40:
        return IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    raise MalformedFrame("inner_ip")


def data_header(instance_id: int, nonce: int) -> bytes:
    """Return the 8 bytes before an encapsulated packet: nonce and instance-ID present."""
    return struct.pack(">BI", 0x88, nonce << 8 | instance_id >> 16) + struct.pack(
        ">HB", instance_id & 0xFFFF, 0
    )


def decode_data(data: bytes) -> tuple[int, bytes]:
    """Return (instance-ID, inner IP packet).

    Raises:
        MalformedFrame: too short, or flags that cannot go together (RFC 9300 §5.3).
    """
    reader = Reader(data)
    flags = reader.u8()
    reader.take(3)
    last = reader.u32()
    if flags & 0x80 and flags & 0x10:
        raise MalformedFrame("lisp_flags", "N and V")
    if flags & 0x03:
        raise MalformedFrame("lisp_flags", "encrypted payload")
    return last >> 8 if flags & 0x08 else 0, reader.rest()


class LispTables:
    """Map-cache and EID database of one plane."""

    def __init__(self, drop: Callable[[Drop], object]) -> None:
        self._drop = drop
        self._cache: dict[tuple[int, IPv4Network | IPv6Network], MapCacheEntry] = {}
        self._eids: dict[tuple[int, IPv4Network | IPv6Network], EidEntry] = {}
        self.misses: OrderedDict[LispMiss, None] = OrderedDict()
        self.heard: OrderedDict[LispHeard, None] = OrderedDict()

    def set(self, entry: MapCacheEntry | EidEntry) -> None:
        """Add or replace an entry."""
        if isinstance(entry, MapCacheEntry):
            self._cache[entry.instance_id, entry.prefix] = entry
        else:
            self._eids[entry.instance_id, entry.prefix] = entry

    def remove(self, entry: MapCacheEntry | EidEntry) -> None:
        """Take an entry away."""
        if isinstance(entry, MapCacheEntry):
            self._cache.pop((entry.instance_id, entry.prefix), None)
        else:
            self._eids.pop((entry.instance_id, entry.prefix), None)

    def encapsulate(self, instance_id: int, packet: bytes) -> Tunnelled | None:
        """Return the packet in its tunnel, or None when it is dropped (and the miss noted)."""
        try:
            source, destination = addresses_of(packet)
        except MalformedFrame:
            self._drop(Drop.LISP)
            return None
        entry = _longest(self._cache, instance_id, destination)
        if entry is None or (not entry.rlocs and entry.action is MapAction.SEND_MAP_REQUEST):
            self.misses[LispMiss(instance_id, source, destination)] = None
            if len(self.misses) > MISSES_MAX:
                self.misses.popitem(last=False)
            self._drop(Drop.NO_MAPPING)
            return None
        if not entry.rlocs:
            self._drop(Drop.NO_MAPPING)
            return None
        mark = crc32(source.packed + destination.packed)
        rloc = entry.rlocs[mark % len(entry.rlocs)]
        return Tunnelled(rloc.address, data_header(instance_id, mark & 0xFFFFFF) + packet)

    def decapsulate(self, rloc: str, payload: bytes) -> Delivered | Tunnelled | None:
        """Return where a tunnelled packet goes: to an EID here, on to where it moved, nowhere."""
        try:
            instance_id, packet = decode_data(payload)
            _, destination = addresses_of(packet)
        except MalformedFrame:
            self._drop(Drop.LISP)
            return None
        entry = _longest(self._eids, instance_id, destination)
        if entry is None:
            self._drop(Drop.NO_MAPPING)
            return None
        key = LispHeard(instance_id, entry.prefix, ip_address(rloc))
        self.heard[key] = None
        self.heard.move_to_end(key)
        if len(self.heard) > HEARD_MAX:
            self.heard.popitem(last=False)
        if entry.forward_to:
            return Tunnelled(entry.forward_to, payload)
        return Delivered(entry, packet)


class LispPlane(SoftwarePlane):
    """The plane in Python with these tables."""

    def __init__(self) -> None:
        super().__init__()
        self.lisp = LispTables(self._drop)

    def apply(self, delta: ForwardingDelta) -> None:
        """Change the tables."""
        super().apply(delta)
        for entries, change in ((delta.removed, self.lisp.remove), (delta.set, self.lisp.set)):
            for entry in entries:
                if isinstance(entry, MapCacheEntry | EidEntry):
                    change(entry)

    def take_misses(self) -> tuple[LispMiss, ...]:
        """Return the misses since the last call."""
        found = tuple(self.lisp.misses)
        self.lisp.misses.clear()
        return found

    def take_heard(self) -> tuple[LispHeard, ...]:
        """Return who was heard since the last call."""
        found = tuple(self.lisp.heard)
        self.lisp.heard.clear()
        return found

    def events_fileno(self) -> int | None:
        """There is none: poll."""
        return None


_E = TypeVar("_E", MapCacheEntry, EidEntry)


def _longest(
    table: Mapping[tuple[int, IPv4Network | IPv6Network], _E],
    instance_id: int,
    address: IPv4Address | IPv6Address,
) -> _E | None:
    """Return the entry of the longest prefix that holds `address`, by asking for each length."""
    for length in range(address.max_prefixlen, -1, -1):
        found = table.get((instance_id, ip_network((address, length), strict=False)))
        if found is not None:
            return found
    return None
