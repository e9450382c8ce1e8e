"""The RBridge machine: everything of TRILL's control plane behind one door.

`handle(event, now_s)` and `tick(now_s)` return effects; `next_deadline_s()` says when to tick.
Inside: one `Circuit` per trunk, the `Lsdb`, the `NicknameChooser`, and `compute_routes`.

Order of what happens after a loss of adjacency: our LSP is originated and handed to all other
trunks in the same step, routes are computed `ROUTE_DELAY_S` later, so that the LSP of the
other end of the same link, a moment later, is part of the same run. When runs come fast they
are spaced out (RFC 8405's idea, with two steps). The plane itself goes by other hops, or by
backups, from the moment that the lost neighbour is taken from it; backups are searched for
(`reroute`) when routes have been quiet for `BACKUP_DELAY_S`, a neighbour at a time.

Invariant: what was applied to the forwarding plane is `_applied` (`applied_table`), and all that
changes it goes through there.

Left out, and refused where it could be met by accident: LAN Hellos and appointed forwarders
(a Hello of type 15 is malformed here), ESADI, several topologies, more than one tree.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from nuage.network.applied_table import AppliedTable
from nuage.network.bfd import BfdPacket, decode_bfd, encode_bfd
from nuage.network.circuit import METRIC_MAX, AdjacencyChange, AdjacencyState, Circuit
from nuage.network.fabric_event import (
    ApplyForwarding,
    CarrierChanged,
    EchoReturned,
    FabricEffect,
    FabricInput,
    FabricLog,
    FabricNews,
    FabricView,
    FrameReceived,
    KeysChanged,
    LabelsChanged,
    Leaving,
    MaintenanceChanged,
    RememberNickname,
    SendEcho,
    SendFrame,
    TraceAnswered,
    TraceAsked,
    TrunkAdded,
    TrunkRemoved,
)
from nuage.network.fabric_trace import (
    ANSWER,
    CHANNEL_TRACE,
    PROBE,
    TRACE_HOPS_MAX,
    PathHop,
    TraceMessage,
    decode_trace,
    path_to,
    trace_frame,
)
from nuage.network.fabric_view import hostname_of, view_of
from nuage.network.forwarding import (
    AdjacencyEntry,
    Entry,
    FibEntry,
    ForwardingDelta,
    Label,
    Nickname,
    PortEntry,
    PortNumber,
    PortRole,
    table,
)
from nuage.network.guest_frame import flow_hash
from nuage.network.isis_auth import Keyring, encode_padded, encode_signed, verify
from nuage.network.isis_pdu import (
    HELLO,
    Csnp,
    Hello,
    Lsp,
    MtuPdu,
    Psnp,
    isis_frame,
    kind_of,
    read_pdu,
    whole_pdu,
)
from nuage.network.isis_tlv import Reach, SystemId
from nuage.network.lsdb import Lsdb
from nuage.network.lsp_content import fragments_of, own_tlvs
from nuage.network.nickname import NicknameChooser, NicknameWish, owners
from nuage.network.rate_limit import Hush
from nuage.network.read_rates import READ_NAMES, ReadRates
from nuage.network.reroute import NODES_MAX, BackupSearch
from nuage.network.routes import LocalAdjacency, Routes, compute_routes
from nuage.network.topology import NodeFacts, facts_of
from nuage.network.trill_frame import (
    ALL_ISIS_RBRIDGES,
    CHANNEL_BFD,
    CHANNEL_ECHO,
    CHANNEL_VLAN,
    ETHERTYPE_CHANNEL,
    ETHERTYPE_L2_ISIS,
    ETHERTYPE_TRILL,
    HOP_COUNT_MAX,
    ChannelMessage,
    TrillFrame,
    decode_channel,
    decode_trill,
    encode_trill,
    one_hop_channel_frame,
)
from nuage.network.wire import MalformedFrame

ROUTE_DELAY_S: Final = 0.002
ROUTE_DELAYS: Final = ((6, ROUTE_DELAY_S), (15, 0.05))  # runs in the last second -> delay
ROUTE_DELAY_MAX_S: Final = 0.2
BACKUP_DELAY_S: Final = 0.25  # routes that still change are not worth a search
BACKUP_STEP_S: Final = 0.002  # between neighbours: others have their turn
LSP_RUNS_MAX: Final = 10  # own LSPs a second; beyond that they wait
LSP_DELAY_S: Final = 0.2
GOOD_NEWS_S: Final = 0.03  # a new adjacency is told a little later: often more come with it
# A neighbour that does not come back must not freeze us, nor one that comes back and says nothing;
# where all daemons of a busy machine start one after the other, the last needs a while.
RESTART_WAIT_S: Final = 30.0
LOG_INTERVAL_S: Final = 30.0
# What passes any trunk that is up: ISO 10589's least, far below what IP asks of a path. A narrow
# trunk carries Hellos and no probe; how much it carries is not known.
PDU_BYTES_NARROW: Final = 512
PDU_BYTES_MAX: Final = 1390  # what a trunk carries inside WireGuard and VXLAN over 1500 bytes


@dataclass(frozen=True, slots=True)
class RBridgeConfig:
    """Who this RBridge is. `system_id` is six bytes, unique in the federation, kept for life."""

    system_id: SystemId
    hostname: str
    nickname: NicknameWish = field(default_factory=NicknameWish)
    ring: Keyring = field(default_factory=Keyring)
    pdu_bytes_max: int = PDU_BYTES_MAX


class RBridge:
    """One RBridge's control plane."""

    def __init__(
        self, config: RBridgeConfig, prng: Random, now_s: float, known: Iterable[Entry] = ()
    ) -> None:
        """Begin anew, or with `known` (`ForwardingPlane.entries`) go on where a life ended."""
        self._config = config
        self._ring = config.ring
        self._prng = prng
        self._circuits: dict[PortNumber, Circuit] = {}
        self._rates: dict[PortNumber, ReadRates] = {}
        self._lsdb = Lsdb(
            config.system_id, config.ring, pdu_bytes_max=config.pdu_bytes_max, now_s=now_s
        )
        self._chooser = NicknameChooser(config.nickname, config.system_id, prng, now_s)
        self._nodes: dict[SystemId, NodeFacts] = {}
        self._labels: frozenset[Label] = frozenset()
        self._maintenance = False
        self._leaving = False
        self._applied = AppliedTable(known)
        self._awaited = {e.port for e in self.table if isinstance(e, AdjacencyEntry)}
        self._restart_until_s = now_s + RESTART_WAIT_S if self._awaited else None
        self._hold_until_s: float | None = None
        self._lsdb.restarting = bool(self._awaited)
        self._routes: Routes | None = None
        self._routes_at_s: float | None = now_s
        self._route_runs: deque[float] = deque(maxlen=16)
        self._search: BackupSearch | None = None
        self._search_at_s = float("inf")
        self._lsp_at_s: float | None = now_s
        self._lsp_runs: deque[float] = deque(maxlen=LSP_RUNS_MAX)
        self._echo_heads: dict[tuple[PortNumber, bytes, Nickname], bytes] = {}
        self._hush = Hush(LOG_INTERVAL_S)
        self._effects: list[FabricEffect] = []
        self.counters: Counter[str] = Counter()

    @property
    def nickname(self) -> Nickname:
        """Return the nickname held, 0 when none yet."""
        return self._chooser.nickname

    @property
    def routes(self) -> Routes | None:
        """Return the last routes computed."""
        return self._routes

    @property
    def lsdb(self) -> Lsdb:
        """Return the link-state database, to look at."""
        return self._lsdb

    @property
    def table(self) -> Sequence[Entry]:
        """Return all entries applied so far: what a fresh plane must be given."""
        return tuple(self._applied.entries.values())

    @property
    def restarting(self) -> bool:
        """Tell whether the plane still runs on what the last life left."""
        return self._restart_until_s is not None or self._hold_until_s is not None

    def nicknames(self) -> dict[SystemId, Nickname]:
        """Return the nickname that each RBridge of the campus rightly holds."""
        return {system_id: nickname for nickname, (_, system_id) in owners(self._nodes).items()}

    # ---- the door ----

    def handle(self, event: FabricInput, now_s: float) -> tuple[FabricEffect, ...]:
        """Take one event; return what is to be done, in order."""
        return self.handle_all((event,), now_s)

    def handle_all(self, events: Iterable[FabricInput], now_s: float) -> tuple[FabricEffect, ...]:
        """Take events that came by `now_s`, and only then let time pass.

        After a stall of ours that is the difference between frames that waited and silence.
        """
        for event in events:
            self._take(event, now_s)
        return self.tick(now_s)

    def _take(self, event: FabricInput, now_s: float) -> None:
        match event:
            case FrameReceived():
                self._frame(event.port, event.frame, now_s)
            case EchoReturned():
                if event.port in self._circuits:
                    self._circuits[event.port].echo(event.content, event.at_s)
            case TrunkAdded():
                self._remove_trunk(event.trunk.port, now_s)
                trunk = event.trunk
                circuit = Circuit(trunk, self._config.system_id, self._prng, now_s)
                circuit.carried = trunk.port in self._awaited
                self._circuits[trunk.port] = circuit
                self._rates[trunk.port] = ReadRates(now_s)
                self._routes_at_s = now_s  # the plane must know the port before its first frame
            case TrunkRemoved():
                self._remove_trunk(event.port, now_s)
            case CarrierChanged():
                circuit_or_none = self._circuits.get(event.port)
                if circuit_or_none is not None:
                    change = circuit_or_none.carrier_change(up=event.up, now_s=now_s)
                    self._adjacency(change, now_s)
            case LabelsChanged():
                self._labels = event.labels
                self._lsp_due(now_s)
            case KeysChanged():
                self._ring = event.ring
                self._lsdb.use(event.ring, now_s)
            case MaintenanceChanged():
                self._maintenance = event.maintenance
                self._lsp_due(now_s)
            case TraceAsked():
                self._trace(event)
            case Leaving():
                self._leaving = True
                self._lsdb.withdraw(now_s)

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        deadlines = [self._lsdb.next_deadline_s(), self._chooser.next_deadline_s()]
        deadlines.extend(circuit.next_deadline_s() for circuit in self._circuits.values())
        if self._routes_at_s is not None:
            deadlines.append(self._routes_at_s)
        if self._lsp_at_s is not None:
            deadlines.append(self._lsp_at_s)
        deadlines.extend((self._search_at_s, self._applied.next_deadline_s()))
        if self._restart_until_s is not None:
            # Nothing is said or applied before: LSP and routes wait for this.
            return min((self._restart_until_s, self._lsdb.next_deadline_s(),
                        *(c.next_deadline_s() for c in self._circuits.values())))  # fmt: skip
        return min(deadlines)

    def tick(self, now_s: float) -> tuple[FabricEffect, ...]:
        """Let time pass; return what is to be done, in order."""
        for circuit in self._circuits.values():
            packets, change = circuit.expire(now_s)
            if packets:
                self._send_bfd(circuit, packets)
            if change is not None:
                self._adjacency(change, now_s)
            if circuit.narrow_is_news():
                self._width(circuit, now_s)
        self._end_restart(now_s)
        if self._lsp_at_s is not None and now_s >= self._lsp_at_s:
            self._originate(now_s)
        for output in self._lsdb.tick(now_s):
            self._send_pdu(PortNumber(output.circuit), output.raw)
        for circuit in self._circuits.values():
            self._hello_and_probe(circuit, now_s)
        self._after_database(now_s)
        if self._routes_at_s is not None and now_s >= self._routes_at_s:
            self._compute(now_s)
        if now_s >= self._applied.next_deadline_s():
            self._apply(self._applied.tick(now_s))
        if now_s >= self._search_at_s:
            self._search_backups(now_s)
        effects, self._effects = tuple(self._effects), []
        return effects

    # ---- frames ----

    def _frame(self, port: PortNumber, frame: bytes, now_s: float) -> None:
        circuit = self._circuits.get(port)
        if circuit is None or len(frame) < 14:
            return
        dmac, smac = frame[:6], frame[6:12]
        if dmac not in (ALL_ISIS_RBRIDGES, circuit.trunk.mac):
            return
        try:
            ethertype = int.from_bytes(frame[12:14], "big")
            if ethertype == ETHERTYPE_L2_ISIS:
                self._isis(circuit, smac, frame[14:], now_s)
            elif ethertype == ETHERTYPE_TRILL:
                self._channel(circuit, frame, now_s)
        except MalformedFrame as error:
            self._malformed(circuit, error, now_s)

    def _may_read(self, port: PortNumber, kind: int, now_s: float) -> bool:
        if self._rates[port].may_read(kind, now_s):
            return True
        self.counters["control_rate"] += 1
        what = READ_NAMES[kind]
        self._log(FabricNews.NEIGHBOUR_FLOODING, port, f"{what} over the rate of reading", now_s)
        return False

    def _malformed(self, circuit: Circuit, error: MalformedFrame, now_s: float) -> None:
        self.counters[error.cause] += 1
        news = FabricNews.MALFORMED
        if error.cause.startswith("auth_"):
            news = FabricNews.AUTHENTICATION_FAILED
        elif error.cause == "hello_second":
            news = FabricNews.SECOND_NEIGHBOUR
        self._log(news, circuit.trunk.port, error.what, now_s)

    def _isis(self, circuit: Circuit, smac: bytes, data: bytes, now_s: float) -> None:
        raw, port = whole_pdu(data), circuit.trunk.port
        verify(raw, self._ring)
        kind = kind_of(raw)
        if kind != HELLO and smac != circuit.neighbour_mac:
            raise MalformedFrame("not_neighbour")
        if not self._may_read(port, kind, now_s):
            return
        pdu = read_pdu(raw)
        if isinstance(pdu, Hello):
            self._adjacency(circuit.hello(pdu, smac, now_s), now_s)
            return
        match pdu:
            case Lsp():
                if self._lsdb.receive_lsp(port, pdu, raw, now_s):
                    self._schedule_routes(now_s)
            case Csnp():
                self._lsdb.receive_csnp(port, pdu, now_s)
            case Psnp():
                self._lsdb.receive_psnp(port, pdu, now_s)
            case MtuPdu():
                self._mtu(circuit, pdu, raw, now_s)

    def _mtu(self, circuit: Circuit, pdu: MtuPdu, raw: bytes, now_s: float) -> None:
        if pdu.is_ack:
            if pdu.probe_source == self._config.system_id:
                self._adjacency(circuit.mtu_ack(pdu.probe_id, len(raw)), now_s)
            return
        ack = replace(pdu, is_ack=True, ack_source=self._config.system_id, tlvs=())
        self._send_pdu(
            circuit.trunk.port, encode_padded(ack, self._ring, len(raw)), dmac=circuit.neighbour_mac
        )

    def _channel(self, circuit: Circuit, data: bytes, now_s: float) -> None:
        if data[6:12] != circuit.neighbour_mac:
            return
        kind = CHANNEL_BFD if circuit.is_of_session(data) else ETHERTYPE_CHANNEL
        if not self._may_read(circuit.trunk.port, kind, now_s):
            return
        frame = decode_trill(data)
        if frame.ethertype != ETHERTYPE_CHANNEL:
            return
        message = decode_channel(frame.payload)
        if message.protocol == CHANNEL_ECHO:
            circuit.echo(message.payload, now_s)
            return
        if message.protocol == CHANNEL_TRACE and message.multi_hop:
            self._traced(circuit.trunk.port, frame, decode_trace(message.payload))
            return
        if message.protocol != CHANNEL_BFD or message.multi_hop:
            self.counters["channel_protocol"] += 1
            return
        answers, change = circuit.bfd_packet(decode_bfd(message.payload), now_s)
        self._send_bfd(circuit, answers)
        self._adjacency(change, now_s)

    # ---- traces ----

    def _trace(self, event: TraceAsked) -> None:
        for hop in range(TRACE_HOPS_MAX):
            probe = TraceMessage(PROBE, hop, event.trace_id)
            self._send_traced(probe, hop, event.target, event.seed)

    def _traced(self, port: PortNumber, frame: TrillFrame, message: TraceMessage) -> None:
        if message.kind == PROBE:
            answer = TraceMessage(ANSWER, message.hop, message.trace_id, self.nickname, port)
            self._send_traced(answer, HOP_COUNT_MAX, frame.ingress, 0)
            return
        known = owners(self._nodes).get(message.nickname)
        hostname = self._hostname(known[1]) if known else ""
        self._effects.append(
            TraceAnswered(message.trace_id, message.hop, message.nickname, hostname, message.port)
        )

    def _send_traced(
        self, message: TraceMessage, hop_count: int, egress: Nickname, seed: int
    ) -> None:
        entry = self._applied.path_to(egress)
        if entry is None or not self.nickname:
            return
        smac = bytes((2,)) + (seed & (1 << 40) - 1).to_bytes(5, "big")
        frame = trace_frame(
            message, hop_count=hop_count, egress=egress, ingress=self.nickname, smac=smac
        )
        mark = flow_hash(frame.native(), CHANNEL_VLAN)
        hop = entry.next_hops[mark % len(entry.next_hops)]
        frame = replace(frame, outer_dmac=hop.dmac, outer_smac=hop.smac)
        self._effects.append(SendFrame(hop.port, encode_trill(frame)))

    def path_to(self, target: Nickname) -> tuple[PathHop, ...]:
        """Return the way to a nickname as the database has it."""
        return path_to(self._config.system_id, target, self._nodes)

    # ---- adjacencies ----

    def _remove_trunk(self, port: PortNumber, now_s: float) -> None:
        circuit = self._circuits.get(port)
        if circuit is not None:
            self._adjacency(circuit.reset("trunk removed", now_s), now_s)
            del self._circuits[port]
            del self._rates[port]
            self._schedule_routes(now_s)

    def _adjacency(self, change: AdjacencyChange | None, now_s: float) -> None:
        if change is None:
            return
        who = self._hostname(change.neighbour) or "nobody"
        if change.after is change.before:
            self._lsdb.circuit_up(change.port, now_s)
            self._say(FabricNews.NEIGHBOUR_RESTARTED, change.port, who)
            return
        if change.after is AdjacencyState.REPORT:
            self._lsdb.circuit_up(change.port, now_s)
            self._say(FabricNews.ADJACENCY_UP, change.port, f"{who}: {change.reason}")
        elif change.before is AdjacencyState.REPORT:
            self._lsdb.circuit_down(change.port)
            self._say(FabricNews.ADJACENCY_DOWN, change.port, f"{who}: {change.reason}")
        else:
            return
        good_news = change.after is AdjacencyState.REPORT
        self._lsp_due(now_s, wait_s=GOOD_NEWS_S if good_news else 0.0)
        self._schedule_routes(now_s)
        if change.before is AdjacencyState.REPORT and self._routes_at_s is not None:
            # What we lost ourselves does not wait for the spacing: our frames fall into it now.
            self._hold_until_s = None
            self._routes_at_s = min(self._routes_at_s, now_s + ROUTE_DELAY_S)
            self._prune(change.port)

    def _width(self, circuit: Circuit, now_s: float) -> None:
        """Say that a trunk carries no more what it carried, or does again; routes follow."""
        news = FabricNews.MTU_TOO_SMALL if circuit.too_narrow else FabricNews.MTU_ENOUGH
        answer = "no answer" if circuit.too_narrow else "an answer"
        what = f"{answer} to probes of {self._config.pdu_bytes_max} bytes"
        who = self._hostname(circuit.neighbour)
        self._log(news, circuit.trunk.port, f"{who}: {what}", now_s)
        self._lsp_due(now_s)
        self._schedule_routes(now_s)

    def _prune(self, port: PortNumber) -> None:
        """Take a lost neighbour from the plane before any route is computed."""
        if self._restart_until_s is None:
            self._apply(self._applied.without_neighbour(port))

    def _hello_and_probe(self, circuit: Circuit, now_s: float) -> None:
        port = circuit.trunk.port
        echo = circuit.echo_due(now_s)
        if echo is not None:
            self._effects.append(SendEcho(port, self._echo_head(circuit), echo))
        if circuit.at_rest(now_s):
            return
        if circuit.hello_due(now_s):
            hello = circuit.hello_pdu(self.nickname)
            self._send_pdu(port, encode_signed(hello, self._ring))
        probe_id = circuit.probe_due(now_s)
        if probe_id is not None:
            probe = MtuPdu(
                is_ack=False,
                probe_id=probe_id,
                probe_source=self._config.system_id,
                ack_source=bytes(6),
                tlvs=(),
            )
            self._send_pdu(port, encode_padded(probe, self._ring, self._config.pdu_bytes_max))

    def _send_pdu(self, port: PortNumber, raw: bytes, *, dmac: bytes = ALL_ISIS_RBRIDGES) -> None:
        circuit = self._circuits.get(port)
        if circuit is not None and circuit.carrier:
            frame = isis_frame(raw, smac=circuit.trunk.mac, dmac=dmac)
            self._effects.append(SendFrame(port, frame))

    def _send_bfd(self, circuit: Circuit, packets: Sequence[BfdPacket]) -> None:
        if not circuit.neighbour_mac:
            return
        for packet in packets:
            frame = self._channel_frame(circuit, ChannelMessage(CHANNEL_BFD, encode_bfd(packet)))
            self._effects.append(SendFrame(circuit.trunk.port, frame))

    def _echo_head(self, circuit: Circuit) -> bytes:
        """Return what stands before an echo's content: kept, echoes are frequent."""
        key = (circuit.trunk.port, circuit.neighbour_mac, self.nickname)
        if key not in self._echo_heads:
            self._echo_heads = {k: v for k, v in self._echo_heads.items() if k[0] != key[0]}
            empty = ChannelMessage(CHANNEL_ECHO, b"")
            self._echo_heads[key] = self._channel_frame(circuit, empty)
        return self._echo_heads[key]

    def _channel_frame(self, circuit: Circuit, message: ChannelMessage) -> bytes:
        return one_hop_channel_frame(
            message,
            dmac=circuit.neighbour_mac,
            smac=circuit.trunk.mac,
            ingress=self.nickname,
        )

    # ---- database and routes ----

    def _lsp_due(self, now_s: float, *, wait_s: float = 0.0) -> None:
        full = len(self._lsp_runs) == LSP_RUNS_MAX and now_s - self._lsp_runs[0] < 1.0
        due_s = now_s + max(LSP_DELAY_S if full else 0.0, wait_s)
        self._lsp_at_s = due_s if self._lsp_at_s is None else min(self._lsp_at_s, due_s)

    def _end_restart(self, now_s: float) -> None:
        """End the wait after a restart: all neighbours are back and told all, or time is up."""
        if self._restart_until_s is None:
            return
        back = {port for port, c in self._circuits.items() if c.state is AdjacencyState.REPORT}
        # The wait holds until the database is there: CSNP compared, nothing still asked for.
        whole = self._awaited <= back and self._lsdb.synchronised and not self._lsdb.asking
        if whole or now_s >= self._restart_until_s:
            self._restart_until_s = None
            self._hold_until_s = now_s + RESTART_WAIT_S
            self._lsdb.restarting = False
            self._lsp_at_s = self._routes_at_s = now_s

    def _originate(self, now_s: float) -> None:
        if self._restart_until_s is not None:
            return
        self._lsp_at_s = None
        if self._leaving:
            return
        self._lsp_runs.append(now_s)
        reaches = [
            Reach(
                circuit.neighbour + b"\0",
                METRIC_MAX if self._maintenance else circuit.metric,
                circuit.mtu_tested_bytes,
                (circuit.trunk.port, circuit.neighbour_port),
            )
            for circuit in self._circuits.values()
            if circuit.state is AdjacencyState.REPORT and circuit.neighbour is not None
        ]
        self._lsdb.pdu_bytes_max = self._pdu_bytes()
        tlvs = own_tlvs(
            hostname=self._config.hostname,
            record=self._chooser.record,
            reaches=sorted(reaches, key=lambda reach: (reach.neighbour, reach.link)),
            labels=self._labels,
            takes_bytes=self._takes_bytes(),
        )
        fragments, complete = fragments_of(tlvs, self._lsdb.pdu_bytes_max)
        if not complete:
            self._log(
                FabricNews.LSP_OVERFLOW, PortNumber(0), "more to say than 256 fragments", now_s
            )
        self._lsdb.originate(fragments, now_s)
        self._schedule_routes(now_s)

    def _takes_bytes(self) -> int:
        """Return how long PDUs may be that each trunk of ours carries."""
        is_narrow = any(c.narrow for c in self._circuits.values())
        return min(self._config.pdu_bytes_max, PDU_BYTES_NARROW if is_narrow else 0xFFFF)

    def _pdu_bytes(self) -> int:
        """Return how long PDUs of ours may be: every trunk of the campus is to carry our LSPs."""
        said = (n.takes_bytes for n in self._nodes.values() if n.takes_bytes is not None)
        return min(self._takes_bytes(), max(PDU_BYTES_NARROW, min(said, default=0xFFFF)))

    def _after_database(self, now_s: float) -> None:
        """Take in what changed in the database; keep or change the nickname."""
        for circuit, what in sorted(self._lsdb.refused.items()):
            self._log(FabricNews.NEIGHBOUR_FLOODING, PortNumber(circuit), what, now_s)
        for circuit in sorted(self._lsdb.disputed):
            self._log(
                FabricNews.NAME_DISPUTED, PortNumber(circuit), "LSPs newer than its own", now_s
            )
        self._lsdb.refused.clear()
        self._lsdb.disputed.clear()
        if not self._lsdb.changed and now_s < self._chooser.next_deadline_s():
            return
        if self._lsdb.changed:
            self._schedule_routes(now_s)
        for system_id in self._lsdb.changed:
            facts = facts_of(system_id, self._lsdb.records)
            if facts is None:
                self._nodes.pop(system_id, None)
            else:
                self._nodes[system_id] = facts
        self._lsdb.changed.clear()
        if self._pdu_bytes() != self._lsdb.pdu_bytes_max:
            self._lsp_due(now_s)
        others = {i: n for i, n in self._nodes.items() if i != self._config.system_id}
        why = self._chooser.review(others, synchronised=self._lsdb.synchronised, now_s=now_s)
        if why:
            self._effects.append(RememberNickname(self.nickname))
            self._say(FabricNews.NICKNAME_CHANGED, PortNumber(0), f"{self.nickname:#06x}: {why}")
            self._originate(now_s)
            self._after_database(now_s)
            for output in self._lsdb.tick(now_s):
                self._send_pdu(PortNumber(output.circuit), output.raw)

    def _schedule_routes(self, now_s: float) -> None:
        recent = sum(1 for run_s in self._route_runs if now_s - run_s < 1.0)
        delay_s = next((d for runs, d in ROUTE_DELAYS if recent < runs), ROUTE_DELAY_MAX_S)
        due_s = now_s + delay_s
        self._routes_at_s = due_s if self._routes_at_s is None else min(self._routes_at_s, due_s)

    def _compute(self, now_s: float) -> None:
        if self._restart_until_s is not None:
            return
        self._routes_at_s = None
        self._route_runs.append(now_s)
        searches = len(self._nodes) <= NODES_MAX
        self._search, self._search_at_s = None, now_s + BACKUP_DELAY_S if searches else float("inf")
        self._routes = compute_routes(
            self._config.system_id, self.nickname, self._nodes, self._adjacencies()
        )
        if self._holds(self._routes.reachable, now_s):
            return
        trunks = [
            PortEntry(c.trunk.port, PortRole.TRUNK, c.trunk.mac, mtu_bytes=c.trunk.mtu_bytes)
            for c in self._circuits.values()
        ]
        # Until the search has found the new ones, the backups of paths that did not change serve.
        entries: Iterable[Entry] = self._routes.entries
        if searches:
            entries = map(self._with_old_backups, entries)
        if self._apply(self._applied.become(table((*trunks, *entries)), now_s)):
            self.counters["routes_computed"] += 1

    def _holds(self, reachable: frozenset[SystemId], now_s: float) -> bool:
        """Tell whether what an older life left in the plane is still better than these routes.

        Where many come back at once, as after an upgrade, those further away have said nothing
        yet: whoever is named as a neighbour and not heard of is waited for.
        """
        if self._hold_until_s is None:
            return False
        named = {a.neighbour for a in self._adjacencies()}.union(
            *(self._nodes[each].neighbours for each in reachable)
        )
        if now_s < self._hold_until_s and not named <= self._nodes.keys():
            self._routes_at_s = self._hold_until_s
            return True
        self._hold_until_s = None
        return False

    def _apply(self, delta: ForwardingDelta) -> bool:
        if delta:
            self._effects.append(ApplyForwarding(delta))
        return bool(delta)

    def _adjacencies(self) -> list[LocalAdjacency]:
        return [
            LocalAdjacency(
                port=c.trunk.port,
                mac=c.trunk.mac,
                neighbour=c.neighbour,
                neighbour_mac=c.neighbour_mac,
                neighbour_port=c.neighbour_port,
                metric=c.metric,
            )
            for c in self._circuits.values()
            if c.state is AdjacencyState.REPORT and c.neighbour is not None
        ]

    # ---- backups ----

    def _with_old_backups(self, entry: Entry) -> Entry:
        if not isinstance(entry, FibEntry):
            return entry
        old = self._applied.path_to(entry.nickname)
        if old is None or old.next_hops != entry.next_hops:
            return entry
        return replace(entry, backups=old.backups)

    def _search_backups(self, now_s: float) -> None:
        """Look from one more neighbour; from the last, give the plane what was found."""
        if self._search is None:
            held = {name: system_id for name, (_, system_id) in owners(self._nodes).items()}
            me, adjacencies = self._config.system_id, self._adjacencies()
            self._search = BackupSearch(me, self._nodes, adjacencies, held)
        if self._search.step():
            self._search_at_s = now_s + BACKUP_STEP_S
            return
        found = self._search.with_backups(self._applied.paths())
        self._search, self._search_at_s = None, float("inf")
        self._apply(self._applied.with_paths(found))

    # ---- telling ----

    def _say(self, news: FabricNews, port: PortNumber, detail: str) -> None:
        self.counters[news.value] += 1
        self._effects.append(FabricLog(news, port, detail))

    def _log(self, news: FabricNews, port: PortNumber, detail: str, now_s: float) -> None:
        """Say what a stranger can cause, but not as often as they can cause it."""
        if self._hush.may_say((news, port), now_s):
            self._say(news, port, detail)

    def view(self) -> FabricView:
        """Return the campus as seen here."""
        return view_of(
            self._config.system_id,
            self.nickname,
            self._nodes,
            self._circuits.values(),
            self._routes,
            lsp_count=len(self._lsdb.records),
            counters=self.counters,
        )

    def _hostname(self, system_id: SystemId | None) -> str:
        return hostname_of(self._nodes, system_id)
