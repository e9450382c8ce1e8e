"""What an IaaS leaves behind when it is taken down: records that another site is the home of.

Its networks, its security groups and the roles that people had on it are made wherever they were
asked for, and only their home may delete them. So the home of the IaaS has each of those sites
clear away first: the IaaS is gone last, and a site that cannot be reached leaves it standing.

Roles go with it, else people would gather them for ever. Who could trace its volumes is noted in
what stays of it (`PastIaas.auditors`): what ledgers keep can still be proven.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

from nuage.catalogue.codec import id_of, kind_of
from nuage.iaas.index import FederationIndex
from nuage.iaas.site import Site
from nuage.ids import IaasId, SiteId, UserId
from nuage.model.iaas import Iaas, PastIaas
from nuage.model.identity import Grant, Role, User
from nuage.model.network import SecurityGroup, Segment
from nuage.model.record import Noun
from nuage.trust.permissions import TABLE, Principal

N = TypeVar("N", Segment, SecurityGroup)

CLEAR_AWAY_METHOD = "iaas.clear-away"
ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearAway:
    """Tells a site that an IaaS is taken down: what is the site's of it shall go."""

    iaas_id: IaasId


async def clear_away_everywhere(site: Site, iaas_id: IaasId) -> None:
    """Have every site delete what it is the home of, this one included.

    Raises:
        SiteUnreachable: a site that has something of the IaaS cannot be asked.
    """
    left = ClearAway(iaas_id=iaas_id)
    for home in sorted(_homes(site, iaas_id) - {site.site_id}):
        await site.others.ask(home, CLEAR_AWAY_METHOD, left, type(None), timeout_s=ASK_TIMEOUT_S)
    await clear_away(site, left)


async def clear_away(site: Site, left: ClearAway) -> None:
    """Delete this site's networks and groups of an IaaS, and take its users' roles on it."""
    own: list[Noun] = [*_own(site, left.iaas_id, Segment), *_own(site, left.iaas_id, SecurityGroup)]
    if own:
        await site.delete(*own)
    for user in _grantees(site, left.iaas_id):
        if site.index.home("user", user.user_id) == site.site_id:
            others = tuple(grant for grant in user.grants if grant.scope != left.iaas_id)
            await site.save(replace(user, grants=others))


def auditors_to_be(site: Site, iaas_id: IaasId) -> tuple[UserId, ...]:
    """Return who may prove the past of an IaaS once it is gone.

    Those of an earlier try to take it down, too: it may have ended when some roles had gone.
    """
    past = site.index.find_value(PastIaas, iaas_id)
    known = () if past is None else past.auditors
    able = (
        user.user_id
        for user in _grantees(site, iaas_id)
        if any(g.scope == iaas_id and g.role in TABLE["volume.trace"] for g in user.grants)
    )
    return tuple(sorted({*known, *able}))


def is_past(index: FederationIndex, scope: str) -> bool:
    """Tell whether a role's scope is an IaaS that was taken down."""
    is_there = index.find_value(Iaas, scope) is not None
    return not is_there and index.find_value(PastIaas, scope) is not None


def with_past(index: FederationIndex, principal: Principal) -> Principal:
    """Return `principal` with what they may prove of IaaSes that are gone; no token carries it."""
    user = index.find_value(User, principal.user_id)
    given = () if user is None else user.grants
    past = (
        *(Grant(Role.AUDITOR, past.iaas_id) for past in index.values(PastIaas)
          if principal.user_id in past.auditors),
        *(grant for grant in given if is_past(index, grant.scope)),
    )  # fmt: skip
    return replace(principal, grants=tuple(dict.fromkeys((*principal.grants, *past))))


def _own(site: Site, iaas_id: IaasId, cls: type[N]) -> list[N]:
    return [v for v in site.index.of_iaas(cls, iaas_id) if _home_of(site, v) == site.site_id]


def _grantees(site: Site, iaas_id: IaasId) -> list[User]:
    return [u for u in site.index.values(User) if any(g.scope == iaas_id for g in u.grants)]


def _homes(site: Site, iaas_id: IaasId) -> set[SiteId]:
    belongings: list[Noun] = [
        *site.index.of_iaas(Segment, iaas_id),
        *site.index.of_iaas(SecurityGroup, iaas_id),
        *_grantees(site, iaas_id),
    ]
    return {_home_of(site, each) for each in belongings}


def _home_of(site: Site, value: Noun) -> SiteId:
    """Return the site whose record of `value` counts."""
    return site.index.home(kind_of(value), id_of(value))
