"""The tunnel router of a node (RFC 9300, 9301, 9437): local EIDs out, map-cache in.

Theory of operation. As ETR it registers each EID that is here, again every minute, and
answers requests and probes for it. As ITR it asks the map-server for what the plane missed,
subscribing at the same time, and keeps the answer in the plane's map-cache for its TTL; used
RLOCs are probed. A move has two sides: where the EID arrives it is registered with a higher
map-version; where it was, the map-server's Map-Notify makes the EID a forwarder to its new
place for `STRAY_S`, and everybody who was heard sending to it is solicited (SMR). Subscribers
hear from the map-server itself and need no SMR.

Fault model: replies count only when their nonce was asked for and the record covers the EID;
notifies only when they verify and their nonce rises; SMRs and requests are rate-limited.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import zip_longest
from random import Random
from typing import Final

from nuage.network.forwarding import (
    EidEntry,
    Entry,
    ForwardingDelta,
    MapAction,
    MapCacheEntry,
    PortNumber,
    Rloc,
)
from nuage.network.lisp_event import (
    ApplyLisp,
    DatagramReceived,
    EidArrived,
    EidLeft,
    HeardFrom,
    LispEffect,
    LispLog,
    LispNews,
    MappingMissed,
    MappingTold,
    SendDatagram,
    SurroundingsChanged,
    XtrInput,
)
from nuage.network.lisp_message import (
    LISP_CONTROL_PORT,
    Address,
    Eid,
    Encapsulated,
    LispKey,
    Locator,
    MapNotify,
    MapRecord,
    MapRegister,
    MapReply,
    MapRequest,
    XtrName,
    decode_encapsulated,
    decode_message,
    encode_encapsulated,
    encode_reply,
    encode_request,
    encode_signed,
    host_eid,
    verify_signed,
    with_probed,
)
from nuage.network.map_server import version_is_older
from nuage.network.rate_limit import Hush, Rate, TokenBucket
from nuage.network.wire import MalformedFrame

REGISTER_INTERVAL_S: Final = 60.0
REGISTER_RETRY_S: Final = 0.2  # until the Map-Notify comes; doubled with each try
REGISTER_TRIES_MAX: Final = 6
REQUEST_RETRY_S: Final = 0.2
REQUEST_TRIES_MAX: Final = 4
STRAY_S: Final = 5.0  # how long a moved EID's stragglers are sent on
PROBE_INTERVAL_S: Final = 2.0
PROBE_AGAIN_S: Final = 0.5  # once one was lost
PROBE_LOST_MAX: Final = 2
CACHE_MAX: Final = 16_384
PENDING_MAX: Final = 1024
HEARD_PER_EID_MAX: Final = 256
PEER_RATE: Final = Rate(per_s=100, burst=200)
ASK_RATE: Final = Rate(per_s=100, burst=200)  # Map-Requests for what our own guests look for
KNOWN_S: Final = 60.0  # how long a mapping of the life before serves while nobody confirms it
LOG_INTERVAL_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class XtrConfig:
    """Who this tunnel router is. `nonce_start` must rise from life to life (clock in µs).

    Each of `map_servers` is one server with its addresses: any will do, all of them are tried.
    `lines` are RLOCs of ours besides: what is registered with one of them, we relay. A router
    that `is_proxy` answers probes for any prefix: it takes what goes to no EID at all.
    """

    rloc: Address
    name: XtrName
    map_servers: tuple[tuple[Address, ...], ...]
    key: LispKey
    nonce_start: int
    subscribe: bool = True
    ttl_minutes: int = 10
    lines: frozenset[Address] = frozenset()
    is_proxy: bool = False


@dataclass(slots=True)
class _Local:
    event: EidArrived
    register_at_s: float
    tries: int = 0
    confirmed: bool = False  # by some server, once
    confirmed_by: set[int] = field(default_factory=set)  # which of them took the last register


@dataclass(slots=True)
class _Stray:
    entry: EidEntry
    until_s: float
    version: int


@dataclass(slots=True)
class _Pending:
    eid: Eid
    source: Eid | None
    smr_invoked: bool
    tries: int
    next_s: float


@dataclass(slots=True)
class _Cached:
    record: MapRecord
    expires_s: float


@dataclass(slots=True)
class _Peer:
    """An RLOC that we send to."""

    probe_at_s: float
    nonce: int = 0
    lost: int = 0
    up: bool = True


class Xtr:
    """One node's tunnel router."""

    def __init__(
        self, config: XtrConfig, prng: Random, now_s: float, known: Iterable[Entry] = ()
    ) -> None:
        """Begin; `known` is what the plane holds, which serves until it is asked for anew."""
        self._config = config
        self._key = config.key
        self._around = SurroundingsChanged(config.map_servers)
        self._prng = prng
        self._now_s = now_s
        self._nonce = config.nonce_start
        self._local: dict[Eid, _Local] = {}
        self._strays: dict[Eid, _Stray] = {}
        self._cache: OrderedDict[Eid, _Cached] = OrderedDict()
        self._applied: dict[Eid, MapCacheEntry] = {}
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._heard: dict[Eid, OrderedDict[Address, None]] = {}
        self._peers: dict[Address, _Peer] = {}
        self._notify_nonces: dict[Eid, int] = {}
        self._register_nonces: dict[int, tuple[Eid, ...]] = {}
        self._relayed: dict[Eid, EidEntry] = {}
        self._buckets: dict[Address, TokenBucket] = {}
        self._asking = TokenBucket(ASK_RATE, now_s)
        self._hush = Hush(LOG_INTERVAL_S)
        self._effects: list[LispEffect] = []
        self.counters: Counter[str] = Counter()
        self._take_up(known)

    def _take_up(self, known: Iterable[Entry]) -> None:
        """Go on with the mappings that the plane holds; they are asked for again at once."""
        for entry in known:
            if isinstance(entry, EidEntry) and entry.forward_to:
                self._relayed[Eid(entry.instance_id, entry.prefix)] = entry
            if not isinstance(entry, MapCacheEntry):
                continue
            eid = Eid(entry.instance_id, entry.prefix)
            locators = tuple(
                Locator(ip_address(r.address), r.priority, r.weight) for r in entry.rlocs
            )
            record = MapRecord(eid, locators, action=entry.action)
            self._cache[eid] = _Cached(record, self._now_s + KNOWN_S)
            self._applied[eid] = entry
            if self._config.map_servers:
                self._ask(eid, None, smr_invoked=False)

    # ---- the door ----

    def handle(self, event: XtrInput, now_s: float) -> tuple[LispEffect, ...]:
        """Take one event; return what is to be done, in order."""
        self._now_s = now_s
        match event:
            case DatagramReceived():
                try:
                    self._datagram(event)
                except MalformedFrame as error:
                    self.counters[error.cause] += 1
                    news = LispNews.MALFORMED
                    if error.cause == "lisp_auth":
                        news = LispNews.AUTHENTICATION_FAILED
                    self._log(news, event.source, error.what)
            case EidArrived():
                self._arrived(event)
            case EidLeft():
                self._left(event.eid)
            case MappingMissed():
                self._missed(event)
            case HeardFrom():
                heard = self._heard.setdefault(event.eid, OrderedDict())
                heard[event.rloc] = None
                heard.move_to_end(event.rloc)
                if len(heard) > HEARD_PER_EID_MAX:
                    heard.popitem(last=False)
            case SurroundingsChanged():
                self._surroundings(event)
            case MappingTold():
                self._told(event.record)
        return self.tick(now_s)

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        may_register = bool(self._around.map_servers)
        deadlines = [local.register_at_s for local in self._local.values() if may_register]
        deadlines.extend(stray.until_s for stray in self._strays.values())
        deadlines.extend(pending.next_s for pending in self._pending.values())
        deadlines.extend(cached.expires_s for cached in self._cache.values())
        deadlines.extend(peer.probe_at_s for peer in self._peers.values())
        return min(deadlines, default=float("inf"))

    def tick(self, now_s: float) -> tuple[LispEffect, ...]:
        """Let time pass; return what is to be done, in order."""
        self._now_s = now_s
        self._register_due()
        self._retry_requests()
        for eid, stray in list(self._strays.items()):
            if now_s >= stray.until_s:
                del self._strays[eid]
                self._apply(removed=(stray.entry,))
        for eid, cached in list(self._cache.items()):
            if now_s >= cached.expires_s:
                self._forget(eid)
        self._probe_due()
        effects, self._effects = tuple(self._effects), []
        return effects

    def cached(self) -> tuple[MapRecord, ...]:
        """Return the map-cache."""
        return tuple(cached.record for cached in self._cache.values())

    def local(self) -> dict[Eid, bool]:
        """Return the EIDs that are here, and whether a map-server confirmed each."""
        return {eid: local.confirmed for eid, local in self._local.items()}

    def relayed(self) -> dict[Eid, str]:
        """Return the EIDs that come by our lines, and the RLOC that each is sent on to."""
        return {eid: entry.forward_to for eid, entry in self._relayed.items()}

    def is_up(self, rloc: Address) -> bool:
        """Tell whether an RLOC answers probes, or was not probed yet."""
        return rloc not in self._peers or self._peers[rloc].up

    # ---- what we are told ----

    def _surroundings(self, event: SurroundingsChanged) -> None:
        if event == self._around:
            return
        self._key = event.key or self._key
        before, self._around = self._around, event
        if before.backups != event.backups or not before.map_servers:
            for local in self._local.values():
                local.register_at_s, local.tries = self._now_s, 0
        for cached in list(self._cache.values()):
            self._watch_peers(cached.record)
            self._apply_cached(cached.record)

    def _told(self, record: MapRecord) -> None:
        """The map-server in this process says what is registered: no need to ask it."""
        eid = record.eid
        onward = [x.address for x in record.locators if x.address not in self._mine()]
        if onward and len(onward) < len(record.locators):
            port = PortNumber(0)
            entry = EidEntry(eid.instance_id, eid.prefix, port, bytes(6), str(onward[0]))
            if self._relayed.get(eid) != entry:
                self._relayed[eid] = entry
                self._apply(set=(entry,))
            self._forget(eid)
            return
        relayed = self._relayed.pop(eid, None)
        if onward or record.action is MapAction.NATIVELY_FORWARD:
            self._learn(record)
        else:
            self._forget(eid)
        if relayed is not None and eid not in self._local:
            self._apply(removed=(relayed,))

    def _mine(self) -> frozenset[Address]:
        return self._config.lines | {self._config.rloc}

    # ---- local EIDs ----

    def _arrived(self, event: EidArrived) -> None:
        self._strays.pop(event.eid, None)
        self._local[event.eid] = _Local(event, self._now_s)
        self._forget(event.eid)
        self._apply(set=(self._eid_entry(event),))

    def _eid_entry(self, event: EidArrived, forward_to: str = "") -> EidEntry:
        eid = event.eid
        return EidEntry(eid.instance_id, eid.prefix, event.port, event.mac, forward_to)

    def _left(self, eid: Eid) -> None:
        """Withdraw an EID: registered with a TTL of zero, which only its holder may."""
        local = self._local.pop(eid, None)
        if local is None:
            return
        self._apply(removed=(self._eid_entry(local.event),))
        record = MapRecord(eid, (), ttl_minutes=0, version=local.event.version & 0xFFF)
        self._send_register((record,))

    def _own_record(self, local: _Local) -> MapRecord:
        return MapRecord(
            local.event.eid,
            (Locator(self._config.rloc), *self._around.backups),
            ttl_minutes=self._config.ttl_minutes,
            version=local.event.version & 0xFFF,
        )

    def _register_due(self) -> None:
        if not self._around.map_servers:
            return
        for eid, local in self._local.items():
            if self._now_s < local.register_at_s:
                continue
            if not local.tries:
                local.confirmed_by.clear()
            nonce = self._send_register((self._own_record(local),))
            self._register_nonces[nonce] = (eid,)
            local.tries += 1
            if local.tries > REGISTER_TRIES_MAX:
                if not local.confirmed_by:
                    self._log(LispNews.UNCONFIRMED, self._config.rloc, str(eid.prefix))
                local.tries = 0
                local.register_at_s = self._now_s + REGISTER_INTERVAL_S / 4
            else:
                local.register_at_s = self._now_s + REGISTER_RETRY_S * 2 ** (local.tries - 1)
        while len(self._register_nonces) > PENDING_MAX:
            del self._register_nonces[next(iter(self._register_nonces))]

    def _send_register(self, records: Sequence[MapRecord]) -> int:
        nonce = self._next_nonce()
        message = MapRegister(nonce, tuple(records), sender=self._config.name)
        data = encode_signed(message, self._key)
        for address in self._servers():
            self._send(address, data)
        return nonce

    def _servers(self) -> tuple[Address, ...]:
        """Return the servers' addresses, each server's first before any server's second."""
        rounds = zip_longest(*self._around.map_servers)
        return tuple(address for each in rounds for address in each if address is not None)

    def _next_nonce(self) -> int:
        self._nonce += 1
        return self._nonce & 0xFFFFFFFFFFFFFFFF

    # ---- what comes in ----

    def _datagram(self, event: DatagramReceived) -> None:
        data = event.data
        if data[:1] and data[0] >> 4 == 8:
            inner = decode_encapsulated(data)
            data = inner.message
        message = decode_message(data)
        match message:
            case MapRequest():
                self._request(message, event)
            case MapReply():
                self._reply(message, event.source)
            case MapNotify() if not message.ack:
                self._notify(message, data, event.source)
            case _:
                self.counters["not_for_an_xtr"] += 1

    def _request(self, request: MapRequest, event: DatagramReceived) -> None:
        bucket = self._buckets.get(event.source)
        if bucket is None:
            if len(self._buckets) >= PENDING_MAX:
                self._buckets.clear()
            bucket = self._buckets[event.source] = TokenBucket(PEER_RATE, self._now_s)
        if not bucket.take(self._now_s):
            self.counters["request_rate"] += 1
            self._log(LispNews.FLOODING, event.source, "Map-Requests over the rate")
            return
        if request.smr:
            self._solicited(request)
            return
        asked_at = event.local or self._config.rloc
        record = self._answer(request.eids[0], asked_at)
        if record is None:
            self.counters["request_not_local"] += 1
            if not request.probe:
                return
            # We are reachable, and what the sender believes of this EID is old.
            record = MapRecord(request.eids[0], (), ttl_minutes=1, action=MapAction.DROP)
        if request.probe:
            record = with_probed(record, asked_at)
        reply = MapReply(request.nonce, (record,), probe=request.probe)
        same = event.source in request.itr_rlocs
        port = event.source_port if same else LISP_CONTROL_PORT
        data = encode_reply(reply)
        self._effects.append(SendDatagram(request.itr_rlocs[0], port, data, event.local))

    def _answer(self, eid: Eid, asked_at: Address) -> MapRecord | None:
        """Return what we say of an EID that is here, or that we relay or take as a proxy."""
        local = next((entry for mine, entry in self._local.items() if mine.covers(eid)), None)
        if local is not None:
            return self._own_record(local)
        if eid in self._relayed or self._config.is_proxy:
            return MapRecord(eid, (Locator(asked_at),), ttl_minutes=self._config.ttl_minutes)
        return None

    def _solicited(self, request: MapRequest) -> None:
        """An SMR: the mapping of its source EID changed; ask anew, through the resolver."""
        eid = request.source_eid
        if eid is None:
            return
        cached = next((known for known in self._cache if known.covers(eid)), None)
        if cached is None:
            self.counters["smr_not_cached"] += 1
            return
        self._ask(eid, None, smr_invoked=True)

    def _reply(self, reply: MapReply, source: Address) -> None:
        if reply.probe:
            self._probe_answer(reply, source)
            return
        pending = self._pending.pop(reply.nonce, None)
        if pending is None:
            self.counters["unasked_reply"] += 1
            return
        for record in reply.records:
            if record.eid.covers(pending.eid):
                self._learn(record)

    def _notify(self, notify: MapNotify, data: bytes, source: Address) -> None:
        if not any(source in server for server in self._around.map_servers):
            self.counters["notify_stranger"] += 1
            return
        verify_signed(data, self._key)
        ours = all(
            self._config.rloc in {locator.address for locator in record.locators}
            for record in notify.records
        )
        confirmed = self._register_nonces.get(notify.nonce) if ours else None
        if confirmed is not None:
            self._confirmed(confirmed, source)
            return
        pending = self._pending.pop(notify.nonce, None)
        for record in notify.records:
            if pending is None and notify.nonce <= self._notify_nonces.get(record.eid, -1):
                self.counters["replayed"] += 1
                continue
            self._notify_nonces[record.eid] = notify.nonce
            if record.eid in self._local:
                self._moved_away(record)
            else:
                self._learn(record)
        if pending is None:
            ack = MapNotify(notify.nonce, notify.records, ack=True, sender=notify.sender)
            self._send(source, encode_signed(ack, self._key))

    def _confirmed(self, eids: Sequence[Eid], source: Address) -> None:
        servers = self._around.map_servers
        for eid in eids:
            local = self._local.get(eid)
            if local is None:
                continue
            local.confirmed = True
            local.confirmed_by |= {n for n, server in enumerate(servers) if source in server}
            if len(local.confirmed_by) == len(servers):
                local.tries = 0
                local.register_at_s = self._now_s + REGISTER_INTERVAL_S * self._prng.uniform(
                    0.8, 1.0
                )

    # ---- a move ----

    def _moved_away(self, record: MapRecord) -> None:
        """The map-server says that an EID of ours is elsewhere: it moved."""
        local = self._local[record.eid]
        elsewhere = [x for x in record.locators if x.address != self._config.rloc]
        older = version_is_older(record.version, local.event.version & 0xFFF)
        if not elsewhere or len(elsewhere) < len(record.locators) or older:
            return
        del self._local[record.eid]
        entry = self._eid_entry(local.event, forward_to=str(elsewhere[0].address))
        self._strays[record.eid] = _Stray(entry, self._now_s + STRAY_S, record.version)
        self._apply(set=(entry,))
        self._learn(record)
        self._effects.append(
            LispLog(LispNews.MOVED, str(elsewhere[0].address), str(record.eid.prefix))
        )
        for rloc in self._heard.pop(record.eid, ()):
            if rloc not in (elsewhere[0].address, self._config.rloc):
                self._solicit(record.eid, rloc)

    def _solicit(self, eid: Eid, rloc: Address) -> None:
        request = MapRequest(
            nonce=self._next_nonce(),
            source_eid=Eid(eid.instance_id, eid.prefix),
            itr_rlocs=(self._config.rloc,),
            eids=(eid,),
            smr=True,
        )
        self._send(rloc, encode_request(request))

    # ---- map-cache ----

    def _missed(self, event: MappingMissed) -> None:
        eid = host_eid(event.instance_id, event.destination)
        if any(pending.eid == eid for pending in self._pending.values()):
            return
        if not self._asking.take(self._now_s):
            self.counters["ask_rate"] += 1
            self._log(LispNews.FLOODING, event.source, "destinations without a mapping")
            return
        self._ask(eid, host_eid(event.instance_id, event.source), smr_invoked=False)

    def _ask(self, eid: Eid, source: Eid | None, *, smr_invoked: bool) -> None:
        if len(self._pending) >= PENDING_MAX:
            self._pending.popitem(last=False)
        nonce = self._next_nonce()
        self._pending[nonce] = _Pending(eid, source, smr_invoked, 1, self._now_s + REQUEST_RETRY_S)
        self._send_request(nonce, self._pending[nonce])

    def _send_request(self, nonce: int, pending: _Pending) -> None:
        servers = self._servers()
        if not servers:
            return
        subscribe = self._config.subscribe
        request = MapRequest(
            nonce=nonce,
            source_eid=pending.source,
            itr_rlocs=(self._config.rloc,),
            eids=(pending.eid,),
            smr_invoked=pending.smr_invoked,
            notify=subscribe,
            sender=self._config.name if subscribe else None,
        )
        destination = pending.eid.prefix.network_address
        source = self._config.rloc
        if destination.version != source.version:
            destination = servers[0]
        inner = Encapsulated(source, destination, LISP_CONTROL_PORT, encode_request(request))
        server = servers[(pending.tries - 1) % len(servers)]
        self._send(server, encode_encapsulated(inner))

    def _retry_requests(self) -> None:
        for nonce, pending in list(self._pending.items()):
            if self._now_s < pending.next_s:
                continue
            del self._pending[nonce]
            if pending.tries >= REQUEST_TRIES_MAX:
                self.counters["request_unanswered"] += 1
                continue
            pending.tries += 1
            pending.next_s = self._now_s + REQUEST_RETRY_S * 2 ** (pending.tries - 1)
            again = self._next_nonce()
            self._pending[again] = pending
            self._send_request(again, pending)

    def _learn(self, record: MapRecord) -> None:
        known = self._cache.get(record.eid)
        if known is not None and version_is_older(record.version, known.record.version):
            self.counters["older_version"] += 1
            return
        if record.ttl_minutes == 0:
            self._forget(record.eid)
            return
        if known is None and len(self._cache) >= CACHE_MAX:
            self._forget(next(iter(self._cache)))
        ttl_s = 60.0 * min(record.ttl_minutes, 1440)
        self._cache[record.eid] = _Cached(record, self._now_s + ttl_s)
        self._watch_peers(record)
        self._apply_cached(record)

    def locators_of(self, record: MapRecord) -> tuple[Locator, ...]:
        """Return where a record leads; to a proxy ETR what is outside of all EIDs."""
        if not record.locators and record.action is MapAction.NATIVELY_FORWARD:
            return self._around.petrs
        return record.locators

    def _watch_peers(self, record: MapRecord) -> None:
        for locator in self.locators_of(record):
            if locator.address not in self._peers and locator.address not in self._mine():
                self._peers[locator.address] = _Peer(self._now_s + PROBE_INTERVAL_S)

    def _apply_cached(self, record: MapRecord) -> None:
        every = [x for x in self.locators_of(record) if x.priority < 255 and x.reachable]
        # None answers: a router whose daemon is down answers no probe, and its plane goes on.
        usable = [locator for locator in every if self.is_up(locator.address)] or every
        best = min((locator.priority for locator in usable), default=0)
        entry = MapCacheEntry(
            record.eid.instance_id,
            record.eid.prefix,
            tuple(
                Rloc(str(locator.address), locator.priority, locator.weight)
                for locator in usable
                if locator.priority == best
            ),
            record.action if not self.locators_of(record) else MapAction.DROP,
        )
        if self._applied.get(record.eid) != entry:
            self._applied[record.eid] = entry
            self._apply(set=(entry,))

    def _forget(self, eid: Eid) -> None:
        self._cache.pop(eid, None)
        entry = self._applied.pop(eid, None)
        if entry is not None:
            self._apply(removed=(entry,))

    # ---- probing ----

    def _probe_due(self) -> None:
        used = {
            locator.address: cached.record.eid
            for cached in self._cache.values()
            for locator in self.locators_of(cached.record)
        }
        for address in [a for a in self._peers if a not in used]:
            del self._peers[address]
        for address, peer in self._peers.items():
            if self._now_s < peer.probe_at_s:
                continue
            if peer.nonce:
                peer.lost += 1
                if peer.lost >= PROBE_LOST_MAX and peer.up:
                    self._peer_changed(address, peer, up=False)
            peer.nonce = self._next_nonce()
            peer.probe_at_s = self._now_s + (PROBE_AGAIN_S if peer.lost else PROBE_INTERVAL_S)
            request = MapRequest(
                nonce=peer.nonce,
                source_eid=None,
                itr_rlocs=(self._config.rloc,),
                eids=(used[address],),
                probe=True,
            )
            self._send(address, encode_request(request))

    def _probe_answer(self, reply: MapReply, source: Address) -> None:
        peer = self._peers.get(source)
        if peer is None or peer.nonce != reply.nonce:
            self.counters["unasked_reply"] += 1
            return
        peer.nonce = peer.lost = 0
        peer.probe_at_s = self._now_s + PROBE_INTERVAL_S
        if not peer.up:
            self._peer_changed(source, peer, up=True)
        for record in reply.records:
            if not record.locators and record.eid in self._cache:
                self._ask(record.eid, None, smr_invoked=False)

    def _peer_changed(self, address: Address, peer: _Peer, *, up: bool) -> None:
        peer.up = up
        news = LispNews.RLOC_UP if up else LispNews.RLOC_DOWN
        self._log(news, address, "probe answered" if up else "probes unanswered")
        for cached in list(self._cache.values()):
            if any(x.address == address for x in self.locators_of(cached.record)):
                self._apply_cached(cached.record)

    # ---- telling ----

    def _apply(
        self,
        *,
        set: Sequence[MapCacheEntry | EidEntry] = (),
        removed: Sequence[MapCacheEntry | EidEntry] = (),
    ) -> None:
        self._effects.append(ApplyLisp(ForwardingDelta(tuple(set), tuple(removed))))

    def _send(self, destination: Address, data: bytes, *, port: int = LISP_CONTROL_PORT) -> None:
        self._effects.append(SendDatagram(destination, port, data))

    def _log(self, news: LispNews, who: Address, detail: str) -> None:
        if self._hush.may_say((news, who), self._now_s):
            self._effects.append(LispLog(news, str(who), detail))
