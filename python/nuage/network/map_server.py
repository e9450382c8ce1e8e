"""Map-server and map-resolver of a site (RFC 9301 §8, PubSub RFC 9437), as one machine.

Fed by the catalogue: which EID prefixes exist, which site may register them, and each site's
key. Everybody else is refused, and said so in the log. Replies for registered EIDs come from
here (our ETRs ask for proxy replies), so one round trip to the nearest map-server finds any EID.

Replay: a Map-Register's nonce must be greater than the last one of the same xTR-ID. Races: a
record's map-version (the owner's epoch) must not be older than what is registered, so the old
place of a moved EID cannot take it back.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from nuage.network.forwarding import MapAction
from nuage.network.lisp_event import (
    DatagramReceived,
    LispEffect,
    LispLog,
    LispNews,
    MappingTold,
    SendDatagram,
)
from nuage.network.lisp_message import (
    LISP_CONTROL_PORT,
    Address,
    Eid,
    LispKey,
    MapNotify,
    MapRecord,
    MapRegister,
    MapReply,
    MapRequest,
    XtrName,
    decode_encapsulated,
    decode_message,
    encode_reply,
    encode_signed,
    verify_signed,
    with_algorithm_of,
)
from nuage.network.rate_limit import Hush, Rate, TokenBucket
from nuage.network.wire import MalformedFrame

REGISTRATION_S: Final = 180.0  # three registers of 60 s may be lost (RFC 9301 §8.2)
REQUEST_RATE: Final = Rate(per_s=200, burst=400)  # of one source; an ITR asks once per EID
SOURCE_RATE: Final = Rate(per_s=500, burst=2000)  # sources that were not heard of lately
REGISTER_RATE: Final = Rate(per_s=500, burst=5000)  # of one site: 30,000 EIDs each minute
SOURCES_MAX: Final = 4096
SUBSCRIBERS_MAX: Final = 1024  # of one EID
SUBSCRIPTIONS_MAX: Final = 65_536
XTRS_MAX: Final = (
    4096  # of one site: routers that it has had, by the names that they give themselves
)
SUBSCRIPTION_S: Final = 86_400.0
PRUNE_INTERVAL_S: Final = 60.0  # of a full table
NOTIFY_INTERVAL_S: Final = 0.1  # doubled with each try
NOTIFY_TRIES_MAX: Final = 5
NEGATIVE_MINUTES: Final = 1  # inside our prefixes: may be registered any moment
FOREIGN_MINUTES: Final = 15  # outside: RFC 9301 §8.3
LOG_INTERVAL_S: Final = 30.0
VERSION_HALF: Final = 2048  # map-versions are compared on a circle of 4096 (RFC 9302 §6)


def version_is_older(a: int, b: int) -> bool:
    """Tell whether map-version `a` came before `b`; 0 says nothing and is never older."""
    return bool(a) and bool(b) and a != b and (b - a) % 4096 < VERSION_HALF


@dataclass(frozen=True, slots=True)
class EidAllowance:
    """A prefix of ours, and the sites (by site-ID) that may register it and its parts now."""

    eid: Eid
    sites: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Registration:
    record: MapRecord
    xtr: bytes
    rloc: Address
    site: bytes
    key: LispKey
    expires_s: float


@dataclass(slots=True)
class _Subscription:
    name: XtrName
    rloc: Address
    key: LispKey
    nonce: int
    expires_s: float


@dataclass(slots=True)
class _Pending:
    """A Map-Notify that is not acknowledged yet."""

    destination: Address
    data: bytes
    tries: int
    next_s: float


class MapServer:
    """One site's map-server and resolver.

    For `settle_s` after it began it does not say that an EID of ours is nowhere: it may not
    have heard of it yet, and whoever asks goes on to another server.
    """

    def __init__(self, rloc: Address, now_s: float, *, settle_s: float = 0.0) -> None:
        self._rloc = rloc
        self._now_s = now_s
        self._settled_s = now_s + settle_s
        self._allowances: dict[Eid, EidAllowance] = {}
        self._prefixes: tuple[EidAllowance, ...] = ()
        self._outer: tuple[Eid, ...] = ()
        self._keys: Mapping[bytes, LispKey] = {}
        self._local: Address | None = None
        self._registrations: dict[Eid, _Registration] = {}
        self._subscriptions: dict[Eid, dict[bytes, _Subscription]] = {}
        self._nonces: dict[bytes, int] = {}
        self._told: dict[bytes, int] = {}
        self._pending: dict[tuple[Address, int], _Pending] = {}
        self._buckets: dict[Address, TokenBucket] = {}  # the one that asked last is the last
        self._new_sources = TokenBucket(SOURCE_RATE, now_s)
        self._site_buckets: dict[bytes, TokenBucket] = {}
        self._xtr_counts: Counter[bytes] = Counter()
        self._subscription_count = 0
        self._prune_at_s = now_s
        self._hush = Hush(LOG_INTERVAL_S)
        self._effects: list[LispEffect] = []
        self.counters: Counter[str] = Counter()

    def allow(self, allowances: Iterable[EidAllowance], keys: Mapping[bytes, LispKey]) -> None:
        """Take the catalogue's list of prefixes and the sites' keys, all of them.

        What is in no prefix any more is no longer registered; an EID whose site changed stays
        until its new site registers it, or it expires.
        """
        self._keys = dict(keys)
        for registration in self._registrations.values():
            registration.key = self._newest(registration.site, registration.key)
        for subscribers in self._subscriptions.values():
            for subscription in subscribers.values():
                subscription.key = self._newest(subscription.name.site_id, subscription.key)
        self._allowances = {allowance.eid: allowance for allowance in allowances}
        wide = [a for a in self._allowances.values() if a.eid.prefix.num_addresses > 1]
        self._prefixes = tuple(wide)
        self._outer = tuple(
            eid
            for eid in self._allowances
            if not any(a.eid.covers(eid) for a in wide if a.eid != eid)
        )
        for eid in list(self._registrations):
            if self._allowance(eid) is None:
                del self._registrations[eid]

    def registered(self) -> tuple[MapRecord, ...]:
        """Return what is registered."""
        return tuple(registration.record for registration in self._registrations.values())

    def handle(self, event: DatagramReceived, now_s: float) -> tuple[LispEffect, ...]:
        """Take a datagram; return what is to be done."""
        self._now_s, self._local = now_s, event.local
        try:
            self._datagram(event)
        except MalformedFrame as error:
            self.counters[error.cause] += 1
            news = LispNews.MALFORMED
            if error.cause == "lisp_auth":
                news = LispNews.AUTHENTICATION_FAILED
            self._log(news, event.source, error.what)
        return self._flush()

    def next_deadline_s(self) -> float:
        """Return when `tick` has something to do."""
        deadlines = [pending.next_s for pending in self._pending.values()]
        deadlines.extend(r.expires_s for r in self._registrations.values())
        return min(deadlines, default=float("inf"))

    def tick(self, now_s: float) -> tuple[LispEffect, ...]:
        """Let time pass: repeat unacknowledged notifies, forget what was not refreshed."""
        self._now_s, self._local = now_s, None
        for key, pending in list(self._pending.items()):
            if now_s < pending.next_s:
                continue
            if pending.tries >= NOTIFY_TRIES_MAX:
                del self._pending[key]
                self._log(LispNews.UNCONFIRMED, pending.destination, "a Map-Notify")
                continue
            pending.next_s = now_s + NOTIFY_INTERVAL_S * 2**pending.tries
            pending.tries += 1
            self._send(pending.destination, pending.data)
        for eid, registration in list(self._registrations.items()):
            if now_s >= registration.expires_s:
                del self._registrations[eid]
                self._log(LispNews.EXPIRED, registration.rloc, f"{eid.prefix}")
                gone = replace(registration.record, locators=())
                self._effects.append(MappingTold(gone))
                self._publish(eid, gone)
        return self._flush()

    def _flush(self) -> tuple[LispEffect, ...]:
        effects, self._effects = tuple(self._effects), []
        return effects

    # ---- what comes in ----

    def _datagram(self, event: DatagramReceived) -> None:
        data, source = event.data, event.source
        if data[:1] and data[0] >> 4 == 8:
            if not self._may_ask(source):
                return
            inner = decode_encapsulated(data)
            message = decode_message(inner.message)
            if not isinstance(message, MapRequest):
                raise MalformedFrame("lisp_ecm", "not a Map-Request")
            self._request(message, source, inner.source_port)
            return
        message = decode_message(data)
        match message:
            case MapRegister():
                self._register(message, data, source)
            case MapNotify() if message.ack:
                self._pending.pop((source, message.nonce), None)
            case MapRequest():
                if self._may_ask(source):
                    self._request(message, source, event.source_port)
            case _:
                self.counters["not_for_a_server"] += 1

    def _may_ask(self, source: Address) -> bool:
        bucket = self._buckets.pop(source, None)
        if bucket is None and self._new_sources.take(self._now_s):
            bucket = TokenBucket(REQUEST_RATE, self._now_s)
            if len(self._buckets) >= SOURCES_MAX:
                del self._buckets[next(iter(self._buckets))]
        if bucket is not None:
            self._buckets[source] = bucket
            if bucket.take(self._now_s):
                return True
        self.counters["request_rate"] += 1
        self._log(LispNews.FLOODING, source, "Map-Requests over the rate")
        return False

    # ---- registering ----

    def _allowance(self, eid: Eid) -> EidAllowance | None:
        """Return the longest allowed prefix that covers `eid`."""
        exact = self._allowances.get(eid)
        if exact is not None:
            return exact
        covering = [a for a in self._prefixes if a.eid.covers(eid)]
        return max(covering, key=lambda a: a.eid.prefix.prefixlen, default=None)

    def _register(self, message: MapRegister, data: bytes, source: Address) -> None:
        site = message.sender.site_id if message.sender else bytes(8)
        key = self._keys.get(site)
        if key is None:
            raise MalformedFrame("lisp_auth", f"site-ID {site.hex()} has no key")
        key = with_algorithm_of(data, key)
        verify_signed(data, key)
        # The site is a part of a router's name: who has one site's key says nothing for another's.
        xtr = site + (message.sender.xtr_id if message.sender else source.packed)
        if not self._may_register(site, xtr, source):
            return
        last = self._nonces.get(xtr, -1)
        if message.nonce <= last:
            self.counters["replayed"] += 1
            if message.nonce < last:  # the same comes to each of our addresses
                self._log(LispNews.REPLAYED, source, f"nonce {message.nonce:#x}")
            return
        for record in message.records:
            allowance = self._allowance(record.eid)
            if allowance is None or site not in allowance.sites:
                why = "not in the catalogue" if allowance is None else "another site's"
                self._log(LispNews.REFUSED, source, f"{record.eid.prefix}: {why}")
                self.counters["register_refused"] += 1
                return
        self._xtr_counts[site] += xtr not in self._nonces
        self._nonces[xtr] = message.nonce
        for record in message.records:
            self._take(record, xtr, source, key, site)
        if message.want_notify:
            notify = MapNotify(message.nonce, message.records, sender=message.sender)
            self._send(source, encode_signed(notify, key))

    def _may_register(self, site: bytes, xtr: bytes, source: Address) -> bool:
        bucket = self._site_buckets.get(site)
        if bucket is None:  # as many as there are keys
            bucket = self._site_buckets[site] = TokenBucket(REGISTER_RATE, self._now_s)
        if not bucket.take(self._now_s):
            why = "Map-Registers of its site over the rate"
        elif xtr not in self._nonces and self._xtr_counts[site] >= XTRS_MAX:
            why = f"more than {XTRS_MAX} routers of its site"
        else:
            return True
        self.counters["register_rate"] += 1
        self._log(LispNews.FLOODING, source, why)
        return False

    def _newest(self, site: bytes, key: LispKey) -> LispKey:
        """Return a site's key of now, with the algorithm that its router spoke."""
        return replace(self._keys.get(site, key), algorithm=key.algorithm)

    def _take(
        self, record: MapRecord, xtr: bytes, source: Address, key: LispKey, site: bytes
    ) -> None:
        eid = record.eid
        old = self._registrations.get(eid)
        if old is not None and version_is_older(record.version, old.record.version):
            self.counters["older_version"] += 1
            self._log(LispNews.OUTDATED, source, f"{eid.prefix}: older map-version")
            # The loser of a move that missed the word: tell it again.
            self._notify(source, old.record, key, nonce=self._next_told(xtr))
            return
        if record.ttl_minutes == 0 or not record.locators:
            # Withdrawn (RFC 9301 §8.2): only by who holds it.
            if old is not None and old.xtr == xtr:
                del self._registrations[eid]
                gone = replace(record, locators=(), ttl_minutes=NEGATIVE_MINUTES)
                self._effects.append(MappingTold(gone))
                self._publish(eid, gone)
            return
        self._registrations[eid] = _Registration(
            record, xtr, source, site, key, self._now_s + REGISTRATION_S
        )
        self._effects.append(MappingTold(record))
        if old is None or old.xtr != xtr:
            news = LispNews.REGISTERED if old is None else LispNews.MOVED
            self._effects.append(LispLog(news, str(source), str(eid.prefix)))
        if old is not None and old.xtr != xtr:
            self._notify(old.rloc, record, old.key, nonce=self._next_told(old.xtr))
        if old is None or old.record != record:
            self._publish(eid, record)

    def _next_told(self, xtr: bytes) -> int:
        """Return a nonce for an unasked Map-Notify: above all that `xtr` has seen or sent."""
        self._told[xtr] = max(self._nonces.get(xtr, 0), self._told.get(xtr, 0)) + 1
        return self._told[xtr]

    # ---- answering ----

    def _request(self, request: MapRequest, source: Address, source_port: int) -> None:
        if request.probe or request.smr:
            self.counters["not_for_a_server"] += 1
            return
        eid = request.eids[0]
        record = self._answer(eid)
        if record.action is MapAction.DROP and self._now_s < self._settled_s:
            self.counters["settling"] += 1
            return
        if request.notify and self._subscribe(request, record):
            return
        port = source_port if request.itr_rlocs[0] == source else LISP_CONTROL_PORT
        reply = MapReply(request.nonce, (record,))
        self._send(request.itr_rlocs[0], encode_reply(reply), port=port)

    def _answer(self, eid: Eid) -> MapRecord:
        best = self._registrations.get(eid)
        if best is None:
            covering = [r for e, r in self._registrations.items() if e.covers(eid)]
            best = max(covering, key=lambda r: r.record.eid.prefix.prefixlen, default=None)
        if best is not None:
            return replace(best.record, authoritative=False)
        inside = self._allowance(eid) is not None
        return MapRecord(
            eid if inside else self._hole(eid),
            (),
            ttl_minutes=NEGATIVE_MINUTES if inside else FOREIGN_MINUTES,
            action=MapAction.DROP if inside else MapAction.NATIVELY_FORWARD,
            authoritative=False,
        )

    def _hole(self, eid: Eid) -> Eid:
        """Return the largest prefix around `eid` without a prefix of ours (RFC 9301 §8.1)."""
        for length in range(eid.prefix.prefixlen):
            wider = Eid(eid.instance_id, eid.prefix.supernet(new_prefix=length))
            if not any(wider.covers(each) for each in self._outer):
                return wider
        return eid

    # ---- publish and subscribe ----

    def _subscribe(self, request: MapRequest, record: MapRecord) -> bool:
        """Note a subscriber and confirm with a Map-Notify; False: answer plainly instead."""
        name = request.sender
        key = None if name is None else self._keys.get(name.site_id)
        if key is None or name is None or self._allowance(request.eids[0]) is None:
            return False
        subscribers = self._subscriptions.get(request.eids[0], {})
        known = subscribers.get(name.xtr_id)
        if known is not None and request.nonce <= known.nonce:
            self.counters["replayed"] += 1
            return True
        if known is None and not self._has_room(subscribers):
            return False
        self._subscription_count += known is None
        self._subscriptions.setdefault(request.eids[0], subscribers)
        subscribers[name.xtr_id] = _Subscription(
            name,
            request.itr_rlocs[0],
            key,
            request.nonce,
            self._now_s + SUBSCRIPTION_S,
        )
        notify = MapNotify(request.nonce, (record,), sender=name)
        self._send(request.itr_rlocs[0], encode_signed(notify, key))
        return True

    def _has_room(self, of_this_eid: Mapping[bytes, _Subscription]) -> bool:
        """Tell whether one more subscription may be kept; else who asks is answered plainly."""

        def is_full() -> bool:
            is_eid_full = len(of_this_eid) >= SUBSCRIBERS_MAX
            return is_eid_full or self._subscription_count >= SUBSCRIPTIONS_MAX

        if is_full() and self._now_s >= self._prune_at_s:
            self._prune_at_s = self._now_s + PRUNE_INTERVAL_S
            for eid, subscribers in list(self._subscriptions.items()):
                gone = [n for n, each in subscribers.items() if self._now_s >= each.expires_s]
                for name in gone:
                    del subscribers[name]
                self._subscription_count -= len(gone)
                if not subscribers:
                    del self._subscriptions[eid]
        return not is_full()

    def _publish(self, eid: Eid, record: MapRecord) -> None:
        """Tell the subscribers of every prefix that `eid` lies in, or that lies in it."""
        for wanted, subscribers in self._subscriptions.items():
            if not (wanted.covers(eid) or eid.covers(wanted)):
                continue
            for xtr_id, subscription in list(subscribers.items()):
                if self._now_s >= subscription.expires_s:
                    del subscribers[xtr_id]
                    self._subscription_count -= 1
                    continue
                subscription.nonce += 1
                self._notify(
                    subscription.rloc,
                    record,
                    subscription.key,
                    nonce=subscription.nonce,
                    name=subscription.name,
                )

    def _notify(
        self,
        destination: Address,
        record: MapRecord,
        key: LispKey,
        *,
        nonce: int,
        name: XtrName | None = None,
    ) -> None:
        data = encode_signed(MapNotify(nonce, (record,), sender=name), key)
        self._pending[destination, nonce] = _Pending(
            destination, data, 1, self._now_s + NOTIFY_INTERVAL_S
        )
        self._send(destination, data)

    def _send(self, destination: Address, data: bytes, *, port: int = LISP_CONTROL_PORT) -> None:
        self._effects.append(SendDatagram(destination, port, data, self._local))

    def _log(self, news: LispNews, source: Address, detail: str) -> None:
        if self._hush.may_say((news, source), self._now_s):
            self._effects.append(LispLog(news, str(source), detail))
