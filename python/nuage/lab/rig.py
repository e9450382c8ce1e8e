"""All the hardware of a lab as one synchronous thing: machines, outlets, weather, faults.

The Redfish documents read it and the Redfish actions write it; whoever owns it performs
the effects. It knows no socket, process or namespace, so tests run it on a clock of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nuage.clock import Clock
from nuage.errors import InvalidRequest, NotFound
from nuage.lab.description import LabDescription, NodeDescription, PduDescription
from nuage.lab.machine import Effect, Effects, Machine
from nuage.units import JOULES_PER_KWH

PDU_SELF_WATTS: Final = 6.0
INLET_RISE_CELSIUS: Final = 2.0  # filters and fans warm the outside air by so much
SUPPLY_SET_POINT_CELSIUS: Final = 20.0  # above, the container's air conditioning holds it
SUPPLY_FLOOR_CELSIUS: Final = 17.0  # below, return air is mixed in


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a BMC or PDU. The zero value is a healthy one."""

    silent: bool = False
    slow_s: float = 0.0
    jump_watts: float = 0.0


@dataclass(slots=True)
class Outlet:
    """An outlet of a PDU. Delays are in seconds, as Redfish's `Outlet` has them."""

    index: int
    feeds: str
    on: bool = True
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    cycle_delay_s: float = 1.0
    restore_delay_s: float = 0.0
    label: str = ""
    locate: bool = False
    consumer: str = ""
    pending: list[tuple[float, bool]] = field(default_factory=list)
    energy_base_joules: float = 0.0


@dataclass(slots=True)
class SwitchLoad:
    """The rack's switch: a constant load with its own energy count."""

    watts: float
    energy_joules: float = 0.0
    since_s: float = 0.0


class Rig:
    """The hardware of one lab."""

    def __init__(
        self,
        lab: LabDescription,
        clock: Clock,
        *,
        cpu_seconds: Callable[[str], float],
        perform: Callable[[str, Effects], None],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.lab = lab
        self.clock = clock
        self._cpu_seconds = cpu_seconds
        self._perform = perform
        self._wake = wake
        now_s = clock.monotonic_s()
        self.nodes: dict[str, NodeDescription] = {node.name: node for node in lab.nodes()}
        self.pdus: dict[str, PduDescription] = {pdu.name: pdu for pdu in lab.pdus()}
        self.machines = {
            name: Machine(node.hardware, now_s=now_s) for name, node in self.nodes.items()
        }
        self.outlets = {
            name: [
                Outlet(index, feeds, label=feeds, consumer=feeds)
                for index, feeds in enumerate(pdu.outlets, start=1)
            ]
            for name, pdu in self.pdus.items()
        }
        self.switches = {
            name: SwitchLoad(pdu.switch_watts, since_s=now_s) for name, pdu in self.pdus.items()
        }
        self.outside_celsius = {site.id: site.outside_celsius for site in lab.sites}
        self.faults: dict[str, Fault] = {}
        self.peak_watts: dict[str, tuple[float, float]] = {}
        self._started_s = now_s

    def act(self, node: str, effects: Effects) -> None:
        """Have the owner perform what a machine asked for, and look when more is due."""
        if effects:
            self._perform(node, effects)
        self._wake()

    def machine(self, node: str) -> Machine:
        """Return a machine, its counters brought up to now."""
        try:
            machine = self.machines[node]
        except KeyError:
            raise NotFound("node", node, hint="nodes: " + ", ".join(self.machines)) from None
        machine.sample(self.clock.monotonic_s(), self._cpu_seconds(node))
        return machine

    def node_watts(self, node: str) -> float:
        """Return what the node's BMC reads: the boards' watts, and the fault's jump if any."""
        return self.machine(node).dc_watts + self.fault(node).jump_watts

    def outlet_watts(self, pdu: str, outlet: Outlet) -> float:
        """Return what flows through one outlet."""
        if not outlet.on:
            return 0.0
        if outlet.feeds in self.machines:
            return self.machine(outlet.feeds).outlet_watts
        return self.switches[pdu].watts

    def outlet_kwh(self, pdu: str, outlet: Outlet) -> float:
        """Return what has flowed through one outlet since its counter was reset."""
        return (self._joules(pdu, outlet) - outlet.energy_base_joules) / JOULES_PER_KWH

    def pdu_watts(self, pdu: str) -> float:
        """Return what the PDU's mains deliver: all outlets, itself, and the fault's jump."""
        watts = PDU_SELF_WATTS + sum(self.outlet_watts(pdu, each) for each in self.outlets[pdu])
        return watts + self.fault(pdu).jump_watts

    def pdu_kwh(self, pdu: str) -> float:
        """Return what the mains have delivered since the lab's power came on."""
        own = PDU_SELF_WATTS * (self.clock.monotonic_s() - self._started_s)
        return (own + sum(self._joules(pdu, each) for each in self.outlets[pdu])) / JOULES_PER_KWH

    def note_peak(self, name: str, watts: float) -> tuple[float, float]:
        """Return (highest watts seen, when) of a sensor, this reading included."""
        peak = self.peak_watts.get(name)
        if peak is None or watts > peak[0]:
            peak = self.peak_watts[name] = (watts, self.clock.now_s())
        return peak

    def supply_celsius(self, site: str) -> float:
        """Return the air at the machines' inlets: outside air, mixed or cooled when need be."""
        warm = self.outside_celsius[site] + INLET_RISE_CELSIUS
        return min(SUPPLY_SET_POINT_CELSIUS, max(SUPPLY_FLOOR_CELSIUS, warm))

    def fault(self, device: str) -> Fault:
        """Return what is wrong with a BMC (by its node's name) or a PDU."""
        return self.faults.get(device, Fault())

    def set_fault(self, device: str, fault: Fault) -> None:
        """Make a BMC or PDU misbehave, or heal it."""
        if device not in self.nodes and device not in self.pdus:
            raise NotFound("BMC or PDU", device)
        self.faults[device] = fault

    def set_weather(self, site: str, celsius: float) -> None:
        """Change the outside temperature of a site."""
        self.lab.site(site)
        if not -60 <= celsius <= 60:
            raise InvalidRequest(f"{celsius} °C is no weather on Earth", field="celsius")
        self.outside_celsius[site] = celsius

    def switch_outlet(self, pdu: str, outlet: Outlet, order: str) -> None:
        """Obey Redfish's `PowerControl`: On, Off or PowerCycle, after the outlet's delays."""
        now_s = self.clock.monotonic_s()
        match order:
            case "On":
                outlet.pending = [(now_s + outlet.on_delay_s, True)]
            case "Off":
                outlet.pending = [(now_s + outlet.off_delay_s, False)]
            case "PowerCycle":
                off_s = now_s + outlet.off_delay_s
                outlet.pending = [(off_s, False), (off_s + outlet.cycle_delay_s, True)]
            case _:
                raise InvalidRequest(f"{order!r} is not On, Off or PowerCycle", field="PowerState")
        self._switch_due(pdu, outlet, now_s)
        self._wake()

    def advance(self) -> float | None:
        """Do what is due; return how many seconds until more is, or None."""
        now_s = self.clock.monotonic_s()
        for pdu, outlets in self.outlets.items():
            for outlet in outlets:
                self._switch_due(pdu, outlet, now_s)
        for name, machine in self.machines.items():
            if effects := machine.advance(now_s):
                self.act(name, effects)
        due = [m.deadline_s for m in self.machines.values() if m.deadline_s is not None]
        due += [o.pending[0][0] for outlets in self.outlets.values() for o in outlets if o.pending]
        return None if not due else max(0.0, min(due) - now_s)

    def sample_all(self) -> None:
        """Bring every counter up to now, so that energy follows load that came and went."""
        for name in self.machines:
            self.machine(name)

    def _switch_due(self, pdu: str, outlet: Outlet, now_s: float) -> None:
        while outlet.pending and outlet.pending[0][0] <= now_s:
            _, on = outlet.pending.pop(0)
            self._joules(pdu, outlet)
            outlet.on = on
            if outlet.feeds in self.machines:
                machine = self.machine(outlet.feeds)
                self.act(outlet.feeds, machine.outlet(now_s, on=on))
            else:
                self.act(outlet.feeds, (Effect.BUILD if on else Effect.KILL,))

    def _joules(self, pdu: str, outlet: Outlet) -> float:
        if outlet.feeds in self.machines:
            return self.machine(outlet.feeds).energy_joules
        load, now_s = self.switches[pdu], self.clock.monotonic_s()
        load.energy_joules += (load.watts if outlet.on else 0.0) * (now_s - load.since_s)
        load.since_s = now_s
        return load.energy_joules

    def reset_outlet(self, pdu: str, outlet: Outlet) -> None:
        """Set an outlet's energy count to zero."""
        outlet.energy_base_joules = self._joules(pdu, outlet)
