"""The five steps in memory: microseconds per request through a Master Agent and Local Agents.

Goal: at most 300 µs per request for 4 sites of 2 V-nodes (no network, no hypervisor).
Run: python benchmarks/placement_agents.py
"""

import argparse
from statistics import median
from time import perf_counter

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


def local_agents(site_count: int, node_count: int) -> dict[SiteId, LocalAgent]:
    built = {}
    for site_index in range(site_count):
        name = SiteId(f"site{site_index}")
        datacenter = Datacenter(
            site_id=name, place=name, country="FR", operator=Operator("Celeste", "FR"), tier=3,
            power_capacity_watts=18_000.0 * max(1, node_count // 100),
        )  # fmt: skip
        built[name] = LocalAgent(datacenter)
        for index in range(node_count):
            built[name].update(
                EstimationVector(
                    node_id=NodeId(f"{name}-v{index}"), site_id=name, sent_s=0.0, cpu_count=64,
                    vcpu_free=10**6, memory_free_mib=10**9, flops=220e9 + index,
                    power_watts=60.0, power_source="outlet", power_read_s=0.0,
                    idle_watts=56.0, peak_watts=205.0, cpu_utilisation=0.1,
                )
            )  # fmt: skip
    return built


def place(master: MasterAgent, locals_: dict[SiteId, LocalAgent], requests: list[VmRequest]) -> int:
    """Place a batch and give every promise back, so that tables stay as they are."""
    elected = 0
    todo = master.submit(requests, list(locals_), 0.0)
    while todo:
        effect = todo.pop()
        match effect:
            case AskSite():
                local = locals_[effect.site_id]
                bids = tuple(local.bid(each, 0.0) for each in effect.requests)
                todo += master.receive(BidsArrived(effect.site_id, effect.round_id, bids), 0.0)
            case Commit(site_id=site_id, node_id=node_id, request=request):
                locals_[site_id].reserve(request, node_id, 0.0)
                locals_[site_id].confirm(request.request_id)
                todo += master.receive(Committed(request.request_id, site_id, node_id), 0.0)
                locals_[site_id].release(request.request_id)
            case Decided(decision=decision):
                elected += decision.elected is not None
    return elected


def measure(site_count: int, node_count: int, batch: int, policy: str, rounds: int) -> float:
    locals_ = local_agents(site_count, node_count)
    master = MasterAgent()
    contract = Contract(data_countries=("FR",), operator_countries=("FR",))
    shape = VmShape(vcpu_count=2, memory_mib=1024)
    times = []
    for turn in range(rounds):
        requests = [
            VmRequest(
                request_id=RequestId(f"r{turn}-{n}"), vm_id=VmId(f"v{turn}-{n}"),
                iaas_id=IaasId("i"), shape=shape, contract=contract, policy=policy,
            )
            for n in range(batch)
        ]  # fmt: skip
        begin = perf_counter()
        elected = place(master, locals_, requests)
        times.append((perf_counter() - begin) / batch)
        assert elected == batch
    return median(times) * 1e6


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("sites nodes batch policy       µs/request  placements/s")
    for site_count, node_count, batch, policy in (
        (4, 2, 1, "power"), (4, 2, 1, "green"), (4, 2, 1, "cursor"), (4, 2, 1, "random"),
        (4, 2, 32, "power"), (4, 168, 1, "power"), (16, 168, 1, "power"),
    ):  # fmt: skip
        micros = measure(site_count, node_count, batch, policy, 300 if batch == 1 else 20)
        rate = 1e6 / micros
        row = f"{site_count:5} {node_count:5} {batch:5} {policy:12}"
        print(f"{row} {micros:10.0f} {rate:13.0f}")


if __name__ == "__main__":
    main()
