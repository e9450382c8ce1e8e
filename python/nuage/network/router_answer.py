"""The router that guests with a public IPv6 address see: advertisements of ours (RFC 4861 §4.2).

It is the tunnel router of whatever node the guest is on, under one MAC and link-local address
everywhere, so that a guest that moves keeps its default route. Advertised are the route and the
segment's MTU, no prefix: addresses are the catalogue's.

::

    ICMPv6 134 | hop limit:8 M:1 O:1 0:6 | lifetime:16 s | reachable:32 | retransmit:32
    option 1, our MAC | option 5, MTU
"""

import struct
from ipaddress import IPv6Address
from typing import Final

from nuage.network.dhcp import SERVER_MAC
from nuage.network.guest_frame import (
    ND_ROUTER_ADVERTISEMENT,
    ND_ROUTER_SOLICITATION,
    PROTOCOL_ICMPV6,
)
from nuage.network.neighbour_answer import (
    ALL_NODES,
    ALL_NODES_MAC,
    UNSPECIFIED,
    link_local,
    nd_frame,
    nd_question,
)

ROUTER: Final = link_local(SERVER_MAC)
LIFETIME_S: Final = 9000  # RFC 4861 §6.2.1: the most; a daemon may be away that long
ADVERTISE_EVERY_S: Final = 600.0  # the most that RFC permits is 1800
HOP_LIMIT: Final = 64


def is_router_solicitation(frame: bytes) -> bool:
    """Tell whether an IPv6 frame without extension headers asks for a router."""
    return len(frame) > 54 and frame[20] == PROTOCOL_ICMPV6 and frame[54] == ND_ROUTER_SOLICITATION


def answer_solicitation(frame: bytes, mac: bytes, mtu_bytes: int) -> bytes | None:
    """Return the advertisement that answers a guest's question, None when it is no proper one.

    Raises:
        MalformedFrame: truncated.
    """
    reader, hop_limit, asker = nd_question(frame)
    kind, code = reader.u8(), reader.u8()
    if (kind, code, hop_limit) != (ND_ROUTER_SOLICITATION, 0, 255):
        return None
    if asker not in (UNSPECIFIED, link_local(mac)):
        return None
    if asker == UNSPECIFIED:
        return advertisement(mtu_bytes)
    return advertisement(mtu_bytes, mac, asker)


def advertisement(
    mtu_bytes: int, dmac: bytes = ALL_NODES_MAC, destination: IPv6Address = ALL_NODES
) -> bytes:
    """Return a router advertisement, to all nodes of a port or to the one that asked."""
    head = struct.pack(">BBHBBHII", ND_ROUTER_ADVERTISEMENT, 0, 0, HOP_LIMIT, 0, LIFETIME_S, 0, 0)
    options = b"\x01\x01" + SERVER_MAC + struct.pack(">BBHI", 5, 1, 0, mtu_bytes)
    return nd_frame(dmac, SERVER_MAC, ROUTER, destination, head + options)
