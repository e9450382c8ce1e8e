"""Trunks between sites: what each end must set up, worked out from the catalogue's words.

Pure. A trunk is a point-to-point VXLAN port inside an encrypted tunnel (or, when that is said,
without one). A pair of sites may have several trunks, one per provider; the fabric sees each
as a link of its own. Addresses inside are derived from the trunk's number, so both ends agree
without talking: IPv4 link-local, as others' tunnels do (20 bytes cheaper than IPv6).

::

    provider path (public IP) ── driver: WireGuard ── IPv4 ── VXLAN, one peer ── trunk port

A trunk carries at least `mtu.PROMISED_BYTES`: over a narrower line IP cuts what is too long for it,
outside of the tunnel.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, ip_address
from typing import Final

from nuage.errors import InvalidRequest
from nuage.network.mtu import (
    LINE_BYTES_MIN,
    PATH_BYTES,
    PROMISED_BYTES,
    Wrapping,
    guest_mtu,
    trunk_mtu,
    tunnel_mtu,
)

TRUNK_PREFIX: Final = IPv4Address("169.254.0.0")  # two addresses a trunk: 169.254.0.2 to .31.255
VXLAN_PORT: Final = 4789
WIREGUARD_PORT_FIRST: Final = 51820
TRUNK_NUMBER_MAX: Final = 4095
# Packets that may wait for wireguard-go, which makes room for 500. What finds none is lost: the
# kernel does not hold its senders back there. 2,000 are what 1 Gbit/s has under way in 22 ms.
TUNNEL_QUEUE_PACKETS: Final = 2000
KEEPALIVE_S: Final = 15  # keeps a provider's NAT open; silence itself is BFD's business


class TrunkDriver(Enum):
    """How a trunk is kept from the ISP's eyes."""

    WIREGUARD_KERNEL = "wireguard-kernel"
    WIREGUARD_GO = "wireguard-go"
    NONE = "none"  # only when the catalogue says so: dark fibre, the lab


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkEnd:
    """One end as the catalogue has it. `address` is public; the private key never leaves a node."""

    site_id: str
    address: str
    public_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkWish:
    """A trunk that this node shall have. `number` is the federation's, unique, 1 to 4095."""

    number: int
    provider: str
    here: TrunkEnd
    there: TrunkEnd
    drivers: tuple[TrunkDriver, ...] = (TrunkDriver.WIREGUARD_KERNEL, TrunkDriver.WIREGUARD_GO)
    path_mtu_bytes: int = PATH_BYTES
    bits_per_second: int = 1_000_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.number <= TRUNK_NUMBER_MAX:
            raise InvalidRequest(
                f"trunk {self.number} is not 1 to {TRUNK_NUMBER_MAX}", field="number"
            )
        if self.here.site_id == self.there.site_id:
            raise InvalidRequest("a trunk joins two sites", field="there.site_id")
        if ip_address(self.here.address).version != ip_address(self.there.address).version:
            raise InvalidRequest(
                "both ends have an IPv4 or both an IPv6 address", field="there.address"
            )
        encrypted = any(driver is not TrunkDriver.NONE for driver in self.drivers)
        if encrypted and not self.there.public_key:
            raise InvalidRequest(
                "an encrypted trunk needs the other end's public key", field="there.public_key"
            )
        if TrunkDriver.NONE in self.drivers and len(self.drivers) > 1:
            raise InvalidRequest(
                "`none` is a decision, not a fallback: name it alone", field="drivers"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkPlan:
    """What one end sets up. `port` is the interface that the fabric takes as a trunk."""

    driver: TrunkDriver
    tunnel: str
    port: str
    listen_port: int
    endpoint: str
    tunnel_local: str
    tunnel_remote: str
    tunnel_mtu_bytes: int
    trunk_mtu_bytes: int
    guest_mtu_bytes: int
    vni: int
    peer_public_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnd:
    """What lies below a trunk's VXLAN port, and what that port makes of a frame.

    A tunnel, or (`is_ethernet`) the rack's network, which both ends are on.
    """

    interface: str
    here: IPv4Address
    there: IPv4Address
    vni: int
    udp_port: int
    mtu_bytes: int
    is_ethernet: bool = False


def tunnel_end(number: int, interface: str, mtu_bytes: int, *, low: bool) -> TunnelEnd:
    """Return the end of tunnel `number` whose site id sorts low, or high."""
    return TunnelEnd(
        interface=interface,
        here=_inside(number, low=low),
        there=_inside(number, low=not low),
        vni=number,
        udp_port=VXLAN_PORT,
        mtu_bytes=mtu_bytes,
    )


# The two ends of a tunnel have different names: wireguard-go's control socket is named after the
# interface, and in the lab both ends are on one machine.
def plan_trunk(wish: TrunkWish, driver: TrunkDriver) -> TrunkPlan:
    """Return what this end sets up for `wish` with `driver`.

    Raises:
        InvalidRequest: the path is narrower than any that IPv6 takes (1280 bytes).
    """
    if wish.path_mtu_bytes < LINE_BYTES_MIN:
        raise InvalidRequest(
            f"a path of {wish.path_mtu_bytes} bytes is too narrow",
            field="path_mtu_bytes",
            hint=f"a line carries {LINE_BYTES_MIN} bytes at least",
        )
    there = ip_address(wish.there.address)
    encrypted = driver is not TrunkDriver.NONE
    wrapping = Wrapping(encrypted=encrypted, underlay_ipv6=there.version == 6)
    path_bytes = max(wish.path_mtu_bytes, _path_promised(wrapping))
    trunk_bytes = trunk_mtu(path_bytes, wrapping)
    low_first = wish.here.site_id < wish.there.site_id
    local, remote = (str(_inside(wish.number, low=low)) for low in (low_first, not low_first))
    if not encrypted:
        local, remote = wish.here.address, wish.there.address
    listen_port = WIREGUARD_PORT_FIRST + wish.number
    host = f"[{there}]" if there.version == 6 else str(there)
    return TrunkPlan(
        driver=driver,
        tunnel=f"nwg{wish.number}{'l' if low_first else 'h'}" if encrypted else "",
        port=f"ntr{wish.number}",
        listen_port=listen_port,
        endpoint=f"{host}:{listen_port}",
        tunnel_local=local,
        tunnel_remote=remote,
        tunnel_mtu_bytes=tunnel_mtu(path_bytes, wrapping),
        trunk_mtu_bytes=trunk_bytes,
        guest_mtu_bytes=guest_mtu(trunk_bytes),
        vni=wish.number,
        peer_public_key=wish.there.public_key,
    )


def _path_promised(wrapping: Wrapping) -> int:
    """Return the longest packet outside that what a trunk promises becomes."""
    return PROMISED_BYTES + PATH_BYTES - trunk_mtu(PATH_BYTES, wrapping)


def _inside(number: int, *, low: bool) -> IPv4Address:
    """Return the address inside tunnel `number` of the end whose site id sorts low, or high."""
    return TRUNK_PREFIX + 2 * number + (0 if low else 1)


def wireguard_config(plan: TrunkPlan, private_key: str) -> str:
    """Return the text for ``wg setconf``; it holds the private key: never log it."""
    return "\n".join(
        [
            "[Interface]",
            f"PrivateKey = {private_key}",
            f"ListenPort = {plan.listen_port}",
            "[Peer]",
            f"PublicKey = {plan.peer_public_key}",
            f"Endpoint = {plan.endpoint}",
            f"AllowedIPs = {plan.tunnel_remote}/32",
            f"PersistentKeepalive = {KEEPALIVE_S}",
            "",
        ]
    )


def link_commands(plan: TrunkPlan) -> tuple[tuple[str, ...], ...]:
    """Return the `ip` and `ethtool` commands that follow once the tunnel interface is there.

    TSO and GSO are off on the port: nothing longer than the MTU may enter a trunk, a transit
    RBridge cannot cut it.
    """
    commands: list[tuple[str, ...]] = []
    if plan.driver is TrunkDriver.WIREGUARD_GO:
        queue = str(TUNNEL_QUEUE_PACKETS)
        commands += [("ip", "link", "set", plan.tunnel, "txqueuelen", queue)]
    if plan.tunnel:
        commands += [
            ("ip", "addr", "replace", f"{plan.tunnel_local}/32", "dev", plan.tunnel),
            ("ip", "link", "set", plan.tunnel, "mtu", str(plan.tunnel_mtu_bytes), "up"),
            ("ip", "route", "replace", f"{plan.tunnel_remote}/32", "dev", plan.tunnel),
        ]  # fmt: skip
    vxlan = (
        "ip", "link", "add", plan.port, "type", "vxlan", "id", str(plan.vni),
        "local", plan.tunnel_local, "remote", plan.tunnel_remote,
        "dstport", str(VXLAN_PORT), "nolearning",
    )  # fmt: skip
    commands += [
        vxlan,
        ("ip", "link", "set", plan.port, "mtu", str(plan.trunk_mtu_bytes), "up"),
        ("ethtool", "-K", plan.port, "tso", "off", "gso", "off"),
    ]
    return tuple(commands)
