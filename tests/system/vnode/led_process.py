"""Run in a namespace of its own: portals that answer with their names, and who is led where.

Prints a line ``step: name`` for each connection to the old portal.
"""

import asyncio
import contextlib
import sys
from functools import partial
from typing import Final

import uvloop

from nuage.vnode import rerouting

OLD: Final = "10.0.0.1:21000"
FIRST: Final = "10.0.0.2:21000"
SECOND: Final = "10.0.0.3:21000"
CONNECT_TIMEOUT_S: Final = 5.0


async def main() -> None:
    """Have a head go from OLD to FIRST, on to SECOND, and back, all within one change of way."""
    for portal in (OLD, FIRST, SECOND):
        host, port = portal.split(":")
        await asyncio.start_server(partial(_tell, portal), host, int(port))
    kernel = rerouting.Rerouting()
    await kernel.hold(frozenset((OLD,)))
    await _show("before")
    async with kernel.led(OLD, FIRST, is_again=False):
        await _show("moved")
        await kernel.turn(FIRST, SECOND)
        await _show("moved again")
        await kernel.turn(SECOND, OLD)
        await _show("came back")
    for _ in range(5):  # each ends a tool of the kernel's before it could read
        reader, writer = await asyncio.open_connection(*OLD.split(":"))
        async with kernel.led(OLD, FIRST, is_again=True):
            with contextlib.suppress(ConnectionAbortedError):  # closed at this end
                await reader.read()
            await _show("given up")
        writer.close()
        await _show("after")


async def _tell(portal: str, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(portal.encode() + b"\n")


async def _show(step: str) -> None:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(*OLD.split(":"))
        sys.stdout.write(f"{step}: {(await reader.readline()).decode().strip()}\n")
        writer.close()


if __name__ == "__main__":
    uvloop.run(main())
