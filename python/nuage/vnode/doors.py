"""Who reaches the ports at which guests wait for their memory: the nodes that send it, alone.

QEMU makes TLS's handshake in its main loop, on a connection that blocks. A stranger who connects
and says nothing keeps it from hearing anybody else. So the node's packet filter drops whatever
else knocks there, from before the port is open. Established connections are left alone: once
a guest has arrived, the kernel may give its port to another.

What is kept follows from the guests that wait, so an agent that was restarted loads the same rules,
and none is left once nobody waits.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import structlog

from nuage.errors import NuageError
from nuage.tool import run_tool

TABLE: Final = "nuage_doors"
SYN: Final = "tcp flags & (syn | ack) == syn"
log: Final = structlog.get_logger("doors")


@dataclass(frozen=True, slots=True, order=True)
class Door:
    """The port at which a guest waits, and the address of the node that it comes from."""

    port: int
    source: str


def ruleset(doors: Iterable[Door]) -> str:
    """Return all rules: who else than its source connects to a door's port is not heard."""
    rules = [
        f"tcp dport {door.port} {SYN} {others} drop"
        for door in sorted(doors)
        for others in _others(door.source)
    ]
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}"]
    if rules:
        chain = "chain knock { type filter hook input priority 0; policy accept;"
        lines += [f"table inet {TABLE} {{", chain, *rules, "}", "}"]
    return "\n".join(lines) + "\n"


def _others(source: str) -> tuple[str, str]:
    address = ip_address(source)
    word, other = ("ip", "ipv6") if address.version == 4 else ("ip6", "ipv4")
    return f"{word} saddr != {address}", f"meta nfproto {other}"


class Doors:
    """The table of one node."""

    def __init__(self) -> None:
        self._loaded = ""
        self._loading = asyncio.Lock()

    async def keep(self, doors: Iterable[Door]) -> None:
        """Keep strangers from `doors`, and from nothing else.

        Where the kernel takes no rule, guests come all the same: only who knows the key is heard.
        """
        rules = ruleset(doors)
        async with self._loading:
            if rules == self._loaded:
                return
            try:
                await run_tool(("nft", "-f", "-"), text=rules)
            except NuageError as error:
                log.warning("strangers may knock", error=error.message)
            else:
                self._loaded = rules
