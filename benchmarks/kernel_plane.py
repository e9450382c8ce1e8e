"""How fast the kernel plane takes table entries, and how fast it begins from what is pinned.

python benchmarks/kernel_plane.py [--entries 50000] [--rounds 5]
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

from nuage.network.forwarding import (
    Entry,
    FibEntry,
    ForwardingDelta,
    Label,
    MacEntry,
    NextHop,
    Nickname,
    PortNumber,
    RpfEntry,
)
from nuage.network.kernel_plane import KernelPlane


def stations(count: int, nickname: int) -> tuple[Entry, ...]:
    """Return directory entries of many stations at one RBridge."""
    return tuple(
        MacEntry(Label(1 + n % 1000), b"\x06\0" + n.to_bytes(4, "big"), Nickname(nickname))
        for n in range(count)
    )


def fabric(count: int, dmac: bytes) -> tuple[Entry, ...]:
    """Return what a fabric of many RBridges needs: a path and an RPF entry for each."""
    hop = NextHop(PortNumber(1), dmac, bytes(6))
    paths = [FibEntry(Nickname(n), (hop,)) for n in range(1, count)]
    checks = [RpfEntry(Nickname(1), Nickname(n), PortNumber(1)) for n in range(1, count)]
    return (*paths, *checks)


def rate_per_s(plane: KernelPlane, entries: tuple[Entry, ...]) -> float:
    """Return how many entries a second one delta sets."""
    started_s = time.process_time()
    plane.apply(ForwardingDelta(entries))
    return len(entries) / (time.process_time() - started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as pins:
        subprocess.run(["mount", "-t", "bpf", "bpf", pins], check=True)
        try:
            plane = KernelPlane(Path(pins))
            macs, paths, loads = [], [], []
            for n in range(options.rounds):
                macs.append(rate_per_s(plane, stations(options.entries, 2 + n)))
                paths.append(rate_per_s(plane, fabric(options.entries // 2, bytes((n,) * 6))))
                started_s = time.process_time()
                held = len(KernelPlane(Path(pins)).entries())
                loads.append(time.process_time() - started_s)
            print(f"directory entries set   {median(macs):>12,.0f} a CPU second")
            print(f"paths and RPF set       {median(paths):>12,.0f} a CPU second")
            print(f"load and take up {held:,} entries {median(loads) * 1000:>8,.0f} ms of CPU")
        finally:
            subprocess.run(["umount", "-l", pins], check=True)


if __name__ == "__main__":
    main()
