"""What an idle lab costs: CPU of one core and memory, summed over all of its processes, by kind.

Reads /proc before and after a while in which nothing is asked of the lab. Memory is the
proportional set size (a page shared by n processes counts 1/n to each); the sum of resident sizes,
which counts it n times, stands beside it. Needs root and a running lab (`nuage lab up`); run
``python benchmarks/idle_lab.py --lab france --seconds 30``.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass

import machine


@dataclass
class Cost:
    """Of all processes of one kind."""

    count: int = 0
    cpu_s: float = 0.0
    wakeups: int = 0
    rss_mib: float = 0.0
    pss_mib: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="france", help="the name of a running lab")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    print(machine.describe())
    pids = machine.pids_of_lab(arguments.lab)
    if not pids:
        raise SystemExit(f"no lab {arguments.lab!r} runs here: `nuage lab up`")
    before = {pid: (machine.cpu_seconds(pid), machine.switches_of(pid)) for pid in pids}
    time.sleep(arguments.seconds)
    kinds: dict[str, Cost] = defaultdict(Cost)
    total = Cost()
    for pid in pids:
        try:
            cpu_s = machine.cpu_seconds(pid) - before[pid][0]
            wakeups = machine.switches_of(pid) - before[pid][1]
            memory = machine.memory_of(pid)
            name = machine.command_of(pid)
        except OSError:
            continue  # it has ended meanwhile
        for cost in (kinds[name], total):
            cost.count += 1
            cost.cpu_s += cpu_s
            cost.wakeups += wakeups
            cost.rss_mib += memory.rss_mib
            cost.pss_mib += memory.pss_mib
    print(f"{'process':20} {'count':>5} {'CPU':>8} {'wake-ups':>9} {'PSS':>10} {'RSS':>10}")
    rows = sorted(kinds.items(), key=lambda item: -item[1].cpu_s)
    for name, cost in (*rows, ("all of the lab", total)):
        print(
            f"{name:20} {cost.count:5} {cost.cpu_s / arguments.seconds:8.1%}"
            f" {cost.wakeups / arguments.seconds:7.0f}/s {cost.pss_mib:6.0f} MiB"
            f" {cost.rss_mib:6.0f} MiB"
        )


if __name__ == "__main__":
    main()
