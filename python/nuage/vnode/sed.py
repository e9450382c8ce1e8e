"""The V-node's server daemon (SeD, paper §II-E): what this node can do, and at which power.

It measures, it does not judge: the Local Agent of the site answers bids from the last vector.
Utilisation comes from /proc, performance from one Linpack run (`energy.calibration`, kept on disk),
power from the meter it is given.
"""

import asyncio
import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nuage.clock import Clock
from nuage.energy.calibration import Calibration, calibrate
from nuage.energy.request_power import RequestPower
from nuage.ids import NodeId, SiteId, VmId
from nuage.model.placement import EstimationVector
from nuage.model.vm import VmShape
from nuage.units import MIB

VCPU_OVERCOMMIT: Final = 4.0  # vCPUs sold per core; memory is never oversold


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerReading:
    """The node's draw; `source` is outlet, bmc, rapl or model."""

    watts: float
    source: str
    read_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What does not change while the agent runs."""

    node_id: NodeId
    site_id: SiteId
    accelerator: str
    cpu_count: int
    memory_mib: int
    idle_watts: float = 0.0
    peak_watts: float = 0.0
    boot_time_s: float = 0.0
    boot_energy_joules: float = 0.0
    vcpu_overcommit: float = VCPU_OVERCOMMIT


Meter = Callable[[], PowerReading | None]
Linpack = Callable[[Callable[[], float]], Calibration]


class CpuGauge:
    """Utilisation of all cores between two readings of /proc/stat."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._last = self._read()
        self._value = 0.0

    def _read(self) -> tuple[int, int]:
        ticks = [int(field) for field in self._path.read_text().split("\n", 1)[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks), idle

    def utilisation(self) -> float:
        """Return the busy share since the last call, 0 to 1; the last value when no tick passed."""
        total, idle = self._read()
        passed = total - self._last[0]
        if passed > 0:
            self._value = min(max(1.0 - (idle - self._last[1]) / passed, 0.0), 1.0)
            self._last = (total, idle)
        return self._value


class SliceGauge:
    """Utilisation of a node that is a slice of a machine: a cgroup with so many cores."""

    def __init__(self, path: Path, cpu_count: int, clock: Clock) -> None:
        self._path = path
        self._cpu_count = max(cpu_count, 1)
        self._clock = clock
        self._last = (self._read_s(), clock.monotonic_s())
        self._value = 0.0

    def _read_s(self) -> float:
        for line in self._path.read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        return 0.0

    def utilisation(self) -> float:
        """Return the busy share since the last call, 0 to 1."""
        used_s, now_s = self._read_s(), self._clock.monotonic_s()
        passed_s = now_s - self._last[1]
        if passed_s > 0:
            busy = (used_s - self._last[0]) / (passed_s * self._cpu_count)
            self._value = min(max(busy, 0.0), 1.0)
            self._last = (used_s, now_s)
        return self._value


def given_cpus(said: int) -> int:
    """Return the cores that a node gives to VMs: as its file says, or (0) all of the machine."""
    return said or os.cpu_count() or 1


def given_mib(said: int, total_mib: int | None = None) -> int:
    """Return the memory that a node gives to VMs: as its file says, or (0) what can be spared.

    An eighth of the machine, at least 512 MiB, stays for the system, QEMU and the agents.
    """
    if said:
        return said
    total = total_mib or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    return max(total - max(total // 8, 512), 0)


def available_mib(path: Path = Path("/proc/meminfo")) -> int:
    """Return the memory that can be had without swapping."""
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFlops:
    """A measured performance and the machine it holds for."""

    flops: float
    machine: str
    order: int
    residual: float


class Sed:
    """Fills the estimation vector of one node."""

    def __init__(
        self, facts: NodeFacts, *, clock: Clock, meter: Meter, cache: Path,
        gauge: CpuGauge | SliceGauge | None = None, linpack: Linpack = calibrate,
    ) -> None:  # fmt: skip
        self._facts = facts
        self._clock = clock
        self._meter = meter
        self._cache = cache
        self._gauge = gauge or CpuGauge()
        self._linpack = linpack
        self._flops = 0.0
        self._power = RequestPower()
        self.maintenance = False

    async def calibrate(self) -> float:
        """Measure the node's performance once per machine, as HPL does; the cache keeps it.

        Raises:
            CorruptData: the machine computes wrongly; the agent does not start on it.
        """
        machine = f"{_cpu_model()} x{self._facts.cpu_count}"
        known = _cached(self._cache)
        if known is None or known.machine != machine:
            known = await asyncio.to_thread(self._measured, machine)
        self._flops = known.flops
        return self._flops

    def _measured(self, machine: str) -> KeptFlops:
        """Measure, one node at a time: those that share a machine and its cache need one run."""
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        with self._cache.with_suffix(".lock").open("w", encoding="ascii") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            known = _cached(self._cache)
            if known is None or known.machine != machine:
                found = self._linpack(self._clock.monotonic_s)
                known = KeptFlops(
                    flops=found.flops * self._share_of_machine(),
                    machine=machine,
                    order=found.order,
                    residual=found.residual,
                )
                self._cache.write_bytes(msgspec.json.encode(known))
        return known

    def _share_of_machine(self) -> float:
        """Return the node's share of the cores that the run used: 1, but for a slice."""
        return self._facts.cpu_count / max(os.cpu_count() or 1, 1)

    def estimation_vector(self, running: Sequence[tuple[VmId, VmShape]]) -> EstimationVector:
        """Return what this node can do now; `running` are the guests it has started."""
        facts, now_s = self._facts, self._clock.now_s()
        reading = self._meter()
        sold_mib = sum(shape.memory_mib for _, shape in running)
        more = facts.vcpu_overcommit - 1.0  # of a preserved vCPU, which has its core alone
        sold_vcpus = sum(s.vcpu_count + math.ceil(s.preserved_vcpus * more) for _, s in running)
        utilisation = self._gauge.utilisation()
        vm_ids = tuple(vm_id for vm_id, _ in running)
        watts = None if reading is None else reading.watts
        self._power.observe(now_s, watts, utilisation, vm_ids)
        mean_watts, mean_utilisation = self._power.means()
        modelled = facts.idle_watts + utilisation * (facts.peak_watts - facts.idle_watts)
        return EstimationVector(
            node_id=facts.node_id,
            site_id=facts.site_id,
            sent_s=now_s,
            cpu_count=facts.cpu_count,
            vcpu_free=max(int(facts.cpu_count * facts.vcpu_overcommit) - sold_vcpus, 0),
            memory_free_mib=max(min(facts.memory_mib - sold_mib, available_mib()), 0),
            flops=self._flops,
            power_watts=modelled if reading is None else reading.watts,
            power_source="model" if reading is None else reading.source,
            power_read_s=now_s if reading is None else reading.read_s,
            idle_watts=facts.idle_watts,
            peak_watts=facts.peak_watts,
            cpu_utilisation=utilisation,
            mean_power_watts=mean_watts,
            mean_utilisation=mean_utilisation,
            requests_served=self._power.requests_served,
            vm_count=len(running),
            running=vm_ids,
            boot_time_s=facts.boot_time_s,
            boot_energy_joules=facts.boot_energy_joules,
            maintenance=self.maintenance,
            accelerator=facts.accelerator,
            vcpu_overcommit=facts.vcpu_overcommit,
        )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _cached(path: Path) -> KeptFlops | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=KeptFlops)
    return None
