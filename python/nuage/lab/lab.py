"""A lab as its users hold it: create the hardware, give nodes their daemons, switch, cut, destroy.

Synchronous: what is slow here is the kernel and the hardware process, not waiting peers.
`nuage.lab.commands` and `nuage.lab.assembly` are the callers.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from nuage import errors
from nuage.errors import Conflict, InvalidRequest, NotFound, NuageError, Unavailable
from nuage.lab import addresses as at
from nuage.lab import kernel
from nuage.lab.cabling import Cut, cut_ruleset, fabric_plan, wan_lines, wan_port
from nuage.lab.certificate import make_certificate
from nuage.lab.cgroup import ROOT_NAME, Cgroup, mount_point
from nuage.lab.control import (
    Answer,
    AskStatus,
    LabStatus,
    Power,
    PowerOrder,
    Request,
    Service,
    SetFault,
    SetServices,
    SetWeather,
    encode,
)
from nuage.lab.description import (
    LabDescription,
    NodeDescription,
    PduDescription,
    PduSpeech,
    load_description,
)
from nuage.lab.launch import Place
from nuage.lab.rig import Fault
from nuage.lab.state import STATE_ROOT, StateDirectory, read_pid

HARDWARE_START_MAX_S: Final = 20.0
HARDWARE_STOP_MAX_S: Final = 3.0
POLL_S: Final = 0.02
ANSWER_MAX_S: Final = 150.0  # a graceful shutdown may take its 20 s on a busy machine
PARALLEL_ORDERS: Final = 8

Report = Callable[[str], None]


def _quiet(_message: str) -> None:
    """Report to nobody."""


class Lab:
    """One lab, whether it is up or not."""

    def __init__(self, description: LabDescription, state: StateDirectory) -> None:
        self.description = description
        self.state = state
        self._nodes = {node.name: node for node in description.nodes()}

    @classmethod
    def open(
        cls, description: LabDescription | Path, state_dir: Path | None = None, *, name: str = ""
    ) -> "Lab":
        """Return the lab of a description, under another name if one is given.

        Raises:
            InvalidRequest: the description is wrong; `field` names where.
        """
        if isinstance(description, Path):
            description = load_description(description)
        if name:
            description = msgspec.structs.replace(description, name=name)
        return cls(description, StateDirectory.of(description.name, state_dir))

    @classmethod
    def existing(cls, name: str, state_dir: Path | None = None) -> "Lab":
        """Return a lab that was created before, or raise NotFound."""
        state = StateDirectory.of(name, state_dir)
        description = state.load_description()
        if description is None:
            raise NotFound("lab", name, hint="`nuage lab list` shows the labs of this machine")
        return cls(description, state)

    @staticmethod
    def names() -> list[str]:
        """Return the labs of which this machine has state, namespaces or processes."""
        found = {entry.name for entry in _entries(STATE_ROOT) if entry.is_dir()}
        found |= {name.split(".")[1] for name in kernel.namespaces("nuage.") if name.count(".") > 1}
        with contextlib.suppress(NuageError):
            found |= {e.name for e in _entries(mount_point() / ROOT_NAME) if e.is_dir()}
        return sorted(found)

    # What a node is and where ------------------------------------------------------------

    def node(self, name: str) -> NodeDescription:
        """Return a node, or raise NotFound with the names there are."""
        try:
            return self._nodes[name]
        except KeyError:
            return self.description.node(name)

    def namespace(self, node: str) -> str:
        """Return the network namespace of a node, as `ip netns` names it."""
        return at.namespace(self.description.name, self.node(node).name)

    def address(self, node: str) -> str:
        """Return a node's address on its site's network."""
        return at.address(self.description, self.node(node))

    def wan_addresses(self, site: str, edge: int = 1) -> tuple[str, ...]:
        """Return the addresses of a site's edge on each provider's line."""
        lab = self.description
        number, count = lab.site_number(site), len(lab.providers)
        return tuple(at.wan_addresses(lab, number, p + 1, edge)[1] for p in range(count))

    def bmc_url(self, node: str) -> str:
        """Return the root of a node's Redfish service; its trust anchor is `certificate`."""
        return at.bmc_url(self.description, self.node(node))

    def pdu_url(self, pdu: str) -> str:
        """Return where a PDU is read: the root of its Redfish service, or its SNMP agent."""
        for each in self.description.pdus():
            if each.name == pdu and each.speech is PduSpeech.REDFISH:
                return at.bmc_url(self.description, each)
            if each.name == pdu:
                return f"snmp://{at.bmc_address(self.description, each)}"
        raise NotFound("PDU", pdu)

    @property
    def certificate(self) -> Path:
        """Return the PEM file that every BMC and PDU of this lab is known by."""
        return self.state.certificate

    def disk(self, node: str, disk: str) -> Path:
        """Return the directory that stands for a disk of a node."""
        if disk not in {each.name for each in self.node(node).hardware.disks}:
            raise NotFound("disk", f"{node}/{disk}")
        return self.state.disk(node, disk)

    def log(self, node: str, service: str) -> Path:
        """Return where a service's output goes."""
        return self.state.log(node, service)

    def command(self, node: str, argv: Sequence[str]) -> list[str]:
        """Return `argv` wrapped to run as one of the node's processes (it dies with its power)."""
        kernel.require_namespace(self.namespace(node), "running node")
        cgroup = Cgroup.of_lab(self.description.name).child(node)
        place = Place(node, self.namespace(node), cgroup.path, self.state.bpf(node))
        return place.command(argv)

    # Life ----------------------------------------------------------------------------------

    def create_hardware(self, report: Report = _quiet) -> None:
        """Build the networks and start BMCs and PDUs. Nothing happens when they are there.

        Nodes are off afterwards; `power_on` them once their services are set.

        Raises:
            Unavailable: this machine cannot host a lab; the message says what it lacks.
            Conflict: a lab of this name exists with another description.
        """
        kernel.require_able()
        mount_point()
        kernel.check_writable(self.state.path)
        with self._lock():
            before = self.state.load_description()
            if before is not None and before != self.description and self.state.built.exists():
                raise Conflict(
                    f"lab {self.description.name!r} is up with another description",
                    hint=f"`nuage lab down --name {self.description.name}` first, or another name",
                )
            if not self.state.built.exists():
                self._remove(report)  # what a crash in the middle may have left
                kernel.check_writable(self.state.path)
                self._build(report)
            elif not self._stands():
                self._clear(report)  # the machine was restarted: state and disks stay
                self._raise_fabric(report)
            if read_pid(self.state.pidfile) is None:
                report("BMCs and PDUs")
                self._start_hardware()

    def _stands(self) -> bool:
        """Tell whether the networks are there, as they are not after a reboot."""
        prefix = at.namespace_prefix(self.description.name)
        return set(fabric_plan(self.description).namespaces) <= set(kernel.namespaces(prefix))

    def _build(self, report: Report) -> None:
        lab = self.description
        self.state.save_description(lab)
        devices: list[NodeDescription | PduDescription] = [*lab.nodes(), *lab.pdus()]
        make_certificate(
            self.state.certificate, self.state.key,
            [at.bmc_address(lab, device) for device in devices],
        )  # fmt: skip
        self._raise_fabric(report)
        self.state.built.touch()

    def _raise_fabric(self, report: Report) -> None:
        report("switches, providers and management networks")
        Cgroup.of_lab(self.description.name).create()
        kernel.apply(fabric_plan(self.description))
        self._set_cuts(self.state.load_cuts())

    def _start_hardware(self) -> None:
        log = self.state.path / "hardware.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "nuage.lab.hardware",
                 str(self.state.path), str(self.state.disks)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
        deadline_s = time.monotonic() + HARDWARE_START_MAX_S
        while read_pid(self.state.pidfile) != process.pid:
            if process.poll() is not None:
                last = log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
                raise Unavailable(f"the lab's hardware process ended: {last}")
            if time.monotonic() > deadline_s:
                raise Unavailable(
                    f"the lab's hardware process did not start within {HARDWARE_START_MAX_S:.0f} s",
                    hint="this machine is busy; `nuage lab up` again goes on from here",
                )
            time.sleep(POLL_S)  # noqa: TID251 - waits for a process
        process.returncode = 0  # it lives on by design; nobody is to warn about that

    def destroy(self, report: Report = _quiet) -> None:
        """Remove everything of this lab, whatever state a crash left it in."""
        kernel.require_able()
        with self._lock():
            self._remove(report)

    def _remove(self, report: Report) -> None:
        self._clear(report)
        for directory in {self.state.path, self.state.disks}:
            shutil.rmtree(directory, ignore_errors=True)

    def _clear(self, report: Report) -> None:
        """Remove processes, namespaces and mounts; state and disks stay."""
        prefix = at.namespace_prefix(self.description.name)
        report("BMCs and PDUs")
        self._stop_hardware()
        report("nodes")
        Cgroup.of_lab(self.description.name).remove()
        for pid in kernel.processes_inside(prefix):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        report("networks")
        kernel.delete_namespaces(kernel.namespaces(prefix))
        kernel.unmount_below(self.state.path)

    def _stop_hardware(self) -> None:
        pid = read_pid(self.state.pidfile)
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + HARDWARE_STOP_MAX_S
        while read_pid(self.state.pidfile) == pid:
            if time.monotonic() > deadline_s:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)  # noqa: TID251 - waits for a process

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one `up` or `down` of this lab run at a time."""
        path = self.state.path.with_name(self.state.path.name + ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
            if not self.state.path.exists():
                path.unlink(missing_ok=True)

    # What nodes run ------------------------------------------------------------------------

    def set_services(self, node: str, services: Sequence[Service]) -> None:
        """Say what a node's init starts; a node that runs changes over at once."""
        names = [service.name for service in services]
        for service in services:
            if not service.argv or "/" in service.name or names.count(service.name) > 1:
                raise InvalidRequest(
                    f"service {service.name!r} of {node} needs a name of its own and a command",
                    field="services",
                )
        self._ask(SetServices(self.node(node).name, tuple(services)))

    def power_on(self, node: str, *, wait: bool = True) -> None:
        """Press a node's button; with `wait`, return once its operating system runs."""
        self._power(node, "on", wait=wait)

    def power_off(self, node: str, *, wait: bool = True) -> None:
        """Ask a node to shut down."""
        self._power(node, "off", wait=wait)

    def power_cycle(self, node: str, *, wait: bool = True) -> None:
        """Cut a node's power and give it back."""
        self._power(node, "cycle", wait=wait)

    def kill(self, node: str, *, wait: bool = True) -> None:
        """Cut a node's power: all its processes end at one stroke."""
        self._power(node, "kill", wait=wait)

    def power_on_all(self, report: Report = _quiet) -> None:
        """Power all nodes on at once and wait for them."""
        self.order_all(list(self._nodes), "on", report=report)

    def order_all(
        self, nodes: Sequence[str], order: PowerOrder, *, wait: bool = True, report: Report = _quiet
    ) -> None:
        """Give many nodes one order at once; with `wait`, return once all have followed it."""

        def settle(node: str) -> None:
            # A second cycle would be one; what follows a first is waited for as for "on".
            self._power(node, "on" if order == "cycle" else order, wait=True)
            report(node)

        with ThreadPoolExecutor(PARALLEL_ORDERS) as pool:
            for node in nodes:
                self._power(node, order, wait=False)
            if wait:
                list(pool.map(settle, nodes))

    def named(self, text: str) -> list[str]:
        """Return the nodes that a name means: one node, those of a site, or ``all``.

        Raises:
            NotFound: there is neither a node nor a site of that name.
        """
        if text == "all":
            return list(self._nodes)
        of_site = [name for name, node in self._nodes.items() if node.site == text]
        return of_site or [self.node(text).name]

    def _power(self, node: str, order: PowerOrder, *, wait: bool) -> None:
        self._ask(Power(self.node(node).name, order, wait))

    # Lines, weather, faults ------------------------------------------------------------------

    def cut(
        self, site: str, other: str = "", *, provider: str = "", how: str = "blackhole"
    ) -> None:
        """Cut a site's lines, or what goes between two sites.

        Args:
            site: the site that is cut off.
            other: cut only what goes between `site` and this one (blackhole only).
            provider: cut only this provider's line.
            how: ``blackhole`` looks well and delivers nothing; ``carrier`` is dead at both ends.
        """
        lab = self.description
        for name in filter(None, (site, other)):
            lab.site(name)
        if how not in ("blackhole", "carrier"):
            raise InvalidRequest(f"{how!r} is not blackhole or carrier", field="how")
        if other and (how == "carrier" or other == site):
            raise InvalidRequest(
                "between two sites there is no cable of their own to unplug",
                field="how", hint="use --how blackhole and two different sites",
            )  # fmt: skip
        number = 0
        if provider:
            if provider not in lab.providers:
                raise NotFound("provider", provider, hint=", ".join(lab.providers))
            number = lab.providers.index(provider) + 1
        self._require_up()
        self._set_cuts(self.state.load_cuts() | {Cut(site, other, number, how)})

    def heal(self, site: str, other: str = "") -> None:
        """Undo every cut of a site, or only those between two sites."""
        self.description.site(site)
        self._require_up()

        def stays(cut: Cut) -> bool:
            if other:
                return {cut.site, cut.other} != {site, other}
            return site not in (cut.site, cut.other)

        self._set_cuts(frozenset(filter(stays, self.state.load_cuts())))

    def _set_cuts(self, cuts: frozenset[Cut]) -> None:
        lab = self.description
        self.state.save_cuts(cuts)
        for number, provider in enumerate(lab.providers, start=1):
            namespace = at.namespace(lab.name, provider)
            ruleset = cut_ruleset(lab, number, cuts)
            kernel.run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], stdin=ruleset)
            ports = kernel.links(namespace)
            lines: list[str] = []
            for edge in (edge for site in lab.sites for edge in lab.edges(site.id)):
                if wan_port(edge) not in ports:
                    continue  # the edge has no power
                dead = any(
                    cut.how == "carrier" and cut.site == edge.site and cut.provider in (0, number)
                    for cut in cuts
                )
                if dead:
                    lines.append(f"link set {wan_port(edge)} down")
                else:
                    lines += wan_lines(lab, edge, number)
            kernel.configure({namespace: lines})

    def set_weather(self, site: str, celsius: float) -> None:
        """Change the outside temperature of a site."""
        self._ask(SetWeather(self.description.site(site).id, celsius))

    def set_fault(self, device: str, fault: Fault) -> None:
        """Make a BMC (by its node's name) or a PDU silent, slow or wrong; `Fault()` heals it."""
        self._ask(SetFault(device, fault.silent, fault.slow_s, fault.jump_watts))

    def status(self) -> LabStatus:
        """Return how everything is."""
        answer = self._ask(AskStatus())
        assert answer.status is not None, "a status is answered with one"
        return answer.status

    # The control socket ----------------------------------------------------------------------

    def _require_up(self) -> None:
        if read_pid(self.state.pidfile) is None:
            raise Unavailable(
                f"lab {self.description.name!r} is not up", hint="`nuage lab up` builds it"
            )

    def _ask(self, request: Request) -> Answer:
        self._require_up()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(ANSWER_MAX_S)
            try:
                channel.connect(str(self.state.socket))
                channel.sendall(encode(request))
                line = b"".join(iter(lambda: channel.recv(65536), b""))
            except OSError as error:
                raise Unavailable(f"the lab's hardware process does not answer: {error}") from error
        answer = msgspec.json.decode(line, type=Answer)
        if answer.code:
            raise _error(answer)
        return answer


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _error(answer: Answer) -> NuageError:
    """Return the hardware process's error as the one it was."""
    if answer.code == errors.InvalidRequest.code:
        return InvalidRequest(answer.error, field=answer.field, hint=answer.hint)
    kinds: dict[str, type[NuageError]] = {Unavailable.code: Unavailable, Conflict.code: Conflict}
    return kinds.get(answer.code, NuageError)(answer.error, hint=answer.hint)
