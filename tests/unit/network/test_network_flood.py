"""Floods: noise without the key costs no genuine message, neighbours with it are held to a rate."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random

from nuage.network.bfd import BfdTimers
from nuage.network.campus import Campus, system_id
from nuage.network.circuit import Trunk
from nuage.network.fabric_event import (
    FabricEffect,
    FabricLog,
    FabricNews,
    FrameReceived,
    SendFrame,
    TrunkAdded,
)
from nuage.network.forwarding import PortNumber
from nuage.network.isis_auth import Keyring, encode_signed
from nuage.network.isis_pdu import (
    HELLO,
    LSP,
    SEQUENCE_MAX,
    Hello,
    Lsp,
    MtuPdu,
    Pdu,
    decode_pdu,
    encode_pdu,
    isis_frame,
    read_pdu,
    whole_pdu,
)
from nuage.network.isis_tlv import (
    AreaAddresses,
    Authentication,
    Hostname,
    ThreeWay,
    ThreeWayState,
)
from nuage.network.lisp_event import DatagramReceived, LispLog, LispNews
from nuage.network.lisp_message import (
    Eid,
    LispKey,
    Locator,
    MapRecord,
    MapRegister,
    MapRequest,
    XtrName,
    encode_request,
    host_eid,
)
from nuage.network.lisp_message import encode_signed as encode_signed_lisp
from nuage.network.lsdb import ENTRY_COUNT_MAX, OWN_RATE, SYSTEM_COUNT_MAX, Lsdb
from nuage.network.map_server import (
    REGISTER_RATE,
    REQUEST_RATE,
    SOURCE_RATE,
    SOURCES_MAX,
    SUBSCRIBERS_MAX,
    SUBSCRIPTION_S,
    SUBSCRIPTIONS_MAX,
    XTRS_MAX,
    EidAllowance,
    MapServer,
)
from nuage.network.rate_limit import HUSH_KEYS_MAX, Hush
from nuage.network.rbridge import RBridgeConfig
from nuage.network.read_rates import READ_RATES

RING = Keyring(1, {1: b"the fabric's"})
PORT = PortNumber(1)
FAR, ME = b"\x02\x20\0\0\0\x63", b"\x02\x20\0\0\0\1"
NOISE_COUNT = 21_000  # more than any rate lets through at once


class Near:
    """An RBridge with one neighbour, in whose name anything can be sent.

    Without `bfd` Hellos alone tell that the neighbour lives: time can be leapt over.
    """

    def __init__(self, bfd: BfdTimers | None = None) -> None:
        self.campus = Campus(1)
        for number in range(2):
            self.campus.add(RBridgeConfig(system_id(number), f"rb{number}", ring=RING))
        self.frames: list[bytes] = []
        self.campus.tap = lambda number, _port, frame: (
            self.frames.append(frame) if number == 1 else None
        )
        self.campus.connect(0, 1, bfd=bfd)
        self.campus.run_until(4.0)
        self.campus.tap = None
        self.rbridge = self.campus.nodes[0].rbridge
        self.mac = self.frames[0][6:12]
        self.now_s = self.campus.now_s

    def take(self, *frames: bytes) -> list[FabricEffect]:
        events = [FrameReceived(PORT, frame) for frame in frames]
        return list(self.rbridge.handle_all(events, self.now_s))

    def framed(self, pdu: Pdu, ring: Keyring = RING) -> bytes:
        return isis_frame(encode_signed(pdu, ring), smac=self.mac)

    def state(self) -> str:
        return self.rbridge.view().neighbours[0].state

    def heard(self, kind: int) -> bytes:
        """Return the last PDU of a type that the neighbour sent."""
        isis = [frame for frame in self.frames if frame[12:14] == b"\x22\xf4"]
        return next(frame for frame in reversed(isis) if frame[18] == kind)

    def heard_bfd(self) -> bytes:
        """Return the last BFD packet that it sent."""
        trill = [frame for frame in self.frames if frame[12:14] == b"\x22\xf3"]
        return next(frame for frame in reversed(trill) if frame[38:42] == b"\0\2\x80\0")


def news(effects: list[FabricEffect], kind: FabricNews) -> list[str]:
    return [e.detail for e in effects if isinstance(e, FabricLog) and e.news is kind]


def lsp(sequence: int, system: bytes = FAR, *, pseudonode: int = 0, lifetime_s: int = 1200) -> Lsp:
    tlvs = (AreaAddresses(), Hostname(f"say {sequence}"))
    return Lsp(system + bytes((pseudonode, 0)), sequence, lifetime_s, tlvs)


def test_noise_without_the_key_takes_no_share_of_what_the_neighbour_says() -> None:
    near = Near()
    hello = Hello(system_id(1), 9, (AreaAddresses(),))
    noise = near.framed(hello, Keyring(1, {1: b"guessed"}))
    effects = near.take(*[noise] * NOISE_COUNT)
    assert near.rbridge.counters["auth_digest"] == NOISE_COUNT
    assert len(news(effects, FabricNews.AUTHENTICATION_FAILED)) == 1
    assert near.rbridge.counters["control_rate"] == 0
    near.now_s += 8.9
    near.take(near.heard(HELLO))
    near.now_s += 8.9
    assert not news(near.take(), FabricNews.ADJACENCY_DOWN), "the Hello counted"
    assert near.state() == "report"


def test_bfd_of_others_takes_no_share_of_the_session() -> None:
    near = Near(BfdTimers(interval_us=1_000_000))
    genuine = near.heard_bfd()
    other = genuine[:50] + bytes(4) + genuine[54:]  # names no session: it may begin one
    near.take(*[other] * NOISE_COUNT)
    assert near.rbridge.counters["control_rate"] == NOISE_COUNT - READ_RATES[0x8946].burst
    poll = genuine[:43] + bytes((genuine[43] | 0x20,)) + genuine[44:]
    sent = [e.frame for e in near.take(poll) if isinstance(e, SendFrame)]
    assert any(frame[12:14] == b"\x22\xf3" for frame in sent), "it was read: a poll is answered"


def test_what_has_no_key_is_told_before_its_content_is_read() -> None:
    """A bad checksum inside is not seen: the digest was wrong first."""
    near = Near()
    raw = bytearray(encode_signed(lsp(1), Keyring(1, {1: b"guessed"})))
    raw[-1] ^= 1
    near.take(isis_frame(bytes(raw), smac=near.mac))
    assert near.rbridge.counters["auth_digest"] == 1
    assert near.rbridge.counters["lsp_checksum"] == 0


def test_a_neighbour_that_floods_lsps_is_read_at_a_rate_and_its_hellos_still_count() -> None:
    near = Near()
    burst = int(READ_RATES[LSP].burst)
    storm = [near.framed(lsp(number)) for number in range(1, 60)]
    # The bucket is what is looked at: most of the storm is one LSP again and again.
    effects = near.take(*storm, *[storm[0]] * burst)
    assert news(effects, FabricNews.NEIGHBOUR_FLOODING) == ["LSPs over the rate of reading"]
    assert near.rbridge.counters["control_rate"] == len(storm)
    assert near.state() == "report"
    near.now_s += 8.0
    near.take(near.heard(HELLO))
    near.now_s += 2.0
    near.take()
    assert near.state() == "report"
    assert near.rbridge.lsdb.records[FAR + b"\0\0"].lsp.sequence == 59


def test_a_neighbour_that_goes_and_comes_is_read_no_faster() -> None:
    near = Near()
    seen = near.heard(HELLO)
    hello = read_pdu(whole_pdu(seen[14:]))
    assert isinstance(hello, Hello)
    others = tuple(tlv for tlv in hello.tlvs if not isinstance(tlv, Authentication | ThreeWay))
    unseen = near.framed(replace(hello, tlvs=(*others, ThreeWay(ThreeWayState.DOWN, 1))))
    storm = [near.framed(lsp(1))] * int(READ_RATES[LSP].burst)
    for flap in range(3):
        near.now_s += 1.0
        (probe,) = (
            pdu
            for effect in near.take(unseen, seen)
            if isinstance(effect, SendFrame)
            and isinstance(pdu := read_pdu(whole_pdu(effect.frame[14:])), MtuPdu)
        )
        tlvs = tuple(tlv for tlv in probe.tlvs if not isinstance(tlv, Authentication))
        near.take(near.framed(replace(probe, is_ack=True, ack_source=system_id(1), tlvs=tlvs)))
        assert near.state() == "report", flap
        near.take(*storm)
    assert near.rbridge.counters["control_rate"] >= 2 * len(storm) - 2 * READ_RATES[LSP].per_s


def database() -> Lsdb:
    found = Lsdb(ME, Keyring(), pdu_bytes_max=1390, now_s=0.0)
    found.circuit_up(1, 0.0)
    found.originate({0: (Hostname("me"),)}, 0.0)
    return found


def give(lsdb: Lsdb, value: Lsp, now_s: float = 0.0) -> None:
    decoded, raw = decode_pdu(encode_pdu(value))
    assert isinstance(decoded, Lsp)
    lsdb.receive_lsp(1, decoded, raw, now_s)


def test_no_neighbour_makes_up_more_rbridges_than_a_campus_may_have() -> None:
    lsdb = database()
    for number in range(SYSTEM_COUNT_MAX + 50):
        give(lsdb, lsp(1, b"\x02\x66" + number.to_bytes(4, "big")))
    assert len(lsdb.records) == SYSTEM_COUNT_MAX
    assert lsdb.refused == {1: f"more RBridges than {SYSTEM_COUNT_MAX}"}
    known = b"\x02\x66" + bytes(4)
    give(lsdb, lsp(2, known))
    assert lsdb.records[known + b"\0\0"].lsp.sequence == 2, "those that are there are heard on"
    give(lsdb, lsp(3, known, lifetime_s=0))
    lsdb.tick(61.0)
    give(lsdb, lsp(1), 61.0)
    assert FAR + b"\0\0" in lsdb.records, "there is room again"


def test_no_neighbour_makes_up_more_lsps_than_are_kept() -> None:
    lsdb = database()
    one = lsdb.records[ME + b"\0\0"]
    for number in range(ENTRY_COUNT_MAX - len(lsdb.records)):
        lsdb.records[number.to_bytes(8, "big")] = one
    give(lsdb, lsp(1))
    assert FAR + b"\0\0" not in lsdb.records
    assert lsdb.refused == {1: f"more LSPs than {ENTRY_COUNT_MAX}"}


def test_what_finds_no_room_is_said_once_until_it_happens_again() -> None:
    near = Near()
    near.rbridge.lsdb._system_count = SYSTEM_COUNT_MAX  # what a long storm would lead to
    stranger = near.framed(lsp(1))
    assert len(news(near.take(stranger), FabricNews.NEIGHBOUR_FLOODING)) == 1
    near.now_s += 60.0
    assert not news(near.take(), FabricNews.NEIGHBOUR_FLOODING)


def test_a_storm_in_our_name_is_outbid_at_a_rate() -> None:
    lsdb = database()
    for sequence in range(2, 3000):
        give(lsdb, lsp(sequence, ME))
    record = lsdb.records[ME + b"\0\0"]
    assert record.lsp.sequence <= 2 * OWN_RATE.burst + 1, "each answer is one more than what came"
    assert lsdb.disputed == {1}
    lsdb.tick(1.0)
    record = lsdb.records[ME + b"\0\0"]
    assert (record.lsp.sequence, record.lsp.tlvs) == (3000, (Hostname("me"),))
    answer_count = 0
    for sequence in range(3001, 4001):
        give(lsdb, lsp(sequence, ME), 1.0 + (sequence - 3000) / 1000)
        answer_count += lsdb.records[ME + b"\0\0"].lsp.sequence > sequence
    assert 5 <= answer_count <= 5 * 2, "what came in by then, and five a second"


def test_a_storm_in_our_name_is_said_once() -> None:
    near = Near()
    mine = system_id(0)
    frames = [near.framed(lsp(2 * number, mine)) for number in range(10, 300)]
    effects = near.take(*frames)
    assert len(news(effects, FabricNews.NAME_DISPUTED)) == 1
    assert near.state() == "report"
    near.now_s += 1.0
    said = [e for e in near.take() if isinstance(e, SendFrame) and e.frame[18] == 18]
    assert said, "what we say of ourselves is said again"
    near.now_s += 60.0
    assert not news(near.take(), FabricNews.NAME_DISPUTED), "it is over"


def test_a_pseudonode_in_our_name_does_not_make_us_fall_silent() -> None:
    lsdb = database()
    give(lsdb, lsp(SEQUENCE_MAX, ME, pseudonode=7))
    lsdb.originate({0: (Hostname("new"),)}, 1.0)
    record = lsdb.records[ME + b"\0\0"]
    assert (record.lsp.sequence, record.lsp.tlvs) == (2, (Hostname("new"),))


def test_hush_is_bounded_by_what_it_keeps_and_by_what_it_lets_through() -> None:
    hush = Hush(30.0)
    assert sum(hush.may_say(number, 0.0) for number in range(10_000)) == HUSH_KEYS_MAX
    assert not hush.may_say(0, 29.0)
    assert hush.may_say(0, 30.0)


def test_an_rbridge_without_a_neighbour_is_read_at_a_rate_too() -> None:
    campus = Campus(1)
    campus.add(RBridgeConfig(system_id(0), "alone", ring=RING))
    rbridge = campus.nodes[0].rbridge
    rbridge.handle(TrunkAdded(Trunk(PORT, b"\2" * 6)), 0.0)
    hello = isis_frame(encode_signed(Hello(FAR, 9, ()), RING), smac=b"\4" * 6)
    rbridge.handle_all([FrameReceived(PORT, hello)] * 1000, 0.0)
    assert rbridge.counters["control_rate"] == 1000 - READ_RATES[HELLO].burst


# ---- LISP ----

IID = 9
SITES = {name * 8: LispKey(name * 4) for name in (b"a", b"b")}
EID = host_eid(IID, IPv4Address("203.0.113.5"))
SOURCE, SERVER = ip_address("10.0.0.1"), ip_address("10.0.0.100")


def server() -> MapServer:
    made = MapServer(SERVER, 0.0)
    everything = Eid(IID, ip_network("203.0.113.0/24"))
    wide = Eid(IID, ip_network("2001:db8::/64"))
    names = frozenset(SITES)
    made.allow([EidAllowance(everything, names), EidAllowance(wide, names)], SITES)
    return made


def register(nonce: int, site: bytes, xtr: bytes, *, records: int = 1) -> DatagramReceived:
    record = MapRecord(EID, (Locator(SOURCE),))
    message = MapRegister(nonce, (record,) * records, sender=XtrName(xtr, site))
    return DatagramReceived(SOURCE, 4342, encode_signed_lisp(message, SITES[site]))


def logged(made: MapServer, event: DatagramReceived, now_s: float = 0.0) -> list[LispNews]:
    return [e.news for e in made.handle(event, now_s) if isinstance(e, LispLog)]


def test_a_site_that_floods_registers_is_read_at_a_rate_and_others_are_heard() -> None:
    made = server()
    one = register(1, b"a" * 8, bytes(16))
    said = [news for _ in range(6000) for news in logged(made, one)]
    assert said.count(LispNews.FLOODING) == 1
    assert made.counters["register_rate"] == 6000 - REGISTER_RATE.burst
    assert LispNews.MOVED in logged(made, register(1, b"b" * 8, bytes(16)))


def test_a_site_does_not_use_up_the_nonces_of_anothers_router() -> None:
    made = server()
    made.handle(register(1 << 60, b"b" * 8, bytes(16), records=0), 0.0)
    assert LispNews.REGISTERED in logged(made, register(5, b"a" * 8, bytes(16)))


def test_a_site_does_not_make_up_routers_without_end() -> None:
    made = server()
    for number in range(XTRS_MAX + 5):
        made.handle(register(1, b"a" * 8, number.to_bytes(16, "big")), number / 100)
    assert made.counters["register_rate"] == 5


def test_subscriptions_are_bounded_and_who_finds_no_room_is_answered() -> None:
    made = server()
    made._subscription_count = SUBSCRIPTIONS_MAX - 1  # what a long flood would lead to
    assert is_subscribed(made, 1, 0)
    assert is_subscribed(made, 1, 0, nonce=8), "who is in goes on"
    assert not is_subscribed(made, 2, 0)
    assert is_subscribed(made, 3, 0, now_s=SUBSCRIPTION_S), "those that ended make room"


def test_subscriptions_of_one_address_are_bounded_and_those_that_ended_make_room() -> None:
    made = server()
    for number in range(SUBSCRIBERS_MAX):
        assert is_subscribed(made, 1, number, now_s=number / 100)
    assert not is_subscribed(made, 1, SUBSCRIBERS_MAX, now_s=11.0)
    assert is_subscribed(made, 2, 0, now_s=11.0), "other addresses have their own"
    assert is_subscribed(made, 1, SUBSCRIBERS_MAX, now_s=12.0 + SUBSCRIPTION_S)


def is_subscribed(
    made: MapServer, host: int, router: int, *, nonce: int = 7, now_s: float = 0.0
) -> bool:
    """Ask for an address and for word of its moves; else it is told plainly (a Map-Reply)."""
    name = XtrName(router.to_bytes(16, "big"), b"a" * 8)
    eid = host_eid(IID, IPv6Address(f"2001:db8::{host}"))
    request = MapRequest(nonce, None, (SOURCE,), (eid,), notify=True, sender=name)
    (answer,) = made.handle(DatagramReceived(SOURCE, 4342, encode_request(request)), now_s)
    kind = answer.data[0] >> 4  # type: ignore[union-attr]
    assert kind in {2, 4}
    return kind == 4


def test_one_source_is_answered_at_a_rate() -> None:
    made = server()
    request = encode_request(MapRequest(7, None, (SOURCE,), (EID,)))
    known = DatagramReceived(SOURCE, 4342, request)
    answered = [bool(made.handle(known, 0.0)) for _ in range(int(REQUEST_RATE.burst) + 100)]
    assert made.counters["request_rate"] == 100
    assert sum(answered) == REQUEST_RATE.burst + 1, "the first that is not read is said"


def test_no_more_sources_are_known_than_there_is_room_for() -> None:
    made, at_s = server(), 0.0
    request = encode_request(MapRequest(7, None, (SOURCE,), (EID,)))
    for number in range(SOURCES_MAX + 10):
        at_s += 1 / SOURCE_RATE.per_s
        source = IPv4Address((11 << 24) + number)
        assert made.handle(DatagramReceived(source, 4342, request), at_s), "no faster than is taken"
    assert len(made._buckets) == SOURCES_MAX


def test_sources_made_up_by_the_thousand_do_not_make_us_answer_without_end() -> None:
    made, prng = server(), Random(1)
    request = encode_request(MapRequest(7, None, (SOURCE,), (EID,)))
    known = DatagramReceived(SOURCE, 4342, request)
    assert made.handle(known, 0.0)
    answered = 0
    for number in range(10_000):
        source = IPv4Address(prng.randrange(1 << 32))
        answered += any(
            not isinstance(e, LispLog)
            for e in made.handle(DatagramReceived(source, 4342, request), 0.0)
        )
        if number % 1000 == 0:
            assert len(made.handle(known, 0.0)) == 1, "who asked before is answered on"
    assert answered == SOURCE_RATE.burst - 1
