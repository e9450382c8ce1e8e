"""A V-node's process: the agent, QEMU, the SeD, and the channel to the controller. Wiring only."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import replace

import structlog
from prometheus_client import Gauge

from nuage.channel import Handlers, Peer
from nuage.clock import Clock, SystemClock
from nuage.daemon import fabric_report
from nuage.daemon.agent import CALL_TIMEOUT_S, REPORT_EVERY_S, AgentChannel
from nuage.daemon.agent_trust import REVOCATIONS
from nuage.daemon.configuration import VnodeConfiguration
from nuage.daemon.fabric import Fabric
from nuage.daemon.fabric_options import fabric_options_of
from nuage.daemon.hardware import BmcMeter
from nuage.daemon.nodes import ReportTaken
from nuage.daemon.process import Tasks, new_registry, serve_metrics
from nuage.daemon.trail import RequestTrail
from nuage.errors import NotFound, NuageError
from nuage.ids import PortId, VmId
from nuage.model.console import (
    FOLLOW_METHOD,
    READ_METHOD,
    TYPE_METHOD,
    ConsoleLog,
    ConsoleRequest,
    FollowConsole,
    TypeOnConsole,
)
from nuage.model.desired import PortWish, VmWish, VnodeReport, VnodeWish
from nuage.model.fabric import FabricWish
from nuage.model.infrastructure import NodeRole
from nuage.model.vm import VmState
from nuage.trust.store import DAEMON_CHAIN, DAEMON_KEY, ROOT
from nuage.vnode.agent import AgentOptions, VnodeAgent
from nuage.vnode.console import ConsoleHub
from nuage.vnode.probe import probe_accelerator
from nuage.vnode.qemu import QemuHypervisor, QemuOptions
from nuage.vnode.rapl import RaplMeter
from nuage.vnode.relay import RelayOptions
from nuage.vnode.sed import (
    Meter,
    NodeFacts,
    PowerReading,
    Sed,
    SliceGauge,
    given_cpus,
    given_mib,
)
from nuage.vnode.send_queue import shorten_send_queues

LEASE_CHECK_S = 1.0
NOT_ALLOWED_S = 1.0  # the end of a lease that ended long ago; 0.0 would be none
log = structlog.get_logger("vnode")


class FabricPlug:
    """Plugs guests into the fabric's segments (`vnode.ports.PortPlug`)."""

    def __init__(self, fabric: Fabric, is_arriving: Callable[[VmId], bool]) -> None:
        self._fabric = fabric
        self._is_arriving = is_arriving

    async def plug(self, vm_id: VmId, port: PortWish) -> str:
        """Return a tap that reaches the port's segment."""
        return await self._fabric.plug(vm_id, port, arriving=self._is_arriving(vm_id))

    async def unplug(self, vm_id: VmId, port_ids: Collection[PortId] = ()) -> None:
        """Remove the taps of these ports, and what others the VM has."""
        for port_id in {*port_ids, *self._fabric.ports_of(vm_id)}:
            await self._fabric.unplug(port_id)


class VnodeProcess:
    """One V-node, from configuration to running."""

    def __init__(self, configuration: VnodeConfiguration, clock: Clock | None = None) -> None:
        said = configuration.node
        node = replace(
            said, cpu_count=given_cpus(said.cpu_count), memory_mib=given_mib(said.memory_mib)
        )
        self._configuration = replace(configuration, node=node)
        self._clock = clock or SystemClock()
        self._tasks = Tasks()
        self._last_wish: VnodeWish | None = None
        self._trail = RequestTrail()

    async def start(self) -> Callable[[], Awaitable[None]]:
        """Find the accelerator, adopt what runs, talk to the controller."""
        configuration = self._configuration
        configuration.state_dir.mkdir(parents=True, exist_ok=True)
        self._fabric = Fabric(fabric_options_of(configuration), self._tasks, self._clock)
        self._fabric.start()  # first: neighbours wait for its word
        shorten_send_queues()
        accelerator = await self._accelerator()
        self._hypervisor = QemuHypervisor(
            QemuOptions(
                root=configuration.state_dir / "guests",
                accelerator=accelerator,
                address=configuration.node.address,
                own_users=os.geteuid() == 0,
                relay=RelayOptions(
                    binary=configuration.relay,
                    folder=configuration.state_dir / "relay",
                    key=configuration.trust_dir / DAEMON_KEY,
                    chain=configuration.trust_dir / DAEMON_CHAIN,
                    root=configuration.trust_dir / ROOT,
                    lists=configuration.trust_dir / REVOCATIONS,
                    own_user=os.geteuid() == 0,
                ),
            )
        )
        self._hypervisor.subscribe_leaving(
            self._fabric.vm_leaves_soon, self._fabric.vm_stands_still
        )
        await self._hypervisor.open()
        sed = await self._sed(accelerator)
        self._agent = VnodeAgent(
            AgentOptions(
                node_id=configuration.node.node_id,
                site_id=configuration.node.site_id,
                state_dir=configuration.state_dir,
                listen_host=configuration.node.address,
            ),
            hypervisor=self._hypervisor,
            plug=FabricPlug(self._fabric, self._is_arriving),
            sed=sed,
            clock=self._clock,
        )
        await self._agent.open()
        handlers = Handlers()
        self._register(handlers)
        fabric_report.register(handlers, self._fabric)
        self._channel: AgentChannel[VnodeWish, VnodeReport] = AgentChannel(
            configuration, NodeRole.VNODE, handlers, self._tasks, self._clock
        )
        self._channel.start(
            wish_type=VnodeWish,
            take_wish=self._take_wish,
            reports=lambda: self._agent.reports(REPORT_EVERY_S),
        )
        self._channel.follow("fabric.wishes", FabricWish, self._fabric.take_wish)
        self._tasks.keep("fabric news", self._tell_news)
        self._tasks.keep("movers", self._watch_movers)
        self._tasks.keep("lease", self._keep_lease)
        if configuration.metrics_listen:
            registry = new_registry()
            Gauge("nuage_vnode_guests", "Guests on this node", registry=registry).set_function(
                lambda: len(self._agent.report().vms)
            )
            await serve_metrics(configuration.metrics_listen, registry)
        return self.stop

    async def stop(self) -> None:
        """Stop the agent; guests run on."""
        await self._tasks.close()
        await self._channel.close()
        self._fabric.stop()
        await self._agent.close()
        await self._hypervisor.close()

    def _is_arriving(self, vm_id: VmId) -> bool:
        wish = self._last_wish
        vms = () if wish is None else wish.vms
        return any(vm.vm_id == vm_id and vm.incoming is not None for vm in vms)

    async def _watch_movers(self) -> None:
        """Tell the fabric which guests run here and which were handed over."""
        async for report in self._agent.reports(REPORT_EVERY_S):
            for vm in report.vms:
                if vm.state is VmState.RUNNING:
                    self._fabric.vm_runs(vm.vm_id)
                elif vm.migrated:
                    self._fabric.vm_left(vm.vm_id)

    async def _tell_news(self) -> None:
        """Bring what the fabric has to tell to the controller; what it misses is in the log."""
        while True:
            await self._clock.sleep(REPORT_EVERY_S)
            news = fabric_report.news(self._fabric)
            if not news.lines:
                continue
            try:
                await self._channel.client.call("fabric.news", news, ReportTaken, CALL_TIMEOUT_S)
            except NuageError as error:
                log.info("news not told", reason=error.message)

    async def _accelerator(self) -> str:
        if self._configuration.accelerator != "auto":
            return self._configuration.accelerator
        verdict = await probe_accelerator(
            self._configuration.state_dir / "accelerator.json", self._clock
        )
        log.info("accelerator", chosen=verdict.accelerator, reason=verdict.reason)
        return verdict.accelerator

    async def _sed(self, accelerator: str) -> Sed:
        configuration = self._configuration
        facts = NodeFacts(
            node_id=configuration.node.node_id,
            site_id=configuration.node.site_id,
            accelerator=accelerator,
            cpu_count=configuration.node.cpu_count,
            memory_mib=configuration.node.memory_mib,
            idle_watts=configuration.idle_watts,
            peak_watts=configuration.peak_watts,
            boot_time_s=configuration.boot_time_s,
            boot_energy_joules=configuration.boot_time_s * configuration.peak_watts,
        )

        sed = Sed(
            facts,
            clock=self._clock,
            meter=self._meter(),
            cache=configuration.calibration_file or configuration.state_dir / "flops.json",
            gauge=self._gauge(),
        )
        await sed.calibrate()
        return sed

    def _meter(self) -> Meter:
        """Return the node's own meter: its BMC, else RAPL, else nothing, and the model speaks.

        A slice of a machine has no RAPL of its own.
        """
        configuration = self._configuration
        meters: list[Meter] = []
        if configuration.bmc_login_file is not None and configuration.node.bmc_url:
            bmc = BmcMeter(configuration.node.bmc_url, configuration.bmc_login_file, self._clock)
            self._tasks.keep("meter", bmc.run)
            meters.append(bmc)
        if configuration.cpu_stat_file is None and (rapl := RaplMeter(self._clock)).is_there:
            meters.append(rapl)

        def read() -> PowerReading | None:
            readings = [meter() for meter in meters]  # all: RAPL measures between two looks
            return next((reading for reading in readings if reading is not None), None)

        return read

    def _gauge(self) -> SliceGauge | None:
        configuration = self._configuration
        if configuration.cpu_stat_file is None:
            return None
        if not configuration.cpu_stat_file.exists():
            log.warning(
                "no such counter; the machine's load serves", path=str(configuration.cpu_stat_file)
            )
            return None
        return SliceGauge(configuration.cpu_stat_file, configuration.node.cpu_count, self._clock)

    def _register(self, handlers: Handlers) -> None:
        @handlers.method(READ_METHOD, ConsoleRequest, roles={NodeRole.CONTROLLER})
        async def console(_peer: Peer, ask: ConsoleRequest) -> ConsoleLog:
            seen = {vm.vm_id: vm for vm in self._agent.report().vms}
            if ask.vm_id not in seen:
                raise NotFound("vm", ask.vm_id, hint="it has no console on this node")
            total_bytes = seen[ask.vm_id].console_bytes
            offset = max(0, total_bytes - ask.bytes_max)
            if ask.after_bytes >= 0:
                offset = max(offset, ask.after_bytes)
            data = await self._hypervisor.console_log(ask.vm_id, offset, ask.bytes_max)
            text = data.decode("utf-8", errors="replace")
            return ConsoleLog(text=text, total_bytes=max(total_bytes, offset + len(data)))

        hub = ConsoleHub(self._hypervisor.console_log, self._hypervisor.console_socket, self._clock)

        @handlers.stream(FOLLOW_METHOD, FollowConsole, roles={NodeRole.CONTROLLER})
        async def follow(_peer: Peer, ask: FollowConsole) -> AsyncIterator[object]:
            seen = {vm.vm_id: vm for vm in self._agent.report().vms}
            if ask.vm_id not in seen:
                raise NotFound("vm", ask.vm_id, hint="it has no console on this node")
            offset = ask.after_bytes
            if offset < 0:
                offset = max(0, seen[ask.vm_id].console_bytes + offset)
            async with aclosing(hub.follow(ask.vm_id, offset)) as output:
                async for data in output:
                    yield data

        @handlers.method(TYPE_METHOD, TypeOnConsole, roles={NodeRole.CONTROLLER})
        async def type_keys(_peer: Peer, ask: TypeOnConsole) -> None:
            await hub.type(ask.vm_id, ask.keys)

    async def _take_wish(self, wish: VnodeWish) -> None:
        self._last_wish = wish
        self._trail.take(wish.vms)
        await self._agent.take_wish(self._with_lease(wish))

    def _with_lease(self, wish: VnodeWish) -> VnodeWish:
        """Put this node's own knowledge of the lease in place of the controller's clock.

        How long it is comes from the channel alone (`agent.HeardLeases`); that a VM may not run
        at all is the controller's to say (`NOT_ALLOWED_S`).
        """
        heard_s = self._channel.leases.until_s(wish.lease_term)
        if heard_s is None:
            return wish  # nothing heard since this process began: the controller's word holds
        until_s = self._clock.now_s() + heard_s - self._clock.monotonic_s()

        def leased(vm: VmWish) -> VmWish:
            if vm.lease_until_s <= NOT_ALLOWED_S:
                return vm
            return replace(vm, lease_until_s=max(until_s, NOT_ALLOWED_S))

        return replace(wish, vms=tuple(leased(vm) for vm in wish.vms))

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(LEASE_CHECK_S)
            wish = self._last_wish
            if wish is not None and any(vm.lease_until_s > 0 for vm in wish.vms):
                await self._agent.take_wish(self._with_lease(wish))
