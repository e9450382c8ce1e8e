"""Which sites may continue a VM whose home is gone, in the order in which they try. Pure."""

from collections.abc import Collection

from nuage.iaas.index import FederationIndex
from nuage.ids import SiteId
from nuage.model.contract import CutOffRule, refusal_of_site
from nuage.model.iaas import Iaas
from nuage.model.infrastructure import Datacenter
from nuage.model.vm import Vm
from nuage.model.volume import Volume
from nuage.storage.heads import whole_copies


def fails_over(index: FederationIndex, vm: Vm) -> bool:
    """Tell whether another site may continue a VM, by its contract as it is known here."""
    iaas = index.find_value(Iaas, vm.iaas_id)
    return iaas is not None and iaas.contract.cut_off is CutOffRule.FAIL_OVER


def successors(index: FederationIndex, vm: Vm, *, alive: Collection[SiteId]) -> list[SiteId]:
    """Return the live sites that the contract allows and that hold a copy of every disk of `vm`.

    The order is the order of the copies: all sites that know the same records agree on it; if
    they do not, the quorum still lets only one win.
    """
    iaas = index.find_value(Iaas, vm.iaas_id)
    if iaas is None:
        return []
    order: list[SiteId] | None = None
    for volume_id in vm.volumes:
        volume = index.find_value(Volume, volume_id)
        if volume is None:
            return []
        holders = list(dict.fromkeys(place.site_id for place in whole_copies(volume)))
        order = holders if order is None else [site for site in order if site in holders]
    allowed = []
    for site_id in order or []:
        site = index.find_value(Datacenter, site_id)
        if site is not None and site_id in alive and refusal_of_site(iaas.contract, site) is None:
            allowed.append(site_id)
    return allowed
