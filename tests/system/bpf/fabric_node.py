"""A node's fabric alone, as a process that tests can kill: told on stdin what it shall do.

    python fabric_node.py NODE SITE ADDRESS STATE_DIR [LINE…]

Its log goes to stderr. Each line is JSON, ``{"wish": a FabricWish}`` or ``{"plug": a PortWish}``,
and is answered by a line. With a LINE (its address on a provider's line) the node is an edge.
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from nuage.clock import SystemClock
from nuage.daemon.fabric import Fabric, FabricOptions
from nuage.daemon.process import Tasks
from nuage.ids import NodeId, SiteId, VmId
from nuage.model.desired import PortWish
from nuage.model.fabric import FabricWish


class Order(msgspec.Struct):
    """What a test says."""

    wish: FabricWish | None = None
    plug: PortWish | None = None


async def serve(fabric: Fabric) -> None:
    """Do what is said until nothing more comes."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = msgspec.json.decode(line, type=Order)
        if order.wish is not None:
            await fabric.take_wish(order.wish)
        if order.plug is not None:
            await fabric.plug(VmId(f"vm-{order.plug.port_id}"), order.plug, arriving=False)
        print("done", flush=True)  # noqa: T201 - the test reads it


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    node, site, address, state_dir, *lines = sys.argv[1:]
    options = FabricOptions(
        node_id=NodeId(node),
        site_id=SiteId(site),
        address=address,
        state_dir=Path(state_dir),
        plane="kernel",
        is_edge=bool(lines),
        lines=tuple(lines),
    )
    fabric = Fabric(options, Tasks(), SystemClock())
    fabric.start()
    print("started", flush=True)  # noqa: T201
    await serve(fabric)
    fabric.stop()


if __name__ == "__main__":
    asyncio.run(main())
