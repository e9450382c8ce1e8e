"""Joining: from a token to certificates, over a TLS listener that asks for none.

Theory of operation (docs/protocols/tokens.md §2). The newcomer connects and does not verify the
server by TLS, for it knows no root yet. The server speaks first: `Welcome`, with its root and
chain. The newcomer checks that the root has the token's fingerprint, that the chain leads from it
to a controller, and that the leaf is the one TLS has just proved. Only then it sends the secret
and its requests. The server uses the invitation up and answers with certificates, or with an
error of ours.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nuage.channel.client import parse_address
from nuage.channel.failures import error_of, failure_of
from nuage.channel.frames import Failure
from nuage.channel.identity import Identity
from nuage.channel.server import close_server
from nuage.clock import Clock
from nuage.errors import (
    UNREADABLE,
    Forbidden,
    InvalidRequest,
    NuageError,
    RemoteProtocolError,
    TimedOut,
    Unavailable,
)
from nuage.ids import NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust.files import write_atomically
from nuage.trust.invitation import (
    INVITATION_LIFE_S,
    Invitation,
    InvitationFiles,
    Joining,
    JoinToken,
    make_token,
    parse_token,
)
from nuage.trust.pki import (
    fingerprint_of,
    identity_of_certificate,
    key_identifier,
    load_certificate,
    load_chain,
    load_key,
    make_request,
    pem_of,
    pem_of_key,
    public_key_of_request,
    require_issued,
    require_site_authority,
)
from nuage.trust.store import DAEMON_CHAIN, DAEMON_KEY, TrustStore

MESSAGE_BYTES_MAX: Final = 1024 * 1024
JOIN_TIMEOUT_S: Final = 20.0
HANG_UP_TIMEOUT_S: Final = 2.0
JOINS_AT_ONCE_MAX: Final = 32  # an open port: strangers may connect

log: Final = structlog.get_logger("nuage.trust")
T = TypeVar("T")


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The server's first words: who it is."""

    root_pem: str
    chain_pem: str


class JoinRequest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The newcomer's token and requests: one for a site, one for each role of a node.

    `about` is the newcomer's own description, encoded by the caller; the host's `welcome`
    reads it.
    """

    token_id: str
    secret: bytes
    request_pems: dict[str, str]
    about: bytes

    def __repr__(self) -> str:
        return f"JoinRequest({self.token_id}, secret hidden)"


class JoinAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What joined gets: a site authority's certificate, or a chain for each role."""

    root_pem: str
    pems: dict[str, str]
    node_id: str
    about: bytes


class JoinRefusal(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Why not."""

    failure: Failure


Message: TypeAlias = Welcome | JoinRequest | JoinAnswer | JoinRefusal
# Called with each newcomer before it is answered: raises NuageError to refuse it, returns what
# to tell it. Called again when a newcomer repeats its request after a lost answer.
WelcomeHook: TypeAlias = Callable[[Invitation, bytes], Awaitable[bytes]]

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
SITE_REQUEST: Final = "site"


async def _nothing_to_tell(_invitation: Invitation, _about: bytes) -> bytes:
    return b""


class JoinServer:
    """Lets datacenters and nodes in, at a controller."""

    def __init__(
        self,
        store: TrustStore,
        invitations: InvitationFiles,
        clock: Clock,
        *,
        welcome: WelcomeHook = _nothing_to_tell,
    ) -> None:
        self._store = store
        self._invitations = invitations
        self._clock = clock
        self._welcome = welcome
        self._server: asyncio.Server | None = None
        self._meeting: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> None:
        """Begin to accept newcomers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        directory = self._store.directory
        context.load_cert_chain(directory / DAEMON_CHAIN, directory / DAEMON_KEY)
        context.num_tickets = 0
        self._server = await asyncio.start_server(self._meet, host, port, ssl=context)

    @property
    def port(self) -> int:
        """Return the port that newcomers connect to."""
        assert self._server is not None, "listen first"
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop."""
        if self._meeting:
            await asyncio.wait(self._meeting)
        if self._server is not None:
            await close_server(self._server)

    def invite(
        self,
        address: str,
        *,
        joining: Joining,
        site_id: str,
        node_id: NodeId | None = None,
        roles: tuple[NodeRole, ...] = (),
        life_s: float | None = None,
    ) -> str:
        """Return the text of a new token for `address` of this server; it is shown once."""
        return invite(
            self._store,
            self._invitations,
            address=address,
            joining=joining,
            site_id=site_id,
            node_id=node_id,
            roles=roles,
            now_s=self._clock.now_s(),
            life_s=life_s,
        )

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._meeting) >= JOINS_AT_ONCE_MAX:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None, "asyncio runs this in a task"
        self._meeting.add(task)
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._serve(reader, writer)
        except (OSError, RemoteProtocolError) as error:
            log.warning("trust.join_broken", error=str(error))
        finally:
            await _hang_up(writer)
            self._meeting.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chain_pem = pem_of(*self._store.chain())
        await _send(writer, Welcome(pem_of(self._store.root()), chain_pem))
        request = await _receive(reader, JoinRequest)
        try:
            answer = await self.admit(request)
        except NuageError as error:
            log.warning("trust.join_refused", token_id=request.token_id, error=error.message)
            await _send(writer, JoinRefusal(failure_of(0, error)))
            return
        log.info("trust.joined", token_id=request.token_id, node_id=answer.node_id)
        await _send(writer, answer)

    async def admit(self, request: JoinRequest) -> JoinAnswer:
        """Use the invitation up and return the certificates.

        Raises:
            Forbidden: the token is not good; or `welcome` refused the newcomer.
            InvalidRequest: the requests are not those that the invitation is for.
        """
        now_s = self._clock.now_s()
        keys = {name: public_key_of_request(pem) for name, pem in request.request_pems.items()}
        if not keys:
            raise InvalidRequest("nothing was requested", field="request_pems")
        used_by = ",".join(sorted(key_identifier(key).hex() for key in keys.values()))
        invitation = self._invitations.use(
            request.token_id, request.secret, used_by=used_by, now_s=now_s
        )
        if invitation.joining is Joining.SITE:
            pems = self._admit_site(invitation, keys, now_s)
        else:
            pems = self._admit_node(invitation, keys, now_s)
        about = await self._welcome(invitation, request.about)
        node_id = invitation.node_id or ""
        return JoinAnswer(pem_of(self._store.root()), pems, node_id, about)

    def _admit_site(
        self, invitation: Invitation, keys: Mapping[str, Ed25519PublicKey], now_s: float
    ) -> dict[str, str]:
        if set(keys) != {SITE_REQUEST}:
            raise InvalidRequest("the token is for a datacenter", field="request_pems")
        pem = self._store.admit_site(invitation.site_id, keys[SITE_REQUEST], now_s=now_s)
        return {SITE_REQUEST: pem}

    def _admit_node(
        self, invitation: Invitation, keys: Mapping[str, Ed25519PublicKey], now_s: float
    ) -> dict[str, str]:
        invited = {role.value: role for role in invitation.roles}
        if not set(keys) <= set(invited):
            raise InvalidRequest(
                f"the token is for the roles {', '.join(invited)}, not {', '.join(keys)}",
                field="request_pems",
            )
        assert invitation.node_id is not None, "checked when the invitation was made"
        own = self._store.identity()
        pems = {}
        for name, key in keys.items():
            identity = Identity(
                own.federation_id, invitation.site_id, invited[name], invitation.node_id
            )
            pems[name] = self._store.issue(key, identity, now_s=now_s)
        return pems


def invite(
    store: TrustStore,
    invitations: InvitationFiles,
    *,
    address: str,
    joining: Joining,
    site_id: str,
    now_s: float,
    node_id: NodeId | None = None,
    roles: tuple[NodeRole, ...] = (),
    life_s: float | None = None,
) -> str:
    """Make an invitation, keep it, and return the token's text.

    Raises:
        Unavailable: datacenters are admitted with the federation's root key, which is not here.
        Forbidden: a node is invited into another site.
    """
    own = store.identity()
    if joining is Joining.SITE:
        store.root_authority()  # say now, not to the newcomer, that the key is offline
    elif own.site_id != site_id:
        raise Forbidden(f"site {own.site_id!r} does not invite nodes into {site_id!r}")
    text, invitation = make_token(
        joining=joining,
        address=address,
        federation_id=own.federation_id,
        site_id=SiteId(site_id),
        root_fingerprint=bytes.fromhex(fingerprint_of(store.root())),
        now_s=now_s,
        life_s=INVITATION_LIFE_S if life_s is None else life_s,
        node_id=node_id,
        roles=roles,
    )
    invitations.add(invitation)
    return text


@dataclass(frozen=True, slots=True)
class Joined:
    """What a newcomer has become, and what its host had to tell (`about`)."""

    identities: tuple[Identity, ...]
    about: bytes


async def join_site(
    token_text: str, store: TrustStore, node_id: NodeId, clock: Clock, *, about: bytes = b""
) -> Joined:
    """Join a datacenter to a federation; `store` becomes its first controller's.

    Raises:
        InvalidRequest: the text is no token, or one for a node.
        Forbidden: expired, used, wrong, or the server shows another root.
        Unavailable: the server cannot be reached.
    """
    token = parse_token(token_text)
    if token.joining is not Joining.SITE:
        raise InvalidRequest("this token is for a node; use `nuage join-node`", field="token")
    identity = Identity(token.federation_id, token.site_id, NodeRole.CONTROLLER, node_id)
    requests = {SITE_REQUEST: store.begin_site(token.site_id)}
    answer = await _ask(token, requests, about, clock)
    store.finish_site(
        identity,
        root_pem=answer.root_pem,
        authority_pem=answer.pems.get(SITE_REQUEST, ""),
        now_s=clock.now_s(),
    )
    return Joined((identity,), answer.about)


async def join_node(
    token_text: str,
    stores: Mapping[NodeRole, TrustStore],
    clock: Clock,
    *,
    about: bytes = b"",
) -> Joined:
    """Join a node to a site: each role's daemon gets an identity in its own store.

    Raises:
        InvalidRequest: the text is no token, or one for a datacenter.
        Forbidden: expired, used, wrong, or the server shows another root.
        Unavailable: the server cannot be reached.
    """
    token = parse_token(token_text)
    if token.joining is not Joining.NODE:
        raise InvalidRequest(
            "this token is for a datacenter; use `nuage federation join`", field="token"
        )
    keys = {role: _kept_key(store) for role, store in stores.items()}
    requests = {role.value: make_request(key, role.value) for role, key in keys.items()}
    answer = await _ask(token, requests, about, clock)
    identities = []
    for role, store in stores.items():
        chain_pem = answer.pems.get(role.value, "")
        identities.append(
            store.install(root_pem=answer.root_pem, chain_pem=chain_pem, key=keys[role])
        )
        (store.directory / JOINING_KEY).unlink(missing_ok=True)
    return Joined(tuple(identities), answer.about)


JOINING_KEY: Final = "joining.key"


def _kept_key(store: TrustStore) -> Ed25519PrivateKey:
    """Return the key to join with: the same after a crash, so the token still works."""
    path: Path = store.directory / JOINING_KEY
    if path.exists():
        return load_key(path.read_bytes())
    key = Ed25519PrivateKey.generate()
    write_atomically(path, pem_of_key(key), secret=True)
    return key


async def _ask(
    token: JoinToken, request_pems: dict[str, str], about: bytes, clock: Clock
) -> JoinAnswer:
    if clock.now_s() > token.expires_s:
        raise Forbidden("the join token has expired", hint="make a new one")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # `_require_pinned` verifies, before any secret is sent
    host, port = parse_address(token.address)
    try:
        async with asyncio.timeout(JOIN_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                welcome = await _receive(reader, Welcome)
                leaf_der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                _require_pinned(token, welcome, leaf_der, clock.now_s())
                request = JoinRequest(token.token_id, token.secret, request_pems, about)
                await _send(writer, request)
                return await _receive(reader, JoinAnswer)
            finally:
                await _hang_up(writer)
    except TimeoutError:
        raise TimedOut(f"joining at {token.address}", after_s=JOIN_TIMEOUT_S) from None
    except OSError as error:
        raise Unavailable(
            f"the join server at {token.address} cannot be reached: {error}",
            hint="is the address right, and the port open from here?",
        ) from error


def _require_pinned(token: JoinToken, welcome: Welcome, leaf_der: bytes, now_s: float) -> None:
    """Check that the server is a controller under the root that the token names."""
    root = load_certificate(welcome.root_pem)
    if bytes.fromhex(fingerprint_of(root)) != token.root_fingerprint:
        raise Forbidden(
            f"the server at {token.address} belongs to another federation: its root is "
            f"{fingerprint_of(root)[:16]}…, the token's {token.root_fingerprint.hex()[:16]}…",
            hint="the token is of another federation, or somebody is in between; nothing was sent",
        )
    chain = load_chain(welcome.chain_pem)
    if len(chain) != 2 or chain[0].public_bytes(serialization.Encoding.DER) != leaf_der:
        raise Forbidden(f"the server at {token.address} did not prove who it is")
    leaf, authority = chain
    identity = identity_of_certificate(leaf)
    require_site_authority(
        authority,
        root,
        federation_id=token.federation_id,
        site_id=identity.site_id,
        now_s=now_s,
    )
    require_issued(leaf, authority, now_s=now_s)
    if identity.role is not NodeRole.CONTROLLER or identity.federation_id != token.federation_id:
        raise Forbidden(f"the server at {token.address} is {identity}, not a controller")


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    """Close, and give TLS a moment to say so."""
    writer.close()
    try:
        async with asyncio.timeout(HANG_UP_TIMEOUT_S):
            await writer.wait_closed()
    except OSError:  # the peer is gone already, or does not answer
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    payload = _encoder.encode(message)
    writer.write(len(payload).to_bytes(4, "big") + payload)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader, kind: type[T]) -> T:
    try:
        length = int.from_bytes(await reader.readexactly(4), "big")
        if length > MESSAGE_BYTES_MAX:
            raise RemoteProtocolError(f"the peer announced {length} bytes while joining")
        message = _decoder.decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise RemoteProtocolError("the peer closed the connection while joining") from error
    except UNREADABLE as error:
        raise RemoteProtocolError(f"the peer sent what is no join message: {error}") from error
    if isinstance(message, JoinRefusal):
        raise error_of(message.failure)
    if not isinstance(message, kind):
        raise RemoteProtocolError(f"the peer sent {type(message).__name__} while joining")
    return message
