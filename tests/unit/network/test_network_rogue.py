"""A guest that plays router or DHCP server is seen through, whatever it hides behind."""

from ipaddress import IPv4Address

import pytest
from tests.unit.network.rogue_frames import ECHO, ICMPV6, UDP, Sender, rogue, udp

from nuage.network.guest_frame import is_rogue

GUEST = Sender(bytes.fromhex("060000000001"), IPv4Address("10.0.0.1"))


@pytest.mark.parametrize("name", rogue(GUEST))
def test_a_rogue_is_seen_through(name: str) -> None:
    assert is_rogue(rogue(GUEST)[name])


@pytest.mark.parametrize(
    "frame",
    [
        GUEST.ipv4(UDP, udp(68, 67)),
        GUEST.ipv4(UDP, udp(546, 547)),
        GUEST.ipv6(UDP, udp(546, 547)),
        GUEST.ipv6(UDP, udp(68, 5353), trailer=bytes(7)),
        GUEST.ipv6(ICMPV6, GUEST.icmpv6(ECHO)),
        GUEST.ipv4(UDP, b"the rest of a datagram", fragment=0x0003),
    ],
    ids=["DHCP", "port of DHCPv6", "DHCPv6", "trailer", "echo", "fragment"],
)
def test_a_client_is_none(frame: bytes) -> None:
    assert not is_rogue(frame)
