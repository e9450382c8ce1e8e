"""One trunk port: its neighbour, the adjacency and its failure detection.

Theory of operation (RFC 7177 with RFC 5303's three-way handshake): a port starts Down. A
correct Hello makes it Detect; a Hello that lists us makes it Two-Way; when an MTU probe of the
campus size has come back (or the test is off) it is Report, and only then in the LSP and in
the forwarding tables. BFD starts at Two-Way. What ends an adjacency: silence for the
holding time, BFD going Down after it was Up, loss of carrier. All reset the handshake. So do
echoes (`echo`) that come back no more: they find a dead link long before BFD, which runs slowly
beside them.

In Report the path is tested on, beside Hellos, so that it wakes nobody. When it carries Hellos but
no probes any more, the adjacency is `narrow`: it stays, with the largest metric, for what fits and
has no other way. One that carried them in this life or the last comes up so as well.

A neighbour whose daemon is dead while its plane forwards on is told from a dead link by echoes,
which its *plane* sends back. Hellos or BFD silent and echoes alive is a restart: the adjacency
stays in Report for `GRACE_S`, and the Hellos of the new life, which do not list us, do not end it.

Fault model: the peer may send anything. A second system on the trunk is refused while the
first lives (trunks are point to point), a Hello that contradicts itself changes nothing.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from nuage.network.bfd import BfdPacket, BfdSession, BfdState, BfdTimers
from nuage.network.echo import ECHO_TIMERS, EchoWatch
from nuage.network.forwarding import NICKNAME_UNKNOWN, Nickname, PortNumber
from nuage.network.isis_pdu import Hello
from nuage.network.isis_tlv import (
    AREA_TRILL,
    NLPID_TRILL,
    AreaAddresses,
    PortCapability,
    PortTrillVersion,
    ProtocolsSupported,
    SpecialVlans,
    SystemId,
    ThreeWay,
    ThreeWayState,
    find_one,
)
from nuage.network.wire import MalformedFrame

HELLO_INTERVAL_S: Final = 1.0  # until the adjacency stands
HELLO_STEADY_S: Final = 3.0  # then: echoes tell of a loss, and news do not wait for it
HOLDING_S: Final = 9
MTU_PROBE_INTERVAL_S: Final = 0.3
MTU_PROBE_TRIES_MAX: Final = 3  # RFC 7177 §5: then the link is held not to carry that size
GRACE_S: Final = 120.0  # how long a neighbour may take to restart
MTU_RETRY_S: Final = 10.0  # and is asked again, somebody may have repaired it
MTU_PROBE_HELLOS: Final = (9, 14)  # in Report: beside one Hello of so many, about every 30 s
# Then beside each Hello, a second apart, until one is answered. Where each frame is lost at 10 %,
# 1 - 0.9² = 19 % of probes stay unanswered, ten in a row at 0.19¹⁰ = 6e-8, and a row may begin a
# million times a year: once in 16 years. Queues full of guests' frames must lose all for 9 s.
MTU_LOST_MAX: Final = 10
MTU_SPACE_S: Final = 0.7  # a round trip, and a Hello that comes early is no probe lost
HELLO_EARLY_S: Final = 0.15  # when we are awake anyway
BFD_TIMERS: Final = BfdTimers(interval_us=3_000_000)  # RFC 5880 §6.8.9: slow beside echoes
BFD_YOURS: Final = slice(50, 54)  # "your discriminator" in a one-hop channel frame
METRIC_MAX: Final = 0xFFFFFE  # RFC 5305 §3: the largest that still counts


def metric_of(bits_per_second: int) -> int:
    """Return the link metric RFC 6325 §4.2.1.1 recommends: 20,000,000,000,000 over the speed."""
    return max(1, min(METRIC_MAX, 20_000_000_000_000 // max(bits_per_second, 1)))


@dataclass(frozen=True, slots=True)
class Trunk:
    """A trunk port as configured. `mtu_bytes`: what the link carries after its Ethernet header."""

    port: PortNumber
    mac: bytes
    metric: int = metric_of(10_000_000_000)
    mtu_bytes: int = 1390
    test_mtu: bool = True
    bfd: BfdTimers | None = BFD_TIMERS  # None: neither BFD nor echoes
    echo: BfdTimers = ECHO_TIMERS


class AdjacencyState(Enum):
    """States of RFC 7177 §3."""

    DOWN = "down"
    DETECT = "detect"
    TWO_WAY = "two-way"
    REPORT = "report"


# RFC 5303 §3.2.3: (our three-way state, the state received) -> our new state.
THREE_WAY: Final = {
    (ThreeWayState.DOWN, ThreeWayState.DOWN): ThreeWayState.INITIALIZING,
    (ThreeWayState.DOWN, ThreeWayState.INITIALIZING): ThreeWayState.UP,
    (ThreeWayState.DOWN, ThreeWayState.UP): ThreeWayState.DOWN,
    (ThreeWayState.INITIALIZING, ThreeWayState.DOWN): ThreeWayState.INITIALIZING,
    (ThreeWayState.INITIALIZING, ThreeWayState.INITIALIZING): ThreeWayState.UP,
    (ThreeWayState.INITIALIZING, ThreeWayState.UP): ThreeWayState.UP,
    (ThreeWayState.UP, ThreeWayState.DOWN): ThreeWayState.INITIALIZING,
    (ThreeWayState.UP, ThreeWayState.INITIALIZING): ThreeWayState.UP,
    (ThreeWayState.UP, ThreeWayState.UP): ThreeWayState.UP,
}


@dataclass(frozen=True, slots=True)
class AdjacencyChange:
    """The adjacency of a port moved from one state to another, and why."""

    port: PortNumber
    before: AdjacencyState
    after: AdjacencyState
    neighbour: SystemId | None
    reason: str


class Circuit:
    """The adjacency machine of one trunk."""

    def __init__(self, trunk: Trunk, system_id: SystemId, prng: Random, now_s: float) -> None:
        self.trunk = trunk
        self.state = AdjacencyState.DOWN
        self.neighbour: SystemId | None = None
        self.neighbour_mac = b""
        self.neighbour_port = 0
        self.neighbour_nickname = NICKNAME_UNKNOWN
        self.carrier = True
        self.mtu_tested_bytes: int | None = None
        self.narrow = self._narrow_told = False
        self.carried = False  # what is promised, once: then it may come up narrow
        self.bfd: BfdSession | None = None
        self._bfd_was_up = False
        self._echo: EchoWatch | None = None
        self._grace_until_s: float | None = None
        self._system_id = system_id
        self._prng = prng
        self._three_way = ThreeWayState.DOWN
        self._neighbour_circuit = 0
        self._hold_until_s = 0.0
        self._next_hello_s = now_s
        self._probe_count = 0
        self._next_probe_s: float | None = None
        self._probed_s = float("-inf")
        self._hellos_to_probe = 0
        self._probe_id = b""
        self._rest_until_s = self._due_s = float("-inf")  # echoes apart; -inf: work it out

    # ---- events ----

    def hello(self, hello: Hello, smac: bytes, now_s: float) -> AdjacencyChange | None:
        """Take a Hello that is authentic.

        Raises:
            MalformedFrame: it is not one of TRILL, contradicts itself, or comes from a second
                system; nothing changed.
        """
        if self.restarting and hello.source == self.neighbour and smac != self.neighbour_mac:
            return self.reset("its port is another", now_s)  # nobody is left at the old one
        three_way, special = self._judge(hello, smac)
        if not self.carrier:
            return None
        self._stir()
        before = self.state
        received = three_way.state
        if self.neighbour is None:
            self._three_way = ThreeWayState.DOWN
            self._next_hello_s = now_s  # answer at once: a handshake takes two round trips
        self.neighbour, self.neighbour_mac = hello.source, smac
        self.neighbour_port, self.neighbour_nickname = special.port, special.nickname
        self._neighbour_circuit = three_way.circuit
        self._hold_until_s = now_s + hello.holding_s
        if three_way.neighbour is None:
            received = ThreeWayState.DOWN  # it has not heard us, whatever it says
        new = THREE_WAY[(self._three_way, received)]
        lost_us = self.state is AdjacencyState.REPORT and new != ThreeWayState.UP
        if lost_us and self._grace_until_s is None and self._echo_alive(now_s):
            self._begin_grace(now_s)
        if new != self._three_way or received != ThreeWayState.UP:
            self._next_hello_s = min(self._next_hello_s, now_s + 0.02)
        self._three_way = new
        if self._grace_until_s is not None:
            return self._follow_grace(now_s)
        self._follow_three_way(now_s)
        # Not before it speaks: a neighbour that is away answers no probes either.
        if self.state is AdjacencyState.REPORT and self._probe_count > MTU_LOST_MAX:
            self._become_narrow()
        return self._change(before, "hello")

    def _become_narrow(self) -> None:
        self.narrow, self.mtu_tested_bytes = True, None

    @property
    def too_narrow(self) -> bool:
        """Tell whether the path carries Hellos and no probes: `narrow`, or up for that no more."""
        return self.narrow or self.mtu_failed

    def narrow_is_news(self) -> bool:
        """Tell, once, that `too_narrow` has changed while the neighbour is there."""
        is_news, self._narrow_told = self.too_narrow != self._narrow_told, self.too_narrow
        return is_news

    @property
    def metric(self) -> int:
        """Return what the way over this trunk costs."""
        return METRIC_MAX if self.narrow else self.trunk.metric

    @property
    def restarting(self) -> bool:
        """Tell whether the neighbour's daemon is away while its plane is not."""
        return self._grace_until_s is not None

    def echo(self, content: bytes, at_s: float) -> None:
        """Take an echo of ours that came back at `at_s`."""
        if self._echo is not None:
            self._echo.returned(content, at_s)

    def _echo_alive(self, now_s: float) -> bool:
        return self._echo is not None and self._echo.alive(now_s)

    def _begin_grace(self, now_s: float) -> None:
        self._grace_until_s = now_s + GRACE_S
        self._hold_until_s = self._grace_until_s
        self._probe_count = 0
        self.bfd, self._bfd_was_up = None, False

    def _follow_grace(self, now_s: float) -> AdjacencyChange | None:
        """The neighbour speaks again: back to normal once it sees us."""
        self._hold_until_s = max(self._hold_until_s, self._grace_until_s or 0.0)
        if self._three_way != ThreeWayState.UP:
            return None
        self._grace_until_s = None
        self._hold_until_s = now_s + HOLDING_S
        self._start_bfd(now_s)
        report = AdjacencyState.REPORT
        return AdjacencyChange(self.trunk.port, report, report, self.neighbour, "restarted")

    def _start_bfd(self, now_s: float) -> None:
        if self.trunk.bfd is not None:
            discriminator = self._prng.randrange(1, 1 << 32)
            self.bfd = BfdSession(discriminator, self.trunk.bfd, self._prng, now_s)
            self._bfd_was_up = False
            if self._echo is None:
                self._echo = EchoWatch(self.trunk.echo, self._prng)

    def _judge(self, hello: Hello, smac: bytes) -> tuple[ThreeWay, SpecialVlans]:
        areas = find_one(hello.tlvs, AreaAddresses)
        protocols = find_one(hello.tlvs, ProtocolsSupported)
        three_way = find_one(hello.tlvs, ThreeWay)
        capability = find_one(hello.tlvs, PortCapability)
        if areas is None or AREA_TRILL not in areas.areas:
            raise MalformedFrame("hello_area")
        if protocols is None or NLPID_TRILL not in protocols.nlpids:
            raise MalformedFrame("hello_protocol")
        special = find_one(capability.subs, SpecialVlans) if capability else None
        if special is None:
            raise MalformedFrame("hello_port_capability")
        if three_way is None or three_way.state > ThreeWayState.DOWN:
            raise MalformedFrame("hello_three_way")
        if hello.source == self._system_id:
            raise MalformedFrame("hello_own", "the trunk leads back to ourselves")
        if not hello.circuit_type & 1 or hello.holding_s == 0:
            raise MalformedFrame("hello_field")
        mine = (self._system_id, self.trunk.port)
        if three_way.neighbour not in (None, self._system_id) or (
            three_way.neighbour and (three_way.neighbour, three_way.neighbour_circuit) != mine
        ):
            raise MalformedFrame("hello_other", "the neighbour sees somebody else")
        if self.neighbour is not None and (self.neighbour, self.neighbour_mac) != (
            hello.source,
            smac,
        ):
            raise MalformedFrame("hello_second", "a second RBridge on a point-to-point trunk")
        return three_way, special

    def _follow_three_way(self, now_s: float) -> None:
        if self._three_way != ThreeWayState.UP:
            self.state = AdjacencyState.DETECT
            self._stop_tests()
            return
        if self.state in (AdjacencyState.DOWN, AdjacencyState.DETECT):
            self.state = AdjacencyState.TWO_WAY
            self._start_bfd(now_s)
            if self.trunk.test_mtu:
                self._probe_count, self._next_probe_s = 0, now_s
            else:
                self.state = AdjacencyState.REPORT

    def is_of_session(self, frame: bytes) -> bool:
        """Tell whether a frame holds BFD that names our session: its number is drawn by lot."""
        return self.bfd is not None and frame[BFD_YOURS] == self.bfd.name

    def bfd_packet(
        self, packet: BfdPacket, now_s: float
    ) -> tuple[list[BfdPacket], AdjacencyChange | None]:
        """Take a BFD packet; return the answers and what became of the adjacency."""
        if self.bfd is None:
            return [], None
        self._stir()
        answers = self.bfd.receive(packet, now_s)
        return answers, self._follow_bfd(now_s)

    def _follow_bfd(self, now_s: float) -> AdjacencyChange | None:
        if self.bfd is None:
            return None
        if self.bfd.state is BfdState.UP:
            self._bfd_was_up = True
        elif self._bfd_was_up and self.state is AdjacencyState.REPORT and self._echo_alive(now_s):
            self._begin_grace(now_s)
        elif self._bfd_was_up:
            return self.reset(f"bfd {self.bfd.diag.name.lower()}", now_s)
        return None

    def mtu_ack(self, probe_id: bytes, size_bytes: int) -> AdjacencyChange | None:
        """Take an acknowledgement of an MTU probe."""
        if not self._probe_count or probe_id != self._probe_id:
            return None
        self._stir()
        self.mtu_tested_bytes = size_bytes
        self.narrow, self.carried = False, True
        self._probe_count, self._next_probe_s = 0, None
        self._hellos_to_probe = self._prng.randrange(*MTU_PROBE_HELLOS)
        before, self.state = self.state, AdjacencyState.REPORT
        return self._change(before, "mtu tested")

    def carrier_change(self, *, up: bool, now_s: float) -> AdjacencyChange | None:
        """Take a change of carrier."""
        self._stir()
        self.carrier = up
        self._next_hello_s = now_s
        return None if up else self.reset("carrier lost", now_s)

    def reset(self, reason: str, now_s: float) -> AdjacencyChange | None:
        """Forget the neighbour."""
        self._stir()
        before = self.state
        was = self.neighbour
        self.state = AdjacencyState.DOWN
        self.neighbour, self.neighbour_mac, self._neighbour_circuit = None, b"", 0
        self.neighbour_nickname = NICKNAME_UNKNOWN
        self._three_way = ThreeWayState.DOWN
        self._next_hello_s = now_s
        self._stop_tests()
        change = self._change(before, reason)
        if change is None:
            return None
        return AdjacencyChange(change.port, change.before, change.after, was, reason)

    def _stop_tests(self) -> None:
        self.bfd = None
        self._bfd_was_up = False
        self._echo = None
        self._grace_until_s = None
        self._probe_count, self._next_probe_s = 0, None
        self.mtu_tested_bytes = None
        self.narrow = self._narrow_told = False

    def _change(self, before: AdjacencyState, reason: str) -> AdjacencyChange | None:
        if before is self.state:
            return None
        return AdjacencyChange(self.trunk.port, before, self.state, self.neighbour, reason)

    # ---- time ----

    def _stir(self) -> None:
        """Something happened: what is due is worked out anew."""
        self._rest_until_s = self._due_s = float("-inf")

    def at_rest(self, now_s: float) -> bool:
        """Tell whether only echoes may be due: nineteen of twenty wake-ups end here."""
        if self._rest_until_s == float("-inf"):
            self._settle()
        return now_s < self._rest_until_s

    def _settle(self) -> None:
        """Work out when something but echoes must be done, and when it may be, if we are awake."""
        must, may = [], []
        if self.carrier:
            must.append(self._next_hello_s)
            may.append(self._next_hello_s - self._hello_early_s)
        if self.neighbour is not None:
            must.append(self._hold_until_s)
        if self.bfd is not None:
            must.append(self.bfd.next_deadline_s())
            may.append(self.bfd.early_deadline_s())
        if self._next_probe_s is not None:
            must.append(self._next_probe_s)
        self._due_s = min(must, default=float("inf"))
        self._rest_until_s = min(self._due_s, *may) if may else self._due_s

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        if not self.carrier:
            return float("inf")
        if self._rest_until_s == float("-inf"):
            self._settle()
        if self._echo is None:
            return self._due_s
        return min(self._due_s, self._echo.next_deadline_s())

    def expire(self, now_s: float) -> tuple[list[BfdPacket], AdjacencyChange | None]:
        """Let time pass for echoes, BFD and the holding timer."""
        packets: list[BfdPacket] = []
        if self._echo is not None and self._echo.silent(now_s):
            why = "restarting, and its plane fell silent" if self.restarting else "echoes lost"
            return packets, self.reset(why, now_s)
        if self.at_rest(now_s):
            return packets, None
        self._stir()
        if self.bfd is not None:
            packets = self.bfd.tick(now_s)
            change = self._follow_bfd(now_s)
            if change is not None:
                return packets, change
        if self.neighbour is not None and now_s >= self._hold_until_s:
            may_wait = self.state is AdjacencyState.REPORT and not self.restarting
            if may_wait and self._echo_alive(now_s):
                self._begin_grace(now_s)
                return packets, None
            return packets, self.reset("holding time over", now_s)
        if self.carried and self.mtu_failed and now_s >= (self._next_probe_s or 0.0):
            self._become_narrow()
            self._next_probe_s = None
            before, self.state = self.state, AdjacencyState.REPORT
            return packets, self._change(before, "narrow, as before")
        return packets, None

    @property
    def _hello_early_s(self) -> float:
        return HELLO_EARLY_S if self.state is AdjacencyState.REPORT else 0.0

    def hello_due(self, now_s: float) -> bool:
        """Tell whether a Hello is to be sent now, and count it as sent."""
        if not self.carrier or now_s < self._next_hello_s - self._hello_early_s:
            return False
        self._stir()
        steady = self.state is AdjacencyState.REPORT and not self.restarting
        if steady and self.trunk.test_mtu:
            self._hellos_to_probe -= 1
            in_doubt = self._probe_count > 0
            if (in_doubt or self._hellos_to_probe <= 0) and now_s - self._probed_s >= MTU_SPACE_S:
                self._next_probe_s = now_s
            steady = self.narrow or not in_doubt
        interval_s = HELLO_STEADY_S if steady else HELLO_INTERVAL_S
        self._next_hello_s = now_s + interval_s * self._prng.uniform(0.8, 1.0)
        return True

    def echo_due(self, now_s: float) -> bytes | None:
        """Return what an echo to be sent now holds."""
        return None if self._echo is None else self._echo.due(now_s)

    def probe_due(self, now_s: float) -> bytes | None:
        """Return the id of an MTU probe to be sent now."""
        if self._next_probe_s is None or now_s < self._next_probe_s:
            return None
        self._stir()
        if not self._probe_count:
            self._probe_id = self._prng.randbytes(6)  # an answer to any of a row will do
        self._probe_count += 1
        self._probed_s, self._next_probe_s = now_s, None
        if self.state is AdjacencyState.TWO_WAY:
            failed = self._probe_count % MTU_PROBE_TRIES_MAX == 0
            self._next_probe_s = now_s + (MTU_RETRY_S if failed else MTU_PROBE_INTERVAL_S)
        return self._probe_id

    @property
    def mtu_failed(self) -> bool:
        """Tell whether all probes so far went unanswered, before the adjacency stood."""
        is_two_way = self.state is AdjacencyState.TWO_WAY
        return is_two_way and self._probe_count >= MTU_PROBE_TRIES_MAX

    # ---- what we say ----

    def hello_pdu(self, nickname: Nickname) -> Hello:
        """Return the Hello that tells our state."""
        heard = self.neighbour is not None
        return Hello(
            source=self._system_id,
            holding_s=HOLDING_S,
            circuit_id=self.trunk.port & 0xFF,
            tlvs=(
                AreaAddresses(),
                ProtocolsSupported(),
                ThreeWay(
                    self._three_way,
                    self.trunk.port,
                    self.neighbour,
                    self._neighbour_circuit if heard else None,
                ),
                PortCapability((SpecialVlans(self.trunk.port, nickname), PortTrillVersion())),
            ),
        )
