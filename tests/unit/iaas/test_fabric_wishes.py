"""What each RBridge is told: whom it is joined to, who is where, what its ports let in."""

from dataclasses import replace

import pytest
from tests.unit.iaas.iaas_makers import LYON, MARNE, datacenter, iaas, node, port, record, segment
from tests.unit.iaas.iaas_makers import vm as make_vm

from nuage.iaas.fabric_keys import FabricKeySet, fabric_key
from nuage.iaas.fabric_wishes import (
    SITE_VNI_MIN,
    FabricContext,
    concerned_rbridges,
    fabric_wish,
    is_news,
)
from nuage.iaas.index import FederationIndex
from nuage.ids import NodeId, PortId, RackId, SecurityGroupId, SiteId
from nuage.model.fabric import FabricWish
from nuage.model.infrastructure import Node, NodeRole, ProviderLine
from nuage.model.network import GroupRule, SecurityGroup
from nuage.model.record import Noun
from nuage.model.vm import Vm, VmState
from nuage.trust.shared_secrets import SharedSecrets


def rbridge(site: str, role: NodeRole, number: int = 1, **more: object) -> Node:
    made = node(site, role, number)
    return replace(made, address=f"10.0.0.{number}", **more)  # type: ignore[arg-type]


def edge(site: str, *, bare: bool = False) -> Node:
    lines = tuple(ProviderLine(isp, f"192.0.2.{len(site)}") for isp in ("isp1", "isp2"))
    return rbridge(site, NodeRole.EDGE, 9, lines=lines, trunk_key=f"key-{site}", bare_trunks=bare)


def plugged(number: int, site: str, **more: object) -> Vm:
    made = make_vm(number, site=site, node_id=f"{site}-vnode-1")
    return replace(made, ports=(PortId(f"port-{number}"),), **more)  # type: ignore[arg-type]


def index_at(site: SiteId, *values: Noun) -> FederationIndex:
    index = FederationIndex(site)
    nodes = [rbridge(s, NodeRole.VNODE) for s in ("marne", "lyon")]
    sites = [datacenter("marne", number=0), datacenter("lyon", number=1)]
    for value in (*sites, *nodes, iaas(), segment(), *values):
        index.put(record(value))
    return index


def wish_of(index: FederationIndex, node_id: str) -> FabricWish:
    context = FabricContext(
        index, index.site_id, FabricKeySet(fabric_key(b"k" * 32)), SharedSecrets({0: b"k" * 32})
    )
    return fabric_wish(context, NodeId(node_id), 1)


def test_both_ends_of_every_trunk_work_out_the_same_number() -> None:
    values = (edge("marne"), edge("lyon"))
    here = wish_of(index_at(MARNE, *values), "marne-edge-9").trunks
    there = wish_of(index_at(LYON, *values), "lyon-edge-9").trunks
    assert [t.number for t in here] == [t.number for t in there] == [17, 18]
    assert [t.here.provider for t in here] == ["isp1", "isp2"]
    assert {t.public_key for t in here} == {"key-lyon"}
    assert all(t.encrypted for t in (*here, *there))


def test_a_trunk_is_bare_only_when_both_ends_say_so() -> None:
    one = index_at(MARNE, edge("marne", bare=True), edge("lyon"))
    assert all(t.encrypted for t in wish_of(one, "marne-edge-9").trunks)
    both = index_at(MARNE, edge("marne", bare=True), edge("lyon", bare=True))
    assert not any(t.encrypted for t in wish_of(both, "marne-edge-9").trunks)


def test_nodes_of_a_site_are_joined_by_a_number_of_their_own() -> None:
    index = index_at(MARNE, edge("marne"), rbridge("marne", NodeRole.VNODE, 2))
    (to_edge, to_other) = wish_of(index, "marne-vnode-1").links
    (back, *_) = wish_of(index, "marne-edge-9").links
    assert (to_edge.node_id, to_other.node_id) == ("marne-edge-9", "marne-vnode-2")
    assert to_edge.vni == back.vni >= SITE_VNI_MIN
    assert to_edge.vni != to_other.vni


def test_an_edge_in_maintenance_is_told_so_by_its_own_site() -> None:
    inside = replace(edge("marne"), maintenance=True)
    index = index_at(MARNE, edge("marne"))
    assert not wish_of(index, "marne-edge-9").maintenance
    index.put(record(inside))
    assert wish_of(index, "marne-edge-9").maintenance
    assert inside.node_id in concerned_rbridges(index, MARNE, inside)
    assert is_news(inside, edge("marne"))


def test_a_large_site_is_joined_by_racks_and_stays_within_a_planes_trunks() -> None:
    nodes = [
        replace(rbridge("marne", NodeRole.VNODE, n), rack_id=RackId(f"rack-{n % 8}"))
        for n in range(2, 90)
    ]
    index = index_at(MARNE, edge("marne"), *nodes)
    links = {each.node_id: wish_of(index, each.node_id).links for each in (*nodes, edge("marne"))}
    assert max(len(peers) for peers in links.values()) <= 32
    reached, todo = {NodeId("marne-edge-9")}, [NodeId("marne-edge-9")]
    while todo:
        fresh = {link.node_id for link in links.get(todo.pop(), ())} - reached
        reached |= fresh
        todo += sorted(fresh)
    assert {each.node_id for each in nodes} <= reached


def test_the_directory_has_the_segments_of_a_node_and_no_line_for_who_moves() -> None:
    stays, moves = plugged(1, "marne"), plugged(2, "lyon", state=VmState.MIGRATING)
    ports = (port(1, vm_id="vm-1"), port(2, vm_id="vm-2", address="10.0.1.0/20"))
    index = index_at(MARNE, stays, moves, *ports)
    stations = {
        s.addresses: (s.node_id, s.moving) for s in wish_of(index, "marne-vnode-1").stations
    }
    assert stations == {
        ("10.0.0.2",): ("marne-vnode-1", False),
        ("10.0.1.0",): ("lyon-vnode-1", True),
    }


def test_a_port_takes_what_comes_from_its_segment_until_it_is_in_a_group() -> None:
    web = SecurityGroup(
        group_id=SecurityGroupId("sg-1"), iaas_id=iaas().iaas_id, name="web",
        rules=(GroupRule(protocol="tcp", port_first=80, port_last=80),
               GroupRule(remote_group=SecurityGroupId("sg-1"))),
    )  # fmt: skip
    plain = index_at(MARNE, plugged(1, "marne"), port(1))
    (rules,) = (p.rules for p in wish_of(plain, "marne-vnode-1").ports)
    assert rules is not None
    assert [r.remote for r in rules if r.ingress] == ["10.0.0.0/20", "fe80::/10"]
    grouped = replace(port(1), security_groups=(web.group_id,))
    index = index_at(MARNE, plugged(1, "marne"), grouped, web)
    (rules,) = (p.rules for p in wish_of(index, "marne-vnode-1").ports)
    assert rules is not None
    assert [(r.protocol, r.remote, r.port_last) for r in rules if r.ingress] == [
        ("tcp", "", 80),
        ("any", "10.0.0.2", 65535),
    ]


@pytest.mark.parametrize(
    ("out", "passes"),
    [
        ((), [("any", "", 65535)]),
        ((GroupRule(ingress=False, protocol="tcp", port_first=443, port_last=443),),
         [("tcp", "", 443)]),
        ((GroupRule(ingress=False, remote_group=SecurityGroupId("sg-none")),), []),
    ],
    ids=["all unless said", "what is said", "nobody is in the group yet"],
)  # fmt: skip
def test_a_group_that_says_what_goes_out_lets_nothing_else_out(
    out: tuple[GroupRule, ...], passes: list[tuple[str, str, int]]
) -> None:
    web = SecurityGroup(
        group_id=SecurityGroupId("sg-1"), iaas_id=iaas().iaas_id, name="web",
        rules=(GroupRule(protocol="tcp", port_first=80, port_last=80), *out),
    )  # fmt: skip
    grouped = replace(port(1), security_groups=(web.group_id,))
    index = index_at(MARNE, plugged(1, "marne"), grouped, web)
    (rules,) = (p.rules for p in wish_of(index, "marne-vnode-1").ports)
    assert rules is not None
    assert [(r.protocol, r.remote, r.port_last) for r in rules if not r.ingress] == passes


def test_a_site_tells_its_own_nodes_where_a_vm_of_their_segments_went() -> None:
    here, there = plugged(1, "marne"), plugged(2, "lyon")
    index = index_at(MARNE, here, there, port(1), port(2, vm_id="vm-2"))
    assert concerned_rbridges(index, MARNE, there) == {"marne-vnode-1"}
    assert is_news(there, replace(there, node_id=NodeId("lyon-vnode-2")))
    assert not is_news(there, replace(there, failure="a word", reboot_count=1))


def test_the_key_is_no_part_of_what_is_printed() -> None:
    index = index_at(MARNE, plugged(1, "marne"), port(1))
    assert fabric_key(b"k" * 32) not in repr(wish_of(index, "marne-vnode-1"))
