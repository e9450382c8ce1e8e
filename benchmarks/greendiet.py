"""The GreenDIET experiments replayed on the product's own agents, under a virtual clock.

Nodes of the reference (Grid'5000, Lyon). Flops are its repository's; Taurus and Orion draw as the
two SPECpower machines with their processors, Sagittaire (2 × Opteron 250) from 190 to 230 W, Nova
(2 × E5-2620 v4, of which SPEC has no result) on the line of a PowerEdge R630 of its generation.

*paper*: 4 Taurus, 4 Orion, 4 Sagittaire, 10 tasks per core, one core each; half of the cores in a
wave, one request a second, then evenly until 2,200 s. *lyon*: the same load on all 44 nodes.

Two machine rooms: every node always on (as in the experiment), and nodes switched off once
idle for their break-even time, woken by a placement. Both rules are the same for all policies.

Rows `2/3` have the two thirds of the nodes in service that have most flops per watt: the provider's
preference of the paper, set as a site's rules set it. What it saves no policy did, so it does not
count for the goal.

The bound under each table holds for every policy, clairvoyant ones too: work spread as a convex
program would, over the lower convex hulls of the curves, no boot counted, at the best makespan
up to 1 % longer than `random`'s. What it leaves out only lowers it.

*drawn*: thirty clusters of two to four kinds drawn at random, most loads from light to full: how `green`
stands to `performance` where nobody chose the machines.

Run: python benchmarks/greendiet.py [paper] [lyon] [drawn]     (lyon takes two minutes)
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from random import Random
from typing import Final, TypeAlias

from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2, PowerCurve, line
from nuage.energy.request_power import RequestPower
from nuage.energy.rules import ShareController, nodes_in_service
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
from nuage.placement.steward import Steward

SITE = SiteId("lyon")
TASK_SHAPE = VmShape(vcpu_count=1, memory_mib=64)
BOOT_S = 120.0
GOAL_SAVED: Final = 0.25
GOAL_LONGER: Final = 0.01
PREFERENCE: Final = 2 / 3
POLICIES: Final = (
    "random", "performance", "power", "green", "cursor", "spread", "random 2/3", "green 2/3",
)  # fmt: skip
TAURUS_CORE_FLOPS: Final = 18.4e9

# kind: cores, flops, watts at 0 … 100 %, MiB
Kind: TypeAlias = tuple[int, float, tuple[float, ...], int]
KINDS: Final[Mapping[str, Kind]] = {
    "taurus": (12, 220.8e9, HUAWEI_RH2288_V2.watts, 32_768),
    "orion": (12, 220.8e9, ACER_AT350_F2.watts, 32_768),
    "sagittaire": (2, 9.6e9, line(190.0, 230.0).watts, 2_048),
    "nova": (16, 537.6e9, line(46.7, 279.0).watts, 65_536),
}


@dataclass(frozen=True)
class Experiment:
    """Nodes of each kind, and the seconds that a task takes on a Taurus core, one run each."""

    name: str
    counts: dict[str, int]
    task_s: tuple[float, ...]
    tasks_per_core: int = 10
    span_s: float = 2200.0
    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)

    def nodes(self) -> "list[SimulatedNode]":
        """Return the nodes, all on."""
        nodes = []
        for kind, count in self.counts.items():
            cores, flops, watts, memory_mib = self.kinds[kind]
            curve = PowerCurve(
                watts=watts, off_watts=10.0, boot_time_s=BOOT_S, boot_joules=BOOT_S * watts[-1],
                shutdown_joules=20.0 * watts[0],
            )  # fmt: skip
            nodes += [
                SimulatedNode(NodeId(f"{kind}-{n}"), cores, flops, curve, memory_mib)
                for n in range(1, count + 1)
            ]
        return nodes

    def arrivals_s(self) -> list[float]:
        """Return when requests come."""
        cores = sum(node.cores for node in self.nodes())
        count, wave = self.tasks_per_core * cores, cores // 2
        step_s = (self.span_s - wave) / (count - wave)
        later = [wave + number * step_s for number in range(count - wave)]
        return [float(number) for number in range(wave)] + later


PAPER: Final = Experiment("paper", {"taurus": 4, "orion": 4, "sagittaire": 4}, (60.0, 100.0, 160.0))
LYON: Final = Experiment("lyon", {"taurus": 12, "orion": 3, "sagittaire": 9, "nova": 20}, (100.0,))


DRAWN: Final = 30


def drawn(seed: int) -> Experiment:
    """Return a cluster of two to four kinds of machine, and a load for it, as a seed draws them."""
    prng = Random(seed)
    kinds: dict[str, Kind] = {}
    for name in "abcd"[: prng.randint(2, 4)]:
        cores, core_flops = prng.choice((2, 4, 8, 12, 16)), prng.uniform(4.0, 40.0) * 1e9
        peak = 60.0 + cores * prng.uniform(5.0, 25.0)
        idle = peak * prng.uniform(0.15, 0.8)
        kinds[name] = (cores, cores * core_flops, line(idle, peak).watts, 65_536)
    counts = {name: prng.randint(1, 4) for name in kinds}
    return Experiment(
        f"drawn {seed}", counts, (prng.uniform(20.0, 160.0),), tasks_per_core=5, span_s=1100.0,
        kinds=kinds,
    )  # fmt: skip


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
    running: dict[VmId, float] = field(default_factory=dict)  # since when
    sed: RequestPower = field(default_factory=RequestPower)

    @property
    def watts(self) -> float:
        return self.curve.at(self.busy / self.cores) if self.on else self.curve.off_watts

    def settle(self, now_s: float) -> None:
        """Book the energy since the last change."""
        self.joules += self.watts * (now_s - self.settled_s)
        self.settled_s = now_s

    def vector(self, now_s: float) -> EstimationVector:
        utilisation = self.busy / self.cores
        began = [vm_id for vm_id, begin_s in self.running.items() if begin_s <= now_s]
        self.sed.observe(now_s, self.watts, utilisation, began)
        mean_watts, mean_utilisation = self.sed.means()
        return EstimationVector(
            node_id=self.name, site_id=SITE, sent_s=now_s, cpu_count=self.cores,
            vcpu_free=self.cores - self.busy, memory_free_mib=self.memory_mib - 64 * self.busy,
            flops=self.flops, power_watts=self.watts, power_source="outlet", power_read_s=now_s,
            idle_watts=self.curve.idle_watts, peak_watts=self.curve.peak_watts,
            cpu_utilisation=utilisation, mean_power_watts=mean_watts,
            mean_utilisation=mean_utilisation,
            requests_served=self.sed.requests_served, vm_count=self.busy,
            running=tuple(sorted(self.running)), booted=self.on, boot_time_s=BOOT_S,
            boot_energy_joules=self.curve.boot_joules,
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    policy: str
    makespan_s: float
    joules: float
    tasks: dict[str, int]


class Replay:
    """One run: arrivals, ends and switch-offs in order of time."""

    def __init__(
        self,
        policy: str,
        experiment: Experiment,
        *,
        task_s: float,
        power_off: bool,
        share: float = 1.0,
    ) -> None:
        self.policy = policy
        self.task_flop = task_s * TAURUS_CORE_FLOPS
        self.power_off = power_off
        self.nodes = {node.name: node for node in experiment.nodes()}
        self.local = LocalAgent(
            Datacenter(site_id=SITE, place="Lyon", country="FR", operator=Operator("INRIA", "FR"),
                       tier=1, power_capacity_watts=18_000.0),
            vector_age_max_s=1e9, reservation_s=1e9,
        )  # fmt: skip
        for node in self.nodes.values():
            node.on = not power_off
            self.local.update(node.vector(0.0))
            self.local.set_power_curve(node.name, node.curve.watts)
        if share < 1.0:
            best = Steward(self.local, ShareController(rules=())).by_efficiency()
            self.local.set_in_service(nodes_in_service(best, share), reason="preference")
        self.master = MasterAgent()
        self.events: list[tuple[float, int, str, str]] = []
        self.order = 0
        for index, at_s in enumerate(experiment.arrivals_s()):
            self.push(at_s, "arrive", str(index))
        self.left = self.order
        self.waiting: list[str] = []
        self.ran_on: dict[str, NodeId] = {}

    def push(self, at_s: float, what: str, who: str) -> None:
        self.order += 1
        heappush(self.events, (at_s, self.order, what, who))

    def run(self) -> Result:
        now_s = makespan_s = 0.0
        while self.left:
            now_s, _, what, who = heappop(self.events)
            if what == "arrive":
                self.waiting.append(who)
            elif what == "end":
                self.end(who, now_s)
                makespan_s = now_s
                self.left -= 1
            elif what == "begin":
                self.local.update(self.nodes[NodeId(who)].vector(now_s))
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
        todo = self.master.submit([request], [SITE], now_s)
        elected: NodeId | None = None
        while todo:
            match todo.pop():
                case AskSite(round_id=round_id):
                    bids = (self.local.bid(request, now_s),)
                    todo += self.master.receive(BidsArrived(SITE, round_id, bids), now_s)
                case Commit(node_id=node_id):
                    self.local.reserve(request, node_id, now_s)
                    self.local.confirm(request.request_id)
                    event = Committed(request.request_id, SITE, node_id)
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
        begin_s = node.running[VmId(who)] = max(now_s, node.ready_s)
        self.ran_on[who] = elected
        if begin_s > now_s:
            self.push(begin_s, "begin", elected)
        self.push(begin_s + self.task_flop / (node.flops / node.cores), "end", who)
        self.local.update(node.vector(now_s))
        return True

    def end(self, who: str, now_s: float) -> None:
        name = self.ran_on.pop(who)
        node = self.nodes[name]
        node.settle(now_s)
        node.busy -= 1
        del node.running[VmId(who)]
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


def replay(
    policy: str,
    *,
    task_s: float,
    power_off: bool,
    experiment: Experiment = PAPER,
    share: float = 1.0,
) -> Result:
    """Run one policy through an experiment, with the most efficient `share` of nodes in service."""
    return Replay(policy, experiment, task_s=task_s, power_off=power_off, share=share).run()


def bound_joules(
    experiment: Experiment, *, task_s: float, power_off: bool, makespan_s_max: float
) -> float:
    """Return joules below which no policy comes that ends by `makespan_s_max`.

    A node that works a share u of the time at any loads draws at least the convex hull of its
    curve at u (Jensen), so the least is a fractional knapsack over the hulls' slopes. A node
    that may be off begins its hull at its draw when off.
    """
    nodes = experiment.nodes()
    arrivals = experiment.arrivals_s()
    flop = task_s * TAURUS_CORE_FLOPS * len(arrivals)
    fastest = max(node.flops / node.cores for node in nodes)
    first_s = arrivals[-1] + task_s * TAURUS_CORE_FLOPS / fastest
    base_watts, pieces = 0.0, []
    for node in nodes:
        hull = _hull((node.curve.off_watts if power_off else node.curve.watts[0],
                      *node.curve.watts[1:]))  # fmt: skip
        base_watts += hull[0][1]
        pieces += [
            ((watts - before) / (load - low) / node.flops, (load - low) * node.flops)
            for (low, before), (load, watts) in pairwise(hull)
        ]
    pieces.sort()
    steps = 2_000
    spans = (first_s + (makespan_s_max - first_s) * step / steps for step in range(steps + 1))
    return min(_least(base_watts, pieces, flop, span_s) for span_s in spans)


def _hull(watts: Sequence[float]) -> list[tuple[float, float]]:
    """Return the corners (load, watts) of the lower convex hull of eleven points."""
    hull: list[tuple[float, float]] = []
    for number, value in enumerate(watts):
        point = (number / 10.0, value)
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-1][0]) >= (
            point[1] - hull[-1][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append(point)
    return hull


def _least(
    base_watts: float, pieces: Sequence[tuple[float, float]], flop: float, span_s: float
) -> float:
    left, watts = flop / span_s, base_watts
    for joules_per_flop, flops in pieces:
        taken = min(left, flops)
        watts += taken * joules_per_flop
        left -= taken
    return watts * span_s if left <= 1.0 else float("inf")


def table(experiment: Experiment, *, task_s: float, power_off: bool) -> None:
    """Print a table of policies, the bound, and whether the goal is met."""
    room = "idle nodes off" if power_off else "all nodes on"
    print(f"\n{experiment.name}, {room}, {task_s:g} s per task on a Taurus core")
    print("policy       makespan s        kJ  vs random  makespan  tasks per cluster")
    runs: dict[str, Result] = {}
    for policy in POLICIES:
        one = replay(
            policy.partition(" ")[0], task_s=task_s, power_off=power_off, experiment=experiment,
            share=PREFERENCE if " " in policy else 1.0,
        )  # fmt: skip
        runs[policy] = one
        base = runs["random"]
        print(
            f"{policy:12} {one.makespan_s:10.0f} {one.joules / 1000:9.0f}"
            f" {one.joules / base.joules - 1:10.1%} {one.makespan_s / base.makespan_s - 1:9.1%}"
            f"  {one.tasks}"
        )
    least = bound_joules(
        experiment, task_s=task_s, power_off=power_off,
        makespan_s_max=base.makespan_s * (1 + GOAL_LONGER),
    )  # fmt: skip
    print(f"{'any policy':12} {'':10} {least / 1000:9.0f} {least / base.joules - 1:10.1%}  (bound)")
    print(verdict(runs, least))


def verdict(runs: dict[str, Result], least_joules: float) -> str:
    """Say whether the goal is met, out of every policy's reach, or missed."""
    base = runs["random"]
    reached = [
        policy
        for policy in ("power", "green")
        if runs[policy].joules <= (1 - GOAL_SAVED) * base.joules
        and runs[policy].makespan_s <= (1 + GOAL_LONGER) * base.makespan_s
    ]
    compared = ", ".join(
        f"{policy} {runs[policy].joules / runs['performance'].joules - 1:+.1%}"
        for policy in ("power", "green")
    )
    saved = "missed"
    if reached:
        saved = f"met by {', '.join(reached)}"
    elif least_joules > (1 - GOAL_SAVED) * base.joules:
        saved = f"out of reach of any policy: {1 - least_joules / base.joules:.1%} at most"
    return f"a quarter saved: {saved}; joules against performance: {compared}"


def drawn_table() -> None:
    """Print how `green` stands to `performance` on clusters that nobody chose."""
    print("\ncluster   room  s/task  machines                     green vs: random  performance  "
          "makespan")  # fmt: skip
    joules, worse = [], 0
    for seed in range(DRAWN):
        one = drawn(seed)
        for power_off in (False, True):
            runs = {
                policy: replay(policy, task_s=one.task_s[0], power_off=power_off, experiment=one)
                for policy in ("random", "performance", "green")
            }
            green, fast = runs["green"], runs["performance"]
            more = green.joules / fast.joules - 1
            joules.append(more)
            worse += more > 0
            machines = ", ".join(f"{n} × {one.kinds[k][0]}" for k, n in one.counts.items())
            print(
                f"{one.name:9} {'off' if power_off else 'on':5}{one.task_s[0]:6.0f}   {machines:30}"
                f"{green.joules / runs['random'].joules - 1:13.1%} {more:12.2%}"
                f"{green.makespan_s / fast.makespan_s - 1:10.1%}"
            )
    print(f"green draws more than performance in {worse} of {len(joules)} runs: "
          f"{min(joules):+.1%} to {max(joules):+.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="*", default=["paper"], help="paper, lyon, drawn")
    names: list[str] = parser.parse_args().experiment
    if unknown := set(names) - {"paper", "lyon", "drawn"}:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}")
    for experiment in (PAPER, LYON):
        if experiment.name in names:
            for power_off in (False, True):
                for task_s in experiment.task_s:
                    table(experiment, task_s=task_s, power_off=power_off)
    if "drawn" in names:
        drawn_table()


if __name__ == "__main__":
    main()
