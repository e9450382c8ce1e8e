"""What the planner plans over: nodes and VMs as columns, and a placement that can be tried.

A placement is one array: for each VM the number of its node, `NOWHERE` for one still to boot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nuage.energy.power_curve import PowerCurve
from nuage.errors import InvalidRequest
from nuage.ids import IaasId, NodeId, SiteId, VmId
from nuage.placement.columns import BoolArray, FloatArray
from nuage.placement.table import watts_at

NOWHERE: Final = -1
Placement: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNode:
    """A V-node. `drain`: nothing may stay on it. `wakeable`: may be booted if it is off.

    `vcpu_count` is what it sells, on `core_count` cores (0: one each).
    """

    node_id: NodeId
    site_id: SiteId
    vcpu_count: int
    memory_mib: int
    curve: PowerCurve
    core_count: int = 0
    container: str = ""
    is_on: bool = True
    drain: bool = False
    wakeable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVm:
    """A VM with the room it needs from now on, which is more than it has where it grows.

    `load` is how much of its vCPUs it keeps busy, 0 to 1; `node_id` None is still to boot;
    `preserved_vcpus` have a core each that nobody else is sold.
    """

    vm_id: VmId
    iaas_id: IaasId
    vcpu_count: int
    memory_mib: int
    node_id: NodeId | None
    load: float = 0.5
    preserved_vcpus: int = 0


class Fleet:
    """Columns of nodes and VMs; numbers are positions in the sequences given."""

    def __init__(self, nodes: Sequence[PlannedNode], vms: Sequence[PlannedVm]) -> None:
        self.nodes = tuple(nodes)
        self.vms = tuple(vms)
        self.node_number = {node.node_id: number for number, node in enumerate(self.nodes)}
        self.vm_number = {vm.vm_id: number for number, vm in enumerate(self.vms)}
        if len(self.node_number) != len(self.nodes) or len(self.vm_number) != len(self.vms):
            raise InvalidRequest("a node or a VM is named twice", field="nodes")
        self.sites = tuple(dict.fromkeys(node.site_id for node in self.nodes))
        site_number = {site: number for number, site in enumerate(self.sites)}
        self.site_of = np.array([site_number[node.site_id] for node in self.nodes], np.int64)
        self.vcpu = np.array([node.vcpu_count for node in self.nodes], np.float64)
        self.cores = np.array([n.core_count or n.vcpu_count for n in self.nodes], np.float64)
        self.memory = np.array([node.memory_mib for node in self.nodes], np.float64)
        self.curves = np.array([node.curve.watts for node in self.nodes]).reshape(-1, 11)
        self.is_on = np.array([node.is_on for node in self.nodes], np.bool_)
        self.may_host = np.array(
            [not n.drain and (n.is_on or n.wakeable) for n in self.nodes], np.bool_
        )
        self.vm_vcpu = np.array([vm.vcpu_count for vm in self.vms], np.float64)
        self.vm_memory = np.array([vm.memory_mib for vm in self.vms], np.float64)
        self.vm_busy = np.array([vm.vcpu_count * vm.load for vm in self.vms], np.float64)
        self.start: Placement = np.array(
            [NOWHERE if vm.node_id is None else self._node(vm.node_id) for vm in self.vms],
            np.int64,
        )

    def site_mask(self, site_ids: Sequence[SiteId]) -> BoolArray:
        """Return which nodes stand in the sites given."""
        wanted = [number for number, site in enumerate(self.sites) if site in site_ids]
        mask: BoolArray = np.isin(self.site_of, wanted)
        return mask

    def node_mask(self, node_ids: Sequence[NodeId]) -> BoolArray:
        """Return the nodes given as a mask."""
        mask = np.zeros(len(self.nodes), np.bool_)
        mask[[self._node(node_id) for node_id in node_ids]] = True
        return mask

    def numbers_of(self, vm_ids: Sequence[VmId]) -> list[int]:
        """Return the numbers of VMs."""
        return [self.vm_number[vm_id] for vm_id in vm_ids]

    def used(self, column: FloatArray, placement: Placement) -> FloatArray:
        """Return the sum of a VM column per node."""
        placed = placement >= 0
        totals = np.zeros(len(self.nodes))
        np.add.at(totals, placement[placed], column[placed])
        return totals

    def node_watts(self, placement: Placement) -> FloatArray:
        """Return each node's watts; an empty node that is off, or drained, draws nothing."""
        load = self.used(self.vm_busy, placement) / np.maximum(self.cores, 1.0)
        occupied = np.bincount(placement[placement >= 0], minlength=len(self.nodes)) > 0
        kept_on = self.is_on & self.may_host
        watts: FloatArray = watts_at(self.curves, load) * (occupied | kept_on)
        return watts

    def _node(self, node_id: NodeId) -> int:
        number = self.node_number.get(node_id)
        if number is None:
            raise InvalidRequest(f"no node {node_id}", field="node_id")
        return number


class Trial:
    """A placement under change, with what is left on each node kept up to date."""

    def __init__(self, fleet: Fleet, placement: Placement) -> None:
        self.fleet = fleet
        self.place = placement.copy()
        self.vcpu_left = fleet.vcpu - fleet.used(fleet.vm_vcpu, placement)
        self.memory_left = fleet.memory - fleet.used(fleet.vm_memory, placement)
        self.busy = fleet.used(fleet.vm_busy, placement)
        self.members: list[set[int]] = [set() for _ in fleet.nodes]
        for vm, node in enumerate(placement.tolist()):
            if node >= 0:
                self.members[node].add(vm)
        self.cores = np.maximum(fleet.cores, 1.0)
        self.watts = watts_at(fleet.curves, self.busy / self.cores)
        self.awake = fleet.is_on.copy()
        self.awake[placement[placement >= 0]] = True

    def move(self, vm: int, to: int) -> None:
        """Put a VM on a node, or `NOWHERE`."""
        came_from = int(self.place[vm])
        for node, sign in ((came_from, 1.0), (to, -1.0)):
            if node < 0:
                continue
            self.vcpu_left[node] += sign * self.fleet.vm_vcpu[vm]
            self.memory_left[node] += sign * self.fleet.vm_memory[vm]
            self.busy[node] -= sign * self.fleet.vm_busy[vm]
            self.watts[node] = self.fleet.nodes[node].curve.at(
                float(self.busy[node] / self.cores[node])
            )
        if came_from >= 0:
            self.members[came_from].discard(vm)
        if to >= 0:
            self.members[to].add(vm)
            self.awake[to] = True
        self.place[vm] = to

    def room(self, vm: int) -> BoolArray:
        """Return which nodes may host and have room for a VM."""
        able: BoolArray = (
            self.fleet.may_host
            & (self.vcpu_left >= self.fleet.vm_vcpu[vm])
            & (self.memory_left >= self.fleet.vm_memory[vm])
        )
        return able

    def added_watts(self, vm: int, nodes: npt.NDArray[np.intp]) -> FloatArray:
        """Return what a VM would add on each of `nodes`, waking those that sleep."""
        load = (self.busy[nodes] + self.fleet.vm_busy[vm]) / self.cores[nodes]
        after = watts_at(self.fleet.curves[nodes], load)
        added: FloatArray = after - np.where(self.awake[nodes], self.watts[nodes], 0.0)
        return added
