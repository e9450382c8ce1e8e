"""What of TRILL we leave out, met by accident: said, counted, and without effect."""

from dataclasses import replace

import pytest

from nuage.network.campus import Campus, system_id
from nuage.network.fabric_event import ApplyForwarding, FabricLog, FabricNews, FrameReceived
from nuage.network.forwarding import PortNumber
from nuage.network.isis_pdu import IRPD, Hello, decode_pdu, encode_pdu, isis_frame
from nuage.network.isis_tlv import PortCapability, UnknownTlv
from nuage.network.rbridge import RBridgeConfig

TRUNK = PortNumber(1)
APPOINTED_FORWARDERS = 3  # sub-TLV of 143, RFC 7176 §2.2.3


def neighbours() -> tuple[Campus, bytes]:
    """Return two neighbours, and a Hello that the second heard of the first."""
    campus = Campus(7)
    for number in range(2):
        campus.add(RBridgeConfig(system_id(number), f"rb{number}"))
    campus.connect(0, 1)
    frames: list[bytes] = []
    campus.tap = lambda number, _port, frame: frames.append(frame) if number == 0 else None
    campus.run_until(8.0)
    campus.tap = None
    hellos = [frame for frame in frames if frame[12:14] == b"\x22\xf4" and frame[18] == 17]
    return campus, hellos[-1]


def state(campus: Campus) -> object:
    rbridge = campus.nodes[1].rbridge
    return rbridge.table, rbridge.view().neighbours


def pdu(kind: int, header: int) -> bytes:
    """Return a PDU of a type that we do not speak, as long as its header says."""
    head = bytes((IRPD, header, 1, 0, kind, 1, 0, 0))
    length_at = 17
    body = bytearray((head + bytes(header)).ljust(header, b"\0")[:header])
    body[length_at : length_at + 2] = header.to_bytes(2, "big")
    return bytes(body)


@pytest.mark.parametrize(
    ("what", "kind", "header"),
    [("LAN Hello", 15, 27), ("level 2 LAN Hello", 16, 27), ("level 2 LSP", 20, 27)],
)
def test_a_pdu_that_we_do_not_speak_is_counted_and_said_once(
    what: str, kind: int, header: int
) -> None:
    campus, hello = neighbours()
    rbridge, before = campus.nodes[1].rbridge, state(campus)
    frame = isis_frame(pdu(kind, header), smac=hello[6:12])
    effects = [
        effect
        for _ in range(50)
        for effect in rbridge.handle(FrameReceived(TRUNK, frame), campus.now_s)
    ]
    assert rbridge.counters["pdu_type"] == 50, what
    logs = [effect for effect in effects if isinstance(effect, FabricLog)]
    assert [entry.news for entry in logs] == [FabricNews.MALFORMED]
    assert f"type {kind}" in logs[0].detail
    assert not any(isinstance(effect, ApplyForwarding) for effect in effects)
    assert state(campus) == before


def test_a_hello_that_appoints_us_forwarder_appoints_nothing() -> None:
    """The neighbour stays what it is; no access port of ours hangs on its word."""
    campus, heard = neighbours()
    rbridge, before = campus.nodes[1].rbridge, state(campus)
    hello, _ = decode_pdu(heard[14:])
    assert isinstance(hello, Hello)
    appointed = UnknownTlv(APPOINTED_FORWARDERS, bytes.fromhex("000a 0001 0fff"))
    tlvs = tuple(
        replace(tlv, subs=(*tlv.subs, appointed)) if isinstance(tlv, PortCapability) else tlv
        for tlv in hello.tlvs
    )
    frame = isis_frame(encode_pdu(replace(hello, tlvs=tlvs)), smac=heard[6:12])
    effects = rbridge.handle(FrameReceived(TRUNK, frame), campus.now_s)
    assert not any(isinstance(effect, ApplyForwarding | FabricLog) for effect in effects)
    assert state(campus) == before
