"""Switches V-nodes off and wakes them, so that a node that sleeps is never taken for lost.

Theory of operation. `Node.power` is the wish; the BMC obeys it. A node goes to sleep only when
nothing runs there, nothing is on its way and nothing is promised: the wish is written first and
the Local Agent's table shows the node as asleep from that moment, so an election that comes
between finds a sleeping node, and an election is what wakes one. Acts on one node run one after
another; what came last is the wish that holds.

Fault model: a BMC that does not answer leaves the node as it is, and the wish on. A node that was
woken and does not come within its boot time and `WAKE_EXTRA_S` is handed to the guardian as lost.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from nuage.clock import Clock
from nuage.daemon.hardware import OpenBmc, comes_true, is_off
from nuage.errors import Conflict, NuageError, TimedOut
from nuage.facility.ports import PowerControl
from nuage.iaas.node_power import AT_REST
from nuage.iaas.site import Site
from nuage.ids import NodeId
from nuage.model.infrastructure import Node, NodePower
from nuage.model.placement import EstimationVector
from nuage.model.status import Migration
from nuage.model.vm import PowerWish, Vm
from nuage.placement.rack_agents import SiteAgent

SHUTDOWN_TIMEOUT_S: Final = 60.0
FORCE_TIMEOUT_S: Final = 20.0
WAKE_EXTRA_S: Final = 120.0
WAKE_TRIES_MAX: Final = 5
WAKE_RETRY_S: Final = 3.0
POLL_S: Final = 0.2
log = structlog.get_logger("energy")


class NodeSwitch:
    """The power of one site's V-nodes."""

    def __init__(
        self,
        site: Site,
        agent: SiteAgent,
        open_bmc: OpenBmc,
        clock: Clock,
        *,
        is_connected: Callable[[NodeId], bool],
        on_lost: Callable[[NodeId], None],
    ) -> None:
        self._site = site
        self._agent = agent
        self._open_bmc = open_bmc
        self._clock = clock
        self._is_connected = is_connected
        self._on_lost = on_lost
        self._locks: dict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.sleeping: dict[NodeId, EstimationVector] = {}
        self.waking: set[NodeId] = set()
        self.woken_s: dict[NodeId, float] = {}

    def is_asleep(self, node_id: NodeId) -> bool:
        """Tell whether the node's silence is on purpose: it sleeps, or has not come back yet."""
        node = self._site.index.find_value(Node, node_id)
        return node_id in self.waking or (node is not None and node.power is NodePower.OFF)

    def state_of(self, node: Node) -> str:
        """Return the node's power for people: on, off, falling asleep, waking, silent."""
        if node.node_id in self.waking:
            return "waking"
        is_connected = self._is_connected(node.node_id)
        if node.power is NodePower.OFF:
            return "falling asleep" if is_connected else "off"
        return "on" if is_connected else "silent"

    def awake(self, vector: EstimationVector) -> bool:
        """Hear that a node reports; return whether its vector is to be believed."""
        node = self._site.index.find_value(Node, vector.node_id)
        if node is not None and node.power is NodePower.OFF:
            return False
        if vector.node_id in self.waking:
            self.waking.discard(vector.node_id)
            self.woken_s[vector.node_id] = self._clock.now_s()
            self._site.announce("node", vector.node_id, "woken", f"node {vector.node_id} is up")
        self.sleeping.pop(vector.node_id, None)
        return True

    def refresh(self) -> None:
        """Keep sleeping nodes in the Local Agent's table: they are able, at the cost of a boot."""
        now_s = self._clock.now_s()
        for vector in self.sleeping.values():
            self._agent.update(replace(vector, sent_s=now_s))

    def why_busy(self, node_id: NodeId) -> str:
        """Return why a node may not be switched off, or ""."""
        index = self._site.index
        for vm in index.on_node(Vm, node_id):
            if vm.wish is PowerWish.RUNNING or vm.state not in AT_REST:
                return f"{vm.name} is {vm.state.value} there"
        for migration in index.on_node(Migration, node_id):
            return f"{migration.vm_id} is on its way"
        if any(hold.node_id == node_id for hold in self._agent.reservations):
            return "a VM was promised room there"
        return ""

    async def sleep(self, node_id: NodeId) -> None:
        """Switch an empty node off.

        Raises:
            Conflict: something runs there, or will.
            NuageError: its BMC does not obey; the node stays on.
        """
        async with self._locks[node_id]:
            node = self._site.index.value(Node, node_id)
            if node.power is NodePower.OFF:
                return
            busy = self.why_busy(node_id)
            vector = next((v for v in self._agent.nodes if v.node_id == node_id), None)
            if busy or vector is None:
                raise Conflict(f"node {node.name} stays on: {busy or 'it does not report'}")
            self.sleeping[node_id] = asleep(vector)
            await self._site.save(replace(node, power=NodePower.OFF))
            self.refresh()
            try:
                await self._switch_off(node)
            except NuageError:
                self.sleeping.pop(node_id, None)
                await self._site.save(
                    replace(self._site.index.value(Node, node_id), power=NodePower.ON)
                )
                raise
            self._site.announce("node", node_id, "asleep", f"node {node.name} is off: not needed")

    async def _switch_off(self, node: Node) -> None:
        async with self._open_bmc(node) as machine:
            await machine.power_off()
            if not await self._is_off(machine, SHUTDOWN_TIMEOUT_S):
                await machine.power_off(force=True)
                if not await self._is_off(machine, FORCE_TIMEOUT_S):
                    raise TimedOut(f"{node.name} to be off", after_s=FORCE_TIMEOUT_S)

    async def _is_off(self, machine: PowerControl, timeout_s: float) -> bool:
        return await comes_true(lambda: is_off(machine), self._clock, within_s=timeout_s)

    async def wake(self, node_id: NodeId, why: str = "") -> None:
        """Switch a sleeping node on and wait until its agent reports.

        Raises:
            TimedOut: it does not come; the guardian has it.
        """
        async with self._locks[node_id]:
            node = self._site.index.value(Node, node_id)
            if node.power is NodePower.ON and node_id not in self.waking:
                return
            self.waking.add(node_id)
            await self._site.save(replace(node, power=NodePower.ON))
            told = f"node {node.name} is switched on" + (f": {why}" if why else "")
            self._site.announce("node", node_id, "waking", told)
            vector = self.sleeping.get(node_id)
            boot_s = 60.0 if vector is None else vector.boot_time_s
            try:
                await self._switch_on(node)
                await self._wait_until_up(node, boot_s + WAKE_EXTRA_S)
            except NuageError:
                self.waking.discard(node_id)
                self.sleeping.pop(node_id, None)
                self._site.announce("node", node_id, "lost", f"node {node.name} does not wake")
                self._on_lost(node_id)
                raise

    async def _switch_on(self, node: Node) -> None:
        for remaining in reversed(range(WAKE_TRIES_MAX)):
            try:
                async with self._open_bmc(node) as machine:
                    await machine.power_on()
                    return
            except NuageError as error:
                log.warning("not switched on", node=node.node_id, error=error.message)
                if not remaining:
                    raise
            await self._clock.sleep(WAKE_RETRY_S)

    async def _wait_until_up(self, node: Node, timeout_s: float) -> None:
        deadline_s = self._clock.monotonic_s() + timeout_s
        while node.node_id in self.waking:
            if self._clock.monotonic_s() >= deadline_s:
                raise TimedOut(f"{node.name} to report after it was switched on", after_s=timeout_s)
            await self._clock.sleep(POLL_S)


def asleep(vector: EstimationVector) -> EstimationVector:
    """Return what a node can do once it is off: all of it, after a boot."""
    return replace(
        vector,
        booted=False,
        running=(),
        vm_count=0,
        cpu_utilisation=0.0,
        power_watts=0.0,
    )
