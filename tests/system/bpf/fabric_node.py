"""A node's fabric alone, as a process that tests can kill: told on stdin what it shall do.

    python fabric_node.py CONFIGURATION

The configuration is a node's own TOML file, ``edge.toml`` or ``vnode.toml``. The log goes to
stderr. Each line is JSON, ``{"wish": a FabricWish}``, ``{"plug": a PortWish}`` (with ``"arriving":
true`` for a VM that is still elsewhere) or ``{"vm": its id, "does": a key of DEEDS}``, answered by
``done``, or ``{"tell": true}``, answered by the node's FabricReport.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

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
    arriving: bool = False
    vm: VmId | None = None
    does: str = ""
    tell: bool = False


# What the hypervisor tells the fabric of a VM that goes on elsewhere.
DEEDS: Final[Mapping[str, Callable[[Fabric, VmId], None]]] = {
    "leaves soon": Fabric.vm_leaves_soon,
    "stands still": lambda fabric, vm_id: fabric.vm_stands_still(vm_id, 0.0),
    "left": Fabric.vm_left,
}


async def serve(fabric: Fabric) -> None:
    """Do what is said until nothing more comes."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order, answer = msgspec.json.decode(line, type=Order), "done"
        if order.wish is not None:
            await fabric.take_wish(order.wish)
        if order.plug is not None:
            vm_id = VmId(f"vm-{order.plug.port_id}")
            await fabric.plug(vm_id, order.plug, arriving=order.arriving)
        if order.vm is not None:
            DEEDS[order.does](fabric, order.vm)
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
