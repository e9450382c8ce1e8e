"""What was worked out for a wish is kept, and never beyond what it was made of."""

from dataclasses import replace

from tests.unit.iaas.iaas_makers import LYON, MARNE, datacenter, iaas, node, port, record, segment
from tests.unit.iaas.iaas_makers import vm as make_vm
from tests.unit.iaas.iaas_makers import volume as make_volume

from nuage.daemon.reconciler import concerned_objects
from nuage.iaas.addresses import host_number
from nuage.iaas.epochs import FIRST_EPOCH
from nuage.iaas.fabric_keys import FabricKeySet
from nuage.iaas.fabric_wishes import FabricContext, fabric_wish
from nuage.iaas.index import FederationIndex
from nuage.iaas.wishes import KeptWishes, Leave, WishContext, ionode_wish, vnode_wish
from nuage.ids import ImageId, NodeId, PortId, RequestId, SecurityGroupId
from nuage.model.contract import Contract, CutOffRule, QosClass
from nuage.model.image import Image, ImageState
from nuage.model.infrastructure import NodeRole
from nuage.model.network import GroupRule, SecurityGroup
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import NodeStatus
from nuage.model.vm import VmState
from nuage.model.volume import VolumeState
from nuage.trust.shared_secrets import SharedSecrets

HEAD, COPY, VNODE = NodeId("m-io"), NodeId("l-io"), NodeId("marne-vnode-1")
GROUP = SecurityGroupId("group-1")
PLACES = (("marne", HEAD), ("lyon", COPY))


def daemon_at(address: str) -> NodeStatus:
    return NodeStatus(
        node_id=COPY, site_id=LYON, connected=True, since_s=0.0,
        replica_addresses={iaas().iaas_id: address} if address else {},
    )  # fmt: skip


def image(sha256: str) -> Image:
    return Image(
        image_id=ImageId("img-1"), iaas_id=None, name="debian", size_bytes=1 << 20, sha256=sha256,
        state=ImageState.READY,
    )  # fmt: skip


def storage(index: FederationIndex) -> WishContext:
    return WishContext(
        index=index,
        secrets=SharedSecrets({0: b"k" * 32}),
        lease_until_s=lambda _vm: 0.0,
        leave=lambda _vm: Leave.SEND,
    )


def fabric(index: FederationIndex) -> FabricContext:
    return FabricContext(index, MARNE, FabricKeySet("key"), SharedSecrets({0: b"k" * 32}))


def test_an_ionodes_wish_is_after_every_change_what_it_would_be_made_anew() -> None:
    index = FederationIndex(MARNE)
    vm = make_vm(node_id=VNODE, volumes=("vol-1",), epoch=5)
    fresh = make_volume(places=PLACES, vm_id="vm-1", state=VolumeState.CREATING, image="img-1")
    ready = replace(fresh, state=VolumeState.READY)
    steps: tuple[Noun, ...] = (
        iaas(), vm, image("aa"), fresh, make_volume(2, places=PLACES), daemon_at(""),
        daemon_at("10.0.0.9:1"), image("bb"), daemon_at("10.0.0.9:2"), ready,
        replace(vm, state=VmState.MIGRATING), replace(vm, epoch=6),
        iaas(Contract(qos_class=QosClass.BRONZE)), replace(ready, without=(COPY,)),
        replace(ready, epoch=ready.epoch + 1), replace(ready, head=COPY),
        replace(ready, state=VolumeState.DELETING),
    )  # fmt: skip
    kept, partly, seen = storage(index), storage(index), set()
    for revision, value in enumerate(steps, start=1):
        index.put(record(value, revision=revision))
        wish = ionode_wish(kept, HEAD, revision)
        assert wish == ionode_wish(storage(index), HEAD, revision)
        assert wish == ionode_wish(partly, HEAD, revision, concerned_objects(value))
        seen.add(replace(wish, revision=0))
    assert len(seen) == len(steps) - 3  # what stands alone, or names no address, asks nothing
    index.remove("volume", "vol-2", MARNE)
    assert ionode_wish(kept, HEAD, 99).daemons == ()


def test_a_vnodes_wish_is_after_every_change_what_it_would_be_made_anew() -> None:
    index = FederationIndex(MARNE)
    vm = replace(
        make_vm(node_id=VNODE, site="marne", volumes=("vol-1",), epoch=FIRST_EPOCH),
        ports=(PortId("port-1"),),
    )
    disk = make_volume(places=PLACES, vm_id="vm-1")
    elected = Decision(
        request_id=RequestId("req-1"), vm_id=vm.vm_id, policy="power", decided_s=0.0,
        asked_sites=(MARNE,), silent_sites=(), ranked=(), refusals=(), elected=VNODE,
        elected_site=MARNE,
    )  # fmt: skip
    steps: tuple[Noun, ...] = (
        vm, disk, iaas(), elected, port(), segment(), replace(disk, portal="10.0.0.2:3260"),
        replace(disk, epoch=disk.epoch + 1), replace(disk, state=VolumeState.CREATING), disk,
        port(address="10.0.0.9/20"), replace(segment(), mtu_bytes=1400), replace(vm, name="db"),
        iaas(Contract(qos_class=QosClass.GOLD)), iaas(Contract(cut_off=CutOffRule.FAIL_OVER)),
    )  # fmt: skip
    lease_s = 7.0
    kept = replace(storage(index), lease_until_s=lambda _vm: lease_s)
    partly = replace(storage(index), lease_until_s=lambda _vm: lease_s, kept=KeptWishes())
    seen = set()
    for revision, value in enumerate(steps, start=1):
        index.put(record(value, revision=revision))
        wish = vnode_wish(kept, VNODE, 1)
        fresh = replace(storage(index), lease_until_s=lambda _vm: lease_s)
        assert wish == vnode_wish(fresh, VNODE, 1)
        assert wish == vnode_wish(partly, VNODE, 1, concerned_objects(value))
        seen.add(wish)
    assert len(seen) == len(steps) - 5  # undecided, no segment yet, two go back
    lease_s = 8.0
    (renewed,) = vnode_wish(kept, VNODE, 1).vms
    assert renewed.lease_until_s == 8.0


def test_an_rbridges_wish_is_after_every_change_what_it_would_be_made_anew() -> None:
    index = FederationIndex(MARNE)
    for first in (datacenter("marne"), node("marne", NodeRole.VNODE), iaas(), segment()):
        index.put(record(first))
    vm = replace(make_vm(node_id=VNODE, site="marne"), ports=(PortId("port-1"),))
    grouped = replace(port(), security_groups=(GROUP,))
    group = SecurityGroup(group_id=GROUP, iaas_id=iaas().iaas_id, name="web")
    by_group = replace(group, rules=(GroupRule(remote_group=GROUP),))
    other = replace(port(2, vm_id="vm-2", address="10.0.0.7/20"), security_groups=(GROUP,))
    steps: tuple[Noun, ...] = (
        vm, port(), port(address="10.0.0.3/20"), replace(vm, name="db"), grouped, group, by_group,
        make_vm(2, node_id="lyon-vnode-1"), other, replace(vm, state=VmState.MIGRATING),
        iaas(Contract(qos_class=QosClass.GOLD)), replace(segment(), label=0x3000),
    )  # fmt: skip
    kept, seen = fabric(index), set()
    for revision, value in enumerate(steps, start=2):
        index.put(record(value, revision=revision))
        wish = fabric_wish(kept, VNODE, 1)
        assert wish == fabric_wish(fabric(index), VNODE, 1)
        seen.add(wish)
    assert len(seen) == len(steps) - 2  # a VM without a port known, and one elsewhere, are no news


def test_an_address_is_read_as_a_number_in_both_families() -> None:
    assert host_number("10.0.0.2/20") == (10 << 24) + 2
    assert host_number("10.0.0.2") == (10 << 24) + 2
    assert host_number("fd00::2/64") == (0xFD << 120) + 2
