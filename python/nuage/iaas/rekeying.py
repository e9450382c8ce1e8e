"""A data key that somebody knew who was revoked is followed by the next one.

An IO-node has the data keys of the IaaSes whose copies it keeps, and a datacenter's controllers can
unseal all that the federation holds. Once one of them is revoked, each IaaS that this concerns gets
a new data key; heads open once more, one by one, and write with it. What lay there before stays as
it was, readable with the key that it was written with: the revoked may have read it already.

Only the holder of a tenant's key can seal the next one; until then an event and `nuage iaas show`
tell that it is due.
"""

from dataclasses import dataclass, field

import structlog

from nuage.errors import NuageError
from nuage.iaas.building import NameIaas
from nuage.iaas.fabric_keys import newest_generation
from nuage.iaas.index import FederationIndex
from nuage.iaas.keys import Unlocked, key_home, key_of, unlock_everywhere
from nuage.iaas.operations import Operation, OperationTable, anywhere, iaas_scope
from nuage.iaas.site import Site
from nuage.ids import IaasId, NodeId, SiteId
from nuage.model.iaas import KEY_SHREDDED, Iaas, IaasKey, KeyHolder
from nuage.model.infrastructure import Node
from nuage.model.volume import Erasure, Volume
from nuage.trust.permissions import Principal

log = structlog.get_logger("keys")


@dataclass(frozen=True, slots=True)
class RekeyIaas:
    """Give an IaaS a new data key; with its tenant's key, where that seals it."""

    iaas: str
    tenant_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """The key that its heads write with from their next opening on, and who has it already."""

    key_id: str
    sites: tuple[SiteId, ...]
    silent: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStanding:
    """How the data key of an IaaS stands, as the site that was asked sees it.

    `is_unlocked`: that site has it in memory, or unseals it by itself. `is_due`: somebody who was
    revoked may know it.
    """

    holder: KeyHolder
    is_destroyed: bool
    is_unlocked: bool
    is_due: bool


def due_generation(index: FederationIndex, key: IaasKey, secret_generation: int) -> int | None:
    """Return of which generation the next key shall be, None: the present one is nobody else's.

    One is due when somebody who is believed no more has, or could unseal, the present one.
    """
    if key.key_id == KEY_SHREDDED:
        return None
    nodes = _keepers(index, key.iaas_id)
    revoked = (n.revoked_generation for i in nodes if (n := index.find_value(Node, i)) is not None)
    due = max((secret_generation, *revoked))
    return due if due > key.generation else None


def _keepers(index: FederationIndex, iaas_id: IaasId) -> set[NodeId]:
    volumes = index.of_iaas(Volume, iaas_id)
    erasures = [e for e in index.values(Erasure) if e.iaas_id == iaas_id]
    return {p.node_id for v in volumes for p in v.replicas} | {
        p.node_id for e in erasures for p in e.places
    }


class KeyWatch:
    """Has this site's IaaSes follow revocations with new data keys."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._told: set[tuple[IaasId, str]] = set()

    async def look(self) -> None:
        """Make what keys are due; called every second or so."""
        site = self._site
        for record in list(site.index.records("iaas-key")):
            key = record.value
            if record.home != site.site_id or not isinstance(key, IaasKey):
                continue
            due = due_generation(site.index, key, site.keyring.generation)
            iaas = site.index.find_value(Iaas, key.iaas_id)
            if due is None or iaas is None:
                continue
            if key.holder is KeyHolder.FEDERATION:
                await self._follow(iaas, key)
            elif (key.iaas_id, key.key_id) not in self._told:
                self._told.add((key.iaas_id, key.key_id))
                text = (
                    f"the data key of {iaas.name} is known to somebody who was revoked: "
                    f"`nuage iaas rekey {iaas.name} --key-file …`"
                )
                site.announce("iaas", iaas.iaas_id, "key-known", text)

    async def _follow(self, iaas: Iaas, key: IaasKey) -> None:
        try:
            await _make_next(self._site, iaas, key, "")
        except NuageError as error:
            log.warning("no new data key", iaas=iaas.iaas_id, error=error.message)


async def _make_next(site: Site, iaas: Iaas, key: IaasKey, tenant_key: str) -> IaasKey:
    due = due_generation(site.index, key, site.keyring.generation) or 0
    generation = max(newest_generation(site.index), key.generation, due)
    made = site.keyring.make_next(key, tenant_key, generation=generation)
    await site.save(made)
    text = f"{iaas.name} has a new data key: each volume writes with it once its head has reopened"
    site.announce("iaas", iaas.iaas_id, "rekeyed", text)
    return made


async def show_key(site: Site, _principal: Principal, body: NameIaas) -> KeyStanding:
    """Say who can unseal the data key of an IaaS, whether it is unlocked here, or is no more."""
    key = key_of(site, site.index.iaas_named(body.iaas))
    return KeyStanding(
        holder=key.holder,
        is_destroyed=key.key_id == KEY_SHREDDED,
        is_unlocked=bool(site.keyring.data_keys(key)),
        is_due=due_generation(site.index, key, site.keyring.generation) is not None,
    )


async def rekey_iaas(site: Site, _principal: Principal, body: RekeyIaas) -> Rekeyed:
    """Give an IaaS the next data key."""
    iaas = site.index.iaas_named(body.iaas)
    made = await _make_next(site, iaas, key_of(site, iaas), body.tenant_key)
    given = Unlocked(sites=(site.site_id,), silent=())
    if made.holder is KeyHolder.TENANT:
        given = await unlock_everywhere(site, made, body.tenant_key)
    return Rekeyed(key_id=made.key_id, sites=given.sites, silent=given.silent)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="iaas.key",
            verb="GET",
            path="/v1/iaas/{iaas}/key",
            body=NameIaas,
            result=KeyStanding,
            action="iaas.read",
            summary="Say how the data key of an IaaS stands",
            run=show_key,
            scope=iaas_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="iaas.rekey",
            verb="POST",
            path="/v1/iaas/{iaas}/rekey",
            body=RekeyIaas,
            result=Rekeyed,
            action="iaas.rekey",
            summary="Give an IaaS a new data key; its heads open once more and write with it",
            run=rekey_iaas,
            scope=iaas_scope,
            home=key_home,
        )
    )
