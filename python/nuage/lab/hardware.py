"""The lab's one process: it is all the BMCs, PDUs, power supplies and node inits of a lab.

``python -m nuage.lab.hardware STATE_DIR DISK_DIR``, started by `Lab.create_hardware`. Sockets
of BMCs are made inside the sites' management namespaces; each answers from the `Rig`.
It sleeps unless somebody asks, a daemon exits, or a deadline (POST, outlet delay) is due;
every `SAMPLE_EVERY_S` it reads each node's CPU counter once, so that energy follows loads
that came and went between two questions.
"""

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Final

import msgspec
import structlog
import uvloop

from nuage.clock import Clock, SystemClock
from nuage.errors import UNREADABLE, InvalidRequest, NotFound, NuageError, TimedOut, Unavailable
from nuage.lab import addresses as at
from nuage.lab import kernel
from nuage.lab.bmc_documents import install_bmc
from nuage.lab.cabling import far_ends, lines_without, node_plan, wan_port
from nuage.lab.cgroup import Cgroup
from nuage.lab.control import (
    LINE_BYTES_MAX,
    Answer,
    AskStatus,
    LabStatus,
    NodeStatus,
    PduStatus,
    Power,
    Request,
    SetFault,
    SetServices,
    SetWeather,
    SiteStatus,
    encode,
)
from nuage.lab.description import LabDescription, NodeDescription, PduDescription, PduSpeech
from nuage.lab.init import Init
from nuage.lab.launch import Place
from nuage.lab.machine import Effect, Effects, State
from nuage.lab.pdu_documents import install_pdu
from nuage.lab.pdu_snmp import snmp_pdu
from nuage.lab.redfish_server import Device, RedfishServer
from nuage.lab.redfish_service import Accounts, Identity, RedfishService
from nuage.lab.rig import Fault, Rig
from nuage.lab.state import StateDirectory, write_pid
from nuage.model.infrastructure import NodeRole

SAMPLE_EVERY_S: Final = 5.0
WAIT_POLL_S: Final = 0.02
WAIT_MAX_S: Final = 120.0  # the longest POST and shutdown, with room
EFFECTS_MAX: Final = 64  # of one node, not yet performed; more is a bug
KILL_POLL_S: Final = 0.005

_log = structlog.get_logger(__name__)


class Hardware:
    """The rig, its sockets and the processes of its nodes."""

    def __init__(self, lab: LabDescription, state: StateDirectory, clock: Clock) -> None:
        self.lab = lab
        self.state = state
        self.clock = clock
        self.nodes = {node.name: node for node in lab.nodes()}
        parent = Cgroup.of_lab(lab.name)
        self.cgroups = {name: parent.child(name) for name in self.nodes}
        self._due_changed = asyncio.Event()
        self.rig = Rig(
            lab, clock,
            cpu_seconds=lambda node: self.cgroups[node].cpu_seconds(),
            perform=self._queue_effects,
            wake=self._due_changed.set,
        )  # fmt: skip
        self.rig.outside_celsius |= state.load_weather()
        self.inits = {name: Init(self.place(name), self.cgroups[name], state, clock)
                      for name in self.nodes}  # fmt: skip
        names = [*self.nodes, *(at.switch_name(site.id) for site in lab.sites)]
        self._queues: dict[str, asyncio.Queue[Effect]] = {
            name: asyncio.Queue(EFFECTS_MAX) for name in names
        }
        self._busy: dict[str, int] = dict.fromkeys(names, 0)
        self._failures: dict[str, str] = {}  # of the last order, by node
        self._stopping: dict[str, asyncio.Task[None]] = {}

    def place(self, node: str) -> Place:
        """Return where a node's processes live."""
        return Place(
            node, at.namespace(self.lab.name, node), self.cgroups[node].path, self.state.bpf(node)
        )

    def _queue_effects(self, node: str, effects: Effects) -> None:
        for effect in effects:
            self._busy[node] += 1
            self._queues[node].put_nowait(effect)

    async def run(self) -> None:
        """Serve until cancelled."""
        certificate = self.state.certificate.read_text(encoding="ascii")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.state.certificate, self.state.key)
        server = RedfishServer(self.clock, tls)
        await server.start()
        devices: list[NodeDescription | PduDescription] = [*self.nodes.values(), *self.lab.pdus()]
        for device in devices:
            await self._serve_device(server, device, certificate)
        self._adopt()
        control = await asyncio.start_unix_server(
            self._converse, self.state.socket, limit=LINE_BYTES_MAX
        )
        write_pid(self.state.pidfile, os.getpid())
        async with asyncio.TaskGroup() as tasks:
            for name in self._queues:
                tasks.create_task(self._perform_of(name))
            tasks.create_task(self._advance())
            tasks.create_task(self._sample())
            tasks.create_task(control.serve_forever())

    async def _serve_device(
        self, server: RedfishServer, device: NodeDescription | PduDescription, certificate: str
    ) -> None:
        is_pdu = isinstance(device, PduDescription)
        address = at.bmc_address(self.lab, device)
        identity = Identity(
            name=device.name,
            address=address,
            port=at.REDFISH_PORT,
            mac=at.mac_address(self.lab, device.site_number, device.host, 255),
            product="Lab rack PDU" if is_pdu else "Lab BMC",
            certificate_pem=certificate,
            started_s=self.clock.now_s(),
        )
        credentials = self.lab.credentials
        accounts = Accounts(credentials.user, credentials.password, os.urandom)
        service = RedfishService(identity, accounts, self.clock.now_s)
        (install_pdu if is_pdu else install_bmc)(service, self.rig, device.name)
        namespace = at.namespace(self.lab.name, at.bmc_name(device.site))
        listener = kernel.listen(namespace, address, at.REDFISH_PORT)
        machine = self.rig.machines.get(device.name)
        await server.serve(
            listener,
            Device(
                service,
                fault=lambda: self.rig.fault(device.name),
                dead=lambda: machine is not None and machine.state is State.DARK,
            ),
        )
        if isinstance(device, PduDescription) and device.speech is not PduSpeech.REDFISH:
            agent = snmp_pdu(self.rig, device.name, device.speech, credentials.community)
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: agent, sock=kernel.datagrams(namespace, address, at.SNMP_PORT)
            )

    def _adopt(self) -> None:
        """Take over nodes that run already: this process was restarted, they were not."""
        for name, cgroup in self.cgroups.items():
            if cgroup.populated():
                self.rig.machines[name].adopt(self.clock.monotonic_s())
                self.inits[name].start(self.state.load_services(name), adopt=True)

    async def _perform_of(self, name: str) -> None:
        """Perform one node's effects, in order."""
        queue = self._queues[name]
        while True:
            effect = await queue.get()
            try:
                if name in self.nodes:
                    await self._perform(name, effect)
                else:
                    await asyncio.to_thread(self._power_switch, name, effect)
            except NuageError as error:
                self._failures.setdefault(name, f"{effect.value}: {error.message}")
                _log.error("effect failed", node=name, effect=effect.value, error=error.message)
            finally:
                self._busy[name] -= 1

    async def _perform(self, node: str, effect: Effect) -> None:
        match effect:
            case Effect.BUILD:
                await asyncio.to_thread(self._build, node)
            case Effect.START:
                self.inits[node].start(self.state.load_services(node))
            case Effect.TERMINATE:
                self._stopping[node] = asyncio.create_task(self._terminate(node))
            case Effect.KILL:
                await self._kill(node)

    async def _terminate(self, node: str) -> None:
        await self.inits[node].terminate()
        self.rig.act(node, self.rig.machine(node).emptied(self.clock.monotonic_s()))

    async def _kill(self, node: str) -> None:
        stopping = self._stopping.pop(node, None)
        if stopping is not None and stopping is not asyncio.current_task():
            stopping.cancel()
        self.inits[node].forget()
        cgroup = self.cgroups[node]
        cgroup.kill()
        while cgroup.populated():
            await self.clock.sleep(KILL_POLL_S)
        await asyncio.to_thread(self._dismantle, node)

    def _build(self, node: str) -> None:
        self._dismantle(node)
        self.cgroups[node].create()
        self.state.node(node).mkdir(parents=True, exist_ok=True)
        for disk in self.nodes[node].hardware.disks:
            self.state.disk(node, disk.name).mkdir(parents=True, exist_ok=True)
        kernel.mount_bpf(self.state.bpf(node))
        kernel.apply(node_plan(self.lab, self.nodes[node]))
        if self.nodes[node].role is NodeRole.EDGE:
            self._cut_again(self.nodes[node])

    def _cut_again(self, edge: NodeDescription) -> None:
        """Keep dead lines dead when the edge's power comes back."""
        for cut in self.state.load_cuts():
            if cut.site != edge.site or cut.how != "carrier":
                continue
            for number, provider in enumerate(self.lab.providers, start=1):
                if cut.provider in (0, number):
                    namespace = at.namespace(self.lab.name, provider)
                    kernel.configure({namespace: [f"link set {wan_port(edge)} down"]})

    def _dismantle(self, node: str) -> None:
        namespace = at.namespace(self.lab.name, node)
        if kernel.namespaces(namespace):
            kernel.configure(lines_without(self.lab, self.nodes[node]))
            kernel.unplug(far_ends(self.lab, self.nodes[node]))
            kernel.delete_namespaces([namespace])
        kernel.unmount_below(self.state.bpf(node))
        self.cgroups[node].remove()

    def _power_switch(self, name: str, effect: Effect) -> None:
        """A rack switch without power forwards nothing, and its ports have no carrier."""
        order = "up" if effect is Effect.BUILD else "down"
        lines = [f"link set br0 {order}", f"link set brm {order}"]
        kernel.configure({at.namespace(self.lab.name, name): lines})

    async def _advance(self) -> None:
        while True:
            self._due_changed.clear()
            wait_s = self.rig.advance()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._due_changed.wait()

    async def _sample(self) -> None:
        while True:
            await self.clock.sleep(SAMPLE_EVERY_S)
            self.rig.sample_all()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            writer.write(encode(await self._answer(line)))
            await writer.drain()
        except (ConnectionError, ValueError) as error:
            _log.warning("control connection failed", error=str(error))
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            request: Request = msgspec.json.decode(line, type=Request)
            return await self._obey(request)
        except UNREADABLE as error:
            return Answer(code="invalid_request", error=str(error))
        except NuageError as error:
            field = error.field if isinstance(error, InvalidRequest) else ""
            return Answer(code=error.code, error=error.message, hint=error.hint, field=field)

    async def _obey(self, request: Request) -> Answer:
        match request:
            case SetServices():
                self._require(request.node)
                self.state.save_services(request.node, request.services)
                await self.inits[request.node].change(request.services)
            case Power():
                await self._power(request)
            case SetWeather():
                self.rig.set_weather(request.site, request.celsius)
                self.state.save_weather(self.rig.outside_celsius)
            case SetFault():
                fault = Fault(request.silent, request.slow_s, request.jump_watts)
                self.rig.set_fault(request.device, fault)
            case AskStatus():
                return Answer(status=self.status())
        return Answer()

    def _require(self, node: str) -> None:
        if node not in self.nodes:
            raise NotFound("node", node, hint="nodes: " + ", ".join(self.nodes))

    async def _power(self, request: Power) -> None:
        node = request.node
        self._require(node)
        machine, now_s = self.rig.machine(node), self.clock.monotonic_s()
        if machine.state is State.DARK:
            raise InvalidRequest(f"the outlet of {node} is off", field="node")
        match request.order:
            case "on":
                effects, wanted = machine.power_on(now_s), State.ON
            case "off":
                effects, wanted = machine.shut_down(now_s), State.OFF
            case "kill":
                effects, wanted = machine.force_off(now_s), State.OFF
            case "cycle":
                effects, wanted = machine.force_restart(now_s), State.ON
                if not effects:
                    effects = machine.power_on(now_s)
        if effects:
            self._failures.pop(node, None)
        self.rig.act(node, effects)
        self._due_changed.set()
        if request.wait:
            await self._wait_for(node, wanted)

    async def _wait_for(self, node: str, wanted: State) -> None:
        deadline_s = self.clock.monotonic_s() + WAIT_MAX_S
        machine = self.rig.machines[node]
        while machine.state is not wanted or self._busy[node] or machine.deadline_s is not None:
            if self.clock.monotonic_s() > deadline_s:
                raise TimedOut(f"{node} to be {wanted.value}", after_s=WAIT_MAX_S)
            await self.clock.sleep(WAIT_POLL_S)
        if failure := self._failures.get(node):
            hint = f"`nuage lab power {node} cycle` tries again"
            raise Unavailable(f"{node} is not as it should be: {failure}", hint=hint)

    def status(self) -> LabStatus:
        """Return how everything is."""
        return LabStatus(
            name=self.lab.name,
            hardware_pid=os.getpid(),
            sites=self._site_status(),
            nodes=tuple(self._node_status(node) for node in self.nodes.values()),
            pdus=tuple(self._pdu_status(pdu) for pdu in self.lab.pdus()),
        )

    def _site_status(self) -> tuple[SiteStatus, ...]:
        cuts = self.state.load_cuts()
        return tuple(
            SiteStatus(
                name=site.id,
                place=site.place,
                operator=site.operator.name,
                watts=sum(
                    self.rig.pdu_watts(pdu.name) for pdu in self.lab.pdus() if pdu.site == site.id
                ),
                capacity_watts=site.power_capacity_watts,
                outside_celsius=self.rig.outside_celsius[site.id],
                cuts=tuple(cut.words() for cut in sorted(cuts) if site.id in (cut.site, cut.other)),
            )
            for site in self.lab.sites
        )

    def _node_status(self, node: NodeDescription) -> NodeStatus:
        machine = self.rig.machine(node.name)
        return NodeStatus(
            name=node.name,
            site=node.site,
            role=node.role.value,
            state=machine.state.value,
            address=at.address(self.lab, node),
            bmc_url=at.bmc_url(self.lab, node),
            watts=round(machine.outlet_watts, 2),
            kwh=machine.energy_joules / 3.6e6,
            utilisation=machine.utilisation,
            services=self.inits[node.name].status(),
        )

    def _pdu_status(self, pdu: PduDescription) -> PduStatus:
        return PduStatus(
            name=pdu.name,
            site=pdu.site,
            url=at.bmc_url(self.lab, pdu),
            watts=round(self.rig.pdu_watts(pdu.name), 2),
            kwh=self.rig.pdu_kwh(pdu.name),
            outlets_off=tuple(each.feeds for each in self.rig.outlets[pdu.name] if not each.on),
        )


async def _main(state: StateDirectory) -> None:
    lab = state.load_description()
    if lab is None:
        raise NotFound("lab description", str(state.path))
    # In the lab's cgroup, so that whoever removes the lab finds this process without its pid.
    own = Cgroup.of_lab(lab.name).child("hardware")
    own.create()
    own.enter()
    serving = asyncio.create_task(Hardware(lab, state, SystemClock()).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(arguments: list[str]) -> None:
    """Run the hardware process."""
    uvloop.run(_main(StateDirectory(Path(arguments[0]), Path(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
