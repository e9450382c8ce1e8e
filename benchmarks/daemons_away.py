"""Frames lost while the fabric's daemons are away for a minute, and when they come back.

    python benchmarks/daemons_away.py [--seconds 60]

Two guests behind two V-nodes, an edge between them, each node a process in a namespace of its own
with cables and XDP (as `tests/system/bpf/test_bpf_cabled_edge.py` makes them). A guest pings the
other a hundred times a second while daemons are killed: first the edge's alone, whose neighbours
live and see it silent; then all three. Told for each: lost of sent, while away and for ten seconds
from their start on; whether nicknames stay; and what the neighbours logged. Needs root.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.system.bpf.bpf_netns import Namespaces, run
from tests.system.bpf.node_process import until
from tests.system.bpf.test_bpf_cabled_edge import Site

from nuage.model.fabric import FabricReport

AFTER_S = 10.0


class Ping:
    """A ping from the first guest to the second that goes on meanwhile."""

    def __init__(self, site: Site) -> None:
        words = ("ip", "netns", "exec", f"{site.net.prefix}g1", "ping", "-n", "-q", "-i", "0.01")
        self._running = subprocess.Popen((*words, "10.0.0.2"), stdout=subprocess.PIPE, text=True)

    def lost(self) -> str:
        """End it; return how many of how many were lost."""
        self._running.send_signal(signal.SIGINT)
        told, _ = self._running.communicate()
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", told)
        assert counted is not None, told
        sent, received = int(counted.group(1)), int(counted.group(2))
        return f"{sent - received} of {sent} lost"


def reports(site: Site) -> dict[str, FabricReport]:
    """Return how every node sees the fabric."""
    return {name: node.report() for name, node in site.nodes.items()}


def away(site: Site, names: tuple[str, ...], seconds: float) -> None:
    """Kill daemons for so long; say what that cost."""
    before = reports(site)
    heard = {name: len(report.news) for name, report in before.items()}
    for name in names:
        site.nodes[name].kill()
    ping = Ping(site)
    time.sleep(seconds)
    while_away = ping.lost()
    ping = Ping(site)
    for name in names:
        site.nodes[name].start()
    time.sleep(AFTER_S)
    back = ping.lost()
    until(site.is_whole, "all trunks carry")
    after = reports(site)
    kept = all(after[name].nickname == before[name].nickname for name in names)
    print(f"{', '.join(names)} away for {seconds:.0f} s: {while_away}; coming back: {back}; "
          f"nicknames {'kept' if kept else 'CHANGED'}")  # fmt: skip
    for name in site.nodes.keys() - set(names):
        print(f"  {name} noted: {'; '.join(after[name].news[heard[name] :]) or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "bpf"
        pins.mkdir()
        run("mount", "-t", "bpf", "bpf", str(pins))
        site = Site(Namespaces("nqaway"))
        try:
            site.build(pins, Path(folder))
            until(site.is_whole, "all trunks carry")
            until(lambda: site.ping(1), "the guests meet")
            away(site, ("e1",), options.seconds)
            away(site, ("v1",), options.seconds)
            away(site, ("v1", "e1", "v2"), options.seconds)
        finally:
            for node in site.nodes.values():
                node.kill()
            site.net.remove()
            run("umount", "-l", str(pins))


if __name__ == "__main__":
    main()
