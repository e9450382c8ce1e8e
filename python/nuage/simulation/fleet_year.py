"""A federation of containers over days or a year: VMs come and go, weather and prices pass.

The product's own engine places (`nuage._core.PlacementEngine`), with the weight of each site set
by the hour: PUE of its weather, times its price or carbon, as the policy asks, over the hours that
a VM is expected to live (`ahead_hours`). 10 to 100,000 nodes; the same seed, or the same trace,
gives the same table, byte for byte. With a `policy` the product's agents place in its stead, by
that policy (`fleet_agents`).

Every `planner_every_h` hours the product's own planner looks at each container (`fleet_plan`), and
its migrations are carried out. At each hour empty nodes go off by the product's rule: where staying
off for `hold_h`, as long as they are expected to stay idle, saves more than the way off and back
costs, and not before a woken node has been on for its break-even time. Boots, shutdowns and
migrations are paid for in the hour in which they happen, at the site's own PUE.

Flow: `FleetScenario` in, one `HourRow` per hour and site out (`run` yields them as they come, and
tells within an hour how far it is, so that a progress bar has something to show); `to_csv` writes
them down, `plots` draws them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from heapq import heappop, heappush
from io import StringIO
from random import Random
from typing import Final, Protocol

import numpy as np

from nuage._core import PlacementEngine
from nuage.energy.cooling import CoolingControl, CoolingModel
from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2, PowerCurve
from nuage.energy.weather import ZONES, weather_normal
from nuage.errors import InvalidRequest
from nuage.placement.local_agent import SiteConditions
from nuage.placement.table import BOOT_HOLD_S
from nuage.simulation.fleet_agents import FleetAgents
from nuage.simulation.fleet_plan import ContainerView, emptied_by, moves_of, plan_container
from nuage.simulation.load_trace import VmSpan
from nuage.units import JOULES_PER_KWH

HOUR_S: Final = 3600.0
SIZES_MAX: Final = 256  # the engine remembers its best node per size
CONTAINER_NODES: Final = 168  # the StarDC, paper §IV-B
CONTAINER_WATTS: Final = 60_000.0  # of these servers; the StarDC's own 18 kW carries fewer
NODES_MAX: Final = 100_000
AHEAD_HOURS_MAX: Final = 168
TOLD_EVERY: Final = 500  # placements by agents between two words on how far an hour is
PLAN_WEIGHT: Final = 100  # a container's plan takes about as long as so many of them
SHUTDOWN_S: Final = 20.0  # at idle draw
NODE_VCPUS: Final = 24
NODE_MEMORY_MIB: Final = 65_536
NODE_FLOPS: Final = 220.8e9  # 2 × Xeon E5-2630, in both machines
MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
CLASSES: Final = ((1, 1024), (2, 2048), (2, 4096), (4, 8192))
# Day-ahead prices and carbon of a typical French day by hour (EUR/MWh, gCO2e/kWh): a shape to
# simulate with, not data; give your own by `prices` and `carbon`.
PRICE_SHAPE: Final = (
    62, 55, 50, 47, 48, 55, 72, 95, 98, 82, 68, 58,
    52, 48, 47, 52, 66, 92, 118, 124, 108, 90, 78, 70,
)  # fmt: skip
CARBON_SHAPE: Final = (
    30, 28, 27, 27, 27, 29, 34, 39, 38, 34, 30, 27,
    25, 24, 24, 26, 31, 38, 44, 46, 43, 38, 35, 32,
)  # fmt: skip


class Weighting(Enum):
    """What a watt at a site weighs when VMs are placed."""

    POWER = "power"  # PUE now
    COST = "cost"  # PUE × price now
    CARBON = "carbon"  # PUE × carbon now
    NONE = "none"  # a watt is a watt


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetScenario:
    """What to simulate. Zones are RT2012's; one site each."""

    node_count: int = 1_344
    zones: tuple[str, ...] = ("H1a", "H1c", "H2a", "H2d")
    hours: int = 168
    start_day: int = 181  # of the year: 1 July, when sites differ most
    seed: int = 1
    weighting: Weighting = Weighting.POWER
    policy: str = ""  # the agents place by it; empty: the engine by `weighting`
    set_point_c: float = 20.0
    target_share: float = 0.4  # of all vCPUs, on average over the day
    vm_hours_mean: float = 24.0
    ahead_hours: int = 24  # 1: what a watt weighs this hour, whatever comes after
    planner_every_h: int = 0  # 0: nobody migrates
    hold_h: float = 1.0  # how long a node that is empty now is expected to stay so
    boot_s: float = 120.0  # at full draw
    trace: tuple[VmSpan, ...] = ()  # recorded load, in place of made-up VMs
    prices: tuple[float, ...] = PRICE_SHAPE
    carbon: tuple[float, ...] = CARBON_SHAPE

    def __post_init__(self) -> None:
        if not 1 <= self.node_count <= NODES_MAX:
            raise InvalidRequest(f"1 to {NODES_MAX} nodes", field="node_count")
        if not self.zones or any(zone not in ZONES for zone in self.zones):
            raise InvalidRequest(f"zones are of {', '.join(ZONES)}", field="zones")
        if not 0.0 < self.target_share < 1.0 or self.vm_hours_mean <= 0:
            raise InvalidRequest("target_share is within 0 and 1", field="target_share")
        if not 1 <= self.ahead_hours <= AHEAD_HOURS_MAX:
            raise InvalidRequest(f"1 to {AHEAD_HOURS_MAX} hours ahead", field="ahead_hours")
        if not 0 <= self.planner_every_h <= AHEAD_HOURS_MAX or self.hold_h < 0 or self.boot_s < 0:
            raise InvalidRequest(
                f"the planner looks every 1 to {AHEAD_HOURS_MAX} hours (0: never); hold and boot "
                "are not negative",
                field="planner_every_h",
            )
        if len(self.prices) != 24 or len(self.carbon) != 24:
            raise InvalidRequest("24 prices, 24 carbons: one per hour of the day", field="prices")


@dataclass(frozen=True, slots=True)
class HourRow:
    """One site over one hour."""

    hour: int
    site: str
    vms: int
    nodes_on: int
    it_kwh: float
    pue: float
    facility_kwh: float
    cost_eur: float
    carbon_g: float
    refused: int
    boots: int
    migrations: int
    switching_kwh: float  # boots, shutdowns and migrations; `it_kwh` holds them


class _Load(Protocol):
    """Where VMs come from: `classes` are sizes (vCPUs, MiB), an arrival is (class, end hour)."""

    classes: Sequence[tuple[int, int]]

    def arrivals(self, hour: int) -> list[tuple[int, float]]:
        """Return what begins within an hour."""
        ...


class _MadeUp:
    """As many VMs as keep the target, more by day than by night; lives are exponential."""

    def __init__(self, scenario: FleetScenario) -> None:
        self.classes: Sequence[tuple[int, int]] = CLASSES
        self._prng = Random(scenario.seed)
        self._hours_mean = scenario.vm_hours_mean
        vcpus = scenario.node_count * NODE_VCPUS * scenario.target_share
        self._steady = vcpus / (sum(v for v, _ in CLASSES) / len(CLASSES)) / self._hours_mean

    def arrivals(self, hour: int) -> list[tuple[int, float]]:
        """Return what begins within an hour; the first brings the fleet to its target at once."""
        by_day = 1.0 + 0.5 * float(np.sin((hour % 24 - 9) / 24 * 2 * np.pi))
        count = round(self._steady * (by_day if hour else self._hours_mean))
        sizes = [self._prng.randrange(len(self.classes)) for _ in range(count)]
        lives = [self._prng.expovariate(1.0 / self._hours_mean) for _ in sizes]
        return [(size, hour + max(life, 1.0)) for size, life in zip(sizes, lives, strict=True)]


class _Recorded:
    """The VMs of a trace, each within the hour in which it began."""

    def __init__(self, scenario: FleetScenario) -> None:
        sizes = sorted({(span.vcpu_count, span.memory_mib) for span in scenario.trace})
        if len(sizes) > SIZES_MAX:
            raise InvalidRequest(f"a trace has at most {SIZES_MAX} sizes of VM", field="trace")
        self.classes: Sequence[tuple[int, int]] = sizes
        numbers = {size: number for number, size in enumerate(sizes)}
        self._by_hour: dict[int, list[tuple[int, float]]] = {}
        for span in scenario.trace:
            number = numbers[(span.vcpu_count, span.memory_mib)]
            self._by_hour.setdefault(int(span.begin_h), []).append((number, span.end_h))

    def arrivals(self, hour: int) -> list[tuple[int, float]]:
        """Return what begins within an hour."""
        return self._by_hour.get(hour, [])


def made_up_trace(scenario: FleetScenario) -> Iterator[VmSpan]:
    """Yield the VMs that a scenario makes up, as a trace that gives the same table again."""
    load = _MadeUp(scenario)
    for hour in range(scenario.hours):
        for number, end_h in load.arrivals(hour):
            yield VmSpan(float(hour), end_h, *load.classes[number])


@dataclass(slots=True)
class _Acts:
    """What one site did within an hour beside running VMs."""

    boots: int = 0
    migrations: int = 0
    joules: float = 0.0


class FleetYear:
    """One run of a scenario."""

    def __init__(
        self, scenario: FleetScenario, on_hours: Callable[[float], None] | None = None
    ) -> None:
        """Build the fleet; `on_hours` hears within an hour, too, how many have passed."""
        self.scenario = scenario
        self._on_hours = on_hours
        self.engine = PlacementEngine()
        self.curves = tuple(
            replace(
                curve,
                boot_time_s=scenario.boot_s,
                boot_joules=scenario.boot_s * curve.peak_watts,
                shutdown_joules=SHUTDOWN_S * curve.idle_watts,
            )
            for curve in (HUAWEI_RH2288_V2, ACER_AT350_F2)
        )
        self.site_of: list[int] = []
        self.containers: list[list[int]] = []
        self._build()
        self.agents = self._agents() if scenario.policy else None
        self.load: _Load = _Recorded(scenario) if scenario.trace else _MadeUp(scenario)
        for vcpu_count, memory_mib in self.load.classes:
            self.engine.add_class(vcpu_count, memory_mib)
        self.engine.add_contract(list(range(len(scenario.zones))))
        self.cooling = CoolingModel(
            set_point_c=scenario.set_point_c, control=CoolingControl.PROPORTIONAL
        )
        self.means = [weather_normal(zone).mean_dry_bulb_c for zone in scenario.zones]
        self.ends: list[tuple[float, int]] = []  # (hour, VM)
        self.size_of: dict[int, int] = {}
        self.node_of: dict[int, int] = {}
        self.members: list[set[int]] = [set() for _ in range(scenario.node_count)]
        self.vms_on = np.zeros(scenario.node_count, np.int64)
        self.is_on = np.zeros(scenario.node_count, np.bool_)
        self.woken_h = np.zeros(scenario.node_count)
        self.acts = [_Acts() for _ in scenario.zones]
        self.order = 0

    def _build(self) -> None:
        """Give the engine its containers and nodes, all off."""
        scenario = self.scenario
        numbers = [
            self.engine.add_curve(list(curve.watts), waking_watts=curve.boot_joules / BOOT_HOLD_S)
            for curve in self.curves
        ]
        for number in range(scenario.node_count):
            container = number // CONTAINER_NODES
            site = container % len(scenario.zones)
            if scenario.node_count < CONTAINER_NODES * len(scenario.zones):
                site = number * len(scenario.zones) // scenario.node_count
            is_first = not self.site_of or site != self.site_of[-1]
            if is_first or number % CONTAINER_NODES == 0:
                self.engine.add_container(site, CONTAINER_WATTS)
                branch = self.engine.add_branch(CONTAINER_WATTS)
                self.containers.append([])
            self.engine.add_node(
                curve=numbers[number % 2],
                branch=branch,
                cpu_count=NODE_VCPUS,
                vcpu_free=NODE_VCPUS,
                memory_free_mib=NODE_MEMORY_MIB,
                booted=False,
            )
            self.containers[-1].append(number)
            self.site_of.append(site)

    def _agents(self) -> FleetAgents:
        """Return agents that know the same nodes, all off."""
        watts = [0.0] * len(self.scenario.zones)
        for container in self.containers:
            watts[self.site_of[container[0]]] += CONTAINER_WATTS
        agents = FleetAgents(watts, policy=self.scenario.policy)
        for number, site in enumerate(self.site_of):
            agents.add_node(
                site,
                self._curve(number),
                flops=NODE_FLOPS,
                vcpu_count=NODE_VCPUS,
                memory_mib=NODE_MEMORY_MIB,
            )
        return agents

    def run(self) -> Iterator[list[HourRow]]:
        """Yield the rows of each hour in turn."""
        every = self.scenario.planner_every_h
        for hour in range(self.scenario.hours):
            self.acts = [_Acts() for _ in self.scenario.zones]
            pues = [self._pue(site, hour) for site in range(len(self.scenario.zones))]
            if self.agents is None:
                self._weigh(hour)
            else:
                self.agents.begin_hour(hour * HOUR_S, self._conditions(hour))
            self._end_vms(hour)
            arrivals = self.load.arrivals(hour)
            todo = len(arrivals)
            if every and hour and hour % every == 0:
                todo += PLAN_WEIGHT * len(self.containers)
                for number, container in enumerate(self.containers):
                    self._plan(container, hour)
                    self._tell(hour, PLAN_WEIGHT * number, todo)
            refused = self._begin_vms(arrivals, hour, todo)
            self._switch_off(hour)
            yield self._rows(hour, pues, refused)

    def _pue(self, site: int, hour: int) -> float:
        """Return a site's PUE from the mean weather of the month and hour."""
        day = (self.scenario.start_day + hour // 24) % 365
        month = int(np.searchsorted(np.cumsum(MONTH_DAYS), day, side="right"))
        return self.cooling.state(self.means[site][month][hour % 24]).pue

    def _weigh(self, hour: int) -> None:
        """Set each site's weight: the mean of the hours that a VM placed now will live through."""
        scenario = self.scenario
        factors = {
            Weighting.COST: scenario.prices,
            Weighting.CARBON: scenario.carbon,
        }.get(scenario.weighting, (1.0,) * 24)
        ahead = range(hour, hour + scenario.ahead_hours)
        for site in range(len(scenario.zones)):
            weighed = sum(self._pue(site, then) * factors[then % 24] for then in ahead)
            is_blind = scenario.weighting is Weighting.NONE
            self.engine.set_weight(site, 1.0 if is_blind else weighed / len(ahead))

    def _conditions(self, hour: int) -> list[SiteConditions]:
        """Return what agents are told: as `_weigh`, means of the hours ahead, weighed by PUE."""
        scenario = self.scenario
        ahead = range(hour, hour + scenario.ahead_hours)
        found = []
        for site in range(len(scenario.zones)):
            pues = [self._pue(site, then) for then in ahead]
            total = sum(pues)
            priced = sum(p * scenario.prices[t % 24] for p, t in zip(pues, ahead, strict=True))
            grams = sum(p * scenario.carbon[t % 24] for p, t in zip(pues, ahead, strict=True))
            found.append(
                SiteConditions(
                    pue=total / len(ahead),
                    price_eur_per_mwh=priced / total,
                    carbon_g_per_kwh=grams / total,
                )
            )
        return found

    def _end_vms(self, hour: int) -> None:
        while self.ends and self.ends[0][0] <= hour:
            _, vm = heappop(self.ends)
            node = self.node_of.pop(vm)
            size = self.size_of.pop(vm)
            if self.agents is None:
                self.engine.release(size, 0, 0, node)
            else:
                self.agents.end(vm, node)
            self.members[node].discard(vm)
            self.vms_on[node] -= 1

    def _tell(self, hour: int, done: int, todo: int) -> None:
        if self._on_hours is not None:
            self._on_hours(hour + done / todo)

    def _begin_vms(self, arrivals: Sequence[tuple[int, float]], hour: int, todo: int) -> int:
        """Place an hour's arrivals, the last of its `todo`; return how many found no node."""
        nodes = self._place([size for size, _ in arrivals], hour, todo)
        for (size, end_h), node in zip(arrivals, nodes, strict=True):
            if node >= 0:
                self.order += 1
                self.size_of[self.order] = size
                self._settle(self.order, node, hour)
                heappush(self.ends, (end_h, self.order))
        return sum(node < 0 for node in nodes)

    def _place(self, sizes: Sequence[int], hour: int, todo: int) -> list[int]:
        """Return a node for each VM, -1 for none; those placed are numbered from the next on."""
        if self.agents is None:
            return self.engine.place_many([(size, 0, 0) for size in sizes])
        nodes, vm = [], self.order + 1
        for number, size in enumerate(sizes):
            nodes.append(self.agents.place(vm, *self.load.classes[size]))
            vm += nodes[-1] >= 0
            if number % TOLD_EVERY == 0:
                self._tell(hour, todo - len(sizes) + number, todo)
        return nodes

    def _settle(self, vm: int, node: int, hour: int) -> None:
        """Note that a VM runs on a node now, which is awake for it."""
        self.node_of[vm] = node
        self.members[node].add(vm)
        self.vms_on[node] += 1
        if not self.is_on[node]:
            self.is_on[node] = True
            self.woken_h[node] = hour
            acts = self.acts[self.site_of[node]]
            acts.boots += 1
            acts.joules += self._curve(node).boot_joules

    def _curve(self, node: int) -> PowerCurve:
        return self.curves[node % 2]

    def _plan(self, container: Sequence[int], hour: int) -> None:
        """Have the planner look at a container, and carry out what it says.

        As at a site, the rest of a plan is left when a step does not fit; the next look plans anew.
        """
        site = self.site_of[container[0]]
        view = ContainerView(
            site=self.scenario.zones[site],
            nodes=container,
            curve_of={node: self._curve(node) for node in container},
            on=[bool(self.is_on[node]) for node in container],
            vcpu_count=NODE_VCPUS,
            memory_mib=NODE_MEMORY_MIB,
            limit_watts=CONTAINER_WATTS,
            vms=[
                (vm, node, self.load.classes[self.size_of[vm]])
                for node in container
                for vm in sorted(self.members[node])
            ],
        )
        plan = plan_container(view, hold_s=self.scenario.hold_h * HOUR_S)
        for vm, to, step in moves_of(plan):
            came_from = self.node_of[vm]
            if not self._migrate(vm, came_from, to):
                return
            self.members[came_from].discard(vm)
            self.vms_on[came_from] -= 1
            self._settle(vm, to, hour)
            self.acts[site].migrations += 1
            self.acts[site].joules += step.joules
        for node in emptied_by(plan):
            self._try_off(node, hour)

    def _migrate(self, vm: int, came_from: int, to: int) -> bool:
        if self.agents is not None:
            return self.agents.move(vm, came_from, to)
        return self.engine.migrate(self.size_of[vm], 0, 0, from_node=came_from, to_node=to)

    def _switch_off(self, hour: int) -> None:
        """Switch empty nodes off that are expected to stay idle for longer than break-even."""
        for node in np.flatnonzero(self.is_on & (self.vms_on == 0)).tolist():
            if self._curve(node).break_even_s() < self.scenario.hold_h * HOUR_S:
                self._try_off(node, hour)

    def _try_off(self, node: int, hour: int) -> None:
        """Switch an empty node off unless it was woken less than its break-even time ago."""
        curve = self._curve(node)
        awake_s = (hour - self.woken_h[node]) * HOUR_S
        placing = self.engine if self.agents is None else self.agents
        if awake_s >= curve.break_even_s() and placing.switch_off(node):
            self.is_on[node] = False
            self.acts[self.site_of[node]].joules += curve.shutdown_joules

    def _rows(self, hour: int, pues: Sequence[float], refused: int) -> list[HourRow]:
        count = len(self.scenario.zones)
        vms = np.bincount(self.site_of, weights=self.vms_on, minlength=count)
        nodes_on = np.bincount(self.site_of, weights=self.is_on, minlength=count)
        rows = []
        placing = self.engine if self.agents is None else self.agents
        for site, watts in enumerate(placing.site_watts()):
            acts = self.acts[site]
            it_kwh = (watts * HOUR_S + acts.joules) / JOULES_PER_KWH
            facility_kwh = it_kwh * pues[site]
            rows.append(
                HourRow(
                    hour=hour,
                    site=self.scenario.zones[site],
                    vms=round(vms[site]),
                    nodes_on=round(nodes_on[site]),
                    it_kwh=it_kwh,
                    pue=pues[site],
                    facility_kwh=facility_kwh,
                    cost_eur=facility_kwh * self.scenario.prices[hour % 24] / 1000.0,
                    carbon_g=facility_kwh * self.scenario.carbon[hour % 24],
                    refused=refused,
                    boots=acts.boots,
                    migrations=acts.migrations,
                    switching_kwh=acts.joules / JOULES_PER_KWH,
                )
            )
        return rows


def run(
    scenario: FleetScenario, on_hours: Callable[[float], None] | None = None
) -> Iterator[list[HourRow]]:
    """Yield the rows of each hour of a scenario."""
    return FleetYear(scenario, on_hours).run()


def to_csv(rows: Iterable[HourRow]) -> str:
    """Return rows as CSV with a heading; floats to six digits, so bytes do not depend on us."""
    names = [field.name for field in fields(HourRow)]
    out = StringIO()
    out.write(",".join(names) + "\n")
    for row in rows:
        values = (getattr(row, name) for name in names)
        out.write(",".join(f"{v:.6f}" if isinstance(v, float) else str(v) for v in values) + "\n")
    return out.getvalue()
