"""When a disk's portal is lost or moves: requests on their way to the old one reach the new one.

QEMU waits for all requests in flight before it lets a disk change its way, and its iSCSI initiator
sends them again and again to the portal that it knows; when that is gone, both would wait for ever.
So for the moment of the change, new connections to the old portal are led to the new one by a rule
of the node's packet filter. Where the old portal does not answer any more, connections to it are
closed at this end, else the initiator would wait for an answer that nobody will give. So are those
that still have something in flight after a while, or where a first try to change the way failed:
the old head may live cut off from its copies, and know nothing but errors.

That alone would lose seconds. The initiator counts each refusal, and waits one whole second more
after each; in that time it does not notice that a new head is there. The kernel instead repeats an
unanswered SYN every second. So while a guest runs, a refusal by one of its portals does not reach
it: the attempt goes on, and its next SYN is led to where the head is by then. For this such a SYN
is not tracked before there is somewhere to lead it: what is tracked stays on the way that it took.
Attempts under way are not closed either, each would be counted; but for those on a way that leads
to where the head is not any more, when it has moved again before QEMU changed its own way.

A portal at another site is reached through the node's relay (`vnode.relay`), to which the kernel
leads all connections to it. The relay then stands for the kernel: it tries again where a running
guest shall hear of no refusal, and goes where the head is by then. Whatever would go there in clear
all the same is dropped: a connection that has lost its translation would go on with the next block.

A guest that connects for the first time wants the refusal; for that moment its portals are not
held. What is held follows from the guests that run, so an agent that was restarted loads the same
rules, and none is left once the last guest has ended; those of a portal at another site go a minute
after the last connection to it, which still needs them to end. Another disk on the same old portal
that happens to connect while that is led elsewhere is refused by the new one, and tries again.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Final

import structlog

from nuage.channel import parse_address
from nuage.errors import NuageError
from nuage.tool import run_tool
from nuage.vnode.hypervisor import Disk, IscsiDisk
from nuage.vnode.relay import Relay, Way, tls_door_of

TABLE: Final = "nuage_disks"
ANSWER_TIMEOUT_S: Final = 0.3  # a portal that is alive accepts within a millisecond or two
CUT_AFTER_S: Final = 3.0  # a head that has its copies answers within its lease, a second
FAR_KEPT_S: Final = 60.0  # as long as the kernel keeps a connection that has ended
PROBE_MARK: Final = 0x6E756167  # "nuag": our own look at a portal is never led elsewhere
RELAY_HOST: Final = "127.0.0.1"
SYN: Final = "tcp flags & (syn | ack) == syn"
# A refusal is what answers a SYN: it has no sequence number, since there never was a connection.
REFUSAL: Final = "tcp flags & (rst | ack) == (rst | ack) tcp sequence 0"
log: Final = structlog.get_logger("rerouting")


def ruleset(
    held: Iterable[str], ways: dict[str, str], far: Collection[str] = (), relay_port: int = 0
) -> str:
    """Return all rules: the portals whose refusals are held back, each old portal's new one.

    An old portal that is its own new one (the head came back) is led nowhere. The chains stay while
    there is anything: without one the kernel ends translation at once. Those that are `far` are led
    to the relay; without one (port 0) their connections wait.
    """
    held = sorted(held)
    ways = {**{portal: portal for portal in far}, **ways}
    ways = {old: new for old, new in ways.items() if old != new or new in far}
    lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}"]
    if held or ways:
        lines = [
            f"add table ip {TABLE}",
            f"add chain ip {TABLE} lead {{ type nat hook output priority -100; policy accept; }}",
            f"add chain ip {TABLE} repeat {{ type filter hook output priority -300; }}",
            f"add chain ip {TABLE} hold {{ type filter hook input priority 0; }}",
            f"add chain ip {TABLE} keep {{ type filter hook output priority 0; }}",
            *(f"flush chain ip {TABLE} {chain}" for chain in ("lead", "repeat", "hold", "keep")),
        ]
    for portal in held:
        host, port = parse_address(portal)
        if portal not in ways:
            lines.append(
                f"add rule ip {TABLE} repeat ip daddr {host} tcp dport {port} {SYN} notrack"
            )
        lines.append(f"add rule ip {TABLE} hold ip saddr {host} tcp sport {port} {REFUSAL} drop")
    for portal in sorted(far):
        lines.append(f"add rule ip {TABLE} keep {_to_portal(portal)} drop")
    for old, new in sorted(ways.items()):
        begins = f"{_to_portal(old)} {SYN}"
        if new in far and not relay_port:
            lines.append(f"add rule ip {TABLE} repeat {begins} drop")
            continue
        there = f"{RELAY_HOST}:{relay_port}" if new in far else new
        lines.append(f"add rule ip {TABLE} lead {begins} dnat to {there}")
    return "\n".join(lines) + "\n"


def _to_portal(portal: str) -> str:
    host, port = parse_address(portal)
    return f"meta mark != {PROBE_MARK} ip daddr {host} tcp dport {port}"


class Rerouting:
    """The table of one node, and what its relay is told; without one nothing far is reached."""

    def __init__(self, relay: Relay | None = None) -> None:
        self._relay = relay
        self._far: dict[str, str] = {}  # the node of each portal that is known to be far
        self._idle_since_s: dict[str, float] = {}  # by far portal that no guest uses
        self._ways: dict[str, str] = {}
        self._users: dict[str, int] = {}
        self._in_use: frozenset[str] = frozenset()
        self._connecting: dict[str, int] = {}
        self._loaded = ""
        self._loading = asyncio.Lock()

    def learn(self, disks: Iterable[Disk | None]) -> None:
        """Note which of these disks' portals are at other sites, before anything connects there."""
        for disk in disks:
            if isinstance(disk, IscsiDisk) and disk.far_node:
                self._far[disk.portal] = disk.far_node
                self._idle_since_s.pop(disk.portal, None)

    async def hold(self, portals: frozenset[str]) -> None:
        """Hold back refusals by the portals that running guests use, and by no others."""
        self._in_use = portals
        await self._let_go()
        await self._load()

    async def _let_go(self) -> None:
        """Forget the far portals that nobody has used for a while: each costs every packet a rule.

        What is still connected to one would lose its way to end.
        """
        now_s = asyncio.get_running_loop().time()
        for portal in list(self._far):
            led = {*self._ways, *self._ways.values()}
            if portal in self._in_use or portal in self._connecting or portal in led:
                self._idle_since_s.pop(portal, None)
            elif now_s - self._idle_since_s.setdefault(portal, now_s) >= FAR_KEPT_S:
                is_idle = await _is_idle(portal)
                if portal not in self._idle_since_s:
                    continue  # somebody is about to connect
                self._idle_since_s[portal] = now_s
                if is_idle:
                    del self._idle_since_s[portal], self._far[portal]

    @contextlib.asynccontextmanager
    async def refusable(self, portals: frozenset[str]) -> AsyncIterator[None]:
        """Let refusals by `portals` through inside the block: somebody connects a first time."""
        for portal in portals:
            self._connecting[portal] = self._connecting.get(portal, 0) + 1
        try:
            await self._load()
            yield
        finally:
            for portal in portals:
                self._connecting[portal] -= 1
                if not self._connecting[portal]:
                    del self._connecting[portal]
            await self._load()

    @contextlib.asynccontextmanager
    async def led(self, old: str, new: str, *, is_again: bool) -> AsyncIterator[None]:
        """Lead new connections from portal `old` to `new` inside the block.

        `is_again`: it was tried, and what was in flight at `old` came to nothing.
        """
        self._ways[old] = new
        self._users[old] = self._users.get(old, 0) + 1
        cutting, is_done = None, asyncio.Event()
        try:
            before = await self._served(old)
            await self._load()
            patience_s = 0.0 if is_again else CUT_AFTER_S
            cutting = asyncio.create_task(_cut_if_useless(old, before, is_done, patience_s))
            yield
        finally:
            is_done.set()
            try:
                if cutting is not None:
                    await cutting  # bounded by its own limits
            finally:
                self._users[old] -= 1
                if not self._users[old]:
                    del self._users[old], self._ways[old]
                await self._load()

    async def turn(self, left: str, new: str) -> None:
        """Lead to `new` what is led to portal `left` at this moment: the head went on from there.

        Attempts that the kernel has begun on the way to `left` would stay on it: they are closed.
        """
        turned = [old for old, there in self._ways.items() if there == left]
        for old in turned:
            self._ways[old] = new
        await self._load()
        for old in turned:
            await _run("ss", "-tK", "state", "syn-sent", *_to(old))

    async def _load(self) -> None:
        """Bring the kernel's rules up to date; one at a time, the last word wins."""
        async with self._loading:
            held = self._in_use - self._connecting.keys()
            far = self._far_now()
            await self._tell(far, held)
            port = 0 if self._relay is None else self._relay.port
            rules = ruleset(held, self._ways, far, port)
            if rules == self._loaded:
                return
            if await _run("nft", "-f", "-", text=rules) is not None:
                self._loaded = rules

    def _far_now(self) -> frozenset[str]:
        """Return the far portals that anybody is, or was lately, connected to."""
        return frozenset(self._far)

    async def _tell(self, far: frozenset[str], held: frozenset[str]) -> frozenset[str]:
        """Tell the relay all ways; return the local ports of those that wait there."""
        led = {portal: portal for portal in far} | {
            old: new for old, new in self._ways.items() if old in far or new in far
        }
        if self._relay is None or not (led or self._relay.port):
            return frozenset()
        ways = {
            old: Way(tls_door_of(new), self._far[new]) if new in self._far else Way(new)
            for old, new in led.items()
        }
        return await self._relay.tell(ways, held & ways.keys())

    async def _served(self, portal: str) -> tuple[str, ...]:
        """Return the local ports of what is connected to a portal, and waits in no relay."""
        connected = await _connected(portal)
        async with self._loading:
            held = self._in_use - self._connecting.keys()
            waiting = await self._tell(self._far_now(), held)
        return tuple(port for port in connected if port not in waiting)


async def _connected(portal: str) -> tuple[str, ...]:
    """Return the local ports of what is connected to a portal; attempts under way do not count."""
    told = await _run(
        "ss",
        "-Htn",
        "state",
        "connected",
        "exclude",
        "syn-sent",
        "exclude",
        "time-wait",
        *_to(portal),
    )
    return ports_of(told or "")


async def _is_idle(portal: str) -> bool:
    """Tell whether nothing is connected to a portal, nor about to be."""
    told = await _run("ss", "-Htn", "state", "connected", "exclude", "time-wait", *_to(portal))
    return told is not None and not ports_of(told)


def ports_of(told: str) -> tuple[str, ...]:
    """Return the local ports that `ss` tells, a line ``STATE 0 0 HOST:PORT HOST:PORT`` each."""
    lines = [line.split() for line in told.splitlines()]
    return tuple(fields[3].rpartition(":")[2] for fields in lines if len(fields) >= 5)


async def _cut_if_useless(
    portal: str, ports: tuple[str, ...], is_done: asyncio.Event, patience_s: float
) -> None:
    """Close what was connected to a portal that answers no more; who connects now, has been led.

    At one that answers, what still waits after `patience_s`.
    """
    if not ports:
        return
    if patience_s and await _answers(portal):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(is_done.wait(), patience_s)
        if is_done.is_set():
            return
    one_of = " or ".join(f"sport = :{port}" for port in ports)
    await _run("ss", "-tK", "state", "connected", *_to(portal), "and", "(", *one_of.split(), ")")


def _to(portal: str) -> tuple[str, ...]:
    host, port = parse_address(portal)
    return ("dst", host, "and", "dport", "=", f":{port}")


async def _run(*command: str, text: str = "") -> str | None:
    """Return what a tool of the kernel says, None where it fails: QEMU then waits as before."""
    try:
        told = await run_tool(command, text=text)
    except NuageError as error:
        log.warning("not led on", command=command[0], error=error.message)
        return None
    log.info("led on", command=command[0], told=told[:200])
    return told


async def _answers(portal: str) -> bool:
    """Tell whether a portal itself accepts connections, wherever others are led."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PROBE_MARK)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(probe, parse_address(portal))
        except (OSError, TimeoutError):
            return False
    return True
