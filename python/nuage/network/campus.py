"""A whole campus under one virtual clock: RBridges, their planes, and links that can fail.

The product's own machines and frames; only time and cables are made up. Used by the tests,
by `simulation/` and by the benchmarks. One seed, one run.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from nuage.network.bfd import BfdTimers
from nuage.network.circuit import BFD_TIMERS, Trunk
from nuage.network.fabric_event import (
    ApplyForwarding,
    CarrierChanged,
    FabricEffect,
    FabricInput,
    FabricLog,
    FrameReceived,
    LabelsChanged,
    RememberNickname,
    SendEcho,
    SendFrame,
    TraceAnswered,
    TrunkAdded,
)
from nuage.network.forwarding import (
    FloodEntry,
    ForwardingDelta,
    Label,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
)
from nuage.network.rbridge import RBridge, RBridgeConfig
from nuage.network.software_plane import Sent, SoftwarePlane

ACCESS_PORTS_FROM = 1000
METRICS = (1000, 2000, 4000)
LONG_BYTES = 1000  # more than a Hello has, less than a probe of the path's MTU


@dataclass(slots=True)
class Cable:
    """A link between two (node, port) ends. `lost`: swallows all silently; `cut`: no carrier.

    `long_lost`: the share of frames longer than `LONG_BYTES` that it swallows silently.
    """

    a: tuple[int, PortNumber]
    b: tuple[int, PortNumber]
    delay_s: float
    lost: bool = False
    cut: bool = False
    long_lost: float = 0.0


@dataclass(slots=True)
class CampusNode:
    """One RBridge with its plane and what its access ports got."""

    rbridge: RBridge
    plane: SoftwarePlane
    received: list[tuple[float, PortNumber, bytes]]
    log: list[FabricLog]
    remembered: Nickname | None = None
    traced: list[TraceAnswered] = field(default_factory=list)
    wake_s: float = float("inf")
    dead: bool = False


class Campus:
    """Nodes, cables and the clock that drives them."""

    def __init__(self, seed: int) -> None:
        self.prng = Random(seed)
        self.now_s = 0.0
        self.nodes: list[CampusNode] = []
        self.cables: list[Cable] = []
        self.frames: Counter[str] = Counter()
        self.tap: Callable[[int, PortNumber, bytes], None] | None = None
        self._ends: dict[tuple[int, PortNumber], Cable] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # ---- building ----

    def add(self, config: RBridgeConfig) -> int:
        """Add a RBridge; return its number."""
        number = len(self.nodes)
        rbridge = RBridge(config, Random(self.prng.random()), self.now_s)
        self.nodes.append(CampusNode(rbridge, SoftwarePlane(), [], []))
        self._wake(number)
        return number

    def kill(self, number: int) -> None:
        """End a RBridge's control plane without a word; its plane forwards on."""
        self.nodes[number].dead = True

    def restart(self, number: int, config: RBridgeConfig) -> None:
        """Start a RBridge's control plane afresh, from what its plane holds."""
        node = self.nodes[number]
        node.dead = False
        known = node.plane.entries()
        node.rbridge = RBridge(config, Random(self.prng.random()), self.now_s, known)
        for (owner, port), cable in sorted(self._ends.items(), key=lambda item: item[0]):
            if owner == number:
                self.give(number, TrunkAdded(self._trunk(number, port)))
                self.give(number, CarrierChanged(port, up=not cable.cut))
        self.give(number, LabelsChanged(frozenset(node.plane.labels())))

    def connect(
        self,
        a: int,
        b: int,
        *,
        delay_s: float = 0.001,
        metric: int = 2000,
        bfd: BfdTimers | None = BFD_TIMERS,
    ) -> Cable:
        """Lay a cable between two RBridges."""
        ends = []
        for number in (a, b):
            used = sum(1 for owner, _ in self._ends if owner == number)
            ends.append((number, PortNumber(used + 1)))
            self._ends[ends[-1]] = Cable(ends[0], ends[0], delay_s)  # reserves the port
        cable = Cable(ends[0], ends[1], delay_s)
        self.cables.append(cable)
        for end in ends:
            self._ends[end] = cable
            self.give(end[0], TrunkAdded(self._trunk(*end, metric=metric, bfd=bfd)))
        return cable

    def _trunk(
        self,
        number: int,
        port: PortNumber,
        *,
        metric: int = 2000,
        bfd: BfdTimers | None = BFD_TIMERS,
    ) -> Trunk:
        return Trunk(port, self.mac(number, port), metric=metric, bfd=bfd)

    @staticmethod
    def mac(number: int, port: int) -> bytes:
        """Return the MAC of a trunk port."""
        return bytes((0x02, 0x10, number >> 8, number & 0xFF, port >> 8, port & 0xFF))

    def attach(self, number: int, label: Label, index: int = 0) -> PortNumber:
        """Give a node an unguarded access port in a segment; return the port."""
        node = self.nodes[number]
        port = PortNumber(ACCESS_PORTS_FROM + index)
        entry = PortEntry(port, PortRole.ACCESS, bytes(6), label)
        flood = (*node.plane.ports_of(label), port)
        node.plane.apply(ForwardingDelta(set=(entry, FloodEntry(label, flood))))
        self.give(number, LabelsChanged(frozenset(node.plane.labels())))
        return port

    # ---- running ----

    def give(self, number: int, event: FabricInput) -> None:
        """Give a machine an event now."""
        if self.nodes[number].dead:
            return
        self._perform(number, self.nodes[number].rbridge.handle(event, self.now_s))

    def from_guest(self, number: int, port: PortNumber, frame: bytes) -> None:
        """Let a guest send a frame now."""
        node = self.nodes[number]
        self._forward(number, node.plane.receive(port, frame, self.now_s))
        node.plane.punts.clear()

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Do something at a time."""
        heappush(self._queue, (when_s, next(self._order), act))

    def run_until(self, until_s: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= until_s:
            when_s, _, act = heappop(self._queue)
            self.now_s = max(self.now_s, when_s)
            act()
        self.now_s = until_s

    def run_for(self, duration_s: float) -> None:
        """Let time pass."""
        self.run_until(self.now_s + duration_s)

    def lose(self, cable: Cable, *, lost: bool = True) -> None:
        """Blackhole a cable, both ways, without anybody being told."""
        cable.lost = lost

    def cut(self, cable: Cable, *, cut: bool = True) -> None:
        """Cut a cable: both ends lose carrier."""
        cable.cut = cut
        for number, port in (cable.a, cable.b):
            self.give(number, CarrierChanged(port, up=not cut))

    def _perform(self, number: int, effects: Iterable[FabricEffect]) -> None:
        node = self.nodes[number]
        for effect in effects:
            match effect:
                case SendFrame():
                    self._transmit(number, effect.port, effect.frame)
                case SendEcho():
                    self._transmit(number, effect.port, effect.head + effect.content)
                case ApplyForwarding():
                    node.plane.apply(effect.delta)
                case FabricLog():
                    node.log.append(effect)
                case TraceAnswered():
                    node.traced.append(effect)
                case RememberNickname():
                    node.remembered = effect.nickname
        self._wake(number)

    def _wake(self, number: int) -> None:
        node = self.nodes[number]
        deadline_s = max(node.rbridge.next_deadline_s(), self.now_s)
        if deadline_s < node.wake_s or node.wake_s < self.now_s:
            node.wake_s = deadline_s
            self.at(deadline_s, lambda: self._tick(number, deadline_s))

    def _tick(self, number: int, deadline_s: float) -> None:
        node = self.nodes[number]
        if node.wake_s != deadline_s or node.dead:
            return  # an earlier one took its place
        node.wake_s = float("inf")
        self._perform(number, node.rbridge.tick(self.now_s))

    def _transmit(self, number: int, port: PortNumber, frame: bytes) -> None:
        if self.tap is not None:
            self.tap(number, port, frame)
        cable = self._ends.get((number, port))
        if cable is None or cable.lost or cable.cut:
            self.frames["lost"] += 1
            return
        self.frames["carried"] += 1
        other = cable.b if cable.a == (number, port) else cable.a
        self.at(self.now_s + cable.delay_s, lambda: self._arrive(cable, other, frame))

    def _arrive(self, cable: Cable, end: tuple[int, PortNumber], frame: bytes) -> None:
        too_long = len(frame) > LONG_BYTES and self.prng.random() < cable.long_lost
        if cable.lost or cable.cut or too_long:
            self.frames["lost"] += 1
            return
        number, port = end
        plane = self.nodes[number].plane
        self._forward(number, plane.receive(port, frame, self.now_s))
        punts, plane.punts = plane.punts, []
        for punt in punts:
            self.give(number, FrameReceived(punt.port, punt.frame))

    def _forward(self, number: int, sent: Iterable[Sent]) -> None:
        for port, frame in sent:
            if (number, port) in self._ends:
                self._transmit(number, port, frame)
            else:
                self.nodes[number].received.append((self.now_s, port, frame))


def system_id(number: int) -> bytes:
    """Return the system ID of simulated RBridge `number`."""
    return bytes((0x02, 0x20, 0, 0, number >> 8, number & 0xFF))


def random_campus(
    seed: int, node_count: int, extra_links: int, *, bfd: BfdTimers | None = BFD_TIMERS
) -> Campus:
    """Return a connected random campus: a random tree and some more links, metrics mixed."""
    campus = Campus(seed)
    for number in range(node_count):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    prng = campus.prng
    for number in range(1, node_count):
        campus.connect(number, prng.randrange(number), metric=prng.choice(METRICS), bfd=bfd)
    for _ in range(extra_links):
        a, b = prng.sample(range(node_count), 2)
        campus.connect(a, b, metric=prng.choice(METRICS), bfd=bfd)
    return campus
