"""A tunnel whose far end is the test: what enters it is read, what the test writes comes out."""

import fcntl
import os
import struct
from select import select

from tests.system.bpf.bpf_netns import Bridge, Entered, run, within

from nuage.network.forwarding import PortNumber
from nuage.network.trunk import (
    TrunkDriver,
    TrunkEnd,
    TrunkWish,
    TunnelEnd,
    link_commands,
    plan_trunk,
    tunnel_end,
)
from nuage.network.wire import internet_checksum

NUMBER = 2000 + os.getpid() % 2000  # wireguard-go has one control socket a name, on a machine
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
IP_BYTES, UDP_BYTES, VXLAN_BYTES = 20, 8, 8
HEAD_BYTES = IP_BYTES + UDP_BYTES + VXLAN_BYTES
VXLAN_PORT = 4789


class Tunnel:
    """A tun interface with a trunk's VXLAN port over it, made as `trunk_wireguard` does."""

    def __init__(self, namespace: str, *, mtu_bytes: int = 0) -> None:
        ends = [
            TrunkEnd(site_id=f"site-{n}", address=f"192.0.2.{n + 1}", public_key="key")
            for n in range(2)
        ]
        wish = TrunkWish(
            number=NUMBER, provider="isp", here=ends[0], there=ends[1],
            path_mtu_bytes=mtu_bytes or 1500,
        )  # fmt: skip
        self.plan = plan_trunk(wish, TrunkDriver.WIREGUARD_GO)
        self.namespace = namespace
        with Entered(namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            asked = struct.pack("16sH22x", self.plan.tunnel.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(self._fd, TUNSETIFF, asked)
        for command in link_commands(self.plan):
            run("ip", "netns", "exec", namespace, *command)

    def end(self) -> TunnelEnd:
        plan = self.plan
        return tunnel_end(NUMBER, plan.tunnel, plan.tunnel_mtu_bytes, low=True)

    def shorten(self, bridge: Bridge, number: int) -> None:
        """Let plain frames of a trunk go the short way."""
        within(bridge.namespace, lambda: bridge.plane.bind_tunnel(PortNumber(number), self.end()))

    def write(self, packet: bytes) -> None:
        """Let a packet come out of the tunnel."""
        os.write(self._fd, packet)

    def packets(self, timeout_s: float = 0.0, count: int = 1 << 30) -> list[bytes]:
        """Return up to `count` IPv4 packets that entered, waiting for each that is missing."""
        found: list[bytes] = []
        while len(found) < count and select([self._fd], [], [], timeout_s)[0]:
            packet = os.read(self._fd, 65536)
            if packet[0] == 0x45:  # the host's own IPv6 asks who is there
                found.append(packet)
        return found

    def close(self) -> None:
        os.close(self._fd)


def ipv4(source: str, destination: str, body: bytes, *, tos: int = 0, fragment: int = 0) -> bytes:
    """Return a UDP packet without options."""
    addresses = bytes(map(int, f"{source}.{destination}".split(".")))
    size = IP_BYTES + len(body)
    head = struct.pack(">BBHHHBBH", 0x45, tos, size, 0, fragment, 64, 17, 0) + addresses
    return head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:] + body


class TunnelWire:
    """The far end's VXLAN port: frames to and from a tunnel. Stands in for a `Wire`."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def send(self, frame: bytes) -> None:
        self._tunnel.write(self.wrapped(frame))

    def wrapped(self, frame: bytes, *, vni: int = NUMBER) -> bytes:
        """Return the packet of a frame that the far end sends."""
        vxlan = struct.pack(">II", 0x08000000, vni << 8)
        size = UDP_BYTES + VXLAN_BYTES + len(frame)
        udp = struct.pack(">HHHH", 51234, VXLAN_PORT, size, 0)
        plan = self._tunnel.plan
        return ipv4(plan.tunnel_remote, plan.tunnel_local, udp + vxlan + frame)

    def frames(self, timeout_s: float = 0.0, count: int = 1 << 30) -> list[bytes]:
        return [self.opened(packet) for packet in self._tunnel.packets(timeout_s, count)]

    def opened(self, packet: bytes) -> bytes:
        """Return the frame in a packet, whose headers must be right."""
        plan = self._tunnel.plan
        assert internet_checksum(packet[:IP_BYTES]) == 0, packet.hex()
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        addresses = bytes(map(int, f"{plan.tunnel_local}.{plan.tunnel_remote}".split(".")))
        assert packet[12:20] == addresses
        _, port, size, checksum = struct.unpack(">HHHH", packet[20:28])
        assert (port, size) == (VXLAN_PORT, len(packet) - IP_BYTES)
        pseudo = addresses + struct.pack(">HH", 17, size)
        assert not checksum or internet_checksum(pseudo + packet[IP_BYTES:]) == 0
        assert struct.unpack(">II", packet[28:36]) == (0x08000000, plan.vni << 8)
        return packet[HEAD_BYTES:]
