"""A node that was fenced is switched on by hand, at many moments while its VM starts elsewhere.

Its agent knows an old wish, and the IO-node may still let its initiator in. What keeps the VM from
running twice: an agent that begins starts nothing without a fresh word of its controller, and none
is given while what the node ran is being placed.
"""

import asyncio
from collections.abc import Iterator

import pytest
import structlog
from tests.simulation.federation.nodes import SimVnode
from tests.simulation.federation.test_controllers_that_die import play
from tests.simulation.federation.test_moves_step_by_step import LYON, Move
from tests.simulation.federation.whole_sites import stand_in

from nuage.daemon.nodes import RESTARTS_WITHIN_S
from nuage.iaas.machines import CreateVm, RuleVm
from nuage.iaas.site import Draft
from nuage.model.placement import Decision, VmRequest
from nuage.model.status import NodeStatus
from nuage.model.vm import Vm, VmState

MOMENTS_S = (0.0, 0.05, 0.3)  # after the guardian took the node for off


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


async def _run_a_vm_that_stays(move: Move) -> SimVnode:
    lyon = move.sites[LYON]
    await lyon.perform("vm.create", CreateVm(iaas="stay", name="web", image="guest", site="lyon"))
    move.vm_id = next(vm.vm_id for vm in lyon.index.values(Vm))
    await move.until(lambda: move.vm.state is VmState.RUNNING, "the VM runs")
    node = move.guest_at(LYON)
    assert node is not None
    return node


async def _is_fenced(move: Move, node: SimVnode) -> None:
    told = ("node", node.node.node_id, "fenced")
    await move.until(lambda: told in {said[:3] for said in move.sites[LYON].said}, "it is fenced")


async def _runs_once_elsewhere(move: Move, node: SimVnode) -> None:
    await move.until(
        lambda: move.vm.state is VmState.RUNNING and move.vm.node_id != node.node.node_id,
        "the VM runs on the other node",
    )
    await asyncio.sleep(8.0)
    assert move.runs_at[move.vm_id] == {move.vm.node_id}
    assert not node.running()


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_a_fenced_node_that_comes_on_without_its_controller_starts_nothing(moment_s: float) -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        move.wires.cut(node.node.node_id, LYON)
        await _is_fenced(move, node)
        await asyncio.sleep(moment_s)
        node.power_on()
        await _runs_once_elsewhere(move, node)
        move.wires.heal()
        await _runs_once_elsewhere(move, node)

    play(story)


def test_a_node_that_comes_on_while_its_vm_is_placed_elsewhere_is_told_nothing() -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        site = move.sites[LYON].site
        place = site.placer.place

        async def slowly(request: VmRequest, draft: Draft) -> Decision:
            await asyncio.sleep(3.0)
            return await place(request, draft)

        site.placer = stand_in(place=slowly)
        node.power_off()
        await _is_fenced(move, node)
        node.power_on()
        await _runs_once_elsewhere(move, node)

    play(story)


def test_a_vm_that_found_no_place_starts_where_it_was_once_its_node_is_back() -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        other = next(n for n in move.vnodes(LYON) if n is not node)
        move.wires.cut(other.node.node_id, LYON)
        other.bmc_answers = False
        node.power_off()
        await _is_fenced(move, node)
        await move.until(lambda: move.vm.state is VmState.FAILED, "no node is left for it")
        node.power_on()
        await move.until(lambda: node.running() == {move.vm_id}, "it runs again")
        await move.until(lambda: move.vm.state is VmState.RUNNING, "and is known to")

    play(story)


@pytest.mark.parametrize("rule", ["ban", "fence"])
def test_a_vm_starts_again_only_where_its_owner_lets_it(rule: str) -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        other = next(n for n in move.vnodes(LYON) if n is not node)
        own, foreign = node.node.node_id, other.node.node_id
        only = RuleVm(iaas="stay", vm="web", fence=(own,))
        off = RuleVm(iaas="stay", vm="web", ban=(foreign,))
        await move.sites[LYON].perform("vm.rules", only if rule == "fence" else off)
        node.power_off()
        await _is_fenced(move, node)
        await move.until(lambda: move.vm.state is VmState.FAILED, "no node is left for it")
        assert not other.running()
        node.power_on()
        await move.until(lambda: node.running() == {move.vm_id}, "it runs again")

    play(story)


def test_a_node_that_said_goodbye_and_does_not_come_back_is_fenced_after_its_grace() -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        site = move.sites[LYON]
        node.say_goodbye()
        node.power_off()
        await asyncio.sleep(RESTARTS_WITHIN_S - 2.0)
        status = site.index.value(NodeStatus, node.node.node_id)
        assert (status.connected, status.restarting) == (True, True)
        assert not any(said[2] == "fenced" for said in site.said)
        await _is_fenced(move, node)
        await _runs_once_elsewhere(move, node)

    play(story)


def test_an_agent_that_restarts_within_its_grace_loses_nothing() -> None:
    async def story(move: Move) -> None:
        node = await _run_a_vm_that_stays(move)
        site = move.sites[LYON]
        node.say_goodbye()
        move.wires.cut(node.node.node_id, LYON)  # nothing is heard of it
        await asyncio.sleep(RESTARTS_WITHIN_S - 2.0)
        move.wires.heal()
        await asyncio.sleep(30.0)
        status = site.index.value(NodeStatus, node.node.node_id)
        assert (status.connected, status.restarting) == (True, False)
        assert not any(said[2] in ("lost", "fenced") for said in site.said)
        assert node.running() == {move.vm_id}

    play(story)
