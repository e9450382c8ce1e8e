"""The database and its flooding: what is newer wins, purges travel, numbers wrap, floods end."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from nuage.network.circuit import METRIC_MAX, Trunk, metric_of
from nuage.network.fabric_event import (
    ApplyForwarding,
    CarrierChanged,
    FabricLog,
    FrameReceived,
    Leaving,
    MaintenanceChanged,
    SendFrame,
    TrunkAdded,
)
from nuage.network.forwarding import Label, Nickname, PortNumber
from nuage.network.isis_auth import Keyring, encode_signed
from nuage.network.isis_pdu import (
    LSP_FLAG_OVERLOAD,
    SEQUENCE_MAX,
    Csnp,
    Lsp,
    MtuPdu,
    Psnp,
    decode_pdu,
    encode_pdu,
    isis_frame,
    purge_of,
)
from nuage.network.isis_tlv import (
    AreaAddresses,
    Hostname,
    LspEntries,
    LspSummary,
    NicknameRecord,
    Padding,
    UnknownTlv,
)
from nuage.network.lsdb import LIFETIME_S, ZERO_AGE_S, FloodOutput, Lsdb
from nuage.network.lsp_content import fragments_of, label_ranges, own_tlvs
from nuage.network.rbridge import RBridge, RBridgeConfig

ME, OTHER = b"\x02\x20\0\0\0\1", b"\x02\x20\0\0\0\2"
CIRCUIT, SECOND = 1, 2
T0 = 100.0


def database() -> Lsdb:
    lsdb = Lsdb(ME, Keyring(), pdu_bytes_max=1390, now_s=T0)
    for circuit in (CIRCUIT, SECOND):
        lsdb.circuit_up(circuit, T0)
    lsdb.tick(T0)
    return lsdb


def lsp(sequence: int, *, system: bytes = OTHER, lifetime_s: int = 1200, name: str = "x") -> Lsp:
    return Lsp(system + b"\0\0", sequence, lifetime_s, (AreaAddresses(), Hostname(name)))


def give(lsdb: Lsdb, value: Lsp, *, circuit: int = CIRCUIT, now_s: float = T0) -> bool:
    raw = encode_pdu(value)
    decoded, exact = decode_pdu(raw)
    assert isinstance(decoded, Lsp)
    return lsdb.receive_lsp(circuit, decoded, exact, now_s)


def sent(outputs: list[FloodOutput], kind: type) -> list[tuple[int, object]]:
    found = [(output.circuit, decode_pdu(output.raw)[0]) for output in outputs]
    return [(circuit, pdu) for circuit, pdu in found if isinstance(pdu, kind)]


def test_a_new_lsp_goes_to_all_circuits_but_the_one_it_came_from() -> None:
    lsdb = database()
    assert give(lsdb, lsp(1))
    assert [circuit for circuit, _ in sent(lsdb.tick(T0), Lsp)] == [SECOND]
    psnps = sent(lsdb.tick(T0 + 0.05), Psnp)
    assert [circuit for circuit, _ in psnps] == [CIRCUIT]


def test_an_lsp_is_sent_again_until_it_is_acknowledged() -> None:
    lsdb = database()
    give(lsdb, lsp(1))
    assert sent(lsdb.tick(T0), Lsp)
    assert not sent(lsdb.tick(T0 + 1.0), Lsp)
    assert sent(lsdb.tick(T0 + 2.1), Lsp)
    record = lsdb.records[OTHER + b"\0\0"]
    line = LspSummary(1200, OTHER + b"\0\0", 1, record.lsp.checksum)
    lsdb.receive_psnp(SECOND, Psnp(OTHER + b"\0", (LspEntries((line,)),)), T0 + 2.2)
    assert not sent(lsdb.tick(T0 + 4.5), Lsp)


def test_an_older_lsp_is_answered_with_the_newer() -> None:
    lsdb = database()
    give(lsdb, lsp(5))
    lsdb.tick(T0)
    assert not give(lsdb, lsp(4))
    assert [(c, p.sequence) for c, p in sent(lsdb.tick(T0), Lsp)] == [(CIRCUIT, 5)]  # type: ignore[attr-defined]


def test_unknown_tlvs_travel_on_untouched() -> None:
    lsdb = database()
    strange = Lsp(OTHER + b"\0\0", 1, 1200, (UnknownTlv(222, b"from the future"),))
    give(lsdb, strange)
    ((_, out),) = sent(lsdb.tick(T0), Lsp)
    assert isinstance(out, Lsp)
    assert out.tlvs == strange.tlvs


def test_a_purge_travels_and_is_kept_for_a_minute() -> None:
    lsdb = database()
    give(lsdb, lsp(1))
    lsdb.tick(T0)
    assert give(lsdb, purge_of(lsp(1)))
    ((circuit, out),) = sent(lsdb.tick(T0), Lsp)
    assert (circuit, out.lifetime_s) == (SECOND, 0)  # type: ignore[attr-defined]
    assert not give(lsdb, lsp(1), now_s=T0 + 1), "a copy of what is purged is not believed"
    lsdb.tick(T0 + ZERO_AGE_S + 1)
    assert OTHER + b"\0\0" not in lsdb.records


def test_a_purge_of_what_nobody_has_is_acknowledged_and_forgotten() -> None:
    lsdb = database()
    assert not give(lsdb, purge_of(lsp(9)))
    assert lsdb.records == {}
    assert sent(lsdb.tick(T0 + 0.05), Psnp)


def test_an_lsp_that_is_not_refreshed_is_purged() -> None:
    lsdb = database()
    give(lsdb, lsp(1, lifetime_s=100))
    lsdb.tick(T0)
    out = sent(lsdb.tick(T0 + 101), Lsp)
    assert {pdu.lifetime_s for _, pdu in out} == {0}  # type: ignore[attr-defined]


def test_our_own_is_refreshed_before_it_ages() -> None:
    lsdb = database()
    lsdb.originate({0: (Hostname("me"),)}, T0)
    lsdb.tick(T0 + 1)
    lsdb.tick(T0 + 901)
    assert lsdb.records[ME + b"\0\0"].lsp.sequence == 2


def test_a_forgery_in_our_name_is_outbid() -> None:
    lsdb = database()
    lsdb.originate({0: (Hostname("me"),)}, T0)
    give(lsdb, lsp(77, system=ME, name="not me"))
    record = lsdb.records[ME + b"\0\0"]
    assert (record.lsp.sequence, record.lsp.tlvs) == (78, (Hostname("me"),))
    forged = Lsp(ME + b"\0\7", 5, 1200, (Hostname("fragment that we never said"),))
    give(lsdb, forged)
    assert lsdb.records[ME + b"\0\7"].purged_until_s is not None


def test_when_the_sequence_wraps_we_are_silent_until_every_copy_is_gone() -> None:
    lsdb = database()
    lsdb.originate({0: (Hostname("me"),)}, T0)
    give(lsdb, lsp(SEQUENCE_MAX, system=ME))
    assert lsdb.records[ME + b"\0\0"].purged_until_s is not None
    lsdb.originate({0: (Hostname("me again"),)}, T0 + 100)
    lsdb.tick(T0 + 600)
    assert ME + b"\0\0" not in lsdb.records
    lsdb.tick(T0 + LIFETIME_S + ZERO_AGE_S + 1)
    assert lsdb.records[ME + b"\0\0"].lsp.sequence == 1


def test_a_csnp_brings_out_what_either_side_lacks() -> None:
    lsdb = database()
    give(lsdb, lsp(3))
    lsdb.tick(T0)
    newer = LspSummary(1200, OTHER + b"\0\0", 4, 1)
    unknown = LspSummary(1200, b"\x02\x20\0\0\0\3\0\0", 1, 1)
    whole = Csnp(OTHER + b"\0", bytes(8), b"\xff" * 8, (LspEntries((newer, unknown)),))
    lsdb.receive_csnp(SECOND, whole, T0 + 1)
    ((circuit, psnp),) = [x for x in sent(lsdb.tick(T0 + 1), Psnp) if x[0] == SECOND]
    (entries,) = psnp.tlvs  # type: ignore[attr-defined]
    assert {(line.lsp_id, line.sequence) for line in entries.lines} == {
        (OTHER + b"\0\0", 3), (b"\x02\x20\0\0\0\3\0\0", 0),
    }  # fmt: skip
    assert lsdb.synchronised
    lsdb.receive_csnp(SECOND, Csnp(OTHER + b"\0", bytes(8), b"\xff" * 8, ()), T0 + 2)
    assert [c for c, _ in sent(lsdb.tick(T0 + 2), Lsp)] == [SECOND]
    assert circuit == SECOND


def test_csnps_cover_every_lsp_id_without_a_hole() -> None:
    lsdb = database()
    prng = Random(1)
    for _ in range(300):
        give(lsdb, Lsp(prng.randbytes(6) + b"\0\0", 1, 1200, ()))
    csnps = [p for c, p in sent(lsdb.tick(T0 + 31), Csnp) if c == CIRCUIT]
    assert len(csnps) > 1
    edges = [(p.first, p.last) for p in csnps]  # type: ignore[attr-defined]
    assert (edges[0][0], edges[-1][1]) == (bytes(8), b"\xff" * 8)
    for (_, last), (first, _) in pairwise(edges):
        assert int.from_bytes(first, "big") == int.from_bytes(last, "big") + 1
    lines = [line for p in csnps for e in p.tlvs for line in e.lines]  # type: ignore[attr-defined]
    assert len(lines) == 300
    assert all(len(encode_pdu(p)) <= 1390 for p in csnps)  # type: ignore[arg-type]


def test_two_lsps_of_one_number_end_the_same_everywhere() -> None:
    """Confusion (ISO 10589 §7.3.16.2): in whatever order they come, one of them stays."""
    left, right = database(), database()
    a, b = lsp(5, name="a"), lsp(5, name="b")
    for lsdb, order in ((left, (a, b)), (right, (b, a))):
        for value in order:
            give(lsdb, value)
    assert left.records[OTHER + b"\0\0"].raw == right.records[OTHER + b"\0\0"].raw


def test_labels_are_said_as_ranges_and_many_go_into_fragments() -> None:
    assert label_ranges(Label(n) for n in (5, 1, 2, 3, 9)) == [(1, 3), (5, 5), (9, 9)]
    labels = [Label(2 * n + 1) for n in range(3000)]
    tlvs = own_tlvs(
        hostname="x", record=NicknameRecord(1, 1, Nickname(7)), reaches=[], labels=labels,
        takes_bytes=1390,
    )  # fmt: skip
    fragments, complete = fragments_of(tlvs, 1390)
    assert complete
    assert len(fragments) > 30
    ring = Keyring(1, {1: b"k"})
    for number, content in fragments.items():
        value = Lsp(ME + bytes((0, number)), 1, 1200, content)
        assert len(encode_signed(value, ring)) <= 1390


def test_the_metric_is_what_rfc_6325_recommends() -> None:
    assert metric_of(1_000_000_000) == 20_000
    assert metric_of(1000) == METRIC_MAX
    assert metric_of(10**15) == 1


class Pair:
    """A RBridge and what its neighbour says, by hand."""

    def __init__(self) -> None:
        self.rbridge = RBridge(RBridgeConfig(ME, "me"), Random(1), T0)
        self.mac, self.peer = b"\2" * 6, b"\4" * 6
        self.out = list(
            self.rbridge.handle(TrunkAdded(Trunk(PortNumber(1), self.mac, bfd=None)), T0)
        )

    def receive(self, frame: bytes, now_s: float = T0) -> list[object]:
        return list(self.rbridge.handle(FrameReceived(PortNumber(1), frame), now_s))


def test_an_mtu_probe_is_answered_in_the_same_length_to_the_asker() -> None:
    from nuage.network.campus import Campus, system_id

    campus = Campus(1)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    frames: list[bytes] = []
    campus.tap = lambda _n, _p, frame: frames.append(frame)
    campus.run_until(3.0)
    probes = [f for f in frames if f[12:14] == b"\x22\xf4" and f[18] == 23]
    acks = [f for f in frames if f[12:14] == b"\x22\xf4" and f[18] == 28]
    assert len(probes[0]) == len(acks[0]) == 14 + 1390
    assert acks[0][0] & 1 == 0
    probe, _ = decode_pdu(probes[0][14:])
    assert isinstance(probe, MtuPdu)
    assert any(isinstance(value, Padding) for value in probe.tlvs)


def test_an_rbridge_in_maintenance_is_gone_around_where_there_is_another_way() -> None:
    from nuage.network.campus import Campus, system_id

    campus = Campus(1)
    for number in range(5):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for a, b, metric in ((0, 1, 10), (1, 3, 10), (0, 2, 99), (2, 3, 99), (1, 4, 10)):
        campus.connect(a, b, metric=metric)
    campus.run_until(4.0)

    def distance(to: int) -> int:
        routes = campus.nodes[0].rbridge.routes
        assert routes is not None
        return routes.distance[system_id(to)]

    assert [distance(to) for to in (1, 3, 4)] == [10, 20, 20]
    campus.give(1, MaintenanceChanged(maintenance=True))
    campus.run_for(1.0)
    assert [distance(to) for to in (1, 3)] == [10, 198]
    assert distance(4) == 10 + METRIC_MAX, "behind it is no other way"
    campus.give(1, MaintenanceChanged(maintenance=False))
    campus.run_for(1.0)
    assert [distance(to) for to in (1, 3, 4)] == [10, 20, 20]


def test_an_overloaded_rbridge_is_gone_around_and_one_that_leaves_is_forgotten() -> None:
    """We never say that we are overloaded; a foreign RBridge may."""
    from nuage.network.campus import Campus, system_id

    campus = Campus(1)
    for number in range(4):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    for a, b, metric in ((0, 1, 10), (1, 3, 10), (0, 2, 99), (2, 3, 99)):
        campus.connect(a, b, metric=metric)
    campus.run_until(4.0)
    routes = campus.nodes[0].rbridge.routes
    assert routes is not None
    assert routes.distance[system_id(3)] == 20
    campus.kill(1)  # it would say again what it says of itself
    said = campus.nodes[0].rbridge.lsdb.records[system_id(1) + b"\0\0"].lsp
    flags = said.flags | LSP_FLAG_OVERLOAD
    overloaded = replace(said, sequence=said.sequence + 1, flags=flags, checksum=0)
    frame = isis_frame(encode_signed(overloaded, Keyring()), smac=campus.mac(1, 1))
    campus.give(0, FrameReceived(PortNumber(1), frame))
    campus.run_for(1.0)
    routes = campus.nodes[0].rbridge.routes
    assert routes is not None
    assert routes.distance[system_id(3)] == 198
    assert routes.distance[system_id(1)] == 10, "it is still reached itself"
    campus.restart(1, RBridgeConfig(system_id(1), "rb1"))
    campus.run_for(6.0)
    campus.give(1, Leaving())
    campus.run_for(1.0)
    routes = campus.nodes[0].rbridge.routes
    assert routes is not None
    assert system_id(1) not in routes.reachable


@pytest.mark.parametrize("seed", range(5))
def test_mutilated_control_frames_change_no_forwarding(seed: int) -> None:
    """Unsigned garbage made of true frames: counted by cause; tables and adjacencies stay."""
    from nuage.network.campus import Campus, system_id

    prng = Random(seed)
    ring = Keyring(1, {1: b"k"})
    campus = Campus(seed)
    for number in range(3):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}", ring=ring))
    campus.connect(0, 1)
    campus.connect(1, 2)
    frames: list[bytes] = []
    campus.tap = lambda number, _p, frame: frames.append(frame) if number == 0 else None
    campus.run_until(4.0)
    campus.tap = None
    rbridge = campus.nodes[1].rbridge
    before = (rbridge.table, rbridge.view().neighbours)
    isis = [frame for frame in frames if frame[12:14] == b"\x22\xf4"]
    logs = 0
    for _ in range(400):
        frame = bytearray(prng.choice(isis))
        for _ in range(prng.randrange(1, 4)):
            frame[prng.randrange(14, len(frame))] ^= prng.randrange(1, 256)
        cut = bytes(frame[: prng.randrange(14, len(frame) + 1)])
        effects = rbridge.handle(FrameReceived(PortNumber(1), cut), campus.now_s)
        assert not any(isinstance(effect, ApplyForwarding) for effect in effects)
        logs += sum(isinstance(effect, FabricLog) for effect in effects)
    assert (rbridge.table, rbridge.view().neighbours) == before
    assert sum(rbridge.counters.values()) > 300
    assert logs <= 3, "a flood of garbage is not a flood of log lines"


def test_nothing_is_sent_on_a_trunk_without_carrier() -> None:
    pair = Pair()
    effects = pair.rbridge.handle(CarrierChanged(PortNumber(1), up=False), T0)
    effects += pair.rbridge.tick(T0 + 10)
    assert not any(isinstance(effect, SendFrame) for effect in effects)
    effects = pair.rbridge.handle(CarrierChanged(PortNumber(1), up=True), T0 + 11)
    assert any(isinstance(effect, SendFrame) for effect in effects)
