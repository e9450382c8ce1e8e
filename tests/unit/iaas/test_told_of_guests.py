"""What a V-node says of a VM is told, of its disk by the volume's name: nodes know ids only."""

from tests.unit.iaas.iaas_makers import datacenter, iaas, record, vm, volume
from tests.unit.placement.placement_builders import vector

from nuage.iaas.index import FederationIndex
from nuage.iaas.observe import Save, vnode_acts
from nuage.ids import NodeId, SiteId
from nuage.model.desired import VmReport, VnodeReport
from nuage.model.vm import Vm, VmState


def report_of(seen: VmReport) -> VnodeReport:
    """What a V-node says that has one VM."""
    return VnodeReport(
        node_id=NodeId("m-v1"), site_id=SiteId("marne"), wish_revision=1, vms=(seen,),
        estimate=vector("m-v1"),
    )  # fmt: skip


def test_a_disk_for_which_a_guest_waits_is_told_by_its_name() -> None:
    index = FederationIndex(SiteId("marne"))
    machine = vm(1, site="marne", node_id="m-v1", epoch=5, volumes=("vol-1",), name="web")
    for noun in (datacenter("marne"), iaas(), machine, volume(1, vm_id="vm-1", name="data")):
        index.put(record(noun))
    failure = "the guest waits: vol-1 (nuage volume show vol-1)"
    seen = VmReport(vm_id=machine.vm_id, state=VmState.RUNNING, epoch=5, failure=failure)
    report = report_of(seen)
    (act,) = vnode_acts(index, report)
    assert isinstance(act, Save)
    assert isinstance(act.value, Vm)
    told = "the guest waits: data (nuage volume show data)"
    assert act.value.failure == told
    assert act.text == f"web is running: {told}"
    index.put(record(act.value, revision=2))
    assert vnode_acts(index, report) == []


def test_a_guest_that_was_started_anew_is_told_once() -> None:
    index = FederationIndex(SiteId("marne"))
    machine = vm(1, site="marne", node_id="m-v1", epoch=5, name="web")
    for noun in (datacenter("marne"), iaas(), machine):
        index.put(record(noun))
    anew = "web had ended, unasked, and is started anew"
    for revision, (count, told) in enumerate(((1, anew), (0, "web is running")), start=2):
        seen = VmReport(vm_id=machine.vm_id, state=VmState.RUNNING, epoch=5, restart_count=count)
        report = report_of(seen)
        (act,) = vnode_acts(index, report)
        assert isinstance(act, Save)
        assert act.text == told
        index.put(record(act.value, revision=revision))
        assert vnode_acts(index, report) == []
