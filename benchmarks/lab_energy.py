"""The same VMs under `spread` with all nodes on, and under `green` with power-off: joules of the PDU.

At the site with three V-nodes of `lab/watt.toml`. A lab of that name that is up is used, else one
is brought up and taken down again, whatever happens; the guest's image, the IaaS and the user are
made where they are missing. Each run creates the VMs, lets them settle, then reads the energy
counter of the site's PDU at the beginning and the end of the window, and its watts in between.
With windows of ten minutes all of it takes 22 to 24 minutes, and never more than 25. Needs root.

    python benchmarks/lab_energy.py --minutes 10 --plot docs/guide/energy-lab.svg
"""

import argparse
import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nuage.api.client import Client
from nuage.clock import SystemClock
from nuage.daemon.hardware import connect
from nuage.errors import NuageError
from nuage.facility.ports import PduState
from nuage.facility.redfish_pdu import RedfishPdu
from nuage.lab import kernel
from nuage.lab.assembly import admin_of, api_socket
from nuage.lab.lab import Lab
from nuage.units import JOULES_PER_KWH

SITE = "marne"
USER = "bench"
ROOT = Path(__file__).parents[1]
WATT = ROOT / "python" / "nuage" / "lab" / "watt.toml"
BUILD_GUEST = ROOT / "tools" / "guest" / "build.py"
SAMPLE_S = 5.0
WAIT_S = 300.0
SECONDS_MAX = 25 * 60  # of all of it; the lab is taken down even then
READ_TRIES = 6


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
            guest = Path(_output([sys.executable, str(BUILD_GUEST)]).splitlines()[-1])
            announced = self.admin.call("POST", "/v1/images", {"name": "guest"})
            path = f"/v1/images/{announced['id']}/data"
            self.admin.upload(path, guest, lambda _sent: None)

    def vms(self) -> dict[str, dict]:
        """Return the VMs of the run by name."""
        rows = self.user.get(f"/v1/iaas/{self.iaas}/vms")
        return {r["value"]["name"]: r["value"] for r in rows if r["value"]["name"] in self.names}

    def wait(self, what: str, is_done: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(NuageError):  # an answer that is late is asked for again
                if is_done():
                    return
            time.sleep(1.0)
        raise SystemExit(f"waited {WAIT_S:.0f} s for {what}")

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
        first = await _state(pdu)
        begin_s = time.monotonic()
        samples = [(0.0, first.reading.power_watts)]
        while time.monotonic() - begin_s < seconds:
            await asyncio.sleep(SAMPLE_S)
            with contextlib.suppress(NuageError):  # one point of the plot fewer
                state = await pdu.state()
                samples.append((time.monotonic() - begin_s, state.reading.power_watts))
        last = await _state(pdu)
        elapsed_s = time.monotonic() - begin_s
    assert first.energy_kwh is not None
    assert last.energy_kwh is not None
    return (last.energy_kwh - first.energy_kwh) * JOULES_PER_KWH, elapsed_s, samples


async def _state(pdu: RedfishPdu) -> PduState:
    """Read the PDU; a busy machine's silence is outwaited."""
    for _ in range(READ_TRIES):
        with contextlib.suppress(NuageError):
            return await pdu.state()
        await asyncio.sleep(1.0)
    return await pdu.state()


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
    for caught in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(caught, _end)
    signal.alarm(SECONDS_MAX)
    with lab_up(options.lab):
        bench = Bench(Lab.existing(options.lab), options.iaas, options.vms)
        bench.prepare()
        runs = [run(bench, "spread", automatic=False, minutes=options.minutes)]
        _say(f"spread: {runs[0].watts:.1f} W")
        runs.append(run(bench, "green", automatic=True, minutes=options.minutes))
        show(runs)
        if options.plot is not None:
            plot(runs, options.plot)
        with contextlib.suppress(NuageError, SystemExit):  # the figures stand
            bench.delete()
            bench.set_rules("manual", 1)


def show(runs: list[Run]) -> None:
    """Print the table as the guide has it, and the figures for programs."""
    told = {"spread": "`spread`, all nodes on", "green": "`green`, automatic power-off"}
    print("| policy | V-nodes on | seconds | joules | mean W |\n|---|---:|---:|---:|---:|")
    for one in runs:
        print(f"| {told[one.policy]} | {one.nodes_on} | {one.seconds:.0f} | {one.joules:,.0f} "
              f"| {one.watts:.1f} |")  # fmt: skip
    print(f"\n`green` with power-off: {(1 - runs[1].watts / runs[0].watts):.1%} less energy")
    print(
        json.dumps([{"policy": r.policy, "joules": r.joules, "seconds": r.seconds} for r in runs])
    )


@contextlib.contextmanager
def lab_up(name: str) -> Iterator[None]:
    """Have the lab up: the one that is, else one for as long as this lasts."""
    if name in Lab.names():
        yield
        return
    command = [sys.executable, "-m", "nuage.cli.main", "lab"]
    _say("bringing the lab up")
    try:
        _output([*command, "up", str(WATT), "--name", name])
        yield
    finally:
        signal.alarm(0)
        _say("taking the lab down")
        _output([*command, "down", "--name", name])


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
