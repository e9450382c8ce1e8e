"""The keeper of a site's energy, with a catalogue in memory and nobody else around."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.catalogue.memory import MemoryCatalogue
from nuage.daemon.configuration import ControllerConfiguration, EnergyConfiguration
from nuage.daemon.energy import EnergyKeeper, Surroundings
from nuage.daemon.process import Tasks
from nuage.errors import Conflict
from nuage.facility.memory import MemoryNode
from nuage.facility.ports import PowerControl, PowerState
from nuage.iaas.index import Change, FederationIndex
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, RackId, SiteId, VmId
from nuage.model.desired import VnodeReport
from nuage.model.energy import EnergyMode, EnergyRules, PlanAsk, SharePlan, ShareRule, SiteEnergy
from nuage.model.infrastructure import Node, NodePower, NodeRole
from nuage.model.placement import EstimationVector
from nuage.model.vm import Vm, VmShape, VmState
from nuage.placement.local_agent import LocalAgent
from nuage.placement.planner.make import curve_of
from nuage.placement.rack_agents import RackAgents, SiteAgent

MARNE = SiteId("marne")
NODES = (NodeId("marne-v1"), NodeId("marne-v2"))
HEAT = ShareRule(
    name="heat", figure="temperature_c", above=25.0, share=0.5, hysteresis=1.0, urgent=True
)
TARIFF = """
name = "two"
[[versions]]
valid_from = 2020-01-01
[[versions.rules]]
eur_per_mwh = 200.0
hours = [6, 22]
[[versions.rules]]
eur_per_mwh = 100.0
"""


class HandClock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.time_s = 1_790_000_000.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, delay_s: float) -> None:
        self.time_s += delay_s
        await asyncio.sleep(0)


class World:
    """One site with two V-nodes, and what its keeper does about them."""

    def __init__(self, folder: Path, *, by_racks: bool = False) -> None:
        self.clock = HandClock()
        self.folder = folder
        (folder / "tariff.toml").write_text(TARIFF)
        self.index = FederationIndex(MARNE)
        self.said: list[str] = []
        self.tasks = Tasks()
        self.agent: SiteAgent = LocalAgent(site("marne"))
        if by_racks:
            self.agent = RackAgents(site("marne"), lambda node_id: RackId(node_id[-2:]))
        self.catalogue = MemoryCatalogue(site=MARNE, clock=self.clock)
        self.machines = {node_id: MemoryNode(node_id, self.clock) for node_id in NODES}
        nobody = cast(Any, None)
        self.site = Site(
            site_id=MARNE, clock=self.clock, index=self.index, catalogue=self.catalogue,
            quorum=nobody, others=nobody, nodes=nobody, placer=nobody,
            announce=lambda _kind, _id, _what, text: self.said.append(text),
            on_change=self.changed, age_of=lambda _site: 0.0,
        )  # fmt: skip
        self.keeper = self.open()

    def open(self) -> EnergyKeeper:
        configuration = ControllerConfiguration(
            state_dir=self.folder, trust_dir=self.folder, datacenter=site("marne"),
            channel_listen="", join_listen="", api_listen=(),
            energy=EnergyConfiguration(
                tariff_file=self.folder / "tariff.toml", climate_zone="H1a",
                carbon_g_per_kwh=32.0,
            ),
        )  # fmt: skip
        return EnergyKeeper(configuration, Surroundings(
            site=self.site, agent=self.agent, datacenter=site("marne"), clock=self.clock,
            tasks=self.tasks, is_connected=lambda _node: False, on_lost=lambda _node: None,
            reachable_sites=lambda: (MARNE,), open_bmc=self.bmc, pdus={},
        ))  # fmt: skip

    @asynccontextmanager
    async def bmc(self, node: Node) -> AsyncIterator[PowerControl]:
        yield self.machines[node.node_id]

    def changed(self, change: Change) -> None:
        if hasattr(self, "keeper"):
            self.keeper.on_change(change)

    async def fill(self) -> None:
        for node_id in NODES:
            node = Node(
                node_id=node_id, site_id=MARNE, rack_id=RackId("r1"), name=node_id,
                roles=(NodeRole.VNODE,), cpu_count=12, memory_mib=32_768,
            )  # fmt: skip
            await self.site.save(node)
            self.agent.update(self.vector(node_id))

    def vector(self, node_id: NodeId, **changes: Any) -> EstimationVector:
        return vector(node_id, sent_s=self.clock.now_s(), **changes)

    def able(self) -> set[NodeId]:
        bid = self.agent.bid(request(), self.clock.now_s())
        return {estimate.node_id for estimate in bid.estimates}


@pytest.fixture(params=["one agent", "an agent per rack"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, by_racks=request.param == "an agent per rack")
    await made.fill()
    yield made
    await made.tasks.close()


def a_vm(on: NodeId) -> Vm:
    return Vm(
        vm_id=VmId("a"), iaas_id=IaasId("i"), name="a", shape=VmShape(), node_id=on,
        site_id=MARNE, state=VmState.RUNNING,
    )  # fmt: skip


async def test_heat_changes_the_candidates_before_the_event_is_answered(world: World) -> None:
    await world.site.save(EnergyRules(site_id=MARNE, rules=(HEAT,)))
    world.keeper.look()
    assert world.able() == set(NODES)
    world.keeper.post("temperature_c", 32.0, 3600.0)  # no clock moves: not a second, none at all
    assert len(world.able()) == 1
    assert world.agent.conditions.pue == 1.55
    out = next(iter(set(NODES) - world.able()))
    bid = world.agent.bid(request(), world.clock.now_s())
    assert any("heat" in refusal.reason for refusal in bid.refusals if refusal.node_id == out)


@pytest.mark.parametrize(
    ("rules", "moves"),
    [
        ({"ban": (NODES[1],)}, 0),
        ({"ban": (NODES[0],)}, 1),
        ({"fence": (NODES[1],)}, 1),
        ({"fence": ("r1",)}, 0),  # both nodes stand in it
    ],
)
async def test_a_vm_that_runs_where_its_owner_forbids_it_is_planned_away_at_once(
    world: World, rules: dict[str, tuple[str, ...]], moves: int
) -> None:
    await world.site.save(replace(a_vm(NODES[0]), **cast(Any, rules)))
    shown = await world.keeper.what_if(PlanAsk(consolidate=False))
    planned = [(s.act, s.node_id, s.vm_name) for s in shown.steps if s.vm_id]
    assert planned == [("migrate", NODES[1], "a")] * moves
    world.keeper.look()
    await world.keeper._conductor._automate()
    assert world.said.count("a plan begins: 1 migrations, 0 power acts") == moves


async def test_what_a_watt_costs_follows_the_tariff_by_the_hour(world: World) -> None:
    world.keeper.look()
    first = world.agent.conditions.price_eur_per_mwh
    world.clock.time_s += 12 * 3600.0
    world.keeper.look()
    assert {first, world.agent.conditions.price_eur_per_mwh} == {100.0, 200.0}


async def test_a_dated_plan_begins_by_itself(world: World) -> None:
    now_s = world.clock.now_s()
    plan = SharePlan(name="test", begin_s=now_s + 100.0, end_s=now_s + 200.0, share=0.5)
    await world.site.save(EnergyRules(site_id=MARNE, plans=(plan,), ramp_per_min=60.0))
    world.keeper.look()
    assert world.able() == set(NODES)
    world.clock.time_s += 101.0
    for node_id in NODES:
        world.agent.update(world.vector(node_id))
    world.keeper.look()
    assert len(world.able()) == 1


async def test_a_sleeping_node_is_not_lost_and_stays_a_candidate(world: World) -> None:
    node = world.index.value(Node, NODES[0])
    world.keeper.switch.sleeping[NODES[0]] = replace(world.vector(NODES[0]), booted=False)
    await world.site.save(replace(node, power=NodePower.OFF))
    assert world.keeper.is_asleep(NODES[0])
    assert not world.keeper.is_asleep(NODES[1])
    world.clock.time_s += 600.0
    world.agent.update(world.vector(NODES[1]))
    world.keeper.look()
    assert world.able() == set(NODES)


async def test_sleeping_nodes_and_accounts_survive_a_restart(world: World) -> None:
    node = world.index.value(Node, NODES[0])
    world.keeper.switch.sleeping[NODES[0]] = replace(world.vector(NODES[0]), booted=False)
    await world.site.save(replace(node, power=NodePower.OFF))
    await world.keeper.close()
    again = world.open()
    assert again.is_asleep(NODES[0])
    again.look()
    assert NODES[0] in {v.node_id for v in world.agent.nodes if not v.booted}


async def test_a_node_with_a_vm_is_not_switched_off(world: World) -> None:
    await world.site.save(a_vm(NODES[0]))
    with pytest.raises(Conflict, match="stays on: a is running"):
        await world.keeper.switch.sleep(NODES[0])
    assert world.index.value(Node, NODES[0]).power is NodePower.ON


async def test_a_dry_run_plans_and_does_nothing(world: World) -> None:
    await world.site.save(a_vm(NODES[0]))
    await world.site.save(EnergyRules(site_id=MARNE, rules=(HEAT,)))
    plan = await world.keeper.what_if(PlanAsk(figures={"temperature_c": 33.0}, hours=3))
    assert plan.state == "dry run"
    assert [hour.share for hour in plan.foreseen] == [0.5] * 4
    assert world.keeper.progress() is None
    assert world.able() == set(NODES)


async def test_the_record_for_other_sites_is_written_when_it_says_something(world: World) -> None:
    world.keeper.look()
    await world.keeper._publish()
    first = world.index.value(SiteEnergy, MARNE)
    assert (first.pue_category, first.outside_source) == (3, "normal of H1a") or first.nodes
    revision = world.index.find("site-energy", MARNE)
    await world.keeper._publish()
    assert world.index.find("site-energy", MARNE) is revision
    world.keeper.post("temperature_c", 35.0, 60.0)
    await world.keeper._publish()
    assert world.index.value(SiteEnergy, MARNE).pue == 1.55


async def test_a_reading_that_is_not_believed_is_shown_with_its_rule(world: World) -> None:
    vector = world.vector(NODES[0], power_watts=-40.0, power_source="model")
    report = VnodeReport(node_id=NODES[0], site_id=MARNE, wish_revision=0, vms=(), estimate=vector)
    fine = world.vector(NODES[1], power_watts=80.0, power_source="model")
    for _ in range(2):  # a second report with the same reading says nothing new, good or bad
        world.keeper.take_report(report, vector)
        world.keeper.take_report(replace(report, node_id=NODES[1], estimate=fine), fine)
    world.keeper.look()
    await world.keeper._publish()
    (told,) = world.index.value(SiteEnergy, MARNE).refused_readings
    assert "marne-v1 model" in told
    assert "rule negative" in told
    world.clock.time_s += 3600.0
    assert world.keeper.meters.refused(world.clock.now_s()) == ()


async def test_an_empty_node_sleeps_and_a_vm_that_is_placed_there_wakes_it(world: World) -> None:
    machine, switch = world.machines[NODES[0]], world.keeper.switch
    await switch.sleep(NODES[0])
    assert await machine.power_state() is PowerState.OFF
    assert NODES[0] in world.able()
    assert switch.state_of(world.index.value(Node, NODES[0])) == "off"
    await world.site.save(a_vm(NODES[0]))
    for _ in range(10):  # the wake runs beside
        await asyncio.sleep(0)
    assert await machine.power_state() is PowerState.ON
    assert world.keeper.is_asleep(NODES[0])  # not back yet, and not lost
    assert switch.awake(world.vector(NODES[0]))
    assert not world.keeper.is_asleep(NODES[0])
    assert world.index.value(Node, NODES[0]).power is NodePower.ON


async def test_a_woken_node_is_left_on_for_its_break_even_time(world: World) -> None:
    """It idles and everything says off, but going off so soon would cost more than it saves."""
    await world.site.save(EnergyRules(site_id=MARNE, mode=EnergyMode.AUTOMATIC, nodes_kept_on=1))
    for node_id in NODES:
        world.agent.update(world.vector(node_id, boot_energy_joules=60_000.0))
    worth = max(curve_of(node).break_even_s() for node in world.agent.nodes)
    world.keeper.switch.woken_s = dict.fromkeys(NODES, world.clock.time_s)

    async def offs() -> int:
        world.clock.time_s += 1.0
        plan = await world.keeper.what_if(PlanAsk(consolidate=True))
        return sum(step.act == "power-off" for step in plan.steps)

    assert await offs() == 0
    world.clock.time_s += worth
    for node_id in NODES:  # they still report
        world.agent.update(world.vector(node_id, boot_energy_joules=60_000.0))
    assert await offs() == 1


async def test_a_figure_that_was_posted_survives_a_kill_until_its_end(world: World) -> None:
    await world.site.save(EnergyRules(site_id=MARNE, rules=(HEAT,)))
    world.keeper.post("temperature_c", 32.0, 600.0)
    again = world.open()  # nobody closed the first
    again.look()
    assert len(world.able()) == 1
    world.clock.time_s += 601.0
    again.look()
    assert again._look.events.at(world.clock.now_s()) == {}


async def test_a_grid_alert_that_is_over_lets_the_nodes_serve_again(world: World) -> None:
    alert = ShareRule(name="cut", figure="grid_alert", above=1.0, share=0.5, urgent=True)
    await world.site.save(EnergyRules(site_id=MARNE, rules=(alert,), ramp_per_min=60.0))
    world.keeper.post("grid_alert", 2.0, 1800.0)
    assert len(world.able()) == 1
    plan = await world.keeper.what_if(PlanAsk(hours=2))
    assert [hour.share for hour in plan.foreseen] == [0.5, 1.0, 1.0], "it ends before the hour"
    world.clock.time_s += 1801.0
    for node_id in NODES:
        world.agent.update(world.vector(node_id))
    world.keeper.look()
    assert world.able() == set(NODES)


async def test_a_vm_that_cannot_move_is_named_and_no_reason_to_save_nothing_else(
    world: World,
) -> None:
    """Under heat both nodes are to go but one; a fence holds a VM on one that goes."""
    rules = EnergyRules(
        site_id=MARNE, rules=(replace(HEAT, share=0.5),), mode=EnergyMode.AUTOMATIC,
        nodes_kept_on=0, hold_s=86_400.0,
    )  # fmt: skip
    await world.site.save(rules)
    world.keeper.post("temperature_c", 32.0, 3600.0)
    (stays,) = world.able()
    (goes,) = set(NODES) - {stays}
    await world.site.save(replace(a_vm(goes), fence=(goes,)))
    world.agent.update(world.vector(goes, vm_count=1, running=(VmId("a"),)))
    world.keeper.look()
    for _ in range(2):
        await world.keeper._conductor._automate()
    told = [text for text in world.said if text.startswith("not solved")]
    assert told == [f"not solved: drain: {goes} is to be empty; a stays, only on {goes}"]
    assert "a plan begins: 0 migrations, 1 power acts" in world.said  # the node that serves nobody


async def test_rules_act_when_they_are_written(world: World) -> None:
    world.keeper.post("temperature_c", 30.0, 600.0)
    assert world.able() == set(NODES)
    await world.site.save(EnergyRules(site_id=MARNE, rules=(HEAT,)))
    assert len(world.able()) == 1
