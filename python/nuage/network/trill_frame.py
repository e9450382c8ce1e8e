"""TRILL data frames (RFC 6325 §3, fine-grained labels RFC 7172, channel RFC 7178).

::

    outer Ethernet 14   DA next hop, or 01-80-C2-00-00-40 when M; SA sending port; 0x22F3
    TRILL header 6      V:2 R:2 M:1 OpLen:5 HopCount:6 | egress or tree root:16 | ingress:16
    options OpLen × 4   first word: flags of RFC 7179; critical bits we do not know -> drop
    inner DA 6, SA 6
    label               0x8100 + TCI (VLAN)   |   0x893B + pri/hi12  0x893B + pri/lo12 (FGL)
    Ethertype 2 and payload as the guest sent them

Outer VLAN tags do not occur: our trunks are point to point.
"""

import struct
from dataclasses import dataclass
from typing import Final

from nuage.network.forwarding import NICKNAME_ANY, Label, Nickname
from nuage.network.wire import MalformedFrame, Reader

ETHERTYPE_TRILL: Final = 0x22F3
ETHERTYPE_L2_ISIS: Final = 0x22F4
ETHERTYPE_FGL: Final = 0x893B
ETHERTYPE_VLAN: Final = 0x8100
ETHERTYPE_CHANNEL: Final = 0x8946
ALL_RBRIDGES: Final = bytes.fromhex("0180c2000040")
ALL_ISIS_RBRIDGES: Final = bytes.fromhex("0180c2000041")
ALL_EGRESS_RBRIDGES: Final = bytes.fromhex("0180c2000042")
HOP_COUNT_MAX: Final = 63
HOP_COUNT_IPV4: Final = 60  # what guests send begins with these: see `first_hops`
HOP_COUNT_IPV6: Final = 15
ETHERNET_BYTES: Final = 14
CRITICAL_OPTION_BITS: Final = 0xE0000000  # RFC 7179 §2: CHbH, CItE, CRSV summary bits
CHANNEL_BFD: Final = 0x002  # RFC 7175
CHANNEL_ECHO: Final = 0x003  # RFC 7175; what is in it is the sender's own matter
CHANNEL_VLAN: Final = 1


@dataclass(frozen=True, slots=True)
class TrillFrame:
    """One TRILL data frame, taken apart. `label` when fine-grained, else `vlan`."""

    outer_dmac: bytes
    outer_smac: bytes
    multi: bool
    hop_count: int
    egress: Nickname
    ingress: Nickname
    inner_dmac: bytes
    inner_smac: bytes
    label: Label | None
    vlan: int
    priority: int
    ethertype: int
    payload: bytes
    version: int = 0
    options: bytes = b""

    @property
    def has_critical_options(self) -> bool:
        """Tell whether the options ask for something that we do not know."""
        if len(self.options) < 4:
            return False
        return bool(int.from_bytes(self.options[:4], "big") & CRITICAL_OPTION_BITS)

    def native(self) -> bytes:
        """Return the guest's own frame: no tag, as access ports carry it."""
        return self.inner_dmac + self.inner_smac + struct.pack(">H", self.ethertype) + self.payload


def encode_trill(frame: TrillFrame) -> bytes:
    """Return the bytes of `frame`."""
    first = (
        frame.version << 14 | frame.multi << 11 | (len(frame.options) // 4) << 6 | frame.hop_count
    )
    head = (
        frame.outer_dmac
        + frame.outer_smac
        + struct.pack(">HHHH", ETHERTYPE_TRILL, first, frame.egress, frame.ingress)
    )
    inner = frame.inner_dmac + frame.inner_smac + _encode_label(frame)
    return head + frame.options + inner + struct.pack(">H", frame.ethertype) + frame.payload


def _encode_label(frame: TrillFrame) -> bytes:
    control = frame.priority << 13
    if frame.label is None:
        return struct.pack(">HH", ETHERTYPE_VLAN, control | frame.vlan)
    return struct.pack(
        ">HHHH",
        ETHERTYPE_FGL,
        control | frame.label >> 12,
        ETHERTYPE_FGL,
        control | frame.label & 0xFFF,
    )


def decode_trill(data: bytes) -> TrillFrame:
    """Take a frame apart; nothing is judged but its form.

    Raises:
        MalformedFrame: too short, another Ethertype, no or half a data label.
    """
    reader = Reader(data)
    outer_dmac, outer_smac = reader.take(6), reader.take(6)
    if reader.u16() != ETHERTYPE_TRILL:
        raise MalformedFrame("ethertype")
    first, egress, ingress = reader.u16(), reader.u16(), reader.u16()
    options = reader.take((first >> 6 & 0x1F) * 4)
    inner_dmac, inner_smac = reader.take(6), reader.take(6)
    label, vlan, priority = _decode_label(reader)
    return TrillFrame(
        outer_dmac=outer_dmac,
        outer_smac=outer_smac,
        multi=bool(first & 0x0800),
        hop_count=first & 0x3F,
        egress=Nickname(egress),
        ingress=Nickname(ingress),
        inner_dmac=inner_dmac,
        inner_smac=inner_smac,
        label=label,
        vlan=vlan,
        priority=priority,
        ethertype=reader.u16(),
        payload=reader.rest(),
        version=first >> 14,
        options=options,
    )


def _decode_label(reader: Reader) -> tuple[Label | None, int, int]:
    """Return (label, vlan, priority) of the inner tag."""
    kind, control = reader.u16(), reader.u16()
    if kind == ETHERTYPE_VLAN:
        return None, control & 0xFFF, control >> 13
    if kind != ETHERTYPE_FGL:
        raise MalformedFrame("label", f"inner tag {kind:#06x}")
    if reader.u16() != ETHERTYPE_FGL:
        raise MalformedFrame("label", "half a fine-grained label")
    return Label((control & 0xFFF) << 12 | reader.u16() & 0xFFF), 0, control >> 13


def first_hops(native: bytes) -> int:
    """Return the hops that a guest's frame begins with.

    The kernel's VXLAN port reads the ECN of what it sends where these counts stand, when the frame
    holds IP. They say there that the sender does not know ECN, as RFC 6040 §4.1 asks of a tunnel
    whose end does not hand marks on.
    """
    offset = 16 if int.from_bytes(native[12:14], "big") == ETHERTYPE_VLAN else 12
    ethertype = int.from_bytes(native[offset : offset + 2], "big")
    return {0x0800: HOP_COUNT_IPV4, 0x86DD: HOP_COUNT_IPV6}.get(ethertype, HOP_COUNT_MAX)


def decrement(data: bytes, *, dmac: bytes, smac: bytes) -> bytes:
    """Return the frame for its next hop: one less to live, new outer addresses, the rest as is."""
    return dmac + smac + data[12:15] + bytes((data[15] - 1,)) + data[16:]


def reflect(data: bytes, *, smac: bytes) -> bytes:
    """Return a one-hop echo on its way back: only the outer addresses change."""
    return data[6:12] + smac + data[12:]


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """An RBridge Channel message (RFC 7178): the way control talks inside TRILL data.

    ::

        0x8946 | CHV:4 protocol:12 | flags:12 (SL MH NA …) err:4 | protocol's own bytes
    """

    protocol: int
    payload: bytes
    silent: bool = True
    multi_hop: bool = False
    error: int = 0


def encode_channel(message: ChannelMessage) -> bytes:
    """Return the bytes after the 0x8946 Ethertype."""
    flags = message.silent << 15 | message.multi_hop << 14
    return struct.pack(">HH", message.protocol, flags | message.error) + message.payload


def decode_channel(data: bytes) -> ChannelMessage:
    """Take apart what follows 0x8946.

    Raises:
        MalformedFrame: too short or another channel version.
    """
    reader = Reader(data)
    first, second = reader.u16(), reader.u16()
    if first >> 12:
        raise MalformedFrame("channel_version")
    return ChannelMessage(
        protocol=first & 0xFFF,
        payload=reader.rest(),
        silent=bool(second & 0x8000),
        multi_hop=bool(second & 0x4000),
        error=second & 0xF,
    )


def one_hop_channel_frame(
    message: ChannelMessage, *, dmac: bytes, smac: bytes, ingress: Nickname
) -> bytes:
    """Return a TRILL frame that carries `message` to the neighbour and no further (RFC 7175 §3)."""
    return encode_trill(
        TrillFrame(
            outer_dmac=dmac,
            outer_smac=smac,
            multi=False,
            hop_count=HOP_COUNT_MAX,
            egress=NICKNAME_ANY,
            ingress=ingress,
            inner_dmac=ALL_EGRESS_RBRIDGES,
            inner_smac=smac,
            label=None,
            vlan=CHANNEL_VLAN,
            priority=7,
            ethertype=ETHERTYPE_CHANNEL,
            payload=encode_channel(message),
        )
    )
