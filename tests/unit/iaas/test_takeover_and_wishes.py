"""Who may continue a VM, and what nodes are told of it."""

from dataclasses import replace

import pytest
from tests.unit.iaas.iaas_makers import datacenter, iaas, node, record, vm, volume

from nuage.iaas.epochs import EPOCH_STEP, FIRST_EPOCH
from nuage.iaas.index import FederationIndex
from nuage.iaas.takeover import successors
from nuage.iaas.wishes import (
    Leave,
    WishContext,
    chap_login,
    host_login,
    ionode_wish,
    target_login,
    vnode_wish,
)
from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId, VolumeId
from nuage.model.contract import Contract, CutOffRule
from nuage.model.desired import PathState, PortGroup
from nuage.model.infrastructure import NodeRole, portal_group_of
from nuage.model.placement import Decision
from nuage.model.record import Noun
from nuage.model.status import Migration, NodeStatus
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import OutsideHost, Volume
from nuage.trust.shared_secrets import SharedSecrets

PLACES = (("marne", "m-io"), ("lyon", "l-io"), ("rennes", "r-io"))
ALIVE = {SiteId("lyon"), SiteId("rennes")}
NODE = NodeId("m-v1")


def index_of(*values: Noun, contract: Contract | None = None) -> FederationIndex:
    index = FederationIndex(SiteId("marne"))
    sites = [datacenter(name) for name in ("marne", "lyon", "rennes")]
    for value in (*sites, iaas(contract), *values):
        index.put(record(value))
    return index


def decision(elected_site: str) -> Decision:
    return Decision(
        request_id=RequestId("req-1"), vm_id=VmId("vm-1"), policy="power", decided_s=1.0,
        asked_sites=(), silent_sites=(), ranked=(), refusals=(), elected=NODE,
        elected_site=SiteId(elected_site),
    )  # fmt: skip


def context(
    index: FederationIndex, *, lease_s: float = 9.0, leave: Leave = Leave.SEND
) -> WishContext:
    return WishContext(
        index=index, secrets=SharedSecrets({0: b"k" * 32}), lease_until_s=lambda _vm: lease_s,
        leave=lambda _vm: leave,
    )  # fmt: skip


def test_successors_are_live_sites_with_every_disk_in_the_order_of_copies() -> None:
    one, two = volume(1, places=PLACES), volume(2, places=(PLACES[2], PLACES[0]))
    machine = vm(site="marne", volumes=("vol-1", "vol-2"))
    index = index_of(one, two, machine)
    assert successors(index, machine, alive=ALIVE) == ["rennes"]
    alone = replace(machine, volumes=(VolumeId("vol-1"),))
    assert successors(index, alone, alive=ALIVE) == ["lyon", "rennes"]


def test_a_contract_bounds_who_may_take_over() -> None:
    machine = vm(site="marne", volumes=("vol-1",))
    contract = Contract(sites=(SiteId("marne"), SiteId("rennes")))
    index = index_of(volume(1, places=PLACES), machine, contract=contract)
    assert successors(index, machine, alive=ALIVE) == ["rennes"]


def test_nobody_takes_over_what_is_not_fully_known() -> None:
    machine = vm(site="marne", volumes=("vol-1", "vol-9"))
    assert successors(index_of(volume(1, places=PLACES), machine), machine, alive=ALIVE) == []
    stranger = replace(machine, iaas_id=IaasId("iaas-9"))
    assert successors(index_of(machine), stranger, alive=ALIVE) == []
    assert successors(index_of(machine), replace(machine, volumes=()), alive=ALIVE) == []


def running(**changes: object) -> Vm:
    machine = vm(site="marne", node_id=NODE, volumes=("vol-1",), epoch=FIRST_EPOCH)
    return replace(machine, **changes)  # type: ignore[arg-type]


def disk() -> Volume:
    return volume(1, places=PLACES[:1], vm_id="vm-1")


def test_a_new_vm_starts_only_where_the_decision_says() -> None:
    """Another site may have entered it too, when an answer was lost."""
    undecided = index_of(running(), disk())
    assert vnode_wish(context(undecided), NODE, 1).vms == ()
    elsewhere = index_of(running(), disk(), decision("lyon"))
    assert vnode_wish(context(elsewhere), NODE, 1).vms == ()
    here = index_of(running(), disk(), decision("marne"))
    (wish,) = vnode_wish(context(here), NODE, 1).vms
    assert (wish.vm_id, wish.epoch) == ("vm-1", FIRST_EPOCH)


def test_an_undecided_vm_can_be_deleted() -> None:
    index = index_of(running(wish=PowerWish.DELETED), disk())
    (wish,) = vnode_wish(context(index), NODE, 1).vms
    assert wish.wish is PowerWish.DELETED


def test_a_vm_waits_for_its_disks() -> None:
    empty = replace(volume(1, places=PLACES[:1]), portal="")
    index = index_of(running(), empty, decision("marne"))
    wish = vnode_wish(context(index), NODE, 1)
    assert (wish.vms, wish.withheld) == ((), ("vm-1",))
    elsewhere = index_of(running(node_id=NodeId("m-v9")), disk(), decision("marne"))
    assert vnode_wish(context(elsewhere), NODE, 1).withheld == ()


def test_only_fail_over_vms_have_a_lease() -> None:
    stays = index_of(running(), disk(), decision("marne"))
    assert vnode_wish(context(stays), NODE, 1).vms[0].lease_until_s == 0.0
    contract = Contract(cut_off=CutOffRule.FAIL_OVER)
    leased = index_of(running(), disk(), decision("marne"), contract=contract)
    assert vnode_wish(context(leased), NODE, 1).vms[0].lease_until_s == 9.0


def test_a_vm_on_its_way_is_told_to_both_ends_and_leave_comes_from_the_quorum() -> None:
    target = NodeId("m-v2")
    moving = running(state=VmState.MIGRATING, migrating_to=target, move_within_s=60.0)
    migration = Migration(
        vm_id=moving.vm_id, source_site=SiteId("marne"), source_node=NODE, target_node=target,
        source_epoch=FIRST_EPOCH, target_epoch=FIRST_EPOCH + 1, address="10.0.0.2:49152",
    )  # fmt: skip
    source = replace(node("marne", NodeRole.VNODE), node_id=NODE, address="10.0.0.7")
    index = index_of(moving, disk(), migration, decision("marne"), source)
    (leaving,) = vnode_wish(context(index), NODE, 1).vms
    (coming,) = vnode_wish(context(index), target, 1).vms
    assert leaving.outgoing is not None
    assert not leaving.outgoing.may_switch
    assert leaving.outgoing.within_s == 60.0
    assert coming.incoming is not None
    assert coming.incoming.source_address == "10.0.0.7"
    assert coming.epoch == FIRST_EPOCH + 1
    (granted,) = vnode_wish(context(index, leave=Leave.SWITCH), NODE, 1).vms
    assert granted.outgoing is not None
    assert granted.outgoing.may_switch
    (kept,) = vnode_wish(context(index, leave=Leave.NONE), NODE, 1).vms
    assert kept.outgoing is None


def test_a_target_makes_ready_once_the_source_and_the_disks_have_come_so_far() -> None:
    target, moving = NodeId("m-v2"), running(state=VmState.MIGRATING, migrating_to=NodeId("m-v2"))
    opens = volume(1, places=PLACES[:1], vm_id="vm-1")
    serves = replace(opens, settled_epoch=opens.epoch)
    expected = Migration(
        vm_id=moving.vm_id, source_site=SiteId("marne"), source_node=NODE, target_node=target,
        source_epoch=FIRST_EPOCH, target_epoch=FIRST_EPOCH + 1,
    )  # fmt: skip
    listens = replace(expected, address="10.0.0.2:49152")

    def is_told(*values: Noun) -> bool:
        return bool(vnode_wish(context(index_of(*values, decision("marne"))), target, 1).vms)

    assert is_told(moving, serves, expected)
    assert not is_told(moving, opens, expected)
    assert not is_told(moving, replace(serves, failure="its node is lost"), expected)
    assert not is_told(running(), serves, expected)  # what it said before that may be on its way
    assert is_told(moving, opens, listens)


def test_a_vm_that_the_quorum_gave_away_is_stopped_where_it_was() -> None:
    given = running(state=VmState.STOPPING, migrating_to=NodeId("l-v1"))
    index = index_of(given, disk(), decision("marne"))
    (wish,) = vnode_wish(context(index), NODE, 1).vms
    assert wish.wish is PowerWish.STOPPED


def test_a_head_lets_in_the_vm_under_its_epoch_and_during_a_move_those_that_may_follow() -> None:
    index = index_of(running(), disk(), decision("marne"))
    (head,) = ionode_wish(context(index), NodeId("m-io"), 1).daemons[0].heads
    secrets = SharedSecrets({0: b"k" * 32})
    assert head.chap == (chap_login(secrets, VolumeId("vol-1"), FIRST_EPOCH),)
    moving = index_of(running(state=VmState.MIGRATING), disk(), decision("marne"))
    (head,) = ionode_wish(context(moving), NodeId("m-io"), 1).daemons[0].heads
    assert [c.user.rpartition(".")[2] for c in head.chap] == [
        str(FIRST_EPOCH), str(FIRST_EPOCH + 1), str(2 * EPOCH_STEP),
    ]  # fmt: skip


def test_while_keys_roll_heads_let_in_by_both_and_the_old_ones_open_nothing_afterwards() -> None:
    """A node that was revoked knows the secrets of the heads that it had."""
    index = index_of(running(), disk(), decision("marne"))
    generations: tuple[int, ...] = (3,)
    told = replace(context(index), key_generations=lambda: generations)

    def secrets() -> tuple[str, list[str]]:
        (vm_wish,) = vnode_wish(told, NODE, 1).vms
        (daemon,) = ionode_wish(told, NodeId("m-io"), 1).daemons
        assert vm_wish.disks[0].chap_generation == generations[0]
        return vm_wish.disks[0].chap_secret, [login.secret for login in daemon.heads[0].chap]

    old, known = secrets()
    assert known == [old]
    generations = (3, 4)  # somebody was revoked: the next ones are accepted first
    assert secrets()[0] == old
    assert len(secrets()[1]) == 2
    generations = (4, 3)
    new, known = secrets()
    assert set(known) == {old, new}
    generations = (4,)
    assert secrets() == (new, [new])


def test_log_ins_derive_from_a_secret_that_a_revoked_datacenter_does_not_know() -> None:
    volume_id, old = VolumeId("vol-1"), SharedSecrets({0: b"k" * 32})
    both = SharedSecrets({0: b"k" * 32, 5: b"n" * 32})
    index = index_of(running(state=VmState.MIGRATING), disk(), decision("marne"))
    used = replace(context(index), secrets=both, key_generations=lambda: (5, 4))
    (head,) = ionode_wish(used, NodeId("m-io"), 1).daemons[0].heads
    offered = {login.user: login.secret for login in head.chap}
    for epoch in (FIRST_EPOCH, FIRST_EPOCH + 1, 2 * EPOCH_STEP):
        fresh, late = (chap_login(both, volume_id, epoch, number) for number in (5, 4))
        assert (offered[fresh.user], offered[late.user]) == (fresh.secret, late.secret)
        assert chap_login(old, volume_id, epoch, 5).secret != fresh.secret
        assert chap_login(old, volume_id, epoch, 4).secret == late.secret


def test_a_head_waits_until_it_knows_where_its_copies_listen() -> None:
    index = index_of(volume(1, places=PLACES[:2]))
    (daemon,) = ionode_wish(context(index), NodeId("m-io"), 1).daemons
    assert (len(daemon.replicas), daemon.heads) == (1, ())
    status = NodeStatus(
        node_id=NodeId("l-io"), site_id=SiteId("lyon"), connected=True, since_s=0.0,
        replica_addresses={IaasId("iaas-1"): "10.1.0.1:21001"},
    )  # fmt: skip
    index.put(record(status, home="lyon"))
    (daemon,) = ionode_wish(context(index), NodeId("m-io"), 1).daemons
    assert [peer.address for peer in daemon.heads[0].replicas] == ["10.1.0.1:21001"]


def test_the_same_records_give_the_same_wish() -> None:
    index = index_of(running(), disk(), decision("marne"))
    assert vnode_wish(context(index), NODE, 1) == vnode_wish(context(index), NODE, 1)


def test_the_decision_on_a_move_does_not_take_a_vm_from_the_node_where_it_runs() -> None:
    index = index_of(running(), disk(), decision("marne"))
    index.put(record(decision("lyon"), epoch=FIRST_EPOCH + 1, revision=9))
    (wish,) = vnode_wish(context(index), NODE, 1).vms
    assert wish.vm_id == VmId("vm-1")


def test_a_host_outside_has_a_path_by_each_copy_and_hears_which_serves() -> None:
    host = OutsideHost(initiator="iqn.2026-01.org.example:h", login="host-1")
    statuses = [
        NodeStatus(
            node_id=NodeId(node), site_id=SiteId(site), connected=True, since_s=0.0,
            replica_addresses={IaasId("iaas-1"): f"{node}:21001"},
        )
        for site, node in PLACES
    ]  # fmt: skip
    index = index_of(replace(volume(1, places=PLACES), host=host), *statuses)
    secrets = SharedSecrets({0: b"k" * 32})
    (led,) = ionode_wish(context(index), NodeId("m-io"), 1).daemons
    (head,) = led.heads
    assert led.paths == ()
    assert head.chap == (host_login(secrets, replace(volume(1, places=PLACES), host=host)),)
    assert head.initiators == (host.initiator,)
    for name in ("l-io", "r-io"):
        (daemon,) = ionode_wish(context(index), NodeId(name), 1).daemons
        (path,) = daemon.paths
        assert (path.chap, path.initiators, path.iqn) == (head.chap, head.initiators, head.iqn)
        assert path.chap_own is None
        assert path.groups[0] == PortGroup(portal_group_of(NodeId(name)), PathState.STANDBY)
        assert set(path.groups) == set(head.groups)
    assert head.groups[0] == PortGroup(portal_group_of(NodeId("m-io")), PathState.OPTIMIZED)
    # It moves: the path that serves is another, and no head is left where it was.
    moved = replace(volume(1, places=PLACES), host=host, head=NodeId("l-io"))
    (daemon,) = ionode_wish(context(index_of(moved)), NodeId("m-io"), 1).daemons
    assert daemon.heads == ()
    assert daemon.paths[0].groups[0].state is PathState.STANDBY
    assert PortGroup(portal_group_of(NodeId("l-io")), PathState.OPTIMIZED) in daemon.paths[0].groups


def test_a_target_proves_itself_by_a_secret_of_its_own_on_every_path_and_by_new_keys_at_once() -> (
    None
):
    host = OutsideHost(initiator="iqn.h", login="a", mutual=True)
    given = replace(volume(1, places=PLACES), host=host)
    secrets = SharedSecrets({0: b"k" * 32, 1: b"n" * 32})
    index = index_of(given)
    rolling = replace(context(index), secrets=secrets, key_generations=lambda: (1, 0))
    wishes = [ionode_wish(rolling, NodeId(name), 1).daemons[0] for name in ("l-io", "r-io")]
    owns = {path.chap_own for wish in wishes for path in wish.paths}
    assert owns == {target_login(secrets, given, 1)}
    (own,) = owns
    assert own is not None
    logins = [host_login(secrets, given, generation) for generation in (1, 0)]
    assert own.secret not in {login.secret for login in logins}
    assert own != target_login(secrets, given, 0)
    assert own.secret not in repr(wishes)
    assert logins[0].secret not in repr(wishes)


def test_all_copies_and_the_vm_are_told_a_volumes_sectors() -> None:
    native = replace(volume(1, places=PLACES, vm_id="vm-1"), sector_bytes=4096, portal="m-io:21000")
    index = index_of(running(), native, decision("marne"))
    copies = [
        ionode_wish(context(index), NodeId(name), 1).daemons[0].replicas[0]
        for name in ("m-io", "l-io", "r-io")
    ]
    assert {copy.sector_bytes for copy in copies} == {4096}
    (wish,) = vnode_wish(context(index), NODE, 1).vms
    assert {disk.sector_bytes for disk in wish.disks} == {4096}


def test_an_attachment_has_a_secret_of_its_own_and_a_vms_volume_no_second_path() -> None:
    secrets = SharedSecrets({0: b"k" * 32})
    one, two = (
        replace(volume(1), host=OutsideHost(initiator="iqn.h", login=login)) for login in "ab"
    )
    assert host_login(secrets, one).secret != host_login(secrets, two).secret
    assert target_login(secrets, one) is None
    index = index_of(running(), volume(1, places=PLACES, vm_id="vm-1"), decision("marne"))
    assert ionode_wish(context(index), NodeId("l-io"), 1).daemons[0].paths == ()


def settled(value: Volume) -> Volume:
    return replace(value, settled_epoch=value.epoch)


def test_a_disk_whose_head_is_at_another_site_names_the_node_that_serves_it() -> None:
    here = replace(node("marne", NodeRole.VNODE), node_id=NODE)
    there = settled(volume(1, places=(PLACES[1], PLACES[0]), vm_id="vm-1"))
    (wish,) = vnode_wish(context(index_of(here, running(), there, decision("marne"))), NODE, 1).vms
    assert wish.disks[0].far_node == "l-io"
    near = index_of(here, running(), disk(), decision("marne"))
    assert vnode_wish(context(near), NODE, 1).vms[0].disks[0].far_node == ""


@pytest.mark.parametrize(("served", "opens"), [("m-io", "l-io"), ("l-io", "m-io")])
def test_while_a_head_opens_elsewhere_its_volumes_portal_is_that_of_the_head_before(
    served: str, opens: str
) -> None:
    """Else the node would ask, at the portal before, for who is not there."""
    here = replace(node("marne", NodeRole.VNODE), node_id=NODE)
    two = volume(1, places=PLACES[:2], vm_id="vm-1")
    opening = replace(two, head=NodeId(opens), settled_epoch=two.epoch, epoch=two.epoch + 1)
    statuses = [
        NodeStatus(
            node_id=NodeId(io), site_id=SiteId(site), connected=True, since_s=0.0,
            portals={opening.iaas_id: opening.portal if io == served else "10.0.0.9:3260"},
        )
        for site, io in PLACES[:2]
    ]  # fmt: skip
    index = index_of(here, running(), opening, decision("marne"), *statuses)
    (wish,) = vnode_wish(context(index), NODE, 1).vms
    assert wish.disks[0].portal == opening.portal
    assert wish.disks[0].far_node == ("l-io" if served == "l-io" else "")


def test_a_vm_that_arrives_reaches_a_disk_that_stays_where_it_was_from_afar() -> None:
    """What counts is the site of who is told, not where the VM still runs."""
    target = node("lyon", NodeRole.VNODE)
    moving = running(state=VmState.MIGRATING, migrating_to=target.node_id)
    migration = Migration(
        vm_id=VmId("vm-1"), source_site=SiteId("marne"), source_node=NODE,
        target_node=target.node_id, source_epoch=FIRST_EPOCH, target_epoch=2 * EPOCH_STEP,
        address="10.0.0.1:1",
    )  # fmt: skip
    index = index_of(target, moving, settled(disk()), migration, decision("marne"))
    (wish,) = vnode_wish(context(index), target.node_id, 1).vms
    assert wish.disks[0].far_node == "m-io"


def test_an_ionode_is_told_of_all_nodes_of_its_site_and_of_no_other() -> None:
    nodes = [
        replace(node(site, NodeRole.VNODE, number), address=f"10.0.{number}.{len(site)}")
        for site, number in (("marne", 1), ("marne", 2), ("lyon", 3))
    ]
    own = replace(node("marne", NodeRole.IONODE), address="10.0.9.9")
    wish = ionode_wish(context(index_of(own, *nodes)), own.node_id, 1)
    assert wish.neighbours == ("10.0.9.9", "10.0.1.5", "10.0.2.5")
