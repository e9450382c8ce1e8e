"""An announcement in a guest's name: "this MAC is behind me now", over the distribution tree.

Pure. A reverse-ARP broadcast, as hypervisors send after a migration, wrapped here for every
branch of the tree that wants the segment: each RBridge that has no directory line for the MAC
learns its new place from it (RFC 6325 §4.8.1), without waiting for the guest to speak.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from nuage.network.forwarding import (
    Entry,
    Label,
    PortNumber,
    PruneEntry,
    SelfEntry,
    TreeEntry,
)
from nuage.network.trill_frame import ALL_RBRIDGES, HOP_COUNT_MAX, TrillFrame, encode_trill

ETHERTYPE_RARP: Final = 0x8035
RARP_REQUEST: Final = 3  # RFC 903: "request reverse"
BROADCAST: Final = b"\xff" * 6
PAYLOAD_BYTES_MIN: Final = 46


def announcement(
    entries: Iterable[Entry], label: Label, mac: bytes, macs: Mapping[PortNumber, bytes]
) -> list[tuple[PortNumber, bytes]]:
    """Return the frames to send, by trunk; `macs` are the trunks' own."""
    table = tuple(entries)
    me = next((entry for entry in table if isinstance(entry, SelfEntry)), None)
    if me is None or not me.nickname or not me.tree:
        return []
    branches: set[PortNumber] = set()
    wanted: set[PortNumber] = set()
    for entry in table:
        if isinstance(entry, TreeEntry) and entry.tree == me.tree:
            branches.update(entry.ports)
        elif isinstance(entry, PruneEntry) and entry.tree == me.tree and entry.label in (0, label):
            wanted.update(entry.ports)
    frame = TrillFrame(
        outer_dmac=ALL_RBRIDGES,
        outer_smac=bytes(6),
        multi=True,
        hop_count=HOP_COUNT_MAX,
        egress=me.tree,
        ingress=me.nickname,
        inner_dmac=BROADCAST,
        inner_smac=mac,
        label=label,
        vlan=0,
        priority=0,
        ethertype=ETHERTYPE_RARP,
        payload=_rarp(mac),
    )
    return [
        (port, encode_trill(replace(frame, outer_smac=macs[port])))
        for port in sorted(branches & wanted)
        if port in macs
    ]


def _rarp(mac: bytes) -> bytes:
    head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, RARP_REQUEST)
    return (head + mac + bytes(4) + mac + bytes(4)).ljust(PAYLOAD_BYTES_MIN, b"\0")
