"""How fast the default lab's hardware comes and goes, what it costs idle, what its lines carry.

Run as root: ``python benchmarks/lab_hardware.py``. Daemons of the product are not started.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from nuage.lab.description import DEFAULT_DESCRIPTION
from nuage.lab.lab import Lab

IDLE_S = 20.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) / 1024


def _mbit_s(lab: Lab, source: str, target: str) -> float:
    server = subprocess.Popen(
        lab.command(target, ["iperf3", "-s", "-1"]), stdout=subprocess.DEVNULL
    )
    time.sleep(0.5)
    outcome = subprocess.run(
        lab.command(source, ["iperf3", "-c", lab.address(target), "-t", "3", "-J"]),
        capture_output=True, check=True,
    )  # fmt: skip
    server.wait(timeout=10)
    document = msgspec.json.decode(outcome.stdout)
    return float(document["end"]["sum_received"]["bits_per_second"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    times: dict[str, list[float]] = {"hardware up": [], "all nodes on": [], "down": []}
    with tempfile.TemporaryDirectory(prefix="nlb") as where:
        for index in range(rounds):
            lab = Lab.open(DEFAULT_DESCRIPTION, Path(where) / "s", name=f"bench{os.getpid()}")
            try:
                for what, act in (
                    ("hardware up", lab.create_hardware),
                    ("all nodes on", lab.power_on_all),
                ):
                    began_s = time.monotonic()
                    act()
                    times[what].append(time.monotonic() - began_s)
                if index == 0:
                    pid = lab.status().hardware_pid
                    before_s = _cpu_s(pid)
                    time.sleep(IDLE_S)
                    share = (_cpu_s(pid) - before_s) / IDLE_S
                    print(f"hardware idle: {share:.2%} of a core, {_resident_mib(pid):.0f} MiB")
                    print(
                        f"inside a site: {_mbit_s(lab, 'marne-v1', 'marne-v2'):.0f} Mbit/s of 1000"
                    )
                    print(f"between sites: {_mbit_s(lab, 'marne-v1', 'lyon-v1'):.0f} Mbit/s of 200")
            finally:
                began_s = time.monotonic()
                lab.destroy()
                times["down"].append(time.monotonic() - began_s)
    nodes = len(Lab.open(DEFAULT_DESCRIPTION).description.nodes())
    print(f"{nodes} nodes, {os.cpu_count()} cores, {rounds} rounds, medians:")
    for what, seconds in times.items():
        print(f"  {what:14} {statistics.median(seconds):6.2f} s")


if __name__ == "__main__":
    main()
