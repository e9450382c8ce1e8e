"""Asking the fabric about itself: where a frame would go (computed), where one went (traced).

`path_to` follows the same shortest paths that the tables are made of, naming every equal
choice. A trace sends probes with hop counts 0, 1, 2 …; the RBridge where one runs out, and the
target, answer. Probes ride in an RBridge Channel of a private number (RFC 7178 §8 leaves 0xFF8
to 0xFFE to it), in a VLAN tag, which no tenant's frame has inside the fabric.

::

    kind:8 (1 probe, 2 answer) | 0:8 | hop:16 | trace id:32 | answering nickname:16 | in-port:16
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nuage.network.forwarding import NICKNAME_UNKNOWN, PORT_NONE, Nickname, PortNumber
from nuage.network.isis_tlv import SystemId
from nuage.network.nickname import owners
from nuage.network.spf import shortest_paths
from nuage.network.topology import NodeFacts, graph_of
from nuage.network.trill_frame import (
    ALL_EGRESS_RBRIDGES,
    CHANNEL_VLAN,
    ETHERTYPE_CHANNEL,
    ChannelMessage,
    TrillFrame,
    encode_channel,
)
from nuage.network.wire import MalformedFrame, Reader

CHANNEL_TRACE: Final = 0xFF8
TRACE_HOPS_MAX: Final = 16
PROBE: Final = 1
ANSWER: Final = 2


@dataclass(frozen=True, slots=True)
class TraceMessage:
    """A probe or its answer. In a probe the answering half is zero."""

    kind: int
    hop: int
    trace_id: int
    nickname: Nickname = NICKNAME_UNKNOWN
    port: PortNumber = PORT_NONE


def encode_trace(message: TraceMessage) -> bytes:
    """Return the bytes after the channel header."""
    return struct.pack(
        ">BBHIHH",
        message.kind,
        0,
        message.hop,
        message.trace_id,
        message.nickname,
        message.port,
    )


def decode_trace(data: bytes) -> TraceMessage:
    """Take a trace message apart.

    Raises:
        MalformedFrame: too short or of another kind.
    """
    reader = Reader(data)
    kind, _, hop, trace_id = reader.u8(), reader.u8(), reader.u16(), reader.u32()
    if kind not in (PROBE, ANSWER):
        raise MalformedFrame("trace_kind")
    nickname, port = Nickname(reader.u16()), PortNumber(reader.u16())
    return TraceMessage(kind, hop, trace_id, nickname, port)


def trace_frame(
    message: TraceMessage, *, hop_count: int, egress: Nickname, ingress: Nickname, smac: bytes
) -> TrillFrame:
    """Return the frame that carries `message`; outer addresses are put in by who routes it.

    The inner source address is what equal-cost paths are chosen by.
    """
    channel = ChannelMessage(CHANNEL_TRACE, encode_trace(message), multi_hop=True)
    return TrillFrame(
        outer_dmac=bytes(6),
        outer_smac=bytes(6),
        multi=False,
        hop_count=hop_count,
        egress=egress,
        ingress=ingress,
        inner_dmac=ALL_EGRESS_RBRIDGES,
        inner_smac=smac,
        label=None,
        vlan=CHANNEL_VLAN,
        priority=7,
        ethertype=ETHERTYPE_CHANNEL,
        payload=encode_channel(channel),
    )


@dataclass(frozen=True, slots=True)
class PathHop:
    """A RBridge on the way. `choices` are the equal next hops; the first is the one followed."""

    system_id: SystemId
    hostname: str
    distance: int
    choices: tuple[str, ...]


def path_to(
    me: SystemId, target: Nickname, nodes: Mapping[SystemId, NodeFacts]
) -> tuple[PathHop, ...]:
    """Return the RBridges from `me` to the holder of `target`, both included; () when none."""
    held = owners(nodes).get(target)
    if held is None or me not in nodes:
        return ()
    graph = graph_of(nodes)
    here, end = graph.index[me], graph.index[held[1]]
    hops: list[PathHop] = []
    while True:
        paths = shortest_paths(graph, here)
        choices = [
            other
            for position, (other, _) in enumerate(graph.links[here])
            if paths.first_hops[end] >> position & 1
        ]
        names = tuple(nodes[graph.ids[choice]].hostname for choice in sorted(choices))
        system_id = graph.ids[here]
        hops.append(PathHop(system_id, nodes[system_id].hostname, paths.distance[end], names))
        if here == end:
            return tuple(hops)
        if not choices or len(hops) > len(graph.ids):
            return ()
        here = min(choices)
