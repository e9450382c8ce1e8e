"""Use cases that take trust back: a node that was stolen, a datacenter that left."""

from dataclasses import dataclass

from nuage.errors import Unavailable
from nuage.iaas.operations import (
    Operation,
    OperationTable,
    federation_scope,
    node_home,
    node_scope,
)
from nuage.iaas.site import Distrust, Site
from nuage.ids import NodeId, SiteId
from nuage.model.trust import SiteTrust
from nuage.trust.permissions import Principal, Scope


@dataclass(frozen=True, slots=True)
class RevokeNode:
    """Revoke every certificate of a node; it may join again with a new token."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class RevokeSite:
    """Revoke a datacenter with all its daemons, and take its member out of the quorum."""

    site: SiteId


@dataclass(frozen=True, slots=True)
class RollKeys:
    """Replace the keys that the fabric's RBridges share."""

    site: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysRolled:
    """The generation that begins: it signs within seconds, and the last one ends in two minutes."""

    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """Who is no longer believed."""

    revoked: str


def _distrust(site: Site) -> Distrust:
    if site.distrust is None:
        raise Unavailable("this controller holds no authority")
    return site.distrust


async def revoke_node(site: Site, principal: Principal, body: RevokeNode) -> Revoked:
    """Revoke a node of this site."""
    await _distrust(site).revoke_node(body.node)
    site.announce("node", body.node, "revoked", f"node {body.node} is revoked, by {principal.name}")
    return Revoked(revoked=body.node)


async def revoke_site(site: Site, principal: Principal, body: RevokeSite) -> Revoked:
    """Revoke a datacenter; this site holds the root's key."""
    await _distrust(site).revoke_site(body.site)
    site.announce(
        "site", body.site, "revoked", f"datacenter {body.site} is revoked, by {principal.name}"
    )
    return Revoked(revoked=body.site)


async def roll_keys(site: Site, principal: Principal, body: RollKeys) -> KeysRolled:
    """Begin the next generation of the fabric's keys at this site; the feeds bring it to all."""
    generation = await _distrust(site).roll_keys()
    text = f"the fabric's keys roll to generation {generation}, by {principal.name}"
    site.announce("site", body.site, "keys-rolled", text)
    return KeysRolled(generation=generation)


def _named_site(_site: Site, body: RollKeys) -> SiteId:
    return body.site


def _site_scope(_site: Site, body: RollKeys) -> Scope:
    return Scope(site_id=body.site)


def _root_site(site: Site, _body: RevokeSite) -> SiteId | None:
    """Return where the federation was founded: it alone publishes the root's list."""
    holders = [t.site_id for t in site.index.values(SiteTrust) if t.root_revocations_pem]
    return min(holders, default=None)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="node.revoke",
            verb="POST",
            path="/v1/nodes/{node}/revoke",
            body=RevokeNode,
            result=Revoked,
            action="node.revoke",
            summary="Revoke all certificates of a node",
            run=revoke_node,
            scope=node_scope,
            home=node_home,
        )
    )
    table.add(
        Operation(
            name="site.revoke",
            verb="POST",
            path="/v1/sites/{site}/revoke",
            body=RevokeSite,
            result=Revoked,
            action="datacenter.revoke",
            summary="Revoke a datacenter with all its daemons",
            run=revoke_site,
            scope=federation_scope,
            home=_root_site,
        )
    )
    table.add(
        Operation(
            name="site.rotate-keys",
            verb="POST",
            path="/v1/sites/{site}/rotate-keys",
            body=RollKeys,
            result=KeysRolled,
            action="node.revoke",
            summary="Replace the keys that the fabric's switches share",
            run=roll_keys,
            scope=_site_scope,
            home=_named_site,
        )
    )
