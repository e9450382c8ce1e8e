"""How many bytes are left for a guest: arithmetic over the layers a frame is wrapped in.

::

    path of an ISP                           1500
    - IPv4 20, UDP 8, WireGuard 32           1440   (IPv6 underlay: 1420)
    - IPv4 20, UDP 8, VXLAN 8, Ethernet 14   1390   what a trunk carries after its Ethernet header
    - TRILL 6, inner Ethernet 14, tag 4      1366   guest, VLAN
                              … or tag 8     1362   guest, fine-grained label

That is what every trunk promises, over whatever line: guests have one MTU, wherever they and their
peers run. A line of a provider that is narrower (PPPoE 1492, LTE 1400, WireGuard over IPv6) carries
the longest in two IP fragments; whether they arrive, the trunk's probes find out.
"""

from dataclasses import dataclass
from typing import Final

IPV4_BYTES: Final = 20
IPV6_BYTES: Final = 40
UDP_BYTES: Final = 8
ETHERNET_BYTES: Final = 14
VXLAN_BYTES: Final = 8
WIREGUARD_BYTES: Final = 32  # type and receiver 8, counter 8, tag 16
TRILL_BYTES: Final = 6
VLAN_TAG_BYTES: Final = 4
FGL_TAG_BYTES: Final = 8
PATH_BYTES: Final = 1500
LINE_BYTES_MIN: Final = 1280  # IPv6 needs it; two fragments do
GUEST_BYTES_MIN: Final = 1280  # IPv6 needs it (RFC 8200 §5)


@dataclass(frozen=True, slots=True)
class Wrapping:
    """How a trunk is carried. `bare`: the trunk is the link itself (fibre), no IP below."""

    encrypted: bool = True
    underlay_ipv6: bool = False
    bare: bool = False


def tunnel_mtu(path_bytes: int, wrapping: Wrapping) -> int:
    """Return what the encrypted tunnel carries over a path."""
    if not wrapping.encrypted:
        return path_bytes
    ip = IPV6_BYTES if wrapping.underlay_ipv6 else IPV4_BYTES
    return path_bytes - ip - UDP_BYTES - WIREGUARD_BYTES


def trunk_mtu(path_bytes: int, wrapping: Wrapping) -> int:
    """Return what a trunk carries after its own Ethernet header: `Trunk.mtu_bytes`."""
    if wrapping.bare:
        return path_bytes
    ip = IPV6_BYTES if wrapping.underlay_ipv6 and not wrapping.encrypted else IPV4_BYTES
    inside = tunnel_mtu(path_bytes, wrapping)
    return inside - ip - UDP_BYTES - VXLAN_BYTES - ETHERNET_BYTES


PROMISED_BYTES: Final = trunk_mtu(PATH_BYTES, Wrapping())  # of a trunk


def guest_mtu(trunk_bytes: int, *, fine_grained: bool = True) -> int:
    """Return the MTU of a guest behind trunks that carry `trunk_bytes`."""
    tag = FGL_TAG_BYTES if fine_grained else VLAN_TAG_BYTES
    return trunk_bytes - TRILL_BYTES - ETHERNET_BYTES - tag
