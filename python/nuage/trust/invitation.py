"""Invitations: single-use tokens with which a datacenter or a node joins.

A token says where to go, which root to expect there, and a secret; the inviting site keeps only
the secret's hash. A token works once: whoever makes its ``used`` file first has it. The same key
may repeat its request while the token lasts, because an answer can be lost on the way.

::

    nuagejoin1.<MessagePack in unpadded URL-safe base64>
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from nuage.channel.client import parse_address
from nuage.errors import UNREADABLE, CorruptData, Forbidden, InvalidRequest
from nuage.ids import EntropySource, FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole, require_slug
from nuage.trust.files import sync_directory, write_atomically
from nuage.trust.secrets import b64, unb64

PREFIX: Final = "nuagejoin1"
SECRET_BYTES: Final = 32
TOKEN_ID_BYTES: Final = 8
INVITATION_LIFE_S: Final = 24 * 3600.0
INVITATION_LIFE_S_MAX: Final = 30 * 86_400.0
TOKEN_CHARS_MAX: Final = 2048


class Joining(Enum):
    """What joins."""

    SITE = "site"  # a datacenter, into the federation
    NODE = "node"  # a node, into a site


class JoinToken(msgspec.Struct, frozen=True, array_like=True):
    """What the text of a token carries."""

    joining: Joining
    address: str
    federation_id: FederationId
    site_id: SiteId
    root_fingerprint: bytes
    token_id: str
    secret: bytes
    expires_s: float

    def __repr__(self) -> str:
        return f"JoinToken({self.joining.value}, {self.address}, {self.token_id}, secret hidden)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What the inviting side keeps. `node_id` and `roles` are those of a node to come."""

    token_id: str
    joining: Joining
    site_id: SiteId
    secret_hash: str
    expires_s: float
    node_id: NodeId | None = None
    roles: tuple[NodeRole, ...] = ()
    used_by: str = ""  # the key identifier that used it

    def __post_init__(self) -> None:
        require_slug(self.site_id, "site_id")
        if self.joining is Joining.NODE and (self.node_id is None or not self.roles):
            raise InvalidRequest("an invitation of a node names it and its roles", field="node_id")


def make_token(
    *,
    joining: Joining,
    address: str,
    federation_id: FederationId,
    site_id: SiteId,
    root_fingerprint: bytes,
    now_s: float,
    life_s: float = INVITATION_LIFE_S,
    node_id: NodeId | None = None,
    roles: tuple[NodeRole, ...] = (),
    entropy: EntropySource = os.urandom,
) -> tuple[str, Invitation]:
    """Return a token's text, shown once, and the invitation to keep."""
    parse_address(address)
    if not 0 < life_s <= INVITATION_LIFE_S_MAX:
        raise InvalidRequest(
            f"an invitation lives up to {INVITATION_LIFE_S_MAX:g} s", field="life_s"
        )
    token = JoinToken(
        joining=joining,
        address=address,
        federation_id=federation_id,
        site_id=site_id,
        root_fingerprint=root_fingerprint,
        token_id=entropy(TOKEN_ID_BYTES).hex(),
        secret=entropy(SECRET_BYTES),
        expires_s=now_s + life_s,
    )
    invitation = Invitation(
        token_id=token.token_id,
        joining=joining,
        site_id=site_id,
        secret_hash=hash_of(token.secret),
        expires_s=token.expires_s,
        node_id=node_id,
        roles=roles,
    )
    return f"{PREFIX}.{b64(msgspec.msgpack.encode(token))}", invitation


def parse_token(text: str) -> JoinToken:
    """Return what a token's text carries.

    Raises:
        InvalidRequest: it is not a join token, or was not copied whole.
    """
    stripped = text.strip()
    try:
        prefix, body = stripped.split(".")
        if prefix != PREFIX or len(stripped) > TOKEN_CHARS_MAX:
            raise ValueError(prefix)
        token = msgspec.msgpack.decode(unb64(body), type=JoinToken)
        parse_address(token.address)
    except (ValueError, InvalidRequest, RecursionError):
        raise InvalidRequest(
            f"this is not a join token: it begins with {PREFIX}. and is copied whole",
            field="token",
            hint="make a new one with `nuage federation invite` or `nuage invite-node`",
        ) from None
    return token


def hash_of(secret: bytes) -> str:
    """Return what to keep of a token's secret: it is random, so a plain hash is enough."""
    return hashlib.sha256(b"nuage/join\0" + secret).hexdigest()


class InvitationFiles:
    """The invitations of a site in a directory: ``open/`` and ``used/``."""

    def __init__(self, directory: Path) -> None:
        self._open = directory / "open"
        self._used = directory / "used"
        for path in (self._open, self._used):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, invitation: Invitation) -> None:
        """Keep a new invitation; durable on return."""
        path = self._open / invitation.token_id
        write_atomically(path, msgspec.json.encode(invitation), secret=True)

    def listed(self) -> tuple[Invitation, ...]:
        """Return the invitations that are not used, in order of expiry."""
        read = (self._read(path) for path in self._open.iterdir() if path.name[0] != ".")
        return tuple(sorted(read, key=lambda invitation: invitation.expires_s))

    def withdraw(self, token_id: str) -> bool:
        """Forget an invitation; return whether it was there."""
        path = self._open / _file_name(token_id)
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed

    def use(self, token_id: str, secret: bytes, *, used_by: str, now_s: float) -> Invitation:
        """Return the invitation, which nobody else can use from now on.

        Raises:
            Forbidden: unknown, wrong, expired or used already; the message says which.
        """
        name = _file_name(token_id)
        opened, used = self._open / name, self._used / name
        invitation = self._find(opened, used)
        if not hmac.compare_digest(hash_of(secret), invitation.secret_hash):
            raise Forbidden("the secret of the join token is wrong", hint="copy the token whole")
        if now_s > invitation.expires_s:
            raise Forbidden("the join token has expired", hint="make a new one")
        if invitation.used_by == used_by:
            return invitation
        if invitation.used_by:
            raise _used_already()
        # Making the used file is the one atomic step: whoever creates it first has the token.
        taken = replace(invitation, used_by=used_by)
        try:
            _create(used, msgspec.json.encode(taken))
        except FileExistsError:
            raise _used_already() from None
        opened.unlink(missing_ok=True)
        return taken

    def _find(self, opened: Path, used: Path) -> Invitation:
        for path in (used, opened):
            try:
                return self._read(path)
            except FileNotFoundError:
                continue
        raise Forbidden(
            "the join token is not known here: it was withdrawn, or is of another site",
            hint="make a new one",
        )

    def _read(self, path: Path) -> Invitation:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Invitation)
        except UNREADABLE as error:
            raise CorruptData("not an invitation", where=str(path)) from error


def _used_already() -> Forbidden:
    return Forbidden(
        "the join token was used already",
        hint="if that was not you, revoke what joined with it; make a new token",
    )


def _create(path: Path, data: bytes) -> None:
    """Write `data` to a file that does not exist yet, whole and durable, or raise."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    write_atomically(fresh, data, secret=True)
    try:
        os.link(fresh, path)  # fails when the name exists; the content is complete already
    finally:
        fresh.unlink()
    sync_directory(path.parent)


def _file_name(token_id: str) -> str:
    if len(token_id) != 2 * TOKEN_ID_BYTES or not set(token_id) <= set("0123456789abcdef"):
        raise Forbidden("the join token is not known here", hint="copy the token whole")
    return token_id
