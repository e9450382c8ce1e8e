"""What reads bytes of strangers, as targets of a fuzzer that is guided by coverage.

A target takes any bytes and raises when a promise breaks: `run.py` lets Atheris look for such
bytes, `test_replay.py` repeats the seeds and all that was ever found. Where a checksum, a digest
or a canonical form would stop nearly all that is changed, the first byte asks to make it anew.
"""

import base64
import copy
import hashlib
import hmac
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import msgspec
from tests.data.network.golden_answers import (
    PORT,
    answers,
    arp_question,
    dhcp_question,
    neighbour_question,
    router_question,
    switch,
    watching,
)
from tests.data.network.golden_frames import PLAIN, isis_frames, lisp_frames
from tests.property.network.test_network_plane_fuzz import plane
from tests.property.storage.test_exports_property import HEADER, export
from tests.property.trust import test_trust_audit_properties as audit_logs
from tests.property.trust import test_trust_ledger_properties as ledgers
from tests.property.trust.test_trust_token_properties import (
    FR,
    MARNE,
    NOW_S,
    is_believed,
    token_and_checker,
)
from tests.unit.network.test_network_left_out import neighbours
from tests.unit.storage.test_volume_proof import Bench

from nuage.channel.frames import FrameReader, Hello, Notify, Ping, Request, Subscribe, encode_frame
from nuage.channel.machine import ChannelMachine
from nuage.errors import CorruptData, InvalidRequest, RemoteProtocolError
from nuage.ids import NodeId
from nuage.model.infrastructure import NodeRole
from nuage.network.bfd import BfdPacket, BfdState, decode_bfd, encode_bfd
from nuage.network.campus import Campus
from nuage.network.dhcp import DhcpType
from nuage.network.fabric_event import ApplyForwarding, FabricLog, FabricNews, FrameReceived
from nuage.network.fabric_trace import decode_trace
from nuage.network.forwarding import PortNumber
from nuage.network.guest_frame import is_for_control, is_rogue, parse_flow
from nuage.network.isis_pdu import decode_pdu, isis_frame, with_checksum
from nuage.network.lisp_event import DatagramReceived, LispLog, LispNews
from nuage.network.lisp_message import (
    ALGORITHMS,
    Eid,
    LispKey,
    decode_encapsulated,
    decode_message,
)
from nuage.network.map_server import EidAllowance, MapServer
from nuage.network.runner import parse_link_messages
from nuage.network.trill_frame import CHANNEL_ECHO, decode_channel, decode_trill
from nuage.network.wire import MalformedFrame
from nuage.storage.exports import KIND_DATA, read_header, read_pieces
from nuage.trust.invitation import Joining, make_token, parse_token
from nuage.trust.verify import (
    Report,
    canonical,
    chain_hash,
    heads_of_proof,
    seal_message,
    told,
    told_proof,
    verify_audit,
    verify_ledger,
    verify_proof,
)

MENDS = 1  # of the first byte: checksums, digests and forms are made to fit
LSP, HELLO = 18, 17
FRAME_HEAD_BYTES = 13  # of an export
TRUNK = PortNumber(1)
SERVER, SITE, KEY = ip_address("10.0.0.100"), bytes(8), LispKey(b"golden", 2)


@dataclass(frozen=True)
class Target:
    """One thing to feed bytes to; `seeds` are made by the product's own encoders."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    bytes_max: int = 1500


def with_modes(found: list[bytes]) -> list[bytes]:
    """Return each seed as it is and to be mended."""
    return [bytes((mode,)) + seed for seed in found for mode in (0, MENDS)]


# The fabric -------------------------------------------------------------------------------


@cache
def campus() -> tuple[Campus, bytes]:
    return neighbours()


def mended_pdu(raw: bytes) -> bytes:
    """Return a PDU whose header, length and checksum are what they must be."""
    kind = raw[4] & 0x1F if len(raw) > 18 else 0
    if kind not in {LSP, HELLO, 24, 26}:
        return raw
    length_at = 17 if kind == HELLO else 8
    raw = raw[:length_at] + len(raw).to_bytes(2, "big") + raw[length_at + 2 :]
    return with_checksum(raw) if kind == LSP and len(raw) > 27 else raw


def isis(data: bytes) -> None:
    """A frame of a neighbour: what cannot be read is counted, and changes nothing."""
    world, hello = campus()
    rbridge = copy.deepcopy(world.nodes[1].rbridge)
    before = rbridge.table, rbridge.view().neighbours, sum(rbridge.counters.values())
    pdu = mended_pdu(data[1:]) if data[:1] == bytes((MENDS,)) else data[1:]
    frame = isis_frame(pdu, smac=hello[6:12])
    effects = rbridge.handle(FrameReceived(TRUNK, frame), world.now_s)
    refused = False
    try:
        decode_pdu(pdu)
    except MalformedFrame:
        refused = True
    told_of = [e for e in effects if isinstance(e, FabricLog) and e.news is FabricNews.MALFORMED]
    if refused or told_of:
        assert not any(isinstance(effect, ApplyForwarding) for effect in effects), effects
        assert (rbridge.table, rbridge.view().neighbours) == before[:2]
        assert sum(rbridge.counters.values()) > before[2], "no counter says why"
    rbridge.tick(world.now_s + 60)


def isis_seeds() -> list[bytes]:
    return with_modes([frame[14:] for frame in isis_frames(PLAIN)] + [campus()[1][14:]])


def signed_anew(data: bytes) -> bytes:
    """Return a Map-Register or Map-Notify whose digest is that of the key."""
    name, length, _ = ALGORITHMS[KEY.algorithm]
    if len(data) < 16 + length or data[0] >> 4 not in {3, 4, 5}:
        return data
    head = data[:12] + bytes((KEY.key_id, KEY.algorithm)) + length.to_bytes(2, "big")
    body = data[16 + length :]
    digest = hmac.digest(KEY.secret, head + bytes(length) + body, name)[:length]
    return head + digest + body


def lisp(data: bytes) -> None:
    """A datagram at the map-server: what cannot be read is counted, and registers nothing."""
    message = signed_anew(data[1:]) if data[:1] == bytes((MENDS,)) else data[1:]
    for decode in (decode_message, decode_encapsulated):
        with suppress(MalformedFrame):
            decode(message)
    server = MapServer(SERVER, 1000.0)
    allowed = Eid(7, ip_network("203.0.113.0/24"))
    server.allow([EidAllowance(allowed, frozenset({SITE, bytes(range(8))}))], {SITE: KEY})
    event = DatagramReceived(IPv4Address("192.0.2.1"), 4342, message)
    for round_s in (0.0, 0.1):
        before = server.registered(), sum(server.counters.values())
        effects = server.handle(event, 1001.0 + round_s)
        if any(isinstance(e, LispLog) and e.news is LispNews.MALFORMED for e in effects):
            assert server.registered() == before[0]
            assert sum(server.counters.values()) > before[1], "no counter says why"
        assert all(allowed.covers(record.eid) for record in server.registered())
    for tick_s in (1010.0, 2000.0, 9000.0):
        server.tick(tick_s)


def lisp_seeds() -> list[bytes]:
    return with_modes([frame[42:] for frame in lisp_frames()])


def guest(data: bytes) -> None:
    """A frame of a guest or of a trunk: answered, forwarded by the tables or counted."""
    with suppress(MalformedFrame):
        switch().answer(PORT, data, 0.0)
    for read in (parse_flow, is_for_control, is_rogue, parse_link_messages):
        with suppress(MalformedFrame):
            read(data)
    for decode in (decode_trill, decode_channel, decode_bfd, decode_trace):
        for start in (0, 14, 32):
            with suppress(MalformedFrame):
                decode(data[start:])
    for port in (1, 3):
        made = plane()
        out = made.receive(PortNumber(port), data, 1.0)
        if any(sent.port == port for sent in out):  # a trunk's echo alone goes back
            assert port == 1
            assert decode_channel(decode_trill(data).payload).protocol == CHANNEL_ECHO
        counters = made.counters()
        moved = (
            counters.transit_frames + counters.egress_frames + counters.ingress_frames
            + counters.flooded_frames + len(made.punts) + len(out)
        )  # fmt: skip
        is_to_itself = data[:6] == data[6:12]  # has arrived where it was sent
        assert is_to_itself or moved + sum(counters.drops.values()) >= 1, "not counted"


def guest_seeds() -> list[bytes]:
    questions = [dhcp_question(kind) for kind in DhcpType]
    questions += [arp_question(), neighbour_question(), router_question()]
    packets = [encode_bfd(BfdPacket(BfdState.UP, 3, 1, 2, 200_000, 200_000))]
    return [*questions, *answers(), *watching(), *packets]


# The control channel ----------------------------------------------------------------------


def channel(data: bytes) -> None:
    """A stream of a peer: the same frames however it is cut, or our error."""
    mode, stream = data[:1], data[1:]
    found: list[list[bytes]] = []
    for step in (1, 7, len(stream) or 1):
        reader, frames = FrameReader(), list[bytes]()
        with suppress(RemoteProtocolError):
            for start in range(0, len(stream), step):
                reader.receive(stream[start : start + step])
                while (frame := reader.next_frame()) is not None:
                    frames.append(encode_frame(frame))
        found.append(frames)
    assert found[0] == found[1]
    machine = ChannelMachine(now_s=0)
    if mode == bytes((MENDS,)):
        machine.receive(encode_frame(Hello(1, 1)), 0)
        machine.request("x", b"\xc0", request_id="", budget_ms=0)
        machine.subscribe("y", b"\xc0", request_id="", credit=1)
    with suppress(RemoteProtocolError):
        machine.receive(stream, 0)


def channel_seeds() -> list[bytes]:
    body = msgspec.Raw(b"\x93\x01\xa1x\xc0")
    frames = (
        Hello(1, 2, "nuage"), Request(1, "m", "r", 5, body), Notify("m", "r", body),
        Subscribe(2, "m", "r", 1, body), Ping(3),
    )  # fmt: skip
    single = [encode_frame(frame) for frame in frames]
    return with_modes([*single, b"".join(single)])


# What an auditor is given -----------------------------------------------------------------


@cache
def _proofs() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        first = bench.document()
        bench.grow()
        return first, bench.document(bench.body(since=6))


def _places(value: object) -> Iterator[tuple[dict[str, object] | list[object], str | int]]:
    """Every member of a document, with what holds it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


VALUES: tuple[Callable[[bytes], object], ...] = (
    lambda text: int.from_bytes(text, "big", signed=True),
    lambda text: text.decode(errors="replace"),
    lambda text: text.hex(),
    lambda text: [text.decode(errors="replace")],
    lambda text: {text.decode(errors="replace"): 1},
    lambda text: 10 ** (text[0] if text else 20),
    lambda _: None,
    lambda _: 1.5,
)


def edited(document: dict[str, object], edits: bytes) -> dict[str, object]:
    """Return a document with members replaced, removed or copied elsewhere, as `edits` say."""
    stream = io.BytesIO(edits)
    while len(head := stream.read(4)) == 4:
        places = list(_places(document))
        holder, key = places[int.from_bytes(head[:2], "big") % len(places)]
        act = head[2]
        if act < 0xC0:
            holder[key] = VALUES[act % len(VALUES)](stream.read(head[3]))  # type: ignore[index]
        elif act < 0xE0:
            del holder[key]  # type: ignore[arg-type]
        else:
            other, name = places[int.from_bytes(stream.read(2), "big") % len(places)]
            holder[key] = copy.deepcopy(other[name])  # type: ignore[index]
        if not document:
            break
    return document


@cache
def _small_proof() -> bytes:
    """A proof of one receipt and of one loss: the whole is 20 KiB, its parts are all here."""
    whole = json.loads(_proofs()[1])
    whole["body"]["sites"] = whole["body"]["sites"][:1]
    whole["body"]["sites"][0]["receipts"] = whole["body"]["sites"][0]["receipts"][:2]
    page = {"from_ms": 1, "until_ms": 2, "after": {"lyon": 1}, "next": {}}
    whole["body"]["selection"] = page
    return canonical(whole)


def proof(data: bytes) -> None:
    """A proof that anybody may have written: sound, or with its problems told."""
    first, _ = _proofs()
    document = data[1:]
    if data[:1] == bytes((MENDS,)):
        with suppress(ValueError, RecursionError):
            document = canonical(edited(json.loads(_small_proof()), document)) + b"\n"
    for report in (
        verify_proof(document),
        verify_proof(document, since=first),
        verify_proof(first, since=document),
    ):
        list(told_proof(report))
    with suppress(ValueError):
        heads_of_proof(document)


def proof_seeds() -> list[bytes]:
    count = len(list(_places(json.loads(_small_proof()))))
    edits = [
        bytes((MENDS,)) + place.to_bytes(2, "big") + act + text
        for place in range(0, count, 2)
        for act, text in ((b"\5\1", b"\x1e"), (b"\1\2", b"ab"), (b"\xc0\0", b""))
    ]
    return [b"\0" + _proofs()[1], *edits]


def relinked(data: bytes) -> bytes:
    """Return lines in their canonical form: linked to the one before and signed, or summed."""
    lines, previous = [], "0" * 64
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            if line[9:14] in {b"leaf ", b"head "}:
                content = line[9:14] + canonical(json.loads(line[14:]))
                lines.append(b"%08x %s" % (zlib.crc32(content), content))
                continue
            record = json.loads(line[65:])
            if not isinstance(record, dict):
                raise TypeError
            record |= {"previous": previous, "sequence": number}
            if record.get("kind") == "seal":
                signature = audit_logs.KEY.sign(seal_message(record))
                record["signature"] = base64.b64encode(signature).decode()
            body = canonical(record)
        except (ValueError, TypeError, RecursionError):
            lines.append(line)
            continue
        previous = chain_hash(previous, body)
        lines.append(previous.encode() + b" " + body)
    return b"\n".join(lines)


def audit(data: bytes) -> None:
    """Files of an audit log and of a ledger that anybody may have written."""
    content = relinked(data[1:]) if data[:1] == bytes((MENDS,)) else data[1:]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        file = Path(name) / "audit-000001.log"
        file.write_bytes(content)
        reports: list[Report] = [
            verify_audit(file.parent, audit_logs.KEYS),
            verify_ledger(file, ledgers.KEYS, node_keys=ledgers.NODE_KEYS),
        ]
    for report in reports:
        list(told(report))


@cache
def _ledger() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        ledger = ledgers.open_ledger(Path(name) / "ledger")
        for number in range(2):
            ledger.append(ledgers.receipt(number), ledgers.NODE_KEY)
        ledger.sync()
        ledger.close()
        return (Path(name) / "ledger").read_bytes()


def audit_seeds() -> list[bytes]:
    return with_modes([audit_logs.sealed_log(), _ledger()])


# Files and words that people hand in ------------------------------------------------------


def rechained(data: bytes) -> bytes:
    """Return an export whose chain is right, frame by frame, as far as it can be read."""
    head = HEADER.line()
    out, chain = [head], hashlib.sha256(head).digest()
    rest = data[len(head) :]
    while len(rest) >= FRAME_HEAD_BYTES:
        length = int.from_bytes(rest[9:13], "big") if rest[0] == KIND_DATA else 0
        end = FRAME_HEAD_BYTES + min(length, len(rest))
        frame = rest[:end]
        chain = hashlib.sha256(chain + frame).digest()
        out += [frame, chain]
        rest = rest[end + 32 :]
    return b"".join(out)


def export_file(data: bytes) -> None:
    """A volume's export that anybody may have written: pieces in order, inside the volume."""
    content = rechained(data[1:]) if data[:1] == bytes((MENDS,)) else data[1:]
    file = io.BytesIO(content)
    with suppress(CorruptData):
        state = read_header(file, "a file")
        end = 0
        for piece in read_pieces(file, state, "a file"):
            assert end <= piece.offset
            end = piece.offset + piece.length
            assert end <= state.header.size_bytes
            assert piece.data is None or len(piece.data) == piece.length


def export_seeds() -> list[bytes]:
    return with_modes([export(bytes((1, 0, 2))), export(bytes(3))])


def words(data: bytes) -> None:
    """Tokens that people paste and clients send: only what we made is believed."""
    text = data.decode(errors="replace")
    with suppress(InvalidRequest):
        parse_token(text)
    assert not is_believed(text) or text == token_and_checker()[0]


def word_seeds() -> list[bytes]:
    invitation, _ = make_token(
        joining=Joining.NODE, address="192.0.2.1:7400", federation_id=FR, site_id=MARNE,
        root_fingerprint=bytes(32), now_s=NOW_S, node_id=NodeId("n"), roles=(NodeRole.VNODE,),
    )  # fmt: skip
    return [invitation.encode(), token_and_checker()[0].encode()]


TARGETS: dict[str, Target] = {
    "isis": Target(isis, isis_seeds),
    "lisp": Target(lisp, lisp_seeds, 600),
    "guest-frames": Target(guest, guest_seeds, 600),
    "channel": Target(channel, channel_seeds, 600),
    "proof": Target(proof, proof_seeds, 24_000),
    "audit": Target(audit, audit_seeds, 4000),
    "export": Target(export_file, export_seeds, 2500),
    "tokens": Target(words, word_seeds, 600),
}
