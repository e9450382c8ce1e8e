"""The product's own agents over a simulated fleet: a Local Agent per site, one Master Agent.

Any policy places, plug-ins too, through the five steps that a federation takes: vectors, bids,
ranking, commitment, and the vector that shows the VM. Nodes keep the dynamic metric as their SeDs
would, from the watts of their curves. What is not played is time on the wire. Of 100,000 nodes a
placement changes one, and that one is all that a Local Agent works out anew.

Every vCPU counts as busy, and a container's own limit is part of its site's: as in `fleet_year`,
whose containers carry all of their nodes at full load.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from nuage.energy.power_curve import PowerCurve
from nuage.energy.request_power import RequestPower
from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Datacenter, Operator
from nuage.model.placement import EstimationVector, Refusal, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent, SiteConditions
from nuage.placement.master_agent import (
    AskSite,
    BidsArrived,
    Commit,
    CommitRefused,
    Committed,
    Decided,
    Effect,
    MasterAgent,
)
from nuage.placement.policies import PolicyBook

FLEET: Final = IaasId("fleet")


@dataclass(slots=True)
class _Node:
    """One node: its machine, what runs on it, and what its SeD remembers."""

    node_id: NodeId
    site: int
    curve: PowerCurve
    flops: float
    vcpu_count: int
    memory_mib: int
    vcpu_used: int = 0
    memory_used_mib: int = 0
    is_on: bool = False
    watts: float = 0.0
    running: list[VmId] = field(default_factory=list)
    power: RequestPower = field(default_factory=RequestPower)


class FleetAgents:
    """Places and moves VMs, which are numbers, on nodes, which are numbers too."""

    def __init__(self, site_watts: Sequence[float], *, policy: str) -> None:
        book = PolicyBook.load()
        self._policy = book.require(policy).name
        self._sites = [SiteId(f"site-{number}") for number in range(len(site_watts))]
        self.local_agents = [
            LocalAgent(
                Datacenter(
                    site_id=site_id, place="", country="FR", operator=Operator("fleet", "FR"),
                    tier=1, power_capacity_watts=watts,
                ),
                policies=book,
                vector_age_max_s=inf,
            )
            for site_id, watts in zip(self._sites, site_watts, strict=True)
        ]  # fmt: skip
        self._master = MasterAgent(policies=book)
        self._nodes: list[_Node] = []
        self._sizes: dict[tuple[int, int], VmShape] = {}
        self._shapes: dict[VmId, VmShape] = {}
        self._now_s = 0.0

    def add_node(
        self, site: int, curve: PowerCurve, *, flops: float, vcpu_count: int, memory_mib: int
    ) -> None:
        """Add the next node, off."""
        node_id = NodeId(f"n{len(self._nodes):06}")
        node = _Node(node_id, site, curve, flops, vcpu_count, memory_mib)
        self._nodes.append(node)
        self.local_agents[site].set_power_curve(node_id, curve.watts)
        self._tell(node)

    def begin_hour(self, now_s: float, conditions: Sequence[SiteConditions]) -> None:
        """Take the time, and each site's PUE, price and carbon."""
        self._now_s = now_s
        for agent, here in zip(self.local_agents, conditions, strict=True):
            agent.set_conditions(here)

    def place(self, vm: int, vcpu_count: int, memory_mib: int) -> int:
        """Place a VM by the policy; return its node, or -1 where none can take it."""
        vm_id, size = VmId(str(vm)), (vcpu_count, memory_mib)
        shape = self._sizes.setdefault(
            size, self._sizes.get(size) or VmShape(vcpu_count=vcpu_count, memory_mib=memory_mib)
        )
        request = VmRequest(
            request_id=RequestId(f"{vm}@{self._now_s:.0f}"), vm_id=vm_id, iaas_id=FLEET,
            shape=shape, contract=Contract(), policy=self._policy,
        )  # fmt: skip
        todo = self._master.submit([request], self._sites, self._now_s)
        elected: NodeId | None = None
        while todo:
            effect = todo.pop()
            if isinstance(effect, Decided):
                elected = effect.decision.elected
            else:
                todo += self._answer(effect, request)
        if elected is None:
            return -1
        self._shapes[vm_id] = shape
        number = int(elected[1:])
        self._begin(vm_id, self._nodes[number])
        return number

    def _answer(self, effect: Effect, request: VmRequest) -> list[Effect]:
        """Answer the Master Agent as the site would that it speaks to."""
        match effect:
            case AskSite(site_id=site_id, round_id=round_id):
                agent = self.local_agents[self._sites.index(site_id)]
                bids = (agent.bid(request, self._now_s),)
                return self._master.receive(BidsArrived(site_id, round_id, bids), self._now_s)
            case Commit(site_id=site_id, node_id=node_id):
                agent = self.local_agents[self._sites.index(site_id)]
                found = agent.reserve(request, node_id, self._now_s)
                if isinstance(found, Refusal):
                    refused = CommitRefused(request.request_id, found)
                    return self._master.receive(refused, self._now_s)
                agent.confirm(request.request_id)
                event = Committed(request.request_id, site_id, node_id)
                return self._master.receive(event, self._now_s)
        return []

    def end(self, vm: int, number: int) -> None:
        """End a VM: its node has served a request."""
        vm_id = VmId(str(vm))
        self._end(vm_id, self._nodes[number])
        del self._shapes[vm_id]

    def move(self, vm: int, from_node: int, to_node: int) -> bool:
        """Migrate a VM; False where it does not fit."""
        vm_id, target = VmId(str(vm)), self._nodes[to_node]
        shape = self._shapes[vm_id]
        vcpu_free = target.vcpu_count - target.vcpu_used
        memory_free_mib = target.memory_mib - target.memory_used_mib
        if vcpu_free < shape.vcpu_count or memory_free_mib < shape.memory_mib:
            return False
        self._end(vm_id, self._nodes[from_node])
        self._begin(vm_id, target)
        return True

    def switch_off(self, number: int) -> bool:
        """Switch an empty node off; False where it is none."""
        node = self._nodes[number]
        if node.running or not node.is_on:
            return False
        node.is_on = False
        self._tell(node)
        return True

    def site_watts(self) -> list[float]:
        """Return what the nodes of each site draw."""
        watts = [0.0] * len(self._sites)
        for node in self._nodes:
            watts[node.site] += node.watts
        return watts

    def _begin(self, vm_id: VmId, node: _Node) -> None:
        shape = self._shapes[vm_id]
        node.is_on = True
        node.running.append(vm_id)
        node.vcpu_used += shape.vcpu_count
        node.memory_used_mib += shape.memory_mib
        self._tell(node)

    def _end(self, vm_id: VmId, node: _Node) -> None:
        shape = self._shapes[vm_id]
        node.running.remove(vm_id)
        node.vcpu_used -= shape.vcpu_count
        node.memory_used_mib -= shape.memory_mib
        self._tell(node)

    def _tell(self, node: _Node) -> None:
        """Push the node's vector to its Local Agent, as its SeD does on a change."""
        node.watts = node.curve.at(node.vcpu_used / node.vcpu_count) if node.is_on else 0.0
        utilisation = node.vcpu_used / node.vcpu_count
        running = tuple(node.running)
        node.power.observe(self._now_s, node.watts, utilisation, running)
        mean_watts, mean_utilisation = node.power.means()
        vector = EstimationVector(
            node_id=node.node_id, site_id=self._sites[node.site], sent_s=self._now_s,
            cpu_count=node.vcpu_count, vcpu_free=node.vcpu_count - node.vcpu_used,
            memory_free_mib=node.memory_mib - node.memory_used_mib, flops=node.flops,
            power_watts=node.watts, power_source="model", power_read_s=self._now_s,
            idle_watts=node.curve.idle_watts, peak_watts=node.curve.peak_watts,
            cpu_utilisation=utilisation,
            mean_power_watts=mean_watts, mean_utilisation=mean_utilisation,
            requests_served=node.power.requests_served, vm_count=len(running),
            running=running, booted=node.is_on, boot_time_s=node.curve.boot_time_s,
            boot_energy_joules=node.curve.boot_joules,
        )  # fmt: skip
        self.local_agents[node.site].update(vector)
