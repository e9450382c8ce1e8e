"""Another contract for an IaaS that is there: what exists lies within it, or is brought there.

What runs or lies where the new contract forbids it is moved by its owner first. Copies are made and
taken away by the home of each volume, step by step (`iaas.heads`).
"""

from dataclasses import dataclass, replace

from nuage.errors import Conflict
from nuage.iaas.building import require_sound
from nuage.iaas.heads import choose_place
from nuage.iaas.operations import Operation, OperationTable, Shown, iaas_home, iaas_scope
from nuage.iaas.promises import Promises
from nuage.iaas.showing import show
from nuage.iaas.site import Site
from nuage.ids import SiteId
from nuage.model.contract import Contract, require_satisfiable
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal


@dataclass(frozen=True, slots=True)
class ChangeContract:
    """Put another contract on an IaaS; what exists must meet it, but for copies to come."""

    iaas: str
    contract: Contract


async def change_contract(site: Site, _principal: Principal, body: ChangeContract) -> Shown[Iaas]:
    """Put another contract on an IaaS, if what it has lies within it, or can.

    Raises:
        Conflict: something lies or runs where the contract forbids it.
        NoCandidate: a volume has no place for one more copy; each refusal is kept.
    """
    iaas = site.index.iaas_named(body.iaas)
    require_sound(site, body.contract)
    changed = replace(iaas, contract=body.contract)
    volumes = [v for v in site.index.of_iaas(Volume, iaas.iaas_id) if not v.is_template]
    _require_none(_outside(site, changed))
    coming = Promises()
    grown = [_with_copies_to_come(site, changed, volume, coming) for volume in volumes]
    _require_none(
        [
            f"{volume.name} would have {len(_staying(volume))} copies in {count} sites"
            for volume in grown
            if (count := len(set(_staying(volume)))) < body.contract.copy_sites
        ]
    )
    await site.save(changed)
    more = len(set(grown) - set(volumes))
    told = f"contract of {iaas.name} changed"
    told += f"; copies are made of {more} of its volumes" if more else ""
    site.announce("iaas", iaas.iaas_id, "contract", told)
    return show(site, changed)


def _outside(site: Site, iaas: Iaas) -> list[str]:
    """Return what runs or lies where the contract of `iaas` forbids it."""
    allowed = set(require_satisfiable(iaas.contract, site.index.values(Datacenter)))
    outside = [
        f"{vm.name} runs at {vm.site_id}"
        for vm in site.index.of_iaas(Vm, iaas.iaas_id)
        if vm.site_id is not None and vm.site_id not in allowed
    ]
    outside += [
        f"a copy of {volume.name} lies at {place.site_id}"
        for volume in site.index.of_iaas(Volume, iaas.iaas_id)
        for place in volume.replicas
        if place.site_id not in allowed
    ]
    return outside


def _require_none(outside: list[str]) -> None:
    if outside:
        raise Conflict(
            f"the new contract forbids what exists: {'; '.join(outside)}",
            hint="move these first, then change the contract",
        )


def _with_copies_to_come(site: Site, iaas: Iaas, volume: Volume, coming: Promises) -> Volume:
    """Return a volume as it will lie with as many copies as the contract asks for."""
    while len(_staying(volume)) < iaas.contract.copies:
        place = choose_place(site, iaas, volume, coming=coming)
        coming.add(place.node_id, volume.iaas_id, volume.size_bytes)
        volume = replace(volume, replicas=(*volume.replicas, place))
    return volume


def _staying(volume: Volume) -> list[SiteId]:
    """Return where the copies lie that do not leave."""
    return [p.site_id for p in volume.replicas if p.node_id not in volume.leaving]


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="iaas.contract",
            verb="PUT",
            path="/v1/iaas/{iaas}/contract",
            body=ChangeContract,
            result=Shown[Iaas],
            action="iaas.contract",
            summary="Put another contract on an IaaS",
            run=change_contract,
            scope=iaas_scope,
            home=iaas_home,
            is_one_write=True,
        )
    )
