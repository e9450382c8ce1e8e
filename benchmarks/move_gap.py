"""How long traffic stops when a machine moves between two datacenters, beside its own standstill.

    python benchmarks/move_gap.py [--rounds 4] [--kinds ping,from,to]

A lab of its own with two sites (`lab/duo.toml`) and two guests on one segment. One of them moves
from site to site and back while the other talks to it:

    ping    an echo request every millisecond, from the guest that stays
    from    a TCP stream out of the guest that moves, a line every 2 ms
    to      the same into it

Gaps are read from the frames at the staying guest's tap, with the kernel's time on each: the time
between two answers, two new segments, two acknowledgements that rise, over the instant that the
guest goes on at its target. (The longest of all is told besides: on a busy machine an emulated guest
stalls at its source, while its memory is copied, for longer.) Beside it stands what QEMU says that
the guest stood still (`downtime`), up to where its last state was sent. The goal is that and 60 ms.
Of what is more, three parts are told by the guest's taps: how long it was without a word in truth
(`stood still`: its target reads that state meanwhile), how long the network took to reach it, and
how long the guest took to say its first word, which is the emulator's: it has its code to translate
anew. `within` counts moves that reach the goal, `without guest` those that do but for the guest's
own time. One that does not live on is told apart and started anew. Needs root and
`.build/guest/guest.raw`.
"""

import argparse
import ctypes
import errno
import os
import secrets
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from statistics import median

import machine

from nuage.api.client import Client
from nuage.cli.showing import inner, row_of, rows_of
from nuage.cli.tenant import Tenant
from nuage.errors import Unavailable
from nuage.ids import PortId
from nuage.lab import kernel
from nuage.lab.assembly import admin_of, api_socket, assemble, disband
from nuage.lab.description import DEFAULT_DESCRIPTION
from nuage.lab.lab import Lab
from nuage.model.infrastructure import NodeRole
from nuage.vnode.ports import tap_name

GUEST = Path(__file__).parents[1] / ".build/guest/guest.raw"
CONTRACT = {
    "data_countries": ["FR"], "operator_countries": ["FR"], "copies": 1, "copy_sites": 1,
    "ack_policy": "all",
}  # fmt: skip
STAYS, MOVES = "stays", "moves"
ALLOWED_MS = 60.0
FLOWING = 100  # answers, segments or acknowledgements: then a conversation goes on
FLOWING_WAIT_S = 30.0
AFTER_S = 4.0
TAP_WAIT_S = 60.0
STREAM_PORT = 9
# A clock that needs no process for each tick: `ping` writes a line for every answer of its own.
LINES = "ping -i 0.002 127.0.0.1"
TALK = {  # what the one that stays and the one that moves are told to run
    "ping": ("ping -i 0.001 {address}", ""),
    "from": ("sleep 9999 | nc {address} 9", LINES + " | nc -l -p 9"),
    "to": (LINES + " | nc {address} 9", "sleep 9999 | nc -l -p 9"),
}
LISTENS = "until grep -q ':0009 0*:0000 0A' /proc/net/tcp*; do sleep 0.1; done"
SNAP_BYTES = 96
KEPT_BYTES = 256 * 2**20
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35


@dataclass(frozen=True)
class Frame:
    """One frame at a tap: when, whether towards the guest, its first bytes."""

    at_s: float
    to_guest: bool
    head: bytes


class TapWatch:
    """All frames of a tap, kept by the kernel until somebody asks: no work meanwhile."""

    def __init__(self, namespace: str, tap: str) -> None:
        self._raw = kernel.inside(namespace, lambda: self._open(tap))

    def _open(self, tap: str) -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, KEPT_BYTES)
        raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        shorten = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, SNAP_BYTES))
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(shorten))
        raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        raw.bind((tap, ETH_P_ALL))
        raw.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        return raw

    def frames(self) -> list[Frame]:
        """Return what came since the last call."""
        found = []
        while True:
            try:
                head, told, _flags, address = self._raw.recvmsg(SNAP_BYTES, 64)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                continue  # said once when a tap goes; what it kept is still there
            seconds, nanoseconds = struct.unpack("qq", told[0][2][:16])
            at_s = seconds + nanoseconds / 1e9
            found.append(Frame(at_s, address[2] == PACKET_OUTGOING, head))

    def close(self) -> None:
        """Let go of the tap."""
        self._raw.close()


class Progress:
    """Tells which frames show that a conversation goes on."""

    def __init__(self, kind: str, peer: str) -> None:
        self._kind = kind
        self._peer = IPv4Address(peer).packed
        self._highest: int | None = None

    def shows(self, frame: Frame) -> bool:
        """Tell whether a frame to the staying guest is an answer, or brings its stream on."""
        head = frame.head
        if not frame.to_guest or head[12:14] != b"\x08\x00" or head[26:30] != self._peer:
            return False
        protocol, inner_at = head[23], 14 + (head[14] & 0xF) * 4
        if self._kind == "ping":
            return protocol == socket.IPPROTO_ICMP and head[inner_at] == 0
        if protocol != socket.IPPROTO_TCP:
            return False
        if head[inner_at : inner_at + 2] != STREAM_PORT.to_bytes(2, "big"):
            return False
        at = inner_at + (4 if self._kind == "from" else 8)
        number = int.from_bytes(head[at : at + 4], "big")
        if self._kind == "from":  # only bytes count, and only new ones
            length = int.from_bytes(head[16:18], "big") - (inner_at - 14)
            number += length - (head[inner_at + 12] >> 4) * 4
        rises = self._highest is None or 0 < (number - self._highest) % 2**32 < 2**31
        if rises:
            self._highest = number
        return rises


@dataclass(frozen=True)
class Scene:
    """The lab and its two guests."""

    lab: Lab
    tenant: Tenant

    def node_of(self, site: str) -> str:
        """Return the only V-node of a site."""
        nodes = self.lab.description.nodes()
        (name,) = (n.name for n in nodes if n.site == site and n.role is NodeRole.VNODE)
        return name

    def other_site(self, vm: str) -> str:
        """Return the site where a VM is not."""
        here = self.tenant.vm(vm)["site_id"]
        return next(site.id for site in self.lab.description.sites if site.id != here)

    def tap(self, vm: str) -> str:
        """Return the name of a VM's tap."""
        vm_id = self.tenant.vm(vm)["vm_id"]
        ports = rows_of(self.tenant.user.get(f"/v1/iaas/{self.tenant.iaas}/ports"))
        (port,) = (v for v in (inner(row, "value") for row in ports) if v["vm_id"] == vm_id)
        return tap_name(PortId(str(port["port_id"])))


@contextmanager
def scene() -> Iterator[Scene]:
    """Bring up the lab, the IaaS and the guests; take all of it down."""
    name = f"mg{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab.open(DEFAULT_DESCRIPTION.with_name("duo.toml"), Path(folder), name=name)
        try:
            lab.create_hardware()
            assemble(lab, lambda _text: None)
            yield Scene(lab, settle(lab))
        finally:
            lab.destroy()
            disband(name)


def settle(lab: Lab) -> Tenant:
    """Return a new IaaS with the two guests running, one at each site."""
    sites = [site.id for site in lab.description.sites]
    endpoint = f"unix:{api_socket(lab, sites[0])}"
    admin, user = Client(endpoint), Client(endpoint)
    login = admin_of(lab)
    admin.log_in(login.name, login.secret)
    admin.call("POST", "/v1/iaas", {"name": "gap", "owner": "gap", "contract": CONTRACT})
    secret = secrets.token_urlsafe(18)
    body = {"name": "ada", "secret": secret, "grants": ["iaas-admin@gap"]}
    admin.call("POST", "/v1/users", body)
    user.log_in("ada", secret)
    image = row_of(admin.call("POST", "/v1/images", {"name": "guest"}))
    admin.upload(f"/v1/images/{image['id']}/data", GUEST, lambda _sent: None)
    tenant = Tenant(user, "gap")
    for vm, site in ((STAYS, sites[0]), (MOVES, sites[1])):
        tenant.create(vm, image="guest", site=site)
    for vm in (STAYS, MOVES):
        tenant.until_booted(vm)
    return tenant


def watch_soon(namespace: str, tap: str) -> TapWatch:
    """Watch a tap as soon as it is there."""
    deadline_s = time.monotonic() + TAP_WAIT_S
    while True:
        try:
            return TapWatch(namespace, tap)
        except Unavailable:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)


@dataclass(frozen=True)
class Move:
    """What one move did. `gap_ms`: over the switch; None when the guest did not live on.

    `still_ms`: from the guest's last word where it was to its first sign where it is; what of it
    is not `downtime_ms` is the target hypervisor's, which reads the last state after the source
    has sent it. `network_ms` and `guest_ms`: how long each then took to reach the other, see
    `parts_ms`. An emulator translates its code anew for the guest's first IP packet.
    """

    kind: str
    gap_ms: float | None
    longest_ms: float
    downtime_ms: float
    still_ms: float
    network_ms: float
    guest_ms: float


def talk(tenant: Tenant, kind: str, address: str) -> None:
    """Start a conversation."""
    stays, moves = TALK[kind]
    for vm, words in ((MOVES, moves), (STAYS, stays.format(address=address))):
        if words:
            then = LISTENS if vm == MOVES else "true"
            tenant.type(vm, f"({{ {words}; }} >/dev/null 2>&1 </dev/null &); {then}")


def hush(tenant: Tenant, *vms: str) -> None:
    """End it."""
    for vm in vms:
        tenant.type(vm, "killall -q ping nc sleep; true")


def move(scene: Scene, kind: str) -> Move:
    """Move the guest once; say what was seen."""
    tenant, lab = scene.tenant, scene.lab
    address, target = tenant.address(MOVES), scene.other_site(MOVES)
    if not tenant.answers(STAYS, address):
        tenant.start_anew(MOVES)
    tap = scene.tap(MOVES)
    stays = str(tenant.vm(STAYS)["node_id"])
    at_stays = TapWatch(lab.namespace(stays), scene.tap(STAYS))
    at_source = TapWatch(lab.namespace(str(tenant.vm(MOVES)["node_id"])), tap)
    progress = Progress(kind, address)
    talk(tenant, kind, address)
    seen = flowing(at_stays, progress)
    tenant.user.call("POST", f"{tenant.path(MOVES)}/migrate", {"site": target})
    at_target = watch_soon(lab.namespace(scene.node_of(target)), tap)
    tenant.until(MOVES, site=target)
    time.sleep(AFTER_S)
    ended_s = time.time()
    seen += [frame.at_s for frame in at_stays.frames() if progress.shows(frame)]
    there = at_target.frames()
    last_s = max((f.at_s for f in at_source.frames() if is_word(f)), default=ended_s)
    for watch in (at_stays, at_source, at_target):
        watch.close()
    downtime_ms = float(str(tenant.vm(MOVES)["downtime_ms"]))
    gaps = list(pairwise((*seen, ended_s)))
    longest_s = max((b - a for a, b in gaps), default=AFTER_S)
    sign_s = next((frame.at_s for frame in there if not frame.to_guest), ended_s)
    gap_s = next((b - a for a, b in gaps if a <= sign_s <= b), longest_s)
    lives = gap_s < AFTER_S or tenant.answers(STAYS, address)
    if lives:
        hush(tenant, STAYS, MOVES)
    else:
        hush(tenant, STAYS)
        tenant.start_anew(MOVES)
    gap_ms = gap_s * 1000 if lives else None
    still_ms = (sign_s - last_s) * 1000
    return Move(kind, gap_ms, longest_s * 1000, downtime_ms, still_ms, *parts_ms(there))


def flowing(watch: TapWatch, progress: Progress) -> list[float]:
    """Wait until a conversation goes on; return when it did last."""
    deadline_s = time.monotonic() + FLOWING_WAIT_S
    seen: list[float] = []
    while len(seen) < FLOWING:
        if time.monotonic() > deadline_s:
            raise SystemExit("the two guests do not talk to each other")
        time.sleep(0.1)
        seen += [frame.at_s for frame in watch.frames() if progress.shows(frame)]
    return seen[-1:]


def parts_ms(frames: list[Frame]) -> tuple[float, float]:
    """Return what the network and what the guest took until each had heard the other.

    By the guest's new tap. The hypervisor's announcement is its first sign. From there the fabric
    needs a while to reach it, and the guest a while to say its first word; who comes second may
    have waited for the other, so its time counts from there.
    """
    sign = next((f.at_s for f in frames if not f.to_guest), None)
    word = next((f.at_s for f in frames if is_word(f)), None)
    reached = next((f.at_s for f in frames if f.to_guest), None)
    if sign is None or word is None or reached is None:
        return 0.0, 0.0
    if reached < word:
        return max(0.0, reached - sign) * 1000, (word - max(sign, reached)) * 1000
    return (reached - word) * 1000, (word - sign) * 1000


def is_word(frame: Frame) -> bool:
    """Tell whether the guest itself speaks, not its hypervisor for it."""
    return not frame.to_guest and frame.head[12:14] == b"\x08\x00"


def report(moves: list[Move]) -> None:
    """Print a line per kind."""
    heads = (
        "gap ms",
        "longest ms",
        "downtime ms",
        "gap - downtime",
        "stood still",
        "network",
        "guest",
    )
    print(f"{'':6}" + "".join(f"{head:>20}" for head in heads)
          + f"{'within':>8}{'without guest':>15}{'died':>6}")  # fmt: skip
    for kind in dict.fromkeys(one.kind for one in moves):
        lived = [one for one in moves if one.kind == kind and one.gap_ms is not None]
        died = sum(one.kind == kind for one in moves) - len(lived)
        rests = [(one.gap_ms or 0.0) - one.downtime_ms for one in lived]
        own = [rest - one.guest_ms for rest, one in zip(rests, lived, strict=True)]
        columns = (
            [one.gap_ms or 0.0 for one in lived], [one.longest_ms for one in lived],
            [one.downtime_ms for one in lived], rests, [one.still_ms for one in lived],
            [one.network_ms for one in lived], [one.guest_ms for one in lived],
        )  # fmt: skip
        cells = "".join(f"{spread(values):>20}" for values in columns)
        counted = (
            f"{sum(each <= ALLOWED_MS for each in some)}/{len(some)}" for some in (rests, own)
        )
        print(f"{kind:6}{cells}" + "{:>8}{:>15}".format(*counted) + f"{died:>6}")


def spread(values: list[float]) -> str:
    """Return median and worst."""
    if not values:
        return "none"
    return f"{median(values):.0f} (worst {max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kinds", default=",".join(TALK))
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    print(machine.describe())
    moves = []
    with scene() as one:
        for _ in range(options.rounds):
            for kind in kinds:
                done = move(one, kind)
                moves.append(done)
                gap = "died" if done.gap_ms is None else f"{done.gap_ms:.1f} ms"
                print(f"{kind}: gap {gap}, downtime {done.downtime_ms:.0f} ms, stood still"
                      f" {done.still_ms:.1f} ms, network {done.network_ms:.1f} ms,"
                      f" guest {done.guest_ms:.1f} ms", flush=True)  # fmt: skip
    report(moves)


if __name__ == "__main__":
    main()
