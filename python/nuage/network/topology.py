"""The campus as the link-state database shows it: one `NodeFacts` per RBridge, and the graph.

Pure functions over decoded LSPs. A link counts when both ends report it. Nodes are numbered
in order of their ID, so that comparing numbers is comparing IDs (RFC 6325 §4.5.1 asks for it).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nuage.network.circuit import METRIC_MAX
from nuage.network.forwarding import NICKNAME_MAX, Nickname
from nuage.network.isis_tlv import (
    ExtendedReach,
    Hostname,
    InterestedLabels,
    LspBufferSize,
    NicknameRecord,
    Nicknames,
    RouterCapability,
    SystemId,
    Tlv,
    TreesUsed,
    TrillVersion,
)
from nuage.network.lsdb import LspRecord

LABEL_SPREAD_MAX: Final = 4096  # labels of one RBridge kept one by one; more: "all labels"
FRAGMENT_COUNT_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a RBridge says of itself, all its fragments together."""

    system_id: SystemId
    neighbours: Mapping[SystemId, int]  # ID -> lowest metric reported
    links: frozenset[tuple[SystemId, int, int]] = frozenset()  # other end, port here, port there
    last_resorts: frozenset[tuple[SystemId, int, int]] = frozenset()  # those of the largest metric
    nicknames: tuple[NicknameRecord, ...] = ()
    labels: frozenset[int] = frozenset()
    all_labels: bool = False
    trees_used: tuple[Nickname, ...] = ()
    hostname: str = ""
    overload: bool = False
    fgl_safe: bool = False
    takes_bytes: int | None = None  # the longest LSP that all its trunks carry; None: not said

    def reports(self, other: SystemId, port_here: int, port_there: int) -> bool:
        """Tell whether it says that this link to `other` is up, or tells links apart at all."""
        if not any(end == other for end, _, _ in self.links):
            return True
        return (other, port_here, port_there) in self.links


def facts_of(system_id: SystemId, records: Mapping[bytes, LspRecord]) -> NodeFacts | None:
    """Return what `system_id` says, or None when its fragment 0 is not there or is purged."""
    first = records.get(system_id + b"\0\0")
    if first is None or first.purged_until_s is not None:
        return None
    tlvs: list[Tlv] = []
    for fragment in range(FRAGMENT_COUNT_MAX):
        record = records.get(system_id + bytes((0, fragment)))
        if record is not None and record.purged_until_s is None:
            tlvs.extend(record.lsp.tlvs)
    return _gather(system_id, tlvs, overload=first.lsp.overload)


def _gather(system_id: SystemId, tlvs: Iterable[Tlv], *, overload: bool) -> NodeFacts:
    neighbours: dict[SystemId, int] = {}
    links: set[tuple[SystemId, int, int]] = set()
    last_resorts: set[tuple[SystemId, int, int]] = set()
    nicknames: list[NicknameRecord] = []
    ranges: list[tuple[int, int]] = []
    used: list[Nickname] = []
    hostname, fgl_safe, takes_bytes = "", False, None
    for tlv in tlvs:
        match tlv:
            case ExtendedReach():
                for reach in tlv.neighbours:
                    if reach.neighbour[6] == 0:  # pseudonodes are for shared links: not ours
                        other = reach.neighbour[:6]
                        metric = max(reach.metric, 1)
                        neighbours[other] = min(neighbours.get(other, metric), metric)
                        if reach.link is not None:
                            links.add((other, *reach.link))
                            if reach.metric >= METRIC_MAX:
                                last_resorts.add((other, *reach.link))
            case Hostname():
                hostname = tlv.name
            case LspBufferSize():
                takes_bytes = tlv.size_bytes
            case RouterCapability():
                for sub in tlv.subs:
                    match sub:
                        case Nicknames():
                            nicknames.extend(
                                r for r in sub.records if 0 < r.nickname <= NICKNAME_MAX
                            )
                        case InterestedLabels():
                            ranges.extend(sub.labels())
                        case TreesUsed():
                            used.extend(sub.roots)
                        case TrillVersion():
                            fgl_safe = bool(sub.capabilities & TrillVersion.FGL_SAFE)
            case _:
                pass
    wide = sum(last - first + 1 for first, last in ranges) > LABEL_SPREAD_MAX
    labels = frozenset[int]().union(*(range(a, b + 1) for a, b in ranges)) if not wide else None
    return NodeFacts(
        system_id=system_id,
        neighbours=neighbours,
        links=frozenset(links),
        last_resorts=frozenset(last_resorts),
        nicknames=tuple(nicknames),
        labels=labels or frozenset(),
        all_labels=wide,
        trees_used=tuple(used),
        hostname=hostname,
        overload=overload,
        fgl_safe=fgl_safe,
        takes_bytes=takes_bytes,
    )


@dataclass(frozen=True, slots=True)
class Graph:
    """The two-way graph. `links[u]` lists (v, metric of u towards v), `ids` rises."""

    ids: tuple[SystemId, ...]
    links: tuple[tuple[tuple[int, int], ...], ...]
    overload: tuple[bool, ...]
    index: Mapping[SystemId, int]


def graph_of(nodes: Mapping[SystemId, NodeFacts]) -> Graph:
    """Return the graph of all links that both ends report."""
    ids = tuple(sorted(nodes))
    index = {system_id: number for number, system_id in enumerate(ids)}
    links = []
    for system_id in ids:
        row = []
        for other, metric in nodes[system_id].neighbours.items():
            facts = nodes.get(other)
            if facts is not None and system_id in facts.neighbours:
                row.append((index[other], metric))
        links.append(tuple(row))
    return Graph(ids, tuple(links), tuple(nodes[i].overload for i in ids), index)
