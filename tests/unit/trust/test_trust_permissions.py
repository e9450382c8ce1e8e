"""The table of roles, and the check that reads it."""

import pytest

from nuage.errors import Forbidden, InvalidRequest, Unauthenticated
from nuage.ids import IaasId, SiteId, UserId
from nuage.model.identity import Grant, Role, User
from nuage.trust.permissions import (
    TABLE,
    Principal,
    Scope,
    is_allowed,
    principal_of,
    require,
    require_grantable,
    scopes_of,
)

MARNE, LYON = SiteId("marne"), SiteId("lyon")
SHOP, BANK = IaasId("iaas-0000000000000001"), IaasId("iaas-0000000000000002")


def who(*grants: Grant) -> Principal:
    return Principal(UserId("user-1"), "ada", grants)


def test_an_operator_works_on_their_own_site_only() -> None:
    operator = who(Grant(Role.OPERATOR, MARNE))
    require(operator, "node.maintain", Scope(site_id=MARNE))
    with pytest.raises(Forbidden, match=r"nuage-admin or operator.*operator on marne"):
        require(operator, "node.maintain", Scope(site_id=LYON))


def test_an_iaas_administrator_sees_nothing_of_another_iaas() -> None:
    admin = who(Grant(Role.IAAS_ADMIN, SHOP))
    require(admin, "vm.create", Scope(site_id=MARNE, iaas_id=SHOP))
    for action in TABLE:
        assert not is_allowed(admin, action, Scope(site_id=MARNE, iaas_id=BANK))


def test_an_auditor_changes_nothing() -> None:
    auditor = who(Grant(Role.AUDITOR, "*"))
    allowed = {action for action in TABLE if is_allowed(auditor, action)}
    reads = {"read", "explain", "trace"}
    assert {action.partition(".")[2] for action in allowed} <= reads


def test_who_has_no_role_is_told_which_is_missing() -> None:
    with pytest.raises(Forbidden, match=r"takes the role nuage-admin there \(ada has no role\)"):
        require(who(), "user.write")


def test_an_action_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no action"):
        require(who(Grant(Role.NUAGE_ADMIN, "*")), "vm.fly")


def test_lists_are_filtered_by_the_scopes_of_an_action() -> None:
    mixed = who(Grant(Role.IAAS_USER, SHOP), Grant(Role.OPERATOR, MARNE))
    assert scopes_of(mixed, "vm.read") == {SHOP}
    assert scopes_of(mixed, "node.read") == {MARNE}
    assert scopes_of(mixed, "user.write") == frozenset()


def test_a_disabled_user_is_nobody() -> None:
    user = User(user_id=UserId("user-1"), name="ada", grants=(), disabled=True)
    with pytest.raises(Unauthenticated, match="disabled"):
        principal_of(user)


def test_an_iaas_administrator_grants_roles_of_that_iaas_only() -> None:
    admin = who(Grant(Role.IAAS_ADMIN, SHOP))
    require_grantable(admin, Grant(Role.IAAS_USER, SHOP))
    for grant in (
        Grant(Role.IAAS_USER, BANK),
        Grant(Role.IAAS_USER, "*"),
        Grant(Role.OPERATOR, SHOP),
        Grant(Role.NUAGE_ADMIN, "*"),
    ):
        with pytest.raises(Forbidden):
            require_grantable(admin, grant)
    require_grantable(who(Grant(Role.NUAGE_ADMIN, "*")), Grant(Role.OPERATOR, MARNE))
