"""Use cases on users and their roles. Secrets enter once and are never shown again."""

from dataclasses import dataclass, field, replace

from nuage.errors import Conflict, Forbidden, InvalidRequest
from nuage.iaas.operations import Operation, OperationTable, any_scope, anywhere, federation_scope
from nuage.iaas.site import Site
from nuage.ids import SiteId, UserId, new_id
from nuage.model.iaas import Iaas, PastIaas
from nuage.model.identity import Grant, Role, User
from nuage.model.infrastructure import Datacenter
from nuage.trust.permissions import FEDERATION, Principal, require_grantable
from nuage.trust.secrets import hash_secret, verify_secret, while_others_run

SECRET_CHARS_MIN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """A user without the secret."""

    user_id: UserId
    name: str
    grants: tuple[Grant, ...]
    disabled: bool
    site: SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateUser:
    """Enter a user; `grants` are written ``role@scope``."""

    name: str
    secret: str = field(repr=False)
    grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListUsers:
    """Ask for all users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeUser:
    """Change a user: what is None stays."""

    user: str
    secret: str | None = field(default=None, repr=False)
    grants: tuple[str, ...] | None = None
    disabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRoles:
    """Give roles to a user and take others, each written ``role@scope``; the rest stays."""

    user: str
    give: tuple[str, ...] = ()
    take: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceSecret:
    """Replace one's own secret; `current` is the one so far."""

    user: str
    current: str = field(repr=False)
    secret: str = field(repr=False)


def parse_grant(site: Site, text: str, field: str = "grants") -> Grant:
    """Read ``role@scope``; the scope is ``*``, a site, or an IaaS by name or id.

    Raises:
        InvalidRequest: no such role, or nothing of that name.
    """
    role_text, _, scope = text.partition("@")
    try:
        role = Role(role_text)
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise InvalidRequest(f"no role {role_text!r}; there is {known}", field=field) from None
    if role in (Role.IAAS_ADMIN, Role.IAAS_USER):
        if not scope:
            raise InvalidRequest(
                f"{role_text} holds for one IaaS", field=field, hint=f"write {role_text}@NAME"
            )
        return Grant(role, site.index.named(Iaas, scope).iaas_id)
    return Grant(role, _scope_named(site, scope, field))


def _scope_named(site: Site, scope: str, field: str) -> str:
    if scope in ("", "*"):
        return "*"
    if site.index.find_value(Datacenter, scope) is not None:
        return scope
    if site.index.is_name_taken(Iaas, scope) or site.index.find_value(Iaas, scope) is not None:
        return site.index.named(Iaas, scope).iaas_id
    if site.index.find_value(PastIaas, scope) is not None:
        return scope  # only its past is left: to be proven, or to be taken from somebody
    known = ", ".join(sorted(d.site_id for d in site.index.values(Datacenter)))
    raise InvalidRequest(
        f"no site and no IaaS is named {scope!r}; the sites are {known}", field=field
    )


def _view(site: Site, user: User) -> UserView:
    return UserView(
        user_id=user.user_id,
        name=user.name,
        grants=user.grants,
        disabled=user.disabled,
        site=site.index.home("user", user.user_id),
    )


def _require_secret(secret: str) -> None:
    if len(secret) < SECRET_CHARS_MIN:
        raise InvalidRequest(f"a secret has at least {SECRET_CHARS_MIN} characters", field="secret")


async def create_user(site: Site, _principal: Principal, body: CreateUser) -> UserView:
    """Enter a user at this site; every site knows it once the feeds have run."""
    _require_secret(body.secret)
    if site.index.is_name_taken(User, body.name):
        raise Conflict(
            f"there is a user named {body.name!r} already",
            hint="`nuage user grant` gives it roles; `nuage user list` shows which it has",
        )
    secret_hash = await while_others_run(hash_secret, body.secret)
    user = User(
        user_id=UserId(new_id("user", site.entropy)),
        name=body.name,
        grants=tuple(parse_grant(site, text) for text in body.grants),
        secret_hash=secret_hash,
    )
    await site.save(user, unique_name=True)
    return _view(site, user)


async def grant_roles(site: Site, principal: Principal, body: GrantRoles) -> UserView:
    """Give and take roles of a user.

    What is taken ends at once wherever the feed has brought it, tokens given before included: a
    token counts for the roles that its user still has. What is given counts from the next token.

    Raises:
        Forbidden: the caller may not give or take such a role.
        Conflict: the user does not have a role that is to be taken, or nobody would be left to
            grant any.
    """
    if not body.give and not body.take:
        raise InvalidRequest("no role is named", field="give", hint="write role@scope")
    give = [parse_grant(site, text, "give") for text in body.give]
    take = [parse_grant(site, text, "take") for text in body.take]
    for grant in (*give, *take):
        require_grantable(principal, grant)
    user = site.index.named(User, body.user)
    for grant in take:
        if grant not in user.grants:
            raise Conflict(
                f"{user.name} is not {grant.role.value} on {grant.scope}",
                hint="`nuage user list` shows who has which role",
            )
    kept = [grant for grant in user.grants if grant not in take]
    changed = replace(user, grants=tuple(dict.fromkeys((*kept, *give))))
    _require_someone_left(site, changed)
    await site.save(changed)
    return _view(site, changed)


def _require_someone_left(site: Site, changed: User) -> None:
    """Refuse what would leave the federation without a Nuage administrator."""
    users = site.index.values(User)
    left = [changed if user.user_id == changed.user_id else user for user in users]
    if any(map(_is_highest, users)) and not any(map(_is_highest, left)):
        raise Conflict(
            f"{changed.name} is the last Nuage administrator",
            hint="give somebody else nuage-admin first: `nuage user grant`",
        )


def _is_highest(user: User) -> bool:
    return Grant(Role.NUAGE_ADMIN, FEDERATION) in user.grants and not user.disabled


async def list_users(site: Site, _principal: Principal, _body: ListUsers) -> list[UserView]:
    """Show all users, by name."""
    return [_view(site, user) for user in sorted(site.index.values(User), key=lambda u: u.name)]


async def change_user(site: Site, _principal: Principal, body: ChangeUser) -> UserView:
    """Change a user; tokens issued before a change of secret, role or state are void."""
    secret_hash = ""
    if body.secret is not None:
        _require_secret(body.secret)
        secret_hash = await while_others_run(hash_secret, body.secret)
    user = site.index.named(User, body.user)  # read after the wait: it may have changed meanwhile
    changed = replace(user, tokens_not_before_s=site.clock.now_s())
    if secret_hash:
        changed = replace(changed, secret_hash=secret_hash)
    if body.grants is not None:
        changed = replace(changed, grants=tuple(parse_grant(site, text) for text in body.grants))
    if body.disabled is not None:
        changed = replace(changed, disabled=body.disabled)
    _require_someone_left(site, changed)
    await site.save(changed)
    return _view(site, changed)


async def replace_secret(site: Site, principal: Principal, body: ReplaceSecret) -> UserView:
    """Replace the caller's own secret; tokens issued before are void, the one it asks with too.

    Raises:
        Forbidden: `user` is somebody else, or `current` is wrong.
    """
    user = site.index.named(User, body.user)
    if user.user_id != principal.user_id:
        raise Forbidden(
            f"{principal.name} may not replace the secret of {user.name}",
            hint="its owner may, or a Nuage administrator: `nuage user secret`",
        )
    if not await while_others_run(verify_secret, body.current, user.secret_hash):
        raise Forbidden("the current secret is another")
    return await change_user(site, principal, ChangeUser(user=user.user_id, secret=body.secret))


def _user_home(site: Site, body: ChangeUser | GrantRoles | ReplaceSecret) -> SiteId:
    return site.index.home("user", site.index.named(User, body.user).user_id)


def enter(table: OperationTable) -> None:
    """Enter this module's operations."""
    table.add(
        Operation(
            name="user.create",
            verb="POST",
            path="/v1/users",
            body=CreateUser,
            result=UserView,
            action="user.write",
            summary="Enter a user",
            run=create_user,
            scope=federation_scope,
            home=anywhere,
            status=201,
        )
    )
    table.add(
        Operation(
            name="user.list",
            verb="GET",
            path="/v1/users",
            body=ListUsers,
            result=list[UserView],
            action="user.read",
            summary="List users and their roles",
            run=list_users,
            scope=federation_scope,
            home=anywhere,
        )
    )
    table.add(
        Operation(
            name="user.change",
            verb="PATCH",
            path="/v1/users/{user}",
            body=ChangeUser,
            result=UserView,
            action="user.write",
            summary="Change a user's secret, roles or state",
            run=change_user,
            scope=federation_scope,
            home=_user_home,
            is_one_write=True,
        )
    )
    table.add(
        Operation(
            name="user.secret",
            verb="POST",
            path="/v1/users/{user}/secret",
            body=ReplaceSecret,
            result=UserView,
            action="federation.read",
            summary="Replace one's own secret",
            run=replace_secret,
            scope=any_scope,
            home=_user_home,
        )
    )
    table.add(
        Operation(
            name="user.grant",
            verb="POST",
            path="/v1/users/{user}/grants",
            body=GrantRoles,
            result=UserView,
            action="user.grant",
            summary="Give roles to a user and take others",
            run=grant_roles,
            scope=any_scope,
            home=_user_home,
            is_one_write=True,
        )
    )
