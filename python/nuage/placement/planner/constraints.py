"""What a placement must keep, one class per constraint, each with its own checker.

`bar` narrows a search: it takes nodes away from a VM. `violations` looks at a finished
placement and shares no code with `bar`, so that a mistake in one is found by the other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nuage.energy.electrical import PowerLimit
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.placement.columns import BoolArray
from nuage.placement.planner.fleet import NOWHERE, Fleet, Placement, PlannedVm, Trial

_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Violation:
    """A constraint broken: by which VMs, or on which node."""

    rule: str
    reason: str
    vm_ids: tuple[VmId, ...] = ()
    node_id: NodeId | None = None


class Constraint(Protocol):
    """A rule over placements. `concerned` None: every VM."""

    @property
    def rule(self) -> str:
        """The rule's name, as refusals show it."""
        ...

    @property
    def concerned(self) -> Sequence[VmId] | None:
        """The VMs that the rule is about."""
        ...

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """Take away from `able` the nodes that `vm` may not use, with the others as they are."""
        ...

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Return what a placement breaks."""
        ...


class Contract:
    """VMs of an IaaS stay in the sites that its contract allows."""

    rule = "contract"
    concerned: Sequence[VmId] | None = None

    def __init__(self, fleet: Fleet, sites_of: Mapping[IaasId, Sequence[SiteId]]) -> None:
        self._sites_of = {iaas: tuple(sites) for iaas, sites in sites_of.items()}
        self._mask_of = {iaas: fleet.site_mask(sites) for iaas, sites in self._sites_of.items()}

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """Only nodes of the sites allowed."""
        mask = self._mask_of.get(trial.fleet.vms[vm].iaas_id)
        if mask is not None:
            able &= mask

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Look at every VM's site."""
        found = []
        for vm, place in zip(fleet.vms, placement.tolist(), strict=True):
            sites = self._sites_of.get(vm.iaas_id)
            if place < 0 or sites is None:
                continue
            site_id = fleet.nodes[place].site_id
            if site_id not in sites:
                found.append(Violation(self.rule, f"{site_id} is not allowed", (vm.vm_id,)))
        return found


@dataclass(frozen=True, slots=True)
class Spread:
    """No two of the VMs on one node."""

    vm_ids: tuple[VmId, ...]
    rule: str = "spread"

    @property
    def concerned(self) -> Sequence[VmId]:
        """Those named."""
        return self.vm_ids

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """No node of another member."""
        places = trial.place[[n for n in trial.fleet.numbers_of(self.vm_ids) if n != vm]]
        able[places[places >= 0]] = False

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """All members of a node but its first are in the way."""
        first: dict[int, VmId] = {}
        found = []
        for vm_id in self.vm_ids:
            place = int(placement[fleet.vm_number[vm_id]])
            if place >= 0 and first.setdefault(place, vm_id) != vm_id:
                node_id = fleet.nodes[place].node_id
                found.append(Violation(self.rule, f"{first[place]} is there", (vm_id,), node_id))
        return found


@dataclass(frozen=True, slots=True)
class Gather:
    """All of the VMs in one site (affinity)."""

    vm_ids: tuple[VmId, ...]
    rule: str = "gather"

    @property
    def concerned(self) -> Sequence[VmId]:
        """Those named."""
        return self.vm_ids

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """The site where most other members are."""
        places = trial.place[[n for n in trial.fleet.numbers_of(self.vm_ids) if n != vm]]
        sites = trial.fleet.site_of[places[places >= 0]]
        if len(sites):
            able &= trial.fleet.site_of == np.bincount(sites).argmax()

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Those who are not where most are."""
        placed = [
            (vm_id, fleet.nodes[placement[fleet.vm_number[vm_id]]].site_id)
            for vm_id in self.vm_ids
            if placement[fleet.vm_number[vm_id]] != NOWHERE
        ]
        if len({site for _, site in placed}) < 2:
            return []
        home = Counter(site for _, site in placed).most_common(1)[0][0]
        return [
            Violation(self.rule, f"the others are in {home}", (vm_id,))
            for vm_id, site in placed
            if site != home
        ]


@dataclass(frozen=True, slots=True)
class Ban:
    """The VMs stay off the nodes."""

    vm_ids: tuple[VmId, ...]
    node_ids: tuple[NodeId, ...]
    rule: str = "ban"

    @property
    def concerned(self) -> Sequence[VmId]:
        """Those named."""
        return self.vm_ids

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """Not the banned nodes."""
        able[[trial.fleet.node_number[node_id] for node_id in self.node_ids]] = False

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Look where each VM is."""
        found = []
        for vm_id in self.vm_ids:
            place = int(placement[fleet.vm_number[vm_id]])
            if place >= 0 and fleet.nodes[place].node_id in self.node_ids:
                found.append(Violation(self.rule, "banned there", (vm_id,)))
        return found


@dataclass(frozen=True, slots=True)
class Fence:
    """The VMs stay on the nodes."""

    vm_ids: tuple[VmId, ...]
    node_ids: tuple[NodeId, ...]
    rule: str = "fence"

    @property
    def concerned(self) -> Sequence[VmId]:
        """Those named."""
        return self.vm_ids

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """Only the nodes of the fence."""
        able &= trial.fleet.node_mask(self.node_ids)

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Look where each VM is."""
        found = []
        for vm_id in self.vm_ids:
            place = int(placement[fleet.vm_number[vm_id]])
            if place >= 0 and fleet.nodes[place].node_id not in self.node_ids:
                found.append(Violation(self.rule, "outside its fence", (vm_id,)))
        return found


class Preserve:
    """Preserved vCPUs have a core each: nobody is sold the share of the cores that they hold."""

    rule = "preserve"
    concerned: Sequence[VmId] | None = None

    def __init__(self, fleet: Fleet) -> None:
        self._vms = np.array(
            [number for number, vm in enumerate(fleet.vms) if vm.preserved_vcpus], np.intp
        )
        self._kept = np.array([fleet.vms[number].preserved_vcpus for number in self._vms])
        self._more = fleet.vcpu / np.maximum(fleet.cores, 1.0) - 1.0  # a core's, beyond one vCPU

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """No node whose other cores are sold."""
        places = trial.place[self._vms]
        here = places >= 0
        kept = np.bincount(places[here], weights=self._kept[here], minlength=len(able))
        asked = trial.fleet.vm_vcpu[vm] + trial.fleet.vms[vm].preserved_vcpus * self._more
        able &= trial.vcpu_left - kept * self._more >= asked - _TINY

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Share each node's cores out: those kept first, the rest sold as often as it sells one."""
        found = []
        members: dict[int, list[int]] = {}
        for vm, place in enumerate(placement.tolist()):
            if place >= 0:
                members.setdefault(place, []).append(vm)
        for place in sorted({int(place) for place in placement[self._vms] if place >= 0}):
            node = fleet.nodes[place]
            cores = node.core_count or node.vcpu_count
            vms = [fleet.vms[vm] for vm in members[place]]
            kept = sum(vm.preserved_vcpus for vm in vms)
            others = sum(vm.vcpu_count - vm.preserved_vcpus for vm in vms)
            if others > (cores - kept) * node.vcpu_count / cores + _TINY:
                told = f"{kept} cores kept and {others} vCPUs on {cores} cores"
                culprits = _fewest(vms, others - (cores - kept) * node.vcpu_count / cores)
                found.append(Violation(self.rule, told, culprits, node.node_id))
        return found


def _fewest(vms: Sequence[PlannedVm], excess_vcpus: float) -> tuple[VmId, ...]:
    """Return the largest VMs that preserve nothing, as many as take the excess with them."""
    chosen, left = [], excess_vcpus
    for vm in sorted(vms, key=lambda vm: (vm.preserved_vcpus > 0, -vm.vcpu_count, vm.vm_id)):
        if left <= 0:
            break
        chosen.append(vm.vm_id)
        left -= vm.vcpu_count
    return tuple(chosen)


class Electrical:
    """The watts of the nodes on an outlet, branch, feed or container stay within its limit."""

    rule = "electrical"
    concerned: Sequence[VmId] | None = None

    def __init__(self, fleet: Fleet, limits: Sequence[PowerLimit]) -> None:
        self._limits = tuple(limits)
        self._members = [
            np.array(
                sorted(fleet.node_number[n] for n in limit.node_ids if n in fleet.node_number),
                np.intp,
            )
            for limit in self._limits
        ]

    def bar(self, trial: Trial, vm: int, able: BoolArray) -> None:
        """No node on which the VM would add more than its path has left."""
        for limit, members in zip(self._limits, self._members, strict=True):
            nodes = members[able[members]]
            if not len(nodes):
                continue
            awake = trial.awake[members]
            left = limit.limit_watts - float((trial.watts[members] * awake).sum())
            able[nodes] = trial.added_watts(vm, nodes) <= left + 1e-9

    def violations(self, fleet: Fleet, placement: Placement) -> list[Violation]:
        """Add the watts of each limit's nodes up."""
        watts = fleet.node_watts(placement)
        found = []
        for limit, members in zip(self._limits, self._members, strict=True):
            total = sum(
                float(watts[number])
                for number, node in enumerate(fleet.nodes)
                if node.node_id in limit.node_ids
            )
            if total > limit.limit_watts + 1e-6:
                told = f"{limit.name} carries {total:.0f} W of {limit.limit_watts:.0f} W"
                excess_watts = total - limit.limit_watts
                culprits = _busiest(fleet, placement, members.tolist(), excess_watts)
                found.append(Violation(self.rule, told, culprits))
        return found


def _busiest(
    fleet: Fleet, placement: Placement, nodes: Sequence[int], excess_watts: float
) -> tuple[VmId, ...]:
    """Return the busiest VMs of some nodes, as many as draw about `excess_watts`."""
    there = np.flatnonzero(np.isin(placement, nodes))
    left_watts = excess_watts
    culprits = []
    for vm in there[np.argsort(-fleet.vm_busy[there], kind="stable")].tolist():
        if left_watts <= 0:
            break
        node = fleet.nodes[placement[vm]]
        cores = max(node.core_count or node.vcpu_count, 1)
        slope = (node.curve.peak_watts - node.curve.idle_watts) / cores
        left_watts -= slope * float(fleet.vm_busy[vm])
        culprits.append(fleet.vms[vm].vm_id)
    return tuple(culprits)


def capacity_violations(fleet: Fleet, placement: Placement) -> list[Violation]:
    """Return the nodes that hold more than they have, or that should hold nothing."""
    found = []
    vcpu = fleet.used(fleet.vm_vcpu, placement)
    memory = fleet.used(fleet.vm_memory, placement)
    count = np.bincount(placement[placement >= 0], minlength=len(fleet.nodes))
    for number, node in enumerate(fleet.nodes):
        if vcpu[number] > node.vcpu_count:
            told = f"{vcpu[number]:.0f} of {node.vcpu_count} vCPUs"
            found.append(Violation("vcpu", told, node_id=node.node_id))
        if memory[number] > node.memory_mib:
            told = f"{memory[number]:.0f} of {node.memory_mib} MiB"
            found.append(Violation("memory", told, node_id=node.node_id))
        if count[number] and not fleet.may_host[number]:
            found.append(Violation("drain", "is to be empty", node_id=node.node_id))
    return found


def all_violations(
    fleet: Fleet, constraints: Sequence[Constraint], placement: Placement
) -> list[Violation]:
    """Return everything that a placement breaks, VMs without a node included."""
    found = capacity_violations(fleet, placement)
    found += [
        Violation("unplaced", "has no node", (vm.vm_id,))
        for vm, place in zip(fleet.vms, placement.tolist(), strict=True)
        if place < 0
    ]
    for constraint in constraints:
        found += constraint.violations(fleet, placement)
    return found
