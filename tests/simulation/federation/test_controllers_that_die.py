"""A controller dies at a bad moment: nobody suffers who need not, and nothing is left half done."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
import structlog
from tests.simulation.federation.test_moves_step_by_step import LYON, MARNE, Move

from nuage.errors import Conflict, Unavailable
from nuage.iaas.machines import CreateVm, NameVm
from nuage.model.placement import Decision
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume
from nuage.simulation.virtual_time import run_virtually


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def play(story: Callable[[Move], Awaitable[None]]) -> None:
    async def main() -> None:
        move = Move(11)
        await move.build()
        await story(move)
        assert move.bugs == []
        assert move.breaches == []

    run_virtually(main())


async def run_a_vm(move: Move, site: str) -> None:
    """Create a VM that fails over, and wait until the quorum knows it."""
    lyon = move.sites[LYON]
    await lyon.perform("vm.create", CreateVm(iaas="copied", name="web", image="guest", site=site))
    move.iaas_of["web"], move.wanted["web"] = "copied", PowerWish.RUNNING
    move.vm_id = next(vm.vm_id for vm in lyon.index.values(Vm))
    await move.until(lambda: move.vm.state is VmState.RUNNING, "the VM runs")
    await asyncio.sleep(5.0)


def test_a_restarted_controller_stops_no_vm_before_the_quorum_has_answered() -> None:
    """It says what the one before it said; the node counts on with the lease it heard of."""

    async def story(move: Move) -> None:
        await run_a_vm(move, "lyon")
        move.sites[LYON].crash()
        move.cut_off(LYON)  # the quorum answers nobody here
        await asyncio.sleep(1.0)
        move.sites[LYON].boot()
        runs = [bool(move.runs_at[move.vm_id]) for _ in range(30) if await _passed(0.1)]
        assert all(runs), "it ran through the restart"
        await asyncio.sleep(20.0)
        nodes = {node.node.node_id for node in move.vnodes(LYON)}
        assert not move.runs_at[move.vm_id] & nodes, "its lease has ended: others may have it"
        move.heal_all()
        await asyncio.sleep(40.0)
        assert len(move.runs_at[move.vm_id]) == 1

    play(story)


def test_a_quorum_that_answers_again_finds_the_vm_running() -> None:
    async def story(move: Move) -> None:
        await run_a_vm(move, "lyon")
        stops = move.counts["vm stopped"]
        move.sites[LYON].crash()
        await asyncio.sleep(0.5)
        move.sites[LYON].boot()
        for _ in range(100):
            assert move.runs_at[move.vm_id], "it was stopped by the restart"
            await asyncio.sleep(0.1)
        assert move.counts["vm stopped"] == stops

    play(story)


async def marne_enters_it_and_lyon_dies(move: Move, iaas: str = "stay") -> CreateVm:
    """Have a VM asked for at Lyon and entered at Marne, and no decision written down."""
    lyon, marne = move.sites[LYON], move.sites[MARNE]
    body = CreateVm(iaas=iaas, name="web", image="guest", site="marne")
    move.people.spawn(move._ask(lyon, "vm.create", body, "create web"))
    await move.until(lambda: any(marne.index.values(Vm)), "marne has entered it")
    lyon.crash()
    assert not any(lyon.index.values(Decision)), "too late for this test"
    return body


def test_a_vm_whose_decision_was_never_written_down_is_dropped_and_its_name_is_free() -> None:
    """The controller that took the request dies between commitment and record."""

    async def story(move: Move) -> None:
        body = await marne_enters_it_and_lyon_dies(move)
        lyon, marne = move.sites[LYON], move.sites[MARNE]
        await asyncio.sleep(2.0)
        lyon.boot()
        await asyncio.sleep(60.0)
        for site in move.sites.values():
            assert not any(site.index.values(Vm)), site.site_id
            assert not any(site.index.values(Volume)), site.site_id
        assert ("vm", "undecided") in {(kind, what) for kind, _, what, _ in marne.said}
        await lyon.perform("vm.create", body)
        await asyncio.sleep(5.0)
        assert next(iter(marne.index.values(Vm))).state is VmState.RUNNING

    play(story)


def test_a_vm_that_is_being_decided_is_not_dropped() -> None:
    """Its asking site is cut off for long: it alone knows, so nobody guesses."""

    async def story(move: Move) -> None:
        await marne_enters_it_and_lyon_dies(move)
        await asyncio.sleep(90.0)
        kept = any(move.sites[MARNE].index.values(Vm))
        assert kept, "nobody but lyon can say that it was not decided"

    play(story)


def test_a_vm_that_a_revoked_site_did_not_decide_can_be_deleted_and_is_dropped_by_itself() -> None:
    """Nobody would believe the only site that could say whether it is to be."""

    async def story(move: Move) -> None:
        await marne_enters_it_and_lyon_dies(move)
        marne = move.sites[MARNE]
        named = NameVm("stay", "web")
        with pytest.raises(Unavailable, match="has not said yet"):
            await marne.perform("vm.delete", named)
        marne.site.is_revoked = LYON.__eq__
        with pytest.raises(Conflict, match="which is revoked"):
            await marne.perform("vm.start", named)
        await marne.perform("vm.delete", named)
        await asyncio.sleep(10.0)
        assert not any(marne.index.values(Vm))
        await asyncio.sleep(60.0)
        assert not any(marne.index.values(Volume))

    play(story)

    async def left_alone(move: Move) -> None:
        await marne_enters_it_and_lyon_dies(move)
        marne = move.sites[MARNE]
        marne.site.is_revoked = LYON.__eq__
        await asyncio.sleep(60.0)
        assert not any(marne.index.values(Vm))
        assert not any(marne.index.values(Volume))

    play(left_alone)


def test_a_vm_that_is_not_decided_is_owned_by_nobody() -> None:
    """It may have been elected elsewhere: that site could never own it."""

    async def story(move: Move) -> None:
        await marne_enters_it_and_lyon_dies(move, iaas="copied")
        await asyncio.sleep(20.0)
        assert [owned for owned in move.hub.state.all_owners() if owned.kind == "vm"] == []

    play(story)


async def _passed(time_s: float) -> bool:
    await asyncio.sleep(time_s)
    return True
