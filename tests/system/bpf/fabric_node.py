"""A node's fabric alone, as a process that tests can kill: told on stdin what it shall do.

    python fabric_node.py CONFIGURATION

The configuration is a node's own TOML file, ``edge.toml`` or ``vnode.toml``. The log goes to
stderr. Each line is JSON, ``{"wish": a FabricWish}`` or ``{"plug": a PortWish}``, answered by
``done``, or ``{"tell": true}``, answered by the node's FabricReport.
"""

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from nuage.clock import SystemClock
from nuage.daemon import fabric_report
from nuage.daemon.configuration import EdgeConfiguration, VnodeConfiguration, load
from nuage.daemon.fabric import Fabric
from nuage.daemon.fabric_options import FabricOptions, fabric_options_of
from nuage.daemon.process import Tasks
from nuage.ids import VmId
from nuage.model.desired import PortWish
from nuage.model.fabric import FabricWish


class Order(msgspec.Struct):
    """What a test says."""

    wish: FabricWish | None = None
    plug: PortWish | None = None
    tell: bool = False


async def serve(fabric: Fabric) -> None:
    """Do what is said until nothing more comes."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order, answer = msgspec.json.decode(line, type=Order), "done"
        if order.wish is not None:
            await fabric.take_wish(order.wish)
        if order.plug is not None:
            await fabric.plug(VmId(f"vm-{order.plug.port_id}"), order.plug, arriving=False)
        if order.tell:
            answer = msgspec.json.encode(fabric_report.report(fabric)).decode()
        print(answer, flush=True)  # noqa: T201 - the test reads it


def options_of(path: Path) -> FabricOptions:
    """Return what the node's own daemon would make of the file."""
    if path.name == "edge.toml":
        return fabric_options_of(load(path, EdgeConfiguration))
    return fabric_options_of(load(path, VnodeConfiguration))


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    fabric = Fabric(options_of(Path(sys.argv[1])), Tasks(), SystemClock())
    fabric.start()
    print("started", flush=True)  # noqa: T201
    await serve(fabric)
    fabric.stop()


if __name__ == "__main__":
    asyncio.run(main())
