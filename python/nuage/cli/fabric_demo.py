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
from nuage.lab.assembly import api_socket
from nuage.lab.lab import Lab
from nuage.model.infrastructure import NodeRole

Tell = Callable[[str], None]
Figure = Callable[[str, str], None]

INTERVAL_S: Final = 0.02
FLOWING: Final = 25  # answers in a row of those who tell that traffic flows: half a second
TRUNKS_WAIT_S: Final = 60.0
POLL_S: Final = 0.1
LOG: Final = "/tmp/ping"  # in the guest's memory: its disk may be waiting for an IO-node
HEARD: Final = f"$(grep -c seq= {LOG})"
# Bounded, should answers never come: the guest that is asked dies of a move, say.
WAIT_FOR_MORE: Final = (
    f"n={HEARD}; i=0; until [ {HEARD} -ge $((n+{FLOWING})) ] || [ $i -ge 80 ];"
    " do sleep 0.1; i=$((i+1)); done"
)
GAPS: Final = (
    'awk \'/seq=/{split($5,s,"="); n=s[2]+0; if(n>l+1) print "gap",l,n; l=n}'
    ' /transmitted/{t=$1} END{print "last",l; print "sent",t}\' ' + LOG
)


@dataclass(frozen=True, slots=True)
class FabricDemo:
    """What the steps share. `near` and `near_admin` ask the asker's own site, which is cut."""

    tenant: Tenant
    admin: Client
    near: Tenant
    near_admin: Client
    lab: Lab
    asker: str
    mover: str
    say: Tell
    note: Tell
    figure: Figure


def fabric_demo(
    user: Client,
    lab: Lab,
    *,
    admin: Client,
    iaas: str,
    asker: str,
    mover: str,
    say: Tell,
    note: Tell,
    figure: Figure,
    before_move: Callable[[], None] = lambda: None,
) -> None:
    """Show the fabric to somebody: `lab` is up, `asker` and `mover` run in two sites of it.

    `user` administers `iaas`; `admin` the federation: it defines public addresses. `before_move`
    waits for what the move needs, as the mover's disk whole again.
    """
    tenant = Tenant(user, iaas)
    site = str(tenant.vm(asker)["site_id"])
    door = f"unix:{api_socket(lab, site)}"
    near = Tenant(Client(door, token=user.token), iaas)
    near_admin = Client(door, token=admin.token)
    demo = FabricDemo(
        tenant, admin, near, near_admin, lab, asker, mover, say, note, figure
    )  # fmt: skip
    sites = [each.id for each in lab.description.sites]
    address = _meet(demo)
    _cut(demo, site, address)
    outside = _go_public(demo, sites[0])
    before_move()
    _move(demo, sites, address, outside)


def _meet(demo: FabricDemo) -> str:
    demo.say(
        f"{demo.asker} and {demo.mover}, in two datacenters, share one layer-2 segment (TRILL)"
    )
    for name in (demo.asker, demo.mover):
        demo.tenant.until_booted(name)
        demo.tenant.until_it_has_a_shell(name)
    address = demo.tenant.address(demo.mover)
    told = demo.near.type(demo.asker, f"ping -c 20 -i {INTERVAL_S} {address} | tail -2")
    answered = re.search(r"(\d+) packets received", told)
    times = re.search(r"= ([\d.]+)/([\d.]+)/", told)
    nodes = [str(demo.tenant.vm(name)["node_id"]) for name in (demo.asker, demo.mover)]
    where = " → ".join(nodes)
    demo.note(f"{where}: {answered.group(1) if answered else 'none'} of 20 answers")
    if times is not None:
        demo.figure("round trip between two datacenters", f"{times.group(1)} ms at best")
    _tell_path(demo)
    return address


def _tell_path(demo: FabricDemo) -> None:
    shown = row_of(
        demo.tenant.user.get(
            f"/v1/iaas/{demo.tenant.iaas}/path",
            source=demo.asker,
            destination=demo.mover,
            traced="true",
        )
    )
    answer = inner(shown, "answer")
    steps = " → ".join(_who_answered(step) for step in rows_of(answer["steps"]))
    demo.note(f"probes went {steps}; why: {answer['reason']}")


def _who_answered(step: dict[str, object]) -> str:
    """Return which of equal ways a probe took; the asker's own node answers none."""
    return str(step["by_port"]).partition(":")[0] or str(step["node_id"])


def _cut(demo: FabricDemo, site: str, address: str) -> None:
    demo.say(f"A provider's line at {site} swallows everything, silently")
    for provider in demo.lab.description.providers:
        _wait_for_trunks(demo, site)
        start_ping(demo, address)
        wait_for_answers(demo)
        demo.lab.cut(site, provider=provider)
        wait_for_answers(demo)
        longest_ms = stop_ping(demo)
        demo.lab.heal(site)
        if longest_ms > INTERVAL_S * 1000:
            demo.figure("traffic flows again after a silent cut", f"{longest_ms:.0f} ms")
            return
        demo.note(f"{provider} was not what carried it: no answer was lost")
    demo.note("no cut was felt: the flow had another way each time")


def _wait_for_trunks(demo: FabricDemo, site: str) -> None:
    """Wait until the site's edges reach the others over every line, as after a cut was healed."""
    edges = [node.name for node in demo.lab.description.nodes()
             if node.site == site and node.role is NodeRole.EDGE]  # fmt: skip
    deadline_s = time.monotonic() + TRUNKS_WAIT_S
    while not all(_trunks_are_up(demo, edge) for edge in edges):
        if time.monotonic() > deadline_s:
            raise TimedOut(f"the trunks of {site}", after_s=TRUNKS_WAIT_S)
        time.sleep(POLL_S)  # noqa: TID251 - waits for a process


def _trunks_are_up(demo: FabricDemo, edge: str) -> bool:
    trunks = rows_of(row_of(demo.near_admin.get(f"/v1/fabric/{edge}"))["trunks"])
    return {trunk["state"] for trunk in trunks if trunk["provider"]} == {"report"}


def _go_public(demo: FabricDemo, site: str) -> OutsidePing:
    mover = demo.mover
    demo.say(f"{mover} gets a public address, which a host on the internet reaches (LISP)")
    address = give_address(demo.tenant, demo.lab, demo.admin, vm=mover, site=site)
    demo.tenant.type(mover, f"ip addr add {address}/32 dev eth0")
    outside = OutsidePing(demo.lab, address)
    demo.note(f"{address} answers from outside after {outside.wait():.1f} s")
    return outside


def _move(demo: FabricDemo, sites: list[str], address: str, outside: OutsidePing) -> None:
    asker, mover = demo.asker, demo.mover
    start = str(demo.tenant.vm(mover)["site_id"])
    target = next(site for site in reversed(sites) if site != start)
    demo.say(f"{mover} moves from {start} to {target} while {asker} and the outside talk to it")
    start_ping(demo, address)
    outside.start()
    wait_for_answers(demo)
    demo.tenant.move(mover, target)
    wait_for_answers(demo)
    outside.until_it_hears(FLOWING)
    longest_ms = stop_ping(demo)
    demo.figure("longest gap of a ping through a live migration", f"{longest_ms:.0f} ms")
    outside_ms = outside.stop()
    demo.figure("longest gap of its public address, from outside", f"{outside_ms:.0f} ms")
    told = float(str(demo.tenant.vm(mover)["downtime_ms"]))
    if told:
        demo.note(f"of which the guest stood still for {told:.0f} ms, by QEMU's own count")
    if not demo.near.answers(asker, address):
        demo.note(f"{mover} does not answer after its move; it is started anew")
        demo.tenant.start_anew(mover)


# The guest's console ----------------------------------------------------------------------------


def start_ping(demo: FabricDemo, address: str) -> None:
    """Let the asker ping an address until `stop_ping`."""
    demo.near.type(demo.asker, f"(ping -i {INTERVAL_S} {address} >{LOG} 2>&1 &)")


def wait_for_answers(demo: FabricDemo) -> None:
    """Wait until the ping has heard `FLOWING` more answers, or some seconds have gone by."""
    demo.near.type(demo.asker, WAIT_FOR_MORE)


def stop_ping(demo: FabricDemo) -> float:
    """Stop the ping; return its longest gap in milliseconds."""
    ended = f"i=0; until grep -q transmitted {LOG} || [ $i -ge 50 ]; do sleep 0.1; i=$((i+1)); done"
    told = demo.near.type(demo.asker, f"killall -INT ping; {ended}; {GAPS}")
    last = re.search(r"last (\d+)", told)
    if last is None or not int(last.group(1)):
        raise TimedOut(
            f"the ping in {demo.asker}", after_s=CONSOLE_WAIT_S, hint="it had no answer at all"
        )
    steps = [int(after) - int(before) for before, after in re.findall(r"gap (\d+) (\d+)", told)]
    sent = re.search(r"sent (\d+)", told)
    if sent is not None:  # a silence that did not end is the longest of all
        steps.append(int(sent.group(1)) - int(last.group(1)))
    return max(steps, default=1) * INTERVAL_S * 1000
