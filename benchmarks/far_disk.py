"""What iSCSI to another site costs over TLS: the relay beside a plain connection, in turns.

Two namespaces joined by a veth pair, a V-node in one, a storage daemon in the other; qemu-img's requests of 4 KiB
and 1 MiB. For each row: requests a second, and CPU seconds (user and system) for 1,000 requests of daemon and relay
together, medians over the rounds. On a busy machine only the second says much.

Needs root, nuage-storaged and nuage-relay beside this Python; Debian: qemu-utils, qemu-block-extra, nftables.

Usage: python benchmarks/far_disk.py [--rounds N]
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.system.storage_front.far_site import VNODE, two_sites
from tests.system.storage_front.storage_front_daemon import IQN
from tests.system.storage_front.test_storage_front_far import HOST, PORTAL, RELAY, URL, Sites

STORAGED = RELAY.with_name("nuage-storaged")
ROWS = {
    "4 KiB writes, depth 1": ("-w", "-s", "4096", "-d", "1", "-c", "3000"),
    "4 KiB writes, depth 16": ("-w", "-s", "4096", "-d", "16", "-c", "10000"),
    "4 KiB reads, depth 16": ("-s", "4096", "-d", "16", "-c", "10000"),
    "1 MiB writes, depth 4": ("-w", "-s", "1048576", "-d", "4", "-c", "200"),
    "1 MiB reads, depth 4": ("-s", "1048576", "-d", "4", "-c", "200"),
}
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def relay_pid() -> int:
    """Return the pid of the relay that was begun last, 0 before there is one."""
    told = subprocess.run(
        ["pgrep", "-n", "-x", "nuage-relay"], capture_output=True, text=True, check=False
    )
    return int(told.stdout or 0)


async def measure(sites: Sites, words: tuple[str, ...], pids: list[int]) -> tuple[float, float]:
    """Return requests a second, and CPU seconds for 1,000 of them."""
    count = int(words[words.index("-c") + 1])
    before = sum(cpu_seconds(pid) for pid in pids)
    done = sites.line.on_vnode("qemu-img", "bench", "-f", "raw", "-t", "none", *words, URL)
    taken = re.search(r"([0-9.]+) seconds", done.stdout)
    if taken is None:
        raise SystemExit(done.stdout + done.stderr)
    spent = sum(cpu_seconds(pid) for pid in pids) - before
    return count / float(taken[1]), 1000 * spent / count


async def run(rounds: int) -> None:
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    costs: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as work, two_sites() as line:
        Path(work).chmod(0o755)
        sites = Sites(line, Path(work), STORAGED)
        try:
            assert sites.daemon.process is not None
            daemon = sites.daemon.process.pid
            for number in range(rounds):
                for way in ("clear", "TLS") if number % 2 else ("TLS", "clear"):
                    if way == "TLS":
                        sites.clear_from.write_text(f"{HOST}/24\n")
                        sites.acts("read 0 4k")  # its rules stay
                        pids = [daemon, relay_pid()]
                    else:
                        line.on_vnode("nft", "delete", "table", "ip", "nuage_disks")
                        sites.clear_from.write_text(f"{VNODE}\n")
                        pids = [daemon]
                    for row, words in ROWS.items():
                        rate, cost = await measure(sites, words, pids)
                        rates[row, way].append(rate)
                        costs[row, way].append(cost)
        finally:
            sites.release()
    print(
        f"{'':24} {'clear':>9} {'TLS':>9} {'ratio':>6}   {'CPU clear':>9} {'CPU TLS':>9}  (s for 1,000)"
    )
    for row in ROWS:
        clear, tls = (statistics.median(rates[row, way]) for way in ("clear", "TLS"))
        cheap, dear = (statistics.median(costs[row, way]) for way in ("clear", "TLS"))
        print(f"{row:24} {clear:9.0f} {tls:9.0f} {tls / clear:6.2f}   {cheap:9.3f} {dear:9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(run(parser.parse_args().rounds))


if __name__ == "__main__":
    assert PORTAL in URL
    assert IQN in URL
    main()
