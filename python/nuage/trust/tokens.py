"""Access tokens that any site checks without asking another (docs/protocols/tokens.md).

::

    nuage1.<claims>.<signature>      both in unpadded URL-safe base64

Claims are MessagePack, signed (Ed25519) by the issuing site's signing key together with the words
before them. The token carries the user's grants as they were; a check also looks at the user as
this site knows it now, so a disabled user, a withdrawn grant or `tokens_not_before_s` counts as
soon as the feed has brought it. A site that has not heard of the user's home for longer than
`staleness_s_max` may demand a fresh token: that is the bound on how late a withdrawal
can take effect anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.errors import Conflict, InvalidRequest, Unauthenticated
from nuage.ids import FederationId, SiteId, UserId
from nuage.model.identity import Grant, User
from nuage.trust.book import PublishedKey, key_id_of
from nuage.trust.permissions import FEDERATION, Principal
from nuage.trust.pki import SKEW_S, not_after_s, not_before_s
from nuage.trust.secrets import b64, unb64, verify_secret

PREFIX: Final = "nuage1"
CONTEXT: Final = b"nuage/token/1\0"  # a signature of this kind is of no use for another
TOKEN_LIFE_S: Final = 3600.0
VERIFIED_MAX: Final = 1024  # tokens whose signature need not be checked again; 1 MiB
TOKEN_CHARS_MAX: Final = 16 * 1024
DECOY_HASH: Final = (
    "scrypt$14$8$1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)


class Claims(msgspec.Struct, frozen=True, array_like=True):
    """What a token says. Times are seconds since the epoch."""

    federation_id: FederationId
    site_id: SiteId
    key_id: str
    token_id: str
    user_id: UserId
    name: str
    issued_s: float
    expires_s: float
    grants: tuple[Grant, ...]


class KeyBook(Protocol):
    """Where the sites' published keys are; `TrustBook` is one."""

    @property
    def federation_id(self) -> FederationId:
        """Return the federation that tokens must be of."""
        ...

    def key(self, key_id: str) -> PublishedKey | None:
        """Return a key that is still believed."""
        ...


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user as this site knows it, and how old that knowledge is."""

    user: User
    age_s: float = 0.0


FindUser = Callable[[UserId], KnownUser | None]

_claims_encoder: Final = msgspec.msgpack.Encoder()
_claims_decoder: Final = msgspec.msgpack.Decoder(Claims)


class TokenIssuer:
    """Signs tokens for one site with the signing key that `key` says is in use."""

    def __init__(
        self,
        *,
        federation_id: FederationId,
        site_id: SiteId,
        key: Callable[[], Ed25519PrivateKey],
    ) -> None:
        self._federation_id = federation_id
        self._site_id = site_id
        self._key = key

    def issue(
        self,
        user: User,
        *,
        token_id: str,
        now_s: float,
        life_s: float = TOKEN_LIFE_S,
        scope: str = FEDERATION,
    ) -> str:
        """Return a token for `user`, who has proved who they are.

        `scope` narrows the token to grants that hold in one site or IaaS.

        Raises:
            Unauthenticated: the user is disabled.
            InvalidRequest: the life is longer than a token may have.
            Conflict: the user has more roles than a token carries.
        """
        if user.disabled:
            raise Unauthenticated(f"user {user.name!r} is disabled")
        if not 0 < life_s <= TOKEN_LIFE_S:
            raise InvalidRequest(f"a token lives up to {TOKEN_LIFE_S:g} s", field="life_s")
        key = self._key()
        claims = Claims(
            federation_id=self._federation_id,
            site_id=self._site_id,
            key_id=key_id_of(key.public_key()),
            token_id=token_id,
            user_id=user.user_id,
            name=user.name,
            issued_s=now_s,
            expires_s=now_s + life_s,
            grants=_narrowed(user.grants, scope),
        )
        payload = _claims_encoder.encode(claims)
        token = f"{PREFIX}.{b64(payload)}.{b64(key.sign(CONTEXT + payload))}"
        if len(token) > TOKEN_CHARS_MAX:
            raise Conflict(
                f"{user.name} has {len(claims.grants)} roles, more than a token can carry",
                hint="take those of no use any more: "
                f"`nuage user grant {user.name} ROLE@SCOPE --take`",
            )
        return token


class TokenChecker:
    """Checks tokens of all sites with what this one knows. Decides; asks nobody.

    `staleness_s_max` None: a cut-off site believes a token until it expires.
    """

    def __init__(
        self,
        keys: KeyBook,
        find_user: FindUser,
        *,
        staleness_s_max: float | None = None,
    ) -> None:
        self._keys = keys
        self._find_user = find_user
        self._staleness_s_max = staleness_s_max
        self._verified: dict[str, Claims] = {}  # oldest first

    def check(self, token: str, *, now_s: float) -> Principal:
        """Return who `token` stands for, with what they may do now.

        Raises:
            Unauthenticated: it is not believed; the message says why, never the token.
        """
        claims = self.read(token, now_s=now_s)
        known = self._find_user(claims.user_id)
        if known is None:
            # A user whose home feed has not arrived yet: the signature vouches for the hour.
            if self._staleness_s_max is not None:
                raise Unauthenticated(f"user {claims.name!r} is not known at this site yet")
            return Principal(claims.user_id, claims.name, claims.grants)
        user = known.user
        if user.disabled:
            raise Unauthenticated(f"user {user.name!r} is disabled")
        if claims.issued_s < user.tokens_not_before_s:
            raise Unauthenticated("the token was withdrawn", hint="log in again")
        if self._staleness_s_max is not None and known.age_s > self._staleness_s_max:
            raise Unauthenticated(
                f"what this site knows of user {user.name!r} is {known.age_s:.0f} s old, "
                f"more than the {self._staleness_s_max:.0f} s allowed",
                hint="log in at the user's home site, or wait until it is reachable",
            )
        held = frozenset(user.grants)
        still = tuple(
            grant
            for grant in claims.grants
            if grant in held or Grant(grant.role, FEDERATION) in held
        )
        return Principal(user.user_id, user.name, still)

    def read(self, token: str, *, now_s: float) -> Claims:
        """Return the claims of a token whose signature and dates hold.

        Raises:
            Unauthenticated: they do not.
        """
        verified = self._verified.get(token)
        if verified is None:
            claims, payload, signature = _parse(token)
        else:
            claims = verified
        published = self._keys.key(claims.key_id)
        if published is None or published.site_id != claims.site_id:
            raise Unauthenticated(
                f"the token was signed with a key of site {claims.site_id!r} "
                "that is not known here, or was revoked",
                hint="log in again",
            )
        if claims.federation_id != self._keys.federation_id:
            raise Unauthenticated("the token is of another federation")
        if verified is None:
            try:
                published.public_key.verify(signature, CONTEXT + payload)
            except InvalidSignature:
                raise Unauthenticated("the token's signature does not hold") from None
            self._remember(token, claims)
        if claims.expires_s - claims.issued_s > TOKEN_LIFE_S:
            raise Unauthenticated("the token would live longer than a token may")
        if now_s > claims.expires_s:
            raise Unauthenticated("the token has expired", hint="log in again")
        if claims.issued_s > now_s + SKEW_S:
            raise Unauthenticated("the token comes from the future; compare the clocks")
        certificate = published.certificate
        if not not_before_s(certificate) <= claims.issued_s <= not_after_s(certificate):
            raise Unauthenticated(f"the signing key of site {claims.site_id!r} is out of date")
        return claims

    def _remember(self, token: str, claims: Claims) -> None:
        """Spare the arithmetic next time: a key's id is its hash, so the verdict stands."""
        self._verified[token] = claims
        if len(self._verified) > VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]


def require_log_in(user: User | None, secret: str) -> User:
    """Return `user` when `secret` is theirs; takes as long for a user who does not exist.

    Raises:
        Unauthenticated: unknown, disabled or wrong; the message does not say which.
    """
    stored = user.secret_hash if user is not None and user.secret_hash else DECOY_HASH
    right = verify_secret(secret, stored)
    if user is None or not user.secret_hash or user.disabled or not right:
        raise Unauthenticated("name or secret is wrong, or the user is disabled")
    return user


def _parse(token: str) -> tuple[Claims, bytes, bytes]:
    try:
        if len(token) > TOKEN_CHARS_MAX:
            raise ValueError("too long")
        prefix, payload_text, signature_text = token.split(".")
        if prefix != PREFIX:
            raise ValueError("another kind")
        payload, signature = unb64(payload_text), unb64(signature_text)
        return _claims_decoder.decode(payload), payload, signature
    except (ValueError, RecursionError):
        raise Unauthenticated("this is not a token of ours", hint="log in again") from None


def _narrowed(grants: tuple[Grant, ...], scope: str) -> tuple[Grant, ...]:
    """Return the part of `grants` that holds in `scope`, and nowhere else."""
    if scope == FEDERATION:
        return grants
    narrowed = (Grant(grant.role, scope) for grant in grants if grant.scope in {FEDERATION, scope})
    return tuple(dict.fromkeys(narrowed))
