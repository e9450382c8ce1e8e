"""A heat event on real VMs: how fast placement knows, how the site drains, how a node wakes again.

On a lab that is up (`nuage lab up python/nuage/lab/watt.toml`), at the site with three V-nodes:

1. Three VMs are spread over all nodes; a rule says that above 25 °C a third of them serves.
2. 32 °C is posted. Timed: the answer; a bid that is asked for next must see the one node only.
3. The site drains by plan: live migrations, then the empty nodes go off through their BMCs.
4. The heat is over. A VM is placed on a node that sleeps: timed until it runs.
5. The VM goes. The node stays on for its break-even time, so that another may be emptied in
   its place; timed until two nodes are off again.

    python benchmarks/lab_heat.py --lab watt
"""

import argparse
import time

from lab_energy import SITE, Bench

from nuage.lab.lab import Lab

RULES = [
    {"name": "heat", "figure": "temperature_c", "above": 25.0, "share": 0.33, "hysteresis": 1.0,
     "urgent": True},
]  # fmt: skip


def event(bench: Bench, celsius: float | None) -> float:
    """Post a temperature; return how long the answer took."""
    begin_s = time.monotonic()
    body = {"figure": "temperature_c", "value": celsius, "for_s": 3600.0}
    bench.admin.call("POST", f"/v1/energy/{SITE}/events", body)
    return time.monotonic() - begin_s


def set_rules(bench: Bench, mode: str, rules: list[dict]) -> None:
    """Set the site's rules: savings looked for every 15 s, one node on, nodes back at once."""
    body = {"mode": mode, "nodes_kept_on": 1, "look_every_s": 15.0, "hold_s": 3600.0, "ramp_per_min": 60.0,
            "rules": rules}  # fmt: skip
    bench.admin.call("PUT", f"/v1/energy/{SITE}/rules", body)


def create(bench: Bench, name: str, **more: object) -> dict:
    """Create a VM at the site; return the decision."""
    body = {"name": name, "image": "guest", "site": SITE, "policy": "spread",
            "shape": {"vcpu_count": 1, "memory_mib": 128}, **more}  # fmt: skip
    return bench.user.call("POST", f"/v1/iaas/{bench.iaas}/vms", body)["decision"]


def two_off(bench: Bench) -> bool:
    """Tell whether all nodes but one sleep."""
    return sum(node["power"] == "off" for node in bench.nodes()) == 2


def main() -> None:
    """Run the story and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="watt")
    parser.add_argument("--iaas", default="shop")
    options = parser.parse_args()
    bench = Bench(Lab.existing(options.lab), options.iaas, 3)
    bench.prepare()
    bench.names.append("probe")
    event(bench, None)
    set_rules(bench, "manual", [])
    bench.delete()
    bench.wake_all()
    for name in bench.names[:3]:
        create(bench, name)
    bench.wait("VMs to run", lambda: all(v["state"] == "running" for v in bench.vms().values()))
    spread = sorted(v["node_id"] for v in bench.vms().values())
    print(f"before: VMs on {', '.join(spread)}")

    set_rules(bench, "automatic", RULES)
    answered_s = event(bench, 32.0)
    begin_s = time.monotonic()
    decision = create(bench, "probe")
    probed_s = time.monotonic() - begin_s
    ranked = [row["node_id"] for row in decision["ranked"]]
    refused = [r["node_id"] for r in decision["refusals"] if "heat" in r["reason"]]
    print(f"heat posted, answered in {answered_s * 1000:.0f} ms; the next VM ({probed_s:.2f} s later "
          f"placed) had candidates {ranked}, refused for heat: {refused}")  # fmt: skip
    bench.wait("the site to be drained", lambda: two_off(bench))
    drained_s = time.monotonic() - begin_s + answered_s
    states = {name: (vm["state"], vm["node_id"]) for name, vm in bench.vms().items()}
    print(f"drained and two nodes off after {drained_s:.1f} s: {states}")
    plan = bench.admin.get(f"/v1/energy/{SITE}/plan")
    for step in plan["steps"]:
        print(f"  {step['act']:8} {step['vm_name']:8} {step['from_node'] or '':9} → "
              f"{step['node_id']:9} {step['reason']:12} {step['joules']:6.0f} J  "
              f"{step['state']} {step['told']}")  # fmt: skip
    print(f"  the plan costs {plan['joules']:.0f} J, saves {plan['saved_watts']:.0f} W, "
          f"pays after {plan['pays_after_s']} s")  # fmt: skip

    set_rules(bench, "automatic", [])
    event(bench, None)
    asleep = next(n["node_id"] for n in bench.nodes() if n["power"] == "off")
    bench.user.call("DELETE", f"/v1/iaas/{bench.iaas}/vms/probe")
    bench.wait("the probe to go", lambda: "probe" not in bench.vms())
    begin_s = time.monotonic()
    create(bench, "probe", node=asleep)
    bench.wait("the node to wake", lambda: bench.vms()["probe"]["state"] == "running")
    woke_s = time.monotonic() - begin_s
    print(f"a VM placed on {asleep}, which slept: running after {woke_s:.1f} s")
    bench.user.call("DELETE", f"/v1/iaas/{bench.iaas}/vms/probe")
    begin_s = time.monotonic()
    bench.wait("two nodes to sleep", lambda: two_off(bench))
    on = [n["node_id"] for n in bench.nodes() if n["power"] == "on"]
    print(f"its VM deleted: two nodes off again after {time.monotonic() - begin_s:.0f} s, on: {on}")
    bench.delete()
    set_rules(bench, "manual", [])


if __name__ == "__main__":
    main()
