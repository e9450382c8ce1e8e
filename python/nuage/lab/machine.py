"""One emulated machine: power states, watts and joules. A synchronous machine without I/O.

Theory of operation. Events (`power_on`, `force_off`, `shut_down`, `outlet`, `advance`) take
the time and return effects for the caller to perform: build the machine's network, start its
daemons, terminate them, kill them. `sample` takes the CPU time the node's processes have used
so far; power is the curve at the utilisation since the last sample, energy is its integral.

Fault model. An outlet that loses power takes the machine and its BMC with it. A graceful
shutdown whose processes do not end by the deadline becomes a forced one, as a person with a
finger on the button would make it.
"""

from enum import Enum
from typing import Final

from nuage.lab.description import Hardware

SAMPLE_WINDOW_MIN_S: Final = 0.5  # below this the kernel's counters make utilisation noisy
SHUTDOWN_PATIENCE_S: Final = 20.0  # then power is cut; systemd's own default is 90 s
REBOOT_GAP_S: Final = 0.2  # capacitors empty


class State(Enum):
    """What a machine is doing."""

    DARK = "dark"  # its outlet is off: no standby power, the BMC does not answer
    OFF = "off"
    POST = "post"
    ON = "on"
    STOPPING = "stopping"


class Effect(Enum):
    """What the caller has to do, in the order returned."""

    BUILD = "build"  # the network exists from now on
    START = "start"  # init starts the daemons
    TERMINATE = "terminate"  # init asks them to end
    KILL = "kill"  # everything of the node ends, its network goes


Effects = tuple[Effect, ...]
NOTHING: Final[Effects] = ()


class Machine:
    """A machine with its power supply."""

    def __init__(self, hardware: Hardware, *, now_s: float, restore_power: bool = True) -> None:
        self.hardware = hardware
        self.state = State.OFF
        self.restore_power = restore_power
        self.energy_joules = 0.0
        self.utilisation = 0.0
        self.boots = 0
        self._cpu_s = 0.0
        self._sampled_s = now_s
        self._deadline_s: float | None = None
        self._again = False
        self._was_on = False

    @property
    def is_powered(self) -> bool:
        """Tell what a BMC calls `PowerState: On`."""
        return self.state in (State.POST, State.ON, State.STOPPING)

    @property
    def deadline_s(self) -> float | None:
        """Return when `advance` has something to do, if nothing else happens."""
        return self._deadline_s

    @property
    def dc_watts(self) -> float:
        """Return what the boards draw now."""
        hardware = self.hardware
        match self.state:
            case State.DARK:
                return 0.0
            case State.OFF:
                return hardware.standby_watts
            case State.POST:
                half = (hardware.idle_watts + hardware.peak_watts) / 2
                return half if hardware.boot_watts is None else hardware.boot_watts
            case State.ON | State.STOPPING:
                return curve_watts(hardware, self.utilisation)

    @property
    def outlet_watts(self) -> float:
        """Return what the outlet delivers: the boards' watts and the supply's loss."""
        return self.dc_watts / self.hardware.psu_efficiency

    def sample(self, now_s: float, cpu_s: float) -> None:
        """Take the node's CPU seconds so far; integrate energy since the last sample."""
        elapsed_s = now_s - self._sampled_s
        if self.is_powered and self.state is not State.POST:
            if elapsed_s < SAMPLE_WINDOW_MIN_S:
                return
            used_s = max(0.0, cpu_s - self._cpu_s)
            self.utilisation = min(1.0, used_s / (elapsed_s * self.hardware.cpu_count))
        self._cpu_s = cpu_s
        self._integrate(now_s)

    def power_on(self, now_s: float) -> Effects:
        """Press the button of a machine that is off; nothing when it is on or dark."""
        if self.state is not State.OFF:
            return NOTHING
        self._become(State.POST, now_s)
        self.boots += 1
        self._deadline_s = now_s + self.hardware.boot_seconds
        return (Effect.BUILD,)

    def force_off(self, now_s: float) -> Effects:
        """Cut the power from the boards."""
        if not self.is_powered:
            return NOTHING
        self._become(State.OFF, now_s)
        return (Effect.KILL,)

    def shut_down(self, now_s: float, *, then_restart: bool = False) -> Effects:
        """Ask the operating system to end; during POST there is none to ask."""
        if self.state is State.POST:
            effects = self.force_off(now_s)
            return self._restart_soon(now_s, effects) if then_restart else effects
        if self.state is not State.ON:
            return NOTHING
        self._become(State.STOPPING, now_s)
        self._again = then_restart
        self._deadline_s = now_s + SHUTDOWN_PATIENCE_S
        return (Effect.TERMINATE,)

    def force_restart(self, now_s: float) -> Effects:
        """Cut the power and give it back."""
        if not self.is_powered:
            return NOTHING
        return self._restart_soon(now_s, self.force_off(now_s))

    def emptied(self, now_s: float) -> Effects:
        """The operating system ended all its processes by itself."""
        if self.state is not State.STOPPING:
            return NOTHING
        again = self._again
        effects = self.force_off(now_s)
        return self._restart_soon(now_s, effects) if again else effects

    def outlet(self, now_s: float, *, on: bool) -> Effects:
        """The outlet that feeds the machine is switched."""
        if not on and self.state is not State.DARK:
            was_on = self.is_powered
            effects = (Effect.KILL,) if was_on else NOTHING
            self._become(State.DARK, now_s)
            self._was_on = was_on
            return effects
        if on and self.state is State.DARK:
            was_on = self._was_on
            self._become(State.OFF, now_s)
            if was_on and self.restore_power:
                return self._restart_soon(now_s, NOTHING)
        return NOTHING

    def advance(self, now_s: float) -> Effects:
        """Do what is due by now."""
        if self._deadline_s is None or now_s < self._deadline_s:
            return NOTHING
        self._deadline_s = None
        match self.state:
            case State.POST:
                self._become(State.ON, now_s)
                return (Effect.START,)
            case State.STOPPING:
                return self.emptied(now_s)
            case State.OFF:
                return self.power_on(now_s)
            case State.ON | State.DARK:
                return NOTHING

    def adopt(self, now_s: float) -> None:
        """Take over a machine that is running already (the lab's process was restarted)."""
        self._become(State.ON, now_s)

    def _restart_soon(self, now_s: float, effects: Effects) -> Effects:
        self._deadline_s = now_s + REBOOT_GAP_S
        return effects

    def _become(self, state: State, now_s: float) -> None:
        self._integrate(now_s)
        self.state = state
        self.utilisation = 0.0
        self._deadline_s = None
        self._again = False

    def _integrate(self, now_s: float) -> None:
        self.energy_joules += self.outlet_watts * max(0.0, now_s - self._sampled_s)
        self._sampled_s = now_s


def curve_watts(hardware: Hardware, utilisation: float) -> float:
    """Return the boards' watts at `utilisation` (0 to 1).

    Eleven points are joined by straight lines (SPECpower's levels); without them SimGrid's
    form holds: idle at zero, and from the first load on `idle + epsilon` up to peak.
    """
    load = min(1.0, max(0.0, utilisation))
    points = hardware.curve_watts
    if points:
        position = load * (len(points) - 1)
        index = min(int(position), len(points) - 2)
        return points[index] + (points[index + 1] - points[index]) * (position - index)
    if load == 0.0:
        return hardware.idle_watts
    foot = hardware.idle_watts + hardware.epsilon_watts
    return foot + (hardware.peak_watts - foot) * load
