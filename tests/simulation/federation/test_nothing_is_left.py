"""What a federation remembers of IaaSes, VMs and volumes goes with them, however many there were.

A tour makes an IaaS with a VM and a volume, moves the VM to another site and back, and takes all of
it down. Whatever a site's controller and its agents hold is counted after the first tour and after
more: a table that has grown by each would fill the memory of a process that runs for years.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterator

from tests.simulation.federation.test_volumes_step_by_step import Storage
from tests.simulation.federation.whole_sites import RELEASE_LOOK_S

from nuage.iaas.building import CreateIaas, NameIaas
from nuage.iaas.machines import CreateVm, MigrateVm, NameVm
from nuage.iaas.volumes import AttachVolume, CreateVolume, NameVolume
from nuage.ids import SiteId
from nuage.model.contract import AckPolicy, Contract
from nuage.model.iaas import Iaas
from nuage.model.vm import Vm, VmState
from nuage.model.volume import Erasure, Volume
from nuage.simulation.virtual_time import run_virtually
from nuage.units import MIB

TOURS = 3
LYON, MARNE = SiteId("lyon"), SiteId("marne")
CONTRACT = Contract(copies=2, copy_sites=2, ack_policy=AckPolicy.ALL)
KEPT_ON_PURPOSE = {
    # The history of changes, which other sites resume from, and what stands in it.
    "MemoryCatalogue._events", "MemoryCatalogue._tail",
    "RankedCandidate.terms", "NodeStatus.portals", "NodeStatus.replica_addresses",
    # That an IaaS was: its ledgers can still be proven.
    "Table._records", "Table._by_name", "Table._by_iaas",
    "FederationIndex._visible", "FederationIndex._copies", "FederationIndex._names",
    # The last so many.
    "MasterAgent._elected", "NodeTable.touched",
    # What the simulation writes down.
    "FakeHypervisor.acts", "FakeDaemon.acts", "SimIonode.daemons", "SimIonode.told",
    "QuorumState.events",
}  # fmt: skip


def of_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("nuage.")


def fields(thing: object) -> Iterator[tuple[str, object]]:
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(thing, name):
                yield name, getattr(thing, name)


def held(roots: list[tuple[str, object]]) -> Counter[str]:
    """Return how many entries each table of our objects has, those inside of tables added up."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        name, thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict | set | list | deque | tuple | frozenset):
            inner = list(thing.values()) if isinstance(thing, dict) else list(thing)
            if not isinstance(thing, tuple | frozenset):
                counts[name] += len(thing)
            waiting += [(name, each) for each in inner]
        elif of_ours(thing) and not isinstance(thing, type):
            waiting += [(f"{type(thing).__qualname__}.{n}", each) for n, each in fields(thing)]
    return counts


class Tours(Storage):
    """A federation that is used, and left as it was found."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.wires.slow_share = 0.0

    def roots(self) -> list[tuple[str, object]]:
        return [
            (f"{type(holder).__name__}.{name}", part)
            for site in self.sites.values()
            for holder in (site, *site.vnodes, *site.ionodes)
            for name, part in fields(holder)
            if of_ours(part) or type(part) is dict
        ]

    async def tour(self, name: str) -> None:
        lyon = self.sites[LYON]
        await lyon.perform("iaas.create", CreateIaas(name=name, contract=CONTRACT))
        await self.until(lambda: self._knows(name), "all know the IaaS")
        await lyon.perform("vm.create", CreateVm(iaas=name, name="w", image="guest", site="lyon"))
        await lyon.perform(
            "volume.create", CreateVolume(iaas=name, name="data", size_bytes=16 * MIB)
        )
        await self._come_to(name, LYON)
        for there in (MARNE, LYON):
            await lyon.perform("vm.migrate", MigrateVm(iaas=name, vm="w", site=there))
            await self._come_to(name, there)
        await lyon.perform("volume.attach", AttachVolume(name, "data", "w"))
        await self.settle("attached")
        await lyon.perform("volume.detach", NameVolume(name, "data"))
        await lyon.perform("vm.delete", NameVm(iaas=name, vm="w"))
        await lyon.perform("volume.delete", NameVolume(name, "data"))
        await self.until(lambda: not self._has_any(name), "nothing is left of it")
        await lyon.perform("iaas.delete", NameIaas(iaas=name))
        await asyncio.sleep(5.0)
        await self.settle("the IaaS is gone")
        await asyncio.sleep(2 * RELEASE_LOOK_S)

    def kinds(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.sites[LYON].index._copies)

    async def _come_to(self, name: str, there: SiteId) -> None:
        await self.until(lambda: self._runs_at(name, there), f"it is at {there}")
        await asyncio.sleep(8.0)  # its disk follows
        await self.settle("it has come")
        await self.until(lambda: self._runs_at(name, there), f"it is well at {there}")

    def _knows(self, name: str) -> bool:
        return all(site.index.is_name_taken(Iaas, name) for site in self.sites.values())

    def _runs_at(self, name: str, there: SiteId) -> bool:
        index = self.sites[LYON].index
        iaas = index.iaas_named(name)
        (vm,) = index.of_iaas(Vm, iaas.iaas_id)
        is_well = vm.state is VmState.RUNNING and vm.migrating_to is None and not vm.failure
        return vm.site_id == there and is_well

    def _has_any(self, name: str) -> bool:
        return any(
            site.index.has_any(kind, site.index.iaas_named(name).iaas_id)
            for site in self.sites.values()
            for kind in (Vm, Volume, Erasure)
        )


def test_nothing_is_remembered_of_what_is_gone() -> None:
    """But that an IaaS was."""

    async def main() -> tuple[dict[str, int], Counter[str]]:
        tours = Tours(5)
        await tours.begin()
        await tours.tour("first")
        before, kinds_before = held(tours.roots()), tours.kinds()
        for number in range(TOURS):
            await tours.tour(f"t{number}")
        after = held(tours.roots())
        assert tours.bugs == []
        assert tours.breaches == []
        grown = {
            name: count - before[name]
            for name, count in after.items()
            if count - before[name] >= TOURS and name not in KEPT_ON_PURPOSE
        }
        return grown, tours.kinds() - kinds_before

    grown, records = run_virtually(main())
    assert grown == {}
    assert records == Counter({"past-iaas": TOURS})
