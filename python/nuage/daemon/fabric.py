"""One node's RBridge as a part of its process: plane, control machine, trunks, guests' taps.

Wiring around `network.runner`: what the wish says becomes trunks and table entries, taps become
access ports. Everything happens on the event loop but the making of interfaces, which waits for
`ip`. The plane is the kernel's where it can carry it, else the one in Python (then guests get no
offloads); it outlives this process, and so do trunks and taps.

A VM on the move. Its line leaves the directory when its migration begins; from then on frames
themselves tell where it is. Its port at the target is not `present`: it takes nothing, until the
first frame from the guest (QEMU's announcement as it resumes) shows that it runs here; then the
port opens, and an announcement under the guest's MAC goes over the tree so that every RBridge
learns the new place at once. At the source what comes while the guest stands still is kept
(`fabric_departures`); the port closes, and that is sent on, when the announcement is heard.
"""

import asyncio
import hashlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path
from random import Random
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.fabric_departures import FOLLOW_MAX_S, LOOK_EVERY_S, Departures
from nuage.daemon.fabric_memory import FabricNotebook, TapMemory, TrunkMemory
from nuage.daemon.fabric_news import FabricNewsBook
from nuage.daemon.fabric_options import FabricOptions
from nuage.daemon.fabric_short_ways import ShortWays
from nuage.daemon.fabric_trunks import (
    Standing,
    TrunkMaker,
    TrunkNode,
    interface_exists,
    interface_index,
    join_tcp,
    line_end,
    quieten,
)
from nuage.daemon.lisp import Lisp, LispOptions, Plugged
from nuage.daemon.lisp_gate import INSIDE
from nuage.daemon.process import Tasks
from nuage.daemon.urgency import run_urgently
from nuage.errors import Conflict, NuageError, Unavailable
from nuage.ids import PortId, VmId
from nuage.model.contract import QosClass
from nuage.model.desired import PortWish
from nuage.model.fabric import (
    FabricWish,
    LinkWish,
    PortRulesWish,
    RuleWish,
    SiteTrunkWish,
    StationWish,
)
from nuage.network.bfd import BfdTimers
from nuage.network.cable import CABLE
from nuage.network.circuit import Trunk, metric_of
from nuage.network.dhcp import SERVER_MAC
from nuage.network.echo import ECHO_TIMERS
from nuage.network.fabric_event import (
    FabricLog,
    FabricNews,
    KeysChanged,
    LabelsChanged,
    MaintenanceChanged,
    TraceAnswered,
    TrunkAdded,
    TrunkRemoved,
)
from nuage.network.forwarding import (
    NICKNAME_MAX,
    NICKNAME_UNKNOWN,
    Direction,
    ForwardingPlane,
    Label,
    MacEntry,
    Nickname,
    PortNumber,
)
from nuage.network.gratuitous import announcement
from nuage.network.isis_auth import Keyring
from nuage.network.isis_tlv import SystemId
from nuage.network.kernel_pins import forget_other_layouts, mount_pins
from nuage.network.kernel_plane import KernelPlane, Neighbour, XdpMode, why_not
from nuage.network.line_echo import LineSocket
from nuage.network.neighbour_answer import link_local
from nuage.network.nickname import NicknameWish
from nuage.network.rbridge import RBridge, RBridgeConfig
from nuage.network.router_answer import ADVERTISE_EVERY_S, ROUTER, advertisement
from nuage.network.runner import (
    CONTROL_ETHERTYPES,
    FabricRunner,
    FrameSocket,
    LinkWatch,
    PacketSocket,
    RunnerPorts,
)
from nuage.network.security_group import SecurityRule
from nuage.network.segment import AccessPort, SegmentSwitch, Station
from nuage.network.software_plane import SoftwarePlane
from nuage.network.stray import sent_after
from nuage.network.trunk import TrunkDriver
from nuage.network.wire import mac_bytes
from nuage.tool import interfaces_with, run_tool
from nuage.vnode.ports import tap_name

SITE_LINK_BITS_PER_S: Final = 10_000_000_000
# Inside a rack a node that dies takes its carrier along; between sites echoes are the only
# witness: those are frequent (echo.ECHO_TIMERS), these every eighth time.
RACK_ECHO: Final = BfdTimers(interval_us=8 * ECHO_TIMERS.interval_us)
UPDATE_AFTER_S: Final = 0.005  # what comes together is applied together
AGE_EVERY_S: Final = 60.0
ADVERTISE_LOOK_S: Final = 5.0  # a guest that just got a public IPv6 address waits that long
RETRY_S: Final = 5.0  # of trunks that could not be made
TRUNK_SOCKETS: Final = CONTROL_ETHERTYPES[:2]
ACCESS_SOCKETS: Final = CONTROL_ETHERTYPES[2:]
BPF_ROOT: Final = Path("/sys/fs/bpf")
log = structlog.get_logger("fabric")


def system_id_of(node_id: str) -> SystemId:
    """Return a node's IS-IS system ID: six bytes of its name's hash, locally administered."""
    digest = bytearray(hashlib.sha256(f"system {node_id}".encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return bytes(digest)


def first_nickname(node_id: str) -> Nickname:
    """Return the nickname that a node tries first: others may hold it, then it draws."""
    digest = hashlib.sha256(f"nickname {node_id}".encode()).digest()
    return Nickname(1 + int.from_bytes(digest[:4], "big") % (NICKNAME_MAX - 1))


class Fabric:
    """The RBridge of this process."""

    def __init__(self, options: FabricOptions, tasks: Tasks, clock: Clock) -> None:
        self.options = options
        self._tasks = tasks
        self.clock = clock
        self.notebook = FabricNotebook(options.state_dir / "fabric.json")
        self.news = FabricNewsBook(is_edge=options.is_edge)
        self.standing: tuple[Standing, ...] = ()
        self.runner: FabricRunner | None = None
        self.plane: ForwardingPlane = SoftwarePlane()
        self.switch = SegmentSwitch()
        self._served: dict[PortNumber, str] = {}
        self._arriving: dict[PortId, PacketSocket] = {}
        self._departures = Departures()
        self._following: set[PortId] = set()
        self._trunk_macs: dict[PortNumber, bytes] = {}
        self._short_ways = ShortWays(options.site_id, options.address)
        self.xdp_refusals: dict[PortNumber, str] = {}
        self._update_due: asyncio.TimerHandle | None = None
        self._wished = asyncio.Event()
        self.tracers: set[Callable[[TraceAnswered], None]] = set()
        trunk_node = TrunkNode(
            address=options.address,
            site_id=options.site_id,
            private_key=options.private_key,
            cabling=options.cabling,
        )
        self._maker = TrunkMaker(trunk_node, clock, self.news.note)
        around = LispOptions(
            node_id=options.node_id,
            site_id=options.site_id,
            address=options.address,
            is_edge=options.is_edge,
            lines=options.lines,
        )
        self.lisp = Lisp(around, self.notebook, tasks, clock, self.news.lisp)

    # Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what stands, and go on by the last wish."""
        log.info("urgency", way=run_urgently())
        self.notebook.load()
        self.plane = self._open_plane()
        self.lisp.open(self.plane)
        known = self.plane.entries()
        self.switch = SegmentSwitch(entry for entry in known if not self.lisp.owns(entry))
        memory = self.notebook.memory
        gone = [i for i, tap in memory.taps.items() if not interface_exists(tap.tap)]
        for port_id in gone:  # the node was off: the guest is plugged anew when it starts
            del memory.taps[port_id]
        if memory.wish is not None:
            self._begin(memory.wish)
        self._tasks.keep("trunks", self._keep_trunks)
        self._tasks.keep("fabric age", self._keep_age)
        self._tasks.keep("router advertisements", self._keep_advertising)

    def stop(self) -> None:
        """Stop the control machine; the plane goes on."""
        if self._update_due is not None:
            self._update_due.cancel()
        for watch in self._arriving.values():
            self._close_watch(watch)
        self._arriving.clear()
        self._departures.end_all()
        self.lisp.stop()
        if self.runner is not None:
            self.runner.stop()

    @property
    def plane_name(self) -> str:
        """Return which plane forwards."""
        return "kernel" if isinstance(self.plane, KernelPlane) else "software"

    def _open_plane(self) -> ForwardingPlane:
        wanted = self.options.plane
        reason = None if wanted == "software" else why_not()
        if wanted != "software" and reason is None:
            try:
                mount_pins(BPF_ROOT)
                return KernelPlane(self._pins())
            except Unavailable as error:
                reason = "; ".join(filter(None, (error.message, error.hint)))
        if wanted == "kernel":
            raise Unavailable(f"the kernel cannot carry the fabric: {reason}")
        log.info("plane", chosen="software", reason=reason or "as configured")
        if reason is not None:
            self.news.note(f"the kernel does not forward here, guests' network is slow: {reason}")
        return SoftwarePlane()

    def _pins(self) -> str:
        """Return where the programs are pinned, by node: nodes of one machine share its kernel."""
        directory = BPF_ROOT / f"nuage-{self.options.node_id}"
        return str(directory)

    def _begin(self, wish: FabricWish) -> None:
        """Start the control machine: the first wish brought the key."""
        memory = self.notebook.memory
        nickname = Nickname(memory.nickname) or first_nickname(self.options.node_id)
        config = RBridgeConfig(
            system_id_of(self.options.node_id),
            self.options.node_id,
            nickname=NicknameWish(remembered=nickname),
            ring=_ring_of(wish),
        )
        now_s = self.clock.monotonic_s()
        rbridge = RBridge(config, Random(), now_s, known=self.plane.entries())
        self.runner = FabricRunner(
            rbridge,
            self.plane,
            clock=self.clock,
            ports=RunnerPorts({}, {}, LinkWatch()),
            switch=self.switch,
            remember=self._remember,
            tell=self._tell,
            traced=self._traced,
            routed=self.update_soon,
            vanished=self._wished.set,  # what is missing is made again
        )
        self.runner.start()
        self.runner.give(MaintenanceChanged(wish.maintenance))
        self._wished.set()
        self.update()

    def _remember(self, nickname: Nickname) -> None:
        self.notebook.memory.nickname = nickname
        self.notebook.save()

    def _traced(self, answer: TraceAnswered) -> None:
        for take in tuple(self.tracers):
            take(answer)

    def _tell(self, entry: FabricLog) -> None:
        name = self._served.get(entry.port, "")
        log.info("fabric", news=entry.news.value, port=name, detail=entry.detail)
        self.news.fabric(entry, self._trunk_called(name))
        if entry.news is FabricNews.ADJACENCY_DOWN:
            self._short_ways.lost(entry.port)
            self._wished.set()  # its tunnel may have died: what is missing is made again

    def _trunk_called(self, interface: str) -> str:
        """Return how people know a trunk; "" where there is none."""
        wish = next(
            (s.wish for s in self.standing if s.memory and s.memory.interface == interface), None
        )
        if wish is None:
            return f"trunk {interface}" if interface else ""
        far = wish.node_id if isinstance(wish, LinkWish) else wish.there_node
        return f"trunk {interface} to {far}"

    # Wishes -----------------------------------------------------------------------------------

    async def take_wish(self, wish: FabricWish) -> None:
        """Take desired state; it is on disk when this returns.

        Raises:
            Conflict: it is older than the last.
        """
        memory = self.notebook.memory
        before = memory.wish
        if before is not None and wish.revision < before.revision:
            raise Conflict(f"fabric wish {wish.revision} is older than {before.revision}")
        memory.wish = wish
        self.notebook.save()
        if self.runner is None:
            self._begin(wish)
            return
        if before is None or before.maintenance != wish.maintenance:
            self.runner.give(MaintenanceChanged(wish.maintenance))
        if before is None or _ring_of(before) != _ring_of(wish):
            self.runner.give(KeysChanged(_ring_of(wish)))
            log.info("keys", signs=wish.key_id, accepts=[number for number, _ in wish.old_keys])
        if before is None or (before.links, before.trunks) != (wish.links, wish.trunks):
            self._wished.set()
        self.update()

    # Trunks -----------------------------------------------------------------------------------

    async def _keep_trunks(self) -> None:
        self._wished.set()
        while True:
            await self._wished.wait()
            self._wished.clear()
            await join_tcp(self.plane, self.options.node_id)
            wish = self.notebook.memory.wish
            if wish is None:
                continue
            memory = self.notebook.memory
            self._fall_silent_beside(memory.trunks.values())
            self.standing = await self._maker.bring(wish, dict(memory.trunks))
            stands = {s.key: s.memory for s in self.standing if s.memory is not None}
            names = {m.interface for m in stands.values()}
            for old in memory.trunks.values():
                if old.interface not in names:
                    self._drop_trunk(old.interface)
            if memory.trunks != stands:
                memory.trunks = stands
            for standing in self.standing:
                await self._serve_trunk(standing)
            self.notebook.save()
            if any(standing.failure for standing in self.standing):
                self._tasks.start("trunks again", self._again())

    def _fall_silent_beside(self, trunks: Iterable[TrunkMemory]) -> None:
        """Answer no echoes beside a tunnel that is gone: the far end is to notice that it is."""
        if isinstance(self.plane, KernelPlane):
            for memory in trunks:
                if memory.tunnel and not interface_exists(memory.tunnel):
                    self.plane.unbind(PortNumber(self.notebook.number_of(memory.interface)))

    async def _again(self) -> None:
        await self.clock.sleep(RETRY_S)
        self._wished.set()

    async def _serve_trunk(self, standing: Standing) -> None:
        runner, memory = self.runner, standing.memory
        if runner is None or memory is None:
            return
        number = PortNumber(self.notebook.number_of(memory.interface))
        try:
            sockets = self._sockets(memory.interface, TRUNK_SOCKETS)
        except OSError as error:
            log.warning("trunk vanished", interface=memory.interface, error=str(error))
            return
        mac, index = sockets[0].mac, sockets[0].index
        if isinstance(standing.wish, LinkWish) and memory.driver != CABLE:
            await self._short_ways.take_link(self.plane, number, memory, standing.wish)
        if self._trunk_macs.get(number) == mac and number in self._served:
            for one in sockets:
                one.close()
            return
        bits_per_s, echo = SITE_LINK_BITS_PER_S, RACK_ECHO
        follows: tuple[int, ...] = (index,)
        uplinks: tuple[int, ...] = ()
        line: LineSocket | None = None
        if isinstance(self.plane, KernelPlane):
            self._bind_trunk(self.plane, number, memory)
        if not isinstance(standing.wish, LinkWish):
            wish = standing.wish
            bits_per_s = min(wish.here.mbit, wish.there.mbit) * 1_000_000
            echo = ECHO_TIMERS
            uplinks = tuple(each.ifindex for each in await interfaces_with(wish.here.address))
            follows = (index, *interface_index(memory.tunnel), *uplinks)
            line = self._open_line(number, memory, wish, uplinks)
            self._short_ways.take_tunnel(self.plane, number, memory, wish)
        runner.add_port(number, sockets, is_trunk=True, follows=follows, asks=uplinks, line=line)
        self._served[number] = memory.interface
        self._trunk_macs[number] = mac
        trunk = Trunk(
            number, mac, metric=metric_of(bits_per_s), mtu_bytes=memory.mtu_bytes, echo=echo
        )
        runner.give(TrunkAdded(trunk))

    def _bind_trunk(self, plane: KernelPlane, number: PortNumber, memory: TrunkMemory) -> None:
        """Put the programs on a trunk; where XDP was asked for and is refused, that is told."""
        self.xdp_refusals.pop(number, None)
        if memory.driver == CABLE and self.options.cabling.xdp:
            try:
                plane.bind(number, memory.interface, xdp=XdpMode.DRIVER)
            except Unavailable as error:
                refusal = f"XDP refused, frames go by tc: {error.message}"
                log.warning("no XDP", interface=memory.interface, error=error.message)
                self.news.note(f"trunk {memory.interface}: {refusal}")
                self.xdp_refusals[number] = refusal
            else:
                return
        plane.bind(number, memory.interface)

    def _open_line(
        self,
        number: PortNumber,
        memory: TrunkMemory,
        wish: SiteTrunkWish,
        uplinks: tuple[int, ...],
    ) -> LineSocket | None:
        """Let the echoes of a tunnel in user space go beside it, if the kernel can answer them."""
        plane = self.plane
        in_user_space = memory.driver == TrunkDriver.WIREGUARD_GO.value
        if not in_user_space or not uplinks or not isinstance(plane, KernelPlane):
            return None
        try:
            line = LineSocket(line_end(wish, self.options.site_id))
            plane.bind_line(number, socket.if_indextoname(uplinks[0]), line.line)
        except (OSError, Unavailable) as error:
            log.warning("no echoes on the line", trunk=memory.interface, error=str(error))
            return None
        return line

    def _drop_trunk(self, interface: str) -> None:
        number = PortNumber(self.notebook.number_of(interface))
        self._short_ways.lost(number)
        self.notebook.forget_number(interface)
        self._served.pop(number, None)
        self._trunk_macs.pop(number, None)
        if self.runner is not None:
            self.runner.remove_port(number)
            self.runner.give(TrunkRemoved(number))
        if isinstance(self.plane, KernelPlane):
            self.plane.unbind(number)

    def _sockets(self, interface: str, ethertypes: tuple[int, ...]) -> tuple[PacketSocket, ...]:
        if isinstance(self.plane, SoftwarePlane):
            return (PacketSocket(interface),)
        return tuple(PacketSocket(interface, ethertype) for ethertype in ethertypes)

    async def _keep_advertising(self) -> None:
        """Renew the default route of guests with public IPv6 addresses, and tell new ones."""
        told: set[PortNumber] = set()
        next_s = 0.0
        while True:
            await self.clock.sleep(ADVERTISE_LOOK_S)
            if self.runner is None:
                continue
            now_s, routed = self.clock.monotonic_s(), self.switch.routed6()
            for number, mtu_bytes in routed.items():
                if number not in told or now_s >= next_s:
                    self.runner.send(number, advertisement(mtu_bytes))
            told = set(routed)
            if now_s >= next_s:
                next_s = now_s + ADVERTISE_EVERY_S

    async def _keep_age(self) -> None:
        while True:
            await self.clock.sleep(AGE_EVERY_S)
            if isinstance(self.plane, KernelPlane):
                self.plane.age()
                self._clear_away()
                await join_tcp(self.plane, self.options.node_id)

    def _clear_away(self) -> None:
        """Unpin what an earlier release's plane left, once none of its programs forwards."""
        try:
            gone = forget_other_layouts(self._pins(), self._ports())
        except Unavailable as error:
            log.warning("pins stay", error=error.message)
        else:
            if gone:
                log.info("earlier layouts unpinned", layouts=gone)

    def _ports(self) -> list[int]:
        """Return the interfaces that are ports, served already or not."""
        memory = self.notebook.memory
        names = [INSIDE, *(trunk.interface for trunk in memory.trunks.values())]
        names += [tap.tap for tap in memory.taps.values()]
        return [index for name in names for index in interface_index(name)]

    # Guests -----------------------------------------------------------------------------------

    async def plug(self, vm_id: VmId, port: PortWish, *, arriving: bool) -> str:
        """Return the port's tap, which reaches its segment from now on."""
        tap = tap_name(port.port_id)
        if not interface_exists(tap):
            await run_tool(("ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr"))
        quieten(tap)
        await run_tool(("ip", "link", "set", tap, "mtu", str(port.mtu_bytes), "up"))
        memory = self.notebook.memory
        memory.taps[port.port_id] = TapMemory(vm_id=vm_id, port=port, tap=tap, present=not arriving)
        self.notebook.number_of(tap)
        self.notebook.save()
        self.update()
        return tap

    def ports_of(self, vm_id: VmId) -> list[PortId]:
        """Return the ports of a VM that have a tap here."""
        return [i for i, tap in self.notebook.memory.taps.items() if tap.vm_id == vm_id]

    async def unplug(self, port_id: PortId) -> None:
        """Remove the port's tap."""
        tap = self.notebook.memory.taps.pop(port_id, None)
        watch = self._arriving.pop(port_id, None)
        if watch is not None:
            self._close_watch(watch)
        self._departures.end(port_id)
        self.update()
        name = tap_name(port_id) if tap is None else tap.tap
        if tap is not None:
            self.notebook.forget_number(name)
            self.notebook.save()
        if interface_exists(name):
            await run_tool(("ip", "link", "del", name))

    def vm_runs(self, vm_id: VmId) -> None:
        """Open the ports of a VM that is seen to run here, or to go on here after all."""
        for port_id, tap in list(self.notebook.memory.taps.items()):
            if tap.vm_id != vm_id:
                continue
            if not tap.present:
                self._arrived(port_id)
            elif port_id in self._departures:
                self._departures.end(port_id)  # the tap's own queue has them still
                self.update()

    def vm_leaves_soon(self, vm_id: VmId) -> None:
        """Listen to what comes for a VM that may stand still at any moment, to go elsewhere."""
        for port_id, tap in self.notebook.memory.taps.items():
            if tap.vm_id != vm_id or not tap.present or port_id in self._departures:
                continue
            try:
                self._departures.begin(port_id, tap.tap, mac_bytes(tap.port.mac))
            except OSError as error:
                log.warning("nothing is kept", tap=tap.tap, error=str(error))

    def vm_stands_still(self, vm_id: VmId, at_s: float) -> None:
        """Keep what came for a VM since it stopped (by the wall's clock), to go elsewhere."""
        taps = self.notebook.memory.taps
        leaving = [i for i, tap in taps.items() if tap.vm_id == vm_id and i in self._departures]
        for port_id in leaving:
            self._departures.stand_still(port_id, at_s or self.clock.now_s())
        if leaving:
            self.update()

    def vm_left(self, vm_id: VmId) -> None:
        """Close the ports of a VM that was handed over to another node, as soon as it is there."""
        taps = self.notebook.memory.taps
        for port_id in [i for i, tap in taps.items() if tap.vm_id == vm_id and tap.present]:
            if not self._departures.is_still(port_id):
                self._closed(port_id)
            elif port_id not in self._following:
                self._following.add(port_id)
                self._tasks.start("departure", self._follow(port_id))

    async def _follow(self, port_id: PortId) -> None:
        """Wait until a guest's new place is known; send after it what came meanwhile."""
        tap, loop = self.notebook.memory.taps[port_id], asyncio.get_running_loop()
        until_s = loop.time() + FOLLOW_MAX_S
        try:
            while port_id in self._departures and loop.time() < until_s:
                place = self._new_place(port_id, tap)
                if place:
                    self._send_after(port_id, tap, place)
                    break
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            self._following.discard(port_id)
            self._departures.end(port_id)
        if port_id in self.notebook.memory.taps:
            self._closed(port_id)

    def _new_place(self, port_id: PortId, tap: TapMemory) -> Nickname:
        found = self.plane.learned_at(Label(tap.port.label), mac_bytes(tap.port.mac))
        still_s = self.clock.now_s() - self._departures.still_since_s(port_id)
        if found is None or found.age_s > still_s:
            return NICKNAME_UNKNOWN
        return found.nickname

    def _send_after(self, port_id: PortId, tap: TapMemory, place: Nickname) -> None:
        frames, runner = self._departures.end(port_id), self.runner
        if runner is None:
            return
        entries, label = runner.rbridge.table, Label(tap.port.label)
        for port, frame in sent_after(entries, label, place, frames, self._trunk_macs):
            runner.send(port, frame)
        log.info("sent after its guest", vm=tap.vm_id, frames=len(frames))

    def _closed(self, port_id: PortId) -> None:
        self._departures.end(port_id)
        taps = self.notebook.memory.taps
        taps[port_id] = _present(taps[port_id], present=False)
        self.update()
        self.notebook.save()

    def _watch_arrivals(self) -> None:
        for port_id, tap in self.notebook.memory.taps.items():
            if tap.present or port_id in self._arriving:
                continue
            watch = PacketSocket(tap.tap)
            self._arriving[port_id] = watch
            asyncio.get_running_loop().add_reader(watch.fileno(), self._first_frame, port_id, watch)

    def _first_frame(self, port_id: PortId, watch: FrameSocket) -> None:
        frame = watch.receive()
        tap = self.notebook.memory.taps.get(port_id)
        if frame is not None and tap is not None and frame[6:12] == mac_bytes(tap.port.mac):
            self._arrived(port_id)

    def _close_watch(self, watch: PacketSocket) -> None:
        asyncio.get_running_loop().remove_reader(watch.fileno())
        watch.close()

    def _arrived(self, port_id: PortId) -> None:
        """The guest runs here: let frames in, and tell all RBridges of its segment."""
        watch = self._arriving.pop(port_id, None)
        if watch is not None:
            self._close_watch(watch)
        taps = self.notebook.memory.taps
        taps[port_id] = tap = _present(taps[port_id], present=True)
        self.plane.apply(self.switch.arrive(PortNumber(self.notebook.number_of(tap.tap))))
        self._announce(tap)  # senders go by this; all else takes longer the larger the campus
        self.update()
        log.info("guest arrived", vm=tap.vm_id, port=port_id)
        self.notebook.save()

    def _announce(self, tap: TapMemory) -> None:
        runner = self.runner
        if runner is None:
            return
        entries = runner.rbridge.table
        label, mac = Label(tap.port.label), mac_bytes(tap.port.mac)
        for port, frame in announcement(entries, label, mac, self._trunk_macs):
            runner.send(port, frame)

    # Tables -----------------------------------------------------------------------------------

    def update_soon(self) -> None:
        """Work the segments' entries out again in a moment."""
        if self._update_due is None:
            loop = asyncio.get_running_loop()
            self._update_due = loop.call_later(UPDATE_AFTER_S, self.update)

    def update(self) -> None:
        """Work the segments' entries out from taps, wish and nicknames; tell plane and campus."""
        if self._update_due is not None:
            self._update_due.cancel()
            self._update_due = None
        runner, wish = self.runner, self.notebook.memory.wish
        if runner is None or wish is None:
            return
        self._serve_taps(runner)
        stations = [
            _station(station, nickname)
            for station, nickname in self._located(runner.rbridge, wish.stations)
        ]
        ports = self._access_ports(wish)
        labels = self.switch.labels
        self.plane.apply(self.switch.update(ports, stations))
        if isinstance(self.plane, KernelPlane):
            self.plane.set_neighbours(_neighbours(ports, stations))
        if self.switch.labels != labels:
            runner.give(LabelsChanged(self.switch.labels))
        self._watch_arrivals()
        self.lisp.follow(wish.lisp, self._plugged())

    def _plugged(self) -> list[Plugged]:
        number_of = self.notebook.number_of
        return [
            Plugged(i, PortNumber(number_of(tap.tap)), mac_bytes(tap.port.mac), tap.present)
            for i, tap in self.notebook.memory.taps.items()
        ]

    def _serve_taps(self, runner: FabricRunner) -> None:
        """Open sockets of new taps and close those of taps that went."""
        wanted: dict[PortNumber, str] = {}
        for tap in self.notebook.memory.taps.values():
            wanted[PortNumber(self.notebook.number_of(tap.tap))] = tap.tap
        for number in [n for n in self._served if n not in wanted and n not in self._trunk_macs]:
            del self._served[number]
            runner.remove_port(number)
        for number, name in wanted.items():
            if self._served.get(number) == name:
                continue
            try:
                sockets = self._sockets(name, ACCESS_SOCKETS)
                if isinstance(self.plane, KernelPlane):
                    self.plane.bind(number, name)
            except (OSError, NuageError) as error:
                log.warning("tap vanished", tap=name, error=str(error))
                continue
            runner.add_port(number, sockets, is_trunk=False)
            self._served[number] = name

    def _located(
        self, rbridge: RBridge, stations: tuple[StationWish, ...]
    ) -> list[tuple[StationWish, Nickname]]:
        nicknames, known = rbridge.nicknames(), dict[tuple[Label, str], Nickname]()
        if rbridge.restarting:  # not everybody has spoken yet: what an older life knew
            entries = (e for e in self.plane.entries() if isinstance(e, MacEntry))
            known = {(entry.label, entry.mac.hex(":")): entry.nickname for entry in entries}
        found = []
        for station in stations:
            where = NICKNAME_UNKNOWN
            if station.node_id is not None and not station.moving:
                before = known.get((Label(station.label), station.mac), NICKNAME_UNKNOWN)
                where = nicknames.get(system_id_of(station.node_id), before)
            found.append((station, where))
        return found

    def _access_ports(self, wish: FabricWish) -> list[AccessPort]:
        rules = {each.port_id: each for each in wish.ports}
        ports = []
        for tap in self.notebook.memory.taps.values():
            number = PortNumber(self.notebook.number_of(tap.tap))
            if self._served.get(number) == tap.tap:
                port = _access_port(number, tap, rules.get(tap.port.port_id))
                ports.append(replace(port, leaving=self._departures.is_still(tap.port.port_id)))
        return ports


def _ring_of(wish: FabricWish) -> Keyring:
    """Return the keys of a wish."""
    keys = {**dict(wish.old_keys), wish.key_id: wish.key}
    return Keyring(wish.key_id, {number: bytes.fromhex(key) for number, key in keys.items()})


def _present(tap: TapMemory, *, present: bool) -> TapMemory:
    return TapMemory(vm_id=tap.vm_id, port=tap.port, tap=tap.tap, present=present)


def _station(wish: StationWish, nickname: Nickname) -> Station:
    return Station(
        label=Label(wish.label), mac=wish.mac, addresses=wish.addresses, nickname=nickname
    )


def _access_port(number: PortNumber, tap: TapMemory, wish: PortRulesWish | None) -> AccessPort:
    """Return a tap as the switch takes it; without a word on it nothing comes in."""
    port = tap.port
    addresses = tuple(str(ip_interface(address).ip) for address in port.addresses)
    plain = AccessPort(
        port=number,
        port_id=port.port_id,
        label=Label(port.label),
        mac=port.mac,
        addresses=addresses,
        gateway=port.gateway,
        mtu_bytes=port.mtu_bytes,
        present=tap.present,
    )
    if wish is None:
        return plain
    return replace(
        plain,
        addresses=(*addresses, *wish.public_addresses),
        routed6=any(ip_address(each).version == 6 for each in wish.public_addresses),
        cidr=wish.cidr,
        hostname=wish.hostname,
        qos_class=QosClass(wish.qos_class),
        rules=None if wish.rules is None else tuple(_rule(rule) for rule in wish.rules),
        rate_bits_per_s=wish.rate_mbit * 1_000_000,
    )


def _rule(wish: RuleWish) -> SecurityRule:
    return SecurityRule(
        direction=Direction.INGRESS if wish.ingress else Direction.EGRESS,
        protocol=wish.protocol,
        remote=wish.remote,
        port_first=wish.port_first,
        port_last=wish.port_last,
    )


def _neighbours(ports: list[AccessPort], stations: list[Station]) -> list[Neighbour]:
    """Return who has which address, for the kernel's ARP and ND."""
    found: dict[tuple[int, str], Neighbour] = {}
    for port in ports:
        if port.gateway:
            router = ip_address(port.gateway)
            found[port.label, port.gateway] = Neighbour(port.label, router, SERVER_MAC)
        if port.routed6:
            found[port.label, str(ROUTER)] = Neighbour(port.label, ROUTER, SERVER_MAC)
    every: list[Station | AccessPort] = [*stations, *ports]
    for each in every:
        mac = mac_bytes(each.mac)
        for address in (*map(ip_address, each.addresses), link_local(mac)):
            found[each.label, str(address)] = Neighbour(each.label, address, mac)
    return list(found.values())
