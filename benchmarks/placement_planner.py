"""Repairs of the size of BtrPlace's: 5,000 nodes, 30,000 VMs, constraints on, every plan checked.

Goal: a valid plan in under 10 s on two cores (BtrPlace publishes 3 min for the whole, under
30 s on partitions of 2,500). All of it runs on one core: "CPU s" is what it takes on a machine
that does nothing else. Run: python benchmarks/placement_planner.py
"""

import argparse
from time import perf_counter, process_time

from planner_instances import instance

from nuage.placement.planner.check import check_plan
from nuage.placement.planner.schedule import schedule
from nuage.placement.planner.search import consolidate, repair


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(
        "instance     nodes    vms  constr  search s  plan s  check s  CPU s  moves  minutes"
        "  objections"
    )
    kinds = {
        "nr (drain)": {"drain_count": 250, "boot_share": 0.05, "grow_share": 0.0},
        "li (grow)": {"drain_count": 0, "boot_share": 0.0, "grow_share": 0.1},
    }
    for name, changes in kinds.items():
        for share in (0.0, 0.33, 1.0):
            made = instance(1, constrained_share=share, **changes)  # type: ignore[arg-type]
            begin, begin_cpu = perf_counter(), process_time()
            target = repair(made.fleet, made.constraints)
            found = perf_counter()
            plan = schedule(made.fleet, target, made.constraints)
            timed = perf_counter()
            objections = check_plan(made.fleet, plan, made.constraints)
            checked, cpu = perf_counter(), process_time() - begin_cpu
            print(
                f"{name:11} {len(made.fleet.nodes):6} {len(made.fleet.vms):6} "
                f"{len(made.constraints):7} {found - begin:9.2f} {timed - found:7.2f} "
                f"{checked - timed:8.2f} {cpu:6.2f} {plan.migration_count:6} {plan.duration_s / 60:8.1f} "
                f"{len(objections):6} ({len(target.unsolved)} unsolved)"
            )
    made = instance(2, node_count=500, drain_count=0, boot_share=0.0)
    begin = perf_counter()
    target = consolidate(made.fleet, made.constraints, hold_s=86_400.0)
    plan = schedule(made.fleet, target, made.constraints)
    objections = check_plan(made.fleet, plan, made.constraints)
    spent = perf_counter() - begin
    print(
        f"consolidation of 500 nodes: {spent:.2f} s, {plan.migration_count} moves, "
        f"{plan.saved_watts:.0f} W saved, pays after {plan.pays_after_s:.0f} s, "
        f"{len(objections)} objections"
    )


if __name__ == "__main__":
    main()
