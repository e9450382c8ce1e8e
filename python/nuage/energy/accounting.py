"""Joules per VM, per IaaS and per site, that add up to the meters'.

A node's energy over an interval is shared out whole: the part above idle by CPU time, the idle
part by memory, and what no VM accounts for (the host itself, empty nodes) goes to the
site's own account `SITE_ACCOUNT`. Shares are whole millijoules by the largest remainder, so
every sum is exact, whatever the number of VMs. PUE adds the facility's part; price and carbon
are those of the site at the time.

The ledger is a value that is saved and loaded (`state`, `EnergyLedger(state)`), so accounts
survive restarts; its rows are the report: kWh, EUR and gCO2e per IaaS, site and month.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Final

from nuage.energy.tariffs import PARIS
from nuage.errors import InvalidRequest
from nuage.ids import IaasId, SiteId, VmId
from nuage.units import JOULES_PER_KWH

SITE_ACCOUNT: Final = IaasId("")  # what no IaaS asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class VmUse:
    """What a VM used of its node during an interval."""

    vm_id: VmId
    iaas_id: IaasId
    cpu_s: float
    memory_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInterval:
    """A node's meter over an interval, and who used it. `cpu_s` is all CPU time of the node."""

    site_id: SiteId
    begin_s: float
    end_s: float
    joules: float
    idle_watts: float
    cpu_s: float
    memory_mib: float
    uses: tuple[VmUse, ...]

    def __post_init__(self) -> None:
        if self.joules < 0:
            raise InvalidRequest("energy is not negative", field="joules")
        if self.end_s < self.begin_s:
            raise InvalidRequest("the interval ends before it begins", field="end_s")


def split_whole(total: int, weights: Sequence[float]) -> list[int]:
    """Share `total` out by weight, in whole numbers that add up to it (largest remainder)."""
    whole_weight = sum(weights)
    if whole_weight <= 0:
        return [total if index == 0 else 0 for index in range(len(weights))]
    exact = [total * weight / whole_weight for weight in weights]
    shares = [int(value) for value in exact]
    left = total - sum(shares)
    by_remainder = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    step = 1 if left > 0 else -1
    for index in range(abs(left)):
        shares[by_remainder[index % len(weights)]] += step
    return shares


def millijoules_of(interval: NodeInterval) -> dict[VmId | None, int]:
    """Return each VM's millijoules, and under None the node's own; they add up to the meter's."""
    total = round(interval.joules * 1000)
    idle = min(round(interval.idle_watts * (interval.end_s - interval.begin_s) * 1000), total)
    cpu = [max(use.cpu_s, 0.0) for use in interval.uses]
    memory = [max(use.memory_mib, 0.0) for use in interval.uses]
    own_cpu = max(interval.cpu_s - sum(cpu), 0.0)
    own_memory = max(interval.memory_mib - sum(memory), 0.0)
    active_shares = split_whole(total - idle, [own_cpu, *cpu])
    idle_shares = split_whole(idle, [own_memory, *memory])
    owners: list[VmId | None] = [None, *(use.vm_id for use in interval.uses)]
    shared: dict[VmId | None, int] = {}
    for owner, active, rest in zip(owners, active_shares, idle_shares, strict=True):
        shared[owner] = shared.get(owner, 0) + active + rest
    return shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One line of the ledger as it is saved. Facility joules are IT joules × PUE of their time."""

    month: str
    site_id: SiteId
    iaas_id: IaasId
    it_millijoules: int = 0
    facility_joules: float = 0.0
    cost_eur: float = 0.0
    carbon_g: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """An account told: kWh at the site's meter, EUR, gCO2e of an IaaS (or the site itself)."""

    month: str
    site_id: SiteId
    iaas_id: IaasId
    it_kwh: float
    facility_kwh: float
    cost_eur: float
    carbon_g: float


class EnergyLedger:
    """Accounts per (month, site, IaaS) and joules per VM."""

    def __init__(
        self,
        state: Iterable[Account] = (),
        *,
        vm_millijoules: Mapping[VmId, int] | None = None,
        zone: tzinfo = PARIS,
    ) -> None:
        self._accounts = {(a.month, a.site_id, a.iaas_id): a for a in state}
        self._zone = zone
        self._vm_millijoules: dict[VmId, int] = dict(vm_millijoules or {})

    def add(
        self,
        interval: NodeInterval,
        *,
        pue: float,
        price_eur_per_mwh: float,
        carbon_g_per_kwh: float,
    ) -> None:
        """Share an interval out and book it in the month in which it ended."""
        month = f"{datetime.fromtimestamp(interval.end_s, self._zone):%Y-%m}"
        iaas_of: dict[VmId | None, IaasId] = {use.vm_id: use.iaas_id for use in interval.uses}
        for vm_id, millijoules in millijoules_of(interval).items():
            key = (month, interval.site_id, iaas_of.get(vm_id, SITE_ACCOUNT))
            facility_joules = millijoules / 1000.0 * pue
            kwh = facility_joules / JOULES_PER_KWH
            before = self._accounts.get(key) or Account(
                month=month, site_id=interval.site_id, iaas_id=key[2]
            )
            self._accounts[key] = replace(
                before,
                it_millijoules=before.it_millijoules + millijoules,
                facility_joules=before.facility_joules + facility_joules,
                cost_eur=before.cost_eur + kwh * price_eur_per_mwh / 1000.0,
                carbon_g=before.carbon_g + kwh * carbon_g_per_kwh,
            )
            if vm_id is not None:
                self._vm_millijoules[vm_id] = self._vm_millijoules.get(vm_id, 0) + millijoules

    @property
    def state(self) -> tuple[Account, ...]:
        """Return what to save, sorted."""
        return tuple(self._accounts[key] for key in sorted(self._accounts))

    @property
    def vm_millijoules(self) -> dict[VmId, int]:
        """Return what each VM used, to save beside `state`."""
        return dict(self._vm_millijoules)

    def vm_joules(self, vm_id: VmId) -> float:
        """Return what a VM used here."""
        return self._vm_millijoules.get(vm_id, 0) / 1000.0

    def keep_vms(self, vm_ids: Container[VmId]) -> None:
        """Forget VMs that are gone; the accounts of their IaaSes keep what they used."""
        self._vm_millijoules = {v: j for v, j in self._vm_millijoules.items() if v in vm_ids}

    def rows(self) -> tuple[LedgerRow, ...]:
        """Return the report, by month, site and IaaS; the site's own account comes first."""
        return tuple(
            LedgerRow(
                month=account.month,
                site_id=account.site_id,
                iaas_id=account.iaas_id,
                it_kwh=account.it_millijoules / 1000.0 / JOULES_PER_KWH,
                facility_kwh=account.facility_joules / JOULES_PER_KWH,
                cost_eur=account.cost_eur,
                carbon_g=account.carbon_g,
            )
            for account in self.state
        )
