"""One node's part in carrying public addresses: tunnel router, and on an edge the map-server.

Wiring around `network.lisp_runner`, beside `daemon.fabric`, whose plane it shares. A V-node
registers the addresses of the guests that run on it and encapsulates what they send; an edge is
map-server and resolver, relays what comes by its lines to the V-nodes of its site, and is the
proxy to the internet (`lisp_gate`). It begins with the first wish that names a pool, and needs
the kernel's plane: elsewhere public addresses are not served, and `nuage fabric show` says so.

A VM on the move: its address is given to the tunnel router when its port opens here, in the same
turn (`Fabric.update`). Where it was nothing is done: the map-server's word, under the higher
version, makes the old place send stragglers on.
"""

import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from random import Random
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.fabric_memory import FabricNotebook
from nuage.daemon.lisp_gate import INSIDE, LABEL, MTU_BYTES, lead, open_gate, outside_of
from nuage.daemon.process import Tasks
from nuage.errors import NuageError
from nuage.ids import NodeId, PortId, SiteId
from nuage.model.fabric import EidWish, LispWish
from nuage.network.dhcp import SERVER_MAC
from nuage.network.forwarding import (
    EidEntry,
    Entry,
    ForwardingDelta,
    MapAction,
    PortEntry,
    PortNumber,
    PortRole,
)
from nuage.network.kernel_plane import KernelPlane
from nuage.network.lisp_event import EidArrived, EidLeft, LispLog, MappingTold, SurroundingsChanged
from nuage.network.lisp_message import Address, Eid, LispKey, Locator, MapRecord, XtrName, host_eid
from nuage.network.lisp_runner import LispRunner
from nuage.network.map_server import EidAllowance, MapServer
from nuage.network.xtr import REGISTER_INTERVAL_S, Xtr, XtrConfig
from nuage.tool import interfaces_with

PUBLIC: Final = 0  # the instance of public addresses, which all tenants share
LINES_MAX: Final = 4
BACKUP_PRIORITY: Final = 2  # of a site's lines, behind the V-node itself
FOREIGN_MINUTES: Final = 1440  # what is in no pool is known without asking
NATIVELY: Final = MapAction.NATIVELY_FORWARD
RETRY_S: Final = 5.0
log = structlog.get_logger("lisp")


@dataclass(frozen=True, slots=True)
class Plugged:
    """A guest's port as the tunnel router needs it. `present`: its VM runs here."""

    port_id: PortId
    number: PortNumber
    mac: bytes
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LispOptions:
    """Which node this is; `lines` are an edge's addresses towards its providers."""

    node_id: NodeId
    site_id: SiteId
    address: str
    is_edge: bool
    lines: tuple[str, ...] = ()


def xtr_name(node_id: NodeId, site_id: SiteId) -> XtrName:
    """Return how a node's tunnel router names itself."""
    return XtrName(hashlib.sha256(f"xtr {node_id}".encode()).digest()[:16], site_name(site_id))


def _key_of(wish: LispWish, site_id: SiteId) -> LispKey:
    """Return a site's key as a wish has it, and what is accepted besides."""
    old = wish.old_site_keys.items()
    return LispKey(
        bytes.fromhex(wish.site_keys[site_id]),
        key_id=wish.key_id,
        old=tuple((number, bytes.fromhex(keys[site_id])) for number, keys in old),
    )


def site_name(site_id: SiteId) -> bytes:
    """Return a site's LISP site-ID."""
    return hashlib.sha256(f"site {site_id}".encode()).digest()[:8]


class Lisp:
    """The tunnel router of this process."""

    def __init__(
        self,
        options: LispOptions,
        notebook: FabricNotebook,
        tasks: Tasks,
        clock: Clock,
        tell: Callable[[LispLog], None],
    ) -> None:
        self.options = options
        self._notebook = notebook
        self._tasks = tasks
        self._clock = clock
        self._tell = tell
        self._plane: KernelPlane | None = None
        self._wish: LispWish | None = None
        self._ports: tuple[Plugged, ...] = ()
        self._given: dict[Eid, EidArrived] = {}
        self._awaited: dict[PortId, bool] = {}  # of VMs on their way: was the port closed since
        self._begun = False
        self._led: tuple[str, ...] = ()
        self._interfaces: tuple[str, ...] = ()
        self._outside_mac = bytes(6)
        self.runner: LispRunner | None = None
        self.xtr: Xtr | None = None
        self.server: MapServer | None = None
        self.failure = "no pool of public addresses yet"

    def open(self, plane: object) -> None:
        """Take the plane that the RBridge uses."""
        self._plane = plane if isinstance(plane, KernelPlane) else None
        if self._plane is None:
            self.failure = "public addresses need the kernel's plane"

    def owns(self, entry: Entry) -> bool:
        """Tell whether an access port in the plane is the gate's, not a guest's."""
        number = self._notebook.memory.numbers.get(INSIDE)
        return isinstance(entry, PortEntry) and entry.port == number

    def stop(self) -> None:
        """Stop the machines; the plane goes on."""
        if self.runner is not None:
            self.runner.stop()

    def follow(self, wish: LispWish | None, ports: Sequence[Plugged]) -> None:
        """Take the wish and the ports as they now are."""
        if wish is None and self._wish is None:
            return
        before, self._wish, self._ports = self._wish, wish, tuple(ports)
        if self._plane is None:
            return
        if not self._begun:
            self._begun = True
            self._tasks.start("lisp", self._begin())
        elif self.runner is not None:
            self._bring(before)

    # Beginning --------------------------------------------------------------------------------

    async def _begin(self) -> None:
        while True:
            try:
                await self._start()
            except (NuageError, OSError) as error:
                self.failure = error.message if isinstance(error, NuageError) else str(error)
                log.warning("lisp cannot begin", reason=self.failure)
                await self._clock.sleep(RETRY_S)
            else:
                return

    async def _start(self) -> None:
        options, wish, plane = self.options, self._wish, self._plane
        assert wish is not None
        assert plane is not None
        rloc = IPv4Address(options.address)
        underlay = await _interface_of(options.address)
        lines = {
            await _interface_of(address): IPv4Address(address)
            for address in options.lines[:LINES_MAX]
        }
        if options.is_edge:
            self._interfaces = tuple(lines)
            self._outside_mac = await open_gate(lines)
            number = PortNumber(self._notebook.number_of(INSIDE))
            self._notebook.save()
            entry = PortEntry(
                number, PortRole.ACCESS, SERVER_MAC, LABEL, mtu_bytes=MTU_BYTES, guarded=False
            )
            plane.apply(ForwardingDelta((entry,)))
            plane.bind(number, INSIDE)
        plane.set_router(underlay, rloc, SERVER_MAC, instance_id=PUBLIC, lines=lines)
        self._make_machines(wish, plane, rloc, frozenset(lines.values()))
        assert self.runner is not None
        await self.runner.start(options.address, *map(str, lines.values()))
        self.failure = ""
        self._bring(None)

    def _make_machines(
        self, wish: LispWish, plane: KernelPlane, rloc: IPv4Address, lines: frozenset[IPv4Address]
    ) -> None:
        options, now_s = self.options, self._clock.monotonic_s()
        config = XtrConfig(
            rloc,
            xtr_name(options.node_id, options.site_id),
            ((rloc,),) if options.is_edge else _servers(wish),
            _key_of(wish, options.site_id),
            nonce_start=int(self._clock.now_s() * 1_000_000),
            lines=frozenset(lines),
            is_proxy=options.is_edge,
        )
        self.xtr = Xtr(config, Random(), now_s, plane.entries())
        if options.is_edge:
            # Begun anew it knows no register: others answer until all have come again.
            self.server = MapServer(rloc, now_s, settle_s=REGISTER_INTERVAL_S)
        self.runner = LispRunner(
            clock=self._clock, plane=plane, xtr=self.xtr, server=self.server, tell=self._heard
        )

    def _heard(self, entry: LispLog) -> None:
        log.info("lisp", news=entry.news.value, who=entry.who, detail=entry.detail)
        self._tell(entry)

    # What is wished ---------------------------------------------------------------------------

    def _bring(self, before: LispWish | None) -> None:
        wish = self._wish
        if before != wish and wish is not None:
            self._give(self._around(wish))
        if before != wish and self.options.is_edge:
            self._bring_edge(wish)
        elif wish is not None and (before is None or before.pools != wish.pools):
            for prefix in outside_of(wish.pools):
                eid = Eid(PUBLIC, prefix)
                self._give(MappingTold(MapRecord(eid, (), FOREIGN_MINUTES, NATIVELY)))
        self._bring_eids(wish)

    def _around(self, wish: LispWish) -> SurroundingsChanged:
        servers, key = _servers(wish), _key_of(wish, self.options.site_id)
        if self.options.is_edge:  # itself first, then others: after a start it knows little
            me = ip_address(self.options.address)
            around = ((me,), *(each for each in servers if me not in each))
            return SurroundingsChanged(around, key=key)
        lines = (Locator(ip_address(each), BACKUP_PRIORITY, local=False) for each in wish.lines)
        proxies = (Locator(ip_address(each.address), each.priority) for each in wish.proxies)
        return SurroundingsChanged(servers, tuple(lines), tuple(proxies), key)

    def _bring_eids(self, wish: LispWish | None) -> None:
        """Give the router what is newly here, take from it what has no port here any more."""
        ports = {port.port_id: port for port in self._ports}
        wished = {} if wish is None else {each.address: each for each in wish.eids}
        for eid in [e for e in self._given if str(e.prefix.network_address) not in wished]:
            del self._given[eid]
            self._give(EidLeft(eid))
        for address, each in wished.items():
            eid, port = host_eid(PUBLIC, ip_address(address)), ports.get(each.port_id)
            if port is None:
                if self._given.pop(eid, None) is not None:
                    self._give(EidLeft(eid))
                continue
            arrived = EidArrived(eid, port.number, port.mac, each.version)
            if self._is_here(each, port) and self._given.get(eid) != arrived:
                self._given[eid] = arrived
                self._give(arrived)

    def _is_here(self, each: EidWish, port: Plugged) -> bool:
        """Tell whether a VM has its port here now.

        A port that is open when its VM is first said to be on its way is left from an earlier
        stay of the same VM: it counts once it was closed, and opened again.
        """
        if not each.arriving:
            self._awaited.pop(each.port_id, None)
            return port.present
        was_closed = self._awaited.get(each.port_id, False) or not port.present
        self._awaited[each.port_id] = was_closed
        return port.present and was_closed

    def _give(self, event: SurroundingsChanged | EidArrived | EidLeft | MappingTold) -> None:
        assert self.runner is not None
        self.runner.give(event)

    def _bring_edge(self, wish: LispWish | None) -> None:
        assert self.server is not None
        assert self.xtr is not None
        pools = () if wish is None else wish.pools
        allowances = [EidAllowance(Eid(PUBLIC, ip_network(pool))) for pool in pools]
        registrable = () if wish is None else wish.registrable
        allowances += [
            EidAllowance(
                host_eid(PUBLIC, ip_address(each.address)), frozenset(map(site_name, each.sites))
            )
            for each in registrable
        ]
        keys = {} if wish is None else {s: _key_of(wish, s) for s in wish.site_keys}
        self.server.allow(allowances, {site_name(site): key for site, key in keys.items()})
        used = {allowance.eid for allowance in allowances}
        for eid in [e for e in self.xtr.relayed() if e not in used]:
            self._give(MappingTold(MapRecord(eid, ())))
        if pools != self._led:
            self._lead(pools)

    def _lead(self, pools: tuple[str, ...]) -> None:
        """Send what goes to no pool out by the gate, and the pools' traffic into it."""
        assert self._plane is not None
        number = PortNumber(self._notebook.number_of(INSIDE))
        new, old = outside_of(pools), outside_of(self._led) if self._led else ()

        def entry(prefix: IPv4Network | IPv6Network) -> EidEntry:
            return EidEntry(PUBLIC, prefix, number, self._outside_mac)

        gone = tuple(entry(prefix) for prefix in old if prefix not in new)
        self._plane.apply(ForwardingDelta(tuple(map(entry, new)), gone))
        before, self._led = self._led, pools
        self._tasks.start("lisp routes", lead(pools, before, self._interfaces))


def _servers(wish: LispWish) -> tuple[tuple[Address, ...], ...]:
    return tuple(tuple(map(ip_address, server)) for server in wish.servers)


async def _interface_of(address: str) -> str:
    for interface in await interfaces_with(address):
        return socket.if_indextoname(interface.ifindex)
    raise OSError(f"no interface has {address}")
