"""What a node tells of its fabric when asked: `nuage fabric show`, `path` and `trace`."""

import secrets
from collections.abc import Iterator
from typing import Final

from nuage.channel import Handlers, Peer
from nuage.daemon import lisp_report
from nuage.daemon.fabric import Fabric
from nuage.daemon.fabric_trunks import Standing
from nuage.errors import Unavailable
from nuage.model.fabric import (
    AskFabric,
    EidQuestion,
    FabricNews,
    FabricReport,
    FabricStation,
    LinkWish,
    PathAnswer,
    PathQuestion,
    PathStep,
    RBridgeReport,
    TrunkReport,
)
from nuage.model.infrastructure import NodeRole
from nuage.network.circuit import AdjacencyState
from nuage.network.fabric_event import NeighbourView, TraceAnswered, TraceAsked
from nuage.network.forwarding import ForwardingPlane, MacEntry, Nickname, PortNumber
from nuage.network.kernel_plane import KernelPlane
from nuage.network.rbridge import PDU_BYTES_MAX, RBridge
from nuage.network.wire import mac_bytes

TRACE_WAIT_S: Final = 1.0
STATIONS_TOLD_MAX: Final = 1000


def register(handlers: Handlers, fabric: Fabric) -> None:
    """Enter the methods that a controller calls."""
    controllers = {NodeRole.CONTROLLER}

    @handlers.method("fabric.view", AskFabric, roles=controllers)
    async def view(_peer: Peer, _body: AskFabric) -> FabricReport:
        return report(fabric)

    @handlers.method("fabric.path", PathQuestion, roles=controllers)
    async def path(_peer: Peer, question: PathQuestion) -> PathAnswer:
        return await find_path(fabric, question)

    @handlers.method("fabric.eid", EidQuestion, roles=controllers)
    async def eid(_peer: Peer, question: EidQuestion) -> PathAnswer:
        return lisp_report.way_to(fabric.lisp, question.address)


def news(fabric: Fabric) -> FabricNews:
    """Return, once, what the controller has not been told."""
    wish = fabric.notebook.memory.wish
    return FabricNews(
        node_id=fabric.options.node_id,
        wish_revision=0 if wish is None else wish.revision,
        lines=fabric.news.take(),
    )


def report(fabric: Fabric) -> FabricReport:
    """Return the fabric as this node sees it.

    Raises:
        Unavailable: it has no wish yet.
    """
    rbridge = _rbridge(fabric)
    view = rbridge.view()
    neighbours = {neighbour.port: neighbour for neighbour in view.neighbours}
    wish = fabric.notebook.memory.wish
    counters = fabric.plane.counters()
    stations = tuple(_stations(fabric.plane))
    return FabricReport(
        node_id=fabric.options.node_id,
        site_id=fabric.options.site_id,
        wish_revision=0 if wish is None else wish.revision,
        nickname=view.nickname,
        plane=fabric.plane_name,
        tree_root=view.tree_root,
        trunks=tuple(_trunk(fabric, standing, neighbours) for standing in fabric.standing),
        rbridges=tuple(
            RBridgeReport(
                node_id=node.hostname,
                nickname=node.nicknames[0] if node.nicknames else 0,
                reachable=node.reachable,
                distance=node.distance,
                tree_parent=node.tree_parent,
                label_count=node.label_count,
            )
            for node in view.nodes
        ),
        stations=stations[:STATIONS_TOLD_MAX],
        station_count=len(stations),
        mappings=lisp_report.mappings(fabric.lisp),
        lisp=lisp_report.part(fabric.lisp),
        counters={
            "ingress": counters.ingress_frames,
            "transit": counters.transit_frames,
            "egress": counters.egress_frames,
            "flooded": counters.flooded_frames,
            **view.counters,
            **lisp_report.counters(fabric.lisp),
        },
        drops={cause.value: count for cause, count in counters.drops.items() if count},
        news=tuple(fabric.news.lines),
    )


def _rbridge(fabric: Fabric) -> RBridge:
    if fabric.runner is None:
        raise Unavailable(f"the RBridge of {fabric.options.node_id} has not begun: no wish yet")
    return fabric.runner.rbridge


def _trunk(
    fabric: Fabric, standing: Standing, neighbours: dict[PortNumber, NeighbourView]
) -> TrunkReport:
    wish, memory = standing.wish, standing.memory
    number = PortNumber(0 if memory is None else fabric.notebook.number_of(memory.interface))
    seen = neighbours.get(number)
    return TrunkReport(
        port=number,
        interface="" if memory is None else memory.interface,
        to_node=wish.node_id if isinstance(wish, LinkWish) else wish.there_node,
        to_site=fabric.options.site_id if isinstance(wish, LinkWish) else wish.there_site,
        provider="" if isinstance(wish, LinkWish) else wish.here.provider,
        driver="" if memory is None else _driver(fabric, memory.driver, number),
        state="" if seen is None else seen.state,
        bfd="" if seen is None else seen.bfd,
        metric=0 if seen is None else seen.metric,
        mtu_bytes=0 if memory is None else memory.mtu_bytes,
        failure=standing.failure or fabric.xdp_refusals.get(number, "") or narrowness(seen),
    )


def narrowness(seen: NeighbourView | None) -> str:
    """Say what is wrong with a trunk that carries Hellos and not what a PDU may have."""
    if seen is None or not (seen.narrow or seen.state == AdjacencyState.TWO_WAY.value):
        return ""
    what = f"Hellos pass, {PDU_BYTES_MAX} bytes do not: the path's MTU is less than promised"
    return f"{what}; used where there is no other way" if seen.narrow else what


def _driver(fabric: Fabric, driver: str, number: PortNumber) -> str:
    """Return how a trunk is carried; frames of a cable may pass in its card's driver."""
    plane = fabric.plane
    return f"{driver}, XDP" if isinstance(plane, KernelPlane) and plane.has_xdp(number) else driver


def _stations(plane: ForwardingPlane) -> Iterator[FabricStation]:
    """Yield the stations that are listed, then those learned."""
    for entry in plane.entries():
        if isinstance(entry, MacEntry):
            yield FabricStation(
                label=entry.label, mac=entry.mac.hex(":"), nickname=entry.nickname, port=entry.port
            )
    for found in plane.learned():
        yield FabricStation(
            label=found.label,
            mac=found.mac.hex(":"),
            nickname=found.nickname,
            port=found.port,
            learned=True,
        )


async def find_path(fabric: Fabric, question: PathQuestion) -> PathAnswer:
    """Tell where a frame from here would go and why; traced, where probes went too."""
    rbridge = _rbridge(fabric)
    mac = mac_bytes(question.mac)
    found = next(
        (
            station
            for station in _stations(fabric.plane)
            if station.label == question.label and station.mac == mac.hex(":")
        ),
        None,
    )
    if found is None:
        return PathAnswer(reason="not in the directory, no frame came from it: flooded")
    source = "frames came from it" if found.learned else "the directory says"
    if found.port:
        name = fabric.options.node_id
        return PathAnswer(
            reason=f"{source}: on this node", steps=(PathStep(node_id=name, distance=0),)
        )
    nickname = Nickname(found.nickname)
    hops = rbridge.path_to(nickname)
    if not hops:
        return PathAnswer(reason=f"{source}: {_lost(rbridge, nickname)}")
    answers = await _trace(fabric, nickname) if question.traced else {}
    steps = []
    for position, hop in enumerate(hops):
        answer = answers.get(position - 1)
        steps.append(
            PathStep(
                node_id=hop.hostname,
                distance=hop.distance,
                choices=hop.choices,
                answer_ms=None if answer is None else round(answer[1], 3),
                by_port="" if answer is None else f"{answer[0].hostname}:{answer[0].port}",
            )
        )
    reason = f"{source}: on {hops[-1].hostname} (nickname {nickname:#06x})"
    return PathAnswer(reason=reason, steps=tuple(steps))


def _lost(rbridge: RBridge, nickname: Nickname) -> str:
    """Say what is known of a nickname to which there is no way."""
    names = (node.hostname for node in rbridge.view().nodes if nickname in node.nicknames)
    name = next(names, "")
    if not name:
        return f"at nickname {nickname:#06x}, which nobody has"
    return f"on {name} (nickname {nickname:#06x}), to which no trunk leads now"


async def _trace(fabric: Fabric, target: Nickname) -> dict[int, tuple[TraceAnswered, float]]:
    """Send probes; return the first answer by hop, with its milliseconds."""
    runner = fabric.runner
    assert runner is not None, "asked through _rbridge first"
    clock = fabric.clock
    trace_id = secrets.randbits(32)
    answers: dict[int, tuple[TraceAnswered, float]] = {}
    begun_s = clock.monotonic_s()

    def take(answer: TraceAnswered) -> None:
        if answer.trace_id == trace_id and answer.hop not in answers:
            answers[answer.hop] = (answer, (clock.monotonic_s() - begun_s) * 1000)

    fabric.tracers.add(take)
    try:
        runner.give(TraceAsked(target, trace_id))
        await clock.sleep(TRACE_WAIT_S)
    finally:
        fabric.tracers.discard(take)
    return answers
