"""Policies for `planetlab`: the textbook's threshold one, to calibrate by, and ours.

`Threshold` is THR-MMT: a host above `limit` sends its smallest VMs away until it is below; each
goes where it adds the fewest watts; hosts that can be emptied are.

`Steady` moves little. It fills hosts to a margin drawn from what their VMs did lately (the
spread of five-minute changes), acts on a host only when it is over the brim, moves the one VM
that cures it, and empties a host only when there is a host too many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from nuage.errors import TimedOut
from nuage.placement.table import watts_at
from nuage.simulation.planetlab import HOST_MEMORY_MB, HOSTS, NOWHERE, Datacenter, Floats

SOLVE_S_MAX: Final = 20.0
SPREAD_KEPT: Final = 0.9  # how much of the old estimate a step keeps: twenty minutes or so


def _added_watts(center: Datacenter, load: Floats, mips: float) -> Floats:
    before = watts_at(center.curves, np.minimum(load / center.capacity, 1.0)) * (load > 0)
    after = watts_at(center.curves, np.minimum((load + mips) / center.capacity, 1.0))
    added: Floats = after - before
    return added


@dataclass(slots=True)
class Threshold:
    """THR-MMT at `limit`: overload by a fixed threshold, minimum migration time, power-aware."""

    limit: float = 0.8
    name: str = "THR-MMT"

    def begin(self, center: Datacenter) -> None:
        """Place by full size, largest first, where it adds the fewest watts."""
        _place_by_size(center)

    def step(self, center: Datacenter) -> None:
        """Unload hosts over the limit, then empty what can be emptied."""
        load = center.load(center.now)
        leaving = []
        for host in np.flatnonzero(load > self.limit * center.capacity).tolist():
            members = np.flatnonzero(center.place == host)
            for vm in members[np.argsort(center.day.vm_memory_mb[members], kind="stable")]:
                if load[host] <= self.limit * center.capacity[host]:
                    break
                load[host] -= center.now[vm]
                leaving.append(int(vm))
        over = load > self.limit * center.capacity
        self._rehome(center, load, leaving, over)
        self._empty(center, load)

    def _rehome(
        self, center: Datacenter, load: Floats, vms: list[int], barred: npt.NDArray[np.bool_]
    ) -> bool:
        for vm in sorted(vms, key=lambda v: -center.now[v]):
            mips = float(center.now[vm])
            fits = (load + mips <= self.limit * center.capacity) & ~barred
            fits[center.place[vm]] = False
            if not fits.any():
                return False
            cost = np.where(fits, _added_watts(center, load, mips), np.inf)
            host = int(cost.argmin())
            load[host] += mips
            center.move(vm, host)
        return True

    def _empty(self, center: Datacenter, load: Floats) -> None:
        tried = np.zeros(HOSTS, np.bool_)
        received = np.zeros(HOSTS, np.bool_)
        while True:
            active = center.active() & ~tried & ~received
            if not active.any():
                return
            share = np.where(active, load / center.capacity, np.inf)
            host = int(share.argmin())
            tried[host] = True
            members = np.flatnonzero(center.place == host).tolist()
            trial = load.copy()
            homes: list[tuple[int, int]] = []
            asleep = ~center.active()
            for vm in sorted(members, key=lambda v: -center.now[v]):
                mips = float(center.now[vm])
                fits = (trial + mips <= self.limit * center.capacity) & ~asleep & ~tried
                fits[host] = False
                if not fits.any():
                    break
                cost = np.where(fits, _added_watts(center, trial, mips), np.inf)
                target = int(cost.argmin())
                trial[target] += mips
                homes.append((vm, target))
            if len(homes) == len(members):
                for vm, target in homes:
                    center.move(vm, target)
                    received[target] = True
                trial[host] = 0.0
                load[:] = trial


@dataclass(slots=True)
class Steady:
    """Ours, CPU rules: few moves, margins from what VMs did lately."""

    margin: float = 0.7  # spreads left free when a host is filled
    floor: float = 0.04  # and at least this share
    brim: float = 0.98  # where a host has to give a VM away
    spare_hosts: float = 0.4  # emptied only beyond so many hosts too many
    name: str = "Nuage steady"
    _variance: Floats = field(default_factory=lambda: np.zeros(0))

    def begin(self, center: Datacenter) -> None:
        """Place by full size: nothing is known yet."""
        _place_by_size(center)
        self._variance = (0.05 * center.day.vm_mips) ** 2

    def step(self, center: Datacenter) -> None:
        """Learn, relieve, and empty a host when there is one too many."""
        if center.step > 0:
            change = center.now - center.day.demand[:, center.step - 1]
            self._variance = SPREAD_KEPT * self._variance + (1 - SPREAD_KEPT) * change**2
        load = center.load(center.now)
        spread = center.load(self._variance)
        self._relieve(center, load, spread)
        self._empty(center, load, spread)

    def room(self, center: Datacenter, load: Floats, spread: Floats) -> Floats:
        """Return the MIPS each host may still take."""
        free = np.maximum(self.margin * np.sqrt(spread), self.floor * center.capacity)
        left: Floats = center.capacity - free - load
        return left

    def _relieve(self, center: Datacenter, load: Floats, spread: Floats) -> None:
        for host in np.flatnonzero(load > self.brim * center.capacity).tolist():
            while load[host] > self.brim * center.capacity[host]:
                members = np.flatnonzero(center.place == host)
                excess = load[host] - (self.brim - 0.03) * center.capacity[host]
                demand = center.now[members]
                cures = demand >= excess
                # The quickest to move among those that cure alone, else the largest.
                if cures.any():
                    key = center.day.vm_memory_mb[members] * 10 + demand / 100.0
                    vm = int(members[np.where(cures, key, np.inf).argmin()])
                else:
                    vm = int(members[demand.argmax()])
                if not self._send(center, load, spread, vm, wake=True):
                    break

    def _send(
        self, center: Datacenter, load: Floats, spread: Floats, vm: int, *, wake: bool
    ) -> bool:
        mips, host = float(center.now[vm]), int(center.place[vm])
        left = self.room(center, load, spread + self._variance[vm])
        fits = (left >= mips) & (load > 0)
        fits[host] = False
        if fits.any():
            target = int(np.where(fits, left, np.inf).argmin())
        elif wake:
            asleep = (load <= 0) & (center.capacity == center.capacity.max())
            target = int(asleep.argmax())
        else:
            return False
        for column, amount in ((load, mips), (spread, float(self._variance[vm]))):
            column[host] -= amount
            column[target] += amount
        center.move(vm, target)
        return True

    def _empty(self, center: Datacenter, load: Floats, spread: Floats) -> None:
        while True:
            active = center.active()
            left = np.where(active, self.room(center, load, spread), 0.0)
            total_left = float(np.maximum(left, 0.0).sum())
            share = load / center.capacity
            slow = center.capacity < center.capacity.max()
            order = np.where(active, share - 1.0 * slow, np.inf)
            host = int(order.argmin())
            needed = load[host] + self.spare_hosts * center.capacity.max()
            if not np.isfinite(order[host]) or total_left - max(left[host], 0.0) < needed:
                return
            saved = load.copy(), spread.copy(), center.place.copy(), len(center.moves)
            members = np.flatnonzero(center.place == host)
            for vm in members[np.argsort(-center.now[members], kind="stable")].tolist():
                if not self._send(center, load, spread, vm, wake=False):
                    load[:], spread[:], center.place[:] = saved[0], saved[1], saved[2]
                    del center.moves[saved[3] :]
                    return
            load[host] = spread[host] = 0.0


@dataclass(slots=True)
class PackedByMemory:
    """Ours, honest rules: memory packed tight on the hosts that idle cheapest, then left alone.

    A host over its CPU capacity swaps nothing for the short peaks that a day shows; moving
    costs more than it cures when memory leaves no room anywhere.
    """

    name: str = "Nuage packed"

    def begin(self, center: Datacenter) -> None:
        """Fill hosts by the fewest-hosts packing, those that idle cheapest first."""
        sizes = center.day.vm_memory_mb
        left = {float(size): np.flatnonzero(sizes == size).tolist() for size in np.unique(sizes)}
        packing = pack_memory({size: len(vms) for size, vms in left.items()})
        cheapest = np.argsort(center.curves[:, 0], kind="stable").tolist()
        for host, content in zip(cheapest, packing, strict=False):
            for size in content:
                if left[size]:
                    center.move(int(left[size].pop()), host)

    def step(self, center: Datacenter) -> None:
        """Leave it: the placement is the memory's, and the day's VMs do not change."""


def pack_memory(counts: Mapping[float, int]) -> list[tuple[float, ...]]:
    """Return the contents of the fewest hosts that hold `counts` VMs of each size.

    Cutting stock over all patterns of a host, exact: there are few sizes. A packing may have
    places left over at its end.
    """
    sizes = tuple(sorted(counts, reverse=True))
    patterns = [pattern for pattern in _patterns(sizes, HOST_MEMORY_MB) if pattern]
    model = cp_model.CpModel()
    most = sum(counts.values())
    uses = [model.new_int_var(0, most, f"p{number}") for number in range(len(patterns))]
    for size in sizes:
        held = sum(p.count(size) * use for p, use in zip(patterns, uses, strict=True))
        model.add(held >= counts[size])
    model.minimize(sum(uses))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = SOLVE_S_MAX
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    if solver.solve(model) not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        raise TimedOut("packing memory", after_s=SOLVE_S_MAX)
    return [
        pattern
        for pattern, use in zip(patterns, uses, strict=True)
        for _ in range(solver.value(use))
    ]


def _patterns(sizes: Sequence[float], room: float) -> list[tuple[float, ...]]:
    """Return every content of a host, largest sizes first."""
    if not sizes:
        return [()]
    size = sizes[0]
    return [
        (size,) * number + rest
        for number in range(int(room // size), -1, -1)
        for rest in _patterns(sizes[1:], room - number * size)
    ]


def _place_by_size(center: Datacenter) -> None:
    load = np.zeros(HOSTS)
    memory = np.zeros(HOSTS)
    for vm in np.argsort(-center.day.vm_mips, kind="stable").tolist():
        mips, size = float(center.day.vm_mips[vm]), float(center.day.vm_memory_mb[vm])
        fits = (load + mips <= center.capacity) & (memory + size <= HOST_MEMORY_MB)
        cost = np.where(fits, _added_watts(center, load, mips), np.inf)
        host = int(cost.argmin()) if fits.any() else NOWHERE
        if host == NOWHERE:
            host = int((load / center.capacity).argmin())
        load[host] += mips
        memory[host] += size
        center.move(vm, host)
