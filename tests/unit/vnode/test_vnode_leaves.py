"""Leave to switch is on disk before it is passed on, and counts once."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nuage.clock import SystemClock
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.model.desired import IncomingMigration, OutgoingMigration, VmReport, VmWish, VnodeWish
from nuage.model.vm import PowerWish, VmShape
from nuage.vnode.agent import AgentOptions, VnodeAgent
from nuage.vnode.fake import FakeFabric, FakeHypervisor
from nuage.vnode.leaves import (
    SLIP_BYTES,
    Leave,
    LeaveSlip,
    decode_slip,
    encode_slip,
    leave_of,
    with_leaves,
)
from nuage.vnode.memory import AgentMemory, GuestMemory, HandOver
from nuage.vnode.ports import NoPlug
from nuage.vnode.sed import NodeFacts, Sed

VM = VmId("vm-1")
LEAVE = Leave(VM, epoch=3, address="10.0.0.2:4000", attempt=1)


def wish(**fields: object) -> VmWish:
    made = VmWish(
        vm_id=VM, iaas_id=IaasId("iaas-1"), name="web", shape=VmShape(), wish=PowerWish.RUNNING,
        epoch=3, disks=(), ports=(),
    )  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


def sending(**fields: object) -> AgentMemory:
    guest = GuestMemory(
        wish=wish(), hand_over=HandOver.SENDING, hand_over_epoch=3,
        hand_over_address="10.0.0.2:4000", hand_over_attempt=1,
    )  # fmt: skip
    return AgentMemory(guests={VM: replace(guest, **fields)})  # type: ignore[arg-type]


def test_a_slip_gives_back_what_was_noted(tmp_path: Path) -> None:
    slip = LeaveSlip(tmp_path / "node" / "leave.slip")
    assert slip.read() == ()
    assert slip.note(sending().guests.values())
    slip.close()
    again = LeaveSlip(tmp_path / "node" / "leave.slip")
    assert again.read() == (LEAVE,)
    assert again.note(())
    assert again.read() == ()
    again.close()
    assert (tmp_path / "node" / "leave.slip").stat().st_mode & 0o077 == 0


def test_a_slip_that_was_not_finished_says_nothing() -> None:
    whole, other = encode_slip([LEAVE]), encode_slip([replace(LEAVE, attempt=2)])
    assert whole is not None
    assert other is not None
    assert decode_slip(whole) == (LEAVE,)
    for torn in (other[:512] + whole[512:], whole[:-1], b"", bytes(SLIP_BYTES)):
        assert decode_slip(torn) in ((), (replace(LEAVE, attempt=2),))
    assert decode_slip(whole[:40] + b"\xff" + whole[41:]) == ()
    assert encode_slip([LEAVE] * 100) is None


def test_leave_counts_for_the_attempt_it_was_given_for_and_no_other() -> None:
    assert leave_of(sending().guests[VM]) == LEAVE
    assert with_leaves(sending(), [LEAVE]).guests[VM].hand_over is HandOver.GRANTED
    for other in (replace(LEAVE, epoch=2), replace(LEAVE, attempt=0), replace(LEAVE, address="x")):
        assert with_leaves(sending(), [other]) == sending()
    for state in (HandOver.NONE, HandOver.FAILED, HandOver.DONE, HandOver.BROKEN):
        assert with_leaves(sending(hand_over=state), [LEAVE]) == sending(hand_over=state)
    assert with_leaves(AgentMemory(), [LEAVE]) == AgentMemory()


class Witness(FakeHypervisor):
    """Notes what was on disk when leave was passed on."""

    state_dir = Path()
    found: tuple[tuple[Leave, ...], HandOver] | None = None

    async def migrate_continue(self, vm_id: VmId) -> None:
        slip = decode_slip((self.state_dir / "leave.slip").read_bytes())
        stored = msgspec.json.decode((self.state_dir / "agent.json").read_bytes(), type=AgentMemory)
        self.found = slip, with_leaves(stored, slip).guests[vm_id].hand_over
        await super().migrate_continue(vm_id)


def agent(path: Path, hypervisor: FakeHypervisor) -> VnodeAgent:
    node, site, clock = NodeId(path.name), SiteId("marne"), SystemClock()
    facts = NodeFacts(node_id=node, site_id=site, accelerator="fake")
    sed = Sed(facts, clock=clock, meter=lambda: None, cache=path / "flops.json")
    options = AgentOptions(node_id=node, site_id=site, state_dir=path, listen_host="10.0.0.2")
    return VnodeAgent(options, hypervisor=hypervisor, plug=NoPlug(), sed=sed, clock=clock)


async def reported(of: VnodeAgent, what: str) -> VmReport:
    async with asyncio.timeout(20):
        async for report in of.reports():
            for vm in report.vms:
                if getattr(vm, what):
                    return vm
    pytest.fail("the reports ended")


async def test_leave_is_on_disk_when_it_is_passed_on_and_stays_there(tmp_path: Path) -> None:
    fabric = FakeFabric()
    source = Witness(fabric)
    source.state_dir = tmp_path / "left"
    left, right = agent(source.state_dir, source), agent(tmp_path / "right", FakeHypervisor(fabric))
    await left.open()
    await right.open()
    try:
        await left.take_wish(VnodeWish(revision=1, vms=(wish(),)))
        incoming = IncomingMigration(source_node_id=NodeId("left"), source_epoch=3)
        await right.take_wish(VnodeWish(revision=1, vms=(wish(epoch=4, incoming=incoming),)))
        address = (await reported(right, "migration_address")).migration_address
        outgoing = OutgoingMigration(target_node_id=NodeId("right"), address=address)
        await left.take_wish(VnodeWish(revision=2, vms=(wish(outgoing=outgoing),)))
        await reported(left, "ready_to_switch")
        granted = replace(outgoing, may_switch=True)
        await left.take_wish(VnodeWish(revision=3, vms=(wish(outgoing=granted),)))
        await reported(left, "migrated")
    finally:
        await left.close()
        await right.close()
    assert source.found == ((Leave(VM, 3, address, 0),), HandOver.GRANTED)
    stored = msgspec.json.decode((tmp_path / "left/agent.json").read_bytes(), type=AgentMemory)
    assert stored.guests[VM].hand_over in {HandOver.GRANTED, HandOver.DONE}
    assert stored.revision == 3
