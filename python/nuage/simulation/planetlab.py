"""A day of PlanetLab load on CloudSim's reference datacenter, under two sets of rules.

*Compat*: CloudSim 3.0.3's rules, as its power package runs them. Only CPU counts: memory is not
enforced, an empty host draws nothing, switching is free. Comparable with published tables.

*Honest*: memory is a hard limit, a host boots for 120 s at full power, an idle host draws until
it is off, and migrations cost energy.

Setup of both: 800 hosts in turn HP ML110 G4 (2 × 1,860 MIPS) and G5 (2 × 2,660), 4 GiB each; VMs
of four sizes by quarter of the list (sorted by file name); 288 samples of 5 minutes; a
migration sends the VM's memory at half of 1 Gb/s and costs it 10 % of its CPU meanwhile.

Model of a step: demand is that of the sample. What a host draws over a step is the mean of its
power after this step's moves and before the next one's. As CloudSim counts, a host is in
violation while it gives less than is asked: over its capacity until the moves that cure it have
finished, else for the whole step; with a VM that asks more than a core for the whole step; and
while it receives a VM, which it counts in full and serves at a tenth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nuage.energy.power_curve import HP_ML110_G4, HP_ML110_G5
from nuage.errors import InvalidRequest
from nuage.placement.table import watts_at
from nuage.units import JOULES_PER_KWH

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STEP_S: Final = 300.0
STEPS: Final = 288
HOSTS: Final = 800
HOST_MIPS: Final = (2 * 1860.0, 2 * 2660.0)
CORES: Final = 2
HOST_MEMORY_MB: Final = 4096.0
VM_MIPS: Final = (2500.0, 2000.0, 1000.0, 500.0)
VM_MEMORY_MB: Final = (870.0, 1740.0, 1740.0, 613.0)
MIGRATION_MB_PER_S: Final = 62.5  # half of 1 Gb/s
DEGRADED_SHARE: Final = 0.1
BOOT_S: Final = 120.0
MIGRATION_JOULES_PER_MB: Final = 0.5
NOWHERE: Final = -1
_WATTS_PER_MIPS: Final = tuple(
    (curve.peak_watts - curve.idle_watts) / mips
    for curve, mips in zip((HP_ML110_G4, HP_ML110_G5), HOST_MIPS, strict=True)
)


@dataclass(frozen=True, slots=True, eq=False)
class Day:
    """Demand in MIPS, (vms, 288), and the VMs' sizes."""

    demand: Floats
    vm_mips: Floats
    vm_memory_mb: Floats


def load_day(folder: Path) -> Day:
    """Read a folder of PlanetLab traces: one file per VM, 288 lines of per cent.

    Raises:
        InvalidRequest: a file does not have 288 whole per cents; it is named.
    """
    rows = []
    for path in sorted(folder.iterdir()):
        try:
            row = [int(line) for line in path.read_text().split()]
        except ValueError as error:
            raise InvalidRequest(f"{path.name} is no trace: {error}", field="folder") from error
        if len(row) < STEPS or not all(0 <= value <= 100 for value in row):
            raise InvalidRequest(f"{path.name} is no trace of {STEPS} per cents", field="folder")
        rows.append(row[:STEPS])
    if not rows:
        raise InvalidRequest(f"{folder} holds no trace", field="folder")
    quarter = ceil(len(rows) / len(VM_MIPS))
    kinds = np.arange(len(rows)) // quarter
    mips = np.array(VM_MIPS)[kinds]
    return Day(np.array(rows) / 100.0 * mips[:, None], mips, np.array(VM_MEMORY_MB)[kinds])


@dataclass(slots=True)
class Datacenter:
    """800 hosts, what runs where, and what each policy may look at: the past."""

    day: Day
    enforce_memory: bool
    step: int = 0
    capacity: Floats = field(init=False)
    curves: Floats = field(init=False)
    place: Ints = field(init=False)
    moves: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = np.arange(HOSTS) % 2
        self.capacity = np.array(HOST_MIPS)[kinds]
        self.curves = np.array([HP_ML110_G4.watts, HP_ML110_G5.watts])[kinds]
        self.place = np.full(len(self.day.vm_mips), NOWHERE, np.int64)

    @property
    def now(self) -> Floats:
        """Each VM's demand at this step."""
        column: Floats = self.day.demand[:, self.step]
        return column

    def load(self, per_vm: Floats) -> Floats:
        """Return the sum of a VM column per host."""
        placed = self.place >= 0
        total = np.zeros(HOSTS)
        np.add.at(total, self.place[placed], per_vm[placed])
        return total

    def active(self) -> npt.NDArray[np.bool_]:
        """Return which hosts run a VM."""
        return np.bincount(self.place[self.place >= 0], minlength=HOSTS) > 0

    def move(self, vm: int, host: int) -> None:
        """Migrate a VM, or place it for the first time (which is no migration)."""
        if self.place[vm] >= 0 and self.place[vm] != host:
            self.moves.append(vm)
        self.place[vm] = host

    def watts(self) -> Floats:
        """Return each host's watts at this step's demand; an empty host draws nothing."""
        share = np.minimum(self.load(self.now) / self.capacity, 1.0)
        drawn: Floats = watts_at(self.curves, share) * self.active()
        return drawn


class Policy(Protocol):
    """Decides placements at the start and moves at each step."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    def begin(self, center: Datacenter) -> None:
        """Place every VM."""
        ...

    def step(self, center: Datacenter) -> None:
        """Move what should move, from what has been seen up to this step."""
        ...


@dataclass(frozen=True, slots=True)
class DayResult:
    """A day under one policy; shares are 0 to 1."""

    policy: str
    energy_kwh: float
    migration_count: int
    overload_share: float  # SLATAH: of active host time
    degraded_share: float  # PDM: of requested MIPS
    host_count_mean: float
    boot_count: int

    @property
    def slav(self) -> float:
        """SLAV = SLATAH × PDM."""
        return self.overload_share * self.degraded_share


@dataclass(slots=True)
class _Books:
    joules: float = 0.0
    migrations: int = 0
    violated_s: float = 0.0
    active_s: float = 0.0
    degraded: float = 0.0
    requested: float = 0.0
    boots: int = 0


def run_day(
    day: Day, policy: Policy, *, honest: bool, on_step: Callable[[], None] = lambda: None
) -> DayResult:
    """Run a policy over a day under the honest rules, or CloudSim's; `on_step` hears of each."""
    center = Datacenter(day, enforce_memory=honest)
    books = _Books()
    policy.begin(center)
    center.moves.clear()
    was_active = center.active()
    after = center.watts()  # the day begins with these hosts on, under either rules
    for step in range(STEPS):
        center.step = step
        if step > 0:
            books.joules += STEP_S * float((after + center.watts()).sum()) / 2.0
        before_load = center.load(center.now)
        before_place = center.place.copy()
        if step > 0:  # as CloudSim: the first look is after one step
            policy.step(center)
        _book_step(center, books, before_load, before_place)
        is_active = center.active()
        books.boots += int((is_active & ~was_active).sum()) if honest else 0
        was_active = is_active
        after = center.watts()
        on_step()
    books.joules += STEP_S * float(after.sum())
    if honest:
        peak = float(center.curves[:, -1].mean())
        books.joules += books.boots * BOOT_S * peak
    return DayResult(
        policy.name,
        books.joules / JOULES_PER_KWH,
        books.migrations,
        books.violated_s / books.active_s,
        books.degraded / books.requested,
        books.active_s / (STEPS * STEP_S),
        books.boots,
    )


def _book_step(center: Datacenter, books: _Books, before: Floats, before_place: Ints) -> None:
    """Book violations, degradation and (honest) what migrations cost."""
    demand, memory = center.now, center.day.vm_memory_mb
    took_s = memory / MIGRATION_MB_PER_S
    cured_s, received_s = np.zeros(HOSTS), np.zeros(HOSTS)
    for vm in center.moves:
        source, target = before_place[vm], center.place[vm]
        cured_s[source] = max(cured_s[source], took_s[vm])
        received_s[target] = max(received_s[target], took_s[vm])
        books.degraded += DEGRADED_SHARE * demand[vm] * took_s[vm]
        if center.enforce_memory:
            # Sent from one end, received at the other, and the source idles until it is done.
            books.joules += MIGRATION_JOULES_PER_MB * memory[vm]
    books.migrations += len(center.moves)
    center.moves.clear()
    now = center.load(demand)
    over_before = before > center.capacity + 1e-9
    over_after = now > center.capacity + 1e-9
    over_after[center.place[demand > center.capacity[center.place] / CORES + 1e-9]] = True
    passing_s = np.maximum(received_s, np.where(over_before, cured_s, 0.0))
    violated_s = np.where(over_after, STEP_S, passing_s)
    active = center.active() | (np.bincount(before_place[before_place >= 0], minlength=HOSTS) > 0)
    books.violated_s += float(violated_s[active].sum())
    books.active_s += float(center.active().sum()) * STEP_S
    books.requested += float(demand.sum()) * STEP_S


def memory_bound_kwh(day: Day) -> float:
    """Return the fluid bound under honest rules: memory packed without a gap, all day.

    As many of the cheapest hosts as that takes, though there may be fewer, and the cheapest slope.
    """
    hosts = ceil(float(day.vm_memory_mb.sum()) / HOST_MEMORY_MB)
    idle = hosts * min(HP_ML110_G4.idle_watts, HP_ML110_G5.idle_watts)
    busy = float(day.demand.mean(axis=1).sum()) * min(_WATTS_PER_MIPS)
    return (idle + busy) * STEPS * STEP_S / JOULES_PER_KWH


def whole_vms_bound_kwh(day: Day, hosts: int) -> float:
    """Return what no placement of whole VMs under honest rules can go below.

    `hosts` is the fewest that hold the VMs' memory (`consolidation.pack_memory`). They idle all
    day: G4s as far as there are any, then G5s. A MIPS costs what the lower convex hulls of the
    curves say: the first 30 % of a G5, its rest, then the G4s' chord. A G5 in a G4's place never
    pays: it idles 7.7 W higher, and saves 3.1 W at most.
    """
    g5 = max(hosts - HOSTS // 2, 0)
    left = day.demand.sum(axis=0)
    watts = np.full(STEPS, (hosts - g5) * HP_ML110_G4.idle_watts + g5 * HP_ML110_G5.idle_watts)
    knee = HP_ML110_G5.at(0.3)
    for added, mips in (
        (g5 * (knee - HP_ML110_G5.idle_watts), g5 * HOST_MIPS[1] * 0.3),
        (g5 * (HP_ML110_G5.peak_watts - knee), g5 * HOST_MIPS[1] * 0.7),
    ):
        taken = np.minimum(left, mips)
        watts += taken * (added / mips if mips else 0.0)
        left = left - taken
    watts += left * _WATTS_PER_MIPS[0]
    return float(watts.mean()) * STEPS * STEP_S / JOULES_PER_KWH
