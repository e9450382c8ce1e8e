"""When a silent node is switched off, and when its silence is the controller's own deafness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.iaas.iaas_makers import node

from nuage.channel import Handlers, Identity
from nuage.channel.memory import memory_pair
from nuage.clock import SystemClock
from nuage.daemon.agent import AgentChannel
from nuage.daemon.guardian import Guardian
from nuage.daemon.hardware import RedfishFence
from nuage.daemon.nodes import (
    RESTARTS_WITHIN_S,
    RETURN_GRACE_S,
    STALLED_S,
    START_GRACE_S,
    NodeSessions,
)
from nuage.facility.memory import MemoryNode
from nuage.facility.ports import PowerControl, PowerState
from nuage.iaas.index import FederationIndex
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.record import Record
from nuage.model.status import NODE_LOST_AFTER_S
from nuage.quorum.lease import LeaseView
from nuage.quorum.model import LeaseTiming

MARNE = SiteId("marne")
FIRST, SECOND = node("marne", NodeRole.VNODE, 1), node("marne", NodeRole.VNODE, 2)
SILENT_S = NODE_LOST_AFTER_S + 1.0


class LivelyClock(HandClock):
    """While time passes, some nodes speak."""

    def __init__(self) -> None:
        super().__init__()
        self.during_sleep: Callable[[], None] = lambda: None

    async def sleep(self, delay_s: float) -> None:
        await super().sleep(delay_s)
        self.during_sleep()


class Room:
    """A site's sessions and its watch, on a clock that the test moves."""

    def __init__(self, *expected: NodeId) -> None:
        self.clock = LivelyClock()
        self.sessions = NodeSessions(MARNE, self.clock)
        for node_id in expected:
            self.sessions.expect(node_id)
        self.sessions._watched_s = self.clock.time_s

    def keep_hearing(self, nodes: Callable[[], set[NodeId]]) -> None:
        """Hear these nodes whenever time passes."""

        def hear() -> None:
            for node_id in nodes():
                self.sessions._heard(node_id)
            self.sessions._watched_s = self.clock.time_s

        self.clock.during_sleep = hear

    def pass_s(self, span_s: float, *speaking: NodeId) -> None:
        """Let time pass in steps in which the watch runs and some nodes speak."""
        for _ in range(int(span_s)):
            self.clock.time_s += 1.0
            for node_id in speaking:
                self.sessions._heard(node_id)
            self.sessions._look_at_ourselves(self.clock.time_s)
            self.sessions._watched_s = self.clock.time_s


def test_a_node_that_was_heard_and_fell_silent_may_be_fenced() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.pass_s(SILENT_S, SECOND.node_id)

    assert not room.sessions.is_connected(FIRST.node_id)
    assert room.sessions.why_not_fence(FIRST.node_id) == ""


def test_a_node_not_heard_since_the_controller_began_has_a_grace() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(SILENT_S, SECOND.node_id)

    assert "began" in room.sessions.why_not_fence(FIRST.node_id)
    room.pass_s(START_GRACE_S, SECOND.node_id)
    assert room.sessions.why_not_fence(FIRST.node_id) == ""


def test_nobody_is_fenced_while_all_nodes_are_silent_nor_just_after() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.pass_s(600)

    assert "cut off" in room.sessions.why_not_fence(FIRST.node_id)
    room.pass_s(2, SECOND.node_id)
    assert room.sessions.why_not_fence(FIRST.node_id) != ""
    room.pass_s(RETURN_GRACE_S, SECOND.node_id)
    assert room.sessions.why_not_fence(FIRST.node_id) == ""


def test_a_stalled_controller_does_not_take_its_own_silence_for_a_nodes() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.clock.time_s += STALLED_S + NODE_LOST_AFTER_S
    room.sessions._heard(SECOND.node_id)

    assert "stalled" in room.sessions.why_not_fence(FIRST.node_id)


def test_a_node_that_said_goodbye_is_not_lost_before_its_agent_should_be_back() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.sessions.expect_back(FIRST.node_id)
    room.pass_s(RESTARTS_WITHIN_S - 1.0, SECOND.node_id)
    assert room.sessions.is_connected(FIRST.node_id)
    room.pass_s(2.0, SECOND.node_id)
    assert not room.sessions.is_connected(FIRST.node_id)

    room.pass_s(1.0, FIRST.node_id, SECOND.node_id)  # it is back: silence is silence again
    room.pass_s(SILENT_S, SECOND.node_id)
    assert not room.sessions.is_connected(FIRST.node_id)


def test_a_goodbye_is_no_sign_that_the_others_would_be_heard() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.sessions.expect_back(FIRST.node_id)
    room.pass_s(SILENT_S)

    assert not room.sessions.is_connected(SECOND.node_id)
    assert "cut off" in room.sessions.why_not_fence(SECOND.node_id)


async def test_an_agent_that_is_stopped_says_goodbye() -> None:
    clock, handlers = SystemClock(), Handlers()
    sessions, said = NodeSessions(MARNE, clock), cast(list[NodeId], [])
    reactions = cast(Any, type("ReactionsStandIn", (), {})())
    reactions.lost, reactions.goodbye = said.append, said.append
    sessions.register(handlers, reactions)
    agent, controller = (
        Identity(FederationId("fed"), MARNE, NodeRole.VNODE, FIRST.node_id),
        Identity(FederationId("fed"), MARNE, NodeRole.CONTROLLER, NodeId("marne-controller")),
    )
    pair = memory_pair(
        Handlers(), handlers, identity_a=agent, identity_b=controller, clock=clock
    )  # fmt: skip

    async def close() -> None:
        pair.a.close()

    client = SimpleNamespace(call=pair.a.call, close=close)
    await AgentChannel.close(cast(Any, SimpleNamespace(client=client)))
    assert said == [FIRST.node_id]
    assert pair.a.is_closed
    await AgentChannel.close(cast(Any, SimpleNamespace(client=client)))  # nobody is there: it stops


class Bmcs:
    """The BMCs of two nodes."""

    def __init__(self, clock: HandClock) -> None:
        self.nodes = {
            each.node_id: MemoryNode(f"https://{each.node_id}", clock, state=PowerState.ON)
            for each in (FIRST, SECOND)
        }

    def on(self) -> set[NodeId]:
        """Return the nodes that are on."""
        return {node_id for node_id, bmc in self.nodes.items() if bmc.state is PowerState.ON}

    @asynccontextmanager
    async def open(self, of: Node) -> AsyncIterator[PowerControl]:
        yield self.nodes[of.node_id]


def guardian(room: Room, fence: RedfishFence, *nodes: Node) -> tuple[Guardian, list[str]]:
    index, told = FederationIndex(MARNE), cast(list[str], [])
    for each in nodes:
        index.put(
            Record(
                kind="node",
                id=each.node_id,
                home=MARNE,
                revision=1,
                epoch=0,
                changed_s=0.0,
                value=each,
            )
        )
    site = cast(Any, type("SiteStandIn", (), {})())
    site.index, site.site_id = index, MARNE
    site.announce = lambda _kind, _id, what, _text: told.append(what)
    keeper = Guardian(
        site, LeaseView(LeaseTiming()), fence, room.clock,
        ears=room.sessions, on_owned=lambda: None, switch_on=fence.switch_on,
    )  # fmt: skip
    return keeper, told


async def test_a_fenced_node_is_switched_on_again() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    bmcs = Bmcs(room.clock)
    fence = RedfishFence(bmcs.open, room.clock)
    keeper, told = guardian(room, fence, FIRST, SECOND)
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.pass_s(SILENT_S, SECOND.node_id)

    assert await fence(FIRST)
    assert bmcs.nodes[FIRST.node_id].state is PowerState.OFF
    room.keep_hearing(bmcs.on)
    await keeper.node_lost(FIRST.node_id)

    assert told == ["fenced"]
    assert bmcs.nodes[FIRST.node_id].state is PowerState.ON


async def test_a_node_that_was_off_already_or_is_in_maintenance_stays_off() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    bmcs = Bmcs(room.clock)
    fence = RedfishFence(bmcs.open, room.clock)
    resting = replace(SECOND, maintenance=True)
    keeper, told = guardian(room, fence, FIRST, resting)
    bmcs.nodes[FIRST.node_id].state = PowerState.OFF
    room.pass_s(3, FIRST.node_id, SECOND.node_id, NodeId("marne-ionode-1"))
    room.pass_s(SILENT_S, NodeId("marne-ionode-1"))
    room.keep_hearing(lambda: {NodeId("marne-ionode-1"), *bmcs.on()} - {SECOND.node_id})

    await keeper.node_lost(FIRST.node_id)
    await keeper.node_lost(SECOND.node_id)

    assert set(told) == {"fenced"}
    assert {each.state for each in bmcs.nodes.values()} == {PowerState.OFF}


async def test_a_node_that_speaks_during_the_grace_keeps_its_power() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    bmcs = Bmcs(room.clock)
    fence = RedfishFence(bmcs.open, room.clock)
    keeper, told = guardian(room, fence, FIRST, SECOND)
    room.pass_s(SILENT_S, SECOND.node_id)

    lost = asyncio.ensure_future(keeper.node_lost(FIRST.node_id))
    await asyncio.sleep(0)
    assert not lost.done()
    room.sessions._heard(FIRST.node_id)
    await lost

    assert told == []
    assert bmcs.nodes[FIRST.node_id].state is PowerState.ON
