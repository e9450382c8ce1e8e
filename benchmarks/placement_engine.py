"""The Rust engine through Python: placements per second and how long one takes, one core.

Goals: 100,000/s at 10,000 nodes, 50,000/s at 100,000 nodes, constraints on, p99 under 1 ms. Rates
are of batches of 1,000, latencies of single placements, PyO3 included. The crate's own
bench (`cargo bench -p nuage-placement`) leaves Python out.
Run: python benchmarks/placement_engine.py
"""

import argparse
from random import Random
from statistics import median
from time import perf_counter

from nuage._core import PlacementEngine
from nuage.energy.power_curve import ACER_AT350_F2, HUAWEI_RH2288_V2

SINGLES = 10_000
CLASSES = ((1, 1024), (1, 2048), (2, 4096), (2, 2048), (4, 8192), (4, 4096), (8, 16384), (1, 512))


def build(node_count: int) -> PlacementEngine:
    engine = PlacementEngine()
    curves = [
        engine.add_curve(list(curve.watts), waking_watts=10.0)
        for curve in (HUAWEI_RH2288_V2, ACER_AT350_F2)
    ]
    branch = 0
    for index in range(node_count):
        if index % 168 == 0:
            engine.add_container((index // 168) % 64, 40_000.0)
        if index % 168 % 21 == 0:
            branch = engine.add_branch(6_000.0)
        engine.add_node(
            curve=curves[index % 2], branch=branch, cpu_count=48, vcpu_free=48,
            memory_free_mib=131_072, booted=index % 3 > 0,
        )  # fmt: skip
    for vcpu_count, memory_mib in CLASSES:
        engine.add_class(vcpu_count, memory_mib)
    for sites in (range(64), range(32), (1, 5, 9, 13)):
        engine.add_contract(list(sites))
    return engine


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("   nodes   placed  placements/s   p50 µs   p99 µs   max µs")
    for node_count in (1_000, 10_000, 100_000):
        engine = build(node_count)
        prng = Random(1)
        rates = []
        placed = 0
        for _ in range(60):
            batch = [
                (
                    prng.randrange(8),
                    prng.randrange(3),
                    prng.randrange(1, 997) if prng.random() < 0.25 else 0,
                )
                for _ in range(1_000)
            ]
            begin = perf_counter()
            nodes = engine.place_many(batch)
            rates.append(len(batch) / (perf_counter() - begin))
            placed += sum(node >= 0 for node in nodes)
        took_us = []
        for _ in range(SINGLES):
            size, contract = prng.randrange(8), prng.randrange(3)
            group = prng.randrange(1, 997) if prng.random() < 0.25 else 0
            begin = perf_counter()
            answer = engine.place(size, contract, group)
            took_us.append((perf_counter() - begin) * 1e6)
            placed += answer is not None
        took_us.sort()
        print(
            f"{node_count:8} {placed:8} {median(rates):13,.0f} {median(took_us):8.1f}"
            f" {took_us[SINGLES * 99 // 100]:8.1f} {took_us[-1]:8.1f}"
        )


if __name__ == "__main__":
    main()
