"""When a silent node is switched off, and when its silence is the controller's own deafness."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.daemon.test_energy_keeper import HandClock
from tests.unit.iaas.iaas_makers import node

from nuage.channel import Handlers, Identity
from nuage.channel.memory import memory_pair
from nuage.clock import SystemClock
from nuage.daemon.agent import AgentChannel
from nuage.daemon.fencing import NodeFence, Outlets
from nuage.daemon.guardian import Guardian
from nuage.daemon.nodes import (
    RESTARTS_WITHIN_S,
    RETURN_GRACE_S,
    STALLED_S,
    START_GRACE_S,
    NodeSessions,
)
from nuage.errors import Conflict, InvalidRequest, NuageError, Unavailable
from nuage.facility.memory import MemoryNode, MemoryOutlet, MemoryPdu
from nuage.facility.ports import BmcUnavailable, PowerControl, PowerState, RackPdu
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


def guardian(room: Room, fence: NodeFence, *nodes: Node) -> tuple[Guardian, list[str]]:
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
    fence = NodeFence(bmcs.open, room.clock)
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
    fence = NodeFence(bmcs.open, room.clock)
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
    fence = NodeFence(bmcs.open, room.clock)
    keeper, told = guardian(room, fence, FIRST, SECOND)
    room.pass_s(SILENT_S, SECOND.node_id)

    lost = asyncio.ensure_future(keeper.node_lost(FIRST.node_id))
    await asyncio.sleep(0)
    assert not lost.done()
    room.sessions._heard(FIRST.node_id)
    await lost

    assert told == []
    assert bmcs.nodes[FIRST.node_id].state is PowerState.ON


# Outlets, and a person's word ----------------------------------------------------------------


class Rack:
    """The PDU of a rack whose outlets 1 and 2 feed the first node."""

    def __init__(self, clock: HandClock) -> None:
        outlets = {number: MemoryOutlet(f"o{number}", 100.0) for number in ("1", "2", "3")}
        self.pdu = MemoryPdu("https://pdu", clock, outlets)
        self.outlets = Outlets({"r1": self.open}, clock)

    def on(self) -> list[str]:
        """Return the outlets that are on."""
        return [number for number, each in self.pdu.outlet_by_id.items() if each.is_on]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RackPdu]:
        yield self.pdu


FED = replace(FIRST, outlets=("r1/1", "r1/2"))


async def test_a_node_whose_bmc_died_with_it_is_proven_off_by_all_its_outlets() -> None:
    room = Room()
    bmcs, rack = Bmcs(room.clock), Rack(room.clock)
    fence = NodeFence(bmcs.open, room.clock, rack.outlets)
    bmcs.nodes[FIRST.node_id].silent = True

    assert await fence(FED)
    assert rack.on() == ["3"]

    bmcs.nodes[FIRST.node_id].silent = False
    bmcs.nodes[FIRST.node_id].state = PowerState.OFF
    assert await fence.switch_on(FED)
    assert rack.on() == ["1", "2", "3"]
    assert bmcs.nodes[FIRST.node_id].state is PowerState.ON
    assert not await fence.switch_on(FED)  # nothing of ours is off any more


async def test_outlets_that_somebody_else_switched_off_stay_off() -> None:
    room = Room()
    bmcs, rack = Bmcs(room.clock), Rack(room.clock)
    fence = NodeFence(bmcs.open, room.clock, rack.outlets)
    bmcs.nodes[FIRST.node_id].silent = True
    for number in ("1", "2"):
        rack.pdu.outlet_by_id[number].is_on = False

    assert await fence(FED)
    assert not await fence.switch_on(FED)
    assert rack.on() == ["3"]


@pytest.mark.parametrize(
    ("node", "trouble", "error"),
    [
        (FED, "not allowed", BmcUnavailable),
        (FED, "not told", Unavailable),
        (FED, "silent", BmcUnavailable),
        (replace(FED, outlets=("r1/1", "r9/1")), "", InvalidRequest),
        (replace(FED, outlets=()), "", BmcUnavailable),
    ],
)
async def test_without_every_outlets_word_nothing_is_proven(
    node: Node, trouble: str, error: type[NuageError]
) -> None:
    room = Room()
    bmcs, rack = Bmcs(room.clock), Rack(room.clock)
    bmcs.nodes[FIRST.node_id].silent = True
    rack.pdu.silent = trouble == "silent"
    if trouble == "not told":
        rack.pdu.outlet_by_id["2"].is_on = cast(Any, None)
    outlets = None if trouble == "not allowed" else rack.outlets
    with pytest.raises(error):
        await NodeFence(bmcs.open, room.clock, outlets)(node)
    assert "3" in rack.on()


async def is_told(told: list[str], what: str) -> None:
    """Let the others run until it is said."""
    for _ in range(1_000_000):
        if what in told:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{what} was not said: {told}")


async def test_a_silent_node_is_tried_again_until_its_bmc_answers() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    bmcs = Bmcs(room.clock)
    fence = NodeFence(bmcs.open, room.clock)
    keeper, told = guardian(room, fence, FIRST, SECOND)
    machine = bmcs.nodes[FIRST.node_id]
    machine.silent = True
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    room.pass_s(SILENT_S, SECOND.node_id)
    begun_s = room.clock.time_s

    def answer_after_an_hour() -> None:
        room.sessions._heard(SECOND.node_id)
        room.sessions._watched_s = room.clock.time_s
        machine.silent = room.clock.time_s - begun_s < 3600.0

    room.clock.during_sleep = answer_after_an_hour
    lost = asyncio.ensure_future(keeper.node_lost(FIRST.node_id))
    await is_told(told, "fenced")
    lost.cancel()

    assert told == ["unproven", "fenced"]
    assert room.clock.time_s - begun_s >= 3600.0


async def test_a_persons_word_counts_for_a_node_that_is_silent_and_for_no_other() -> None:
    room = Room(FIRST.node_id, SECOND.node_id)
    bmcs = Bmcs(room.clock)
    bmcs.nodes[FIRST.node_id].silent = True
    keeper, told = guardian(room, NodeFence(bmcs.open, room.clock), FIRST, SECOND)
    emptied: list[NodeId] = []

    async def empty(node_id: NodeId) -> None:
        emptied.append(node_id)

    keeper._empty = empty  # type: ignore[method-assign]
    room.pass_s(3, FIRST.node_id, SECOND.node_id)
    with pytest.raises(Conflict, match="was heard just now"):
        await keeper.confirm_off(FIRST, "olive")
    room.pass_s(SILENT_S, SECOND.node_id)
    room.keep_hearing(lambda: {SECOND.node_id})
    lost = asyncio.ensure_future(keeper.node_lost(FIRST.node_id))
    await is_told(told, "unproven")

    await keeper.confirm_off(FIRST, "olive")
    await lost  # there is nothing left to prove

    assert (told, emptied) == (["unproven", "fenced"], [FIRST.node_id])
