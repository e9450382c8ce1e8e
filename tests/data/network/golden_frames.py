"""One of each frame that we emit, and the tiny writer of captures. `*.pcap` beside are from here.

Run this file to write the captures anew; the diff of the capture is then reviewed like code.
"""

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

from tests.data.network.golden_answers import answers, watching
from tests.data.network.lisp_tables import data_header

from nuage.network import isis_tlv as tlv
from nuage.network import lisp_message as lisp
from nuage.network.bfd import BfdPacket, BfdState, encode_bfd
from nuage.network.forwarding import Label, MapAction, Nickname
from nuage.network.isis_auth import Keyring, encode_signed
from nuage.network.isis_pdu import Csnp, Hello, Lsp, MtuPdu, Pdu, Psnp, isis_frame, purge_of
from nuage.network.lsp_content import own_tlvs
from nuage.network.trill_frame import (
    ALL_RBRIDGES,
    CHANNEL_BFD,
    ChannelMessage,
    TrillFrame,
    encode_trill,
    one_hop_channel_frame,
)
from nuage.network.wire import internet_checksum

HERE = Path(__file__).parent
RING = Keyring(7, {7: b"golden key"})
PLAIN = Keyring()
MAC_A = bytes.fromhex("021000000001")
MAC_B = bytes.fromhex("021000010001")
SYSTEM_A = bytes.fromhex("022000000000")
SYSTEM_B = bytes.fromhex("022000000001")
NICKNAME = Nickname(0x1234)


def write_pcap(path: Path, frames: list[bytes]) -> None:
    """Write Ethernet frames as a classic capture, one millisecond apart."""
    parts = [struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for number, frame in enumerate(frames):
        parts.append(struct.pack(">IIII", 0, number * 1000, len(frame), len(frame)) + frame)
    path.write_bytes(b"".join(parts))


def hello(state: int, neighbour: bytes | None) -> Hello:
    return Hello(
        source=SYSTEM_A,
        holding_s=3,
        circuit_id=1,
        tlvs=(
            tlv.AreaAddresses(),
            tlv.ProtocolsSupported(),
            tlv.ThreeWay(state, 1, neighbour, 2 if neighbour else None),
            tlv.PortCapability((tlv.SpecialVlans(1, NICKNAME), tlv.PortTrillVersion())),
        ),
    )


def lsp(labels: tuple[Label, ...] = ()) -> Lsp:
    tlvs = own_tlvs(
        hostname="marne-edge-1",
        record=tlv.NicknameRecord(0xC0, 0x8000, NICKNAME),
        reaches=[tlv.Reach(SYSTEM_B + b"\0", 2000, 1390)],
        labels=labels,
        takes_bytes=1390,
    )
    return Lsp(SYSTEM_A + b"\0\0", 5, 1200, tuple(tlvs))


def isis_frames(ring: Keyring) -> list[bytes]:
    line = tlv.LspSummary(1199, SYSTEM_A + b"\0\0", 5, 0x1234)
    pdus: list[Pdu] = [
        hello(tlv.ThreeWayState.DOWN, None),
        hello(tlv.ThreeWayState.UP, SYSTEM_B),
        lsp(),
        Lsp(
            SYSTEM_A + b"\0\1",
            9,
            1200,
            (
                tlv.RouterCapability(
                    (
                        tlv.TreesUsed(1, (NICKNAME,)),
                        tlv.InterestedVlans(NICKNAME, 1, 10),
                        tlv.TreeRoots(1, (NICKNAME,)),
                    )
                ),
            ),
            flags=tlv_overload(),
        ),
        purge_of(lsp()),
        Csnp(SYSTEM_A + b"\0", bytes(8), b"\xff" * 8, (tlv.LspEntries((line,)),)),
        Psnp(SYSTEM_A + b"\0", (tlv.LspEntries((line,)),)),
    ]
    return [isis_frame(encode_signed(pdu, ring), smac=MAC_A) for pdu in pdus]


def tlv_overload() -> int:
    return 0x05  # level 1 and the overload bit


def gap_frames() -> list[bytes]:
    """What tshark 4.0 cannot read by itself: MTU PDUs, interest in labels, FGL, the channel."""
    probe = MtuPdu(
        is_ack=False,
        probe_id=bytes(range(6)),
        probe_source=SYSTEM_A,
        ack_source=bytes(6),
        tlvs=(tlv.Padding(255), tlv.Padding(100)),
    )
    ack = MtuPdu(
        is_ack=True,
        probe_id=bytes(range(6)),
        probe_source=SYSTEM_A,
        ack_source=SYSTEM_B,
        tlvs=(tlv.Padding(255), tlv.Padding(100)),
    )
    bfd = ChannelMessage(CHANNEL_BFD, encode_bfd(BfdPacket(BfdState.UP, 3, 17, 34, 50_000, 50_000)))
    return [
        isis_frame(encode_signed(probe, RING), smac=MAC_A),
        isis_frame(encode_signed(ack, RING), smac=MAC_B, dmac=MAC_A),
        isis_frame(encode_signed(lsp((Label(1), Label(2), Label(0xABCDEF))), RING), smac=MAC_A),
        data_frame(multi=False, label=Label(0xABCDEF)),
        data_frame(multi=True, label=Label(0xABCDEF)),
        one_hop_channel_frame(bfd, dmac=MAC_B, smac=MAC_A, ingress=NICKNAME),
    ]


def icmp_packet() -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + bytes(range(32))
    body = body[:2] + struct.pack(">H", internet_checksum(body)) + body[4:]
    source, destination = IPv4Address("10.1.0.1").packed, IPv4Address("10.1.0.2").packed
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 1, 0)
    checksum = internet_checksum(head + source + destination)
    return head[:10] + struct.pack(">H", checksum) + source + destination + body


def data_frame(*, multi: bool, label: Label | None) -> bytes:
    return encode_trill(
        TrillFrame(
            outer_dmac=ALL_RBRIDGES if multi else MAC_B,
            outer_smac=MAC_A,
            multi=multi,
            hop_count=63,
            egress=Nickname(0x4321),
            ingress=NICKNAME,
            inner_dmac=bytes.fromhex("060000000002"),
            inner_smac=bytes.fromhex("060000000001"),
            label=label,
            vlan=0 if label else 10,
            priority=0,
            ethertype=0x0800,
            payload=icmp_packet(),
        )
    )


def udp_frame(source_port: int, port: int, payload: bytes) -> bytes:
    source, destination = IPv4Address("192.0.2.1").packed, IPv4Address("192.0.2.2").packed
    udp = struct.pack(">HHHH", source_port, port, 8 + len(payload), 0)
    checksum = internet_checksum(
        source + destination + struct.pack(">HH", 17, 8 + len(payload)) + udp + payload
    )
    udp = udp[:6] + struct.pack(">H", checksum or 0xFFFF)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0)
    check = struct.pack(">H", internet_checksum(head + source + destination))
    ip = head[:10] + check + source + destination
    return MAC_B + MAC_A + b"\x08\x00" + ip + udp + payload


def lisp_frames() -> list[bytes]:
    eid = lisp.Eid(7, IPv4Network("203.0.113.5/32"))
    peer = lisp.host_eid(7, IPv6Address("2001:db8::5"))
    rloc = IPv4Address("192.0.2.1")
    found = lisp.MapRecord(eid, (lisp.Locator(rloc),), version=3)
    negative = lisp.MapRecord(peer, (), ttl_minutes=1, action=MapAction.NATIVELY_FORWARD)
    asks = lisp.MapRequest(nonce=1, source_eid=peer, itr_rlocs=(rloc,), eids=(eid,))
    smr = lisp.MapRequest(nonce=2, source_eid=eid, itr_rlocs=(rloc,), eids=(peer,), smr=True)
    invoked = lisp.MapRequest(
        nonce=3, source_eid=peer, itr_rlocs=(rloc,), eids=(eid,), smr_invoked=True
    )
    probe = lisp.MapRequest(nonce=4, source_eid=None, itr_rlocs=(rloc,), eids=(eid,), probe=True)
    inner = lisp.Encapsulated(
        IPv4Address("192.0.2.1"), IPv4Address("203.0.113.5"), 4342, lisp.encode_request(asks)
    )
    control = [
        lisp.encode_request(asks),
        lisp.encode_request(smr),
        lisp.encode_request(invoked),
        lisp.encode_request(probe),
        lisp.encode_reply(lisp.MapReply(1, (found,))),
        lisp.encode_reply(lisp.MapReply(1, (negative,))),
        lisp.encode_reply(lisp.MapReply(4, (lisp.with_probed(found, rloc),), probe=True)),
        lisp.encode_encapsulated(inner),
    ]
    for algorithm in (1, 2):
        key = lisp.LispKey(b"golden", algorithm)
        control.append(lisp.encode_signed(lisp.MapRegister(5, (found,)), key))
        control.append(lisp.encode_signed(lisp.MapNotify(5, (found,)), key))
        control.append(lisp.encode_signed(lisp.MapNotify(5, (found,), ack=True), key))
    name = lisp.XtrName(bytes(range(16)), bytes(range(8)))
    subscribe = lisp.MapRequest(
        nonce=6, source_eid=peer, itr_rlocs=(rloc,), eids=(eid,), notify=True, sender=name
    )
    control.append(lisp.encode_request(subscribe))
    named = lisp.LispKey(b"golden", 2)
    control.append(lisp.encode_signed(lisp.MapRegister(7, (found,), sender=name), named))
    control.append(lisp.encode_signed(lisp.MapNotify(7, (found,), sender=name), named))
    frames = [udp_frame(4342, 4342, message) for message in control]
    frames.append(udp_frame(61000, 4341, data_header(7, 0xABCDEF) + icmp_packet()))
    return frames


def captures() -> dict[str, list[bytes]]:
    """Return the frames of each capture by its file name."""
    return {
        "trill-plain.pcap": [*isis_frames(PLAIN), data_frame(multi=False, label=None)],
        "trill-signed.pcap": isis_frames(RING),
        "trill-gaps.pcap": gap_frames(),
        "lisp.pcap": lisp_frames(),
        "answers.pcap": [*answers(), *watching()],
    }


if __name__ == "__main__":
    for name, frames in captures().items():
        write_pcap(HERE / name, frames)
