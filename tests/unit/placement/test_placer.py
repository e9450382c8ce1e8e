import asyncio

import pytest
from tests.unit.placement.placement_builders import request, site, vector

from nuage.clock import SystemClock
from nuage.errors import InvalidRequest, NoCandidate, SiteUnreachable
from nuage.ids import NodeId, RequestId, SiteId
from nuage.model.placement import Bid, Refusal, VmRequest
from nuage.placement.local_agent import LocalAgent
from nuage.placement.master_agent import MasterAgent
from nuage.placement.placer import Placer


class InMemory:
    """Local Agents in this process; sites named in `cut` cannot be reached."""

    def __init__(self, *names: str) -> None:
        self.locals = {SiteId(name): LocalAgent(site(name)) for name in names}
        for name, local in self.locals.items():
            local.update(vector(f"{name}-v1"))
        self.cut: set[SiteId] = set()
        self.cut_commits: set[SiteId] = set()
        self.asked_count = 0
        self.released: list[NodeId] = []

    async def ask(
        self, site_id: SiteId, requests: tuple[VmRequest, ...], deadline_s: float
    ) -> tuple[Bid, ...]:
        self.asked_count += 1
        if site_id in self.cut:
            raise SiteUnreachable(site_id, doing="asking for a bid")
        return tuple(self.locals[site_id].bid(each, 0.0) for each in requests)

    async def commit(
        self, site_id: SiteId, node_id: NodeId, request: VmRequest, deadline_s: float
    ) -> Refusal | None:
        if site_id in self.cut_commits:
            raise SiteUnreachable(site_id, doing="committing")
        outcome = self.locals[site_id].reserve(request, node_id, 0.0)
        return outcome if isinstance(outcome, Refusal) else None

    async def release(self, site_id: SiteId, node_id: NodeId, request_id: RequestId) -> None:
        self.released.append(node_id)
        raise SiteUnreachable(site_id, doing="releasing")


def placer(transport: InMemory, **changes: float) -> Placer:
    master = MasterAgent(**changes)  # type: ignore[arg-type]
    return Placer(master, transport, SystemClock(), sites=lambda: sorted(transport.locals))


async def test_a_burst_of_requests_costs_each_site_one_message() -> None:
    transport = InMemory("lyon", "marne")
    door = placer(transport)
    decisions = await asyncio.gather(*(door.place(request(n)) for n in range(10)))
    assert {decision.elected_site for decision in decisions} <= {"lyon", "marne"}
    assert transport.asked_count == 2
    await door.close()


async def test_a_cut_site_is_silent_and_the_other_gets_the_vm() -> None:
    transport = InMemory("lyon", "marne")
    transport.cut.add(SiteId("lyon"))
    door = placer(transport)
    decision = await door.place(request())
    assert (decision.elected, decision.silent_sites) == ("marne-v1", ("lyon",))
    await door.close()


async def test_a_lost_commitment_is_released_and_the_next_candidate_asked() -> None:
    transport = InMemory("lyon", "marne")
    transport.cut_commits.add(SiteId("lyon"))
    door = placer(transport)
    decision = await door.place(request())
    await asyncio.sleep(0)
    assert decision.elected == "marne-v1"
    assert transport.released == ["lyon-v1"]
    await door.close()


async def test_nobody_able_raises_with_the_reasons() -> None:
    transport = InMemory("lyon")
    transport.locals[SiteId("lyon")].update(vector("lyon-v1", sent_s=1.0, vcpu_free=0))
    door = placer(transport)
    with pytest.raises(NoCandidate) as caught:
        await door.place(request())
    assert caught.value.refusals == (("lyon-v1", "vcpu", "0 vCPUs free, 1 asked"),)
    with pytest.raises(InvalidRequest):
        await door.place(request(2, policy="nothing"))
    await door.close()
