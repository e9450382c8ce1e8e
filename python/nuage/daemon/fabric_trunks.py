"""Making a node's trunks: VXLAN ports inside the site, encrypted tunnels between sites.

What stands already and was made by the same wish is taken as it is: frames go on. A tunnel may be
of an earlier version: what its sockets lack they get, and one that carries less than we promise is
made anew. Interfaces are made in the network namespace of this process. A failure is told, and
tried again with the next round.
"""

import asyncio
import fcntl
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nuage.clock import Clock
from nuage.daemon.fabric_memory import TrunkMemory
from nuage.errors import InvalidRequest, NuageError, Unavailable
from nuage.ids import NodeId, SiteId
from nuage.model.fabric import FabricWish, LinkWish, SiteTrunkWish
from nuage.network.cable import CABLE, NO_CABLES, Cabling, cable_mtu
from nuage.network.forwarding import ForwardingPlane
from nuage.network.gro_port import gro_port_of, stand_up
from nuage.network.kernel_plane import KernelPlane
from nuage.network.line_echo import LineEnd
from nuage.network.mtu import Wrapping, trunk_mtu
from nuage.network.trunk import (
    VXLAN_PORT,
    WIREGUARD_PORT_FIRST,
    TrunkDriver,
    TrunkEnd,
    TrunkWish,
    TunnelEnd,
    plan_trunk,
    tunnel_end,
)
from nuage.network.trunk_wireguard import set_up, tear_down
from nuage.network.tunnel_sockets import prepare
from nuage.tool import run_tool

RACK_PATH_BYTES: Final = 1500
SIOCGIFMTU: Final = 0x8921
log = structlog.get_logger("fabric")


@dataclass(frozen=True, slots=True)
class Standing:
    """A trunk that is there, and why the wish has it. `failure`: it is not."""

    key: str
    wish: LinkWish | SiteTrunkWish
    memory: TrunkMemory | None
    failure: str = ""


def key_of(wish: LinkWish | SiteTrunkWish) -> str:
    """Return the name under which a trunk is remembered."""
    if isinstance(wish, LinkWish):
        return f"site {wish.node_id}"
    return f"trunk {wish.number}"


def interface_exists(name: str) -> bool:
    """Tell whether this namespace has an interface."""
    return bool(interface_index(name))


def interface_index(name: str) -> tuple[int, ...]:
    """Return the index of an interface that is there."""
    try:
        return (socket.if_nametoindex(name),) if name else ()
    except OSError:
        return ()


def mtu_of(interface: str) -> int:
    """Return what an interface takes (SIOCGIFMTU)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16si20x", interface.encode(), 0)
        return int(struct.unpack("16si20x", fcntl.ioctl(control, SIOCGIFMTU, asked))[1])


def line_end(wish: SiteTrunkWish, site_id: str) -> LineEnd:
    """Return this end of a trunk's tunnel as its provider's line sees it."""
    return LineEnd(
        here=wish.here.address,
        there=wish.there.address,
        udp_port=WIREGUARD_PORT_FIRST + wish.number,
        end=0 if site_id < wish.there_site else 1,
    )


def tunnel_under(wish: SiteTrunkWish, interface: str, site_id: str) -> TunnelEnd:
    """Return this end of a trunk's tunnel as the frames in it see it.

    Raises:
        OSError: the interface is gone.
    """
    low = site_id < wish.there_site
    return tunnel_end(wish.number, interface, mtu_of(interface), low=low)


async def rack_under(wish: LinkWish, address: str) -> TunnelEnd | None:
    """Return what a link of this site lies over when both its ends are on one network, else None.

    Frames that pass the VXLAN port by keep to this interface, whatever becomes of the host's
    routes: so a way through a router is none for them. The interface has super-frames cut from
    now on: no RBridge that they pass can do it.

    Raises:
        Unavailable: there is no route.
    """
    answer = await run_tool(("ip", "-json", "route", "get", wish.address, "from", address))
    (route,) = msgspec.json.decode(answer, type=list[_Route])
    if route.gateway or route.via or route.dev == "lo" or ":" in wish.address:
        return None
    with suppress(Unavailable):  # a card that never sends such frames whole
        await run_tool(("ethtool", "-K", route.dev, "tx-udp_tnl-segmentation", "off"))
    return TunnelEnd(
        interface=route.dev,
        here=IPv4Address(address),
        there=IPv4Address(wish.address),
        vni=wish.vni,
        udp_port=VXLAN_PORT,
        mtu_bytes=mtu_of(route.dev),
        is_ethernet=True,
    )


class _Route(msgspec.Struct):
    """A route as `ip -json` tells it."""

    dev: str
    gateway: str = ""
    via: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkNode:
    """What a node's trunks are made of, beside the wish."""

    address: str
    site_id: SiteId
    private_key: str = field(default="", repr=False)
    cabling: Cabling = NO_CABLES


class TrunkMaker:
    """Brings the interfaces of trunks to what is wished."""

    def __init__(self, node: TrunkNode, clock: Clock, tell: Callable[[str], None]) -> None:
        self._node = node
        self._clock = clock
        self._tell = tell
        self._taken_up: set[str] = set()  # tunnels whose sockets have what ours have

    async def bring(
        self, wish: FabricWish, known: Mapping[str, TrunkMemory]
    ) -> tuple[Standing, ...]:
        """Make what is missing, remove what is not wished; return what stands and what fails."""
        every: list[LinkWish | SiteTrunkWish] = [*wish.links, *wish.trunks]
        wished = {key_of(each): each for each in every}
        for key, memory in known.items():
            if key not in wished:
                await self._remove(memory)
        return tuple(
            [await self._one(key, each, known.get(key)) for key, each in sorted(wished.items())]
        )

    async def _one(
        self, key: str, wish: LinkWish | SiteTrunkWish, memory: TrunkMemory | None
    ) -> Standing:
        cable = self._cable_to(wish)
        made_of = msgspec.json.encode(wish).decode() + cable
        if memory is not None:
            stands = all(map(interface_exists, filter(None, (memory.interface, memory.tunnel))))
            if stands and memory.made_of == made_of and await self._is_ours(wish, memory):
                return Standing(key, wish, memory)
            await self._remove(memory)
        try:
            if cable:
                made = await self._take_cable(cable, made_of)
            elif isinstance(wish, LinkWish):
                made = await self._make_link(wish, made_of)
            else:
                made = await self._make_trunk(wish, made_of)
        except NuageError as error:
            log.warning("trunk failed", trunk=key, error=error.message)
            return Standing(key, wish, None, error.message)
        quieten(made.interface)
        log.info("trunk made", trunk=key, interface=made.interface, driver=made.driver)
        return Standing(key, wish, made)

    async def _is_ours(self, wish: LinkWish | SiteTrunkWish, memory: TrunkMemory) -> bool:
        """Tell whether a trunk that stands carries what this version would make it carry.

        A tunnel in user space gets what its sockets lack when it is first seen.
        """
        if isinstance(wish, LinkWish) or not memory.tunnel:
            return True
        try:
            plan = plan_trunk(self._asked(wish), TrunkDriver(memory.driver))
        except InvalidRequest:
            return False
        if plan.trunk_mtu_bytes != memory.mtu_bytes:
            self._tell(
                f"trunk {memory.interface} to {wish.there_node} carries {memory.mtu_bytes} bytes, "
                f"as an earlier version made it: made anew for {plan.trunk_mtu_bytes}"
            )
            return False
        if plan.driver is TrunkDriver.WIREGUARD_GO and memory.tunnel not in self._taken_up:
            self._taken_up.add(memory.tunnel)
            try:
                await asyncio.to_thread(prepare, memory.tunnel)  # looks through /proc
            except OSError as error:  # one made anew would lack it, too
                log.warning("tunnel as it was", tunnel=memory.tunnel, error=str(error))
        return True

    def _cable_to(self, wish: LinkWish | SiteTrunkWish) -> str:
        """Return the card that leads to a node of this site, "" when none does."""
        if not isinstance(wish, LinkWish):
            return ""
        return self._node.cabling.interfaces.get(wish.node_id, "")

    async def _take_cable(self, interface: str, made_of: str) -> TrunkMemory:
        if not interface_exists(interface):
            raise Unavailable(f"the cable's card {interface} is not in this node")
        await run_tool(("ip", "link", "set", interface, "up"))
        card_bytes = mtu_of(interface)
        return TrunkMemory(
            interface=interface,
            made_of=made_of,
            mtu_bytes=cable_mtu(interface, card_bytes),
            driver=CABLE,
        )

    async def _make_link(self, wish: LinkWish, made_of: str) -> TrunkMemory:
        name = f"nln{wish.vni:x}"
        bytes_max = trunk_mtu(RACK_PATH_BYTES, Wrapping(encrypted=False))
        await tear_down(name)
        await run_tool(
            (
                "ip", "link", "add", name, "type", "vxlan", "id", str(wish.vni),
                "local", self._node.address, "remote", wish.address,
                "dstport", str(VXLAN_PORT), "nolearning",
            )
        )  # fmt: skip
        await run_tool(("ip", "link", "set", name, "mtu", str(bytes_max), "up"))
        await run_tool(("ethtool", "-K", name, "tso", "off", "gso", "off"))
        return TrunkMemory(interface=name, made_of=made_of, mtu_bytes=bytes_max, driver="vxlan")

    def _asked(self, wish: SiteTrunkWish) -> TrunkWish:
        encrypted = (TrunkDriver.WIREGUARD_KERNEL, TrunkDriver.WIREGUARD_GO)
        here = TrunkEnd(site_id=self._node.site_id, address=wish.here.address)
        there = TrunkEnd(
            site_id=wish.there_site, address=wish.there.address, public_key=wish.public_key
        )
        return TrunkWish(
            number=wish.number,
            provider=wish.here.provider,
            here=here,
            there=there,
            drivers=encrypted if wish.encrypted else (TrunkDriver.NONE,),
            path_mtu_bytes=min(wish.here.mtu_bytes, wish.there.mtu_bytes),
        )

    async def _make_trunk(self, wish: SiteTrunkWish, made_of: str) -> TrunkMemory:
        asked = self._asked(wish)
        plan = plan_trunk(asked, asked.drivers[0])
        await tear_down(plan.port, plan.tunnel)  # what a life that forgot them may have left
        up = await set_up(asked, self._node.private_key, self._clock)
        return TrunkMemory(
            interface=up.plan.port,
            made_of=made_of,
            mtu_bytes=up.plan.trunk_mtu_bytes,
            driver=up.plan.driver.value,
            tunnel=up.plan.tunnel,
        )

    async def _remove(self, memory: TrunkMemory) -> None:
        if memory.driver == CABLE:
            return  # the card is the node's
        await tear_down(memory.interface, memory.tunnel)
        log.info("trunk removed", interface=memory.interface)


async def join_tcp(plane: ForwardingPlane, node_id: NodeId) -> None:
    """Have TCP joined on its way to guests. Without it they only work harder: told, not raised."""
    port = gro_port_of(node_id)
    if not isinstance(plane, KernelPlane) or plane.joins_in(port):
        return
    try:
        await stand_up(port)
        plane.bind_gro(port)
    except (NuageError, OSError) as error:
        log.warning("TCP is not joined", port=port.into, error=str(error))


def quieten(interface: str) -> None:
    """Keep this host's own IP stack off a port: it neither speaks there nor answers for itself."""
    for family, setting, value in (
        ("ipv6", "disable_ipv6", "1"),
        ("ipv4", "arp_ignore", "8"),
        ("ipv4", "forwarding", "0"),
    ):
        with suppress(OSError):  # no IPv6 here at all
            Path(f"/proc/sys/net/{family}/conf/{interface}/{setting}").write_text(value)
