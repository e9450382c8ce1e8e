"""Texts that open doors: no change to one leaves it valid."""

from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from nuage.errors import Forbidden, InvalidRequest, Unauthenticated
from nuage.ids import FederationId, NodeId, SiteId, UserId
from nuage.model.identity import Grant, Role, User
from nuage.model.infrastructure import NodeRole
from nuage.trust.book import PublishedKey, key_id_of
from nuage.trust.invitation import Joining, hash_of, make_token, parse_token
from nuage.trust.pki import Authority, issue_signer, issue_site_authority, make_root
from nuage.trust.tokens import KnownUser, TokenChecker, TokenIssuer

FR, MARNE = FederationId("fr"), SiteId("marne")
NOW_S = 1_800_000_000.0
ADA = User(user_id=UserId("user-1"), name="ada", grants=(Grant(Role.IAAS_USER, "iaas-1"),))


class Keys:
    federation_id = FR

    def __init__(self, private: Ed25519PrivateKey) -> None:
        root, authority_key = make_root(FR, NOW_S), Ed25519PrivateKey.generate()
        certificate = issue_site_authority(
            root, authority_key.public_key(), federation_id=FR, site_id=MARNE, now_s=NOW_S
        )
        authority = Authority(certificate, authority_key)
        public = private.public_key()
        signer = issue_signer(authority, public, federation_id=FR, site_id=MARNE, now_s=NOW_S)
        self._published = PublishedKey(key_id_of(public), MARNE, public, signer)

    def key(self, key_id: str) -> PublishedKey | None:
        return self._published if key_id == self._published.key_id else None


@cache
def token_and_checker() -> tuple[str, TokenChecker]:
    private = Ed25519PrivateKey.generate()
    issuer = TokenIssuer(federation_id=FR, site_id=MARNE, key=lambda: private)
    checker = TokenChecker(Keys(private), lambda _: KnownUser(ADA))
    return issuer.issue(ADA, token_id="t1", now_s=NOW_S), checker


def is_believed(token: str) -> bool:
    _, checker = token_and_checker()
    try:
        checker.check(token, now_s=NOW_S + 1)
    except Unauthenticated:
        return False
    return True


def test_the_untouched_token_is_believed() -> None:
    assert is_believed(token_and_checker()[0])


@given(data=st.data())
@settings(deadline=None)
def test_no_change_to_a_token_leaves_it_valid(data: st.DataObject) -> None:
    token, _ = token_and_checker()
    position = data.draw(st.integers(0, len(token) - 1))
    replacement = data.draw(st.characters().filter(lambda char: char != token[position]))
    assert not is_believed(token[:position] + replacement + token[position + 1 :])
    assert not is_believed(token[:position])
    assert not is_believed(token + replacement)


@given(st.text(max_size=60))
def test_anything_else_is_not_a_token(text: str) -> None:
    assert not is_believed(text)
    assert not is_believed(f"nuage1.{text}.{text}")


@given(data=st.data())
@settings(deadline=None)
def test_no_change_to_a_join_token_keeps_its_secret(data: st.DataObject) -> None:
    token, invitation = make_token(
        joining=Joining.NODE,
        address="127.0.0.1:7000",
        federation_id=FR,
        site_id=MARNE,
        root_fingerprint=b"r" * 32,
        now_s=NOW_S,
        node_id=NodeId("v1"),
        roles=(NodeRole.VNODE,),
    )
    assert hash_of(parse_token(token).secret) == invitation.secret_hash
    assert "secret hidden" in repr(parse_token(token))
    position = data.draw(st.integers(0, len(token) - 1))
    replacement = data.draw(st.characters().filter(lambda char: char != token[position]))
    try:
        changed = parse_token(token[:position] + replacement + token[position + 1 :])
    except (InvalidRequest, Forbidden):
        return
    assert changed != parse_token(token)
