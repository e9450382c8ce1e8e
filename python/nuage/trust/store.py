"""A daemon's own trust on disk: its key, its certificate, the root it believes.

Layout of the directory (mode 0700; the keys 0600)::

    root.pem            the federation's root certificate
    daemon.key          this daemon's private key
    daemon.pem          its certificate, then its site authority's
    site/authority.key  the site authority        (controllers of the site only)
    site/authority.pem
    site/signer.key     the site's signing key, with which it signs
    site/signer-next.key  the one that it signs with next: published, not in use yet
    site/signers.pem    its certificate, newest first, then earlier ones
    site/revocations.pem
    site/issued.json    every certificate of a daemon that may still be good
    site/key-generation how often the fabric's keys were rolled, as far as this site knows
    site/secrets        what the federation's controllers share (`shared_secrets`)
    site/quorum.crl     all that is revoked in the federation, as etcd reads it
    federation/root.key the root's key (only where the federation was founded; may be moved
    federation/revocations.pem          to a safe and brought back to admit a datacenter)

`TrustStore` reads, writes and issues. It makes the TLS contexts, and reloads them in place
after a renewal: whoever holds a context need not be told.
"""

import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nuage.channel.identity import Identity
from nuage.errors import (
    CorruptData,
    Forbidden,
    InvalidRequest,
    NotFound,
    NuageError,
    Unavailable,
)
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.trust import SiteTrust
from nuage.trust.files import require_private, sync_directory, write_atomically
from nuage.trust.issued import ISSUED, IssuedCertificates
from nuage.trust.pki import (
    DAEMON_LIFE_S,
    Authority,
    federation_of_root,
    identity_of_certificate,
    issue_daemon,
    issue_service,
    issue_signer,
    issue_site_authority,
    load_certificate,
    load_chain,
    load_key,
    make_request,
    make_root,
    not_after_s,
    not_before_s,
    pem_of,
    pem_of_key,
    public_key_of,
    public_key_of_request,
    require_issued,
    require_site_authority,
)
from nuage.trust.revocation import make_revocation_list, read_revocation_list
from nuage.trust.shared_secrets import SharedSecrets, read_secrets, write_secrets

log: Final = structlog.get_logger("nuage.trust")

ROOT: Final = "root.pem"
DAEMON_KEY: Final = "daemon.key"
DAEMON_CHAIN: Final = "daemon.pem"
AUTHORITY_KEY: Final = "site/authority.key"
AUTHORITY: Final = "site/authority.pem"
SERVICE_KEY: Final = "service.key"
SERVICE_CHAIN: Final = "service.pem"
SIGNER_KEY: Final = "site/signer.key"
SIGNER_NEXT_KEY: Final = "site/signer-next.key"
SIGNERS: Final = "site/signers.pem"
SITE_REVOCATIONS: Final = "site/revocations.pem"
QUORUM_REVOCATIONS: Final = "site/quorum.crl"
KEY_GENERATION: Final = "site/key-generation"
SECRETS: Final = "site/secrets"
ROOT_KEY: Final = "federation/root.key"
ROOT_REVOCATIONS: Final = "federation/revocations.pem"


class ObservedHandshake(ssl.SSLObject):
    """Logs why a handshake failed: asyncio and uvloop keep that to themselves on a server."""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or str(error)
            log.warning("trust.handshake_failed", why=why, as_server=self.server_side)
            raise


class TrustStore:
    """The directory of one daemon; see the module for what lies where."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._contexts: list[ssl.SSLContext] = []
        self._issued = IssuedCertificates(directory / ISSUED)

    # The daemon itself --------------------------------------------------------------------

    @property
    def is_joined(self) -> bool:
        """Tell whether the daemon has an identity."""
        return (self.directory / DAEMON_CHAIN).exists()

    def root(self) -> x509.Certificate:
        """Return the federation's root."""
        return load_certificate(self._text(ROOT))

    def federation_id(self) -> FederationId:
        """Return the federation that the root stands for."""
        return federation_of_root(self.root())

    def chain(self) -> list[x509.Certificate]:
        """Return this daemon's certificate, then its site authority's."""
        return load_chain(self._text(DAEMON_CHAIN))

    def identity(self) -> Identity:
        """Return who this daemon is."""
        return identity_of_certificate(self.chain()[0])

    def key(self) -> Ed25519PrivateKey:
        """Return this daemon's private key."""
        return self._key(DAEMON_KEY)

    def install(self, *, root_pem: str, chain_pem: str, key: Ed25519PrivateKey) -> Identity:
        """Take an identity in, after checking that key, chain and root belong together.

        A root that is known already is never replaced by another.

        Raises:
            Forbidden: the root is not the one that this daemon believes.
            Unauthenticated: the chain does not end at the root.
            InvalidRequest: the certificate is of another key.
        """
        root = load_certificate(root_pem)
        if (self.directory / ROOT).exists() and self.root() != root:
            raise Forbidden(
                f"{self.directory} belongs to federation {self.federation_id()!r} already",
                hint="use an empty directory to join another federation",
            )
        leaf, identity = self._checked_leaf(root, load_chain(chain_pem))
        if public_key_of(leaf) != key.public_key():
            raise InvalidRequest("the certificate is of another key", field="chain_pem")
        self._write(ROOT, pem_of(root))
        # Key and chain cannot be replaced together: both are kept in one file first, so that a
        # crash between the two renames is mended by `recover`.
        bundle = pem_of_key(key) + chain_pem.encode()
        write_atomically(self.directory / f"{DAEMON_KEY}.next", bundle, secret=True)
        self.recover()
        for context in self._contexts:
            context.load_cert_chain(self.directory / DAEMON_CHAIN, self.directory / DAEMON_KEY)
        return identity

    def recover(self) -> None:
        """Finish an `install` that a crash interrupted; nothing when there was none."""
        pending = self.directory / f"{DAEMON_KEY}.next"
        if not pending.exists():
            return
        text = pending.read_text()
        start = text.index("-----BEGIN CERTIFICATE-----")
        write_atomically(self.directory / DAEMON_KEY, text[:start].encode(), secret=True)
        self._write(DAEMON_CHAIN, text[start:])
        pending.unlink()

    def server_context(self) -> ssl.SSLContext:
        """Return a context that asks every client for a certificate of the federation."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """Return a context that shows ours and believes the federation's servers.

        Whom exactly a client means to reach is `ChannelClient`'s `expected`.
        """
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, protocol: int) -> ssl.SSLContext:
        self.recover()
        require_private(self.directory / DAEMON_KEY)
        context = ssl.SSLContext(protocol)
        context.sslobject_class = ObservedHandshake
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # identities are URIs; the channel checks them
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
        context.load_verify_locations(self.directory / ROOT)
        context.load_cert_chain(self.directory / DAEMON_CHAIN, self.directory / DAEMON_KEY)
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # connections live for days; resumption gains nothing
        self._contexts.append(context)
        return context

    # The site's authority -------------------------------------------------------------------

    def authority(self) -> Authority:
        """Return the site's authority.

        Raises:
            Unavailable: this daemon does not hold it.
        """
        return Authority(load_certificate(self._text(AUTHORITY)), self._key(AUTHORITY_KEY))

    def signer_key(self) -> Ed25519PrivateKey:
        """Return the key with which the site signs tokens, logs and ledgers."""
        return self._key(SIGNER_KEY)

    def begin_site(self, site_id: SiteId) -> str:
        """Make the key of a new site authority; return the request (PEM) for the root.

        Called again before `finish_site`, it returns a request for the same key.
        """
        if not (self.directory / AUTHORITY_KEY).exists():
            self._write_key(AUTHORITY_KEY, Ed25519PrivateKey.generate())
        return make_request(self._key(AUTHORITY_KEY), f"site {site_id}")

    def finish_site(
        self, identity: Identity, *, root_pem: str, authority_pem: str, now_s: float
    ) -> None:
        """Take the certificate of the new site authority in; issue signer and daemon.

        Raises:
            Unauthenticated: it is not this site's authority under that root.
        """
        root = load_certificate(root_pem)
        certificate = load_certificate(authority_pem)
        require_site_authority(
            certificate,
            root,
            federation_id=identity.federation_id,
            site_id=identity.site_id,
            now_s=now_s,
        )
        authority = Authority(certificate, self._key(AUTHORITY_KEY))
        if public_key_of(certificate) != authority.key.public_key():
            raise InvalidRequest("the certificate is of another key", field="authority_pem")
        self._write(AUTHORITY, pem_of(certificate))
        signer_key = Ed25519PrivateKey.generate()
        # First: a key whose word nobody can verify is none.
        self._publish_signer(signer_key, authority, identity, now_s=now_s)
        self._write_key(SIGNER_KEY, signer_key)
        self._write(SITE_REVOCATIONS, make_revocation_list(authority, (), number=1, now_s=now_s))
        self.keep_quorum_list((), now_s=now_s)
        key = Ed25519PrivateKey.generate()
        leaf = issue_daemon(authority, key.public_key(), identity, now_s=now_s)
        self.install(root_pem=root_pem, chain_pem=pem_of(leaf, certificate), key=key)

    def signer(self) -> x509.Certificate:
        """Return the certificate of the signing key in use."""
        return self._signer_of(self.signer_key())

    def next_signer(self) -> x509.Certificate | None:
        """Return the certificate of the signing key that is published but not in use yet."""
        if not (self.directory / SIGNER_NEXT_KEY).exists():
            return None
        try:
            return self._signer_of(self._key(SIGNER_NEXT_KEY))
        except CorruptData:
            return None  # a crash hit before its certificate was written: `prepare_signer` again

    def prepare_signer(self, *, now_s: float) -> None:
        """Make the next signing key; publish `site_trust()` then.

        `use_next_signer` waits for the feeds: another site believes a token only when it knows
        its key. Earlier keys stay published, to verify what they signed.
        """
        key = Ed25519PrivateKey.generate()
        self._write_key(SIGNER_NEXT_KEY, key)
        self._publish_signer(key, self.authority(), self.identity(), now_s=now_s)

    def use_next_signer(self) -> None:
        """Sign with the key of `next_signer` from now on."""
        (self.directory / SIGNER_NEXT_KEY).replace(self.directory / SIGNER_KEY)
        sync_directory((self.directory / SIGNER_KEY).parent)

    def _signer_of(self, key: Ed25519PrivateKey) -> x509.Certificate:
        for signer in load_chain(self._text(SIGNERS)):
            if public_key_of(signer) == key.public_key():
                return signer
        raise CorruptData("no certificate of the signing key", where=str(self.directory / SIGNERS))

    def _publish_signer(
        self, key: Ed25519PrivateKey, authority: Authority, identity: Identity, *, now_s: float
    ) -> None:
        signer = issue_signer(
            authority,
            key.public_key(),
            federation_id=identity.federation_id,
            site_id=identity.site_id,
            now_s=now_s,
        )
        path = self.directory / SIGNERS
        earlier = path.read_text() if path.exists() else ""
        self._write(SIGNERS, pem_of(signer) + earlier)

    def renew_authority(self, pem: str) -> None:
        """Take a new certificate of the site's authority in: the same key, for longer.

        All that the key has issued or signed holds under either certificate.

        Raises:
            Unauthenticated: it is not this site's authority under the root.
            InvalidRequest: it is of another key, or ends no later than the one that is here.
        """
        identity = self.identity()
        renewed = load_certificate(pem)
        require_site_authority(
            renewed,
            self.root(),
            federation_id=identity.federation_id,
            site_id=identity.site_id,
            now_s=None,
        )
        present = self.authority().certificate
        if public_key_of(renewed) != public_key_of(present):
            raise InvalidRequest("the certificate is of another key", field="pem")
        if not_after_s(renewed) <= not_after_s(present):
            raise InvalidRequest("it ends no later than the one that is here", field="pem")
        self._write(AUTHORITY, pem_of(renewed))

    def issue(
        self,
        public_key: Ed25519PublicKey,
        identity: Identity,
        *,
        now_s: float,
        life_s: float = DAEMON_LIFE_S,
    ) -> str:
        """Return the chain (PEM) of a new certificate for a daemon of this site.

        Raises:
            Forbidden: the identity is of another site or federation.
        """
        own = self.identity()
        if (identity.federation_id, identity.site_id) != (own.federation_id, own.site_id):
            raise Forbidden(f"site {own.site_id!r} does not issue for {identity}")
        authority = self.authority()
        leaf = issue_daemon(authority, public_key, identity, now_s=now_s, life_s=life_s)
        self._issued.note(leaf, identity, now_s=now_s)
        return pem_of(leaf, authority.certificate)

    def issue_service(self, addresses: Sequence[str], *, now_s: float) -> None:
        """Make a fresh key and certificate for etcd and the HTTPS API at `addresses`."""
        own = self.identity()
        authority = self.authority()
        key = Ed25519PrivateKey.generate()
        certificate = issue_service(
            authority,
            key.public_key(),
            federation_id=own.federation_id,
            site_id=own.site_id,
            addresses=addresses,
            now_s=now_s,
        )
        self._write_key(SERVICE_KEY, key)
        self._write(SERVICE_CHAIN, pem_of(certificate, authority.certificate))

    def service_is_due(self, now_s: float) -> bool:
        """Tell whether less than half of the service certificate's life is left."""
        if not (self.directory / SERVICE_CHAIN).exists():
            return True
        leaf = load_chain(self._text(SERVICE_CHAIN))[0]
        return now_s > (not_before_s(leaf) + not_after_s(leaf)) / 2

    @property
    def service_files(self) -> tuple[Path, Path]:
        """Return the service certificate's chain and key."""
        return self.directory / SERVICE_CHAIN, self.directory / SERVICE_KEY

    def api_context(self) -> ssl.SSLContext:
        """Return a context for the HTTPS API: clients show tokens, not certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.directory / SERVICE_CHAIN, self.directory / SERVICE_KEY)
        return context

    def revoke(self, serials: Iterable[int], *, now_s: float) -> None:
        """Revoke certificates of this site; publish `site_trust()` then."""
        self._revoke(SITE_REVOCATIONS, self.authority(), serials, now_s=now_s)

    def revoke_node(self, node_id: NodeId, *, shown: Iterable[int] = (), now_s: float) -> None:
        """Revoke all that a node may show: what was issued to it, and what it was seen to show.

        Raises:
            Forbidden: it is this controller itself.
            NotFound: nothing was ever issued to it, or all has expired.
        """
        if node_id == self.identity().node_id:
            raise Forbidden(
                f"{node_id} is the controller that would do it",
                hint="revoke the datacenter from another site, or found its trust anew",
            )
        serials = {*self._issued.serials_of(node_id), *shown}
        if not serials:
            raise NotFound("certificate of node", node_id, hint="it never joined this site")
        self.revoke(serials, now_s=now_s)

    def keep_quorum_list(self, serials: Iterable[int], *, now_s: float) -> None:
        """Write what etcd is to refuse: one list for all issuers, whose signature it ignores."""
        crl = make_revocation_list(self.authority(), serials, number=1, now_s=now_s)
        self._write(QUORUM_REVOCATIONS, crl)

    def site_trust(self, *, audit_seal: str = "") -> SiteTrust:
        """Return what this site publishes about itself; `audit_seal` is `AuditLog.head.seal`."""
        root_list = self.directory / ROOT_REVOCATIONS
        return SiteTrust(
            site_id=self.identity().site_id,
            authority_pem=self._text(AUTHORITY),
            signers_pem=self._text(SIGNERS),
            revocations_pem=self._text(SITE_REVOCATIONS),
            root_revocations_pem=root_list.read_text() if root_list.exists() else "",
            audit_seal=audit_seal,
            key_generation=self.key_generation,
            secret_generation=max(self.shared_secrets().newest, 0),
        )

    @property
    def key_generation(self) -> int:
        """Return the highest generation of the fabric's keys that this site has seen or begun.

        Raises:
            CorruptData: the file holds something else; without it the other sites tell the number.
        """
        path = self.directory / KEY_GENERATION
        text = path.read_text() if path.exists() else "0"
        if not text.isdecimal():
            raise CorruptData(f"{path} holds no number", where=str(path), hint="delete it")
        return int(text)

    def raise_key_generation(self, generation: int) -> None:
        """Note a generation that is in use; a lower one than is known changes nothing."""
        if generation > self.key_generation:
            self._write(KEY_GENERATION, str(generation))

    def shared_secrets(self) -> SharedSecrets:
        """Return what the federation's controllers share, as it is kept."""
        return read_secrets(self.directory / SECRETS)

    def keep_shared_secrets(self, secrets: SharedSecrets) -> None:
        """Keep what the federation's controllers share."""
        write_secrets(self.directory / SECRETS, secrets)

    # The federation's root ------------------------------------------------------------------

    def found(self, identity: Identity, *, now_s: float) -> None:
        """Found a federation: its root, its first site, and this daemon in it.

        Raises:
            Forbidden: the directory belongs to a federation already.
        """
        if (self.directory / ROOT).exists():
            raise Forbidden(f"{self.directory} belongs to a federation already")
        root = make_root(identity.federation_id, now_s)
        self._write_key(ROOT_KEY, root.key)
        secrets = SharedSecrets({})
        secrets.begin(0)
        self.keep_shared_secrets(secrets)
        empty = make_revocation_list(root, (), number=1, now_s=now_s)
        self._write(ROOT_REVOCATIONS, empty)
        request_pem = self.begin_site(identity.site_id)
        authority = _site_authority(root, request_pem, identity, now_s)
        self.finish_site(
            identity,
            root_pem=pem_of(root.certificate),
            authority_pem=pem_of(authority),
            now_s=now_s,
        )

    @property
    def holds_root(self) -> bool:
        """Tell whether the root's key is here, and not in a safe or at another site."""
        return (self.directory / ROOT_KEY).exists()

    def root_authority(self) -> Authority:
        """Return the root with its key.

        Raises:
            Unavailable: the key is not here, or was taken offline.
        """
        return Authority(self.root(), self._key(ROOT_KEY))

    def admit_site(self, site_id: SiteId, request_key: Ed25519PublicKey, *, now_s: float) -> str:
        """Return the certificate (PEM) of a new site's authority."""
        certificate = issue_site_authority(
            self.root_authority(),
            request_key,
            federation_id=self.federation_id(),
            site_id=site_id,
            now_s=now_s,
        )
        return pem_of(certificate)

    def revoke_site(self, authority: x509.Certificate, *, now_s: float) -> None:
        """Revoke a whole site; publish `site_trust()` then.

        Raises:
            Unavailable: the root's key is not here.
        """
        self._revoke(
            ROOT_REVOCATIONS, self.root_authority(), (authority.serial_number,), now_s=now_s
        )

    # Files --------------------------------------------------------------------------------

    def _revoke(
        self, path: str, authority: Authority, serials: Iterable[int], *, now_s: float
    ) -> None:
        number, before = read_revocation_list(self._text(path), authority.certificate)
        pem = make_revocation_list(authority, {*before, *serials}, number=number + 1, now_s=now_s)
        self._write(path, pem)

    def _checked_leaf(
        self, root: x509.Certificate, chain: list[x509.Certificate]
    ) -> tuple[x509.Certificate, Identity]:
        if len(chain) != 2:
            raise InvalidRequest(
                f"a chain has a daemon's and its site's certificate, not {len(chain)}",
                field="chain_pem",
            )
        leaf, authority = chain
        identity = identity_of_certificate(leaf)
        require_site_authority(
            authority,
            root,
            federation_id=identity.federation_id,
            site_id=identity.site_id,
            now_s=None,
        )
        require_issued(leaf, authority, now_s=None)
        return leaf, identity

    def _text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text()
        except FileNotFoundError:
            raise Unavailable(
                f"{self.directory / name} is missing",
                hint="this daemon has not joined, or does not hold that part",
            ) from None
        except UnicodeDecodeError as error:
            raise CorruptData("not PEM", where=str(self.directory / name)) from error

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.directory / name, text.encode())

    def _key(self, name: str) -> Ed25519PrivateKey:
        path = self.directory / name
        try:
            require_private(path)
            return load_key(path.read_bytes())
        except FileNotFoundError:
            raise Unavailable(
                f"the key {path} is not here",
                hint="it may have been taken offline; bring it back for this act",
            ) from None
        except NuageError as error:
            raise CorruptData(error.message, where=str(path)) from error

    def _write_key(self, name: str, key: Ed25519PrivateKey) -> None:
        write_atomically(self.directory / name, pem_of_key(key), secret=True)


def _site_authority(
    root: Authority, request_pem: str, identity: Identity, now_s: float
) -> x509.Certificate:
    return issue_site_authority(
        root,
        public_key_of_request(request_pem),
        federation_id=identity.federation_id,
        site_id=identity.site_id,
        now_s=now_s,
    )
