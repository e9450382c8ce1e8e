"""Frames that came for a guest while it stood still before it left: made whole, and sent after it.

Pure. The kernel hands a frame on its way to a tap over with a virtio-net header, which says what
is not filled in yet (a checksum) or not cut yet (a super-frame)::

    flags:8 | gso_type:8 | header length:16 | segment size:16 | checksum from:16 | its offset:16

Sent after the guest, a frame enters the fabric a second time, here: its ingress is this RBridge.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from nuage.network.forwarding import (
    Entry,
    FibEntry,
    Label,
    Nickname,
    PortNumber,
    SelfEntry,
)
from nuage.network.trill_frame import HOP_COUNT_MAX, TrillFrame, encode_trill
from nuage.network.wire import internet_checksum

VNET_HEADER: Final = struct.Struct("=BBHHHH")  # in the host's order, as a packet socket has it
NEEDS_CHECKSUM: Final = 1
ETHERNET_BYTES: Final = 14


def made_whole(data: bytes) -> bytes | None:
    """Return the frame behind a virtio-net header, its checksum filled in.

    None for a super-frame: its sender will send it again, in pieces that it knows to be lost.
    """
    if len(data) < VNET_HEADER.size + ETHERNET_BYTES:
        return None
    flags, gso_type, _, _, start, offset = VNET_HEADER.unpack_from(data)
    frame = bytearray(data[VNET_HEADER.size :])
    if gso_type:
        return None
    if flags & NEEDS_CHECKSUM:
        at = start + offset
        if start < ETHERNET_BYTES or at + 2 > len(frame):
            return None
        # The field holds the sum of the pseudo-header; 0 would mean "none" in UDP.
        struct.pack_into(">H", frame, at, internet_checksum(bytes(frame[start:])) or 0xFFFF)
    return bytes(frame)


def sent_after(
    entries: Iterable[Entry],
    label: Label,
    egress: Nickname,
    frames: Iterable[bytes],
    macs: Mapping[PortNumber, bytes],
) -> list[tuple[PortNumber, bytes]]:
    """Return the TRILL frames that carry `frames` to the RBridge `egress`, by trunk.

    All go one way, so that none overtakes another; `macs` are the trunks' own addresses.
    """
    table = tuple(entries)
    me = next((entry for entry in table if isinstance(entry, SelfEntry)), None)
    path = next((e for e in table if isinstance(e, FibEntry) and e.nickname == egress), None)
    if me is None or not me.nickname or path is None:
        return []
    hop = next((hop for hop in path.next_hops if hop.port in macs), None)
    if hop is None:
        return []
    return [
        (
            hop.port,
            encode_trill(
                TrillFrame(
                    outer_dmac=hop.dmac,
                    outer_smac=hop.smac,
                    multi=False,
                    hop_count=HOP_COUNT_MAX,
                    egress=egress,
                    ingress=me.nickname,
                    inner_dmac=frame[:6],
                    inner_smac=frame[6:12],
                    label=label,
                    vlan=0,
                    priority=0,
                    ethertype=int.from_bytes(frame[12:14], "big"),
                    payload=frame[14:],
                )
            ),
        )
        for frame in frames
    ]
