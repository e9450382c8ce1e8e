"""Use cases on the data keys of IaaSes: unlock, shred; and how a key reaches the IO-nodes.

An IO-node that wants a key says so in its reports; its site gives it, over the channel between
them, if it is unlocked there. A tenant's key goes to all sites and is kept by none.
"""

import asyncio
from dataclasses import dataclass, field, replace

import structlog

from nuage.errors import Conflict, InvalidRequest, NotFound, NuageError
from nuage.iaas.operations import NamesIaas, Operation, OperationTable, anywhere, iaas_scope
from nuage.iaas.site import Site
from nuage.ids import IaasId, SiteId
from nuage.model.desired import IonodeReport, SetKey
from nuage.model.iaas import KEY_SHREDDED, Iaas, IaasKey
from nuage.model.infrastructure import Datacenter
from nuage.model.vm import PowerWish, Vm, VmState
from nuage.model.volume import Volume
from nuage.trust.permissions import Principal

SET_KEY_METHOD = "ionode.set-key"
UNLOCK_METHOD = "iaas.unlock-here"
ASK_TIMEOUT_S = 10.0
AT_REST = frozenset({VmState.STOPPED, VmState.FAILED})
UNREADABLE = "its data key was destroyed: what it held can never be read"
log = structlog.get_logger("keys")


@dataclass(frozen=True, slots=True)
class UnlockIaas:
    """Give the tenant's key of an IaaS to the federation's sites, until they restart."""

    iaas: str
    tenant_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ShredIaas:
    """Destroy the data key of an IaaS; `confirm` repeats its name."""

    iaas: str
    confirm: str


@dataclass(frozen=True, slots=True)
class UnlockHere:
    """A site passes a tenant's key on to another, with what it opens."""

    key: IaasKey
    tenant_key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlocked:
    """Where an IaaS is unlocked now; `silent` sites did not answer."""

    sites: tuple[SiteId, ...]
    silent: tuple[SiteId, ...]


def key_of(site: Site, iaas: Iaas) -> IaasKey:
    """Return the record of an IaaS's data key.

    Raises:
        NotFound: it is not encrypted.
    """
    key = site.index.find_value(IaasKey, iaas.iaas_id)
    if key is None:
        raise NotFound("data key", iaas.name, hint="`nuage iaas create --encrypted` makes one")
    return key


def require_key(site: Site, iaas_id: IaasId) -> None:
    """Refuse at once what nothing can come of any more.

    Raises:
        Conflict: the data key of the IaaS was destroyed.
    """
    if site.index.is_shredded(iaas_id):
        iaas = site.index.value(Iaas, iaas_id)
        raise Conflict(
            f"the data key of {iaas.name} was destroyed: nothing of it can be read or written",
            hint="what is left can be shown, proven and deleted",
        )


def unlock_here(site: Site, asked: UnlockHere) -> None:
    """Unlock an IaaS at this site."""
    site.keyring.unlock(asked.key, asked.tenant_key)


async def unlock_iaas(site: Site, _principal: Principal, body: UnlockIaas) -> Unlocked:
    """Unlock an IaaS here and at every site that answers."""
    iaas = site.index.iaas_named(body.iaas)
    unlocked = await unlock_everywhere(site, key_of(site, iaas), body.tenant_key)
    site.announce("iaas", iaas.iaas_id, "unlocked", f"IaaS {iaas.name} is unlocked")
    return unlocked


async def unlock_everywhere(site: Site, key: IaasKey, tenant_key: str) -> Unlocked:
    """Unlock a data key here and at every site that answers.

    Raises:
        Locked: the data key was destroyed.
        Forbidden: that is not the tenant's key.
    """
    asked = UnlockHere(key, tenant_key)
    unlock_here(site, asked)
    others = [d.site_id for d in site.index.values(Datacenter) if d.site_id != site.site_id]

    async def one(site_id: SiteId) -> bool:
        try:
            await site.others.ask(
                site_id, UNLOCK_METHOD, asked, type(None), timeout_s=ASK_TIMEOUT_S
            )
        except NuageError as error:
            log.info("not unlocked", site=site_id, error=error.message)
            return False
        return True

    done = await asyncio.gather(*(one(site_id) for site_id in others))
    pairs = list(zip(others, done, strict=True))
    return Unlocked(
        sites=tuple(sorted([site.site_id, *(s for s, is_done in pairs if is_done)])),
        silent=tuple(sorted(s for s, is_done in pairs if not is_done)),
    )


async def shred_iaas(site: Site, _principal: Principal, body: ShredIaas) -> None:
    """Destroy the data key of an IaaS: what its volumes hold can never be read again.

    Journals, receipts and proofs stay: they cover what is stored, not what it means.
    """
    iaas = site.index.iaas_named(body.iaas)
    key = key_of(site, iaas)
    if body.confirm != iaas.name:
        raise InvalidRequest(f"repeat the name: {iaas.name}", field="confirm")
    _require_at_rest(site, iaas)
    await site.save(replace(key, key_id=KEY_SHREDDED, sealed="", earlier=""))
    site.keyring.forget(iaas.iaas_id)
    text = f"the data key of {iaas.name} is destroyed: its data is gone for good"
    site.announce("iaas", iaas.iaas_id, "shredded", text)


def _require_at_rest(site: Site, iaas: Iaas) -> None:
    """Refuse to destroy a data key while somebody works with it."""
    vms = site.index.of_iaas(Vm, iaas.iaas_id)
    running = [v.name for v in vms if v.wish is PowerWish.RUNNING or v.state not in AT_REST]
    if running:
        raise Conflict(f"{', '.join(running[:8])} still run", hint="stop them first")
    volumes = site.index.of_iaas(Volume, iaas.iaas_id)
    used = [volume.name for volume in volumes if volume.host is not None]
    if used:
        raise Conflict(f"hosts have {', '.join(used[:8])}", hint="detach them first")


async def give_keys(site: Site, report: IonodeReport) -> None:
    """Give an IO-node of this site the keys that it wants and that are unlocked here."""
    for iaas_id in report.locked:
        record = site.index.find_value(IaasKey, iaas_id)
        keys = () if record is None else site.keyring.data_keys(record)
        if not keys:
            continue
        newest, *earlier = (key.hex() for key in keys)
        given = SetKey(iaas_id=iaas_id, key=newest, earlier=tuple(earlier))
        try:
            await site.nodes.ask(
                report.node_id, SET_KEY_METHOD, given, type(None), timeout_s=ASK_TIMEOUT_S
            )
        except NuageError as error:
            log.warning("key not given", iaas=iaas_id, node=report.node_id, error=error.message)


def key_home(site: Site, body: NamesIaas) -> SiteId:
    """Let the site that made the key answer."""
    iaas = site.index.iaas_named(body.iaas)
    key_of(site, iaas)
    return site.index.home("iaas-key", iaas.iaas_id)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="iaas.unlock",
            verb="POST",
            path="/v1/iaas/{iaas}/unlock",
            body=UnlockIaas,
            result=Unlocked,
            action="iaas.unlock",
            summary="Unlock an IaaS with its tenant's key, until its sites restart",
            run=unlock_iaas,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="iaas.shred",
            verb="POST",
            path="/v1/iaas/{iaas}/shred",
            body=ShredIaas,
            result=type(None),
            action="iaas.shred",
            summary="Destroy the data key of an IaaS: its data is gone for good",
            run=shred_iaas,
            scope=iaas_scope,
            home=key_home,
        )
    )
