"""Tokens that any site checks alone, and the secrets they are given for."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import Conflict, CorruptData, InvalidRequest, Unauthenticated
from nuage.ids import FederationId, SiteId, UserId
from nuage.model.identity import Grant, Role, User
from nuage.trust.book import PublishedKey, key_id_of
from nuage.trust.pki import Authority, issue_signer, issue_site_authority, make_root
from nuage.trust.secrets import hash_secret, new_secret, verify_secret
from nuage.trust.tokens import (
    TOKEN_LIFE_S,
    KnownUser,
    TokenChecker,
    TokenIssuer,
    require_log_in,
)

FR, MARNE = FederationId("fr"), SiteId("marne")
NOW_S = 1_800_000_000.0
SHOP = Grant(Role.IAAS_ADMIN, "iaas-0000000000000001")
ADA = User(user_id=UserId("user-1"), name="ada", grants=(SHOP, Grant(Role.AUDITOR, "*")))


class Keys:
    """A book of one site's key."""

    federation_id = FR

    def __init__(self) -> None:
        root = make_root(FR, NOW_S)
        authority_key, self.private = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        certificate = issue_site_authority(
            root, authority_key.public_key(), federation_id=FR, site_id=MARNE, now_s=NOW_S
        )
        public = self.private.public_key()
        signer = issue_signer(
            Authority(certificate, authority_key),
            public,
            federation_id=FR,
            site_id=MARNE,
            now_s=NOW_S,
        )
        self.published = PublishedKey(key_id_of(public), MARNE, public, signer)

    def key(self, key_id: str) -> PublishedKey | None:
        return self.published if key_id == self.published.key_id else None


KEYS = Keys()
ISSUER = TokenIssuer(federation_id=FR, site_id=MARNE, key=lambda: KEYS.private)


def checker(known: KnownUser | None, staleness_s_max: float | None = None) -> TokenChecker:
    return TokenChecker(KEYS, lambda _: known, staleness_s_max=staleness_s_max)


def token(user: User = ADA, **options: float) -> str:
    return ISSUER.issue(user, token_id="t1", now_s=NOW_S, **options)  # type: ignore[arg-type]


def test_a_token_stands_for_its_user() -> None:
    principal = checker(KnownUser(ADA)).check(token(), now_s=NOW_S + 10)
    assert (principal.name, principal.grants) == ("ada", ADA.grants)


def test_a_token_expires_after_its_hour() -> None:
    check = checker(KnownUser(ADA))
    check.check(token(), now_s=NOW_S + TOKEN_LIFE_S)
    with pytest.raises(Unauthenticated, match="expired"):
        check.check(token(), now_s=NOW_S + TOKEN_LIFE_S + 1)
    with pytest.raises(InvalidRequest, match="lives up to"):
        token(life_s=TOKEN_LIFE_S + 1)


def test_a_token_from_the_future_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="future"):
        checker(KnownUser(ADA)).check(token(), now_s=NOW_S - 1000)


def test_disabling_a_user_counts_as_soon_as_it_is_known() -> None:
    disabled = User(user_id=ADA.user_id, name="ada", grants=ADA.grants, disabled=True)
    with pytest.raises(Unauthenticated, match="disabled"):
        checker(KnownUser(disabled)).check(token(), now_s=NOW_S)
    with pytest.raises(Unauthenticated, match="disabled"):
        token(disabled)


def test_withdrawn_tokens_and_grants_count_as_soon_as_they_are_known() -> None:
    later = User(user_id=ADA.user_id, name="ada", grants=ADA.grants, tokens_not_before_s=NOW_S + 1)
    with pytest.raises(Unauthenticated, match="withdrawn"):
        checker(KnownUser(later)).check(token(), now_s=NOW_S + 5)
    less = User(user_id=ADA.user_id, name="ada", grants=(SHOP,))
    assert checker(KnownUser(less)).check(token(), now_s=NOW_S).grants == (SHOP,)


def test_a_narrowed_token_carries_its_roles_in_that_scope_only() -> None:
    narrow = ISSUER.issue(ADA, token_id="t1", now_s=NOW_S, scope=SHOP.scope)
    principal = checker(KnownUser(ADA)).check(narrow, now_s=NOW_S)
    assert principal.grants == (SHOP, Grant(Role.AUDITOR, SHOP.scope))


def test_knowledge_older_than_the_bound_is_not_enough() -> None:
    strict = checker(KnownUser(ADA, age_s=700), staleness_s_max=600)
    with pytest.raises(Unauthenticated, match="700 s old"):
        strict.check(token(), now_s=NOW_S)
    checker(KnownUser(ADA, age_s=700)).check(token(), now_s=NOW_S)
    assert checker(None).check(token(), now_s=NOW_S).grants == ADA.grants
    with pytest.raises(Unauthenticated, match="not known"):
        checker(None, staleness_s_max=600).check(token(), now_s=NOW_S)


def test_a_token_of_another_key_or_federation_is_refused() -> None:
    stranger = TokenIssuer(federation_id=FR, site_id=MARNE, key=Ed25519PrivateKey.generate)
    with pytest.raises(Unauthenticated, match="not known here"):
        checker(KnownUser(ADA)).check(stranger.issue(ADA, token_id="t", now_s=NOW_S), now_s=NOW_S)
    other_site = TokenIssuer(federation_id=FR, site_id=SiteId("lyon"), key=lambda: KEYS.private)
    with pytest.raises(Unauthenticated, match="lyon"):
        checker(KnownUser(ADA)).check(other_site.issue(ADA, token_id="t", now_s=NOW_S), now_s=NOW_S)
    abroad = TokenIssuer(federation_id=FederationId("de"), site_id=MARNE, key=lambda: KEYS.private)
    with pytest.raises(Unauthenticated, match="another federation"):
        checker(KnownUser(ADA)).check(abroad.issue(ADA, token_id="t", now_s=NOW_S), now_s=NOW_S)


def test_secrets_are_kept_as_salted_hashes() -> None:
    secret = new_secret()
    stored = hash_secret(secret)
    assert secret not in stored
    assert stored != hash_secret(secret)
    assert verify_secret(secret, stored)
    assert not verify_secret(secret + "x", stored)
    assert not verify_secret("x" * 5000, stored)
    for broken in ("", "md5$1", "scrypt$99$8$1$AA$AA", "scrypt$14$8$1$!$!"):
        with pytest.raises(CorruptData):
            verify_secret(secret, broken)


def test_a_failed_log_in_does_not_say_why() -> None:
    secret = new_secret()
    stored = hash_secret(secret)
    ada = User(user_id=ADA.user_id, name="ada", grants=(), secret_hash=stored)
    gone = User(user_id=ADA.user_id, name="ada", grants=(), secret_hash=stored, disabled=True)
    assert require_log_in(ada, secret) is ada
    messages = set()
    for user, tried in ((None, secret), (ada, "wrong"), (gone, secret), (ADA, secret)):
        with pytest.raises(Unauthenticated) as refused:
            require_log_in(user, tried)
        messages.add(refused.value.message)
    assert len(messages) == 1


def roles(count: int) -> User:
    grants = tuple(Grant(Role.IAAS_ADMIN, f"iaas-{number:016x}") for number in range(count))
    return User(user_id=UserId("user-1"), name="ada", grants=grants)


def test_a_token_carries_hundreds_of_roles_and_no_more_than_any_site_takes() -> None:
    many = roles(250)
    assert len(checker(KnownUser(many)).check(token(many), now_s=NOW_S).grants) == 250
    with pytest.raises(Conflict, match="ada has 400 roles"):
        token(roles(400))
