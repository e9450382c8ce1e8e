"""From an API request to the accepted creation of a VM, in the default lab, idle otherwise.

One client with one keep-alive connection creates VMs one at a time through the API of a running lab
(`nuage lab up`), each from an image of one empty MiB; each is deleted again before the next. What is
timed is the request alone: bids of every site, ranking, commitment at the elected site and the
record of the decision, all durable. Needs root and a lab; run
``python benchmarks/api_latency.py --lab france``.
"""

import argparse
import asyncio
import os
import time

import machine
import msgspec
import uvloop
from bare_federation import QUOTA
from keep_alive import Connection

from nuage.lab.assembly import AdminSecret, admin_of, api_socket
from nuage.lab.lab import Lab

IAAS = "latency"
PAUSE_S = 0.15


async def connect(lab: Lab, site: str, name: str, secret: str) -> Connection:
    connection = Connection(f"unix:{api_socket(lab, site)}")
    await connection.open()
    await connection.log_in(name, secret)
    return connection


async def prepare(lab: Lab, site: str, admin: AdminSecret) -> Connection:
    """Build an IaaS with an image; return its user's connection."""
    connection = await connect(lab, site, admin.name, admin.secret)
    body: dict[str, object] = {"name": IAAS, "contract": {"quota": QUOTA}, "cidr": "10.0.0.0/8"}
    await connection.ask("POST", "/v1/iaas", body)
    secret = os.urandom(16).hex()
    user = {"name": IAAS, "secret": secret, "grants": [f"iaas-admin@{IAAS}"]}
    made = await connection.ask("POST", "/v1/users", user)
    if made.status >= 300:
        await connection.ask("PATCH", f"/v1/users/{IAAS}", {"secret": secret})
    await connection.close()
    tenant = await connect(lab, site, IAAS, secret)
    image = await tenant.ask("POST", "/v1/images", {"name": "empty", "iaas": IAAS})
    if image.status < 300:
        result = msgspec.convert(image.document["result"], dict[str, object])
        await tenant.send("PUT", f"/v1/images/{result['id']}/data", bytes(1024 * 1024))
    return tenant


async def run(lab: Lab, arguments: argparse.Namespace) -> None:
    if arguments.first:
        machine.go_first(os.getpid())
        for pid in machine.pids_of_lab(lab.description.name):
            machine.go_first(pid)
    site = lab.description.sites[0].id
    connection = await prepare(lab, site, admin_of(lab))
    latencies = []
    refusals: dict[str, int] = {}
    shape = {"vcpu_count": 1, "memory_mib": 64}
    for number in range(arguments.count + 3):
        name = f"vm{number}-{time.monotonic_ns()}"
        begun_s = time.monotonic()
        body = {"name": name, "image": "empty", "shape": shape}
        answer = await connection.ask("POST", f"/v1/iaas/{IAAS}/vms", body)
        took_s = time.monotonic() - begun_s
        if answer.status >= 300:
            told = str(answer.document.get("error"))[:160]
            refusals[told] = refusals.get(told, 0) + 1
        elif number >= 3:  # the first ones warm the caches
            latencies.append(took_s)
        await connection.ask("DELETE", f"/v1/iaas/{IAAS}/vms/{name}")
        await asyncio.sleep(PAUSE_S)
    await connection.close()
    if latencies:
        shown = " ".join(
            f"{label} {machine.percentile(latencies, share) * 1000:.1f} ms"
            for label, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        )
        print(f"API request to accepted VM: {shown} ({len(latencies)} VMs)")
    for told, times in refusals.items():
        print(f"  refused {times} times: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", default="france", help="the name of a running lab")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument(
        "--first", action="store_true", help="run before what else the machine does (root)"
    )
    arguments = parser.parse_args()
    print(machine.describe())
    uvloop.run(run(Lab.existing(arguments.lab), arguments))


if __name__ == "__main__":
    main()
