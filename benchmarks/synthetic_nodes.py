"""The nodes of one site as one process: real channels, real reports, no hypervisor, no disks.

Each node keeps its own mutual-TLS channel to the site's controller through the same code as the
agents (`nuage.daemon.agent`) and sends the report that an agent would. With ``--acting`` the nodes
also claim at once to have done what their wishes say. Started by `bare_federation`.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from nuage.channel import Handlers
from nuage.clock import SystemClock
from nuage.daemon.agent import REPORT_EVERY_S, AgentChannel
from nuage.daemon.configuration import AgentConfiguration
from nuage.daemon.process import Tasks, configure_logs, run_process
from nuage.ids import VmId
from nuage.model.contract import DiskClass
from nuage.model.desired import (
    DiskReport,
    HeadReport,
    IonodeReport,
    IonodeWish,
    VmReport,
    VnodeReport,
    VnodeWish,
)
from nuage.model.infrastructure import Node, NodeRole
from nuage.model.placement import EstimationVector
from nuage.model.vm import PowerWish, VmState

Wish = TypeVar("Wish")
Report = TypeVar("Report")
VCPUS = 4096
MEMORY_MIB = 4 * 1024 * 1024
DISK = DiskReport(
    name="d0", disk_class=DiskClass.NVME, free_bytes=100 * 1024**4, total_bytes=100 * 1024**4
)


class Places(msgspec.Struct, frozen=True):
    """Where one synthetic node has its identity, and whom it talks to."""

    node: Node
    state_dir: str
    trust_dir: str
    controller: str


class SyntheticNode(Generic[Wish, Report]):
    """Reports every now and then, and at once after a wish where it claims to act on it."""

    def __init__(self, node: Node, wish: Wish, *, acting: bool) -> None:
        self._node = node
        self._wish = wish
        self._acting = acting
        self._changed = asyncio.Event()

    async def take_wish(self, wish: Wish) -> None:
        self._wish = wish
        self._changed.set()

    async def reports(self) -> AsyncIterator[Report]:
        while True:
            yield self.report()
            if not self._acting:
                await asyncio.sleep(REPORT_EVERY_S)
                continue
            self._changed.clear()
            with_change = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait({with_change}, timeout=REPORT_EVERY_S)
            with_change.cancel()

    def report(self) -> Report:
        raise NotImplementedError


class SyntheticVnode(SyntheticNode[VnodeWish, VnodeReport]):
    """A V-node that could run thousands of VMs and runs none."""

    def __init__(self, node: Node, clock: SystemClock, *, acting: bool) -> None:
        super().__init__(node, VnodeWish(revision=0, vms=()), acting=acting)
        self._clock = clock

    def report(self) -> VnodeReport:
        now_s = self._clock.now_s()
        seen: tuple[VmReport, ...] = ()
        if self._acting:
            seen = tuple(
                VmReport(
                    vm_id=vm.vm_id,
                    state=VmState.RUNNING if vm.wish is PowerWish.RUNNING else VmState.DELETED,
                    epoch=vm.epoch,
                    disk_slots=tuple(disk.volume_id for disk in vm.disks),
                )
                for vm in self._wish.vms
            )
        running = tuple(VmId(vm.vm_id) for vm in seen if vm.state is VmState.RUNNING)
        return VnodeReport(
            node_id=self._node.node_id,
            site_id=self._node.site_id,
            wish_revision=self._wish.revision,
            vms=seen,
            estimate=EstimationVector(
                node_id=self._node.node_id,
                site_id=self._node.site_id,
                sent_s=now_s,
                cpu_count=VCPUS,
                vcpu_free=VCPUS - len(running),
                memory_free_mib=MEMORY_MIB - 64 * len(running),
                flops=1e12,
                power_watts=100.0,
                power_source="model",
                power_read_s=now_s,
                idle_watts=100.0,
                peak_watts=250.0,
                cpu_utilisation=len(running) / VCPUS,
                vm_count=len(running),
                running=running,
            ),
        )


class SyntheticIonode(SyntheticNode[IonodeWish, IonodeReport]):
    """An IO-node with an endless disk and no storage daemon."""

    def __init__(self, node: Node, *, acting: bool) -> None:
        super().__init__(node, IonodeWish(revision=0, daemons=()), acting=acting)

    def report(self) -> IonodeReport:
        address = f"{self._node.address}:22000"
        heads: tuple[HeadReport, ...] = ()
        if self._acting:
            heads = tuple(
                HeadReport(
                    volume_id=head.volume_id,
                    iaas_id=daemon.iaas_id,
                    state="ready",
                    epoch=head.epoch,
                    portal=f"{self._node.address}:21000",
                )
                for daemon in self._wish.daemons
                for head in daemon.heads
            )
        return IonodeReport(
            node_id=self._node.node_id,
            site_id=self._node.site_id,
            wish_revision=self._wish.revision,
            replicas=(),
            heads=heads,
            replica_addresses={d.iaas_id: address for d in self._wish.daemons},
            disks=(DISK,),
        )


def begin(places: Places, tasks: Tasks, clock: SystemClock, *, acting: bool) -> None:
    """Start the channel of one node."""
    configuration = AgentConfiguration(
        node=replace(places.node, cpu_count=VCPUS, memory_mib=MEMORY_MIB),
        state_dir=Path(places.state_dir),
        trust_dir=Path(places.trust_dir),
        controller=places.controller,
    )
    if places.node.roles == (NodeRole.VNODE,):
        vnode = SyntheticVnode(places.node, clock, acting=acting)
        channel: AgentChannel[VnodeWish, VnodeReport] = AgentChannel(
            configuration, NodeRole.VNODE, Handlers(), tasks, clock
        )
        channel.start(wish_type=VnodeWish, take_wish=vnode.take_wish, reports=vnode.reports)
        return
    ionode = SyntheticIonode(places.node, acting=acting)
    io_channel: AgentChannel[IonodeWish, IonodeReport] = AgentChannel(
        configuration, NodeRole.IONODE, Handlers(), tasks, clock
    )
    io_channel.start(wish_type=IonodeWish, take_wish=ionode.take_wish, reports=ionode.reports)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", type=Path)
    parser.add_argument("--acting", action="store_true")
    arguments = parser.parse_args()
    configure_logs("synthetic-nodes", arguments.places.stem, "warning")
    nodes = msgspec.json.decode(arguments.places.read_bytes(), type=list[Places])

    async def start() -> Callable[[], Awaitable[None]]:
        tasks = Tasks()
        clock = SystemClock()
        for places in nodes:
            begin(places, tasks, clock, acting=arguments.acting)
        return tasks.close

    return run_process(start)


if __name__ == "__main__":
    raise SystemExit(main())
