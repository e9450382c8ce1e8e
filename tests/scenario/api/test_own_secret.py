"""A user's secret: its owner replaces it, and nobody else but an administrator."""

from tests.scenario.api.conversation import Federation

from nuage.ids import UserId
from nuage.model.identity import Grant, Role, User
from nuage.trust.permissions import Principal
from nuage.trust.secrets import verify_secret

OLD, NEW = "correct horse battery", "staple of another kind"


async def enter(federation: Federation, name: str) -> UserId:
    """Enter a user that may read what everybody may."""
    body = {"name": name, "secret": OLD, "grants": ["auditor"]}
    status, made = await federation.ask("POST", "/v1/users", body)
    assert status == 201, made
    user_id = UserId(made["result"]["user_id"])
    grants = (Grant(Role.AUDITOR, "*"),)
    federation.tokens.principals[name] = Principal(user_id, name, grants)
    await federation.settle()
    return user_id


async def test_an_owner_who_knows_the_secret_replaces_it(federation: Federation) -> None:
    await enter(federation, "ann")
    await enter(federation, "bob")
    door = "/v1/users/ann/secret"
    change = {"current": OLD, "secret": NEW}
    status, told = await federation.ask("POST", door, change, who="bob")
    assert (status, told["error"]["message"]) == (403, "bob may not replace the secret of ann")
    wrong = {"current": "correct horse", "secret": NEW}
    assert (await federation.ask("POST", door, wrong, who="ann"))[0] == 403
    short = {"current": OLD, "secret": "short"}
    status, told = await federation.ask("POST", door, short, who="ann")
    assert (status, told["error"]["field"]) == (400, "secret")
    assert _is_secret(federation, "ann", OLD)
    assert (await federation.ask("POST", door, change, who="ann"))[0] == 200
    await federation.settle()
    assert _is_secret(federation, "ann", NEW)
    assert not _is_secret(federation, "ann", OLD)


def _is_secret(federation: Federation, name: str, secret: str) -> bool:
    found = [
        verify_secret(secret, user.secret_hash)
        for site in federation.sites.values()
        for user in site.index.values(User)
        if user.name == name
    ]
    assert len(found) == len(federation.sites)
    assert len(set(found)) == 1
    return found[0]
