"""The same VMs under `spread` with all nodes on, and under `green` with power-off: joules of the PDU.

Runs on a lab that is up (`nuage lab up python/nuage/lab/watt.toml`), at the site with three
V-nodes; makes the IaaS, the user and the guest's image it needs. Each run creates the VMs, lets
them settle, then reads the energy counter of the site's PDU at the beginning and the end of the
window, and its watts in between.

    python benchmarks/lab_energy.py --lab watt --minutes 10 --plot docs/guide/energy-lab.svg
"""

import argparse
import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nuage.api.client import Client
from nuage.clock import SystemClock
from nuage.daemon.hardware import connect
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.lab.assembly import admin_of, api_socket
from nuage.lab.lab import Lab
from nuage.units import JOULES_PER_KWH

SITE = "marne"
USER = "bench"
GUEST = Path(__file__).parents[1] / ".build" / "guest" / "guest.raw"
SAMPLE_S = 5.0
WAIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's window."""

    policy: str
    joules: float
    seconds: float
    samples: tuple[tuple[float, float], ...]
    nodes_on: int

    @property
    def watts(self) -> float:
        """Mean watts at the PDU's mains."""
        return self.joules / self.seconds


class Bench:
    """A lab's clients and PDU."""

    def __init__(self, lab: Lab, iaas: str, vm_count: int) -> None:
        self.lab = lab
        self.iaas = iaas
        self.names = [f"bench{number}" for number in range(1, vm_count + 1)]
        admin = admin_of(lab)
        self.admin = Client(f"unix:{api_socket(lab, SITE)}")
        self.admin.log_in(admin.name, admin.secret)
        self.user = Client(f"unix:{api_socket(lab, SITE)}")

    def prepare(self) -> None:
        """Make the IaaS, its user and the image, where they are missing, and enter the user."""
        rows = self.admin.get("/v1/iaas")
        if self.iaas not in {row["value"]["name"] for row in rows}:
            contract = {"data_countries": ["FR"], "copies": 1, "copy_sites": 1}
            body = {"name": self.iaas, "owner": "bench", "contract": contract}
            self.admin.call("POST", "/v1/iaas", body)
        secret = secrets.token_urlsafe(18)
        if USER in {row["name"] for row in self.admin.get("/v1/users")}:
            self.admin.call("PATCH", f"/v1/users/{USER}", {"secret": secret})
        else:
            body = {"name": USER, "secret": secret, "grants": [f"iaas-admin@{self.iaas}"]}
            self.admin.call("POST", "/v1/users", body)
        self.user.log_in(USER, secret)
        images = [row["value"] for row in self.admin.get("/v1/images")]
        if not any(i["name"] == "guest" and i["state"] == "ready" for i in images):
            if not GUEST.exists():
                raise SystemExit("build the guest first: python tools/guest/build.py")
            announced = self.admin.call("POST", "/v1/images", {"name": "guest"})
            path = f"/v1/images/{announced['id']}/data"
            self.admin.upload(path, GUEST, lambda _sent: None)

    def vms(self) -> dict[str, dict]:
        """Return the VMs of the run by name."""
        rows = self.user.get(f"/v1/iaas/{self.iaas}/vms")
        return {r["value"]["name"]: r["value"] for r in rows if r["value"]["name"] in self.names}

    def wait(self, what: str, is_done: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline_s = time.monotonic() + WAIT_S
        while not is_done():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"waited {WAIT_S:.0f} s for {what}")
            time.sleep(1.0)

    def set_rules(self, mode: str, keep_on: int) -> None:
        """Set the site's mode."""
        body = {"mode": mode, "nodes_kept_on": keep_on, "look_every_s": 15.0, "hold_s": 3600.0,
                "ramp_per_min": 60.0}  # fmt: skip
        self.admin.call("PUT", f"/v1/energy/{SITE}/rules", body)

    def nodes(self) -> list[dict]:
        """Return the site's V-nodes with their power."""
        rows = {r["value"]["site_id"]: r["value"] for r in self.admin.get("/v1/energy")}
        return [n for n in rows[SITE]["nodes"] if "-v" in n["node_id"]]

    def create(self, policy: str) -> None:
        """Create the VMs under a policy, and wait until they run."""
        for name in self.names:
            body = {
                "name": name, "image": "guest", "policy": policy, "site": SITE,
                "shape": {"vcpu_count": 1, "memory_mib": 128},
            }  # fmt: skip
            self.user.call("POST", f"/v1/iaas/{self.iaas}/vms", body)
        self.wait("VMs to run", lambda: all(v["state"] == "running" for v in self.vms().values()))

    def delete(self) -> None:
        """Delete the VMs."""
        for name in self.vms():
            self.user.call("DELETE", f"/v1/iaas/{self.iaas}/vms/{name}")
        self.wait("VMs to go", lambda: not self.vms())

    def wake_all(self) -> None:
        """Have every V-node on: a VM that is placed on one that sleeps wakes it."""
        for node in self.nodes():
            if node["power"] == "off":
                body = {"name": self.names[0], "image": "guest", "node": node["node_id"],
                        "shape": {"vcpu_count": 1, "memory_mib": 128}}  # fmt: skip
                self.user.call("POST", f"/v1/iaas/{self.iaas}/vms", body)
                self.wait("a node to wake", lambda: all(
                    v["state"] == "running" for v in self.vms().values()))  # fmt: skip
                self.delete()
        self.wait("all nodes on", lambda: all(n["power"] == "on" for n in self.nodes()))


async def measure(url: str, login_file: Path, seconds: float) -> tuple[float, float, list]:
    """Return joules, seconds and (time, watts) of the PDU over a window."""
    clock = SystemClock()
    async with connect(url, login_file, clock) as connection:
        pdu = RedfishPdu(connection, clock)
        first = await pdu.state()
        begin_s = time.monotonic()
        samples = [(0.0, first.reading.power_watts)]
        while time.monotonic() - begin_s < seconds:
            await asyncio.sleep(SAMPLE_S)
            state = await pdu.state()
            samples.append((time.monotonic() - begin_s, state.reading.power_watts))
        last = await pdu.state()
        elapsed_s = time.monotonic() - begin_s
    assert first.energy_kwh is not None
    assert last.energy_kwh is not None
    return (last.energy_kwh - first.energy_kwh) * JOULES_PER_KWH, elapsed_s, samples


def run(bench: Bench, policy: str, *, automatic: bool, minutes: float) -> Run:
    """Run one policy: all nodes on at the start, the VMs placed, then the window."""
    bench.set_rules("manual", 9)
    bench.delete()
    bench.wake_all()
    bench.create(policy)
    if automatic:
        bench.set_rules("automatic", 1)
        bench.wait("nodes to sleep", lambda: any(n["power"] == "off" for n in bench.nodes()))
        time.sleep(20.0)
    pdu = next(p for p in bench.lab.description.pdus() if p.site == SITE)
    login_file = bench.lab.state.path / "bmc-login.json"
    namespace = bench.lab.namespace(f"{SITE}-c1")
    from nuage.lab import kernel

    url = bench.lab.pdu_url(pdu.name)
    joules, seconds, samples = kernel.inside(
        namespace, lambda: asyncio.run(measure(url, login_file, minutes * 60.0))
    )
    on = sum(node["power"] == "on" for node in bench.nodes())
    running = [v["state"] for v in bench.vms().values()]
    assert running.count("running") == len(bench.names), running
    return Run(policy, joules, seconds, tuple(samples), on)


def plot(runs: list[Run], path: Path) -> None:
    """Draw the watts of both windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for one in runs:
        label = f"{one.policy}: {one.watts:.0f} W, {one.nodes_on} V-nodes on"
        axes.plot([t for t, _ in one.samples], [w for _, w in one.samples], label=label)
    axes.set_xlabel("seconds")
    axes.set_ylabel("W at the rack's PDU")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Run both policies and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="watt")
    parser.add_argument("--iaas", default="shop")
    parser.add_argument("--vms", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    bench = Bench(Lab.existing(options.lab), options.iaas, options.vms)
    bench.prepare()
    runs = [
        run(bench, "spread", automatic=False, minutes=options.minutes),
        run(bench, "green", automatic=True, minutes=options.minutes),
    ]
    print(f"{'policy':<8} {'V-nodes on':>10} {'seconds':>8} {'joules':>9} {'mean W':>7}")
    for one in runs:
        print(f"{one.policy:<8} {one.nodes_on:>10} {one.seconds:>8.0f} {one.joules:>9.0f} "
              f"{one.watts:>7.1f}")  # fmt: skip
    print(f"green with power-off: {(1 - runs[1].watts / runs[0].watts):.1%} less energy")
    print(
        json.dumps([{"policy": r.policy, "joules": r.joules, "seconds": r.seconds} for r in runs])
    )
    if options.plot is not None:
        plot(runs, options.plot)
    bench.delete()
    bench.set_rules("manual", 1)


if __name__ == "__main__":
    main()
