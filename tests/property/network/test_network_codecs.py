"""Every parser: what is written is read back; whatever a stranger sends is refused in one way."""

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.data.network.golden_answers import (
    PORT,
    arp_question,
    dhcp_question,
    neighbour_question,
    router_question,
    switch,
)
from tests.data.network.lisp_tables import data_header, decode_data

from nuage.network import isis_tlv as tlv
from nuage.network import lisp_message as lisp
from nuage.network.bfd import BfdPacket, BfdState, decode_bfd, encode_bfd
from nuage.network.dhcp import DhcpType
from nuage.network.fabric_trace import decode_trace
from nuage.network.forwarding import Label, MapAction, Nickname
from nuage.network.guest_frame import parse_flow
from nuage.network.isis_auth import Keyring, encode_signed, verify
from nuage.network.isis_pdu import (
    Csnp,
    Hello,
    Lsp,
    MtuPdu,
    Psnp,
    decode_pdu,
    encode_pdu,
    with_lifetime,
)
from nuage.network.runner import parse_link_messages
from nuage.network.trill_frame import (
    ChannelMessage,
    TrillFrame,
    decode_channel,
    decode_trill,
    decrement,
    encode_channel,
    encode_trill,
)
from nuage.network.wire import MalformedFrame, fletcher_checksum, fletcher_is_good

UNHURRIED = settings(deadline=None)  # the machine may be shared; time is not what is tested
mac = st.binary(min_size=6, max_size=6)
u8, u16, u24, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 24, 32))
nickname = u16.map(Nickname)
unknown_number = st.sampled_from((2, 3, 100, 200, 211, 250))
unknown = st.builds(tlv.UnknownTlv, unknown_number, st.binary(max_size=40))
unknown_sub = st.builds(tlv.UnknownTlv, st.sampled_from((30, 77, 200)), st.binary(max_size=20))
summary = st.builds(tlv.LspSummary, u16, st.binary(min_size=8, max_size=8), u32, u16)
reach = st.builds(
    tlv.Reach,
    st.binary(min_size=7, max_size=7),
    u24,
    st.none() | u16,
    st.none() | st.tuples(u32, u32),
    st.lists(unknown_sub, max_size=1).map(tuple),
)
record = st.builds(tlv.NicknameRecord, u8, u16, nickname)
roots = st.lists(mac, max_size=3).map(tuple)
capability_sub = st.one_of(
    st.builds(tlv.Nicknames, st.lists(record, max_size=3).map(tuple)),
    st.builds(tlv.Trees, u16, u16, u16),
    st.builds(tlv.TreeRoots, u16, st.lists(nickname, max_size=4).map(tuple)),
    st.builds(tlv.TreesUsed, u16, st.lists(nickname, max_size=4).map(tuple)),
    st.builds(
        tlv.InterestedVlans,
        nickname,
        st.integers(0, 4095),
        st.integers(0, 4095),
        st.integers(0, 15),
        u32,
        roots,
    ),
    st.builds(tlv.TrillVersion, u8, u32),
    st.builds(tlv.InterestedLabels, nickname, u24.map(Label), u24, u8, u32, roots),
    unknown_sub,
)
port_sub = st.one_of(
    st.builds(tlv.SpecialVlans, u16, nickname, st.integers(0, 4095), st.integers(0, 4095)),
    st.builds(tlv.PortTrillVersion, u8, u32),
    unknown_sub,
)
three_way = st.one_of(
    st.builds(tlv.ThreeWay, st.integers(0, 2), u32),
    st.builds(tlv.ThreeWay, st.integers(0, 2), u32, mac, u32),
)
any_tlv = st.one_of(
    st.builds(tlv.AreaAddresses, st.lists(st.binary(max_size=13), max_size=3).map(tuple)),
    st.builds(tlv.Padding, st.integers(0, 255)),
    st.builds(tlv.LspEntries, st.lists(summary, max_size=15).map(tuple)),
    st.builds(tlv.LspBufferSize, u16),
    st.builds(tlv.ExtendedReach, st.lists(reach, max_size=4).map(tuple)),
    st.builds(tlv.ProtocolsSupported, st.binary(max_size=5)),
    st.builds(tlv.Hostname, st.text("abc-xyz.09", max_size=20)),
    st.builds(tlv.PortCapability, st.lists(port_sub, max_size=3).map(tuple), st.integers(0, 4095)),
    three_way,
    st.builds(tlv.RouterCapability, st.lists(capability_sub, max_size=4).map(tuple), u32, u8),
    unknown,
)
tlvs = st.lists(any_tlv, max_size=5).map(tuple)
id7 = st.binary(min_size=7, max_size=7)
id8 = st.binary(min_size=8, max_size=8)
pdu = st.one_of(
    st.builds(Hello, mac, st.integers(1, 65535), tlvs, u8, st.integers(0, 3)),
    st.builds(Csnp, id7, id8, id8, tlvs),
    st.builds(Psnp, id7, tlvs),
    st.builds(MtuPdu, st.booleans(), mac, mac, mac, tlvs),
)
lsp = st.builds(Lsp, id8, u32, st.integers(1, 65535), tlvs, u8)


@UNHURRIED
@given(pdu)
def test_a_pdu_is_read_as_it_was_written(value: Hello | Csnp | Psnp | MtuPdu) -> None:
    raw = encode_pdu(value)
    assert decode_pdu(raw) == (value, raw)
    assert decode_pdu(raw + bytes(20)) == (value, raw), "Ethernet padding is cut off"


@UNHURRIED
@given(lsp, u16)
def test_an_lsp_survives_ageing_in_transit(value: Lsp, lifetime_s: int) -> None:
    """Unknown TLVs included: transit changes the lifetime and nothing else."""
    raw = encode_pdu(value)
    assume(lifetime_s > 0)
    decoded, _ = decode_pdu(with_lifetime(raw, lifetime_s))
    assert isinstance(decoded, Lsp)
    assert decoded.tlvs == value.tlvs
    assert decoded.lifetime_s == lifetime_s


@UNHURRIED
@given(st.one_of(pdu, lsp))
def test_a_signed_pdu_verifies_and_only_with_its_key(value: Hello | Lsp) -> None:
    ring = Keyring(7, {7: b"secret"})
    raw = encode_signed(value, ring)
    _, exact = decode_pdu(raw)
    verify(exact, ring)
    for other in (Keyring(7, {7: b"Secret"}), Keyring(8, {8: b"secret"})):
        with pytest.raises(MalformedFrame, match="auth"):
            verify(exact, other)


@UNHURRIED
@given(st.one_of(pdu, lsp), st.data())
def test_a_changed_bit_of_a_signed_pdu_is_never_accepted(value: Lsp, data: st.DataObject) -> None:
    ring = Keyring(1, {1: b"secret"})
    raw = bytearray(encode_signed(value, ring))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        decoded, exact = decode_pdu(bytes(raw))
        verify(exact, ring)
    except MalformedFrame:
        return
    if isinstance(decoded, Lsp):
        # Lifetime may change on the way; a purge's checksum is not looked at (no content is).
        assert bit // 8 in (10, 11) or (bit // 8 in (24, 25) and decoded.lifetime_s == 0)
    else:
        # Bits that ISO 10589 says to ignore on receipt are not read, but they are signed.
        pytest.fail(f"bit {bit} of {value!r} changed and was accepted")


@UNHURRIED
@given(st.binary(min_size=14, max_size=80))
def test_the_fletcher_checksum_verifies_and_sees_a_changed_byte(data: bytes) -> None:
    checksum = fletcher_checksum(data, 12)
    whole = data[:12] + checksum.to_bytes(2, "big") + data[14:]
    assert fletcher_is_good(whole)
    changed = bytes(((whole[0] + 1) % 255,)) + whole[1:]
    assert not fletcher_is_good(changed) or changed[0] % 255 == whole[0] % 255


trill = st.builds(
    TrillFrame,
    outer_dmac=mac,
    outer_smac=mac,
    multi=st.booleans(),
    hop_count=st.integers(0, 63),
    egress=nickname,
    ingress=nickname,
    inner_dmac=mac,
    inner_smac=mac,
    label=u24.map(Label),
    vlan=st.just(0),
    priority=st.integers(0, 7),
    ethertype=u16,
    payload=st.binary(max_size=60),
    version=st.integers(0, 3),
    options=st.integers(0, 31).map(lambda words: bytes(4 * words)),
)


@UNHURRIED
@given(trill)
def test_a_trill_frame_is_read_as_it_was_written(frame: TrillFrame) -> None:
    data = encode_trill(frame)
    assert decode_trill(data) == frame
    if frame.hop_count:
        moved = decode_trill(decrement(data, dmac=b"a" * 6, smac=b"b" * 6))
        assert moved.hop_count == frame.hop_count - 1
        assert (moved.multi, moved.options, moved.native()) == (
            frame.multi,
            frame.options,
            frame.native(),
        )


@UNHURRIED
@given(st.builds(ChannelMessage, st.integers(0, 4095), st.binary(max_size=40), st.booleans()))
def test_a_channel_message_is_read_as_it_was_written(message: ChannelMessage) -> None:
    assert decode_channel(encode_channel(message)) == message


@UNHURRIED
@given(
    st.builds(
        BfdPacket,
        st.sampled_from((BfdState.ADMIN_DOWN, BfdState.DOWN)),
        st.integers(1, 255),
        st.integers(1, 2**32 - 1),
        u32,
        u32,
        u32,
        st.integers(0, 31),
        st.booleans(),
        st.booleans(),
    )
)
def test_a_bfd_packet_is_read_as_it_was_written(packet: BfdPacket) -> None:
    assert decode_bfd(encode_bfd(packet)) == packet


address = st.one_of(st.builds(IPv4Address, u32), st.builds(IPv6Address, st.integers(0, 2**128 - 1)))


@st.composite
def eids(draw: st.DrawFn) -> lisp.Eid:
    value = draw(address)
    bits = draw(st.integers(0, value.max_prefixlen))
    network = IPv4Network if isinstance(value, IPv4Address) else IPv6Network
    return lisp.Eid(draw(u24), network((value, bits), strict=False))


locator = st.builds(lisp.Locator, address, u8, u8, st.booleans(), st.booleans(), st.booleans())
map_record = st.builds(
    lisp.MapRecord,
    eids(),
    st.lists(locator, max_size=3).map(tuple),
    u32,
    st.sampled_from(MapAction),
    st.booleans(),
    st.integers(0, 4095),
)
records = st.lists(map_record, max_size=3).map(tuple)
nonce = st.integers(0, 2**64 - 1)
sender = st.none() | st.builds(
    lisp.XtrName, st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)
)
request = st.builds(
    lisp.MapRequest,
    nonce,
    st.none() | address.map(lambda a: lisp.host_eid(9, a)),
    st.lists(address, min_size=1, max_size=4).map(tuple),
    st.lists(eids(), min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    sender,
)


@UNHURRIED
@given(request)
def test_a_map_request_is_read_as_it_was_written(message: lisp.MapRequest) -> None:
    raw = lisp.encode_request(message)
    assert lisp.decode_message(raw) == message
    inner = lisp.Encapsulated(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 4342, raw)
    assert lisp.decode_encapsulated(lisp.encode_encapsulated(inner)) == inner


@UNHURRIED
@given(st.builds(lisp.MapReply, nonce, records, st.booleans()))
def test_a_map_reply_is_read_as_it_was_written(message: lisp.MapReply) -> None:
    assert lisp.decode_message(lisp.encode_reply(message)) == message


@UNHURRIED
@given(
    st.one_of(
        st.builds(lisp.MapRegister, nonce, records, st.booleans(), st.booleans(), sender),
        st.builds(lisp.MapNotify, nonce, records, st.booleans(), sender),
    ),
    st.sampled_from((1, 2)),
)
def test_a_signed_lisp_message_verifies_and_only_with_its_key(
    message: lisp.MapRegister | lisp.MapNotify, algorithm: int
) -> None:
    key = lisp.LispKey(b"secret", algorithm)
    raw = lisp.encode_signed(message, key)
    assert lisp.decode_message(raw) == message
    lisp.verify_signed(raw, key)
    with pytest.raises(MalformedFrame):
        lisp.verify_signed(raw, lisp.LispKey(b"other", algorithm))
    with pytest.raises(MalformedFrame):
        lisp.verify_signed(raw, lisp.LispKey(b"secret", 3 - algorithm))


@UNHURRIED
@given(u24, st.integers(0, 2**24 - 1), st.binary(max_size=30))
def test_lisp_data_is_read_as_it_was_written(iid: int, mark: int, packet: bytes) -> None:
    assert decode_data(data_header(iid, mark) + packet) == (iid, packet)


def _verify_any(data: bytes) -> None:
    lisp.verify_signed(data, lisp.LispKey(b"x", 1))


DHCP_QUESTION = dhcp_question(DhcpType.DISCOVER)


def _ask_the_segment(data: bytes) -> None:
    """ARP, ND, router solicitations and DHCP of a guest that says anything."""
    for start in (arp_question(), neighbour_question(), router_question(), DHCP_QUESTION):
        for kept in (14, 21, len(start) - 8):
            switch().answer(PORT, start[:kept] + data, 0.0)


def _read_trace(data: bytes) -> None:
    decode_trace(bytes((1 + len(data) % 2, 0)) + data)


PARSERS: list[Callable[[bytes], object]] = [
    decode_pdu,
    decode_trill,
    decode_channel,
    decode_bfd,
    parse_flow,
    lisp.decode_message,
    lisp.decode_encapsulated,
    _verify_any,
    _ask_the_segment,
    parse_link_messages,
    _read_trace,
]


@pytest.mark.parametrize("parse", PARSERS)
@UNHURRIED
@given(data=st.binary(max_size=120))
def test_a_parser_takes_any_bytes_or_says_malformed(
    parse: Callable[[bytes], object], data: bytes
) -> None:
    with suppress(MalformedFrame):
        parse(data)


@settings(deadline=None, max_examples=300)
@given(value=st.one_of(pdu, lsp), data=st.data())
def test_a_mutilated_pdu_is_refused_or_read_but_never_crashes(
    value: Lsp, data: st.DataObject
) -> None:
    raw = bytearray(encode_pdu(value))
    prng = Random(data.draw(u32))
    for _ in range(prng.randrange(1, 6)):
        raw[prng.randrange(8 if len(raw) > 8 else 0, len(raw))] = prng.randrange(256)
    cut = bytes(raw[: prng.randrange(len(raw) + 1)]) if prng.random() < 0.3 else bytes(raw)
    with suppress(MalformedFrame):
        decode_pdu(cut)


signed = st.one_of(
    st.builds(lisp.MapRegister, nonce, records, st.booleans(), st.booleans(), sender),
    st.builds(lisp.MapNotify, nonce, records, st.booleans(), sender),
).map(lambda message: lisp.encode_signed(message, lisp.LispKey(b"x", 2)))
reply = st.builds(lisp.MapReply, nonce, records, st.booleans()).map(lisp.encode_reply)


@settings(deadline=None, max_examples=300)
@given(value=st.one_of(request.map(lisp.encode_request), reply, signed), data=st.data())
def test_a_mutilated_lisp_message_is_refused_or_read_but_never_crashes(
    value: bytes, data: st.DataObject
) -> None:
    raw = bytearray(value)
    prng = Random(data.draw(u32))
    for _ in range(prng.randrange(1, 5)):
        raw[prng.randrange(len(raw))] = prng.randrange(256)
    for cut in (bytes(raw), bytes(raw[: prng.randrange(len(raw) + 1)])):
        for parse in (lisp.decode_message, lisp.decode_encapsulated, _verify_any):
            with suppress(MalformedFrame):
                parse(cut)
