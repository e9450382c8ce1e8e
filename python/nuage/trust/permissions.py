"""Who may do what: one table of actions, and the check that reads it.

An action is a word pair (``vm.create``). The table says which roles may do it. A grant gives
a role in a scope: ``*`` is the whole federation, a site's id, or an IaaS's id. A scope of a
check is the list of ids under which the object lies, so that a grant on any of them counts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from nuage.errors import Forbidden, InvalidRequest, Unauthenticated
from nuage.ids import IaasId, SiteId, UserId
from nuage.model.identity import Grant, Role, User

FEDERATION: Final = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a person or a program, with the grants that its token carried."""

    user_id: UserId
    name: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """Where the object of an action lies; None where it lies in none (yet)."""

    site_id: SiteId | None = None
    iaas_id: IaasId | None = None

    def __str__(self) -> str:
        return self.told(str)

    def told(self, named: Callable[[str], str]) -> str:
        """Return it in words, with the name that `named` gives an IaaS's id."""
        if self.iaas_id is not None:
            return f"iaas {named(self.iaas_id)}"
        return f"site {self.site_id}" if self.site_id is not None else "the federation"


EVERYWHERE: Final = Scope()

_ADMIN: Final = Role.NUAGE_ADMIN
_OPERATOR: Final = Role.OPERATOR
_IAAS_ADMIN: Final = Role.IAAS_ADMIN
_USER: Final = Role.IAAS_USER
_AUDITOR: Final = Role.AUDITOR

# Role × action; where it holds is the grant's. An operator's grant is on a site, the grants
# of an IaaS's administrator and users are on that IaaS.
TABLE: Final[Mapping[str, frozenset[Role]]] = {
    # the federation
    "federation.read": frozenset({_ADMIN, _OPERATOR, _IAAS_ADMIN, _USER, _AUDITOR}),
    "datacenter.read": frozenset({_ADMIN, _OPERATOR, _IAAS_ADMIN, _USER, _AUDITOR}),
    "datacenter.revoke": frozenset({_ADMIN}),
    # a site
    "rack.read": frozenset({_ADMIN, _OPERATOR, _AUDITOR}),
    "node.read": frozenset({_ADMIN, _OPERATOR, _AUDITOR}),
    "node.revoke": frozenset({_ADMIN, _OPERATOR}),
    "node.maintain": frozenset({_ADMIN, _OPERATOR}),
    "pool.read": frozenset({_ADMIN, _OPERATOR, _IAAS_ADMIN, _USER, _AUDITOR}),
    "pool.write": frozenset({_ADMIN, _OPERATOR}),
    "energy.read": frozenset({_ADMIN, _OPERATOR, _AUDITOR}),
    "energy.write": frozenset({_ADMIN, _OPERATOR}),
    # users
    "user.read": frozenset({_ADMIN, _AUDITOR}),
    "user.write": frozenset({_ADMIN}),
    "user.grant": frozenset({_ADMIN, _IAAS_ADMIN}),
    # an IaaS
    "iaas.create": frozenset({_ADMIN}),
    "iaas.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "iaas.contract": frozenset({_ADMIN}),
    "iaas.delete": frozenset({_ADMIN}),
    "iaas.unlock": frozenset({_IAAS_ADMIN}),
    "iaas.shred": frozenset({_IAAS_ADMIN}),
    "iaas.rekey": frozenset({_ADMIN, _IAAS_ADMIN}),
    "vm.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "vm.create": frozenset({_IAAS_ADMIN, _USER}),
    "vm.write": frozenset({_IAAS_ADMIN, _USER}),
    "vm.power": frozenset({_IAAS_ADMIN, _USER}),
    "vm.delete": frozenset({_IAAS_ADMIN, _USER}),
    "vm.console": frozenset({_IAAS_ADMIN, _USER}),
    "vm.migrate": frozenset({_ADMIN, _IAAS_ADMIN}),
    "vm.explain": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "volume.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "volume.create": frozenset({_IAAS_ADMIN, _USER}),
    "volume.write": frozenset({_IAAS_ADMIN, _USER}),
    "volume.delete": frozenset({_IAAS_ADMIN, _USER}),
    "volume.rollback": frozenset({_IAAS_ADMIN}),
    "volume.move": frozenset({_ADMIN, _IAAS_ADMIN}),
    "volume.trace": frozenset({_ADMIN, _IAAS_ADMIN, _AUDITOR}),
    "image.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "image.write": frozenset({_ADMIN, _IAAS_ADMIN}),
    "segment.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "segment.write": frozenset({_IAAS_ADMIN}),
    "port.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "port.write": frozenset({_IAAS_ADMIN, _USER}),
    "address.read": frozenset({_ADMIN, _IAAS_ADMIN, _USER, _AUDITOR}),
    "address.create": frozenset({_IAAS_ADMIN}),
    "address.delete": frozenset({_IAAS_ADMIN}),
    "address.attach": frozenset({_IAAS_ADMIN, _USER}),
    # the auditor
    "audit.read": frozenset({_ADMIN, _OPERATOR, _AUDITOR}),
}


def is_allowed(principal: Principal, action: str, scope: Scope = EVERYWHERE) -> bool:
    """Tell whether one of the principal's grants allows `action` in `scope`."""
    roles = _roles_of(action)
    return any(grant.role in roles and _covers(grant, scope) for grant in principal.grants)


def require(
    principal: Principal,
    action: str,
    scope: Scope = EVERYWHERE,
    named: Callable[[str], str] = str,
) -> None:
    """Check that `principal` may do `action` in `scope`; `named` tells people an id's name.

    Raises:
        Forbidden: it may not; the message names the roles of which one is missing.
    """
    if is_allowed(principal, action, scope):
        return
    roles = " or ".join(sorted(role.value for role in _roles_of(action)))
    held = ", ".join(f"{grant.role.value} on {named(grant.scope)}" for grant in principal.grants)
    raise Forbidden(
        f"{principal.name} may not {action} in {scope.told(named)}: it takes the role {roles} there"
        f" ({principal.name} has {held or 'no role'})",
        hint="a Nuage administrator grants roles: `nuage user grant`",
    )


def scopes_of(principal: Principal, action: str) -> frozenset[str]:
    """Return the scopes in which `principal` may do `action`: to filter a list by.

    `FEDERATION` in it means everywhere.
    """
    roles = _roles_of(action)
    return frozenset(grant.scope for grant in principal.grants if grant.role in roles)


def principal_of(user: User) -> Principal:
    """Return what a user may do now.

    Raises:
        Unauthenticated: the user was disabled.
    """
    if user.disabled:
        raise Unauthenticated(f"user {user.name!r} is disabled")
    return Principal(user.user_id, user.name, user.grants)


def require_grantable(principal: Principal, grant: Grant) -> None:
    """Check that `principal` may give `grant` to somebody.

    An IaaS administrator gives its own IaaS's roles only; an administrator of Nuage gives all.

    Raises:
        Forbidden: it may not.
    """
    if any(g.role is _ADMIN and g.scope == FEDERATION for g in principal.grants):
        return
    if grant.role in {_IAAS_ADMIN, _USER} and Grant(_IAAS_ADMIN, grant.scope) in principal.grants:
        return
    raise Forbidden(
        f"{principal.name} may not grant {grant.role.value} on {grant.scope}",
        hint="an IaaS administrator grants the roles of that IaaS; the rest takes nuage-admin",
    )


def _roles_of(action: str) -> frozenset[Role]:
    try:
        return TABLE[action]
    except KeyError:
        raise InvalidRequest(f"there is no action {action!r}", field="action") from None


def _covers(grant: Grant, scope: Scope) -> bool:
    return grant.scope == FEDERATION or grant.scope in {scope.site_id, scope.iaas_id}
