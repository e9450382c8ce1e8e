"""Several Master Agents over the same Local Agents, messages lost, late and doubled."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.ids import NodeId, RequestId, SiteId
from nuage.model.contract import Contract
from nuage.model.placement import Decision, EstimationVector, Refusal, VmRequest
from nuage.model.vm import VmShape
from nuage.placement.local_agent import LocalAgent, Reservation
from nuage.placement.master_agent import (
    AskSite,
    BidsArrived,
    Commit,
    CommitRefused,
    Committed,
    Decided,
    Effect,
    Event,
    MasterAgent,
    Release,
)

MEMORY_MIB = 8192
POLICIES = ("power", "performance", "random", "spread", "pack", "green", "cursor", "cost")


@dataclass(order=True)
class Message:
    at_s: float
    order: int
    master: int = field(compare=False)
    to_site: Effect | None = field(compare=False, default=None)
    to_master: Event | None = field(compare=False, default=None)
    report: NodeId | None = field(compare=False, default=None)


class World:
    """Four sites of two nodes, three Master Agents, an unkind network."""

    def __init__(self, seed: int, loss: float) -> None:
        self.prng = Random(seed)
        self.loss = loss
        self.now_s = 0.0
        self.order = 0
        self.queue: list[Message] = []
        self.sites = tuple(SiteId(f"site{n}") for n in range(4))
        self.locals = {name: LocalAgent(site(name), vector_age_max_s=1e9) for name in self.sites}
        self.placed: dict[NodeId, dict[RequestId, VmRequest]] = {}
        for name in self.sites:
            for index in range(2):
                node = NodeId(f"{name}-v{index}")
                self.placed[node] = {}
                self.report(node)
        self.masters = [MasterAgent() for _ in range(3)]
        self.decisions: dict[RequestId, list[Decision]] = {}
        self.asked: list[VmRequest] = []

    def report(self, node: NodeId) -> None:
        self.locals[SiteId(node.split("-")[0])].update(self.vector_of(node))

    def vector_of(self, node: NodeId) -> EstimationVector:
        running = self.placed[node].values()
        return vector(
            node,
            sent_s=self.now_s,
            vcpu_free=12 - sum(r.shape.vcpu_count for r in running),
            memory_free_mib=MEMORY_MIB - sum(r.shape.memory_mib for r in running),
            running=tuple(r.vm_id for r in running),
            vm_count=len(running),
        )

    def submit(self, master: int, requests: list[VmRequest]) -> None:
        self.asked += requests
        self.perform(master, self.masters[master].submit(requests, self.sites, self.now_s))

    def perform(self, master: int, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Decided):
                done = effect.decision
                self.decisions.setdefault(done.request_id, []).append(done)
            else:
                self.send(master, to_site=effect)

    def send(
        self, master: int, to_site: Effect | None = None, to_master: Event | None = None
    ) -> None:
        copies = 0 if self.prng.random() < self.loss else self.prng.choice((1, 1, 1, 2))
        for _ in range(copies):
            self.order += 1
            delay_s = self.prng.expovariate(1 / 0.05) * self.prng.choice((1, 1, 1, 30))
            heappush(
                self.queue,
                Message(self.now_s + delay_s, self.order, master, to_site, to_master),
            )

    def run(self) -> None:
        while True:
            deadlines = [(m.next_deadline_s(), i) for i, m in enumerate(self.masters)]
            due = min((d, i) for d, i in deadlines if d is not None) if any(
                d is not None for d, _ in deadlines
            ) else None  # fmt: skip
            if self.queue and (due is None or self.queue[0].at_s <= due[0]):
                message = heappop(self.queue)
                self.now_s = max(self.now_s, message.at_s)
                self.deliver(message)
            elif due is not None:
                self.now_s = max(self.now_s, due[0])
                self.perform(due[1], self.masters[due[1]].tick(self.now_s))
            else:
                return
            self.check_never_overcommitted()

    def deliver(self, message: Message) -> None:
        if message.to_master is not None:
            master = self.masters[message.master]
            self.perform(message.master, master.receive(message.to_master, self.now_s))
            return
        match message.to_site:
            case AskSite(site_id=name, round_id=round_id, requests=requests):
                bids = tuple(self.locals[name].bid(r, self.now_s) for r in requests)
                self.send(message.master, to_master=BidsArrived(name, round_id, bids))
            case Commit() as commit:
                self.commit(message.master, commit)
            case Release(site_id=name, node_id=node, request_id=request_id):
                self.locals[name].release(request_id, node)
                self.placed[node].pop(request_id, None)
        if self.prng.random() < 0.2:
            self.report(self.prng.choice(sorted(self.placed)))

    def commit(self, master: int, commit: Commit) -> None:
        local = self.locals[commit.site_id]
        asked = commit.request
        if asked.request_id in self.placed[commit.node_id]:
            event: Event = Committed(asked.request_id, commit.site_id, commit.node_id)
        else:
            outcome = local.reserve(asked, commit.node_id, self.now_s)
            if isinstance(outcome, Refusal):
                event = CommitRefused(asked.request_id, outcome)
            else:
                assert isinstance(outcome, Reservation)
                local.confirm(asked.request_id)
                self.placed[commit.node_id][asked.request_id] = asked
                event = Committed(asked.request_id, commit.site_id, commit.node_id)
        self.send(master, to_master=event)

    def check_never_overcommitted(self) -> None:
        for node, placed in self.placed.items():
            assert sum(r.shape.memory_mib for r in placed.values()) <= MEMORY_MIB, node
            assert sum(r.shape.vcpu_count for r in placed.values()) <= 12, node


@pytest.mark.parametrize("seed", range(200))
def test_no_node_is_overcommitted_and_every_request_ends_once(seed: int) -> None:
    world = World(seed, loss=0.0 if seed < 8 else 0.15)
    number = 0
    for _ in range(12):
        master = world.prng.randrange(3)
        batch = []
        for _ in range(world.prng.randrange(1, 5)):
            number += 1
            shape = VmShape(
                vcpu_count=world.prng.randrange(1, 5), memory_mib=world.prng.choice((512, 2048))
            )
            contract = Contract(sites=world.sites[: world.prng.randrange(1, 5)])
            policy = world.prng.choice(POLICIES)
            batch.append(request(number, shape=shape, contract=contract, policy=policy))
        world.submit(master, batch)
        if world.prng.random() < 0.4:
            world.run()
    world.run()
    assert {r.request_id for r in world.asked} == set(world.decisions)
    for asked in world.asked:
        (decision,) = world.decisions[asked.request_id]
        if decision.elected is None:
            assert decision.refusals or decision.silent_sites
        else:
            assert decision.elected_site in asked.contract.sites
            assert asked.request_id in world.placed[decision.elected]
