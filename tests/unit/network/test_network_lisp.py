"""LISP machines on a small made-up network: register, ask, subscribe, move, probe, refuse."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from heapq import heappop, heappush
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import count
from random import Random

import pytest
from tests.data.network.lisp_tables import Delivered, LispPlane, Tunnelled

from nuage.network.forwarding import (
    EidEntry,
    ForwardingDelta,
    MapAction,
    MapCacheEntry,
    PortNumber,
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
    Address,
    Eid,
    LispKey,
    Locator,
    MapNotify,
    MapRecord,
    MapRegister,
    MapReply,
    MapRequest,
    XtrName,
    decode_message,
    encode_reply,
    encode_request,
    encode_signed,
    host_eid,
)
from nuage.network.map_server import EidAllowance, MapServer, version_is_older
from nuage.network.xtr import Xtr, XtrConfig

IID = 7
KEY = LispKey(b"catalogue key")
SITE = bytes(8)
SITES = frozenset({SITE})
SERVER = ip_address("10.0.0.100")
EID = host_eid(IID, IPv4Address("203.0.113.5"))
CLIENT = IPv4Address("203.0.113.9")
DELAY_S = 0.015


def packet(source: IPv4Address, destination: IPv4Address, mark: bytes = b"") -> bytes:
    return b"\x45" + bytes(11) + source.packed + destination.packed + mark


class Net:
    """A map-server and tunnel routers, 15 ms from each other."""

    def __init__(self, *, xtr_count: int = 3, subscribe: bool = True, key: LispKey = KEY) -> None:
        self.now_s = 1000.0
        self.server = MapServer(SERVER, self.now_s)
        self.server.allow(
            [EidAllowance(Eid(IID, ip_network("203.0.113.0/24")), SITES)], {SITE: KEY}
        )
        self.logs: list[LispLog] = []
        self.sent: list[tuple[float, Address, SendDatagram]] = []
        self.muted: set[Address] = set()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.rlocs = [ip_address(f"10.0.0.{n + 1}") for n in range(xtr_count)]
        self.planes = [LispPlane() for _ in self.rlocs]
        self.xtrs = [
            Xtr(
                XtrConfig(
                    rloc, XtrName(bytes(15) + bytes((n,))), ((SERVER,),), key, 10**15,
                    subscribe=subscribe,
                ),
                Random(n),
                self.now_s,
            )
            for n, rloc in enumerate(self.rlocs)
        ]  # fmt: skip

    def give(self, number: int, event: XtrInput) -> None:
        self._perform(self.rlocs[number], self.xtrs[number].handle(event, self.now_s))

    def _perform(self, source: Address, effects: Iterable[LispEffect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram():
                    self.sent.append((self.now_s, source, effect))
                    self._carry(source, effect)
                case ApplyLisp():
                    self.planes[self.rlocs.index(source)].apply(effect.delta)
                case LispLog():
                    self.logs.append(effect)

    def _carry(self, source: Address, effect: SendDatagram) -> None:
        if source in self.muted or effect.destination in self.muted:
            return
        event = DatagramReceived(source, 4342, effect.data)

        def arrive() -> None:
            if effect.destination == SERVER:
                self._perform(SERVER, self.server.handle(event, self.now_s))
            else:
                self.give(self.rlocs.index(effect.destination), event)

        heappush(self._queue, (self.now_s + DELAY_S, next(self._order), arrive))

    def run(self, duration_s: float) -> None:
        until_s = self.now_s + duration_s
        while True:
            due = [(x.next_deadline_s(), n) for n, x in enumerate(self.xtrs)]
            due.append((self.server.next_deadline_s(), -1))
            when_s, who = min(due)
            if self._queue and self._queue[0][0] <= when_s:
                when_s = self._queue[0][0]
                if when_s > until_s:
                    break
                self.now_s = max(self.now_s, when_s)
                heappop(self._queue)[2]()
                continue
            if when_s > until_s:
                break
            self.now_s = max(self.now_s, when_s)
            if who < 0:
                self._perform(SERVER, self.server.tick(self.now_s))
            else:
                self._perform(self.rlocs[who], self.xtrs[who].tick(self.now_s))
        self.now_s = until_s

    def arrive(self, number: int, version: int = 1, eid: Eid = EID) -> None:
        self.give(number, EidArrived(eid, PortNumber(9), b"\x06" * 6, version))

    def reach(self, number: int) -> str | None:
        """Return where xTR `number` now sends packets for the EID; a miss is asked about."""
        destination = EID.prefix.network_address
        assert isinstance(destination, IPv4Address)
        out = self.planes[number].lisp.encapsulate(IID, packet(CLIENT, destination))
        if out is None:
            self.give(number, MappingMissed(IID, CLIENT, destination))
            return None
        return out.rloc

    def news(self) -> set[LispNews]:
        return {log.news for log in self.logs}


def test_a_missed_eid_is_asked_for_and_found() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    assert [record.eid for record in net.server.registered()] == [EID]
    assert net.reach(2) is None
    net.run(0.1)
    assert net.reach(2) == "10.0.0.1"


def test_a_decapsulated_packet_reaches_the_port_of_its_eid() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.1)
    destination = IPv4Address("203.0.113.5")
    sent = net.planes[2].lisp.encapsulate(IID, packet(CLIENT, destination, b"data"))
    assert isinstance(sent, Tunnelled)
    got = net.planes[0].lisp.decapsulate("10.0.0.3", sent.payload)
    assert isinstance(got, Delivered)
    assert (got.entry.port, got.packet[-4:]) == (9, b"data")


@pytest.mark.parametrize("subscribe", [True, False])
def test_a_moved_eid_is_found_at_its_new_place(*, subscribe: bool) -> None:
    """Subscribers hear it after half a round trip more than the server; others by SMR."""
    net = Net(subscribe=subscribe)
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.1)
    net.give(0, HeardFrom(EID, net.rlocs[2]))
    moved_s = net.now_s
    net.arrive(1, version=2)
    while net.reach(2) != "10.0.0.2":
        net.run(0.001)
        assert net.now_s < moved_s + 1.0
    trips = (net.now_s - moved_s) / DELAY_S
    assert trips <= (2.2 if subscribe else 5.3)


def test_stragglers_are_sent_on_to_the_new_place_for_a_while() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.1)
    destination = IPv4Address("203.0.113.5")
    stray = net.planes[2].lisp.encapsulate(IID, packet(CLIENT, destination))
    assert stray is not None
    net.arrive(1, version=2)
    net.run(0.1)
    on = net.planes[0].lisp.decapsulate("10.0.0.3", stray.payload)
    assert isinstance(on, Tunnelled)
    assert on.rloc == "10.0.0.2"
    net.run(10.0)
    assert net.planes[0].lisp.decapsulate("10.0.0.3", stray.payload) is None


def test_the_old_place_cannot_take_a_moved_eid_back() -> None:
    """Its word of the move was lost; its next register carries the older version."""
    net = Net()
    net.arrive(0, version=1)
    net.run(1.0)
    net.muted.add(net.rlocs[0])
    net.arrive(1, version=2)
    net.run(3.0)
    net.muted.clear()
    net.run(70.0)
    (record,) = net.server.registered()
    assert record.locators[0].address == net.rlocs[1]
    assert LispNews.OUTDATED in net.news()
    assert net.planes[0].lisp.decapsulate("10.0.0.3", bytes(8)) is None


def test_a_wrong_key_registers_nothing_and_is_said() -> None:
    net = Net(key=LispKey(b"guessed"))
    net.arrive(0)
    net.run(2.0)
    assert net.server.registered() == ()
    assert LispNews.AUTHENTICATION_FAILED in net.news()
    assert LispNews.UNCONFIRMED in net.news() or net.xtrs[0].next_deadline_s() < 1100


def test_a_prefix_that_is_not_in_the_catalogue_is_refused() -> None:
    net = Net()
    net.arrive(0, eid=host_eid(IID, IPv4Address("198.51.100.1")))
    net.arrive(1, eid=host_eid(IID + 1, IPv4Address("203.0.113.5")))
    net.run(1.0)
    assert net.server.registered() == ()
    assert LispNews.REFUSED in net.news()


def test_a_replayed_register_changes_nothing() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    old = next(s for _, source, s in net.sent if source == net.rlocs[0])
    net.arrive(1, version=2)
    net.run(1.0)
    net.server.handle(DatagramReceived(net.rlocs[0], 4342, old.data), net.now_s)
    (record,) = net.server.registered()
    assert record.locators[0].address == net.rlocs[1]
    assert net.server.counters["replayed"] == 1


def test_an_unasked_or_foreign_reply_is_not_believed() -> None:
    net = Net()
    lie = MapRecord(EID, (Locator(ip_address("10.6.6.6")),))
    net.give(2, DatagramReceived(net.rlocs[1], 4342, encode_reply(MapReply(1, (lie,)))))
    assert net.xtrs[2].cached() == ()
    notify = encode_signed(MapNotify(1, (lie,)), KEY)
    net.give(2, DatagramReceived(net.rlocs[1], 4342, notify))
    assert net.xtrs[2].cached() == ()
    forged = encode_signed(MapNotify(1, (lie,)), LispKey(b"guessed"))
    net.give(2, DatagramReceived(SERVER, 4342, forged))
    assert net.xtrs[2].cached() == ()
    assert net.xtrs[2].counters["unasked_reply"] == 1


def test_what_nobody_has_is_answered_with_drop_and_what_is_not_ours_natively() -> None:
    net = Net(subscribe=False)
    for text, action in (("203.0.113.77", "DROP"), ("8.8.8.8", "NATIVELY_FORWARD")):
        net.give(2, MappingMissed(IID, CLIENT, ip_address(text)))
        net.run(0.1)
        record = net.xtrs[2].cached()[-1]
        assert (record.locators, record.action.name) == ((), action)


def test_a_lost_request_is_repeated() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.muted.add(net.rlocs[2])
    net.reach(2)
    net.run(0.1)
    net.muted.clear()
    net.run(1.0)
    assert net.reach(2) == "10.0.0.1"


def test_a_dead_rloc_is_probed_out_and_comes_back() -> None:
    net = Net()
    backup = Locator(net.rlocs[1], priority=2)
    net.give(0, SurroundingsChanged(((SERVER,),), (backup,)))
    net.arrive(0)
    net.arrive(1, eid=host_eid(IID, CLIENT))  # that is why router 1 is probed, too
    net.run(1.0)
    assert net.reach(2) is None
    net.run(1.0)
    assert net.reach(2) == "10.0.0.1"
    net.muted.add(net.rlocs[0])
    net.run(5.0)
    assert LispNews.RLOC_DOWN in net.news()
    assert net.reach(2) == "10.0.0.2", "the way of the next priority"
    net.muted.clear()
    net.run(5.0)
    assert net.reach(2) == "10.0.0.1"


def test_the_only_way_is_kept_though_its_router_answers_no_probe() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(1.0)
    net.muted.add(net.rlocs[0])
    net.run(25.0)
    assert LispNews.RLOC_DOWN in net.news()
    assert net.reach(2) == "10.0.0.1", "its daemon may be down, and its plane goes on"


def test_a_router_that_has_an_eid_no_more_says_so_when_it_is_probed() -> None:
    net = Net(subscribe=False)
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.2)
    net.give(0, EidLeft(EID))
    net.run(3.0)
    assert [record.locators for record in net.xtrs[2].cached()] == [()]


def test_every_server_is_told_though_one_confirmed_at_once() -> None:
    """The other did not allow it yet: its catalogue heard later of the move."""
    net = Net()
    late = ip_address("10.0.0.200")
    net.muted.add(late)
    net.give(0, SurroundingsChanged(((SERVER,), (late,))))
    net.arrive(0)
    net.run(2.0)
    assert [record.eid for record in net.server.registered()] == [EID]
    to_late = [sent for _, _, sent in net.sent if sent.destination == late]
    assert len(to_late) >= 3


def test_what_comes_by_a_line_is_relayed_to_who_registered_it() -> None:
    line = ip_address("192.0.2.6")
    config = XtrConfig(
        SERVER, XtrName(bytes(16)), ((SERVER,),), KEY, 1, lines=frozenset({line}), is_proxy=True
    )
    edge, plane = Xtr(config, Random(1), 0.0), LispPlane()

    def told(*locators: Locator) -> None:
        for effect in edge.handle(MappingTold(MapRecord(EID, locators, version=3)), 0.0):
            if isinstance(effect, ApplyLisp):
                plane.apply(effect.delta)

    here, there = ip_address("10.0.0.1"), ip_address("10.9.0.1")
    told(Locator(here), Locator(line, 2))
    assert edge.relayed() == {EID: "10.0.0.1"}
    (entry,) = plane.entries()
    assert isinstance(entry, EidEntry)
    assert entry.forward_to == "10.0.0.1"
    ask = MapRequest(7, None, (there,), (EID,), probe=True)
    event = DatagramReceived(there, 4342, encode_request(ask), local=line)
    (answer,) = [e for e in edge.handle(event, 0.0) if isinstance(e, SendDatagram)]
    assert answer.source == line, "a probe is answered from the address that was probed"
    told(Locator(there))
    assert edge.relayed() == {}
    (moved,) = plane.entries()
    assert isinstance(moved, MapCacheEntry)
    assert [rloc.address for rloc in moved.rlocs] == ["10.9.0.1"]
    told()
    assert plane.entries() == ()


def test_what_is_no_address_of_ours_goes_to_a_proxy_that_answers() -> None:
    net = Net()
    proxies = (Locator(net.rlocs[0], 1), Locator(net.rlocs[1], 2))
    net.give(2, SurroundingsChanged(((SERVER,),), petrs=proxies))
    foreign = Eid(IID, ip_network("8.0.0.0/6"))
    net.give(2, MappingTold(MapRecord(foreign, (), 60, MapAction.NATIVELY_FORWARD)))
    out = net.planes[2].lisp.encapsulate(IID, packet(CLIENT, IPv4Address("8.8.8.8")))
    assert out is not None
    assert out.rloc == "10.0.0.1"


def test_a_foreign_address_is_answered_with_the_widest_prefix_without_ours() -> None:
    net = Net(subscribe=False)
    net.give(2, MappingMissed(IID, CLIENT, ip_address("8.8.8.8")))
    net.run(0.1)
    assert [str(record.eid.prefix) for record in net.xtrs[2].cached()] == ["0.0.0.0/1"]


def test_another_site_cannot_register_an_address_with_its_own_key() -> None:
    server, other, theirs = MapServer(SERVER, 0.0), b"lyon    ", LispKey(b"of lyon")
    server.allow([EidAllowance(EID, SITES)], {SITE: KEY, other: theirs})
    record = MapRecord(EID, (Locator(ip_address("10.6.6.6")),))
    for sender, news in ((XtrName(bytes(16), other), LispNews.REFUSED),
                         (XtrName(bytes(16)), LispNews.AUTHENTICATION_FAILED)):  # fmt: skip
        data = encode_signed(MapRegister(5, (record,), sender=sender), theirs)
        effects = server.handle(DatagramReceived(ip_address("10.6.6.6"), 4342, data), 0.0)
        assert [e.news for e in effects if isinstance(e, LispLog)] == [news]
    assert server.registered() == ()


def test_a_sites_key_rolls_and_who_has_the_old_one_is_refused_at_last() -> None:
    old, new = LispKey(b"old", key_id=1), LispKey(b"new", key_id=2)
    allowed = [EidAllowance(EID, SITES)]
    server = MapServer(SERVER, 0.0)
    source = ip_address("10.0.0.1")
    record = MapRecord(EID, (Locator(source),))

    def registers(nonce: int, key: LispKey) -> tuple[list[LispNews], list[int]]:
        data = encode_signed(MapRegister(nonce, (record,), want_notify=True), key)
        effects = server.handle(DatagramReceived(source, 4342, data), 1.0)
        answers = [e.data[12] for e in effects if isinstance(e, SendDatagram)]
        return [e.news for e in effects if isinstance(e, LispLog)], answers

    server.allow(allowed, {SITE: replace(old, old=((2, b"new"),))})
    assert registers(1, old) == ([LispNews.REGISTERED], [1])
    assert registers(2, new) == ([], [1])
    server.allow(allowed, {SITE: replace(new, old=((1, b"old"),))})
    assert registers(3, old) == ([], [2])
    server.allow(allowed, {SITE: new})
    assert registers(4, old) == ([LispNews.AUTHENTICATION_FAILED], [])
    assert registers(5, new) == ([], [2])


def test_a_routers_key_rolls_with_its_surroundings() -> None:
    net = Net(xtr_count=1)
    new = LispKey(b"new", key_id=1, old=((0, KEY.secret),))
    prefix = [EidAllowance(Eid(IID, ip_network("203.0.113.0/24")), SITES)]
    net.server.allow(prefix, {SITE: new})
    net.give(0, SurroundingsChanged(((SERVER,),), key=new))
    net.give(0, EidArrived(EID, PortNumber(1), bytes(6), 1))
    net.run(1.0)
    assert len(net.server.registered()) == 1
    registers = [d for _, rloc, d in net.sent if rloc == net.rlocs[0]]
    assert {each.data[12] for each in registers if each.data[0] >> 4 == 3} == {1}


def test_a_server_that_began_anew_does_not_say_that_an_address_is_nowhere() -> None:
    server = MapServer(SERVER, 0.0, settle_s=60.0)
    server.allow([EidAllowance(EID, SITES)], {SITE: KEY})
    data = encode_request(MapRequest(7, None, (CLIENT,), (EID,)))
    event = DatagramReceived(CLIENT, 4342, data)
    assert server.handle(event, 1.0) == ()
    (answer,) = server.handle(event, 61.0)
    assert isinstance(answer, SendDatagram)


def test_a_router_that_began_anew_keeps_its_mappings_and_asks_for_them() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.2)
    config = XtrConfig(net.rlocs[2], XtrName(bytes(15) + b"\x02"), ((SERVER,),), KEY, 10**16)
    net.xtrs[2] = Xtr(config, Random(5), net.now_s, net.planes[2].entries())
    assert net.reach(2) == "10.0.0.1"
    net.arrive(1, version=2)
    net.run(1.0)
    assert net.reach(2) == "10.0.0.2", "it subscribed again"


def test_an_eid_that_left_is_withdrawn_and_subscribers_hear_it() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.reach(2)
    net.run(0.1)
    net.give(0, EidLeft(EID))
    net.run(0.1)
    assert net.server.registered() == ()
    assert [record.locators for record in net.xtrs[2].cached()] == [()]


def test_a_registration_that_is_not_refreshed_expires() -> None:
    net = Net()
    net.arrive(0)
    net.run(1.0)
    net.muted.add(net.rlocs[0])
    net.run(200.0)
    assert net.server.registered() == ()
    assert LispNews.EXPIRED in net.news()


def test_a_flood_of_map_requests_is_limited_and_said() -> None:
    net = Net()
    for number in range(1000):
        net.give(2, MappingMissed(IID, CLIENT, ip_address(0xCB007100 + number)))
    assert net.xtrs[2].counters["ask_rate"] == 800, "a guest that scans makes few requests"
    assert LispNews.FLOODING in net.news()
    net.logs.clear()
    asked = [sent.data for _, source, sent in net.sent if source == net.rlocs[2]]
    for data in asked * 3:
        event = DatagramReceived(net.rlocs[2], 4342, data)
        net.logs += [
            e for e in net.server.handle(event, net.now_s) if isinstance(e, LispLog)
        ]  # fmt: skip
    assert net.server.counters["request_rate"] == 200
    assert [entry.news for entry in net.logs] == [LispNews.FLOODING], "said once"


def test_both_algorithms_register() -> None:
    for algorithm in (1, 2):
        key = LispKey(b"k", algorithm)
        server = MapServer(SERVER, 0.0)
        server.allow([EidAllowance(EID, SITES)], {SITE: key})
        record = MapRecord(EID, (Locator(ip_address("10.0.0.1")),))
        data = encode_signed(MapRegister(5, (record,)), key)
        effects = server.handle(DatagramReceived(ip_address("10.0.0.1"), 4342, data), 0.0)
        answer = next(e for e in effects if isinstance(e, SendDatagram))
        assert isinstance(decode_message(answer.data), MapNotify)
        assert [r.eid for r in server.registered()] == [EID]


def test_versions_are_compared_on_a_circle() -> None:
    assert version_is_older(4095, 1)
    assert not version_is_older(1, 4095)
    assert not version_is_older(0, 7)


def test_the_longest_prefix_wins_and_instances_do_not_mix() -> None:
    from nuage.network.forwarding import MapCacheEntry, Rloc

    plane = LispPlane()
    wide = MapCacheEntry(1, ip_network("10.0.0.0/8"), (Rloc("192.0.2.1"),))
    narrow = MapCacheEntry(1, ip_network("10.1.0.0/16"), (Rloc("192.0.2.2"),))
    other = MapCacheEntry(2, ip_network("10.1.0.0/16"), (), MapAction.DROP)
    plane.apply(ForwardingDelta(set=(wide, narrow, other)))
    source = IPv4Address("10.0.0.1")
    inside = plane.lisp.encapsulate(1, packet(source, IPv4Address("10.1.2.3")))
    outside = plane.lisp.encapsulate(1, packet(source, IPv4Address("10.2.2.3")))
    assert inside is not None
    assert outside is not None
    assert (inside.rloc, outside.rloc) == ("192.0.2.2", "192.0.2.1")
    assert plane.lisp.encapsulate(2, packet(source, IPv4Address("10.1.2.3"))) is None
