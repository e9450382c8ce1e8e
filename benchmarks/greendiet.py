"""The GreenDIET experiment replayed on the product's own agents, under a virtual clock.

Platform of the paper's companion experiment: 4 Taurus, 4 Orion, 4 Sagittaire nodes (Lyon,
Grid'5000): 104 cores, 10 tasks per core, one core per task. Flops are the reference
repository's; Taurus and Orion draw as the two SPECpower machines with their processors,
Sagittaire (2 × Opteron 250) from 190 to 230 W. A wave on half of the cores, one request a
second, then evenly. The site knows only what its SeDs push; the Master Agent ranks.

Two machine rooms: every node always on (as in the experiment), and nodes switched off once
idle for their break-even time, woken by a placement. Both rules are the same for all policies.

Run: python benchmarks/greendiet.py
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2, PowerCurve, line
from nuage.energy.request_power import RequestPower
from nuage.ids import IaasId, NodeId, RequestId, SiteId, VmId
from nuage.model.contract import Contract
from nuage.model.infrastructure import Datacenter, Operator
from nuage.model.placement import EstimationVector, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent
from nuage.placement.master_agent import (
    AskSite,
    BidsArrived,
    Commit,
    Committed,
    Decided,
    MasterAgent,
)

LYON = SiteId("lyon")
TASK_SHAPE = VmShape(vcpu_count=1, memory_mib=64)
BOOT_S = 120.0
METROLOGY_S = 15.0  # a sample at least that often, as Grid'5000's PDUs give


@dataclass
class SimulatedNode:
    """A node of the replay: its machine, and what its SeD knows."""

    name: NodeId
    cores: int
    flops: float
    curve: PowerCurve
    memory_mib: int
    busy: int = 0
    on: bool = True
    ready_s: float = 0.0
    idle_since_s: float = 0.0
    joules: float = 0.0
    settled_s: float = 0.0
    task_count: int = 0
    running: set[VmId] = field(default_factory=set)
    sed: RequestPower = field(default_factory=RequestPower)

    @property
    def watts(self) -> float:
        return self.curve.at(self.busy / self.cores) if self.on else self.curve.off_watts

    def settle(self, now_s: float) -> None:
        """Book the energy since the last change, and sample as the PDU would."""
        until_s = self.settled_s
        while until_s < now_s:
            self.sed.sample(until_s, self.watts)
            until_s += METROLOGY_S
        self.joules += self.watts * (now_s - self.settled_s)
        self.settled_s = now_s

    def vector(self, now_s: float) -> EstimationVector:
        return EstimationVector(
            node_id=self.name, site_id=LYON, sent_s=now_s, cpu_count=self.cores,
            vcpu_free=self.cores - self.busy, memory_free_mib=self.memory_mib - 64 * self.busy,
            flops=self.flops, power_watts=self.watts, power_source="outlet", power_read_s=now_s,
            idle_watts=self.curve.idle_watts, peak_watts=self.curve.peak_watts,
            cpu_utilisation=self.busy / self.cores, mean_power_watts=self.sed.mean_power_watts,
            requests_served=self.sed.requests_served, vm_count=self.busy,
            running=tuple(sorted(self.running)), booted=self.on, boot_time_s=BOOT_S,
            boot_energy_joules=self.curve.boot_joules,
        )  # fmt: skip


def platform() -> list[SimulatedNode]:
    """Return the twelve nodes; their numbers are the reference repository's."""
    kinds = (
        ("taurus", 12, 220.8e9, HUAWEI_RH2288_V2.watts, 32_768),
        ("orion", 12, 220.8e9, ACER_AT350_F2.watts, 32_768),
        ("sagittaire", 2, 9.6e9, line(190.0, 230.0).watts, 2_048),
    )
    nodes = []
    for kind, cores, flops, watts, memory_mib in kinds:
        curve = PowerCurve(
            watts=watts, off_watts=10.0, boot_time_s=BOOT_S, boot_joules=BOOT_S * watts[-1],
            shutdown_joules=20.0 * watts[0],
        )  # fmt: skip
        nodes += [
            SimulatedNode(NodeId(f"{kind}-{n}"), cores, flops, curve, memory_mib)
            for n in range(1, 5)
        ]
    return nodes


@dataclass(frozen=True)
class Result:
    policy: str
    makespan_s: float
    joules: float
    tasks: dict[str, int]


class Replay:
    """One run: arrivals, ends and switch-offs in order of time."""

    def __init__(self, policy: str, *, task_s: float, span_s: float, power_off: bool) -> None:
        self.policy = policy
        self.task_flop = task_s * 18.4e9
        self.power_off = power_off
        self.nodes = {node.name: node for node in platform()}
        self.local = LocalAgent(
            Datacenter(site_id=LYON, place="Lyon", country="FR", operator=Operator("INRIA", "FR"),
                       tier=1, power_capacity_watts=18_000.0),
            vector_age_max_s=1e9, reservation_s=1e9,
        )  # fmt: skip
        for node in self.nodes.values():
            node.on = not power_off
            self.local.update(node.vector(0.0))
            self.local.set_power_curve(node.name, node.curve.watts)
        self.master = MasterAgent()
        core_count = sum(node.cores for node in self.nodes.values())
        count = 10 * core_count
        wave = core_count // 2
        step_s = (span_s - wave) / (count - wave)
        self.events: list[tuple[float, int, str, str]] = []
        self.order = 0
        for index in range(count):
            at_s = float(index) if index < wave else wave + (index - wave) * step_s
            self.push(at_s, "arrive", str(index))
        self.waiting: list[str] = []
        self.began: dict[str, tuple[float, NodeId]] = {}

    def push(self, at_s: float, what: str, who: str) -> None:
        self.order += 1
        heappush(self.events, (at_s, self.order, what, who))

    def run(self) -> Result:
        now_s = makespan_s = 0.0
        left = sum(10 * node.cores for node in self.nodes.values())
        while left:
            now_s, _, what, who = heappop(self.events)
            if what == "arrive":
                self.waiting.append(who)
            elif what == "end":
                self.end(who, now_s)
                makespan_s = now_s
                left -= 1
            else:
                self.maybe_switch_off(NodeId(who), now_s)
            while self.waiting and self.start(self.waiting[0], now_s):
                self.waiting.pop(0)
        for node in self.nodes.values():
            node.settle(makespan_s)
        tasks: dict[str, int] = {}
        for node in self.nodes.values():
            kind = node.name.partition("-")[0]
            tasks[kind] = tasks.get(kind, 0) + node.task_count
        joules = sum(node.joules for node in self.nodes.values())
        return Result(self.policy, makespan_s, joules, tasks)

    def start(self, who: str, now_s: float) -> bool:
        """Take a task through the five steps; False when every node is busy."""
        request = VmRequest(
            request_id=RequestId(f"{who}@{now_s}"), vm_id=VmId(who), iaas_id=IaasId("greendiet"),
            shape=TASK_SHAPE, contract=Contract(), policy=self.policy,
        )  # fmt: skip
        todo = self.master.submit([request], [LYON], now_s)
        elected: NodeId | None = None
        while todo:
            match todo.pop():
                case AskSite(round_id=round_id):
                    bids = (self.local.bid(request, now_s),)
                    todo += self.master.receive(BidsArrived(LYON, round_id, bids), now_s)
                case Commit(node_id=node_id):
                    self.local.reserve(request, node_id, now_s)
                    self.local.confirm(request.request_id)
                    event = Committed(request.request_id, LYON, node_id)
                    todo += self.master.receive(event, now_s)
                case Decided(decision=decision):
                    elected = decision.elected
        if elected is None:
            return False
        node = self.nodes[elected]
        node.settle(now_s)
        if not node.on:
            node.on = True
            node.ready_s = now_s + BOOT_S
            node.joules += node.curve.boot_joules - BOOT_S * node.curve.idle_watts
        node.busy += 1
        node.task_count += 1
        node.running.add(VmId(who))
        begin_s = max(now_s, node.ready_s)
        self.began[who] = (begin_s, elected)
        self.push(begin_s + self.task_flop / (node.flops / node.cores), "end", who)
        self.local.update(node.vector(now_s))
        return True

    def end(self, who: str, now_s: float) -> None:
        begin_s, name = self.began.pop(who)
        node = self.nodes[name]
        node.settle(now_s)
        node.sed.served(begin_s, now_s)
        node.busy -= 1
        node.running.discard(VmId(who))
        node.idle_since_s = now_s
        self.local.update(node.vector(now_s))
        if self.power_off and node.busy == 0:
            self.push(now_s + node.curve.break_even_s(), "off", name)

    def maybe_switch_off(self, name: NodeId, now_s: float) -> None:
        node = self.nodes[name]
        if node.busy == 0 and node.on and now_s - node.idle_since_s >= node.curve.break_even_s():
            node.settle(now_s)
            node.joules += node.curve.shutdown_joules
            node.on = False
            self.local.update(node.vector(now_s))


def replay(policy: str, *, task_s: float, span_s: float = 2200.0, power_off: bool) -> Result:
    return Replay(policy, task_s=task_s, span_s=span_s, power_off=power_off).run()


def main() -> None:
    for power_off in (False, True):
        for task_s in (60.0, 100.0, 160.0):
            room = "idle nodes off" if power_off else "all nodes on"
            print(f"\n{room}, {task_s:g} s per task on a Taurus core")
            print("policy       makespan s        kJ  vs random  makespan  tasks per cluster")
            base: Result | None = None
            for policy in ("random", "performance", "power", "green", "cursor", "spread"):
                one = replay(policy, task_s=task_s, power_off=power_off)
                base = base or one
                saved = 1 - one.joules / base.joules
                longer = one.makespan_s / base.makespan_s - 1
                print(
                    f"{policy:12} {one.makespan_s:10.0f} {one.joules / 1000:9.0f} {-saved:10.1%}"
                    f" {longer:9.1%}  {one.tasks}"
                )


if __name__ == "__main__":
    main()
