"""Convergence of a large campus: 1,000 RBridges, 4,000 links, one link lost.

Prints CPU per node: taking in the two new LSPs, and computing paths, tree, reverse paths and
the change for the plane. `--flood` also lets the two LSPs flood through all nodes' machines
and checks that all databases and trees are equal afterwards.

    python benchmarks/trill_spf.py [--nodes 1000] [--links 4000] [--labels 4] [--flood]
"""

import argparse
import gc
import statistics
import sys
import time
from dataclasses import replace
from random import Random

from nuage.network.campus import system_id
from nuage.network.circuit import AdjacencyState, Trunk
from nuage.network.fabric_event import ApplyForwarding, FrameReceived, SendFrame, TrunkAdded
from nuage.network.forwarding import Label, Nickname, PortNumber
from nuage.network.isis_auth import Keyring, encode_signed
from nuage.network.isis_pdu import Lsp, isis_frame
from nuage.network.isis_tlv import NicknameRecord, Reach
from nuage.network.lsdb import Lsdb, LspRecord
from nuage.network.lsp_content import fragments_of, own_tlvs
from nuage.network.nickname import NicknameWish
from nuage.network.rbridge import RBridge, RBridgeConfig

RING = Keyring(1, {1: b"benchmark"})
PDU_BYTES = 1390


class Node:
    """A RBridge put by hand into the state it has after the campus has come up."""

    def __init__(self, number: int, prng: Random) -> None:
        config = RBridgeConfig(
            system_id(number),
            f"rb{number}",
            nickname=NicknameWish(configured=Nickname(number + 1)),
            ring=RING,
        )
        self.rbridge = RBridge(config, prng, 0.0)
        self.rbridge._lsp_at_s = None
        self.ports: dict[int, tuple[int, int]] = {}  # port -> (other node, other port)
        self.cpu_s = 0.0


def mac(number: int, port: int) -> bytes:
    return bytes((2, 0x10, number >> 8, number & 0xFF, port >> 8, port & 0xFF))


def links_of(nodes: int, links: int, prng: Random) -> list[tuple[int, int, int]]:
    found = {(prng.randrange(n), n) for n in range(1, nodes)}
    while len(found) < links:
        a, b = sorted(prng.sample(range(nodes), 2))
        found.add((a, b))
    return [(a, b, prng.choice((1000, 2000, 4000))) for a, b in sorted(found)]


def lsps_of(
    number: int, reaches: list[tuple[int, int]], labels: int, sequence: int
) -> list[tuple[Lsp, bytes]]:
    tlvs = own_tlvs(
        hostname=f"rb{number}",
        record=NicknameRecord(0xC0, 0x8000, Nickname(number + 1)),
        reaches=[
            Reach(system_id(other) + b"\0", metric, PDU_BYTES) for other, metric in sorted(reaches)
        ],
        labels=[Label(1 + (number * 7 + i * 13) % 500) for i in range(labels)],
        pdu_bytes_max=PDU_BYTES,
    )
    fragments, _ = fragments_of(tlvs, PDU_BYTES)
    out = []
    for fragment, content in fragments.items():
        lsp = Lsp(system_id(number) + bytes((0, fragment)), sequence, 1200, content)
        raw = encode_signed(lsp, RING)
        checksum = int.from_bytes(raw[24:26], "big")
        out.append((replace(lsp, checksum=checksum), raw))
    return out


def put_up(node: Node, port: int, other: int, other_port: int, metric: int) -> None:
    """Make an adjacency without a handshake: this benchmark is about what comes after."""
    rbridge = node.rbridge
    rbridge.handle(TrunkAdded(Trunk(PortNumber(port), mac(0, port), metric, bfd=None)), 0.0)
    circuit = rbridge._circuits[PortNumber(port)]
    circuit.neighbour, circuit.neighbour_mac = system_id(other), mac(other, other_port)
    circuit.neighbour_port, circuit.state = other_port, AdjacencyState.REPORT
    circuit.mtu_tested_bytes = PDU_BYTES
    circuit._hold_until_s = 1e9
    circuit._next_hello_s = 1e9


def cpu_of(node: Node, event: object, now_s: float) -> tuple[object, ...]:
    start_s = time.process_time()
    effects = node.rbridge.handle(event, now_s) if event else node.rbridge.tick(now_s)  # type: ignore[arg-type]
    node.cpu_s += time.process_time() - start_s
    return effects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--links", type=int, default=4000)
    parser.add_argument("--labels", type=int, default=4)
    parser.add_argument("--sample", type=int, default=12, help="nodes measured without --flood")
    parser.add_argument("--flood", action="store_true")
    arguments = parser.parse_args()
    prng = Random(1)
    links = links_of(arguments.nodes, arguments.links, prng)
    around: dict[int, list[tuple[int, int, int, int]]] = {n: [] for n in range(arguments.nodes)}
    for a, b, metric in links:
        port_a, port_b = len(around[a]) + 1, len(around[b]) + 1
        around[a].append((port_a, b, port_b, metric))
        around[b].append((port_b, a, port_a, metric))
    lsps = [
        lsps_of(n, [(other, m) for _, other, _, m in around[n]], arguments.labels, 1)
        for n in range(arguments.nodes)
    ]
    measured = list(range(arguments.nodes))
    if not arguments.flood:
        measured = prng.sample(measured, arguments.sample)
    lost = links[len(links) // 2]
    start_s = time.process_time()
    nodes = {n: bring_up(n, around[n], lsps, arguments.labels) for n in measured}
    full_s = (time.process_time() - start_s) / len(nodes)
    print(f"{arguments.nodes} RBridges, {arguments.links} links; {len(nodes)} measured")
    print(f"first full computation, database already decoded: {full_s * 1e3:.1f} ms CPU a node")
    gc.disable()  # a real node has one database to walk, not a thousand
    if arguments.flood:
        flood(nodes, lost)
    else:
        deliver(nodes, around, lost, arguments.labels)
    spent = sorted(node.cpu_s for node in nodes.values())
    print(
        f"after the loss of one link: median {statistics.median(spent) * 1e3:.1f} ms, "
        f"worst {spent[-1] * 1e3:.1f} ms CPU a node"
    )


def bring_up(
    number: int,
    around: list[tuple[int, int, int, int]],
    lsps: list[list[tuple[Lsp, bytes]]],
    labels: int,
) -> Node:
    node = Node(number, Random(number))
    for port, other, other_port, metric in around:
        put_up(node, port, other, other_port, metric)
        node.ports[port] = (other, other_port)
    database: Lsdb = node.rbridge.lsdb
    for other, fragments in enumerate(lsps):
        if other == number:
            continue
        for lsp, raw in fragments:
            database.records[lsp.lsp_id] = LspRecord(lsp, raw, 1200.0)
            database.changed.add(lsp.lsp_id[:6])
    node.rbridge._labels = frozenset(Label(1 + (number * 7 + i * 13) % 500) for i in range(labels))
    node.rbridge._lsp_at_s = 0.0
    effects = [*node.rbridge.tick(0.0), *node.rbridge.tick(1.0)]
    assert any(isinstance(effect, ApplyForwarding) for effect in effects)
    for port in node.ports:
        database.circuit_up(port, 1.0)
        flood_state = database._circuits[port]
        flood_state.srm.clear()
        flood_state.csnp_at_s = 1e9
    return node


def new_lsps(
    around: dict[int, list[tuple[int, int, int, int]]], lost: tuple[int, int, int], labels: int
) -> list[bytes]:
    a, b, _ = lost
    out = []
    for number, gone in ((a, b), (b, a)):
        reaches = [(other, m) for _, other, _, m in around[number] if other != gone]
        out.extend(raw for _, raw in lsps_of(number, reaches, labels, 9))
    return out


def deliver(
    nodes: dict[int, Node],
    around: dict[int, list[tuple[int, int, int, int]]],
    lost: tuple[int, int, int],
    labels: int,
) -> None:
    """Give the new LSPs to each measured node on its first port, then let it compute."""
    raws = new_lsps(around, lost, labels)
    for node in nodes.values():
        port = PortNumber(next(iter(node.ports)))
        other, other_port = node.ports[port]
        for raw in raws:
            frame = isis_frame(raw, smac=mac(other, other_port))
            cpu_of(node, FrameReceived(port, frame), 2.0)
        cpu_of(node, None, 2.1)


def flood(nodes: dict[int, Node], lost: tuple[int, int, int]) -> None:
    """Let the two ends lose the link, and the news flood through everybody's machines."""
    a, b, _ = lost
    now_s = 2.0
    queue: list[tuple[int, PortNumber, bytes]] = []

    def spread(number: int, effects: tuple[object, ...]) -> None:
        for effect in effects:
            if isinstance(effect, SendFrame) and effect.frame[18] & 0x1F in (18, 26):
                other, other_port = nodes[number].ports[effect.port]
                smac = mac(number, effect.port)
                frame = effect.frame[:6] + smac + effect.frame[12:]
                queue.append((other, PortNumber(other_port), frame))

    for number, gone in ((a, b), (b, a)):
        circuits = nodes[number].rbridge._circuits
        port = next(p for p, (other, _) in nodes[number].ports.items() if other == gone)
        change = circuits[PortNumber(port)].reset("lost", now_s)
        nodes[number].rbridge._adjacency(change, now_s)
        spread(number, cpu_of(nodes[number], None, now_s))
    frames = 0
    for _ in range(200):
        now_s += 0.001
        batch, queue[:] = queue[:], []
        for number, port, frame in batch:
            frames += 1
            spread(number, cpu_of(nodes[number], FrameReceived(port, frame), now_s))
        for number, node in nodes.items():
            if node.rbridge.next_deadline_s() <= now_s:
                spread(number, cpu_of(node, None, now_s))
        if not queue and now_s > 2.1:
            break
    databases = {
        tuple(
            sorted((i, r.lsp.sequence, r.lsp.checksum) for i, r in n.rbridge.lsdb.records.items())
        )
        for n in nodes.values()
    }
    trees = {
        (n.rbridge.routes.tree, tuple(sorted(n.rbridge.routes.parents.items())))
        for n in nodes.values()
        if n.rbridge.routes
    }
    print(f"{frames} frames flooded; databases {len(databases)}, trees {len(trees)} (one is right)")
    if len(databases) != 1 or len(trees) != 1:
        sys.exit("the campus does not agree")


if __name__ == "__main__":
    main()
