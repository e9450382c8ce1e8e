"""PlanetLab days on CloudSim's datacenter, two columns: CloudSim's rules, and honest ones.

Goals for 20110303, compat: at most 145 kWh, SLAV 2.3e-5 and 10,000 migrations, all at once
(CloudSim 3.0.3, LR-MMT 1.2: 163.48 kWh, 4.64e-5, 27,859). Honest: within 3 % of the memory bound,
which is told twice: as a fluid (all memory in one heap), and with whole VMs; where the second lies
more than 3 % above the first, no placement comes within 3 % of the first. THR-MMT runs beside as a check of the model (CloudSim: 192.62 kWh, SLAV 3.18e-5).

The traces are external data (github.com/beloglazov/planetlab-workload-traces), not shipped.
Run: python benchmarks/planetlab.py FOLDER_OF_DAYS [DAY…]
"""

import argparse
from pathlib import Path

from nuage.simulation.consolidation import PackedByMemory, Steady, Threshold
from nuage.simulation.planetlab import (
    DayResult,
    load_day,
    memory_bound_kwh,
    run_day,
    whole_vms_bound_kwh,
)


def row(day: str, rules: str, result: DayResult) -> str:
    return (
        f"{day} {rules:7} {result.policy:13} {result.energy_kwh:8.2f} {result.migration_count:7}"
        f" {result.slav:9.2e} {result.overload_share:8.2%} {result.degraded_share:8.3%}"
        f" {result.host_count_mean:6.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of days, each a folder of traces")
    parser.add_argument("day", nargs="*", help="these days only")
    options = parser.parse_args()
    folder: Path = options.folder
    days = options.day or sorted(path.name for path in folder.iterdir() if path.is_dir())
    print("day      rules   policy             kWh   moves      SLAV   SLATAH      PDM  hosts")
    for name in days:
        day = load_day(folder / name)
        if name in {"20110303", "20110306"}:
            print(row(name, "compat", run_day(day, Threshold(), honest=False)))
        print(row(name, "compat", run_day(day, Steady(), honest=False)))
        honest = run_day(day, PackedByMemory(), honest=True)
        print(row(name, "honest", honest))
        fluid = memory_bound_kwh(day)
        whole = whole_vms_bound_kwh(day, hosts=round(honest.host_count_mean))
        print(
            f"{'':16} memory bound: whole VMs {whole:.1f} kWh (ours {honest.energy_kwh / whole - 1:+.2%});"
            f" fluid {fluid:.1f} kWh (ours {honest.energy_kwh / fluid - 1:+.2%},"
            f" the least possible {whole / fluid - 1:+.2%})"
        )


if __name__ == "__main__":
    main()
