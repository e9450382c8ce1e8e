"""While a disk changes its portal: requests on their way to the old one reach the new one.

QEMU waits for all requests in flight before it lets a disk change its way, and its iSCSI initiator
sends them again and again to the portal that it knows; when that is gone, both would wait for ever.
So for the moment of the change, new connections to the old portal are led to the new one by a rule
of the node's packet filter. Where the old portal does not answer any more, connections to it are
closed at this end, else the initiator would wait for an answer that nobody will give.

The rules live only while a change is under way. Another disk on the same old portal that happens to
connect within that moment is refused by the new one, and tries again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import structlog

from nuage.channel import parse_address

TABLE: Final = "nuage_disks"
TOOL_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 0.3  # a portal that is alive accepts within a millisecond or two
log: Final = structlog.get_logger("rerouting")


def ruleset(ways: dict[str, str]) -> str:
    """Return all rules: each old portal led to its new one.

    The chain stays when no rule is left: without one the kernel ends translation at once.
    """
    lines = [
        f"add table ip {TABLE}",
        f"add chain ip {TABLE} lead {{ type nat hook output priority -100; policy accept; }}",
        f"flush chain ip {TABLE} lead",
    ]
    for old, new in sorted(ways.items()):
        host, port = parse_address(old)
        lines.append(f"add rule ip {TABLE} lead ip daddr {host} tcp dport {port} dnat to {new}")
    return "\n".join(lines) + "\n"


class Rerouting:
    """The table of one node."""

    def __init__(self) -> None:
        self._ways: dict[str, str] = {}
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def led(self, old: str, new: str) -> AsyncIterator[None]:
        """Lead new connections from portal `old` to `new` inside the block."""
        self._ways[old] = new
        self._users[old] = self._users.get(old, 0) + 1
        is_silent = not await _answers(old)
        await self._load()
        if is_silent:
            host, port = parse_address(old)
            await _run("ss", "-K", "dst", host, "dport", "=", str(port))
        try:
            yield
        finally:
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old], self._ways[old]
            await self._load()

    async def _load(self) -> None:
        await _run("nft", "-f", "-", text=ruleset(self._ways))


async def _run(*command: str, text: str = "") -> None:
    """Run a tool of the kernel; what it could not do is told, and QEMU waits as it would have."""
    try:
        async with asyncio.timeout(TOOL_TIMEOUT_S):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, told = await process.communicate(text.encode())
    except (OSError, TimeoutError) as error:
        log.warning("not led on", command=command[0], error=repr(error))
        return
    log.info("led on", command=command[0], code=process.returncode, told=told.decode()[:200])


async def _answers(portal: str) -> bool:
    host, port = parse_address(portal)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
