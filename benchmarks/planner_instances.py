"""Instances of the size of BtrPlace's published ones, made from a seed.

Their two kinds: `li`, a load increase (a tenth of the VMs need more than they have), and
`nr`, a node replacement (nodes to drain, and VMs to boot). The published set is 5,000 servers
and 30,000 VMs, in groups that must be spread, with some VMs fenced or banned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.placement.planner.constraints import Ban, Constraint, Contract, Fence, Gather, Spread
from nuage.placement.planner.fleet import Fleet, PlannedNode, PlannedVm

SIZES = ((1, 1024), (2, 2048), (2, 4096), (4, 4096), (4, 8192))


@dataclass(frozen=True, slots=True)
class Instance:
    """A fleet with something to repair, and what must be kept."""

    fleet: Fleet
    constraints: tuple[Constraint, ...]


def instance(
    seed: int,
    *,
    node_count: int = 5000,
    vms_per_node: int = 6,
    drain_count: int = 250,
    boot_share: float = 0.05,
    grow_share: float = 0.0,
    site_count: int = 4,
    constrained_share: float = 0.33,
    node_memory_mib: int = 28_672,
) -> Instance:
    """Return an instance in which what runs fits and keeps its constraints, before it grows."""
    prng = Random(seed)
    drained = set(prng.sample(range(node_count), drain_count))
    nodes = [
        PlannedNode(
            node_id=NodeId(f"n{number:05}"),
            site_id=SiteId(f"s{number * site_count // node_count}"),
            container=f"c{number // 168}",
            vcpu_count=24,
            memory_mib=node_memory_mib,
            curve=HUAWEI_RH2288_V2 if number % 2 else ACER_AT350_F2,
            drain=number in drained,
        )
        for number in range(node_count)
    ]
    vms = []
    home: list[int | None] = []
    left_mib = [node_memory_mib] * node_count
    for number in range(node_count * vms_per_node):
        vcpu_count, memory_mib = prng.choice(SIZES)
        boots = prng.random() < boot_share
        node = number % node_count
        if left_mib[node] - memory_mib < 1024 * (vms_per_node - 1 - number // node_count):
            vcpu_count, memory_mib = SIZES[0]  # leave room for the rest
        left_mib[node] -= 0 if boots else memory_mib
        if prng.random() < grow_share:
            memory_mib += 4096
        home.append(None if boots else node)
        vms.append(
            PlannedVm(
                vm_id=VmId(f"v{number:06}"),
                iaas_id=IaasId(f"i{node * 60 // node_count}"),
                vcpu_count=vcpu_count,
                memory_mib=memory_mib,
                node_id=None if boots else nodes[node].node_id,
                load=prng.choice((0.1, 0.3, 0.6)),
            )
        )
    fleet = Fleet(nodes, vms)
    return Instance(fleet, _constraints(prng, fleet, home, constrained_share))


def _constraints(
    prng: Random, fleet: Fleet, home: Sequence[int | None], share: float
) -> tuple[Constraint, ...]:
    """Spread, gather, fence and ban groups of running VMs, true of where they run now."""
    sites_of = {
        IaasId(f"i{index}"): tuple(dict.fromkeys(
            node.site_id for node in fleet.nodes[
                index * len(fleet.nodes) // 60 : (index + 1) * len(fleet.nodes) // 60 + 1
            ]
        ))
        for index in range(60)
    }  # fmt: skip
    constraints: list[Constraint] = [Contract(fleet, sites_of)]
    constrained = int(len(fleet.vms) * share)
    for begin in range(0, constrained - 6, 6):
        vms = fleet.vms[begin : begin + 6]
        ids = tuple(vm.vm_id for vm in vms)
        places = {place for place in home[begin : begin + 6] if place is not None}
        kind = prng.randrange(4)
        if kind < 2:
            constraints.append(Spread(ids))
        elif kind == 2 and len({fleet.site_of[place] for place in places}) == 1:
            constraints.append(Gather(ids))
        elif places:
            site = fleet.site_of[next(iter(places))]
            same = [n for n in range(len(fleet.nodes)) if fleet.site_of[n] == site]
            others = prng.sample(same, min(200, len(same)))
            fence = sorted({*others, *places})
            away = [n for n in prng.sample(same, min(20, len(same))) if n not in places]
            if prng.random() < 0.5:
                constraints.append(Fence(ids, tuple(fleet.nodes[n].node_id for n in fence)))
            elif away:
                constraints.append(Ban(ids, tuple(fleet.nodes[n].node_id for n in away)))
    return tuple(constraints)
