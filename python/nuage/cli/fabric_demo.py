"""The fabric's part of the demo: two machines in two datacenters, a cut, a move; all measured.

Each figure comes from a ping inside a guest, read from its console: what a user would see. The
longest gap is the longest run of answers that did not come, times the ping's interval.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nuage.api.client import Client
from nuage.cli.address_demo import OutsidePing, give_address
from nuage.cli.showing import inner, row_of, rows_of
from nuage.cli.tenant import CONSOLE_WAIT_S, Tenant
from nuage.errors import TimedOut
from nuage.lab.lab import Lab

Tell = Callable[[str], None]
Figure = Callable[[str, str], None]

INTERVAL_S: Final = 0.02
CUT_AFTER_S: Final = 2.0
WATCH_CUT_S: Final = 5.0
LOG: Final = "/data/ping"
GAPS: Final = (
    'awk \'/seq=/{split($5,s,"="); n=s[2]+0; if(n>l+1) print "gap",l,n; l=n}'
    ' /transmitted/{t=$1} END{print "last",l; print "sent",t}\' ' + LOG
)


@dataclass(frozen=True, slots=True)
class FabricDemo:
    """What the steps share."""

    tenant: Tenant
    lab: Lab
    image: str
    say: Tell
    note: Tell
    figure: Figure


def fabric_demo(
    user: Client,
    lab: Lab,
    *,
    admin: Client,
    iaas: str,
    say: Tell,
    note: Tell,
    figure: Figure,
    image: str = "guest",
) -> None:
    """Show the fabric to somebody: `lab` is up, `image` is imported.

    `user` administers `iaas`; `admin` the federation: it defines public addresses.
    """
    demo = FabricDemo(Tenant(user, iaas), lab, image, say, note, figure)
    sites = [site.id for site in lab.description.sites]
    address = _meet(demo, sites)
    _cut(demo, sites[0], address)
    outside = _go_public(demo, admin, sites[0])
    _move(demo, sites, address, outside)


def _meet(demo: FabricDemo, sites: list[str]) -> str:
    demo.say("Two machines in two datacenters share one layer-2 segment (TRILL)")
    tenant = demo.tenant
    for name, site in (("net1", sites[0]), ("net2", sites[1])):
        tenant.create(name, image=demo.image, site=site)
    for name in ("net1", "net2"):
        tenant.until_booted(name)
    address = tenant.address("net2")
    told = demo.tenant.type("net1", f"ping -c 20 -i {INTERVAL_S} {address} | tail -2")
    answered = re.search(r"(\d+) packets received", told)
    times = re.search(r"= ([\d.]+)/([\d.]+)/", told)
    where = f"{demo.tenant.vm('net1')['node_id']} → {demo.tenant.vm('net2')['node_id']}"
    demo.note(f"{where}: {answered.group(1) if answered else 'none'} of 20 answers")
    if times is not None:
        demo.figure("round trip between two datacenters", f"{times.group(1)} ms at best")
    _tell_path(demo)
    return address


def _tell_path(demo: FabricDemo) -> None:
    shown = row_of(
        demo.tenant.user.get(
            f"/v1/iaas/{demo.tenant.iaas}/path", source="net1", destination="net2", traced="true"
        )
    )
    answer = inner(shown, "answer")
    steps = " → ".join(str(step["node_id"]) for step in rows_of(answer["steps"]))
    demo.note(f"probes went {steps}; why: {answer['reason']}")


def _cut(demo: FabricDemo, site: str, address: str) -> None:
    demo.say(f"A provider's line at {site} swallows everything, silently")
    for provider in demo.lab.description.providers:
        _start_ping(demo, address)
        time.sleep(CUT_AFTER_S)  # noqa: TID251 - a person watches
        demo.lab.cut(site, provider=provider)
        time.sleep(WATCH_CUT_S)  # noqa: TID251 - a person watches
        longest_ms = _stop_ping(demo)
        demo.lab.heal(site)
        if longest_ms > INTERVAL_S * 1000:
            demo.figure("traffic flows again after a silent cut", f"{longest_ms:.0f} ms")
            return
        demo.note(f"{provider} was not what carried it: no answer was lost")
    demo.note("no cut was felt: the flow had another way each time")


def _go_public(demo: FabricDemo, admin: Client, site: str) -> OutsidePing:
    demo.say("net2 gets a public address, which a host on the internet reaches (LISP)")
    address = give_address(demo.tenant, demo.lab, admin, vm="net2", site=site)
    demo.tenant.type("net2", f"ip addr add {address}/32 dev eth0")
    outside = OutsidePing(demo.lab, address)
    demo.note(f"{address} answers from outside after {outside.wait():.1f} s")
    return outside


def _move(demo: FabricDemo, sites: list[str], address: str, outside: OutsidePing) -> None:
    start = str(demo.tenant.vm("net2")["site_id"])
    target = next(site for site in reversed(sites) if site != start)
    demo.say(f"net2 moves from {start} to {target} while net1 and the outside talk to it")
    _start_ping(demo, address)
    outside.start()
    time.sleep(CUT_AFTER_S)  # noqa: TID251 - a person watches
    demo.tenant.move("net2", target)
    time.sleep(WATCH_CUT_S)  # noqa: TID251 - a person watches
    longest_ms = _stop_ping(demo)
    demo.figure("longest gap of a ping through a live migration", f"{longest_ms:.0f} ms")
    outside_ms = outside.stop()
    demo.figure("longest gap of its public address, from outside", f"{outside_ms:.0f} ms")
    told = float(str(demo.tenant.vm("net2")["downtime_ms"]))
    if told:
        demo.note(f"of which the guest stood still for {told:.0f} ms, by QEMU's own count")
    if not demo.tenant.answers("net1", address):
        demo.note("net2 has not survived its move: QEMU's emulator loses writes now and then")
        demo.note("(docs/design/vnode.md, KVM or TCG); it is started anew")
        demo.tenant.start_anew("net2")


# The guest's console ----------------------------------------------------------------------------


def _start_ping(demo: FabricDemo, address: str) -> None:
    demo.tenant.type("net1", f"(ping -i {INTERVAL_S} {address} >{LOG} 2>&1 &)")


def _stop_ping(demo: FabricDemo) -> float:
    """Stop the ping; return its longest gap in milliseconds."""
    told = demo.tenant.type("net1", f"killall -INT ping; sleep 1; {GAPS}")
    last = re.search(r"last (\d+)", told)
    if last is None or not int(last.group(1)):
        raise TimedOut("the ping in net1", after_s=CONSOLE_WAIT_S, hint="it had no answer at all")
    steps = [int(after) - int(before) for before, after in re.findall(r"gap (\d+) (\d+)", told)]
    sent = re.search(r"sent (\d+)", told)
    if sent is not None:  # a silence that did not end is the longest of all
        steps.append(int(sent.group(1)) - int(last.group(1)))
    return max(steps, default=1) * INTERVAL_S * 1000
