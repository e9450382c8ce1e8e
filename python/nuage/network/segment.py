"""The virtual switch's decisions: from ports and a directory to table entries and answers.

Feeds a forwarding plane (`entries`), tells the RBridge which labels are here (`labels`) and
answers what guests ask the segment: ARP, ND, DHCP (`answer`). Every lookup is by label, so
tenants may use the same addresses. A port's guest may send from its own MAC and addresses only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address, ip_network
from typing import Final

from nuage.ids import PortId
from nuage.model.contract import QosClass
from nuage.network.dhcp import SERVER_MAC, Lease, answer_dhcp, decode_request
from nuage.network.forwarding import (
    NICKNAME_UNKNOWN,
    Entry,
    EntryKey,
    FloodEntry,
    ForwardingDelta,
    GuardEntry,
    Label,
    MacEntry,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    delta_between,
    segment_entries,
    table,
)
from nuage.network.guest_frame import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from nuage.network.neighbour_answer import answer_arp, answer_nd, link_local
from nuage.network.rate_limit import Rate, TokenBucket
from nuage.network.router_answer import ROUTER, answer_solicitation, is_router_solicitation
from nuage.network.security_group import ALL_OUT, SecurityRule, policy_entries
from nuage.network.wire import MalformedFrame, mac_bytes

# What one port may use in each direction; the trunks are shared by all of a site's tenants.
RATE_BITS_PER_S: Final[Mapping[QosClass, int]] = {
    QosClass.GOLD: 10_000_000_000,
    QosClass.SILVER: 2_000_000_000,
    QosClass.BRONZE: 500_000_000,
}
QUESTION_RATE: Final = Rate(per_s=200, burst=400)  # ARP, ND and DHCP of one guest


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPort:
    """A VM's or gateway's plug on this node. `rules` None: no filter (gateways, storage).

    `present` is false while the VM is still, or already, elsewhere (live migration): it may
    send, and nobody's frames are delivered to it.
    """

    port: PortNumber
    port_id: PortId
    label: Label
    mac: str
    addresses: tuple[str, ...]
    cidr: str = ""
    gateway: str = ""
    dns: tuple[str, ...] = ()
    hostname: str = ""
    mtu_bytes: int = 1362
    qos_class: QosClass = QosClass.SILVER
    guarded: bool = True
    rules: tuple[SecurityRule, ...] | None = (ALL_OUT,)
    present: bool = True
    leaving: bool = False  # it stands still here: what floods the segment still comes to its tap
    rate_bits_per_s: int = 0  # 0: what the class gives
    routed6: bool = False  # it has a public IPv6 address: the tunnel router advertises itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A line of the directory: a station of a segment, on whatever node.

    `nickname` is of the RBridge where it is; 0 while that is not known.
    """

    label: Label
    mac: str
    addresses: tuple[str, ...]
    nickname: Nickname


class SegmentSwitch:
    """The segments of one node."""

    def __init__(self, known: Iterable[Entry] = ()) -> None:
        """Begin from what the plane holds (`ForwardingPlane.entries`), so a restart is smooth."""
        self._ports: dict[PortNumber, AccessPort] = {}
        self._macs: dict[tuple[int, IPv4Address | IPv6Address], bytes] = {}
        self._applied: dict[EntryKey, Entry] = table(segment_entries(known))
        self._buckets: dict[PortNumber, TokenBucket] = {}
        self.unanswered = 0

    @property
    def labels(self) -> frozenset[Label]:
        """Return the segments that have a port here: for `LabelsChanged`."""
        return frozenset(port.label for port in self._ports.values())

    def routed6(self) -> dict[PortNumber, int]:
        """Return the MTU of each port whose guest is here and has a public IPv6 address."""
        return {p.port: p.mtu_bytes for p in self._ports.values() if p.routed6 and p.present}

    def update(
        self,
        ports: Iterable[AccessPort],
        stations: Iterable[Station],
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> ForwardingDelta:
        """Take all ports and the directory as they now are; return what changes in the plane."""
        self._ports = {port.port: port for port in ports}
        listed = tuple(stations)
        self._macs = {}
        for station in listed:
            self._note(station.label, mac_bytes(station.mac), station.addresses)
        for port in self._ports.values():
            self._note(port.label, mac_bytes(port.mac), port.addresses)
        new = table(self._entries(listed, groups or {}))
        delta = delta_between(self._applied, new)
        self._applied = new
        return delta

    def arrive(self, number: PortNumber) -> ForwardingDelta:
        """Open the port of a guest that is here now, and that alone: it waits for this.

        An `update` with the same port present changes nothing more of it.
        """
        port = self._ports.get(number)
        if port is None or port.present:
            return ForwardingDelta()
        self._ports[number] = replace(port, present=True)
        others = (p for p in self._ports.values() if p.label == port.label and p.present)
        opened: tuple[Entry, ...] = (
            MacEntry(port.label, mac_bytes(port.mac), port=number),
            FloodEntry(port.label, tuple(sorted(p.port for p in others))),
        )
        self._applied.update(table(opened))
        return ForwardingDelta(set=opened)

    def _note(self, label: Label, mac: bytes, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._macs[label, ip_address(address)] = mac
        self._macs[label, link_local(mac)] = mac

    def _entries(
        self, stations: Sequence[Station], groups: Mapping[str, Sequence[str]]
    ) -> list[Entry]:
        entries: list[Entry] = []
        here: dict[Label, list[PortNumber]] = {}
        local: set[tuple[Label, bytes]] = set()
        for port in self._ports.values():
            mac = mac_bytes(port.mac)
            here.setdefault(port.label, [])
            if port.present:
                here[port.label].append(port.port)
            if port.present and not port.leaving:
                local.add((port.label, mac))
                entries.append(MacEntry(port.label, mac, port=port.port))
            entries.append(
                PortEntry(
                    port=port.port,
                    role=PortRole.ACCESS,
                    mac=mac,
                    label=port.label,
                    mtu_bytes=port.mtu_bytes,
                    guarded=port.guarded,
                    filtered=port.rules is not None,
                    rate_bits_per_s=port.rate_bits_per_s or RATE_BITS_PER_S[port.qos_class],
                )
            )
            addresses = {ip_address(address) for address in port.addresses}
            entries.extend(
                GuardEntry(port.port, address)
                for address in sorted(addresses | {link_local(mac)}, key=str)
            )
            entries.extend(policy_entries(port.port, port.rules or (), groups))
        entries.extend(FloodEntry(label, tuple(sorted(ports))) for label, ports in here.items())
        for station in stations:
            mac = mac_bytes(station.mac)
            wanted = station.label in here and (station.label, mac) not in local
            if wanted and station.nickname != NICKNAME_UNKNOWN:
                entries.append(MacEntry(station.label, mac, nickname=station.nickname))
        return entries

    def answer(self, number: PortNumber, frame: bytes, now_s: float) -> bytes | None:
        """Return the frame that answers what a guest asked the segment, None for silence."""
        port = self._ports.get(number)
        if port is None or len(frame) < 14:
            return None
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = TokenBucket(QUESTION_RATE, now_s)
        if not bucket.take(now_s):
            return None
        try:
            reply = self._reply(port, frame)
        except MalformedFrame:
            reply = None
        self.unanswered += reply is None
        return reply

    def _reply(self, port: AccessPort, frame: bytes) -> bytes | None:
        mac = mac_bytes(port.mac)
        mine = frozenset(ip_address(address) for address in port.addresses)
        ethertype = int.from_bytes(frame[12:14], "big")

        lease = _lease(port)

        def lookup(address: IPv4Address | IPv6Address) -> bytes | None:
            found = self._macs.get((port.label, address))
            if found is None and lease is not None and address == lease.server:
                return SERVER_MAC  # a segment without gateway: leases are renewed with us
            return SERVER_MAC if port.routed6 and address == ROUTER else found

        if ethertype == ETHERTYPE_ARP:
            return answer_arp(frame, mac, mine, lookup)
        if ethertype == ETHERTYPE_IPV6 and is_router_solicitation(frame):
            return answer_solicitation(frame, mac, port.mtu_bytes) if port.routed6 else None
        if ethertype == ETHERTYPE_IPV6:
            return answer_nd(frame, mac, mine, lookup)
        if ethertype != ETHERTYPE_IPV4 or lease is None:
            return None
        return answer_dhcp(decode_request(frame), lease)


def _lease(port: AccessPort) -> Lease | None:
    """Return the IPv4 lease of a port; None when it has no IPv4 address or prefix."""
    first = next((a for a in port.addresses if ip_address(a).version == 4), None)
    if first is None or not port.cidr:
        return None
    bits = ip_network(port.cidr, strict=False).prefixlen
    return Lease(
        mac=mac_bytes(port.mac),
        address=IPv4Interface(f"{first}/{bits}"),
        mtu_bytes=port.mtu_bytes,
        router=IPv4Address(port.gateway) if port.gateway else None,
        dns=tuple(IPv4Address(a) for a in port.dns),
        hostname=port.hostname,
    )
