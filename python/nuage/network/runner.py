"""The loop around an RBridge: raw sockets, timers, carrier. Acts; decides nothing.

With a kernel plane the sockets see only what its programs let through to control (bound to the
control Ethertypes, they stand behind tc); with `SoftwarePlane` they see everything and the
plane is called for each frame: the slow path, for where eBPF is not there, and for tests. Guests
behind the slow path must have their offloads off: what it sees is what goes on the wire.
"""

import array
import asyncio
import fcntl
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from nuage.clock import Clock
from nuage.network.fabric_event import (
    ApplyForwarding,
    CarrierChanged,
    EchoReturned,
    FabricEffect,
    FabricInput,
    FabricLog,
    FrameReceived,
    LabelsChanged,
    RememberNickname,
    SendEcho,
    SendFrame,
    TraceAnswered,
)
from nuage.network.forwarding import ForwardingPlane, Nickname, PortNumber
from nuage.network.line_echo import LineSocket
from nuage.network.rbridge import RBridge
from nuage.network.segment import SegmentSwitch
from nuage.network.software_plane import SoftwarePlane

ETH_P_ALL: Final = 0x0003
CONTROL_ETHERTYPES: Final = (0x22F3, 0x22F4, 0x0800, 0x0806, 0x86DD)
SOL_PACKET: Final = 263
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_MR_PROMISC: Final = 1
PACKET_IGNORE_OUTGOING: Final = 23
PACKET_OUTGOING: Final = 4
FRAME_BYTES_MAX: Final = 65_536
SO_RCVBUFFORCE: Final = 33
RECEIVE_BYTES: Final = 1 << 20  # a flood of 27,000 small frames a second may wait for 50 ms
FRAMES_PER_WAKE_MAX: Final = 64  # then the timers get their turn: BFD counts in milliseconds
RTMGRP_LINK: Final = 1
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
IFF_LOWER_UP: Final = 0x10000
SIOCGIFNAME: Final = 0x8910
SIOCETHTOOL: Final = 0x8946
ETHTOOL_GLINK: Final = 0x0A
TICK_MIN_S: Final = 0.0005
LINE_TRUST_S: Final = 1.0  # without an answer by the line, echoes go through the trunk besides
STALL_S: Final = 0.02  # of this loop: then all sockets are read before anybody is held silent


class FrameSocket(Protocol):
    """What the runner needs of a socket on a port."""

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        ...

    def receive(self) -> bytes | None:
        """Return the next frame, None when there is none now."""
        ...

    def send(self, frame: bytes) -> None:
        """Send a frame; what the kernel refuses now is lost, as on a wire."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class PacketSocket:
    """A raw socket on an interface of the calling thread's network namespace."""

    def __init__(self, interface: str, ethertype: int = ETH_P_ALL) -> None:
        self.interface = interface
        self.index = socket.if_nametoindex(interface)
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ethertype))
        raw.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        with suppress(OSError):  # without it there is less room
            raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        with suppress(OSError):  # before Linux 4.20 outgoing frames are told by their type
            raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        promiscuous = struct.pack("iHH8s", self.index, PACKET_MR_PROMISC, 0, bytes(8))
        raw.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, promiscuous)
        raw.bind((interface, ethertype))
        self.mac = raw.getsockname()[4]
        self._raw = raw

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._raw.fileno()

    def receive(self) -> bytes | None:
        """Return the next frame that came in, None when there is none now."""
        while True:
            try:
                frame, address = self._raw.recvfrom(FRAME_BYTES_MAX)
            except (BlockingIOError, OSError):
                return None  # none, or the interface is down: carrier tells
            if address[2] != PACKET_OUTGOING:
                return frame

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        with suppress(OSError):
            self._raw.send(frame)

    def close(self) -> None:
        """Close the socket."""
        self._raw.close()


@dataclass(frozen=True, slots=True)
class LinkState:
    """An interface has carrier or not, or is `gone`."""

    index: int
    up: bool
    gone: bool = False


class LinkWatch:
    """Tells changes of carrier in the calling thread's network namespace (netlink).

    The kernel may hold a message back for up to a second when another link of the machine
    changed shortly before; `carrier` asks without waiting for it.
    """

    def __init__(self) -> None:
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        raw.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        raw.bind((0, RTMGRP_LINK))
        self._raw = raw
        self._asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._raw.fileno()

    def receive(self) -> list[LinkState]:
        """Return what was told since the last call."""
        states: list[LinkState] = []
        while True:
            try:
                data = self._raw.recv(FRAME_BYTES_MAX)
            except (BlockingIOError, OSError):
                return states
            states.extend(parse_link_messages(data))

    def carrier(self, index: int) -> bool | None:
        """Return whether an interface has carrier now; None: it cannot be asked."""
        request = bytearray(struct.pack("=16si20x", b"", index))
        value = array.array("I", (ETHTOOL_GLINK, 0))
        try:
            fcntl.ioctl(self._asking, SIOCGIFNAME, request)
            request[16:24] = struct.pack("=Q", value.buffer_info()[0])
            fcntl.ioctl(self._asking, SIOCETHTOOL, request)
        except OSError:
            return None
        return bool(value[1])

    def close(self) -> None:
        """Close the sockets."""
        self._raw.close()
        self._asking.close()


def parse_link_messages(data: bytes) -> list[LinkState]:
    """Return the link states in a netlink datagram (rtnetlink(7): header 16, ifinfomsg 16)."""
    states: list[LinkState] = []
    offset = 0
    while offset + 32 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            break
        if kind in (RTM_NEWLINK, RTM_DELLINK) and length >= 32:
            index, flags = struct.unpack_from("=iI", data, offset + 20)
            gone = kind == RTM_DELLINK
            up = not gone and bool(flags & IFF_LOWER_UP)
            states.append(LinkState(index, up, gone))
        offset += (length + 3) & ~3
    return states


@dataclass(frozen=True, slots=True)
class RunnerPorts:
    """The sockets of the trunks and of the access ports, and who tells their carrier."""

    trunks: Mapping[PortNumber, tuple[FrameSocket, ...]]
    access: Mapping[PortNumber, tuple[FrameSocket, ...]]
    links: LinkWatch | None = None
    indexes: Mapping[int, PortNumber] | None = None  # interface index -> trunk


class FabricRunner:
    """Runs one RBridge on real ports."""

    def __init__(
        self,
        rbridge: RBridge,
        plane: ForwardingPlane,
        *,
        clock: Clock,
        ports: RunnerPorts,
        switch: SegmentSwitch | None = None,
        remember: Callable[[Nickname], None] = lambda _nickname: None,
        tell: Callable[[FabricLog], None] = lambda _log: None,
        traced: Callable[[TraceAnswered], None] = lambda _answer: None,
        routed: Callable[[], None] = lambda: None,
        vanished: Callable[[], None] = lambda: None,  # an interface that a trunk depends on
    ) -> None:
        self.rbridge = rbridge
        self._plane = plane
        self._software = plane if isinstance(plane, SoftwarePlane) else None
        self._clock = clock
        self._links = ports.links
        self._followers: dict[int, set[PortNumber]] = {}
        self._asked = {*(ports.indexes or ())}
        self._down: set[int] = set()  # interfaces without carrier
        self._lines: dict[PortNumber, LineSocket] = {}
        self._line_heard_s: dict[PortNumber, float] = {}
        for index, number in (ports.indexes or {}).items():
            self._followers.setdefault(index, set()).add(number)
        self._trunks = set(ports.trunks)
        self._switch = switch
        self._remember = remember
        self._tell = tell
        self._traced = traced
        self._routed = routed
        self._vanished = vanished
        self._sockets = {**ports.trunks, **ports.access}
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = self._due_s = clock.monotonic_s()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to listen and to speak, on the running event loop."""
        loop = self._loop = asyncio.get_running_loop()
        for port, sockets in self._sockets.items():
            for one in sockets:
                loop.add_reader(one.fileno(), self._readable, port, one)
        if self._links is not None:
            loop.add_reader(self._links.fileno(), self._links_changed)
        if self._switch is not None:
            self.give(LabelsChanged(self._switch.labels))
        self._perform(self.rbridge.tick(self._clock.monotonic_s()))

    def stop(self) -> None:
        """Stop, leaving the plane as it is; sockets are closed."""
        if self._loop is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        for sockets in self._sockets.values():
            for one in sockets:
                self._loop.remove_reader(one.fileno())
                one.close()
        for line in self._lines.values():
            line.close()
        if self._links is not None:
            self._loop.remove_reader(self._links.fileno())
            self._links.close()
        self._loop = None

    def add_port(
        self,
        port: PortNumber,
        sockets: tuple[FrameSocket, ...],
        *,
        is_trunk: bool,
        follows: Iterable[int] = (),
        asks: Iterable[int] = (),
        line: LineSocket | None = None,
    ) -> None:
        """Serve one more port.

        `follows`: the interfaces whose carrier a trunk depends on. `asks`: those of them that
        have one to lose, and are asked at each wake-up. `line`: its echoes go there.
        """
        self.remove_port(port)
        self._sockets[port] = sockets
        if is_trunk:
            self._trunks.add(port)
        if line is not None:
            self._lines[port] = line
        for index in follows:
            self._followers.setdefault(index, set()).add(port)
        self._asked.update(asks)
        if self._loop is not None:
            for one in sockets:
                self._loop.add_reader(one.fileno(), self._readable, port, one)

    def remove_port(self, port: PortNumber) -> None:
        """Serve a port no more and close its sockets; the machine hears of it by its own event."""
        for one in self._sockets.pop(port, ()):
            if self._loop is not None:
                self._loop.remove_reader(one.fileno())
            one.close()
        line = self._lines.pop(port, None)
        if line is not None:
            line.close()
        self._line_heard_s.pop(port, None)
        self._trunks.discard(port)
        for followers in self._followers.values():
            followers.discard(port)

    def send(self, port: PortNumber, frame: bytes) -> None:
        """Send a frame on a port."""
        self._send(port, frame)

    def give(self, event: FabricInput) -> None:
        """Give the machine an event now."""
        self._advance((event,), self._clock.monotonic_s())

    def _advance(self, events: Iterable[FabricInput], now_s: float) -> None:
        """Give the machine what came by `now_s`, the echoes that the plane noted first."""
        echoes = []
        for seen in self._plane.take_echoes():
            if seen.on_line:
                self._line_heard_s[seen.port] = seen.at_s
            echoes.append(EchoReturned(seen.port, seen.content, seen.at_s))
        self._perform(self.rbridge.handle_all((*echoes, *events), now_s))

    def _readable(self, port: PortNumber, one: FrameSocket) -> None:
        if port in self._trunks and self._software is None:
            began_s = self._clock.monotonic_s()
            if self._read_trunks(port, one):
                self._rest(port, one, self._clock.monotonic_s() - began_s)
            return
        for _ in range(FRAMES_PER_WAKE_MAX):
            frame = one.receive()
            if frame is None:
                return
            self._frame(port, frame)

    def _rest(self, port: PortNumber, one: FrameSocket, seconds: float) -> None:
        """Leave a socket that has more than is read at once, for as long as that took.

        We run before what others run, the kernel's own threads included, which carry echoes.
        """
        loop = self._loop
        if loop is None or one not in self._sockets.get(port, ()):
            return

        def again() -> None:
            if self._loop is not None and one in self._sockets.get(port, ()):
                loop.add_reader(one.fileno(), self._readable, port, one)

        loop.remove_reader(one.fileno())
        loop.call_later(seconds, again)

    def _read_trunks(self, port: PortNumber | None = None, one: FrameSocket | None = None) -> bool:
        """Read a trunk's socket, or all of them when something is due; then let time pass.

        Return whether some socket has more.
        """
        now_s = self._clock.monotonic_s()
        waiting = [] if port is None or one is None else [(port, one)]
        if not waiting or now_s >= self._due_s:
            waiting = [(p, s) for p in self._trunks for s in self._sockets[p]]
        events: list[FabricInput] = []
        has_more = False
        for number, each in waiting:
            for _ in range(FRAMES_PER_WAKE_MAX):
                frame = each.receive()
                if frame is None:
                    break
                events.append(FrameReceived(number, frame))
            else:
                has_more = True
        # Time as it was before reading: what came by then was read, whatever held us up since.
        if now_s < self._due_s:  # nobody can be held silent yet: the plane's notes can wait
            self._perform(self.rbridge.handle_all(events, now_s))
        else:
            self._advance(events, now_s)
        return has_more

    def _frame(self, port: PortNumber, frame: bytes) -> None:
        if self._software is None:
            self._control(port, frame)
            return
        for sent in self._software.receive(port, frame, self._clock.monotonic_s()):
            self._send(sent.port, sent.frame)
        if self._software.punts:
            punts, self._software.punts = self._software.punts, []
            for punt in punts:
                self._control(punt.port, punt.frame)

    def _control(self, port: PortNumber, frame: bytes) -> None:
        if port in self._trunks:
            self.give(FrameReceived(port, frame))
        elif self._switch is not None:
            reply = self._switch.answer(port, frame, self._clock.monotonic_s())
            if reply is not None:
                self._send(port, reply)

    def _send(self, port: PortNumber, frame: bytes) -> None:
        sockets = self._sockets.get(port)
        if sockets:
            sockets[0].send(frame)

    def _send_echo(self, echo: SendEcho) -> None:
        line = self._lines.get(echo.port)
        if line is not None:
            line.send(echo.content)
            heard_s = self._line_heard_s.get(echo.port)
            if heard_s is not None and self._clock.monotonic_s() - heard_s < LINE_TRUST_S:
                return
        self._send(echo.port, echo.head + echo.content)

    def _links_changed(self) -> None:
        assert self._links is not None
        for state in self._links.receive():
            self._link_is(state)

    def _link_is(self, state: LinkState) -> None:
        followers = self._followers.get(state.index, ())
        if state.up or (state.gone and not followers):  # the kernel gives no index out twice
            self._down.discard(state.index)
        else:
            self._down.add(state.index)
        for port in sorted(followers):
            dead = any(port in self._followers.get(index, ()) for index in self._down)
            self.give(CarrierChanged(port, not dead))
        if state.gone and followers:
            self._vanished()

    def _ask_links(self) -> None:
        """Look whether a trunk has lost its carrier without our being told yet."""
        if self._links is None:
            return
        for index in sorted(self._asked - self._down):
            if self._followers.get(index) and self._links.carrier(index) is False:
                self._link_is(LinkState(index, up=False))

    def _perform(self, effects: Iterable[FabricEffect]) -> None:
        for effect in effects:
            match effect:
                case SendFrame():
                    self._send(effect.port, effect.frame)
                case SendEcho():
                    self._send_echo(effect)
                case ApplyForwarding():
                    self._plane.apply(effect.delta)
                    self._routed()
                case RememberNickname():
                    self._remember(effect.nickname)
                case TraceAnswered():
                    self._traced(effect)
                case FabricLog():
                    self._tell(effect)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._loop is None:
            return
        deadline_s = self.rbridge.next_deadline_s()
        if self._timer is not None:
            if deadline_s == self._deadline_s:
                return
            self._timer.cancel()
        now_s = self._clock.monotonic_s()
        wait_s = max(deadline_s - now_s, TICK_MIN_S)
        self._deadline_s, self._due_s = deadline_s, now_s + wait_s
        self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ask_links()
        now_s = self._clock.monotonic_s()
        if self._software is None and now_s - self._due_s > STALL_S:
            self._read_trunks()
        else:
            self._advance((), now_s)
